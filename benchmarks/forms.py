"""How people write digits, from pens on tablets: makes simulators/tablets.txt.

    python benchmarks/forms.py train_r01_v07 > simulators/tablets.txt

The argument is the folder of UNIPEN's train_r01_v07 (Guyon et al., ICPR 1994; Zenodo 1195803, CC BY 4.0), with data/
and include/ in it. Isolated digits are read, those that are cut wrongly are left out, and each form is the mean of a
digit taken at random and of the one most like it that another person wrote, in the fewest points whose curve stays near
it. Of 104 forms a digit, the four least like their own digit's are left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from simpe.simulators import glyphs, strokes
from simpe.simulators.digits import Digits

FORMS, SPARE = 100, 4
CUT_WRONGLY = {"tos", "pri", "lou", "cea"}  # sources whose segments do not fit their digits
POINTS = {1: 32, 2: 16, 3: 12}  # along each stroke of a digit of so many
ALIKE = 12.0  # the root mean square distance of two ways at most, on a page of 100
MOST, NEAR = 12, 4.0  # points of a stroke; how near the curve through them stays
HEAD = """\
# Digits as pens wrote them on tablets: UNIPEN, train_r01_v07 (Guyon et al., ICPR 1994; the International Unipen
# Foundation, 1999; Zenodo 1195803, CC BY 4.0). Each form is the mean of two digits of two writers; docs/quality.md says
# how they were chosen. A line is a digit and a form, as simulators/strokes.py describes it.
"""
SEGMENT = re.compile(r'^\.SEGMENT CHARACTER (\S+) \S+ "(\d)"')

Digit = tuple[int, str, list[np.ndarray]]
"""Its label, who wrote it, and its strokes (points, 2)."""


def components(path: Path) -> list[np.ndarray]:
    """The pen's ways (points, 2) in a file, x and y, where it is down; elsewhere none of it."""
    found: list[tuple[str, list[list[float]]]] = []
    columns, reading = (0, 1), False
    for line in path.read_text("latin1").splitlines():
        words = line.split()
        if line.strip().startswith("."):
            if words[0] == ".COORD":
                columns = (words[1:].index("X"), words[1:].index("Y"))
            if reading := words[0] in (".PEN_DOWN", ".PEN_UP"):
                found.append((words[0], []))
        elif reading and words:
            try:
                found[-1][1].append([float(words[i]) for i in columns])
            except (ValueError, IndexError):  # not a point
                continue
    return [np.array(points).reshape(-1, 2) for kind, points in found if kind == ".PEN_DOWN"]


def digits_of(folder: Path) -> list[Digit]:
    """All isolated digits whose segments can be read."""
    digits = []
    for file in sorted((folder / "data" / "1a").rglob("*")):
        if not file.is_file() or file.relative_to(folder / "data" / "1a").parts[0] in CUT_WRONGLY:
            continue
        lines = [line.strip() for line in file.read_text("latin1").splitlines()]
        included = [line.split()[1].lower() for line in lines if line.startswith(".INCLUDE")]
        pen = [points for name in included for points in components(folder / "include" / name)]
        for match in filter(None, map(SEGMENT.match, lines)):
            parts = cut(pen, match[1])
            if parts:
                digits.append((int(match[2]), str(file), parts))
    return digits


def cut(pen: list[np.ndarray], where: str) -> list[np.ndarray]:
    """The strokes that a segment names, as in "3-5:20,7": components, and points in the first and the last."""
    found = []
    for part in where.split(","):
        (first, _, begin), (last, _, end) = (part.split("-")[i].partition(":") for i in (0, -1))
        for i in range(int(first), int(last) + 1):
            if i >= len(pen):
                return []
            points = pen[i][
                int(begin) if begin and i == int(first) else 0 : int(end) + 1 if end and i == int(last) else None
            ]
            if len(points):
                found.append(points)
    return found


def way(label: int, parts: list[np.ndarray]) -> np.ndarray | None:
    """A digit's strokes (strokes, points, 2) on a page of 100, each begun at its upper or left end, from left to
    right; None where they do not look like one."""
    size = [np.ptp(part, axis=0).max() for part in parts]
    parts = [part for part, extent in zip(parts, size, strict=True) if extent > 0.12 * max(size)]
    if not 1 <= len(parts) <= 3 or (label == 0 and len(parts) > 1) or sum(map(len, parts)) < 6:
        return None
    low, high = np.concatenate(parts).min(0), np.concatenate(parts).max(0)
    if label != 1 and (high - low)[0] > 1.5 * (high - low)[1]:
        return None
    placed = []
    for part in parts:
        points = (part - (low + high) / 2) * (100 / (high - low).max()) * [1, -1]
        (x, y), (x_end, y_end) = points[0], points[-1]
        if y - y_end > 25 or (abs(y - y_end) <= 25 and x - x_end > 40):
            points = points[::-1]
        placed.append(points)
    placed.sort(key=lambda points: (round(points[0, 0] / 30), points[0, 1]))
    return np.stack([evenly(points, POINTS[len(placed)]) for points in placed]) + 50


def evenly(points: np.ndarray, n: int) -> np.ndarray:
    """n points at equal distances along a way."""
    points = points[np.r_[True, np.abs(np.diff(points, axis=0)).sum(1) > 0]]
    if len(points) < 2:
        return np.repeat(points[:1], n, 0)
    along = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    at = np.linspace(0, along[-1], n)
    return np.stack([np.interp(at, along, points[:, 0]), np.interp(at, along, points[:, 1])], 1)


def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Half-way between two ways, filling the page."""
    both = (a + b) / 2
    low, high = both.min((0, 1)), both.max((0, 1))
    return (both - (low + high) / 2) * (100 / (high - low).max()) + 50


def text(drawn: np.ndarray) -> str:
    """A way as simulators/strokes.py has it: few points, and corners where it turns by more than a right angle."""
    lifts = []
    for points in drawn:
        kept = simplified(points)
        words: list[str] = []
        for place, i in enumerate(kept):
            point = "{},{}".format(*np.rint(points[i]).astype(int).clip(0, 100))
            if not words or words[-1] != point:
                words.append(point)
            if 0 < place < len(kept) - 1:
                before, after = points[i] - points[max(0, i - 2)], points[min(len(points) - 1, i + 2)] - points[i]
                if before @ after < 0:
                    words.append("/")
        lifts.append(" ".join(words))
    return " ; ".join(lifts)


def simplified(points: np.ndarray) -> list[int]:
    """The fewest points, added one by one, whose spline stays near all."""
    last = len(points) - 1
    kept = (
        [0, last]
        if np.linalg.norm(points[0] - points[last]) >= 8
        else [0, len(points) // 3, 2 * len(points) // 3, last]
    )
    while len(kept) < MOST:
        off = np.linalg.norm(points[:, None] - curve(points[kept])[None], axis=2).min(1)
        worst = int(off.argmax())
        if off[worst] < NEAR or worst in kept:
            break
        kept = sorted([*kept, worst])
    return kept


def curve(points: np.ndarray) -> np.ndarray:
    """Eight dots a piece along the spline of Catmull and Rom through points (n, 2)."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    a, b, c, d = (padded[i : len(points) - 1 + i, None] for i in range(4))
    t = np.linspace(0, 1, 8)[:, None]
    bent = b + (c - a) / 2 * t + (a - 2.5 * b + 2 * c - d / 2) * t**2 + (1.5 * (b - c) + (d - a) / 2) * t**3
    return bent.reshape(-1, 2)


def pairs(ways: list[tuple[np.ndarray, str]], generator: np.random.Generator) -> list[str]:
    """So many forms of one digit."""
    forms: list[str] = []
    taken: set[frozenset[int]] = set()
    for i in generator.permutation(len(ways)):
        own, writer = ways[i]
        apart = [
            (float(np.sqrt(((other - own) ** 2).sum(2).mean())), j)
            for j, (other, whose) in enumerate(ways)
            if len(other) == len(own) and whose != writer
        ]
        distance, j = min(apart, default=(np.inf, -1))
        if 1 <= distance <= ALIKE and frozenset((int(i), j)) not in taken:
            taken.add(frozenset((int(i), j)))
            forms.append(text(mean(own, ways[j][0])))
        if len(forms) == FORMS + SPARE:
            break
    return forms


def recognised(forms: dict[str, tuple[str, ...]]) -> list[np.ndarray]:
    """Of each form, the share of its own digit among the five forms that look most like it."""
    with mock.patch.object(glyphs, "STROKES", forms):
        simulator, vectors = Digits(shapes="strokes"), []
        for label, own in enumerate(forms.values()):
            n = len(own)
            plain = {"aspect": torch.ones(n), "softness": torch.ones(n)}
            plain |= {"pen": torch.full((n,), 0.12), "slant": torch.zeros(n), "rotation": torch.zeros(n)}
            plain |= {"warp": torch.zeros(n, 18), "face": torch.arange(n), "label": torch.full((n,), label)}
            plain |= {"points": torch.zeros(n, simulator.space["points"].size)}
            vectors.append(simulator.embedder(simulator.render(plain)))
    labels = torch.arange(len(forms)).repeat_interleave(torch.tensor([len(own) for own in forms.values()]))
    every = torch.cat(vectors)
    near = torch.cdist(every, every).fill_diagonal_(torch.inf).topk(5, largest=False).indices
    share = (labels[near] == labels[:, None]).float().mean(1)
    return [share[labels == label].numpy() for label in range(len(forms))]


def main(folder: Path) -> None:
    """Print the file."""
    ways: dict[int, list[tuple[np.ndarray, str]]] = {label: [] for label in range(10)}
    for label, writer, parts in digits_of(folder):
        drawn = way(label, parts)
        if drawn is not None:
            ways[label].append((drawn, writer))
    generator = np.random.default_rng(0)
    found = {str(label): pairs(ways[label], generator) for label in range(10)}
    print(HEAD, end="")
    for (label, forms), share in zip(found.items(), recognised({k: tuple(v) for k, v in found.items()}), strict=True):
        seen = set(strokes._DRAWN[label])
        for i, form in enumerate(forms):
            if form in seen:
                share[i] = -1
            seen.add(form)
        best = [i for i in np.argsort(-share, kind="stable")[:FORMS] if share[i] >= 0]
        print("\n".join(f"{label} {forms[i]}" for i in sorted(best)))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "include").is_dir():
        sys.exit(f"usage: {sys.argv[0]} FOLDER, which holds UNIPEN's data/ and include/")
    main(Path(sys.argv[1]))
