"""How fast are the digits drawn? Against drawing each with Pillow: open the font, draw the text, rotate.

    python benchmarks/render.py [--images 20000] [--repeats 5]

All draw at 28 x 28 with the same typefaces: ours in one process with torch's threads on all cores, Pillow in a plain
loop, and Pillow in a pool of as many processes as there are cores. They take turns; medians and ranges are printed and
written to benchmarks/results/render.json.
"""

import argparse
import datetime
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from simpe.simulators.digits import Digits
from simpe.simulators.typefaces import typefaces

RESULT = Path(__file__).parent / "results" / "render.json"
FILES = [str(face.path) for face in typefaces()]


def draw(task: tuple[int, int]) -> None:
    """Draw ``n`` digits, as a program that knows nothing of batches would."""
    seed, n = task
    random = np.random.default_rng(seed)
    for _ in range(n):
        font = ImageFont.truetype(FILES[random.integers(len(FILES))], int(random.integers(14, 26)))
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text(
            (14, 14), str(random.integers(10)), font=font, fill=255, anchor="mm", stroke_width=int(random.integers(2))
        )
        np.asarray(image.rotate(float(random.uniform(-15, 15)), Image.Resampling.BILINEAR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    simulator = Digits()
    p = simulator.space.sample(arguments.images, torch.Generator().manual_seed(0))
    p["label"] = torch.arange(arguments.images) % 10
    simulator.render({name: x[:512] for name, x in p.items()})  # builds the atlas
    speeds: dict[str, list[float]] = {"simpe": [], "pillow, a loop": [], "pillow, a pool": []}
    few = math.ceil(arguments.images / 20 / (4 * cores))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(draw, [(i, 10) for i in range(cores)])  # starts the processes
        for repeat in range(arguments.repeats):
            tasks = [(1000 * repeat + i, few) for i in range(4 * cores)]
            begun = time.perf_counter()
            simulator.render(p)
            speeds["simpe"].append(arguments.images / (time.perf_counter() - begun))
            begun = time.perf_counter()
            draw((repeat, few * len(tasks)))
            speeds["pillow, a loop"].append(few * len(tasks) / (time.perf_counter() - begun))
            begun = time.perf_counter()
            pool.map(draw, tasks, chunksize=1)
            speeds["pillow, a pool"].append(few * len(tasks) / (time.perf_counter() - begun))
    ratios = {
        name: [a / b for a, b in zip(speeds["simpe"], other, strict=True)]
        for name, other in speeds.items()
        if name != "simpe"
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "images_per_second": {name: round(statistics.median(values)) for name, values in speeds.items()},
        "ratio": {
            name: {"median": round(statistics.median(r), 1), "lowest": round(min(r), 1), "highest": round(max(r), 1)}
            for name, r in ratios.items()
        },
        "images": arguments.images, "repeats": arguments.repeats, "cores": cores,
        "commit": commit.stdout.strip(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
