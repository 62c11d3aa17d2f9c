"""What a step costs, and how that grows: slopes of log time on log size, of rows, candidates, dimensions and steps.

python benchmarks/cost.py            # a few minutes of one core
python benchmarks/cost.py rows steps --repeats 5

Each is varied alone, over a factor of 8. A step is all of it: variation, rendering, embedding of candidates, votes,
noise, ledger, selection. Time is the processor's, on one thread, so that other work on the machine says little in it.
Rows are made up and nothing is private here.
"""

import argparse
import time
from itertools import pairwise

import numpy as np
import torch

from simpe import Budget, Continuous, ParameterSpace, PrivateData, Strategy, evolve
from simpe.stages import flatten

BASE = {"rows": 16_000, "candidates": 8_000, "dimensions": 64, "steps": 2}
CHILDREN = 3  # and the parent: so every step has as many candidates, the first too


class Cloud:
    """Points on a bent surface: 16 parameters through a fixed projection."""

    space = ParameterSpace(x=Continuous(-1, 1, size=16))

    def __init__(self, dimensions):
        self.projection = torch.randn(16, dimensions, generator=torch.Generator().manual_seed(0))

    def render(self, p):
        return torch.cos(p["x"] @ self.projection)


def seconds(rows, candidates, dimensions, steps):
    """Of each step of a run but the first, which embeds the rows, and of all of them together."""
    simulator = Cloud(dimensions)
    x = simulator.render(simulator.space.sample(rows, torch.Generator().manual_seed(1))).numpy()
    places = candidates // (1 + CHILDREN)
    strategy = Strategy(places=places, start=1 + CHILDREN, children=CHILDREN, decay=1.0)  # all steps alike
    stamps = []

    def watch(info, of):
        assert len(info.candidates) == candidates, (len(info.candidates), candidates)
        stamps.append(time.process_time())

    private = PrivateData(x, budget=Budget(1.0, 1e-6))
    evolve(simulator, flatten, private, samples=candidates, steps=steps + 1, strategy=strategy, watch=watch)
    return [b - a for a, b in pairwise(stamps)], stamps[-1] - stamps[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*BASE, []], help="all of them, if none is named")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds(1_000, 400, 64, 2)  # what is made once
    for name in options.what or BASE:
        sizes, times = [BASE[name] * 2**i for i in range(4)], []
        for size in sizes:
            found = [seconds(**(BASE | {name: size})) for _ in range(options.repeats)]
            whole = [total for _, total in found]
            each = [step for steps, _ in found for step in steps]
            times.append(min(whole) if name == "steps" else min(each))
        slope = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        doubled = ", ".join(f"{np.log2(b / a):.2f}" for a, b in pairwise(times))
        what = "all steps" if name == "steps" else "a step"
        print(f"{name} {sizes[0]:,} to {sizes[-1]:,}: slope {slope:.2f} (by doubling: {doubled}); "
              f"{what}: {times[0]:.3f} to {times[-1]:.3f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
