"""simpe and its rivals side by side, from the rows that digits.py, network.py and text.py of this folder have made.

    python benchmarks/compare.py        # writes docs/rivals.md and docs/rivals.png

Nothing is computed here: a row that was not made is not in the table.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
NAMES = {
    "simpe": ("simpe", "exact discrete Gaussian", "images, captures, tables, texts"),
    "mixture": ("simpe, a mixture of two simulators", "exact discrete Gaussian", "images"),
    "adaptive": ("simpe, adaptive budget", "exact discrete Gaussian, zCDP filter", "images, captures, tables, texts"),
    "pe": (
        "Private Evolution inside each label, with simpe's simulator",
        "exact discrete Gaussian",
        "captures, tables",
    ),
    "draw-text": ("Sim-PE: its simulator and schedule, re-made", "exact discrete Gaussian", "images"),
    "pixels": ("Private Evolution without a simulator", "exact discrete Gaussian", "images"),
    "dp-sgd": ("autoencoder trained with DP-SGD (opacus)", "floating-point Gaussian, Poisson sampling", "images"),
    "aim": ("AIM (dpmm)", "floating-point Gaussian", "tables"),
    "mst": ("MST (dpmm)", "floating-point Gaussian", "tables"),
    "mwem": ("MWEM+PGM (our loop around mbi)", "floating-point Gaussian", "tables"),
    "prediction": ("private prediction, re-made", "exponential mechanism in floating point", "texts"),
    "privbayes": ("PrivBayes (dpmm)", "floating-point Gaussian, number of rows used as if public", "tables"),
    "random": ("random parameters", "", ""),
    "ceiling": ("simpe without noise: **not private**", "none", "images"),
    "real": ("the private rows themselves: **not private**", "none", ""),
}
PREDICTION = """ In private prediction the same model reads all private
texts for every token that it writes. A token is what is paid for, so it writes few texts; and it was run on fewer rows,
for time, so its row does not compare with simpe's at the same size."""
FREE = ("ceiling", "real")


def digits():
    """Rows of full MNIST: accuracy of a network trained on the release, Frechet distance to the test images."""
    for path in sorted((HERE / "results" / "digits").glob("*.json")):
        one = json.loads(path.read_text())
        if one["rows"] == 60_000 and one.get("samples", 0) <= 60_000:  # as many as are published
            epsilon = None if one["kind"] in ("random", *FREE) else one["epsilon"]
            yield (
                (one["kind"], epsilon),
                {
                    "accuracy, %": 100 * one["metrics"]["classify"]["accuracy"],
                    "Frechet distance": one["metrics"]["frechet_distance"],
                    "seconds": one["seconds"]["run"],
                    "GiB": one.get("peak_memory_gib", np.nan),
                },
            )


def network():
    """Rows of the final split, a flow as the unit: macro-F1 of a forest trained on the release, and distances."""
    for path in sorted((HERE / "results" / "network").glob("final-flow-*.json")):
        one = json.loads(path.read_text())
        if one["tag"] is None and one["metrics"] is not None:
            epsilon = None if one["kind"] == "real" else one["epsilon"]
            yield (
                (one["kind"], epsilon),
                {
                    "device F1": one["metrics"]["label"]["macro_f1"],
                    "application F1, no ports": one["metrics"]["application_without_ports"]["macro_f1"],
                    "two-way distance": one["metrics"]["distances"]["tvd2"],
                    "seconds": one["seconds"]["wall"],
                    "GiB": one.get("peak_memory_gib", np.nan),
                },
            )


def texts():
    """Rows of text: accuracy of classifiers that learn from the release, on other messages."""
    for path in sorted((HERE / "results" / "text").glob("*.json")):
        one = json.loads(path.read_text())
        yield (
            (one["what"], one.get("epsilon")),
            {
                "private rows": one["rows"],
                "texts": one["samples"],
                "linear accuracy": one["linear_accuracy"],
                "nearest neighbour": one["nearest_neighbour_accuracy"],
                "seconds": one["seconds"],
            },
        )


def grouped(rows):
    """(kind, epsilon) -> figure -> values over seeds."""
    found = defaultdict(lambda: defaultdict(list))
    for key, figures in rows:
        for name, value in figures.items():
            found[key][name].append(value)
    order = list(NAMES)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1] or 0)))


def said(value):
    if not np.isfinite(value):
        return ""
    whole = value >= 1000 or isinstance(value, int)
    return f"{value:,.0f}" if whole else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def counted(values):
    """Whether a figure is a number of things, the same in each row."""
    return len(set(values)) == 1 and isinstance(values[0], int)


def mean(values):
    """Of the seeds for which there is a figure; older rows have no peak of memory."""
    known = [value for value in values if np.isfinite(value)]
    return np.mean(known) if known else np.nan


def table(groups):
    """Markdown."""
    figures = list(next(iter(groups.values())))
    lines = ["| method | epsilon | " + " | ".join(figures) + " | seeds | noise | can make |"]
    lines.append("| --- " * (len(figures) + 5) + "|")
    for (kind, epsilon), values in groups.items():
        name, noise, output = NAMES[kind]
        cells = [said(values[figure][0] if counted(values[figure]) else mean(values[figure])) for figure in figures]
        seeds = len(values[figures[0]])
        lines.append(f"| {name} | {epsilon or ''} | {' | '.join(cells)} | {seeds} | {noise} | {output} |")
    return "\n".join(lines)


def plot(panels, path):
    """One panel a figure: a line a method over epsilon, and a level for what needs none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), constrained_layout=True)
    for axis, (title, groups, name) in zip(axes, panels, strict=True):
        for kind in NAMES:
            points = [(e, np.mean(v[name])) for (k, e), v in groups.items() if k == kind]
            label = NAMES[kind][0].replace("**", "").partition(":")[0].partition(",")[0]
            if kind in ("adaptive", "mixture") or not points:
                continue
            if kind in (*FREE, "random"):
                axis.axhline(np.mean([value for _, value in points]), color="0.6", ls=":" if kind == "random" else "--")
                side = "top" if kind == "random" else "bottom"  # lines may lie close together
                axis.annotate(label, (0.99, np.mean([v for _, v in points])), xycoords=("axes fraction", "data"),
                              ha="right", va=side, fontsize=7, color="0.4")  # fmt: skip
            else:
                axis.plot(
                    *zip(*sorted(points), strict=True), marker="o", label=label, lw=2.2 if kind == "simpe" else 1.2
                )
        ticks = sorted({epsilon for (kind, epsilon) in groups if epsilon and kind not in (*FREE, "random")})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{epsilon:g}" for epsilon in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("epsilon")
        axis.set_title(f"{title}: {name}", fontsize=9)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main():
    images, flows, words = grouped(digits()), grouped(network()), grouped(texts())
    more = PREDICTION if any(kind == "prediction" for kind, _ in words) else ""
    plot(
        [("MNIST", images, "accuracy, %"), ("Traffic", flows, "device F1"), ("Traffic", flows, "two-way distance")],
        DOCS / "rivals.png",
    )
    (DOCS / "rivals.md").write_text(f"""# simpe and its rivals

Every method on the same rows, delta 1e-5, add/remove one row; means over seeds. Made by `python benchmarks/compare.py`
from the rows in `benchmarks/results`; each row's JSON holds its settings, date and commit, and the command that makes
it stands in `benchmarks/digits.py`, `network.py` and `text.py`. Seconds are of machines shared with other work: read
them as orders of magnitude. Where simpe loses, the table shows it.

![accuracy and distances over epsilon](rivals.png)

## Images: MNIST, 60,000 private rows

A small network is trained on the release with fixed epochs and tested once on the 10,000 test images. The autoencoder
is of a size that two cores train in minutes, and was tuned little: its rows show what DP-SGD gives there, not what it
can. The best published generators that train on the rows, with GPUs, reach 95.6 % at epsilon 1 and 98.1 % at 10
(DP-FETA, in DPImageBench's protocol).
simpe at 1 and 10 is of 2026-12-01; at 0.2, and random parameters, of the day before, when the control points of pens
did not move (then 98.5 % at 1 and 98.9 % at 10); its other rows are of simulators before, with
fewer forms of digits, half a pixel from where MNIST's are (then 97.5, 98.2 and 98.6 %, and 97.6).

{table(images)}

## Traffic: flows of 31 devices

A forest is trained on the release and tested on other runs of the devices (the final split); the two-way distance is
the mean total variation of all two-way marginals, lower being better. How it was tuned: [quality.md](quality.md).

{table(flows)}

## Text: short messages of four kinds

Made by a grammar of public words; delta 1e-6. simpe's language model sees no private text. The accuracies are of
classifiers on other messages; the most frequent kinds are 0.3 of them.{more}

{table(words)}
""")


if __name__ == "__main__":
    main()
