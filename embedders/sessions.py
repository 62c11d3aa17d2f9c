"""Embedding of sessions: what a host's flows are like together, how many, to how many servers, and in what rhythm.

Everything is scaled by public constants. Sums over the flows of a session are taken in a fixed order, step by step, so
a session's bits depend on the session alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simpe.embedders.flows import NUMBERS, ROW, FlowEmbedding, log1p
from simpe.simulators.network.schema import OUTCOMES

SESSION = (
    *ROW,
    "flows",  # of the whole session
    "servers",  # different ones that the whole session talks to
    "span",  # seconds from the start of its first flow to that of its last
    "since",  # seconds from the start of the flow before to that of this one; 0 of the first
    "again",  # the same of the flow before with this one's protocol, server and server port; 0 where there is none
    "after_dns",  # 1 where the flow before is a DNS query and this one is none
)
"""Columns of a flow in a session, in order; the first three behind ROW are alike in all flows of the session.

A session is an array (k, len(SESSION)): its flows in the order of their start, then rows of zeros.
"""

MOST_FLOWS = 1024
"""Flows of a session, and servers, that count as many: the scale of their logarithms."""

_BLOCK = 256  # sessions at a time
_LOGS = 7  # numbers of a flow that are logarithms: duration, packets and bytes each way, gaps
_AMOUNTS = (0, 1, 3, 4)  # of them, those kept service by service: duration, packets out, bytes out and in
_SERVICE = NUMBERS + 4 + len(OUTCOMES)  # where the services begin
_ROLES = 4 + 4 + 2  # one-hots behind them


@dataclass(frozen=True)
class SessionEmbedding:
    """Sessions (see SESSION) -> one vector each; the default embedder of sessions.

    Of the flows' embeddings by ``flow``: the mean and, times ``spread``, the standard deviation of the numbers; of the
    one-hots the square roots of the shares, so that two mixes are apart by their Hellinger distance; and, times
    ``by_service``, the mean duration, packets and bytes of the flows of each service, weighted by the root of its
    share. Of the session: ``count`` and ``fan`` multiply log1p(x) / log1p(MOST_FLOWS) of its flows and servers;
    ``time`` log1p(ms) / log1p(1 h) of its span and of the gaps between flows, their mean and standard deviation;
    ``rhythm`` the same of the gaps between flows to one service of one server (a regular beacon has no deviation) and
    the root of the share of flows that come again; ``dns`` the root of the share that follows a DNS query.

    >>> SessionEmbedding()(torch.zeros(5, 32, len(SESSION), dtype=torch.float64)).shape
    torch.Size([5, 325])
    """

    flow: FlowEmbedding = field(default_factory=FlowEmbedding)
    spread: float = 0.5
    by_service: float = 0.5
    count: float = 4.0
    fan: float = 3.0
    time: float = 1.0
    rhythm: float = 0.7
    dns: float = 0.5

    def __call__(self, sessions: Tensor) -> Tensor:
        """Embed sessions (n, k, len(SESSION)), floating: float32 (n, d), on their device, each for itself.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        if not sessions.dtype.is_floating_point:
            raise TypeError(f"sessions must be floating point, got {sessions.dtype}")
        if sessions.ndim != 3 or sessions.shape[2] != len(SESSION) or sessions.shape[1] == 0:
            raise ValueError(f"sessions must be (n, k, {len(SESSION)}), got {tuple(sessions.shape)}")
        return torch.cat([self._embed(part) for part in torch.split(sessions.double(), _BLOCK)])

    def _embed(self, x: Tensor) -> Tensor:
        n, k, _ = x.shape
        columns = dict(zip(SESSION, x.unbind(2), strict=True))
        there = (columns["ip_version"] > 0).double()
        number = _total(there).clamp(min=1)[:, None]
        flows = self.flow(x[:, :, : len(ROW)].reshape(n * k, len(ROW))).double().reshape(n, k, -1)
        flows = flows * there[:, :, None]

        mean = _total(flows) / number
        square = _total(flows * flows) / number
        deviation = (square - mean * mean).clamp(min=0).sqrt()
        shares = square[:, NUMBERS:].sqrt()  # a one-hot of length w has the mean square w^2 share

        services = flows[:, :, _SERVICE:-_ROLES]
        weighed = [_total(services * flows[:, :, i, None]) / number for i in _AMOUNTS]
        root = shares[:, _SERVICE - NUMBERS : -_ROLES].clamp(min=1e-9)
        amounts = torch.cat([total / root for total in weighed], dim=1)

        first = torch.zeros_like(there)
        first[:, 0] = 1
        gaps = _moments(_milliseconds(columns["since"]), there * (1 - first))
        returns = there * (columns["again"] > 0)
        rhythm = _moments(_milliseconds(columns["again"]), returns)
        comes_again = (_total(returns)[:, None] / number).sqrt()
        follows = (_total(there * columns["after_dns"])[:, None] / number).sqrt()
        size, servers = (log1p(columns[name][:, :1]) / math.log1p(MOST_FLOWS) for name in ("flows", "servers"))
        parts = [
            mean[:, :NUMBERS],
            self.spread * deviation[:, :_LOGS],
            shares,
            self.by_service * amounts,
            self.count * size,
            self.fan * servers,
            self.time * _milliseconds(columns["span"][:, :1]),
            self.time * gaps,
            self.rhythm * rhythm,
            self.rhythm * comes_again,
            self.dns * follows,
        ]
        return torch.cat(parts, dim=1).float()


def _milliseconds(seconds: Tensor) -> Tensor:
    return log1p(seconds * 1e3) / math.log1p(3.6e6)


def _moments(x: Tensor, some: Tensor) -> Tensor:
    """Mean and standard deviation (n, 2) of the values (n, k) where ``some`` is 1; zeros where it is nowhere."""
    number = _total(some).clamp(min=1)
    mean = _total(x * some) / number
    off = (x - mean[:, None]) * some
    return torch.stack([mean, (_total(off * off) / number).sqrt()], dim=1)


def _total(x: Tensor) -> Tensor:
    """Sum over the second dimension, by halves: the same additions for every row, wherever it stands."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        folded = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat([folded, x[:, 2 * half :]], dim=1) if x.shape[1] % 2 else folded
    return x[:, 0]
