"""What the command takes: captures and flow tables, mixed, to flows; and what is declared about them, to values.

Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpe.data import is_url, list_url, opened
from simpe.errors import InputError
from simpe.simulators.network import capture, tables
from simpe.simulators.network.flows import ACTIVE, IDLE, assemble
from simpe.simulators.network.schema import COLUMNS, Flows, empty

UNITS: Mapping[str, str] = {
    "flow": "The unit is one flow: what many flows of one host have in common is not protected as that host's. "
    "A conversation that timeouts or a new connection cut in two counts as two flows.",
    "src": "The unit is a client address with the flows that it opened. Not protected as such: the servers that it "
    "talks to, flows that others open to it, and whoever has several addresses.",
    "pair": "The unit is what two addresses say to each other, whoever opens it. Not protected as such: all that one "
    "host does with several others.",
    "window": "The unit is what a client address opens within {seconds:g} seconds (by the clock, counted from 1970). "
    "Not protected as such: what a client does over a longer time, the servers that it talks to, flows to it.",
}
"""Privacy units by name, and what each does not protect."""

WINDOW_UNIT = 3600.0
"""Seconds of the unit "window" where it does not say them (window:SECONDS)."""

_COLUMN = (
    "The unit is whoever has one value of the declared column {name!r}, with all rows of it; rows without a value "
)
_COLUMN += "take no part. Who has several values is protected value by value."

RECORDED = "recorded"
"""The word for the capture that comes with simpe; a file of that name is ./recorded."""

_RECORDED = Path(__file__).parent / "recorded" / "recorded.pcap.gz"

KEPT = "column "
"""Stands before the name of a kept column, so that it is none of COLUMNS."""

_TABLES = {".csv", ".tsv", ".log", ".parquet"}
_SPANS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class Counts:
    """What became of the input, for the operator's eyes: these numbers are private."""

    packets: capture.Counts = field(default_factory=capture.Counts)
    rows: tables.Counts = field(default_factory=tables.Counts)

    @property
    def unusable(self) -> list[str]:
        """One line for each input that is neither a capture nor a flow table."""
        return self.packets.unusable + self.rows.unusable

    def skipped(self) -> list[str]:
        """What was left out, a line a kind; none where nothing was."""
        packets, rows = self.packets, self.rows
        found = [
            (len(self.unusable), "inputs that are unusable"),
            (packets.damaged, "captures whose rest is lost"),
            (packets.other, "packets that are not IP"),
            (packets.fragments, "fragments without ports"),
            (packets.malformed, "malformed packets"),
            (rows.dropped, "rows that cannot be read"),
        ]
        return [f"{number} {what}" for number, what in found if number]


def read(
    paths: Iterable[str | Path],
    *,
    preset: str | Mapping[str, Any] | None = None,
    extra: Sequence[str] = (),
    idle: float = IDLE,
    active: float = ACTIVE,
    counts: Counts | None = None,
    progress: capture.Progress | None = None,
    may_be_silent: bool = False,
) -> Flows:
    """The flows of captures and flow tables; folders give the files in them, hidden ones left out, and so do URLs, of
    what lies directly in a folder. The word RECORDED stands for the capture that comes with simpe.

    A capture is known by its first bytes; a table by those of Parquet or by its ending (.csv, .tsv, .log, packed or
    not). ``preset`` says how tables are read: a name, the fields of a ``tables.Preset``, or None to know the tool
    by its columns. ``extra`` are columns that must be kept, as text, under their name behind KEPT; only tables
    have any, so captures are then unusable. Unusable inputs are counted and left out. Where a table names
    applications, there is a column ``application`` of text, "" where one does not.

    A capture without IP traffic has no flows where it ``may_be_silent``.

    Raises InputError where no input is usable, an option is wrong, or RECORDED might also mean a file.
    """
    counts = Counts() if counts is None else counts
    found = [file for path in paths for file in files(path)]
    as_table = [not capture.is_capture(file) and _is_table(file) for file in found]
    captures = [file for file, table in zip(found, as_table, strict=True) if not table]
    flow_tables = [file for file, table in zip(found, as_table, strict=True) if table]
    if extra and captures:
        reason = f"has no columns, so no {' or '.join(map(repr, extra))}; give flow tables, or leave that out"
        counts.packets.unusable += [f"{file}: {reason}" for file in captures]
        captures = []
    parts: list[Flows] = []
    refusals: list[InputError] = []
    try:
        if captures:
            parts.append(assemble(capture.read(captures, counts.packets, progress), idle, active))
    except capture.NoTraffic as error:
        if may_be_silent:
            parts.append(empty(0))
        refusals.append(error)
    except InputError as error:
        refusals.append(error)
    try:
        if flow_tables:
            parts.append(tables.read(flow_tables, _preset(preset), {KEPT + name: name for name in extra}, counts.rows))
    except InputError as error:
        refusals.append(error)
    if not parts:
        said = counts.unusable[0] if counts.unusable else f"no input: give captures, flow tables or the word {RECORDED}"
        raise refusals[0] if refusals else InputError(said)
    names = [*COLUMNS, *(KEPT + name for name in extra)]
    if any("application" in part for part in parts):
        names.append("application")
        parts = [{"application": np.full(len(part["start"]), ""), **part} for part in parts]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def units(flows: Flows, unit: str | None) -> NDArray[np.bytes_] | NDArray[np.str_] | None:
    """Who owns each flow, (n,) strings, by a name of UNITS or of a kept column; None where a flow is its own unit.

    Each from its own flow alone. Raises InputError for another unit.
    """
    if unit in (None, "flow"):
        return None
    client, server = (_hex(flows[name]) for name in ("client", "server"))
    if unit == "src":
        return client
    if unit == "pair":
        return np.char.add(np.where(client < server, client, server), np.where(client < server, server, client))
    assert unit is not None
    seconds = window_seconds(unit)
    if seconds is not None:
        turn = np.floor(flows["start"].astype(np.float64) / seconds).astype(np.int64)
        return np.char.add(np.char.add(client, b"/"), turn.astype("S20"))
    return flows[KEPT + unit].astype(np.str_)


def of_sessions(unit: str | None) -> bool:
    """Whether a unit holds all that one client does, in all or for some time. Raises InputError as window_seconds."""
    return unit == "src" or window_seconds(unit) is not None


def window_seconds(unit: str | None) -> float | None:
    """W of the unit ``window:W``, or the default of ``window``; None for any other unit.

    Raises InputError where W is no positive number.
    """
    name, colon, seconds = (unit or "").partition(":")
    if name != "window":
        return None
    if not colon:
        return WINDOW_UNIT
    return _span(seconds, f"--unit {unit}")


def column_of(unit: str | None) -> str | None:
    """The column of a flow table that a unit names, or None for one of UNITS."""
    return None if unit is None or unit in UNITS or window_seconds(unit) is not None else unit


def caveat(unit: str | None) -> str:
    """What a unit does not protect, in words for the certificate."""
    name = column_of(unit)
    if name is not None:
        return _COLUMN.format(name=name)
    seconds = window_seconds(unit)
    return UNITS["window"].format(seconds=seconds) if seconds is not None else UNITS[unit or "flow"]


def window(start: str, length: str) -> dict[str, Any]:
    """Options of the simulator for a declared window: its start, as a date in ISO 8601 (UTC without a zone) or seconds
    since 1970, and its length, such as 90, 90s, 15m, 6h or 2d.

    Raises InputError.
    """
    try:
        begin = float(start) if re.fullmatch(r"\d{1,10}(\.\d*)?", start) else _date(start).timestamp()
    except (ValueError, OverflowError):
        raise InputError(f"--window {start}: give the start as 2024-01-31T08:00:00, or as seconds since 1970") from None
    if not 0 <= begin < 2**33:
        raise InputError(f"--window {start}: must lie between 1970 and 2242")
    return {"start": begin, "length": _span(length, f"--window {start}"), "timed": True}


def internal(prefixes: Sequence[str]) -> dict[str, Any]:
    """Options of the simulator for declared internal prefixes: what counts as internal in the input, and where
    synthetic hosts get their addresses from, the first prefix of each version that has 256.

    Raises InputError for what is no prefix.
    """
    try:
        networks = [ip_network(prefix) for prefix in prefixes]
    except ValueError as error:
        raise InputError(f"--internal: {error}; give a prefix such as 192.168.0.0/16") from None
    options: dict[str, Any] = {"inside": [str(network) for network in networks]}
    for network in reversed(networks):
        if network.num_addresses >= 256:
            options["internal" if network.version == 4 else "internal_v6"] = str(network)
    return options


def _date(text: str) -> datetime:
    date = datetime.fromisoformat(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _span(text: str, option: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", text)
    seconds = float(match[1]) * _SPANS[match[2]] if match else 0.0
    if not 0 < seconds < 2**33:
        raise InputError(f"{option}: {text!r} is no length of time; write 90s, 15m, 6h or 2d")
    return seconds


def _preset(preset: str | Mapping[str, Any] | None) -> str | tables.Preset | None:
    if preset is None or isinstance(preset, str):
        return preset
    try:
        return tables.Preset(**preset)
    except TypeError as error:
        raise InputError(f"preset: {error}; it has columns, scale, bytes and icmp_in_port") from None


def files(given: str | Path) -> Sequence[str | Path]:
    """The files that an input stands for, in order of their names.

    Raises InputError where RECORDED might also mean a file, or a URL cannot be reached.
    """
    if is_url(given):
        return list_url(str(given))
    path = Path(given)
    if given == RECORDED:  # not ./recorded, which Path would make equal
        if path.exists():
            raise InputError(
                f"{RECORDED}: there is a file of that name here, and the word means the capture that comes with simpe; "
                f"write ./{RECORDED} for the file, or move it away for the capture"
            )
        return [_RECORDED]
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)] or [path]


def _is_table(given: str | Path) -> bool:
    path = Path(given)
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if stem.suffix.lower() in _TABLES:
        return True
    try:
        with opened(given) as file:
            return file.read(4) == b"PAR1"
    except (OSError, ValueError):
        return False


def _hex(addresses: NDArray[Any]) -> NDArray[np.bytes_]:
    """Addresses (n, 16) as text of 32 hexadecimal digits (n,)."""
    return np.frombuffer(np.ascontiguousarray(addresses).tobytes().hex().encode(), dtype="S32")
