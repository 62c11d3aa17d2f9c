"""The door of an audited run: the real one, with a witness who knows what each canary would add to each release.

What the witness keeps is exact and private. It stays in memory, and nothing of it reaches the run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpe import rows as behind
from simpe.audit.canaries import Units
from simpe.data import DataSet, encode_labels
from simpe.evolution import Info
from simpe.privacy.accounting import LARGEST_EPSILON, Budget, Charge
from simpe.private import PrivateData
from simpe.rows import Query, Rows

_PROBED = 400  # private rows beside which a probe stands


@dataclass(frozen=True)
class Asked:
    """How a release was asked for: ``votes`` are the options of :meth:`PrivateData.votes`, or None for other sums.

    ``named`` is how many bins a row names.
    """

    address: str
    noise_multiplier: float
    charge: Charge
    one_bin: bool
    named: int
    votes: dict[str, Any] | None


@dataclass
class Record:
    """What the witness saw of a run.

    ``scores`` (m,) sum up, over all releases, what speaks for each canary being present: the noisy counts less what all
    other rows add, along the canary's own vector, over the noise's variance. This is the most powerful test of one
    canary where the others are known. ``moved`` holds, for each release and probe, the squared length of the change
    that adding the probe's unit to some private rows made, over S^2: at most 1. ``exact`` are the counts without noise,
    as (noise scale, counts), in the order of the candidates and, of votes, in that of the survivors.
    """

    present: Units
    absent: Units | None
    coins: NDArray[np.bool_]
    probes: list[Units]
    rest: DataSet
    scores: NDArray[np.float64] = field(init=False)
    asked: list[Asked] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    exact: list[tuple[float, NDArray[np.int64]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scores = np.zeros(len(self.coins))

    def survivors(self, info: Info, steps: int) -> None:
        """Also keep the exact votes of a step's survivors, in their order."""
        sigma, votes = self.exact[-1]
        by_class = votes.reshape(-1, len(info.candidates))[:, info.survivors.cpu().numpy()]
        self.exact += [(sigma, own) for own in by_class]
        if len(by_class) > 1:  # classes that share candidates: their sum decides who survives
            self.exact.append((sigma, by_class.sum(0)))


class Witness(PrivateData):
    """A :class:`PrivateData` whose releases are recorded; what it returns is what the real one would."""

    def __init__(self, *arguments: Any, record: Record, **options: Any):
        super().__init__(*arguments, **options)
        self._record = record
        self._voting: dict[str, Any] | None = None
        self._doors: list[PrivateData] | None = None
        self._exact: NDArray[np.int64] | None = None

    def votes(
        self, embedder: Any, candidates: Callable[[], Tensor], labels: Tensor, noise_multiplier: float, **options: Any
    ) -> NDArray[np.int64]:
        """As of the real door; the candidates are embedded once, for rows and canaries."""
        self._voting = {"embedder": embedder}
        self._voting |= {name: options[name] for name in options if name in ("neighbours", "metric", "shared")}
        try:
            return super().votes(embedder, functools.cache(candidates), labels, noise_multiplier, **options)
        finally:
            self._voting = None

    def noisy_sum(
        self, query: Query, bins: int, noise_multiplier: float, *, address: str, one_bin: bool = True, **options: Any
    ) -> NDArray[np.int64]:
        """As of the real door; then the same is asked of the canaries and of the probes."""
        seen: list[Tensor] = []

        def watched(rows: Rows) -> Tensor:
            seen.append(query(rows))
            return seen[-1]

        counts = super().noisy_sum(watched, bins, noise_multiplier, address=address, one_bin=one_bin, **options)
        if not seen:  # replayed
            return counts
        charge = self.charge(noise_multiplier, one_bin)
        exact = self._exact
        assert exact is not None
        named = seen[0].shape[1]
        self._record.asked.append(Asked(address, noise_multiplier, charge, one_bin, named, self._voting))
        self._record.exact.append((charge.sigma, exact))
        embedding: dict[str, Any] = {name: options[name] for name in ("embedder", "device") if name in options}
        self._score(query, bins, charge, counts, exact, embedding)
        self._probe(query, bins, noise_multiplier, address, one_bin, charge, embedding)
        return counts

    def _sum(self, *arguments: Any) -> NDArray[np.int64]:
        self._exact = super()._sum(*arguments)
        return self._exact

    def _score(
        self,
        query: Query,
        bins: int,
        charge: Charge,
        counts: NDArray[np.int64],
        exact: NDArray[np.int64],
        embedding: dict[str, Any],
    ) -> None:
        record = self._record
        both = []
        for units in (record.present, record.absent):
            if units is None:
                both.append((np.empty(0, np.int64), np.empty(0, np.int64)))
            else:
                both.append(vectors(units.owner, query(self._as_rows(units, embedding)).cpu().numpy(), bins, charge))
        inside = np.zeros(bins)
        for (keys, entries), here in zip(both, (record.coins, ~record.coins), strict=True):
            np.add.at(inside, keys % bins, entries * here[keys // bins])
            np.add.at(inside, keys % bins, -0.5 * entries)
        residual = counts - exact + inside
        for (keys, entries), sign in zip(both, (1, -1), strict=True):
            np.add.at(record.scores, keys // bins, sign * entries * residual[keys % bins] / charge.sigma**2)

    def _probe(
        self,
        query: Query,
        bins: int,
        noise_multiplier: float,
        address: str,
        one_bin: bool,
        charge: Charge,
        embedding: dict[str, Any],
    ) -> None:
        if self._doors is None:
            few = _few(self._record.rest, self.k)
            self._doors = [self._beside(few, probe) for probe in (None, *self._record.probes)]
        base, *moved = [
            door.noisy_sum(query, bins, noise_multiplier, address=address, one_bin=one_bin, **embedding)
            for door in self._doors
        ]
        largest = charge.sensitivity**2
        self._record.moved += [int(((one - base) ** 2).sum()) / largest for one in moved]

    def _beside(self, rows: DataSet, probe: Units | None) -> PrivateData:
        """A door without noise to some rows and one unit more, which stands first."""
        samples, labels, units = rows.samples, rows.labels, rows.units
        if probe is not None:
            samples = np.concatenate([probe.samples, samples])
            labels = None if labels is None or probe.labels is None else np.concatenate([probe.labels, labels])
            units = None if units is None else np.concatenate([np.array(["probe"] * len(probe.owner)), units])
        return PrivateData(
            samples,
            labels,
            budget=Budget(LARGEST_EPSILON, self.budget.delta, self.budget.relation),
            classes=self.classes,
            units=units,
            k=self.k,
            noise=lambda sigma, n, address: np.zeros(n, dtype=np.int64),
        )

    def _as_rows(self, units: Units, embedding: dict[str, Any]) -> Rows:
        labels = np.zeros(len(units.owner), np.int64)
        if units.labels is not None and self.has_labels:
            labels = encode_labels(units.labels, self.classes or ())
        return Rows.at_hand(torch.from_numpy(units.samples), torch.from_numpy(labels), **embedding)


def vectors(
    owner: NDArray[np.int64], chosen: NDArray[np.int64], bins: int, charge: Charge
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each unit adds to a release: (unit * bins + bin) keys and entries; ``chosen`` (c, j) are its rows' bins."""
    if charge.one_bin:
        there = chosen[:, 0] >= 0
        return owner[there] * bins + chosen[there, 0], np.ones(int(there.sum()), np.int64)
    keys, entries, _ = behind.unit_vectors(owner, chosen, bins, charge.sensitivity)
    return keys, entries


def _few(rows: DataSet, k: int) -> DataSet:
    """The first rows, of each unit k at most, so that the door has none to leave out."""
    kept = np.arange(min(_PROBED, len(rows.samples)))
    if rows.units is not None:
        owner = np.unique(rows.units[kept], return_inverse=True)[1]
        order = np.argsort(owner, kind="stable")
        first = np.searchsorted(owner[order], owner[order])
        kept = np.sort(order[np.arange(len(order)) - first < k])
    labels = None if rows.labels is None else rows.labels[kept]
    return replace(
        rows, samples=rows.samples[kept], labels=labels, units=None if rows.units is None else rows.units[kept]
    )
