"""Audits: bounds against known values, and runs that are broken in one way each, seen by the part that is meant to."""

import dataclasses
import gzip
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from support import Oscillator, Patches

from simpe import PrivateData, evolution, private, rows, runs, store
from simpe.audit import audit, bounds, repetition, search, words
from simpe.audit.witness import Record
from simpe.cli import main
from simpe.config import make_config
from simpe.privacy.accounting import Charge, delta_of
from simpe.release import Release

TRUE_NOISE, TRUE_VECTORS, TRUE_NEAREST = private.discrete_gaussian, rows.unit_vectors, private.nearest


# Bounds


def test_the_one_run_bound_of_the_paper():
    assert bounds.one_run_epsilon(1000, 100, 75, 1e-4, 0.05) == pytest.approx(0.673, abs=5e-4)


def test_the_one_run_bound_without_delta_is_the_binomial_s():
    epsilon = bounds.one_run_epsilon(500, 200, 150, 0.0, 0.05)
    assert stats.binom.sf(149, 200, 1 / (1 + math.exp(-epsilon))) == pytest.approx(0.05, rel=1e-4)


def test_the_one_run_bound_against_a_loop():
    def chance(m, r, v, delta, epsilon):
        q = 1 / (1 + math.exp(-epsilon))
        mass = [math.comb(r, j) * q**j * (1 - q) ** (r - j) for j in range(r + 1)]
        worst = max(sum(mass[v - i : v]) / i for i in range(1, v + 1))
        return sum(mass[v:]) + 2 * m * delta * worst

    epsilon = bounds.one_run_epsilon(60, 40, 33, 1e-3, 0.1)
    assert chance(60, 40, 33, 1e-3, epsilon) == pytest.approx(0.1, rel=1e-4)


def test_guessing_no_better_than_chance_shows_nothing():
    assert bounds.one_run_epsilon(1000, 100, 50, 1e-6, 0.05) == 0.0
    with pytest.raises(ValueError, match="no audit"):
        bounds.one_run_epsilon(10, 20, 5, 0, 0.05)


def test_one_run_bounds_hold_for_randomised_response():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        coins = rng.random(400) < 0.5
        told = coins ^ (rng.random(400) < 1 / (1 + math.e))  # exactly (1, 0)-DP
        wrong += bounds.best_one_run_epsilon(told + 0.1 * rng.random(400), coins, 0.0, 0.05) > 1
    assert wrong <= 5


def repeated(noise, epsilon, n=100_000, seed=0):
    rng = np.random.default_rng(seed)
    mu = 0.237 if epsilon == 1 else 0.838  # of four steps and the counts at delta 1e-6
    return rng.normal(mu / noise, 1, n), rng.normal(0, 1, n)


@pytest.mark.parametrize("epsilon", [1, 4])
def test_the_repeated_bound_stays_below_the_truth_and_sees_half_the_noise(epsilon):
    charges = [Charge((1 / 0.237) if epsilon == 1 else (1 / 0.838))]
    allowed = next(e for e in np.arange(0, 20, 0.01) if delta_of(charges, e) <= 0.01)
    found = [bounds.event_epsilon(*repeated(1.0, epsilon, seed=seed), 0.01, 0.005) for seed in range(5)]
    assert 0.6 * allowed < np.median(found)
    assert max(found) < allowed
    assert bounds.event_epsilon(*repeated(0.5, epsilon), 0.01, 0.005) > 1.2 * allowed


def test_the_repeated_bound_sees_what_makes_scores_smaller_too():
    one, other = repeated(0.2, 4)
    assert bounds.event_epsilon(-one, -other, 0.0, 0.01) > 3
    assert bounds.event_epsilon(other, one, 0.0, 0.01) > 3
    with pytest.raises(ValueError, match="ten repetitions"):
        bounds.event_epsilon(one[:5], other, 0.0, 0.01)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.0, 0.1), (1.0, 0.01), (3.0, 1e-6)])
def test_the_area_that_is_allowed(epsilon, delta):
    false = np.linspace(0, 1, 200_001)
    most = np.minimum(np.minimum(math.exp(epsilon) * false + delta, 1 - math.exp(-epsilon) * (1 - delta - false)), 1)
    assert bounds.auc_allowed(epsilon, delta) == pytest.approx(most.mean(), abs=1e-4)


def test_area_and_rate_of_known_sets():
    high, low = np.arange(100.0) + 50, np.arange(100.0)
    assert bounds.auc(high, low) == pytest.approx((high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean())
    rate = bounds.found_at(high, low, 0.1, 0.05)
    assert rate.found == 0.6
    assert rate.low < 0.6 < rate.high
    assert 0.1 < rate.false < 0.25
    below, above = bounds.auc_interval(high, low, 0.05)
    assert below < bounds.auc(high, low) < above
    rng = np.random.default_rng(4)
    sets = [(rng.normal(1, 1, 80), rng.normal(0, 1, 60)) for _ in range(400)]
    true = stats.norm.cdf(1 / math.sqrt(2))
    within = np.mean([low < true < high for low, high in (bounds.auc_interval(*both, 0.1) for both in sets)])
    assert 0.86 < within < 0.94


# Searching


@pytest.fixture
def secret():
    return search.row("a row", np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8))


def hide(kind, folder, image):
    if kind == "raw":
        (folder / "x.bin").write_bytes(b"before" + image.tobytes())
    elif kind == "npz":
        np.savez_compressed(folder / "x.npz", images=np.stack([image * 0, image]))
    elif kind == "float":
        np.savez_compressed(folder / "x.npz", images=(image / 255).astype(np.float32))
    elif kind == "png":
        Image.fromarray(image).convert("RGB").resize((48, 48), Image.Resampling.NEAREST).save(folder / "x.png")
    elif kind == "json":
        (folder / "x.json").write_text(json.dumps({"image": image.tolist()}, indent=2))
    elif kind == "gz":
        (folder / "x.bin.gz").write_bytes(gzip.compress(image.tobytes()))


@pytest.mark.parametrize("kind", ["raw", "npz", "float", "png", "json", "gz"])
def test_a_row_is_found_wherever_it_hides(kind, secret, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    hide(kind, tmp_path, np.random.default_rng(2).permutation(image.ravel()).reshape(16, 16))
    assert search.search(tmp_path, [secret]) == []
    hide(kind, tmp_path, image)
    assert [what for _, what in search.search(tmp_path, [secret])] == ["a row"]


def test_a_row_of_a_table_is_found(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    values = np.random.default_rng(1).normal(size=16).astype(np.float32)
    found = search.row("a row", values)
    parquet.write_table(pyarrow.table({"x": values[::-1]}), tmp_path / "x.parquet")
    assert search.search(tmp_path, [found]) == []
    parquet.write_table(pyarrow.table({"x": values, "y": ["a", None] * 8}), tmp_path / "x.parquet")
    assert search.search(tmp_path, [found]) == [("x.parquet", "a row")]


def test_names_are_found_in_arrays_text_and_file_names(tmp_path):
    name = search.text("a name", "Königsberg")
    np.savez(tmp_path / "x.npz", labels=np.array(["a", "Königsberg"]))
    (tmp_path / "y.json").write_text('"Königsberg"')
    (tmp_path / "Königsberg.txt").write_text("")
    assert len(search.search(tmp_path, [name])) == 3


def test_counts_are_found_and_not_mistaken_for_noisy_ones(tmp_path):
    rng = np.random.default_rng(3)
    exact = rng.poisson(5, 500)
    found = search.counts("counts", exact, 4.0, 1)
    np.savez(tmp_path / "x.npz", votes=exact + TRUE_NOISE(4.0, 500))
    assert search.search(tmp_path, [found]) == []
    np.savez(tmp_path / "x.npz", votes=exact.astype(np.float64))
    assert search.search(tmp_path, [found])


def test_survivors_of_shared_candidates_are_looked_for_by_class_and_in_all():
    """Of 3 candidates two survive; with two classes there are 6 bins."""
    info = SimpleNamespace(candidates=[None] * 3, survivors=torch.tensor([2, 0]))
    found = {}
    for votes in (np.arange(3), np.arange(6)):
        record = SimpleNamespace(exact=[(4.0, votes)])
        Record.survivors(record, info, 1)
        found[len(votes)] = [counts.tolist() for _, counts in record.exact[1:]]
    assert found == {3: [[2, 0]], 6: [[2, 0], [5, 3], [7, 3]]}


def test_counts_that_prove_nothing_are_not_looked_for():
    exact = np.random.default_rng(3).poisson(5, 500)
    assert search.counts("counts", exact * 0, 4.0, 1) is None
    assert search.counts("counts", exact, 0.02, 1) is None  # hardly any noise: they are what was paid for
    assert search.counts("counts", exact[:6], 4.0, 1) is None


# Runs, whole and broken


@pytest.fixture(scope="module")
def oscillations(tmp_path_factory):
    generator = torch.Generator().manual_seed(5)
    p = Oscillator.space.sample(600, generator)
    p["frequency"] = 3 + 0.2 * torch.randn(600, generator=generator)
    path = tmp_path_factory.mktemp("private") / "rows.npz"
    np.savez(path, samples=Oscillator().render(p).numpy())
    return {"simulator": "support:Oscillator", "private": str(path)}


@pytest.fixture(scope="module")
def owned(tmp_path_factory):
    """Images in two classes; every owner has both."""
    generator = torch.Generator().manual_seed(5)
    p = {**Patches.space.sample(600, generator), "label": torch.arange(600) % 2}
    path = tmp_path_factory.mktemp("private") / "rows.npz"
    names = np.array(Patches.classes)[p["label"].numpy()]
    np.savez(path, images=Patches().render(p), labels=names, owner=np.arange(600) // 4)
    return {"simulator": "support:Patches", "private": str(path), "unit": "owner", "k": 4}


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    monkeypatch.setattr(repetition, "CANDIDATES", 2048)


def audited(source, folder, confidence=0.95, trials=40_000, **options):
    (folder / "private").mkdir()
    values = {"epsilon": 1.0, "delta": 1e-5, "samples": 200, "steps": 2, "out": folder / "run"} | source | options
    return audit(make_config(**values), folder, trials=trials, canaries=40, confidence=confidence)


def violated(found):
    return {finding.part for finding in found.findings if finding.violated}


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_a_sound_run_passes_and_leaves_nothing_behind(oscillations, tmp_path, relation):
    found = audited(oscillations, tmp_path, confidence=1 - 1e-6, relation=relation)
    assert violated(found) == set()
    assert {finding.part for finding in found.findings} == set(words.MEANING)
    assert list((tmp_path / "private").iterdir()) == []
    assert "Nothing contradicts the claim" in words.text([found])
    sharp = next(f for f in found.findings if f.part == "repeated" and f.what == "at delta 0.01")
    assert sharp.shown < sharp.allowed < sharp.most, "it could have seen a violation"


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_a_sound_run_s_bound_says_something(oscillations, tmp_path, relation):
    found = audited(oscillations, tmp_path, confidence=0.999, trials=300_000, relation=relation)
    sharp = next(f for f in found.findings if f.part == "repeated" and f.what == "at delta 0.01")
    assert sharp.shown > 0.5 * sharp.allowed  # more than six standard deviations below what is usual


def test_a_sound_run_of_units_with_many_rows_passes(owned, tmp_path):
    assert violated(audited(owned, tmp_path, confidence=1 - 1e-6)) == set()


def no_noise(monkeypatch):
    monkeypatch.setattr(private, "discrete_gaussian", lambda sigma, n, **_: np.zeros(n, np.int64))


def half_the_noise(monkeypatch):
    monkeypatch.setattr(private, "discrete_gaussian", lambda sigma, n, **options: TRUE_NOISE(sigma / 2, n, **options))


def normalised_by_label(monkeypatch):
    def vectors(owner, chosen, bins, size):
        """Every row has a class of its own here, so each is scaled to length S alone."""
        keys, entries, total = TRUE_VECTORS(np.arange(len(owner)), chosen, bins, size)
        return owner[keys // bins] * bins + keys % bins, entries, total

    monkeypatch.setattr(rows, "unit_vectors", vectors)


def rows_move_each_other(monkeypatch):
    """As where a scaler is fitted to the private rows."""
    monkeypatch.setattr(
        private, "nearest", lambda rows, *others: TRUE_NEAREST(rows - rows.mean(0) + others[1].mean(0), *others)
    )


def counts_in_the_history(monkeypatch):
    true_sum, true_history, kept = PrivateData._sum, evolution.history, []

    def total(self, *arguments):
        kept.append(true_sum(self, *arguments))
        return kept[-1]

    def history(*arguments):
        return {**true_history(*arguments), "exact": max(kept, key=len).astype(np.float64)}

    monkeypatch.setattr(PrivateData, "_sum", total)
    monkeypatch.setattr(evolution, "history", history)


def counts_in_a_checkpoint(monkeypatch):
    true_sum = PrivateData._sum

    def total(self, *arguments):
        found = true_sum(self, *arguments)
        if self.ledger.path is not None:
            store.log(self.ledger.path.parents[1], f"counts {found.tolist()}")
        return found

    monkeypatch.setattr(PrivateData, "_sum", total)


def rows_in_the_release(monkeypatch):
    true_evolve = runs.evolve

    def evolve(simulator, embedder, door, **options):
        return dataclasses.replace(
            true_evolve(simulator, embedder, door, **options), samples=door._shards.shards[0]._held[0]
        )

    monkeypatch.setattr(runs, "evolve", evolve)


def the_path_in_the_certificate(monkeypatch):
    true_files = Release.files
    monkeypatch.setattr(
        Release, "files", lambda self: {**true_files(self), "where.txt": str(self.ledger.path).encode()}
    )


@pytest.mark.parametrize(
    ("broken", "part", "unit"),
    [
        (no_noise, "one run", False),
        (no_noise, "repeated", True),
        (half_the_noise, "repeated", False),
        (half_the_noise, "repeated", True),
        (normalised_by_label, "sensitivity", True),
        (normalised_by_label, "repeated", True),
        (rows_move_each_other, "sensitivity", False),
        (counts_in_the_history, "secrets", False),
        (counts_in_a_checkpoint, "secrets", False),
        (rows_in_the_release, "secrets", False),
        (rows_in_the_release, "membership", False),
        (rows_in_the_release, "one run", False),
        (the_path_in_the_certificate, "secrets", False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_broken_run_is_seen_by_the_part_that_is_meant_to(
    broken, part, unit, oscillations, owned, tmp_path, monkeypatch
):
    broken(monkeypatch)
    found = audited(owned if unit else oscillations, tmp_path)
    assert part in violated(found)
    assert "DOES NOT HOLD" in words.text([found])


# The command


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["simpe", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.fixture
def config(oscillations, tmp_path):
    made = make_config(**oscillations, epsilon=1.0, samples=50, steps=1, out=tmp_path / "never")
    path = tmp_path / "run.toml"
    path.write_text(made.to_toml())
    return path


def test_the_command_writes_to_private_and_says_so(config, tmp_path, monkeypatch, capsys):
    options = ["--out", tmp_path / "a", "--epsilon", 1, "--epsilon", 4, "--trials", 4000, "--canaries", 12]
    assert command(monkeypatch, "audit", config, *options) == 0
    said = capsys.readouterr()
    assert said.out.count("Nothing contradicts the claim") == 2
    assert "Not private" in said.err
    assert sorted(path.name for path in tmp_path.glob("a/*")) == ["private"]
    assert (tmp_path / "a/private").stat().st_mode & 0o777 == 0o700
    found = json.loads((tmp_path / "a/private/audit.json").read_text())
    assert [one["epsilon"] for one in found] == [1, 4]
    assert not any(one["violated"] or one["differentially_private"] for one in found)
    assert "Claimed: (1, 1e-06)" in (tmp_path / "a/private/audit.txt").read_text()
    assert not (tmp_path / "never").exists()


def test_a_violation_is_exit_code_1(config, tmp_path, monkeypatch, capsys):
    no_noise(monkeypatch)
    options = ["--out", tmp_path / "a", "--trials", 4000, "--canaries", 50]
    assert command(monkeypatch, "audit", config, *options) == 1
    assert "THE CLAIM DOES NOT HOLD" in capsys.readouterr().out


def test_a_run_folder_is_audited_in_place_and_its_ledger_is_not_charged(config, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "run", config, "--out", tmp_path / "run") == 0
    before = (tmp_path / "run/private/ledger.jsonl").read_bytes()
    options = ["--trials", 4000, "--canaries", 12]
    assert command(monkeypatch, "audit", tmp_path / "run", *options) == 0
    assert (tmp_path / "run/private/ledger.jsonl").read_bytes() == before
    assert (tmp_path / "run/private/audit.json").is_file()
    assert not (tmp_path / "run/release/audit.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--out is missing"),
        (["--out", "."], "exists already"),
        (["--out", "a", "--canaries", 301], "more than half of them"),
        (["--out", "a", "--canaries", 3], "show nothing"),
        (["--out", "a", "--epsilon", -1], "epsilon"),
    ],
)
def test_bad_input_is_exit_code_2_and_leaves_no_folder(options, said, config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "audit", config, *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_rows_that_canaries_cannot_join_are_refused(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "few.npz", samples=np.random.default_rng(0).normal(size=(15, 32)))
    made = make_config(simulator="support:Oscillator", private=str(tmp_path / "few.npz"), epsilon=1.0, out=tmp_path)
    (tmp_path / "run.toml").write_text(made.to_toml())
    assert command(monkeypatch, "audit", tmp_path / "run.toml", "--out", tmp_path / "a") == 2
    assert "at most half" in capsys.readouterr().err
