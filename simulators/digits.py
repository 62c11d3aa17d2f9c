"""Handwritten digits (and any other characters), drawn from typefaces and pen strokes.

Each sample is one face: a form that a pen writes, with control points of its own, or a glyph of a typeface, held as
a signed distance field. It is bent by a biquadratic free-form deformation (Sederberg and Parry, SIGGRAPH 1986), drawn
with a pen of some width, scaled to fit a box of whole pixels, and moved with that box by whole pixels to where it is
centred, as the digits of MNIST are (LeCun et al., 1998). All arithmetic is element by element, or on whole numbers, so
that a sample does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad, softshrink

from simpe.embedders.images import PixelsAndGradients
from simpe.scheduling import Strategy
from simpe.simulators.glyphs import OFTEN, REACH, Atlas, Shapes, atlas
from simpe.space import Categorical, Continuous, ParameterSpace, Params
from simpe.threads import spread

Centre = Literal["mass", "box"]
_BLOCK = 1024  # rows drawn at a time at 28 x 28; fewer where images are larger
_PAGE = 2.0  # half the side of the page that a bent glyph is laid out on, in half-heights of the glyph
_SPILL = 1  # pixels around the box that a soft edge may reach
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

    strategy = Strategy(children=5, votes=2.5, decay=0.72, release_strength=0.2, release_places=1300)

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
        faces = self._atlas(torch.device("cpu"))
        points = faces.control.shape[1]
        own: dict[str, Any] = {}
        if points:  # typefaces have none
            own["points"] = Continuous(-0.2, 0.2, size=2 * points)  # how far control points move: x, y of each
        return ParameterSpace(
            face=Categorical(int(faces.count.max())),
            aspect=Continuous(0.6, 1.35, log=True),  # width over that of the face
            slant=Continuous(-0.2, 0.6),  # to the right, per unit of height
            rotation=Continuous(-0.25, 0.25),  # radians, anticlockwise
            pen=Continuous(0.07, 0.3, log=True),  # half the width of a stroke
            softness=Continuous(0.4, 2.0, log=True),  # width of an edge, pixels
            warp=Continuous(-0.3, 0.3, size=18),  # (2, 3, 3): where corners, sides and middle move, x then y
            **own,
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
        """One block: how deep each pixel of a box lies in the ink, and that box where it belongs in the frame."""
        faces = self._atlas(p["label"].device)
        fine = max(1, round(_FINE / min(self.size)))
        box = tuple(max(1, round(pixels * (1 - 2 * self.margin))) for pixels in self.size)
        face = p["face"] % faces.count[p["label"]]
        forms = faces.forms[p["label"]]
        written = face < OFTEN * forms
        face = torch.where(written, face % forms.clamp(min=1), face - OFTEN * forms)
        depth = torch.empty((len(face), *(fine * (side + 2 * _SPILL) for side in box)), device=face.device)
        extent = torch.empty((len(face), 2), device=face.device)
        for rows, draw in ((written, _written), (~written, _printed)):
            if bool(rows.any()):
                some = {name: x[rows] for name, x in p.items()}
                depth[rows], extent[rows] = draw(faces, some, face[rows], tuple(fine * side for side in box), fine)

        ink = _ink(depth, 1 / (p["softness"] * fine))
        ink.mul_(255 / ink.amax((1, 2), keepdim=True).clamp_(min=1)).round_()  # ink is black where it is thickest
        if fine > 1:
            height, width = (side + 2 * _SPILL for side in box)
            ink = (ink.reshape(-1, height, fine, width, fine).sum((2, 4)) / fine**2).round()
        for axis in (0, 1):
            mass = _mean(ink.sum(2 - axis)) if self._centre == "mass" else None
            ink = _placed(ink, axis + 1, mass, extent[:, axis] / fine, self.size[axis], box[axis])
        return ink.to(torch.uint8)


def _written(faces: Atlas, p: Params, face: Tensor, box: tuple[int, ...], fine: int) -> tuple[Tensor, Tensor]:
    """Forms of a pen: see :func:`_printed`. A pixel is as deep as the nearest dot of the pen's way is near."""
    form = faces.first_form[p["label"]] + face
    control = faces.control[form] + p["points"].reshape(len(form), -1, 2)
    near, weight = faces.near[form], faces.weight[form]
    dots = torch.zeros((*near.shape[:2], 2), device=face.device)
    for i in range(4):
        dots += control.gather(1, near[:, :, i, None].expand(-1, -1, 2)) * weight[:, :, i, None]
    x, y = _bent(p, dots[:, :, 0], dots[:, :, 1])
    pen = p["pen"][:, None]
    ends = [(way.amin(1, keepdim=True) - pen, way.amax(1, keepdim=True) + pen) for way in (y, x)]
    zoom, extent = _zoom(torch.cat([high - low for low, high in ends], 1), box)
    y, x = ((way - (low + high) / 2) * zoom[:, None] for way, (low, high) in zip((y, x), ends, strict=True))

    # Between two dots the pen is nearer than both: by the mean of that, squared distances are taken to be less.
    gap = ((x[:, 1:] - x[:, :-1]).square_() + (y[:, 1:] - y[:, :-1]).square_()) * faces.joined[form][:, :-1]
    less = (pad(gap, (0, 1)) + pad(gap, (1, 0))) / 24
    rows, columns = (
        (_centres(side + 2 * _SPILL * fine, face.device) * (side / 2 + _SPILL * fine))[:, None] for side in box
    )
    across, down, less = (values.T.contiguous()[:, None] for values in (x, y, less))  # the batch goes last, for speed
    across = (columns - across).square_().sub_(less)  # (dots, w, n)
    down = (rows - down).square_()
    nearest = torch.full((len(rows), len(columns), len(face)), math.inf, device=face.device)
    square = torch.empty_like(nearest)
    for i in range(len(across)):
        torch.add(across[i], down[i, :, None], out=square)
        torch.minimum(nearest, square, out=nearest)
    return torch.sub(p["pen"] * zoom, nearest.clamp_(min=0).sqrt_(), out=square).permute(2, 0, 1), extent


def _printed(faces: Atlas, p: Params, face: Tensor, box: tuple[int, ...], fine: int) -> tuple[Tensor, Tensor]:
    """Glyphs held as fields: how deep each pixel lies in the ink, of a box (n, h, w) and ``_SPILL`` image pixels around
    it, in its own pixels, of which ``fine`` make one of the image; and the ink's height and width in them (n, 2)."""
    glyph = faces.first_glyph[p["label"]] + face
    own = faces.pen[glyph]
    pen = torch.maximum(p["pen"], 0.4 * own)  # thinned further, a face breaks
    side = max(36, round(1.6 * max(box)))
    page = _page(p, faces.fields.index_select(0, glyph), side).add_((pen - own)[:, None, None])
    page[:, :: side - 1] = -1.0  # what runs off the page is cut there, not smeared outwards
    page[:, :, :: side - 1] = -1.0
    ends = [_extent(page.amax(axis), pen) for axis in (2, 1)]
    zoom, extent = _zoom(torch.stack([high - low for low, high in ends], 1), box)
    down, across = (
        _line((low + high) / 2, pixels + 2 * _SPILL * fine, zoom) for (low, high), pixels in zip(ends, box, strict=True)
    )
    shape = (len(page), down.shape[1], across.shape[1])
    grid = torch.stack([across[:, None, :].expand(shape), down[:, :, None].expand(shape)], dim=1)
    return _sampled(page, grid).mul_(zoom[:, None, None]), extent


def _zoom(extent: Tensor, box: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """By how much ink of a height and a width (n, 2) fits a box (n,), and its height and width then."""
    zoom = torch.minimum(box[0] / extent[:, 0], box[1] / extent[:, 1])
    return zoom, extent * zoom[:, None]


def _bent(p: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where points (n, k) of an unbent glyph come to lie: warped, stretched, slanted and turned."""
    control = p["warp"].reshape(-1, 2, 3, 3)[..., None]  # (n, 2, 3, 3, 1)
    moved = [_parabola(_parabola_rows(control[:, i], x), y) for i in (0, 1)]
    x, y = x + moved[0], y + moved[1]
    x = x * p["aspect"][:, None] - y * p["slant"][:, None]
    cos, sin = (value[:, None] for value in _turn(p["rotation"]))
    return cos * x + sin * y, cos * y - sin * x


def _parabola_rows(control: Tensor, x: Tensor) -> list[Tensor]:
    """Of a patch (n, 3, 3, 1), the three control points of the curve through it at x (n, k)."""
    return [_parabola(control[:, row].unbind(1), x) for row in range(3)]


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
    cos, sin = _turn(p["rotation"])
    slant, aspect = p["slant"], p["aspect"]
    x = torch.stack([(cos + slant * sin) / aspect, sin], dim=1)[:, :, None]  # where the axes of the page lie
    y = torch.stack([(slant * cos - sin) / aspect, cos], dim=1)[:, :, None]

    # Control points at -1, 0, 1: moved by a linear map, they move the whole page by it. The glyph is its middle, so the
    # warp of the page is the larger, and the way back the other way.
    ends = torch.tensor([-1.0, 0.0, 1.0], device=cos.device)
    control = -_PAGE * p["warp"].reshape(-1, 2, 3, 3) + (x * ends)[:, :, None, :] + (y * ends)[:, :, :, None]
    t = _centres(side, cos.device)
    across = _parabola((control * unit)[..., None, :].unbind(-1), t)  # (n, 2, 3, side)
    return _parabola(across[:, :, :, None].unbind(2), t[:, None])


def _turn(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Its cosine and sine, nearly.

    The tangent of the half angle, to third order, gives a true rotation from + - * / alone. A library's sine may
    differ in its last bit between the body and the tail of a vectorised loop, so between rows of a batch.
    """
    half = angle / 2 * (1 + angle * angle / 12)
    return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)


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
    """Centre of mass (n,) of whole-numbered masses (n, s), from the middle."""
    side = mass.shape[1]
    whole = mass.long()  # sums of integers are exact in every order
    twice = 2 * torch.arange(side, device=mass.device) + 1 - side
    return (whole * twice).sum(1).float() / (2 * whole.sum(1)).clamp(min=1).float()


def _placed(ink: Tensor, axis: int, mass: Tensor | None, extent: Tensor, frame: int, box: int) -> Tensor:
    """Images of a box along one axis, put into a frame of so many pixels.

    The box begins where a pixel of the frame does: so that the centre of ``mass`` (n,), where it is given, is as near
    as it gets to the centre of pixel size // 2, and else in the middle. Ink of so much ``extent`` stays in the frame.
    """
    begins = torch.full_like(extent, (frame - box) / 2)
    if mass is not None:
        begins += (0 if frame % 2 else 0.5) - mass
    room = (box - extent) / 2 + 1e-3  # a thousandth of a pixel is for arithmetic
    last = (frame - box + room).floor()
    begins = torch.minimum(last, torch.maximum((-room).ceil(), begins.round()))
    there = torch.arange(frame, device=ink.device) - begins.long()[:, None] + _SPILL
    inside = (there >= 0) & (there < ink.shape[axis])
    there = there.clamp_(0, ink.shape[axis] - 1)
    shape = [len(ink), frame, ink.shape[2]] if axis == 1 else [len(ink), ink.shape[1], frame]
    return ink.gather(axis, there.unsqueeze(3 - axis).expand(shape)) * inside.unsqueeze(3 - axis)
