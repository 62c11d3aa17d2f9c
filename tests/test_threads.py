"""Blocks over threads: in order, at the same time, and torch is left as it was."""

import threading

import pytest
import torch

from simpe.simulators.digits import Digits
from simpe.threads import spread
from simpe.voting import nearest

CPU = torch.device("cpu")


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_blocks_come_back_in_order_and_run_at_the_same_time():
    together = threading.Barrier(3, timeout=30)  # breaks unless three arrive

    def work(i):
        together.wait()
        return i, torch.get_num_threads()

    assert spread(work, range(9), CPU) == [(i, 1) for i in range(9)]


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_block_is_raised():
    with pytest.raises(ZeroDivisionError):
        spread(lambda i: 1 // i, range(5), CPU)


@pytest.mark.usefixtures("three_threads")
def test_votes_and_digits_do_not_depend_on_threads():
    generator = torch.Generator().manual_seed(0)
    rows, candidates = torch.randn(1500, 9, generator=generator), torch.randn(700, 9, generator=generator)
    simulator = Digits()
    p = simulator.space.sample(600, generator) | {"label": torch.arange(600) % 10}
    precision = torch.get_float32_matmul_precision()
    votes, images = nearest(rows, candidates, 2), simulator.render(p)
    assert torch.get_float32_matmul_precision() == precision
    torch.set_num_threads(1)
    assert torch.equal(nearest(rows, candidates, 2), votes)
    assert torch.equal(simulator.render(p), images)
    torch.set_num_threads(3)
