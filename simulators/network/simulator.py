"""The simulator of flows: what a flow's parameters mean, and the row that its packets would give.

Any values of the parameters make a flow that a network could carry: :meth:`Traffic.plan` moves what cannot be (bytes
without packets, an answer to an unanswered SYN, a mail server on port 53) to the nearest that can, and lays out how
many packets carry how much, and when. :meth:`Traffic.render` reads a row off that plan without making a packet; the
writer makes the packets. Everything is a closed formula of a flow's own numbers, in integers or in + - * / and roots,
so a row is the same to the bit in whatever batch it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpe.embedders.flows import ROW, FlowEmbedding
from simpe.simulators.network.addresses import BENCHMARK, DOCUMENTATION, GROUPS, MAPPED, hosts, packed, plus
from simpe.simulators.network.flows import ACTIVE, IDLE
from simpe.simulators.network.payloads import scrambled
from simpe.simulators.network.profiles import (
    ICMP,
    ICMPV6,
    MOST_BYTES,
    MOST_PACKETS,
    NAMES,
    PROFILES,
    RESERVED,
    ROLES,
    SERVICES,
    STACKS,
    TCP,
    UDP,
)
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, Flows
from simpe.space import Categorical, Continuous, Integer, ParameterSpace, Params

_SF, _S0, _REJ, _RSTO, _RSTR, _OTH = range(1, len(OUTCOMES))
_OPENING = {"out": [0, 2, 0, 1, 2, 2, 0], "in": [0, 1, 0, 0, 1, 1, 0]}  # packets of the handshake, by outcome
_CLOSING = {"out": [0, 2, 0, 0, 1, 0, 0], "in": [0, 1, 0, 1, 0, 1, 0]}  # packets of the end
_MOST_SYNS = 7  # a first SYN and the six more that Linux sends
_INTERNAL, _EXTERNAL, _MULTICAST, _BROADCAST = range(len(ROLES))
_UNUSUAL = 0.15  # share of Random's rows whose numbers do not follow their profile's
_WITHIN = 0.999  # of a timeout: room for a capture's rounding
_PORTS = range(55_000, 65_536)  # of IANA's dynamic ports, those that no server is known by
_OTHER_PORT = 40_000  # for data that may not go to a reserved port
_EXTERNAL_HOSTS = 4096
_INTERNAL_SERVERS = 16


@dataclass(frozen=True)
class Traffic:
    """Flows of many applications, one a row.

    >>> traffic = Traffic()
    >>> p = traffic.random(100, torch.Generator().manual_seed(0))
    >>> rows = traffic.render(p)  # float64 (100, len(ROW))

    ``start``, ``length``: the window in which flows lie, seconds since 1970 and seconds. ``internal``,
    ``internal_v6``: the prefixes that internal hosts get their addresses from. ``idle``, ``active``: no gap within a
    flow and no flow is longer (s), since a reader with these timeouts would see two flows.

    Raises ValueError for a window or a prefix that cannot hold flows.
    """

    start: float = 1_700_000_000.0
    length: float = 3600.0
    internal: str = "10.0.0.0/16"
    internal_v6: str = "fd00::/64"
    idle: float = IDLE
    active: float = ACTIVE

    def __post_init__(self) -> None:
        if self.start < 0 or min(self.length, self.idle, self.active) <= 0:
            raise ValueError("start must be at least 0; length, idle and active must be positive")
        for prefix, version in ((self.internal, 4), (self.internal_v6, 6)):
            network = ip_network(prefix)
            if network.version != version or network.num_addresses < 256:
                raise ValueError(f"{prefix} must be an IPv{version} prefix of at least 256 addresses")

    @property
    def embedder(self) -> Callable[[Tensor], Tensor]:
        """The embedder that suits flow rows."""
        return FlowEmbedding()

    @cached_property
    def space(self) -> ParameterSpace:
        """What varies from flow to flow. Amounts below 1 round to 0 or 1; all is settled by :meth:`plan`."""
        return ParameterSpace(
            profile=Categorical(NAMES),
            server_port=Categorical(2**16),  # used where the profile may run on it
            outcome=Categorical(OUTCOMES[1:]),  # of TCP
            packets_out=Continuous(0.25, MOST_PACKETS, log=True),
            packets_in=Continuous(0.25, MOST_PACKETS, log=True),
            bytes_out=Continuous(0.25, MOST_BYTES, log=True),
            bytes_in=Continuous(0.25, MOST_BYTES, log=True),
            size_spread_out=Continuous(0, 1),  # 0: packets of one size; 1: as many full ones as there can be
            size_spread_in=Continuous(0, 1),
            duration=Continuous(1e-4, 3600, log=True),  # s
            gap_spread=Continuous(0.01, 100, log=True),  # standard deviation of gaps over their mean: on/off bursts
            rtt=Continuous(1e-5, 10, log=True),  # s
            start=Continuous(0, 1),  # share of the window
            client_stack=Categorical([stack.name for stack in STACKS]),
            server_stack=Categorical([stack.name for stack in STACKS if stack.serves]),
            hops=Integer(0, 30),  # to the external host
            client=Integer(0, 199),  # number of the internal client
            client_role=Categorical(ROLES[:2]),
            server_role=Categorical(ROLES),
            ip_version=Categorical(("4", "6")),
        )

    def random(self, n: int, generator: torch.Generator) -> Params:
        """Random: profiles alike often, each with amounts around its typical ones, some with any amounts."""
        p = self.space.sample(n, generator)
        profiles = _profiles(torch.device("cpu"))
        own = {name: table[p["profile"]] for name, table in profiles.items()}

        def chance(probability: float | Tensor) -> Tensor:
            return torch.rand(n, generator=generator) < probability

        def around(middle: Tensor, spread: float) -> Tensor:
            return middle.clamp(min=1e-6) * (spread * torch.randn(n, generator=generator)).exp()

        typical: Params = {}
        for way in ("out", "in"):
            typical[f"packets_{way}"] = around(own[f"packets_{way}"], 1.0)
            typical[f"bytes_{way}"] = around(typical[f"packets_{way}"] * own[f"size_{way}"], 0.6)
        typical["duration"] = around(own["seconds"], 1.5)
        typical["rtt"] = around(torch.full((n,), 0.02), 1.2)
        usual = ~chance(_UNUSUAL)
        for name, value in typical.items():
            parameter = self.space[name]
            assert isinstance(parameter, Continuous)
            p[name] = torch.where(usual, value.float().clamp(parameter.low, parameter.high), p[name])

        services = torch.tensor([port for _, port in SERVICES])
        table = services[torch.randint(len(services), (n,), generator=generator)]
        port = torch.where(chance(0.5), table, p["server_port"].clamp(min=1024))
        p["server_port"] = torch.where(chance(own["keeps_port"].float()), own["ports"][:, 0], port)
        refused = torch.tensor([_S0, _REJ, _RSTO])[torch.randint(3, (n,), generator=generator)] - 1
        p["outcome"] = torch.where(chance(0.7), _SF - 1, p["outcome"])
        p["outcome"] = torch.where(p["profile"] == NAMES.index("scan"), refused, p["outcome"])
        p["client_role"] = torch.where(chance(0.9), _INTERNAL, p["client_role"])
        p["server_role"] = torch.where(chance(0.8), own["role"], p["server_role"])
        p["ip_version"] = torch.where(chance(0.8), 0, p["ip_version"])
        return p

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation: numbers move by ``strength``; a category is drawn anew with probability min(1, strength)^2.

        What is drawn anew comes from Random; a new profile brings its port.
        """
        moved = self.space.perturb(p, strength, generator)
        fresh = self.random(len(p["profile"]), generator)
        device = p["profile"].device
        again: dict[str, Tensor] = {}
        for name, parameter in self.space.items():
            if isinstance(parameter, Categorical):
                again[name] = torch.rand(len(p[name]), generator=generator) < min(1.0, strength) ** 2
        again["server_port"] = again["server_port"] | again["profile"]
        for name, redrawn in again.items():
            moved[name] = torch.where(redrawn.to(device), fresh[name].to(device), p[name])
        return moved

    @torch.no_grad()
    def render(self, p: Params) -> Tensor:
        """Flow rows float64 (n, len(ROW)) of parameters, on their device; row by row, bit for bit."""
        plan = self.plan(p)
        return torch.stack([plan[name].double() for name in ROW], dim=1)

    def public_inputs(self) -> dict[str, Any]:
        """The declared window, prefixes and timeout, and the profiles."""
        return {
            "simulator": "traffic",
            "window": [self.start, self.length],
            "internal": [self.internal, self.internal_v6],
            "timeouts": [self.idle, self.active],
            "profiles": list(NAMES),
        }

    def plan(self, p: Params) -> dict[str, Tensor]:
        """Settle parameters and lay the flows out: name -> tensor (n,), of every name in ROW and more.

        More: ``profile`` and ``client_port`` (0: an ephemeral one) as settled. For each way: ``data`` packets with
        payload; of them the first ``longs`` have ``long`` bytes and the others share the rest evenly. Gaps: the first
        is ``rtt`` where there is an answer, then ``long_gaps`` gaps last ``long_gap`` s and the others ``short_gap``.
        """
        x = _parties(p)
        x |= _amounts(p, x)
        return x | _times(p, x, self.length, self.idle * _WITHIN, self.active * _WITHIN)

    def flows(self, p: Params) -> Flows:
        """The flow table of parameters, with addresses and ports, and the columns that the writer needs besides.

        Raises ValueError when there are more flows without an ephemeral port than internal addresses.
        """
        with torch.no_grad():
            plan = {name: value.cpu().numpy() for name, value in self.plan(p).items()}
        plan["start"] = self.start + plan["start"] * self.length
        plan |= _addresses(plan, ip_network(self.internal), ip_network(self.internal_v6))
        return {name: value.astype(np.dtype(COLUMNS.get(name, value.dtype)).base) for name, value in plan.items()}


@lru_cache
def _profiles(device: torch.device) -> dict[str, Tensor]:
    """The profiles as tensors: name -> (profiles,), or (profiles, ports)."""
    width = max(len(profile.ports) for profile in PROFILES)
    table: dict[str, list[Any]] = {
        "protocol": [f.protocol for f in PROFILES],
        "ports": [(f.ports + width * (f.ports or (0,))[:1])[:width] for f in PROFILES],
        "has_port": [f.protocol in (TCP, UDP) for f in PROFILES],
        "anywhere": [f.anywhere for f in PROFILES],
        "keeps_port": [0.8 if f.ports else 0.0 for f in PROFILES],
        "generic": [f.generic for f in PROFILES],
        "client_port": [f.client_port for f in PROFILES],
        "role": [ROLES.index(f.servers[0]) for f in PROFILES],
        "roles": [[role in f.servers for role in ROLES] for f in PROFILES],
        "v6": [6 in f.versions for f in PROFILES],
        "ttl": [f.ttl for f in PROFILES],
        "seconds": [f.seconds for f in PROFILES],
        "segment": [f.segment for f in PROFILES],
    }
    for i, way in enumerate(("out", "in")):
        for column in ("least", "most", "packets"):
            table[f"{column}_{way}"] = [getattr(f, column)[i] for f in PROFILES]
        table[f"size_{way}"] = [f.sizes[i] for f in PROFILES]
    return {name: torch.tensor(values, device=device) for name, values in table.items()}


@lru_cache
def _owners(device: torch.device) -> Tensor:
    """Port -> the profile whose own it is, or -1: int64 (2, 65536), TCP and UDP."""
    owners = torch.full((2, 65536), -1)
    for index, profile in enumerate(PROFILES):
        if not profile.generic:
            for port in profile.ports:
                owners[int(profile.protocol == UDP), port] = index
    return owners.to(device)


@lru_cache
def _reserved(device: torch.device) -> Tensor:
    """Whether a port is reserved for what cannot be written: bool (2, 65536), TCP and UDP."""
    reserved = torch.zeros((2, 65536), dtype=torch.bool)
    for row, protocol in enumerate((TCP, UDP)):
        reserved[row, sorted(RESERVED[protocol])] = True
    return reserved.to(device)


def _parties(p: Params) -> dict[str, Tensor]:
    """Who talks to whom, and over what."""
    device = p["profile"].device
    profiles = _profiles(device)
    # A port that belongs to an application means that application: nothing else could be read there. Nor can data be
    # where a format is expected that is not written here; a probe carries none.
    wanted, protocol = p["profile"], profiles["protocol"][p["profile"]]
    transport = (protocol == UDP).long()
    owner = _owners(device)[transport, p["server_port"]]
    reserved = (owner >= 0) | _reserved(device)[transport, p["server_port"]]
    profile = torch.where(profiles["generic"][wanted] & (owner >= 0), owner, wanted)
    own = {name: table[profile] for name, table in profiles.items()}

    probes = profile == NAMES.index("scan")
    usual = torch.where(own["generic"], _OTHER_PORT, own["ports"][:, 0])
    fits = (own["anywhere"] & (probes | ~reserved)) | (own["ports"] == p["server_port"][:, None]).any(1)
    server_port = torch.where(fits, p["server_port"], usual)
    server_role = torch.where(own["roles"].gather(1, p["server_role"][:, None])[:, 0], p["server_role"], own["role"])
    client_role = torch.where(server_role == _INTERNAL, p["client_role"], _INTERNAL)
    six = (p["ip_version"] == 1) & own["v6"] & (server_role != _BROADCAST)
    icmp = protocol == ICMP

    ttl, window, mss = (
        torch.tensor([getattr(stack, name) for stack in STACKS], device=device) for name in ("ttl", "window", "mss")
    )
    away = {"out": client_role == _EXTERNAL, "in": server_role == _EXTERNAL}
    stack = {"out": p["client_stack"], "in": p["server_stack"]}
    ttls = {
        f"ttl_{way}": torch.where(own["ttl"] > 0, own["ttl"], ttl[stack[way]] - p["hops"] * away[way]) for way in away
    }
    return {
        "profile": profile,
        "protocol": torch.where(icmp & six, ICMPV6, protocol),
        "ip_version": 4 + 2 * six.long(),
        "client_port": torch.where(icmp, 8 + 120 * six.long(), own["client_port"]),
        "server_port": torch.where(own["has_port"], server_port.clamp(min=1), 0),
        "client_role": client_role,
        "server_role": server_role,
        "client": torch.where(client_role == _INTERNAL, p["client"], 0),
        **ttls,
        **{f"window_{way}": window[stack[way]] for way in stack},
        "mss": mss[p["client_stack"]] - 20 * six.long(),
    }


def _amounts(p: Params, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Packets and bytes each way, and how the bytes are spread over packets."""
    device = x["profile"].device
    own = {name: table[x["profile"]] for name, table in _profiles(device).items()}
    tcp, many = own["protocol"] == TCP, x["server_role"] >= _MULTICAST
    outcome = torch.where(tcp, p["outcome"] + 1, 0)
    packets = {way: p[f"packets_{way}"].round().long() for way in ("out", "in")}
    size = {way: p[f"bytes_{way}"].round().long() for way in ("out", "in")}
    for way in size:
        size[way] = torch.where(x["profile"] == NAMES.index("scan"), 0, size[way])

    # TCP: what handshake and end leave is data, or pure acknowledgements. Each of these must acknowledge something
    # new, so there are no more of them than packets with data the other way.
    fixed = {
        way: torch.tensor(_OPENING[way], device=device)[outcome] + torch.tensor(_CLOSING[way], device=device)[outcome]
        for way in packets
    }
    talks = (outcome != _S0) & (outcome != _REJ)
    least, rest, room = {}, {}, {}
    for way, number in packets.items():
        least[way] = torch.where(talks, own[f"least_{way}"], 0)
        rest[way] = torch.where(talks, (number - fixed[way]).clamp(min=0), 0)
        enough = torch.minimum(torch.maximum(size[way], least[way]), rest[way] * x["mss"])
        size[way] = torch.where(tcp, torch.where((size[way] > 0) & (rest[way] > 0), enough, 0), size[way])
    # One that was under way when the capture began opens with data or else with an acknowledgement.
    fixed["out"] = torch.where((outcome == _OTH) & (size["out"] == 0), 1, fixed["out"])
    rest["out"] = torch.where((outcome == _OTH) & (size["out"] == 0), (rest["out"] - 1).clamp(min=0), rest["out"])
    # What the client sends over a connection is acknowledged, before it could fill the window of the SYN-ACK.
    heard = talks & (outcome != _OTH) & (size["out"] > 0)
    rest["in"] = torch.where(heard, rest["in"].clamp(min=1), rest["in"])
    for way in packets:
        room[way] = torch.minimum(
            rest[way], torch.where(size[way] > 0, (size[way] - least[way]) // own["segment"] + 1, 0)
        )
    for way in packets:
        rest[way] = torch.minimum(rest[way], room["out"] + room["in"])
    full = {way: _ceil(size[way], x["mss"]) for way in packets}
    data_out = torch.maximum(full["out"], torch.maximum(rest["out"], rest["in"]) - room["in"])
    data_in = torch.maximum(full["in"], torch.maximum(rest["out"], rest["in"]) - data_out)
    tcp_data = {"out": data_out, "in": data_in}
    syns = torch.where(outcome == _S0, packets["out"].clamp(1, _MOST_SYNS), 0)

    # UDP and the rest: every packet is a message. What goes to many has its answers elsewhere.
    echoes = own["protocol"] == ICMP
    number_out = packets["out"].clamp(min=1)
    number_in = torch.where(many, 0, packets["in"])
    number_in = torch.where(echoes, torch.minimum(number_in, number_out), number_in)
    messages = {"out": number_out, "in": number_in}

    y: dict[str, Tensor] = {"outcome": outcome}
    for way in ("out", "in"):
        data = torch.where(tcp, tcp_data[way], messages[way])
        smallest = torch.where(tcp, own["segment"], own[f"least_{way}"])
        most = torch.where(tcp, x["mss"], own[f"most_{way}"])
        total = torch.where(tcp, size[way], size[way].clamp(data * smallest, data * most))
        if way == "out":
            total = torch.where(echoes, data * (total // data.clamp(min=1)), total)
        else:
            total = torch.where(echoes, data * (y["bytes_out"] // y["data_out"].clamp(min=1)), total)
        first = torch.where(tcp, least[way], smallest)
        y[f"packets_{way}"] = torch.where(tcp, fixed[way] + rest[way], messages[way])
        y[f"bytes_{way}"], y[f"data_{way}"] = total, data
        # The first packets are the long ones; what they leave is shared by the others, so that sums come out exactly.
        low = torch.maximum(_ceil(total, data.clamp(min=1)), first)
        high = torch.maximum(torch.minimum(most, total - (data - 1) * smallest), low)
        spread = torch.where(echoes, 0, p[f"size_spread_{way}"]).double()
        long = torch.where(data > 0, low + (spread * (high - low)).round().long(), 0)
        spare = total - data * smallest
        longs = torch.where(long > smallest, spare // (long - smallest).clamp(min=1), data)
        few = data - longs
        each, more = (total - longs * long) // few.clamp(min=1), (total - longs * long) % few.clamp(min=1)
        squares = longs * long * long + more * (each + 1) * (each + 1) + (few - more) * each * each
        variance = (data * squares - total * total).double() / (data * data).clamp(min=1)
        y |= {f"long_{way}": long, f"longs_{way}": longs, f"size_std_{way}": variance.sqrt()}
    y["packets_out"] = torch.where(outcome == _S0, syns, y["packets_out"])

    answered, handshake = y["packets_in"] > 0, (outcome > 0) & (outcome != _OTH)
    y["ttl_in"] = torch.where(answered, x["ttl_in"], 0)
    y["window_out"] = torch.where(handshake, x["window_out"], 0)
    y["window_in"] = torch.where(handshake & talks, x["window_in"], 0)
    y["mss"] = torch.where(handshake, x["mss"], 0)
    return y


def _times(p: Params, x: dict[str, Tensor], length: float, idle: float, active: float) -> dict[str, Tensor]:
    """When the packets come: a first gap of the round trip where there is an answer, then short and long gaps."""
    number = (x["packets_out"] + x["packets_in"]).double()
    answered = x["packets_in"] > 0
    rtt = torch.where(answered, p["rtt"].double().clamp(max=min(idle, active, length)), 0)
    gaps = (number - 1 - answered.double()).clamp(min=0)
    most = torch.where(gaps > 1, (gaps / 2).floor(), gaps) * idle
    time = torch.minimum(p["duration"].double().clamp(max=min(active, length)) - rtt, most).clamp(min=0)
    # With a share q of long gaps and short ones of 0, the standard deviation over the mean is sqrt((1 - q) / q), the
    # most there can be: so there are as many long gaps as leave room for the spread, and as few as none exceeds idle.
    fewest = torch.maximum((time / idle).ceil(), (gaps > 0).double())
    spread = torch.minimum(p["gap_spread"].double(), ((gaps - fewest) / fewest.clamp(min=1)).clamp(min=0).sqrt())
    most_long = torch.maximum((gaps / 2).floor(), fewest)
    longs = torch.minimum(torch.maximum((gaps / (1 + spread * spread)).floor(), fewest), most_long)
    mean, share = time / gaps.clamp(min=1), longs / gaps.clamp(min=1)
    odds = (share / (1 - share).clamp(min=1e-12)).sqrt()
    short = torch.where(longs < gaps, (mean * (1 - spread * odds)).clamp(min=0), 0)
    long = (time - short * (gaps - longs)) / longs.clamp(min=1)

    duration = rtt + time
    whole = (number - 1).clamp(min=1)
    squares = rtt * rtt + (gaps - longs) * short * short + longs * long * long
    average = duration / whole
    return {
        "start": torch.minimum(p["start"].double() * length, length - duration) / length,
        "duration": duration,
        "rtt": rtt,
        "gap_mean": average,
        "gap_std": (squares / whole - average * average).clamp(min=0).sqrt(),
        "long_gaps": longs.long(),
        "long_gap": long,
        "short_gap": short,
    }


def _ceil(a: Tensor, b: Tensor) -> Tensor:
    return (a + b - 1) // b


def rows_of(flows: Flows, start: float, length: float, internal: Sequence[str]) -> Tensor:
    """Flow rows float64 (n, len(ROW)) of a parsed flow table, each from its own flow and declared inputs alone.

    ``start`` and ``length`` declare the window (seconds since 1970; seconds), ``internal`` the prefixes that count as
    internal. Flows that start outside of the window count as at its ends.

    Raises ValueError for a length that is not positive or what is no prefix.
    """
    if not length > 0:
        raise ValueError(f"length must be positive, got {length}")
    networks = [ip_network(prefix) for prefix in internal]
    client, server = (np.asarray(flows[name], dtype=np.uint8).reshape(-1, 16) for name in ("client", "server"))
    roles = {"client_role": _roles(client, networks), "server_role": _roles(server, networks)}
    host = np.zeros(len(client))
    for network in networks:
        number = (client[:, 14].astype(int) << 8 | client[:, 15]) & (int(network.hostmask) & 0xFFFF)
        host = np.where(_within(client, network), np.maximum(number - 1, 0), host)
    columns = {
        **flows,
        **roles,
        "client": host,
        "start": np.clip((flows["start"].astype(np.float64) - start) / length, 0, 1),
    }
    return torch.from_numpy(np.stack([np.asarray(columns[name], dtype=np.float64) for name in ROW], axis=1))


def _roles(address: NDArray[np.uint8], networks: Sequence[IPv4Network | IPv6Network]) -> NDArray[np.int64]:
    """Index into ROLES of each address (n, 16)."""
    role = np.full(len(address), _EXTERNAL)
    # "This host" and link-local addresses never leave a link.
    local = [ip_network(prefix) for prefix in ("0.0.0.0/32", "169.254.0.0/16", "fe80::/10")]
    broadcast: list[IPv4Network | IPv6Network] = [ip_network("255.255.255.255/32")]
    for network in [*networks, *local]:
        role[_within(address, network)] = _INTERNAL
        if network.version == 4 and network.prefixlen < 31:
            broadcast.append(ip_network(f"{network.broadcast_address}/32"))
    for multicast in ("224.0.0.0/4", "ff00::/8"):
        role[_within(address, ip_network(multicast))] = _MULTICAST
    for network in broadcast:
        role[_within(address, network)] = _BROADCAST
    return role


def _within(address: NDArray[np.uint8], network: IPv4Network | IPv6Network) -> NDArray[np.bool_]:
    """True (n,) where an address (n, 16) lies in a prefix."""
    base, mask = (
        np.frombuffer(prefix + part.packed, dtype=np.uint8)
        for part, prefix in (
            (network.network_address, MAPPED if network.version == 4 else b""),
            (network.netmask, b"\xff" * 12 if network.version == 4 else b""),
        )
    )
    inside: NDArray[np.bool_] = ((address & mask) == base).all(axis=1)
    return inside


def _addresses(
    plan: Mapping[str, NDArray[Any]], internal: IPv4Network | IPv6Network, internal_v6: IPv4Network | IPv6Network
) -> Flows:
    """Addresses and client ports under which no two flows share protocol, addresses and ports.

    Flows with an ephemeral port share a client, and its ports are dealt out in turn; each of the others gets a client
    of its own, the next free one from the one it names.
    """
    n = len(plan["client"])
    six, client_role, server_role = plan["ip_version"] == 6, plan["client_role"], plan["server_role"]
    chance = scrambled(np.arange(n))
    clients = np.where(six, 2**15, internal.num_addresses // 4 * 3)  # internal servers stand behind them
    pool = np.where(client_role == _EXTERNAL, _EXTERNAL_HOSTS, clients - 1)
    number = np.where(client_role == _EXTERNAL, chance % _EXTERNAL_HOSTS, plan["client"] % pool)
    ephemeral = (plan["client_port"] == 0) & np.isin(plan["protocol"], (TCP, UDP))
    network = 2 * (client_role == _EXTERNAL) + six  # which pool of clients

    port = plan["client_port"].copy()
    key = (network << 32) + number
    order = np.argsort(np.where(ephemeral, key, -1), kind="stable")[n - int(ephemeral.sum()) :]
    turn = _turns(key[order])
    port[order] = _PORTS.start + (turn + scrambled(key[order])) % len(_PORTS)
    number[order] += turn // len(_PORTS) * 256  # a client whose ports are all in use

    fixed = np.flatnonzero(~ephemeral)
    group = (network[fixed] * len(PROFILES) + plan["profile"][fixed]) << 32
    order = fixed[np.argsort(group + number[fixed], kind="stable")]
    key = np.sort(group + number[fixed], kind="stable")
    place = np.arange(len(order))
    number[order] = (np.maximum.accumulate(key - place) + place) & 0xFFFFFFFF
    if (number >= pool).any():
        raise ValueError(f"{n} flows need more clients than {internal} has: declare a wider internal prefix")

    kind = scrambled(plan["profile"] * 65536 + plan["server_port"])
    server = np.where(plan["profile"] == NAMES.index("scan"), chance, kind + chance % 7)
    server = np.where(
        server_role == _INTERNAL,
        clients + server % _INTERNAL_SERVERS,
        server % _EXTERNAL_HOSTS + 1,
    )
    inside = hosts(internal, internal_v6, six, 0)
    outside = hosts(BENCHMARK, DOCUMENTATION, six, 0), hosts(BENCHMARK, DOCUMENTATION, six, 2**16)
    out = client_role == _EXTERNAL
    client_address = plus(np.where(out[:, None], outside[1], inside), number + 1)
    server_address = plus(np.where((server_role == _INTERNAL)[:, None], inside, outside[0]), server)
    many = server_role >= _MULTICAST
    server_address[many] = GROUPS[plan["profile"], six.astype(int)][many]
    server_address[server_role == _BROADCAST] = packed("255.255.255.255")
    return {"client": client_address, "server": server_address, "client_port": port}


def _turns(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2, ... within each run of equal sorted keys (n,)."""
    place = np.arange(len(key))
    new = np.append(True, key[1:] != key[:-1])[: len(key)]
    return place - np.maximum.accumulate(np.where(new, place, 0))
