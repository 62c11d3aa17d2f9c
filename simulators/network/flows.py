"""Packets to flows: conversations between two endpoints, cut where they fall silent, last too long or start anew.

A row depends on the packets of its own 5-tuple alone, in the order of the capture: no clock is driven by other traffic,
nothing is numbered by first sight, and every sum is taken in an order of the flow's own. So a row is the same, bit for
bit, whatever else the capture holds and however it is cut into chunks. That is what a privacy unit of one flow needs.

What is held at a time is one chunk and, for each flow and each 5-tuple, a few hundred bytes; packets are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from simpe.simulators.network.capture import ACK, FIN, ICMP, ICMP6, RST, SYN, TCP, Packets
from simpe.simulators.network.schema import OUTCOMES, Flows, empty

IDLE = 120.0
"""Seconds of silence that end a flow; as nfstream's default."""
ACTIVE = 1800.0
"""Seconds after which a flow that goes on is cut; as nfstream's default."""

_LONGEST = 6 * 3600.0  # an idle timeout up to which sums of gaps of one slice fit 64 bits
_FOREVER = 1e8  # an active timeout, in seconds, that no sum of times overflows with
_SLICE = 1 << 18

# Key of a conversation: both addresses in order, then ports, protocol and version.
_KEY = np.dtype((np.uint64, 5))
_CONVERSATION = np.dtype(
    [
        ("flow", np.int64),  # its flow that is under way
        ("start", np.int64),  # of that flow, ns
        ("time", np.int64),  # of the last packet, as captured
        ("latest", np.int64),  # the latest time seen in that flow
        ("closing", np.uint8),  # bits since the last SYN or silence: FIN by either side, RST
    ]
)
# Side 0 is the endpoint whose address and port are the lower; which one is the client is known at the end.
_FLOW = np.dtype(
    [
        ("conversation", np.int64),
        ("start", np.int64),
        ("latest", np.int64),
        ("squared_gaps", np.float64),
        ("packets", np.int64, 2),
        ("bytes", np.int64, 2),
        ("with_payload", np.int64, 2),
        ("squared_bytes", np.int64, 2),
        ("first", np.int64, 2),
        ("window", np.uint16, 2),
        ("mss", np.uint16, 2),
        ("ttl", np.uint8, 2),
        ("seen", np.uint8, 2),  # bits below
        ("opener", np.uint8),  # side of the first packet
        ("caller", np.uint8),  # 1 + side of the first SYN without ACK
        ("resetter", np.uint8),  # 1 + side of the first RST
        ("reply", np.bool_),  # the first packet was an ICMP reply
    ]
)
_SEEN_SYN, _SEEN_SYNACK, _SEEN_FIN, _SEEN_RST = 1, 2, 4, 8
_FINS, _RESET = 3, 4  # of "closing"

# ICMP type of a reply -> type of its request: echo, timestamp, information, address mask; echo of ICMPv6.
_REPLIES = {ICMP: {0: 8, 14: 13, 16: 15, 18: 17}, ICMP6: {129: 128}}

_Integers = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


def assemble(chunks: Iterable[Packets], idle: float = IDLE, active: float = ACTIVE) -> Flows:
    """The bidirectional flows of packets, as ``capture.read`` gives them; one row each, ordered by start.

    Packets belong together by addresses, ports and protocol, either way; an ICMP reply belongs to its request. The
    client is who sent the first packet, or the first SYN without ACK where there is one. A new flow begins

    - where the clock of the 5-tuple's packets jumps by more than ``idle`` seconds, forward or back;
    - at a packet more than ``active`` seconds after the flow's first;
    - at a SYN without ACK, where an RST or the FINs of both sides came after the SYN before it.

    Packets are taken in the order of the capture. Where a clock steps back by less than ``idle``, a packet counts as
    simultaneous with the latest before it, so no gap is negative. Standard deviations are those of the population.
    Rows that start together are in order of their addresses, ports and protocol.

    Raises ValueError where ``idle`` lies outside (0, 6 hours] or ``active`` is not positive.
    """
    if not 0 < idle <= _LONGEST:
        raise ValueError(f"idle must lie above 0 and at most at {_LONGEST:.0f} seconds, got {idle}")
    if not active > 0:
        raise ValueError(f"active must be positive, got {active}")
    assembly = _Assembly(round(idle * 1e9), round(min(active, _FOREVER) * 1e9))
    for chunk in chunks:
        for at in range(0, len(chunk), _SLICE):
            assembly.add(chunk[at : at + _SLICE])
    return assembly.flows()


class _Assembly:
    """All conversations and flows so far."""

    def __init__(self, idle: int, active: int):
        self._idle, self._active = idle, active
        self._index: dict[bytes, int] = {}
        self._conversations = np.zeros(0, _CONVERSATION)
        self._flows = np.zeros(0, _FLOW)
        self._n = 0

    def add(self, packets: Packets) -> None:
        """Take in the packets that follow."""
        conversation, side, reply = self._lookup(packets)
        order = np.argsort(conversation, kind="stable")
        p, conversation, side, reply = packets[order], conversation[order], side[order], reply[order]
        time = p["time"]
        groups = _changes(conversation)
        state = self._conversations[conversation[groups]]

        anchors, closing, split = self._splits(p, side, groups, state)
        begin, latest = self._cut(time, groups, state, split)
        segment = np.repeat(np.arange(len(begin)), np.diff(begin, append=len(p)))

        # A segment goes on with the flow of an earlier chunk, or is a flow of its own.
        group = np.searchsorted(groups, begin, side="right") - 1
        old = (begin == groups[group]) & ~split[begin] & (time[begin] - state["start"][group] <= self._active)
        fresh = np.flatnonzero(~old)
        flow = np.where(old, state["flow"][group], 0)
        flow[fresh] = self._n + np.arange(len(fresh))
        self._n += len(fresh)
        self._flows = _grown(self._flows, self._n)
        self._flows["conversation"][flow[fresh]] = conversation[begin[fresh]]
        self._flows["start"][flow[fresh]] = time[begin[fresh]]
        self._flows["opener"][flow[fresh]] = side[begin[fresh]]
        self._flows["reply"][flow[fresh]] = reply[begin[fresh]]

        before = np.concatenate(([0], latest[:-1]))
        before[begin] = np.where(old, state["latest"][group], latest[begin])
        self._sum(p, side, segment, begin, flow, latest, (latest - before) / 1e9)

        ends = np.append(groups[1:], len(p)) - 1
        state["flow"] = flow[segment[ends]]
        state["start"] = self._flows["start"][state["flow"]]
        state["time"] = time[ends]
        state["latest"] = latest[ends]
        state["closing"] = closing[np.searchsorted(anchors, ends, side="right") - 1]
        self._conversations[conversation[groups]] = state

    def _lookup(self, packets: Packets) -> tuple[_Integers, npt.NDArray[np.uint8], _Mask]:
        """Of each packet: its conversation, the side that sent it, and whether it is an ICMP reply."""
        source_port, target_port = packets["source_port"].astype(np.uint64), packets["target_port"].astype(np.uint64)
        reply = np.zeros(len(packets), dtype=bool)
        for protocol, requests in _REPLIES.items():
            for answer, request in requests.items():
                i = np.flatnonzero((packets["protocol"] == protocol) & (packets["source_port"] == answer))
                reply[i] = True
                source_port[i], target_port[i] = target_port[i], request
        source = np.column_stack((packets["source"].copy().view(">u8"), source_port))
        target = np.column_stack((packets["target"].copy().view(">u8"), target_port))
        swap = np.zeros(len(packets), dtype=bool)
        for column in (2, 1, 0):
            a, b = source[:, column], target[:, column]
            swap = (a > b) | ((a == b) & swap)
        lower, higher = np.where(swap[:, None], target, source), np.where(swap[:, None], source, target)
        kind = packets["protocol"].astype(np.uint64) << np.uint64(8) | packets["ip_version"]
        rest = (lower[:, 2] << np.uint64(48)) | (higher[:, 2] << np.uint64(32)) | kind
        keys = np.column_stack((lower[:, :2], higher[:, :2], rest))

        # Sorting by a hash brings equal keys together. Where two keys share a hash, their packets lie in more pieces
        # than need be, which changes nothing: the dictionary knows a piece by its whole key.
        mixed = np.zeros(len(keys), dtype=np.uint64)
        for column in keys.T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        order = np.argsort(mixed)
        ordered = keys[order]
        pieces = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(keys)])
        names = ordered[pieces].view("V40").ravel().tolist()
        known = len(self._index)
        index = np.array([self._index.setdefault(name, len(self._index)) for name in names], dtype=np.int64)
        self._conversations = _grown(self._conversations, len(self._index))
        self._conversations["flow"][known : len(self._index)] = -1
        conversation = np.empty(len(keys), dtype=np.int64)
        conversation[order] = np.repeat(index, np.diff(pieces, append=len(keys)))
        return conversation, swap.astype(np.uint8), reply

    def _splits(
        self, p: Packets, side: npt.NDArray[np.uint8], groups: _Integers, state: npt.NDArray[np.void]
    ) -> tuple[_Integers, npt.NDArray[np.uint8], _Mask]:
        """Where silence or a fresh SYN begins a new flow.

        Returns the positions of anchors (first packets of a conversation, jumps and SYNs), what was closed from each
        anchor to the next, and (n,) whether a packet begins a new flow.
        """
        time = p["time"]
        start = np.zeros(len(p), dtype=bool)
        start[groups] = True
        previous = np.concatenate(([0], time[:-1]))
        previous[groups] = state["time"]
        jump = np.abs(time - previous) > self._idle
        jump[groups] |= state["flow"] < 0
        syn = p["flags"] & (SYN | ACK) == SYN

        anchors = np.flatnonzero(start | jump | syn)
        event = np.where(p["flags"] & FIN, 1 << side, 0) | np.where(p["flags"] & RST, _RESET, 0)
        closing = np.bitwise_or.reduceat(event.astype(np.uint8), anchors)
        opening = np.searchsorted(anchors, groups)  # the anchors that are first packets
        closing[opening] |= np.where((jump | syn)[groups], 0, state["closing"]).astype(np.uint8)
        before = np.concatenate(([0], closing[:-1]))
        before[opening] = state["closing"]

        closed = (before & _RESET != 0) | (before & _FINS == _FINS)
        split = jump
        split[anchors] |= syn[anchors] & closed
        return anchors, closing, split

    def _cut(
        self, time: _Integers, groups: _Integers, state: npt.NDArray[np.void], split: _Mask
    ) -> tuple[_Integers, _Integers]:
        """Cut at the active timeout: where segments begin, and (n,) the latest time of the segment so far."""
        flag = split.copy()
        flag[groups] = True
        begin = np.flatnonzero(flag)
        run = np.repeat(np.arange(len(begin)), np.diff(begin, append=len(time)))
        end = np.append(begin[1:], len(time))
        low, high = np.minimum.reduceat(time, begin), np.maximum.reduceat(time, begin)
        # All runs on one axis, each after the one before: then one running maximum, and one search, serve them all.
        span = high - low
        offset = np.cumsum(span) - span
        axis = np.maximum.accumulate(time - low[run] + offset[run])
        latest = axis - offset[run] + low[run]

        first = time[begin].copy()
        on = np.flatnonzero(~split[begin])  # goes on with a flow of an earlier chunk
        into = np.searchsorted(groups, begin[on])
        first[on] = state["start"][into]
        carried = np.full(len(begin), np.iinfo(np.int64).min)
        carried[on] = state["latest"][into]

        pending = np.arange(len(begin))
        while len(pending):
            limit = np.clip(first[pending] + self._active - low[pending], -1, span[pending]) + offset[pending]
            at = np.maximum(np.searchsorted(axis, limit, side="right"), begin[pending])
            over = at < end[pending]
            pending, at = pending[over], at[over]
            flag[at] = True
            first[pending] = time[at]
            carried[pending[at == begin[pending]]] = np.iinfo(np.int64).min
        return np.flatnonzero(flag), np.maximum(latest, carried[run])

    def _sum(
        self,
        p: Packets,
        side: npt.NDArray[np.uint8],
        segment: _Integers,
        begin: _Integers,
        flow: _Integers,
        latest: _Integers,
        gap: npt.NDArray[np.float64],
    ) -> None:
        """Add each segment's packets to its flow."""
        table = self._flows
        flags = p["flags"]
        syn = flags & SYN != 0

        def firsts(chosen: _Mask) -> tuple[_Integers, _Integers]:
            """The first chosen packet of each segment that has one, and its flow."""
            i = np.flatnonzero(chosen)
            i = i[_changes(segment[i])]
            return i, flow[segment[i]]

        for name, chosen in (("caller", syn & (flags & ACK == 0)), ("resetter", flags & RST != 0)):
            i, row = firsts(chosen)
            table[name][row] = np.where(table[name][row] == 0, side[i] + 1, table[name][row])
        seen = (
            np.where(syn, np.where(flags & ACK, _SEEN_SYNACK, _SEEN_SYN), 0)
            | np.where(flags & FIN, _SEEN_FIN, 0)
            | np.where(flags & RST, _SEEN_RST, 0)
        ).astype(np.uint8)
        payload = p["payload"].astype(np.int64)
        for s in (0, 1):
            mine = side == s
            i, row = firsts(mine)
            i, row = i[table["packets"][row, s] == 0], row[table["packets"][row, s] == 0]
            table["first"][row, s] = latest[i]
            table["ttl"][row, s] = p["ttl"][i]
            i, row = firsts(mine & syn)
            new = table["seen"][row, s] & (_SEEN_SYN | _SEEN_SYNACK) == 0
            i, row = i[new], row[new]
            table["window"][row, s] = p["window"][i]
            table["mss"][row, s] = p["mss"][i]
            table["seen"][flow, s] |= np.bitwise_or.reduceat(np.where(mine, seen, 0), begin)
            for name, value in (
                ("packets", mine),
                ("bytes", payload * mine),
                ("with_payload", (payload > 0) & mine),
                ("squared_bytes", payload * payload * mine),
            ):
                table[name][flow, s] += np.add.reduceat(value.astype(np.int64), begin)
        # bincount adds in order, so the sum goes on as if there were no chunks.
        weights = np.concatenate((table["squared_gaps"][flow], gap * gap))
        table["squared_gaps"][flow] = np.bincount(np.concatenate((np.arange(len(flow)), segment)), weights)
        table["latest"][flow] = latest[np.append(begin[1:], len(p)) - 1]

    def flows(self) -> Flows:
        """The flow table."""
        table = self._flows[: self._n]
        keys = np.frombuffer(b"".join(self._index), dtype=_KEY)[table["conversation"]]
        order = np.lexsort((np.arange(len(table)), *keys.T[::-1], table["start"]))
        table, keys = table[order], keys[order]
        rows = np.arange(len(table))
        client = np.where(table["caller"] > 0, table["caller"] - 1, table["opener"]).astype(np.int64)
        server = 1 - client

        flows = empty(len(table))
        addresses = keys[:, :4].astype(">u8").view(np.uint8).reshape(-1, 2, 16)
        ports = np.column_stack((keys[:, 4] >> np.uint64(48), keys[:, 4] >> np.uint64(32))).astype(np.uint16)
        flows["client"], flows["server"] = addresses[rows, client], addresses[rows, server]
        flows["client_port"], flows["server_port"] = ports[rows, client], ports[rows, server]
        flows["protocol"] = (keys[:, 4] >> np.uint64(8)).astype(np.uint8)
        flows["ip_version"] = keys[:, 4].astype(np.uint8)
        _unpair(flows, table["reply"])

        seconds = (table["latest"] - table["start"]) / 1e9
        flows["start"] = table["start"] / 1e9
        flows["duration"] = seconds
        for way, s in (("out", client), ("in", server)):
            packets, squares = table["with_payload"][rows, s], table["squared_bytes"][rows, s]
            flows[f"packets_{way}"] = table["packets"][rows, s]
            flows[f"bytes_{way}"] = table["bytes"][rows, s]
            flows[f"size_std_{way}"] = _deviation(packets, table["bytes"][rows, s], squares).astype(np.float32)
            flows[f"ttl_{way}"] = table["ttl"][rows, s]
            flows[f"window_{way}"] = table["window"][rows, s]
        flows["mss"] = table["mss"][rows, client]
        gaps = table["packets"].sum(axis=1) - 1
        flows["gap_mean"] = seconds / np.maximum(gaps, 1)
        flows["gap_std"] = _deviation(gaps, seconds, table["squared_gaps"])
        answer = table["first"][rows, server] - table["first"][rows, client]
        answered = (table["packets"] > 0).all(axis=1) & (answer > 0)
        flows["rtt"] = np.where(answered, answer / 1e9, 0).astype(np.float32)
        flows["outcome"] = _outcome(table, client, flows["protocol"] == TCP)
        return flows


def _changes(values: _Integers) -> _Integers:
    """Where a value differs from the one before, and the first place."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def _grown(table: npt.NDArray[np.void], n: int) -> npt.NDArray[np.void]:
    """The table with room for n rows, zeros behind; it doubles, so that growing costs little."""
    if n <= len(table):
        return table
    larger = np.zeros(max(n, 2 * len(table), 1024), table.dtype)
    larger[: len(table)] = table
    return larger


def _deviation(n: _Integers, total: npt.NDArray[np.number], squares: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Standard deviation of n values by their sum and sum of squares; 0 where there are none."""
    n = np.maximum(n, 1)
    variance = np.asarray(squares / n - (total / n) ** 2, dtype=np.float64)
    return np.sqrt(np.maximum(variance, 0))


def _unpair(flows: Flows, reply: _Mask) -> None:
    """Type and code of ICMP flows that begin with a reply, which were keyed as their requests' servers are."""
    for protocol, requests in _REPLIES.items():
        for answer, request in requests.items():
            i = np.flatnonzero(reply & (flows["protocol"] == protocol) & (flows["server_port"] == request))
            flows["server_port"][i] = flows["client_port"][i]
            flows["client_port"][i] = answer


def _outcome(table: npt.NDArray[np.void], client: _Integers, tcp: _Mask) -> npt.NDArray[np.uint8]:
    rows = np.arange(len(table))
    mine, theirs = table["seen"][rows, client], table["seen"][rows, 1 - client]
    called, answered = mine & _SEEN_SYN != 0, theirs & _SEEN_SYNACK != 0
    up = called & answered
    quiet = mine & (_SEEN_FIN | _SEEN_RST) == 0
    refused = (theirs & _SEEN_RST != 0) & (table["resetter"] == 2 - client)
    which = np.select(
        [
            ~tcp,
            up & (mine & theirs & _SEEN_FIN != 0),
            up & (table["resetter"] == client + 1),
            up & (table["resetter"] == 2 - client),
            called & ~answered & refused,
            called & quiet & (table["packets"][rows, 1 - client] == 0),
        ],
        [OUTCOMES.index(name) for name in ("-", "SF", "RSTO", "RSTR", "REJ", "S0")],
        OUTCOMES.index("OTH"),
    )
    return which.astype(np.uint8)
