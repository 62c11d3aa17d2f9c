"""A head as a linear function: vertices at rest plus shapes times coefficients, and the paint on the vertices."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

COLOURS = (
    "skin", "deep", "blush", "lines", "shadow", "beard", "moustache", "goatee", "scalp", "lip", "hair", "streak",
    "brow", "lash", "white", "iris", "rim", "pupil", "dark", "teeth", "cloth", "frame", "lens", "hat",
)  # fmt: skip
"""What a vertex may be painted with; from ``deep`` to ``scalp``: what is added to the colour of the skin."""

# Coordinates, coefficients and shares of paint are whole multiples of these, so that every product and every sum of
# them is exact in double precision: a matrix product then does not depend on its order, nor on the batch.
_GRAIN = 2.0**-20
_COEFFICIENT = 2.0**-16


@dataclass(frozen=True, eq=False)
class Model:
    """A mesh of fixed topology. n heads are ``rest + coefficients @ basis``.

    - ``rest`` (3 V,) and ``basis`` (K, 3 V), float64, centimetres: x of all vertices, then y, then z. x points to the
      right of the picture, y up, z to the viewer; the middle between the eyes is near (0, 0, 8).
    - ``names``: row of the basis by name. ``identity`` and ``expression`` name those that the parameters move.
    - ``triangles`` (T, 3), anticlockwise as seen from outside. ``part`` (V,): which part a vertex belongs to.
    - ``paint`` (V, colours), float64: shares of ``COLOURS``. ``gloss`` (V,), float32. ``turn`` (V,), float32: how far
      a vertex follows the turn of the head (shoulders do not).
    - ``ring`` (4, V): two pairs of neighbours whose differences span the surface at a vertex.
    """

    rest: Tensor
    basis: Tensor
    names: Mapping[str, int]
    identity: tuple[str, ...]
    expression: tuple[str, ...]
    triangles: Tensor
    part: Tensor
    paint: Tensor
    gloss: Tensor
    turn: Tensor
    ring: Tensor

    @classmethod
    def build(
        cls,
        rest: Array,
        basis: Mapping[str, Array],
        identity: Sequence[str],
        expression: Sequence[str],
        triangles: NDArray[np.int64],
        part: NDArray[np.int64],
        paint: Array,
        gloss: Array,
        turn: Array,
    ) -> Model:
        """From vertices (V, 3) and shapes by name (V, 3)."""

        def flat(points: Array) -> Tensor:
            return torch.from_numpy(np.rint(points / _GRAIN).T.ravel() * _GRAIN)

        return cls(
            rest=flat(rest),
            basis=torch.stack([flat(shape) for shape in basis.values()]),
            names={name: i for i, name in enumerate(basis)},
            identity=tuple(identity),
            expression=tuple(expression),
            triangles=torch.from_numpy(np.ascontiguousarray(triangles, dtype=np.int64)),
            part=torch.from_numpy(part),
            paint=torch.from_numpy(np.rint(paint / _COEFFICIENT) * _COEFFICIENT),
            gloss=torch.from_numpy(gloss).float(),
            turn=torch.from_numpy(turn).float(),
            ring=torch.from_numpy(_ring(len(rest), triangles)),
        )

    @functools.lru_cache(maxsize=4)  # noqa: B019 - models live as long as the process
    def to(self, device: torch.device) -> Model:
        """The same model on another device."""
        values: dict[str, Any] = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in vars(self).items()}
        return Model(**values)

    def shape(self, coefficients: Tensor) -> Tensor:
        """Coefficients (n, K) -> vertices (n, 3, V), float32. Exact up to the rounding to float32."""
        moved = exactly(coefficients) @ self.basis + self.rest
        return moved.float().reshape(len(coefficients), 3, -1)

    def colour(self, palette: Tensor) -> Tensor:
        """What each of ``COLOURS`` looks like (n, colours, 3) -> colours of the vertices (n, 3, V), float32."""
        by_channel = exactly(palette).transpose(1, 2).reshape(-1, len(COLOURS))
        return (by_channel @ self.paint.T).float().reshape(len(palette), 3, -1)


def exactly(x: Tensor) -> Tensor:
    """Values of moderate size, rounded so that their products with a model's numbers are exact."""
    return (x.double() / _COEFFICIENT).round() * _COEFFICIENT


def _ring(n: int, triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Four neighbours of each vertex, about a quarter turn apart, anticlockwise: (4, n).

    At an edge of the mesh the turn is half a one, and the vertex itself takes the place of the missing neighbour.
    """
    follows: list[dict[int, int]] = [{} for _ in range(n)]
    for corners in triangles.tolist():
        for i in range(3):
            follows[corners[i]][corners[(i + 1) % 3]] = corners[(i + 2) % 3]
    out = np.zeros((4, n), dtype=np.int64)
    for vertex, after in enumerate(follows):
        if not after:
            out[:, vertex] = vertex
            continue
        starts = after.keys() - after.values()
        at = min(starts) if starts else min(after)
        around = [at]
        while at in after and len(around) <= len(after):
            at = after[at]
            around.append(at)
        if starts:  # a fan that is open: from its first neighbour to its last
            out[:, vertex] = around[0], around[-1], around[len(around) // 2], vertex
        else:
            k = len(around) - 1
            out[:, vertex] = around[0], around[k // 2], around[k // 4], around[k // 2 + k // 4]
    return out
