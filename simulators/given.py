"""A given set: synthetic samples that somebody else made, as a simulator whose candidates are all of them.

With it, a run is Private Evolution's first two steps alone: one vote, and the choice of the best (Lin et al., ICLR
2024, Alg. 1 and 2, without variation).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simpe import data
from simpe.errors import InputError
from simpe.protocols import Embedder
from simpe.simulators.gallery import Gallery
from simpe.space import Params

ORIGIN = "public, or made under a guarantee of its own"


class Given(Gallery):
    """A fixed set to choose from: a generative model's output, a vendor's set, a release.

    >>> private = simpe.PrivateData(images, labels, budget=simpe.Budget(epsilon=1, delta=1e-6))
    >>> release = simpe.evolve(Given(theirs, their_labels), None, private, samples=1_000)

    ``samples``, ``colour`` and ``embedder`` as of a :class:`Gallery`. ``labels`` (n,), integers or strings: the class
    of each; without them, those that come with a path. Rows vote for samples of their own class, and the noisy counts
    of the classes share out how many of each are kept. Where there are no labels, rows vote whatever their class.
    ``origin`` says in the certificate, in words, where the set comes from and under what guarantee.

    **What is released are members of the set, as they are,** each once, in the order of the set. The guarantee of the
    run covers which of them are chosen. Where the set itself was made with private rows, its own guarantee adds to that
    of the run, unless both are on one ledger; where it was made without one, the release has none. simpe cannot
    know: a set that is the private input by its path is refused, but no samples are compared.

    Raises InputError where there are fewer than 2 samples, they cannot be read, or labels do not fit them.
    """

    def __init__(
        self,
        samples: str | Path | ArrayLike | Tensor,
        labels: ArrayLike | None = None,
        colour: bool = False,
        embedder: str | Embedder | None = None,
        origin: str = ORIGIN,
    ):
        if isinstance(samples, str | Path):
            read = data.read(samples, colour=colour)
            samples, labels = read.samples, read.labels if labels is None else labels
        super().__init__(samples, colour, embedder)
        named = np.zeros(len(self._samples), "U1") if labels is None else np.asarray(labels)
        if named.shape != (len(self._samples),) or named.dtype.kind not in "iuUS":
            raise InputError("labels of a given set are integers or strings, one for each sample")
        names, codes = np.unique(named, return_inverse=True)
        self.classes = tuple(data.label_text(name) for name in names.tolist())
        self._labels = torch.from_numpy(codes.astype(np.int64))
        self.origin = origin

    def given(self) -> tuple[Params, Tensor]:
        """Every sample once: its index, and that of its class."""
        return {"index": torch.arange(len(self._samples))}, self._labels

    def public_inputs(self) -> dict[str, Any]:
        """The set's fingerprint, and what its operator declares of it."""
        found = super().public_inputs()
        del found["near"]  # nothing is varied
        return {
            **found,
            "simulator": "given",
            "declared": "a set to choose from, released as it is, and holding no private row",
            "origin": self.origin,
            "classes": list(self.classes),
            "labels_sha256": hashlib.sha256(self._labels.numpy().tobytes()).hexdigest(),
        }
