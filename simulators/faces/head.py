"""A head of our own making: a skin swept over cross-sections, sculpted with brushes, and parts that sit on it.

Lengths are in centimetres. x points to the right of the picture, y up, z to the viewer; the eyes are at height 0. The
proportions are those of drawing lessons and common sense (eyes half-way up the head, an eye's width between the eyes,
a mouth a third of the way from nose to chin); nothing was measured on anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, PchipInterpolator
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from simpe.simulators.faces.model import COLOURS, Model

Array = NDArray[np.float64]

# Cross-sections of the skull and jaw, from the crown to below the chin: height, half the width, depth of the face, of
# the back, and of the widest place.
_SECTIONS = np.array(
    [
        (11.7, 0.0, -1.0, -1.0, -1.0),
        (11.3, 2.6, 1.9, -4.2, -1.0),
        (10.3, 4.7, 4.4, -6.8, -1.0),
        (8.5, 6.4, 6.9, -8.9, -1.0),
        (6.0, 7.3, 8.4, -10.1, -1.0),
        (3.0, 7.6, 9.1, -10.5, -0.8),
        (0.0, 7.4, 8.8, -10.2, -0.5),
        (-3.0, 6.9, 8.8, -8.5, 0.0),
        (-6.0, 6.0, 8.9, -5.5, 0.6),
        (-8.5, 4.9, 8.7, -2.5, 1.8),
        (-10.3, 3.5, 8.4, 0.5, 3.2),
        (-11.4, 2.5, 7.7, 2.5, 4.6),
        (-11.9, 0.0, 5.8, 5.8, 5.8),
    ]
)[::-1]
_profile = PchipInterpolator(_SECTIONS[:, 0], _SECTIONS[:, 1:])
_CROWN, _CHIN = 11.7, -11.9

_PROPORTION = np.array([1.06, 0.95, 1.0])  # of the finished head, in sizes of the one that is sculpted
EYE = np.array([3.15, 0.0])  # mirrored for the other
MOUTH = -7.5
_LARGEST = 60.0  # of a coordinate, centimetres
_SIDES = (("right", 1), ("left", -1))  # of the picture
HAIR = ("bald", "shaved", "receding", "short", "quiff", "parted left", "parted right", "fringe", "tied", "bob", "long",
        "long with fringe", "long parted", "afro")  # fmt: skip
BEARDS = ("none", "stubble", "moustache", "goatee", "beard")
GLASSES = ("none", "round", "square", "sun")
HATS = ("none", "cap", "beanie", "brim")
IDENTITY = ("head width", "face length", "jaw width", "chin", "cheeks", "cheekbones", "forehead", "brow ridge",
            "eye distance", "eye size", "eye tilt", "eye narrowness", "nose length", "nose width", "nose height",
            "mouth width", "upper lip", "lower lip", "mouth height", "brow height", "brow thickness", "brow arch",
            "ears", "child", "heavy", "nose tip")  # fmt: skip
EXPRESSION = ("smile", "grin", "open", "frown", "pucker", "brows up", "brows down", "squint", "wide eyes")


def _section(angle: Array, height: Array) -> Array:
    """Points of the skull (..., 3) at angles from straight ahead (radians, to the right) and at heights."""
    width, face, back, middle = np.moveaxis(_profile(height), -1, 0)
    cos = np.cos(angle)
    depth = np.where(cos > 0, face - middle, middle - back)
    return np.stack([width * np.sin(angle), height, middle + depth * cos], axis=-1)


def _angles(n: int, front: float) -> Array:
    """n angles around the head, denser by 1 / (1 - front) in front."""
    u = 2 * np.arange(n) / n - 1
    return np.pi * ((1 - front) * u + front * u**3)


@dataclass(frozen=True)
class Brush:
    """Moves what is near ``at``, within about ``reach``: by ``move``, and away from ``at`` by ``grow`` (shares).

    A brush off the middle has a twin on the other side.
    """

    at: tuple[float, float, float]
    reach: tuple[float, float, float]
    move: tuple[float, float, float] = (0.0, 0.0, 0.0)
    grow: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, points: Array) -> Array:
        """By how much it moves points (n, 3)."""
        total = np.zeros_like(points)
        for side in (1, -1) if self.at[0] else (1,):
            flip = np.array([side, 1, 1])
            away = points - np.array(self.at) * flip
            near = np.exp(-np.square(away / np.array(self.reach)).sum(-1, keepdims=True))
            total += near * (np.array(self.move) * flip + away * np.array(self.grow))
        return total


_DEEP = 5.0  # reach of a brush in depth, where it is meant for the surface in front
_SCULPTURE = (
    Brush((3.2, 0.0, 7.0), (1.9, 1.2, _DEEP), (0, 0, -0.9)),  # sockets
    Brush((2.9, 2.0, 8.0), (2.4, 0.9, _DEEP), (0, 0, 0.45)),  # ridge above them
    Brush((0.0, 1.9, 9.0), (1.2, 1.0, _DEEP), (0, 0, 0.3)),
    Brush((4.9, -2.3, 6.0), (1.8, 1.4, _DEEP), (0.25, 0, 0.45)),  # cheekbones
    Brush((4.3, -6.2, 6.0), (1.5, 1.7, _DEEP), (0, 0, -0.35)),  # hollows below
    Brush((0.0, -7.3, 9.0), (2.8, 1.9, _DEEP), (0, 0, 0.75)),  # muzzle
    Brush((0.0, -9.2, 9.0), (1.9, 0.6, _DEEP), (0, 0, -0.45)),  # fold above the chin
    Brush((0.0, -10.6, 9.0), (1.7, 1.1, _DEEP), (0, 0, 0.75)),  # chin
    Brush((5.6, -7.6, 1.5), (1.6, 1.8, 2.5), (0.35, 0, 0)),  # angles of the jaw
    Brush((6.6, 3.4, 3.5), (1.6, 2.0, 3.0), (-0.35, 0, 0)),  # temples
)


def _nose(points: Array) -> Array:
    """How far the nose stands out at points of the skull."""
    x, y = points[..., 0], points[..., 1]
    profile = PchipInterpolator([-6.4, -5.5, -4.95, -4.3, -2.4, -0.3, 1.6, 3.0], [0, 0.2, 1.3, 2.0, 1.35, 0.6, 0.25, 0])
    width = PchipInterpolator([-6.6, -5.2, -4.5, -2.5, 0.0, 3.0], [1.3, 1.2, 1.05, 0.9, 0.75, 1.4])
    inside = np.clip(y, -6.6, 3.0)
    out = profile(inside) * np.exp(-(np.abs(x / width(inside)) ** 2.2))
    wings = np.exp(-np.square((np.abs(x) - 1.35) / 0.55) - np.square((y + 4.95) / 0.6))
    front = np.where(points[..., 2] > 4, 1.0, 0.0)
    return np.stack([np.sign(x) * 0.12 * wings * front, 0 * x, front * (out + 0.8 * wings)], axis=-1)


class _Parts:
    """Vertices, triangles and paint of the parts that were added so far."""

    def __init__(self) -> None:
        self.vertices: list[Array] = []
        self.triangles: list[NDArray[np.int64]] = []
        self.paint: list[Array] = []
        self.where: dict[str, slice] = {}
        self.count = 0

    def add(self, name: str, vertices: Array, triangles: NDArray[np.int64], **paint: Array | float) -> None:
        """One part; ``paint``: share of each colour at its vertices."""
        weights = np.zeros((len(vertices), len(COLOURS)))
        for colour, share in paint.items():
            weights[:, COLOURS.index(colour)] = share
        self.triangles.append(triangles + self.count)
        self.vertices.append(vertices)
        self.paint.append(weights)
        self.where[name] = slice(self.count, self.count + len(vertices))
        self.count += len(vertices)

    def points(self) -> Array:
        """All vertices (n, 3)."""
        return np.concatenate(self.vertices)


def _grid(rows: int, columns: int, closed: bool) -> NDArray[np.int64]:
    """Triangles of a grid of vertices, row after row from the top, seen from outside; ``closed``: around."""
    across = columns if closed else columns - 1
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(across), indexing="ij")
    right = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + right, (i + 1) * columns + j, (i + 1) * columns + right
    return np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])


def _fan(around: int, tip: int, first: int) -> NDArray[np.int64]:
    j = np.arange(around)
    return np.stack([np.full(around, tip), first + j, first + (j + 1) % around], -1)


def _rings(contours: Array, outward: bool = True) -> tuple[Array, NDArray[np.int64]]:
    """Contours (rings, around, 3), anticlockwise as seen, from the inside out -> vertices and triangles."""
    triangles = _grid(contours.shape[0], contours.shape[1], closed=True)
    return contours.reshape(-1, 3), triangles if outward else triangles[:, ::-1]


def _smooth(x: Array | float, low: float, high: float) -> Array:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = np.clip((np.asarray(x, dtype=float) - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _blob(points: Array, at: Sequence[float], reach: Sequence[float]) -> Array:
    """1 at a place of the face and its mirror image, falling to 0 beyond ``reach`` (x, y)."""
    x, y = (np.abs(points[:, 0]) - at[0]) / reach[0], (points[:, 1] - at[1]) / reach[1]
    return np.exp(-x * x - y * y) * (points[:, 2] > 2)


def _add_skin(parts: _Parts) -> Callable[[Array], Array]:
    """The skin of the head with holes for eyes and mouth; gives back its depth as a function of (x, y)."""
    rows = np.concatenate([
        np.array([11.55, 11.1, 10.3, 9.2, 7.9, 6.6, 5.4, 4.3, 3.4]),
        np.linspace(2.7, -10.6, 26), np.array([-11.1, -11.5, -11.8]),
    ])  # fmt: skip
    angles = _angles(36, 0.658)
    points = _section(angles[None, :], np.repeat(rows[:, None], len(angles), 1))
    points = points.reshape(-1, 3)
    points = np.concatenate([points, [[0, _CROWN, -1.0], [0, _CHIN, 5.8]]])
    points = points + sum(brush(points) for brush in _SCULPTURE)
    points = points + _nose(points)
    n, around = len(points), len(angles)
    triangles = np.concatenate([
        _grid(len(rows), around, closed=True), _fan(around, n - 2, 0), _fan(around, n - 1, n - 2 - around)[:, ::-1],
    ])  # fmt: skip

    squares = (len(rows) - 1) * around  # each of two triangles: a hole takes both, or is not its own mirror image
    centre = (points[triangles[:squares]].mean(1) + points[triangles[squares : 2 * squares]].mean(1)) / 2
    eye = np.square((np.abs(centre[:, 0]) - EYE[0]) / 1.75) + np.square((centre[:, 1] - EYE[1]) / 0.95) < 1
    mouth = np.square(centre[:, 0] / 2.75) + np.square((centre[:, 1] - MOUTH) / 1.15) < 1
    whole = np.ones(len(triangles), dtype=bool)
    whole[: 2 * squares] = np.tile(~((eye | mouth) & (centre[:, 2] > 3)), 2)
    used, triangles = np.unique(triangles[whole], return_inverse=True)
    parts.add("skin", points[used], triangles.reshape(-1, 3), **_complexion(points[used]))
    return _depth(points[(points[:, 2] > 1.0) & (points[:, 1] > -11.6)])


def _depth(front: Array) -> Callable[[Array], Array]:
    """Depth of a surface that is given by points, as a function of (x, y)."""
    interpolator = LinearNDInterpolator(front[:, :2], front[:, 2])

    def depth(xy: Array) -> Array:
        found: Array = interpolator(xy)
        return np.nan_to_num(found, nan=2.0)

    return depth


def _complexion(points: Array) -> dict[str, Array]:
    """Paint of skin: where it lies deep, where blood shows, where wrinkles and beards are."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    front = (z > 2).astype(float)
    deep = (
        0.55 * _blob(points, (2.2, 0.2), (1.1, 1.0))
        + 0.30 * _blob(points, (3.2, 1.0), (1.6, 0.5))
        + 0.75 * _blob(points, (0.75, -5.55), (0.55, 0.35))  # nostrils
        + 0.45 * _blob(points, (1.7, -5.5), (0.7, 0.6))
        + 0.30 * _blob(points, (0.0, -9.15), (1.6, 0.4))
        + 0.6 * _smooth(-y, 10.9, 11.7)
        + 0.25 * _smooth(-z, -3.0, 6.0) * _smooth(-y, -3.0, 4.0)
        + 0.20 * _blob(points, (2.9, -6.3), (0.6, 1.3))
    )
    blush = _blob(points, (4.3, -3.6), (1.7, 1.5)) + 0.7 * _blob(points, (0.0, -4.4), (1.0, 0.8))
    lines = (
        _blob(points, (2.9, -6.2), (0.5, 1.4))  # from nose to mouth
        + _blob(points, (3.2, -1.7), (1.5, 0.45))  # below the eyes
        + 0.6 * _blob(points, (5.6, -0.3), (0.6, 0.8))
        + 0.5 * front * _smooth(y, 2.8, 3.4) * _smooth(-y, -7.5, -6.5) * (0.5 + 0.5 * np.cos(y * 5.6)) * (x < 4.5)
        + 0.6 * _blob(points, (0.45, 1.9), (0.35, 0.7))
    )
    shadow = _blob(points, (3.2, 0.95), (1.7, 0.65))
    low = PchipInterpolator([0, 1.5, 2.6, 3.6, 4.8, 5.8, 6.4, 8], [-9.3, -9.2, -7.9, -6.7, -5.4, -3.4, -0.5, 0.5])
    lips = _smooth(np.square(x / 3.0) + np.square((y - MOUTH + 0.1) / 1.35), 0.9, 1.25)
    jaw = _smooth(low(np.clip(x, 0, 8)) - y, -0.1, 0.7) * _smooth(z, -0.5, 1.5)
    upper = _smooth(-y, 5.75, 6.15) * _smooth(y, -7.9, -6.9) * _smooth(-x, -3.1, -2.5) * front
    chin = _smooth(-(np.square(x / 2.5) + np.square((y + 9.9) / 2.0)), -1.2, -0.7) * front
    sides = _smooth(-(np.square((x - 2.9) / 0.55) + np.square((y + 7.7) / 1.6)), -1.3, -0.6) * front
    scalp = np.where(y > _hairline(points), 1.0, 0.0)
    return {
        "skin": np.ones(len(points)),
        "deep": np.clip(deep, 0, 1),
        "blush": np.clip(blush, 0, 1),
        "lines": np.clip(lines, 0, 1),
        "shadow": shadow,
        "beard": np.clip(jaw, 0, 1) * lips,
        "moustache": upper * lips,
        "goatee": np.clip(np.maximum(chin, sides), 0, 1) * lips,
        "scalp": scalp,
    }


def _hairline(points: Array) -> Array:
    """Height of the natural hairline around the head, at points of it."""
    angle = np.abs(np.arctan2(points[:, 0], points[:, 2] + 1.0))
    line = PchipInterpolator(
        np.radians([0, 25, 40, 52, 62, 72, 84, 90, 105, 125, 180]),
        [6.6, 6.8, 6.6, 5.0, 2.8, 0.0, -1.0, 1.5, 1.2, -5, -7],
    )
    height: Array = line(angle)
    return height


def _globe(front: float) -> Callable[[Array], Array]:
    """Depth of an eyeball, as a function of (x, y) from its middle."""

    def depth(xy: Array) -> Array:
        inside = 1 - np.square(xy / [1.85, 1.3]).sum(-1)
        return np.asarray(front - 1.25 + 1.25 * np.sqrt(np.clip(inside, 0.0, 1)))

    return depth


def _circle(around: int) -> Array:
    turn = 2 * np.pi * np.arange(around) / around
    return np.stack([np.cos(turn), np.sin(turn)], -1)


def _add_lids(parts: _Parts, depth: Callable[[Array], Array], front: float) -> None:
    """Lids around the eyeballs: from the almond of the opening to a rim that lies under the skin."""
    around, ball = 16, _globe(front)
    circle = _circle(around)
    almond = circle * np.where(circle[:, 1:] > 0, [1.55, 0.66], [1.55, 0.5])
    almond[:, 1] *= 1 - 0.25 * np.abs(circle[:, 0]) ** 3
    almond[:, 1] += 0.12 * circle[:, 0]  # the outer corner lies higher
    outer = circle * np.array([2.35, 1.45]) + [0.0, 0.1]
    upper = (circle[:, 1] > -0.01).astype(float)
    lid = [almond, almond * 1.1 + [0, 0.03] * circle, 0.62 * almond + 0.42 * outer, outer]
    height = [ball(almond) + 0.06, ball(almond) + 0.22]
    height += [0.45 * (ball(lid[2]) + 0.2) + 0.55 * (depth(lid[2] + EYE) + 0.1), depth(outer + EYE) - 0.12]
    contours = np.stack([np.concatenate([xy + EYE, z[:, None]], 1) for xy, z in zip(lid, height, strict=True)])
    edge = np.concatenate([np.zeros(2 * around), 0.35 * upper, 0.85 * upper + 0.25 * (1 - upper)])
    crease = np.concatenate([np.zeros(around), 0.25 * upper, np.zeros(2 * around)])
    for name, side in _SIDES:
        vertices, triangles = _rings(contours[::-1] * [side, 1, 1], outward=side < 0)
        tones = {key: x for key, x in _complexion(vertices).items() if key in ("deep", "blush", "lines", "shadow")}
        tones["deep"] = np.clip(tones["deep"] * 0.6 + crease, 0, 1)
        parts.add(f"lid {name}", vertices, triangles, skin=1 - edge, lash=edge, **tones)


def _add_eyes(parts: _Parts, front: float) -> None:
    """The eyeballs, as far as they are seen: pupil, iris with its rim, and white."""
    around, ball = 16, _globe(front)
    circle = _circle(around)
    disc = [r * circle for r in (0.24, 0.28, 0.53, 0.62, 0.68)] + [circle * [1.1, 0.9], circle * [1.8, 1.22]]
    middle = np.array([[*EYE, front + 0.02]])
    vertices = np.concatenate([middle, *(np.concatenate([xy + EYE, ball(xy)[:, None]], 1) for xy in disc)])
    vertices[-around:, 2] -= 0.4  # well behind the lids
    ring = np.concatenate([[-1], np.repeat(np.arange(len(disc)), around)])
    up = np.concatenate([[0], np.tile(circle[:, 1], len(disc))])
    shade = np.where(ring >= 4, 0.35 * _smooth(up, 0.2, 1.0), 0.0)  # of the upper lid
    triangles = np.concatenate([_fan(around, 0, 1), _grid(len(disc), around, closed=True) + 1])
    for name, side in _SIDES:
        parts.add(
            f"eye {name}", vertices * [side, 1, 1], triangles if side > 0 else triangles[:, ::-1],
            pupil=np.where(ring <= 0, 1.0, 0.0), iris=np.where((ring == 1) | (ring == 2), 1.0, 0.0),
            rim=np.where(ring == 3, 1.0, 0.0), white=np.where(ring >= 4, 1 - shade, 0.0), dark=shade,
        )  # fmt: skip


def _add_brows(parts: _Parts, depth: Callable[[Array], Array]) -> None:
    along = np.linspace(0, 1, 9)
    x = 0.95 + 4.1 * along
    spine = 1.95 + 0.5 * np.sin(np.pi * np.clip(along * 0.8 + 0.02, 0, 1)) ** 1.2 - 0.3 * along
    thick = 0.62 * np.clip(np.minimum(along * 5 + 0.75, (1.04 - along) * 2.2), 0.06, 1)
    rows = [spine + thick * share for share in (0.75, 0.35, -0.35, -0.75)]
    share = np.repeat([0.0, 0.95, 1.0, 0.0], len(x)) * np.tile(np.clip((1.15 - along) * 3, 0, 1), 4)
    points = np.stack([np.tile(x, 4), np.concatenate(rows)], -1)
    lift = np.repeat([-0.12, 0.22, 0.22, -0.12], len(x)) * np.tile(np.clip(along * 9 + 0.4, 0, 1), 4)
    brow = np.concatenate([points, (depth(points) + lift)[:, None]], 1)
    triangles = _grid(4, len(x), closed=False)
    for name, side in _SIDES:
        own = triangles if side > 0 else triangles[:, ::-1]
        parts.add(f"brow {name}", brow * [side, 1, 1], own, skin=1 - share, brow=share)


def _add_mouth(parts: _Parts, depth: Callable[[Array], Array]) -> None:
    """Lips around an opening that is closed at rest, with teeth and the dark behind it."""
    around = 24
    turn = 2 * np.pi * np.arange(around) / around
    cos, sin = np.cos(turn), np.sin(turn)
    width = np.sign(cos) * np.abs(cos) ** 0.85
    above = sin > 1e-9
    fullness = np.where(above, 0.78 - 0.16 * np.exp(-np.square(width / 0.16)), 0.92)
    border = np.stack([2.5 * width, fullness * np.abs(sin) ** 0.9 * np.sign(sin)], -1)
    seam = np.stack([2.4 * width, 0.1 * (np.abs(width) ** 2 - 0.5) + 0.05 * np.exp(-np.square(width / 0.3)) * -1.0], -1)
    slit = seam + np.stack([0 * sin, 0.03 * sin], -1)
    body = np.stack([2.46 * width, seam[:, 1] + 0.55 * (border[:, 1] - seam[:, 1])], -1)
    outer = np.stack([3.5 * cos, 1.95 * sin], -1)
    rings = [slit * 0.98, slit, body, border, border * [1.05, 1.16], outer]
    lift = [-0.9, 0.12, 0.42, 0.2, 0.1, -0.12]
    at = np.array([0, MOUTH])
    contours = np.stack(
        [np.concatenate([xy + at, (depth(xy + at) + z)[:, None]], 1) for xy, z in zip(rings, lift, strict=True)]
    )
    vertices, triangles = _rings(contours[::-1], outward=False)
    lip = np.concatenate(
        [np.zeros(2 * around), np.full(around, 0.8), np.ones(around), np.full(around, 0.55), np.full(around, 0.2)]
    )
    dark = np.concatenate([np.zeros(4 * around), np.full(around, 0.45), np.full(around, 0.8)])
    skin = _complexion(vertices)
    bare = np.concatenate([np.ones(2 * around), np.zeros(4 * around)])
    shades = {key: skin[key] * bare for key in ("deep", "lines", "beard", "moustache", "goatee", "blush")}
    parts.add("lips", vertices, triangles, skin=1 - lip - dark, lip=lip, dark=dark, **shades)

    x = np.linspace(-2.1, 2.1, 7)
    arc = -0.22 * np.square(x)
    front = float(depth(at[None])[0])
    teeth = np.concatenate([np.stack([x, np.full(7, MOUTH + y), front - 0.35 + arc], -1) for y in (0.5, -0.42)])
    parts.add("teeth", teeth, _grid(2, 7, closed=False), teeth=1.0)
    cave = np.concatenate(
        [np.stack([1.2 * x, np.full(7, MOUTH + y), front - 1.5 + arc * 1.2], -1) for y in (1.0, -2.2)]
    )
    parts.add("cave", cave, _grid(2, 7, closed=False), dark=1.0)


def _add_ears(parts: _Parts) -> None:
    around = 12
    turn = 2 * np.pi * np.arange(around) / around
    shape = np.stack([1.35 * np.cos(turn), 3.1 * np.sin(turn) - 0.35 * np.cos(turn)], -1)
    shape[:, 0] *= 1 + 0.25 * np.sin(turn)
    contours = []
    for share, out in ((0.15, 0.55), (0.5, 0.5), (0.82, 1.1), (1.0, 0.95), (0.75, -0.3)):
        z = share * shape[:, 0]
        contours.append(np.stack([7.25 + out * (0.75 - 0.35 * np.cos(turn)), -0.9 + share * shape[:, 1], -0.9 + z], -1))
    ring = np.stack(contours)
    deep = np.repeat([0.7, 0.55, 0.05, 0.1, 0.6], around)
    for name, side in _SIDES:
        vertices, triangles = _rings(ring[::-1] * np.array([side, 1, 1]), outward=side < 0)
        parts.add(f"ear {name}", vertices, triangles, skin=1.0, deep=deep, blush=0.3)


def _add_neck(parts: _Parts) -> None:
    """Neck and shoulders."""
    angles = _angles(20, 0.0)
    contours = []
    for y, wide, thick, middle in (
        (-6.0, 5.2, 4.5, -2.5), (-10.0, 5.3, 4.8, -2.2), (-13.5, 5.6, 5.0, -2.0), (-14.2, 6.6, 5.6, -2.0),
        (-15.2, 11.0, 6.5, -2.2), (-17.0, 18.0, 8.0, -2.4), (-26.0, 21.0, 10.0, -2.4),
    ):  # fmt: skip
        contours.append(np.stack([wide * np.sin(angles), np.full(20, y), middle + thick * np.cos(angles)], -1))
    vertices = np.concatenate(contours)
    cloth = np.repeat([0, 0, 0, 1, 1, 1, 1], 20).astype(float)
    deep = np.repeat([1.0, 0.8, 0.35, 0, 0, 0, 0], 20)
    parts.add("neck", vertices, _grid(7, 20, closed=True), skin=1 - cloth, deep=deep, cloth=cloth)


_AROUND, _DOWN = 30, 13
_TURN = _angles(_AROUND, 0.515)


def _hair_surface(
    edge: Array, top: float, side: float, hang: float = -1.0, flare: float = 0.0, tuck: float = -0.35
) -> Array:
    """Hair from the crown down to ``edge`` (height by angle), ``top`` and ``side`` thick; it hangs below ``hang``."""
    share = np.linspace(0, 1, _DOWN - 1)[:, None] ** 1.5
    height = 11.55 - (11.55 - edge[None, :]) * np.concatenate([share, share[-1:]])
    on = _section(_TURN[None, :], np.clip(height, hang, 11.55))
    centre = np.array([0, 2.0, -1.0])
    away = on - centre
    away /= np.linalg.norm(away, axis=-1, keepdims=True)
    thick = side + (top - side) * _smooth(height, 1.0, 9.0)
    thick[-1] = -0.35  # tucked under the skin
    out = on + away * thick[..., None]
    fall = np.minimum(height - hang, 0.0)
    out[..., 1] += fall
    out[..., 0] += flare * -fall * np.sin(_TURN)[None, :]
    return np.asarray(out.reshape(-1, 3))


def _edge(*knots: tuple[float, float], lean: float = 0.0) -> Array:
    """Height of a style's edge by angle, from (degrees, height) of one side; ``lean`` raises one side of the brow."""
    degrees, height = zip(*knots, strict=True)
    x, side, much = np.degrees(_TURN), np.sign(lean), abs(lean)
    line: Array = PchipInterpolator(degrees, height)(np.abs(x))
    line += much * np.exp(-np.square((x - 25 * side) / 22)) - 0.5 * much * np.exp(-np.square((x + 28 * side) / 25))
    return line


def _styles() -> dict[str, Callable[[float], Array]]:
    """Hair of each style as a function of its volume (1 is usual)."""
    cut = ((62, 3.0), (72, 0.3), (80, -0.8), (90, 1.6), (105, 1.4), (125, -5.0), (180, -7.0))
    short = _edge((0, 6.7), (25, 6.9), (40, 6.4), (52, 5.0), *cut)
    quiff = _edge((0, 7.1), (25, 7.2), (40, 6.6), (52, 4.8), *cut)
    receding = _edge((0, 8.4), (18, 9.4), (38, 9.3), (52, 6.4), *cut)
    parted = _edge((0, 6.2), (25, 6.3), (40, 5.6), (52, 4.2), *cut, lean=1.3)
    other = _edge((0, 6.2), (25, 6.3), (40, 5.6), (52, 4.2), *cut, lean=-1.3)
    fringe = _edge((0, 3.4), (25, 3.3), (45, 3.0), (60, 1.5), (75, -1.5), (90, -2.0), (120, -6), (180, -7.5))
    tied = _edge((0, 7.0), (30, 6.8), (48, 5.4), (62, 3.6), (75, 2.2), (90, 1.8), (110, 0.8), (140, -4), (180, -6))
    bob = _edge((0, 6.8), (25, 6.4), (38, 4.6), (50, 0.5), (60, -8), (70, -9.5), (120, -10), (180, -10))
    long = _edge((0, 7.0), (25, 6.6), (38, 4.8), (50, 1.5), (62, -13), (75, -18), (120, -19), (180, -19))
    curtain = _edge((0, 3.2), (20, 3.1), (36, 2.4), (48, -1), (58, -12), (75, -18), (120, -19), (180, -19))
    lean = _edge((0, 6.6), (25, 6.2), (36, 3.8), (47, -0.5), (58, -13), (75, -18), (120, -19), (180, -19), lean=1.2)
    afro = _edge((0, 6.6), (25, 6.6), (45, 5.2), (60, 2.5), (75, -1.0), (95, -3.0), (130, -6), (180, -7))
    return {
        "receding": lambda v: _hair_surface(receding, 0.5 * v, 0.6 * v),
        "short": lambda v: _hair_surface(short, 1.1 * v, 0.6 * v),
        "quiff": lambda v: _hair_surface(quiff, 2.2 * v, 0.5 * v),
        "parted left": lambda v: _hair_surface(other, 1.6 * v, 0.9 * v),
        "parted right": lambda v: _hair_surface(parted, 1.6 * v, 0.9 * v),
        "fringe": lambda v: _hair_surface(fringe, 1.3 * v, 1.0 * v),
        "tied": lambda v: _hair_surface(tied, 0.9 * v, 0.45 * v),
        "bob": lambda v: _hair_surface(bob, 1.3 * v, 1.3 * v, hang=-0.5, flare=0.03),
        "long": lambda v: _hair_surface(long, 1.3 * v, 1.2 * v, hang=-0.5, flare=0.08),
        "long with fringe": lambda v: _hair_surface(curtain, 1.3 * v, 1.1 * v, hang=-0.5, flare=0.05),
        "long parted": lambda v: _hair_surface(lean, 1.6 * v, 1.6 * v, hang=0.0, flare=0.12),
        "afro": lambda v: _hair_surface(afro, 3.6 * v, 3.2 * v, hang=-2.0),
    }


def _glasses(depth: Callable[[Array], Array], square: bool, thick: float, big: float) -> tuple[Array, Array]:
    """Frame and lenses: vertices of one side's rim (inner, outer), and of its lens with a point in the middle."""
    around = 16
    turn = 2 * np.pi * np.arange(around) / around
    power = 0.45 if square else 0.95
    shape = np.stack(
        [np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power, np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power],
        -1,
    )
    at = np.array([3.35, -0.35])
    half = np.array([2.35, 1.75 if square else 2.1]) * big
    inner, outer = at + shape * half, at + shape * (half + thick)
    z = float(depth(np.array([[3.2, 1.9]]))[0]) + 0.9

    def at_depth(xy: Array) -> Array:
        return np.concatenate([xy, (z - 0.035 * np.square(xy[:, :1] - 1.0))], 1)

    return np.concatenate([at_depth(inner), at_depth(outer)]), np.concatenate(
        [at_depth(at[None]), at_depth(inner) - [0, 0, 0.05]]
    )


def _hat(style: str) -> Array:
    """A hat on the hair's grid: dome rows, then a brim."""
    around = 24
    turn = _angles(around, 0.3)
    rows = []
    lift = {"cap": 5.6, "beanie": 4.6, "brim": 5.8}[style]
    front = np.exp(-np.square(turn / 0.9))
    for share in (0.0, 0.25, 0.5, 0.8, 1.0):
        y = 12.4 - (12.4 - lift) * share**1.6
        height = np.full(around, y) - (2.5 * share**1.6 * (1 - front) if style != "brim" else 0)
        on = _section(turn, np.clip(height - 0.6, -2, 11.6))
        away = on - [0, 2.0, -1.0]
        away /= np.linalg.norm(away, axis=-1, keepdims=True)
        rows.append(on + away * 1.7 + [0, 0.3, 0])
    edge = rows[-1]
    reach = {"cap": 5.5 * front**2 - 0.2, "beanie": np.full(around, 0.35), "brim": np.full(around, 4.0)}[style]
    drop = {"cap": -1.2 * front**2, "beanie": np.full(around, -0.2), "brim": np.full(around, -0.5)}[style]
    out = np.stack([np.sin(turn), 0 * turn, np.cos(turn)], -1)
    rows.append(edge + out * reach[:, None] + np.stack([0 * turn, drop, 0 * turn], -1))
    rows.append(edge + out * -0.6 + [0, -0.5, 0])
    return np.concatenate([[[0, 12.9, -1.0]], *rows])


@lru_cache(maxsize=1)
def head() -> Model:
    """Our head, built once a process (about a fifth of a second)."""
    parts = _Parts()
    depth = _add_skin(parts)
    front = float(depth(EYE[None])[0]) + 0.3
    _add_lids(parts, depth, front)
    _add_eyes(parts, front)
    _add_brows(parts, depth)
    _add_mouth(parts, depth)
    _add_ears(parts)
    _add_neck(parts)
    basis = _add_extras(parts, depth)
    there = _present(parts, basis)
    basis |= _identity(there, parts) | _expression(there, parts)
    return _model(parts, basis, IDENTITY, EXPRESSION)


def adopt(mean: Array, triangles: NDArray[np.int64], identity: Array, expression: Array) -> Model:
    """A head with somebody else's face: vertices (V, 3), triangles (T, 3), shapes (I, V, 3) and (E, V, 3).

    The face is moved and scaled so that the holes for its eyes lie where ours are. Identity -1..1 is 1.7 of the given
    units to either side, which makes the variance 1.

    Raises ValueError where the mesh has no two holes for eyes.
    """
    holes = _eye_holes(mean, triangles)
    middles = np.stack([mean[hole].mean(0) for hole in holes])  # right and left
    scale = 2 * EYE[0] * _PROPORTION[0] / (middles[0, 0] - middles[1, 0])
    grow = scale / _PROPORTION
    if max(np.abs(shape).max() for shape in (mean - middles.mean(0), identity, expression)) * scale > _LARGEST:
        raise ValueError(f"the mesh or a shape of it reaches farther than {_LARGEST:g} cm; are the scales right?")
    points = (mean - middles.mean(0)) * grow + [0, EYE[1], 7.6]
    hole_edges = [points[hole] for hole in holes]
    parts = _Parts()
    to_eye = np.min([np.linalg.norm(points[:, None] - edge[None], axis=-1).min(1) for edge in hole_edges], axis=0)
    lash = 0.6 * _smooth(-to_eye, -0.12, -0.02)
    lip = _smooth(-(np.square(points[:, 0] / 2.75) + np.square((points[:, 1] - MOUTH) / 1.0)), -1.15, -0.75)
    lip = np.where(points[:, 2] > 3, lip, 0) * 0.9
    tones = {key: x * (1 - lip) for key, x in _complexion(points).items() if key not in ("skin", "deep")}
    parts.add(
        "skin", points, triangles, skin=1 - np.maximum(lip, lash), lip=lip, lash=np.where(lip > 0, 0, lash), **tones
    )
    front = points[points[:, 2] > 1.0]
    depth = _depth(front)
    _add_eyes(parts, 7.6 + 0.25)
    _add_brows(parts, depth)
    _add_neck(parts)
    basis = _add_extras(parts, depth)
    there = _present(parts, basis)
    _, nearest = cKDTree(points).query(there[len(points) :], k=24)
    names: list[tuple[str, ...]] = []
    for kind, shapes, most in (("identity", identity, 3**0.5), ("expression", expression, 1.0)):
        names.append(tuple(f"{kind} {i}" for i in range(len(shapes))))
        for name, shape in zip(names[-1], shapes * grow * most, strict=True):
            moved = np.concatenate([shape, shape[nearest].mean(1)])
            for (side, _), hole in zip(_SIDES, holes, strict=True):  # an eyeball moves as a whole, and never by a blink
                moved[parts.where[f"eye {side}"]] = shape[hole].mean(0) * (kind == "identity")
            moved[parts.where["neck"]] = 0
            basis[name] = moved
    return _model(parts, basis, *names)


def _eye_holes(points: Array, triangles: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Vertices around the holes for the eyes, that on the right of the picture first."""
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    open_edges, times = np.unique(edges, axis=0, return_counts=True)
    open_edges = open_edges[times == 1]
    links = coo_matrix((np.ones(len(open_edges)), open_edges.T), shape=(len(points),) * 2)
    _, component = connected_components(links, directed=False)
    rims = [np.flatnonzero(component == i) for i in np.unique(component[open_edges])]
    width = np.ptp(points[:, 0])
    pairs = [
        (float(np.abs(points[a].mean(0) - points[b].mean(0) * [-1, 1, 1]).sum()), a, b)
        for a in rims
        for b in rims
        if 0.1 * width < points[a, 0].mean() - points[b, 0].mean() < 0.7 * width
    ]
    pairs = [pair for pair in pairs if pair[0] < 0.1 * width]
    if not pairs:
        raise ValueError("the mesh has no two holes for eyes, one on each side of x = 0")
    _, right, left = min(pairs, key=lambda pair: pair[0])
    return [right, left]


def _add_extras(parts: _Parts, depth: Callable[[Array], Array]) -> dict[str, Array]:
    """Hair, hats and glasses, and the shapes that bring them out, by name.

    Without its shape, a part is a single point inside the head: its triangles have no area and are never drawn.
    """

    def hidden(n: int) -> Array:
        return np.tile([0.0, 2.0, -1.0], (n, 1))

    streak = np.tile(0.5 + 0.5 * np.sin(np.arange(_AROUND) * 2.4) * np.cos(np.arange(_AROUND) * 0.9), _DOWN)
    streak[-_AROUND:] = 0.9
    streak = np.insert(streak, 0, 0.5)
    triangles = np.concatenate([_grid(_DOWN, _AROUND, closed=True) + 1, _fan(_AROUND, 0, 1)])
    parts.add("hair", hidden(len(streak)), triangles, hair=1 - streak, streak=streak)
    hats = {style: _hat(style) for style in HATS[1:]}
    triangles = np.concatenate([_fan(24, 0, 1), _grid(7, 24, closed=True) + 1])
    parts.add("hat", hidden(len(hats["cap"])), triangles, hat=1.0)
    rim, lens, bars = _grid(2, 16, closed=True), _fan(16, 0, 1), np.array([[0, 2, 1], [1, 2, 3]])
    for name, side in _SIDES:
        parts.add(f"rim {name}", hidden(32), rim[:, ::side], frame=1.0)
        parts.add(f"lens {name}", hidden(17), lens[:, ::side], lens=1.0)
        parts.add(f"temple {name}", hidden(4), bars[:, ::-side], frame=1.0)
    parts.add("bridge", hidden(4), bars, frame=1.0)

    basis: dict[str, Array] = {}

    def place(name: str, part: str, points: Array) -> None:
        rest = parts.points()
        basis.setdefault(name, np.zeros_like(rest))[parts.where[part]] = points - rest[parts.where[part]]

    for style, surface in _styles().items():
        usual, full = (
            np.insert(s, 0, np.add(s[:_AROUND].mean(0), (0, 0.15, 0)), axis=0) for s in map(surface, (1.0, 1.5))
        )
        place(f"hair {style}", "hair", usual)
        place(f"volume {style}", "hair", full - usual + parts.points()[parts.where["hair"]])
    for style, dome in hats.items():
        place(f"hat {style}", "hat", dome)
    frames = {"round": (False, 0.22, 0.92), "square": (True, 0.35, 1.0), "sun": (True, 0.3, 1.05)}
    for style, (square, thick, big) in frames.items():
        rims, lenses = _glasses(depth, square, thick, big)
        flip = np.array([-1, 1, 1])
        low, high = (rims[24] + np.array([0.12, y, 0.1]) for y in (0.45, 0.75))
        place(f"glasses {style}", "bridge", np.array([high * flip, high, low * flip, low]))
        for name, side in _SIDES:
            place(f"glasses {style}", f"rim {name}", rims * [side, 1, 1])
            if style == "sun":
                place(f"glasses {style}", f"lens {name}", lenses * [side, 1, 1])
            hinge, ear = rims[16], np.array([7.9, 0.3, -0.5])
            bar = np.array([np.add(hinge, (0, 0.5, 0)), np.add(ear, (0, 0.4, 0)), hinge, ear])
            place(f"glasses {style}", f"temple {name}", bar * [side, 1, 1])
    return basis | _gaze(parts) | _beards(parts)


def _present(parts: _Parts, basis: dict[str, Array]) -> Array:
    """Where all vertices lie when every part is there: hair and glasses follow the shape of the face beneath them."""
    return np.asarray(parts.points() + basis["hair short"] + basis["hat cap"] + basis["glasses sun"])


def _model(parts: _Parts, basis: dict[str, Array], identity: Sequence[str], expression: Sequence[str]) -> Model:
    rest, paint = parts.points(), np.concatenate(parts.paint)
    turn = np.ones(len(rest))
    neck = parts.where["neck"]
    turn[neck] = 0.9 * _smooth(rest[neck, 1], -14.0, -6.0)
    part = np.zeros(len(rest), dtype=np.int64)
    for i, where in enumerate(parts.where.values()):
        part[where] = i
    return Model.build(
        rest * _PROPORTION, {name: shape * _PROPORTION for name, shape in basis.items()}, identity, expression,
        np.concatenate(parts.triangles), part, paint, paint @ [_GLOSS.get(colour, 0.0) for colour in COLOURS], turn,
    )  # fmt: skip


_GLOSS = {"skin": 0.25, "lip": 0.5, "hair": 0.55, "streak": 0.35, "white": 1.2, "iris": 1.5, "rim": 1.5, "pupil": 1.5,
          "lens": 1.5, "frame": 1.0, "teeth": 0.8}  # fmt: skip


def _identity(points: Array, parts: _Parts) -> dict[str, Array]:
    """What differs between people; at 1, about as far as people go."""

    def brushes(*which: Brush) -> Array:
        return np.asarray(sum(brush(points) for brush in which))

    x, y, z = points[:, :1], points[:, 1:2], points[:, 2:]
    nothing = np.zeros_like(x)
    whole = _smooth(y, -16.0, -12.0)
    lower = _smooth(-y, 2.0, 9.0) * whole
    lips, lids = _lips(points, parts), _closing(points, parts)
    brows = np.zeros((len(points), 1))
    spread = np.zeros_like(points)
    for side in ("right", "left"):
        where = parts.where[f"brow {side}"]
        brows[where] = 1
        spine = points[where].reshape(4, -1, 3).mean(0)
        spread[where, 1] = (points[where].reshape(4, -1, 3) - spine)[..., 1].ravel()
    arch = np.exp(-np.square((np.abs(x) - 3.6) / 1.2)) - 0.6 * np.exp(-np.square((np.abs(x) - 1.2) / 0.9))
    child = (
        brushes(
            Brush((3.15, 0, 7), (2.3, 1.6, 4), grow=(0.22, 0.26, 0)),
            Brush((0, -4.6, 10), (2.0, 2.2, 4), (0, 0.5, -0.9), grow=(-0.2, -0.2, 0)),
            Brush((4.4, -5.4, 5), (2.4, 2.6, 5), (0.4, -0.2, 0.5)),
            Brush((0, -10.5, 8), (3.0, 2.2, 5), (0, 0.6, -0.6)),
            Brush((0, 6.5, 7), (7, 4, 7), (0, 0.2, 0.6)),
        )
        + np.concatenate([0.05 * x, 0.16 * np.maximum(-y, 0) * whole, nothing], 1) * whole
        + np.concatenate([nothing, -0.25 * brows, nothing], 1)
    )
    heavy = brushes(
        Brush((5.2, -6.8, 3), (2.6, 3.0, 5), (0.9, -0.2, 0.4)), Brush((0, -11.2, 5), (4, 1.6, 5), (0, -0.5, 0.4))
    )
    tilt = (np.abs(x) - 3.15) * 0.13 * np.exp(-np.square((np.abs(x) - 3.15) / 1.9) - np.square(y / 1.5)) * (z > 3)
    heavy += np.concatenate([0.12 * x * _smooth(-y, 7, 12) * (np.abs(x) < 9), nothing, nothing], 1)
    return {
        "head width": np.concatenate([0.08 * x * whole, nothing, nothing], 1),
        "face length": np.concatenate([nothing, 0.07 * y * whole, nothing], 1),
        "jaw width": np.concatenate([0.12 * x * lower * (z > -3), nothing, nothing], 1),
        "chin": brushes(Brush((0, -10.9, 8), (2.2, 1.8, 4), (0, -0.7, 0.5))),
        "cheeks": brushes(Brush((4.2, -5.8, 6), (1.8, 2.0, 4), (0.4, 0, 0.55))),
        "cheekbones": brushes(Brush((5.2, -2.2, 5.5), (1.8, 1.4, 4), (0.45, 0, 0.35))),
        "forehead": brushes(Brush((0, 7.5, 6), (8, 3.5, 9), (0, 0.9, 0))),
        "brow ridge": brushes(
            Brush((2.7, 1.8, 8.5), (2.2, 0.9, 4), (0, -0.1, 0.4)), Brush((3.15, 0, 7), (1.6, 1, 4), (0, 0, -0.2))
        ),
        "eye distance": brushes(Brush((3.15, 0.2, 7), (1.9, 1.9, 4), (0.32, 0, 0))),
        "eye size": brushes(Brush((3.15, 0, 7), (2.0, 1.3, 4), grow=(0.14, 0.22, 0))),
        "eye tilt": tilt * [0, 1, 0],
        "eye narrowness": lids * [0, 0.24, 0],
        "nose length": brushes(
            Brush((0, -4.9, 10), (2.0, 1.7, 4), (0, -0.6, 0.15)), Brush((0, -7.3, 9), (3, 1.2, 4), (0, -0.2, 0))
        ),
        "nose width": brushes(
            Brush((0, -4.7, 10), (2.2, 1.6, 4), grow=(0.3, 0, 0)),
            Brush((0, -1.5, 10), (1.6, 2.0, 4), grow=(0.15, 0, 0)),
        ),
        "nose height": brushes(
            Brush((0, -2.6, 10), (1.3, 2.4, 4), (0, 0, 0.6)), Brush((0, -4.6, 11), (1.3, 1.0, 4), (0, 0, 0.35))
        ),
        "mouth width": brushes(Brush((0, MOUTH, 9), (3.6, 1.8, 4), grow=(0.17, 0, 0))),
        "upper lip": lips["upper border"] * [0, 0.32, 0.12],
        "lower lip": lips["lower border"] * [0, -0.32, 0.15],
        "mouth height": brushes(Brush((0, MOUTH, 9), (3.6, 1.7, 4), (0, 0.4, 0))),
        "brow height": brows * [0, 0.42, 0.03],
        "brow thickness": spread * 0.5,
        "brow arch": brows * arch * [0, 0.4, 0],
        "ears": brushes(Brush((8.0, -0.9, -0.9), (2.0, 4.0, 3.0), (0.5, 0, 0), (0.1, 0.12, 0.1))) * (np.abs(x) > 6.9),
        "child": child,
        "heavy": heavy,
        "nose tip": brushes(
            Brush((0, -4.8, 11), (0.9, 0.8, 2), (0, 0.35, 0.25)), Brush((1.35, -5, 9), (0.7, 0.7, 3), (0.12, 0.1, 0.15))
        ),
    }  # fmt: skip


def _closing(points: Array, parts: _Parts) -> Array:
    """How far each vertex of the lids closes: -1 on the edge of the upper, part of 1 on that of the lower (n, 1)."""
    close = np.zeros((len(points), 1))
    for side in ("right", "left"):
        where = parts.where[f"lid {side}"]
        ring = points[where].reshape(4, -1, 3)
        turn = 2 * np.pi * np.arange(ring.shape[1]) / ring.shape[1]
        sin = np.sin(turn)
        share = np.where(sin > 0, -sin, -0.45 * sin)
        close[where, 0] = (np.array([0.0, 0.45, 0.95, 1.0])[:, None] * share).ravel()
    return close


def _lips(points: Array, parts: _Parts) -> dict[str, Array]:
    """Weights (n, 1) on the lips: the border and the inner edge of the upper and of the lower one."""
    where = parts.where["lips"]
    ring = points[where].reshape(6, -1, 3)
    sin = np.sin(2 * np.pi * np.arange(ring.shape[1]) / ring.shape[1])
    out = {}
    for name, half in (("upper", np.clip(sin, 0, 1)), ("lower", np.clip(-sin, 0, 1))):
        for place, share in (("border", (0.0, 0.9, 1.0, 0.55, 0.0, 0.0)), ("edge", (0.0, 0.55, 0.7, 0.85, 1.0, 1.0))):
            weight = np.zeros((len(points), 1))
            weight[where, 0] = (np.array(share)[:, None] * half**0.6).ravel()
            out[f"{name} {place}"] = weight
    return out


def _expression(points: Array, parts: _Parts) -> dict[str, Array]:
    """What a face can do; at 1, fully."""

    def brushes(*which: Brush) -> Array:
        return np.asarray(sum(brush(points) for brush in which))

    lips, lids = _lips(points, parts), _closing(points, parts)
    brows = np.zeros((len(points), 1))
    for side in ("right", "left"):
        brows[parts.where[f"brow {side}"]] = 1
    x = points[:, :1]
    smile = brushes(
        Brush((2.7, MOUTH, 8), (1.6, 1.5, 4), (0.55, 0.75, -0.25)),
        Brush((4.0, -4.2, 7), (1.7, 1.5, 4), (0.15, 0.35, 0.45)),
    ) + lids * [0, 0.14, 0]
    grin = smile * 0.9 + lips["upper edge"] * [0, 0.26, 0] + lips["lower edge"] * [0, -0.5, 0]
    jaw = Brush((0, -10.8, 7), (5.0, 2.9, 7), (0, -1.5, -0.2))
    return {
        "smile": smile,
        "grin": grin + brushes(Brush((0, -10.8, 7), (4, 2.4, 6), (0, -0.3, 0))),
        "open": brushes(jaw) + lips["lower edge"] * [0, -0.75, 0] + lips["upper edge"] * [0, 0.2, 0],
        "frown": brushes(Brush((2.6, MOUTH, 8), (1.4, 1.2, 4), (0.1, -0.6, 0))) + brows * [0, -0.15, 0],
        "pucker": brushes(Brush((0, MOUTH, 10), (3.4, 1.8, 4), (0, 0, 0.5), grow=(-0.28, 0.1, 0))),
        "brows up": brows * [0, 0.6, 0] + lids * [0, -0.12, 0],
        "brows down": brows * np.concatenate([-0.12 * np.sign(x), -0.55 + 0.1 * np.abs(x), 0 * x], 1)
        + lids * [0, 0.1, 0],
        "squint": lids * [0, 0.55, 0] + brushes(Brush((3.8, -1.8, 7), (1.7, 0.9, 4), (0, 0.2, 0.2))),
        "wide eyes": lids * [0, -0.22, 0] + brows * [0, 0.2, 0],
    }  # fmt: skip


def _gaze(parts: _Parts) -> dict[str, Array]:
    """Eyes that look right and up: to first order, a turn of the eyeball by 0.3 radians."""
    rest = parts.points()
    across, up = np.zeros_like(rest), np.zeros_like(rest)
    for side in ("right", "left"):
        where = parts.where[f"eye {side}"]
        from_axis = rest[where] - rest[where][0]
        ring = np.concatenate([[0], np.repeat(np.arange(7), 16)])
        free = np.where(ring < 5, 1.0, np.where(ring == 5, 0.5, 0.0))
        across[where, 0] = up[where, 1] = 0.32 * free
        across[where, 2] = -0.2 * from_axis[:, 0] * free
        up[where, 2] = -0.2 * from_axis[:, 1] * free
    return {"gaze across": across, "gaze up": up}


def _beards(parts: _Parts) -> dict[str, Array]:
    """How far a beard stands off the skin."""
    rest = parts.points()
    paint = np.concatenate(parts.paint)
    x, y, z = rest[:, 0], rest[:, 1], rest[:, 2]
    out = np.stack([0.09 * x, np.where(y < -9.5, -0.5, 0), 0.4 + 0 * z], -1)
    grown = {}
    for name, long in (("moustache", 0.7), ("goatee", 1.0), ("beard", 1.3)):
        share = paint[:, COLOURS.index(name)][:, None]
        grown[f"grown {name}"] = share * out * long
    return grown
