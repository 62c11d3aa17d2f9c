"""Packets to flows: a slow reference agrees, chunks and other traffic change nothing, TCP ends as its packets say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpe.simulators.network import capture, flows, tables
from simpe.simulators.network.capture import ACK, FIN, PACKET, RST, SYN, Packets
from simpe.simulators.network.flows import assemble
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, Flows

SECOND = 10**9
EPOCH = 1_600_000_000 * SECOND


def packets(*rows: tuple[Any, ...]) -> Packets:
    """Packets of (seconds, source, target, flags or "udp" or "icmp", payload, ...): endpoints are (host, port)."""
    out = np.zeros(len(rows), PACKET)
    for p, (seconds, source, target, kind, *more) in zip(out, rows, strict=True):
        p["time"] = EPOCH + round(seconds * SECOND)
        p["ip_version"] = 4
        for name, (host, port) in (("source", source), ("target", target)):
            p[name][10:12] = 255
            p[name][15] = host
            p[name + "_port"] = port
        p["protocol"] = {"udp": 17, "icmp": 1}.get(kind, 6)
        p["flags"] = 0 if isinstance(kind, str) else kind
        p["payload"] = more[0] if more else 0
        p["ttl"] = 64 if source[0] == 1 else 50
        if not isinstance(kind, str):
            p["window"] = 1000 + source[0]
            p["mss"] = 1460 if kind & SYN else 0
    return out


A, B, C = (1, 40000), (2, 80), (3, 53)
TALK = [(0, A, B, SYN), (0.1, B, A, SYN | ACK), (0.2, A, B, ACK), (0.3, A, B, ACK, 100), (0.5, B, A, ACK, 1000)]
END = [(0.6, A, B, FIN | ACK), (0.7, B, A, FIN | ACK), (0.8, A, B, ACK)]


def outcomes(table: Flows) -> list[str]:
    return [OUTCOMES[int(i)] for i in table["outcome"]]


def same(a: Flows, b: Flows) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def rows(table: Flows) -> list[bytes]:
    """Each row's bytes."""
    n = len(table["start"])
    return [b"".join(table[name][i].tobytes() for name in COLUMNS) for i in range(n)]


def test_a_conversation() -> None:
    flow = assemble([packets(*TALK, *END)])
    assert {name: column.dtype for name, column in flow.items()} == {n: np.dtype(d).base for n, d in COLUMNS.items()}
    expected = {
        "ip_version": 4,
        "protocol": 6,
        "client_port": 40000,
        "server_port": 80,
        "start": 1.6e9,
        "duration": 0.8,
        "packets_out": 5,
        "packets_in": 3,
        "bytes_out": 100,
        "bytes_in": 1000,
        "size_std_out": 0,
        "gap_mean": 0.8 / 7,
        "gap_std": np.std([0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1]),
        "rtt": 0.1,
        "ttl_out": 64,
        "ttl_in": 50,
        "window_out": 1001,
        "window_in": 1002,
        "mss": 1460,
    }
    for name, value in expected.items():
        assert flow[name].tolist() == pytest.approx([value], rel=1e-6), name
    assert flow["client"][0, -1] == 1
    assert flow["server"][0, -1] == 2
    assert outcomes(flow) == ["SF"]


CASES = {
    "SF": TALK + END,
    "S0": [(0, A, B, SYN), (1, A, B, SYN)],
    "REJ": [(0, A, B, SYN), (0.1, B, A, RST | ACK)],
    "RSTO": [*TALK, (1, A, B, RST)],
    "RSTR": [*TALK, (1, B, A, RST | ACK), (1.1, A, B, RST)],
    "OTH": TALK,
    "OTH half closed": [*TALK, END[0]],
    "OTH under way": TALK[2:] + END,
    "OTH client gave up": [(0, A, B, SYN), (1, A, B, RST)],
    "SF then reset": [*TALK, *END, (2, A, B, RST)],
    "SF of a low server": [(t, {A: B, B: A}[s], {A: B, B: A}[d], *r) for t, s, d, *r in TALK + END],
    "-": [(0, A, C, "udp", 30), (0.1, C, A, "udp", 60)],
}


@pytest.mark.parametrize("case", CASES)
def test_outcomes(case: str) -> None:
    assert outcomes(assemble([packets(*CASES[case])])) == [case.split()[0]]


def test_the_client_sends_the_syn() -> None:
    late = [(-0.1, B, A, ACK, 10), *TALK]
    flow = assemble([packets(*late)])
    assert flow["client_port"].tolist() == [40000]
    assert flow["rtt"].tolist() == [0]
    assert assemble([packets((0, B, A, ACK), (1, A, B, ACK))])["client_port"].tolist() == [80]


def test_timeouts() -> None:
    steady = packets(*((i, A, C, "udp", 9) for i in range(0, 200, 10)))
    assert len(assemble([steady])["start"]) == 1
    assert assemble([steady], idle=9)["packets_out"].tolist() == [1] * 20
    assert assemble([steady], active=45)["packets_out"].tolist() == [5] * 4
    assert assemble([steady], active=1e300)["packets_out"].tolist() == [20]
    silent = packets((0, A, C, "udp"), (120, C, A, "udp"), (240.5, A, C, "udp"))
    assert assemble([silent])["packets_out"].tolist() == [1, 1]
    for wrong in ({"idle": 0}, {"idle": 1e9}, {"active": 0}, {"active": float("nan")}, {"idle": float("nan")}):
        with pytest.raises(ValueError, match="must"):
            assemble([steady], **wrong)


def test_a_fresh_syn_after_a_close_begins_a_flow() -> None:
    again = [(t + 2, *rest) for t, *rest in TALK + END]
    assert outcomes(assemble([packets(*TALK, *END, *again)])) == ["SF", "SF"]
    refused = [(0, A, B, SYN), (0.1, B, A, RST), (0.5, A, B, SYN), (0.6, B, A, RST)]
    assert outcomes(assemble([packets(*refused)])) == ["REJ", "REJ"]
    assert outcomes(assemble([packets(*TALK, (1, A, B, SYN))])) == ["OTH"]
    assert outcomes(assemble([packets(*TALK, END[0], (1, A, B, SYN))])) == ["OTH"]


def test_icmp_replies_join_their_requests() -> None:
    request, reply = (1, 8), (1, 0)
    ping = [(0, request, (2, 0), "icmp", 56), (0.1, (2, 0), reply, "icmp", 56)]
    flow = assemble([packets(*ping, (0.2, request, (2, 0), "icmp", 56))])
    assert (flow["client_port"].tolist(), flow["server_port"].tolist()) == ([8], [0])
    assert (flow["packets_out"].tolist(), flow["packets_in"].tolist()) == ([2], [1])
    alone = assemble([packets(ping[1])])
    assert (alone["client_port"].tolist(), alone["server_port"].tolist()) == ([0], [0])
    assert alone["client"][0, -1] == 2
    crossing = assemble([packets(*ping, (0.2, (2, 8), (1, 0), "icmp", 56))])
    assert crossing["packets_out"].tolist() == [1, 1]


def test_clocks_that_step_back() -> None:
    back = packets((0, A, C, "udp"), (1, A, C, "udp"), (0.5, C, A, "udp"), (2, A, C, "udp"))
    flow = assemble([back])
    assert flow["duration"].tolist() == [2]
    assert flow["gap_std"].tolist() == pytest.approx([np.std([1, 0, 1])])
    assert flow["rtt"].tolist() == [1]
    far = packets((1000, A, C, "udp"), (1001, A, C, "udp"), (0, C, A, "udp"), (1, A, C, "udp"))
    assert assemble([far])["start"].tolist() == [1.6e9, 1.6e9 + 1000]
    assert (assemble([far])["packets_out"] + assemble([far])["packets_in"]).tolist() == [2, 2]


def test_no_packets() -> None:
    table = assemble([])
    assert all(len(column) == 0 for column in table.values())
    assert same(table, assemble([np.zeros(0, PACKET)]))


def test_a_land_attack_is_one_flow() -> None:
    assert assemble([packets((0, A, A, SYN), (1, A, A, SYN))])["packets_out"].tolist() == [2]


# A reference, packet by packet

IDLE, ACTIVE = 10.0, 5.0


def reference(chunk: Packets) -> list[tuple[Any, ...]]:
    """Client, counts, times and outcome of each flow, as the docstring of assemble says; sorted."""
    states: dict[Any, dict[str, Any]] = {}
    done = []
    for p in chunk:
        t, flags, protocol = int(p["time"]), int(p["flags"]), int(p["protocol"])
        me = (p["source"].tobytes(), int(p["source_port"]))
        you = (p["target"].tobytes(), int(p["target_port"]))
        key = (frozenset((me, you)), protocol, int(p["ip_version"]))
        s = states.get(key)
        syn = flags & (SYN | ACK) == SYN
        silent = s is None or abs(t - s["time"]) > IDLE * SECOND
        closed = s is not None and ("R" in s["closing"] or len(s["closing"] - {"R"}) == 2)
        if s is None or silent or (syn and closed) or t - s["start"] > ACTIVE * SECOND:
            closing = set() if s is None or silent else s["closing"]
            s = states[key] = {"start": t, "times": [], "p": [], "closing": closing, "client": me, "syn": False}
            done.append((key, s))
        if silent or syn:
            s["closing"] = set()
        s["closing"] = s["closing"] | ({me} if flags & FIN else set()) | ({"R"} if flags & RST else set())
        if syn and not s["syn"]:
            s["client"], s["syn"] = me, True
        s["time"] = t
        s["times"].append(max([t, *s["times"][-1:]]))
        s["p"].append((me, int(p["payload"]), flags))
    return sorted(_row(protocol, s) for (_, protocol, _), s in done)


def _row(protocol: int, s: dict[str, Any]) -> tuple[Any, ...]:
    client = s["client"]
    out, back = ([q for q in s["p"] if (q[0] == client) == way] for way in (True, False))
    gaps = np.diff(s["times"]) / SECOND if len(s["times"]) > 1 else np.zeros(1)
    sizes = [np.std([q[1] for q in way if q[1]]) if any(q[1] for q in way) else 0.0 for way in (out, back)]
    called = any(q[2] & (SYN | ACK) == SYN for q in out)
    up = called and any(q[2] & SYN and q[2] & ACK for q in back)
    fins = [any(q[2] & FIN for q in way) for way in (out, back)]
    resets = [q[0] == client for q in s["p"] if q[2] & RST]
    if protocol != 6:
        outcome = "-"
    elif up:
        outcome = "SF" if all(fins) else "OTH" if not resets else "RSTO" if resets[0] else "RSTR"
    elif called and resets and not resets[0] and not up:
        outcome = "REJ"
    else:
        outcome = "S0" if called and not back and not fins[0] and not resets else "OTH"
    numbers = (len(out), len(back), sum(q[1] for q in out), sum(q[1] for q in back))
    times = (s["start"] / 1e9, (s["times"][-1] - s["start"]) / 1e9, float(gaps.mean()), float(gaps.std()))
    return (*client, *numbers, *times, *map(float, sizes), outcome)


def simple(table: Flows) -> list[tuple[Any, ...]]:
    names = (
        "client_port packets_out packets_in bytes_out bytes_in start duration gap_mean gap_std size_std_out size_std_in"
    )
    columns = [table[name].tolist() for name in names.split()]
    clients = [row.tobytes() for row in table["client"]]
    return sorted(zip(clients, *columns, outcomes(table), strict=True))


def close(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> bool:
    return len(a) == len(b) and all(
        x[:6] == y[:6] and x[-1] == y[-1] and np.allclose(x[6:-1], y[6:-1], rtol=1e-5, atol=1e-5)
        for x, y in zip(a, b, strict=True)
    )


def random_packets(n: int, seed: int, hosts: int = 3) -> Packets:
    """Traffic among few endpoints, with flags that mean little, silences, and steps back."""
    draw = np.random.default_rng(seed)
    steps = draw.choice([0, 0.001, 0.1, 1, 3, 11, -0.2, -30], n, p=[0.1, 0.2, 0.3, 0.2, 0.1, 0.04, 0.05, 0.01])
    out = np.zeros(n, PACKET)
    out["time"] = EPOCH + 10**12 + np.cumsum(np.rint(steps * 1e9).astype(np.int64))
    out["ip_version"] = draw.choice([4, 6], n)
    out["protocol"] = draw.choice([6, 6, 17], n)
    for name in ("source", "target"):
        out[name][:, 7] = draw.integers(0, 2, n)
        out[name][:, 15] = draw.integers(0, hosts, n)
        out[name + "_port"] = draw.choice([80, 40000], n)
    tcp = out["protocol"] == 6
    out["flags"] = np.where(tcp, draw.choice([SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST], n), 0)
    out["payload"] = draw.choice([0, 1, 100, 1448], n)
    out["ttl"] = draw.integers(1, 255, n)
    out["window"] = np.where(tcp, draw.integers(0, 65536, n), 0)
    return out


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_reference_agrees(hosts: int) -> None:
    for seed in range(12):
        chunk = random_packets(400, seed, hosts)
        chunk = chunk[(chunk["source"] != chunk["target"]).any(axis=1) | (chunk["source_port"] != chunk["target_port"])]
        assert close(simple(assemble([chunk], IDLE, ACTIVE)), reference(chunk))


def test_that_comparison_can_fail() -> None:
    chunk = random_packets(400, 0, hosts=1)
    chunk = chunk[(chunk["source"] != chunk["target"]).any(axis=1)]
    assert close(simple(assemble([chunk], IDLE, ACTIVE)), reference(chunk))
    assert not close(simple(assemble([chunk], IDLE * 3, ACTIVE)), reference(chunk))
    assert not close(simple(assemble([chunk], IDLE, ACTIVE / 2)), reference(chunk))
    assert not close(simple(assemble([chunk[:-1]], IDLE, ACTIVE)), reference(chunk))


# What a row may depend on


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_chunks_change_nothing(seed: int, cuts: list[int]) -> None:
    chunk = random_packets(300, seed)
    assert same(assemble(np.split(chunk, sorted(cuts)), IDLE, ACTIVE), assemble([chunk], IDLE, ACTIVE))


def test_slices_within_a_chunk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = random_packets(3000, 5)
    whole = assemble([chunk], IDLE, ACTIVE)
    monkeypatch.setattr(flows, "_SLICE", 7)
    assert same(assemble([chunk], IDLE, ACTIVE), whole)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(20, 300))
def test_other_flows_change_no_row(seed: int, size: int) -> None:
    """The row of every flow without host 9 is the same, bit for bit, whatever host 9 sends, and in between what."""
    chunk, other = random_packets(300, seed), random_packets(250, seed + 1)
    other["source"][:, 15] = 9
    draw = np.random.default_rng(seed)
    mixed = np.insert(chunk, np.sort(draw.integers(0, 301, len(other))), other)
    parts = [mixed[i : i + size] for i in range(0, len(mixed), size)]
    alone, beside = assemble([chunk], IDLE, ACTIVE), assemble(parts, IDLE, ACTIVE)
    mine = ~((beside["client"][:, 15] == 9) | (beside["server"][:, 15] == 9))
    assert same(alone, {name: column[mine] for name, column in beside.items()})
    assert mine.sum() < len(mine)


def test_interleaving_changes_nothing() -> None:
    chunk = random_packets(500, 8)
    names = ("source", "target", "source_port", "target_port", "protocol", "ip_version")
    ends = [tuple(p[name].tobytes() for name in names) for p in chunk]
    keys = [(frozenset((k[0] + k[2], k[1] + k[3])), *k[4:]) for k in ends]
    groups = {key: [i for i, k in enumerate(keys) if k == key] for key in keys}
    grouped = chunk[np.concatenate([groups[key] for key in sorted(groups, key=str, reverse=True)])]
    assert same(assemble([chunk], IDLE, ACTIVE), assemble([grouped], IDLE, ACTIVE))


def test_a_clock_of_all_traffic_would_be_seen() -> None:
    """The broken twin: times counted from the capture's first packet."""
    chunk, other = random_packets(200, 1), random_packets(1, 2)
    other["source"][:, 15] = 9
    other["time"] = EPOCH

    def broken(p: Packets) -> Flows:
        p = p.copy()
        p["time"] -= p["time"].min()
        return assemble([p])

    assert set(rows(assemble([chunk]))) <= set(rows(assemble([np.concatenate([other, chunk])])))
    assert not set(rows(broken(chunk))) <= set(rows(broken(np.concatenate([other, chunk]))))


def test_colliding_hashes_keep_flows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = random_packets(400, 3)
    expected = assemble([chunk], IDLE, ACTIVE)
    # Were all keys hashed alike, packets of a flow would stand in pieces, and still be one flow.
    sort = np.argsort
    monkeypatch.setattr(flows.np, "argsort", lambda a, kind=None: sort(a * (kind is not None), kind=kind))
    assert same(assemble([chunk], IDLE, ACTIVE), expected)


def test_hostile_sequences_take_no_longer() -> None:
    n = 60_000
    chunk = np.repeat(packets((0, A, B, SYN)), n)
    chunk["flags"][1::2] = RST
    chunk["time"] += np.arange(n) * 10**6
    assert len(assemble([chunk])["start"]) == n // 2
    assert len(assemble([chunk], idle=1, active=0.0015)["start"]) == n // 2
    udp = np.repeat(packets((0, A, C, "udp")), n)
    udp["time"] += np.arange(n) * 10**9
    assert len(assemble([udp], idle=2, active=1.5)["start"]) == n // 2


def test_extreme_times_neither_crash_nor_warn() -> None:
    chunk = np.repeat(packets((0, A, C, "udp")), 6)
    chunk["time"] = [0, 2**33 * 10**9 - 1, 0, 1, 2**33 * 10**9 - 1, 5]
    table = assemble([chunk], idle=6 * 3600, active=1e300)
    assert len(table["start"]) == 5
    assert (table["duration"] >= 0).all()


# The real thing


@pytest.mark.data
def test_iot_sentinel() -> None:
    """Beside nfstream's flows of the same runs: packets, and flows that begin at the same millisecond."""
    folder = Path(os.environ.get("SIMPE_DATA", ""), "network")
    if "SIMPE_DATA" not in os.environ or not (folder / "iot_sentinel").is_dir():
        pytest.skip("set SIMPE_DATA to a folder that holds network/iot_sentinel/ and iot_sentinel_flows.csv")
    theirs = tables.read(folder / "iot_sentinel_flows.csv", extra={"file": "file"})
    compared = agreeing = 0
    for path in sorted((folder / "iot_sentinel").rglob("*.pcap")):
        mine = assemble(capture.read(path))
        chosen = (theirs["label"] == path.parent.name) & (theirs["file"] == path.name)
        if not chosen.any():
            continue
        found = {key: i for i, key in enumerate(_keys(mine))}
        other = {name: column[chosen] for name, column in theirs.items()}
        for i, key in enumerate(_keys(other)):
            if other["protocol"][i] not in (6, 17):
                continue
            compared += 1
            j = found.get(key)
            names = ("packets_out", "packets_in")
            agreeing += j is not None and all(mine[name][j] == other[name][i] for name in names)
    assert compared > 2500
    assert agreeing > 0.97 * compared


def _keys(table: Flows) -> list[tuple[Any, ...]]:
    milliseconds = np.floor(table["start"] * 1000 + 1e-3).astype(np.int64).tolist()
    names = ("client_port", "server_port", "protocol")
    ends = [table[name].tolist() for name in names]
    addresses = [a.tobytes() + b.tobytes() for a, b in zip(table["client"], table["server"], strict=True)]
    return list(zip(addresses, *ends, milliseconds, strict=True))
