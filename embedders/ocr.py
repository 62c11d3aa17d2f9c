"""Embedding of characters by a network that reads text, which `pip install "simpe[ocr]"` brings.

The network is PP-OCRv4's recogniser (Du et al., "SVTR", IJCAI 2022; github.com/PaddlePaddle/PaddleOCR), as the package
``rapidocr-onnxruntime`` contains it. Both are under the Apache License 2.0. It was trained on public and synthetic
pictures of text; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from simpe.embedders.images import require_images

_PACKAGE = "rapidocr-onnxruntime"
_FILE = "ch_PP-OCRv4_rec_infer.onnx"
_FEATURE = "transpose_51.tmp_0"  # what the last layer of the network takes: (n, width / 8, 120)
_CHANNELS = 120
_HEIGHT = 48  # of what the network reads, pixels
_STRIDE = 8  # pixels of width a step of the feature


class OCR:
    """Images -> what a text recogniser sees in them just before it decides on a character.

    >>> OCR()(torch.zeros(5, 28, 28, dtype=torch.uint8)).shape
    torch.Size([5, 720])

    An image is scaled to a height of 48 pixels, its width to a multiple of 8; every 8 pixels of width give 120 numbers,
    one place after the other: 720 for a square image. One image is embedded at a time and on one thread, so that
    nothing in a row depends on the others; ``torch.get_num_threads()`` of them run side by side. About 90 square images
    a second and core: a hundred times slower than :class:`simpe.embedders.images.PixelsAndGradients`.

    Raises ImportError, naming the extra, where the package is missing or holds another network.
    """

    def __init__(self) -> None:
        _session()  # so that what is missing is found before a run

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, h, w) or (n, h, w, 3): float32 (n, 15 w'), w' the scaled width, on their device.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        require_images(images)
        height, width = images.shape[1:3]
        wide = _STRIDE * max(1, round(_HEIGHT * width / height / _STRIDE))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            rows = list(pool.map(lambda image: _read(image, wide), images.cpu()))
        out = torch.empty((len(images), wide // _STRIDE * _CHANNELS))
        for i, row in enumerate(rows):
            out[i] = torch.from_numpy(row)
        return out.to(images.device)

    def public_inputs(self) -> dict[str, Any]:
        """The network: package, version, file, SHA-256, and the place where it is read."""
        return {
            "embedder": "ocr",
            "package": _PACKAGE,
            "version": metadata.version(_PACKAGE),
            "file": _FILE,
            "sha256": hashlib.sha256(_model().read_bytes()).hexdigest(),
            "feature": _FEATURE,
        }


def _read(image: Tensor, wide: int) -> npt.NDArray[np.float32]:
    """Embed one image (h, w) or (h, w, 3) at a width in pixels."""
    colour = image[..., None].expand(-1, -1, 3) if image.ndim == 2 else image.flip(2)  # blue first
    x = colour.permute(2, 0, 1)[None].float() / 127.5 - 1
    x = interpolate(x, size=(_HEIGHT, wide), mode="bilinear", antialias=True)
    (feature,) = _session().run([_FEATURE], {"x": x.numpy()})
    return np.asarray(feature, dtype=np.float32).ravel()


@lru_cache(maxsize=1)
def _session() -> Any:
    """The network, with its feature as one more output, each run on one thread."""
    model = _with_output(_model().read_bytes(), _FEATURE)
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(_missing()) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model() -> Path:
    package = util.find_spec(_PACKAGE.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise ImportError(_missing())
    path = Path(package.submodule_search_locations[0]) / "models" / _FILE
    if not path.is_file():
        raise ImportError(f"{_PACKAGE} {metadata.version(_PACKAGE)} has no {_FILE}: install version 1.4")
    return path


def _missing() -> str:
    return f"the OCR embedder needs {_PACKAGE}: pip install 'simpe[ocr]'"


def _with_output(model: bytes, name: str) -> bytes:
    """An ONNX model (a serialised ModelProto) of whose graph one more value is an output.

    A protocol-buffer message that is appended to another is merged into it (protobuf.dev, "Encoding"), so it is enough
    to append ``graph { output { name } }``; the field numbers are those of onnx.proto.
    """

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content  # a length below 128 is one byte

    return model + field(7, field(12, field(1, name.encode())))
