"""Signed distance fields of glyphs: typefaces from pip, single-stroke faces, and pen strokes in many hands.

A glyph is scaled so that the larger side of its bounding box spans -1..1 and held as a field of ``FIELD`` x
``FIELD`` distances over -``REACH``..``REACH``, in the same unit: positive inside the ink, negative outside. A
field can be warped smoothly, and a pen is made thicker or thinner by adding a constant (Green, "Improved
alpha-tested magnification", SIGGRAPH 2007).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from HersheyFonts import HersheyFonts
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

from simpe.simulators.strokes import STROKES
from simpe.simulators.typefaces import Source, hershey_source, sources, stroke_sources, typefaces

FIELD = 64
"""Points along each side of a field."""

REACH = 1.5
"""Half the side of a field, where the larger half-side of the glyph is 1."""

_RASTER = 128  # em size in pixels from which an outline's field is measured

_HERSHEY = ("futural", "rowmans", "scripts", "timesr")

# Each form of a digit is written by several hands: the first as it stands, the others with its control points moved, by
# a fixed draw.
_HANDS = 6
_UNSTEADY = 5.0  # standard deviation of a control point, on a page of 100

Shapes = Literal["all", "typefaces", "strokes"]
"""What faces are made of: outlines of typefaces, pen strokes, or both kinds."""

Dots = Tensor
"""Glyphs as dots along their strokes: float32 (glyphs, dots, 2)."""


@dataclass(frozen=True)
class Atlas:
    """The fields of every face of every class, one class after the other."""

    fields: Tensor
    """float32 (glyphs, FIELD, FIELD)."""
    pen: Tensor
    """float32 (glyphs,): half the width of the pen that the face was drawn with; 0 for bare strokes."""
    first: Tensor
    """int64 (classes,): where the glyphs of a class begin."""
    count: Tensor
    """int64 (classes,): how many there are, at least 1."""
    sources: tuple[Source, ...]
    """Every file that the glyphs came from."""

    def to(self, device: torch.device) -> Atlas:
        """The same atlas on another device."""
        return replace(
            self,
            fields=self.fields.to(device),
            pen=self.pen.to(device),
            first=self.first.to(device),
            count=self.count.to(device),
        )


@lru_cache(maxsize=16)
def atlas(classes: tuple[str, ...], fonts: tuple[Path, ...], device: torch.device, shapes: Shapes = "all") -> Atlas:
    """Build the atlas of single characters; ``fonts`` are added to the built-in typefaces (see
    :func:`simpe.simulators.typefaces.typefaces`). ``shapes``: outlines of typefaces, pen strokes, or both.

    Raises ImportError naming the pip package of a missing typeface, FileNotFoundError for a font that does
    not exist, ValueError for a character that no face can draw.
    """
    if device.type != "cpu":
        return atlas(classes, fonts, torch.device("cpu"), shapes).to(device)
    faces = [] if shapes == "strokes" else typefaces(fonts)
    outlines = [_outlines(face.path, face.cut, classes) for face in faces]
    hershey = [] if shapes == "typefaces" else [_hershey(name, classes) for name in _HERSHEY]

    fields: list[Tensor] = []
    pens: list[Tensor] = []
    for i, character in enumerate(classes):
        own = [] if shapes == "typefaces" else [_fields_of_dots(dots) for dots in _handwritten(character)]
        own += [_fields_of_dots(dots) for face in hershey if (dots := face[i]) is not None]
        own += [field[None] for face in outlines if (field := face[i]) is not None]
        if not own:
            raise ValueError(f"no face can draw {character!r}: add a font that has it with fonts=[...]")
        stack = torch.cat(own)
        ink = (stack > 0).sum((1, 2)).clamp(min=1)
        pen = 2 * stack.clamp(min=0).sum((1, 2)) / ink  # the mean depth inside a stroke is half of its half-width
        fields.append(stack)
        pens.append(pen)
    counts = torch.tensor([len(pen) for pen in pens])
    return Atlas(
        fields=torch.cat(fields),
        pen=torch.cat(pens),
        first=counts.cumsum(0) - counts,
        count=counts,
        sources=(*sources(faces), *([hershey_source(), *stroke_sources()] if hershey else [])),
    )


def _outlines(path: Path, cut: str | None, classes: tuple[str, ...]) -> list[Tensor | None]:
    """The field of each character in a font file; None where the font lacks it."""
    font = ImageFont.truetype(str(path), _RASTER, layout_engine=ImageFont.Layout.BASIC)
    if cut is not None:
        font.set_variation_by_name(cut)
    missing = _mask(font, "\U0010ffff")
    glyphs = (_mask(font, character) for character in classes)
    return [None if g.size == 0 or not g.any() or np.array_equal(g, missing) else _field_of_mask(g) for g in glyphs]


def _mask(font: ImageFont.FreeTypeFont, character: str) -> npt.NDArray[np.bool_]:
    left, top, right, bottom = (round(v) for v in font.getbbox(character))
    image = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    mask = np.asarray(image) >= 128
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else mask[:0, :0]


def _field_of_mask(mask: npt.NDArray[np.bool_]) -> Tensor:
    height, width = mask.shape
    half = max(height, width) / 2
    side = round(2 * REACH * half)
    top, left = (side - height) // 2, (side - width) // 2
    page = np.zeros((side, side), dtype=bool)
    page[top : top + height, left : left + width] = mask
    inside, outside = distance_transform_edt(page), distance_transform_edt(~page)
    # The outline runs half a pixel before the first pixel on the other side.
    signed = torch.from_numpy(np.where(page, inside - 0.5, 0.5 - outside) / half).float()
    return interpolate(signed[None, None], size=(FIELD, FIELD), mode="bilinear", align_corners=False)[0, 0]


def _fields_of_dots(dots: Dots) -> Tensor:
    """Minus the distance to the nearest dot, (n, FIELD, FIELD): a pen of no width, to be thickened when it is
    drawn."""
    low, high = dots.amin(1, keepdim=True), dots.amax(1, keepdim=True)
    half = ((high - low).amax(2, keepdim=True) / 2).clamp(min=1e-9)
    dots = (dots - (low + high) / 2) / half
    # Squared distances are smooth across a stroke, so every other point is enough. Few glyphs at a time, to stay in
    # cache.
    half_field = FIELD // 2
    axis = ((torch.arange(half_field) + 0.5) / half_field * (2 * REACH) - REACH)[:, None]
    nearest = []
    for some in torch.split(dots, 4):
        x, y = ((axis - some[:, None, :, i]).square_() for i in (0, 1))  # (glyphs, half_field, dots)
        nearest.append((y[:, :, None] + x[:, None]).amin(3))
    squared = torch.cat(nearest)[:, None]
    return -interpolate(squared, scale_factor=2, mode="bicubic", align_corners=False).clamp(min=0).sqrt()[:, 0]


def _hershey(name: str, classes: tuple[str, ...]) -> list[Dots | None]:
    """Each character of a single-stroke face; None where it has no ink."""
    font = HersheyFonts()
    font.load_default_font(name)
    faces: list[Dots | None] = []
    for character in classes:
        strokes = [glyph.strokes for glyph in font.glyphs_for_text(character)]
        lines = [torch.tensor(stroke, dtype=torch.float32) for some in strokes for stroke in some if len(stroke) > 1]
        t = torch.linspace(0, 1, 12)[:, None, None]
        dots = [torch.lerp(line[:-1], line[1:], t).flatten(0, 1) for line in lines]
        faces.append(torch.cat(dots)[None] if dots else None)
    return faces


def _handwritten(character: str) -> list[Dots]:
    """The forms of a character, each in ``_HANDS`` hands."""
    draw = torch.Generator().manual_seed(ord(character))
    return [_written(form, draw) for form in STROKES.get(character, ())]


def _written(form: str, draw: torch.Generator) -> Dots:
    """One form, its control points moved by each hand but the first; what meets in a point still does."""
    names = sorted(set(form.replace("/", " ").replace(";", " ").split()))
    moved = _UNSTEADY * torch.randn(len(names), _HANDS, 2, generator=draw)
    moved[:, 0] = 0
    points = {p: torch.tensor([float(v) for v in p.split(",")]) + by for p, by in zip(names, moved, strict=True)}
    pieces = [piece for lift in form.split(";") for piece in _pieces(lift)]
    return torch.cat([_smooth(torch.stack([points[p] for p in piece], 1)) for piece in pieces], 1)


def _pieces(stroke: str) -> Iterator[list[str]]:
    """Split a stroke at its corners; each piece begins where the last one ended."""
    last: list[str] = []
    for piece in stroke.split("/"):
        points = last + piece.split()
        yield points
        last = points[-1:]


def _smooth(points: Dots, apart: float = 3.0) -> Dots:
    """Dots along splines (Catmull and Rom, 1974) through points (n, k, 2), about ``apart`` or closer."""
    closed = torch.equal(points[:, 0], points[:, -1])
    before, after = (points[:, -2], points[:, 1]) if closed else (points[:, 0], points[:, -1])
    p = torch.cat([before[:, None], points, after[:, None]], 1)
    longest = float((points[:, 1:] - points[:, :-1]).norm(dim=2).max())
    t = torch.linspace(0, 1, 2 + int(longest / apart))[:, None]
    a, b, c, d = (x[:, :, None] for x in (p[:, :-3], p[:, 1:-2], p[:, 2:-1], p[:, 3:]))
    curve = b + (c - a) / 2 * t + (a - 2.5 * b + 2 * c - d / 2) * t**2 + (1.5 * (b - c) + (d - a) / 2) * t**3
    return curve.flatten(1, 2)
