"""A batched z-buffer: every triangle of every head at once, on any device.

Triangles that face away or hold no sample are dropped first. The others are grouped by the height and width of their
boxes, 1 to 3 samples each way; a larger triangle is cut into square tiles. All boxes of one shape are tested in one go.
A sample that lies in a triangle becomes one whole number, nearness above the triangle's place in the list, and the
greatest at each place of the picture wins: so the order of triangles does not matter, and nothing is sorted. Colours
are read last, once a sample; they are planes over the picture, and so is the background.

Steps are few and large, for each has a price of its own, and blocks of heads small, for the processor's cache.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simpe.simulators.faces.scene import Scene

_BLOCK = 16 * 64**2  # samples drawn at a time, on a CPU
_BOX = 3  # side of the largest box that is tested in one piece, samples
_TILE = 4  # side of the pieces of larger ones
_EDGE = 1e-3  # square samples by which a triangle is too large, so that neighbours leave no gap
_LEAST = 1e-6  # square samples; a triangle of less has no front
_SHAPES = [(h, w) for h in range(1, _BOX + 1) for w in range(1, _BOX + 1)]
_PLACE, _NUMBER, _COLOUR, _FIRST, _ROWS = slice(12, 15), slice(15, 18), slice(18, 27), slice(27, 29), 29  # of triangles


def draw(scene: Scene, height: int, width: int, samples: int = 1) -> Tensor:
    """Draw a scene: uint8 (n, height, width, 3). ``samples`` squared lie in each pixel and are averaged."""
    n, tall, wide = len(scene.x), height * samples, width * samples
    pixels = torch.empty((n, height, width, 3), device=scene.x.device, dtype=torch.uint8)
    rows = max(1, _BLOCK // (tall * wide))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        _draw(scene.rows(part), tall, wide, samples, pixels[part])
    return pixels


def _draw(scene: Scene, tall: int, wide: int, samples: int, pixels: Tensor) -> None:
    n, device = len(scene.x), scene.x.device
    table = _table(scene, tall, wide)
    head, corners, first, size, counts = _seen(table, scene.triangles, tall, wide)
    known = torch.zeros((_ROWS, n + len(head)), device=device)
    known[_COLOUR, :n] = _backgrounds(scene.background, tall, wide)
    triangles = known[:, n:]
    _planes(table.flatten(1), corners, first, triangles)

    # The canvas is a little larger than the picture, so that boxes may reach over its edge. It holds nearness (the
    # bits of a positive float32 are in its order) above a place in the list, where the backgrounds come first.
    lines, pitch = tall + _TILE, wide + _TILE
    canvas = torch.arange(n, device=device).repeat_interleave(lines * pitch)
    place, place_right, place_down = triangles[_PLACE]
    torch.add((head.float() * lines).add_(first[1]).mul_(pitch), first[0], out=place)
    place_right[:], place_down[:] = 1, pitch
    torch.arange(n, n + len(head), device=device, out=triangles[_NUMBER.start])
    _fill(canvas, triangles[: _NUMBER.stop].view(6, 3, len(head)), counts, size)
    winner = canvas.reshape(n, lines, pitch)[:, :tall, :wide] & 0xFFFFFFFF
    _colour(winner, known[_COLOUR.start :], samples, pixels)


def _where(values: Tensor, test: Callable[[Any], Any]) -> Tensor:
    """Places, in the flattened values, where a test is true; on a CPU NumPy finds them several times faster."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(test(values.numpy())))
    found: Tensor = test(values).flatten().nonzero().squeeze(1)
    return found


def _taken(values: Tensor, which: Tensor) -> Tensor:
    """values[:, which], of float32 or int32; index_select on a CPU is fast for two dimensions of float32 alone."""
    return values.view(torch.float32).index_select(1, which).view(values.dtype)


def _table(scene: Scene, tall: int, wide: int) -> Tensor:
    """What is known of vertices (6, n, V): place to the right and down in samples, nearness, colours 0..255."""
    table = torch.empty((6, *scene.x.shape), device=scene.x.device)
    torch.mul(scene.x, wide / 2, out=table[0]).add_((wide - 1) / 2)
    torch.mul(scene.y, -tall / 2, out=table[1]).add_((tall - 1) / 2)
    table[2] = scene.near
    torch.mul(scene.colour.transpose(0, 1), 255, out=table[3:])
    return table


def _seen(table: Tensor, triangles: Tensor, tall: int, wide: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """The triangles that may be seen, grouped by the shape of their boxes: 1 x 1, 1 x 2 and so on, then all larger.

    Their heads (m,); their corners, as places in the flattened table (3, m); the first samples of their boxes and how
    many lie in these to the right and down, both (2, m); and how many triangles each group has.
    """
    n, v = table.shape[1:]
    after = table[:2].ceil()  # the first sample at or after each vertex; a box ends before the last of these
    after[0].clamp_(0, wide)
    after[1].clamp_(0, tall)
    a, b, c = _taken(after.flatten(0, 1), triangles.T.flatten()).reshape(2, n, 3, -1).unbind(2)
    first = torch.minimum(torch.minimum(a, b), c)
    size = torch.maximum(torch.maximum(a, b), c).sub_(first)
    which = _where(torch.minimum(size[0], size[1]), lambda least: least > 0)
    head = (which.double() / len(triangles)).int()
    corners = _taken(triangles.T.int(), which.int().sub_(head * len(triangles))).add_(head * v)
    (x0, y0), (x1, y1), (x2, y2) = (_taken(table[:2].flatten(1), corner) for corner in corners)
    area = ((x2 - x0) * (y1 - y0)).sub_((x1 - x0) * (y2 - y0))
    first, size = (_taken(sides.flatten(1), which) for sides in (first, size))
    across, down = size.clamp(max=_BOX + 1)
    kind = down.mul_(_BOX + 1).add_(across).mul_(area.gt_(_LEAST)).to(torch.uint8)
    groups = [_where(kind, functools.partial(operator.eq, (_BOX + 1) * h + w)) for h, w in _SHAPES]
    groups.append(_where(kind, lambda k: (k > _BOX * (_BOX + 1) + _BOX) | (k > 0) & (k % (_BOX + 1) == 0)))
    which = torch.cat(groups)
    counts = [len(group) for group in groups]
    return head.index_select(0, which), _taken(corners, which), _taken(first, which), _taken(size, which), counts


def _planes(table: Tensor, corners: Tensor, first: Tensor, out: Tensor) -> None:
    """Fill in what is known of triangles from vertices (6, n V), their corners (3, m) and the first samples (2, m).

    Planes have three rows: value at the first sample, change to the right, change down. First come three that are
    positive within the triangle (which _EDGE enlarges), then nearness; ``_COLOUR`` are the colours, ``_FIRST`` is
    ``first`` itself.
    """
    taken = torch.empty((3, *table.shape[:1], corners.shape[1]), device=table.device)
    for corner, own in zip(corners, taken, strict=True):
        torch.index_select(table, 1, corner, out=own)
    at, values = taken[:, :2], taken[:, 2:]
    edge = torch.empty(at.shape, device=table.device)  # from each corner to the next
    torch.sub(at[1:], at[:2], out=edge[:2])
    torch.sub(at[0], at[2], out=edge[2])
    away = first - at
    inside = out[:9].view(3, 3, out.shape[1])
    inside[:, 1] = edge[:, 1]
    torch.neg(edge[:, 0], out=inside[:, 2])
    torch.sub(away[:, 0] * edge[:, 1], away[:, 1] * edge[:, 0], out=inside[:, 0])
    area = (edge[0, 0] * edge[2, 1]).sub_(edge[2, 0] * edge[0, 1])
    # A corner's share is the plane that is 0 on the edge across from it.
    third, first_corner = (values[2] - values[1]).div_(area), (values[0] - values[1]).div_(area)
    for rows, i in ((slice(9, 12), slice(0, 1)), (_COLOUR, slice(1, 4))):
        known = out[rows].view((rows.stop - rows.start) // 3, 3, out.shape[1])
        torch.add(third[i, None] * inside[0], first_corner[i, None] * inside[1], out=known)
        known[:, 0] += values[1, i]
    inside[:, 0] += (area / 16).clamp_(max=_EDGE)  # a sliver by less: its values run steeply
    out[_FIRST] = first


def _fill(canvas: Tensor, planes: Tensor, counts: list[int], size: Tensor) -> None:
    """Test all boxes, and put the samples that lie inside into the canvas where they are nearest.

    ``planes`` (6, 3, m): three that must be positive, nearness, place in the canvas and number. ``counts``: boxes of
    each shape. ``size`` (2, m): samples of a box to the right and down.
    """
    small = sum(counts[:-1])
    boxes = [*zip(_SHAPES, torch.split(planes, counts, 2), strict=False)]
    boxes.append(((_TILE, _TILE), _tiles(planes[..., small:], size[:, small:])))
    each = torch.empty((6, sum(h * w * own.shape[2] for (h, w), own in boxes)), device=canvas.device)
    steps = torch.arange(_TILE, device=canvas.device, dtype=torch.float32)[:, None]
    stop = 0
    for (h, w), own in boxes:
        start, stop = stop, stop + h * w * own.shape[2]
        value, right, down = own.unbind(1)
        line = value[:, None] + down[:, None] * steps[:h]
        out = each[:, start:stop].view(6, h, w, own.shape[2])
        torch.add(line[:, :, None], (right[:, None] * steps[:w])[:, None], out=out)
    hit = _where(torch.minimum(torch.minimum(each[0], each[1]), each[2]), lambda least: least >= 0)
    near, place, number = (row.index_select(0, hit) for row in each[3:])
    key = torch.stack([number.int(), near.view(torch.int32)], 1).view(torch.int64)  # the lower half comes first
    canvas.scatter_reduce_(0, place.long(), key.squeeze(1), "amax")


def _tiles(planes: Tensor, size: Tensor) -> Tensor:
    """The planes of larger boxes, cut into tiles."""
    across, down = (size + (_TILE - 1)).long() // _TILE
    count = across * down
    whole = torch.arange(len(count), device=size.device).repeat_interleave(count)
    nth = torch.arange(len(whole), device=size.device) - (count.cumsum(0) - count).index_select(0, whole)
    across = across.index_select(0, whole)
    row = (nth.double() / across).long()
    right, below = (nth - row * across) * _TILE, row * _TILE
    planes = _taken(planes.flatten(0, 1), whole).view(6, 3, len(whole))
    planes[:, 0] += (planes[:, 1] * right.float()).add_(planes[:, 2] * below.float())
    return planes


def _backgrounds(background: Tensor, tall: int, wide: int) -> Tensor:
    """The colours of backgrounds as planes from the first sample of the picture (9, n)."""
    middle, to_right, to_up = 255 * background.permute(1, 2, 0)
    right, down = to_right * (2 / wide), to_up * (-2 / tall)
    return torch.stack([middle - right * ((wide - 1) / 2) - down * ((tall - 1) / 2), right, down], 1).flatten(0, 1)


def _colour(winner: Tensor, known: Tensor, samples: int, pixels: Tensor) -> None:
    """The colours of the winners (n, tall, wide), averaged over the samples of a pixel."""
    taken = _taken(known, winner.flatten()).reshape(-1, *winner.shape)
    planes, (left, top) = taken[:9].view(3, 3, *winner.shape), taken[9:]
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
    pixels.copy_(value.permute(1, 2, 3, 0))
