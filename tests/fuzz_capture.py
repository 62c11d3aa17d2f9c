"""Damage captures in every way that comes to mind: `python tests/fuzz_capture.py [MUTATIONS] [SEED] [FOLDER]`.

Each mutation of a capture must be read or refused with InputError, in bounded processor time; the counts must add up;
every packet must hold what PACKET allows; and flows must assemble from it, with as many packets. FOLDER adds real
captures to those that are built here.
"""

from __future__ import annotations

import gzip
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from simpe.errors import InputError
from simpe.simulators.network import capture, flows

SECONDS = 5.0


def seeds() -> list[bytes]:
    """A small pcap and pcapng with TCP, UDP, ICMP, VLAN, IPv6 extensions, fragments and ARP, and their gzip."""
    tcp = struct.pack(">HHIIBBHHH", 1025, 80, 1, 0, 6 << 4, 2, 64240, 0, 0) + b"\x02\x04\x05\xb4"
    udp = struct.pack(">HHHH", 5353, 53, 12, 0) + b"abcd"
    icmp = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"ping"

    def ip4(number: int, body: bytes, fragment: int = 0) -> bytes:
        return (
            struct.pack(">BBHHHBBH4s4s", 69, 0, 20 + len(body), 1, fragment, 64, number, 0, b"\1\2\3\4", b"\5\6\7\x08")
            + body
        )

    def ip6(number: int, body: bytes) -> bytes:
        return struct.pack(">IHBB16s16s", 6 << 28, len(body), number, 64, b"A" * 16, b"B" * 16) + body

    mac = bytes(12)
    frames = [
        mac + b"\x08\x00" + ip4(6, tcp),
        mac + b"\x08\x00" + ip4(17, udp),
        mac + b"\x08\x00" + ip4(1, icmp),
        mac + b"\x08\x00" + ip4(17, udp, 0x2000),
        mac + b"\x08\x00" + ip4(17, udp, 5),
        mac + b"\x81\x00\x00\x05\x08\x00" + ip4(6, tcp),
        mac + b"\x86\xdd" + ip6(0, b"\x2b\0" + bytes(6) + b"\x3c\0" + bytes(6) + b"\x06\0" + bytes(6) + tcp),
        mac + b"\x86\xdd" + ip6(44, b"\x11\0\0\1" + bytes(4) + udp),
        mac + b"\x08\x06" + bytes(28),
    ]
    pcap = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    pcapng = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    pcapng += struct.pack("<IIHHIHHB3xHHI", 1, 32, 1, 0, 0, 9, 1, 6, 0, 0, 32)
    for i, frame in enumerate(frames * 2):
        pcap += struct.pack("<IIII", 1_600_000_000 + 40 * i, i, len(frame), len(frame)) + frame
        padded = frame + bytes(-len(frame) % 4)
        size = 32 + len(padded)
        pcapng += struct.pack("<IIIIIII", 6, size, 0, 350_000, i * 10**6, len(frame), len(frame)) + padded
        pcapng += struct.pack("<I", size)
    return [pcap, pcapng, gzip.compress(pcap), gzip.compress(pcapng)]


def mutate(content: bytes, draw: np.random.Generator) -> bytes:
    """Flip, overwrite, cut, repeat or drop a few stretches."""
    data = bytearray(content)
    for _ in range(int(draw.integers(1, 6))):
        if not data:
            break
        at = int(draw.integers(0, len(data)))
        size = int(draw.integers(1, 9))
        match int(draw.integers(0, 7)):
            case 0:
                data[at] ^= 1 << int(draw.integers(0, 8))
            case 1:
                data[at : at + size] = draw.bytes(min(size, len(data) - at))
            case 2:
                data[at : at + size] = b"\xff" * min(size, len(data) - at)
            case 3:
                data[at : at + size] = bytes(min(size, len(data) - at))
            case 4:
                del data[at:]
            case 5:
                del data[at : at + size * 4]
            case _:
                data[at:at] = data[at : at + 16 * size]
    return bytes(data)


def check(path: Path) -> bool:
    """Whether a file was read; AssertionError where something is wrong with what was."""
    counts = capture.Counts()
    begin = time.process_time()
    try:
        packets = np.concatenate(list(capture.read(path, counts)))
    except InputError as error:
        lines = str(error).splitlines()
        packets = np.zeros(0, capture.PACKET)
    else:
        lines = [""]
    assert len(lines) == 1
    assert counts.packets == counts.kept + counts.other + counts.fragments + counts.malformed
    assert len(packets) == counts.kept
    assert np.isin(packets["ip_version"], (4, 6)).all()
    assert (packets["payload"] <= capture._MAX_RECORD).all()
    assert (packets["time"] >= 0).all()
    table = flows.assemble([packets])
    assert int((table["packets_out"] + table["packets_in"]).sum()) == len(packets)
    for name, column in table.items():
        assert np.isfinite(column.astype(np.float64)).all(), name
        assert (column >= 0).all(), name
    assert time.process_time() - begin < SECONDS
    return len(packets) > 0


def run(mutations: int, seed: int = 0, folder: Path | None = None) -> int:
    """Read that many mutations; returns how many still held packets."""
    draw = np.random.default_rng(seed)
    contents = seeds()
    if folder is not None:
        real = sorted(path for path in folder.rglob("*") if path.is_file())[:40]
        contents += [path.read_bytes()[: 1 << 14] for path in real]
    read = 0
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "x")
        for _ in range(mutations):
            path.write_bytes(mutate(contents[int(draw.integers(0, len(contents)))], draw))
            read += check(path)
    return read


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    held = run(n, int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(f"{n} mutations read or refused; {held} still held packets")
