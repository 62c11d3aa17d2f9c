"""The server's door: to the engine one data set like any other, behind it clients that are asked for their votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from simpe.config import RunConfig
from simpe.errors import InputError
from simpe.federated import terms
from simpe.federated.masks import KEYS, SEALED, unmask
from simpe.federated.member import FederatedData, name_of, name_of_columns, name_of_question
from simpe.federated.wire import Message, Refused
from simpe.marginals import Counting
from simpe.privacy.accounting import Budget, Charge
from simpe.privacy.ledger import Ledger, Plan, Record
from simpe.privacy.mechanism import skellam_support, support
from simpe.private import TestNoise, Vote, class_of
from simpe.rows import Embedding, Query, Schema, Shard, Shards, Terms
from simpe.stages import Stage
from simpe.voting import Progress

TRUST = {
    "central": "The server is trusted: it sees the exact votes of each client, and adds the noise to their sum. What "
    "is covered is what others see of the release.",
    "distributed": "The server is trusted to follow the protocol, and with nothing else: it sees the sum of the "
    "clients' votes alone, which holds noise from each of them. A server that makes clients up, or gives them false "
    "keys of one another, sees single vectors with a share of the noise each, unless the clients hold a secret that it "
    "does not.",
    "local": "Nobody is trusted: each client adds all of the noise to its own votes before they leave it.",
}
_SECRET_SIZES = (
    "The size of a client's votes cannot be enforced where they are masked: one that breaks the protocol can move the "
    "result as far as it likes. That costs the others no privacy."
)
_SEVERAL = "Rows of one person at several clients are so many units; their losses add up."
_SEEN = "That a client takes part, or falls silent, and when, is seen by the server."
_TIMING = "How long a client takes to answer may tell of the number of its rows."


class Exchange(Protocol):
    """How the server reaches the clients. A name stays a client's as long as the exchange lasts."""

    def members(self, least: int) -> Sequence[str]:
        """Who is there, once there are ``least``, or when waiting is over."""
        ...

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """The answers of those who answered in time, each to its own message."""
        ...


class Clients(Shards):
    """Clients as shards: what they say of themselves, in place of what a shard is asked for here."""

    def __init__(self, exchange: Exchange, config: RunConfig, told: Callable[[str], None] = lambda line: None):
        assert config.federation is not None
        self.exchange, self.federation, self.told = exchange, config.federation, told
        self.agreement = terms.digest(config)
        found = exchange.members(self.federation.clients)
        self.names = list(found)[: self.federation.clients]
        if len(found) > self.federation.clients:
            raise InputError(f"{len(found)} clients are there, and {self.federation.clients} were agreed on")
        units = "integers" if self.federation.unit == "client" else None
        self._schemas = [_schema(answer, units) for answer in self.ask("hello").values()]

    def ask(
        self, kind: str, fields: Mapping[str, Any] | None = None, only: Sequence[str] | None = None,
        arrays: Callable[[str], Mapping[str, NDArray[Any]]] = lambda name: {},
    ) -> dict[str, Message]:  # fmt: skip
        """What the clients answer, by name; at least as many as a release needs.

        Raises InputError, in one line, where fewer do.
        """
        names = self.names if only is None else only
        own = {"agreement": self.agreement, **(fields or {})}
        answers, why = {}, []
        questions = {name: Message(kind, own, arrays(name)).pack() for name in names}
        for name, data in self.exchange.ask(questions).items():
            try:
                message = Message.unpack(data)
                if name not in questions or message.text("to") != name_of_question(questions[name]):
                    raise Refused("an answer came late, or to nothing")
                if message.kind == "refused":
                    raise Refused(message.text("why"))
                answers[name] = message
            except Refused as error:
                why.append(str(error))
        self.enough(len(answers), why)
        return answers

    def enough(self, n: int, why: Sequence[str]) -> None:
        """Raise InputError where n clients are fewer than a release needs."""
        for reason in dict.fromkeys(why):
            self.told(f"refused by {why.count(reason)}: {reason}")
        if n < self.federation.survivors:
            said = f" ({'; '.join(dict.fromkeys(why))})" if why else ""
            raise InputError(
                f"{n} clients answered and {self.federation.survivors} are needed{said}; nothing was released by this "
                "step: start those that are missing, then continue the run"
            )

    def each(self, ask: Callable[..., Any], *arguments: object) -> list[Any]:
        """See Shards; only what is public of a client, or follows from the agreement."""
        if ask is Shard.schema:
            return list(self._schemas)
        if ask is Shard.owners:  # a client is the unit, or a row
            return [np.empty(0, np.uint64)]
        # The rows are bound to each client's own ledger, and the server's to the agreement.
        return [0] if ask is not Shard.fingerprint else [self.agreement]

    def total(
        self, terms: Terms, query: Query, bins: int, charge: Charge, embedding: Embedding | None, progress: Progress
    ) -> NDArray[np.int64]:
        """Not here: what clients add up is the door's matter."""
        raise NotImplementedError


class FederatedDoor(FederatedData):
    """The rows of all clients: what they answer is summed here, and noised where the clients have not done so.

    **Guarantee.** As of :class:`simpe.PrivateData`, in the sense of ``trust``: see :data:`TRUST` and the certificate.
    """

    def __init__(
        self,
        clients: Clients,
        config: RunConfig,
        stages: Sequence[Stage],
        *,
        ledger: Ledger | str | None = None,
        noise: TestNoise | None = None,
    ):
        self._clients = clients
        federation = clients.federation
        if noise is not None and federation.trust != "central":
            raise ValueError("noise for tests is the server's: the clients draw their own")
        if config.adaptive:
            raise InputError("adaptive: clients commit to a plan, so steps cannot end early; leave it out")
        self._names = {id(stage.embedder): name_of(stage.embedder) for stage in stages}
        self._embedders = [stage.embedder for stage in stages]  # so that no other takes an id
        caveats = [TRUST[federation.trust], _SEVERAL, _SEEN, _TIMING]
        if federation.trust == "distributed":
            caveats.insert(1, _SECRET_SIZES)
        super().__init__(
            federation,
            clients,
            budget=Budget(config.epsilon, config.delta, config.relation),
            unit=federation.unit,
            k=federation.rows if federation.unit == "client" else 1,
            caveats=caveats,
            ledger=ledger,
            noise=noise,
        )
        self.spread = federation.spread
        self.parties = {
            **federation.model_dump(),
            "agreement": clients.agreement,
            "noise": {
                "central": "the server's",
                "distributed": f"counted of {federation.honest} clients: all less drop-outs less colluders",
                "local": "each client's, in full",
            }[federation.trust],
            "sampling": "none; no amplification is claimed",
        }

    def begin(self, run: str, description: Record, plan: Callable[[], Plan]) -> Plan:
        """See PrivateData; every client commits to the plan in its own ledger."""
        planned = super().begin(run, description, plan)
        parts = {address: [charge.noise_multiplier, charge.one_bin] for address, charge in planned.items()}
        self._clients.ask("begin", {"run": run, "classes": list(self.classes or ()), "plan": parts})
        return planned

    def _draw(self, charge: Charge, bins: int, address: str) -> tuple[NDArray[np.int64], str]:
        if self.federation.trust == "central":
            return super()._draw(charge, bins, address)
        return np.zeros(bins, np.int64), self.law

    def _sum(
        self,
        query: Query,
        bins: int,
        charge: Charge,
        embedding: Embedding | None,
        progress: Progress,
        address: str,
    ) -> NDArray[np.int64]:
        """The sum of what the clients answer; with their noise, where they add it."""
        release = {"run": self.run, "address": address, "z": charge.noise_multiplier}
        fields, arrays = self._asked(query, embedding)
        if self.federation.trust == "distributed":
            return self._masked_sum(release, {**release, **fields}, arrays, bins, charge)
        most = self.federation.most(charge)
        least = 0
        if self.federation.trust == "local":
            reach = support(charge.sigma, charge.sensitivity)
            most, least = most + reach, -reach
        votes, why = [], []
        for message in self._clients.ask("vote", {**release, **fields}, arrays=lambda name: arrays).values():
            try:
                votes.append(_votes(message, bins, least, most))
            except Refused as error:
                why.append(str(error))
            progress(len(votes), self.federation.clients)
        self._clients.enough(len(votes), why)
        total: NDArray[np.int64] = np.sum(votes, axis=0, dtype=np.int64)
        return total

    def _masked_sum(
        self,
        release: Mapping[str, Any],
        asked: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        bins: int,
        charge: Charge,
    ) -> NDArray[np.int64]:
        """The sum that secure aggregation shows: keys, sealed shares, masked votes, and the shares that unmask them."""
        clients, least = self._clients, self.federation.survivors
        try:
            keys = {n: m.array("keys", "u1", KEYS).tobytes() for n, m in clients.ask("keys", release).items()}
            names = {key: name for name, key in keys.items()}
            if len(names) < len(keys):
                raise Refused("two clients have one key")
            listed = _rows([*names], KEYS)
            sealed: dict[str, dict[str, bytes]] = {}
            for name, message in clients.ask("seal", release, [*keys], lambda name: {"keys": listed}).items():
                to, content = message.array("to", "u1", None, KEYS), message.array("sealed", "u1", None, SEALED)
                sealed[name] = {names[t.tobytes()]: s.tobytes() for t, s in zip(to, content, strict=True)}
            whole = [name for name in sealed if set(sealed[name]) == set(keys) - {name}]
            clients.enough(len(whole), [])

            def forwarded(name: str) -> dict[str, NDArray[Any]]:
                others = [other for other in whole if other != name]
                return {
                    **arrays,
                    "from": _rows([keys[other] for other in others], KEYS),
                    "sealed": _rows([sealed[other][name] for other in others], SEALED),
                }

            kind = f"u{self.federation.bits(charge) // 8}"
            votes, why = {}, []
            for name, message in clients.ask("vote", asked, whole, forwarded).items():
                try:
                    votes[keys[name]] = message.array("votes", kind, bins)
                except Refused as error:
                    why.append(str(error))
            clients.enough(len(votes), why)
            stayed = _rows([*votes], KEYS)
            revealed: dict[bytes, dict[bytes, int]] = {}
            answers = clients.ask("unmask", release, [names[key] for key in votes], lambda name: {"keys": stayed})
            for name, message in answers.items():
                of, shares = message.array("of", "u1", None, KEYS), message.array("shares", "u1", None, SEALED // 2 - 8)
                revealed[keys[name]] = {
                    o.tobytes(): int.from_bytes(s.tobytes(), "big") for o, s in zip(of, shares, strict=True)
                }
            about = f"{clients.agreement} {release['run']} {release['address']}"
            total = unmask(about, votes, [*names], [keys[name] for name in whole], revealed, least)
        except (Refused, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the release could not be unmasked ({error}); nothing was released by this step"
            ) from None
        bound = self.federation.clients * (
            self.federation.most(charge) + skellam_support(self.federation.share(charge))
        )
        if np.abs(total).max(initial=0) > bound:
            raise InputError("the votes are more than all clients can have cast: one of them breaks the protocol")
        return total

    def _asked(self, query: Query, embedding: Embedding | None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """A query in words and numbers."""
        if query is class_of:
            return {"query": "classes"}, {}
        if embedding is None or not isinstance(query, Vote | Counting):
            raise InputError("a federation is asked for class counts, votes and marginals alone")
        embedder = self._names[id(embedding.embedder)]
        if isinstance(query, Counting):
            asked = {"query": "marginals", "embedder": embedder, "columns": name_of_columns(query.asked)}
            return asked, {"places": query.places.float().cpu().numpy()}
        fields = {
            "query": "votes",
            "embedder": embedder,
            "neighbours": query.neighbours,
            "metric": query.metric,
            "shared": query.shared,
        }
        candidates = query.candidates().float().cpu().numpy()
        return fields, {"candidates": candidates, "labels": query.labels.cpu().numpy().astype(np.int32)}


def _votes(message: Message, bins: int, least: int, most: int) -> NDArray[np.int64]:
    """A client's visible votes, each within what a client can have. Raises Refused."""
    found = message.arrays.get("votes")
    kind = "i8" if found is not None and found.dtype.itemsize == 8 else "i4"
    votes = message.array("votes", kind, bins).astype(np.int64)
    if votes.min(initial=0) < least or votes.max(initial=0) > most:
        raise Refused("votes are out of bounds")
    return votes


def _schema(message: Message, units: str | None) -> Schema:
    """What a client says of its rows."""
    fields = message.fields
    try:
        shape, dtype = tuple(int(n) for n in fields["shape"]), getattr(torch, fields["dtype"])
        labels, classes = fields["labels"], fields["classes"]
        if not isinstance(dtype, torch.dtype) or labels not in (None, "strings", "integers"):
            raise TypeError
        return Schema(
            "one client", shape, dtype, labels, units, None if classes is None else tuple(map(str, classes)),
            tuple(str(line)[:500] for line in fields["caveats"][:20]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("a client says what cannot be of its rows; give all the same version") from None


def _rows(parts: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, width)
