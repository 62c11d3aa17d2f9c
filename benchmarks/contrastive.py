"""The embedder of the kind `contrastive` in digits.py: what a network learnt from the digits simulator alone, beside
the default. It is fitted where it is not there yet (some minutes), and kept: a fit repeats on one machine only."""

from pathlib import Path

from simpe.embedders.contrastive import Beside, Contrastive
from simpe.embedders.images import PixelsAndGradients
from simpe.simulators.digits import Digits

KEPT = Path("runs/benchmark/contrastive.npz")

if not KEPT.exists():
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    Contrastive.fit(Digits()).save(KEPT)
embedder = Beside((PixelsAndGradients(), Contrastive.load(KEPT)), (1.0, 0.6))
