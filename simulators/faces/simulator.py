"""Faces: a head, hair, light and a background, in front of a camera."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from simpe.errors import InputError
from simpe.scheduling import Strategy
from simpe.simulators.faces import raster, reference
from simpe.simulators.faces.head import head
from simpe.simulators.faces.model import Model
from simpe.simulators.faces.morphable import load
from simpe.simulators.faces.photograph import photograph
from simpe.simulators.faces.scene import Scene, scene, space
from simpe.space import ParameterSpace, Params

if TYPE_CHECKING:
    from simpe.embedders.faces import FaceEmbedding

Renderer = Literal["torch", "pyrender"]

_BLOCK = 128  # heads drawn at a time at 64 x 64; fewer where images are larger
_SMALL = 48  # a picture with a shorter side is drawn with four samples in each pixel


class Faces:
    """Faces in colour, cropped from above the brows to below the chin, as aligned face photographs are.

    >>> faces = Faces()
    >>> p = faces.space.sample(100, torch.Generator().manual_seed(0))
    >>> images = faces.render({**p, "label": torch.zeros(100, dtype=torch.int64)})  # uint8 (100, 32, 32, 3)

    ``size``: pixels, a side or (height, width). ``model``: a file with a linear model of the face, which takes the
    place of our own (:func:`simpe.simulators.faces.morphable.load`). ``renderer``: ``torch``, or ``pyrender`` for
    reference: several times slower; it needs ``pip install 'simpe[faces]'`` and OpenGL without a display. ``grey``:
    brightness alone, uint8 (n, height, width).

    A label changes nothing: every class is drawn from the same space.

    Raises InputError for a size that cannot be drawn, a model that cannot be used, or a missing library.
    """

    colour = True  # folders of photographs are read in colour
    strategy = Strategy(start=10, votes=12, clear=4, release_strength=0.4, shared=True)

    def __init__(
        self,
        size: int | tuple[int, int] = 32,
        model: str | Path | None = None,
        renderer: Renderer = "torch",
        grey: bool = False,
    ):
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if not 8 <= min(self.size) <= max(self.size) <= 2048:
            raise InputError(f"size must be 8 to 2048 pixels, got {self.size}")
        if renderer not in get_args(Renderer):
            raise InputError(f"renderer must be one of {', '.join(get_args(Renderer))}, got {renderer!r}")
        if renderer == "pyrender" and reference.missing():
            raise InputError(reference.missing())
        self.renderer = renderer
        self.grey = grey
        self.model = None if model is None else Path(model)
        self._model  # noqa: B018 - a file that cannot be used is found here

    @cached_property
    def space(self) -> ParameterSpace:
        """What varies from face to face."""
        return space(self._model)

    @cached_property
    def embedder(self) -> FaceEmbedding:
        """What a run compares faces in.

        Raises InputError where its network is not installed.
        """
        from simpe.embedders.faces import FaceEmbedding

        try:
            return FaceEmbedding()
        except ImportError as error:
            raise InputError(f"{error}; or choose another embedder in a configuration, such as photographs") from None

    def render(self, p: Params) -> Tensor:
        """Draw n rows: parameters -> uint8 (n, height, width, 3), or (n, height, width) where grey.

        Deterministic and row by row, bit for bit, on the device of the parameters.
        """
        height, width = self.size
        n, device = len(p["skin"]), p["skin"].device
        out = torch.empty((n, height, width, 3), dtype=torch.uint8, device=device)
        samples = 2 if min(self.size) < _SMALL else 1
        rows = max(1, _BLOCK * 64**2 // max(64**2, height * width * samples**2))

        def block(start: int) -> None:
            with torch.no_grad():
                part = {name: x[start : start + rows] for name, x in p.items()}
                view = scene(self._model, part, width / height)
                out[start : start + rows] = photograph(draw(view, height, width, samples, self.renderer), part)

        _side_by_side(block, range(0, n, rows), torch.get_num_threads() if device.type == "cpu" else 1)
        return _luma(out) if self.grey else out

    def __getstate__(self) -> dict[str, Any]:
        if self.renderer == "pyrender":
            raise InputError(
                "pyrender has a process of its own, so it cannot be spread over others; use renderer='torch'"
            )
        return self.__dict__

    def public_inputs(self) -> dict[str, Any]:
        """What the samples are made from: the settings, and the model's file with its SHA-256."""
        digest = None if self.model is None else hashlib.sha256(self.model.read_bytes()).hexdigest()
        return {
            "simulator": "faces",
            "size": list(self.size),
            "renderer": self.renderer,
            "grey": self.grey,
            "model": None if self.model is None else {"file": self.model.name, "sha256": digest},
        }

    @cached_property
    def _model(self) -> Model:
        return head() if self.model is None else load(self.model)


def _luma(images: Tensor) -> Tensor:
    """Colours (n, h, w, 3) -> their brightness (n, h, w), uint8, by ITU-R BT.601 in whole numbers."""
    red, green, blue = images.int().unbind(3)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)


def _side_by_side(work: Callable[[int], None], items: Sequence[int], threads: int) -> None:
    """Work through items on several threads, each of which leaves torch's own threads alone: blocks are small."""
    if threads == 1 or len(items) < 2:
        for item in items:
            work(item)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # of threads to come; a thread that is there has its own number


def draw(scene: Scene, height: int, width: int, samples: int = 1, renderer: Renderer = "torch") -> Tensor:
    """Draw a scene with either renderer: uint8 (n, height, width, 3) on its device.

    ``samples`` squared lie in each pixel, and are averaged; pyrender always takes four.
    """
    if renderer == "pyrender":
        return reference.draw(scene, height, width)
    return raster.draw(scene, height, width, samples)
