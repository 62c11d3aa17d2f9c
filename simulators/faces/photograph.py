"""What a camera and a publisher make of a view: uneven light, a colour cast, contrast and blur.

All arithmetic is element by element and in a fixed order, so a photograph does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from simpe.space import Params

_SHADE = 0.45  # of the brightness, at most
_WARM, _GREEN = 0.14, 0.05
_FINE = 48  # pixels along the shorter side for each pixel that blur reaches


def photograph(images: Tensor, p: Params) -> Tensor:
    """Views uint8 (n, h, w, 3) -> photographs of the same shape."""
    n, height, width, _ = images.shape
    x = images.permute(3, 0, 1, 2).float().contiguous()  # colours apart: steps then run over whole pictures
    x *= 1 + _SHADE * _patch(p["shade"].reshape(n, 3, 3), height, width)
    warm, green = _WARM * p["cast"][:, 0], _GREEN * p["cast"][:, 1]
    gain = torch.stack([1 + warm - green, 1 + green, 1 - warm - green])
    contrast = p["contrast"][:, None, None]
    x *= gain[..., None, None] * contrast
    x += 255 * (0.5 - 0.5 * contrast + p["brightness"][:, None, None])
    x = _softened(x.clamp_(0, 255), p["blur"], max(1, round(min(height, width) / _FINE)))
    x = x.add_(0.5).to(torch.uint8)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for channel, own in zip(x, out.unbind(3), strict=True):  # three copies are faster than one with all axes moved
        own.copy_(channel)
    return out


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
    """Each image (3, n, h, w) mixed with its neighbours at ``reach`` pixels, by binomial weights."""
    side = share[:, None, None] / 4
    x = pad(x, (reach,) * 4, mode="replicate")
    for dim in (2, 3):
        size = x.shape[dim] - 2 * reach
        before, own, after = (x.narrow(dim, start, size) for start in (0, reach, 2 * reach))
        x = (own * (1 - 2 * side)).add_((before + after).mul_(side))
    return x
