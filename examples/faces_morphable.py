"""Faces with a morphable model of your own in place of the built-in face.

    python examples/faces_morphable.py [MODEL.npz] [FACES.npz] [RUN_FOLDER]

With both files this is what the command does, too:

    simpe faces --private FACES.npz --model MODEL.npz --epsilon 1 --out RUN_FOLDER

A model is an .npz of six arrays (`make_model` says which): a mean face, and what identity and expression add to it.
ICT-FaceKit (Li et al., CVPR 2020), with fewer vertices and shapes, is such a file. Without one the example makes the
plainest face there is, a dome with two holes for the eyes, and draws 200 portraits that play the private side.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import simpe
from simpe.data import read
from simpe.simulators.faces.simulator import Faces


def make_model(path: Path, side: int = 25) -> None:
    """A face model: a vertex is mean + sum(c * scale * q), over identity and expression."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    mean = np.stack([7 * x, 9 * y, 8 * (1 - 0.5 * x**2 - 0.3 * y**2)], axis=2).reshape(-1, 3)  # x right, y up, z ahead
    cell = np.arange(side * side).reshape(side, side)
    a, b, c, d = (part.ravel() for part in (cell[:-1, :-1], cell[:-1, 1:], cell[1:, :-1], cell[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])  # anticlockwise from outside
    middle = mean[triangles].mean(1)
    eyes = np.hypot(np.abs(middle[:, 0]) - 3.2, middle[:, 1] - 1.5) < 1.1
    wider = mean * (1, 0, 0)
    longer = mean * (0, 1, 0)
    mouth = np.exp(-((mean[:, :1] / 3) ** 2) - (mean[:, 1:2] + 4.5) ** 2)
    np.savez(
        path, mean=mean, tri=triangles[~eyes],
        id_q=np.stack([wider, longer]), id_scale=np.array([0.1, 0.1]),  # coefficients near -2..2
        ex_q=np.stack([mouth * (0, 0, 1)]), ex_scale=np.array([1.5]),  # coefficients in 0..1
    )  # fmt: skip


def main(model: Path, source: Path | None, out: Path) -> None:
    """Evolve, save, and say what was drawn."""
    if source is None:
        faces, samples, strategy = Faces(32, model), 40, simpe.Strategy(places=8, start=8)
        p = faces.space.sample(200, torch.Generator().manual_seed(1))
        images = faces.render({**p, "label": torch.zeros(200, dtype=torch.int64)})
    else:
        images, samples, strategy = read(source).samples, 2000, None
        faces = Faces(images.shape[1:3], model, grey=images.ndim == 3)
    private = simpe.PrivateData(images, budget=simpe.Budget(epsilon=1, delta=1e-5))
    release = simpe.evolve(faces, None, private, samples=samples, strategy=strategy, seed=0)
    release.save(out)
    print(release.certificate["statement"])
    print(f"{release.params['identity'].shape[1]} parameters of identity; look at {out / 'release' / 'grid.png'}")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    folder = Path(tempfile.mkdtemp())
    model = arguments[0] if arguments else folder / "plain.npz"
    if not arguments:
        make_model(model)
    main(model, arguments[1] if len(arguments) > 1 else None, arguments[2] if len(arguments) > 2 else folder / "run")
