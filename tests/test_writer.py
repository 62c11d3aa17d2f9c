"""Captures: what is read back is what was planned, bytes are as scapy builds them, and tools find nothing wrong."""

import collections
import ipaddress
import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from simpe.simulators.network import capture, payloads, profiles, writer
from simpe.simulators.network import flows as reader
from simpe.simulators.network.profiles import NAMES, NDPI
from simpe.simulators.network.schema import OUTCOMES
from simpe.simulators.network.simulator import ROW, Traffic, rows_of

TRAFFIC = Traffic()


def some_flows(n, seed=0, most=None, parameters=None):
    p = (parameters or TRAFFIC.random)(n, torch.Generator().manual_seed(seed))
    for way in ("out", "in") if most else ():
        p[f"packets_{way}"] = p[f"packets_{way}"].clamp(max=most)
    return p, TRAFFIC.flows(p)


def tool(name, package):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is missing: apt-get install {package}")
    return name


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A capture of all profiles: its path and its flow table."""
    _, flows = some_flows(1500, seed=11, most=40)
    path = tmp_path_factory.mktemp("capture") / "flows.pcap"
    writer.write(path, flows)
    return path, flows


# --- read back


def keys(flows):
    columns = [flows[name].astype("<u2")[:, None].view(np.uint8) for name in ("client_port", "server_port", "protocol")]
    table = np.concatenate([flows["client"], flows["server"], *columns], axis=1)
    return np.ascontiguousarray(table).view(f"V{table.shape[1]}").ravel().tolist()


def read_back(path, flows, p):
    """Rows read from a capture and rows of the parameters, flow by flow."""
    table = reader.assemble(capture.read(path))
    place = {key: i for i, key in enumerate(keys(table))}
    order = np.array([place[key] for key in keys(flows)])
    assert len(order) == len(table["start"]) == len(set(order.tolist()))
    table = {name: value[order] for name, value in table.items()}
    internal = [TRAFFIC.internal, TRAFFIC.internal_v6]
    return rows_of(table, TRAFFIC.start, TRAFFIC.length, internal), TRAFFIC.render(p)


@pytest.mark.parametrize("parameters", [TRAFFIC.random, TRAFFIC.space.sample])
@pytest.mark.parametrize("nanosecond", [False, True])
def test_a_capture_reads_back_as_its_parameters(tmp_path, parameters, nanosecond):
    p, flows = some_flows(2500, seed=1, most=60, parameters=parameters)
    packets = writer.write(tmp_path / "a.pcap", flows, nanosecond=nanosecond)
    assert packets == int((flows["packets_out"] + flows["packets_in"]).sum())
    rows, planned = read_back(tmp_path / "a.pcap", flows, p)
    for i, name in enumerate(ROW):
        if name in ("duration", "rtt", "gap_mean", "gap_std", "start"):
            # Two roundings to the file's unit, and float32 in the table's round trip.
            exact = {"rtol": 1e-6, "atol": 2e-9 if nanosecond and name != "start" else 2e-6}
        elif name.startswith("size_std"):
            exact = {"rtol": 1e-5, "atol": 1e-3}  # float32 in the table; cancelling squares in the reader
        elif name == "client":
            continue
        else:
            exact = {"rtol": 0, "atol": 0}
        torch.testing.assert_close(rows[:, i], planned[:, i], **exact, msg=lambda m, name=name: f"{name}: {m}")
    embed = TRAFFIC.embedder
    assert float((embed(rows) - embed(planned)).abs().max()) < 1e-4


def test_large_flows_read_back(tmp_path):
    p = TRAFFIC.random(4, torch.Generator().manual_seed(0))
    p["profile"][:] = torch.tensor([NAMES.index(name) for name in ("bulk", "tls", "mqtt", "flood")])
    for way in ("out", "in"):
        p[f"packets_{way}"][:] = 9000
        p[f"bytes_{way}"][:] = 9e6
    p["outcome"][:] = 0
    flows = TRAFFIC.flows(p)
    writer.write(tmp_path / "a.pcap", flows)
    rows, planned = read_back(tmp_path / "a.pcap", flows, p)
    torch.testing.assert_close(rows[:, 8:12], planned[:, 8:12], rtol=0, atol=0)


def test_no_flows_make_an_empty_capture(tmp_path):
    _, flows = some_flows(3)
    assert writer.write(tmp_path / "a.pcap", {name: value[:0] for name, value in flows.items()}) == 0
    assert (tmp_path / "a.pcap").stat().st_size == 24


def test_blocks_do_not_show(tmp_path, monkeypatch):
    _, flows = some_flows(400, most=50)
    writer.write(tmp_path / "a.pcap", flows)
    monkeypatch.setattr(writer, "_BLOCK", 500)
    writer.write(tmp_path / "b.pcap", flows)
    # Only the filler of payloads, and with it their checksums, depends on the block.
    one, two = ([(len(f), f[:34]) for f in frames(tmp_path / name)] for name in ("a.pcap", "b.pcap"))
    assert one == two


def test_times_are_ordered_and_within_the_window(written):
    path, _ = written
    times = np.concatenate([chunk["time"] for chunk in capture.read(path)])
    assert bool((np.diff(times) >= 0).all())
    assert times[0] >= TRAFFIC.start * 1e9
    assert times[-1] <= (TRAFFIC.start + TRAFFIC.length) * 1e9 + 1000


# --- byte by byte, in scapy


def frames(path):
    data = path.read_bytes()
    at = 24
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


def rebuilt(frame):
    """The frame as scapy builds it from its fields, checksums and lengths anew."""
    scapy = pytest.importorskip("scapy.all", reason="scapy is missing: pip install scapy")
    packet = scapy.Ether(frame)
    for layer in (
        scapy.IP,
        scapy.IPv6,
        scapy.TCP,
        scapy.UDP,
        scapy.ICMP,
        scapy.ICMPv6EchoRequest,
        scapy.ICMPv6EchoReply,
    ):
        if layer in packet:
            for name in ("chksum", "cksum", "len", "plen", "dataofs"):
                if name in packet[layer].fields:
                    delattr(packet[layer], name)
    return bytes(packet)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Frames of flows whose payload scapy leaves as it is, of every kind of header."""
    p = TRAFFIC.random(400, torch.Generator().manual_seed(2))
    kinds = [NAMES.index(name) for name in ("tcp", "udp", "icmp", "scan", "igmp", "bulk")]
    p["profile"] = torch.tensor(kinds)[p["profile"] % len(kinds)]
    p["server_port"][:] = 40_000
    for way in ("out", "in"):
        p[f"packets_{way}"] = p[f"packets_{way}"].clamp(max=6)
    p["ip_version"] = torch.arange(400) % 2
    path = tmp_path_factory.mktemp("plain") / "a.pcap"
    writer.write(path, TRAFFIC.flows(p))
    return list(frames(path))


def test_scapy_builds_the_same_bytes(plain):
    kinds = collections.Counter()
    for frame in plain[::2]:
        assert rebuilt(frame) == frame
        kinds[frame[12:14], frame[23] if frame[12] == 8 else frame[20]] += 1
    assert len(kinds) == 7  # TCP, UDP and ICMP of both versions, and IGMP


def test_scapy_sees_a_flipped_byte(plain):
    frame = bytearray(next(f for f in plain if f[12] == 8 and f[23] == 6))
    for place in (24, 50):  # the checksums of IP and TCP
        broken = frame.copy()
        broken[place] ^= 1
        assert rebuilt(bytes(broken)) != bytes(broken)


def test_sums_of_payloads_of_any_place_and_size():
    rng = np.random.default_rng(0)
    size = rng.integers(1, 9, 5000)
    arena = rng.integers(0, 256, int(size.sum()) + 1, dtype=np.uint8)
    for shift in (0, 1):
        at = np.cumsum(size) - size + shift
        seen = writer._folded(writer._payload_sums(arena, at, size))
        for a, s, total in zip(at.tolist(), size.tolist(), seen.tolist(), strict=True):
            piece = arena[a : a + s].tobytes() + b"\0" * (s % 2)
            plain_sum = sum(struct.unpack(f">{len(piece) // 2}H", piece))
            assert (plain_sum - total) % 0xFFFF == 0


# --- payloads


def test_messages_fit_what_their_profiles_promise():
    for (name, way), variants in payloads._MESSAGES.items():
        least = profiles.PROFILES[NAMES.index(name)].least[way == "in"]
        for variant, message in enumerate(variants):
            assert message is None or message.least <= least, (name, way, variant)


@pytest.mark.parametrize("name", ["dns", "mdns", "llmnr"])
def test_names_are_asked_and_answered_in_any_size(name):
    dns = pytest.importorskip("scapy.layers.dns", reason="scapy is missing: pip install scapy").DNS
    asked, size = (x.ravel() for x in np.meshgrid(np.arange(34, 400, 5), np.arange(50, 500, 3)))
    for way, length in (("out", asked), ("in", size)):
        at = np.cumsum(length) - length
        arena = payloads.filler(int(length.sum()))
        index = np.arange(len(at))
        payloads.fill(arena, np.full(len(at), NAMES.index(name)), way, at, length, index // 50, index, asked)
        for i in range(0, len(at), 23):
            message = dns(arena[at[i] : at[i] + length[i]].tobytes())
            assert (message.qr, message.qdcount, message.ancount) == ((0, 1, 0) if way == "out" else (1, 1, 1))
            assert message.qd[0].qname.endswith(b".example.")
            assert len(bytes(message)) == length[i]
            if way == "in" and length[i] >= asked[i] + 16 and asked[i] <= 93:
                assert len(message.qd[0].qname) == asked[i] - 17  # the question that was asked


def test_echoes_carry_what_was_sent(plain):
    payload = {}
    for frame in plain:
        if frame[12] == 8 and frame[23] == 1:
            ends = sorted([frame[26:30], frame[30:34]])
            assert payload.setdefault((*ends, frame[38:42]), frame[42:]) == frame[42:]
    assert len(payload) > 30


def test_pieces_of_any_size_are_copied():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, 5000, dtype=np.uint8)
    size = rng.integers(0, 2048, 300)
    at, to = rng.integers(0, 5000 - 2048, 300), np.cumsum(size) - size
    out = np.zeros(int(size.sum()), dtype=np.uint8)
    payloads.copy(out, to, source, at, size)
    assert out.tobytes() == b"".join(source[a : a + s].tobytes() for a, s in zip(at, size, strict=True))


# --- in other people's tools


def dissected(path):
    """Of each packet in tshark: checksum states, tcp.analysis.flags, the worst expert severity, SYN and RST."""
    columns = ["ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status",
               "icmpv6.checksum.status", "igmp.checksum.status", "_ws.malformed", "_ws.expert.severity",
               "tcp.analysis.flags", "tcp.flags"]  # fmt: skip
    checks = [x for name in ("ip", "tcp", "udp") for x in ("-o", f"{name}.check_checksum:TRUE")]
    fields = [x for name in columns for x in ("-e", name)]
    command = [tool("tshark", "tshark"), "-r", str(path), *checks, "-T", "fields", "-E", "separator=;", *fields]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = collections.Counter()
    for line in lines:
        cells = line.split(";")
        found["packets"] += 1
        found["bad checksum"] += any(state not in ("", "1") for cell in cells[:6] for state in cell.split(","))
        found["malformed"] += cells[6] != ""
        found["error"] += "8388608" in cells[7].split(",")  # PI_ERROR
        # A SYN that is sent again is meant to show.
        found["analysis"] += cells[8] != "" and int(cells[9].split(",")[0], 16) & 0x3F != 2
    return {name: count for name, count in found.items() if count}


def test_tshark_finds_nothing_wrong(written):
    path, flows = written
    assert dissected(path) == {"packets": int((flows["packets_out"] + flows["packets_in"]).sum())}


def test_tshark_finds_what_is_wrong(written, tmp_path):
    tool("tshark", "tshark")
    data = bytearray(written[0].read_bytes()[:200_000])
    at, flipped, left_out = 24, 0, 0
    kept = data[:24]
    while at + 16 <= len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        record = data[at : at + 16 + length]
        at += 16 + length
        if len(record) < 16 + length:
            break
        if record[28] == 8 and record[39] == 6 and length > 54 and record[63] & 2 == 0:
            if left_out == 0:
                left_out += 1  # a segment that is lost
                continue
            if flipped < 3:
                record[66 + 1] ^= 0xFF
                flipped += 1
        kept += record
    (tmp_path / "broken.pcap").write_bytes(kept)
    found = dissected(tmp_path / "broken.pcap")
    assert found["bad checksum"] == 3
    assert found["analysis"] >= 1


def test_capinfos_says_the_times_are_ordered(written):
    command = [tool("capinfos", "wireshark-common"), "-o", "-c", "-M", str(written[0])]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Strict time order:   True" in told


def test_tcptrace_counts_the_complete_connections(written):
    path, flows = written
    command = [tool("tcptrace", "tcptrace"), "-n", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("(complete)") == int((flows["outcome"] == OUTCOMES.index("SF")).sum())


STREAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from nfstream import NFStreamer
if __name__ == "__main__":
    streamer = NFStreamer(source=sys.argv[1], idle_timeout=120, active_timeout=1800, n_meters=1)
    print(json.dumps([[f.src_ip, f.src_port, f.dst_ip, f.dst_port, f.protocol, f.application_name] for f in streamer]))
"""


def test_nfstream_counts_the_flows_and_names_the_profiles(written, tmp_path):
    pytest.importorskip("nfstream", reason="nfstream is missing: pip install nfstream")
    path, flows = written
    script = tmp_path / "stream.py"
    script.write_text(STREAM)
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=True)
    streamed = json.loads(done.stdout.splitlines()[-1])
    assert len(streamed) == len(flows["start"])

    declared = {}
    for i, profile in enumerate(flows["profile"].tolist()):
        ports = (
            (0, 0) if flows["protocol"][i] in (1, 58) else (int(flows["client_port"][i]), int(flows["server_port"][i]))
        )
        client, server = (ipaddress.ip_address(flows[side][i].tobytes()) for side in ("client", "server"))
        client, server = client.ipv4_mapped or client, server.ipv4_mapped or server
        declared[client, ports[0], server, ports[1], int(flows["protocol"][i])] = NAMES[profile]
    right = known = 0
    for source, source_port, target, target_port, protocol, name in streamed:
        key = (ipaddress.ip_address(source), source_port, ipaddress.ip_address(target), target_port, protocol)
        profile = declared[key]
        if profile in NDPI:
            known += 1
            right += name.split(".")[0].removesuffix("V6") == NDPI[profile]
    assert known > 1000
    assert right >= 0.95 * known
