"""One HTML file that explains a release to an engineer and to a data-protection officer.

``release/report.html`` is made from the files of ``release/`` alone: the samples, the noisy counts that were paid for,
the certificate, and figures against public references. So it is post-processing and costs nothing. What concerns the
private side (metrics against private rows, pictures beside the input, the configuration) goes to a second file,
``private/report.html``. Both hold all they need: no script, font or picture is loaded from anywhere.
"""

from __future__ import annotations

import base64
import io
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from simpe import pictures, store
from simpe.errors import InputError
from simpe.privacy.accounting import Charge, epsilon_of
from simpe.private_metrics import FILE
from simpe.report.words import meaning

_HERE = Path(__file__).parent
_TILES, _LARGE_TILES = 240, 100  # samples shown: small images, and anything larger
_SMALL = 40  # pixels of a small image, at most
_SIDE = 128  # pixels of a tile, at most
_COLUMNS = 20  # tiles in a row of the picture that holds them
_POINTS = 96  # of a curve
_SAID = 40  # parameters named for a sample, at most

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Arrays = dict[str, np.ndarray]
Data = dict[str, Any]


def write(folder: Path) -> list[Path]:
    """Write ``release/report.html`` of a finished run and, where it has a ``private/``, ``private/report.html``.

    **Guarantee.** The first is a function of the files in ``release/``; the second is NOT PRIVATE.

    Raises InputError when the run is not finished, or a file of its release is missing or damaged.
    """
    store.require_finished(folder)
    paths = [store.write_public(folder, "report.html", of_release(folder / "release"))]
    if (folder / "private").is_dir():
        paths.append(store.write_private(folder, "report.html", of_private(folder / "private")))
    return paths


def of_release(release: Path) -> str:
    """The report as HTML, from the files in a ``release/`` folder and nothing else."""
    try:
        certificate = json.loads((release / "certificate.json").read_text())
        samples, history = _arrays(release / "samples.npz"), _arrays(release / "history.npz")
        figures, metrics = _json(release / "figures.json") or [], _json(release / "metrics.json")
        bought = _json(release / FILE)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: not there; a report needs the whole release of a finished run") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{release}: damaged or not a release; make it again") from None
    public = certificate["public_inputs"]
    classes = [str(name) for name in public["classes"]]
    labels = _indices(samples["labels"], classes) if "labels" in samples else None
    rows = samples["images"] if "images" in samples else samples["samples"]
    shared = public["strategy"]["marginals"] > 0 or public["strategy"].get("shared", False)
    epsilon, budget, steps = certificate["epsilon"], _budget(certificate), _steps(history)
    data: Data = {
        "classes": classes,
        "epsilon": epsilon,
        "budget": budget,
        "counts": {"values": _round(history["class_counts"]), "noise": float(history["class_noise"])},
        "votes": [_votes(history, t, 1 if shared else len(classes)) for t in range(1, len(steps) + 1)],
        "figures": figures,
        "stepwise": _json(release / "evolution.json") or [],
    }
    if not figures:  # else the rows are no pictures
        data["gallery"] = _gallery(rows, labels, samples, len(classes))
        data["evolution"] = _evolution(history["evolution"])
    return _render(
        "release.html",
        data,
        title=_title(public["simulator"]["name"]),
        certificate=certificate,
        certificate_text=json.dumps(certificate, indent=2),
        classes=classes if labels is not None else [],
        shared=shared,
        samples=len(rows),
        parents=int(history["parents"]),
        given=certificate.get("covers", "the samples") != "the samples",  # older ones lack it
        # A fair bet on whether the unit was there: (e^eps + delta) / (1 + e^eps) (Kairouz, Oh and Viswanath, 2015).
        right=(1 + math.exp(-epsilon) * certificate["delta"]) / (1 + math.exp(-epsilon)),
        budget=budget,
        steps=steps,
        sources="sources" in history,
        metrics=metrics and _metrics(metrics),
        reference=metrics and metrics["against"],
        bought=bought and _bought(bought),
        bought_statement=bought and bought["statement"],
    )


def of_private(private: Path) -> str:
    """The operator's report as HTML, from the files in a ``private/`` folder: NOT PRIVATE."""
    metrics = _json(private / "metrics.json")
    against = [] if metrics is None else metrics["against"]
    config = private / store.CONFIG
    return _render(
        "private.html",
        {"classes": [], "figures": _json(private / "figures.json") or []},
        title="The operator's side",
        metrics=metrics and _metrics(metrics),
        reference=[against] if isinstance(against, str) else against,
        config=config.read_text() if config.is_file() else "",
    )


def _render(template: str, data: Data, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = _figure
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # and keys in their order
    style, script = (Markup((_HERE / name).read_text()) for name in ("style.css", "script.js"))
    return environment.get_template(template).render(style=style, script=script, data=data, **values)


def _budget(certificate: dict[str, Any]) -> list[Data]:
    """Every charge in its order, in words, with the epsilon that it and all before it cost together."""
    delta, relation, adaptive = certificate["delta"], certificate["relation"], certificate["accounting"] == "zCDP"
    charges = [Charge(**charge) for charge in certificate["other_charges_on_the_ledger"]]
    found = []
    if charges:
        spent = epsilon_of(charges, delta, relation, adaptive)
        found.append({"name": f"{len(charges)} releases of other runs on the same data", "noise": None, "spent": spent})
    for charge in certificate["charges"]:
        charges.append(Charge(charge["sigma"], charge["sensitivity"], charge["one_bin"]))
        spent = min(epsilon_of(charges, delta, relation, adaptive), certificate["spent_epsilon"])
        found.append({"name": _purpose(charge["release"]), "noise": charge["noise_multiplier"], "spent": spent})
    return found


def _purpose(address: str) -> str:
    parts = address.split("/")
    if parts[-1] == "votes":
        stage, step = int(parts[0]), int(parts[1])
        return f"votes of step {step + 1}" if stage == 0 else f"votes of stage {stage + 1}, step {step + 1}"
    return {"counts": "class counts", "marginals": "marginal counts"}.get(parts[-1], address)


def _steps(history: Arrays) -> list[Data]:
    steps = []
    for t, noise in enumerate(history["noise"].tolist(), start=1):
        votes = history[f"votes_{t}"]
        steps.append(
            {
                "step": t,
                "noise": noise,
                "candidates": int(history["candidates"][t - 1]),
                "survivors": len(votes),
                "ancestors": int(history["ancestors"][t - 1]),
                "median": float(np.median(votes)),
                "above": float((votes > 2 * noise).mean()),
                "sources": _shares(history, t - 1),
            }
        )
    return steps


def _shares(history: Arrays, t: int) -> str:
    """What share of a step's survivors each source made; "" in a run of one source."""
    if "sources" not in history:
        return ""
    shares = zip(history["sources"].tolist(), history["source_shares"][t].tolist(), strict=True)
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares if share)


def _votes(history: Arrays, t: int, classes: int) -> Data:
    """Noisy votes of a step's survivors, the best first, thinned to some points; of all, and of each class."""
    votes, labels, noise = history[f"votes_{t}"], history[f"labels_{t}"], float(history["noise"][t - 1])
    groups = [votes, *([votes[labels == label] for label in range(classes)] if classes > 1 else [])]
    places = np.linspace(0, 1, _POINTS)
    curves = [_round(np.quantile(group, 1 - places) / noise) if len(group) else [] for group in groups]
    return {"noise": noise, "numbers": [len(group) for group in groups], "curves": curves}


def _gallery(rows: np.ndarray, labels: np.ndarray | None, samples: Arrays, classes: int) -> Data:
    """Some samples of each class, in the order of their release, with their parameters."""
    small = _is_image(rows) and max(rows.shape[1:3]) <= _SMALL
    groups = [np.arange(len(rows))] if labels is None else [np.flatnonzero(labels == c) for c in range(classes)]
    each = max(4, (_TILES if small else _LARGE_TILES) // len(groups))
    each -= each % _COLUMNS if each > _COLUMNS else 0  # whole rows
    picked = np.concatenate([group[:each] for group in groups])
    scalars = {name: values for name, values in samples.items() if name.startswith("param_") and values.ndim == 1}
    named = list(scalars)[:_SAID]
    values = [[_short(scalars[name][i]) for name in named] for i in picked]
    return {
        "labels": [0 if labels is None else int(labels[i]) for i in picked],
        "small": small,
        "names": [name.removeprefix("param_").replace("_", " ") for name in named],
        "values": values,
        **_tiles(rows[picked], _COLUMNS),
    }


def _evolution(steps: np.ndarray) -> Data:
    """``steps`` (T, slots, ...): the same slots, step by step."""
    return {"steps": len(steps), "slots": steps.shape[1], **_tiles(steps.reshape(-1, *steps.shape[2:]), steps.shape[1])}


def _tiles(rows: np.ndarray, columns: int) -> Data:
    """Images as one PNG, ``columns`` tiles wide, or other rows as curves in [0, 1]."""
    if not _is_image(rows):
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        flat = np.where(np.isfinite(flat), flat, 0)  # JSON has no other numbers
        flat = flat[:, np.unique(np.linspace(0, flat.shape[1] - 1, _POINTS).astype(int))]
        low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
        return {"curves": np.round((flat - low) / np.maximum(high - low, 1e-12), 3).tolist()}
    height, width = rows.shape[1:3]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    down = -(-len(rows) // columns)
    sheet = Image.new("RGB" if rows.ndim == 4 else "L", (columns * size[0], down * size[1]))
    for i, row in enumerate(rows):
        tile = Image.fromarray(row)
        tile = tile if scale == 1 else tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * size[0], i // columns * size[1]))
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    png = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"png": png, "columns": columns, "rows": down, "width": size[0], "height": size[1]}


def _is_image(rows: np.ndarray) -> bool:
    return pictures.is_image(torch.from_numpy(rows))


def _metrics(found: dict[str, Any]) -> list[Data]:
    """Metrics by their groups, each figure with what it means."""
    groups: dict[str, list[Data]] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, (*path, name))
        elif path[0] not in ("against", "reference", "differentially_private"):
            group = ", ".join(path[:-1]).replace("_", " ")
            row = {"name": path[-1].replace("_", " "), "value": value, "meaning": meaning(path[-1])}
            groups.setdefault(group, []).append(row)

    walk(found, ())
    return [{"name": name, "rows": rows} for name, rows in groups.items()]


def _bought(found: dict[str, Any]) -> list[Data]:
    """Figures bought on the private rows, each with the standard deviation of its noise."""
    rows = [{"name": "rows", "value": found["rows"], "meaning": "that took part, by the noisy count"}]
    for name, said in (
        ("accuracy", "of a classifier trained on the samples, at recognising the private rows"),
        ("recall", "share of the private rows that lie among the samples"),
    ):
        share = found.get(name)
        if share is not None:
            text = f"{share['value']:.3f} ± {share['noise']:.3f}"
            rows.append({"name": name, "value": text, "meaning": f"{said}; ± is the noise"})
    groups = [{"name": "", "rows": rows}]
    if "rows_by_class" in found:
        each = [{"name": name, "value": n, "meaning": ""} for name, n in found["rows_by_class"].items()]
        groups.append({"name": "rows by class", "rows": each})
    return groups


def _figure(value: Any) -> str:
    """A number as people read it."""
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    if isinstance(value, float):
        if 0 < abs(value) < 1e-4:
            digits, power = f"{value:.2e}".split("e")
            digits = digits.rstrip("0").rstrip(".")
            return f"{digits} × 10{str(int(power)).translate(_RAISED)}".removeprefix("1 × ")
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(value: Any) -> str:
    return _figure(value.item())


def _title(name: str) -> str:
    return name.split(":")[-1]


def _round(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def _indices(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[str(label)] for label in labels.tolist()])


def _arrays(path: Path) -> Arrays:
    with path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
