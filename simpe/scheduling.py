"""The schedule of a run: how many steps, how much noise at each, and how many candidates compete.

Everything is fixed by public inputs before the first release, except the number of candidates, which follows from the
noisy class counts: post-processing; and, in an adaptive run, what is spent when, within a total that is fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from simpe.errors import InputError
from simpe.privacy.accounting import Budget, Charge, Law, calibrate
from simpe.privacy.mechanism import FINEST, MAX_SIGMA

Metric = Literal["l2", "cosine"]

MAX_STEPS = 1000
MAX_NOISE_MULTIPLIER = 20_000.0
COUNT_SHARE = 0.05
_ROUNDED = 1 + 1e-9  # what is re-shared spends a little less than what was left
MOST_MARGINALS = 0.9  # of the precision: something must be left to vote with


@dataclass(frozen=True)
class Strategy:
    """How a run searches. The defaults suit every budget; all of it is public and free.

    - ``elitist``: the best candidates stay and compete with their children (default). False is PE as published:
      survivors are resampled in proportion to their votes and all replaced by their variations.
    - ``start``: random candidates for each place at the first step. ``children``: variations of each survivor.
    - ``clear``: the votes that a place can expect, in noise standard deviations (at least ``votes`` votes).
    - ``places``: survivors a class, instead of the rule above.
    - ``split``: how steps share the precision (1 / sigma^2): each has ``split`` times that of the step before it, so 1
      is uniform (default) and more is geometric; or one number a step, its part.
    - ``strength``, ``decay``: variation at step t is ``strength * decay**t``. ``release_strength``: at the end,
      when the survivors are spread to the samples asked for; without it, what one more step would have. Where a class
      has fewer than ``release_places`` survivors, it is wider: by the fourth root of how many times fewer, up to 1.
    - ``threshold``: in noise standard deviations, taken off the counts before they share out places or samples.
    - ``lookahead``: variations whose mean embedding stands for a candidate; 0 embeds the candidate itself.
    - ``neighbours``: candidates that each row votes for. ``metric``: l2 or cosine.
    - ``shared``: all classes share their candidates, which live by the votes of all and are released to each class by
      its own; for a simulator whose labels change nothing.
    - ``marginals``: share of the precision that buys marginals (see :mod:`simpe.marginals`); 0 buys none. With it all
      classes share their candidates, and the samples are drawn from the survivors and their variations (``support`` of
      each at first), by weights fitted to the marginals.
    """

    elitist: bool = True
    start: int = 20
    children: int = 3
    clear: float = 2.0
    votes: float = 4.0
    places: int | None = None
    split: float | tuple[float, ...] = 1.0
    strength: float = 0.7
    decay: float = 0.6
    release_strength: float | None = None
    release_places: int = 0
    threshold: float = 1.0
    lookahead: int = 0
    neighbours: int = 1
    metric: Metric = "l2"
    shared: bool = False
    marginals: float = 0.0
    support: int = 30

    def __post_init__(self) -> None:
        for name, least in (
            ("start", 1),
            ("children", 0),
            ("lookahead", 0),
            ("neighbours", 1),
            ("places", 1),
            ("support", 0),
            ("release_places", 0),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= 1_000_000:
                raise ValueError(f"{name} must lie between {least} and 1000000, got {value}")
        for name in ("clear", "votes", "strength", "decay", "release_strength", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1_000_000:
                raise ValueError(f"{name} must lie between 0 and 1000000, got {value}")
        parts = self.split if isinstance(self.split, tuple) else (self.split,)
        if not parts or not all(1e-3 <= part <= 1e3 for part in parts):
            raise ValueError(f"split must be a number between 0.001 and 1000, or one a step, got {self.split}")
        if not 0 <= self.marginals <= MOST_MARGINALS:
            raise ValueError(f"marginals must lie between 0 and {MOST_MARGINALS}, got {self.marginals}")
        if self.shared and (self.marginals or not self.elitist):
            raise ValueError(
                "shared: the best are kept (elitist), and with marginals classes share anyway; set one alone"
            )
        if self.clear == self.votes == 0:
            raise ValueError("clear and votes cannot both be 0")
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {self.metric!r}")

    def parts(self, steps: int) -> list[float]:
        """What each of so many steps gets of their precision; adds up to 1.

        Raises InputError where ``split`` names another number of steps.
        """
        if isinstance(self.split, tuple):
            if len(self.split) != steps:
                raise InputError(f"strategy: split has {len(self.split)} parts for {steps} steps; give one a step")
            weights = list(self.split)
        else:
            weights = [self.split ** (t - steps * (self.split > 1)) for t in range(steps)]
        return [weight / sum(weights) for weight in weights]

    def strength_at(self, step: int) -> float:
        """Strength of the variation after a step, counted from 0."""
        return self.strength * self.decay**step


class Part(Protocol):
    """What a schedule has to know of a later stage."""

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def share(self) -> float | None: ...  # noqa: D102

    @property
    def strategy(self) -> Strategy: ...  # noqa: D102


@dataclass(frozen=True)
class Schedule:
    """Noise multipliers of a run: of the class counts, of the votes of each step, and of the marginals, if bought.

    ``stages`` says how many of the steps belong to each stage; () where there is one.
    """

    count_noise: float
    vote_noise: tuple[float, ...]
    marginal_noise: float | None = None
    stages: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.vote_noise)

    def split(self) -> list[Schedule]:
        """The schedule of each stage."""
        votes = iter(self.vote_noise)
        return [
            replace(self, vote_noise=tuple(itertools.islice(votes, n)), stages=())
            for n in self.stages or (len(self.vote_noise),)
        ]

    def precision(self, start: int) -> float:
        """What the steps from ``start`` on spend: the sum of 1 / z^2."""
        return math.fsum(1 / z**2 for z in self.vote_noise[start:])

    def with_more(self, precision: float) -> Schedule:
        """With so much more precision, shared out as the steps share theirs."""
        if not precision:
            return self
        scale = math.sqrt(self.precision(0) / (self.precision(0) + precision)) * _ROUNDED
        return replace(self, vote_noise=tuple(max(FINEST, z * scale) for z in self.vote_noise))

    def cut(self, steps: int, precision: float) -> Schedule:
        """The first steps alone, and one more that spends so much precision, if any."""
        more = (max(FINEST, _ROUNDED / math.sqrt(precision)),) if precision else ()
        return replace(self, vote_noise=(*self.vote_noise[:steps], *more))


def schedule(
    budget: Budget,
    steps: int | None = None,
    *,
    one_bin: bool = True,
    strategy: Strategy | None = None,
    then: Sequence[Part] = (),
    adaptive: bool = False,
    spent: Iterable[Charge] = (),
    law: Law = "discrete gaussian",
) -> Schedule:
    """Split a budget over the class counts (5 % of the precision), the marginals (their share) and the steps.

    Without ``steps`` there are four in the first stage, or as many fewer as the budget can bear (at least one).
    ``then`` are the later stages; a stage without a share has as much as its steps would have among equal ones.
    ``one_bin`` says that a unit is one row with one vote (which marginals undo: a row is in several); ``adaptive`` that
    what a step spends may follow from the steps before it; ``spent`` is what the ledger already holds; ``law`` that
    of the noise.

    Raises InputError for more steps than MAX_STEPS, for steps given that need more noise than
    MAX_NOISE_MULTIPLIER, for shares that leave nothing to the first stage, and for a budget of which nothing is left.
    """
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise InputError(f"--steps must lie between 1 and {MAX_STEPS}, got {steps}")
    spent, strategy = tuple(spent), strategy or Strategy()
    if steps is None and isinstance(strategy.split, tuple):
        steps = len(strategy.split)
    marginals = strategy.marginals
    for count in (4, 3, 2, 1) if steps is None else (steps,):
        parts = _parts(count, strategy, then)
        left = 1 - COUNT_SHARE - marginals
        shares = [COUNT_SHARE, *(left * part for stage in parts for part in stage), *([marginals] if marginals else [])]
        try:
            noise = calibrate(
                budget, shares, one_bin=one_bin and not marginals, adaptive=adaptive, spent=spent, law=law
            )
        except ValueError:
            raise InputError(
                f"the ledger has already spent epsilon {budget.epsilon:g} at delta {budget.delta:g}; --epsilon is the "
                "total over all runs on it, so raise it or use another data set"
            ) from None
        total = sum(map(len, parts))
        most = max(noise[1 : total + 1])
        if most <= MAX_NOISE_MULTIPLIER:
            break
    else:
        if steps is not None:
            raise InputError(
                f"--steps {steps} is more than epsilon {budget.epsilon:g} can bear: each would need noise of "
                f"{most:.0f} votes; use fewer steps or more epsilon"
            )
    if max(noise) > MAX_SIGMA:
        raise InputError(f"--epsilon {budget.epsilon:g} leaves nothing but noise; use more")
    noise = [max(z, FINEST) for z in noise]  # the sampler takes nothing finer; more noise than needed is no harm
    return Schedule(
        noise[0], tuple(noise[1 : total + 1]), noise[-1] if marginals else None, tuple(len(stage) for stage in parts)
    )


def _parts(steps: int, strategy: Strategy, then: Sequence[Part]) -> list[list[float]]:
    """What each step of each stage gets of the precision that all votes have; adds up to 1."""
    total = steps + sum(part.steps for part in then)
    shares = [part.steps / total if part.share is None else part.share for part in then]
    if sum(shares) >= 1:
        raise InputError(f"then: the shares of the later stages add up to {sum(shares):g}; leave some to the first")
    parts = [[(1 - sum(shares)) * part for part in strategy.parts(steps)]]
    for stage, share in zip(then, shares, strict=True):
        parts.append([share * part for part in stage.strategy.parts(stage.steps)])
    return parts


def places(counts: list[float], noise: float, samples: list[int], strategy: Strategy) -> list[int]:
    """Survivors of each class: as many as its votes can tell apart from the noise.

    A class of c noisy rows that spreads its votes over p places gives each about c / p. A place is worth keeping when
    that is ``clear`` noise standard deviations (and ``votes`` votes, where there is hardly any noise), so
    p = c / max(clear * noise, votes), at least 1 where the class is to be sampled, and never more than its samples.
    """
    each = max(strategy.clear * noise, strategy.votes)
    rule = [c / each if strategy.places is None else strategy.places for c in counts]
    return [min(n, max(1, round(p))) for p, n in zip(rule, samples, strict=True)]
