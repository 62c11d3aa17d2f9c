"""A simulator of your own, end to end: damped oscillations fitted privately to a folder of CSV series.

    python examples/custom_simulator.py [FOLDER_OF_CSV] [RUN_FOLDER]

Each CSV file is one private series (its last column, 256 values over 5 seconds). Without a folder the example makes
one: ringing of 2,000 bells whose pitch and damping cluster around two kinds. Nothing in the simulator knows that.
"""

import sys
import tempfile
from math import pi
from pathlib import Path

import numpy as np
import torch

import simpe
from simpe import Continuous, ParameterSpace
from simpe.data import read

TIMES = torch.linspace(0, 5, 256)


class Oscillator:
    """What can ring: any amplitude, frequency, damping and phase."""

    space = ParameterSpace(
        amplitude=Continuous(0.1, 10, log=True),
        frequency=Continuous(0.1, 20, log=True),  # radians per second
        damping=Continuous(0, 2),
        phase=Continuous(0, 2 * pi, wraps=True),
    )

    def render(self, p: dict[str, torch.Tensor]) -> torch.Tensor:
        """Parameters of n rows -> series (n, 256)."""
        t = TIMES.to(p["phase"].device)
        wave = torch.sin(p["frequency"][:, None] * t + p["phase"][:, None])
        return p["amplitude"][:, None] * torch.exp(-p["damping"][:, None] * t) * wave


def make_private_folder(folder: Path, n: int = 2000) -> None:
    """Two kinds of bells, as CSV files with a header."""
    rng = np.random.default_rng(1)
    kind = rng.random(n) < 0.3
    amplitude = np.where(kind, 3.0, 1.5) * rng.lognormal(0, 0.1, n)
    frequency = np.where(kind, 3.0, 8.0) * rng.lognormal(0, 0.05, n)
    damping = np.where(kind, 0.2, 0.8) * rng.lognormal(0, 0.1, n)
    t = TIMES.numpy()[None]
    phase = rng.normal(0, 0.2, n)[:, None]
    series = amplitude[:, None] * np.exp(-damping[:, None] * t) * np.sin(frequency[:, None] * t + phase)
    for i, values in enumerate(series):
        (folder / f"{i:05d}.csv").write_text("value\n" + "\n".join(f"{v:.6g}" for v in values) + "\n")


def main(source: Path, out: Path) -> None:
    """Fit, save, and say what was found."""
    private = simpe.PrivateData(read(source).samples, budget=simpe.Budget(epsilon=1, delta=1e-6))
    # Few parameters and clear clusters: search in more, faster narrowing steps than the default.
    strategy = simpe.Strategy(decay=0.5, threshold=2)
    release = simpe.evolve(Oscillator(), None, private, samples=1000, steps=6, strategy=strategy, seed=0)
    release.save(out)
    print(release.certificate["statement"])
    for name, values in release.params.items():
        low, middle, high = np.quantile(values.numpy(), [0.1, 0.5, 0.9])
        print(f"{name:>10}: median {middle:.2f}, 80 % between {low:.2f} and {high:.2f}")
    print(f"look at {out / 'release' / 'grid.png'}")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    out = arguments[1] if len(arguments) > 1 else Path(tempfile.mkdtemp()) / "oscillations"
    if arguments:
        main(arguments[0], out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_private_folder(Path(folder))
            main(Path(folder), out)
