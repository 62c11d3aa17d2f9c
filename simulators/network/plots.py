"""Pictures of traffic: ports, protocols, sizes, durations, inter-arrivals, and arrivals over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpe.simulators.network.profiles import SERVICES
from simpe.simulators.network.schema import Flows, both_ways

_SERVICES = 14  # bars of the most frequent services
_PROTOCOLS = {6: "TCP", 17: "UDP", 1: "ICMP", 58: "ICMPv6"}


def compare(traffic: Mapping[str, Flows], path: Path, start: float, length: float, title: str = "") -> None:
    """Draw flow tables, name -> flows, over each other into a PNG; the first is drawn full.

    ``start`` and ``length`` are the window that arrivals are shown in (s since 1970, s); flows that lie outside are
    stretched over it. Needs matplotlib. Raises OSError where it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle(title or "Traffic: " + " (full) and ".join(traffic) + " (outlined)")
    axes = figure.subplots(2, 3).ravel()

    names, shares = zip(*(_services(flows) for flows in traffic.values()), strict=True)
    top = np.argsort(-shares[0], kind="stable")[:_SERVICES]
    _bars(axes[0], [names[0][i] for i in top], [share[top] for share in shares])
    axes[0].set_title("server ports")
    _bars(axes[1], [*_PROTOCOLS.values(), "other"], [_protocols(flows) for flows in traffic.values()])
    axes[1].set_title("protocols")
    for axis, column, low, high, name in (
        (axes[2], "bytes", 1, 1e8, "payload bytes of a flow"),
        (axes[3], "duration", 1e-4, 4e3, "duration of a flow (s)"),
        (axes[4], "arrival", 1e-6, 4e3, "time between flows (s)"),
    ):
        edges = np.geomspace(low, high, 40)
        _steps(axis, edges, [_values(flows, column).clip(low, high) for flows in traffic.values()])
        axis.set_xscale("log")
        axis.set_title(name)
    edges = np.linspace(0, length, 41)
    _steps(axes[5], edges, [_since(flows, start, length) for flows in traffic.values()])
    axes[5].set_title("arrivals over the window (s)")
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _values(flows: Flows, column: str) -> NDArray[np.float64]:
    if column == "bytes":
        return both_ways(flows, "bytes").astype(np.float64)
    values: NDArray[np.float64] = flows["start" if column == "arrival" else column].astype(np.float64)
    return np.diff(np.sort(values)) if column == "arrival" else values


def _since(flows: Flows, start: float, length: float) -> NDArray[np.float64]:
    """Seconds from the start of the window to each flow, or of their own time stretched to its length."""
    times: NDArray[np.float64] = flows["start"].astype(np.float64)
    first, last = times.min(initial=np.inf), times.max(initial=-np.inf)
    outside = first < start or last > start + length
    since: NDArray[np.float64] = (times - first) * (length / max(last - first, 1e-9)) if outside else times - start
    return since


def _services(flows: Flows) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the services and of the classes of other ports, and the share of flows of each."""
    known = {port: name for name, port in SERVICES}
    names = [f"{name} {port}" for port, name in known.items()] + ["other < 1024", "other", "no port"]
    with_port = np.isin(flows["protocol"], (6, 17))
    port = flows["server_port"].astype(np.int64)
    index = np.where(port < 1024, len(known), len(known) + 1)
    for i, number in enumerate(known):
        index[port == number] = i
    index = np.where(with_port, index, len(known) + 2)
    return names, np.bincount(index, minlength=len(names)) / max(1, len(port))


def _protocols(flows: Flows) -> NDArray[np.float64]:
    shares = [float((flows["protocol"] == number).sum()) / max(1, len(flows["protocol"])) for number in _PROTOCOLS]
    return np.array([*shares, max(0.0, 1 - sum(shares))])


def _bars(axis: Any, names: list[str], shares: list[NDArray[np.float64]]) -> None:
    axis.bar(names, shares[0], color="#3b6ea8")
    for share in shares[1:]:
        axis.bar(names, share, fill=False, edgecolor="#c8552b")
    axis.set_ylabel("share of flows")
    axis.tick_params(axis="x", labelrotation=90)


def _steps(axis: Any, edges: NDArray[np.float64], values: list[NDArray[np.float64]]) -> None:
    for i, value in enumerate(values):
        share = np.histogram(value, edges)[0] / max(1, len(value))
        axis.stairs(share, edges, fill=i == 0, color="#c8552b" if i else "#3b6ea8")
    axis.set_ylabel("share")
