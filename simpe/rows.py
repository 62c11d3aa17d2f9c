"""Behind the door: the private rows, in shards, and what is counted of them where they are.

A shard is one source of rows (arrays in memory, a file, a part of a file) and all that is done with them: cap, embed,
ask, count. Only public facts, keyed hashes and integer counts come out of it, and only simpe.private asks for them. A
shard travels to another process as the way to its rows, never as rows.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simpe.data import DataSet, concatenate, encode_labels
from simpe.errors import InputError
from simpe.privacy.accounting import Charge
from simpe.protocols import Embedder
from simpe.scratch import Scratch, room
from simpe.voting import Progress

_TWO_HOMES = "a unit has rows in two shards; write all rows of a unit into one"
EMBED_BLOCK = 256  # rows embedded at a time, always exactly so many


def nothing(done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(repr=False)
class Rows:
    """What a query sees inside the door: valid rows that the cap kept, all or a block of them; units are whole.

    ``labels`` int64 (n,), zeros where there are no classes; ``embedded`` (n, d) float32 by the embedder that was named
    with the query, else (n, 0). ``samples`` (n, ...) are read when asked for.
    """

    read: Callable[[], Tensor]
    labels: Tensor
    embedded: Tensor
    progress: Progress = nothing

    @property
    def samples(self) -> Tensor:
        """The rows themselves."""
        return self.read()

    @classmethod
    def at_hand(
        cls, samples: Tensor, labels: Tensor, embedder: Embedder | None = None, device: torch.device | str = "cpu"
    ) -> Rows:
        """Rows that need no door, as a query would see them."""
        embedded = (
            torch.empty((len(samples), 0)) if embedder is None else embed(samples, embedder, torch.device(device))
        )
        return cls(lambda: samples, labels, embedded)


Query = Callable[[Rows], Tensor]
"""Rows -> int64 (n, j): the j bins that each row adds one to; negative for none."""


class Embedding(NamedTuple):
    """Who embeds the rows of a query, and where; ``tag`` tells embedders apart, as what they made is kept."""

    embedder: Embedder
    device: torch.device
    tag: str

    @classmethod
    def by(cls, embedder: Embedder, device: torch.device) -> Embedding:
        """With an embedder of this process, which is told by its place as long as it is kept."""
        return cls(embedder, device, str(id(embedder)))


@dataclass(frozen=True)
class Schema:
    """What is public about a shard: shape and dtype of a sample, and what it says of labels, units and classes."""

    name: str = field(compare=False)
    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: str | None
    units: str | None
    classes: tuple[str, ...] | None
    caveats: tuple[str, ...]
    named: bool = False  # a row is a whole unit with a name


@dataclass(frozen=True, repr=False)
class Terms:
    """On what terms rows take part: the ledger's key, the cap, the classes, and each source's fingerprint."""

    key: bytes
    k: int
    classes: tuple[str, ...]
    fingerprints: tuple[str, ...]


class Source(Protocol):
    """Where rows are read from."""

    @property
    def name(self) -> str:
        """For messages to the operator."""
        ...

    def read(self) -> DataSet:
        """The rows. Raises InputError."""
        ...


class Arrays:
    """Rows that are in memory already. They do not travel."""

    name = "the rows"

    def __init__(
        self,
        samples: ArrayLike | Tensor,
        labels: ArrayLike | None,
        units: ArrayLike | None,
        classes: tuple[str, ...] | None = None,
        caveats: tuple[str, ...] = (),
    ):
        array = np.array(samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples)  # a copy
        named = None if labels is None else np.array(labels)
        self._rows = DataSet(array, named, None if units is None else np.array(units), classes, caveats)

    def read(self) -> DataSet:
        """The rows."""
        return self._rows

    def __reduce__(self) -> NoReturn:
        raise TypeError("private data cannot be pickled or copied")


class Shard:
    """The rows of one source, or the ``part`` (i, n) of them, in this process.

    ``number`` is that of the source in the data set. With ``memory`` (bytes, see :class:`Here`) rows are read when they
    are needed and dropped again, and their embedding lies in a file of the folder ``scratch``.
    """

    def __init__(
        self,
        source: Source,
        number: int = 0,
        part: tuple[int, int] = (0, 1),
        memory: int | None = None,
        scratch: Path | None = None,
    ):
        self.source, self.number, self.part = source, number, part
        self.memory, self.scratch = memory, scratch
        self._lock = threading.RLock()
        self._data: DataSet | None = None
        self._held: tuple[Tensor, NDArray[np.generic] | None] | None = None
        self._owner: NDArray[np.int64] | None = None
        self._settled: tuple[bytes, int] | None = None
        self._labels: tuple[tuple[str, ...], Tensor] | None = None
        self._embedded: tuple[Embedding, Tensor | Scratch] | None = None

    def __repr__(self) -> str:
        return "Shard(<private>)"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Shard, (self.source, self.number, self.part, self.memory, self.scratch))

    def __sizeof__(self) -> int:
        return 2**30  # so that work is taken to it, wherever sizes decide, and not it to the work

    def schema(self) -> Schema:
        """Public facts."""
        data = self._read()
        return Schema(
            self.source.name,
            data.samples.shape[1:],
            torch.from_numpy(data.samples[:0]).dtype,
            None if data.labels is None else _kind(data.labels),
            None if data.units is None else _kind(data.units),
            data.classes,
            data.caveats,
            data.names is not None,
        )

    def known(self, classes: Sequence[str]) -> bool:
        """Whether any row's label is one of the classes: for the operator."""
        labels = self._read().labels
        return labels is not None and bool((encode_labels(labels, classes) >= 0).any())

    def fingerprint(self, key: bytes) -> str:
        """Keyed fingerprint of the whole source, whatever the part; says nothing to anyone without the key."""
        return _fingerprint(key, self._read())

    def owners(self, key: bytes) -> NDArray[np.uint64]:
        """Keyed hashes of the units in the source, to see whether one is in two of them."""
        data = self._read()
        units = data.names if data.units is None else data.units
        names = np.unique(units) if units is not None and self.part[0] == 0 else ()
        hashed = [hashlib.blake2b(str(name).encode(), key=key, digest_size=8).digest() for name in names]
        return np.frombuffer(b"".join(hashed), np.uint64)

    def total(
        self,
        terms: Terms,
        query: Query,
        bins: int,
        charge: Charge,
        embedding: Embedding | None,
        progress: Progress = nothing,
    ) -> NDArray[np.int64]:
        """Sum over units of the bounded integer vectors that a query makes of their rows, int64 (bins,).

        A unit's vector is as PrivateData.noisy_sum says: the unit vector of one bin, or counts scaled to length S.
        """
        with self._lock:
            labels = self._code(terms)
            embedded = None if embedding is None else self._embed(embedding, terms)
            total = np.zeros(bins, dtype=np.int64)
            blocks = list(self._blocks(len(labels), embedded))
            for number, block in enumerate(blocks):
                device = torch.device("cpu") if embedding is None else embedding.device
                rows = Rows(
                    lambda block=block: self._settle(terms)[0][block],  # type: ignore[misc]
                    labels[block],
                    torch.empty((len(labels[block]), 0)) if embedded is None else embedded[block].to(device),
                    lambda done, of, number=number: progress(number * of + done, len(blocks) * of),  # type: ignore[misc]
                )
                owner = None if self._owner is None else self._owner[block]
                total += add_up(query(rows).cpu().numpy(), len(rows.labels), owner, bins, charge)
            if self.memory is not None:
                self._held = None
            return total

    # --- the rows

    def _read(self) -> DataSet:
        """The source's rows, checked; kept until the cap has chosen among them, unless memory is short."""
        with self._lock:
            data = self._data or checked(self.source.read())
            if self.memory is None and self._settled is None:
                self._data = data
            return data

    def _settle(self, terms: Terms) -> tuple[Tensor, NDArray[np.generic] | None]:
        """The samples and labels that take part, in the order of their units; read again where they were dropped."""
        if self._held is not None and self._settled == (terms.key, terms.k):
            return self._held
        data = self._read()
        if _fingerprint(terms.key, data) != terms.fingerprints[self.number]:
            self._data = None
            raise InputError(f"{self.source.name}: changed since the run began; restore it, then: simpe resume DIR")
        which, of = self.part
        if data.units is None:
            mine = np.arange(len(data.samples) * which // of, len(data.samples) * (which + 1) // of)
        else:
            mine = np.flatnonzero(np.unique(data.units, return_inverse=True)[1] % of == which)
        kept, owner = cap(terms.key, None if data.units is None else data.units[mine], len(mine), terms.k)
        if owner is not None:  # a block of rows must not cut through a unit
            order = np.argsort(owner, kind="stable")
            kept, owner = kept[order], owner[order]
        whole = owner is None and of == 1
        samples = data.samples if whole else data.samples[mine[kept]]
        named = data.labels if whole or data.labels is None else data.labels[mine[kept]]
        self._settled, self._data, self._owner = (terms.key, terms.k), None, owner
        self._held = (torch.from_numpy(samples if samples.flags.writeable else samples.copy()), named)
        return self._held

    def _code(self, terms: Terms) -> Tensor:
        """Labels of the rows that take part, int64; zeros for the one class ""."""
        if self._labels is None or self._labels[0] != terms.classes:
            samples, named = self._settle(terms)
            plain = named is None or terms.classes == ("",)
            codes = np.zeros(len(samples), np.int64) if plain else encode_labels(named, terms.classes)  # type: ignore[arg-type]
            self._labels = (terms.classes, torch.from_numpy(codes))
        return self._labels[1]

    def _embed(self, embedding: Embedding, terms: Terms) -> Tensor | Scratch:
        """The embedding of the rows that take part; computed once, and kept."""
        if self._embedded is not None and self._embedded[0][1:] == embedding[1:]:
            return self._embedded[1]
        samples, _ = self._settle(terms)
        self._embedded = None  # one embedder's at a time
        if self.memory is None:
            made: Tensor | Scratch = embed(samples, embedding.embedder, embedding.device)
        else:
            made = Scratch(self.scratch)
            for block in embedded_blocks(samples, embedding.embedder, embedding.device):
                made.append(block)
            self._held = None
        self._embedded = (embedding, made)
        return made

    def _blocks(self, n: int, embedded: Tensor | Scratch | None) -> Iterator[slice]:
        """All rows at once, or as many at a time as memory bears, units whole."""
        if self.memory is None:
            yield slice(0, n)
            return
        width = embedded.shape[1] if embedded is not None else 0
        most = room(self.memory, width)
        start = 0
        while start < n:
            stop = min(n, start + most)
            if self._owner is not None and stop < n:  # back to where the last unit begins, or else to where it ends
                first = int(np.searchsorted(self._owner, self._owner[stop], "left"))
                stop = first if first > start else int(np.searchsorted(self._owner, self._owner[stop], "right"))
            yield slice(start, stop)
            start = stop


class Shards(ABC):
    """All shards of a data set, wherever they are. It does the asking; the charging is the door's."""

    @abstractmethod
    def each(self, ask: Callable[..., Any], *arguments: object) -> list[Any]:
        """``ask(shard, *arguments)`` of every shard, in order; a method of Shard with a small answer."""

    @abstractmethod
    def total(
        self,
        terms: Terms,
        query: Query,
        bins: int,
        charge: Charge,
        embedding: Embedding | None,
        progress: Progress,
    ) -> NDArray[np.int64]:
        """Sum of :meth:`Shard.total` over all shards, each counted once."""


def all_rows(shards: Here) -> DataSet:
    """All rows of the shards in this process, for an audit: it needs no door, and releases nothing."""
    return concatenate([shard._read() for shard in shards.shards])


class Here(Shards):
    """Shards in this process, asked one after another.

    With ``memory`` (bytes), the resident memory of the process is to stay below it: shards are read one at a time,
    their embeddings lie in files without a name in the folder ``scratch`` (or that of temporary files), and votes are
    cast by blocks of rows.
    """

    def __init__(self, sources: Sequence[Source], memory: int | None = None, scratch: Path | None = None):
        self.shards = [Shard(source, number, memory=memory, scratch=scratch) for number, source in enumerate(sources)]

    def each(self, ask: Callable[..., Any], *arguments: object) -> list[Any]:
        """See Shards."""
        return [ask(shard, *arguments) for shard in self.shards]

    def total(
        self,
        terms: Terms,
        query: Query,
        bins: int,
        charge: Charge,
        embedding: Embedding | None,
        progress: Progress,
    ) -> NDArray[np.int64]:
        """See Shards."""
        total = np.zeros(bins, dtype=np.int64)
        for number, shard in enumerate(self.shards):

            def told(done: int, of: int, number: int = number) -> None:
                progress(number * of + done, len(self.shards) * of)

            total += shard.total(terms, query, bins, charge, embedding, told)
        return total


def schema_of(shards: Shards) -> Schema:
    """What all shards have in common, which must be everything.

    Raises InputError naming two that differ.
    """
    found: list[Schema] = shards.each(Shard.schema)
    first, *others = found
    for other in others:
        for what in ("shape", "dtype", "labels", "units", "classes", "named"):
            one, two = getattr(first, what), getattr(other, what)
            if one != two:
                said = f"{first.name} has {one} and {other.name} has {two}"
                raise InputError(f"shards differ in the {what} of their rows: {said}; make them alike")
    return replace(first, caveats=tuple(dict.fromkeys(c for s in found for c in s.caveats)))


def fingerprints(shards: Shards, key: bytes) -> tuple[str, ...]:
    """Keyed fingerprint of each source, in order.

    Raises InputError where two parts of one source come from different files.
    """
    found: dict[int, str] = {}
    for number, digest in zip(shards.each(_number), shards.each(Shard.fingerprint, key), strict=True):
        if found.setdefault(number, digest) != digest:
            raise InputError("the workers see different files under one name; give them the same input")
    return tuple(found.values())


def combined(key: bytes, fingerprints: Sequence[str]) -> str:
    """One fingerprint of a data set: that of its only source, or of the list of all."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hmac.new(key, "\n".join(fingerprints).encode(), hashlib.sha256).hexdigest()


def _fingerprint(key: bytes, data: DataSet) -> str:
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for name, array in (("samples", data.samples), ("labels", data.labels), ("units", data.units)):
        if array is not None:
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def one_home(shards: Shards, key: bytes) -> None:
    """Raise InputError where a unit has rows in two sources: its votes could not be scaled jointly."""
    hashed = np.concatenate(shards.each(Shard.owners, key))
    if len(np.unique(hashed)) < len(hashed):
        raise InputError(_TWO_HOMES)


def _number(shard: Shard) -> int:
    return shard.number


def _kind(column: NDArray[Any]) -> str:
    return "strings" if column.dtype.kind in "US" else "integers"


def checked(data: DataSet) -> DataSet:
    """The rows as arrays that fit.

    Raises InputError for arrays that do not fit or values that are not finite.
    """
    array = data.samples
    if array.dtype.kind not in "buif":
        raise InputError("samples must be numbers")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    for name, column in (("labels", data.labels), ("units", data.units), ("names", data.names)):
        if column is not None and column.shape != array.shape[:1]:
            raise InputError(f"{name} must have one entry for each of the samples")
        if column is not None and column.dtype.kind not in "iuUS":
            raise InputError(f"{name} must be integers or strings")
    if data.names is not None and len(np.unique(data.names)) < len(data.names):
        raise InputError(_TWO_HOMES)
    if array.ndim < 2:
        raise InputError("samples must have one row each: shape (n, ...)")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("samples hold NaN or infinite values; remove those rows first")
    return replace(data, samples=array)


def embed(samples: Tensor, embedder: Embedder, device: torch.device) -> Tensor:
    """Embedding (n, d) of every row, as the door makes it."""
    blocks = list(embedded_blocks(samples, embedder, device))
    return torch.cat(blocks) if blocks else torch.empty((0, 0), device=device)


def embedded_blocks(samples: Tensor, embedder: Embedder, device: torch.device) -> Iterator[Tensor]:
    """Embeddings of rows, block by block.

    Rows go through in blocks of one fixed shape, the last one padded with zeros, because the rounding of a matrix
    product depends on the shape of its batch.
    """
    for start in range(0, len(samples), EMBED_BLOCK):
        block = samples[start : start + EMBED_BLOCK].to(device)
        short = EMBED_BLOCK - len(block)
        if short:
            block = torch.cat([block, block.new_zeros((short, *block.shape[1:]))])
        yield embedder(block)[: EMBED_BLOCK - short].float()


def add_up(
    chosen: NDArray[np.int64], rows: int, owner: NDArray[np.int64] | None, bins: int, charge: Charge
) -> NDArray[np.int64]:
    """Sum (bins,) of the vectors of all units, from the bins that each row names, (rows, j)."""
    if chosen.ndim != 2 or len(chosen) != rows or chosen.max(initial=-1) >= bins:
        raise ValueError("a query gives every row its bins, (n, j), each below the number of bins")
    if charge.one_bin:
        if chosen.shape[1] != 1:
            raise ValueError("a one-bin query names one bin a row")
        chosen = chosen[:, 0]
        return np.bincount(chosen[chosen >= 0], minlength=bins)
    return unit_vectors(np.arange(rows) if owner is None else owner, chosen, bins, charge.sensitivity)[2]


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


def cap(
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
