"""Pictures of samples: images side by side, other samples as small line plots."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

_GAP = 2
_PLOT = (96, 48)  # width and height of a line plot
_SMALLEST = 56  # small images are enlarged by whole factors to about this size


def is_image(samples: Tensor) -> bool:
    """Whether samples are uint8 images (n, h, w) or (n, h, w, 3)."""
    return samples.dtype == torch.uint8 and (samples.ndim == 3 or (samples.ndim == 4 and samples.shape[3] == 3))


def mosaic(rows: list[Tensor]) -> Image.Image:
    """One picture of rows of samples, each (m, ...); rows may differ in length."""
    cells = [[_cell(sample) for sample in row] for row in rows]
    width, height = next((cell.size for row in cells for cell in row), (1, 1))
    columns = max((len(row) for row in cells), default=1)
    canvas = Image.new("RGB", (columns * (width + _GAP) + _GAP, len(cells) * (height + _GAP) + _GAP), (120, 120, 120))
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            canvas.paste(cell, (_GAP + x * (width + _GAP), _GAP + y * (height + _GAP)))
    return canvas


def grid(samples: Tensor, labels: Tensor | None, columns: int = 20, most: int = 20) -> Image.Image:
    """The first samples of each class, a row a class (at most ``most`` of them); without classes, ten rows."""
    if labels is None:
        return mosaic([samples[i * columns : (i + 1) * columns] for i in range(min(10, -(-len(samples) // columns)))])
    return mosaic([samples[labels == label][:columns] for label in torch.unique(labels)[:most].tolist()])


def _cell(sample: Tensor) -> Image.Image:
    if is_image(sample[None]):
        image = Image.fromarray(sample.numpy()).convert("RGB")
        factor = max(1, round(_SMALLEST / max(image.size)))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    values = sample.flatten().double().nan_to_num()
    low, high = float(values.min()), float(values.max())
    heights = (values - low) / (high - low) if high > low else torch.full_like(values, 0.5)
    width, height = _PLOT
    points = [
        (i * (width - 5) / max(1, len(values) - 1) + 2, (height - 5) * (1 - y) + 2)
        for i, y in enumerate(heights.tolist())
    ]
    image = Image.new("RGB", _PLOT, (255, 255, 255))
    ImageDraw.Draw(image).line(points, fill=(20, 60, 160), width=1)
    return image
