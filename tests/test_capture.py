"""Reading captures: what scapy builds comes back field by field; what is broken is counted, skipped or refused."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import socket
import struct
from pathlib import Path

import fuzz_capture
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether, Loopback
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter

from simpe.errors import InputError
from simpe.simulators.network import capture
from simpe.simulators.network.capture import PACKET, Counts, Packets, is_capture, read

conf.verb = 0
SOURCE, TARGET = "10.11.12.13", "192.168.200.201"
SOURCE6, TARGET6 = "2001:db8::a:b", "fe80::1:2:3"


def pcap(
    frames: list[bytes],
    link: int = 1,
    order: str = "<",
    nano: bool = False,
    cut: int = 1 << 18,
    start: int = 1_600_000_000,
) -> bytes:
    """A pcap file, one frame a second and a bit."""
    out = struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, cut, link)
    for i, frame in enumerate(frames):
        data = frame[:cut]
        out += struct.pack(order + "IIII", start + i, 7 * i, len(data), len(frame)) + data
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int = 1, options: bytes = b"", order: str = "<") -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, 0) + options, order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(frame: bytes, ticks: int, which: int = 0, order: str = "<") -> bytes:
    head = struct.pack(order + "IIIII", which, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(6, head + frame, order)


def load(path: Path | list[Path], counts: Counts | None = None) -> Packets:
    return np.concatenate([np.zeros(0, PACKET), *read(path, counts)])


def load_bytes(folder: Path, content: bytes, counts: Counts | None = None) -> Packets:
    path = folder / "x"
    path.write_bytes(content)
    return load(path, counts)


def refused(path: Path | list[Path], *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1
    for part in parts:
        assert part in str(caught.value)


def address(text: str) -> bytes:
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(text)


ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OPTIONS = [("NOP", None), ("MSS", 1380), ("WScale", 7), ("SAckOK", b"")]
IP4, IP6 = IP(src=SOURCE, dst=TARGET, ttl=61), IPv6(src=SOURCE6, dst=TARGET6, hlim=62)
LAYERS = {
    "syn": (TCP(sport=1025, dport=443, flags="S", window=64240, options=OPTIONS), b""),
    "data": (TCP(sport=1025, dport=443, flags="PA", window=501, options=[("Timestamp", (1, 2))]), b"x" * 77),
    "udp": (UDP(sport=5353, dport=53), b"y" * 33),
    "icmp": (ICMP(type=8, code=0, id=3, seq=4), b"z" * 20),
}


def expected(ip: Packet, layer: Packet, payload: bytes) -> dict[str, object]:
    tcp = isinstance(layer, TCP)
    four = ip.version == 4
    return {
        "source": address(ip.src),
        "target": address(ip.dst),
        "ip_version": ip.version,
        "protocol": {TCP: 6, UDP: 17, ICMP: 1}.get(type(layer), 58),
        "source_port": layer.sport if isinstance(layer, TCP | UDP) else layer.type,
        "target_port": layer.dport if isinstance(layer, TCP | UDP) else layer.code,
        "payload": len(payload),
        "flags": int(layer.flags) if tcp else 0,
        "ttl": ip.ttl if four else ip.hlim,
        "window": layer.window if tcp else 0,
        "mss": dict(layer.options).get("MSS", 0) if tcp else 0,
    }


def check(packet: np.void, wanted: dict[str, object]) -> None:
    for name, value in wanted.items():
        found = packet[name].tobytes() if isinstance(value, bytes) else packet[name]
        assert found == value, name


# What scapy builds

IPS = {
    4: [IP4, IP(src=SOURCE, dst=TARGET, ttl=61, options=[IPOption_NOP()] * 5)],
    6: [
        IP6,
        IP6 / IPv6ExtHdrHopByHop(),
        IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt(),
        IP6 / IPv6ExtHdrFragment(offset=0, m=1),
    ],
}
LINKS = {
    "ethernet": (1, ETHERNET),
    "vlan": (1, ETHERNET / Dot1Q(vlan=5)),
    "qinq": (1, ETHERNET / Dot1AD(vlan=6) / Dot1Q(vlan=5)),
    "cooked": (113, CookedLinux()),
    "cooked 2": (276, CookedLinuxV2()),
    "raw": (101, None),
    "null": (0, Loopback()),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("version", [4, 6])
def test_fields_are_those_that_scapy_set(tmp_path: Path, link: str, layer: str, version: int) -> None:
    transport, payload = LAYERS[layer] if (layer, version) != ("icmp", 6) else (ICMPv6EchoReply(id=1, seq=2), b"z" * 20)
    number, below = LINKS[link]
    frames = []
    for ip in IPS[version]:
        whole = ip / transport / Raw(payload)
        if below is not None:
            below = below.copy()
            if isinstance(below, CookedLinux | CookedLinuxV2):
                below.proto = 0x0800 if version == 4 else 0x86DD
            whole = below / whole
        # Padding behind the IP packet counts for nothing.
        frames.append(bytes(whole) + (b"\0" * 9 if link == "ethernet" else b""))
    counts = Counts()
    found = load_bytes(tmp_path, pcap(frames, number), counts)
    assert len(found) == len(frames) == counts.packets
    for packet in found:
        check(packet, expected(IPS[version][0], transport, payload))
    assert found["time"].tolist() == [(1_600_000_000 + i) * 10**9 + 7000 * i for i in range(len(frames))]


def test_icmp6_and_others(tmp_path: Path) -> None:
    frames = [
        bytes(ETHERNET / IP6 / ICMPv6EchoReply(id=1, seq=2, data=b"12345")),
        bytes(ETHERNET / IP(src=SOURCE, dst=TARGET, proto=47) / Raw(b"123")),
        bytes(ETHERNET / ARP()),
        bytes(ETHERNET)[:12] + b"\x00\x10" + bytes(40),
    ]
    counts = Counts()
    found = load_bytes(tmp_path, pcap(frames), counts)
    check(found[0], {"protocol": 58, "source_port": 129, "target_port": 0, "payload": 5, "ip_version": 6})
    check(found[1], {"protocol": 47, "source_port": 0, "target_port": 0, "payload": 3})
    assert (counts.kept, counts.other, counts.malformed) == (2, 2, 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_pcap_of_any_order_and_resolution(tmp_path: Path, order: str, nano: bool, packed: bool) -> None:
    frames = [bytes(ETHERNET / IP4 / UDP(sport=i, dport=9)) for i in range(1, 4)]
    content = pcap(frames, order=order, nano=nano)
    found = load_bytes(tmp_path, gzip.compress(content) if packed else content)
    assert found["source_port"].tolist() == [1, 2, 3]
    assert (found["time"] % 10**9).tolist() == [0, 7, 14] if nano else [0, 7000, 14000]
    assert is_capture(tmp_path / "x")


def test_scapy_s_own_files(tmp_path: Path) -> None:
    packets = [ETHERNET / IP4 / UDP(sport=i, dport=9) / Raw(b"q" * i) for i in range(1, 40)]
    for i, packet in enumerate(packets):
        packet.time = 1_500_000_000.25 + i
    for writer in (PcapWriter, PcapNgWriter):
        with writer(str(tmp_path / "x")) as file:
            file.write(packets)
        found = load(tmp_path / "x")
        assert found["payload"].tolist() == list(range(1, 40))
        assert found["time"].tolist() == [(1_500_000_000 + i) * 10**9 + 250_000_000 for i in range(39)]


UDP_FRAME = bytes(ETHERNET / IP4 / UDP(sport=7, dport=9) / Raw(b"hello"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "units"),
    [
        (None, 10**6),
        (b"\x00", 1),
        (b"\x03", 10**3),
        (b"\x09", 10**9),
        (b"\x0c", 10**12),
        (b"\x8a", 2**10),
        (b"\xa8", 2**40),
    ],
)
def test_pcapng_resolutions(tmp_path: Path, order: str, resolution: bytes | None, units: int) -> None:
    second = 1_600_000_000 if units < 10**12 else 10_000_000
    fraction = units // 3
    options = option(2, b"eth0", order) + (option(9, resolution, order) if resolution else b"") + option(0, b"", order)
    content = section(order) + interface(1, options, order) + enhanced(UDP_FRAME, second * units + fraction, 0, order)
    (packet,) = load_bytes(tmp_path, content)
    assert abs(int(packet["time"]) - (second * 10**9 + fraction * 10**9 // units)) <= 1
    check(packet, {"payload": 5, "source_port": 7})


def test_pcapng_of_several_sections_and_interfaces(tmp_path: Path) -> None:
    raw = bytes(IP4 / UDP(sport=8, dport=9))
    content = section() + interface(1) + block(5, bytes(20)) + enhanced(UDP_FRAME, 10**6)
    content += enhanced(raw, 2 * 10**6, 1)  # before its interface is declared
    content += interface(101, option(14, struct.pack("<q", 100))) + enhanced(raw, 3 * 10**6, 1)
    content += section(">") + interface(147, order=">") + enhanced(UDP_FRAME, 4 * 10**6, 0, ">")
    content += interface(101, order=">") + enhanced(raw, 5 * 10**6, 1, ">") + enhanced(raw, 5 * 10**6, 2, ">")
    content += block(3, struct.pack(">I", len(UDP_FRAME)) + UDP_FRAME, ">")  # no time
    content += block(2, struct.pack(">HHIIII", 1, 0, 0, 6 * 10**6, len(raw), len(raw)) + raw, ">")
    counts = Counts()
    found = load_bytes(tmp_path, content, counts)
    assert (found["time"] // 10**9).tolist() == [1, 103, 5, 6]
    assert found["source_port"].tolist() == [7, 8, 8, 8]
    assert (counts.packets, counts.kept, counts.malformed, counts.other, counts.damaged) == (8, 4, 2, 2, 0)


def test_packets_cut_by_a_snapshot_length_keep_their_sizes(tmp_path: Path) -> None:
    frames = [bytes(ETHERNET / IP4 / layer / Raw(b"p" * 900)) for layer, _ in LAYERS.values()]
    frames.append(bytes(ETHERNET / IP6 / LAYERS["data"][0] / Raw(b"p" * 900)))
    found = load_bytes(tmp_path, pcap(frames, cut=68))
    assert found["payload"].tolist() == [900] * 5
    assert found["mss"][0] == 1380
    assert len(load_bytes(tmp_path, pcap(frames[:1], cut=14 + 20 + 14))) == 1
    refused_counts = Counts()
    with pytest.raises(InputError, match="no IP packet"):
        load_bytes(tmp_path, pcap(frames[:1], cut=14 + 20 + 13), refused_counts)
    assert refused_counts.malformed == 1


def test_fragments_but_the_first_are_left_out(tmp_path: Path) -> None:
    whole = IP4 / UDP(sport=7, dport=9) / Raw(b"f" * 1000)
    fragments = [bytes(ETHERNET / part) for part in whole.fragment(400)]
    six = bytes(ETHERNET / IP6 / IPv6ExtHdrFragment(offset=5, nh=17) / Raw(b"\xff" * 60))
    counts = Counts()
    found = load_bytes(tmp_path, pcap([*fragments, six]), counts)
    assert found["source_port"].tolist() == [7]
    assert (counts.kept, counts.fragments, counts.malformed) == (1, 3, 0)


def test_a_length_of_zero_is_a_segment_not_yet_cut(tmp_path: Path) -> None:
    frame = bytearray(bytes(ETHERNET / IP4 / UDP(sport=7, dport=9) / Raw(b"f" * 100)))
    frame[16:18] = b"\0\0"
    assert load_bytes(tmp_path, pcap([bytes(frame)]))["payload"].tolist() == [100]


# Several files


def test_folders_files_and_what_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.cap").write_bytes(pcap([UDP_FRAME]))
    (folder / "deep" / "a").write_bytes(gzip.compress(section() + interface() + enhanced(UDP_FRAME, 10**6)))
    (folder / ".hidden").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"hello")
    (folder / "empty").write_bytes(b"")
    (folder / "wifi").write_bytes(pcap([UDP_FRAME], link=127))
    (folder / "short").write_bytes(pcap([])[:20])
    counts, seen = Counts(), []
    found = list(
        read([folder, tmp_path / "nowhere", folder / "b.cap"], counts, lambda done, of: seen.append((done, of)))
    )
    assert sum(map(len, found)) == 3
    assert (counts.files, counts.packets) == (3, 3)
    reasons = "\n".join(counts.unusable)
    for part in (
        "notes.txt: is no capture",
        "empty: is empty",
        "wifi: link type 127",
        "short: ends",
        "nowhere: no such",
    ):
        assert part in reasons
    assert len(counts.unusable) == 5
    assert seen == sorted(seen)
    assert not is_capture(folder / "notes.txt")
    assert not is_capture(folder)
    refused(folder / "notes.txt", "notes.txt", "is no capture")
    refused([folder / "notes.txt", folder / "empty"], "none of the inputs", "notes.txt")
    refused(tmp_path / "nul\0", "no such file")
    refused([], "no input")
    (tmp_path / "nothing").mkdir()
    refused(tmp_path / "nothing", "no file in it")


# Damage


def test_a_last_packet_cut_short_is_counted(tmp_path: Path) -> None:
    for content in (pcap([UDP_FRAME] * 3), section() + interface() + enhanced(UDP_FRAME, 1) * 3):
        last = content.rindex(UDP_FRAME)
        for end in (last - 1, last + 5, last + len(UDP_FRAME) - 1):
            for packed in (False, True):
                cut = content[:end]
                counts = Counts()
                assert len(load_bytes(tmp_path, gzip.compress(cut) if packed else cut, counts)) == 2
                assert (counts.damaged, counts.packets) == (1, 2)
        packed_file = gzip.compress(content)
        counts = Counts()
        assert len(load_bytes(tmp_path, packed_file[:-4], counts)) == 3
        assert counts.damaged == 1


@pytest.mark.parametrize("length", [capture._MAX_RECORD + 1, 100 * 10**9 % 2**32, 2**32 - 1])
def test_claims_of_100_gigabytes_end_the_file(tmp_path: Path, length: int) -> None:
    counts = Counts()
    content = pcap([UDP_FRAME]) + struct.pack("<IIII", 1, 1, length, length) + bytes(1000)
    assert len(load_bytes(tmp_path, content, counts)) == 1
    assert counts.damaged == 1
    counts = Counts()
    content = section() + interface() + enhanced(UDP_FRAME, 1) + struct.pack("<II", 6, length | 1 << 30) + bytes(1000)
    assert len(load_bytes(tmp_path, content, counts)) == 1
    assert counts.damaged == 1


def test_loops_in_ip6_headers_end(tmp_path: Path) -> None:
    def chain(n: int) -> bytes:
        headers = b"".join(struct.pack("BB6x", 0 if i < n - 1 else 17, 0) for i in range(n))
        udp = struct.pack(">HHHH", 7, 9, 8, 0)
        body = headers + udp
        head = struct.pack(">IHBB", 6 << 28, len(body), 0, 64) + address(SOURCE6) + address(TARGET6)
        return bytes(ETHERNET)[:12] + b"\x86\xdd" + head + body

    counts = Counts()
    assert (
        len(load_bytes(tmp_path, pcap([chain(capture._MAX_EXTENSIONS), chain(capture._MAX_EXTENSIONS + 1)]), counts))
        == 1
    )
    assert counts.malformed == 1
    endless = chain(3)[:-9] + b"\0"
    with pytest.raises(InputError, match="no IP packet"):
        load_bytes(tmp_path, pcap([endless, chain(200)[:100]]))


def test_many_sections_and_interfaces_are_not_believed(tmp_path: Path) -> None:
    turning = b"".join(section(o) + interface(order=o) + enhanced(UDP_FRAME, 1, 0, o) for o in "<>" * 40)
    counts = Counts()
    assert len(load_bytes(tmp_path, turning, counts)) < 40
    assert counts.damaged == 1
    counts = Counts()
    content = section() + interface() + enhanced(UDP_FRAME, 1) + interface() * (capture._MAX_INTERFACES + 1)
    assert len(load_bytes(tmp_path, content, counts)) == 1
    assert counts.damaged == 1
    assert len(load_bytes(tmp_path, (section() + interface() + enhanced(UDP_FRAME, 1)) * 1000)) == 1000


def test_a_zip_bomb_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_RATIO_FROM", 1 << 23)
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        file.write(pcap([UDP_FRAME]))
        for _ in range(64):
            file.write(bytes(1 << 20))
    counts = Counts()
    found = load_bytes(tmp_path, out.getvalue(), counts)
    assert len(found) == 1
    assert counts.damaged == 1
    assert counts.packets < (1 << 24) / 16 + 10**6


def test_captures_without_ip_are_refused(tmp_path: Path) -> None:
    for content in (pcap([]), pcap([bytes(ETHERNET / ARP())]), section() + interface(), pcap([b""])):
        (tmp_path / "x").write_bytes(content)
        refused(tmp_path / "x", "no IP packet")


def test_absurd_times(tmp_path: Path) -> None:
    good, late = enhanced(UDP_FRAME, 10**6), enhanced(UDP_FRAME, 2**64 - 1)
    counts = Counts()
    seconds = interface(1, option(9, b"\0"))
    assert len(load_bytes(tmp_path, section() + seconds + late + interface() + enhanced(UDP_FRAME, 1, 1), counts)) == 1
    assert counts.malformed == 1
    early = interface(1, option(14, struct.pack("<q", -(10**9))))
    assert len(load_bytes(tmp_path, section() + interface() + good + early + enhanced(UDP_FRAME, 1, 1))) == 1


FRAMES = [bytes(ETHERNET / ip / layer / Raw(load)) for ip in (IP4, IP6) for layer, load in LAYERS.values()]
FRAMES += [bytes(ETHERNET / IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=7, dport=9) / Raw(b"x" * 9))]


@settings(max_examples=150, deadline=None)
@given(
    frame=st.sampled_from(FRAMES),
    end=st.integers(0, 120),
    flips=st.lists(st.tuples(st.integers(12, 100), st.integers(0, 255)), max_size=3),
    neighbours=st.tuples(st.binary(max_size=80), st.binary(max_size=80)),
)
def test_nothing_is_read_past_a_packet(
    tmp_path_factory: pytest.TempPathFactory,
    frame: bytes,
    end: int,
    flips: list[tuple[int, int]],
    neighbours: tuple[bytes, bytes],
) -> None:
    changed = bytearray(frame)
    for at, value in flips:
        changed[at % len(changed)] = value
    cut = bytes(changed)[:end]
    rows = []
    for after in neighbours:
        raw = np.frombuffer(cut + after + bytes(64), np.uint8)
        one = np.array([0])
        counts = Counts()
        found = capture._decode(raw, one, np.array([len(cut)]), np.array([500]), one, np.array([1]), counts)
        rows.append((found.tobytes(), counts))
    assert rows[0] == rows[1]


def test_that_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_transport", _without_bounds(capture._transport))
    raw = [np.frombuffer(FRAMES[0][:40] + byte * 64, np.uint8) for byte in (b"\0", b"P")]
    one = np.array([0])
    rows = [
        capture._decode(r, one, np.array([40]), np.array([60]), one, np.array([1]), Counts()).tobytes() for r in raw
    ]
    assert rows[0] != rows[1]


def _without_bounds(transport):  # type: ignore[no-untyped-def]
    def broken(packets, raw, at, length, have, protocol):  # type: ignore[no-untyped-def]
        return transport(packets, raw, at, length, length, protocol)

    return broken


def test_no_message_holds_a_payload_or_an_address(tmp_path: Path) -> None:
    mark = b"MARKEDBYTES"
    contents = [mark * 50, pcap([mark * 9]), pcap([bytes(ETHERNET / ARP(psrc="77.66.55.44"))]), gzip.compress(mark)]
    contents += [gzip.compress(mark)[:-3], mark[:1], section() + mark * 9]
    for content in contents:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError) as caught:
            load(tmp_path / "x")
        assert "MARKED" not in str(caught.value)
        assert "77.66" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_slice_of_the_fuzzing() -> None:
    fuzz_capture.run(1200, seed=1)


# The real thing


def reference(path: Path) -> list[tuple[int, bytes, bytes, int, int, int, int]]:
    """Time, addresses, protocol, ports and payload bytes, packet by packet with dpkt."""
    import dpkt

    rows = []
    with path.open("rb") as file:
        for time, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ethernet.Ethernet(frame).data
            if isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6):
                four = isinstance(ip, dpkt.ip.IP)
                src, dst = (bytes(10) + b"\xff\xff" + a if four else a for a in (ip.src, ip.dst))
                l4, number = ip.data, ip.p if four else ip.nxt
                ports = (0, 0)
                if isinstance(l4, dpkt.tcp.TCP | dpkt.udp.UDP):
                    ports = (l4.sport, l4.dport)
                elif isinstance(l4, dpkt.icmp.ICMP | dpkt.icmp6.ICMP6):
                    ports = (l4.type, l4.code)
                rows.append((round(time * 10**6), src, dst, number, *ports))
    return rows


def simple(packets: Packets) -> list[tuple[int, bytes, bytes, int, int, int]]:
    names = ("protocol", "source_port", "target_port")
    return [
        (int(p["time"]) // 1000, p["source"].tobytes(), p["target"].tobytes(), *(int(p[name]) for name in names))
        for p in packets
    ]


def test_the_reference_agrees_on_random_packets(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    frames = [
        FRAMES[i][: 14 + 54 + int(n)] for i, n in zip(draw.integers(0, 4, 300), draw.integers(0, 60, 300), strict=True)
    ]
    for port, frame in enumerate(frames):
        frames[port] = frame[:34] + struct.pack(">H", port) + frame[36:] if frame[23] != 1 else frame
    (tmp_path / "x").write_bytes(pcap(frames))
    assert simple(load(tmp_path / "x")) == reference(tmp_path / "x")


@pytest.mark.data
def test_iot_sentinel() -> None:
    folder = Path(os.environ.get("SIMPE_DATA", ""), "network", "iot_sentinel")
    if "SIMPE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set SIMPE_DATA to a folder that holds network/iot_sentinel/, 155 captures")
    counts = Counts()
    found = load(folder, counts)
    assert (counts.files, counts.packets, counts.malformed, counts.damaged) == (155, 54_084, 0, 0)
    paths = sorted(folder.rglob("*.pcap"))
    wanted = list(itertools.chain.from_iterable(reference(path) for path in paths))
    mine = simple(found)
    assert len(mine) == len(wanted) == counts.kept
    differing = [(a, b) for a, b in zip(mine, wanted, strict=True) if a != b]
    # dpkt names the hop-by-hop header where the real protocol stands behind it.
    assert all(a[:3] == b[:3] and b[3] == 0 for a, b in differing)
