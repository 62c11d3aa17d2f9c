"""The same scenes drawn by pyrender, for reference: OpenGL without a display.

Needs ``pip install 'simpe[faces]'`` and one of OpenGL's two ways to work without a display: EGL, or OSMesa. The way
must be chosen before pyrender is imported, and a process that holds a graphics context must not fork: so pyrender lives
in a process of its own, which is started when it is first needed and ends with this one.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpe.errors import InputError
from simpe.simulators.faces.scene import Scene

PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 (or libosmesa6)"
_CLIP = (0.2, 8.0)  # what is nearer or farther is not drawn, in distances of the head
_WALL = 6.0  # where the background hangs


def draw(scene: Scene, height: int, width: int) -> Tensor:
    """Draw a scene, head by head: uint8 (n, height, width, 3) on its device. Four samples lie in each pixel.

    Raises InputError where pyrender or a system library is missing.
    """
    arrays = [x.cpu().numpy() for x in (scene.x, scene.y, scene.near, scene.colour, scene.background, scene.triangles)]
    images = _process().submit(_draw, arrays, height, width).result()
    return torch.from_numpy(images).to(scene.x.device)


def missing() -> str:
    """What is missing for pyrender, and what to do about it: one line, empty if nothing is."""
    if importlib.util.find_spec("pyrender") is None:
        return "the reference renderer needs pyrender: pip install 'simpe[faces]'"
    if os.environ.get("PYOPENGL_PLATFORM") is None and not _platform():
        return f"the reference renderer needs OpenGL without a display: apt-get install {PACKAGES}"
    return ""


@functools.lru_cache(maxsize=1)
def _process() -> ProcessPoolExecutor:
    problem = missing()
    if problem:
        raise InputError(problem)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _platform() -> str:
    """The first of ``egl`` and ``osmesa`` that this machine has the libraries for; empty for none."""
    return "egl" if _egl_devices() else "osmesa" if osmesa() else ""


def osmesa() -> bool:
    """Whether OSMesa is installed."""
    return _library("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") is not None


def _library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _egl_devices() -> int:
    """How many devices EGL can draw on without a display; Mesa's software renderer is one."""
    egl = _library("libEGL.so.1")
    if egl is None or _library("libGLESv2.so.2") is None or _library("libGL.so.1", "libOpenGL.so.0") is None:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int()
    return count.value if query(0, None, ctypes.byref(count)) else 0


@functools.lru_cache(maxsize=4)
def _renderer(height: int, width: int) -> Any:
    os.environ.setdefault("PYOPENGL_PLATFORM", _platform())
    try:
        import pyrender

        return pyrender.OffscreenRenderer(width, height)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"OpenGL does not start ({what}): apt-get install {PACKAGES}") from None


def _draw(arrays: list[NDArray[Any]], height: int, width: int) -> NDArray[np.uint8]:
    """In pyrender's process: scenes as arrays -> images."""
    renderer = _renderer(height, width)
    import pyrender

    x, y, near, colour, background, triangles = arrays
    v = x.shape[1]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float32)
    faces = np.concatenate([triangles, [[v, v + 1, v + 2], [v, v + 2, v + 3]]]).astype(np.uint32)
    camera = pyrender.PerspectiveCamera(math.pi / 2, *_CLIP, aspectRatio=1.0)  # x and y are already over the distance
    material = pyrender.MetallicRoughnessMaterial(baseColorFactor=(1.0, 1.0, 1.0, 1.0))
    images = np.empty((len(x), height, width, 3), dtype=np.uint8)
    for i in range(len(x)):
        away = 1 / near[i]
        points = np.concatenate([
            np.stack([x[i] * away, y[i] * away, -away], 1), np.insert(corners * _WALL, 2, -_WALL, axis=1)
        ]).astype(np.float32)  # fmt: skip
        wall = background[i, 0] + corners @ background[i, 1:]
        colours = np.ones((len(points), 4), dtype=np.float32)
        colours[:, :3] = np.concatenate([colour[i].T, wall])
        primitive = pyrender.Primitive(points, color_0=colours, indices=faces, material=material)
        scene = pyrender.Scene()
        scene.add(pyrender.Mesh([primitive]))
        scene.add(camera, pose=np.eye(4))
        images[i] = renderer.render(scene, flags=pyrender.RenderFlags.FLAT)[0]
    return images
