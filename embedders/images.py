"""Embedding of small images: blurred pixels beside histograms of oriented gradients.

Pixels say where the ink is, gradients say which way its edges run. Both are sums of shifted or gathered
slices in a fixed order: a matrix product or a convolution may add in another order when the batch has another
shape, and one row's embedding would then depend on its neighbours. Here a row's bits depend on the row alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 2**18  # pixels embedded at a time, so that memory stays bounded
_SMALL = 16  # frames with a shorter side are first doubled: their strokes are too thin for a gradient
_CELL = 4  # pixels along a cell of the gradient histograms, while there are no more than _CELLS along a side
_CELLS = 7
_PIXELS = 14  # blurred pixels along a side, at most


@dataclass(frozen=True)
class PixelsAndGradients:
    """Images -> blurred pixels and oriented gradients, side by side; the default embedder of images.

    ``size``: compare at this many pixels, a side or (height, width), area-averaged; None keeps the size that
    is given. ``pixels_weight``: length of the pixel part; that of the gradients is 1.

    >>> PixelsAndGradients()(torch.zeros(5, 28, 28, dtype=torch.uint8)).shape
    torch.Size([5, 588])
    """

    size: int | tuple[int, int] | None = None
    pixels_weight: float = 0.6

    def at_size(self, size: int | tuple[int, int]) -> PixelsAndGradients:
        """The same embedder, comparing at another size: that of private images smaller than the samples."""
        return replace(self, size=size)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, h, w) or (n, h, w, 3): float32 (n, d), on their device, each row for itself.

        Raises TypeError for another dtype and ValueError for another shape.
        """

        def embed(x: Tensor) -> Tensor:
            x = _at(x, self.size)
            return torch.cat([_blurred_pixels(x) * self.pixels_weight, _oriented_gradients(x)], dim=1)

        return _in_blocks(embed, images)


@dataclass(frozen=True)
class Photographs:
    """Photographs -> blurred pixels as bright as they are, beside oriented gradients; the default embedder of faces.

    :class:`PixelsAndGradients` scales each image's pixels to length 1, as ink on a page has no brightness of its own; a
    photograph has, and dark skin is not light skin in the shade. ``size`` is as there. ``pixels_weight``: length of the
    pixel part of an image that is white on one half and black on the other; that of the gradients is 1.

    >>> Photographs()(torch.zeros(5, 32, 32, 3, dtype=torch.uint8)).shape
    torch.Size([5, 980])
    """

    size: int | tuple[int, int] | None = None
    pixels_weight: float = 1.5

    def at_size(self, size: int | tuple[int, int]) -> Photographs:
        """The same embedder, comparing at another size: that of private images smaller than the samples."""
        return replace(self, size=size)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, h, w) or (n, h, w, 3): float32 (n, d), on their device, each row for itself.

        Raises TypeError for another dtype and ValueError for another shape.
        """

        def embed(x: Tensor) -> Tensor:
            x = _at(x, self.size)
            height, width = x.shape[2:]
            pixels = _pooled(x, min(height, _PIXELS), min(width, _PIXELS)).flatten(1) - 0.5
            return torch.cat(
                [pixels * (2 * self.pixels_weight / math.sqrt(pixels.shape[1])), _oriented_gradients(x)], dim=1
            )

        return _in_blocks(embed, images)


def blurred_pixels(images: Tensor) -> Tensor:
    """Softly averaged pixels, at most 14 a side, of length 1: uint8 (n, h, w) or (n, h, w, 3) -> float32 (n, d)."""
    return _in_blocks(_blurred_pixels, images)


def oriented_gradients(images: Tensor) -> Tensor:
    """Square roots of gradient histograms in 8 directions and at most 7 x 7 cells, of length 1.

    uint8 (n, h, w) or (n, h, w, 3) -> float32 (n, d); colours are averaged. After Dalal and Triggs, CVPR
    2005, with the square root of Arandjelovic and Zisserman, CVPR 2012. Cells overlap by linear weights; a
    gradient is split between the two of the eight compass directions that enclose it, as a vector is.
    """
    return _in_blocks(_oriented_gradients, images)


def require_images(images: Tensor) -> None:
    """Raise TypeError unless images are uint8, and ValueError unless they are (n, h, w) or (n, h, w, 3)."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}: scale and convert them")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"images must be (n, h, w) or (n, h, w, 3), got {tuple(images.shape)}")


def _in_blocks(embed: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    require_images(images)
    if images.ndim == 3:
        images = images[..., None]
    rows = max(1, _BLOCK // math.prod(images.shape[1:]))
    with torch.no_grad():
        starts = range(0, max(1, len(images)), rows)
        blocks = [embed(images[i : i + rows].permute(0, 3, 1, 2).float() / 255) for i in starts]
    return torch.cat(blocks)


def _blurred_pixels(x: Tensor) -> Tensor:
    """(n, channels, h, w) in 0..1 -> (n, d)."""
    height, width = x.shape[2:]
    return _unit(_pooled(x, min(height, _PIXELS), min(width, _PIXELS)).flatten(1))


def _oriented_gradients(x: Tensor) -> Tensor:
    """(n, channels, h, w) in 0..1 -> (n, d)."""
    x = x[:, 0] if x.shape[1] == 1 else (x[:, 0] + x[:, 1] + x[:, 2]) / 3
    height, width = x.shape[1:]
    if min(height, width) < _SMALL:
        height, width = 2 * height, 2 * width
        x = _pooled(x, height, width)
    x = pad(x, (1, 1, 1, 1))
    gx, gy = x[:, 1:-1, 2:] - x[:, 1:-1, :-2], x[:, 2:, 1:-1] - x[:, :-2, 1:-1]
    east, west, south, north = (g.clamp(min=0) for g in (gx, -gx, gy, -gy))
    across, down = east + west, south + north
    axes = [(east - down), (south - across), (west - down), (north - across)]
    diagonals = [torch.minimum(a, b) * math.sqrt(2) for a in (east, west) for b in (south, north)]
    bins = torch.stack([a.clamp(min=0) for a in axes] + diagonals, dim=1)
    cells = (min(_CELLS, max(1, round(side / _CELL))) for side in (height, width))
    return _unit(_pooled(bins, *cells).flatten(1).sqrt())


def _unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a blank row stays 0."""
    return x / (_row_sums(x * x).sqrt() + 1e-6)[:, None]


def _row_sums(x: Tensor) -> Tensor:
    """Sums of rows (n, d) -> (n,), by halving: always in the same order."""
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        x = x[:, :half] + pad(x[:, half:], (0, 2 * half - x.shape[1]))
    return x[:, 0]


def _pooled(x: Tensor, height: int, width: int) -> Tensor:
    """Overlapping means (..., h, w) -> (..., height, width)."""
    return _resampled(x, _tents(x.shape[-2], height), _tents(x.shape[-1], width))


def _resampled(x: Tensor, rows: Band, columns: Band) -> Tensor:
    """(..., h, w) -> (..., height, width), first down the columns: whole lines move faster."""
    return _along(_along(x, x.ndim - 2, rows), x.ndim - 1, columns)


Band = tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
"""A banded matrix as a sum of terms; in each, every output takes one input, times a weight."""


def _along(x: Tensor, dim: int, band: Band) -> Tensor:
    """Multiply one dimension of x by a banded matrix, adding its terms one after the other."""
    shape = [1] * x.ndim
    shape[dim] = -1
    total: Tensor | None = None
    for index, weight in band:
        term = x.index_select(dim, torch.tensor(index, device=x.device))
        term.mul_(torch.tensor(weight, device=x.device).reshape(shape))
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


@lru_cache(maxsize=256)
def _tents(n: int, m: int) -> Band:
    """n samples -> m overlapping linear (tent) means; interpolation where m > n, a light blur where m = n."""
    reach = max(n / m, 1.0) if m != n else 1.5
    return _band([[max(0.0, 1 - abs((j + 0.5) * n / m - (i + 0.5)) / reach) for i in range(n)] for j in range(m)])


@lru_cache(maxsize=256)
def _areas(n: int, m: int) -> Band:
    """n samples -> the means over m equal areas."""
    return _band([[max(0.0, min((j + 1) * n / m, i + 1) - max(j * n / m, i)) for i in range(n)] for j in range(m)])


def _band(matrix: list[list[float]]) -> Band:
    """A matrix of rows, each scaled to sum 1, as a Band."""
    n = len(matrix[0])
    first = [next(i for i, w in enumerate(row) if w > 0) for row in matrix]
    width = max(sum(w > 0 for w in row) for row in matrix)
    terms = []
    for b in range(width):
        index = tuple(min(f + b, n - 1) for f in first)
        weight = tuple(row[f + b] / sum(row) if f + b < n else 0.0 for row, f in zip(matrix, first, strict=True))
        terms.append((index, weight))
    return tuple(terms)


def _at(x: Tensor, size: int | tuple[int, int] | None) -> Tensor:
    """Means (..., h, w) -> (..., *size); None leaves them as they are."""
    if size is None:
        return x
    height, width = _pair(size)
    return _resampled(x, _areas(x.shape[-2], height), _areas(x.shape[-1], width))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
