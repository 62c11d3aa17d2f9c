"""A client: its rows, its ledger, and its answers to the server, which are all that leaves it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simpe import marginals, runs
from simpe.config import RunConfig
from simpe.data import DataSet, concatenate
from simpe.errors import InputError
from simpe.federated import terms
from simpe.federated.masks import KEYS, SEALED, Party
from simpe.federated.terms import Federation
from simpe.federated.wire import Message, Refused
from simpe.fingerprint import describe
from simpe.privacy.accounting import Budget, Charge, charge_of, delta_of
from simpe.privacy.ledger import BudgetExceeded
from simpe.privacy.mechanism import FINEST, skellam
from simpe.private import PrivateData, Vote, class_of
from simpe.protocols import Embedder
from simpe.rows import Here, Query, Shards, Source, embed, schema_of

MOST_BINS = 2**24
MOST_RELEASES = 10_000  # in a run's plan
_KEPT = {"central": "exact, for the server", "distributed": "a share of skellam"}  # in a client's ledger


class FederatedData(PrivateData):
    """A door in a federation, the server's or a client's: both charge a release the same."""

    def __init__(self, federation: Federation, samples: Shards, **options: Any):
        self.federation = federation
        if federation.trust == "distributed":
            self.law = "skellam"
        super().__init__(samples, **options)

    def charge(self, noise_multiplier: float, one_bin: bool = True) -> Charge:
        """See PrivateData. Skellam noise is drawn for vectors of many bins, so that S makes it fine."""
        if self.law == "skellam" and noise_multiplier >= FINEST:
            return charge_of(noise_multiplier, False, self.law)
        return super().charge(noise_multiplier, one_bin)


class _Own(FederatedData):
    """A client's door."""

    def _draw(self, charge: Charge, bins: int, address: str) -> tuple[NDArray[np.int64], str]:
        if self.federation.trust == "central":
            return np.zeros(bins, np.int64), _KEPT["central"]
        if self.federation.trust == "distributed":
            return skellam(self.federation.share(charge), bins), _KEPT["distributed"]
        return super()._draw(charge, bins, address)


@dataclass(frozen=True, repr=False)
class _Rows:
    """All inputs of a client as one, with the units of the federation."""

    inputs: Sequence[Source]
    federation: Federation

    @property
    def name(self) -> str:
        """For messages to the operator."""
        return ", ".join(source.name for source in self.inputs)

    def read(self) -> DataSet:
        """The rows. Raises InputError where there are none, or more than agreed."""
        rows = concatenate([source.read() for source in self.inputs])
        if len(rows.samples) == 0:
            raise InputError(f"{self.name}: holds no rows; a client without rows cannot take part")
        if self.federation.unit == "client":
            return replace(rows, units=np.zeros(len(rows.samples), np.int64), names=None)
        if rows.units is not None:
            raise InputError(f"{self.name}: rows with units of their own cannot take part where a row is the unit")
        if len(rows.samples) > self.federation.rows:
            raise InputError(f"{self.name}: holds more than the {self.federation.rows} rows agreed on; give fewer")
        return rows


class Member:
    """A client of a federation, with rows that never leave it.

    ``config`` is what all have agreed on, ``inputs`` are its own rows. ``budget`` is what this client may spend on
    them, all runs together (default: that of the agreement), and ``ledger`` the file that remembers it. ``secret`` is
    what all clients share and the server does not (see :mod:`simpe.federated.masks`).

    **Guarantee.** Whatever the server asks, what :meth:`answer` returns is within the budget, by the client's own
    ledger, which charges before it answers: in the model ``local`` against everybody; in ``distributed`` against
    whoever sees sums over ``survivors`` clients alone, ``honest`` of which added their noise; in ``central`` against
    whoever sees what the server releases, if it adds the noise that it announced.

    Raises InputError for a configuration without a federation, no rows, too many, or a ledger of other data.
    """

    def __init__(
        self,
        config: RunConfig,
        inputs: Sequence[Source],
        *,
        budget: Budget | None = None,
        ledger: Path | None = None,
        secret: bytes = b"",
        told: Callable[[str], None] = lambda line: None,
    ):
        if config.federation is None:
            raise InputError("the configuration has no table [federation]; it is that of a run of one's own")
        self.federation = config.federation
        shards = Here([_Rows(inputs, self.federation)])
        self.schema = schema_of(shards)
        self.digest = terms.digest(config)
        stages = runs.stages_of(config, self.schema)
        self.embedders = {name_of(stage.embedder): stage.embedder for stage in stages}
        blank = torch.zeros((1, *self.schema.shape), dtype=self.schema.dtype)
        self._widths = {name: embed(blank, e, torch.device("cpu")).shape[1] for name, e in self.embedders.items()}
        whole = self.federation.unit == "client"
        first = stages[0]
        self._marginals = marginals.of(first.simulator) if first.strategy.marginals else None
        self._door = _Own(
            self.federation,
            shards,
            budget=budget or Budget(config.epsilon, config.delta, config.relation),
            unit=self.federation.unit,
            k=self.federation.rows if whole else 1,
            ledger=None if ledger is None else str(ledger),
        )
        self._secret, self._told, self._classes = secret, told, config.classes
        self._party: tuple[str, Party] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "Member(<private>)"

    def answer(self, data: bytes) -> bytes:
        """The answer to a message of the server's; a refusal is one, and says nothing of the rows."""
        with self._lock:
            try:
                message = Message.unpack(data)
                if message.kind not in _ANSWERS:
                    raise Refused("there is no such question")
                if message.text("agreement") != self.digest:
                    raise Refused("the agreement is another one; give all the same configuration and version")
                found = _ANSWERS[message.kind](self, message)
                return Message(found.kind, {**found.fields, "to": name_of_question(data)}, found.arrays).pack()
            except Refused as error:
                why = str(error)
            except BudgetExceeded as error:
                why = "its ledger admits no more"
                self._told(str(error))
            except InputError as error:
                why = "it cannot answer that"
                self._told(str(error))
            except Exception as error:
                # Whatever it is, it may have to do with the rows: the operator is told its kind, and the server
                # nothing.
                why = "it cannot answer that"
                self._told(f"{type(error).__name__} while answering")
            self._told(f"refused: {why}")
            return Message("refused", {"why": why, "to": name_of_question(data)}).pack()

    # --- the answers

    def _hello(self, message: Message) -> Message:
        schema = self.schema
        return Message(
            "hello",
            {
                "shape": list(schema.shape),
                "dtype": str(schema.dtype).removeprefix("torch."),
                "labels": schema.labels,
                "classes": None if schema.classes is None else list(schema.classes),
                "caveats": list(schema.caveats),
            },
        )

    def _begin(self, message: Message) -> Message:
        """Commit to the plan of a run, once; nothing of it is ever given back."""
        run = _run(message)
        classes, planned = message.fields.get("classes"), message.fields.get("plan")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise Refused("a message lacks classes or plan")
        if not isinstance(planned, dict) or not 0 < len(planned) <= MOST_RELEASES:
            raise Refused("a message lacks classes or plan")
        door = self._door
        if self._classes is not None and door.has_labels and classes != list(self._classes):
            raise Refused("other classes were agreed on")
        door.declare(classes)
        if door.classes != tuple(classes):
            raise Refused("other classes were declared before")
        charges = {}
        for address, parts in planned.items():
            if not isinstance(parts, list) or len(parts) != 2 or not isinstance(parts[1], bool):
                raise Refused("a message lacks classes or plan")
            part = Message("", {"z": parts[0]})
            charges[str(address)[:100]] = door.charge(part.number("z", FINEST, 1e6), parts[1])
        ledger, budget = door.ledger, door.budget
        with ledger.locked():
            if ledger.begun(run) is None:
                before = ledger.committed()
                together = delta_of([*before, *charges.values()], budget.epsilon, budget.relation, bool(before))
                if together > budget.delta:
                    raise BudgetExceeded("a run was refused: with its plan the rows would be past this client's budget")
        own = {"epsilon": budget.epsilon, "delta": budget.delta}
        kept = door.begin(run, {"budget": own, "config": self.digest}, lambda: charges)
        if kept != charges:
            raise Refused("the run was begun with another plan")
        return Message("begun")

    def _keys(self, message: Message) -> Message:
        about = self._about(message)
        federation = self.federation
        party = Party(about, federation.survivors, federation.clients, self._secret)
        self._party = (about, party)
        return Message("keys", arrays={"keys": np.frombuffer(party.keys, np.uint8)})

    def _seal(self, message: Message) -> Message:
        everybody = message.array("keys", "u1", None, KEYS)
        sealed = self._round(message).seal([row.tobytes() for row in everybody])
        return Message(
            "sealed", arrays={"to": _rows(list(sealed), KEYS), "sealed": _rows(list(sealed.values()), SEALED)}
        )

    def _vote(self, message: Message) -> Message:
        """Votes or class counts. Everything is checked before the charge, and charged before a row is read."""
        run, door = _run(message), self._door
        address, z = message.text("address", 100), message.number("z", FINEST, 1e6)
        if door.ledger.begun(run) is None:
            raise Refused("there is no such run; begin it first")
        query, bins, one_bin, embedder, device = self._query(message)
        charge = door.charge(z, one_bin)
        door.run = run
        asked = hashlib.sha256(message.pack()).hexdigest()
        if self.federation.trust != "distributed":
            counts = door.noisy_sum(
                query, bins, z, address=address, digest=asked, one_bin=one_bin, embedder=embedder, device=device
            )
            bits = 32 if np.abs(counts).max(initial=0) < 2**31 else 64
            return Message("votes", arrays={"votes": counts.astype(np.int32 if bits == 32 else np.int64)})
        party = self._round(message)
        whose, sealed = message.array("from", "u1", None, KEYS), message.array("sealed", "u1", None, SEALED)
        if len(whose) != len(sealed):
            raise Refused("a message lacks shares")
        party.open({one.tobytes(): other.tobytes() for one, other in zip(whose, sealed, strict=True)})
        if door.ledger.find(run, address) is not None:
            # Under other masks, or with fewer clients, the same noise would hide less.
            raise Refused("this was answered before; it is answered once")
        counts = door.noisy_sum(
            query, bins, z, address=address, digest=asked, one_bin=one_bin, embedder=embedder, device=device
        )
        return Message("votes", arrays={"votes": party.mask(counts, self.federation.bits(charge))})

    def _unmask(self, message: Message) -> Message:
        stayed = message.array("keys", "u1", None, KEYS)
        found = self._round(message).reveal([row.tobytes() for row in stayed])
        self._party = None
        shares = [share.to_bytes(SEALED // 2 - 8, "big") for share in found.values()]
        return Message("shares", arrays={"of": _rows(list(found), KEYS), "shares": _rows(shares, SEALED // 2 - 8)})

    # --- parts of them

    def _query(self, message: Message) -> tuple[Query, int, bool, Embedder | None, torch.device]:
        door, cpu = self._door, torch.device("cpu")
        if door.classes is None:
            raise Refused("there is no such run; begin it first")
        if message.text("query") == "classes":
            return class_of, len(door.classes), True, None, cpu
        if message.text("query") not in ("votes", "marginals"):
            raise Refused("there is no such query")
        embedder = self.embedders.get(message.text("embedder"))
        if embedder is None:
            raise Refused("the embedder is another one, or of another version")
        if message.text("query") == "marginals":
            return *self._cells(message), False, embedder, cpu
        labels = message.array("labels", "i4", None)
        width = self._widths[message.text("embedder")]
        candidates = torch.from_numpy(message.array("candidates", "f4", len(labels), width))
        shared = message.fields.get("shared")
        if not 0 < len(labels) <= MOST_BINS or not isinstance(shared, bool):
            raise Refused("there are no candidates, or too many")
        if labels.min() < 0 or labels.max() >= len(door.classes):
            raise Refused("a candidate is of no class")
        neighbours = int(message.number("neighbours", 1, len(labels)))
        if message.text("metric") not in ("l2", "cosine"):
            raise Refused("there is no such metric")
        of = torch.from_numpy(labels.astype(np.int64))
        vote = Vote(lambda: candidates, of, neighbours, message.text("metric"), shared)  # type: ignore[arg-type]
        return vote, len(labels), neighbours == 1, embedder, cpu

    def _cells(self, message: Message) -> tuple[Query, int]:
        """Marginals by this client's own code, which the server can only ask for as a whole."""
        if self._marginals is None:
            raise Refused("no marginals were agreed on")
        places = torch.from_numpy(message.array("places", "f4", None, self._widths[message.text("embedder")]))
        asked = marginals.query(self._marginals, len(places), len(self._door.classes or ()))
        if message.text("columns") != name_of_columns(asked) or not len(places) or asked.bins > MOST_BINS:
            raise Refused("the marginals are others, or there are too many")
        return marginals.Counting(self._marginals, asked, places), asked.bins

    def _about(self, message: Message) -> str:
        if self.federation.trust != "distributed":
            raise Refused("nothing is masked in this federation")
        return f"{self.digest} {_run(message)} {message.text('address', 100)}"

    def _round(self, message: Message) -> Party:
        if self._party is None or self._party[0] != self._about(message):
            raise Refused("this release has no keys, or is over")
        return self._party[1]


class Room:
    """Members in this process: an exchange (see :mod:`simpe.federated.door`) that needs no network."""

    def __init__(self, members: Sequence[Member]):
        self._members = {str(number): member for number, member in enumerate(members)}

    def members(self, least: int) -> Sequence[str]:
        """All of them."""
        return list(self._members)

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """What each answers."""
        return {name: self._members[name].answer(message) for name, message in messages.items()}


_ANSWERS: dict[str, Callable[[Member, Message], Message]] = {
    "hello": Member._hello,
    "begin": Member._begin,
    "keys": Member._keys,
    "seal": Member._seal,
    "vote": Member._vote,
    "unmask": Member._unmask,
}


def name_of_question(data: bytes) -> str:
    """Ties an answer to its question, so that one that comes late answers no other."""
    return hashlib.sha256(data).hexdigest()


def name_of(embedder: Embedder) -> str:
    """Tells embedders apart: their description, settings and source among it, hashed."""
    return hashlib.sha256(json.dumps(describe(embedder), sort_keys=True).encode()).hexdigest()


def name_of_columns(asked: marginals.Query) -> str:
    """Tells marginals apart: columns, cells and sets, hashed."""
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _run(message: Message) -> str:
    run = message.text("run", 64)
    if not re.fullmatch(r"[0-9a-f]{8,64}", run):
        raise Refused("a message lacks run")
    return run


def _rows(parts: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, width)
