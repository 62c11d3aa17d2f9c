"""A batched z-buffer: every triangle of every head at once, on any device.

Triangles that face away or hold no sample are dropped first. The others are cut into lines of samples; where a line
enters and leaves its triangle is computed, so that only samples that lie in a triangle are ever listed. Each of these
becomes one whole number, nearness above the triangle's place in the list, and the greatest at each place of the picture
wins: so the order of triangles does not matter, and nothing is sorted. Colours are read last, once a sample; they are
planes over the picture, and so is the background.

Steps are few and large, for each has a price of its own, and blocks of heads small, for the processor's cache.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simpe.simulators.faces.scene import Scene

_BLOCK = 32 * 64**2  # samples drawn at a time, on a CPU
_EDGE = 1e-3  # square samples by which a triangle is too large, so that neighbours leave no gap
_LEAST = 1e-6  # square samples; a triangle of less has no front
_NOTHING = 1e-20
_SURFACE, _PLANES, _LINES = slice(0, 11), slice(2, 14), slice(11, 26)  # rows of what is known of triangles


def draw(scene: Scene, height: int, width: int, samples: int = 1) -> Tensor:
    """Draw a scene: uint8 (n, height, width, 3). ``samples`` squared lie in each pixel and are averaged."""
    n, tall, wide = len(scene.x), height * samples, width * samples
    pixels = torch.empty((3, n, height, width), device=scene.x.device, dtype=torch.uint8)
    rows = max(1, _BLOCK // (tall * wide))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        _draw(scene.rows(part), tall, wide, samples, pixels[:, part])
    return pixels.permute(1, 2, 3, 0)


def _draw(scene: Scene, tall: int, wide: int, samples: int, pixels: Tensor) -> None:
    """Draw a few heads. Of each background, then of each triangle that may be seen, 26 numbers are known:

    the first sample of its box, right and down; planes, each a value there and its changes to the right and down, of
    the three colours 0..255, of nearness, and of three that are positive within the triangle; the width of the box, the
    number of the first of the triangle's lines, and the place of the first sample (the last two int32).
    """
    n, device = len(scene.x), scene.x.device
    head, corners, at, first, size = _seen(scene, tall, wide)
    known = torch.empty((_LINES.stop, n + len(head)), device=device)
    known[:2, :n] = 0
    known[2:11, :n] = _backgrounds(scene.background, tall, wide)
    of_triangles = known[:, n:]
    of_triangles[:2] = first
    inside = of_triangles[14:23].view(3, 3, len(head))
    area = _inside(at, first, inside)
    _planes(_values(scene, corners), inside, area, of_triangles[_PLANES].view(4, 3, len(head)))
    inside[:, 0] += (area / 16).clamp_(max=_EDGE)  # a sliver by less: its values run steeply
    owner, start = _spread(size[1].int())
    of_triangles[23] = size[0]
    whole = of_triangles[24:].view(torch.int32)
    whole[0] = start
    torch.add((head * tall).add_(first[1].int()).mul_(wide), first[0].int(), out=whole[1])
    canvas = torch.arange(n, device=device).repeat_interleave(tall * wide)  # nearness above a place in the list
    _fill(canvas, known, owner.add_(n), wide)
    winner = canvas.view(torch.int32)[::2].reshape(n, tall, wide)  # the lower half comes first
    _colour(winner, known[_SURFACE], samples, pixels)


def _where(mask: Tensor) -> Tensor:
    """Places, in the flattened mask, where it is true; on a CPU NumPy finds them several times faster."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


def _taken(values: Tensor, which: Tensor) -> Tensor:
    """values[:, which], of float32 or int32; index_select on a CPU is fast for two dimensions of float32 alone."""
    return values.view(torch.float32).index_select(1, which).view(values.dtype)


def _spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Several things each (m,): whose each thing is, and of each owner the number of its first, int32.

    repeat_interleave does the same, and where counts are small takes several times as long.
    """
    stop = counts.cumsum(0, dtype=torch.int32)
    start = stop - counts
    total = int(stop[-1]) if len(stop) else 0
    marks = torch.zeros(total + 1, device=counts.device, dtype=torch.int32)
    marks.scatter_add_(0, start.long(), torch.ones_like(start))
    return marks[:total].cumsum(0, dtype=torch.int32).sub_(1), start


def _seen(scene: Scene, tall: int, wide: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The triangles that may be seen: those that show their front and whose boxes hold a sample.

    Their heads (m,); their corners, as places among all vertices of all heads (3, m), and on the picture in samples to
    the right and down (3, 2, m); the first samples of their boxes and how many lie in these, both (2, m).
    """
    n, v = scene.x.shape
    triangles = scene.triangles.T.int()
    points = torch.empty((2, n, v), device=scene.x.device)
    torch.mul(scene.x, wide / 2, out=points[0]).add_((wide - 1) / 2)
    torch.mul(scene.y, -tall / 2, out=points[1]).add_((tall - 1) / 2)
    known = torch.empty((5, 2, n, triangles.shape[1]), device=points.device)
    for corner, own in zip(triangles, known, strict=False):
        torch.index_select(points.flatten(0, 1), 1, corner, out=own.flatten(0, 1))
    a, b, c, first, size = known
    torch.minimum(torch.minimum(a, b, out=first), c, out=first).ceil_()
    torch.maximum(torch.maximum(a, b, out=size), c, out=size).ceil_()
    for box in (first, size):
        box[0].clamp_(0, wide)
        box[1].clamp_(0, tall)
    size -= first
    # A box that holds a sample is at least 1 either way.
    least = torch.minimum(torch.minimum(size[0], size[1]), _across(b - a, c - a))
    which = _where(least > _LEAST)
    heads = torch.arange(n + 1, device=which.device)
    ends = torch.searchsorted(which, heads * triangles.shape[1])
    head = heads[:n].int().repeat_interleave(ends.diff())
    own = which.int().sub_(head * triangles.shape[1])
    corners = _taken(triangles, own).add_(head * v)
    at = _taken(known.view(10, -1), which)
    return head, corners, at[:6].view(3, 2, -1), at[6:8], at[8:]


def _across(u: Tensor, v: Tensor) -> Tensor:
    """Twice the area between two edges (2, ...), positive where the front is seen (down is positive)."""
    return (v[0] * u[1]).sub_(u[0] * v[1])


def _values(scene: Scene, corners: Tensor) -> Tensor:
    """Colours 0..255 and nearness at corners (3, m): (3, 4, m)."""
    table = torch.empty((4, *scene.x.shape), device=corners.device)
    torch.mul(scene.colour.transpose(0, 1), 255, out=table[:3])
    table[3] = scene.near
    out = torch.empty((3, 4, corners.shape[1]), device=corners.device)
    for corner, own in zip(corners, out, strict=True):
        torch.index_select(table.flatten(1), 1, corner, out=own)
    return out


def _inside(at: Tensor, first: Tensor, out: Tensor) -> Tensor:
    """Fill in planes (3, 3, m), one for each edge, that are positive within; return their sum (m,), twice the area."""
    edge = torch.empty_like(at)  # from each corner to the next
    torch.sub(at[1:], at[:2], out=edge[:2])
    torch.sub(at[0], at[2], out=edge[2])
    away = first - at
    torch.sub(away[:, 0] * edge[:, 1], away[:, 1] * edge[:, 0], out=out[:, 0])
    out[:, 1] = edge[:, 1]
    torch.neg(edge[:, 0], out=out[:, 2])
    return _across(edge[2], edge[0])


def _planes(values: Tensor, inside: Tensor, area: Tensor, out: Tensor) -> None:
    """Fill in planes (k, 3, m) of values (3, k, m) at corners. A corner's share is the plane of the edge across."""
    third, first = (values[2] - values[1]).div_(area), (values[0] - values[1]).div_(area)
    torch.mul(third[:, None], inside[0], out=out)
    out += first[:, None] * inside[1]
    out[:, 0] += values[1]


def _fill(canvas: Tensor, known: Tensor, owner: Tensor, wide: int) -> None:
    """Put the samples that lie inside triangles into the canvas where they are nearest; ``owner``: of each line.

    A plane is positive to the right of where it is 0 if it rises to the right, else to the left. Divided by almost
    nothing in place of its rise or fall, it sets no bound, but for a line that lies outside altogether.
    """
    line = _taken(known[_LINES], owner)
    start, place = line[13:].view(torch.int32)
    down = torch.arange(len(owner), device=owner.device, dtype=torch.int32).sub_(start)
    place += down * wide
    down = down.float()
    near, slope = line[0].add_(line[2] * down), line[1]
    value, right, below = line[3:12].view(3, 3, len(owner)).unbind(1)
    value += below.mul_(down)
    a, b, c = value / right.clamp(min=_NOTHING)
    enter = torch.minimum(torch.minimum(a, b, out=a), c, out=a).neg_().ceil_().clamp_(min=0)
    a, b, c = value.abs_().add_(1e-9).div_(right.neg_().clamp_(min=_NOTHING))
    leave = torch.minimum(torch.minimum(a, b, out=a), c, out=a).floor_()
    count = torch.minimum(leave, line[12] - 1).sub_(enter).add_(1).clamp_(min=0).int()
    of, first = _spread(count)
    rows = torch.stack([near, slope, *(x.view(torch.float32) for x in (place, enter.int().sub_(first), owner))])
    taken = rows.index_select(1, of)
    near, slope = taken[:2]
    place, right, number = taken[2:].view(torch.int32)
    right += torch.arange(len(of), device=of.device, dtype=torch.int32)
    near += slope.mul_(right)
    key = torch.stack([number, near.view(torch.int32)], 1).view(torch.int64)  # the lower half comes first
    canvas.scatter_reduce_(0, place.add_(right).long(), key.squeeze(1), "amax")


def _backgrounds(background: Tensor, tall: int, wide: int) -> Tensor:
    """The colours of backgrounds as planes from the first sample of the picture (9, n)."""
    middle, to_right, to_up = 255 * background.permute(1, 2, 0)
    right, down = to_right * (2 / wide), to_up * (-2 / tall)
    return torch.stack([middle - right * ((wide - 1) / 2) - down * ((tall - 1) / 2), right, down], 1).flatten(0, 1)


def _colour(winner: Tensor, known: Tensor, samples: int, pixels: Tensor) -> None:
    """The colours of the winners (n, tall, wide), averaged over the samples of a pixel."""
    taken = _taken(known, winner.flatten()).reshape(-1, *winner.shape)
    (left, top), planes = taken[:2], taken[2:].view(3, 3, *winner.shape)
    _, tall, wide = winner.shape
    across = torch.arange(wide, device=known.device, dtype=torch.float32)
    down = torch.arange(tall, device=known.device, dtype=torch.float32)[:, None]
    planes[:, 1] *= torch.sub(across, left, out=left)
    planes[:, 2] *= torch.sub(down, top, out=top)
    value = planes[:, 0].add_(planes[:, 1]).add_(planes[:, 2]).add_(0.5).clamp_(0, 255)
    if samples > 1:
        value = value.floor_()
        parts = [value[..., j::samples, k::samples] for j in range(samples) for k in range(samples)]
        value = sum(parts[1:], parts[0]).add_(samples * samples // 2).div_(samples * samples)
    pixels.copy_(value)
