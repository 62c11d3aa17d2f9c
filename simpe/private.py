"""PrivateData: the only door to private rows.

Rows go in and only noisy sums come out. Everything else (votes, class counts) is built on one primitive,
:meth:`PrivateData.noisy_sum`: every unit contributes an integer vector of bounded length, the vectors are added up,
exact noise is added, and the charge and the result become one ledger record before anybody sees the result.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simpe.errors import InputError
from simpe.privacy.accounting import Budget, Charge, Law, resolution
from simpe.privacy.ledger import Ledger, Plan, Record
from simpe.privacy.mechanism import FINEST, MAX_SIGMA, discrete_gaussian
from simpe.protocols import Embedder
from simpe.rows import (
    Arrays,
    Embedding,
    Here,
    Query,
    Rows,
    Shards,
    Terms,
    combined,
    fingerprints,
    nothing,
    one_home,
    schema_of,
)
from simpe.scheduling import Metric
from simpe.voting import Progress, nearest_within_labels

TestNoise = Callable[[float, int, str], NDArray[np.int64]]
"""(sigma, n, address) -> n integers: noise for tests. It voids the guarantee, and the certificate says so."""

MOST_ROWS = 10_000  # of a unit; keeps its squared counts times S^2 within 64 bits


class PrivateData:
    """Private rows behind one door, with the budget that may be spent on them.

    ``samples`` (n, ...) and, where rows have classes, ``labels`` (n,): whatever names the classes (integers or
    strings). ``classes`` declares the classes in order; they are public and never read off the labels. Rows whose
    label is not among them take no part. Without ``classes`` the simulator's own are used.

    The privacy unit is the row, or, with ``units`` (n,) (an identifier of the row's owner), everything that one
    owner has: of each unit ``k`` rows at most take part, chosen by a secret key and independently of all other units,
    and their joint contribution over all bins and labels is scaled to length 1. ``unit`` names the unit in the
    certificate, and ``caveats`` say there what it does not protect.

    **Guarantee.** Whatever is computed from the results of :meth:`noisy_sum`, :meth:`votes` and
    :meth:`class_counts` is (epsilon, delta)-DP for neighbouring data sets that differ in one unit, in the relation
    of ``budget``, counting every release on the ledger. There is no length, no indexing, no iteration, no pickling.

    ``samples`` may also be shards, which bring their labels and units: :class:`simpe.Here`, or those of a
    :class:`simpe.Cluster`. All rows of a unit must then lie in one shard.

    ``ledger`` is a file, a Ledger or None (in memory). ``noise`` replaces the secret noise in tests only.

    Raises InputError for arrays that do not fit, values that are not finite, or a ledger of other data.
    """

    law: Law = "discrete gaussian"
    spread = 1.0
    """Standard deviation of the noise of a sum, in those of what is charged for it: not 1 where parties add theirs."""
    parties: dict[str, Any] | None = None
    """What a certificate says of the parties that hold the rows, where there are several."""

    def __init__(
        self,
        samples: ArrayLike | Tensor | Shards,
        labels: ArrayLike | None = None,
        *,
        budget: Budget,
        classes: Sequence[str] | None = None,
        units: ArrayLike | None = None,
        k: int = 1,
        unit: str | None = None,
        caveats: Sequence[str] = (),
        ledger: Ledger | str | None = None,
        noise: TestNoise | None = None,
    ):
        if isinstance(samples, Shards):
            if labels is not None or units is not None:
                raise InputError("shards bring their own labels and units; leave these out")
            self._shards: Shards = samples
        else:
            self._shards = Here([Arrays(samples, labels, units)])
        schema = schema_of(self._shards)
        if not (isinstance(k, int) and 1 <= k <= MOST_ROWS):
            raise InputError(f"k must be a whole number between 1 and {MOST_ROWS}, got {k}")
        if schema.units is None and k != 1:
            raise InputError("k caps the rows of a unit: give the units too")
        self.sample_shape = schema.shape
        self.sample_dtype = schema.dtype
        self.one_bin = schema.units is None
        self.budget = budget
        self.unit = unit or ("row" if self.one_bin else "unit")
        self.k = k
        self.caveats = tuple(dict.fromkeys((*caveats, *schema.caveats)))
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self.run = secrets.token_hex(8)
        self.classes: tuple[str, ...] | None = None
        self.has_labels = schema.labels is not None
        self._noise = noise
        with self.ledger.locked():
            key = self.ledger.key()
            found = fingerprints(self._shards, key)
            self.ledger.bind(
                key,
                {
                    "fingerprint": combined(key, found),
                    "unit": self.unit,
                    "k": k,
                    "relation": budget.relation,
                    "delta": budget.delta,
                },
            )
        if schema.named or not self.one_bin:
            one_home(self._shards, key)
        self._terms = Terms(key, k, (), found)
        if classes is not None:
            self.declare(classes)

    def __repr__(self) -> str:
        return "PrivateData(<private>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private data cannot be pickled or copied")

    def declare(self, classes: Sequence[str]) -> None:
        """Declare the classes, in label order; public. They are declared once.

        The one class ``""`` is that of all rows: their labels, if they have any, are not looked at.

        Raises InputError when others were declared before, or a name is given twice.
        """
        names = tuple(str(name) for name in classes)
        if self.classes is not None:
            if self.has_labels and names != self.classes:
                raise InputError("other classes were declared before; make a new PrivateData")
            return
        if len(set(names)) < len(names):
            raise InputError("classes: a name is given twice; give each class once")
        self.has_labels &= names != ("",)
        self.classes = names if self.has_labels else ("",)
        self._terms = replace(self._terms, classes=self.classes)

    def begin(self, run: str, description: Record, plan: Callable[[], Plan]) -> Plan:
        """Open the run on the ledger with its plan of charges, or find it there (see Ledger.open_run)."""
        self.run = run
        with self.ledger.locked():
            return self.ledger.open_run(run, description, plan)

    def charge(self, noise_multiplier: float, one_bin: bool = True) -> Charge:
        """What a release at this noise multiplier is charged, public inputs alone deciding S.

        S = 1 where a unit is one row with one bin. Otherwise S is the largest power of two that the sampler allows, at
        most 1024.
        """
        if not noise_multiplier >= FINEST:
            raise ValueError(f"the noise multiplier must be at least {FINEST}, got {noise_multiplier}")
        if one_bin and self.one_bin:
            return Charge(noise_multiplier)
        size = resolution(noise_multiplier)
        return Charge(noise_multiplier * size, size, one_bin=False)

    def noisy_sum(
        self,
        query: Query,
        bins: int,
        noise_multiplier: float,
        *,
        address: str,
        digest: str = "",
        one_bin: bool = True,
        embedder: Embedder | None = None,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ) -> NDArray[np.int64]:
        """Noisy sum of bounded integer vectors, one vector a unit: the only way out.

        ``query`` names the bins that each row adds one to; with an ``embedder`` it finds the rows' embeddings on the
        ``device``. It is asked where the rows are, of all of them or block by block, so it must answer row by row (and,
        for rows in other processes, be picklable). Where every unit is one row with one bin (``one_bin``),
        a unit's vector is that bin's unit vector and S = 1. Otherwise the unit's counts v over *all* bins are scaled
        to length S and truncated towards zero, c_i = floor(S v_i / |v|), so that sum of c_i^2 <= S^2; S is chosen from
        the noise multiplier alone. Noise is N_Z(0, (noise_multiplier S)^2) in each bin.

        Returns int64 (bins,) in units of 1 / S of a unit's vote (see :meth:`charge`). ``address`` names the release
        within the run; asked again, it is replayed from the ledger and costs nothing. ``digest`` stands for the
        public inputs of the query, so that a replay to another question is refused.

        **Guarantee.** As of the class. The charge is admitted before any row is read; the charge and the result are
        published as one record before the result is returned. Source: Gaussian histogram of PE (Lin et al., ICLR
        2024, Alg. 2) with the noise of Canonne, Kamath and Steinke (NeurIPS 2020).

        Raises BudgetExceeded when the budget does not admit the charge, InputError when a replay does not fit.
        """

        charge = self.charge(noise_multiplier, one_bin)
        if charge.sigma > MAX_SIGMA:
            raise InputError(
                f"noise of scale {charge.sigma:.3g} is more than counts can bear; use fewer steps or more epsilon"
            )
        if self.classes is None:
            raise InputError("declare the classes before the first release")
        with self.ledger.locked():
            record = self.ledger.find(self.run, address)
            if record is not None:
                if record["digest"] != digest or len(record["counts"]) != bins:
                    raise InputError(
                        f"the ledger's record of {address} answers another question; resume with the same simulator, "
                        "embedder and versions"
                    )
                return np.array(record["counts"], dtype=np.int64)
            self.ledger.admit(self.run, address, charge, self.budget)
            embedding = None if embedder is None else Embedding.by(embedder, torch.device(device))
            total = self._sum(query, bins, charge, embedding, progress or nothing, address)
            noise, name = self._draw(charge, bins, address)
            counts = total + noise
            self.ledger.append(
                {
                    "type": "release",
                    "run": self.run,
                    "address": address,
                    "digest": digest,
                    "charge": asdict(charge),
                    "noise": name,
                    "counts": counts.tolist(),
                }
            )
            return counts

    def _sum(
        self,
        query: Query,
        bins: int,
        charge: Charge,
        embedding: Embedding | None,
        progress: Progress,
        address: str,
    ) -> NDArray[np.int64]:
        """The exact sum, from wherever the rows are: for the door alone, once the charge is admitted."""
        return self._shards.total(self._terms, query, bins, charge, embedding, progress)

    def _draw(self, charge: Charge, bins: int, address: str) -> tuple[NDArray[np.int64], str]:
        """The noise of a release, and what the ledger calls it."""
        if self._noise is not None:
            return self._noise(charge.sigma, bins, address), "test"
        return discrete_gaussian(charge.sigma, bins, sensitivity=charge.sensitivity), charge.law

    def class_counts(self, noise_multiplier: float, *, address: str) -> NDArray[np.int64]:
        """Noisy number of rows of each class, int64 (classes,), in units of 1 / S (see :meth:`noisy_sum`)."""
        return self.noisy_sum(class_of, len(self.classes or ()), noise_multiplier, address=address)

    def votes(
        self,
        embedder: Embedder,
        candidates: Callable[[], Tensor],
        labels: Tensor,
        noise_multiplier: float,
        *,
        address: str,
        digest: str = "",
        neighbours: int = 1,
        metric: Metric = "l2",
        shared: bool = False,
        progress: Progress | None = None,
    ) -> NDArray[np.int64]:
        """Noisy votes: each row votes for the nearest candidates of its own class in the embedding.

        ``candidates`` gives the embedded candidates, float32 (m, d), and is not called for a replay; ``labels`` int64
        (m,) are their classes; where candidates are ``shared``, zeros, and rows vote whatever their class. Each row
        names its ``neighbours`` nearest. Rows that the embedder maps to NaN vote for nobody. Returns int64 (m,) in
        units of 1 / S.
        """

        query = Vote(functools.cache(candidates), labels, neighbours, metric, shared)
        return self.noisy_sum(
            query,
            len(labels),
            noise_multiplier,
            address=address,
            digest=digest,
            one_bin=neighbours == 1,
            embedder=embedder,
            device=labels.device,
            progress=progress,
        )


def class_of(rows: Rows) -> Tensor:
    """The query of :meth:`PrivateData.class_counts`."""
    return rows.labels[:, None]


@dataclass(frozen=True, repr=False)
class Vote:
    """The query of :meth:`PrivateData.votes`; candidates are made when it is asked, or sent to where the rows are."""

    candidates: Callable[[], Tensor]
    labels: Tensor
    neighbours: int
    metric: Metric
    shared: bool

    def __call__(self, rows: Rows) -> Tensor:
        """See Query."""
        if len(rows.embedded) == 0:
            return torch.empty((0, self.neighbours), dtype=torch.int64)
        them, own = self.candidates(), rows.labels.to(self.labels.device)
        own = own.clamp(max=0) if self.shared else own
        return nearest(rows.embedded, own, them, self.labels, self.neighbours, self.metric, rows.progress)

    def __reduce__(self) -> tuple[Any, ...]:
        made = functools.partial(_same, self.candidates())
        return (Vote, (made, self.labels, self.neighbours, self.metric, self.shared))


def _same(value: Tensor) -> Tensor:
    return value


def nearest(
    embedded: Tensor,
    row_labels: Tensor,
    candidates: Tensor,
    labels: Tensor,
    neighbours: int = 1,
    metric: Metric = "l2",
    progress: Progress | None = None,
) -> Tensor:
    """The nearest candidates of each embedded row, int64 (n, neighbours); -1 where it has no embedding or no class."""
    finite = embedded.isfinite().all(dim=1)
    return nearest_within_labels(
        embedded.where(finite[:, None], 0.0),
        torch.where(finite, row_labels, -1),
        candidates,
        labels,
        neighbours,
        metric,
        progress,
    )
