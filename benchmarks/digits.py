"""Digits on MNIST: each row of the table is a resumable command, and `table` assembles them.

    python benchmarks/digits.py row --data DIR [--epsilon 1] [--seed 0] [--kind simpe] [--rows 60000]
    python benchmarks/digits.py table

DIR holds MNIST's four IDX files. A row makes a run folder under runs/benchmark/ (continued when it was stopped), trains
the small classifier of `simpe evaluate` on the release, and a wide one (twice the channels and dropout), tests each
once on the 10,000 test images, and writes benchmarks/results/digits/NAME.json with its settings, date and commit. A row
that has its JSON is not made again.

Kinds: simpe (the defaults), random (the simulator's prior, no private data: `--epsilon` is ignored), ceiling (the
defaults without noise: NOT private, what the simulator could do; with --epsilon 1000, as many places live as the rows
can fill), adaptive (a run that may end its stage early), mixture (of typefaces and of pen strokes, in place of one
simulator that has both), diffusion (a small diffusion model in place of the simulator, whose draws it was trained on
for three minutes), then-diffusion (two steps of the simulator, then two of that model; both are slow: take fewer
`--rows` and `--samples`), draw-text (Sim-PE's simulator and schedule, with our embedder; 60,000 samples, as published),
pixels (Private Evolution without a simulator: random images whose pixels vary), dp-sgd (an autoencoder trained on the
private rows with DP-SGD; needs opacus), real (the private rows themselves: NOT private).
"""

import argparse
import datetime
import json
import resource
import runpy
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rivals.dpsgd import synthesise

from simpe import Budget, Strategy, metrics, runs, schedule
from simpe.config import StageConfig, make_config
from simpe.data import read
from simpe.metrics import train_and_test
from simpe.population import Population, public_generator
from simpe.release import read_samples
from simpe.rendering import render
from simpe.simulators.digits import Digits
from simpe.simulators.drawtext import DrawText

RESULTS = Path(__file__).parent / "results" / "digits"
EXAMPLE = Path(__file__).parents[1] / "examples" / "digits_then_diffusion.py"
SAMPLES = 40_000
DELTA = 1e-5
MINUTES = 3  # of training a diffusion model
KINDS = (
    "simpe", "adaptive", "mixture", "diffusion", "then-diffusion", "pixels", "random", "ceiling", "draw-text", "dp-sgd",
    "real",
)  # fmt: skip
NOISELESS = ("random", "ceiling", "real")


def no_noise(sigma: float, n: int, address: str) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def subset(data: Path, rows: int, seed: int) -> str:
    """The training images, or the path of a file with a public random draw of them."""
    if rows == 60_000:
        return str(data)
    path = Path("runs/benchmark") / f"mnist-{rows}-{seed}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = read(data)
        chosen = np.random.default_rng(seed).permutation(len(whole.samples))[:rows]
        np.savez(path, images=whole.samples[chosen], labels=whole.labels[chosen])
    return str(path)


def diffusion() -> dict:
    """Options of a source that has seen draws of the simulator alone; trained where it is not there yet."""
    folder = Path("runs/benchmark/diffusion")
    if not folder.is_dir():
        runpy.run_path(str(EXAMPLE))["train"](Digits(), folder, 60 * MINUTES)
    return {"model": str(folder), "classes": list("0123456789"), "steps": 16, "batch": 128}


def make_release(arguments: argparse.Namespace, name: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Images, labels and settings of a row."""
    if arguments.kind == "random":
        simulator = Digits()
        p = simulator.space.sample(arguments.samples, public_generator(arguments.seed, "random parameters"))
        labels = torch.arange(arguments.samples) % 10
        images = render(simulator, Population(p, labels, torch.full_like(labels, -1)))
        return images.numpy(), labels.numpy(), {}
    if arguments.kind in ("dp-sgd", "real"):
        private = read(subset(arguments.data, arguments.rows, arguments.seed))
    if arguments.kind == "real":
        return private.samples, private.labels, {}
    if arguments.kind == "dp-sgd":
        return synthesise(
            private.samples, private.labels.astype(np.int64), 10, arguments.samples, arguments.epsilon, DELTA,
            arguments.seed,
        )  # fmt: skip
    out = Path("runs/benchmark") / name
    noise = no_noise if arguments.kind == "ceiling" else None
    if (out / "private").exists():
        runs.resume(out, noise=noise)
    else:
        simulator, samples, steps, then = "digits", arguments.samples, arguments.steps, ()
        strategy = Strategy(**json.loads(arguments.strategy)) if arguments.strategy else None
        if arguments.kind == "draw-text":
            simulator, samples = "draw-text", 60_000
            one_vote = 1 / schedule(Budget(epsilon=arguments.epsilon, delta=DELTA), 4).vote_noise[0]
            strategy = replace(DrawText.strategy, threshold=one_vote)
        options = None
        if arguments.kind == "mixture":
            simulator, strategy = "mixture", strategy or Digits.strategy
            options = {"sources": [{"simulator": "digits", "shapes": shapes} for shapes in ("typefaces", "strokes")]}
        if arguments.kind == "diffusion":
            simulator, options, strategy = "diffusion", diffusion(), strategy or Strategy(start=5, children=2)
        if arguments.kind == "then-diffusion":
            gently = Strategy(children=2, strength=0.35, decay=0.6)
            steps, then = 2, (StageConfig(simulator="diffusion", options=diffusion(), steps=2, strategy=gently),)
        if arguments.kind == "pixels":
            simulator = "rivals.pixels:Pixels"
        config = make_config(
            simulator=simulator, private=subset(arguments.data, arguments.rows, arguments.seed), out=out,
            epsilon=arguments.epsilon, delta=DELTA, samples=samples, seed=arguments.seed,
            strategy=strategy, steps=steps, options=options, then=then, adaptive=arguments.kind == "adaptive",
        )  # fmt: skip
        runs.start(config, noise=noise)
    certificate = json.loads((out / "release" / "certificate.json").read_text())
    images, labels = read_samples(out / "release" / "samples.npz")
    assert labels is not None
    settings = {key: certificate[key] for key in ("private", "epsilon", "delta", "relation", "unit", "charges")}
    with np.load(out / "release" / "history.npz") as kept:
        if "sources" in kept:
            settings["source_shares"] = dict(
                zip(kept["sources"].tolist(), kept["source_shares"].T.tolist(), strict=True)
            )
    return images, labels, settings | {"strategy": certificate["public_inputs"]["strategy"]}


def row(arguments: argparse.Namespace) -> None:
    name = "-".join(
        [arguments.kind]
        + ([f"eps{arguments.epsilon:g}"] if arguments.kind not in NOISELESS else [])
        + [f"rows{arguments.rows}"]
        + ([f"samples{arguments.samples}"] if arguments.samples != SAMPLES else [])
        + [f"seed{arguments.seed}"]
        + ([arguments.tag] if arguments.tag else [])
    )
    path = RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there already")
        return
    begun = time.perf_counter()
    images, labels, settings = make_release(arguments, name)
    made, peak = time.perf_counter(), round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    test = read(arguments.data, split="test")
    found = metrics.evaluate(images, labels, test.samples, test.labels, task="classify", seed=arguments.seed)
    wide = train_and_test(images, labels, test.samples, test.labels, seed=arguments.seed, wide=True)
    found["classify_wide"] = asdict(wide)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "kind": arguments.kind, "epsilon": arguments.epsilon, "rows": arguments.rows, "samples": len(images),
        "seed": arguments.seed,
        "seconds": {"run": round(made - begun, 1), "evaluation": round(time.perf_counter() - made, 1)},
        "peak_memory_gib": peak,
        "metrics": found, "settings": settings, "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(name, found["classify"]["accuracy"], result["seconds"], flush=True)


def table() -> None:
    """Mean and spread over seeds, as Markdown."""
    found: dict[tuple, list[dict]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        one = json.loads(path.read_text())
        epsilon = one["epsilon"] if one["kind"] not in NOISELESS else None
        found.setdefault((one["kind"], one["rows"], one.get("samples", SAMPLES), epsilon), []).append(one)
    print("| what | private rows | samples | epsilon | accuracy | wide | 1-NN | Frechet | run, seconds | seeds |")
    print("| --- " * 10 + "|")
    for (kind, rows, samples, epsilon), group in sorted(found.items(), key=str):
        accuracy = [100 * one["metrics"]["classify"]["accuracy"] for one in group]
        wide = [100 * one["metrics"]["classify_wide"]["accuracy"] for one in group if "classify_wide" in one["metrics"]]
        nearest = [100 * one["metrics"]["classify"]["nearest_neighbour_accuracy"] for one in group]
        frechet = [one["metrics"]["frechet_distance"] for one in group]
        seconds = [one["seconds"]["run"] for one in group]
        print(
            f"| {kind} | {'none' if kind == 'random' else rows} | {samples} | {'' if epsilon is None else epsilon} "
            f"| {np.mean(accuracy):.1f} ± {np.std(accuracy):.1f} "
            f"| {f'{np.mean(wide):.1f} ± {np.std(wide):.1f}' if wide else ''} | {np.mean(nearest):.1f} "
            f"| {np.mean(frechet):.4f} | {np.mean(seconds):.0f} | {len(group)} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("row")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--kind", choices=KINDS, default="simpe")
    one.add_argument("--epsilon", type=float, default=1.0)
    one.add_argument("--rows", type=int, default=60_000)
    one.add_argument("--samples", type=int, default=SAMPLES)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--strategy", help="JSON of a Strategy, in place of the simulator's")
    one.add_argument("--steps", type=int)
    one.add_argument("--tag", help="added to the name of the result")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "row":
        row(arguments)
    else:
        table()
