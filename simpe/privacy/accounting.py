"""Privacy accounting for what is really drawn: noise on bounded integer vectors, discrete Gaussian or Skellam's.

A :class:`Charge` says what one release did; :func:`delta_of` and :func:`epsilon_of` say what a list of charges costs;
:func:`calibrate` finds the noise for a budget. Everything is rounded against ourselves.

Two ways of counting, both valid under adaptive composition when the noise scales are fixed beforehand:

- **One-bin charges** (a unit adds 1 to a single bin): the privacy loss distribution of the discrete Gaussian itself.
  Adding or removing the unit shifts one coordinate by 1, so the pair of outputs is (X, X + 1), whose loss at
  X = x is (1 - 2x) / (2 sigma^2); replacing it shifts two coordinates, that is two such pairs. Losses of
  independent noise add up, so the composition is a convolution, and
  delta(epsilon) = E[(1 - exp(epsilon - L))+] (Sommer, Meiser and Mohammadi, PoPETs 2019; Koskela, Jalko and
  Honkela, AISTATS 2020). The Gaussian formula of Balle and Wang is *not* a bound for the discrete law.
- **Many-bin charges** (a unit's integer vector c has sum of c^2 <= S^2): zero-concentrated DP. The discrete
  Gaussian satisfies rho = S^2 / (2 sigma^2) (Canonne, Kamath and Steinke, NeurIPS 2020, Thm. 4, by additivity
  over the coordinates), rho adds up, and converts by their Prop. 12. One many-bin charge makes the whole list
  counted this way. So does ``adaptive``: where noise scales or the number of releases may depend on earlier
  results (several runs on one ledger, releases that no plan announced), only a sum of rho under a fixed bound is a
  valid stopping rule (the zCDP filter: Rogers et al. 2016; Feldman and Zrnic, NeurIPS 2021).

**Skellam noise**, which several parties draw together, is counted by its Renyi divergence, see :attr:`Charge.rho`.

The table sampler cuts its tails. On the outputs that remain, P'(x) / Q'(x) is unchanged, since both are divided
by the same constant; what P' can reach and Q' cannot has mass <= TAIL a release, and the conditioning scales the
rest by at most 1 / (1 - TAIL). So delta' <= delta * (1 + 2 * TAIL * releases) + 2 * TAIL * releases: added below.
What is cut off many draws that are added up (at most 2^40 a release: bins times parties) is counted by total variation:
the cuts have nothing to do with the data, so each of the two laws moves by eta <= 2^40 SKELLAM_TAIL, and delta by (1 +
exp(epsilon)) eta.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from simpe.privacy.mechanism import MAX_SIGMA, SKELLAM_TAIL, TAIL

Relation = Literal["add_remove", "replace_one"]
Law = Literal["discrete gaussian", "skellam"]

_GRID = 2**17  # points of the loss grid
_WIDTH = 14.0  # half-width of the window, in standard deviations of the loss: mass beyond it < 2e-42
_FAR = 140.0  # nats: a delta below exp(-140) needs no more digits
_MARGIN = 1e-9  # relative allowance for floating point


_LARGEST_SCALE = 1024  # resolution of a vote where a unit spreads one over many bins
_CUT = 2.0**40 * SKELLAM_TAIL  # of all draws that make up one release's noise


SMALLEST_EPSILON, LARGEST_EPSILON, SMALLEST_DELTA = 1e-4, 1e5, 1e-20


@dataclass(frozen=True)
class Budget:
    """What may be spent on one data set: (epsilon, delta)-DP in total.

    ``relation`` says what neighbouring data sets are: ``add_remove`` one unit (sensitivity S) or ``replace_one``
    (sqrt(2) S, for the non-negative vectors used here). delta is never computed from the private data.

    Raises ValueError unless epsilon lies in [0.0001, 100000] (less is nothing but noise, more no guarantee) and delta
    in [1e-20, 1).
    """

    epsilon: float
    delta: float = 1e-6
    relation: Relation = "add_remove"

    def __post_init__(self) -> None:
        number = isinstance(self.epsilon, int | float) and not isinstance(self.epsilon, bool)
        if not (number and SMALLEST_EPSILON <= self.epsilon <= LARGEST_EPSILON):
            raise ValueError(
                f"epsilon must be a positive number from {SMALLEST_EPSILON} to {LARGEST_EPSILON:g}, got {self.epsilon}"
            )
        if not (isinstance(self.delta, int | float) and SMALLEST_DELTA <= self.delta < 1):
            raise ValueError(f"delta must lie strictly between 0 and 1 ({SMALLEST_DELTA:g} at least), got {self.delta}")
        if self.relation not in ("add_remove", "replace_one"):
            raise ValueError(f"relation must be add_remove or replace_one, got {self.relation!r}")


@dataclass(frozen=True)
class Charge:
    """One release: integer counts plus noise of scale ``sigma``, of the ``law`` named.

    ``sensitivity`` is the integer S that bounds a unit's vector: sum of c^2 <= S^2. ``one_bin`` says that a unit
    adds 1 to one bin at most (then S = 1). For Skellam's law sigma^2 is the variance.
    """

    sigma: float
    sensitivity: int = 1
    one_bin: bool = True
    law: Law = "discrete gaussian"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be positive and finite, got {self.sigma}")
        whole = isinstance(self.sensitivity, int) and not isinstance(self.sensitivity, bool)
        if not whole or self.sensitivity < 1 or (self.one_bin and self.sensitivity != 1):
            raise ValueError("sensitivity must be a positive integer, and 1 where a unit touches one bin")
        if self.law not in ("discrete gaussian", "skellam") or (self.law == "skellam" and self.one_bin):
            raise ValueError("law must be discrete gaussian, or skellam where one_bin is false")

    @property
    def noise_multiplier(self) -> float:
        """sigma / S."""
        return self.sigma / self.sensitivity

    @property
    def rho(self) -> float:
        """zCDP of the release under add_remove; twice this under replace_one (non-negative vectors).

        Skellam noise of variance m has a Renyi divergence of order alpha of at most
        alpha D2^2 / (2 m) + ((2 alpha - 1) D2^2 + 6 D1) / (4 m^2) for whole alpha > 1, where D1 and D2 are the
        sensitivities in L1 and L2 (Agarwal, Kairouz and Liu, NeurIPS 2021, "The Skellam mechanism"). Here D2
        is S, and D1 is at most S^2, as entries are whole; so it is at most alpha S^2 / (2 m) (1 + 7 / (2 m)).
        """
        own = self.sensitivity**2 / (2 * self.sigma**2) * (1 + _MARGIN)
        return own * (1 + 3.5 / self.sigma**2) if self.law == "skellam" else own


def resolution(noise_multiplier: float) -> int:
    """S for a release where a unit spreads its vote over many bins: a power of two, 1024 or what the sampler bears."""
    return 1 << int(math.log2(min(_LARGEST_SCALE, max(1.0, MAX_SIGMA / noise_multiplier))))


def charge_of(noise_multiplier: float, one_bin: bool, law: Law = "discrete gaussian") -> Charge:
    """What a release is charged at this noise multiplier; as if S were 1 where that is all the same."""
    if law == "skellam":
        size = resolution(noise_multiplier)
        return Charge(noise_multiplier * size, size, False, law)
    return Charge(noise_multiplier, 1, one_bin)


def delta_of(
    charges: Iterable[Charge], epsilon: float, relation: Relation = "add_remove", adaptive: bool = False
) -> float:
    """An upper bound on delta such that the charges together are (epsilon, delta)-DP."""
    charges = tuple(charges)
    if not charges:
        return 0.0
    times = 2 if relation == "replace_one" else 1
    if not adaptive and all(charge.one_bin for charge in charges):
        counts = Counter({sigma: times * n for sigma, n in Counter(c.sigma for c in charges).items()})
        delta = _delta_of_losses(tuple(sorted(counts.items())), epsilon)
    else:
        parties = sum(charge.law == "skellam" for charge in charges)
        delta = delta_of_zcdp(times * math.fsum(charge.rho for charge in charges), epsilon, whole=parties > 0)
        delta += parties * _CUT * (1 + math.exp(min(epsilon, 200.0)))
    cut = 2 * TAIL * times * len(charges)
    return min(1.0, delta * (1 + cut) + cut)


def epsilon_of(
    charges: Iterable[Charge], delta: float, relation: Relation = "add_remove", adaptive: bool = False
) -> float:
    """The smallest epsilon (rounded up) such that the charges together are (epsilon, delta)-DP."""
    charges = tuple(charges)
    return _smallest(lambda epsilon: _log_ratio(delta_of(charges, epsilon, relation, adaptive), delta), start=1.0)


def delta_of_zcdp(rho: float, epsilon: float, whole: bool = False) -> float:
    """delta for rho-zCDP: min over alpha > 1 of exp((alpha-1)(alpha rho - epsilon)) (1-1/alpha)^alpha / (alpha-1).

    Canonne, Kamath and Steinke (NeurIPS 2020), Prop. 12. Any alpha gives a valid bound, so an inexact minimum only
    rounds against ourselves. With ``whole``, only whole orders are known to satisfy the bound.
    """

    def log_delta(log_excess: float) -> float:
        excess = math.exp(log_excess)  # alpha - 1
        alpha = 1 + excess
        return excess * (alpha * rho - epsilon) + alpha * math.log1p(-1 / alpha) - log_excess

    # The minimum lies near alpha = (epsilon + rho) / (2 rho), or 1 + 1 / sqrt(2 rho) where epsilon is small; search
    # around it in the logarithm.
    centre = math.log(max((epsilon - rho) / (2 * rho), 1 / math.sqrt(2 * rho)))
    found = minimize_scalar(log_delta, bounds=(centre - 10, centre + 10), method="bounded", options={"xatol": 1e-10})
    least = float(found.fun)
    if whole:
        below = max(1, math.floor(math.exp(found.x)))
        least = min(log_delta(math.log(below)), log_delta(math.log(below + 1)))
    return min(1.0, math.exp(min(least, 0.0)) * (1 + _MARGIN))


@functools.lru_cache(maxsize=4096)
def _delta_of_losses(counts: tuple[tuple[float, int], ...], epsilon: float) -> float:
    """delta(epsilon) of composed one-bin releases: ``counts`` holds (sigma, how many).

    A release's loss is 1 / (2 sigma^2) + y / sigma^2 with y discrete Gaussian. The first part is a constant and
    kept exact. The second is moved to a grid of step h, on which the laws are convolved by FFT: a loss between two grid
    points is split over both such that its mass and its mean of exp(-loss) stay. delta is convex in exp(-loss), so
    that only rounds up, and only in second order (Doroshenko et al., PoPETs 2022, "connect the dots"). To keep
    relative precision where delta is small, each law is tilted by exp(theta * loss) so that epsilon is its mean,
    and the tilt is undone at the end. What lies outside the window of the grid is below 1e-20 of what counts.
    """
    variance = math.fsum(n / sigma**2 for sigma, n in counts)
    offset = variance / 2
    # The discrete Gaussian is sub-Gaussian (Canonne et al. 2020, Cor. 17): far out that bound is enough.
    nats = max(0.0, epsilon - offset) ** 2 / (2 * variance)
    if nats > _FAR:
        return math.exp(-nats)
    theta, deviation = _tilt(counts, epsilon - offset)
    # The second term is for laws of few, far points, which are wider than their deviation says.
    width = _WIDTH * (deviation + max(sigma**-2 for sigma, _ in counts))
    step = 2 * width / _GRID
    common = max(counts, key=lambda c: c[1])[0] ** -2
    if common > step:  # the most frequent losses then lie on the grid
        step = common / math.ceil(common / step)

    log_scale = 0.0
    spectrum = np.ones(_GRID // 2 + 1, dtype=np.complex128)
    for sigma, n in counts:
        y = _lattice(sigma, theta)
        place = y / (sigma**2 * step)
        low = np.floor(place)
        upper = np.expm1(-(place - low) * step) / math.expm1(-step)
        log_weight = -(y**2) / (2 * sigma**2) + theta * step * low
        top = log_weight.max()
        weight = np.exp(log_weight - top)
        index = low.astype(np.int64)
        law = np.bincount(index % _GRID, weights=weight * (1 - upper), minlength=_GRID)
        law += np.bincount((index + 1) % _GRID, weights=weight * upper * math.exp(theta * step), minlength=_GRID)
        mass = law.sum()
        spectrum *= np.fft.rfft(law / mass) ** n
        log_scale += n * (top + math.log(mass) - _log_normaliser(sigma))
    total = np.fft.irfft(spectrum, _GRID).clip(min=0)

    # The grid is circular: read it as the window of indices centred where the tilted mass is.
    first = round((max(epsilon, offset) - offset) / step) - _GRID // 2
    grid = first + np.arange(_GRID)
    excess = offset + grid * step - epsilon
    above = excess > 0
    weight = total[grid[above] % _GRID]
    terms = weight * np.exp(log_scale - theta * step * grid[above]) * -np.expm1(-excess[above])
    return min(1.0, float(terms.sum()) * (1 + _MARGIN))


def _lattice(sigma: float, theta: float) -> NDArray[np.float64]:
    """The integers that matter to a discrete Gaussian tilted by exp(theta y / sigma^2)."""
    reach = math.ceil(_WIDTH * sigma) + 1
    return np.arange(round(theta) - reach, round(theta) + reach + 1, dtype=np.float64)


def _tilt(counts: tuple[tuple[float, int], ...], target: float) -> tuple[float, float]:
    """theta >= 0 at which the tilted sum of y / sigma^2 has the mean ``target``, and its standard deviation there."""

    def moments(theta: float) -> tuple[float, float]:
        mean = variance = 0.0
        for sigma, n in counts:
            y = _lattice(sigma, theta)
            weight = np.exp(-((y - theta) ** 2 - (theta - round(theta)) ** 2) / (2 * sigma**2))
            weight /= weight.sum()
            centre = float(weight @ y)
            mean += n * centre / sigma**2
            variance += n * float(weight @ (y - centre) ** 2) / sigma**4
        return mean, math.sqrt(variance)

    variance = math.fsum(n / sigma**2 for sigma, n in counts)
    guess = target / variance
    if min(sigma for sigma, _ in counts) > 3:  # within exp(-2 pi^2 sigma^2) of the continuous Gaussian
        return max(0.0, guess), math.sqrt(variance)
    if target <= 0:
        return 0.0, moments(0.0)[1]
    low, high = max(0.0, guess - 1), guess + 1  # a law on the integers has its mean within 1 of theta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if moments(middle)[0] < target else (low, middle)
    return high, moments(high)[1]


def _log_normaliser(sigma: float) -> float:
    """log of the sum over the integers of exp(-y^2 / (2 sigma^2))."""
    y = np.arange(1, math.ceil(_WIDTH * sigma) + 2, dtype=np.float64)
    return math.log1p(2 * float(np.exp(-(y**2) / (2 * sigma**2)).sum()))


def calibrate(
    budget: Budget,
    shares: Sequence[float],
    *,
    one_bin: bool = True,
    adaptive: bool = False,
    spent: Iterable[Charge] = (),
    law: Law = "discrete gaussian",
) -> list[float]:
    """Noise multipliers, one a release, such that ``spent`` and the releases together stay within ``budget``.

    ``shares`` are the releases' parts of the precision: 1 / noise_multiplier^2 is proportional to them (equal shares
    give equal noise). The result is checked with :func:`delta_of` itself, so a ledger that counts the same way
    admits the releases to the last digit. ``adaptive`` counts them as adaptively chosen; what was ``spent`` before
    makes the whole so. ``law`` is that of the releases' noise.

    Raises ValueError when ``spent`` alone exceeds the budget.
    """
    if not shares or min(shares) <= 0:
        raise ValueError("shares must be positive")
    spent = tuple(spent)
    adaptive = adaptive or bool(spent)
    if spent and delta_of(spent, budget.epsilon, budget.relation, adaptive) >= budget.delta:
        raise ValueError("nothing is left of the budget")
    total = math.fsum(shares)

    def multipliers(scale: float) -> list[float]:
        return [scale * math.sqrt(total / share) for share in shares]

    def overspent(scale: float) -> float:
        releases = tuple(charge_of(sigma, one_bin, law) for sigma in multipliers(scale))
        return _log_ratio(delta_of(spent + releases, budget.epsilon, budget.relation, adaptive), budget.delta)

    guess = 1 / math.sqrt(2 * _rho_for(budget))
    return multipliers(_smallest(overspent, start=guess))


def _rho_for(budget: Budget) -> float:
    """A zCDP parameter of about the budget's size: where the search starts."""
    log = math.log(1 / budget.delta)
    return (math.sqrt(budget.epsilon + log) - math.sqrt(log)) ** 2


def _log_ratio(delta: float, allowed: float) -> float:
    """How far delta is past what is allowed, in the logarithm; above 0 exactly where it is."""
    ratio = math.log(max(delta, 1e-300) / allowed)
    return max(ratio, 1e-16) if delta > allowed else min(ratio, 0.0)


def _smallest(excess: Callable[[float], float], start: float) -> float:
    """The smallest x > 0, to a relative 1e-7 and from above, past which a falling function is at most 0."""
    high = start
    while excess(high) > 0:
        high *= 2
        if high > 1e12:
            raise ValueError("no finite value is enough")
    low = high / 2
    while excess(low) <= 0:
        high, low = low, low / 2
        if high < 1e-12:
            return high
    x = float(brentq(excess, low, high, xtol=1e-8 * low, rtol=1e-8))
    beyond = 1e-8
    while excess(x) > 0:  # the root was met from below, or the function jumps there
        x, beyond = min(high, x * (1 + beyond)), 2 * beyond
    return x
