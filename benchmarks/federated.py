"""Federated votes: each row of the table is a resumable command, and `table` assembles them.

    python benchmarks/federated.py row --data DIR --trust distributed [--epsilon 1] [--rows 60000] [--clients 10]
    python benchmarks/federated.py traffic --data CSV --trust distributed [--epsilon 1] [--clients 10]
    python benchmarks/federated.py table

DIR holds MNIST's four IDX files; a public random draw of the training rows is dealt out to the clients. They answer in
this process, the very bytes that they would send; time on a network is not measured. `--trust none` is simpe on all
the rows, in one place. A row trains the small classifier of `simpe evaluate` on the release, tests it once on the
10,000 test images, and writes benchmarks/results/federated/NAME.json. The bytes of a client and step stand beside those
of the classifier's weights, which federated training would send each way.

`traffic` takes the flows of benchmarks/network.py, final split: each client has all flows of some of the 31 devices,
and none of the others'. It measures as that benchmark does.
"""

import argparse
import datetime
import json
import subprocess
import tempfile
import time
from pathlib import Path

import network
import numpy as np
import torch

from simpe import Budget, PrivateData, evolve, runs
from simpe.config import make_config
from simpe.data import read
from simpe.federated import commands
from simpe.federated.member import Member, Room
from simpe.federated.wire import Message
from simpe.metrics.classify import STEPS, SmallCNN, train_and_test
from simpe.release import named_labels
from simpe.rows import Arrays
from simpe.simulators.digits import Digits
from simpe.simulators.network import tables
from simpe.simulators.network.evaluation import compare, utility
from simpe.simulators.network.schema import COLUMNS
from simpe.simulators.network.traces import write_tables

RESULTS = Path(__file__).parent / "results" / "federated"
DELTA = 1e-5
CLIENTS = 10


class Counted:
    """A room whose messages are counted: the bytes of each, by kind, down to a client and up from it."""

    def __init__(self, room):
        self.room, self.bytes = room, {}

    def members(self, least):
        return self.room.members(least)

    def ask(self, messages):
        answers = self.room.ask(messages)
        kind = Message.unpack(next(iter(messages.values()))).kind
        for way, data in (("down", messages), ("up", answers)):
            self.bytes.setdefault(kind, {"down": [], "up": []})[way].append(max(map(len, data.values())))
        return answers


def row(arguments):
    name = f"{arguments.trust}-{arguments.unit}-eps{arguments.epsilon:g}-rows{arguments.rows}-seed{arguments.seed}"
    name += f"-clients{arguments.clients}" if arguments.clients != CLIENTS else ""
    path = RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there already")
        return
    whole, test = read(arguments.data), read(arguments.data, split="test")
    dealt = np.random.default_rng(arguments.seed).permutation(len(whole.samples))[: arguments.rows]
    begun = time.perf_counter()
    found = {}
    if arguments.trust == "none":
        private = PrivateData(
            whole.samples[dealt],
            whole.labels[dealt],
            budget=Budget(arguments.epsilon, DELTA),
            classes=list("0123456789"),
        )
        release = evolve(Digits(), None, private, samples=arguments.samples, seed=arguments.seed)
    else:
        each = -(-arguments.rows // arguments.clients)
        with tempfile.TemporaryDirectory() as folder:
            config = make_config(
                simulator="digits", out=Path(folder) / "run", epsilon=arguments.epsilon, delta=DELTA,
                samples=arguments.samples, seed=arguments.seed, classes="0123456789",
                federation={
                    "trust": arguments.trust, "unit": arguments.unit, "clients": arguments.clients, "rows": each,
                    **({"dropouts": 1, "colluders": 1} if arguments.trust == "distributed" else {}),
                },
            )  # fmt: skip
            parts = np.array_split(dealt, arguments.clients)
            clients = [Member(config, [Arrays(whole.samples[p], whole.labels[p], None)]) for p in parts]
            room = Counted(Room(clients))
            release = commands.start(config, room)
        votes = {way: max(room.bytes["vote"][way]) for way in ("down", "up")}
        other = {way: sum(max(room.bytes.get(k, {way: [0]})[way]) for k in ("keys", "seal", "unmask")) for way in votes}
        weights = 4 * sum(p.numel() for p in SmallCNN(1, 28, 28, 10, torch.Generator()).parameters())
        found = {"bytes_a_client_and_step": {"votes": votes, "masks": other, "small_cnn_each_way": weights}}
        found |= {"parties": release.certificate["parties"]}
    made = time.perf_counter()
    labels = named_labels(release.labels.numpy(), release.classes)
    scores = train_and_test(
        release.samples.numpy(), labels, test.samples, test.labels, arguments.seed, steps=arguments.training
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "trust": arguments.trust, "unit": arguments.unit, "epsilon": arguments.epsilon, "delta": DELTA,
        "rows": arguments.rows, "clients": arguments.clients, "samples": arguments.samples, "seed": arguments.seed,
        "accuracy": scores.accuracy, "training_steps": arguments.training,
        "survivors": [len(release.history[f"votes_{t + 1}"]) for t in range(len(release.history["noise"]))],
        "noise": release.history["noise"].tolist(), "candidates": release.history["candidates"].tolist(),
        "seconds": {"run": round(made - begun, 1), "evaluation": round(time.perf_counter() - made, 1)},
        **found, "commit": commit.stdout.strip(), "date": datetime.date.today().isoformat(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(name, scores.accuracy, result["seconds"], flush=True)


def traffic(arguments):
    name = f"traffic-{arguments.trust}-eps{arguments.epsilon:g}-clients{arguments.clients}-seed{arguments.seed}"
    path = RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there already")
        return
    private, test = network.parts(arguments.data, "final")
    with tempfile.TemporaryDirectory() as folder:
        files, config = deal(private, test, Path(folder), arguments)
        begun = time.perf_counter()
        found = {}
        if arguments.trust == "none":
            config = config.model_copy(update={"federation": None, "private": tuple(map(str, files))})
            release = runs.start(config)
        else:
            room = Counted(Room([commands.join(config, [str(one)], ledger=one.with_suffix(".jsonl")) for one in files]))
            release = commands.start(config, room)
            found = {"bytes_a_client": {kind: sums for kind, sums in room.bytes.items() if kind == "vote"}}
            found |= {"parties": release.certificate["parties"]}
        seconds = round(time.perf_counter() - begun, 1)
        flows = tables.read(config.out / "release" / "flows.parquet", "simpe")
    result = {
        "trust": arguments.trust, "epsilon": arguments.epsilon, "delta": DELTA, "clients": arguments.clients,
        "seed": arguments.seed, "metrics": measured(flows, test, arguments.seed), "seconds": seconds,
        "noise": release.history["noise"].tolist(), "candidates": release.history["candidates"].tolist(), **found,
        "date": datetime.date.today().isoformat(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(name, {t: round(result["metrics"][t]["macro_f1"], 3) for t in ("application", "label")}, seconds, flush=True)


def deal(private, test, folder, arguments):
    """Each client's flows in a file of its own, by device, and what all agree on."""
    classes = tuple(sorted({*private["label"].tolist(), *test["label"].tolist()}))
    whose = np.array([classes.index(name) % arguments.clients for name in private["label"].tolist()])
    files = []
    for client in range(arguments.clients):
        write_tables({name: private[name][whose == client] for name in (*COLUMNS, "label")}, folder)
        (folder / "flows.parquet").unlink()
        files.append((folder / "flows.csv").rename(folder / f"{client}.csv"))
    config = make_config(
        simulator="network", unit="flow", out=folder / "run", epsilon=arguments.epsilon, delta=DELTA,
        seed=arguments.seed, classes=classes, options={"labels": "label", "preset": "simpe"},
        federation={
            "trust": "central" if arguments.trust == "none" else arguments.trust, "clients": arguments.clients,
            **({"dropouts": 1, "colluders": 1} if arguments.trust == "distributed" else {}),
        },
    )  # fmt: skip
    return files, config


def measured(flows, test, seed):
    """Distances to the test flows, and forests that learn from the released ones."""
    found = {"rows": len(flows["label"]), "distances": compare(flows, test)}
    return found | {target: utility(flows, test, target, seed=seed) for target in ("application", "label")}


def table():
    """The rows as Markdown."""
    print("| flows: trust | epsilon | application F1 | device F1 | TVD2 | noise of a step | rows |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in sorted(RESULTS.glob("traffic-*.json")):
        one = json.loads(path.read_text())
        found = one["metrics"]
        figures = (found["application"]["macro_f1"], found["label"]["macro_f1"], found["distances"]["tvd2"])
        shown = " | ".join(f"{figure:.3f}" for figure in figures)
        print(f"| {one['trust']} | {one['epsilon']:g} | {shown} | {one['noise'][-1]:.1f} | {found['rows']} |")
    print()
    print("| trust | unit | epsilon | rows | accuracy | noise of a step | votes, bytes down / up | masks, down / up |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in sorted(set(RESULTS.glob("*.json")) - set(RESULTS.glob("traffic-*.json"))):
        one = json.loads(path.read_text())
        sent = one.get("bytes_a_client_and_step", {})
        ways = [f"{sent[k]['down']:,} / {sent[k]['up']:,}" if sent else "" for k in ("votes", "masks")]
        print(
            f"| {one['trust']} | {one['unit']} | {one['epsilon']:g} | {one['rows']} | {100 * one['accuracy']:.1f} "
            f"| {one['noise'][-1]:.1f} | {ways[0]} | {ways[1]} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands_ = parser.add_subparsers(dest="command", required=True)
    one = commands_.add_parser("row")
    one.add_argument("--unit", choices=("row", "client"), default="row")
    one.add_argument("--rows", type=int, default=60_000)
    one.add_argument("--samples", type=int, default=40_000)
    one.add_argument("--training", type=int, default=STEPS, help="steps of the classifier")
    flows_ = commands_.add_parser("traffic")
    for command in (one, flows_):
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--trust", choices=("none", "central", "distributed", "local"), required=True)
        command.add_argument("--epsilon", type=float, default=1.0)
        command.add_argument("--clients", type=int, default=CLIENTS)
        command.add_argument("--seed", type=int, default=0)
    commands_.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
    else:
        {"row": row, "traffic": traffic}[arguments.command](arguments)
