"""From parameters to what a renderer needs: where every vertex lies on the picture, how deep, and in which colour.

Both renderers draw the same scene, so the camera and the light are here, once. All arithmetic is element by element
with operations that IEEE 754 rounds correctly, or exact sums (:mod:`simpe.simulators.faces.model`): a head does not
depend on the batch that it is drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simpe.simulators.faces.head import BEARDS, GLASSES, HAIR, HATS
from simpe.simulators.faces.model import COLOURS, Model
from simpe.space import Categorical, Continuous, ParameterSpace, Params

_HALF = 9.0  # centimetres from the middle of the picture to its upper edge, at scale 1
_AIM = (0.0, -2.2, 7.0)  # what the camera looks at, on the head; the head turns about it


def space(model: Model) -> ParameterSpace:
    """What varies from face to face. Angles are in radians, colours and shares in 0..1."""
    return ParameterSpace(
        identity=Continuous(-1, 1, size=len(model.identity)),
        expression=Continuous(-1, 1, size=len(model.expression)),  # squared; what is below 0 counts as 0
        gaze=Continuous(-1, 1, size=2),
        yaw=Continuous(-0.5, 0.5),  # to the right of the picture
        pitch=Continuous(-0.25, 0.25),  # upwards
        roll=Continuous(-0.15, 0.15),  # anticlockwise
        position=Continuous(-0.06, 0.06, size=2),  # right and up, shares of the picture
        scale=Continuous(0.92, 1.28, log=True),
        stretch=Continuous(0.95, 1.3, log=True),  # of the width: many crops are scaled to a square
        field_of_view=Continuous(0.1, 0.5),
        light_across=Continuous(-1.3, 1.3),  # where it comes from: angle to the right
        light_up=Continuous(-0.3, 1.1),
        light_colour=Continuous(-1, 1, size=2),  # cold to warm, magenta to green
        ambient=Continuous(0.3, 0.9),  # share of light from all sides
        exposure=Continuous(0.75, 1.6, log=True),
        saturation=Continuous(0, 1),
        skin=Continuous(0, 1),  # light to dark
        skin_hue=Continuous(-1, 1),  # pink to yellow
        age=Continuous(0, 1),  # how deep the lines are
        blush=Continuous(0, 1),
        lip=Continuous(0, 1),  # bare to painted
        make_up=Continuous(0, 1),
        hair=_choice("hair"),
        volume=Continuous(-0.6, 1),
        hair_colour=Continuous(0, 1),  # black, brown, fair, white
        hair_red=Continuous(0, 1),
        beard=_choice("beard"),
        beard_density=Continuous(0.4, 1),
        brow_density=Continuous(0.4, 1),
        glasses=_choice("glasses"),
        frame=Continuous(0, 1),  # black to bright
        hat=_choice("hat"),
        eye_colour=Continuous(0, 1),  # brown to blue
        hat_colour=Continuous(0, 1, size=3),
        cloth=Continuous(0, 1, size=3),
        background=Continuous(0, 1, size=6),  # two colours
        background_angle=Continuous(-math.pi, math.pi, wraps=True),
        shade=Continuous(-1, 1, size=9),  # of the photograph: how much brighter it is here and there
        cast=Continuous(-1, 1, size=2),  # cold to warm, magenta to green
        contrast=Continuous(0.75, 1.6, log=True),
        brightness=Continuous(-0.15, 0.15),
        blur=Continuous(0, 0.8),
    )


@dataclass(frozen=True)
class Scene:
    """n heads before a camera, as float32 tensors.

    - ``x``, ``y`` (n, V): on the picture; -1..1 from left to right and from bottom to top.
    - ``near`` (n, V): 1 over the distance to the camera, in units of the distance of the middle of the head.
    - ``colour`` (n, 3, V): 0..1, as shown.
    - ``background`` (n, 3, 3): colour in the middle, change to the right edge, change to the upper edge; by channel.
      All of it stays within 0..1.
    - ``triangles`` (T, 3): the same for all; only those anticlockwise on the picture are seen.
    """

    x: Tensor
    y: Tensor
    near: Tensor
    colour: Tensor
    background: Tensor
    triangles: Tensor

    def rows(self, part: slice) -> Scene:
        """Some of the heads."""
        return Scene(
            self.x[part], self.y[part], self.near[part], self.colour[part], self.background[part], self.triangles
        )


def scene(model: Model, p: Params, aspect: float = 1.0) -> Scene:
    """The scene of n rows of parameters; ``aspect``: width over height of the picture."""
    model = model.to(p["skin"].device)
    points = model.shape(_coefficients(model, p))
    points = _posed(points - points.new_tensor(_AIM)[:, None], _rotation(p), model.turn)
    reach = _HALF / p["scale"]
    half = p["field_of_view"] / 2
    tangent = half * (1 + half * half / 3)
    near = 1 / (1 - points[:, 2] * (tangent / reach)[:, None])
    x = points[:, 0] * near / (reach * aspect / p["stretch"])[:, None] + 2 * p["position"][:, :1]
    y = points[:, 1] * near / reach[:, None] + 2 * p["position"][:, 1:]
    return Scene(x, y, near, _shaded(model, p, _normals(points, model.ring)), _background(p), model.triangles)


def _coefficients(model: Model, p: Params) -> Tensor:
    """Parameters -> what the shapes of the model are multiplied by: (n, K)."""
    out = torch.zeros((len(p["skin"]), len(model.names)), device=p["skin"].device)

    def put(names: Sequence[str], values: Tensor) -> None:
        for i, name in enumerate(names):
            if name in model.names:
                out[:, model.names[name]] = values[:, i]

    chosen = {name: _chosen(p, name) for name in _CHOICES}
    covered = (chosen["hat"][:, 1:].sum(1) > 0).float()[:, None]
    volume = torch.where(covered > 0, p["volume"][:, None].clamp(max=0.0), p["volume"][:, None])
    put(model.identity, p["identity"])
    felt = p["expression"].clamp(min=0)
    put(model.expression, felt * felt)
    put(("gaze across", "gaze up"), p["gaze"])
    put([f"hair {name}" for name in HAIR], chosen["hair"])
    put([f"volume {name}" for name in HAIR], chosen["hair"] * volume)
    put([f"hat {name}" for name in HATS], chosen["hat"])
    put([f"glasses {name}" for name in GLASSES], chosen["glasses"])
    put([f"grown {name}" for name in BEARDS], chosen["beard"] * p["beard_density"][:, None])
    return out


_CHOICES = {
    "hair": (HAIR, (2, 2, 2, 4, 2, 2, 2, 2, 4, 2, 4, 2, 3, 1)),
    "beard": (BEARDS, (12, 3, 2, 1, 2)),
    "glasses": (GLASSES, (15, 2, 2, 1)),
    "hat": (HATS, (37, 1, 1, 1)),
}
"""Names, and how often each: a choice that stands there several times is as much likelier."""


def _choice(name: str) -> Categorical:
    return Categorical(tuple(option for option, times in zip(*_CHOICES[name], strict=True) for _ in range(times)))


def _chosen(p: Params, name: str) -> Tensor:
    """A choice as one column a name, 1 where it is that: (n, names)."""
    names, times = _CHOICES[name]
    meaning = torch.arange(len(names)).repeat_interleave(torch.tensor(times)).to(p[name].device)
    return (meaning[p[name]][:, None] == torch.arange(len(names), device=p[name].device)).float()


def _normals(points: Tensor, ring: Tensor) -> Tensor:
    """Unit normals (n, 3, V) of vertices (n, 3, V), from the four neighbours of each."""
    lines = points.reshape(-1, points.shape[2])  # index_select is fast on two dimensions, and slow on more
    a, b, c, d = (lines.index_select(1, neighbour).reshape(points.shape) for neighbour in ring)
    u, v = a - b, c - d
    x = (u[:, 1] * v[:, 2]).sub_(u[:, 2] * v[:, 1])
    y = (u[:, 2] * v[:, 0]).sub_(u[:, 0] * v[:, 2])
    z = (u[:, 0] * v[:, 1]).sub_(u[:, 1] * v[:, 0])
    length = (x * x).add_(y * y).add_(z * z).sqrt_().clamp_(min=1e-9)
    out = torch.empty_like(points)
    for own, unit in zip((x, y, z), out.unbind(1), strict=True):
        torch.div(own, length, out=unit)
    return out


def _turned(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, from the tangent of the half angle to third order: a true rotation from + - * / alone."""
    half = angle / 2 * (1 + angle * angle / 12)
    return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)


def _rotation(p: Params) -> list[list[Tensor]]:
    """Rows of the matrix that first nods, then turns, then tilts: each entry (n, 1)."""
    (cy, sy), (cp, sp), (cr, sr) = (_turned(p[name][:, None]) for name in ("yaw", "pitch", "roll"))
    turned = [[cy, -sy * sp, sy * cp], [0 * cp, cp, sp], [-sy, -cy * sp, cy * cp]]
    return [
        [cr * a - sr * b for a, b in zip(turned[0], turned[1], strict=True)],
        [sr * a + cr * b for a, b in zip(turned[0], turned[1], strict=True)],
        turned[2],
    ]


def _posed(points: Tensor, turn: list[list[Tensor]], share: Tensor) -> Tensor:
    """Points (n, 3, V) turned about the origin, each vertex by its share of the turn."""
    x, y, z = points.unbind(1)
    out = torch.empty_like(points)
    for own, moved, (a, b, c) in zip((x, y, z), out.unbind(1), turn, strict=True):
        torch.mul(x, a, out=moved).addcmul_(y, b).addcmul_(z, c)
        torch.lerp(own, moved, share, out=moved)
    return out


def _shaded(model: Model, p: Params, normals: Tensor) -> Tensor:
    """Colours of the vertices (n, 3, V): light from one side and from all around, and a gloss."""
    (ca, sa), (cu, su) = _turned(p["light_across"][:, None]), _turned(p["light_up"][:, None])
    light = (sa * cu, su, ca * cu)
    half = (light[0], light[1], light[2] + 1)
    length = (half[0] * half[0] + half[1] * half[1] + half[2] * half[2]).sqrt()
    ambient, exposure = p["ambient"][:, None], p["exposure"][:, None]
    around, aside = ambient * exposure, (1 - ambient) * exposure
    x, y, z = normals.unbind(1)
    direct = (x * light[0]).addcmul_(y, light[1]).addcmul_(z, light[2]).clamp_(min=0)
    shine = (x * (half[0] / length)).addcmul_(y, half[1] / length).addcmul_(z, half[2] / length)
    shine.clamp_(min=0.01)  # its power is no denormal: slow
    for _ in range(4):
        shine *= shine
    strength = direct.mul_(1.35 * aside).addcmul_(y, 0.2 * around).add_(0.8 * around)
    gloss = shine.mul_((1 - ambient) * 0.5).mul_(model.gloss)
    warm, green = p["light_colour"][:, :1], p["light_colour"][:, 1:]
    tint = (1 + 0.16 * warm - 0.03 * green, 1 + 0.04 * green, 1 - 0.22 * warm - 0.03 * green)
    shown = model.colour(_palette(p))
    for channel, light_of in zip(shown.unbind(1), tint, strict=True):
        channel.mul_(strength).add_(gloss).mul_(light_of).clamp_(0, 1).sqrt_()
    grey = (0.3 * shown[:, 0]).add_(shown[:, 1], alpha=0.59).add_(shown[:, 2], alpha=0.11)[:, None]
    return torch.lerp(grey, shown, _colourful(p)[:, None, None])


def _colourful(p: Params) -> Tensor:
    """Most photographs are in colour, some hardly, a few grey: (n,), 0..1."""
    return (p["saturation"] * 8).clamp(max=1) * (0.65 + 0.35 * p["saturation"])


# Colours as shown, which a parameter of 0..1 runs through.
_SKIN = (
    (250, 222, 206), (245, 208, 186), (236, 194, 166), (222, 174, 142), (196, 144, 110), (150, 102, 76), (98, 64, 48),
)  # fmt: skip
_HAIR_COLOUR = (
    (24, 20, 20), (32, 25, 23), (52, 37, 30), (84, 58, 42), (130, 92, 60), (190, 152, 102), (170, 162, 155),
    (235, 232, 228),
)  # fmt: skip
_IRIS = (42, 26, 18), (58, 36, 24), (84, 54, 34), (112, 88, 56), (104, 126, 118), (108, 140, 168)
_FRAME = (12, 12, 14), (16, 14, 14), (20, 18, 18), (70, 45, 35), (140, 130, 120), (200, 185, 150)


def _ramp(at: Tensor, *colours: tuple[int, int, int]) -> Tensor:
    """Colours 0..255 as shown, read between at 0..1 (n,): linear light (n, 3)."""
    table = torch.tensor(colours, device=at.device).float() / 255
    place = at.clamp(0, 1) * (len(colours) - 1)
    low = place.long().clamp(max=len(colours) - 2)
    share = (place - low)[:, None]
    shown = table[low] + share * (table[low + 1] - table[low])
    return shown * shown


def _palette(p: Params) -> Tensor:
    """What each of the colours of the model looks like: linear light (n, colours, 3)."""
    n, device = len(p["skin"]), p["skin"].device

    def fixed(*colour: int) -> Tensor:
        return (torch.tensor(colour, device=device).float() / 255).square().expand(n, 3)

    def column(name: str) -> Tensor:
        return p[name][:, None]

    skin = _ramp(p["skin"], *_SKIN)
    skin = skin * (1 + column("skin_hue") * torch.tensor([0.0, 0.07, -0.10], device=device))
    hair = _ramp(p["hair_colour"], *_HAIR_COLOUR)
    hair = hair * (1 + column("hair_red") * column("hair_red") * torch.tensor([0.7, 0.0, -0.35], device=device))
    style, beards = _chosen(p, "hair"), _chosen(p, "beard")
    bare = skin * torch.tensor([0.72, 0.46, 0.47], device=device)
    lip = bare + (column("lip") * 1.8 - 1).clamp(min=0) * (fixed(178, 34, 52) - bare)
    brow = skin + (0.35 + 0.65 * column("brow_density")) * (0.75 * hair + 0.05 * skin - skin)
    iris = _ramp(p["eye_colour"], *_IRIS)
    grown = column("beard_density") * (hair - skin)
    painted = (column("make_up") * 1.5 - 0.5).clamp(min=0)
    beard_share = beards[:, 4:5] + 0.45 * beards[:, 1:2]
    colours = {
        "skin": skin,
        "deep": skin * torch.tensor([-0.62, -0.72, -0.72], device=device),
        "blush": column("blush") * skin * torch.tensor([0.04, -0.26, -0.22], device=device),
        "lines": column("age") * column("age") * skin * torch.tensor([-0.42, -0.48, -0.48], device=device),
        "shadow": painted * skin * torch.tensor([-0.6, -0.68, -0.6], device=device),
        "beard": beard_share * grown,
        "moustache": (beards[:, 2:3] + beards[:, 4:5] + beards[:, 3:4] + 0.45 * beards[:, 1:2]) * grown,
        "goatee": beards[:, 3:4] * grown,
        "scalp": (0.6 * style[:, 1:2]) * (hair - skin),
        "lip": lip,
        "hair": hair,
        "streak": 0.55 * hair,
        "brow": brow,
        "lash": skin * 0.3 + (column("make_up") * 0.7) * (fixed(12, 10, 10) - skin * 0.3),
        "white": fixed(214, 206, 202),
        "iris": iris,
        "rim": 0.35 * iris,
        "pupil": fixed(8, 8, 8),
        "dark": fixed(52, 20, 20),
        "teeth": fixed(238, 232, 220),
        "cloth": _muted(p["cloth"]),
        "frame": _ramp(p["frame"], *_FRAME),
        "lens": fixed(22, 20, 22),
        "hat": _muted(p["hat_colour"]),
    }
    return torch.stack([colours[name] for name in COLOURS], dim=1)


def _muted(shown: Tensor) -> Tensor:
    """Colours as shown (n, 3), made less colourful: linear light."""
    mean = (shown[:, :1] + shown[:, 1:2] + shown[:, 2:]) / 3
    shown = mean + 0.6 * (shown - mean)
    return shown * shown


def _background(p: Params) -> Tensor:
    """Two colours, less colourful than the parameters, that go over into each other along some angle: (n, 3, 3)."""
    ends = p["background"].reshape(-1, 2, 3)
    mean = (ends[:, :, :1] + ends[:, :, 1:2] + ends[:, :, 2:]) / 3
    bright = mean + 1.8 * (mean - 0.5)
    ends = (bright + 0.4 * (ends - mean)).clamp(0, 1)
    grey = 0.3 * ends[:, :, :1] + 0.59 * ends[:, :, 1:2] + 0.11 * ends[:, :, 2:]
    ends = grey + _colourful(p)[:, None, None] * (ends - grey)
    middle, change = (ends[:, 0] + ends[:, 1]) / 2, (ends[:, 1] - ends[:, 0]) / 2
    angle = p["background_angle"] / math.pi  # -1..1 around; the edge of a diamond in place of a circle
    right, up = 1 - 2 * angle.abs(), 1 - (2 * angle.abs() - 1).abs()
    up = torch.where(angle < 0, -up, up)
    return torch.stack([middle, change * right[:, None], change * up[:, None]], dim=1)
