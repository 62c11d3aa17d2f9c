"""Marginals: counts of public cells, bought once, that weigh the candidates of a run.

Votes say where the private rows are; they drown in noise where there are many classes, each with few rows. Marginals
are the other way to spend a budget: every row is put into public cells (of its size, its kind, its class, its nearest
survivor), sets of these columns are counted in one noisy query, and weights on the candidates are fitted to all
counts at once. The candidates keep what no set of counts shows, that a sample is one the simulator can make; the
weights need no support of their own, which is what a grid of cells lacks.

Select-measure-generate with marginals: McKenna, Miklau and Sheldon, "Winning the NIST Contest" (JPC 2021). Weights on
a fixed support by maximum entropy: Hardt, Ligett and McSherry, "A Simple and Practical Algorithm for Differentially
Private Data Release" (NeurIPS 2012). Here the support is what Private Evolution found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from simpe.errors import InputError
from simpe.private import nearest
from simpe.protocols import Simulator
from simpe.rows import Rows

LABEL, PLACE = "label", "place"
"""Columns that every run has besides its own: a sample's class, and the survivor nearest to it."""

_KEEP = 0.05  # nats a row that a fit pays, at least, for leaving what is believed
_TURNS = 100  # of the solver
_CLEAR, _SCARCE = 1.5, 1e-3  # standard deviations; what is believed of what does not reach so high


@dataclass(frozen=True)
class Marginals:
    """Columns of public cells of a sample, and which sets of them are counted.

    ``cells`` maps samples (n, ...) to int64 (n, columns), row by row, each entry below the column's size; it is fixed
    and public, and what is counted of a row depends on that row alone. ``sizes``: name -> cells, in the order of the
    columns. ``sets``: names of columns, also LABEL, which falls away in a run that has no classes.
    ``sparse``: columns that are counted alone and whose cells are empty unless their count stands clear of the noise:
    those in which noise that fills a tail would outweigh everything. The engine's PLACE may be named as well; with no
    sets given, (PLACE, LABEL) is counted. The set of no columns, how many rows there are, is always counted.

    Raises ValueError for sets that name no column, or one twice.
    """

    cells: Callable[[Tensor], Tensor] = lambda samples: torch.zeros((len(samples), 0), dtype=torch.int64)
    sizes: Mapping[str, int] = field(default_factory=dict)
    sets: tuple[tuple[str, ...], ...] = ((PLACE, LABEL),)
    sparse: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("name at least one set of columns to count")
        for names in self.sets:
            if not names or len(set(names)) < len(names) or not set(names) <= {*self.sizes, LABEL, PLACE}:
                raise ValueError(
                    f"a set names different columns of {', '.join([*self.sizes, LABEL, PLACE])}, got {names}"
                )
        if not set(self.sparse) <= {name for names in self.sets if len(names) == 1 for name in names}:
            raise ValueError(f"sparse columns must be counted alone, got {self.sparse}")

    def check(self, samples: Tensor) -> None:
        """Raise ValueError unless ``cells`` gives these samples (n, ...) cells that fit ``sizes``."""
        found = self.cells(samples)
        if found.dtype != torch.int64 or found.shape != (len(samples), len(self.sizes)):
            raise ValueError(f"cells must be whole numbers (int64), n rows and {len(self.sizes)} columns")
        for column, (name, size) in zip(found.unbind(1), self.sizes.items(), strict=True):
            if bool(((column < 0) | (column >= size)).any()):
                raise ValueError(f"a cell of {name} must be at least 0 and below its size, {size}")


@dataclass(frozen=True)
class Query:
    """The sets of one run as ranges of bins: each row, in a cell of every column, names one bin of each set.

    ``sizes``: name -> cells of every column, LABEL and PLACE among them. ``sets``: what is counted, in order.
    ``sparse``: see :class:`Marginals`.
    """

    sizes: Mapping[str, int]
    sets: tuple[tuple[str, ...], ...]
    sparse: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Bins of each set."""
        return [math.prod(self.sizes[name] for name in names) for names in self.sets]

    @property
    def bins(self) -> int:
        """Bins of all sets."""
        return sum(self.lengths)

    def of(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Bins of rows whose cells are ``columns``, int64 (n, sets); negative where a row is in none (a cell of -1)."""
        bins, start = [], 0
        for names, length in zip(self.sets, self.lengths, strict=True):
            index = torch.zeros_like(columns[PLACE])
            missing = torch.zeros_like(index, dtype=torch.bool)
            for name in names:
                index = index * self.sizes[name] + columns[name]
                missing |= columns[name] < 0
            bins.append(torch.where(missing, -1, index + start))
            start += length
        return torch.stack(bins, dim=1)


@dataclass(frozen=True, repr=False)
class Counting:
    """The question of a run to its rows: the bins of each, by its cells, its class and the nearest of ``places``.

    ``places`` (m, d) are the embedded survivors.
    """

    own: Marginals
    asked: Query
    places: Tensor

    def columns(self, samples: Tensor, embedded: Tensor) -> dict[str, Tensor]:
        """Cells of samples (n, ...) and their embedding (n, d): name -> int64 (n,), of all columns but LABEL."""
        everywhere = torch.zeros(len(self.places), dtype=torch.int64, device=self.places.device)
        place = nearest(embedded, torch.zeros_like(embedded[:, 0]).long(), self.places, everywhere)[:, 0]
        cells = self.own.cells(samples).to(place.device)
        found = {name: cells[:, i].clamp(max=size - 1) for i, (name, size) in enumerate(self.own.sizes.items())}
        return {**found, PLACE: place}

    def __call__(self, rows: Rows) -> Tensor:
        """See simpe.rows.Query."""
        if len(rows.embedded) == 0:
            return torch.empty((0, len(self.asked.sets)), dtype=torch.int64)
        device = self.places.device
        return self.asked.of({**self.columns(rows.samples.to(device), rows.embedded), LABEL: rows.labels.to(device)})


def of(simulator: Simulator) -> Marginals:
    """The simulator's own marginals, or none."""
    return getattr(simulator, "marginals", None) or Marginals()


def query(marginals: Marginals, places: int, classes: int) -> Query:
    """What a run with so many places and classes counts.

    Raises InputError where only LABEL is counted and there are no classes.
    """
    sets: list[tuple[str, ...]] = [(), *marginals.sets]
    if classes == 1:
        sets = [tuple(name for name in names if name != LABEL) for names in sets]
    if not any(sets):
        raise InputError(f"marginals of {LABEL} alone need classes; name another column, or declare the classes")
    return Query({**marginals.sizes, LABEL: classes, PLACE: places}, tuple(dict.fromkeys(sets)), marginals.sparse)


def fit(
    counts: Tensor,
    noise: float,
    asked: Query,
    support: Mapping[str, Tensor],
    base: Tensor,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Weights float64 (m, classes) of candidates, adding up to 1, that explain noisy counts.

    ``counts`` (bins,) in rows, each with noise of standard deviation ``noise``; ``support``: cells (m,) of the
    candidates in every column but LABEL; ``base`` (m, classes), positive: what is believed without the counts.
    Minimises sum (N M w - counts)^2 / (2 noise^2) + max(0.05, 1 / noise) N KL(w, base) over the weights w, where M w
    are their marginals and N the number of rows (the first count). So a count moves its cell e-fold only where it
    stands a standard deviation off, however small the noise; without that, many empty cells share out what noise adds
    to them. Solved in the dual, where each bin has one number, by at most 100 steps of L-BFGS, on the CPU. All of it is
    post-processing.
    """
    classes = asked.sizes[LABEL]
    believed, keep = base, max(_KEEP, 1 / noise)
    rows = max(1.0, float(counts[0]))
    parts = []
    for names, part in zip(asked.sets[1:], torch.split(counts[1:].double(), asked.lengths[1:]), strict=True):
        index = torch.zeros(len(base), dtype=torch.int64, device=base.device)
        for name in names:
            index = index if name == LABEL else index * asked.sizes[name] + support[name]
        table = part.view([asked.sizes[name] for name in names])
        if len(names) == 1 and names[0] in asked.sparse:
            believed = torch.where((table < _CLEAR * noise)[support[names[0]], None], _SCARCE * believed, believed)
        if LABEL in names:
            table = table.movedim(names.index(LABEL), -1)
        reached, index = torch.unique(index, return_inverse=True)
        parts.append((index, table.reshape(-1, classes if LABEL in names else 1)[reached]))

    log_base = (believed / believed.sum()).double().log()
    lengths, turns = [table.numel() for _, table in parts], itertools.count(1)

    def tilted(flat: NDArray[np.float64]) -> tuple[list[Tensor], Tensor]:
        """The numbers of each set's bins, and the logarithms of the weights that they give, but for their sum."""
        each = torch.split(torch.from_numpy(flat), lengths)
        tilts = [tilt.view_as(table) for tilt, (_, table) in zip(each, parts, strict=True)]
        log_weights = log_base.clone()
        for tilt, (index, _) in zip(tilts, parts, strict=True):
            log_weights += tilt[index]
        return tilts, log_weights

    def dual(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The objective and its gradient."""
        tilts, log_weights = tilted(flat)
        total = log_weights.flatten().logsumexp(0)
        weights = (log_weights - total).exp()
        loss, gradient = rows * total, []
        for tilt, (index, table) in zip(tilts, parts, strict=True):
            loss = loss - (tilt * table).sum() + keep * noise**2 / 2 * tilt.square().sum()
            own = weights if table.shape[1] == classes else weights.sum(1, keepdim=True)
            reached = torch.zeros_like(table).index_add_(0, index, own)
            gradient.append((rows * reached - table + keep * noise**2 * tilt).flatten())
        progress(min(next(turns), _TURNS), _TURNS)
        return float(loss), torch.cat(gradient).numpy()

    options = {"maxiter": _TURNS, "maxcor": 10, "ftol": 0, "gtol": 0}
    found = minimize(dual, np.zeros(sum(lengths)), jac=True, method="L-BFGS-B", options=options)
    return tilted(found.x)[1].flatten().softmax(0).view_as(base)
