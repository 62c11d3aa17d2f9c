"""Figures of tables against ten-line references, and what must hold of any of them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from simpe.metrics.tables import chi_square, correlation_difference, kolmogorov_smirnov, marginal_total_variation

RNG = np.random.default_rng


def columns(seed, n, sizes=(3, 4, 2, 5)):
    rng = RNG(seed)
    return {f"c{i}": rng.integers(0, size, n) for i, size in enumerate(sizes)}


def textbook_total_variation(x, y, k):
    found = []
    for names in combinations(sorted(x), k):
        ours, theirs = (list(zip(*(table[name].tolist() for name in names), strict=True)) for table in (x, y))
        cells = set(ours) | set(theirs)
        found.append(sum(abs(ours.count(c) / len(ours) - theirs.count(c) / len(theirs)) for c in cells) / 2)
    return np.mean(found)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_total_variation_is_the_textbook_s(k):
    x, y = columns(0, 60), columns(1, 90)
    assert marginal_total_variation(x, y, k) == pytest.approx(textbook_total_variation(x, y, k), abs=1e-12)


def test_three_ways_show_what_two_ways_hide():
    """Parity: every pair of columns is uniform in both tables, and only the three together differ."""
    a, b = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    even = {"a": a, "b": b, "c": a ^ b}
    fair = {name: np.concatenate([column, column]) for name, column in even.items()}
    fair["c"] = np.concatenate([a ^ b, 1 - (a ^ b)])
    assert marginal_total_variation(even, fair, 2) == pytest.approx(0)
    assert marginal_total_variation(even, fair, 3) == pytest.approx(0.5)


def test_strings_and_columns_of_one_table_alone():
    x, y = {"s": np.array(["a", "b"]), "more": np.zeros(2)}, {"s": np.array(["b", "c", "b", "c"])}
    assert marginal_total_variation(x, y, 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 2 columns"):
        marginal_total_variation(x, y, 2)


def test_chi_square_is_scipy_s():
    x, y = RNG(2).integers(0, 5, 300), RNG(3).integers(1, 7, 200)
    table = np.stack([np.bincount(part, minlength=7) for part in (x, y)])
    assert chi_square(x, y) == pytest.approx(np.sqrt(chi2_contingency(table).statistic / 500))
    assert chi_square(x, x) == 0
    assert chi_square(np.zeros(9), np.ones(4)) == pytest.approx(1)


def test_kolmogorov_smirnov_is_scipy_s_and_the_largest_step():
    x, y = RNG(4).normal(size=80).round(1), RNG(5).normal(0.3, 1, 50).round(1)
    assert kolmogorov_smirnov(x, y) == pytest.approx(ks_2samp(x, y).statistic)
    steps = [abs((x <= v).mean() - (y <= v).mean()) for v in np.concatenate([x, y])]
    assert kolmogorov_smirnov(x, y) == pytest.approx(max(steps))
    assert kolmogorov_smirnov(np.arange(5), np.arange(10, 15)) == 1


def test_correlations_are_numpy_s_and_a_still_column_counts_as_none():
    rng = RNG(6)
    x, y = rng.normal(size=(100, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(70, 4))
    pairs = np.triu_indices(4, 1)
    expected = np.abs(np.corrcoef(x.T)[pairs] - np.corrcoef(y.T)[pairs]).mean()
    assert correlation_difference(x, y) == pytest.approx(expected)
    line = np.arange(50.0)
    assert correlation_difference(np.stack([line, line], 1), np.stack([line, -line], 1)) == pytest.approx(2)
    assert correlation_difference(np.stack([line, line], 1), np.stack([line, line * 0 + 0.1], 1)) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_figures_are_symmetric_between_0_and_1_and_0_for_a_table_itself(seed, n, m, k):
    x, y = columns(seed, n), columns(seed + 1, m)
    found = marginal_total_variation(x, y, k)
    assert -1e-12 <= found <= 1 + 1e-12
    assert found == pytest.approx(marginal_total_variation(y, x, k))
    assert marginal_total_variation(x, x, k) == 0
    for figure in (chi_square, kolmogorov_smirnov):
        value = figure(x["c0"], y["c0"])
        assert -1e-12 <= value <= 1 + 1e-12
        assert value == pytest.approx(figure(y["c0"], x["c0"]))


@pytest.mark.parametrize(("x", "y"), [((5, 2), (5, 3)), ((5, 1), (5, 1)), ((1, 2), (5, 2)), ((5,), (5,))])
def test_correlations_refuse_shapes_that_do_not_fit(x, y):
    with pytest.raises(ValueError, match="same columns"):
        correlation_difference(np.ones(x), np.ones(y))


def test_nothing_is_computed_of_no_rows():
    for figure in (chi_square, kolmogorov_smirnov):
        with pytest.raises(ValueError):
            figure(np.empty(0), np.ones(3))
    with pytest.raises(ValueError, match="with rows"):
        marginal_total_variation({"a": np.empty(0)}, {"a": np.ones(2)}, 1)
