"""What a camera and a publisher make of a view: uneven light, a colour cast, contrast and blur.

All arithmetic is element by element and in a fixed order, so a photograph does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from simpe.space import Params

_SHADE = 0.45  # of the brightness, at most
_WARM, _GREEN = 0.14, 0.05
_FINE = 48  # pixels along the shorter side for each pixel that blur reaches


def photograph(images: Tensor, p: Params) -> Tensor:
    """Views uint8 (n, h, w, 3) -> photographs of the same shape."""
    n, height, width, _ = images.shape
    x = images.float() / 255
    x = x * (1 + _SHADE * _patch(p["shade"].reshape(n, 3, 3), height, width))[..., None]
    warm, green = _WARM * p["cast"][:, 0], _GREEN * p["cast"][:, 1]
    gain = torch.stack([1 + warm - green, 1 + green, 1 - warm - green], dim=1)[:, None, None]
    contrast = p["contrast"][:, None, None, None]
    x = (x * gain - 0.5) * contrast + (0.5 + p["brightness"][:, None, None, None])
    x = _softened(x.clamp(0, 1), p["blur"], max(1, round(min(height, width) / _FINE)))
    return (x * 255 + 0.5).to(torch.uint8)


def _patch(control: Tensor, height: int, width: int) -> Tensor:
    """A smooth surface over the picture (n, height, width), through a biquadratic Bezier patch (n, 3, 3)."""
    rows, columns = _bernstein(height, control.device), _bernstein(width, control.device)
    lines = [_sum(control[:, j, i, None] * columns[i] for i in range(3)) for j in range(3)]
    return _sum(lines[j][:, None] * rows[j][:, None] for j in range(3))


def _bernstein(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    t = (torch.arange(n, device=device) + 0.5) / n
    return (1 - t) * (1 - t), 2 * t * (1 - t), t * t


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum, from the first to the last."""
    first, *others = parts
    for part in others:
        first = first + part
    return first


def _softened(x: Tensor, share: Tensor, reach: int) -> Tensor:
    """Each image (n, h, w, 3) mixed with its neighbours at ``reach`` pixels, by binomial weights."""
    share = share[:, None, None, None]
    for dim in (1, 2):
        size = x.shape[dim]
        place = torch.arange(size, device=x.device)
        before, after = (x.index_select(dim, (place + step).clamp(0, size - 1)) for step in (-reach, reach))
        x = x + share * (0.25 * before + 0.25 * after - 0.5 * x)
    return x
