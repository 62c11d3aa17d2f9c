"""What captures and flow tables hold, in tables for the operator's eyes. None of it is private; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Column, Table

from simpe.simulators.network import inputs
from simpe.simulators.network.capture import ICMP, ICMP6, TCP, UDP, Progress
from simpe.simulators.network.profiles import SERVICES
from simpe.simulators.network.schema import OUTCOMES, Flows, both_ways

_PROTOCOLS = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMP6: "ICMPv6", 2: "IGMP"}
_TOP = 12


def summarise(paths: Sequence[str | Path], progress: Progress | None = None) -> Iterator[Table | str]:
    """Read captures and flow tables, and say what they hold: tables and lines to print.

    Everything is read off the input and none of it is differentially private. Raises InputError where no input is
    usable.
    """
    counts = inputs.Counts()
    flows = inputs.read(paths, counts=counts, progress=progress)
    yield from ([f"left out: {said}" for said in counts.skipped()] + [f"  {said}" for said in counts.unusable])
    yield _overview(flows, counts)
    yield _shares("protocol", flows, _names(flows["protocol"], _PROTOCOLS))
    with_port = np.isin(flows["protocol"], (TCP, UDP))
    known = {port: f"{port} {name}" for name, port in SERVICES}
    yield _shares("server port", _some(flows, with_port), _names(flows["server_port"][with_port], known))
    tcp = flows["protocol"] == TCP
    yield _shares("TCP outcome", _some(flows, tcp), np.array(OUTCOMES)[flows["outcome"][tcp]])
    yield _quantiles(flows)


def _overview(flows: Flows, counts: inputs.Counts) -> Table:
    table = Table("input", "", box=None)
    start = flows["start"].astype(np.float64)
    clients, pairs = inputs.units(flows, "src"), inputs.units(flows, "pair")
    files = counts.packets.files + counts.rows.files
    for name, value in {
        "files": f"{files:,}",
        "packets": f"{int((both_ways(flows, 'packets')).sum()):,}",
        "flows (--unit flow)": f"{len(start):,}",
        "clients (--unit src)": f"{len(np.unique(clients)):,}" if clients is not None else "",
        "pairs of hosts (--unit pair)": f"{len(np.unique(pairs)):,}" if pairs is not None else "",
        "first flow": _date(start.min(initial=np.inf)),
        "last flow": _date(start.max(initial=-np.inf)),
    }.items():
        table.add_row(name, value)
    return table


def _shares(title: str, flows: Flows, names: NDArray[np.str_]) -> Table:
    """The most frequent names, with their flows, packets and payload bytes."""
    table = Table(title, *(_right(name) for name in ("flows", "packets", "bytes")), box=None)
    values, index, number = np.unique(names, return_inverse=True, return_counts=True)
    packets = np.bincount(index, both_ways(flows, "packets"), len(values))
    size = np.bincount(index, both_ways(flows, "bytes"), len(values))
    order = np.argsort(-number, kind="stable")
    for i in order[:_TOP]:
        table.add_row(str(values[i]), f"{number[i]:,}", f"{int(packets[i]):,}", f"{int(size[i]):,}")
    rest = order[_TOP:]
    if len(rest):
        sums = (f"{int(column[rest].sum()):,}" for column in (number, packets, size))
        table.add_row(f"{len(rest)} others", *sums)
    return table


def _quantiles(flows: Flows) -> Table:
    points = {"least": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "most": 1.0}
    table = Table("of a flow", *(_right(name) for name in points), box=None)
    for name, column in {
        "packets": both_ways(flows, "packets"),
        "payload bytes": both_ways(flows, "bytes"),
        "duration (s)": flows["duration"],
        "time between packets (s)": flows["gap_mean"],
    }.items():
        if len(column):
            table.add_row(
                name, *(f"{value:,.6g}" for value in np.quantile(column.astype(np.float64), [*points.values()]))
            )
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _some(flows: Flows, rows: NDArray[np.bool_]) -> Flows:
    return {name: column[rows] for name, column in flows.items()}


def _names(numbers: NDArray[Any], known: dict[int, str]) -> NDArray[np.str_]:
    values, index = np.unique(numbers, return_inverse=True)
    return np.array([known.get(int(value), str(value)) for value in values], dtype=np.str_)[index]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "milliseconds") if np.isfinite(seconds) else "none"
