"""Metrics: ten-line references, what must hold of any distance, and a classifier that learns only what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from simpe.data import read
from simpe.errors import InputError
from simpe.metrics import evaluate
from simpe.metrics.classify import Classification, SmallCNN, discriminator_auc, train_and_test
from simpe.metrics.distance import frechet_distance, kernel_distance, support

RNG = np.random.default_rng


def textbook_frechet(x: NDArray[Any], y: NDArray[Any]) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root))


def normal(seed: int, n: int, d: int) -> NDArray[np.float64]:
    rng = RNG(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def whitened(seed: int, n: int, d: int) -> NDArray[np.float64]:
    """Rows whose sample mean is 0 and whose sample covariance is the identity, to rounding."""
    x = RNG(seed).normal(size=(n, d))
    q, _ = np.linalg.qr(x - x.mean(0))
    return q * np.sqrt(n - 1)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_is_the_textbook_formula(seed: int) -> None:
    x, y = normal(seed, 200, 7), normal(seed + 100, 300, 7)
    assert frechet_distance(x, y) == pytest.approx(textbook_frechet(x, y), rel=1e-9)


def test_frechet_of_diagonal_gaussians_has_a_closed_form() -> None:
    rng = RNG(0)
    s, t, mean = rng.uniform(0.5, 2, 6), rng.uniform(0.5, 2, 6), rng.normal(size=6)
    found = frechet_distance(whitened(1, 50, 6) * s, whitened(2, 80, 6) * t + mean)
    assert found == pytest.approx(np.square(s - t).sum() + np.square(mean).sum(), rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(500, 5), (10, 40), (2, 3)])
def test_frechet_holds_for_singular_covariances(n: int, d: int) -> None:
    x, y = normal(0, n, d), normal(1, n + 3, d)
    shift = RNG(2).normal(size=d)
    size = np.square(x).sum()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12 * size)
    assert frechet_distance(x, x[::-1] + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert frechet_distance(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * np.trace(np.cov(x.T)), rel=1e-9)


def test_frechet_of_sets_in_orthogonal_directions_has_no_overlap() -> None:
    x, y = np.zeros((9, 4)), np.zeros((9, 4))
    x[:, 0], y[:, 3] = np.arange(9), np.arange(9) - 4
    assert frechet_distance(x, y) == pytest.approx(16 + 2 * np.var(np.arange(9), ddof=1), rel=1e-12)


@pytest.mark.parametrize(("x", "y"), [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,))])
def test_frechet_refuses_shapes_that_do_not_fit(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows are needed"):
        frechet_distance(np.zeros(x), np.zeros(y))


def textbook_precision(x: NDArray[Any], y: NDArray[Any], k: int) -> float:
    """Share of x within a ball around some y that reaches to its k-th nearest other."""
    within = 0
    reach = [np.sort(np.linalg.norm(y - row, axis=1))[k] for row in y]
    for row in x:
        within += bool((np.linalg.norm(y - row, axis=1) <= reach).any())
    return within / len(x)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_precision_and_recall_are_the_textbook_s(k: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpe.metrics.distance._ROWS", 7)
    x, y = normal(0, 60, 3) + shift, 1.5 * normal(0, 90, 3) + shift
    found = support(x, y, k)[:2]
    assert found == (textbook_precision(x, y, k), textbook_precision(y, x, k))
    assert found != (textbook_precision(y, x, k), textbook_precision(x, y, k))
    assert found != support(x, y, k + 1)[:2]


@pytest.mark.parametrize("wide", [1, 5])
def test_density_and_coverage_are_the_textbook_s(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpe.metrics.distance._ROWS", 7)
    x, y = normal(0, 60, 3), 1.5 * normal(0, 90, 3)
    reach = [np.sort(np.linalg.norm(y - row, axis=1))[wide] for row in y]
    held = [(np.linalg.norm(x - row, axis=1) <= far).sum() for row, far in zip(y, reach, strict=True)]
    found = support(x, y, wide=wide)
    assert found.density == pytest.approx(sum(held) / (wide * len(x)))
    assert found.coverage == pytest.approx(np.mean([one > 0 for one in held]))


def test_an_outlier_widens_precision_and_hardly_density() -> None:
    """Naeem et al., figure 1: one real outlier among tight real rows lets scattered samples count as precise."""
    rng = RNG(0)
    y = np.concatenate([rng.normal(size=(200, 2)) * 0.1, [[30.0, 0]]])
    x = rng.normal(size=(200, 2)) * 3 + [20, 0]
    found = support(x, y)
    assert found.precision > 0.9
    assert found.density < 0.3
    assert found.coverage < 0.1
    assert support(y, y).coverage == 1


def textbook_kernel_distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    return float(xx + yy - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def test_kernel_distance_is_the_textbook_s_and_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpe.metrics.distance._ROWS", 7)
    x, y = normal(0, 20, 4), normal(1, 25, 4)
    assert kernel_distance(x, y) == pytest.approx(textbook_kernel_distance(x, y), rel=1e-9)
    twins = [kernel_distance(RNG(i).normal(size=(12, 3)), RNG(i + 999).normal(size=(9, 3))) for i in range(400)]
    assert abs(np.mean(twins)) < 4 * np.std(twins) / 20
    assert min(twins) < 0  # the biased one, with the diagonal, never is
    with pytest.raises(ValueError, match="are needed"):
        kernel_distance(np.zeros((1, 2)), np.zeros((3, 2)))


def test_the_discriminator_tells_apart_what_differs_and_nothing_else() -> None:
    x, y = RNG(0).normal(size=(400, 5)), RNG(1).normal(size=(300, 5))
    assert discriminator_auc(x, y) == pytest.approx(0.5, abs=0.08)
    assert discriminator_auc(x, y + 5) == 1
    assert 0.6 < discriminator_auc(x, y + np.eye(5)[0]) < 0.95
    assert discriminator_auc(x, y) == discriminator_auc(x, y)
    with pytest.raises(ValueError, match="at least 2 rows"):
        discriminator_auc(x[:1], y)


def test_precision_falls_with_what_is_odd_and_recall_with_what_is_missing() -> None:
    y = RNG(0).normal(size=(300, 4))
    assert support(y, y)[:2] == (1, 1)
    odd, narrow = y.copy(), y.copy()
    odd[::4] += 100
    narrow[narrow[:, 0] > 0] *= 0
    assert support(odd, y)[:2] == (0.75, pytest.approx(0.96, abs=0.04))
    assert support(narrow, y)[:2] == (1, pytest.approx(0.7, abs=0.15))


def test_copies_lie_within_though_their_balls_are_points() -> None:
    """Every vector four times, far from 0: a distance that rounding makes positive must not count."""
    x = np.repeat(RNG(0).normal(size=(50, 30)) + 1e3, 4, axis=0).astype(np.float32)
    assert support(x, x[::-1])[:2] == (1, 1)
    assert support(x, x + np.float32(0.01))[:2] == (0, 0)


@pytest.mark.parametrize(
    ("x", "y", "k"), [((4, 3), (5, 4), 3), ((3, 3), (9, 3), 3), ((9, 3), (3, 3), 3), ((9, 3), (9, 3), 0)]
)
def test_precision_refuses_shapes_that_do_not_fit(x: tuple[int, ...], y: tuple[int, ...], k: int) -> None:
    with pytest.raises(ValueError, match="are needed"):
        support(np.zeros(x), np.zeros(y), k, 3)


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    data = read("sklearn")
    assert data.labels is not None
    order = RNG(0).permutation(len(data.samples))
    x, y = data.samples[order], data.labels[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


STEPS = 150  # enough for 8 x 8 digits


def learn(labels: NDArray[Any], seed: int = 0, steps: int = STEPS, wide: bool = False) -> Classification:
    train, _, test, test_labels = digits()
    return train_and_test(train, labels, test, test_labels, seed=seed, steps=steps, wide=wide)


@pytest.mark.parametrize("wide", [False, True])
def test_the_network_learns_digits(wide: bool) -> None:
    found = learn(digits()[1], wide=wide)
    assert found.accuracy > 0.95
    assert found.macro_f1 > 0.95
    assert found.majority == np.bincount(digits()[3]).max() / len(digits()[3])


@pytest.mark.parametrize("wide", [False, True])
def test_the_network_learns_nothing_from_shuffled_labels(wide: bool) -> None:
    assert learn(RNG(0).permutation(digits()[1]), wide=wide).accuracy < 0.3


def test_a_wide_network_leaves_out_three_tenths_in_training_and_nothing_in_use() -> None:
    network = SmallCNN(1, 28, 28, 10, torch.Generator().manual_seed(0), wide=True)
    seen: list[torch.Tensor] = []
    network.layers[-1].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    x = torch.rand((100, 1, 28, 28), generator=torch.Generator().manual_seed(1))
    network.layers.eval()  # the batch's statistics must not differ between the two
    network(x)
    network.training = False
    network(x)
    left_out = (seen[0] == 0) & (seen[1] > 0)
    assert seen[1].shape == (100, 128 * 16)
    assert abs(left_out.sum() / (seen[1] > 0).sum() - 0.3) < 0.02  # over 50,000 draws: 10 standard deviations
    torch.testing.assert_close(seen[0][~left_out], (seen[1] / 0.7)[~left_out])


def test_the_forest_learns_digits_and_nothing_from_shuffled_labels() -> None:
    train, labels, test, test_labels = digits()
    x, y = train.astype(np.float32), test.astype(np.float64)
    assert train_and_test(x, labels, y, test_labels).accuracy > 0.92
    assert train_and_test(x, RNG(0).permutation(labels), y, test_labels).accuracy < 0.3
    assert train_and_test(x, labels, y, test_labels, seed=3) == train_and_test(x, labels, y, test_labels, seed=3)


def test_the_seed_decides_and_no_global_generator_is_used() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr,index] # noqa: NPY002
    labels = digits()[1]
    weights = [SmallCNN(1, 8, 8, 10, torch.Generator().manual_seed(s)).state_dict() for s in (1, 1, 2)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
    assert not torch.equal(weights[0]["layers.0.weight"], weights[2]["layers.0.weight"])
    assert learn(labels, seed=1, steps=10) == learn(labels, seed=1, steps=10)
    assert learn(labels, seed=1, steps=10, wide=True) == learn(labels, seed=1, steps=10, wide=True)
    assert learn(labels, seed=1, steps=10) != learn(labels, seed=2, steps=10)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    from simpe.metrics.classify import _score

    rng = RNG(0)
    truth, predicted = rng.integers(0, 4, 200).astype(str), rng.integers(0, 6, 200).astype(str)
    found = _score(predicted, truth, "")
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
    wanted = f1_score(truth, predicted, average="macro", labels=list("0123"))
    assert found.macro_f1 == pytest.approx(wanted)


def test_a_label_is_the_same_as_number_string_or_bytes() -> None:
    train, labels, test, test_labels = digits()
    found = [train_and_test(train, labels.astype(kind), test, test_labels, steps=10) for kind in (int, "U", "S")]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (28, 28), (33, 65, 3), (64, 64), (100, 100)])
def test_the_network_takes_every_size(shape: tuple[int, ...]) -> None:
    images = RNG(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    labels = np.array(list("aabbcc"))
    found = train_and_test(images, labels, images, labels, steps=4)
    assert 0 <= found.accuracy <= 1
    assert found.majority == pytest.approx(1 / 3)


def nearest_distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.mean([np.sqrt(np.square(y - row).sum(1).min()) for row in x]))


def picked_rows(n: int, most: int) -> NDArray[np.int64]:
    return np.sort(RNG(0).choice(n, most, replace=False))


def test_evaluate_of_float_rows_is_the_plain_computation() -> None:
    x, y = normal(0, 40, 6).astype(np.float32), normal(1, 50, 6).astype(np.float32)
    found = evaluate(x.reshape(-1, 2, 3), None, y.reshape(-1, 2, 3), None)
    x, y = x.astype(np.float64), y.astype(np.float64)
    assert json.loads(json.dumps(found)) == found
    assert found["feature_space"] == "flattened values"
    assert (found["rows"], found["reference_rows"], found["compared_rows"]) == (40, 50, [40, 50])
    assert found["frechet_distance"] == pytest.approx(textbook_frechet(x, y), rel=1e-6)
    assert found["nearest_reference_distance"] == pytest.approx(nearest_distance(x, y), rel=1e-6)
    assert found["nearest_sample_distance"] == pytest.approx(nearest_distance(y, x), rel=1e-6)
    assert found["kernel_distance"] == pytest.approx(textbook_kernel_distance(x[:40], y[picked_rows(50, 40)]), rel=1e-6)
    steps = [ks_2samp(a, b).statistic for a, b in zip(x.T, y.T, strict=True)]
    assert found["columns"]["kolmogorov_smirnov_mean"] == pytest.approx(np.mean(steps))
    assert found["columns"]["kolmogorov_smirnov_max"] == pytest.approx(max(steps))
    assert 0 < found["columns"]["correlation_difference"] < 2
    assert "label_total_variation" not in found
    assert "classify" not in found


def test_a_set_is_at_distance_zero_of_itself_and_its_own_twin_is_not() -> None:
    images, labels, _, _ = digits()
    same = evaluate(images, labels, images[::-1], labels.astype(str)[::-1])
    for name in ("frechet_distance", "nearest_reference_distance", "nearest_sample_distance", "label_total_variation"):
        assert same[name] == pytest.approx(0, abs=1e-9)
    assert "PixelsAndGradients at 8 x 8" in same["feature_space"]
    few = labels < 5
    half = evaluate(images[few], labels[few], images, labels)
    assert half["frechet_distance"] > 0.01
    assert half["nearest_reference_distance"] == 0
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["discriminator_auc"] < 0.6 < half["discriminator_auc"] + 0.15
    assert "columns" not in same
    assert half["precision"] > 0.9
    assert half["recall"] < 0.8
    assert half["balanced_rows"] == few.sum()
    assert half["nearest_sample_distance"] > 0.01
    assert half["label_total_variation"] == pytest.approx(1 - few.mean())


def test_evaluate_classifies_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, test, test_labels = digits()
    monkeypatch.setattr("simpe.metrics.COMPARED", 500)
    x, y = images.astype(np.float32), test.astype(np.float32)
    told: list[tuple[str, int, int]] = []

    def run(seed: int) -> dict[str, Any]:
        progress = lambda what, done, total: told.append((what, done, total))  # noqa: E731
        return evaluate(x, labels, y, test_labels, task="classify", seed=seed, progress=progress)

    found = run(0)
    assert json.loads(json.dumps(found)) == found
    assert found["compared_rows"] == [500, 500]
    assert found["classify"]["accuracy"] > 0.92
    assert found["classify"]["nearest_neighbour_accuracy"] > 0.92
    assert 0.8 < found["classify"]["real_accuracy"] < 1
    assert 0.8 < found["classify"]["real_macro_f1"] < 1
    assert run(0) == found
    assert run(1)["nearest_reference_distance"] != found["nearest_reference_distance"]
    assert all(0 <= done <= total for _, done, total in told)


def test_images_of_different_sizes_are_compared_at_the_smaller() -> None:
    small = digits()[0][:200]
    large = small.repeat(3, axis=1).repeat(2, axis=2)
    for one, other in (small, large), (large, small):
        found = evaluate(one, None, other, None)
        assert found["frechet_distance"] == pytest.approx(0, abs=1e-9)
        assert found["feature_space"].endswith("8 x 8 pixels")
    colour = np.stack([large] * 3, axis=3)
    assert evaluate(colour, None, np.stack([small] * 3, axis=3), None)["nearest_sample_distance"] == 0


def test_an_embedder_of_the_callers_own_is_used_and_named() -> None:
    def ink(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float().mean(dim=1, keepdim=True)

    x = digits()[0]
    found = evaluate(x, None, x // 2, None, embedder=ink)
    assert "ink" in found["feature_space"]
    mean = [part.reshape(len(x), -1).mean(1, keepdims=True) for part in (x, x // 2)]
    squared = (mean[0].mean() - mean[1].mean()) ** 2 + (mean[0].std(ddof=1) - mean[1].std(ddof=1)) ** 2
    assert found["frechet_distance"] == pytest.approx(squared, rel=1e-5)


IMAGES = np.zeros((12, 8, 8), dtype=np.uint8)
COLOUR = np.zeros((12, 8, 8, 3), dtype=np.uint8)
SERIES = np.zeros((12, 9), dtype=np.float32)
NAMES = np.array(list("ab" * 6))


@pytest.mark.parametrize(
    ("samples", "labels", "reference", "reference_labels", "task", "message"),
    [
        (IMAGES, None, SERIES, None, None, "one holds images"),
        (IMAGES, None, COLOUR, None, None, "convert one"),
        (SERIES, None, SERIES[:, :5], None, None, "length 9, the reference 5"),
        (SERIES, None, SERIES[:9], None, None, r"reference: needs at least 10 rows \(for density"),
        (SERIES[:0], None, SERIES, None, None, "samples: holds nothing; give at least 10 rows"),
        (SERIES * np.nan, None, SERIES, None, None, "samples: holds NaN"),
        (SERIES.astype(float) + 1e300, None, SERIES, None, None, "samples: holds NaN, or values that are infinite"),
        (SERIES[:, 0], None, SERIES, None, None, "samples: must be"),
        (IMAGES.astype(int), None, IMAGES, None, None, "samples: must be"),
        (IMAGES, NAMES[:3], IMAGES, NAMES, None, "samples: labels must be one a row"),
        (IMAGES, NAMES, IMAGES, None, "classify", "reference: .* needs labels"),
        (IMAGES, None, IMAGES, NAMES, "classify", "samples: .* needs labels"),
        (IMAGES, NAMES, IMAGES, np.arange(12), "classify", "no label in common"),
        (IMAGES, NAMES, IMAGES, np.arange(12), None, "no label in common"),
        (IMAGES, NAMES, IMAGES, NAMES, "rank", "use 'classify'"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    samples: NDArray[Any],
    labels: NDArray[Any] | None,
    reference: NDArray[Any],
    reference_labels: NDArray[Any] | None,
    task: str | None,
    message: str,
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate(samples, labels, reference, reference_labels, task=task)
    assert "\n" not in str(caught.value)


def test_mauve_is_one_of_like_sets_and_falls_with_the_distance() -> None:
    pytest.importorskip("mauve", reason="needs the extra mauve")
    from simpe.metrics.mauve import mauve

    x, y = RNG(0).normal(size=(300, 8)), RNG(1).normal(size=(300, 8))
    found = [mauve(x, y + shift) for shift in (0, 1, 3)]
    assert found[0] > 0.9
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.1
    assert mauve(x, y) == found[0]
    assert evaluate(x, None, y, None)["mauve"] > 0.9
    with pytest.raises(ValueError, match="two sets"):
        mauve(x, y[:, :3])


@pytest.mark.parametrize("twin", [False, True])
def test_mauve_is_imported_when_its_figure_is_asked_for_and_not_before(tmp_path: Path, twin: bool) -> None:
    (tmp_path / "mauve.py").write_text("raise SystemExit('imported')")  # in place of the package
    program = "import numpy as np, simpe.cli, simpe.metrics.mauve as m; assert m.installed()"
    if twin:
        program += "; m.mauve(np.eye(3), np.eye(3))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ("imported" in done.stderr) is twin, done.stderr
    assert (done.returncode == 0) is not twin


def test_without_the_extra_there_is_no_mauve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpe.metrics.mauve.find_spec", lambda name: None)
    assert "mauve" not in evaluate(RNG(0).normal(size=(40, 3)), None, RNG(1).normal(size=(50, 3)), None)
