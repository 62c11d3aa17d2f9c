"""What a plug-in writes: a simulator (``space`` and ``render``) and, if it likes, an embedder (a function)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from simpe.space import ParameterSpace, Params

Samples = Tensor | np.ndarray


@runtime_checkable
class Simulator(Protocol):
    """A parameter space and a deterministic render.

    ``render(p)`` takes a dict of tensors with n rows each, plus ``p["label"]`` (int64 (n,), the class index of
    each row; all zeros where the run has no classes), and returns n samples: a tensor on the device of the
    parameters, or a NumPy array. It must be deterministic and row-wise: ``render(p)[i]`` equals
    ``render(p[i:i+1])[0]``; whatever is random in a sample is a parameter. Images are uint8 of shape (n, h, w) or
    (n, h, w, 3).

    Optional attributes, each used where present:

    - ``classes``: names of the classes it can draw, in label order; the default of ``--classes``.
    - ``embedder``: an Embedder that suits its samples; the default of a run.
    - ``strategy``: a Strategy that suits its space; the default of a run.
    - ``marginals``: a Marginals, public cells of its samples that a run with ``Strategy(marginals=...)`` counts.
    - ``random(n, generator) -> Params``, or ``random_of(labels, generator) -> Params`` where what is drawn depends on
      the class (``labels`` int64 (n,), on the CPU), and ``variation(p, strength, generator) -> Params``: in place of
      the space's own. ``p`` holds ``p["label"]`` as in render.
    - ``after(p, counts) -> Simulator``: itself, or a copy of it that varies in the light of the last step's votes:
      ``p`` are the parameters of all its candidates, ``counts`` their noisy votes, float64 (n,). Post-processing; the
      copy must follow from these alone, so that a run is resumed as it was.
    - ``adopt(samples, p) -> Params``: the parameters of samples that another simulator made, from which this one can
      go on in a later stage; ``p`` holds that one's parameters and ``p["label"]``.
    - ``given() -> (Params, labels)``: a fixed set of samples, with labels int64 (n,): indices into ``classes``. Then
      each of them is a candidate once, in the class of its label; the run has one step; and the best candidates are
      released as they are (``simpe filter``). The one class ``""`` says that the set has no labels.
    - ``mixes``: a word for a kind of sources whose ``read``, ``export`` and ``evaluate`` are the same and need nothing
      but samples and labels ("text"), so that a :class:`simpe.Mixture` of them can take those of the first.
    - ``colour``: True where folders of images are to be read in colour.
    - ``report_to(progress)``: takes a :data:`simpe.evolution.Progress`, to say how far it is where Random, Variation or
      export take more than a moment (:class:`simpe.rendering.Slow` has one).
    - ``public_inputs() -> dict``: what a certificate should list (files and their hashes, settings).
    - ``read(private, unit, progress) -> DataSet``: reads the private inputs, a tuple of str, in place of
      :func:`simpe.data.read`; ``unit`` is the name of the privacy unit or None, ``progress`` a
      :data:`simpe.evolution.Progress`. What a row becomes may depend on its own unit's records and on public
      settings only, and what cannot be read is dropped row by row. Raises InputError.
    - ``shards(private) -> list[tuple[str, ...]]``: the inputs of each shard, which ``read`` is given together. Where a
      row is a whole unit, ``read`` then gives its name too, so that no unit is in two shards.
    - ``export(release, folder)``: writes a finished Release into the folder in the formats of its domain, pictures
      among them, beside ``samples.npz`` and the certificate. It must be deterministic, and read nothing but them.
    - ``evaluate(release, against, task, seed, progress) -> dict``: compares a ``release/`` folder (a Path) with real
      inputs (a tuple of str), in place of :func:`simpe.metrics.evaluate`; ``task`` is "classify" or None. What it
      returns fits into JSON and is as private as the inputs. Raises InputError.
    """

    space: ParameterSpace

    def render(self, p: Params) -> Samples:
        """Parameters of n rows -> n samples."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A function from n samples to float32 vectors (n, d), row by row, on the device of the samples.

    It is fixed before the run and built from public knowledge only; nothing in it may be fitted to private rows.
    """

    def __call__(self, samples: Tensor) -> Tensor:
        """Samples (n, ...) -> embedding (n, d)."""
        ...
