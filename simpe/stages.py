"""Chaining and mixing sources: stages that hand samples on, and a mixture whose votes decide which source lives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simpe.errors import InputError
from simpe.fingerprint import describe
from simpe.population import Population
from simpe.protocols import Embedder, Simulator
from simpe.rendering import Progress, random, render, report_to, unwrapped, vary
from simpe.scheduling import MAX_STEPS, Strategy
from simpe.space import Categorical, ParameterSpace, Params

_SHARED = ("read", "export", "evaluate")  # what belongs to a source that runs alone, or among others of its kind
_ALONE = (*_SHARED, "given", "marginals")


@dataclass(frozen=True, init=False)
class Stage:
    """A later stage of a run: a source that goes on from the survivors of the stage before.

    >>> release = simpe.evolve(Digits(), None, private, samples=1_000, then=[Stage(Diffusion("model/"), steps=2)])

    ``simulator``: what renders and varies from here on. It takes the survivors over by its ``adopt``, or as they are
    where it is of the same kind and space as the one before. ``embedder`` None takes its own, or, without one, the
    samples themselves, flattened; ``strategy`` None its own or the default. Of a strategy, ``start`` and ``marginals``
    have no meaning here. ``share`` of the precision of all votes; None gives each step as much as every other.

    Raises ValueError for steps or a share out of range, InputError where the simulator's strategy is none.
    """

    simulator: Simulator
    embedder: Embedder
    steps: int
    share: float | None
    strategy: Strategy

    def __init__(
        self,
        simulator: Simulator,
        embedder: Embedder | None = None,
        steps: int = 2,
        share: float | None = None,
        strategy: Strategy | None = None,
    ):
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps must lie between 1 and {MAX_STEPS}, got {steps}")
        if share is not None and not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        own = strategy or getattr(simulator, "strategy", None) or Strategy()
        if not isinstance(own, Strategy):
            raise InputError(f"the simulator's strategy must be a simpe.Strategy, got {type(own).__name__}")
        embedder = embedder or getattr(simulator, "embedder", None) or flatten
        for name, value in (("simulator", simulator), ("embedder", embedder), ("steps", steps), ("share", share)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "strategy", own)


def flatten(samples: Tensor) -> Tensor:
    """The embedding of last resort: a sample's own values, float32 (n, d)."""
    return samples.flatten(1).float()


def adopt(simulator: Simulator, source: Simulator, population: Population) -> Population:
    """What another source made, as this one's: parameters from which it can go on.

    Raises InputError where it cannot.
    """
    own: Callable[[Tensor, Params], Params] | None = getattr(simulator, "adopt", None)
    if own is not None:
        p = {**population.params, "label": population.labels}
        return population.with_params(own(render(source, population), p))
    if type(unwrapped(simulator)) is type(unwrapped(source)) and dict(simulator.space) == dict(source.space):
        return population
    raise InputError(
        f"{type(simulator).__name__} cannot go on from the samples of {type(source).__name__}: it has no adopt, and "
        "its parameters are others; put another stage after it"
    )


class Mixture:
    """Several sources in one population: each candidate is drawn, varied and rendered by its own source.

    >>> release = simpe.evolve(Mixture([Digits(), DrawText()]), None, private, samples=1_000)

    Random draws as many from each; from then on the votes decide. The parameters are ``source``, the index of the
    candidate's source, and those of every source under its number, ``0_font``; those of the other sources are idle.
    Samples must be of one shape and dtype. What a source has of its own besides Random, Variation and render is that of
    the first one that has it: ``embedder``, ``strategy``, ``colour``, ``size``, and, where all are of a kind that
    ``mixes``, such as texts, ``read``, ``export`` and ``evaluate``. ``names`` say in reports what the sources are.

    Raises InputError for fewer than two sources, sources of different classes, and one that cannot be mixed: a given
    set, or one that reads or exports in a way of its own.
    """

    def __init__(self, sources: Sequence[Simulator], names: Sequence[str] | None = None):
        if len(sources) < 2:
            raise InputError("a mixture needs at least two sources")
        kinds = {getattr(source, "mixes", None) for source in sources}
        shared = _SHARED if len(kinds) == 1 and None not in kinds else ()
        for source in sources:
            own = [name for name in _ALONE if name not in shared and hasattr(source, name)]
            if own:
                raise InputError(f"{type(source).__name__} has its own {own[0]}, so it cannot be one of a mixture")
        own_classes = (getattr(source, "classes", None) for source in sources)
        named = [tuple(map(str, classes)) for classes in own_classes if classes]
        if len(set(named)) > 1:
            raise InputError(f"the sources of a mixture draw different classes: {'; '.join(map(', '.join, named))}")
        self._sources = tuple(sources)
        self.sources = tuple(names or (f"{type(source).__name__} {i}" for i, source in enumerate(sources)))
        if len(self.sources) != len(sources) or len(set(self.sources)) < len(sources):
            raise InputError("names must be different, one for each source of the mixture")
        parameters: dict[str, Any] = {"source": Categorical(self.sources)}
        for i, source in enumerate(sources):
            parameters |= {f"{i}_{name}": parameter for name, parameter in source.space.items()}
        self.space = ParameterSpace(**parameters)
        for name in ("classes", "embedder", "strategy", "colour", "size", *shared):
            found = [value for source in sources if (value := getattr(source, name, None)) is not None]
            if found:
                setattr(self, name, found[0])
        self._adopters = [i for i, source in enumerate(sources) if hasattr(source, "adopt")]
        if self._adopters:
            self.adopt = self._adopt
        if any(hasattr(source, "after") for source in sources):
            self.after = self._after

    def report_to(self, progress: Progress) -> None:
        """Tell each source that takes its time whom to tell."""
        for source in self._sources:
            report_to(source, progress)

    def random_of(self, labels: Tensor, generator: torch.Generator) -> Params:
        """Random: as many from each source, or one more, in random order."""
        source = torch.randperm(len(labels), generator=generator) % len(self._sources)
        return self._joined(source, lambda i, rows: random(self._sources[i], labels[rows], generator), generator)

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation by each candidate's own source, which stays."""
        moved = {name: value for name, value in p.items() if name != "label"}
        for i, rows in self._rows(p):
            own = self._own(i, p, rows)
            labels = own.pop("label")
            varied = vary(self._sources[i], Population(own, labels, labels), strength, generator).params
            moved |= {f"{i}_{name}": moved[f"{i}_{name}"].index_copy(0, rows, varied[name]) for name in varied}
        return moved

    def render(self, p: Params) -> Tensor:
        """Samples, each by its own source."""
        parts = [(rows, torch.as_tensor(self._sources[i].render(self._own(i, p, rows)))) for i, rows in self._rows(p)]
        kinds = {(tuple(part.shape[1:]), part.dtype) for _, part in parts}
        if len(kinds) > 1:
            said = " and ".join(sorted(f"{dtype} {shape}" for shape, dtype in kinds))
            raise InputError(f"the sources of a mixture render different kinds of samples: {said}; make them alike")
        first = parts[0][1]
        samples = torch.empty((len(p["source"]), *first.shape[1:]), dtype=first.dtype, device=p["source"].device)
        for rows, part in parts:
            samples[rows] = part.to(samples.device)
        return samples

    def public_inputs(self) -> dict[str, Any]:
        """What each source declares."""
        names = zip(self.sources, self._sources, strict=True)
        return {"simulator": "mixture", "sources": {name: describe(source) for name, source in names}}

    def _after(self, p: Params, counts: Tensor) -> Mixture:
        """A mixture whose sources know, as far as they ask, what the votes said of their own candidates."""
        told = copy.copy(self)
        sources: list[Any] = list(self._sources)
        for i, rows in self._rows(p):
            if hasattr(sources[i], "after"):
                sources[i] = sources[i].after(self._own(i, p, rows), counts[rows])
        told._sources = tuple(sources)
        return told

    def _adopt(self, samples: Tensor, p: Params) -> Params:
        """Samples of another simulator, shared out in turn to the sources that can go on from them."""
        turn = torch.arange(len(samples), device=samples.device) % len(self._adopters)
        source = torch.tensor(self._adopters, device=samples.device)[turn]

        def own(i: int, rows: Tensor) -> Params:
            adopted: Params = self._sources[i].adopt(  # type: ignore[attr-defined]
                samples[rows], {name: value[rows] for name, value in p.items()}
            )
            return adopted

        return self._joined(source, own, torch.Generator().manual_seed(0))

    def _joined(self, source: Tensor, draw: Callable[[int, Tensor], Params], generator: torch.Generator) -> Params:
        """Parameters of all rows: each source's own where it is the row's, any that are in range elsewhere."""
        p: Params = {"source": source}
        for i, one in enumerate(self._sources):
            idle = one.space.sample(1, generator)
            rows = (source == i).nonzero().squeeze(1)
            drawn = draw(i, rows) if len(rows) else {}
            for name, value in idle.items():
                whole = value.to(source.device).expand(len(source), *value.shape[1:])
                p[f"{i}_{name}"] = whole.index_copy(0, rows, drawn[name]) if len(rows) else whole.clone()
        return p

    def _rows(self, p: Params) -> list[tuple[int, Tensor]]:
        found = [(i, (p["source"] == i).nonzero().squeeze(1)) for i in range(len(self._sources))]
        return [(i, rows) for i, rows in found if len(rows)]

    def _own(self, i: int, p: Params, rows: Tensor) -> Params:
        return {name: p[f"{i}_{name}"][rows] for name in self._sources[i].space} | {"label": p["label"][rows]}
