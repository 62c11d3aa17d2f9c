"""Exact discrete Gaussian noise: seconds for a million bins, beside numpy's inexact normal draw.

    python benchmarks/noise.py [--bins 1000000] [--sigmas 1 3.7306 10 100 1000 10000] [--repeats 7] [--clock wall]

"First" is a process's first draw at that sigma, with the making of the table; "again" is a later one. On a machine
that others use, `--clock cpu` counts the processor's seconds. Writes benchmarks/results/noise/bins{bins}.json.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simpe.privacy import mechanism

RESULTS = Path(__file__).parent / "results" / "noise"


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(sigma: float, bins: int, repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Interleaved: the first draw at sigma, a later one, and numpy's rounded normal."""

    def seconds(draw: Callable[[], object]) -> float:
        begun = clock()
        draw()
        return clock() - begun

    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {"first": [], "again": [], "numpy": []}
    for _ in range(repeats):
        mechanism._table.cache_clear()
        found["first"].append(seconds(lambda: mechanism.discrete_gaussian(sigma, bins)))
        found["again"].append(seconds(lambda: mechanism.discrete_gaussian(sigma, bins)))
        found["numpy"].append(seconds(lambda: np.rint(generator.normal(0, sigma, bins)).astype(np.int64)))
    return found


def main(arguments: argparse.Namespace) -> None:
    clock = CLOCKS[arguments.clock]
    measured = {f"{sigma:g}": measure(sigma, arguments.bins, arguments.repeats, clock) for sigma in arguments.sigmas}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "bins": arguments.bins, "repeats": arguments.repeats, "clock": arguments.clock, "seconds": measured,
        "date": datetime.date.today().isoformat(), "commit": commit.stdout.strip(), "cores": os.cpu_count(),
        "load": os.getloadavg(), "machine": platform.machine(), "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in ("simpe", "numpy", "mpmath")},
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"bins{arguments.bins}.json").write_text(json.dumps(result, indent=1) + "\n")
    print("| sigma | first draw, s (range) | again, s (range) | numpy normal, s (range) |")
    print("| --- | --- | --- | --- |")
    for sigma, found in measured.items():
        cells = (f"{statistics.median(v):.3f} ({min(v):.3f}-{max(v):.3f})" for v in found.values())
        print(f"| {sigma} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=1_000_000)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[1, 3.7306, 10, 100, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    main(parser.parse_args())
