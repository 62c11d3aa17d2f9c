"""Packets out of captures: pcap and pcapng, plain or gzip, in chunks of bounded size.

Finding where each packet begins is a loop by nature, since each record says where the next one starts. It is the only
thing here that runs once a packet: all decoding is NumPy over a chunk. The loop is our own, as the readers of dpkt,
scapy and python-pcapng make objects of every packet (alone slower than everything here), believe the lengths in the
file, and do not say where they stopped. Formats: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-06.html and
draft-ietf-opsawg-pcapng; link types: https://www.tcpdump.org/linktypes.html.

No message holds anything of a packet.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simpe.data import is_url, opened
from simpe.errors import InputError

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16

PACKET = np.dtype(
    [
        ("time", np.int64),  # nanoseconds since 1970
        ("source", np.uint8, 16),  # address; IPv4 as ::ffff:a.b.c.d
        ("target", np.uint8, 16),
        ("ip_version", np.uint8),  # 4 or 6
        ("protocol", np.uint8),  # IP protocol number, past any IPv6 extension headers
        ("source_port", np.uint16),  # of ICMP, the type; 0 where there are none
        ("target_port", np.uint16),  # of ICMP, the code
        ("payload", np.uint32),  # bytes behind the transport header, by the lengths in the headers
        ("flags", np.uint8),  # of TCP, else 0
        ("ttl", np.uint8),
        ("window", np.uint16),  # of TCP, unscaled
        ("mss", np.uint16),  # of a TCP SYN; 0 where it says none
    ]
)
"""What is kept of a packet: 57 bytes."""

Packets = npt.NDArray[np.void]
"""Packets of one chunk: (n,) of PACKET, in the order of the capture."""

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of all files, as they are stored."""

_Integers = npt.NDArray[np.int64]
_Raw = npt.NDArray[np.uint8]

_CHUNK = 1 << 22
_PAD = bytes(64)
_MAX_RECORD = 1 << 18  # libpcap's MAXIMUM_SNAPLEN
_MAX_BLOCK = 1 << 24  # Wireshark's limit for a pcapng block
_MAX_INTERFACES = 1 << 16
_MAX_TURNS = 16  # changes of byte order within one pcapng file
_MAX_SECOND = 1 << 33  # nanoseconds of later times do not fit; a damaged record
_MAX_TAGS = 4
_MAX_EXTENSIONS = 8
_MAX_RATIO, _RATIO_FROM = 200, 1 << 30  # gzip: unpacked bytes a packed byte, judged past 1 GiB

# Magic of a pcap file -> byte order and nanoseconds in a unit of its fractions.
_PCAP = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_ORDERS = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
_GZIP = b"\x1f\x8b"
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_TSRESOL, _TSOFFSET = 9, 14

# Link type -> where its EtherType stands (None: the IP header itself tells) and where IP begins.
_LINKS: dict[int, tuple[int | None, int]] = {
    1: (12, 14),  # Ethernet
    113: (14, 16),  # Linux cooked
    276: (0, 20),  # Linux cooked, version 2
    0: (None, 4),  # BSD loopback
    108: (None, 4),  # OpenBSD loopback
    **dict.fromkeys((12, 14, 101, 228, 229), (None, 0)),  # raw IP
}
_IP4, _IP6 = 0x0800, 0x86DD
_TAGS = (0x8100, 0x88A8, 0x9100)
_FRAGMENT, _AUTHENTICATION = 44, 51
_EXTENSION = np.zeros(256, dtype=bool)
_EXTENSION[[0, 43, _FRAGMENT, _AUTHENTICATION, 60, 135, 139, 140]] = True


@dataclass
class Counts:
    """What became of the input, for the operator's eyes: these numbers are private.

    Each of ``packets`` is one of ``kept``, ``other``, ``fragments`` and ``malformed``.
    """

    files: int = 0  # captures read, whole or in part
    unusable: list[str] = field(default_factory=list)  # one line for each input that is no capture we read
    damaged: int = 0  # files whose rest was lost: a last packet cut short, or a length that cannot be
    packets: int = 0
    kept: int = 0  # IP packets
    other: int = 0  # not IP, of a link type that is not read, or without a time
    fragments: int = 0  # IP fragments but the first of each packet: they have no ports, so no flow
    malformed: int = 0  # headers that contradict themselves or were not captured


class NoTraffic(InputError):
    """Captures without a packet of IP."""


class _Unusable(Exception):
    """Why a file cannot be used, in words for the user."""


def is_capture(path: str | Path) -> bool:
    """Whether a file begins as a pcap or pcapng file does, packed or not. Raises nothing."""
    with suppress(OSError, EOFError, zlib.error, InputError), opened(path) as file:
        magic = unpacked(file).read(4)
        return magic in _PCAP or magic == _PCAPNG
    return False


def read(
    paths: str | Path | Iterable[str | Path], counts: Counts | None = None, progress: Progress | None = None
) -> Iterator[Packets]:
    """The IP packets of one or several captures, file by file in the order given, in chunks of some megabytes.

    ``paths``: files, their URLs, or folders. A folder gives all regular files in it, however deep, in the order of
    their names; hidden ones are left out. Each file is known by its first bytes: pcap (either byte order, micro- or
    nanoseconds), pcapng, or gzip of one. Link types: Ethernet with up to four VLAN tags, Linux cooked (1 and 2), raw
    IP, BSD loopback. ``counts`` is filled while reading.

    Memory does not grow with the captures. Payload sizes follow from the lengths in the headers, so packets that were
    cut by a snapshot length are whole here, as long as the headers were captured: 14 bytes of TCP, the ports of UDP.
    Later fragments of an IP packet are counted and left out. Damaged files are read as far as they go. The order of
    files matters where they hold the same conversation: merge captures that overlap in time (mergecap) beforehand.

    Raises InputError where none of the inputs is a capture, or none holds an IP packet; that is found at the end.
    """
    counts = Counts() if counts is None else counts
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = [file for path in given for file in _files(path, counts)]
    total = sum(size for _, size in files)
    done = 0
    for path, size in files:
        try:
            with opened(path) as file:
                for packets in _read_file(file, counts):
                    if progress is not None:
                        progress(min(done + file.tell(), total), total)
                    counts.kept += len(packets)
                    if len(packets):
                        yield packets
            counts.files += 1
        except _Unusable as reason:
            counts.unusable.append(f"{path}: {reason}")
        except OSError:
            counts.unusable.append(f"{path}: cannot be read; check its permissions")
        done += size
    if counts.files == 0:
        first = counts.unusable[0] if counts.unusable else "no input: give a capture"
        raise InputError(first if len(counts.unusable) < 2 else f"none of the inputs is usable; the first: {first}")
    if counts.kept == 0:
        raise NoTraffic(f"{', '.join(map(str, given))}: no IP packet in it; give a capture of IP traffic")


def unpacked(file: BufferedReader) -> BufferedReader | gzip.GzipFile:
    """The file, read through gzip where its first bytes say so. It must stand at its beginning and be seekable."""
    packed = file.read(2) == _GZIP
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file


def _files(given: str | Path, counts: Counts) -> list[tuple[str | Path, int]]:
    """The regular files that a path stands for, and their sizes in bytes; a URL's size is not asked for."""
    if is_url(given):
        return [(given, 0)]
    path = Path(given)
    try:
        if path.is_dir():
            found = [Path(at, name) for at, _, names in os.walk(path) for name in names]
            hidden = [any(part.startswith(".") for part in file.relative_to(path).parts) for file in found]
            found = sorted(file for file, hide in zip(found, hidden, strict=True) if file.is_file() and not hide)
            if not found:
                counts.unusable.append(f"{path}: no file in it; give a folder of captures")
            return [(file, file.stat().st_size) for file in found]
        if path.is_file():
            return [(path, path.stat().st_size)]
    except (OSError, ValueError):  # ValueError: a NUL in the name
        pass
    counts.unusable.append(f"{path}: no such file or folder; check the path")
    return []


class _Source:
    """Reads a file without believing it: an end, a gzip error and a zip bomb all look like the end."""

    def __init__(self, file: BufferedReader):
        self._file = file
        self._plain = unpacked(file)
        self._bytes = 0
        self.broken = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        if self._bytes > _RATIO_FROM and self._bytes > _MAX_RATIO * self._file.tell():
            self.broken = True
        parts: list[bytes] = []
        try:
            # Piece by piece, so that what stands before an error is not lost with it.
            while size > 0 and not self.broken and (part := self._plain.read1(size)):
                parts.append(part)
                size -= len(part)
        except (OSError, EOFError, zlib.error):  # gzip.BadGzipFile is an OSError
            self.broken = True
        data = b"".join(parts)
        self._bytes += len(data)
        return data


def _read_file(file: BufferedReader, counts: Counts) -> Iterator[Packets]:
    source = _Source(file)
    magic = source.read(4)
    if magic in _PCAP:
        yield from _read_pcap(source, magic, counts)
    elif magic == _PCAPNG:
        yield from _read_pcapng(source, counts)
    elif not magic and not source.broken:
        raise _Unusable("is empty; give a pcap or pcapng file")
    else:
        raise _Unusable("is no capture; give a pcap or pcapng file, plain or gzip")


def _read_pcap(source: _Source, magic: bytes, counts: Counts) -> Iterator[Packets]:
    order, unit = _PCAP[magic]
    header = source.read(20)
    if len(header) < 20:
        raise _Unusable("ends within its header; capture again")
    link = struct.unpack(order + "16xI", header)[0] & 0xFFFF  # the upper bits tell of the frame check sequence
    if link not in _LINKS:
        raise _Unusable(f"link type {link} is not read; capture on Ethernet, Linux cooked, raw IP or loopback")
    length_of = struct.Struct(order + "I").unpack_from
    rest, lost = b"", False
    while not lost and (piece := source.read(_CHUNK)):
        data = b"".join((rest, piece, _PAD))
        end, at = len(data) - len(_PAD), 0
        starts: list[int] = []
        while at + 16 <= end:
            length = length_of(data, at + 8)[0]
            if length > _MAX_RECORD:
                lost = True
                break
            if at + 16 + length > end:
                break
            starts.append(at)
            at += 16 + length
        rest = data[at:end]
        if starts:
            raw, start = np.frombuffer(data, np.uint8), np.array(starts)
            seconds, fraction, captured, wire = (_take(raw, order + "u4", start + 4 * i) for i in range(4))
            time = seconds.astype(np.int64) * 1_000_000_000 + fraction.astype(np.int64) * unit
            yield _decode(raw, start + 16, captured, wire, time, np.full(len(start), link), counts)
    counts.damaged += lost or source.broken or rest != b""


def _read_pcapng(source: _Source, counts: Counts) -> Iterator[Packets]:
    """Blocks of a pcapng file. Interfaces of all sections stand in one list; a section begins at ``first``."""
    rest, lost, turns, order = _PCAPNG, False, 0, "<"
    interfaces: list[tuple[int, int, int]] = []
    first = 0
    while not lost and (piece := source.read(_CHUNK)):
        data = b"".join((rest, piece, _PAD))
        end, at = len(data) - len(_PAD), 0
        starts: list[int] = []
        head = struct.Struct(order + "II").unpack_from
        # Which interfaces are known from where on: position, begin of the section, number so far.
        known = [(-1, first, len(interfaces))]
        while at + 12 <= end:
            kind, length = head(data, at)
            if kind == _SECTION:  # reads the same in either byte order
                turned = _ORDERS.get(data[at + 8 : at + 12])
                if turned is None or turns > _MAX_TURNS:
                    lost = True
                    break
                if turned != order:
                    yield _decode_blocks(data, order, starts, known, interfaces, counts)
                    starts, order, turns = [], turned, turns + 1
                    head = struct.Struct(order + "II").unpack_from
                    length = head(data, at)[1]
            if length < 12 or length > _MAX_BLOCK:
                lost = True
                break
            length = (length + 3) & ~3
            if at + length > end:
                break
            if kind in (_PACKET, _OLD_PACKET):
                starts.append(at)
            elif kind == _INTERFACE:
                interfaces.append(_interface(data[at : at + length], order))
                known.append((at, first, len(interfaces)))
            elif kind == _SECTION:
                first = len(interfaces)
                known.append((at, first, first))
            elif kind == _SIMPLE_PACKET:
                counts.packets += 1
                counts.other += 1
            at += length
            if len(interfaces) > _MAX_INTERFACES:
                lost = True
                break
        rest = data[at:end]
        yield _decode_blocks(data, order, starts, known, interfaces, counts)
    counts.damaged += lost or source.broken or rest != b""


def _interface(block: bytes, order: str) -> tuple[int, int, int]:
    """Link type, time units a second, and seconds to add, of an Interface Description Block."""
    if len(block) < 20:
        return -1, 1, 0
    link = struct.unpack_from(order + "H", block, 8)[0]
    units, offset, at = 10**6, 0, 16
    for _ in range(64):  # options: a code and a length each
        if at + 8 > len(block):
            break
        code, length = struct.unpack_from(order + "HH", block, at)
        value = block[at + 4 : min(at + 4 + length, len(block) - 4)]
        if code == 0:
            break
        if code == _TSRESOL and value:
            power = value[0] & 0x7F
            units = 2**power if value[0] & 0x80 else 10**power
        if code == _TSOFFSET and len(value) == 8:
            offset = struct.unpack(order + "q", value)[0]
        at += 4 + (length + 3 & ~3)
    # A clock too fine for 64 bits, or set off by more than any date, leaves no times to read.
    return (link, units, offset) if units < 2**63 and abs(offset) < _MAX_SECOND else (-1, 1, 0)


def _decode_blocks(
    data: bytes,
    order: str,
    starts: list[int],
    known: list[tuple[int, int, int]],
    interfaces: list[tuple[int, int, int]],
    counts: Counts,
) -> Packets:
    """The packets of Enhanced Packet Blocks (and of the obsolete Packet Blocks) that begin at ``starts``."""
    if not starts:
        return np.zeros(0, PACKET)
    raw, at = np.frombuffer(data, np.uint8), np.array(starts)
    kind, length, _, high, low, captured, wire = (_take(raw, order + "u4", at + 4 * i) for i in range(7))
    old = _take(raw, order + "u2", at + 8)
    position, first, last = np.array(known).T
    state = np.searchsorted(position, at, side="right") - 1
    which = first[state] + np.where(kind == _PACKET, _take(raw, order + "u4", at + 8), old).astype(np.int64)
    table = np.array([*interfaces, (-1, 1, 0)], dtype=np.int64)
    unknown = which >= last[state]
    link, units, offset = table[np.where(unknown, len(interfaces), which)].T

    ticks = high.astype(np.uint64) << np.uint64(32) | low
    scale = units.astype(np.uint64)
    seconds = (ticks // scale).clip(max=2 * _MAX_SECOND).astype(np.int64) + offset
    fraction = np.rint((ticks % scale) / scale * 1e9).astype(np.int64)
    good = ~unknown & (seconds >= 0) & (seconds < _MAX_SECOND) & (captured.astype(np.int64) + 32 <= length)
    counts.packets += int((~good).sum())
    counts.malformed += int((~good).sum())
    time = seconds[good] * 1_000_000_000 + fraction[good]
    return _decode(raw, (at + 28)[good], captured[good], wire[good], time, link[good], counts)


def _take(raw: _Raw, dtype: str, at: _Integers) -> npt.NDArray[Any]:
    """The values of a type that begin at each position; past the end the last one, for the caller to mask."""
    size = np.dtype(dtype).itemsize
    view = np.ndarray(len(raw) - size + 1, dtype, raw, strides=(1,))
    return view[np.minimum(at, len(view) - 1)]


def _int(raw: _Raw, dtype: str, at: _Integers) -> _Integers:
    return _take(raw, dtype, at).astype(np.int64)


def _decode(
    raw: _Raw,
    start: _Integers,
    captured: npt.NDArray[np.integer],
    wire: npt.NDArray[np.integer],
    time: _Integers,
    link: _Integers,
    counts: Counts,
) -> Packets:
    """The IP packets among frames that begin at ``start`` and hold ``captured`` of ``wire`` bytes; all (n,).

    Nothing behind a frame's captured bytes decides anything: what is gathered from there is masked.
    """
    counts.packets += len(start)
    ethertype, skip = _link_layer(raw, start, captured.astype(np.int64), link)
    ip = np.flatnonzero((ethertype == _IP4) | (ethertype == _IP6))
    counts.other += len(start) - len(ip)

    at = start[ip] + skip[ip]
    room = captured[ip].astype(np.int64) - skip[ip]
    sent = np.minimum(wire[ip].astype(np.int64), _MAX_RECORD) - skip[ip]
    four = ethertype[ip] == _IP4
    # Rows: whether the headers hold, whether it is a later fragment, protocol, TTL, header and total length.
    layer = np.zeros((6, len(ip)), dtype=np.int64)
    for which, parse in ((four, _ip4), (~four, _ip6)):
        layer[:, which] = parse(raw, at[which], room[which], sent[which])
    ok, later, protocol, _, header, total = layer
    counts.malformed += int((ok == 0).sum())
    counts.fragments += int((ok & later).sum())

    keep = np.flatnonzero(ok & ~later)
    segment, length = (at + header)[keep], (total - header)[keep]
    have = np.minimum((room - header)[keep], length)
    packets = np.zeros(len(keep), PACKET)
    valid = _transport(packets, raw, segment, length, have, protocol[keep])
    packets["time"] = time[ip[keep]]
    packets["ip_version"] = np.where(four[keep], 4, 6)
    packets["protocol"] = protocol[keep]
    packets["ttl"] = layer[3, keep]
    i4, i6 = np.flatnonzero(four[keep]), np.flatnonzero(~four[keep])
    for name, offset4, offset6 in (("source", 12, 8), ("target", 16, 24)):
        packets[name][i4, 10:12] = 255
        packets[name][i4, 12:] = _bytes(raw, at[keep[i4]] + offset4, 4)
        packets[name][i6] = _bytes(raw, at[keep[i6]] + offset6, 16)
    counts.malformed += int((~valid).sum())
    return packets[valid]


def _bytes(raw: _Raw, at: _Integers, size: int) -> _Raw:
    return _take(raw, f"V{size}", at).view(np.uint8).reshape(len(at), size)


def _link_layer(raw: _Raw, start: _Integers, captured: _Integers, link: _Integers) -> tuple[_Integers, _Integers]:
    """EtherType, 0 where there is none, and the length of all headers below IP."""
    ethertype, skip = np.zeros(len(start), dtype=np.int64), np.zeros(len(start), dtype=np.int64)
    for kind in set(np.unique(link).tolist()) & _LINKS.keys():
        where, length = _LINKS[kind]
        i = np.flatnonzero((link == kind) & (captured > length))
        skip[i] = length
        if where is None:
            version = _int(raw, "u1", start[i] + length) >> 4
            ethertype[i] = np.select([version == 4, version == 6], [_IP4, _IP6], 0)
        else:
            ethertype[i] = _int(raw, ">u2", start[i] + where)
    for _ in range(_MAX_TAGS):
        i = np.flatnonzero(np.isin(ethertype, _TAGS))
        ethertype[i] = np.where(skip[i] + 4 <= captured[i], _int(raw, ">u2", start[i] + skip[i] + 2), 0)
        skip[i] += 4
    return ethertype, skip


def _ip4(raw: _Raw, at: _Integers, room: _Integers, sent: _Integers) -> tuple[npt.NDArray[Any], ...]:
    first = _int(raw, "u1", at)
    header = (first & 15) * 4
    total = _int(raw, ">u2", at + 2)
    total = np.where(total == 0, sent, total)  # segmentation offloaded: the length is not yet written
    ok = (room >= 20) & (first >> 4 == 4) & (header >= 20) & (header <= total)
    later = _int(raw, ">u2", at + 6) & 0x1FFF != 0
    return ok, later, _int(raw, "u1", at + 9), _int(raw, "u1", at + 8), header, total


def _ip6(raw: _Raw, at: _Integers, room: _Integers, sent: _Integers) -> tuple[npt.NDArray[Any], ...]:
    length = _int(raw, ">u2", at + 4)
    total = np.where(length == 0, sent, length + 40)
    protocol = _int(raw, "u1", at + 6)
    header = np.full(len(at), 40)
    ok = (room >= 40) & (_int(raw, "u1", at) >> 4 == 6) & (header <= total)
    later = np.zeros(len(at), dtype=bool)
    for _ in range(_MAX_EXTENSIONS):
        i = np.flatnonzero(ok & ~later & _EXTENSION[protocol])
        if len(i) == 0:
            break
        here, kind = at[i] + header[i], protocol[i]
        units = _int(raw, "u1", here + 1)
        size = np.select([kind == _FRAGMENT, kind == _AUTHENTICATION], [8, (units + 2) * 4], (units + 1) * 8)
        ok[i] = header[i] + 8 <= np.minimum(room[i], total[i])
        later[i] = (kind == _FRAGMENT) & (_int(raw, ">u2", here + 2) & 0xFFF8 != 0)
        protocol[i] = _int(raw, "u1", here)
        header[i] += size
    ok &= (header <= total) & (later | ~_EXTENSION[protocol])
    return ok, later, protocol, _int(raw, "u1", at + 7), header, total


def _transport(
    packets: Packets, raw: _Raw, at: _Integers, length: _Integers, have: _Integers, protocol: _Integers
) -> npt.NDArray[np.bool_]:
    """Fill in what the transport headers say; returns where they hold. ``have`` of ``length`` bytes were captured."""
    tcp, udp, icmp = protocol == TCP, protocol == UDP, (protocol == ICMP) | (protocol == ICMP6)
    valid = np.ones(len(at), dtype=bool)
    header = np.zeros(len(at), dtype=np.int64)

    i = np.flatnonzero(tcp)
    header[i] = (_int(raw, "u1", at[i] + 12) >> 4) * 4
    valid[i] = (have[i] >= 14) & (header[i] >= 20) & (header[i] <= length[i])
    packets["flags"][i] = _take(raw, "u1", at[i] + 13)
    packets["window"][i] = np.where(have[i] >= 16, _take(raw, ">u2", at[i] + 14), 0)
    syn = i[valid[i] & (packets["flags"][i] & SYN != 0)]
    packets["mss"][syn] = _mss(raw, at[syn] + 20, at[syn] + np.minimum(header[syn], have[syn]))

    i = np.flatnonzero(udp)
    header[i] = 8
    valid[i] = (have[i] >= 4) & (length[i] >= 8)

    i = np.flatnonzero(tcp | udp)
    packets["source_port"][i] = _take(raw, ">u2", at[i])
    packets["target_port"][i] = _take(raw, ">u2", at[i] + 2)

    i = np.flatnonzero(icmp)
    header[i] = np.minimum(8, length[i])
    valid[i] = have[i] >= 2
    packets["source_port"][i] = _take(raw, "u1", at[i])
    packets["target_port"][i] = _take(raw, "u1", at[i] + 1)

    packets["payload"] = np.maximum(length - header, 0)
    return valid


def _mss(raw: _Raw, at: _Integers, end: _Integers) -> _Integers:
    """The maximum segment size among the TCP options from ``at`` to ``end``; 0 where there is none."""
    found = np.zeros(len(at), dtype=np.int64)
    at = at.copy()
    for _ in range(40):  # 40 bytes of options at most, each one byte or more
        i = np.flatnonzero(at < end)
        if len(i) == 0:
            break
        kind, size = _int(raw, "u1", at[i]), _int(raw, "u1", at[i] + 1)
        whole = (at[i] + 4 <= end[i]) & (kind == 2) & (size == 4)
        found[i] = np.where(whole, _int(raw, ">u2", at[i] + 2), 0)
        size = np.where(kind == 1, 1, size)
        over = whole | (kind == 0) | ((kind != 1) & (size < 2))
        at[i] = np.where(over, end[i], at[i] + size)
    return found
