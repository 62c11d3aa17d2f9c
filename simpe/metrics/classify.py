"""Utility of labelled samples: train a classifier on them, once and in a fixed way, and test it on other rows.

Images go to a small convolutional network, anything else to a random forest. Nothing is tuned and the test rows
are looked at once, after the last step, so no score is chosen among several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Progress = Callable[[str, int, int], None]
Predictor = Callable[[np.ndarray], np.ndarray]
"""Rows (n, ...) -> what is predicted of each (n,)."""

STEPS = 2000  # of training, whatever the number of rows, so that sets of different sizes cost the same
BATCH = 128
TREES = 200
TOLD_APART = 2000  # rows of each set that are told apart, at most
_RATE = 5e-3  # the highest learning rate
_LEFT_OUT = 0.3  # of what the last layer of a wide network sees, while it is trained
_SIDE = 28  # larger images are scanned in steps of more than one pixel, to about this side


@dataclass(frozen=True)
class Classification:
    """Scores on the test rows, each in [0, 1].

    ``accuracy``: share of rows whose label is predicted. ``macro_f1``: mean F1 of the classes among the test rows,
    each counting the same. ``majority``: share of the most frequent class, which is the accuracy of always
    predicting it. ``protocol``: how the classifier was trained.
    """

    accuracy: float
    macro_f1: float
    majority: float
    protocol: str


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions (16, 32 and 64 channels, batch-normalised), each halving the image, and a linear layer.

    ``wide``: twice the channels, and in training a random 0.3 of what the linear layer sees is left out (Srivastava et
    al., JMLR 2014).

    For images (n, channels, height, width), float in [0, 1], of 4 to about 100 pixels a side; it returns logits
    (n, classes). All weights are drawn from ``generator``.
    """

    def __init__(
        self, channels: int, height: int, width: int, classes: int, generator: torch.Generator, wide: bool = False
    ):
        super().__init__()
        self._generator = generator if wide else None
        first = 32 if wide else 16
        stride = max(1, round(min(height, width) / _SIDE))
        cells = -(-height // (8 * stride)) * -(-width // (8 * stride))
        with torch.device("meta"):  # otherwise each layer would draw its weights from the global generator
            self.layers = nn.Sequential(
                *_halving(channels, first, stride),
                *_halving(first, 2 * first),
                *_halving(2 * first, 4 * first),
                nn.Flatten(),
                nn.Linear(4 * first * cells, classes),
            )
        self.layers.to_empty(device="cpu")
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            elif isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, channels, height, width) -> logits (n, classes)."""
        seen: Tensor = self.layers[:-1](images)
        if self.training and self._generator is not None:  # nn.Dropout draws from the global generator
            kept = torch.rand(seen.shape, generator=self._generator) >= _LEFT_OUT
            seen = seen * kept / (1 - _LEFT_OUT)
        logits: Tensor = self.layers[-1](seen)
        return logits


def train_and_test(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seed: int = 0,
    progress: Progress | None = None,
    steps: int = STEPS,
    wide: bool = False,
) -> Classification:
    """Train a classifier on one set of rows and test it on another.

    ``train`` and ``test``: uint8 images (n, h, w) or (n, h, w, 3) of one size, for a :class:`SmallCNN`; float arrays
    (n, ...), flattened, for a random forest of 200 trees (Breiman, 2001). ``wide`` is the network's: it takes twice as
    long, and learns more from the same images, real or not. Labels (n,) are integers or strings, and 7
    is the same class as "7"; a test row of a class that was not trained on counts as wrong.

    The network takes ``steps`` steps of AdamW on batches of 128 rows, one cycle of learning rates (Smith, 2018),
    labels smoothed by 0.05. Each image is shifted by up to 1/14 of its side (2 pixels at 28 x 28). The seed decides
    everything that is random, and no global generator is used; results repeat on the same machine.
    """
    predict, protocol = trained(train, train_labels, seed, progress, steps, wide)
    return _score(predict(test), label_names(test_labels), protocol)


def trained(
    train: np.ndarray,
    train_labels: np.ndarray,
    seed: int = 0,
    progress: Progress | None = None,
    steps: int = STEPS,
    wide: bool = False,
) -> tuple[Predictor, str]:
    """The classifier of :func:`train_and_test`, and how it was trained.

    It takes rows (n, ...) like those it was trained on, and gives their labels as strings (n,), row by row; of an image
    to the rounding of a network, which depends on how many come at once.
    """
    classes, targets = np.unique(label_names(train_labels), return_inverse=True)
    if train.dtype == np.uint8:
        shift = _reach(train.shape[1:3])
        predict = _train_network(train, targets, seed, progress, steps, wide)
        size = "small CNN, wide" if wide else "small CNN"
        protocol = f"{size}, {steps} steps of {BATCH} rows, shifts of up to {shift[0]} x {shift[1]} pixels"
    else:
        predict = _train_forest(train, targets, seed, progress)
        protocol = f"random forest of {TREES} trees"
    return lambda rows: classes[predict(rows)], protocol


def discriminator_auc(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """How well a classifier tells two sets of rows apart: area under the ROC curve; 0.5 is not at all, 1 wholly.

    ``x`` (n, d) and ``y`` (m, d), of which as many random rows are taken, at most 2,000. A random forest of 200 trees
    is trained on one half of them and tested on the other, and the other way round; the figure is the mean. It is
    below 0.5 by chance, or where one set holds copies of the other. (In the manner of the classifier two-sample test,
    Lopez-Paz and Oquab, ICLR 2017.)

    Raises ValueError unless both have at least 2 rows.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    few = min(len(x), len(y), TOLD_APART)
    if few < 2:
        raise ValueError("both sets need at least 2 rows")
    generator = np.random.default_rng(seed)
    rows = np.stack([part[generator.permutation(len(part))[:few]] for part in (x, y)], axis=1)  # in pairs
    half = few // 2
    truth = np.array([0, 1])
    scores = []
    for train, test in (rows[:half], rows[half:]), (rows[half:], rows[:half]):
        forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=-1)
        forest.fit(train.reshape(-1, rows.shape[2]), np.tile(truth, len(train)))
        guessed = forest.predict_proba(test.reshape(-1, rows.shape[2]))[:, 1]
        scores.append(roc_auc_score(np.tile(truth, len(test)), guessed))
    return float(np.mean(scores))


def label_names(labels: np.ndarray) -> np.ndarray:
    """Labels (n,), integers, strings or bytes, as strings: 7, "7" and b"7" are one class."""
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "surrogateescape")
    return labels.astype(str)


def _halving(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 2 * stride + 1, stride, padding=stride, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),  # first, so that the rest has a quarter to do
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


def _train_network(
    train: np.ndarray, targets: np.ndarray, seed: int, progress: Progress | None, steps: int, wide: bool
) -> Predictor:
    generator = torch.Generator().manual_seed(seed)
    x, y = _channels(train), torch.from_numpy(targets)
    n, height, width, channels = x.shape
    network = SmallCNN(channels, height, width, int(y.max()) + 1, generator, wide)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.2)
    passes = [torch.randperm(n, generator=generator) for _ in range(-(-steps * BATCH // n))]
    for step, rows in enumerate(torch.split(torch.cat(passes)[: steps * BATCH], BATCH)):
        images = _as_input(_shifted(x[rows], generator))
        loss = functional.cross_entropy(network(images), y[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress("training the classifier", step + 1, steps)
    network.eval()

    def predict(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found = [network(_as_input(part)).argmax(dim=1) for part in torch.split(_channels(rows), 1024)]
        return torch.cat(found).numpy()

    return predict


def _train_forest(train: np.ndarray, targets: np.ndarray, seed: int, progress: Progress | None) -> Predictor:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=-1)
    forest.fit(train.reshape(len(train), -1), targets)
    if progress is not None:
        progress("training the classifier", 1, 1)

    def predict(rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = forest.predict(rows.reshape(len(rows), -1))
        return found

    return predict


def _channels(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w) or (n, h, w, 3) -> (n, h, w, channels)."""
    return torch.tensor(np.ascontiguousarray(images if images.ndim == 4 else images[..., None]))


def _as_input(images: Tensor) -> Tensor:
    """uint8 (n, h, w, channels) -> float (n, channels, h, w), which lies in memory as it did."""
    return images.permute(0, 3, 1, 2).float() / 255


def _reach(size: tuple[int, ...]) -> tuple[int, ...]:
    """How many pixels an image of this size is shifted at most, along each side."""
    return tuple(max(1, side // 14) for side in size)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, h, w, channels) moved by its own few pixels; the edge is repeated."""
    n, *size = images.shape[:3]
    down, across = (
        (torch.arange(side) + torch.randint(-most, most + 1, (n, 1), generator=generator)).clamp(0, side - 1)
        for side, most in zip(size, _reach(tuple(size)), strict=True)
    )
    return images[torch.arange(n)[:, None, None], down[:, :, None], across[:, None, :]]


def _score(predicted: np.ndarray, truth: np.ndarray, protocol: str) -> Classification:
    classes, counts = np.unique(truth, return_counts=True)
    f1 = [2 * np.sum((predicted == c) & (truth == c)) / (np.sum(predicted == c) + np.sum(truth == c)) for c in classes]
    return Classification(
        accuracy=float(np.mean(predicted == truth)),
        macro_f1=float(np.mean(f1)),
        majority=float(counts.max() / len(truth)),
        protocol=protocol,
    )
