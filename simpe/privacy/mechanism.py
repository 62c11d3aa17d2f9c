"""Exact noise on integers from the operating system's randomness: the discrete Gaussian, and Skellam's.

The discrete Gaussian N_Z(0, sigma^2) has mass proportional to exp(-x^2 / (2 sigma^2)) on the integers (Canonne,
Kamath and Steinke, NeurIPS 2020). It is drawn here by inverting a table of its distribution function, held as
fixed-point numbers of 192 bits or more: 64 random bits pick the entry, and the rare draw that those 64 bits cannot
decide is settled by all the others. Two things keep the table from being the distribution itself, and both are
accounted for:

- it stops at |x| <= K, beyond which lies a mass of at most ``TAIL`` even after a shift by the sensitivity
  (charged to delta, see :mod:`simpe.privacy.accounting`);
- its entries are rounded, to 80 bits below the smallest probability in it; that moves a probability ratio by a factor
  of at most 1 + 2^-78, far below the margin by which accounting rounds against itself. (Small noise has very small
  probabilities: 192 bits would give 0 to some of them, and a ratio of infinity.)

Noise that several parties add up has Skellam's law, the difference of two Poisson variables of one mean, because a sum
of such variables is one again (a sum of discrete Gaussians is not discrete Gaussian). It is drawn in the same way.
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

FINEST = 2.0**-7
"""Smallest noise multiplier that the table sampler takes: one release at it costs epsilon 8192."""

SKELLAM_TAIL = 2.0**-200
"""Upper bound on the mass that one draw of Skellam noise is cut by."""

_PRECISION = 80  # bits that the smallest probability in the table has at least
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


def _bits(sigma: float, bound: int) -> int:
    """Fixed-point precision of the distribution function: a multiple of 64, at least 192."""
    smallest = bound**2 / (2 * sigma**2 * math.log(2)) + math.log2(1 + 3 * sigma)  # -log2 of P(|X| = bound), or more
    return max(192, 64 * math.ceil((_PRECISION + smallest) / 64))


@functools.lru_cache(maxsize=8)
def _table(sigma: float, bound: int, lead: int) -> tuple[NDArray[np.uint64], bytes]:
    """Distribution function of |X| on 0..bound: its leading ``lead`` bits, and all of its bits big-endian.

    With r = exp(-1 / (2 sigma^2)), mass(m) = r^(m^2) follows by mass(m + 1) = mass(m) * r^(2m + 1): two
    multiplications an entry. Each truncation loses one unit in the last of the 128 guard bits, so the error of entry m
    is below m^2 of them, or 2^-84 of what the table keeps.
    """
    bits = _bits(sigma, bound)
    one = 1 << (bits + _GUARD)
    with mpmath.workprec(bits + 2 * _GUARD):
        exact = Fraction(sigma) ** 2
        ratio = mpmath.exp(mpmath.mpf(-exact.denominator) / (2 * exact.numerator))
        step = int(mpmath.floor(ratio * one))
    shift = bits + _GUARD
    square = step * step >> shift
    mass = one
    masses = []
    for _ in range(bound):
        mass = mass * step >> shift
        step = step * square >> shift
        masses.append(mass)
    return _function(one, masses, bits, lead)


@functools.lru_cache(maxsize=8)
def _skellam_table(variance: float, bound: int, lead: int) -> tuple[NDArray[np.uint64], bytes]:
    """Like :func:`_table`, for Skellam's law: mass(m) is proportional to the Bessel function I_m(variance).

    The ratios r_m = I_m / I_(m-1) follow downwards from r_(m-1) = 1 / (2 (m - 1) / variance + r_m) (Gautschi, SIAM
    Review 1967). That damps whatever it began with by r^2 a step, so it is begun so far out that nothing is left of it;
    each truncation then loses a unit in the last of the guard bits, as above.
    """
    exact = Fraction(variance)
    # -log of the smallest mass, or more: that of Debye's expansion, with two nats to spare.
    nats = _skellam_nats(bound, variance) + math.log(2 * math.pi * math.hypot(bound, variance)) / 2 + 2
    bits = max(192, 64 * math.ceil((_PRECISION + nats / math.log(2)) / 64))
    shift = bits + _GUARD
    one = 1 << shift
    start = bound + shift + math.isqrt(bound**2 + math.ceil(exact * shift)) - bound
    ratio, ratios = 0, []
    for m in range(start, 0, -1):
        ratio = (one << shift) // ((2 * m * one * exact.denominator) // exact.numerator + ratio)
        if m <= bound:
            ratios.append(ratio)
    mass, masses = one, []
    for ratio in reversed(ratios):
        mass = mass * ratio >> shift
        masses.append(mass)
    return _function(one, masses, bits, lead)


def _function(first: int, masses: list[int], bits: int, lead: int) -> tuple[NDArray[np.uint64], bytes]:
    """Distribution function of |X| from the masses of 0 (``first``) and of 1, 2, ...: leading bits, and all bits."""
    sums = [first]
    for mass in masses:
        sums.append(sums[-1] + 2 * mass)
    full = 1 << bits
    function = [(s << bits) // sums[-1] for s in sums[:-1]] + [full]
    # P(|X| <= m) as thresholds; the last is 1, which no draw reaches, so it is stored as all ones.
    stored = b"".join(min(f, full - 1).to_bytes(bits // 8, "big") for f in function)
    words = np.frombuffer(stored, dtype=">u8").reshape(-1, bits // 64)[:, 0].astype(np.uint64)
    return words >> np.uint64(64 - lead), stored


def discrete_gaussian(
    sigma: float, n: int, *, sensitivity: int = 1, words: Words = secrets.token_bytes, lead: int = 64
) -> NDArray[np.int64]:
    """n independent draws of the discrete Gaussian N_Z(0, sigma^2), int64.

    ``sensitivity`` (the integer S of the release) only widens the support, see :func:`support`. ``words`` is the
    source of random bytes; anything but the operating system's voids the guarantee. ``lead`` is the number of
    bits tried before more are drawn (smaller values exist to test the refinement).

    Raises ValueError unless FINEST * sensitivity <= sigma <= MAX_SIGMA.
    """
    if not FINEST * sensitivity <= sigma <= MAX_SIGMA:
        raise ValueError(f"sigma must lie in [{FINEST * sensitivity:g}, {MAX_SIGMA:g}], got {sigma}")
    return _drawn(*_table(sigma, support(sigma, sensitivity), lead), n, words, lead)


def skellam_support(variance: float) -> int:
    """K: Skellam noise is cut to |x| <= K, so that at most ``SKELLAM_TAIL`` of a draw is lost.

    By Chernoff's bound, see :func:`_skellam_nats`.
    """
    most = math.log(2) - math.log(SKELLAM_TAIL)
    low, high = 0, 64
    while _skellam_nats(high, variance) < most:
        high *= 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if _skellam_nats(middle, variance) < most else (low, middle)
    return high


def _skellam_nats(t: int, variance: float) -> float:
    """h such that P(X >= t) <= exp(-h): t asinh(u) - variance (sqrt(1 + u^2) - 1) with u = t / variance (Chernoff)."""
    u = t / variance
    return t * math.asinh(u) - variance * (u * u / (math.sqrt(1 + u * u) + 1))


def skellam(variance: float, n: int, *, words: Words = secrets.token_bytes, lead: int = 64) -> NDArray[np.int64]:
    """n independent draws of Skellam noise of this variance, int64: the difference of two Poisson variables.

    Sums of independent draws are Skellam noise of the sum of the variances, up to ``SKELLAM_TAIL`` a draw. ``words``
    and ``lead`` as in :func:`discrete_gaussian`.

    Raises ValueError unless 1 <= variance <= MAX_SIGMA^2.
    """
    if not 1 <= variance <= MAX_SIGMA**2:
        raise ValueError(f"variance must lie in [1, {MAX_SIGMA**2:g}], got {variance}")
    return _drawn(*_skellam_table(variance, skellam_support(variance), lead), n, words, lead)


def _drawn(leading: NDArray[np.uint64], stored: bytes, n: int, words: Words, lead: int) -> NDArray[np.int64]:
    """n draws by inverting a table of the distribution function of |X|, with random signs."""
    size = len(stored) // len(leading)
    drawn = np.frombuffer(words(8 * n), dtype=">u8").astype(np.uint64) >> np.uint64(64 - lead)
    # The draw U falls on the first entry with U < F. Entries whose leading bits exceed U's surely qualify, those
    # below surely do not; only equal leading bits need the rest of U.
    magnitude = np.searchsorted(leading, drawn, side="left")
    undecided = np.flatnonzero(leading[np.minimum(magnitude, len(leading) - 1)] == drawn)
    magnitude = magnitude.astype(np.int64)
    rest = 8 * size - lead
    for i in undecided:
        low = int.from_bytes(words(size), "big") & ((1 << rest) - 1)
        magnitude[i] = _first_above(stored, size, (int(drawn[i]) << rest) | low, int(magnitude[i]))
    negative = np.unpackbits(np.frombuffer(words((n + 7) // 8), dtype=np.uint8), count=n).astype(bool)
    return np.where(negative, -magnitude, magnitude)


def _first_above(stored: bytes, size: int, value: int, start: int) -> int:
    """Index of the first entry of ``size`` bytes above ``value``, searching from ``start``; the last has them all."""
    last = len(stored) // size - 1
    while start < last and int.from_bytes(stored[start * size : (start + 1) * size], "big") <= value:
        start += 1
    return start
