"""Public cells of flow rows: what a run counts of traffic besides its votes (see :mod:`simpe.marginals`)."""

from __future__ import annotations

import torch
from torch import Tensor

from simpe.embedders.flows import ROW, service_of
from simpe.marginals import LABEL, Marginals
from simpe.simulators.network.evaluation import AMOUNTS, PORT_CLASSES
from simpe.simulators.network.profiles import ICMP, ICMPV6, IGMP, SERVICES, TCP, UDP
from simpe.simulators.network.schema import OUTCOMES

_SERVICES = len(SERVICES) + len(PORT_CLASSES)
_OTHERS = (ICMP, ICMPV6, IGMP)
_NUMBERS = ("duration", "packets", "bytes_out", "bytes_in")
_MOMENTS = 48  # of a declared window

SIZES = {
    "kind": 2 * _SERVICES + len(_OTHERS) + 1,  # service over TCP, over UDP, or another protocol
    "outcome": len(OUTCOMES),
    **{name: len(AMOUNTS[name.partition("_")[0]][1]) + 1 for name in _NUMBERS},
    "start": _MOMENTS,
}
"""Columns and their cells, in order."""


def cells(rows: Tensor) -> Tensor:
    """Cells int64 (n, len(SIZES)) of flow rows (n, len(ROW)), by comparisons with constants alone."""
    x = dict(zip(ROW, rows.double().unbind(1), strict=True))
    protocol = x["protocol"].long()
    kind = service_of(protocol, x["server_port"]) + torch.where(protocol == UDP, _SERVICES, 0)
    kind = torch.where((protocol == TCP) | (protocol == UDP), kind, SIZES["kind"] - 1)
    for i, other in enumerate(_OTHERS):
        kind = torch.where(protocol == other, 2 * _SERVICES + i, kind)
    found = [kind, x["outcome"].long()]
    x["packets"] = x["packets_out"] + x["packets_in"]
    for name in _NUMBERS:
        edges = torch.tensor(AMOUNTS[name.partition("_")[0]][1], dtype=torch.float64, device=rows.device)
        found.append(torch.bucketize(x[name] * (1e3 if name == "duration" else 1), edges, right=True))
    return torch.stack([*found, (x["start"] * _MOMENTS).long().clamp(0, _MOMENTS - 1)], dim=1)


def marginals(timed: bool) -> Marginals:
    """What a run counts of flows: what is typical of each class and of each kind of flow, and each amount alone.

    ``timed``: a window is declared, so arrivals are counted as well.
    """
    of_class = [("kind", LABEL), *((name, LABEL) for name in _NUMBERS)]
    of_kind = [("kind", name) for name in (*_NUMBERS, "outcome")]
    alone = [(name,) for name in (*_NUMBERS, *(["start"] if timed else []))]
    return Marginals(cells, SIZES, (*of_class, *of_kind, ("packets", "duration"), *alone), _NUMBERS)
