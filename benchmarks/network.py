"""Traffic of 31 devices: each row of the table is a resumable command, and `table` assembles them.

    python benchmarks/network.py row --data CSV --kind simpe [--epsilon 1] [--seed 0] [--split final] [--unit host]
    python benchmarks/network.py rows --data CSV [--split final] [--kinds aim mst] [--units flow]   # those missing
    python benchmarks/network.py table [--split final]

CSV: flows of the IoT Sentinel captures (Miettinen et al., ICDCS 2017) as nfstream writes them, with the columns
``file`` (the run) and ``label`` (the device, a declared public class). Of each device's runs, in natural order, every
fourth (3 mod 4) is the final test part, which nothing was ever tuned on, and 2 mod 4 the test part for development;
0 and 1 mod 4 are private in development, 0, 1 and 2 in the final rows. A row makes one release, measures it against the
test part and trains and tests a forest (simulators/network/evaluation.py), and writes
benchmarks/results/network/NAME.json with its settings, date and commit. A row that has its JSON is not made again.

Kinds: simpe (the simulator's own strategy), adaptive (the same in a run that may end its steps early), pe (plain
Private Evolution inside each label), random (the simulator's prior; labels by noisy counts), aim, mst and privbayes
(package dpmm), mwem (MWEM+PGM on package mbi; both in environments of their own that are made when first needed; nine
columns with public bins, see `encode`), real (the private rows as they are: NOT private, the ceiling).

Units: flow, or host, which is a run and a source address with at most 32 flows. For aim, mst and mwem, 32 flows of each
are kept by a public draw, and their noise is for one of them (benchmarks/rivals/synthesise.py).
"""

import argparse
import datetime
import json
import re
import resource
import signal
import subprocess
import time
import venv
from itertools import product
from pathlib import Path

import numpy as np
import torch

from simpe import Budget, Strategy, runs, schedule
from simpe.config import make_config
from simpe.population import public_generator
from simpe.privacy.accounting import delta_of_zcdp
from simpe.simulators.network import tables
from simpe.simulators.network.evaluation import AMOUNTS, PORT_CLASSES, amount, applications, compare, services, utility
from simpe.simulators.network.profiles import NAMES, NDPI, SERVICES, application
from simpe.simulators.network.schema import COLUMNS
from simpe.simulators.network.traces import Traces, write_tables

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "network"
WORK = Path("runs/benchmark/network")
DELTA = 1e-5
K = 32
LIMIT = 3600  # seconds of CPU time that a rival's row may take
EPSILONS = (0.5, 1.0, 2.0, 4.0)
SEEDS = (0, 1, 2)
UNITS = ("flow", "host")
KINDS = ("real", "random", "pe", "simpe", "adaptive", "aim", "mst", "mwem", "privbayes")
SETTINGS = {
    "aim": {"rounds": 48, "n_iters": 500, "max_model_size": 40, "final_iters": 1000},
    "mst": {},
    "mwem": {"rounds": 9, "iterations": 300, "megabytes": 1},
    "privbayes": {},
}
AMOUNT_COLUMNS = ("duration", "packets_out", "packets_in", "bytes_out", "bytes_in")
PROTOCOLS = np.array([6, 17, 1, 58, 2, 255])
APPLICATIONS = np.array(sorted({*map(application, NDPI), "other"}))


def natural(name):
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def parts(data, split):
    """The private and the test part: flow tables with application, label, file and owner."""
    flows = tables.read(data, "nfstream", {"file": "file"})
    place = np.empty(len(flows["start"]), dtype=int)
    for device in np.unique(flows["label"]):
        mine = flows["label"] == device
        files = sorted(set(flows["file"][mine].tolist()), key=natural)
        place[mine] = [files.index(name) % 4 for name in flows["file"][mine]]
    client = [bytes(address).hex() for address in flows["client"]]
    flows["owner"] = np.char.add(np.char.add(flows["file"], "/"), client)
    private, test = ((0, 1, 2), 3) if split == "final" else ((0, 1), 2)
    return take(flows, np.isin(place, private)), take(flows, place == test)


def take(flows, rows):
    return {name: column[rows] for name, column in flows.items()}


def make_run(arguments, name, private, classes):
    """A run folder, made or continued, and the flow table of its release."""
    out = WORK / name
    if (out / "private").exists():
        runs.resume(out)
    else:
        path = WORK / f"private-{arguments.split}.csv"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tables({column: private[column] for column in (*COLUMNS, "application", "label", "owner")}, WORK)
            (WORK / "flows.csv").rename(path)
            (WORK / "flows.parquet").unlink()
        host = {"unit": "owner", "k": K} if arguments.unit == "host" else {"unit": "flow"}
        config = make_config(
            simulator="network", private=(str(path),), out=out, epsilon=arguments.epsilon, delta=DELTA, samples=None,
            seed=arguments.seed, classes=classes, options={"labels": "label", "preset": "simpe"},
            strategy=Strategy() if arguments.kind == "pe" else None, adaptive=arguments.kind == "adaptive", **host,
        )  # fmt: skip
        runs.start(config)
    certificate = json.loads((out / "release" / "certificate.json").read_text())
    settings = {key: certificate[key] for key in ("private", "statement", "charges")}
    return tables.read(out / "release" / "flows.parquet", "simpe"), settings | certificate["public_inputs"]["strategy"]


def make_random(arguments, private, classes):
    """Random parameters; as many of each label as counts with the noise of a default run say."""
    units = arguments.unit == "host"
    noise = schedule(Budget(epsilon=arguments.epsilon, delta=DELTA), one_bin=not units).count_noise
    counts = np.array([(private["label"] == name).sum() for name in classes])
    rng = np.random.default_rng(arguments.seed)
    noisy = np.rint(rng.normal(counts, noise * (K if units else 1))).astype(int).clip(0)
    traces = Traces()
    flows = traces.flows(traces.random(int(noisy.sum()), public_generator(arguments.seed, "random parameters")))
    flows["application"] = np.array(NAMES)[flows["profile"]]
    flows["label"] = rng.permutation(np.repeat(np.array(classes), noisy))
    return {column: flows[column] for column in (*COLUMNS, "application", "label")}, {}


def edges(bins):
    """Amount -> edges of public bins: those of the metrics (14), every second of them (8), or with more between."""
    found = {}
    for name, (_, own) in AMOUNTS.items():
        middles = np.sqrt(np.array(own[:-1]) * own[1:])
        finer = np.union1d(own, middles if name == "duration" else np.rint(middles))
        found[name] = {8: np.array(own[::2]), 14: np.array(own), 32: finer}[bins]
    return found


def encode(flows, cuts, classes):
    """Nine columns of codes (n, 9) and how many codes each may have: all of it public but the codes."""
    names = [*(name for name, _ in SERVICES), *PORT_CLASSES]
    known = np.isin(flows["protocol"], PROTOCOLS[:-1])
    columns = {
        "protocol": (np.where(known, np.argmax(flows["protocol"][:, None] == PROTOCOLS, axis=1), 5), len(PROTOCOLS)),
        "service": (services(flows["protocol"], flows["server_port"]), len(names)),
    }
    for name in AMOUNT_COLUMNS:
        cut = cuts[name.partition("_")[0]]
        columns[name] = np.digitize(amount(flows, name), cut), len(cut) + 1
    columns["application"] = np.searchsorted(APPLICATIONS, applications(flows["application"])), len(APPLICATIONS)
    columns["label"] = np.searchsorted(classes, flows["label"]), len(classes)
    return np.stack([codes for codes, _ in columns.values()], axis=1), np.array([size for _, size in columns.values()])


def decode(codes, cuts, classes, seed):
    """Flows of codes: amounts drawn log-uniformly within their bin (0 in the first), ports of a class uniformly."""
    rng = np.random.default_rng(seed)
    flows = {"protocol": PROTOCOLS[codes[:, 0]]}
    listed = np.array([port for _, port in SERVICES])
    free = np.setdiff1d(np.arange(1, 65536), listed)
    pools = [*listed[:, None], free[free < 1024], free[(free >= 1024) & (free < 49152)], free[free >= 49152], [0]]
    length = np.array([len(pool) for pool in pools])
    pick = (np.cumsum(length) - length)[codes[:, 1]] + (rng.random(len(codes)) * length[codes[:, 1]]).astype(int)
    flows["server_port"] = np.concatenate(pools)[pick]
    for column, name in enumerate(AMOUNT_COLUMNS, 2):
        kind = name.partition("_")[0]
        bounds = np.array([1, *cuts[kind], AMOUNTS[kind][0]])
        low, high = bounds[codes[:, column]], bounds[codes[:, column] + 1]
        value = np.where(codes[:, column] == 0, 0, low * (high / low) ** rng.random(len(codes)))
        flows[name] = value / 1e3 if name == "duration" else np.floor(value + 1e-9).astype(int)
    flows["application"] = APPLICATIONS[codes[:, -2]]
    flows["label"] = np.array(classes)[codes[:, -1]]
    return flows


def rival_python(packages):
    """The interpreter of the environment with what rivals/PACKAGES.txt lists; made first where it is not there."""
    folder = Path("runs/benchmark") / f"rivals-{packages}"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        requirements = HERE / "rivals" / f"{packages}.txt"
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "--requirement", requirements], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


def rho_for(epsilon, delta):
    """The most zCDP that is (epsilon, delta)-DP, to a millionth and rounded down."""
    low, high = 0.0, epsilon + np.log(1 / delta)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of_zcdp(middle, epsilon) <= delta else (low, middle)
    return low


def make_rival(arguments, name, private, classes):
    """A rival's sample as flows, or None where it took too long."""
    k = 1
    if arguments.unit == "host":
        k = K
        order = np.random.default_rng(arguments.seed).permutation(len(private["label"]))
        _, owner = np.unique(private["owner"][order], return_inverse=True)
        by_owner = np.argsort(owner, kind="stable")
        first = np.searchsorted(owner[by_owner], owner[by_owner])
        private = take(private, order[by_owner[np.arange(len(order)) - first < K]])
    cuts = edges(arguments.bins)
    settings = SETTINGS[arguments.kind] | json.loads(arguments.settings or "{}")
    ask = {"method": arguments.kind, "epsilon": arguments.epsilon, "delta": DELTA, "k": k, "seed": arguments.seed}
    ask["settings"] = settings
    codes, sizes = encode(private, cuts, classes)
    WORK.mkdir(parents=True, exist_ok=True)
    source, target = WORK / f"{name}-in.npz", WORK / f"{name}-out.npz"
    np.savez_compressed(source, codes=codes, sizes=sizes)
    told = ask | {"bins": arguments.bins, "limit_cpu_seconds": LIMIT}
    packages, script = ("mbi", "mwem.py") if arguments.kind == "mwem" else ("dpmm", "synthesise.py")
    if arguments.kind == "mwem":
        ask["rho"] = told["rho"] = rho_for(arguments.epsilon, DELTA)
    command = [rival_python(packages), HERE / "rivals" / script, source, target, json.dumps(ask)]
    limit = (resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    done = subprocess.run(list(map(str, command)), check=False, preexec_fn=lambda: resource.setrlimit(*limit))
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return None, told
    done.check_returncode()
    with np.load(target) as arrays:
        return decode(arrays["codes"], cuts, classes, arguments.seed), told


def cpu():
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in both)


def row(arguments):
    name = "-".join(
        [arguments.split, arguments.unit, arguments.kind]
        + ([] if arguments.kind == "real" else [f"eps{arguments.epsilon:g}"])
        + [f"seed{arguments.seed}"]
        + ([arguments.tag] if arguments.tag else [])
    )
    path = RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there already")
        return
    private, test = parts(arguments.data, arguments.split)
    classes = tuple(sorted({*private["label"].tolist(), *test["label"].tolist()}))  # the devices, declared public
    begun, used = time.perf_counter(), cpu()
    if arguments.kind == "real":
        flows, settings = private, {}
    elif arguments.kind == "random":
        flows, settings = make_random(arguments, private, classes)
    elif arguments.kind in SETTINGS:
        flows, settings = make_rival(arguments, name, private, classes)
    else:
        flows, settings = make_run(arguments, name, private, classes)
    seconds = {"wall": round(time.perf_counter() - begun, 1), "cpu": round(cpu() - used, 1)}
    both = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = round(max(both) / 2**20, 2)
    found = None
    if flows is not None:
        found = {"rows": len(flows["label"]), "distances": compare(flows, test)}
        found["distances_to_private"] = compare(flows, private)
        for target in ("application", "label"):
            found[target] = utility(flows, test, target, seed=arguments.seed)
        found["application_without_ports"] = utility(flows, test, "application", ports=False, seed=arguments.seed)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "split": arguments.split, "unit": arguments.unit, "kind": arguments.kind, "epsilon": arguments.epsilon,
        "delta": DELTA, "seed": arguments.seed, "tag": arguments.tag, "seconds": seconds, "peak_memory_gib": peak,
        "metrics": found,
        "settings": settings, "commit": commit.stdout.strip(), "date": datetime.date.today().isoformat(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    said = "took too long" if found is None else {t: round(found[t]["macro_f1"], 3) for t in ("application", "label")}
    print(name, said, seconds, flush=True)


SHOWN = {
    "application F1": ("application", "macro_f1"),
    "accuracy": ("application", "accuracy"),
    "without ports F1": ("application_without_ports", "macro_f1"),
    "device F1": ("label", "macro_f1"),
    "accuracy ": ("label", "accuracy"),
    "8 devices F1": ("label", "macro_f1_top8"),
    "TVD2": ("distances", "tvd2"),
    "EMD": ("distances", "emd"),
    "JSD protocol": ("distances", "jsd_protocol"),
    "JSD service": ("distances", "jsd_service"),
    "JSD servers": ("distances", "jsd_servers"),
    "top ports missed": ("distances", "top_ports_missed"),
}


def table(split):
    """Mean over seeds (and half the spread of macro-F1), as Markdown and as JSON beside the rows."""
    found = {}
    for path in sorted(RESULTS.glob(f"{split}-*.json")):
        one = json.loads(path.read_text())
        if not one["tag"]:
            epsilon = 0 if one["kind"] == "real" else one["epsilon"]
            found.setdefault((one["unit"] == "host", epsilon, KINDS.index(one["kind"])), []).append(one)
    print(f"| unit | epsilon | what | {' | '.join(SHOWN)} | CPU, s | seeds |")
    print("| --- " * (len(SHOWN) + 5) + "|")
    kept = []
    for (_, epsilon, _), group in sorted(found.items()):
        done = [one for one in group if one["metrics"]]
        values = {name: [one["metrics"][part].get(figure) for one in done] for name, (part, figure) in SHOWN.items()}
        cells = ["" if not column or None in column else f"{np.mean(column):.3f}" for column in values.values()]
        for i, name in enumerate(values):
            if "F1" in name and cells[i] and len(done) > 1:
                cells[i] += f" ± {np.std(values[name]):.3f}"
        said = f"{len(done)}" + (f", {len(group) - len(done)} took over {LIMIT} s" if len(group) > len(done) else "")
        spent = f"{np.mean([one['seconds']['cpu'] for one in group]):.0f}"
        one = group[0]
        print(f"| {one['unit']} | {epsilon or ''} | {one['kind']} | {' | '.join(cells)} | {spent} | {said} |")
        kept.append({"unit": one["unit"], "kind": one["kind"], "epsilon": epsilon or None, "seeds": len(done)}
                    | {f"{part} {figure}": values[name] for name, (part, figure) in SHOWN.items()})  # fmt: skip
    (RESULTS / f"table-{split}.json").write_text(json.dumps(kept, indent=1) + "\n")


def rows(arguments):
    """Every row of the table that is not there yet, one after the other."""
    for unit, kind, seed, epsilon in product(arguments.units, arguments.kinds, SEEDS, EPSILONS):
        if kind == "privbayes" and unit == "host":
            continue
        if kind == "real" and (epsilon, unit) != (EPSILONS[0], "flow"):  # the same for all
            continue
        row(
            argparse.Namespace(
                data=arguments.data, split=arguments.split, unit=unit, kind=kind, seed=seed, epsilon=epsilon, bins=14,
                settings=None, tag=None,
            )
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("row")
    one.add_argument("--kind", choices=KINDS, default="simpe")
    one.add_argument("--epsilon", type=float, default=1.0)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--unit", choices=UNITS, default="flow")
    one.add_argument("--bins", type=int, choices=(8, 14, 32), default=14, help="of amounts, for the rivals")
    one.add_argument("--settings", help="JSON of further settings of a rival")
    one.add_argument("--tag", help="added to the name of the result, which the table then leaves out")
    many = commands.add_parser("rows")
    many.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    many.add_argument("--units", choices=UNITS, nargs="+", default=UNITS)
    for command in (one, many, whole := commands.add_parser("table")):
        command.add_argument("--split", choices=("development", "final"), default="development")
        if command is not whole:
            command.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "table":
        table(arguments.split)
    else:
        {"row": row, "rows": rows}[arguments.command](arguments)
