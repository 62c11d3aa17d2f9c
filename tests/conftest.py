import os

import pytest
import torch
from support import Oscillator


def pytest_configure(config):
    """Test processes side by side share the cores; each would take all of them for itself."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


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
