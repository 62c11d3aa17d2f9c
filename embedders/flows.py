"""Embedding of flows: logarithms, sizes and one-hots, scaled by constants; never an address.

A flow is compared by how long, how much, how even, over which service and between which kinds of hosts. Every number is
scaled by a public constant, and arithmetic is element by element, so a row's bits depend on the row alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from simpe.simulators.network.profiles import ICMP, ICMPV6, ROLES, SERVICES, TCP, UDP
from simpe.simulators.network.schema import OUTCOMES

ROW = (
    "protocol",  # IP protocol number
    "ip_version",  # 4 or 6
    "server_port",  # of ICMP, the code
    "client_role",  # index into ROLES
    "server_role",
    "client",  # number of the client in the internal prefix; 0 for another. Not embedded
    "start",  # of the declared window, 0..1
    "duration",  # seconds
    "packets_out",
    "packets_in",
    "bytes_out",
    "bytes_in",
    "size_std_out",  # bytes
    "size_std_in",
    "gap_mean",  # seconds
    "gap_std",
    "outcome",  # index into OUTCOMES
    "rtt",  # seconds
    "ttl_out",
    "ttl_in",
    "window_out",
    "window_in",
    "mss",
)
"""Columns of a flow row, in order: those of the flow table, with roles for addresses and the start as a share."""

_LOGARITHMS = (
    ("duration", 1e3, 3.6e6),  # milliseconds, up to 1 h
    ("packets_out", 1, 1e4),
    ("packets_in", 1, 1e4),
    ("bytes_out", 1, 1e8),
    ("bytes_in", 1, 1e8),
    ("gap_mean", 1e3, 3.6e6),
    ("gap_std", 1e3, 3.6e6),
)
NUMBERS = len(_LOGARITHMS) + 2 * 4 + 3
"""How many numbers an embedding begins with, the logarithms first; one-hots follow."""
_CLASSES = ("other well-known", "registered", "ephemeral", "none")


@dataclass(frozen=True)
class FlowEmbedding:
    """Flow rows (see ROW) -> logarithms, sizes and one-hots side by side; the default embedder of traffic.

    The weights are what two flows are apart, squared and halved, when they differ in that alone: one-hots have length
    ``protocol``, ``outcome``, ``service`` (the server port: one of SERVICES, or a class of ports), ``role`` and
    ``version``. ``amount`` multiplies log1p(x) / log1p(cap) of duration and gaps (ms, cap 1 h), packets (cap 1e4) and
    bytes (cap 1e8); ``size`` bytes / 1500, of the mean and the spread of a packet; ``stack`` round trip, TTLs, windows
    and maximum segment size over their caps; ``time`` the start in the declared window.

    >>> FlowEmbedding()(torch.zeros(5, len(ROW), dtype=torch.float64)).shape
    torch.Size([5, 93])
    """

    protocol: float = 0.7
    outcome: float = 0.5
    service: float = 1.0
    role: float = 0.4
    version: float = 0.3
    amount: float = 1.0
    size: float = 0.5
    stack: float = 0.1
    time: float = 0.1

    def __call__(self, rows: Tensor) -> Tensor:
        """Embed rows (n, len(ROW)), floating: float32 (n, d), on their device, each row for itself.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        if not rows.dtype.is_floating_point:
            raise TypeError(f"flow rows must be floating point, got {rows.dtype}")
        if rows.ndim != 2 or rows.shape[1] != len(ROW):
            raise ValueError(f"flow rows must be (n, {len(ROW)}), one column a name in ROW, got {tuple(rows.shape)}")
        x = dict(zip(ROW, rows.double().unbind(1), strict=True))
        numbers = [self.amount / math.log1p(cap) * log1p(x[name] * unit) for name, unit, cap in _LOGARITHMS]
        for way in ("out", "in"):
            mean = x[f"bytes_{way}"] / x[f"packets_{way}"].clamp(min=1)
            numbers += [self.size / 1500 * mean, self.size / 1500 * x[f"size_std_{way}"]]
            numbers += [self.stack / 255 * x[f"ttl_{way}"], self.stack / 65535 * x[f"window_{way}"]]
        numbers += [self.stack / 1500 * x["mss"], self.stack / math.log1p(1e4) * log1p(x["rtt"] * 1e3)]
        numbers += [self.time * x["start"]]
        one_hots = [
            self.protocol * _one_hot(_looked_up(x["protocol"], _protocols(rows.device)), 4),
            self.outcome * _one_hot(x["outcome"], len(OUTCOMES)),
            self.service * _one_hot(service_of(x["protocol"], x["server_port"]), len(SERVICES) + len(_CLASSES)),
            self.role * _one_hot(x["client_role"], len(ROLES)),
            self.role * _one_hot(x["server_role"], len(ROLES)),
            self.version * _one_hot(x["ip_version"] == 6, 2),
        ]
        return torch.cat([torch.stack(numbers, dim=1), *one_hots], dim=1).float()


def _one_hot(index: Tensor, size: int) -> Tensor:
    return (index[:, None].long() == torch.arange(size, device=index.device)).double()


def _looked_up(index: Tensor, table: Tensor) -> Tensor:
    return table[index.long().clamp(0, len(table) - 1)]


def service_of(protocol: Tensor, port: Tensor) -> Tensor:
    """Index (n,) into SERVICES or, behind them, of the class of ports; "none" where the protocol has no ports."""
    known = _looked_up(port, _services(port.device))
    return torch.where((protocol == TCP) | (protocol == UDP), known, len(SERVICES) + _CLASSES.index("none"))


@lru_cache
def _services(device: torch.device) -> Tensor:
    """Port -> index of its service or class, int64 (65536,)."""
    table = torch.full((65536,), len(SERVICES) + _CLASSES.index("other well-known"))
    table[1024:] += 1
    table[49152:] += 1
    for index, (_, port) in enumerate(SERVICES):
        table[port] = index
    return table.to(device)


@lru_cache
def _protocols(device: torch.device) -> Tensor:
    """IP protocol number -> 0 TCP, 1 UDP, 2 ICMP, 3 other; int64 (256,)."""
    table = torch.full((256,), 3)
    table[TCP], table[UDP], table[ICMP], table[ICMPV6] = 0, 1, 2, 2
    return table.to(device)


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) of float64 x >= 0, to 1e-12, from exact steps and + - * / alone.

    A library's logarithm may differ in its last bit between the body and the tail of a vectorised loop, and so between
    the places that a row may have in a batch.
    """
    mantissa, exponent = torch.frexp(x + 1)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, 2 * mantissa, mantissa)
    z = (mantissa - 1) / (mantissa + 1)  # log m = 2 atanh z, |z| < 0.172
    square, series = z * z, torch.zeros_like(z)
    for k in range(15, 0, -2):
        series = series * square + 1 / k
    return (exponent - low.int()).double() * math.log(2) + 2 * z * series
