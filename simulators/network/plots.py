"""Pictures of traffic: ports, protocols, sizes, durations, inter-arrivals, and arrivals over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpe.simulators.network.profiles import SERVICES
from simpe.simulators.network.schema import Flows, both_ways

_SERVICES = 14  # bars of the most frequent services
_STEPWISE = ("server ports", "protocols", "payload bytes of a flow", "duration of a flow (s)")
_PROTOCOLS = {6: "TCP", 17: "UDP", 1: "ICMP", 58: "ICMPv6"}


def panels(traffic: Mapping[str, Flows], start: float, length: float, leading: int = 0) -> list[dict[str, Any]]:
    """What the pictures show, as JSON can hold it: shares of flows, one panel a quantity.

    ``start`` and ``length`` are the window that arrivals are shown in (s since 1970, s); flows that lie outside are
    stretched over it. ``leading`` is the series whose most frequent server ports are shown. Each panel has a ``title``
    and ``series``, name -> shares; and either ``names`` of its bars or the ``edges`` of its bins, with ``log`` for a
    logarithmic axis.
    """
    names, shares = zip(*(_services(flows) for flows in traffic.values()), strict=True)
    top = np.argsort(-shares[leading], kind="stable")[:_SERVICES]
    bars = [
        ("server ports", [names[0][i] for i in top], [share[top] for share in shares]),
        ("protocols", [*_PROTOCOLS.values(), "other"], [_protocols(flows) for flows in traffic.values()]),
    ]
    found: list[dict[str, Any]] = [
        {"title": title, "names": labels, "series": _by_name(traffic, values)} for title, labels, values in bars
    ]
    steps: list[tuple[str, NDArray[np.float64], Callable[[Flows], NDArray[np.float64]]]] = [
        ("payload bytes of a flow", np.geomspace(1, 1e8, 40), lambda flows: _values(flows, "bytes")),
        ("duration of a flow (s)", np.geomspace(1e-4, 4e3, 40), lambda flows: _values(flows, "duration")),
        ("time between flows (s)", np.geomspace(1e-6, 4e3, 40), lambda flows: _values(flows, "arrival")),
        ("arrivals over the window (s)", np.linspace(0, length, 41), lambda flows: _since(flows, start, length)),
    ]
    for title, edges, of in steps:
        log = not title.startswith("arrivals")
        values = [of(flows).clip(edges[0], edges[-1]) if log else of(flows) for flows in traffic.values()]
        binned = [np.histogram(value, edges)[0] / max(1, len(value)) for value in values]
        found.append({"title": title, "edges": edges.tolist(), "log": log, "series": _by_name(traffic, binned)})
    return found


def stepwise(traffic: Mapping[str, Flows]) -> list[dict[str, Any]]:
    """Those of :func:`panels` that tell how a population changes, one series a step; times do not."""
    return [panel for panel in panels(traffic, 0, 1, leading=-1) if panel["title"] in _STEPWISE]


def draw(panels: list[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draw :func:`panels` into a PNG; the first of two series is drawn full, the other over it.

    Needs matplotlib. Raises OSError where it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7))
    figure.subplots_adjust(
        left=0.055, right=0.99, top=0.9, bottom=0.05, wspace=0.22, hspace=0.75
    )  # faster than a layout
    figure.suptitle(title or "Traffic: " + " (full) and ".join(panels[0]["series"]) + " (outlined)")
    for axis, panel in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        axis.set_title(panel["title"])
        for i, share in enumerate(panel["series"].values()):
            if "names" in panel:
                style = {"fill": False, "edgecolor": "#c8552b"} if i else {"color": "#3b6ea8"}
                axis.bar(panel["names"], share, **style)
                axis.tick_params(axis="x", labelrotation=90)
            else:
                axis.stairs(share, panel["edges"], fill=i == 0, color="#c8552b" if i else "#3b6ea8")
                axis.set_xscale("log" if panel["log"] else "linear")
        axis.set_ylabel("share of flows" if "names" in panel else "share")
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _by_name(traffic: Mapping[str, Flows], values: list[NDArray[np.float64]]) -> dict[str, list[float]]:
    return {name: np.round(share, 6).tolist() for name, share in zip(traffic, values, strict=True)}


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
