"""Handwritten digits (and any other characters), drawn from typefaces and pen strokes.

Each sample is one glyph, held as a signed distance field, bent by a biquadratic free-form deformation
(Sederberg and Parry, SIGGRAPH 1986), drawn with a pen of some width, scaled to fit a box of whole pixels, and moved
with that box by whole pixels to where it is centred, as the digits of MNIST are (LeCun et al., 1998). All arithmetic
is element by element, or on whole numbers, so that a sample does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, softshrink

from simpe.embedders.images import PixelsAndGradients
from simpe.scheduling import Strategy
from simpe.simulators.glyphs import REACH, Atlas, Shapes, atlas
from simpe.space import Categorical, Continuous, ParameterSpace, Params
from simpe.threads import spread

Centre = Literal["mass", "box"]
_BLOCK = 256  # rows drawn at a time at 28 x 28; fewer where images are larger
_PAGE = 2.0  # half the side of the page that a bent glyph is laid out on, in half-heights of the glyph
_TINY = 1e-12  # makes 1 of 0 / 0
_FINE = 24  # smaller frames are drawn larger by a whole factor and averaged, as a scanner does


class Digits:
    """Digits 0-9, or the characters in ``classes``, in many hands.

    >>> digits = Digits()
    >>> p = digits.space.sample(100, torch.Generator().manual_seed(0))
    >>> images = digits.render({**p, "label": torch.arange(100) % 10})  # uint8 (100, 28, 28)

    ``size``: pixels, a side or (height, width). ``classes``: single characters, one a class. ``margin``:
    share of the frame that is left free on each side of the box that ink fits; 4/28 is MNIST's layout, 0 fills the
    frame, as scikit-learn's digits do. ``centre``: what lies in the middle, as far as that keeps the ink in the
    frame: "mass", its centre of mass, on the pixel with index size // 2, as MNIST's (Yadav and Bottou, NeurIPS 2019);
    or "box", the middle of its extent, as EMNIST's and scikit-learn's. ``fonts``: font files, folders of them, or file
    names of system fonts, to add to the built-in faces. ``shapes``: "all" faces, those of "typefaces" (outlines), or
    those written by a pen, "strokes"; a mixture may hold one of each.

    Raises ValueError for a size, margin, centre or class that cannot be drawn, ImportError (with the package to
    install) when a typeface is missing, FileNotFoundError for a font that does not exist.
    """

    strategy = Strategy(children=5, decay=0.72, release_strength=0.2, release_places=1300)

    def __init__(
        self,
        size: int | tuple[int, int] = 28,
        classes: Sequence[str] = "0123456789",
        margin: float = 4 / 28,
        fonts: Sequence[str | Path] = (),
        shapes: Shapes = "all",
        centre: Centre = "mass",
    ):
        self.size = (size, size) if isinstance(size, int) else size
        self.classes = tuple(classes)
        self.margin = margin
        if min(self.size) < 4:
            raise ValueError(f"size must be at least 4 pixels, got {self.size}")
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must be in [0, 0.5), got {margin}")
        if not self.classes or len(set(self.classes)) < len(self.classes) or any(len(c) != 1 for c in self.classes):
            raise ValueError("classes must be different single characters, such as '0123456789'")
        if shapes not in get_args(Shapes):
            raise ValueError(f"shapes must be one of {', '.join(get_args(Shapes))}, got {shapes!r}")
        if centre not in get_args(Centre):
            raise ValueError(f"centre must be one of {', '.join(get_args(Centre))}, got {centre!r}")
        self._shapes = shapes
        self._centre = centre
        self._fonts = tuple(Path(font) for font in fonts)
        self.embedder = PixelsAndGradients()

    @cached_property
    def space(self) -> ParameterSpace:
        """What varies from sample to sample. Lengths are in half-heights of the glyph unless said
        otherwise."""
        return ParameterSpace(
            face=Categorical(int(self._atlas(torch.device("cpu")).count.max())),
            aspect=Continuous(0.6, 1.35, log=True),  # width over that of the face
            slant=Continuous(-0.2, 0.6),  # to the right, per unit of height
            rotation=Continuous(-0.25, 0.25),  # radians, anticlockwise
            pen=Continuous(0.07, 0.3, log=True),  # half the width of a stroke
            softness=Continuous(0.4, 2.0, log=True),  # width of an edge, pixels
            warp=Continuous(-0.6, 0.6, size=18),  # (2, 3, 3): where the control points move, x then y
        )

    def render(self, p: Params) -> Tensor:
        """Draw n rows: parameters and ``label`` -> uint8 (n, height, width), ink bright on black.

        Deterministic and row by row, bit for bit, on the device of the parameters.
        """
        label = p["label"]
        out = torch.empty((len(label), *self.size), dtype=torch.uint8, device=label.device)
        rows = max(1, _BLOCK * 28**2 // max(28**2, math.prod(self.size)))

        def draw(start: int) -> None:
            block = slice(start, start + rows)
            with torch.no_grad():
                out[block] = self._draw({name: x[block] for name, x in p.items()})

        self._atlas(label.device)  # once, before the threads ask for it
        spread(draw, range(0, len(label), rows), label.device)
        return out

    def public_inputs(self) -> dict[str, Any]:
        """What samples are made from: the settings, and each file of fonts or pen forms, with version and SHA-256."""
        return {
            "simulator": "digits",
            "size": list(self.size),
            "margin": self.margin,
            "centre": self._centre,
            "classes": list(self.classes),
            "shapes": self._shapes,
            "typefaces": [source._asdict() for source in self._atlas(torch.device("cpu")).sources],
        }

    def _atlas(self, device: torch.device) -> Atlas:
        return atlas(self.classes, self._fonts, device, self._shapes)

    def _draw(self, p: Params) -> Tensor:
        """One block: bend the glyphs onto a page, see where their ink lies, and draw that part of the page."""
        glyphs = self._atlas(p["label"].device)
        height, width = self.size
        fine = max(1, round(_FINE / min(self.size)))
        height, width = height * fine, width * fine
        box_height, box_width = (fine * max(1, round(pixels * (1 - 2 * self.margin))) for pixels in self.size)

        glyph = glyphs.first[p["label"]] + p["face"] % glyphs.count[p["label"]]
        own = glyphs.pen[glyph]
        pen = torch.maximum(p["pen"], 0.4 * own)  # thinned further, a face breaks
        side = max(36, round(1.6 * max(box_height, box_width)))
        page = _page(p, glyphs.fields.index_select(0, glyph), side).add_((pen - own)[:, None, None])
        page[:, :: side - 1] = -1.0  # what runs off the page is cut there, not smeared outwards
        page[:, :, :: side - 1] = -1.0

        # The ink fits a box, which begins where a pixel does.
        left, right = _extent(page.amax(1), pen)
        top, bottom = _extent(page.amax(2), pen)
        zoom = torch.minimum(box_height / (bottom - top), box_width / (right - left))
        mass = _ink(page, torch.full_like(pen, side / (2 * _PAGE))) if self._centre == "mass" else None
        across, down = (
            _line(_placed(None if mass is None else _mean(mass.sum(axis)), ends, frame, box, zoom, fine), frame, zoom)
            for axis, ends, frame, box in ((1, (left, right), width, box_width), (2, (top, bottom), height, box_height))
        )

        shape = (len(page), height, width)
        grid = torch.stack([across[:, None, :].expand(shape), down[:, :, None].expand(shape)], dim=1)
        ink = _ink(_sampled(page, grid), zoom / (p["softness"] * fine))
        ink.mul_(255 / ink.amax((1, 2), keepdim=True).clamp_(min=1)).round_()  # ink is black where it is thickest
        if fine > 1:
            ink = (ink.reshape(-1, height // fine, fine, width // fine, fine).sum((2, 4)) / fine**2).round()
        return ink.to(torch.uint8)


def _sampled(field: Tensor, grid: Tensor) -> Tensor:
    """Read fields (n, s, s) at points (n, 2, h, w) of -1..1, x first: (n, h, w)."""
    return grid_sample(field[:, None], grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)[:, 0]


def _centres(n: int, device: torch.device) -> Tensor:
    """The centres of n equal cells on -1..1."""
    return (2 * torch.arange(n, device=device) + 1 - n) / n


def _line(centre: Tensor, pixels: int, zoom: Tensor) -> Tensor:
    """Where the pixels of a line lie on the page (n, pixels), in -1..1, around ``centre`` (n,)."""
    offset = _centres(pixels, centre.device) * (pixels / 2)
    return (centre[:, None] + offset / zoom[:, None]) / _PAGE


def _page(p: Params, fields: Tensor, side: int) -> Tensor:
    """The glyphs turned, slanted and bent: distances on a page (n, side, side) of half-side _PAGE."""
    grid = _bent_grid(p, side + 2, _PAGE / REACH * (side + 2) / side)
    beyond = softshrink(grid, 1.0).abs_()  # what lies outside the field is further than its edge
    depth = _sampled(fields, grid).sub_(beyond[:, 0].add_(beyond[:, 1]), alpha=REACH)
    # A distance over its slope on the page is a distance there, to first order: so a pen keeps its width where the
    # glyph is stretched. On the glyph the slope is 1; on the page it is 1 / |J^-T n|, where J is how the page is bent
    # and n the way to the nearest edge. The differences below have the direction of n, but not always the length of the
    # slope: in the middle of a stroke its two sides cancel.
    step = 4 * _PAGE / side
    (across, down), (right, below) = _differences(depth), _differences(grid)
    area = right[:, 0] * below[:, 1] - right[:, 1] * below[:, 0]
    turned = right.mul_(down[:, None]).addcmul_(below, across[:, None], value=-1).square_()
    length = across.mul_(across).addcmul_(down, down)
    stretch = turned[:, 0].add_(turned[:, 1]).add_(_TINY).div_(length.add_(_TINY)).sqrt_()
    slope = area.abs_().mul_(REACH / step).div_(stretch).clamp_(0.5, 2)
    return torch.div(depth[:, 1:-1, 1:-1], slope, out=slope)


def _differences(values: Tensor) -> tuple[Tensor, Tensor]:
    """What values (..., s + 2, s + 2) grow by over two steps to the right and down, around the inner points."""
    return values[..., 1:-1, 2:] - values[..., 1:-1, :-2], values[..., 2:, 1:-1] - values[..., :-2, 1:-1]


def _bent_grid(p: Params, side: int, unit: float = 1.0) -> Tensor:
    """Where each point of a page lies on the unbent one: (n, 2, side, side), in -1..1 of it, times ``unit``."""
    # The tangent of the half angle, to third order, gives a true rotation from + - * / alone. A library's sine may
    # differ in its last bit between the body and the tail of a vectorised loop, so between rows of a batch.
    half = p["rotation"] / 2 * (1 + p["rotation"] * p["rotation"] / 12)
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    slant, aspect = p["slant"], p["aspect"]
    x = torch.stack([(cos + slant * sin) / aspect, sin], dim=1)[:, :, None]  # where the axes of the page lie
    y = torch.stack([(slant * cos - sin) / aspect, cos], dim=1)[:, :, None]

    # Control points at -1, 0, 1: moved by a linear map, they move the whole page by it.
    ends = torch.tensor([-1.0, 0.0, 1.0], device=half.device)
    control = p["warp"].reshape(-1, 2, 3, 3) + (x * ends)[:, :, None, :] + (y * ends)[:, :, :, None]
    t = _centres(side, half.device)
    across = _parabola((control * unit)[..., None, :].unbind(-1), t)  # (n, 2, 3, side)
    return _parabola(across[:, :, :, None].unbind(2), t[:, None])


def _parabola(control: Sequence[Tensor], t: Tensor) -> Tensor:
    """The Bezier curve of three control points at t in -1..1, by powers of t: element by element, in few passes."""
    a, b, c = control
    return torch.addcmul((a + 2 * b + c) / 4, torch.addcmul((c - a) / 2, (a - 2 * b + c) / 4, t), t)


def _ink(depth: Tensor, sharpness: Tensor) -> Tensor:
    """Brightness (n, h, w), whole numbers of 0..255, by distances and how fast it changes with them (n,)."""
    return (depth * (255 * sharpness)[:, None, None]).add_(127.5).clamp_(0, 255).round_()


def _extent(depth: Tensor, pen: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ink begins and ends, from the greatest depth in each line of the page (n, s): two of (n,).

    Distances say more than their grid: near the ink, a depth of d at x reaches to x - d and x + d.
    """
    x = _centres(depth.shape[1], depth.device) * _PAGE
    near = depth >= torch.minimum(depth.amax(1, keepdim=True), x[0] - x[1])
    depth = torch.minimum(depth, pen[:, None])  # a depth is too large where its slope was near 0
    return (x - depth).where(near, math.inf).amin(1), (x + depth).where(near, -math.inf).amax(1)


def _mean(mass: Tensor) -> Tensor:
    """Centre of mass (n,) of whole-numbered masses (n, s) along a page of half-side _PAGE."""
    side = mass.shape[1]
    twice = 2 * torch.arange(side, device=mass.device) + 1 - side
    whole = mass.long()  # sums of integers are exact in every order
    return (whole * twice).sum(1).float() / whole.sum(1).clamp(min=1).float() * (_PAGE / side)


def _placed(mass: Tensor | None, ends: tuple[Tensor, Tensor], frame: int, box: int, zoom: Tensor, fine: int) -> Tensor:
    """Where the middle of a frame lies on the page (n,), of ink that lies between ``ends`` and in the middle of a box.

    The box begins where a pixel of the image (``fine`` of the frame's) does: so that the centre of ``mass``, where it
    is given, is as near as it gets to the centre of pixel size // 2, and else in the middle.
    """
    low, high = ends
    middle = (low + high) / 2
    begins = torch.full_like(middle, (frame - box) / 2)
    if mass is not None:
        begins += (middle - mass) * zoom + (0 if frame // fine % 2 else fine / 2)
    # Ink stays in the frame; a thousandth of a pixel is for arithmetic.
    room = (box - (high - low) * zoom) / (2 * fine) + 1e-3
    last = ((frame - box) / fine + room).floor()
    begins = torch.minimum(last, torch.maximum((-room).ceil(), (begins / fine).round()))
    return middle + ((frame - box) / 2 - begins * fine) / zoom
