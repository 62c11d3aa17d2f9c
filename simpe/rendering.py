"""Calling a simulator: Random, Variation and render, in blocks and, for slow ones, over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simpe.population import Population
from simpe.protocols import Embedder, Samples, Simulator
from simpe.space import ParameterSpace, Params

BLOCK = 4096  # candidates rendered at a time
Blocks = Callable[[int, int], None]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: a remark)."""


def random(simulator: Simulator, labels: Tensor, generator: torch.Generator) -> Params:
    """PE's Random: parameters of one sample for each label, int64 (n,), by the simulator's own way or its space's."""
    if hasattr(simulator, "random_of"):
        drawn: Params = simulator.random_of(labels, generator)
    elif hasattr(simulator, "random"):
        drawn = simulator.random(len(labels), generator)
    else:
        drawn = simulator.space.sample(len(labels), generator)
    return drawn


def vary(simulator: Simulator, population: Population, strength: float, generator: torch.Generator) -> Population:
    """PE's Variation: a population with the same labels and parents, moved by ``strength``."""
    if hasattr(simulator, "variation"):
        p = {**population.params, "label": population.labels}
        varied = {name: value for name, value in simulator.variation(p, strength, generator).items() if name != "label"}
    else:
        varied = simulator.space.perturb(population.params, strength, generator)
    return population.with_params(varied)


def render(simulator: Simulator, population: Population, progress: Blocks | None = None) -> Tensor:
    """Samples (n, ...) of a population, on its device."""
    return torch.cat(_blocks(simulator, population, _as_it_is, progress))


def render_and_embed(
    simulator: Simulator, embedder: Embedder, population: Population, progress: Blocks | None = None
) -> Tensor:
    """Embedding (n, d) of a population, float32; samples are dropped block by block."""
    return torch.cat(_blocks(simulator, population, partial(_embedded, embedder), progress))


Use = Callable[[Tensor], Tensor]


def render_block(simulator: Simulator, use: Use, p: Params, device: torch.device) -> Tensor:
    """What ``use`` makes of the samples of one block of parameters, ``p["label"]`` among them."""
    return use(torch.as_tensor(simulator.render(p), device=device))


def _as_it_is(samples: Tensor) -> Tensor:
    return samples


def _embedded(embedder: Embedder, samples: Tensor) -> Tensor:
    return embedder(samples).float()


def _blocks(simulator: Simulator, population: Population, use: Use, progress: Blocks | None) -> list[Tensor]:
    """What is made of each block of samples, in order. The blocks are the same wherever they are rendered."""
    device = population.labels.device
    blocks = []
    for start in range(0, max(1, len(population)), BLOCK):
        part = slice(start, start + BLOCK)
        p = {name: value[part] for name, value in population.params.items()}
        blocks.append({**p, "label": population.labels[part]})
    elsewhere: Callable[..., list[Tensor]] | None = getattr(simulator, "render_blocks", None)
    if elsewhere is not None:
        return elsewhere(use, blocks, device, progress)
    made = []
    for number, block in enumerate(blocks):
        made.append(render_block(simulator, use, block, device))
        if progress is not None:
            progress(min((number + 1) * BLOCK, len(population)), len(population))
    return made


def report_to(simulator: Simulator, progress: Progress | None) -> None:
    """Let a simulator that takes its time say how far it is."""
    if hasattr(simulator, "report_to"):
        simulator.report_to(progress or (lambda what, done, total: None))


class Slow:
    """What a simulator inherits that takes its time in Random, Variation or export, and says how far it is."""

    def report_to(self, progress: Progress) -> None:
        """Tell it whom to tell."""
        self.__dict__["_progress"] = progress  # where the simulator is a frozen dataclass, too

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far it is, as :data:`Progress` does."""
        if "_progress" in self.__dict__:
            self.__dict__["_progress"](what, done, total)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_progress"}


class Wrapped:
    """A simulator that is rendered in another way; all else is the simulator's own."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator

    @property
    def space(self) -> ParameterSpace:
        """The wrapped simulator's space."""
        return self.simulator.space

    def __getattr__(self, name: str) -> Any:
        if name == "simulator":  # while unpickling, before __init__
            raise AttributeError(name)
        return getattr(self.simulator, name)


def unwrapped(simulator: Simulator) -> Simulator:
    """The simulator itself."""
    return unwrapped(simulator.simulator) if isinstance(simulator, Wrapped) else simulator


class Parallel(Wrapped):
    """A simulator whose render is spread over processes: for slow ones that do not use torch's threads.

    >>> simulator = Parallel(MySlowSimulator(), processes=8)

    The simulator must be picklable. Processes are spawned, so it may hold a graphics context. Close it, or use it in
    a ``with`` block, to end the processes.
    """

    def __init__(self, simulator: Simulator, processes: int):
        if processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}")
        super().__init__(simulator)
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def render(self, p: Params) -> Samples:
        """Samples of all rows, each process rendering a slice of them; NumPy."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, _start, (self.simulator,))
        rows = {name: value.cpu().numpy() for name, value in p.items()}
        parts = min(self.processes, max(1, len(rows["label"])))
        split = {name: np.array_split(value, parts) for name, value in rows.items()}
        jobs = [{name: split[name][i] for name in rows} for i in range(parts)]
        return np.concatenate(list(self._pool.map(_render, jobs)))

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_simulator: Simulator  # of a worker process


def _start(simulator: Simulator) -> None:
    global _simulator
    _simulator = simulator
    torch.set_num_threads(1)


def _render(rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(_simulator.render({name: torch.from_numpy(value) for name, value in rows.items()}))
