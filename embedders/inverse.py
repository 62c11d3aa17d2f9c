"""Embedding by a small network that has learned to read a simulator's parameters off its samples.

It is trained on the simulator's own output alone, so it is public. What it is asked for is what it keeps of a sample: a
network that only tells classes apart forgets style, and odd shapes then pass for good ones; this one is asked for every
parameter.

The trained network is rounded to whole numbers small enough for float32 to add them without rounding, whatever the
order (as integer inference does: Jacob et al., CVPR 2018). So an embedding is the same bit for bit in every batch, with
any number of threads, and nothing in a row depends on the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, linear, relu, unfold

from simpe.errors import InputError
from simpe.fingerprint import describe
from simpe.population import Population, public_generator
from simpe.protocols import Embedder, Simulator
from simpe.rendering import render
from simpe.space import Categorical, Continuous, Integer, Opaque, Params
from simpe.voting import nearest_within_labels

_CHANNELS = (16, 32, 64)  # of the first layers; the last number again where there are more
_SMALL = 8  # layers halve the frame until its shorter side is no more than this
_BATCH = 64
_RATE = 2e-3  # Adam's largest step
_CHOICE = 8.0  # weight of a choice in the loss, against 1 for a number
_PIXELS = 2**18  # embedded at a time, so that memory stays bounded
_TOP = 255  # activations are whole numbers from 0 to this
_EXACT = 2**24  # whole numbers up to this are exact in float32
_WEIGHT = 127  # and weights up to this stay exact where a device cuts inputs to 8 bits (bfloat16)


@dataclass(frozen=True)
class _Layer:
    """A convolution in whole numbers, each channel then scaled and shifted.

    ``weight`` float32 (out, in, k, k), whole numbers; ``scale`` and ``bias`` float32 (out,).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    stride: int
    padding: int

    def __post_init__(self) -> None:
        sums = self.weight.double().abs().sum((1, 2, 3)) * _TOP
        if not torch.equal(self.weight, self.weight.round()) or float(sums.max()) > _EXACT:
            raise ValueError("the weights are not whole numbers whose sums are exact: not a file of an Inverse")

    def __call__(self, x: Tensor) -> Tensor:
        """Activations (n, in, h, w), whole numbers of 0..255 -> (n, out, h', w')."""
        side = self.weight.shape[2:]
        # A matrix product of whole numbers is exact; a library's convolution may go through fractions (Winograd's).
        columns = unfold(x, tuple(side), padding=self.padding, stride=self.stride)
        sums = self.weight.to(x.device).flatten(1) @ columns
        out = sums * self.scale.to(x.device)[:, None] + self.bias.to(x.device)[:, None]
        shape = ((x.shape[d] + 2 * self.padding - self.weight.shape[d]) // self.stride + 1 for d in (2, 3))
        return out.reshape(len(x), len(self.weight), *shape)


class Inverse:
    """Images -> the last layer of a network that was trained to recover the parameters of a simulator.

    >>> embedder = Inverse.fit(Digits())
    >>> embedder.save("inverse.npz")
    >>> release = simpe.evolve(Digits(), Inverse.load("inverse.npz"), private, samples=60_000)

    ``shape`` is that of an image, the simulator's; private images must have it too. On the command line an object in a
    module of your own serves as embedder: ``embedder = Inverse.load(...)`` in ``mine.py``, then
    ``--embedder mine:embedder``.
    """

    def __init__(self, layers: tuple[_Layer, ...], shape: tuple[int, ...], origin: dict[str, Any]):
        self.shape = shape
        self._layers = layers
        self._origin = origin

    @classmethod
    def fit(
        cls, simulator: Simulator, *, n: int = 20_000, steps: int = 2000, features: int = 128, seed: int = 0
    ) -> Inverse:
        """Train on ``n`` random samples of a simulator of uint8 images, ``steps`` batches of 64 of them.

        Numbers are regressed, choices and the class are classified, choices within each class. ``features``: length
        of the embedding. Reproducible from the seed, on one machine with one number of threads: float32 sums while
        training are not exact. The weights' SHA-256 is in :meth:`public_inputs`.

        Raises TypeError or ValueError where the samples are no uint8 images.
        """
        p, label, images = _draws(simulator, n, seed)
        shape = tuple(images.shape[1:])
        x = _channels_first(images, shape)
        targets = _targets(simulator, p, label)
        generator = public_generator(seed, "inverse", "train")
        network = _initial(tuple(x.shape[1:]), features, generator)
        width = targets.numbers.shape[1] + sum(c.groups * c.count for c in targets.choices)
        heads = _random((width, features), features, generator), torch.zeros(width, requires_grad=True)

        weights = [tensor for layer in network for tensor in layer[:2]] + list(heads)
        optimizer = torch.optim.Adam(weights, lr=_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(n, (_BATCH,), generator=generator)
            loss = targets.loss(linear(_forward(network, x[batch].float() / _TOP), *heads), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        origin = {"trained_on": describe(simulator), "n": n, "steps": steps, "seed": seed}
        with torch.no_grad():
            return cls(tuple(_rounded(network, x[:1024].float())), shape, origin)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, *shape): float32 (n, features), on their device, each row for itself, bit for bit.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        x = _channels_first(images, self.shape)
        rows = max(1, _PIXELS // math.prod(self.shape))
        with torch.no_grad():
            return torch.cat([self._embed(x[i : i + rows].float()) for i in range(0, max(1, len(x)), rows)])

    def save(self, path: str | Path) -> None:
        """Write the network to an ``.npz`` file."""
        arrays = {f"{name}{i}": getattr(x, name).numpy() for i, x in enumerate(self._layers) for name in _ARRAYS}
        steps = [[layer.stride, layer.padding] for layer in self._layers]
        about = {"shape": list(self.shape), "layers": steps, "origin": self._origin}
        with Path(path).open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Inverse:
        """Read what :meth:`save` wrote. Nothing in the file is executed.

        Raises FileNotFoundError for no file, ValueError for a file of something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                tensor = {name: torch.from_numpy(file[name]) for name in file.files if name != "about"}
                layers = tuple(
                    _Layer(tensor[f"weight{i}"], tensor[f"scale{i}"], tensor[f"bias{i}"], stride, padding)
                    for i, (stride, padding) in enumerate(about["layers"])
                )
                return cls(layers, tuple(about["shape"]), about["origin"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a file of an Inverse: {error}") from error

    def public_inputs(self) -> dict[str, Any]:
        """The simulator that it was trained on, how, and the SHA-256 of the weights."""
        digest = hashlib.sha256()
        for layer in self._layers:
            for name in _ARRAYS:
                digest.update(getattr(layer, name).numpy().tobytes())
        return {"embedder": "inverse", "shape": list(self.shape), **self._origin, "sha256": digest.hexdigest()}

    def _embed(self, x: Tensor) -> Tensor:
        for layer in self._layers[:-1]:
            x = layer(x).round().clamp(0, _TOP)
        return self._layers[-1](x).flatten(1)


_ARRAYS = ("weight", "scale", "bias")


def retrieval(
    embedder: Embedder, simulator: Simulator, *, n: int = 1000, strength: float = 0.4, seed: int = 0
) -> float:
    """How well an embedder suits a simulator, without any data: the share of variations that find their parent.

    ``n`` random samples are varied at some strength; each variation looks for the nearest sample of its class, as
    private rows do when they vote. 1 is best; chance is the number of classes over n.
    """
    p, label, images = _draws(simulator, n, seed)
    own = getattr(simulator, "variation", None) or simulator.space.perturb
    varied = _render(simulator, own(p, strength, public_generator(seed, "inverse", "variation")), label)
    found = nearest_within_labels(embedder(varied), label, embedder(images), label).squeeze(1)
    return float((found == torch.arange(n)).double().mean())


def _draws(simulator: Simulator, n: int, seed: int) -> tuple[Params, Tensor, Tensor]:
    """Random parameters, labels (n,) and samples."""
    generator = public_generator(seed, "inverse", "random")
    own: Callable[[int, torch.Generator], Params] = getattr(simulator, "random", None) or simulator.space.sample
    p = own(n, generator)
    label = torch.randint(_classes(simulator), (n,), generator=generator)
    return p, label, _render(simulator, p, label)


def _classes(simulator: Simulator) -> int:
    return max(1, len(getattr(simulator, "classes", None) or ()))


def _render(simulator: Simulator, p: Params, label: Tensor) -> Tensor:
    return render(simulator, Population(p, label, torch.full_like(label, -1)))


def _channels_first(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """uint8 (n, h, w) or (n, h, w, 3), of this shape -> (n, channels, h, w)."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}: scale and convert them")
    if tuple(images.shape[1:]) != shape or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
        raise ValueError(f"images must be (n, h, w) or (n, h, w, 3) of shape {shape}, got {tuple(images.shape)}")
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


# --- what is asked for


@dataclass(frozen=True)
class _Choice:
    """One of ``count`` values (n,), asked for apart in each of several groups: ``group`` (n,)."""

    value: Tensor
    count: int
    group: Tensor
    groups: int


@dataclass(frozen=True)
class _Targets:
    """Numbers float32 (n, m), of variance 1 over the prior, and choices."""

    numbers: Tensor
    choices: tuple[_Choice, ...]

    def loss(self, answers: Tensor, rows: Tensor) -> Tensor:
        """Squared errors and cross-entropies of answers (b, width) for some rows (b,); guessing costs 1 for each."""
        end = self.numbers.shape[1]
        loss = (answers[:, :end] - self.numbers[rows]).square().mean(0).sum()
        for choice in self.choices:
            start, end = end, end + choice.groups * choice.count
            scores = answers[:, start:end].reshape(len(rows), choice.groups, choice.count)
            scores = scores[torch.arange(len(rows)), choice.group[rows]]
            loss = loss + _CHOICE / math.log(choice.count) * cross_entropy(scores, choice.value[rows])
        return loss


def _targets(simulator: Simulator, p: Params, label: Tensor) -> _Targets:
    classes = _classes(simulator)
    numbers, choices = [torch.zeros(len(label), 0)], []
    if classes > 1:
        choices.append(_Choice(label, classes, torch.zeros_like(label), 1))
    for name, parameter in simulator.space.items():
        if isinstance(parameter, Opaque):
            raise InputError(f"{name} is no number or choice that a network could recover; use another embedder")
        if isinstance(parameter, Categorical):
            if len(parameter) > 1:
                choices.append(_Choice(p[name], len(parameter), label, classes))
            continue
        low, high, x = float(parameter.low), float(parameter.high), p[name].double().reshape(len(label), -1)
        if isinstance(parameter, Integer):
            low, high = low - 0.5, high + 0.5
        elif parameter.log:
            low, high, x = math.log(low), math.log(high), x.log()
        share = (x - low) / (high - low)
        if isinstance(parameter, Continuous) and parameter.wraps:
            turn = 2 * math.pi * share
            numbers += [turn.cos().float() * math.sqrt(2), turn.sin().float() * math.sqrt(2)]
        else:
            numbers.append(((share - 0.5) * math.sqrt(12)).float())
    return _Targets(torch.cat(numbers, dim=1), tuple(choices))


# --- the network, in fractions while it is trained

_Network = list[tuple[Tensor, Tensor, int, int]]
"""Weight (out, in, k, k), bias (out,), stride and padding of each layer."""


def _initial(shape: tuple[int, ...], features: int, generator: torch.Generator) -> _Network:
    """Layers that halve the frame until it is small, one that does not, and one that takes it whole."""
    channels, height, width = shape
    network: _Network = []
    while not network or network[-1][2] == 2:
        stride = 2 if min(height, width) > _SMALL else 1
        out, side = _CHANNELS[min(len(network), len(_CHANNELS) - 1)], 3 if network else 5
        weight = _random((out, channels, side, side), channels * side**2 / 2, generator)
        network.append((weight, torch.zeros(out, requires_grad=True), stride, side // 2))
        channels, height, width = out, (height - 1) // stride + 1, (width - 1) // stride + 1
    weight = _random((features, channels, height, width), channels * height * width, generator)
    return [*network, (weight, torch.zeros(features, requires_grad=True), 1, 0)]


def _random(shape: tuple[int, ...], inputs: float, generator: torch.Generator) -> Tensor:
    """Normal weights that keep the variance of so many inputs (He et al., ICCV 2015: half of them, after a ReLU)."""
    return (torch.randn(shape, generator=generator) / math.sqrt(inputs)).requires_grad_()


def _forward(network: _Network, x: Tensor) -> Tensor:
    for i, (weight, bias, stride, padding) in enumerate(network):
        x = conv2d(relu(x) if i else x, weight, bias, stride, padding)
    return x.flatten(1)


def _rounded(network: _Network, x: Tensor) -> Iterator[_Layer]:
    """The network in whole numbers; ``x``: images (n, channels, h, w) that show how large activations become."""
    unit = 1 / _TOP  # what 1 stands for in the activations that go into a layer
    for i, (weight, bias, stride, padding) in enumerate(network):
        size = weight.abs().flatten(1)
        # Rounding adds at most a half to each weight.
        room = _EXACT / _TOP - size.shape[1] / 2
        step = torch.maximum(size.amax(1) / _WEIGHT, size.sum(1) / room).clamp(min=1e-12)
        whole = (weight / step[:, None, None, None]).round()
        layer = _Layer(whole, step * unit, bias.detach().clone(), stride, padding)
        if i < len(network) - 1:
            largest = float(layer(x).max()) / _TOP
            layer = _Layer(whole, step * (unit / largest), bias / largest, stride, padding)
            x, unit = layer(x).round().clamp(0, _TOP), largest
        yield layer
