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


def addressed_noise(sigma, n, address):
    """Test noise that depends on its address alone."""
    seed = int.from_bytes(address.encode(), "big") % 2**63
    return np.rint(np.random.default_rng(seed).normal(0, sigma, n)).astype(np.int64)


def no_noise(sigma, n, address):
    return np.zeros(n, dtype=np.int64)
