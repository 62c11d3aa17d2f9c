"""Flow tables of other tools: CSV (plain or gzip) and Parquet into the columns of ``schema``.

A preset says what a tool calls each column and in which units; a Preset of your own does the same for any other table.
Rows are read one by one: what a row becomes depends on that row and the preset only, and a row that cannot be read is
dropped and counted. No message holds anything of a row.
"""

from __future__ import annotations

import csv
import importlib
import re
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simpe.data import is_url, opened
from simpe.errors import InputError
from simpe.simulators.network.capture import ICMP, ICMP6, TCP, UDP, unpacked
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, Flows, empty

HINTS = ("state", "flags", "syn", "fin", "rst", "rst_out", "rst_in")
"""Further columns that tell a TCP flow's outcome: Zeek's word for it; nfdump's flag letters; numbers of packets."""

_Numbers = npt.NDArray[np.float64]

_BLOCK = 1 << 22
_HEAD = 1 << 16
_MAX_ROWS = 1 << 25
_MAX_TEXT = 64
_MAX_SECOND = 2.0**33
_MAX_COUNT = 1e15
_NULLS = ("", "-", "(empty)", "nan", "NaN", "NA", "null", "None")
_PROTOCOLS = {"TCP": TCP, "UDP": UDP, "ICMP": ICMP, "ICMP6": ICMP6, "ICMPV6": ICMP6, "IPV6-ICMP": ICMP6}
_PROTOCOLS |= {"IGMP": 2, "GRE": 47, "ESP": 50, "AH": 51, "OSPF": 89, "SCTP": 132}
_OTHER = 255  # IP protocol number "reserved": a name that is not in the list
_HEADERS = {TCP: 20, UDP: 8, ICMP: 8, ICMP6: 8}
_ISO = r"^(?P<y>\d{4})-(?P<m>\d\d?)-(?P<d>\d\d?)[ T](?P<H>\d\d?):(?P<M>\d\d)(?::(?P<S>\d\d)(?P<f>\.\d{1,9})?)?Z?$"
_DAY_FIRST = (
    r"^(?P<d>\d\d?)/(?P<m>\d\d?)/(?P<y>\d{4}) (?P<H>\d\d?):(?P<M>\d\d)(?::(?P<S>\d\d)(?P<f>\.\d{1,9})?)?(?P<h> [AP]M)?$"
)
_NUMBER = r"^\s*[-+]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,3})?\s*$"


@dataclass(frozen=True)
class Preset:
    """How to read a table.

    - ``columns``: our name -> the name in the table, or several that it goes by (the first found counts). Our names
      are those of ``schema.COLUMNS`` and HINTS; any other name is kept as a column of text. Names are compared without
      regard to case and to what is neither letter nor digit.
    - ``scale``: our name -> factor to our unit. Without one for ``start``, numbers above 1e11, 1e14 and 1e17 are taken
      for milli-, micro- and nanoseconds. Dates without a zone are UTC.
    - ``bytes``: what the table's bytes hold. Of "ip" and "link" (Ethernet), headers without options are taken off, so
      some bytes of TCP options remain.
    - ``icmp_in_port``: the server port of ICMP is type x 256 + code (NetFlow), or the type (with its code lost).
    """

    columns: Mapping[str, str | tuple[str, ...]]
    scale: Mapping[str, float] = field(default_factory=dict)
    bytes: Literal["payload", "ip", "link"] = "payload"
    icmp_in_port: bool = False


PRESETS: Mapping[str, Preset] = {
    "simpe": Preset(
        {name: name for name in COLUMNS if name != "outcome"}
        | {"state": "outcome", "application": "application", "label": "label"}
    ),
    # https://www.nfstream.org/docs/api: sizes are those of frames by default (accounting_mode=0)
    "nfstream": Preset(
        {
            "client": "src_ip",
            "server": "dst_ip",
            "client_port": "src_port",
            "server_port": "dst_port",
            "protocol": "protocol",
            "start": "bidirectional_first_seen_ms",
            "duration": "bidirectional_duration_ms",
            "packets_out": "src2dst_packets",
            "packets_in": "dst2src_packets",
            "bytes_out": "src2dst_bytes",
            "bytes_in": "dst2src_bytes",
            "size_std_out": "src2dst_stddev_ps",
            "size_std_in": "dst2src_stddev_ps",
            "gap_mean": "bidirectional_mean_piat_ms",
            "gap_std": "bidirectional_stddev_piat_ms",
            "syn": "bidirectional_syn_packets",
            "fin": "bidirectional_fin_packets",
            "rst": "bidirectional_rst_packets",
            "rst_out": "src2dst_rst_packets",
            "rst_in": "dst2src_rst_packets",
            "application": "application_name",
            "label": "label",
        },
        dict.fromkeys(("start", "duration", "gap_mean", "gap_std"), 1e-3),
        bytes="link",
    ),
    # https://docs.zeek.org/en/master/logs/conn.html
    "zeek": Preset(
        {
            "client": "id.orig_h",
            "server": "id.resp_h",
            "client_port": "id.orig_p",
            "server_port": "id.resp_p",
            "protocol": "proto",
            "start": "ts",
            "duration": "duration",
            "packets_out": "orig_pkts",
            "packets_in": "resp_pkts",
            "bytes_out": "orig_bytes",
            "bytes_in": "resp_bytes",
            "state": "conn_state",
            "application": "service",
            "label": "label",
        }
    ),
    # One-way records, addresses as integers, time in microseconds: github.com/netsharecmu/NetShare, DanyuSun/NetDPSyn
    "netflow": Preset(
        {
            "client": "srcip",
            "server": "dstip",
            "client_port": "srcport",
            "server_port": "dstport",
            "protocol": "proto",
            "start": "ts",
            "duration": "td",
            "packets_out": "pkt",
            "bytes_out": "byt",
            "label": ("type", "label"),
        },
        bytes="ip",
        icmp_in_port=True,
    ),
    # The Java tool of version 3 and of CIC-IDS2017, and the Python port: github.com/ahlashkari/CICFlowMeter
    "cicflowmeter": Preset(
        {
            "client": ("Src IP", "Source IP"),
            "server": ("Dst IP", "Destination IP"),
            "client_port": ("Src Port", "Source Port"),
            "server_port": ("Dst Port", "Destination Port"),
            "protocol": "Protocol",
            "start": "Timestamp",
            "duration": "Flow Duration",
            "packets_out": ("Tot Fwd Pkts", "Total Fwd Packet", "Total Fwd Packets"),
            "packets_in": ("Tot Bwd Pkts", "Total Bwd packets", "Total Backward Packets"),
            "bytes_out": ("TotLen Fwd Pkts", "Total Length of Fwd Packet", "Total Length of Fwd Packets"),
            "bytes_in": ("TotLen Bwd Pkts", "Total Length of Bwd Packet", "Total Length of Bwd Packets"),
            "size_std_out": ("Fwd Pkt Len Std", "Fwd Packet Length Std"),
            "size_std_in": ("Bwd Pkt Len Std", "Bwd Packet Length Std"),
            "gap_mean": "Flow IAT Mean",
            "gap_std": "Flow IAT Std",
            "syn": ("SYN Flag Cnt", "SYN Flag Count"),
            "fin": ("FIN Flag Cnt", "FIN Flag Count"),
            "rst": ("RST Flag Cnt", "RST Flag Count"),
            "window_out": ("Init Fwd Win Byts", "FWD Init Win Bytes", "Init_Win_bytes_forward"),
            "window_in": ("Init Bwd Win Byts", "Bwd Init Win Bytes", "Init_Win_bytes_backward"),
            "label": "Label",
        },
        dict.fromkeys(("duration", "gap_mean", "gap_std"), 1e-6),
    ),
    # nfdump -o csv, up to 1.7.2 and since: github.com/phaag/nfdump
    "nfdump": Preset(
        {
            "client": ("sa", "srcAddr"),
            "server": ("da", "dstAddr"),
            "client_port": ("sp", "srcPort"),
            "server_port": ("dp", "dstPort"),
            "protocol": ("pr", "proto"),
            "start": ("ts", "firstSeen"),
            "duration": ("td", "duration"),
            "packets_out": ("ipkt", "packets"),
            "packets_in": "opkt",
            "bytes_out": ("ibyt", "bytes"),
            "bytes_in": "obyt",
            "flags": "flg",
            "label": "label",
        },
        bytes="ip",
        icmp_in_port=True,
    ),
}
"""Presets by name, in the order in which they are tried."""


@dataclass
class Counts:
    """What became of the input, for the operator's eyes: these numbers are private."""

    files: int = 0
    unusable: list[str] = field(default_factory=list)  # one line for each input that is no flow table we know
    rows: int = 0
    dropped: int = 0  # rows without a readable address, protocol, port, time or count


def read(
    paths: str | Path | Iterable[str | Path],
    preset: str | Preset | None = None,
    extra: Mapping[str, str] | None = None,
    counts: Counts | None = None,
) -> Flows:
    """The flows of one or several tables, in their order.

    ``preset`` is a name of PRESETS, a Preset of your own, or None to know the tool by the names of the columns.
    ``extra``: further columns to keep, our name -> the table's; they must be there. Columns of text, such as a label,
    come as (n,) strings; text above 64 characters makes a row unreadable. What a table does not tell is 0.

    The outcome of TCP follows from Zeek's state or from flags. Where a table does not tell who sent an RST, the client
    did; without either column the outcome is OTH.

    Raises InputError where no input is a flow table with the columns needed, where an option is wrong, where a table
    holds more than 33 million rows, or where pyarrow is missing. ``counts`` is filled while reading.
    """
    counts = Counts() if counts is None else counts
    if isinstance(preset, str) and preset not in PRESETS:
        raise InputError(f"preset {preset!r}: use one of {', '.join(PRESETS)}, or a mapping of columns")
    wanted = PRESETS[preset] if isinstance(preset, str) else preset
    parts: list[Flows] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            for part in _read_file(path, wanted, dict(extra or {}), counts):
                parts.append(part)
                if counts.rows > _MAX_ROWS:
                    raise InputError(f"{path}: holds more than {_MAX_ROWS} rows; give a part of it")
            counts.files += 1
        except _Unusable as reason:
            counts.unusable.append(f"{path}: {reason}")
    if counts.files == 0:
        first = counts.unusable[0] if counts.unusable else "no input: give a flow table"
        raise InputError(first if len(counts.unusable) < 2 else f"none of the inputs is usable; the first: {first}")
    names = list(COLUMNS) + sorted({name for part in parts for name in part} - COLUMNS.keys())
    if not parts:
        return empty(0)
    whole = [part | {n: np.full(len(part["start"]), "") for n in names if n not in part} for part in parts]
    return {name: np.concatenate([part[name] for part in whole]) for name in names}


class _Unusable(Exception):
    """Why a file cannot be used, in words for the user."""


def _arrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError("flow tables need pyarrow: install simpe[network]") from None


def _read_file(path: str | Path, preset: Preset | None, extra: dict[str, str], counts: Counts) -> Iterator[Flows]:
    """The flows of a table, block by block."""
    arrow = _arrow("pyarrow")
    try:
        with opened(path) as file:
            parquet = file.read(4) == b"PAR1"
            file.seek(0)
            names, batches = _parquet(file) if parquet else _csv(unpacked(file), counts)
            preset, found = _match(preset, names, extra)
            for columns in batches(sorted(set(found.values()))):
                flows, ok = _convert({ours: columns[at] for ours, at in found.items()}, preset)
                counts.rows += len(ok)
                counts.dropped += int((~ok).sum())
                yield {name: column[ok] for name, column in flows.items()}
    except arrow.ArrowException:
        raise _Unusable("is damaged, or is no table; give CSV or Parquet") from None
    except (OSError, EOFError, zlib.error, ValueError):
        there = is_url(path) or Path(path).is_file()
        raise _Unusable("is damaged or cannot be read; check it" if there else "no such file; check the path") from None


Batches = Callable[[list[int]], Iterator[dict[int, Any]]]


def _parquet(file: BufferedReader) -> tuple[list[str], Batches]:
    table = _arrow("pyarrow.parquet").ParquetFile(file)
    names = table.schema_arrow.names

    def batches(wanted: list[int]) -> Iterator[dict[int, Any]]:
        for batch in table.iter_batches(1 << 16, columns=[names[at] for at in wanted]):
            yield {at: batch.column(names[at]) for at in wanted}

    return names, batches


def _csv(file: BufferedReader | GzipFile, counts: Counts) -> tuple[list[str], Batches]:
    """Names of the columns, and a reader of some of them as bytes. Rows of another length are dropped."""
    arrow, reader = _arrow("pyarrow"), _arrow("pyarrow.csv")
    lines = file.read(_HEAD).decode("utf-8-sig", "replace").split("\n")
    file.seek(0)
    skip = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    fields = [line for line in lines[:skip] if line.startswith("#fields")]
    if fields:  # Zeek
        delimiter, names = "\t", fields[0].rstrip("\r").split("\t")[1:]
    elif skip < len(lines):
        delimiter = max(",\t;|", key=lines[skip].count)
        names = next(csv.reader([lines[skip]], delimiter=delimiter), [])
        skip += 1
    if (skip == len(lines) and not fields) or not names:
        raise _Unusable("holds no table; give CSV or Parquet with the names of its columns")

    def drop(row: Any) -> str:
        bad = not (row.text or "").startswith("#")  # Zeek's comments are no rows
        counts.rows += bad
        counts.dropped += bad
        return "skip"

    def batches(wanted: list[int]) -> Iterator[dict[int, Any]]:
        keys = [f"c{at}" for at in range(len(names))]
        try:
            stream = reader.open_csv(
                file,
                reader.ReadOptions(use_threads=False, block_size=_BLOCK, skip_rows=skip, column_names=keys),
                reader.ParseOptions(
                    delimiter=delimiter,
                    quote_char=False if fields else '"',
                    invalid_row_handler=drop,
                ),
                reader.ConvertOptions(
                    column_types=dict.fromkeys(keys, arrow.binary()),
                    include_columns=[keys[at] for at in wanted],
                    null_values=_NULLS,
                    strings_can_be_null=True,
                ),
            )
        except arrow.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return
            raise
        for batch in stream:
            yield {at: batch.column(keys[at]) for at in wanted}

    return names, batches


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _match(preset: Preset | None, names: list[str], extra: dict[str, str]) -> tuple[Preset, dict[str, int]]:
    """The preset, and our name -> index of the table's column."""
    where: dict[str, int] = {}
    for at, name in enumerate(names):
        where.setdefault(_plain(name), at)

    def find(columns: Mapping[str, str | tuple[str, ...]]) -> dict[str, int]:
        aliases = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in columns.items()}
        hits = {ours: [where[_plain(a)] for a in names if _plain(a) in where] for ours, names in aliases.items()}
        return {ours: at[0] for ours, at in hits.items() if at}

    if preset is None:
        fits = [p for p in PRESETS.values() if {"protocol", "packets_out", "duration"} <= find(p.columns).keys()]
        if not fits:
            known = ", ".join(PRESETS)
            raise _Unusable(f"is no table of {known}; say what its columns are called, with a mapping")
        preset = fits[0]
        must: Mapping[str, str | tuple[str, ...]] = extra
    else:
        named = preset in PRESETS.values()
        must = {**({k: preset.columns[k] for k in ("protocol", "packets_out")} if named else preset.columns), **extra}
    found = find({**preset.columns, **extra})
    for ours, theirs in must.items():
        if ours not in found:
            raise _Unusable(f"has no column {theirs!r} for {ours}; check the mapping")
    return preset, found


def _convert(columns: dict[str, Any], preset: Preset) -> tuple[Flows, npt.NDArray[np.bool_]]:
    """The flows of a block, and which of them could be read."""
    n = len(next(iter(columns.values())))
    flows = empty(n)
    ok = np.ones(n, dtype=bool)

    def numbers(name: str) -> _Numbers:
        return _numbers(columns[name]) * preset.scale.get(name, 1.0) if name in columns else np.zeros(n)

    def count(name: str, most: float = _MAX_COUNT) -> _Numbers:
        """A number that may be missing, but neither negative nor absurd."""
        value = np.nan_to_num(numbers(name), nan=0.0, posinf=np.inf, neginf=-np.inf)
        np.logical_and(ok, (value >= 0) & (value <= most), out=ok)
        return np.where(ok, value, 0)

    versions = [np.where(numbers("ip_version") == 6, 6, 4)]
    for side in columns.keys() & {"client", "server"}:
        table = _by_value(columns[side], _address, np.zeros(17, np.uint8))
        flows[side] = table[:, :16]
        versions.append(table[:, 16].astype(int))
    version = versions[-1]  # the addresses know best
    ok &= (version > 0) & (version == versions[-2 if len(versions) > 2 else -1])
    flows["ip_version"] = version.astype(np.uint8)

    protocol = _by_value(columns["protocol"], _protocol, np.array(-1)) if "protocol" in columns else np.zeros(n, int)
    ok &= protocol >= 0
    protocol = np.where(ok, protocol, 0)
    flows["protocol"] = protocol.astype(np.uint8)

    client_port, server_port = count("client_port", 65535), count("server_port", 65535).astype(np.int64)
    icmp = np.isin(protocol, (ICMP, ICMP6))
    if preset.icmp_in_port:
        client_port = np.where(icmp, np.where(server_port < 256, server_port, server_port >> 8), client_port)
        server_port = np.where(icmp, np.where(server_port < 256, 0, server_port & 255), server_port)
    flows["client_port"], flows["server_port"] = client_port.astype(np.uint16), server_port.astype(np.uint16)

    if "start" in columns:
        start = _times(columns["start"])
        powers = (start > 1e11).astype(int) + (start > 1e14) + (start > 1e17)
        start = start * preset.scale["start"] if "start" in preset.scale else start / 1000.0**powers
        ok &= (start >= 0) & (start < _MAX_SECOND)
        flows["start"] = np.where(ok, start, 0)
    flows["duration"] = count("duration", _MAX_SECOND)
    packets = [count(f"packets_{way}").astype(np.int64) for way in ("out", "in")]
    flows["packets_out"], flows["packets_in"] = packets
    headers = np.zeros(n)
    if preset.bytes != "payload":
        for number, length in _HEADERS.items():
            headers[protocol == number] = length
        headers += np.where(version == 6, 40, 20) + (14 if preset.bytes == "link" else 0)
    for way, number_of in zip(("out", "in"), packets, strict=True):
        payload = count(f"bytes_{way}") - headers * number_of
        flows[f"bytes_{way}"] = np.maximum(payload, 0).astype(np.int64)
        flows[f"size_std_{way}"] = count(f"size_std_{way}").astype(np.float32)
    mean = count("duration", _MAX_SECOND) / np.maximum(sum(packets) - 1, 1)
    flows["gap_mean"] = count("gap_mean") if "gap_mean" in columns else mean
    flows["gap_std"] = count("gap_std")
    flows["rtt"] = count("rtt").astype(np.float32)
    for name, most in (("ttl_out", 255), ("ttl_in", 255), ("window_out", 65535), ("window_in", 65535), ("mss", 65535)):
        value = np.nan_to_num(numbers(name))
        flows[name] = np.where((value >= 0) & (value <= most), value, 0).astype(COLUMNS[name])  # -1: unknown
    flows["outcome"] = _outcome(flows, columns, {name: np.nan_to_num(numbers(name)) for name in HINTS[2:]})

    for name in columns.keys() - COLUMNS.keys() - set(HINTS):
        # One character too many is kept to tell what is too long.
        text = _by_value(columns[name], lambda v: v.decode("utf-8", "replace")[: _MAX_TEXT + 1], np.array(""))
        ok &= np.char.str_len(text) <= _MAX_TEXT
        flows[name] = text
    return flows, ok


def _outcome(flows: Flows, columns: Mapping[str, Any], counts: Mapping[str, _Numbers]) -> npt.NDArray[np.uint8]:
    n = len(flows["start"])
    silent = flows["packets_in"] == 0
    other = OUTCOMES.index("OTH")
    if "state" in columns:
        words = {name.encode(): i for i, name in enumerate(OUTCOMES)}
        which = _by_value(columns["state"], lambda value: np.array(words.get(value, other)), np.array(other))
    else:
        if "flags" in columns:
            # A record of one direction: its FIN stands for both, and without ACK nobody answered.
            letters = _by_value(
                columns["flags"], lambda value: np.array([c in value for c in b"SFRA"]), np.zeros(4, bool)
            )
            syn, fin, rst, answered = letters.T
            silent, refused, by_server = ~answered, np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        else:
            syn, fin, rst = counts["syn"] > 0, counts["fin"] > 1, counts["rst"] > 0
            empty_handed = (flows["bytes_out"] == 0) & (flows["bytes_in"] == 0)
            refused = rst & empty_handed & (counts["rst"] >= counts["syn"]) & ~silent
            by_server = (counts["rst_in"] > 0) & (counts["rst_out"] == 0)
        names = ("OTH", "SF", "REJ", "S0", "RSTR", "RSTO")
        cases = [~syn, fin, refused, silent & ~rst, rst & by_server, rst & ~silent]
        which = np.select(cases, [OUTCOMES.index(name) for name in names], other)
    return np.where(flows["protocol"] == TCP, which, 0).astype(np.uint8)


def _by_value(column: Any, function: Callable[[bytes], Any], missing: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A function of each row's text, as an array; it runs once for each text that occurs."""
    arrow = _arrow("pyarrow")
    coded = _bytes(column).dictionary_encode()
    values = [function(value) for value in coded.dictionary.to_pylist()]
    table = np.array([*values, missing])
    indices = coded.indices.cast(arrow.int64()).fill_null(len(values)).to_numpy(zero_copy_only=False)
    rows: npt.NDArray[Any] = table[indices]
    return rows


def _bytes(column: Any) -> Any:
    arrow = _arrow("pyarrow")
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = (arrow.types.is_binary, arrow.types.is_string, arrow.types.is_large_binary, arrow.types.is_large_string)
    if any(test(column.type) for test in text):
        return column.cast(arrow.binary())
    if arrow.types.is_nested(column.type):
        return arrow.nulls(len(column), arrow.binary())
    return column.cast(arrow.string()).cast(arrow.binary())


def _numbers(column: Any) -> _Numbers:
    """Numbers, NaN where there is none."""
    arrow, compute = _arrow("pyarrow"), _arrow("pyarrow.compute")
    kind = column.type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        column = column.cast(arrow.float64(), safe=False)
    else:
        text = _bytes(column)
        text = compute.if_else(compute.match_substring_regex(text, _NUMBER), text, None).cast(arrow.string())
        column = compute.utf8_trim_whitespace(text).cast(arrow.float64())
    return np.asarray(column.fill_null(np.nan).to_numpy(zero_copy_only=False), dtype=np.float64)


def _times(column: Any) -> _Numbers:
    """Numbers as they are; dates as seconds since 1970; NaN where there is neither."""
    arrow, compute = _arrow("pyarrow"), _arrow("pyarrow.compute")
    if arrow.types.is_timestamp(column.type):
        ticks = column.cast(arrow.timestamp("ns"), safe=False).cast(arrow.int64())
        return np.asarray(ticks.cast(arrow.float64(), safe=False).fill_null(np.nan).to_numpy(False)) / 1e9
    times = _numbers(column).copy()
    odd = np.flatnonzero(np.isnan(times))
    text = _bytes(column).take(arrow.array(odd))
    for pattern in (_ISO, _DAY_FIRST):
        match = compute.extract_regex(text, pattern)
        part = {name: _numbers(match.field(name)) for name in "ymdHMSf"}
        y, month, day, hour = (np.nan_to_num(part[name]).astype(np.int64) for name in "ymdH")
        if pattern == _DAY_FIRST:
            half = _by_value(match.field("h"), lambda value: np.array(12 * (b"P" in value)), np.array(-1))
            hour = np.where(half >= 0, hour % 12 + half, hour)
        days = (y - 1970).astype("M8[Y]").astype("M8[M]") + (month - 1)
        days = days.astype("M8[D]") + (day - 1)
        seconds = days.astype(np.int64) * 86400.0 + hour * 3600 + np.nan_to_num(part["M"]) * 60
        seconds += np.nan_to_num(part["S"]) + np.nan_to_num(part["f"])
        valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (hour < 24)
        times[odd] = np.where(valid & np.isnan(times[odd]), seconds, times[odd])
    return times


def _address(value: bytes) -> npt.NDArray[np.uint8]:
    """16 bytes of an address and its version; version 0 where it is none."""
    text = value.decode("ascii", "replace").strip()
    mapped = bytes(10) + b"\xff\xff"
    try:
        if ":" in text:
            packed = socket.inet_pton(socket.AF_INET6, text)
        elif text.isdecimal():  # NetShare writes IPv4 addresses as integers
            packed = mapped + int(text[:12]).to_bytes(4, "big")
        else:
            packed = mapped + socket.inet_pton(socket.AF_INET, text)
    except (OSError, OverflowError, ValueError):
        return np.zeros(17, np.uint8)
    version = 4 if packed.startswith(mapped) else 6
    return np.frombuffer(packed + bytes([version]), np.uint8)


def _protocol(value: bytes) -> npt.NDArray[np.int64]:
    """IP protocol number of a number or a name; -1 where it is neither."""
    text = value.decode("ascii", "replace").strip().upper()
    if re.fullmatch(r"\d{1,3}(\.0*)?", text):
        number = int(float(text))
        return np.array(number if number < 256 else -1)
    return np.array(_PROTOCOLS.get(text, _OTHER if re.fullmatch(r"[A-Z][A-Z0-9/.+_-]*", text) else -1))
