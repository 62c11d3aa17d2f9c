"""What can be wrong with a run is found before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from simpe import marginals
from simpe.data import encode_labels
from simpe.errors import InputError
from simpe.population import Population, public_generator
from simpe.protocols import Simulator
from simpe.rendering import random, render, vary
from simpe.scheduling import Strategy
from simpe.space import Params
from simpe.stages import Stage, adopt

_PROBES = 16  # rows; a mixture draws some from each source


def classes_of(simulator: Simulator, labelled: bool) -> tuple[str, ...]:
    """The classes that a run has when none are declared: the simulator's, or one without a name.

    Raises InputError when rows have labels and nothing says which classes there are, or the other way round.
    """
    classes = tuple(str(name) for name in getattr(simulator, "classes", None) or ())
    if labelled and not classes:
        raise InputError("the rows have labels: declare their classes, which are public (--classes, or in the config)")
    if not labelled and len(classes) > 1:
        raise InputError(f"the simulator draws {len(classes)} classes, so the private rows need labels; they have none")
    return classes if labelled else ("",)


def given(
    simulator: Simulator, classes: tuple[str, ...], samples: int | None, steps: int | None, strategy: Strategy
) -> Population | None:
    """The candidates of a simulator that is a fixed set, those of other classes left out; None for any other.

    Raises InputError where so many samples cannot be kept, or the options are not those of one vote on the set.
    """
    own: Callable[[], tuple[Params, Tensor]] | None = getattr(simulator, "given", None)
    if own is None:
        return None
    if steps not in (None, 1):
        raise InputError(f"--steps {steps}: a given set is voted on once; leave it out")
    if strategy != Strategy(neighbours=strategy.neighbours, metric=strategy.metric):
        raise InputError("strategy: a given set is voted on as it is; set neighbours and metric alone")
    params, labels = own()
    names = tuple(getattr(simulator, "classes", None) or ("",))
    if names == ("",) and classes != ("",):
        raise InputError("--classes: the given set has no labels, so rows vote whatever their class; leave it out")
    codes = np.zeros(len(names), np.int64) if classes == ("",) else encode_labels(np.array(names), classes)
    labels = torch.from_numpy(codes)[labels]
    found = Population(params, labels, torch.full_like(labels, -1)).take((labels >= 0).nonzero().squeeze(1))
    if samples is None or samples > len(found):
        which = "" if classes == ("",) else f" of the classes {', '.join(classes)}"
        wanted = "" if samples is None else f"not {samples}; "
        raise InputError(f"--keep: the given set has {len(found)} samples{which}, {wanted}say how many of them to keep")
    return replace(found, parents=torch.full_like(found.labels, -1))


def preflight(
    stages: Sequence[Stage], classes: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Stage, ...]:
    """Draw, vary, render and embed a little, so that a plug-in that cannot work is found before anything is spent.

    Returns the stages. Classes share candidates in all of them or in none, and only where no source draws classes
    apart; where a simulator's own strategy would share them and another stage or source does not, it gives way.

    ``shape`` and ``dtype`` are those of a private sample: public schema. No row is read. Every later stage takes over
    what the one before it made. All of it is on the ``device`` of the run.

    Raises InputError naming what failed, where a stage cannot follow another, or for a device that cannot be used.
    """
    require_device(device)
    simulator = stages[0].simulator
    if len(stages) > 1 and any(stage.strategy.marginals for stage in stages):
        raise InputError("then: marginals weigh the candidates of a run of one stage; set marginals to 0, or leave it")
    if len(stages) > 1 and any(hasattr(stage.simulator, "given") for stage in stages):
        raise InputError("then: a given set is voted on once, in a run of its own; leave the other stages out")
    what, where = "random", ""
    try:
        generator = public_generator(0, "preflight")
        labels = torch.zeros(2, dtype=torch.int64)
        rows = Population(random(simulator, labels, generator), labels, labels).to(device)
        samples, first, before = torch.empty(0), None, simulator
        for i, stage in enumerate(stages):
            where = f"stage {i + 1}: " if len(stages) > 1 else ""
            if i:
                what = "adopt"
                rows = adopt(stage.simulator, before, rows)
            what = "variation"
            if not hasattr(stage.simulator, "given"):
                rows = vary(stage.simulator, rows, 0.5, generator)
            what = "render"
            samples, before = render(stage.simulator, rows), stage.simulator
            what = "embed (a rendered sample)"
            theirs = stage.embedder(samples).float()
            what = "embed (a sample of the private set's shape and dtype)"
            ours = stage.embedder(torch.zeros((2, *shape), dtype=dtype, device=device)).float()
            _check_embedding(theirs, ours, samples.shape[1:], shape, where)
            what = "samples"
            kind = (samples.shape[1:], samples.dtype)
            if first is not None and kind != first:
                raise InputError(
                    f"{where}it makes samples {samples.dtype} {tuple(samples.shape[1:])}, and the first stage "
                    f"{first[1]} {tuple(first[0])}; make them alike"
                )
            first = kind
        what = "marginals"
        marginals.of(simulator).check(samples)
        marginals.of(simulator).check(torch.zeros((2, *shape), dtype=dtype, device=device))
        what = "random, variation or render (of another class)"
        return _in_accord(stages, classes, device)
    except InputError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"{where}{what} failed: {type(error).__name__}: {said}; see simpe check") from error


def _in_accord(stages: Sequence[Stage], classes: int, device: torch.device) -> tuple[Stage, ...]:
    """The stages, all of which share candidates between classes, or none.

    Raises InputError where a strategy that was given shares what cannot be shared.
    """
    sharing = [stage for stage in stages if stage.strategy.shared]
    if not sharing:
        return tuple(stages)
    why = "then: classes share their candidates in all stages or in none; set shared alike"
    if len(sharing) == len(stages):
        if not any(_told_apart(stage.simulator, classes, device) for stage in stages):
            return tuple(stages)
        why = (
            "strategy: the simulator draws each class in its own way, so they cannot share candidates; leave shared out"
        )
    if any(stage.strategy != getattr(stage.simulator, "strategy", None) for stage in sharing):
        raise InputError(why)
    return tuple(replace(stage, strategy=replace(stage.strategy, shared=False)) for stage in stages)


def _told_apart(simulator: Simulator, classes: int, device: torch.device) -> bool:
    """Whether a label changes what is drawn, varied or rendered."""

    def made(label: int) -> Tensor:
        labels, generator = torch.full((_PROBES,), label), public_generator(0, "preflight", "apart")
        drawn = Population(random(simulator, labels, generator), labels, labels).to(device)
        return render(simulator, vary(simulator, drawn, 0.5, generator))

    first = made(0) if classes > 1 else torch.empty(0)
    return any(not torch.equal(made(label), first) for label in range(1, classes))


def require_device(device: torch.device) -> None:
    """Raise InputError where torch has no such device, or it has no float64, in which votes are settled (MPS)."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:
        why = "has no float64, in which votes are settled" if device.type == "mps" else str(error).splitlines()[0]
        raise InputError(f"--device {device}: {why}; use --device cpu") from None


def _check_embedding(theirs: Tensor, ours: Tensor, made: tuple[int, ...], shape: tuple[int, ...], where: str) -> None:
    """Raise InputError unless the embeddings of rendered and of private samples can be compared."""
    if len(theirs) != 2 or theirs.ndim != 2 or not bool(theirs.isfinite().all()):
        raise InputError(
            f"{where}the embedding of two rendered samples is not two rows of finite numbers; see simpe check"
        )
    if theirs.shape[1:] != ours.shape[1:]:
        raise InputError(
            f"{where}the simulator's samples {tuple(made)} and the private ones {tuple(shape)} are embedded as "
            f"{theirs.shape[1]} and {ours.shape[1]} numbers; make them alike, or give another embedder"
        )
