"""The simulator of sessions: all that a host does, as one row, so that what holds of hosts survives.

A session is up to GROUPS groups of flows. A group is a flow (the parameters of :class:`Traffic`) that is repeated: so
often, to so many servers, at regular times or in bursts, behind a DNS query or not. Which flow comes when is a closed
formula of the session's parameters; where flows differ in detail, a hash of the parameter ``seed`` says how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpe.data import DataSet
from simpe.embedders.flows import ROW, FlowEmbedding
from simpe.embedders.sessions import MOST_FLOWS, SESSION, SessionEmbedding
from simpe.errors import InputError
from simpe.marginals import Marginals
from simpe.scheduling import Strategy
from simpe.simulators.network import inputs
from simpe.simulators.network.addresses import BENCHMARK, DOCUMENTATION, GROUPS, hosts, packed, plus
from simpe.simulators.network.payloads import ramps, scrambled
from simpe.simulators.network.profiles import MOST_BYTES, MOST_PACKETS, NAMES, ROLES, TCP, UDP
from simpe.simulators.network.schema import COLUMNS, Flows
from simpe.simulators.network.simulator import Traffic
from simpe.simulators.network.traces import WIDE, Traces
from simpe.space import Categorical, Continuous, Integer, ParameterSpace, Params

SLOTS = 6
"""Groups of flows of a session, at most."""

_OF_A_SESSION = ("client", "client_role", "client_stack", "ip_version", "start")  # of Traffic's parameters
_OF_A_GROUP = {
    "weight": Continuous(0.01, 1, log=True),  # its flows, as a share of all weights
    "servers": Continuous(1, MOST_FLOWS, log=True),  # that its flows go round
    "begin": Continuous(0, 1),  # when it begins or ends, as a share of the session
    "end": Continuous(0, 1),
    "burst": Continuous(1, 64, log=True),  # flows that come together
    "within": Continuous(1e-4, 10, log=True),  # s between them
    "jitter": Continuous(0, 2),  # how far bursts move, in their period; 0 is a beacon
    "variety": Continuous(0.01, 30, log=True),  # how unlike flows are in amounts: factors between 1 / (1 + v) and 1 + v
    "dns": Continuous(0, 1),  # share of flows with a DNS query before them
}
_EVERYDAY = ("http", "tls", "dns", "quic", "ntp", "dhcp", "mdns", "ssdp", "netbios", "icmp", "igmp", "tcp", "udp")
_OFTEN = 0.6  # share of Random's groups that are drawn from these
_DNS, _DNS_PORT = NAMES.index("dns"), 53
_INTERNAL, _EXTERNAL, _MULTICAST, _BROADCAST = range(len(ROLES))
_SAME_GROUP = np.unique(GROUPS.reshape(-1, 16), axis=0, return_inverse=True)[1].reshape(-1, 2)  # by profile, version
_PORTS = range(55_000, 65_536)
_PARTS = SLOTS + 2  # of the servers' addresses: one a group, one for resolvers, and a rest
_OUTSIDE = 2**16 // _PARTS  # addresses of external servers in each part
_WITHIN = 0.95  # of the window that a session fills at most: the rest is for flows to end in
_KINDS = 64  # sets of servers of a kind
_SILENCE = 1.2  # idle timeouts between flows that only silence tells apart
_LATEST = 2.0**40  # seconds since 1970: no time, but a broken table
_CHUNK = 512  # sessions laid out at a time
_AMOUNT, _SIZE, _LASTING, _MOMENT, _PEER = range(5)  # what the hash is asked for

Integers = NDArray[np.int64]
_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sessions(Traces):
    """Whole sessions, one a row: what a client address opens, in all or within a window of time.

    A private row is a session as :func:`gather` gives it, float64 (k, len(SESSION)): the number of its flows, of its
    servers and its span, and ``k`` of its flows, spread evenly over their order. So every unit is one row with one
    vote. A row depends on the flows of its own unit and on what is declared; gaps within it are its own and need no
    declared window. A label of a session is that of most of its flows (of equals, the first by name).

    A synthetic session is a client with an address of its own; sessions share servers. Everything else is as of
    :class:`Traces`.

    Raises ValueError as Traces does, and for ``k`` below 1.
    """

    k: int = 32
    _prior: ClassVar[int] = 256
    _untimed: ClassVar[str] = "when a session starts is uniform and tells nothing of the input; gaps in it are its own."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    @property
    def embedder(self) -> SessionEmbedding:
        """The embedder of sessions; it leaves the time of arrival out where no window is declared."""
        return SessionEmbedding(FlowEmbedding() if self.timed else FlowEmbedding(time=0))

    @property
    def strategy(self) -> Strategy:
        """Fewer places than by default, and only what stands well clear of the noise: a host in vain is many flows."""
        return Strategy(clear=6, threshold=2, children=10, strength=0.4, decay=0.7, release_strength=0.1)

    @property
    def marginals(self) -> Marginals:
        """None of its own: few hosts have little to share out."""
        return Marginals()

    @cached_property
    def traffic(self) -> Traffic:
        """The simulator of a single flow."""
        return Traffic(self.start, self.length, self.internal, self.internal_v6, self.idle, self.active)

    @cached_property
    def space(self) -> ParameterSpace:
        """Parameters of a session, and of its group number g under ``name_g``."""
        flow = self.traffic.space
        of_groups = {name: parameter for name, parameter in flow.items() if name not in _OF_A_SESSION} | _OF_A_GROUP
        parameters: dict[str, Any] = {f"{name}_{g}": x for g in range(SLOTS) for name, x in of_groups.items()}
        return ParameterSpace(
            flows=Continuous(1, MOST_FLOWS, log=True),  # without DNS queries before others
            groups=Integer(1, SLOTS),
            span=Continuous(1e-5, 1, log=True),  # share of the window
            start=Continuous(0, 1),  # of what the span leaves of the window
            seed=Integer(0, 2**20 - 1),
            client_role=Categorical(ROLES[:2]),
            client_stack=flow["client_stack"],
            ip_version=flow["ip_version"],
            resolver=Categorical(ROLES[:2]),  # where DNS queries before others go
            resolver_rtt=Continuous(1e-4, 1, log=True),
            **parameters,
        )

    def random(self, n: int, generator: torch.Generator) -> Params:
        """Random: any number of groups of Traffic's Random, most of them everyday ones, regular or in bursts."""
        p = self.space.sample(n, generator)

        def chance(probability: float) -> Tensor:
            return torch.rand(n, generator=generator) < probability

        groups = self._some_groups(n * SLOTS, generator)
        p |= {f"{name}_{g}": value for g in range(SLOTS) for name, value in _at(groups, g, n).items()}
        p["groups"] = torch.where(chance(0.3), 1, p["groups"])
        p["client_role"] = torch.where(chance(0.9), _INTERNAL, p["client_role"])
        p["ip_version"] = torch.where(chance(0.8), 0, p["ip_version"])
        for g in range(SLOTS):  # an external client talks to internal servers
            p[f"server_role_{g}"] = torch.where(p["client_role"] == _EXTERNAL, _INTERNAL, p[f"server_role_{g}"])
        return p

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation: numbers move by ``strength`` or a quarter of it, but in each row only a share of them, any share;
        with probability min(1, strength)^2 each, a category is drawn anew, a group is drawn anew, one is copied to
        another place or changes places, and one comes from another session.

        In so many dimensions a move of all would always lead away. The seed is drawn anew, and without a declared
        window the start.
        """
        n, device, often = len(p["seed"]), p["seed"].device, min(1.0, strength) ** 2
        old = {name: value.cpu() for name, value in p.items()}
        fresh = self.random(n, generator)

        def some(probability: float | Tensor) -> Tensor:
            return torch.rand(n, generator=generator) < probability

        moved, near = self.space.perturb(old, strength, generator), self.space.perturb(old, strength / 4, generator)
        flows = self.traffic.variation(self._as_flows(old), strength, generator)
        share, short = torch.rand(n, generator=generator) ** 2, some(0.5)
        for name, parameter in self.space.items():
            if not isinstance(parameter, Categorical):
                step = torch.where(short, near[name], moved[name])
                moved[name] = torch.where(some(share), step, old[name])
            elif name in _OF_A_SESSION:
                moved[name] = torch.where(some(often), fresh[name], old[name])
            elif name[-1].isdigit():  # a new profile brings its port
                of_flow, _, g = name.rpartition("_")
                moved[name] = flows[of_flow].reshape(n, SLOTS)[:, int(g)].clone()
        if strength > 0:
            moved["seed"] = fresh["seed"]
            moved["start"] = moved["start"] if self.timed else fresh["start"]

        names = [name.removesuffix("_0") for name in self.space if name.endswith("_0")]
        groups = {name: torch.stack([moved[f"{name}_{g}"] for g in range(SLOTS)], dim=1) for name in names}
        row = torch.arange(n)
        here, there = (
            (torch.rand(n, generator=generator) * moved["groups"]).long().clamp(max=SLOTS - 1) for _ in range(2)
        )
        redrawn, copied, swapped, mated = (some(often) for _ in range(4))
        mate = torch.randint(n, (n,), generator=generator)
        for name, value in groups.items():
            new = torch.stack([fresh[f"{name}_{g}"] for g in range(SLOTS)], dim=1)
            other = value[mate, there]  # as it was before any move
            value[row, here] = torch.where(redrawn, new[row, here], value[row, here])
            a, b = value[row, here], value[row, there]
            value[row, there] = torch.where(copied | swapped, a, b)
            value[row, here] = torch.where(swapped & ~copied, b, a)
            value[row, here] = torch.where(mated, other, value[row, here])
        moved |= {f"{name}_{g}": value[:, g].clone() for name, value in groups.items() for g in range(SLOTS)}
        return {name: moved[name].to(device) for name in self.space}

    def render(self, p: Params) -> Tensor:
        """Sessions float64 (n, k, len(SESSION)) of parameters, on their device; row by row, bit for bit."""
        n = len(p["seed"])
        out = np.zeros((n, self.k, len(SESSION)))
        for part, numbers in self._chunks(p):
            events = self._events(numbers)
            session = events["session"]
            told = _told(session, events["time"] / 1e6, events["server"], events["port"])
            kept, place = _spread(session, len(numbers["seed"]), self.k)
            plan = self._plan(numbers, {name: value[kept] for name, value in events.items()})
            columns = plan | {name: value[kept] for name, value in told.items()}
            rows = np.stack([columns[name].astype(np.float64) for name in SESSION], axis=1)
            rows[:, ROW.index("client")] = 0
            out[part][session[kept], place] = rows
        return torch.from_numpy(out).to(p["seed"].device)

    def flows(self, p: Params) -> Flows:
        """The flow table of all flows of the sessions (n,), as of Traffic, and ``session``, 0..n - 1.

        Each session is a client of its own. Where the declared internal prefixes have too few addresses, wider ones
        give them.
        """
        parts = []
        for part, numbers in self._chunks(p):
            events = self._events(numbers)
            plan = self._plan(numbers, events)
            plan["start"] = self.start + events["time"] / 1e6
            plan["session"] = part.start + events["session"]
            plan |= {name: events[name] for name in ("server", "offset", "number")}
            parts.append(plan)
        plan = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        networks = [ip_network(self.internal), ip_network(self.internal_v6)]
        try:
            plan |= _addresses(plan, *networks)
        except ValueError:
            plan |= _addresses(plan, *(ip_network(prefix) for prefix in WIDE.values()))
        return {name: value.astype(np.dtype(COLUMNS.get(name, value.dtype)).base) for name, value in plan.items()}

    def table(self, p: Params, more: Flows | None = None) -> Flows:
        """As of :class:`Traces`; what is more is of the sessions."""
        flows = self.flows(p)
        flows |= {name: column[flows["session"]] for name, column in (more or {}).items()}
        order = np.argsort(flows["start"], kind="stable")
        return {name: column[order] for name, column in flows.items()}

    def public_inputs(self) -> dict[str, Any]:
        """What :class:`Traces` declares, and how many flows of a session are looked at."""
        return super().public_inputs() | {"simulator": "sessions", "flows_of_a_session_looked_at": self.k}

    def read(self, private: tuple[str, ...], unit: str | None, progress: Callable[[str, int, int], None]) -> DataSet:
        """Sessions float64 (n, k, len(SESSION)) of captures and flow tables, one a unit, with their labels.

        ``unit``: src, window, window:SECONDS, or a column of a flow table. Flows that Traces leaves out are left out
        here, each for itself, and those with a start that is no time; a unit without flows is none.

        Raises InputError as Traces does, and for the units flow and pair.
        """
        if unit in (None, "flow", "pair"):
            raise InputError("sessions are of a host: --unit src, window or a column that names hosts")
        flows, rows, owners, caveats = self.usable(private, unit, progress)
        assert owners is not None
        start = flows["start"].astype(np.float64)
        dated = np.flatnonzero(np.abs(start) < _LATEST)
        names, owner = np.unique(owners[dated], return_inverse=True)
        server = np.unique(flows["server"][dated], axis=0, return_inverse=True)[1].ravel()
        samples = gather(rows[dated], owner, start[dated], server, self.k)
        labels = None
        if self.labels is not None:
            labels = _most_frequent(owner, flows[inputs.KEPT + self.labels][dated].astype(np.str_))
        seen = f"A unit is one session: how many flows and servers it has and how long it lasts, and {self.k} of its "
        seen += "flows at most, with the gaps before them."
        return DataSet(samples, labels, None, None, (inputs.caveat(unit), seen, *caveats), names)

    # --- groups, events and flows

    def _some_groups(self, n: int, generator: torch.Generator) -> Params:
        """Parameters of n groups, as Random draws them."""
        several = 4
        drawn = self.traffic.random(several * n, generator)
        everyday = torch.isin(drawn["profile"].reshape(n, several), torch.tensor([NAMES.index(x) for x in _EVERYDAY]))
        wanted = torch.rand(n, generator=generator) < _OFTEN
        index = torch.arange(n) * several + (everyday & wanted[:, None]).long().argmax(dim=1)
        groups = {name: value[index] for name, value in drawn.items() if name not in _OF_A_SESSION}
        groups |= {name: parameter.sample(n, generator) for name, parameter in _OF_A_GROUP.items()}

        def often(probability: float, usual: Tensor | float, name: str) -> None:
            chance = torch.rand(n, generator=generator) < probability
            groups[name] = torch.where(chance, usual, groups[name])

        few = Continuous(1, 4, log=True).sample(n, generator)
        often(0.7, few, "servers")
        often(0.5, 1.0, "burst")
        often(0.5, 0.0, "dns")
        often(0.5, groups["begin"] / 20, "begin")
        often(0.5, 1 - groups["end"] / 20, "end")
        return groups

    def _as_flows(self, p: Params) -> Params:
        """Traffic's parameters of the groups (n * SLOTS), session after session."""
        n = len(p["seed"])
        flows: Params = {}
        for name in self.traffic.space:
            if name == "client":
                flows[name] = torch.zeros(n * SLOTS, dtype=torch.int64)
            elif name in _OF_A_SESSION:
                flows[name] = p[name].repeat_interleave(SLOTS)
            else:
                flows[name] = torch.stack([p[f"{name}_{g}"] for g in range(SLOTS)], dim=1).reshape(-1)
        return flows

    def _chunks(self, p: Params) -> list[tuple[slice, _Arrays]]:
        """The sessions in parts: which, and their settled parameters (m,), of groups (m, SLOTS)."""
        p = {name: value.cpu() for name, value in p.items() if name != "label"}
        n = len(p["seed"])
        parts = [slice(at, min(at + _CHUNK, n)) for at in range(0, n, _CHUNK)]
        return [(part, self._settled({name: value[part] for name, value in p.items()})) for part in parts]

    @torch.no_grad()
    def _settled(self, p: Params) -> _Arrays:
        """What the parameters come to: who talks to whom over what, and how often, in each group."""
        n = len(p["seed"])
        flows = self._as_flows(p)
        flows |= {
            "ip_version": torch.ones_like(flows["ip_version"]),
            "client_role": torch.full_like(flows["client_role"], _EXTERNAL),
        }
        plan = {name: value.numpy().reshape(n, SLOTS) for name, value in self.traffic.plan(flows).items()}
        x: _Arrays = {name: value.numpy() for name, value in p.items() if not name[-1].isdigit()}
        x |= {name: value.numpy().reshape(n, SLOTS) for name, value in flows.items() if name not in _OF_A_SESSION}
        x |= {
            name: np.stack([p[f"{name}_{g}"].numpy() for g in range(SLOTS)], axis=1).astype(np.float64)
            for name in _OF_A_GROUP
        }
        x |= {name: plan[name] for name in ("profile", "protocol", "server_port", "server_role")}
        role, used = plan["server_role"], np.arange(SLOTS) < x["groups"][:, None]
        # A client has one address, so all its groups are of one version of IP and one side of the network.
        x["six"] = (x["ip_version"] == 1) & ((plan["ip_version"] == 6) | ~used).all(axis=1)
        x["outside"] = (x["client_role"] == _EXTERNAL) & ((plan["client_role"] == _EXTERNAL) | ~used).all(axis=1)
        x["protocol"] = np.where(~x["six"][:, None] & (plan["client_port"] == 128), 1, plan["protocol"])

        x["span"] = x["span"].astype(np.float64) * self.length * _WITHIN
        x["start"] = x["start"].astype(np.float64) * (self.length * _WITHIN - x["span"])
        low, high = np.minimum(x["begin"], x["end"]), np.maximum(x["begin"], x["end"])
        x["from"], x["lasts"] = low * x["span"][:, None], (high - low) * x["span"][:, None]

        servers = np.rint(x["servers"]).astype(np.int64)
        reach = min(_sizes(ip_network(prefix))[1] for prefix in (self.internal, self.internal_v6))
        servers = np.where(role == _INTERNAL, np.minimum(servers, reach), servers)
        x["servers"] = servers = np.where(role >= _MULTICAST, 1, servers)
        weight = np.where(used, x["weight"], 0.0)
        number, total = np.rint(x["flows"].astype(np.float64)), weight[:, 0].copy()
        edges = [np.zeros(n)]
        for g in range(1, SLOTS):
            total += weight[:, g]
        part = np.zeros(n)
        for g in range(SLOTS):
            part += weight[:, g]
            edges.append(np.rint(part / total * number))
        count = np.diff(np.stack(edges, axis=1), axis=1).astype(np.int64)

        # Where a flow has no port of its own choice, only silence tells it from the one before to the same server.
        ephemeral = np.isin(plan["protocol"], (TCP, UDP)) & (plan["client_port"] == 0)
        silence = self.idle * _SILENCE + 2
        turns = np.floor(servers * x["lasts"] / silence).astype(np.int64)
        count = np.where(ephemeral, count, np.minimum(count, np.maximum(servers, turns)))
        for g in range(1, SLOTS):
            same = (
                (x["profile"][:, :g] == x["profile"][:, g : g + 1]) & (count[:, :g] > 0) & (role[:, :g] >= _MULTICAST)
            )
            same &= (role[:, :g] == role[:, g : g + 1]) & ~ephemeral[:, :g]
            count[:, g] = np.where(same.any(axis=1), 0, count[:, g])
        x["count"], x["burst"] = count, np.where(ephemeral, np.rint(x["burst"]), 1).astype(np.int64)
        x["jitter"] = np.where(ephemeral, x["jitter"], 0.0)
        again = np.where(count > servers, servers * x["lasts"] / np.maximum(count, 1), np.inf)
        x["longest"] = np.where(ephemeral, np.inf, again - self.idle * (_SILENCE + 1) / 2)
        asks = (role == _EXTERNAL) & (x["profile"] != _DNS) & ~x["outside"][:, None]
        x["dns"] = np.where(asks, x["dns"], 0.0)
        return x

    def _events(self, x: _Arrays) -> _Arrays:
        """All flows of settled sessions in the order of session and time, (m,) each.

        ``session``; ``slot``, SLOTS for a DNS query before another; ``turn`` in the group; ``time`` in whole
        microseconds of the window, different ones within a session; ``server``, alike within a session where the
        address is, and ``offset``, which moves the address; ``port``, with the protocol; ``number`` in the session.
        """
        group, turn = ramps(x["count"].ravel())
        session, slot = group // SLOTS, group % SLOTS
        of = {name: x[name].ravel()[group] for name in ("burst", "within", "jitter", "from", "lasts", "dns", "count")}
        burst, place = turn // of["burst"], turn % of["burst"]
        bursts = -(-of["count"] // of["burst"])
        moved = burst + of["jitter"] * _chance(x, session, slot, burst, _MOMENT)
        since = of["from"] + moved * (of["lasts"] / bursts) + place * of["within"]
        span = x["span"][session]
        since = np.where(since > span, np.fmod(since, span), since)
        time = np.rint((x["start"][session] + since) * 1e6).astype(np.int64)

        asked = np.flatnonzero(np.floor((turn + 1) * of["dns"]) > np.floor(turn * of["dns"]))
        lead = np.rint(x["resolver_rtt"].astype(np.float64) * 1.2e6 + 1000).astype(np.int64)[session[asked]]
        events: _Arrays = {
            "session": np.concatenate([session[asked], session]),
            "slot": np.concatenate([np.full(len(asked), SLOTS), slot]),
            "turn": np.concatenate([turn[asked], turn]),
            "time": np.concatenate([np.maximum(time[asked] - lead, 0), time]),
        }
        order = np.lexsort((events["time"], events["session"]))
        events = {name: value[order] for name, value in events.items()}
        session, slot, turn = events["session"], events["slot"], events["turn"]
        # No two flows of a session start together, so that their order is one.
        at = np.arange(len(session))
        ahead = session * (int(self.length * 1e6) + 2 * len(session) + 2)
        events["time"] = np.maximum.accumulate(events["time"] + ahead - at) + at - ahead
        events["number"] = at - np.searchsorted(session, session)

        column = np.minimum(slot, SLOTS - 1)
        query = slot == SLOTS
        profile = np.where(query, _DNS, x["profile"][session, column])
        role = np.where(query, x["resolver"][session], x["server_role"][session, column])
        number = turn % x["servers"][session, column]
        resolver = query | ((profile == _DNS) & (number == 0) & (role == x["resolver"][session]))
        part = np.where(resolver, SLOTS, column)
        events["server"] = part * _OUTSIDE + np.where(resolver, 0, number)
        # Of the servers of a kind, some are known to many sessions.
        kind = scrambled(profile * 65536 + x["server_port"][session, column])
        kind += (_KINDS * _chance(x, session, column, np.zeros_like(turn), _PEER) ** 3).astype(np.int64) * MOST_FLOWS
        events["offset"] = np.where(resolver, 0, kind % _OUTSIDE)
        six = x["six"][session].astype(np.int64)
        named = np.where(role == _BROADCAST, -1, -2 - _SAME_GROUP[profile, six])
        events["server"] = np.where(role >= _MULTICAST, named, events["server"])
        protocol = np.where(query, UDP, x["protocol"][session, column])
        events["port"] = protocol * 65536 + np.where(query, _DNS_PORT, x["server_port"][session, column])
        return events

    @torch.no_grad()
    def _plan(self, x: _Arrays, events: _Arrays) -> _Arrays:
        """Traffic's plan of some events, (m,) each."""
        session, slot, turn = events["session"], events["slot"], events["turn"]
        column, query = np.minimum(slot, SLOTS - 1), slot == SLOTS
        p: _Arrays = {name: x[name][session, column] for name in self.traffic.space if name not in _OF_A_SESSION}
        rtt = x["resolver_rtt"][session].astype(np.float64)
        asked: dict[str, Any] = {
            "profile": _DNS,
            "server_port": _DNS_PORT,
            "server_role": x["resolver"][session],
            "rtt": rtt,
        }
        asked |= {"packets_out": 1, "packets_in": 1, "bytes_out": 45, "bytes_in": 120, "duration": rtt}
        p |= {name: np.where(query, value, p[name]) for name, value in asked.items()}
        p |= {name: x[name][session] for name in ("client_role", "client_stack")}
        p["client_role"] = np.where(x["outside"][session], _EXTERNAL, _INTERNAL)
        p["ip_version"] = x["six"][session].astype(np.int64)
        p["client"] = np.zeros_like(session)

        variety = np.where(query, 0.5, x["variety"][session, column])
        factor = [
            (1 + variety * _chance(x, session, slot, turn, what))
            / (1 + variety * _chance(x, session, slot, turn, what + 8))
            for what in (_AMOUNT, _SIZE, _LASTING)
        ]
        left = self.length - events["time"] / 1e6
        longest = np.minimum(left, np.where(query, np.inf, x["longest"][session, column]))
        for way in ("out", "in"):
            number = np.where(query, 1, p[f"packets_{way}"] * factor[_AMOUNT])
            p[f"packets_{way}"] = number.clip(0.25, MOST_PACKETS)
            size = p[f"bytes_{way}"] * np.where(query, 1, factor[_AMOUNT]) * factor[_SIZE]
            p[f"bytes_{way}"] = size.clip(0.25, MOST_BYTES)
        p["duration"] = np.minimum(p["duration"] * factor[_LASTING], longest)
        p["rtt"] = np.minimum(p["rtt"], longest / 2)
        p["start"] = events["time"] / 1e6 / self.length
        plan = self.traffic.plan({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in p.items()})
        return {name: value.numpy() for name, value in plan.items()}


def gather(
    rows: NDArray[np.float64], owner: Integers, start: NDArray[np.float64], server: Integers, k: int
) -> NDArray[np.float64]:
    """Sessions float64 (n, k, len(SESSION)) of flow rows (m, len(ROW)), by their owner (m,), 0..n - 1.

    ``start`` (m,), seconds, orders the flows of an owner (of equals, the first stays the first); ``server`` (m,) tells
    the servers of an owner apart. Of more than k flows, k are kept that lie evenly in that order. What becomes of an
    owner follows from its own flows alone, bit for bit.
    """
    order = np.lexsort((start, owner))
    rows, owner, start, server = rows[order], owner[order], start[order], server[order]
    protocol, number = (rows[:, ROW.index(name)].astype(np.int64) for name in ("protocol", "server_port"))
    told = _told(owner, start, server, protocol * 65536 + number)
    n = int(owner.max(initial=-1)) + 1
    kept, place = _spread(owner, n, k)
    out = np.zeros((n, k, len(SESSION)))
    out[owner[kept], place, : len(ROW)] = rows[kept]
    for name, value in told.items():
        out[owner[kept], place, SESSION.index(name)] = value[kept]
    return out


def _told(owner: Integers, start: NDArray[np.float64], server: Integers, port: Integers) -> _Arrays:
    """What SESSION holds beyond ROW, of flows (m,) in the order of owner and start; ``port`` with the protocol."""
    first = _new(owner)
    bounds = np.append(np.flatnonzero(first), len(owner))
    size = np.diff(bounds)
    index = np.repeat(np.arange(len(size)), size)

    order = np.lexsort((server, owner))
    servers = np.bincount(index, _new(owner[order], server[order]), len(size))
    order = np.lexsort((port, server, owner))  # stable, so by start among equals
    again = np.zeros(len(owner))
    alike = ~_new(owner[order], server[order], port[order])
    again[order] = np.where(alike, np.maximum(np.diff(start[order], prepend=start[:1]), 1e-6), 0)

    dns = port == UDP * 65536 + _DNS_PORT
    return {
        "flows": size[index],
        "servers": servers[index],
        "span": (start[bounds[1:] - 1] - start[bounds[:-1]])[index],
        "since": np.where(first, 0, np.diff(start, prepend=start[:1])),
        "again": again,
        "after_dns": ~first & ~dns & np.roll(dns, 1),
    }


def _new(*keys: Integers) -> NDArray[np.bool_]:
    """True (m,) where any of the keys (m,) differs from that before, and at the first."""
    changed = np.ones(len(keys[0]), dtype=np.bool_)
    changed[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return changed


def _spread(owner: Integers, n: int, k: int) -> tuple[Integers, Integers]:
    """Which flows are kept, of flows (m,) in the order of their owner, 0..n - 1, and the place that each gets."""
    size = np.bincount(owner, minlength=n)
    who, place = ramps(np.minimum(size, k))
    number = size[who]
    return np.cumsum(size)[who] - number + np.where(number > k, place * number // k, place), place


def _most_frequent(owner: Integers, names: NDArray[np.str_]) -> NDArray[np.str_]:
    """The name that most rows (m,) of each owner, 0..n - 1, have; of equals, the first in order."""
    values, code = np.unique(names, return_inverse=True)
    pairs, count = np.unique(owner * len(values) + code, return_counts=True)
    who, code = pairs // len(values), pairs % len(values)
    order = np.lexsort((code, -count, who))
    most: NDArray[np.str_] = values[code[order][_new(who[order])]]
    return most


def _chance(x: _Arrays, session: Integers, slot: Integers, index: Integers, what: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) (m,) that hang on the session's seed, the group, an index and what they are for."""
    key = scrambled((x["seed"][session] * (SLOTS + 1) + slot) * 16 + what)
    return scrambled(key * 2**12 + index) / 2.0**31


_Network = IPv4Network | IPv6Network


def _sizes(network: _Network) -> tuple[int, int]:
    """How many addresses of an internal prefix are clients', and how many are servers' of each part."""
    size = min(network.num_addresses, 2**24)
    return size // 4 * 3, min(size // 4 // _PARTS, _OUTSIDE)


def _addresses(plan: _Arrays, four: _Network, other: _Network) -> Flows:
    """Addresses and client ports of planned flows (m,): a client is a session, and shares its servers with others.

    Raises ValueError where there are more sessions than addresses for clients.
    """
    session, six = plan["session"], plan["ip_version"] == 6
    outside, role = plan["client_role"] == _EXTERNAL, plan["server_role"]
    (clients, reach), (clients_six, reach_six) = _sizes(four), _sizes(other)
    new, pool = _new(session), 2 * outside + six
    number = np.zeros(len(session), dtype=np.int64)
    for kind, room in ((0, clients), (1, clients_six), (2, _OUTSIDE * _PARTS), (3, _OUTSIDE * _PARTS)):
        rank = np.cumsum(new & (pool == kind)) - 1
        if kind < 2 and rank[-1] >= room - 1:
            raise ValueError("more sessions than addresses for clients")
        number = np.where(pool == kind, rank % (room - 1) + 1, number)
    near, far = hosts(four, other, six, 0), hosts(BENCHMARK, DOCUMENTATION, six, 2**16)
    client = plus(np.where(outside[:, None], far, near), number)

    part, place = plan["server"] // _OUTSIDE, plan["server"] % _OUTSIDE + plan["offset"]
    inside = np.where(six, clients_six + part * reach_six + place % reach_six, clients + part * reach + place % reach)
    beyond = part * _OUTSIDE + place % _OUTSIDE + 1
    internal = role == _INTERNAL
    server = plus(
        np.where(internal[:, None], near, hosts(BENCHMARK, DOCUMENTATION, six, 0)), np.where(internal, inside, beyond)
    )
    many = role >= _MULTICAST
    server[many] = GROUPS[plan["profile"], six.astype(int)][many]
    server[role == _BROADCAST] = packed("255.255.255.255")
    ephemeral = (plan["client_port"] == 0) & np.isin(plan["protocol"], (TCP, UDP))
    port = _PORTS.start + (plan["number"] + scrambled(session)) % len(_PORTS)
    return {"client": client, "server": server, "client_port": np.where(ephemeral, port, plan["client_port"])}


def _at(groups: Params, g: int, n: int) -> Params:
    """Group g of each of n sessions, from groups (n * SLOTS)."""
    return {name: value.reshape(n, SLOTS)[:, g].clone() for name, value in groups.items()}
