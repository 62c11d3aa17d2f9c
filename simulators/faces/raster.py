"""A batched z-buffer: every triangle of every head at once, on any device.

Triangles that face away or hold no sample are dropped first. The others are tested in square windows of a few sizes,
all windows of a size in one go. A sample that lies in a triangle becomes one whole number, depth above colour, and the
least number at each pixel wins: so the order of triangles does not matter, and nothing is sorted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simpe.simulators.faces.scene import Scene

_WINDOWS = (2, 3, 4)  # sides of windows, samples; a larger triangle is cut into several of the last
_EDGE = 1e-3  # square samples by which a triangle is too large, so that neighbours leave no gap
_FAR = 4.0  # no vertex is that near
_DEPTH = 2.0**22


def draw(scene: Scene, height: int, width: int, samples: int = 1) -> Tensor:
    """Draw a scene: uint8 (n, height, width, 3). ``samples`` squared lie in each pixel and are averaged."""
    tall, wide = height * samples, width * samples
    canvas = _backdrop(scene.background, tall, wide)
    flat, pitch = canvas.flatten(), (canvas.shape[1], canvas.shape[2])

    head, box, edges, corners = _faces(scene, tall, wide)
    # A sample's place in the canvas, before the offset within its box.
    place = (head * pitch[0] + box[1].long()) * pitch[1] + box[0].long()
    side = torch.maximum(box[2] - box[0], box[3] - box[1]) + 1
    for i, size in enumerate(_WINDOWS):
        larger = side > (_WINDOWS[i - 1] if i else 0)
        if size < _WINDOWS[-1]:
            which = _where(larger & (side <= size))
            _fill(flat, pitch[1], size, _of(edges, which), place[which], which, corners)
        else:
            which = _where(larger)
            across = ((box[2] - box[0])[which] // size).long() + 1
            count = across * (((box[3] - box[1])[which] // size).long() + 1)
            tile = torch.arange(len(which), device=flat.device).repeat_interleave(count)
            nth = torch.arange(len(tile), device=flat.device) - (count.cumsum(0) - count)[tile]
            right, down = nth % across[tile] * size, nth // across[tile] * size
            which = which[tile]
            moved = _of(edges, which)
            moved[0] += right * moved[1] + down * moved[2]
            _fill(flat, pitch[1], size, moved, place[which] + down * pitch[1] + right, which, corners)
    return _pixels(flat.reshape(canvas.shape), tall, wide, samples)


def _where(mask: Tensor) -> Tensor:
    """Places, in the flattened mask, where it is true; NumPy finds them several times faster than torch on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


def _of(values: Tensor, which: Tensor) -> Tensor:
    """values[..., which]; index_select is fast on two dimensions, and slow on more."""
    taken = values.flatten(0, -2).index_select(1, which)
    return taken.reshape(*values.shape[:-1], len(which))


def _faces(scene: Scene, tall: int, wide: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The triangles that may be seen, in one list over all heads.

    Their head (m,); the box of samples that they may hold (4, m), as left, top, right, bottom; their edges (3, 3, m):
    value at the box's first sample, for all three, then change to the right and down, positive inside; and what a
    sample takes from their corners (3, 4, m): depth, red, green, blue.
    """
    n, v = scene.x.shape
    corner = scene.triangles.T.flatten()
    x = ((scene.x + 1) * (wide / 2) - 0.5).index_select(1, corner).reshape(n, 3, -1)
    y = ((1 - scene.y) * (tall / 2) - 0.5).index_select(1, corner).reshape(n, 3, -1)
    (x0, x1, x2), (y0, y1, y2) = x.unbind(1), y.unbind(1)
    area = (x2 - x0) * (y1 - y0) - (x1 - x0) * (y2 - y0)
    left = torch.minimum(torch.minimum(x0, x1), x2).ceil_().clamp_(min=0)
    right = torch.maximum(torch.maximum(x0, x1), x2).floor_().clamp_(max=wide - 1)
    top = torch.minimum(torch.minimum(y0, y1), y2).ceil_().clamp_(min=0)
    bottom = torch.maximum(torch.maximum(y0, y1), y2).floor_().clamp_(max=tall - 1)
    seen = _where((area > 1e-6) & (left <= right) & (top <= bottom))
    head = seen // len(scene.triangles)

    x0, x1, x2, y0, y1, y2, left, top, right, bottom = (
        values.flatten().index_select(0, seen) for values in (x0, x1, x2, y0, y1, y2, left, top, right, bottom)
    )
    edges = torch.empty((3, 3, len(seen)), device=x.device)
    for i, (xa, ya, xb, yb) in enumerate(((x1, y1, x2, y2), (x2, y2, x0, y0), (x0, y0, x1, y1))):
        across, down = yb - ya, xa - xb
        edges[0, i] = (left - xa) * across + (top - ya) * down
        edges[1, i] = across
        edges[2, i] = down
    values = torch.stack([(_FAR - scene.near) * _DEPTH, *(scene.colour * 255).unbind(1)]).reshape(4, -1)
    base = head * v
    own = seen - head * len(scene.triangles)
    corners = torch.stack([_of(values, own_corner.index_select(0, own) + base) for own_corner in scene.triangles.T])
    return head, torch.stack([left, top, right, bottom]), edges, corners


def _fill(canvas: Tensor, pitch: int, size: int, edges: Tensor, place: Tensor, which: Tensor, corners: Tensor) -> None:
    """Test windows of ``size`` squared samples, and put what lies inside into the canvas where it is nearer."""
    m = len(place)
    if m == 0:
        return
    step = torch.arange(size, device=canvas.device, dtype=torch.float32)[:, None]
    start, across, down = edges[:, :, None]
    inside = (start + down * step)[:, :, None] + (across * step)[:, None]  # (3, size, size, m): the longest line last
    hit = _where(torch.minimum(torch.minimum(inside[0], inside[1]), inside[2]) >= -_EDGE)
    within = hit // m
    window = hit - within * m
    weights = [e.flatten().index_select(0, hit).clamp_(min=0) for e in inside]
    total = weights[0] + weights[1] + weights[2] + 1e-12
    taken = _of(corners, which.index_select(0, window))
    mixed = taken[0] * (weights[0] / total) + taken[1] * (weights[1] / total) + taken[2] * (weights[2] / total) + 0.5
    depth, red, green, blue = mixed.long()
    key = (((((depth << 8) + blue) << 8) + green) << 8) + red
    row = within // size
    canvas.scatter_reduce_(0, place.index_select(0, window) + row * (pitch - size) + within, key, "amin")


def _backdrop(background: Tensor, tall: int, wide: int) -> Tensor:
    """The z-buffer before anything is drawn: far away, in the colours of the background; int64 (n, tall', wide').

    It is a little larger than the picture, so that windows may reach over the edge.
    """
    device = background.device
    spare = _WINDOWS[-1] - 1
    right = ((2 * torch.arange(wide + spare, device=device) + 1 - wide) / wide).clamp(max=1)
    up = -((2 * torch.arange(tall + spare, device=device) + 1 - tall) / tall).clamp(max=1)
    key = torch.full((1, 1, 1), int(_FAR * _DEPTH), device=device)
    for i in (2, 1, 0):
        middle, to_right, to_up = (255 * background[:, :, i]).unbind(1)
        plane = (middle[:, None] + 0.5 + to_up[:, None] * up)[:, :, None] + (to_right[:, None] * right)[:, None, :]
        key = (key << 8) + plane.int()
    return key


def _pixels(canvas: Tensor, tall: int, wide: int, samples: int) -> Tensor:
    """The colours of a z-buffer, averaged over the samples of a pixel."""
    colours = canvas.view(torch.uint8).reshape(*canvas.shape, 8)[:, :tall, :wide, :3]  # the lowest bytes come first
    if samples == 1:
        return colours.contiguous()
    total = torch.full(
        (len(canvas), tall // samples, wide // samples, 3),
        samples * samples // 2,
        device=canvas.device,
        dtype=torch.int32,
    )
    for i in range(samples):
        for j in range(samples):
            total += colours[:, i::samples, j::samples]
    return (total // (samples * samples)).to(torch.uint8)
