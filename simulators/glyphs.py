"""What characters are drawn from: forms that a pen writes, and glyphs of typefaces from pip and of single-stroke faces.

A form is a spline through control points, held as dots along it that each depend on four of them. A glyph is held as a
field of ``FIELD`` x ``FIELD`` distances over -``REACH``..``REACH``: positive inside the ink, negative outside. The
larger side of both spans -1..1. A field can be warped smoothly, and a pen is made thicker or thinner by adding a
constant (Green, "Improved alpha-tested magnification", SIGGRAPH 2007).
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
from torch.nn.functional import interpolate, pad

from simpe.selection import apportion
from simpe.simulators.strokes import STROKES
from simpe.simulators.typefaces import Source, hershey_source, sources, stroke_sources, typefaces

FIELD = 64
"""Points along each side of a field."""

REACH = 1.5
"""Half the side of a field, where the larger half-side of the glyph is 1."""

_RASTER = 128  # em size in pixels from which an outline's field is measured

_HERSHEY = ("futural", "rowmans", "scripts", "timesr")

DOTS = 80
"""Dots along the way of a pen."""

OFTEN = 6
"""How many faces a form stands for beside each glyph: people write in more ways than typefaces show."""

Shapes = Literal["all", "typefaces", "strokes"]
"""What faces are made of: outlines of typefaces, pen strokes, or both kinds."""

Dots = Tensor
"""A glyph as dots along its strokes: float32 (dots, 2)."""


@dataclass(frozen=True)
class Atlas:
    """The faces of every class, one class after the other: forms that a pen writes, then glyphs held as fields."""

    control: Tensor
    """float32 (forms, K, 2): the control points of a form, x and y downwards; unused ones are 0."""
    near: Tensor
    """int64 (forms, DOTS, 4): the control points that decide where a dot lies."""
    weight: Tensor
    """float32 (forms, DOTS, 4): how much each does."""
    joined: Tensor
    """float32 (forms, DOTS): 1 where the pen goes on to the next dot, 0 where it is lifted."""
    fields: Tensor
    """float32 (glyphs, FIELD, FIELD)."""
    pen: Tensor
    """float32 (glyphs,): half the width of the pen that the face was drawn with; 0 for bare strokes."""
    first_form: Tensor
    """int64 (classes,): where the forms of a class begin."""
    forms: Tensor
    """int64 (classes,): how many forms there are; each is ``OFTEN`` faces, the first ones."""
    first_glyph: Tensor
    """int64 (classes,): where the glyphs of a class begin."""
    count: Tensor
    """int64 (classes,): how many faces there are, at least 1."""
    sources: tuple[Source, ...]
    """Every file that the faces came from."""

    def to(self, device: torch.device) -> Atlas:
        """The same atlas on another device."""
        tensors = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


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

    forms: list[Form] = []
    fields: list[Tensor] = []
    written: list[int] = []
    for i, character in enumerate(classes):
        own = [] if shapes == "typefaces" else [_form(text) for text in STROKES.get(character, ())]
        held = [_field_of_dots(dots) for face in hershey if (dots := face[i]) is not None]
        held += [field for face in outlines if (field := face[i]) is not None]
        if not own and not held:
            raise ValueError(f"no face can draw {character!r}: add a font that has it with fonts=[...]")
        forms += own
        fields.append(torch.stack(held) if held else torch.empty(0, FIELD, FIELD))
        written.append(len(own))
    every, known = torch.cat(fields), torch.tensor([len(some) for some in fields])
    ink = (every > 0).sum((1, 2)).clamp(min=1)
    own_forms = torch.tensor(written)
    most = max((len(form.control) for form in forms), default=0)
    return Atlas(
        control=_stacked([pad(form.control, (0, 0, 0, most - len(form.control))) for form in forms], (most, 2)),
        near=_stacked([form.near for form in forms], (DOTS, 4)).long(),
        weight=_stacked([form.weight for form in forms], (DOTS, 4)),
        joined=_stacked([form.joined for form in forms], (DOTS,)),
        fields=every,
        pen=2 * every.clamp(min=0).sum((1, 2)) / ink,  # the mean depth in a stroke is half of its half-width
        first_form=own_forms.cumsum(0) - own_forms,
        forms=own_forms,
        first_glyph=known.cumsum(0) - known,
        count=OFTEN * own_forms + known,
        sources=(*sources(faces), *([hershey_source(), *stroke_sources()] if hershey else [])),
    )


def _stacked(parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.stack(parts) if parts else torch.empty(0, *shape)


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


def _field_of_dots(dots: Dots) -> Tensor:
    """Minus the distance to the nearest dot, (FIELD, FIELD): a pen of no width, to be thickened when it is drawn."""
    low, high = dots.amin(0), dots.amax(0)
    dots = (dots - (low + high) / 2) / ((high - low).max() / 2).clamp(min=1e-9)
    axis = ((torch.arange(FIELD) + 0.5) / FIELD * (2 * REACH) - REACH)[:, None]
    x, y = ((axis - dots[:, i]).square_() for i in (0, 1))  # (FIELD, dots)
    return -(y[:, None] + x).amin(2).sqrt_()


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
        faces.append(torch.cat(dots) if dots else None)
    return faces


@dataclass(frozen=True)
class Form:
    """A way of a pen as dots, each a sum of four control points; see :class:`Atlas`."""

    control: Tensor
    near: Tensor
    weight: Tensor
    joined: Tensor


def _form(text: str) -> Form:
    """A form from its text; points that are named twice are one control point, so that what meets stays together."""
    names = sorted(set(text.replace("/", " ").replace(";", " ").split()))
    control = torch.tensor([[float(v) for v in name.split(",")] for name in names])
    ways = [[names.index(p) for p in piece] for lift in text.split(";") for piece in _pieces(lift)]
    length = [(control[way[1:]] - control[way[:-1]]).norm(dim=1) for way in ways]
    dots = apportion(torch.cat(length), DOTS - len(ways) - sum(map(len, length)))
    parts = [
        _spline(way, 1 + n) for way, n in zip(ways, torch.split(dots, [len(some) for some in length]), strict=True)
    ]
    near, weight, joined = (torch.cat(some) for some in zip(*parts, strict=True))
    drawn = (control[near] * weight[:, :, None]).sum(1)
    low, high = drawn.amin(0), drawn.amax(0)
    half = ((high - low).max() / 2).clamp(min=1e-9)
    return Form((control - (low + high) / 2) / half, near, weight, joined)


def _pieces(stroke: str) -> Iterator[list[str]]:
    """Split a stroke at its corners; each piece begins where the last one ended."""
    last: list[str] = []
    for piece in stroke.split("/"):
        points = last + piece.split()
        yield points
        last = points[-1:]


def _spline(way: list[int], dots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """So many dots in each span of a spline (Catmull and Rom, 1974) through the control points of a way, and its end:
    the four that each depends on, their weights, and 1 for each but the end."""
    closed = way[0] == way[-1]
    padded = torch.tensor([way[-2] if closed else way[0], *way, way[1] if closed else way[-1]])
    span = torch.arange(len(dots)).repeat_interleave(dots)
    t = torch.cat([torch.arange(n) / n for n in dots.tolist()] + [torch.ones(1)])
    span = torch.cat([span, span[-1:]])
    near = padded.unfold(0, 4, 1)[span]
    a, d = t * (t * (2 - t) - 1) / 2, t * t * (t - 1) / 2
    c = t * (1 + t * (4 - 3 * t)) / 2
    weight = torch.stack([a, 1 - a - c - d, c, d], 1)
    return near, weight, (torch.arange(len(t)) < len(t) - 1).float()
