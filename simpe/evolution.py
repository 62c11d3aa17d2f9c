"""Private Evolution with a simulator: init, step, run.

Lin et al., "Differentially Private Synthetic Data via Foundation Model APIs 1: Images" (ICLR 2024), Algorithm 1,
with a simulator's parameters in place of a foundation model (Lin et al., arXiv 2502.05505, 4). The default strategy
differs from the paper in two ways, both post-processing: the best candidates stay (they are not only parents), and the
number of candidates follows from the noise.

The engine knows no domain. The population after step t is a function of the seed and of the noisy counts on the ledger
alone, so a run is resumed by replaying them; no other checkpoint exists.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simpe import marginals, selection
from simpe.errors import InputError
from simpe.fingerprint import describe
from simpe.population import Population, concatenate, public_generator
from simpe.preflight import classes_of, given, preflight
from simpe.private import PrivateData
from simpe.protocols import Embedder, Simulator
from simpe.release import Release, certificate
from simpe.rendering import Progress as Progress
from simpe.rendering import random, render, render_and_embed, report_to, unwrapped, vary
from simpe.scheduling import Schedule, Strategy, places, schedule
from simpe.stages import Mixture, Stage, adopt

Watch = Callable[["Info", int], None]
"""Called after each step with what it did, all of it released, and the number of steps."""
COUNTS, MARGINALS = "0/counts", "0/marginals"
FEW = 100  # units, below which no useful result can be expected
MOST_COUNTED = 1_000_000  # samples, where their number is not given
MOST_SUPPORT = 20_000  # candidates that marginals weigh
REFITS, REFIT_PARENTS, REFIT_DECAY = 6, 2_000, 0.7


@dataclass(frozen=True)
class Setup:
    """Everything public about a stage of a run; ``given`` are the candidates of a fixed set (see :func:`given`).

    ``stage`` counts the stages from 0; ``schedule`` holds the steps of this one. ``spread`` is the door's.
    """

    simulator: Simulator
    embedder: Embedder
    schedule: Schedule
    strategy: Strategy
    classes: tuple[str, ...]
    samples: int | None
    seed: int
    device: torch.device
    progress: Progress = lambda what, done, total: None
    watch: Watch = lambda info, steps: None
    given: Population | None = None
    stage: int = 0
    adaptive: bool = False
    spread: float = 1.0

    def strength(self, steps: int) -> float:
        """Strength of the variation of what survived so many steps of this stage."""
        return self.strategy.strength_at(steps - (self.stage == 0))

    def spread_strength(self, steps: int, places: float = math.inf) -> float:
        """Strength of the variation that spreads what survived the last step, where a class has so many places."""
        own = self.strategy.release_strength
        own = self.strength(steps) if own is None else own
        wider: float = (self.strategy.release_places / max(1, places)) ** (1 / 4)
        return max(own, min(1.0, own * wider))

    @property
    def pooled(self) -> bool:
        """Whether all classes share their candidates, which then have the first label."""
        return self.strategy.shared or self.strategy.marginals > 0

    def noise(self, step: int) -> float:
        """Standard deviation of the noise in a candidate's votes at a step, those of all classes that share it."""
        apart = len(self.classes) if self.strategy.shared else 1
        return self.schedule.vote_noise[step] * self.spread * math.sqrt(apart)


@dataclass(frozen=True)
class State:
    """Between steps: who is there, and what is known of the classes.

    ``population`` holds the first candidates, or the survivors of the last step, whose variations are voted on next.
    ``step`` counts the steps of the stage that are done, and ``taken`` those of all stages. ``counts`` are the noisy
    class counts and ``outputs`` the samples of each class; where classes share their candidates, there is one count.
    ``voted`` are the candidates of the stage's last step and their noisy counts.
    """

    step: int
    population: Population
    counts: tuple[float, ...]
    outputs: tuple[int, ...]
    taken: int = 0
    voted: tuple[Population, Tensor] | None = None


@dataclass(frozen=True)
class Info:
    """What a step did; all of it is released.

    ``stage`` and ``step`` (of the stage) count from 0. ``survivors`` are indices into the step's candidates, best first
    within each class; ``counts`` are their noisy votes. ``uniform`` lists the classes in which no candidate had a
    positive count, so that the choice was uniform. ``signal`` is the root mean square of all candidates' votes in
    standard deviations of the noise, estimated without bias from the noisy ones. ``taken`` are the steps of all stages
    so far, with this one. Where classes share candidates and are counted apart, ``by_class`` (classes, survivors) are
    the counts of each class, and ``counts`` their sum.
    """

    step: int
    candidates: Population
    survivors: Tensor
    counts: Tensor
    noise: float
    uniform: tuple[int, ...]
    by_class: Tensor | None = None
    stage: int = 0
    signal: float = 0.0
    taken: int = 1

    @property
    def drowned(self) -> bool:
        """Whether the votes, all together, cannot be told from the noise: within a standard error of no signal."""
        bins = len(self.candidates) * (1 if self.by_class is None else len(self.by_class))
        return bool(self.signal**2 <= (2 / max(1, bins)) ** 0.5)


def init(setup: Setup, private: PrivateData) -> State:
    """Buy the class counts, and draw the first candidates by Random, or take those of a given set."""
    noise = setup.schedule.count_noise
    scale = private.charge(noise).sensitivity
    counts = private.class_counts(noise, address=COUNTS) / scale
    total = float(counts.clip(min=0).sum())
    if total < FEW:
        said = f"warning: about {total:.0f} units by the noisy count; with fewer than {FEW} expect nothing useful"
        setup.progress(said, 0, 0)
    if setup.given is not None:
        return _init_given(setup, setup.given, torch.from_numpy(counts))
    samples = setup.samples or min(max(1, round(total) * private.k), MOST_COUNTED)
    outputs = selection.apportion(torch.from_numpy(counts), samples).tolist()
    known = [total] if setup.pooled else counts.tolist()
    room = _places(setup, tuple(known), tuple(outputs), 0)
    labels = torch.repeat_interleave(
        torch.arange(len(room)), torch.tensor([n * setup.strategy.start for n in room], dtype=torch.int64)
    )
    generator = public_generator(setup.seed, setup.stage, 0, "random")
    params = random(setup.simulator, labels, generator)
    candidates = Population(params, labels, torch.full_like(labels, -1)).to(setup.device)
    return State(0, candidates, tuple(known), tuple(outputs))


def hand_on(setup: Setup, state: State, simulator: Simulator, last: Info) -> State:
    """Begin a later stage: its source takes over the best survivors of the stage before, as many as it has places."""
    survivors = last.candidates.take(last.survivors)
    room = _places(setup, state.counts, state.outputs, 0)
    best = [(survivors.labels == label).nonzero().squeeze(1)[:n] for label, n in enumerate(room)]
    adopted = adopt(setup.simulator, simulator, survivors.repeat(torch.cat(best)))
    return replace(state, step=0, population=adopted, voted=None)


def step(setup: Setup, private: PrivateData, state: State) -> tuple[State, Info]:
    """Vary, vote, select: one iteration of Private Evolution. The first step of a run votes on what Random drew."""
    t, strategy = state.step, setup.strategy
    candidates = state.population if t == setup.stage == 0 else _offspring(setup, state)
    noise, felt = setup.schedule.vote_noise[t], setup.noise(t)
    scale = private.charge(noise, strategy.neighbours == 1).sensitivity
    ballot = _ballot(setup, candidates)

    def embedded() -> Tensor:
        each = _embed(setup, candidates, t)
        return each if ballot is candidates else each.repeat(len(setup.classes), 1)

    votes = private.votes(
        setup.embedder,
        embedded,
        ballot.labels,
        noise,
        address=f"{setup.stage}/{t}/votes",
        digest=ballot.digest(),
        neighbours=strategy.neighbours,
        metric=strategy.metric,
        shared=strategy.marginals > 0,
        progress=lambda done, total: setup.progress(f"{_name(setup, t)}: voting", done, total),
    )
    each = torch.from_numpy(votes / scale)
    signal = (float(each.square().mean()) / (noise * setup.spread) ** 2 - 1) if len(each) else 0.0
    by_class = each.to(setup.device).reshape(len(setup.classes) if strategy.shared else 1, len(candidates))
    counts = by_class.sum(0)
    survivors, uniform = _select(setup, candidates, counts, _places(setup, state.counts, state.outputs, t), felt, t)
    info = Info(
        t, candidates, survivors, counts[survivors], felt, uniform, by_class[:, survivors] if strategy.shared else None,
        setup.stage, max(0.0, signal) ** 0.5, state.taken + 1,
    )  # fmt: skip
    kept, voted = candidates.take(survivors), (candidates, counts)
    return replace(state, step=t + 1, population=kept, taken=info.taken, voted=voted), info


def run(setups: Sequence[Setup], private: PrivateData) -> tuple[Population, list[Info]]:
    """All steps of all stages, and the survivors spread to the samples asked for: the population to release.

    Also returns its history. Where a setup is ``adaptive``, a stage whose votes cannot be told from the noise
    hands the precision of its further steps to the next stage, or, as the last, spends it in one step.
    """
    state, infos, spare = init(setups[0], private), list[Info](), 0.0
    for i, setup in enumerate(setups):
        if i:
            state = hand_on(setup, state, setups[i - 1].simulator, infos[-1])
        setup = replace(setup, schedule=setup.schedule.with_more(spare))
        spare = 0.0
        while state.step < setup.schedule.steps:
            state, info = step(setup, private, state)
            infos.append(info)
            left = setup.schedule.precision(state.step)
            if setup.adaptive and info.drowned and left:
                last = i + 1 == len(setups)
                setup = replace(setup, schedule=setup.schedule.cut(state.step, left if last else 0.0))
                spare = 0.0 if last else left
            ahead = setup.schedule.steps - state.step + sum(later.schedule.steps for later in setups[i + 1 :])
            setup.watch(info, len(infos) + ahead)
    if setup.given is not None:  # in their own order
        return infos[-1].candidates.take(infos[-1].survivors.sort().values), infos
    if setup.strategy.marginals:
        return _weigh(setup, private, state, infos[-1]), infos
    return _spread(setup, state, infos[-1]), infos


def evolve(
    simulator: Simulator,
    embedder: Embedder | None,
    private: PrivateData,
    *,
    samples: int | None = None,
    steps: int | None = None,
    strategy: Strategy | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    run_id: str | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    then: Sequence[Stage] = (),
    adaptive: bool = False,
) -> Release:
    """Make ``samples`` synthetic samples that resemble the private rows, within the budget at the door.

    Without ``samples`` there are as many as the noisy count that is bought at the beginning: of rows, or of units
    times ``k``, which is the most rows that take part; one at least, and a million at most.

    ``embedder`` None takes the simulator's own (or, without one, the samples themselves, flattened). ``seed`` fixes the
    public randomness; the noise is secret and never from it. ``run_id`` continues a run on the ledger. ``watch`` is
    told what each step did.

    ``then`` are later stages (see :class:`simpe.Stage`), each with a source that goes on from the survivors of the one
    before; ``steps`` and ``strategy`` are those of the first. In an ``adaptive`` run, a stage ends early where its
    noisy votes cannot be told from the noise, and what it would have spent goes to the next stage, or, in the
    last, into one more step; that is counted by zCDP, which costs more noise than steps that are fixed.

    **Guarantee.** The release, its certificate and the noisy counts on the ledger are together (epsilon, delta)-DP as
    the budget of ``private`` says; see :class:`simpe.PrivateData`.

    Raises InputError where options do not fit the budget, the simulator or the ledger.
    """
    stages = (Stage(simulator, embedder, strategy=strategy), *then)
    embedder, strategy = stages[0].embedder, stages[0].strategy
    for stage in stages:
        report_to(stage.simulator, progress)
    if samples is not None and samples < 1:
        raise InputError(f"--samples must be at least 1, got {samples}")
    if private.classes is None or not private.has_labels:
        private.declare(classes_of(simulator, private.has_labels))
    assert private.classes is not None
    fixed = given(simulator, private.classes, samples, steps, strategy)
    steps = steps if fixed is None else 1
    place = torch.device(device)
    stages = preflight(stages, len(private.classes), private.sample_shape, private.sample_dtype, place)
    strategy = stages[0].strategy
    one_bin = private.one_bin and all(stage.strategy.neighbours == 1 for stage in stages)
    public: dict[str, Any] = {
        "simulator": describe(simulator),
        "embedder": describe(embedder),
        "classes": list(private.classes),
        "samples": "the noisy count" if samples is None else samples,
        "seed": seed,
        "steps": steps,
        "strategy": asdict(strategy),
    }
    if then:
        public["then"] = [
            {
                "simulator": describe(stage.simulator),
                "embedder": describe(stage.embedder),
                "steps": stage.steps,
                "share": stage.share,
                "strategy": asdict(stage.strategy),
            }
            for stage in then
        ]
    if adaptive:
        public["adaptive"] = True
    if strategy.marginals:
        own = marginals.of(simulator)
        public["marginals"] = [list(names) for names in marginals.query(own, 1, len(private.classes)).sets]
    digest = hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()

    def plan() -> dict[str, Any]:
        planned = schedule(
            private.budget, steps, one_bin=one_bin, strategy=strategy, then=then, adaptive=adaptive,
            spent=private.ledger.committed(), law=private.law,
        )  # fmt: skip
        charges = {COUNTS: private.charge(planned.count_noise)}
        for s, (stage, noise) in enumerate(zip(stages, planned.split(), strict=True)):
            one_vote = stage.strategy.neighbours == 1
            charges |= {f"{s}/{t}/votes": private.charge(z, one_vote) for t, z in enumerate(noise.vote_noise)}
        if planned.marginal_noise is not None:
            charges[MARGINALS] = private.charge(planned.marginal_noise, one_bin=False)
        return charges

    budget = {"epsilon": private.budget.epsilon, "delta": private.budget.delta}
    description = {"budget": budget, "config": digest, **({"adaptive": True} if adaptive else {})}
    planned = {
        address: charge.noise_multiplier
        for address, charge in private.begin(run_id or secrets.token_hex(8), description, plan).items()
    }
    setups = []
    for s, stage in enumerate(stages):
        votes = tuple(z for address, z in planned.items() if address.startswith(f"{s}/") and address.endswith("/votes"))
        setups.append(
            Setup(
                simulator=stage.simulator,
                embedder=stage.embedder,
                schedule=Schedule(planned[COUNTS], votes, planned.get(MARGINALS)),
                strategy=stage.strategy,
                classes=private.classes,
                samples=samples,
                seed=seed,
                device=place,
                progress=progress or (lambda what, done, total: None),
                watch=watch or (lambda info, steps: None),
                given=None if fixed is None else fixed.to(place),
                stage=s,
                adaptive=adaptive,
                spread=private.spread,
            )
        )
    population, infos = run(setups, private)
    last = setups[-1]
    rendered = render(
        last.simulator, population, lambda done, total: last.progress("rendering the release", done, total)
    )
    return Release(
        samples=rendered.cpu(),
        labels=population.labels.cpu() if private.has_labels else None,
        params={name: value.cpu() for name, value in population.params.items()},
        classes=private.classes,
        certificate=certificate(private, public, given=fixed is not None),
        evolution=_lineage(setups, infos),
        history=history(setups, private, population, infos),
        survivors=[
            {name: value.cpu() for name, value in info.candidates.take(info.survivors).params.items()}
            for info in infos
            if info.stage == last.stage
        ],
        ledger=private.ledger,
        export=getattr(last.simulator, "export", None),
    )


def _init_given(setup: Setup, candidates: Population, counts: Tensor) -> State:
    """All of a given set, with the places shared out to the classes by their noisy counts, as far as each has samples.

    Places are the samples to be kept, however few of them the votes can tell from the noise: how many is said.
    """
    assert setup.samples is not None
    most = torch.bincount(candidates.labels.cpu(), minlength=len(setup.classes))
    outputs = selection.apportion_within(counts, setup.samples, most).tolist()
    clear = sum(places(counts.tolist(), setup.noise(0), outputs, setup.strategy))
    if clear < setup.samples:
        setup.progress(
            f"warning: the votes can tell about {clear} samples from the noise; the choice of the other "
            f"{setup.samples - clear} is mostly the noise's",
            0,
            0,
        )
    return State(0, candidates, tuple(counts.tolist()), tuple(outputs))


def _places(setup: Setup, counts: tuple[float, ...], outputs: tuple[int, ...], t: int) -> tuple[int, ...]:
    """Survivors of each class at a step; of a given set, what is kept; one number where classes share candidates."""
    if setup.given is not None:
        return outputs
    most = [sum(outputs)] if setup.pooled else list(outputs)
    return tuple(places(list(counts), setup.noise(t), most, setup.strategy))


def _ballot(setup: Setup, candidates: Population) -> Population:
    """What is voted on: the candidates, or, where classes share them and are counted apart, all of them for each class.

    So a row votes among its own class's copies: one bin, as ever.
    """
    if not setup.strategy.shared:
        return candidates
    own = torch.arange(len(candidates), device=candidates.labels.device)
    copies = candidates.take(own.repeat(len(setup.classes)))
    apart = torch.arange(len(setup.classes), device=own.device).repeat_interleave(len(own))
    return replace(copies, labels=apart)


def _offspring(setup: Setup, state: State) -> Population:
    """The survivors and ``children`` variations for each place, or, as published, variations alone, one a place."""
    strategy, parents, chosen = setup.strategy, state.population, []
    for label, n in enumerate(_places(setup, state.counts, state.outputs, state.step)):
        mine = (parents.labels == label).nonzero().squeeze(1)
        if len(mine):
            more = max(0, n * (1 + strategy.children) - len(mine)) if strategy.elitist else n
            chosen.append(mine.repeat_interleave(selection.apportion(torch.ones_like(mine), more)))
    generator = public_generator(setup.seed, setup.stage, state.step - 1, "variation")
    children = vary(_informed(setup, state), parents.repeat(torch.cat(chosen)), setup.strength(state.step), generator)
    return concatenate([parents, children]) if strategy.elitist else children


def _informed(setup: Setup, state: State) -> Simulator:
    """The stage's source, told what the last step's noisy counts were, where it asks for them."""
    if state.voted is None or not hasattr(setup.simulator, "after"):
        return setup.simulator
    candidates, counts = state.voted
    informed: Simulator = setup.simulator.after({**candidates.params, "label": candidates.labels}, counts)
    return informed


def _name(setup: Setup, t: int) -> str:
    """A step, to be read."""
    return f"step {t + 1}" if setup.stage == 0 else f"stage {setup.stage + 1}, step {t + 1}"


def _embed(setup: Setup, candidates: Population, t: int) -> Tensor:
    """Embedding of the candidates, or, with lookahead, the mean over variations of each."""
    strategy = setup.strategy
    what = f"{_name(setup, t)}: rendering"
    if not strategy.lookahead:
        return render_and_embed(
            setup.simulator, setup.embedder, candidates, lambda done, total: setup.progress(what, done, total)
        )
    generator = public_generator(setup.seed, setup.stage, t, "lookahead")
    total = None
    for i in range(strategy.lookahead):
        varied = vary(setup.simulator, candidates, setup.strength(t + 1), generator)
        one = render_and_embed(setup.simulator, setup.embedder, varied)
        total = one if total is None else total + one
        setup.progress(what, i + 1, strategy.lookahead)
    assert total is not None
    return total / strategy.lookahead


def _select(
    setup: Setup, candidates: Population, counts: Tensor, room: tuple[int, ...], noise: float, t: int
) -> tuple[Tensor, tuple[int, ...]]:
    """Indices of the survivors, class by class, and the classes where nothing stood out."""
    generator = public_generator(setup.seed, setup.stage, t, "selection")
    chosen, uniform = [], []
    for label, n in enumerate(room):
        mine = (candidates.labels == label).nonzero().squeeze(1)
        if n == 0 or len(mine) == 0:
            continue
        if setup.given is not None:
            chosen.append(mine[selection.top(counts[mine], n)])
            continue
        weights = selection.threshold(counts[mine], setup.strategy.threshold * noise)
        if not bool((weights > 0).any()):
            uniform.append(label)
            picked = selection.systematic(weights, n, generator)
        elif setup.strategy.elitist:
            picked = selection.top(counts[mine], n)
        else:
            picked = selection.systematic(weights, n, generator)
        chosen.append(mine[picked])
    return torch.cat(chosen), tuple(uniform)


def _spread(setup: Setup, state: State, last: Info) -> Population:
    """Vary the last survivors into the outputs, in proportion to their noisy votes within each class; shuffled.

    A class with few places is spread wider (Strategy.release_places), as a density estimate of few points is.
    """
    generator = public_generator(setup.seed, setup.stage, state.step, "release")
    survivors = last.candidates.take(last.survivors)
    chosen, noise = [], last.noise / (len(setup.classes) ** 0.5 if last.by_class is not None else 1)
    width = torch.zeros(len(state.outputs), dtype=torch.float64)
    for label, n in enumerate(state.outputs):
        mine = (survivors.labels == (0 if setup.pooled else label)).nonzero().squeeze(1)
        width[label] = setup.spread_strength(state.step, len(mine))
        if n:
            counts = last.counts[mine] if last.by_class is None else last.by_class[label]
            weights = selection.threshold(counts, setup.strategy.threshold * noise)
            if not setup.strategy.elitist:  # resampling has used the votes already
                weights = torch.ones_like(weights)
            chosen.append(mine[selection.systematic(weights, n, generator)])
    index = torch.cat(chosen)
    labels = torch.arange(len(state.outputs)).repeat_interleave(torch.tensor(state.outputs))
    order = torch.randperm(len(index), generator=generator)
    parents = survivors.take(index[order.to(index.device)])
    parents = replace(parents, labels=labels[order].to(index.device))
    source, strength = _informed(setup, state), width[parents.labels.cpu()]
    alike = [(strength == each).nonzero().squeeze(1).to(index.device) for each in torch.unique(strength)]
    varied = [vary(source, parents.repeat(rows), float(strength[rows[0]]), generator) for rows in alike]
    return concatenate(varied).repeat(torch.cat(alike).argsort())


def _weigh(setup: Setup, private: PrivateData, state: State, last: Info) -> Population:
    """Buy the marginals, weigh the survivors and their variations by them, and draw the outputs of each class.

    The weights are fitted several times, each time to the survivors, the heaviest candidates of the time before and
    closer variations of both: evolution again, with the noisy counts in place of votes, which costs nothing.

    **Guarantee.** One release of :meth:`PrivateData.noisy_sum`: a row is in one bin of each of m sets, so its vector
    of counts has length sqrt(m) and enters scaled to length 1; the rest is post-processing.
    """
    own, strategy = marginals.of(setup.simulator), setup.strategy
    generator = public_generator(setup.seed, setup.stage, state.step, "release")
    survivors = last.candidates.take(last.survivors)
    asked = marginals.query(own, len(survivors), len(setup.classes))
    places = render_and_embed(setup.simulator, setup.embedder, survivors)
    query = marginals.Counting(own, asked, places)
    assert setup.schedule.marginal_noise is not None
    charge = private.charge(setup.schedule.marginal_noise, one_bin=False)
    noisy = private.noisy_sum(
        query,
        asked.bins,
        setup.schedule.marginal_noise,
        address=MARGINALS,
        digest=f"{survivors.digest()} {asked}",
        one_bin=False,
        embedder=setup.embedder,
        device=places.device,
    )
    row = charge.sensitivity / len(asked.sets) ** 0.5  # what a row adds to each of its bins
    # What decides is reckoned on the CPU, as in selection; samples are made, embedded and put into cells on the device.
    counts, outputs = torch.from_numpy(noisy / row), torch.tensor(state.outputs)
    votes = selection.threshold(last.counts.cpu(), strategy.threshold * last.noise)
    votes = votes.clamp(min=1e-3 * float(votes.max().clamp(min=1)))
    support, base = survivors, votes[:, None] * outputs.clamp(min=1)
    for turn in range(REFITS):
        children = min(strategy.support, max(0, MOST_SUPPORT // len(support) - 1))
        many = torch.arange(len(support)).repeat_interleave(children)
        strength = setup.spread_strength(state.step) * REFIT_DECAY**turn
        varied = vary(setup.simulator, support.take(many.to(places.device)), strength, generator)
        support = concatenate([support, varied])
        base = torch.cat([base, base[many]])
        samples = render(setup.simulator, support)
        weights = marginals.fit(
            counts,
            charge.sigma * setup.spread / row,
            asked,
            {name: column.cpu() for name, column in query.columns(samples, setup.embedder(samples).float()).items()},
            base,
            lambda done, total, turn=turn: setup.progress("weighing", turn * total + done, REFITS * total),  # type: ignore[misc]
        )
        if turn + 1 < REFITS:
            weight = weights.sum(1)
            weight[: len(survivors)] = torch.inf  # they stay: what is rare has its places there
            heaviest = selection.top(weight, REFIT_PARENTS + len(survivors))
            base = (base / base.sum() + weights)[heaviest]
            support = support.take(heaviest.to(places.device))
    chosen = [selection.systematic(weights[:, label], n, generator) for label, n in enumerate(state.outputs)]
    labels = torch.arange(len(chosen)).repeat_interleave(outputs)
    order = torch.randperm(len(labels), generator=generator)
    released = support.take(torch.cat(chosen)[order].to(places.device))
    released = replace(released, labels=labels[order].to(places.device))
    return vary(setup.simulator, released, 0.0, generator)


def history(
    setups: Sequence[Setup], private: PrivateData, population: Population, infos: list[Info]
) -> dict[str, np.ndarray]:
    """What a run bought and how it used it, for ``release/history.npz``: noisy counts and what follows from them.

    In votes of a row (or unit), before any threshold; T steps:

    - ``class_counts`` float64 (classes,), their noise's standard deviation ``class_noise`` ();
    - ``noise`` float64 (T,), of each step's votes; ``candidates`` int64 (T,), how many were voted on;
    - ``votes_1`` ... ``votes_T`` float64 (survivors,), and ``labels_1`` ... int64: indices into the classes;
    - ``ancestors`` int64 (T,): how many of the first step's candidates the survivors descend from;
    - ``parents`` int64 (): how many different candidates the samples were made from;
    - of several stages or a mixture, ``stages`` int64 (T,), the stage of each step, ``sources``, their names, and
      ``source_shares`` float64 (T, sources): each source's share of the survivors.

    **Guarantee.** Post-processing of releases that the ledger holds: the class counts are replayed, which is free.
    """
    noise = setups[0].schedule.count_noise
    counts = private.class_counts(noise, address=COUNTS) / private.charge(noise).sensitivity
    found: dict[str, Any] = {
        "class_counts": counts,
        "class_noise": noise * private.spread,
        "noise": np.array([info.noise for info in infos]),
        "candidates": np.array([len(info.candidates) for info in infos]),
        "parents": len(torch.unique(population.parents)),
    }
    origin = torch.arange(len(infos[0].candidates), device=setups[0].device)
    ancestors = []
    for t, info in enumerate(infos):
        origin = origin if t == 0 else origin[info.candidates.parents]
        ancestors.append(len(torch.unique(origin[info.survivors])))
        found[f"votes_{t + 1}"] = info.counts.double().cpu().numpy()
        found[f"labels_{t + 1}"] = info.candidates.labels[info.survivors].cpu().numpy()
    if len(setups) > 1 or isinstance(unwrapped(setups[0].simulator), Mixture):
        found |= {"stages": [info.stage for info in infos], **_shares(setups, infos)}
    return {name: np.asarray(value) for name, value in {**found, "ancestors": ancestors}.items()}


def _shares(setups: Sequence[Setup], infos: list[Info]) -> dict[str, Any]:
    """Each source's share of the survivors of each step, and what the sources are called."""
    own = [
        list(source.sources) if isinstance(source, Mixture) else [type(source).__name__]
        for source in (unwrapped(setup.simulator) for setup in setups)
    ]
    names = list(dict.fromkeys(name for stage in own for name in stage))
    shares = np.zeros((len(infos), len(names)))
    for t, info in enumerate(infos):
        source = info.candidates.params["source"][info.survivors] if len(own[info.stage]) > 1 else info.survivors * 0
        each = torch.bincount(source.cpu(), minlength=len(own[info.stage])).double().numpy()
        shares[t, [names.index(name) for name in own[info.stage]]] = each / max(1, each.sum())
    return {"sources": names, "source_shares": shares}


def _lineage(setups: Sequence[Setup], infos: list[Info], slots: int = 16) -> list[Tensor]:
    """Samples (slots, ...) step by step: the best survivors of the last step and what they descend from."""
    last = infos[-1]
    labels = last.candidates.labels[last.survivors]
    # Survivors stand class by class, the best first: take the best of every class, then the second best, ...
    rank = torch.cat([torch.arange(int(n)) for n in torch.bincount(labels.cpu())]).to(labels.device)
    index = last.survivors[rank.argsort(stable=True)[:slots]]
    index = index[last.candidates.labels[index].argsort(stable=True)]
    pictures = []
    for info in reversed(infos):
        pictures.append(render(setups[info.stage].simulator, info.candidates.take(index)).cpu())
        index = info.candidates.parents[index]
    return pictures[::-1]
