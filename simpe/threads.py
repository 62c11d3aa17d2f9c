"""Blocks of work over threads, each with a core of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Block = TypeVar("Block")
Result = TypeVar("Result")


def spread(work: Callable[[Block], Result], blocks: Sequence[Block], device: torch.device) -> list[Result]:
    """``work`` on every block, in order; on a processor, as many at a time as torch has threads.

    torch would split every operation instead: what one core has just computed is then half in another's cache, and
    short operations wait for each other. While this runs, torch keeps to one thread an operation.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or min(threads, len(blocks)) <= 1:
        return [work(block) for block in blocks]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, blocks))
    finally:
        torch.set_num_threads(threads)
