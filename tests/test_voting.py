"""Votes: the nearest candidate exactly, and no row moved by another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpe import voting
from simpe.voting import nearest, nearest_within_labels


def folded(x):
    """Sum over the last axis, halves onto each other: the order of addition that the engine promises."""
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        x = np.concatenate([x, np.zeros((*x.shape[:-1], 2 * half - x.shape[-1]))], axis=-1)
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def root(x):
    """torch's square root: not always the nearest float64, though the same in every batch."""
    return torch.from_numpy(x).sqrt().numpy()


def reference(rows, candidates, k=1, metric="l2"):
    """float64 brute force, ties to the lowest index."""
    x, c = rows.double().numpy(), candidates.double().numpy()
    if metric == "cosine":
        x, c = (v / np.where((n := root(folded(v**2))) > 0, n, 1.0)[:, None] for v in (x, c))
    order = [np.argsort(folded((row - c) ** 2), kind="stable")[:k] for row in x]
    return torch.from_numpy(np.array(order, dtype=np.int64).reshape(len(x), k))


def float32_argmin(rows, candidates, k=1, metric="l2"):
    """The broken twin: what everybody writes first."""
    scores = candidates.square().sum(1) / 2 - rows @ candidates.T
    return scores.argsort(dim=1, stable=True)[:, :k]


def data(kind, n, d, generator):
    def normal(n):
        return torch.randn(n, d, generator=generator)

    if kind == "random":
        return normal(n)
    if kind == "clustered":
        return normal(4)[torch.randint(4, (n,), generator=generator)] + 1e-4 * normal(n)
    if kind == "duplicated":
        return normal(5)[torch.randint(5, (n,), generator=generator)]
    if kind == "grid":
        return torch.randint(-1, 2, (n, d), generator=generator).float()
    if kind == "one ulp apart":
        base = normal(1).expand(n, d).clone()
        bits = base.view(torch.int32)
        bits += torch.randint(0, 2, (n, d), generator=generator, dtype=torch.int32)
        return base
    if kind == "far off":
        return 1e4 + normal(n)
    if kind == "tiny":
        return 1e-22 * normal(n)
    assert kind == "huge"
    return 1e30 * normal(n)


KINDS = ["random", "clustered", "duplicated", "grid", "one ulp apart", "far off", "tiny", "huge"]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("d", [1, 3, 64, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_nearest_is_the_float64_brute_force(kind, d, metric):
    generator = torch.Generator().manual_seed(d)
    rows, candidates = data(kind, 60, d, generator), data(kind, 75, d, generator)
    rows = torch.cat([rows, candidates[::15], torch.zeros(1, d)])
    everything = reference(rows, candidates, len(candidates), metric)
    for k in (1, 3, len(candidates)):
        assert torch.equal(nearest(rows, candidates, k, metric), everything[:, :k])


@pytest.mark.parametrize("kind", ["one ulp apart", "far off", "tiny", "huge"])
def test_a_plain_float32_argmin_is_not(kind):
    generator = torch.Generator().manual_seed(64)
    rows, candidates = data(kind, 60, 64, generator), data(kind, 75, 64, generator)
    assert not torch.equal(float32_argmin(rows, candidates), reference(rows, candidates))


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e38])
def test_no_scale_of_rows_or_candidates_is_too_much(scale):
    generator = torch.Generator().manual_seed(0)
    rows, candidates = torch.rand(40, 8, generator=generator), torch.rand(70, 8, generator=generator)
    for x, c in [(rows * scale, candidates * scale), (rows * scale, candidates), (rows, candidates * scale)]:
        assert torch.equal(nearest(x, c, 3), reference(x, c, 3))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(1, 12), st.integers(1, 80), st.data())
def test_nearest_is_the_float64_brute_force_for_any_numbers_of_rows_and_candidates(seed, kind, n, m, more):
    generator = torch.Generator().manual_seed(seed)
    d, k = more.draw(st.integers(1, 9)), more.draw(st.integers(1, m))
    rows, candidates = data(kind, n, d, generator), data(kind, m, d, generator)
    assert torch.equal(nearest(rows, candidates, k), reference(rows, candidates, k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows_at_once", "side", "group", "held"), [(7, 32, 8, 1), (1, 64, 32, 100), (50, 7, 7, 1000)])
def test_block_sizes_do_not_matter(monkeypatch, kind, rows_at_once, side, group, held):
    generator = torch.Generator().manual_seed(1)
    rows, candidates = data(kind, 50, 16, generator), data(kind, 150, 16, generator)
    usual = nearest(rows, candidates, 3)
    monkeypatch.setattr(voting, "_shape", lambda dims: (rows_at_once, side, group))
    monkeypatch.setattr(voting, "_PART", 50)
    monkeypatch.setattr(voting, "_HELD", held)
    assert torch.equal(nearest(rows, candidates, 3), usual)


@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_and_candidates_than_a_block_holds(kind):
    generator = torch.Generator().manual_seed(8)
    rows, candidates = data(kind, 1100, 4, generator), data(kind, 1100, 4, generator)
    everything = reference(rows, candidates, 40)
    for k in (1, 3, 40):
        assert torch.equal(nearest(rows, candidates, k), everything[:, :k])


def test_without_the_error_bound_rounding_breaks_ties(monkeypatch):
    generator = torch.Generator().manual_seed(9)
    rows, candidates = data("grid", 300, 64, generator), data("grid", 600, 64, generator)
    expected = reference(rows, candidates)
    assert torch.equal(nearest(rows, candidates), expected)
    monkeypatch.setattr(voting, "_error", lambda norm, lost, candidates_lost, dims: torch.zeros_like(norm))
    assert not torch.equal(nearest(rows, candidates), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_rows_and_candidates_give_permuted_votes(kind):
    generator = torch.Generator().manual_seed(2)
    rows, candidates = data(kind, 50, 16, generator), data(kind, 60, 16, generator).unique(dim=0)
    usual = nearest(rows, candidates)[:, 0]
    p, q = torch.randperm(len(rows), generator=generator), torch.randperm(len(candidates), generator=generator)
    assert torch.equal(nearest(rows[p], candidates)[:, 0], usual[p])
    moved = q[nearest(rows, candidates[q])[:, 0]]
    exact = (rows.double()[:, None] - candidates.double()).square()
    exact = torch.from_numpy(folded(exact.numpy())).gather(1, torch.stack([usual, moved], dim=1))
    assert torch.equal(exact[:, 0], exact[:, 1])  # the same candidate, or one at exactly the same distance


def moved_by_others(vote, rows, candidates):
    """How many rows vote differently in some smaller crowd than in the whole."""
    whole = vote(rows, candidates)
    moved = torch.zeros(len(rows), dtype=torch.bool)
    for size in (1, 2, 5, 17, 64):
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            moved[part] |= (vote(rows[part], candidates) != whole[part]).any(dim=1)
    return int(moved.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [3, 64, 300])
def test_rows_that_come_or_go_move_no_other_row(kind, d):
    generator = torch.Generator().manual_seed(3)
    rows, candidates = data(kind, 70, d, generator), data(kind, 50, d, generator)
    assert moved_by_others(nearest, rows, candidates) == 0


def test_rows_that_come_or_go_move_others_under_a_plain_float32_argmin():
    """A mean over the batch is the same mistake, made so that every machine shows it."""
    generator = torch.Generator().manual_seed(3)
    rows, candidates = data("one ulp apart", 130, 64, generator), data("one ulp apart", 100, 64, generator)

    def centred(x, c):
        return float32_argmin(x - x.mean(dim=0), c - x.mean(dim=0))

    assert moved_by_others(centred, rows, candidates) > 0


@pytest.mark.parametrize("outlier", [1e12, 1e20, 3e38, -3e38])
def test_an_outlier_takes_its_own_vote_and_nobody_elses(outlier):
    generator = torch.Generator().manual_seed(4)
    rows, candidates = data("random", 20, 8, generator), data("random", 90, 8, generator)
    alone = nearest(rows, candidates)
    rows[7] = outlier
    kept = torch.arange(20) != 7
    assert torch.equal(nearest(rows, candidates)[kept], alone[kept])
    rows[8] += 3.0
    assert torch.equal(nearest(rows, candidates)[7], nearest(rows[7:8], candidates)[0])
    assert torch.equal(nearest(rows, candidates), reference(rows, candidates))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_matrix_products_is_allowed_for(precision):
    generator = torch.Generator().manual_seed(5)
    rows, candidates = data("clustered", 40, 600, generator), data("clustered", 90, 600, generator)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(nearest(rows, candidates, 2), reference(rows, candidates, 2))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [1, 3])
def test_each_row_votes_among_its_own_labels_candidates(k):
    generator = torch.Generator().manual_seed(6)
    rows, candidates = data("grid", 80, 3, generator), data("grid", 50, 3, generator)
    row_labels = torch.randint(-1, 5, (80,), generator=generator)
    labels = torch.randint(-1, 4, (50,), generator=generator)
    labels[labels == 2] = 3
    labels[7] = 2  # one candidate only, so that the second vote is nobody's
    found = nearest_within_labels(rows, row_labels, candidates, labels, k)
    for row, label, votes in zip(rows, row_labels, found, strict=True):
        theirs = (labels == label).nonzero()[:, 0] if label >= 0 else labels[:0]
        most = min(k, len(theirs))
        expected = theirs[reference(row[None], candidates[theirs], most)[0]] if most else theirs
        assert votes.tolist() == expected.tolist() + [-1] * (k - most)
    across = nearest(rows, candidates, k)
    assert not torch.equal(found, across)  # the broken twin: voting over all labels


def test_no_rows_and_empty_classes_are_fine():
    candidates = torch.zeros(3, 2)
    assert nearest(torch.zeros(0, 2), candidates, 2).shape == (0, 2)
    none = nearest_within_labels(torch.zeros(2, 2), torch.tensor([4, -1]), candidates, torch.tensor([0, 1, -1]))
    assert none.tolist() == [[-1], [-1]]


@pytest.mark.parametrize(
    ("rows", "candidates", "k"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 1),
        (torch.zeros(3), torch.zeros(2, 3), 1),
        (torch.zeros(2, 3), torch.zeros(2, 3), 3),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), 1),
        (torch.zeros(2, 3), torch.full((2, 3), torch.inf), 1),
    ],
)
def test_what_does_not_fit_is_refused(rows, candidates, k):
    with pytest.raises(ValueError, match=r"fit|k must|finite"):
        nearest(rows, candidates, k)
