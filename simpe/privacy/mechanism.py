"""Exact discrete Gaussian noise from the operating system's randomness.

The discrete Gaussian N_Z(0, sigma^2) has mass proportional to exp(-x^2 / (2 sigma^2)) on the integers (Canonne,
Kamath and Steinke, NeurIPS 2020). It is drawn here by inverting a table of its distribution function, held as
192-bit fixed-point numbers: 64 random bits pick the entry, and the rare draw that those 64 bits cannot decide
is settled by 128 more. Two things keep the table from being the distribution itself, and both are accounted for:

- it stops at |x| <= K, beyond which lies a mass of at most ``TAIL`` even after a shift by the sensitivity
  (charged to delta, see :mod:`simpe.privacy.accounting`);
- its entries are rounded to 2^-192, which moves a probability ratio by a factor of at most 1 + 2^-80, far below
  the margin by which accounting rounds against itself.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
from numpy.typing import NDArray

TAIL = 2.0**-100
"""Upper bound on the mass cut off per release: over all bins that one unit touches, after its shift."""

MAX_SIGMA = 2.0**17
"""Largest noise scale that the table sampler takes (about 1.6 million entries)."""

_BITS = 192  # fixed-point precision of the distribution function
_GUARD = 128  # further bits while it is being computed

Words = Callable[[int], bytes]
"""A source of secret randomness: number of bytes -> that many bytes."""


def support(sigma: float, sensitivity: int = 1) -> int:
    """K: the noise is cut to |x| <= K, so that at most ``TAIL`` of it is lost per release.

    A unit's vector c (sum of c^2 <= S^2) touches at most S^2 bins and shifts each by at most S. By
    P(|X| >= t) <= 2 exp(-t^2 / (2 sigma^2)) (Canonne et al. 2020, Cor. 17 gives sub-Gaussianity), the mass outside is
    at most S^2 * 2 exp(-(K + 1 - S)^2 / (2 sigma^2)) <= TAIL for the K returned.
    """
    nats = math.log(2 * sensitivity**2) - math.log(TAIL)
    return math.ceil(sigma * math.sqrt(2 * nats)) + sensitivity


@functools.lru_cache(maxsize=8)
def _table(sigma: float, bound: int, lead: int) -> tuple[NDArray[np.uint64], bytes]:
    """Distribution function of |X| on 0..bound: its leading ``lead`` bits, and all of its 192 bits big-endian.

    With r = exp(-1 / (2 sigma^2)), mass(m) = r^(m^2) follows by mass(m + 1) = mass(m) * r^(2m + 1): two
    multiplications an entry. Each truncation loses one unit in 2^-320, so the error of entry m is below
    m^2 * 2^-320 < 2^-276 absolute.
    """
    one = 1 << (_BITS + _GUARD)
    with mpmath.workprec(_BITS + 2 * _GUARD):
        exact = Fraction(sigma) ** 2
        ratio = mpmath.exp(mpmath.mpf(-exact.denominator) / (2 * exact.numerator))
        step = int(mpmath.floor(ratio * one))
    shift = _BITS + _GUARD
    square = step * step >> shift
    mass, cumulative = one, one
    sums = [one]
    for _ in range(bound):
        mass = mass * step >> shift
        step = step * square >> shift
        cumulative += 2 * mass
        sums.append(cumulative)
    full = 1 << _BITS
    function = [(s << _BITS) // cumulative for s in sums[:-1]] + [full]
    # P(|X| <= m) as thresholds; the last is 2^192, which no draw reaches, so it is stored as 2^192 - 1.
    stored = b"".join(min(f, full - 1).to_bytes(_BITS // 8, "big") for f in function)
    words = np.frombuffer(stored, dtype=">u8").reshape(-1, _BITS // 64)[:, 0].astype(np.uint64)
    return words >> np.uint64(64 - lead), stored


def discrete_gaussian(
    sigma: float, n: int, *, sensitivity: int = 1, words: Words = secrets.token_bytes, lead: int = 64
) -> NDArray[np.int64]:
    """n independent draws of the discrete Gaussian N_Z(0, sigma^2), int64.

    ``sensitivity`` (the integer S of the release) only widens the support, see :func:`support`. ``words`` is the
    source of random bytes; anything but the operating system's voids the guarantee. ``lead`` is the number of
    bits tried before more are drawn (smaller values exist to test the refinement).

    Raises ValueError unless 0 < sigma <= MAX_SIGMA.
    """
    if not 0 < sigma <= MAX_SIGMA:
        raise ValueError(f"sigma must lie in (0, {MAX_SIGMA:g}], got {sigma}")
    leading, stored = _table(sigma, support(sigma, sensitivity), lead)
    drawn = np.frombuffer(words(8 * n), dtype=">u8").astype(np.uint64) >> np.uint64(64 - lead)
    # The draw U falls on the first entry with U < F. Entries whose leading bits exceed U's surely qualify, those
    # below surely do not; only equal leading bits need the rest of U.
    magnitude = np.searchsorted(leading, drawn, side="left")
    undecided = np.flatnonzero(leading[np.minimum(magnitude, len(leading) - 1)] == drawn)
    magnitude = magnitude.astype(np.int64)
    rest = _BITS - lead
    for i in undecided:
        low = int.from_bytes(words(_BITS // 8), "big") & ((1 << rest) - 1)
        magnitude[i] = _first_above(stored, (int(drawn[i]) << rest) | low, int(magnitude[i]))
    negative = np.unpackbits(np.frombuffer(words((n + 7) // 8), dtype=np.uint8), count=n).astype(bool)
    return np.where(negative, -magnitude, magnitude)


def _first_above(stored: bytes, value: int, start: int) -> int:
    """Index of the first stored 192-bit entry above ``value``, searching from ``start``; the last has them all."""
    size = _BITS // 8
    last = len(stored) // size - 1
    while start < last and int.from_bytes(stored[start * size : (start + 1) * size], "big") <= value:
        start += 1
    return start
