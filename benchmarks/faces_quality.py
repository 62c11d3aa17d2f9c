"""Faces on real photographs: each row of the table is a resumable command, and `table` assembles them.

    python benchmarks/faces_quality.py row --data utkface.npz [--kind simpe] [--epsilon 1] [--seed 0] [--rows 10000]
    python benchmarks/faces_quality.py table

The file holds `images` uint8 (12000, 32, 32, 3) and `gender`, 0 or 1: aligned and cropped faces of UTKFace (Zhang, Song
and Qi, CVPR 2017). A fixed seed sets 2,000 apart as test rows; the other 10,000 are private. A row makes a run folder
under runs/benchmark/ (continued when it was stopped), trains the small network of `simpe evaluate` on the release,
tests it once on the test rows, and writes benchmarks/results/faces_quality/NAME.json with its settings, date and
commit. A row that has its JSON is not made again.

Kinds: simpe (the defaults), random (the faces simulator's prior, no private data), avatars (cartoon heads in place of
ours, everything else the same), random-avatars (their prior), real (the private rows themselves).

`--split development` leaves the test rows alone: the last 2,000 of the private rows stand for them. Settings were
chosen so. `--samples`, `--strategy` and `--embedder` change a setting; name such a row with `--tag`, and the table
leaves it out.
"""

import argparse
import datetime
import json
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from simpe import Strategy, metrics, runs, store
from simpe.config import make_config
from simpe.embedders.efficientnet import EfficientNet
from simpe.plugins import make
from simpe.population import Population, public_generator
from simpe.release import read_samples
from simpe.rendering import render

RESULTS = Path(__file__).parent / "results" / "faces_quality"
WORK = Path("runs/benchmark/faces")
KINDS = ("random", "simpe", "random-avatars", "avatars", "real")
SPLIT_SEED, TEST = 20261122, 2_000
DELTA = 1e-5
STEPS = 500  # of training the classifier
SIDE = 64  # pixels that EfficientNet reads: the photographs have 32


def parts(data: Path, split: str, rows: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the private rows, and of the test rows."""
    with np.load(data) as arrays:
        images, gender = arrays["images"], arrays["gender"].astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    private, test = order[:-TEST], order[-TEST:]
    if split == "development":
        private, test = private[:-TEST], private[-TEST:]
    private = private[:rows]
    return (images[private], gender[private]), (images[test], gender[test])


def make_release(arguments: argparse.Namespace, name: str, private: tuple[np.ndarray, np.ndarray]):
    """Images, labels and settings of a row."""
    if arguments.kind == "real":
        return *private, {}
    simulator = "avatars" if arguments.kind.endswith("avatars") else "faces"
    options = {"frame": "face"} if simulator == "avatars" else {}  # cropped as the photographs are
    if arguments.kind.startswith("random"):
        drawn = make(simulator, "simpe.simulators", {"size": private[0].shape[1]} | options)
        p = drawn.space.sample(arguments.samples, public_generator(arguments.seed, "random parameters"))
        labels = torch.arange(arguments.samples) % 2
        images = render(drawn, Population(p, labels, torch.full_like(labels, -1)))
        return images.numpy(), labels.numpy(), {}
    out = WORK / name
    if (out / "private").exists() and not store.finished(out):
        runs.resume(out)
    elif not (out / "private").exists():
        path = WORK / f"{arguments.split}-{len(private[0])}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, images=private[0], gender=private[1])
        faces = make("faces", "simpe.simulators")
        strategy = Strategy(**json.loads(arguments.strategy)) if arguments.strategy else faces.strategy
        embedder = arguments.embedder or "faces"
        config = make_config(
            simulator=simulator, embedder=embedder, private=str(path), out=out, label="gender", classes=("0", "1"),
            epsilon=arguments.epsilon, delta=DELTA, samples=arguments.samples, seed=arguments.seed, strategy=strategy,
            size=private[0].shape[1], options=options,
        )  # fmt: skip
        runs.start(config)
    certificate = json.loads((out / "release" / "certificate.json").read_text())
    images, labels = read_samples(out / "release" / "samples.npz")
    assert labels is not None
    settings = {key: certificate[key] for key in ("private", "epsilon", "delta", "relation", "unit", "charges")}
    public = {key: certificate["public_inputs"][key] for key in ("strategy", "embedder")}
    return images, labels, settings | public


def row(arguments: argparse.Namespace) -> None:
    budget = [f"eps{arguments.epsilon:g}"] if arguments.kind in ("simpe", "avatars") else []
    tag = [arguments.tag] if arguments.tag else []
    size = [f"rows{arguments.rows}", f"samples{arguments.samples}"]
    name = "-".join([arguments.split, arguments.kind, *budget, *size, f"seed{arguments.seed}", *tag])
    path = RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there already")
        return
    private, test = parts(arguments.data, arguments.split, arguments.rows)
    continued = (WORK / name).exists()  # then nobody has taken the time of all of it
    begun, used = time.perf_counter(), time.process_time()
    images, labels, settings = make_release(arguments, name, private)
    seconds = {}
    if not continued:
        seconds |= {"run": time.perf_counter() - begun, "run_cpu": time.process_time() - used}
    made = time.perf_counter()
    labels = labels.astype(np.int64)
    found = metrics.evaluate(images, labels, *test, embedder=EfficientNet(SIDE), seed=arguments.seed)
    found["classify"] = asdict(metrics.train_and_test(images, labels, *test, seed=arguments.seed, steps=STEPS))
    seconds["evaluation"] = time.perf_counter() - made
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "split": arguments.split, "kind": arguments.kind, "epsilon": arguments.epsilon if budget else None,
        "rows": len(private[0]), "samples": len(images), "seed": arguments.seed, "tag": arguments.tag,
        "seconds": {what: round(value, 1) for what, value in seconds.items()}, "metrics": found, "settings": settings,
        "commit": commit.stdout.strip(), "date": datetime.date.today().isoformat(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    shown = {key: round(found[key], 3) for key in ("frechet_distance", "precision", "recall")}
    print(name, shown, round(found["classify"]["accuracy"], 4), result["seconds"], flush=True)


def table(split: str) -> None:
    """Mean and spread over seeds, as Markdown."""
    found: dict[tuple, list[dict]] = {}
    for path in sorted(RESULTS.glob(f"{split}-*.json")):
        one = json.loads(path.read_text())
        if not one["tag"]:
            key = KINDS.index(one["kind"]), one["epsilon"] or 0, one["rows"], one["samples"]
            found.setdefault(key, []).append(one)
    print(
        "| what | private rows | epsilon | samples | Frechet | precision | recall | gender, % | run, s/CPU s | seeds |"
    )
    print("| --- " * 10 + "|")
    for (kind, epsilon, rows, samples), group in sorted(found.items()):
        each = [one["metrics"] for one in group]
        frechet = [one["frechet_distance"] for one in each]
        accuracy = [100 * one["classify"]["accuracy"] for one in each]
        both = [np.mean([one[name] for one in each]) for name in ("precision", "recall")]
        timed = [one["seconds"] for one in group if "run" in one["seconds"]]
        run = "/".join(f"{np.mean([one[name] for one in timed]):.0f}" for name in ("run", "run_cpu")) if timed else ""
        print(
            f"| {KINDS[kind]} | {'none' if KINDS[kind].startswith('random') else rows} | {epsilon or ''} | {samples} "
            f"| {np.mean(frechet):.0f} ± {np.std(frechet):.0f} | {both[0]:.2f} | {both[1]:.2f} "
            f"| {np.mean(accuracy):.1f} ± {np.std(accuracy):.1f} | {run} | {len(group)} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("row")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--kind", choices=KINDS, default="simpe")
    one.add_argument("--epsilon", type=float, default=1.0)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--rows", type=int, default=10_000)
    one.add_argument("--samples", type=int, default=4_000)
    one.add_argument("--strategy", help="JSON of a Strategy, in place of the simulator's")
    one.add_argument("--embedder", help="by name, in place of the simulator's")
    one.add_argument("--tag", help="added to the name of the result, which the table then leaves out")
    for command in (one, commands.add_parser("table")):
        command.add_argument("--split", choices=("development", "final"), default="final")
    arguments = parser.parse_args()
    if arguments.command == "row":
        row(arguments)
    else:
        table(arguments.split)
