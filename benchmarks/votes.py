"""Nearest-neighbour votes: seconds and memory, beside a bare matrix product, scikit-learn and faiss.

    python benchmarks/votes.py [--n 60000] [--rows N] [--dims 64 512 2048] [--repeats 5] [--threads 2] [--clock wall]

Each contender runs in a process of its own, on the same seeded data that resemble embeddings (clusters, a decaying
spectrum). Repetitions are interleaved, so that whatever else the machine does falls on all of them; the table has
medians, the range, and the ratio to the faster of the two bare products. A bare product computes every score into one
buffer, block by block, and does nothing with it; it takes the fastest of several block shapes. A large n is cut, to
keep a run of the product under five minutes; --rows takes fewer rows than candidates. Memory is the process's peak,
less what it had with the data loaded. Votes that differ from ours are counted: simpe's are exact, the others decide
near-ties by rounding. On a machine that others use, `--threads 1 --clock cpu` counts the processor's seconds, which
their work does not take part in.

Writes benchmarks/results/votes/d{dims}-{rows}x{n}-threads{threads}.json. faiss-cpu is optional
(`pip install faiss-cpu`).
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import threadpoolctl
import torch

from simpe.voting import nearest, nearest_within_labels

RESULTS = Path(__file__).parent / "results" / "votes"
BLOCKS = ((256, 1024), (512, 512), (512, 2048), (1024, 1024), (2048, 2048))  # rows by candidates
LABELS = 10
LONGEST = 300.0  # seconds for a bare product

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Run = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


def embeddings(n: int, dims: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and candidates (n, dims) float32: ten clusters, a spectrum that falls off, a little noise on all of it."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / (1 + torch.arange(dims) / 16)
    rotation = torch.linalg.qr(torch.randn(dims, dims, generator=generator)).Q
    centres = torch.randn(10, dims, generator=generator) * scale

    def draw() -> np.ndarray:
        x = centres[torch.randint(10, (n,), generator=generator)] + torch.randn(n, dims, generator=generator) * scale
        return (x @ rotation + 0.01 * torch.randn(n, dims, generator=generator)).numpy()

    return draw(), draw()


def bare(product: Callable[[np.ndarray, np.ndarray, np.ndarray], object]) -> Run:
    """All scores in blocks, into one buffer; the block shape is chosen on the first call, the warm-up."""
    buffer = np.empty(max(r * c for r, c in BLOCKS), dtype=np.float32)
    fastest: list[tuple[int, int]] = []

    def blocks(x: np.ndarray, c: np.ndarray, rows: int, candidates: int) -> float:
        begun = time.perf_counter()
        for i in range(0, len(x), rows):
            for j in range(0, len(c), candidates):
                a, b = x[i : i + rows], c[j : j + candidates]
                product(a, b.T, buffer[: len(a) * len(b)].reshape(len(a), len(b)))
        return time.perf_counter() - begun

    def run(x: np.ndarray, c: np.ndarray) -> None:
        if not fastest:
            seconds = {shape: min(blocks(x, c, *shape) for _ in range(5)) for shape in BLOCKS}
            fastest.append(min(seconds, key=lambda shape: seconds[shape]))
        blocks(x, c, *fastest[0])

    return run


def torch_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


def simpe(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    return nearest(torch.from_numpy(x), torch.from_numpy(c))[:, 0].numpy()


def simpe_labels(x: np.ndarray, c: np.ndarray) -> None:
    """As runs vote: each row among a tenth of the candidates."""
    rows, candidates = (torch.arange(len(v)) % LABELS for v in (x, c))
    nearest_within_labels(torch.from_numpy(x), rows, torch.from_numpy(c), candidates)


def scikit_learn(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    from sklearn.metrics import pairwise_distances_argmin

    return np.asarray(pairwise_distances_argmin(x, c))


def faiss(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(c)
    return np.asarray(index.search(x, 1)[1][:, 0])


CONTENDERS: dict[str, Callable[[], Run]] = {
    "bare product, torch": lambda: bare(torch_product),
    "bare product, numpy": lambda: bare(np.matmul),
    "simpe": lambda: simpe,
    "simpe, 10 labels": lambda: simpe_labels,
    "scikit-learn": lambda: scikit_learn,
    "faiss": lambda: faiss,
}


def peak() -> float:
    """Most memory this process has held, MiB; Linux only, as getrusage counts the parent's before exec too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def work(name: str, folder: Path, clock: Callable[[], float]) -> None:
    """A contender's process: a run for each line on stdin, its seconds on stdout; the memory it took at the end."""
    run = CONTENDERS[name]()
    x, c = np.load(folder / "rows.npy"), np.load(folder / "candidates.npy")
    before = peak()
    for _ in range(2):
        run(x[:4096], c[:4096])
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = clock()
        found = run(x, c)
        print(clock() - begun, flush=True)
        if found is not None:
            np.save(folder / f"{name}.npy", found)
    print(json.dumps({"before": before, "peak": peak(), "blas": threadpoolctl.threadpool_info()}))


def measure(n: int, dims: int, arguments: argparse.Namespace, names: list[str]) -> dict[str, object]:
    """Seconds of each repetition, memory and wrong votes by contender."""
    environment = os.environ | {
        f"{library}_NUM_THREADS": str(arguments.threads) for library in ("OMP", "MKL", "OPENBLAS")
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        x, c = embeddings(n, dims, arguments.seed)
        np.save(folder / "rows.npy", x[: arguments.rows])
        np.save(folder / "candidates.npy", c)
        del x, c
        workers = {}
        for name in names:
            workers[name] = subprocess.Popen(
                [sys.executable, __file__, "--clock", arguments.clock, "--work", name, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
            assert ask(workers[name]) == "ready"
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(arguments.repeats):
            for name in names if repeat % 2 == 0 else names[::-1]:
                time.sleep(0.3)  # idle threads of the one before stop spinning
                seconds[name].append(float(ask(workers[name], "run")))
                print(f"d={dims} {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
        found = {}
        exact = np.load(folder / "simpe.npy")
        for name, worker in workers.items():
            memory = json.loads(worker.communicate()[0])
            path = folder / f"{name}.npy"
            found[name] = {
                "seconds": seconds[name],
                "memory_mib": round(memory["peak"] - memory["before"], 1),
                "peak_mib": round(memory["peak"], 1),
                "differing_votes": int((np.load(path) != exact).sum()) if path.exists() else None,
                "blas": sorted({str(one.get("architecture")) for one in memory["blas"] if one["user_api"] == "blas"}),
            }
    return found


def ask(worker: subprocess.Popen, line: str | None = None) -> str:
    assert worker.stdin is not None
    assert worker.stdout is not None
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    answer = worker.stdout.readline().strip()
    if not answer:
        raise SystemExit(f"{worker.args} stopped")
    return answer


def affordable(n: int, dims: int) -> int:
    """n, or fewer thousands where a bare product would take longer than LONGEST."""
    x = torch.ones(2048, dims)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        torch.mm(x, x.T)
        seconds.append(time.perf_counter() - begun)
    most = int(2048 * (LONGEST / min(seconds)) ** 0.5) // 1000 * 1000
    return min(n, most)


def table(results: list[dict]) -> None:
    print("| d | rows x candidates | what | seconds (range) | ratio to bare | memory, MiB | votes that differ |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for result in results:
        medians = {name: statistics.median(one["seconds"]) for name, one in result["contenders"].items()}
        base = min(median for name, median in medians.items() if name.startswith("bare"))
        for name, one in result["contenders"].items():
            wrong = "" if one["differing_votes"] is None else one["differing_votes"]
            print(
                f"| {result['dims']} | {result['rows']} x {result['n']} | {name} "
                f"| {medians[name]:.2f} ({min(one['seconds']):.2f}-{max(one['seconds']):.2f}) "
                f"| {medians[name] / base:.2f} | {one['memory_mib']:.0f} | {wrong} |"
            )


def main(arguments: argparse.Namespace) -> None:
    names = list(CONTENDERS)
    if importlib.util.find_spec("faiss") is None:
        print("faiss is not installed and is left out (pip install faiss-cpu)", file=sys.stderr)
        names.remove("faiss")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    packages = ["simpe", "torch", "numpy", "scikit-learn"] + (["faiss-cpu"] if "faiss" in names else [])
    results = []
    for dims in arguments.dims:
        n = affordable(arguments.n, dims)
        result = {
            "n": n, "rows": min(n, arguments.rows or n), "dims": dims, "repeats": arguments.repeats,
            "threads": arguments.threads, "clock": arguments.clock, "seed": arguments.seed,
            "contenders": measure(n, dims, arguments, names),
            "date": datetime.date.today().isoformat(), "commit": commit.stdout.strip(), "cores": os.cpu_count(),
            "load": os.getloadavg(), "machine": platform.machine(), "python": platform.python_version(),
            "versions": {package: importlib.metadata.version(package) for package in packages},
        }  # fmt: skip
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = f"d{dims}-{result['rows']}x{n}-threads{arguments.threads}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
        results.append(result)
    table(results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60_000)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], Path(arguments.work[1]), CLOCKS[arguments.clock])
    else:
        main(arguments)
