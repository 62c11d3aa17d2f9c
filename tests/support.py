"""What several tests share: a small simulator and noise for tests."""

import numpy as np
import torch

from simpe import Continuous, ParameterSpace


class Oscillator:
    """The smallest honest simulator: four parameters, 32 values."""

    space = ParameterSpace(
        amplitude=Continuous(0.1, 10, log=True),
        frequency=Continuous(0.1, 20, log=True),
        damping=Continuous(0, 2),
        phase=Continuous(0, 6.28, wraps=True),
    )

    def render(self, p):
        t = torch.linspace(0, 5, 32, device=p["phase"].device)
        wave = torch.sin(p["frequency"][:, None] * t + p["phase"][:, None])
        return p["amplitude"][:, None] * torch.exp(-p["damping"][:, None] * t) * wave


class Patches:
    """Two classes of 4 x 4 images, drawn by NumPy: a bright left or right half of some level."""

    classes = ("left", "right")
    space = ParameterSpace(level=Continuous(0, 255), edge=Continuous(0, 60))

    def render(self, p):
        level, edge = np.asarray(p["level"]), np.asarray(p["edge"])
        images = np.repeat(edge[:, None, None], 4, axis=1).repeat(4, axis=2)
        for label, columns in enumerate((slice(0, 2), slice(2, 4))):
            rows = np.flatnonzero(np.asarray(p["label"]) == label)
            images[rows, :, columns] += level[rows, None, None] * 0.75
        return images.clip(0, 255).astype(np.uint8)


def addressed_noise(sigma, n, address):
    """Test noise that depends on its address alone."""
    seed = int.from_bytes(address.encode(), "big") % 2**63
    return np.rint(np.random.default_rng(seed).normal(0, sigma, n)).astype(np.int64)


def no_noise(sigma, n, address):
    return np.zeros(n, dtype=np.int64)
