import pytest
import torch
from support import Oscillator


@pytest.fixture
def oscillator():
    return Oscillator()


@pytest.fixture
def series():
    """Sixty oscillations around one frequency: stands for private rows."""
    generator = torch.Generator().manual_seed(5)
    p = Oscillator.space.sample(60, generator)
    p["frequency"] = 3 + 0.2 * torch.randn(60, generator=generator)
    return Oscillator().render(p).numpy()
