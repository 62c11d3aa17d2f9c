"""Text as samples: bytes of a fixed length, read from tables and written to one; and what every source of text shares.

Random asks a language model for a text of a class, about a keyword; Variation lets it fill blanks in a text, or
rephrase it, as in Augmented Private Evolution (Xie et al., "Differentially Private Synthetic Data via Foundation Model
APIs 2: Text", ICML 2024, 3.2 and appendix). The models are in :mod:`simpe.simulators.foundation.language` and
:mod:`simpe.simulators.foundation.remote`.
"""

from __future__ import annotations

import copy
import csv
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from simpe import metrics
from simpe.data import DataSet, label_text
from simpe.embedders.sentences import Sentences
from simpe.errors import InputError
from simpe.protocols import Embedder
from simpe.release import Release, named_labels
from simpe.rendering import Slow
from simpe.scheduling import Strategy
from simpe.space import Opaque, ParameterSpace, Params

LENGTH = 256
"""Bytes of a text, at most, where nothing else is said."""

BLANK = "____"
"""What stands in a prompt for a word to be filled in."""

TABLE = "texts.csv"
"""The table of a release."""

_MOST_LENGTH = 8192
_MOST_CONTRAST = 20
_SHOWN = 2048  # bytes of texts that a prompt shows, at most
_WORD = re.compile(r"(\w+(?:['’-]\w+)*)")
_FIELD_LIMIT = 1 << 24  # bytes of a field of a CSV


def encode(texts: Sequence[str], length: int) -> Tensor:
    """Texts -> uint8 (n, length): UTF-8 with single spaces between words, cut between characters, zeros behind it."""
    rows = np.zeros((len(texts), length), dtype=np.uint8)
    for row, text in zip(rows, texts, strict=True):
        words = " ".join(text.replace("\0", " ").split()).encode("utf-8", "ignore")
        if len(words) > length:
            words = words[:length].decode("utf-8", "ignore").rstrip().encode()
        row[: len(words)] = np.frombuffer(words, dtype=np.uint8)
    return torch.from_numpy(rows)


def decode(samples: Tensor | np.ndarray) -> list[str]:
    """uint8 (n, length) -> texts; bytes that are no UTF-8 are left out."""
    rows = samples.cpu().numpy() if isinstance(samples, Tensor) else samples
    return [row.tobytes().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "ignore") for row in rows]


@dataclass(frozen=True)
class Draft:
    """A text with blanks: ``pieces`` are strings that stay, each with the spaces around it, or None for a word."""

    pieces: tuple[str | None, ...]

    def __str__(self) -> str:
        return "".join(BLANK if piece is None else piece for piece in self.pieces)


def blank(text: str, share: float, generator: torch.Generator) -> Draft:
    """A draft of a text in which each word is a blank with probability ``share``; punctuation stays."""
    parts = _WORD.split(text)  # every second one is a word
    hidden = torch.rand(len(parts) // 2, generator=generator, dtype=torch.float64) < share
    pieces: list[str | None] = []
    for i, part in enumerate(parts):
        if i % 2 and hidden[i // 2]:
            pieces.append(None)
        elif part and pieces and pieces[-1] is not None:
            pieces[-1] += part
        elif part:
            pieces.append(part)
    return Draft(tuple(pieces))


def check_template(name: str, template: str, fields: Sequence[str]) -> None:
    """Raise InputError unless a prompt template is a text whose fields, such as {label}, are among ``fields``."""
    known = ", ".join(f"{{{field}}}" for field in fields)
    try:
        parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"{name}: {error}; its fields are {known}, and a brace is written twice") from None
    unknown = next((field for field, form, how in parts if field not in fields or form or how), None)
    if unknown is not None:
        raise InputError(f"{name}: {{{unknown}}} is none of its fields {known}; a brace is written twice")
    if not template.strip():
        raise InputError(f"{name}: is empty; write what the model is to make")


def templates_of(
    name: str, templates: str | Mapping[str, str], classes: Sequence[str], fields: Sequence[str]
) -> list[str]:
    """The template of each class, from one for all or one for each; checked.

    Raises InputError where a class has none, or a field is unknown.
    """
    if isinstance(templates, str):
        found = [templates] * len(classes)
    else:
        missing = next((label for label in classes if label not in templates), None)
        if missing is not None:
            raise InputError(f"{name}: has none for the class {missing!r}; give one for each class, or one for all")
        found = [templates[label] for label in classes]
    for template in found:
        check_template(name, template, fields)
    return found


class Text(Slow):
    """What sources of text share; a subclass writes (:meth:`write`) and rewrites (:meth:`fill`).

    - ``classes``: their names, public, in label order; none where the texts have no labels.
    - ``about``: what the texts are, in a few public words: "short customer message".
    - ``keywords``: public words, one of which Random gives each text to be about.
    - ``prompt``: what Random asks, with the fields {label} and {keyword}; one for all classes, or one for each.
    - ``rephrase``: what Variation asks, with the fields {label} and {text}; without it, Variation fills blanks.
    - ``contrast``: with it, Variation also shows the model as many texts of the class that noisy votes favoured in the
      step before, and as many that they did not, as WASP does (Zou et al., ICML 2025).
    - ``length``: bytes of a text, at most, public: longer ones are cut, private ones too.
    - ``text``, ``label``: columns of the private table.

    Samples are uint8 (n, length), see :func:`encode`. Variation at strength s makes each word a blank with
    probability min(1, s), and lets the model fill them in; a text without words is asked for anew.

    **Guarantee.** A model gets prompts, which are public, and texts that it wrote itself and noisy votes chose:
    post-processing. Nothing private is given to it.

    Raises InputError where something does not fit.
    """

    strategy = Strategy(start=6, children=2, strength=0.6)
    mixes = "text"

    def __init__(
        self,
        classes: Sequence[str] = (),
        about: str = "short text",
        keywords: Sequence[str] = (),
        prompt: str | Mapping[str, str] | None = None,
        rephrase: str | None = None,
        contrast: int = 0,
        length: int = LENGTH,
        text: str = "text",
        label: str | None = None,
        embedder: Embedder | None = None,
    ):
        if len(set(classes)) < len(classes) or "" in classes:
            raise InputError("classes must be different, non-empty names")
        if not 8 <= length <= _MOST_LENGTH:
            raise InputError(f"length must lie between 8 and {_MOST_LENGTH} bytes, got {length}")
        if isinstance(keywords, str) or not all(isinstance(word, str) and word.strip() for word in keywords):
            raise InputError("keywords must be a list of words")
        if not 0 <= contrast <= _MOST_CONTRAST:
            raise InputError(f"contrast must lie between 0 and {_MOST_CONTRAST} texts, got {contrast}")
        self.classes = tuple(classes)
        self.about = about
        self.keywords = tuple(keywords)
        self.prompt = self._default_prompt() if prompt is None else prompt
        self.rephrase = rephrase
        self.contrast = contrast
        self._shown: dict[str, str] = {}
        self.length = length
        self.text, self.label = text, label
        self._prompts = templates_of("prompt", self.prompt, self.classes or ("",), ("label", "keyword"))
        if rephrase is not None:
            check_template("rephrase", rephrase, ("label", "text"))
        self.space = ParameterSpace(text=Opaque((length,), torch.uint8))
        self.embedder = embedder or Sentences()

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """An answer to each prompt; all that is random in it follows from its seed."""
        raise NotImplementedError

    def fill(self, drafts: Sequence[Draft], labels: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Each draft, a text of the class ``labels[i]`` ("" where there are none), with its blanks filled in."""
        raise NotImplementedError

    def to_fill(self, draft: Draft, label: str, more: str = "") -> str:
        """What asks a model to fill in the blanks of a draft of the class ``label``."""
        kind = f'{self.about} of the kind "{label}"' if label else self.about
        return f"{self._shown.get(label, '')}Fill in the blanks of this {kind}.{more}\n\n{draft}"

    def after(self, p: Params, counts: Tensor) -> Self:
        """Itself, or, with ``contrast``, a copy that shows the model texts of high and of low noisy ``counts`` (n,)."""
        if not self.contrast:
            return self
        told = copy.copy(self)
        told.report_to(self.progress)
        texts, labels = decode(p["text"]), p["label"].tolist()
        ranked: dict[str, dict[str, None]] = {}
        for i in counts.cpu().argsort(descending=True, stable=True).tolist():
            if texts[i]:
                ranked.setdefault(self._name(labels[i]), {})[texts[i]] = None
        told._shown = {label: _contrasted(list(best), self.contrast) for label, best in ranked.items()}
        return told

    def random_of(self, labels: Tensor, generator: torch.Generator) -> Params:
        """Random: a text for each label, int64 (n,), about a keyword drawn uniformly."""
        drawn = torch.randint(max(1, len(self.keywords)), labels.shape, generator=generator)
        prompts = [
            self._prompts[label].format(label=self._name(label), keyword=self.keywords[i] if self.keywords else "")
            for label, i in zip(labels.tolist(), drawn.tolist(), strict=True)
        ]
        return {"text": encode(self.write(prompts, _seeds(len(labels), generator)), self.length)}

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation: the texts with a share of their words filled in anew, or rephrased; as they are at strength 0."""
        if strength <= 0:
            return {"text": p["text"].clone()}
        texts, labels, device = decode(p["text"]), p["label"].cpu(), p["text"].device
        names = [self._name(label) for label in labels.tolist()]
        drafts = [blank(text, min(1.0, strength), generator) for text in texts]
        seeds = _seeds(len(texts), generator)
        if self.rephrase is not None:
            asked = [
                self._shown.get(name, "") + self.rephrase.format(label=name, text=text)
                for name, text in zip(names, texts, strict=True)
            ]
            written = self.write(asked, seeds)
        else:
            changed = [i for i, draft in enumerate(drafts) if None in draft.pieces]
            some = self.fill([drafts[i] for i in changed], [names[i] for i in changed], [seeds[i] for i in changed])
            written = list(texts)
            for i, new in zip(changed, some, strict=True):
                written[i] = new
        found = encode(written, self.length)
        empty = torch.tensor([not text for text in texts])
        if bool(empty.any()):
            found[empty] = self.random_of(labels[empty], generator)["text"]
        return {"text": found.to(device)}

    def render(self, p: Params) -> Tensor:
        """The texts, uint8 (n, length)."""
        return p["text"]

    def adopt(self, samples: Tensor, p: Params) -> Params:
        """Texts that another source wrote, to be varied by this one.

        Raises InputError where they have another length.
        """
        if samples.dtype != torch.uint8 or tuple(samples.shape[1:]) != (self.length,):
            raise InputError(f"a source of texts of {self.length} bytes can go on from texts of that length alone")
        return {"text": samples}

    def public_inputs(self) -> dict[str, Any]:
        """What a text is asked for with."""
        return {
            "classes": list(self.classes),
            "about": self.about,
            "keywords": list(self.keywords),
            "prompt": self.prompt if isinstance(self.prompt, str) else dict(self.prompt),
            "variation": "fills blanks" if self.rephrase is None else self.rephrase,
            **({"contrast": self.contrast} if self.contrast else {}),
            "length": self.length,
        }

    def read(self, private: tuple[str, ...], unit: str | None, progress: Callable[[str, int, int], None]) -> DataSet:
        """Read tables of texts, CSV or Parquet: the columns of text, label and, where one is named, unit.

        Each row for itself: one without a text that can be read is dropped, and a long one is cut.

        Raises InputError where a table or a column is missing.
        """
        wanted = [name for name in (self.text, self.label, unit) if name is not None]
        columns: dict[str, list[str]] = {name: [] for name in wanted}
        lost = 0
        for name in private:
            for row in _rows(Path(name), wanted):
                if row is None:
                    lost += 1
                    continue
                for column, value in zip(wanted, row, strict=True):
                    columns[column].append(value)
        if lost:
            progress(f"left out: {lost} rows that cannot be read, or have no text", 0, 0)
        if not columns[self.text]:
            raise InputError(f"{', '.join(private)}: no row has a text in column {self.text!r}; give others")
        return DataSet(
            encode(columns[self.text], self.length).numpy(),
            None if self.label is None else np.array(columns[self.label], dtype=np.str_),
            None if unit is None else np.array(columns[unit], dtype=np.str_),
            self.classes or None if self.label is not None else None,
            (f"Of a longer text, the first {self.length} bytes take part.",),
        )

    def export(self, release: Release, folder: Path) -> None:
        """Write the texts, and their labels if there are any, as ``texts.csv``."""
        columns = {"text": decode(release.samples)}
        if release.labels is not None:
            columns["label"] = [str(name) for name in named_labels(release.labels.numpy(), release.classes)]
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def evaluate(
        self,
        release: Path,
        against: tuple[str, ...],
        task: str | None,
        seed: int,
        progress: Callable[[str, int, int], None],
    ) -> dict[str, Any]:
        """Compare the texts of a ``release/`` folder with real ones in the sentence embedding: NOT PRIVATE.

        The figures are those of :func:`simpe.metrics.evaluate`; for the task "classify" there are the accuracies on
        the real texts of :func:`classify`.

        Raises InputError where a table cannot be read, or labels are missing for the task.
        """
        with np.load(release / "samples.npz") as arrays:
            samples, labels = arrays["samples"], arrays.get("labels")
        real = self.read(against, None, progress)
        ours, theirs = (self.embedder(torch.from_numpy(rows)).float().numpy() for rows in (samples, real.samples))
        found = metrics.evaluate(ours, labels, theirs, real.labels, seed=seed, progress=progress)
        found.pop("columns", None)
        found["feature_space"] = type(self.embedder).__name__
        if task is not None:
            if labels is None or real.labels is None:
                raise InputError("--task classify: needs texts with labels, in the release and in --against")
            names = np.array([label_text(name) for name in labels.tolist()])
            found["classify"] = classify(ours, names, theirs, real.labels)
        return found

    def _default_prompt(self) -> str:
        label = ' of the kind "{label}"' if self.classes else ""
        keyword = ' about "{keyword}"' if self.keywords else ""
        return f"Write one {self.about}{label}{keyword}."

    def _name(self, label: int) -> str:
        return self.classes[label] if self.classes else ""


def classify(x: np.ndarray, labels: np.ndarray, y: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy on embedded real rows ``y`` of what embedded samples ``x`` teach: a linear classifier (logistic
    regression), and the nearest neighbour.

    Raises InputError where the samples have one label alone.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    if len(np.unique(labels)) < 2:
        raise InputError("--task classify: the release has one label alone, so there is nothing to learn")
    linear = LogisticRegression(max_iter=1000).fit(x, labels)
    near = KNeighborsClassifier(1).fit(x, labels)
    return {"linear_accuracy": float(linear.score(y, truth)), "nearest_neighbour_accuracy": float(near.score(y, truth))}


def _contrasted(best: list[str], most: int) -> str:
    """Texts, the best first: at most so many from either end, as a model is shown them; nothing of fewer than two."""
    n = min(most, len(best) // 2)
    while n and sum(len(text.encode()) for text in (*best[:n], *best[-n:])) > _SHOWN:  # a model's room is finite
        n -= 1
    if n == 0:
        return ""
    wanted, unwanted = ("\n".join(f"- {text}" for text in part) for part in (best[:n], best[-n:]))
    return f"Wanted are texts like these:\n{wanted}\n\nNot wanted are texts like these:\n{unwanted}\n\n"


def _seeds(n: int, generator: torch.Generator) -> list[int]:
    found: list[int] = torch.randint(2**31 - 1, (n,), generator=generator).tolist()
    return found


def _rows(path: Path, wanted: list[str]) -> Iterator[tuple[str, ...] | None]:
    """The wanted cells of each row of a table, the first of them a text; None for a row that cannot be used."""
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        yield from (_usable(row) for row in (_parquet(path, wanted) if parquet else _csv(path, wanted)))
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory, or is damaged") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a table of texts") from None
    except Exception:  # csv and pyarrow quote what they could not read
        raise InputError(f"{path}: cannot be read: it is damaged, or no table; give CSV or Parquet") from None


def _usable(row: tuple[str | None, ...] | None) -> tuple[str, ...] | None:
    if row is None or not (row[0] or "").strip():
        return None
    cells = tuple(cell or "" for cell in row)
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8
        return None
    return cells


def _csv(path: Path, wanted: list[str]) -> Iterator[tuple[str | None, ...] | None]:
    csv.field_size_limit(min(_FIELD_LIMIT, sys.maxsize))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        at = _places(path, names, wanted)
        for row in rows:
            if row:
                yield tuple(row[i] for i in at) if len(row) == len(names) else None


def _parquet(path: Path, wanted: list[str]) -> Iterator[tuple[str | None, ...]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
    with parquet.ParquetFile(path) as file:
        _places(path, file.schema_arrow.names, wanted)
        for batch in file.iter_batches(columns=wanted):
            columns = [batch.column(name).to_pylist() for name in wanted]
            for row in zip(*columns, strict=True):
                yield tuple(None if cell is None else label_text(cell) for cell in row)


def _places(path: Path, names: list[str], wanted: list[str]) -> list[int]:
    missing = next((name for name in wanted if names.count(name) != 1), None)
    if missing is not None:
        # Without a line of names, the first row stands in their place, so they are not shown.
        raise InputError(f"{path}: its first line must name one column {missing!r}; add it, or choose another")
    return [names.index(name) for name in wanted]
