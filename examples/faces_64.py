"""Faces at 64 x 64 pixels, in two classes, privately.

    python examples/faces_64.py [FACES.npz] [RUN_FOLDER]

The file holds `images`, uint8 (n, 64, 64, 3), and `gender`, 0 or 1. With a file this is what the command does, too:

    simpe faces --private FACES.npz --label gender --epsilon 1 --out RUN_FOLDER

Without one the example makes 200 portraits by the simulator itself, in which class 1 wears dark glasses, class 0 none,
and evolves only a few: nothing but the votes tells the simulator so, and of its own accord one in twenty wears them.
"""

import sys
import tempfile
from pathlib import Path

import torch

import simpe
from simpe.data import read
from simpe.simulators.faces.simulator import Faces

SIZE = 64


def portraits(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that stand for private ones, and their classes."""
    faces = Faces(SIZE)
    label = torch.arange(n) % 2
    p = faces.space.sample(n, torch.Generator().manual_seed(1))
    choices = faces.space["glasses"].choices
    p["glasses"] = torch.where(label == 1, choices.index("sun"), choices.index("none"))
    return faces.render({**p, "label": label}), label


def main(source: Path | None, out: Path) -> None:
    """Evolve, save, and say what each class came to."""
    if source is None:
        (images, labels), samples, epsilon = portraits(), 40, 10
        strategy = simpe.Strategy(places=4, start=20)
    else:
        data = read(source, label="gender")
        images, labels, samples, epsilon, strategy = data.samples, data.labels, 2000, 1, None
    budget = simpe.Budget(epsilon=epsilon, delta=1e-5)
    private = simpe.PrivateData(images, labels, budget=budget, classes=("0", "1"))
    release = simpe.evolve(Faces(SIZE), None, private, samples=samples, strategy=strategy, seed=0)
    release.save(out)
    print(release.certificate["statement"])
    dark = release.params["glasses"] == Faces().space["glasses"].choices.index("sun")
    for label, name in enumerate(release.classes):
        print(f"class {name}: {dark[release.labels == label].double().mean():.0%} wear dark glasses")
    print(f"look at {out / 'release' / 'grid.png'}")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    out = arguments[1] if len(arguments) > 1 else Path(tempfile.mkdtemp()) / "faces"
    main(arguments[0] if arguments else None, out)
