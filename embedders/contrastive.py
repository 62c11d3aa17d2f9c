"""Embedding by a small network that has learned to find a sample's variation among those of other samples.

It is trained on the simulator's own output alone, so it is public: SimCLR (Chen et al., ICML 2020) with a simulator's
Variation in place of crops and colours. What a light variation changes it learns to overlook, and what tells one sample
from another of the same kind it learns to see: what private rows should go by when they vote. It forgets the rest, such
as how thick a pen is, so it stands beside pixels and gradients, by :class:`Beside`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from simpe.embedders.inverse import Inverse, draws, forward, initial, rendered, rounded, to_channels_first
from simpe.fingerprint import describe
from simpe.population import public_generator
from simpe.protocols import Embedder, Simulator
from simpe.space import Categorical

_BATCH = 128
_RATE = 2e-3  # Adam's largest step
_SHARPNESS = 10.0  # what the cosine of two samples is multiplied by
_FIXED = 2**16  # features are squared and added as whole multiples of 1 / _FIXED, so that the sum is exact
_LARGEST = 2**10  # features are cut there, far beyond what a network gives, so that no sum overflows


class Contrastive(Inverse):
    """Images -> vectors of length 1 by a network that was trained to tell a simulator's samples apart.

    >>> learned = Contrastive.fit(Digits())
    >>> learned.save("contrastive.npz")
    >>> embedder = Beside((PixelsAndGradients(), Contrastive.load("contrastive.npz")), (1.0, 0.6))

    The network, its exactness and its files are those of :class:`simpe.embedders.inverse.Inverse`.
    """

    name = "contrastive"

    @classmethod
    def fit(
        cls,
        simulator: Simulator,
        *,
        n: int = 60_000,
        steps: int = 2000,
        features: int = 128,
        seed: int = 0,
        strength: float = 0.3,
    ) -> Contrastive:
        """Train on ``n`` random samples of a simulator of uint8 images and a variation of each.

        In each of ``steps`` batches of 128 pairs, every sample looks for its own variation, and every variation for its
        sample. A variation is of ``strength``, and keeps what is categorical: a face stays a face.
        Reproducible from the seed, on one machine with one number of threads.

        Raises TypeError or ValueError where the samples are no uint8 images.
        """
        p, label, images = draws(simulator, n, seed)
        own = getattr(simulator, "variation", None) or simulator.space.perturb
        moved = own(p, strength, public_generator(seed, "contrastive", "variation"))
        kept = {name: p[name] for name, parameter in simulator.space.items() if isinstance(parameter, Categorical)}
        varied = rendered(simulator, {**moved, **kept}, label)
        shape = tuple(images.shape[1:])
        x, y = to_channels_first(images, shape), to_channels_first(varied, shape)
        generator = public_generator(seed, "contrastive", "train")
        network = initial(tuple(x.shape[1:]), features, generator)
        optimizer = torch.optim.Adam([tensor for layer in network for tensor in layer[:2]], lr=_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        same = torch.arange(_BATCH)
        for _ in range(steps):
            batch = torch.randint(n, (_BATCH,), generator=generator)
            a, b = (normalize(forward(network, side[batch].float() / 255), dim=1) for side in (x, y))
            alike = _SHARPNESS * a @ b.T
            loss = cross_entropy(alike, same) + cross_entropy(alike.T, same)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        origin = {"trained_on": describe(simulator), "n": n, "steps": steps, "seed": seed, "strength": strength}
        with torch.no_grad():
            return cls(tuple(rounded(network, x[:1024].float())), shape, origin)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images (n, *shape): float32 (n, features) of length 1, each row for itself, bit for bit.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        x = super().__call__(images).double().clamp(-_LARGEST, _LARGEST)
        whole = (x * _FIXED).round().long()
        length = whole.square().sum(1, keepdim=True).double().sqrt() / _FIXED
        return (x / length.clamp(min=1 / _FIXED)).float()


@dataclass(frozen=True)
class Beside:
    """The vectors of several embedders, one beside the other, each times its weight.

    Raises ValueError where there are not as many weights as embedders.
    """

    parts: tuple[Embedder, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.weights):
            raise ValueError(f"{len(self.parts)} embedders need as many weights, got {len(self.weights)}")

    def __call__(self, samples: Tensor) -> Tensor:
        """Embed samples (n, ...): float32 (n, the sum of the parts' widths)."""
        each = zip(self.parts, self.weights, strict=True)
        return torch.cat([embed(samples).flatten(1).float() * weight for embed, weight in each], dim=1)

    def public_inputs(self) -> dict[str, Any]:
        """What each part says of itself, and the weights."""
        return {"parts": [describe(part) for part in self.parts], "weights": list(self.weights)}
