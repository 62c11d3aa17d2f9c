"""How fast are faces drawn? The batched renderer, pyrender, and the same heads in the same run.

    python benchmarks/faces.py [--heads 2000] [--size 64] [--repeats 5]

From parameters to pixels, one mesh, both renderers from the same vertices and colours. Ours runs in one process with as
many threads as there are cores; pyrender in one too, where OpenGL in software takes all cores by itself. They take
turns; medians and ranges are printed and written to benchmarks/results/faces.json.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from simpe.simulators.faces.head import head
from simpe.simulators.faces.simulator import Faces

RESULT = Path(__file__).parent / "results" / "faces.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    ours, theirs = Faces(arguments.size), Faces(arguments.size, renderer="pyrender")
    p = ours.space.sample(arguments.heads, torch.Generator().manual_seed(0))
    p["label"] = torch.zeros(arguments.heads, dtype=torch.int64)
    few = {name: x[: max(16 * cores, arguments.heads // 10)] for name, x in p.items()}
    contenders: dict[str, Callable[[], object]] = {
        "simpe": lambda: ours.render(p),
        "pyrender": lambda: theirs.render(few),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(arguments.repeats + 1):
        for name, draw in contenders.items():
            begun = time.perf_counter()
            draw()
            seconds = time.perf_counter() - begun
            if repeat:  # the first round starts pyrender's process and warms up
                speeds[name].append((arguments.heads if name == "simpe" else len(few["skin"])) / seconds)
    ratios = {
        name: [a / b for a, b in zip(speeds["simpe"], other, strict=True)]
        for name, other in speeds.items()
        if name != "simpe"
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "heads_per_second": {name: round(statistics.median(values)) for name, values in speeds.items()},
        "fastest": {name: round(max(values)) for name, values in speeds.items()},
        "ratio": {
            name: {"median": round(statistics.median(r), 1), "lowest": round(min(r), 1), "highest": round(max(r), 1)}
            for name, r in ratios.items()
        },
        "triangles": len(head().triangles), "size": arguments.size, "heads": arguments.heads,
        "repeats": arguments.repeats, "cores": cores, "load": round(os.getloadavg()[0], 1),
        "commit": commit.stdout.strip(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
