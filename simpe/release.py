"""What may be given away: the synthetic samples, pictures of them, and the certificate."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from simpe import pictures
from simpe.errors import InputError
from simpe.fingerprint import versions
from simpe.privacy.accounting import Charge
from simpe.privacy.ledger import Ledger
from simpe.private import PrivateData
from simpe.space import Params

_LAWS = {"discrete gaussian": "discrete Gaussian", "skellam": "Skellam noise, a share from each party,"}


@dataclass(frozen=True)
class Release:
    """A finished run.

    ``samples`` (n, ...): uint8 for images. ``labels`` int64 (n,): indices into ``classes``, or None. ``params``:
    the simulator parameters of every sample. ``certificate``: see :func:`certificate`. ``evolution``: samples of the
    same slots, step by step. ``history``: the noisy counts behind them, see :func:`simpe.evolution.history`.
    ``survivors``: the parameters of all survivors of each step of the last stage.
    ``ledger`` is the operator's and not for release. ``export`` is the simulator's own (see :class:`simpe.Simulator`),
    or None.
    """

    samples: Tensor
    labels: Tensor | None
    params: Params
    classes: tuple[str, ...]
    certificate: dict[str, Any]
    evolution: list[Tensor]
    history: dict[str, np.ndarray]
    survivors: list[Params] = field(repr=False)
    ledger: Ledger = field(repr=False)
    export: Callable[[Release, Path], None] | None = field(default=None, repr=False)

    def files(self) -> dict[str, bytes]:
        """The contents of ``release/``, without what the simulator exports: name -> bytes."""
        kind = "images" if pictures.is_image(self.samples) else "samples"
        arrays: dict[str, Any] = {kind: self.samples.numpy()}
        if self.labels is not None:
            arrays["labels"] = named_labels(self.labels.numpy(), self.classes)
        arrays |= {f"param_{name}": value.numpy() for name, value in self.params.items()}
        steps = [row.numpy() for row in self.evolution]
        files = {
            "samples.npz": _npz(arrays),
            "history.npz": _npz({**self.history, "evolution": np.stack(steps)}),
            "certificate.json": (json.dumps(self.certificate, indent=2) + "\n").encode(),
        }
        if self.export is None:  # else it brings its own pictures
            files["grid.png"] = _png(pictures.grid(self.samples, self.labels))
            files["evolution.png"] = _png(pictures.mosaic(self.evolution))
        return files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a run folder: ``release/`` to give away, and ``private/`` with the ledger for the operator.

        Raises InputError when the folder exists or cannot be written.
        """
        from simpe.store import save_release

        return save_release(Path(path), self)


def named_labels(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Class indices -> what the classes are called: int64 where every name is a number as it is written, else strings.

    So "01" stays a string: as a number it would be another name.
    """
    numbers = all(name.isdecimal() and len(name) < 19 and str(int(name)) == name for name in classes)
    names = np.array([int(name) for name in classes], dtype=np.int64) if numbers else np.array(classes)
    return np.take(names, labels)


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and labels of a release's ``samples.npz``.

    Raises InputError when it is not there.
    """
    if not path.is_file():
        raise InputError(f"{path}: not there; give the folder of a finished run")
    try:
        with np.load(path) as arrays:
            kind = "images" if "images" in arrays else "samples"
            return arrays[kind], arrays.get("labels")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path}: damaged or not a release; make it again") from None


def certificate(private: PrivateData, public: dict[str, Any], given: bool = False) -> dict[str, Any]:
    """The guarantee and everything it rests on. Nothing in it derives from private rows without having been paid for.

    ``public`` are the declared public inputs of the run. What is claimed covers everything on the ledger; where the
    run chose among ``given`` samples, the choice and not the samples.
    """
    ledger = private.ledger
    with ledger.locked():
        budget = ledger.total(private.budget)
        records, charges, adaptive = ledger.releases(), ledger.committed(), ledger.adaptive
        spent = ledger.spent(budget)
    own = [record for record in records if record["run"] == private.run]
    released = Counter(Charge(**record["charge"]) for record in own)
    # What an adaptive run planned counts as spent, whatever it released within that.
    others = Counter(charges) - (Counter(ledger.pool(private.run)) or released)
    exact = all(record["noise"] != "test" for record in records)
    unit = private.unit if private.one_bin else f"unit ({private.unit}; at most {private.k} rows of each take part)"
    claim = f"({budget.epsilon:g}, {budget.delta:g})-differentially private, for neighbouring data sets that "
    claim += f"differ by {'adding or removing' if budget.relation == 'add_remove' else 'replacing'} one {unit}"
    if given:
        claim = f"the choice among the given samples is {claim}; what they were made with adds to it"
    return {
        "format": "simpe certificate 1",
        "private": exact,
        "statement": claim if exact else "NOT PRIVATE: noise for tests was used",
        "covers": "the choice among the given samples alone" if given else "the samples",
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "spent_epsilon": spent,
        "relation": budget.relation,
        "unit": private.unit,
        "k": private.k,
        "sensitivity": {
            "add_remove": "a unit's integer vector over all bins of a release has L2 norm at most S",
            "replace_one": "two such vectors differ by at most sqrt(2) S; counted as two",
        }[budget.relation],
        "mechanism": f"{_LAWS[private.law]} on integer counts, secret randomness of the operating system"
        if exact
        else "TEST NOISE",
        "accounting": "zCDP" if adaptive or not all(c.one_bin for c in charges) else "privacy loss distribution",
        **({"parties": private.parties} if private.parties else {}),
        "scope": "everything on this data set's ledger so far; later releases on it add to this"
        if adaptive
        else "this run alone; runs on the same data add up",
        "charges": [
            {
                "release": record["address"],
                **record["charge"],
                "noise_multiplier": record["charge"]["sigma"] / record["charge"]["sensitivity"],
            }
            for record in own
        ],
        "other_charges_on_the_ledger": [asdict(charge) for charge in others.elements()],
        "public_inputs": public,
        "versions": versions(),
        "caveats": [
            "Copying or rolling back the operator's private folder voids this certificate.",
            "It covers what is in the release folder, not the operator's terminal, timing or private folder.",
            *(
                [
                    "It covers the choice alone, and composes with whatever the given set was made with: where private "
                    "rows had a part in that, its epsilon and delta add to these, unless they are on this ledger."
                ]
                if given
                else []
            ),
            *private.caveats,
        ],
    }


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
