"""Selection: exact counts for systematic resampling, the right law for multinomial, no NaN anywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from simpe import selection

weights = st.lists(st.floats(-5, 50), min_size=1, max_size=30).map(lambda w: torch.tensor(w, dtype=torch.float64))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(weights, st.integers(0, 100), st.integers(0, 50))
def test_systematic_gives_each_its_share_rounded_up_or_down(w, n, seed):
    counts = torch.bincount(selection.systematic(w, n, generator(seed)), minlength=len(w))
    positive = w.clamp(min=0)
    share = positive / positive.sum() * n if positive.sum() > 0 else torch.full_like(w, n / len(w))
    assert int(counts.sum()) == n
    assert bool((counts >= (share - 1e-6).floor()).all())
    assert bool((counts <= (share + 1e-6).ceil()).all())


def test_multinomial_follows_the_weights_and_not_others():
    w = torch.tensor([5.0, 0.0, 1.0, 2.0, -3.0], dtype=torch.float64)
    drawn = torch.bincount(selection.multinomial(w, 100_000, generator()), minlength=5).numpy()
    assert drawn[1] == drawn[4] == 0
    kept = drawn[[0, 2, 3]]
    assert chisquare(kept, 100_000 * np.array([5, 1, 2]) / 8).pvalue > 1e-6
    assert chisquare(kept, 100_000 * np.array([1, 1, 1]) / 3).pvalue < 1e-6  # the broken twin: uniform


@given(weights, st.integers(0, 40))
def test_top_is_sorted_and_prefers_the_lowest_index(w, n):
    picked = selection.top(w, n).tolist()
    assert picked == sorted(range(len(w)), key=lambda i: (-float(w[i]), i))[:n]


@given(weights, st.integers(0, 1000))
def test_apportion_adds_up_and_is_never_off_by_one(w, n):
    parts = selection.apportion(w, n)
    positive = w.clamp(min=0)
    share = positive / positive.sum() * n if positive.sum() > 0 else torch.full_like(w, n / len(w))
    assert int(parts.sum()) == n
    assert bool(((parts - share).abs() < 1 + 1e-6).all())


@given(st.lists(st.tuples(st.floats(-5, 50), st.integers(0, 9)), min_size=1, max_size=12), st.data())
def test_apportion_within_fills_what_there_is_and_no_more(parts, data):
    w = torch.tensor([one for one, _ in parts], dtype=torch.float64)
    most = torch.tensor([one for _, one in parts])
    n = data.draw(st.integers(0, int(most.sum())))
    found = selection.apportion_within(w, n, most)
    assert int(found.sum()) == n
    assert bool(((found >= 0) & (found <= most)).all())
    plain = selection.apportion(w, n)
    if bool((plain <= most).all()):
        assert torch.equal(found, plain)
    else:
        assert bool((found >= torch.minimum(plain, most)).all())  # what one cannot take, others get on top
    with pytest.raises(ValueError, match="more than"):
        selection.apportion_within(w, int(most.sum()) + 1, most)


@pytest.mark.parametrize("choose", [selection.systematic, selection.multinomial])
def test_where_nothing_survives_the_choice_is_uniform(choose):
    picked = choose(selection.threshold(torch.tensor([-3.0, -1.0, 0.5, -2.0]), 1.0), 40_000, generator())
    counts = torch.bincount(picked, minlength=4)
    assert bool(((counts - 10_000).abs() < 6 * 100).all())


def test_threshold_takes_off_its_height():
    assert selection.threshold(torch.tensor([-1.0, 0.5, 2.0]), 1.5).tolist() == [0, 0, 0.5]
