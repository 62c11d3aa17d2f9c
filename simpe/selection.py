"""Selection: noisy counts -> indices of the candidates that go on. All of it is post-processing and costs nothing.

Every function takes float64 counts (n,) and works on one class; ``-1`` is never returned and nothing here can produce
a NaN: where no candidate stands out, the choice is uniform. Indices lie on the device of the counts. Sums are taken on
the CPU, for a GPU adds in an order of its own, and what is chosen must not depend on where.
"""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(counts: Tensor, height: float) -> Tensor:
    """max(counts - height, 0): what of a noisy count rises above the noise (PE, Lin et al. 2024, Alg. 2)."""
    return (counts - height).clamp(min=0)


def top(counts: Tensor, n: int) -> Tensor:
    """Indices (min(n, len),) of the largest counts, largest first; ties go to the lowest index."""
    return counts.argsort(descending=True, stable=True)[:n]


def systematic(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n indices in order, each candidate floor or ceil of n w / sum(w) times: systematic resampling.

    One uniform draw serves all (Kitagawa, 1996). Uniform weights where all are zero.
    """
    shares = _shares(weights)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(n, dtype=torch.float64) + offset) / max(n, 1)
    edges = shares.cumsum(0)
    edges = edges / edges[-1]
    return torch.searchsorted(edges, points, right=True).clamp(max=len(weights) - 1).to(weights.device)


def multinomial(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n independent indices with probability w / sum(w). Uniform weights where all are zero."""
    points = torch.rand(n, generator=generator, dtype=torch.float64)
    edges = _shares(weights).cumsum(0)
    edges = edges / edges[-1]
    return torch.searchsorted(edges, points, right=True).clamp(max=len(weights) - 1).to(weights.device)


def apportion(weights: Tensor, n: int) -> Tensor:
    """Whole numbers that add up to n, in proportion to the weights, by largest remainders."""
    exact = _shares(weights) * n
    whole = exact.floor()
    left = n - int(whole.sum())
    whole[top(exact - whole, left)] += 1
    return whole.long().to(weights.device)


def apportion_within(weights: Tensor, n: int, most: Tensor) -> Tensor:
    """Like :func:`apportion`, none above its ``most`` (int64); what it cannot take goes to the others, in proportion.

    Raises ValueError when n is more than all can take.
    """
    if n > int(most.sum()):
        raise ValueError(f"{n} is more than the {int(most.sum())} that there are")
    parts = torch.minimum(apportion(weights, n), most)
    while left := n - int(parts.sum()):
        room = parts < most
        parts[room] = torch.minimum(parts[room] + apportion(weights[room], left), most[room])
    return parts


def _shares(weights: Tensor) -> Tensor:
    weights = weights.cpu().double().clamp(min=0)
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))
