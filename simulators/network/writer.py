"""Planned flows to a capture: every packet with its headers, checksums, payload and time, built in whole arrays.

Where a packet of a flow stands, what it acknowledges and when it comes are closed formulas of the plan that
``Traffic.flows`` lays out, so there is no loop over flows or packets. Formats: pcap (draft-ietf-opsawg-pcap), Ethernet
II, IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792), ICMPv6 (RFC 4443).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpe.simulators.network import payloads
from simpe.simulators.network.payloads import copy, put, ramps, scrambled
from simpe.simulators.network.profiles import ICMP, ICMPV6, PROFILES, ROLES, TCP, UDP
from simpe.simulators.network.schema import OUTCOMES, Flows
from simpe.simulators.network.vocabulary import PUBLIC, Vocabulary

_FIN, _SYN, _RST, _PSH, _ACK = 1, 2, 4, 8, 16
_OUT, _IN = 0, 1
_SF, _S0, _REJ, _RSTO, _RSTR, _OTH = range(1, len(OUTCOMES))
_BLOCK = 2**16  # packets
_SCALE = 8  # window scale: 65,535 << 8 is more than a flow carries, so no window ever fills
_SYN_OPTIONS = bytes([1, 1, 4, 2, 1, 3, 3, _SCALE])  # selective acknowledgements permitted, window scale; RFC 7323

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]
_Columns = Mapping[str, NDArray[Any]]


def write(path: str | Path, flows: Flows, nanosecond: bool = False, vocabulary: Vocabulary = PUBLIC) -> int:
    """Write the capture of a planned flow table, as ``Traffic.flows`` gives it; returns the number of packets.

    A pcap file of Ethernet frames in the order of their times, to the microsecond or, with ``nanosecond``, to the
    nanosecond; names in payloads are those of the vocabulary. Builds the capture in memory, some three times its size.
    Raises OSError where it cannot be written.
    """
    unit = 1 if nanosecond else 1000
    head = np.array([0xA1B23C4D if nanosecond else 0xA1B2C3D4, 4 << 16 | 2, 0, 0, 65535, 1], dtype="<u4")
    parts = [
        (part, arena, _packets(part, arena, unit)) for part in _blocks(flows) for arena in [_payloads(part, vocabulary)]
    ]
    time, lengths = (np.concatenate([p[name] for _, _, p in parts]) for name in ("time", "length"))
    order = np.argsort(time, kind="stable")
    ends = head.nbytes + np.cumsum(lengths[order])
    at = np.empty_like(ends)
    at[order] = ends
    at -= lengths
    out = np.empty(head.nbytes + int(lengths.sum()), dtype=np.uint8)
    out[: head.nbytes] = head.view(np.uint8)
    done = 0
    for part, arena, p in parts:
        place = at[done : done + len(p["time"])]
        done += len(place)
        for index, kind in enumerate(_HEADERS):
            some = np.flatnonzero(p["kind"] == index)
            if len(some):
                put(out, place[some], _headers(kind, part, {name: value[some] for name, value in p.items()}, unit))
        full = np.flatnonzero(p["size"])
        size = p["size"][full]
        copy(out, (place + p["length"])[full] - size, arena, p["source"][full], size)
    out.tofile(path)
    return len(order)


def _blocks(flows: _Columns) -> Iterator[_Columns]:
    """The table in parts of some packets each, so that what is worked on stays in the cache; ``number`` counts on."""
    count = np.cumsum(flows["packets_out"] + flows["packets_in"])
    table = {**flows, "number": np.arange(len(count))}
    bounds = np.flatnonzero(np.diff(count // _BLOCK, prepend=-1)).tolist() or [0]
    for start, stop in zip(bounds, [*bounds[1:], len(count)], strict=True):
        yield {name: value[start:stop] for name, value in table.items()}


# --- where the packets stand


def sizes(flows: _Columns, way: str, flow: Integers, x: Integers) -> Integers:
    """Payload bytes of packet number x (m,) among those with payload of a flow (m,) one way."""
    long, longs, each, more = (column[flow] for column in _shares(flows, way))
    size: Integers = np.where(x < longs, long, each + (x - longs < more))
    return size


def _shares(flows: _Columns, way: str) -> tuple[Any, Any, Any, Any]:
    long, longs, data = flows[f"long_{way}"], flows[f"longs_{way}"], flows[f"data_{way}"]
    rest, few = flows[f"bytes_{way}"] - long * longs, np.maximum(data - longs, 1)
    return long, longs, rest // few, rest % few


def _before(flows: _Columns, way: str, flow: Integers, x: Integers) -> Integers:
    """Payload bytes one way before packet number x (m,) of those with payload."""
    long, longs, each, more = (column[flow] for column in _shares(flows, way))
    later = np.maximum(x - longs, 0)
    total: Integers = np.minimum(x, longs) * long + later * each + np.minimum(later, more)
    return total


def _packets(flows: _Columns, arena: Bytes, unit: int) -> dict[str, NDArray[Any]]:
    """All packets, flow after flow: name -> (packets,).

    ``flow``, ``place`` in it, ``way``, ``flags``, ``size`` (payload bytes), ``source`` (place in the arena), ``sum``
    (of the payload's 16-bit words), ``seq``, ``ack`` (relative), ``ordinal`` (among the packets with payload one
    way), ``time`` (ns since 1970, whole units), ``kind`` (index into _HEADERS), ``length`` (of its record).
    """
    outcome, tcp = flows["outcome"].astype(np.int64), flows["protocol"] == TCP
    count = flows["packets_out"] + flows["packets_in"]
    first = np.cumsum(count) - count
    flow, place = ramps(count)
    p: dict[str, NDArray[Any]] = {
        name: np.zeros(len(flow), dtype=np.int64)
        for name in ("way", "flags", "size", "source", "sum", "seq", "ack", "ordinal")
    }
    p |= {"flow": flow, "place": place, "time": _times(flows, flow, place, unit)}

    def lay(rows: Integers, at: Any, way: int, flags: int, seq: Any, ack: Any, **more: Any) -> None:
        index = first[rows] + at
        for name, value in dict(way=way, flags=flags, seq=seq, ack=ack, **more).items():
            p[name][index] = value

    sent = {way: flows[f"bytes_{way}"] for way in ("out", "in")}
    greets = np.isin(outcome, (_SF, _RSTO, _RSTR))
    rows = np.flatnonzero(greets)
    lay(rows, 0, _OUT, _SYN, 0, 0)
    lay(rows, 1, _IN, _SYN | _ACK, 0, 1)
    lay(rows, 2, _OUT, _ACK, 1, 1)
    rows = np.flatnonzero((outcome == _OTH) & (sent["out"] == 0))
    lay(rows, 0, _OUT, _ACK, 1, 1)
    opening = 3 * greets + ((outcome == _OTH) & (sent["out"] == 0))

    rows = np.flatnonzero(outcome == _S0)
    syn, turn = ramps(count[rows])
    lay(rows[syn], turn, _OUT, _SYN, 0, 0)
    rows = np.flatnonzero(outcome == _REJ)
    lay(rows, 0, _OUT, _SYN, 0, 0)
    lay(rows, 1, _IN, _RST | _ACK, 0, 1)
    rows = np.flatnonzero(outcome == _SF)
    o, i = sent["out"][rows], sent["in"][rows]
    lay(rows, count[rows] - 3, _OUT, _FIN | _ACK, 1 + o, 1 + i)
    lay(rows, count[rows] - 2, _IN, _FIN | _ACK, 1 + i, 2 + o)
    lay(rows, count[rows] - 1, _OUT, _ACK, 2 + o, 2 + i)
    for code, way, mine, theirs in ((_RSTO, _OUT, "out", "in"), (_RSTR, _IN, "in", "out")):
        rows = np.flatnonzero(outcome == code)
        lay(rows, count[rows] - 1, way, _RST | _ACK, 1 + sent[mine][rows], 1 + sent[theirs][rows])

    # Data of both sides takes turns in proportion, and the side that speaks first goes first. A pure acknowledgement
    # follows some of the other side's data at once, spread evenly, so each acknowledges something new.
    closing = np.select([outcome == _SF, outcome == _RSTO], [2, 1], 0)
    data = {way: flows[f"data_{way}"] for way in ("out", "in")}
    acks = {
        "out": np.where(tcp & (data["in"] > 0), flows["packets_out"] - data["out"] - 2 * greets - closing, 0),
        "in": np.where(tcp & (data["out"] > 0), flows["packets_in"] - data["in"] - greets, 0),
    }
    acks["out"] -= (outcome == _OTH) & (sent["out"] == 0) & (data["in"] > 0)
    acks["in"] -= np.isin(outcome, (_SF, _RSTR)) & (data["out"] > 0)
    server_first = np.array([f.server_first for f in PROFILES])[flows["profile"]] & greets
    leads = {"out": ~server_first, "in": server_first}
    base = _bases(flows)
    for way, mine, theirs in ((_OUT, "out", "in"), (_IN, "in", "out")):
        rows, x = ramps(data[mine])
        ours, other = data[mine][rows], data[theirs][rows]
        share = x * other
        after = np.where(leads[mine][rows], -(-share // ours), np.minimum(share // ours + 1, other))
        answers = -(-x * acks[theirs][rows] // ours)  # acknowledgements of our data before this packet
        later = -(-(x + 1) * acks[theirs][rows] // ours)
        own = -(-after * acks[mine][rows] // np.maximum(other, 1))
        at = opening[rows] + x + answers + after + own
        size, before = sizes(flows, mine, rows, x), _before(flows, mine, rows, x)
        received = 1 + _before(flows, theirs, rows, after)
        source = base[mine][rows] + before
        total = _payload_sums(arena, source, size)
        lay(rows, at, way, _PSH | _ACK, 1 + before, received, size=size, source=source, sum=total, ordinal=x)
        acked = np.flatnonzero(later > answers)
        lay(rows[acked], at[acked] + 1, 1 - way, _ACK, received[acked], (1 + before + size)[acked])
    p["kind"] = _kinds(flows)[flow] + (p["flags"] & _SYN != 0)
    p["length"] = np.array([layout.itemsize for layout in _HEADERS.values()])[p["kind"]] + p["size"]
    return p


def _times(flows: _Columns, flow: Integers, place: Integers, unit: int) -> Integers:
    """When each packet comes, ns since 1970, in whole units: the long gaps lie evenly among the short ones."""
    answered = (flows["packets_in"] > 0).astype(np.int64)
    gaps = flows["packets_out"] + flows["packets_in"] - 1 - answered
    passed = np.maximum(place - answered[flow], 0)
    long = (passed * flows["long_gaps"][flow] + (gaps // 2)[flow]) // np.maximum(gaps, 1)[flow]
    seconds = (passed - long) * flows["short_gap"][flow] + long * flows["long_gap"][flow]
    seconds += np.where(place > 0, (answered * flows["rtt"])[flow], 0)
    start: Integers = np.rint(flows["start"] * 1e6).astype(np.int64) * 1000
    since: Integers = np.rint(seconds * (1e9 / unit)).astype(np.int64) * unit
    return start[flow] + since


def _bases(flows: _Columns) -> dict[str, Integers]:
    """Where the payload of each flow (n,) begins in the arena: everything sent out, then everything sent in."""
    out, back = flows["bytes_out"], flows["bytes_in"]
    return {"out": np.cumsum(out) - out, "in": np.cumsum(back) - back + out.sum()}


def _payloads(flows: _Columns, vocabulary: Vocabulary) -> Bytes:
    """The arena: the payloads of every flow. Over TCP a way is one stream, else every packet is a message."""
    arena = payloads.filler(int(flows["bytes_out"].sum() + flows["bytes_in"].sum()))
    tcp = flows["protocol"] == TCP
    for way, start in _bases(flows).items():
        streams = np.flatnonzero(tcp & (flows[f"bytes_{way}"] > 0))
        some = {name: column[streams] for name, column in flows.items()}
        size, first = some[f"bytes_{way}"], some[f"long_{way}"]
        payloads.fill(
            arena, some["profile"], way, start[streams], size, some["number"], first=first, vocabulary=vocabulary
        )
        flow, x = ramps(np.where(tcp, 0, flows[f"data_{way}"]))
        asked = sizes(flows, "out", flow, np.minimum(x, flows["data_out"][flow] - 1))
        at, size = start[flow] + _before(flows, way, flow, x), sizes(flows, way, flow, x)
        payloads.fill(
            arena, flows["profile"][flow], way, at, size, flows["number"][flow], x, asked, vocabulary=vocabulary
        )
    return arena


def _payload_sums(arena: Bytes, source: Integers, size: Integers) -> Integers:
    """Sums (m,) of the 16-bit words of pieces of the arena (m,), one behind the other, none of them empty."""
    if len(source) == 0:
        return source
    # Words are added where they lie. A piece that begins at an odd place has its words across them: there the sum of
    # swapped words is the sum swapped (RFC 1071), once the bytes at both ends are taken by themselves.
    end = source + size
    odd, first, stop = source & 1, (source + 1) // 2, end // 2
    words = np.zeros(len(arena) // 2 + 1, dtype="<u2")
    words.view(np.uint8)[: len(arena)] = arena
    bounds = np.stack([first, stop], axis=1).ravel()
    total = np.add.reduceat(words, bounds, dtype=np.uint32)[::2].astype(np.int64) * (first < stop)
    total = _folded(total)
    total = np.where(odd, total, total >> 8 | (total & 0xFF) << 8)
    total += np.where(odd, arena[source].astype(np.int64) << 8, 0)
    ending = arena[end - 1].astype(np.int64)
    return total + np.where(end & 1, np.where(odd, ending, ending << 8), 0)


# --- headers


def _layout(version: int, transport: list[tuple[str, Any]]) -> np.dtype[np.void]:
    record = [("sec", "<u4"), ("part", "<u4"), ("captured", "<u4"), ("length", "<u4")]
    ethernet = [("to_mac", "u1", 6), ("from_mac", "u1", 6), ("type", ">u2")]
    four = [("ver", "u1"), ("tos", "u1"), ("total", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"),
            ("protocol", "u1"), ("check", ">u2"), ("from_ip", "u1", 4), ("to_ip", "u1", 4)]  # fmt: skip
    six = [("ver", ">u4"), ("total", ">u2"), ("protocol", "u1"), ("ttl", "u1"), ("from_ip", "u1", 16),
           ("to_ip", "u1", 16)]  # fmt: skip
    return np.dtype([*record, *ethernet, *(four if version == 4 else six), *transport])


_PORTS = [("from_port", ">u2"), ("to_port", ">u2")]
_TCP = [*_PORTS, ("seq", ">u4"), ("ack", ">u4"), ("words", "u1"), ("flags", "u1"), ("window", ">u2"), ("sum", ">u2"),
        ("urgent", ">u2")]  # fmt: skip
_TRANSPORTS: Mapping[str, list[tuple[Any, ...]]] = {
    "tcp": _TCP,
    "syn": [*_TCP, ("mss_kind", ">u2"), ("mss", ">u2"), ("options", "u1", len(_SYN_OPTIONS))],
    "udp": [*_PORTS, ("size", ">u2"), ("sum", ">u2")],
    "icmp": [("kind", "u1"), ("code", "u1"), ("sum", ">u2"), ("ident", ">u2"), ("turn", ">u2")],
    "igmp": [("alert", ">u4")],  # an option of IPv4: every router should look (RFC 2236)
}
_HEADERS = {
    (name, version): _layout(version, fields)
    for version in (4, 6)
    for name, fields in _TRANSPORTS.items()
    if (name, version) != ("igmp", 6)
}
"""What stands before a payload: the record's header in the file, Ethernet, IP and transport."""
_BELOW = 30  # bytes of record and Ethernet


def _kinds(flows: _Columns) -> Integers:
    """Index (n,) into _HEADERS, of packets without SYN; those with one have the next."""
    protocol = flows["protocol"]
    name: Integers = np.select([protocol == TCP, protocol == UDP, np.isin(protocol, (ICMP, ICMPV6))], [0, 2, 3], 4)
    six: NDArray[np.bool_] = flows["ip_version"] == 6
    return name + len(_TRANSPORTS) * six


def _headers(kind: tuple[str, int], flows: _Columns, p: _Columns, unit: int) -> Bytes:
    """Headers (packets, bytes) of packets of one kind, with all checksums.

    What all packets of a flow share one way is filled in, and added up, once for the flow.
    """
    transport, version = kind
    start = _BELOW + {4: 24 if transport == "igmp" else 20, 6: 40}[version]
    rows = np.flatnonzero(np.bincount(p["flow"]))
    local = np.zeros(int(rows[-1]) + 1, dtype=np.int64)
    local[rows] = np.arange(len(rows))
    templates = np.empty(2 * len(rows), dtype=_HEADERS[kind])
    templates[: len(rows)], templates[len(rows) :] = (_template(kind, flows, rows, way) for way in (_OUT, _IN))
    network, segment = _words(templates, _BELOW, start), _words(templates, start, templates.itemsize)
    if (transport, version) != ("icmp", 4):  # the pseudo-header
        segment += _words(templates, _BELOW + (12 if version == 4 else 8), start) + templates["protocol"]
    turn = local[p["flow"]] + p["way"] * len(rows)
    h, network, segment = templates[turn], network[turn], segment[turn]

    size, flags, above = p["size"], p["flags"], h.itemsize - _BELOW + p["size"]
    h["sec"], h["part"] = p["time"] // 10**9, p["time"] % 10**9 // unit
    h["captured"] = h["length"] = h.itemsize - 16 + size
    if version == 4:
        number = h["id"] + p["place"] & 0xFFFF
        h["total"], h["check"] = above, ~_folded(network - h["id"] + above + number) & 0xFFFF
        h["id"] = number
    else:
        h["total"] = above - 40
    if transport == "igmp":
        return _as_bytes(h)

    length = h.itemsize - start + size
    segment += p["sum"] + (length if (transport, version) != ("icmp", 4) else 0)
    if transport == "udp":
        h["size"] = length
        segment += length
    elif transport == "icmp":
        h["turn"] = p["ordinal"] + 1 & 0xFFFF
        segment += h["turn"]
    else:
        # Each side counts from a number of its own.
        first = scrambled(2 * flows["number"][rows][:, None] + np.arange(2)).T.ravel()
        refuses = (flags & _RST != 0) & (p["seq"] == 0)
        seq = np.where(refuses, 0, first[turn] + p["seq"] & 0xFFFFFFFF)
        other = local[p["flow"]] + (1 - p["way"]) * len(rows)
        ack = np.where(flags & _ACK != 0, first[other] + p["ack"] & 0xFFFFFFFF, 0)
        h["seq"], h["ack"], h["flags"] = seq, ack, flags
        segment += (seq & 0xFFFF) + (seq >> 16) + (ack & 0xFFFF) + (ack >> 16) + flags
    check = ~_folded(segment) & 0xFFFF
    h["sum"] = np.where((check == 0) & (transport == "udp"), 0xFFFF, check)
    return _as_bytes(h)


def _template(kind: tuple[str, int], flows: _Columns, rows: Integers, way: int) -> NDArray[np.void]:
    """Headers (rows,) of what some flows send one way, as far as all their packets share them; the rest is 0."""
    transport, version = kind
    h = np.zeros(len(rows), dtype=_HEADERS[kind])
    mine, other = ("client", "server") if way == _OUT else ("server", "client")
    source, target = flows[mine][rows], flows[other][rows]
    h["from_mac"], h["to_mac"] = (
        _macs(address, flows[f"{side}_role"][rows], version) for address, side in ((source, mine), (target, other))
    )
    width = h["from_ip"].shape[1]
    h["from_ip"], h["to_ip"] = source[:, -width:], target[:, -width:]
    h["ttl"] = flows["ttl_out" if way == _OUT else "ttl_in"][rows]
    h["protocol"] = flows["protocol"][rows]
    chance = scrambled(flows["number"][rows])
    if version == 4:
        h["type"], h["ver"], h["fragment"], h["id"] = 0x0800, 0x45, 0x4000, chance & 0xFFFF
    else:
        h["type"], h["ver"] = 0x86DD, 6 << 28
    if transport == "icmp":
        h["kind"] = flows["client_port"][rows].astype(np.int64) - way * (8 if version == 4 else -1)
        h["code"], h["ident"] = flows["server_port"][rows], chance & 0xFFFF
    elif transport == "igmp":
        h["ver"], h["alert"] = 0x46, 0x94040000
    else:
        h["from_port"], h["to_port"] = flows[f"{mine}_port"][rows], flows[f"{other}_port"][rows]
    if transport in ("tcp", "syn"):
        h["words"], h["window"] = (h.itemsize - _BELOW - (20 if version == 4 else 40)) // 4 << 4, 0xFFFF
    if transport == "syn":
        h["window"] = flows["window_out" if way == _OUT else "window_in"][rows]
        h["mss_kind"], h["mss"], h["options"] = 0x0204, flows["mss"][rows], np.frombuffer(_SYN_OPTIONS, np.uint8)
    return h


def _macs(address: Bytes, role: Integers, version: int) -> Bytes:
    """Ethernet addresses (n, 6): made from the IP address within the network, the gateway's for hosts beyond it."""
    host, gateway = [2, 0], [2, 0, 0, 0, 0, 1]
    mac = np.concatenate([np.broadcast_to(np.array(host, dtype=np.uint8), (len(role), 2)), address[:, 12:]], axis=1)
    mac[role == ROLES.index("external")] = gateway
    many = role == ROLES.index("multicast")
    if version == 4:  # RFC 1112: the low 23 bits
        mac[many, :3] = [1, 0, 0x5E]
        mac[many, 3] &= 0x7F
    else:  # RFC 2464: the low 32 bits
        mac[many, :2] = 0x33
    mac[role == ROLES.index("broadcast")] = 0xFF
    return mac


def _as_bytes(h: NDArray[np.void]) -> Bytes:
    return h.view(np.uint8).reshape(len(h), h.itemsize)


def _words(h: NDArray[np.void], start: int, end: int) -> Integers:
    """Sums (n,) of the 16-bit words of bytes start..end, an even number of them."""
    part = np.ascontiguousarray(_as_bytes(h)[:, start:end]).view(">u2")
    total = np.zeros(len(h), dtype=np.int64)
    for column in part.T:
        total += column
    return total


def _folded(total: Integers) -> Integers:
    """The one's complement sum of 16-bit words from their plain sum (RFC 1071)."""
    for _ in range(3):
        total = (total & 0xFFFF) + (total >> 16)
    return total
