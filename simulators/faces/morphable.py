"""Morphable models that the user has: a mean face, and what identity and expression add to it."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpe.errors import InputError
from simpe.simulators.faces.head import adopt
from simpe.simulators.faces.model import Model

_KEYS = ("mean", "tri", "id_q", "id_scale", "ex_q", "ex_scale")
_LARGEST = 200_000  # vertices


@functools.lru_cache(maxsize=4)
def load(path: Path) -> Model:
    """Read a linear face model, and put our eyeballs, brows, hair, neck and the rest on it.

    An ``.npz`` with ``mean`` (V, 3), ``tri`` (T, 3), ``id_q`` (I, V, 3) with ``id_scale`` (I,), and ``ex_q`` (E, V, 3)
    with ``ex_scale`` (E,); a vertex is ``mean + sum(c * scale * q)``, with coefficients of identity near -2..2 and
    those of expression in 0..1. The reduced ICT-FaceKit (Li et al., CVPR 2020) is such a file. The mesh is a face that
    looks along z with y up, triangles anticlockwise from outside, symmetric to x = 0, with holes for the eyes. Its size
    and place do not matter.

    Raises InputError for a file that is missing, damaged, or holds something else.
    """
    arrays = _read(path)
    mean = _array(path, arrays, "mean", (None, 3), floating=True)
    v = len(mean)
    if not 100 <= v <= _LARGEST:
        raise InputError(f"{path}: mean holds {v} vertices; give 100 to {_LARGEST}")
    triangles = _array(path, arrays, "tri", (None, 3), floating=False)
    if len(triangles) == 0 or triangles.min() < 0 or triangles.max() >= v:
        raise InputError(f"{path}: tri names vertices outside 0..{v - 1}")
    shapes = []
    for kind in ("id", "ex"):
        q = _array(path, arrays, f"{kind}_q", (None, v, 3), floating=True)
        if len(q) == 0:
            raise InputError(f"{path}: {kind}_q is empty; a face model has at least one shape of each kind")
        scale = _array(path, arrays, f"{kind}_scale", (len(q),), floating=True)
        shapes.append(q * scale[:, None, None])
    try:
        return adopt(mean, triangles.astype(np.int64), *shapes)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: not an .npz file; it must hold {', '.join(_KEYS)}")
            lacking = [key for key in _KEYS if key not in file.files]
            if lacking:
                raise InputError(f"{path}: has no {', '.join(lacking)}; a face model holds {', '.join(_KEYS)}")
            return {key: file[key] for key in _KEYS}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); it must be an .npz file") from None


def _array(
    path: Path, arrays: dict[str, NDArray[Any]], key: str, shape: tuple[int | None, ...], floating: bool
) -> NDArray[Any]:
    """An array of numbers of some shape (None: any length), in double precision where it holds fractions."""
    x = arrays[key]
    wanted = str(tuple("n" if side is None else side for side in shape)).replace("'", "")
    if x.ndim != len(shape) or any(side not in (None, own) for side, own in zip(shape, x.shape, strict=True)):
        raise InputError(f"{path}: {key} has shape {x.shape}, not {wanted}")
    if x.dtype.kind not in ("iuf" if floating else "iu"):
        raise InputError(f"{path}: {key} is {x.dtype}, not {'numbers' if floating else 'whole numbers'}")
    if not floating:
        return x
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise InputError(f"{path}: {key} holds NaN or infinity")
    return x
