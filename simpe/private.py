"""PrivateData: the only door to private rows.

Rows go in and only noisy sums come out. Everything else (votes, class counts) is built on one primitive,
:meth:`PrivateData.noisy_sum`: every unit contributes an integer vector of bounded length, the vectors are added up,
exact noise is added, and the charge and the result become one ledger record before anybody sees the result.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simpe.data import encode_labels
from simpe.errors import InputError
from simpe.privacy.accounting import Budget, Charge
from simpe.privacy.ledger import Ledger, Plan, Record
from simpe.privacy.mechanism import FINEST, MAX_SIGMA, discrete_gaussian
from simpe.protocols import Embedder
from simpe.scheduling import Metric
from simpe.voting import Progress, nearest_within_labels

TestNoise = Callable[[float, int, str], NDArray[np.int64]]
"""(sigma, n, address) -> n integers: noise for tests. It voids the guarantee, and the certificate says so."""

EMBED_BLOCK = 256  # rows embedded at a time, always exactly so many
MOST_ROWS = 10_000  # of a unit; keeps its squared counts times S^2 within 64 bits
_LARGEST_SCALE = 1024  # resolution of a vote where a unit spreads one over many bins


@dataclass(repr=False)
class Rows:
    """What a query sees inside the door: the valid rows that the cap kept, in order.

    ``samples`` (n, ...), ``labels`` int64 (n,), zeros where there are no classes.
    """

    samples: Tensor
    labels: Tensor
    _embedded: dict[int, tuple[Embedder, Tensor]] = field(default_factory=dict)

    def embed(self, embedder: Embedder, device: torch.device) -> Tensor:
        """Embedding (n, d) of every row, computed once per embedder and kept inside.

        Rows go through in blocks of one fixed shape, the last one padded with zeros, because the rounding of a
        matrix product depends on the shape of its batch.
        """
        held = self._embedded.get(id(embedder))
        if held is not None and held[0] is embedder:
            return held[1]
        blocks = []
        for start in range(0, len(self.samples), EMBED_BLOCK):
            block = self.samples[start : start + EMBED_BLOCK].to(device)
            short = EMBED_BLOCK - len(block)
            if short:
                block = torch.cat([block, block.new_zeros((short, *block.shape[1:]))])
            blocks.append(embedder(block)[: EMBED_BLOCK - short].float())
        embedded = torch.cat(blocks) if blocks else torch.empty((0, 0), device=device)
        self._embedded = {id(embedder): (embedder, embedded)}
        return embedded


Query = Callable[[Rows], Tensor]
"""Rows -> int64 (n, j): the j bins that each row adds one to; negative for none."""


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

    ``ledger`` is a file, a Ledger or None (in memory). ``noise`` replaces the secret noise in tests only.

    Raises InputError for arrays that do not fit, values that are not finite, or a ledger of other data.
    """

    def __init__(
        self,
        samples: ArrayLike | Tensor,
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
        array = np.asarray(samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples)
        if array.dtype.kind not in "buif":
            raise InputError("samples must be numbers")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        named = None if labels is None else np.asarray(labels)
        owners = None if units is None else np.asarray(units)
        for name, column in (("labels", named), ("units", owners)):
            if column is not None and column.shape != array.shape[:1]:
                raise InputError(f"{name} must have one entry for each of the samples")
            if column is not None and column.dtype.kind not in "iuUS":
                raise InputError(f"{name} must be integers or strings")
        if array.ndim < 2:
            raise InputError("samples must have one row each: shape (n, ...)")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError("samples hold NaN or infinite values; remove those rows first")
        if not (isinstance(k, int) and 1 <= k <= MOST_ROWS):
            raise InputError(f"k must be a whole number between 1 and {MOST_ROWS}, got {k}")
        if owners is None and k != 1:
            raise InputError("k caps the rows of a unit: give the units too")
        self.budget = budget
        self.unit = unit or ("row" if units is None else "unit")
        self.k = k
        self.caveats = tuple(caveats)
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self.run = secrets.token_hex(8)
        self.classes: tuple[str, ...] | None = None
        self.has_labels = named is not None
        self._noise = noise
        with self.ledger.locked():
            key = self.ledger.key()
            self.ledger.bind(
                key,
                {
                    "fingerprint": _fingerprint(key, array, named, owners),
                    "unit": self.unit,
                    "k": k,
                    "relation": budget.relation,
                    "delta": budget.delta,
                },
            )
        kept, self._owner = _cap(key, owners, len(array), k)
        self._samples = torch.from_numpy(array[kept])
        self._named = None if named is None else named[kept]
        self._rows: Rows | None = None
        if classes is not None:
            self.declare(classes)

    def __repr__(self) -> str:
        return "PrivateData(<private>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private data cannot be pickled or copied")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: public schema, not data."""
        return tuple(self._samples.shape[1:])

    @property
    def sample_dtype(self) -> torch.dtype:
        """dtype of the samples: public schema, not data."""
        return self._samples.dtype

    def declare(self, classes: Sequence[str]) -> None:
        """Declare the classes, in label order; public. They are declared once.

        The one class ``""`` is that of all rows: their labels, if they have any, are not looked at.

        Raises InputError when others were declared before.
        """
        if self.classes is not None:
            if self.has_labels and tuple(map(str, classes)) != self.classes:
                raise InputError("other classes were declared before; make a new PrivateData")
            return
        if self._named is None or tuple(classes) == ("",):
            codes = np.zeros(len(self._samples), dtype=np.int64)
            self.classes, self.has_labels = ("",), False
        else:
            codes = encode_labels(self._named, classes)
            self.classes = tuple(str(c) for c in classes)
        self._rows = Rows(self._samples, torch.from_numpy(codes))

    @property
    def one_bin(self) -> bool:
        """Whether a unit is a single row, so that with one vote it touches a single bin."""
        return self._owner is None

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
        size = 2 ** int(np.log2(min(_LARGEST_SCALE, max(1.0, MAX_SIGMA / noise_multiplier))))
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
    ) -> NDArray[np.int64]:
        """Noisy sum of bounded integer vectors, one vector a unit: the only way out.

        ``query`` names the bins that each row adds one to. Where every unit is one row with one bin (``one_bin``),
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
        size = charge.sensitivity
        if charge.sigma > MAX_SIGMA:
            raise InputError(
                f"noise of scale {charge.sigma:.3g} is more than counts can bear; use fewer steps or more epsilon"
            )
        if self._rows is None:
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
            total = self._sum(query(self._rows), bins, charge)
            if self._noise is None:
                noise = discrete_gaussian(charge.sigma, bins, sensitivity=size)
            else:
                noise = self._noise(charge.sigma, bins, address)
            counts = total + noise
            self.ledger.append(
                {
                    "type": "release",
                    "run": self.run,
                    "address": address,
                    "digest": digest,
                    "charge": asdict(charge),
                    "noise": "discrete gaussian" if self._noise is None else "test",
                    "counts": counts.tolist(),
                }
            )
            return counts

    def _sum(self, bins_of_rows: Tensor, bins: int, charge: Charge) -> NDArray[np.int64]:
        chosen = bins_of_rows.cpu().numpy()
        if chosen.ndim != 2 or len(chosen) != len(self._samples) or chosen.max(initial=-1) >= bins:
            raise ValueError("a query gives every row its bins, (n, j), each below the number of bins")
        if charge.one_bin:
            if chosen.shape[1] != 1:
                raise ValueError("a one-bin query names one bin a row")
            chosen = chosen[:, 0]
            return np.bincount(chosen[chosen >= 0], minlength=bins)
        owner = np.arange(len(chosen)) if self._owner is None else self._owner
        return unit_vectors(owner, chosen, bins, charge.sensitivity)[2]

    def class_counts(self, noise_multiplier: float, *, address: str) -> NDArray[np.int64]:
        """Noisy number of rows of each class, int64 (classes,), in units of 1 / S (see :meth:`noisy_sum`)."""
        return self.noisy_sum(
            lambda rows: rows.labels[:, None], len(self.classes or ()), noise_multiplier, address=address
        )

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

        def query(rows: Rows) -> Tensor:
            them = candidates()
            embedded = rows.embed(embedder, them.device)
            if len(embedded) == 0:
                return torch.empty((0, neighbours), dtype=torch.int64)
            own = rows.labels.to(them.device)
            return nearest(embedded, own.clamp(max=0) if shared else own, them, labels, neighbours, metric, progress)

        return self.noisy_sum(
            query, len(labels), noise_multiplier, address=address, digest=digest, one_bin=neighbours == 1
        )


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


def unit_vectors(
    owner: NDArray[np.int64], chosen: NDArray[np.int64], bins: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Every unit's bounded integer vector: (unit, bin) keys, their entries c, and the sum over units (bins,).

    ``owner`` (n,) is each row's unit and ``chosen`` (n, j) the bins that it names (negative: none). A unit's counts
    v become c = floor(S v / |v|), in integers: c^2 |v|^2 <= S^2 v^2, hence sum of c^2 <= S^2.
    """
    if len(owner) == 0:
        return (np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(bins, np.int64))
    key = owner[:, None] * bins + chosen
    keys, v = np.unique(key[chosen >= 0], return_counts=True)
    v = v.astype(np.int64)
    units, squares = keys // bins, np.zeros(int(owner.max()) + 1, dtype=np.int64)
    np.add.at(squares, units, v**2)
    squares = squares[units]
    entries = np.floor(size * v / np.sqrt(squares)).astype(np.int64)
    # The float result may be one off; settle it in integers, for entries are far below 2^31.
    entries += (entries + 1) ** 2 * squares <= size**2 * v**2
    entries -= entries**2 * squares > size**2 * v**2
    lengths = np.zeros(int(owner.max()) + 1, dtype=np.int64)
    np.add.at(lengths, units, entries**2)
    if lengths.max(initial=0) > size**2:
        raise AssertionError("a unit's vector is longer than the sensitivity")
    total = np.zeros(bins, dtype=np.int64)
    np.add.at(total, keys % bins, entries)
    return keys, entries, total


def _cap(
    key: bytes, owners: NDArray[np.generic] | None, n: int, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Rows to keep, in order, and the unit number of each: k at most of every unit.

    A unit's rows are ranked by a keyed hash of (unit, ordinal within the unit), so which of them stay depends on no
    other unit. The unit numbers only group rows; nothing else is made of them.
    """
    if owners is None:
        return np.arange(n), None
    names, owner = np.unique(owners, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(names)))
    ordinal = np.empty(n, dtype=np.int64)
    ordinal[order] = np.arange(n) - starts[owner[order]]
    crowded = np.bincount(owner, minlength=len(names))[owner] > k
    rank = np.zeros(n, dtype=np.uint64)
    for row in np.flatnonzero(crowded):
        text = f"{names[owner[row]]}\x00{ordinal[row]}".encode()
        rank[row] = int.from_bytes(hashlib.blake2b(text, key=key, digest_size=8).digest(), "big")
    by_rank = np.lexsort((ordinal, rank, owner))
    place = np.arange(n) - starts[owner[by_rank]]
    kept = np.sort(by_rank[place < k])
    return kept, owner[kept].astype(np.int64)


def _fingerprint(
    key: bytes,
    samples: NDArray[np.generic],
    labels: NDArray[np.generic] | None,
    units: NDArray[np.generic] | None,
) -> str:
    """Keyed fingerprint of the data set; says nothing to anyone without the key."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for name, array in (("samples", samples), ("labels", labels), ("units", units)):
        if array is not None:
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
