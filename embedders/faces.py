"""Embedding of photographs of faces: what a network that knows photographs sees, beside brightness and edges.

The features of EfficientNet say how like a photograph an image is. Alone they let colours and the place of the face
drift, and forget who is on it, which blurred pixels and gradients hold: so these weigh more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simpe.embedders.efficientnet import EfficientNet
from simpe.embedders.images import Photographs
from simpe.fingerprint import describe

_SPREAD = 60.0  # about how far the network's features of two faces lie apart


@dataclass(frozen=True)
class FaceEmbedding:
    """Photographs of faces -> EfficientNet's features beside :class:`Photographs`; the default embedder of faces.

    >>> FaceEmbedding()(torch.zeros(5, 32, 32, 3, dtype=torch.uint8)).shape
    torch.Size([5, 2260])

    ``weight``: about how far two faces lie apart by the network's features; by pixels it is 0.9, and by gradients 0.6.
    ``side``: pixels along each side of what the network reads: for faces half as many again as the usual 32, which is
    several times as fast as what it was trained at. ``size``: compare at this many pixels, as in :class:`Photographs`;
    the network always sees the whole image.

    Raises ImportError, naming the extra, where the network is not installed.
    """

    weight: float = 0.5
    side: int = 48
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _ = self._network  # what is missing is found before a run

    def at_size(self, size: int | tuple[int, int]) -> FaceEmbedding:
        """The same embedder, comparing at another size: that of private images smaller than the samples."""
        return replace(self, size=size)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, h, w) or (n, h, w, 3): float32 (n, d), on their device, each row for itself.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        seen = self._network(images) * (self.weight / _SPREAD)
        return torch.cat([seen, Photographs(self.size)(images)], dim=1)

    def public_inputs(self) -> dict[str, Any]:
        """The settings, and the network with its SHA-256."""
        return {
            "embedder": "faces",
            "weight": self.weight,
            "size": self.size,
            "pixels": describe(Photographs(self.size))["settings"],
            "network": self._network.public_inputs(),
        }

    @cached_property
    def _network(self) -> EfficientNet:
        return EfficientNet(self.side)
