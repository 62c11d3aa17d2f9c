"""The rivals of the benchmarks: they run, and the one that trains learns and counts its budget."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from simpe import Budget, check_simulator
from simpe.privacy.accounting import epsilon_of
from simpe.privacy.ledger import BudgetExceeded, Ledger

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_pixels_are_a_simulator(rivals):
    from rivals.pixels import Pixels

    assert [finding for finding in check_simulator(Pixels()) if not finding.ok] == []


def bars(n, seed):
    """Images (n, 8, 8): a bright left or right half, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    images = rng.integers(0, 40, (n, 8, 8))
    for i, label in enumerate(labels):
        images[i, :, 4 * label : 4 * label + 4] += 200
    return images.astype(np.uint8), labels


@pytest.mark.filterwarnings("ignore")  # of opacus, about torch
def test_dp_sgd_learns_with_a_large_budget_and_cannot_with_a_small_one(rivals, monkeypatch):
    pytest.importorskip("opacus", reason="DP-SGD is opacus's: pip install 'simpe[rivals]'")
    from rivals import dpsgd

    monkeypatch.setattr(dpsgd, "ACCOUNTANT", "rdp")  # coarser and quicker
    monkeypatch.setattr(dpsgd, "EPOCHS", 25)
    monkeypatch.setattr(dpsgd, "BATCH", 64)
    monkeypatch.setattr(dpsgd, "LEARNING_RATE", 5e-3)
    images, labels = bars(600, 0)
    told = {}
    for epsilon in (100.0, 0.3):
        made, named, settings = dpsgd.synthesise(images, labels, 2, 200, epsilon, 1e-5, seed=0)
        assert made.shape == (200, 8, 8)
        assert made.dtype == np.uint8
        assert settings["epsilon"] <= epsilon
        assert settings["noise_multiplier"] > 0
        halves = np.stack([made[:, :, :4].mean((1, 2)), made[:, :, 4:].mean((1, 2))], axis=1)
        told[epsilon] = float((halves.argmax(1) == named).mean()), float(np.ptp(halves, axis=1).mean())
    assert told[100.0][0] > 0.9
    assert told[100.0][1] > 4 * told[0.3][1], "noise that drowns the gradients teaches nothing"
    assert "opacus" in sys.modules
    torch.manual_seed(torch.initial_seed())


class Independent:
    """In place of a graphical model: all columns independent, by their noisy counts."""

    def __init__(self, sizes):
        self.sizes = sizes

    def fits(self, cliques):
        return True

    def estimate(self, measured):
        self.ones = {clique[0]: counts.clip(0) for clique, counts, _ in measured if len(clique) == 1}

    def answer(self, clique):
        a, b = (self.ones[column] for column in clique)
        return np.outer(a, b).ravel() / max(1, b.sum())


def table(n, seed):
    """Rows of four columns, of which the first two are equal."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, 4))
    codes[:, 1] = codes[:, 0]
    return codes, np.array([4, 4, 4, 4])


def test_mwem_spends_its_budget_and_finds_what_is_dependent(rivals, monkeypatch):
    from rivals import mwem

    codes, sizes = table(4000, 0)
    chosen, real = [], mwem.choose
    monkeypatch.setattr(mwem, "choose", lambda *given: chosen.append(real(*given)) or chosen[-1])
    _, spent = mwem.fit(codes, sizes, 0.5, 3, Independent(sizes), np.random.default_rng(0))
    assert chosen[0] == 0, "the pair of columns 0 and 1 is the one that independence answers worst"
    assert len(spent) == 4 + 2 * 3
    assert sum(spent) == pytest.approx(0.5, rel=1e-12)


def scores_of(mwem, codes, sizes, monkeypatch):
    """The scores of the first round, which begins from noise of the same seed."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(mwem, "choose", lambda scores, rho, rng: seen.append(np.array(scores)) or 0)
        patch.setattr(mwem, "measure", lambda counts, rho, rng: (np.full(len(counts), 100.0), 1.0))  # no row's
        mwem.fit(codes, sizes, 0.5, 1, Independent(sizes), np.random.default_rng(0))
    return seen[0]


@pytest.mark.parametrize("twin", [False, True])
def test_a_row_moves_mwem_s_scores_and_counts_by_one_at_most(rivals, monkeypatch, twin):
    from rivals import mwem

    codes, sizes = table(300, 1)
    if twin:  # counts a row twice
        counts = mwem.marginal
        monkeypatch.setattr(mwem, "marginal", lambda *given: 2 * counts(*given))
    without = scores_of(mwem, codes, sizes, monkeypatch)
    score = max(np.abs(scores_of(mwem, np.append(codes, [row], 0), sizes, monkeypatch) - without).max()
                for row in ([0, 0, 0, 0], [3, 1, 2, 0], [2, 2, 3, 3]))  # fmt: skip
    count = np.linalg.norm(
        mwem.marginal(np.append(codes, [[3, 1, 2, 0]], 0), sizes, (0, 1)) - mwem.marginal(codes, sizes, (0, 1))
    )
    assert (score <= 1 + 1e-9 and count <= 1) is not twin


@pytest.mark.parametrize("twin", [False, True])
def test_mwem_s_choice_and_noise_cost_what_they_are_charged(rivals, monkeypatch, twin):
    """Frequencies of the exponential mechanism between neighbours, and the deviation of the noise."""
    from rivals import mwem

    rho, n, rng = 0.5, 40_000, np.random.default_rng(2)
    near = [np.arange(50) == 0, np.arange(50) != 0]  # scores that one row can make of each other
    if twin:  # pays for less than it does
        choose = mwem.choose
        monkeypatch.setattr(mwem, "choose", lambda scores, rho, rng: choose(scores, 4 * rho, rng))
    share = [np.mean([mwem.choose(scores, rho, rng) == 0 for _ in range(n)]) for scores in near]
    assert (np.log(share[0] / share[1]) < np.sqrt(8 * rho) + 0.2) is not twin
    noisy, sigma = mwem.measure(np.zeros(n), rho, rng)
    assert 1 / (2 * sigma**2) == pytest.approx(rho)
    assert noisy.std() == pytest.approx(sigma, rel=0.03)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny import WORDS, language_model

    from simpe.simulators.foundation.language import LocalText

    folder = language_model(tmp_path_factory.mktemp("model"))
    return LocalText(
        folder, dtype="float32", batch=4, length=24, classes=("praise", "complaint"), keywords=WORDS[:3], top=20,
        embedder=lambda samples: samples.float(),
    )  # fmt: skip


TEXTS = ("thank you the parcel came", "the parcel was late", "never came and late", "good shop", "refund the parcel")
KINDS = ("praise", "complaint", "complaint", "praise", "complaint")


def seen_scores(prediction, source, texts, monkeypatch, clip, weight=1.0):
    """Scores of the first tokens of a class, where the tokens drawn are always the same."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "draw", lambda scores, rng: seen.append(scores.numpy()) or len(seen) % 5)
        prediction.write(source, texts, "praise", weight, clip, 6, np.random.default_rng(0))
    return np.stack(seen)


@pytest.mark.parametrize("twin", [False, True])
def test_a_text_moves_the_scores_of_a_token_by_its_clipped_logits_at_most(rivals, source, monkeypatch, twin):
    from rivals import prediction

    clip, weight = 0.01, 3.0
    if twin:  # nothing is clipped
        monkeypatch.setattr(prediction, "clipped", lambda logits, clip: logits - logits.max(1, keepdim=True).values)
    with_all = seen_scores(prediction, source, TEXTS, monkeypatch, clip, weight)
    without = seen_scores(prediction, source, TEXTS[:-1], monkeypatch, clip, weight)
    moved = with_all - without
    assert np.abs(moved).max() > 0
    assert (np.ptp(moved, axis=1).max() <= 2 * clip * weight + 1e-6) is not twin


@pytest.mark.parametrize("twin", [False, True])
def test_all_tokens_together_cost_no_more_than_the_charge(rivals, source, monkeypatch, twin):
    from rivals import prediction

    budget, clip, tokens, drawn = Budget(epsilon=2.0, delta=1e-5), 4.0, 15, []
    if twin:  # a weight that would do for one token
        charged = prediction.charged
        monkeypatch.setattr(prediction, "charged", lambda budget, tokens, clip: charged(budget, 1, clip))
    draw = prediction.draw
    monkeypatch.setattr(prediction, "draw", lambda scores, rng: drawn.append(len(scores)) or draw(scores, rng))
    write, weights = prediction.write, []
    monkeypatch.setattr(prediction, "write", lambda *given: weights.append(given[3]) or write(*given))
    ledger = Ledger()
    made, named = prediction.synthesise(source, TEXTS, KINDS, budget, ledger, np.random.default_rng(0), clip, tokens)
    assert len(made) == len(named) > 0
    assert set(named) <= set(source.classes)
    most = len(drawn) // len(source.classes) * (clip * max(weights)) ** 2 / 2
    (charge,) = ledger.committed()
    assert (most <= charge.rho * (1 + 1e-6)) is not twin
    assert epsilon_of([charge], budget.delta) <= budget.epsilon * (1 + 1e-6)
    assert len(ledger.releases()) == 1


def test_a_full_ledger_refuses_before_a_text_is_read(rivals, source, monkeypatch):
    from rivals import prediction

    budget, ledger = Budget(epsilon=1.0, delta=1e-5), Ledger()
    rng = np.random.default_rng(0)
    prediction.synthesise(source, TEXTS, KINDS, budget, ledger, rng, tokens=2)
    monkeypatch.setattr(prediction, "RUN", "another")
    monkeypatch.setattr(prediction, "Readers", None)  # what would read a text
    with pytest.raises(BudgetExceeded):
        prediction.synthesise(source, TEXTS, KINDS, budget, ledger, rng, tokens=2)


def test_texts_of_one_class_do_not_depend_on_another_s_and_a_class_may_be_empty(rivals, source):
    from rivals import prediction

    def of(texts, kinds, which):
        made = prediction.synthesise(
            source, texts, kinds, Budget(epsilon=50.0, delta=1e-5), Ledger(), np.random.default_rng(0), 0.05, 15
        )
        return [text for text, kind in zip(*made, strict=True) if kind == which]

    everything = of(TEXTS, KINDS, "complaint")
    alone = [text for text, kind in zip(TEXTS, KINDS, strict=True) if kind == "complaint"]
    assert everything == of(alone, ["complaint"] * len(alone), "complaint")
    assert everything != of((), (), "complaint")
