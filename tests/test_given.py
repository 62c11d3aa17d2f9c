"""Filtering a given set: what the votes keep, what it costs, and that the choice is the noisy counts' alone."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support import addressed_noise, no_noise

import simpe
from simpe import Budget, InputError, PrivateData, cli, report, runs
from simpe.config import make_config
from simpe.privacy.accounting import Charge, epsilon_of
from simpe.simulators.gallery import Gallery
from simpe.simulators.given import Given

IMAGES = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
TARGET = load_digits().target
SET, NAMES = IMAGES[:900], TARGET[:900]
LOW = TARGET[900:] < 5
ROWS, LABELS = IMAGES[900:][LOW], TARGET[900:][LOW]  # private: zeros to fours


def chosen(release):
    """What the kept samples really are."""
    return NAMES[release.params["index"].numpy()]


def keep(given, n=100, labels=None, epsilon=20.0, **options):
    private = PrivateData(ROWS, labels, budget=Budget(epsilon, 1e-6), **options)
    return simpe.evolve(given, None, private, samples=n)


def test_what_rows_resemble_is_kept_and_what_they_do_not_is_dropped():
    assert (NAMES < 5).mean() < 0.55
    assert (chosen(keep(Given(SET))) < 5).mean() > 0.9
    assert (chosen(keep(Given(SET), labels=LABELS)) < 5).mean() > 0.9  # the set has none, so the rows' are not read


def test_rows_vote_within_their_class_so_wrong_labels_keep_the_wrong_samples():
    right = keep(Given(SET, NAMES), labels=LABELS)
    assert (chosen(right) < 5).mean() > 0.95
    assert right.labels is not None
    assert right.labels.tolist() == chosen(right).tolist()
    assert torch.bincount(right.labels)[:5].tolist() == pytest.approx([20] * 5, abs=4)  # as many as rows
    wrong = keep(Given(SET, (NAMES + 5) % 10), labels=LABELS)
    assert (chosen(wrong) < 5).mean() < 0.05


def test_within_a_class_what_is_no_digit_is_dropped():
    rng = np.random.default_rng(0)
    mixed = np.concatenate([rng.permuted(SET.reshape(-1), axis=0).reshape(SET.shape), SET])
    release = keep(Given(mixed, np.concatenate([NAMES, NAMES])), labels=LABELS)
    assert (release.params["index"] >= len(SET)).double().mean() > 0.9


def test_the_release_is_members_of_the_set_once_each_in_its_order():
    for labels in (None, NAMES):
        release = keep(Given(SET, labels), labels=LABELS, n=300, epsilon=1.0)
        index = release.params["index"].numpy()
        assert release.samples.numpy().tobytes() == SET[index].tobytes()
        assert (np.diff(index) > 0).all()
        assert len(index) == 300


def reference(counts, votes, n):
    """Shares by noisy class counts, within what there is; then the best by noisy votes: straight from the ledger."""
    shares, left = np.zeros(10, int), n
    while left:
        room = np.array([c for c in range(10) if shares[c] < (c == NAMES).sum()])
        weights = np.maximum(counts[room], 0) if (counts[room] > 0).any() else np.ones(len(room))
        exact = weights / weights.sum() * left
        more = np.floor(exact).astype(int)
        more[np.argsort(-(exact - more), kind="stable")[: left - more.sum()]] += 1
        shares[room] = np.minimum(shares[room] + more, [(c == NAMES).sum() for c in room])
        left = n - shares.sum()
    best = [np.flatnonzero(c == NAMES) for c in range(10)]
    best = [mine[np.argsort(-votes[mine], kind="stable")][:share] for mine, share in zip(best, shares, strict=True)]
    return np.sort(np.concatenate(best))


@pytest.mark.parametrize(("n", "epsilon"), [(100, 1.0), (600, 0.05), (600, 20.0), (900, 1.0)])
def test_the_choice_follows_from_the_noisy_counts_on_the_ledger_alone(n, epsilon):
    release = keep(Given(SET, NAMES), n, LABELS, epsilon)
    counts, votes = (np.array(record["counts"]) for record in release.ledger.releases())
    assert (counts.shape, votes.shape) == ((10,), (900,))
    assert release.params["index"].tolist() == reference(counts, votes, n).tolist()
    if n == 100:  # the broken twin: other votes are another choice
        assert release.params["index"].tolist() != reference(counts, -votes, n).tolist()


def test_the_order_of_the_rows_says_nothing():
    def once(order, noise):
        private = PrivateData(ROWS[order], LABELS[order], budget=Budget(1.0), noise=noise)
        release = simpe.evolve(Given(SET, NAMES), None, private, samples=50)
        files = release.files()
        return [files[name] for name in ("samples.npz", "history.npz", "grid.png")]

    order = np.arange(len(ROWS))
    assert once(order, addressed_noise) == once(order[::-1], addressed_noise)
    assert once(order, addressed_noise) != once(order, no_noise)


def test_charges_and_certificate():
    release = keep(Given(SET, NAMES, origin="a model of ours, epsilon 4"), labels=LABELS, epsilon=1.0)
    found = release.certificate
    assert [charge["release"] for charge in found["charges"]] == ["0/counts", "0/0/votes"]
    charges = [Charge(charge["sigma"], charge["sensitivity"], charge["one_bin"]) for charge in found["charges"]]
    assert 0.99 < epsilon_of(charges, 1e-6) <= 1.0
    assert found["private"]
    assert found["covers"] == "the choice among the given samples alone"
    assert found["statement"].startswith("the choice among the given samples is (1, 1e-06)-differentially private")
    assert any("composes with" in caveat for caveat in found["caveats"])
    assert found["public_inputs"]["simulator"]["settings"]["origin"] == "a model of ours, epsilon 4"
    assert found["public_inputs"]["steps"] == 1
    other = keep(Gallery(SET), n=10).certificate  # another simulator's is not touched
    assert other["covers"] == "the samples"
    assert not any("composes with" in caveat for caveat in other["caveats"])


def test_the_fingerprint_tells_sets_and_their_labels_apart():
    assert Given(SET, NAMES).public_inputs() == Given(SET, NAMES).public_inputs()
    assert Given(SET, NAMES).public_inputs() != Given(SET, NAMES[::-1]).public_inputs()
    assert Given(SET, NAMES).public_inputs() != Given(SET[::-1], NAMES).public_inputs()


def test_it_passes_the_checks():
    assert [str(f) for f in simpe.check_simulator(Given(SET, NAMES)) if not f.ok] == []


def test_units_have_one_vector_over_all_samples():
    units = np.arange(len(ROWS)) // 3
    release = keep(Given(SET, NAMES), 20, LABELS, epsilon=20.0, units=units, k=3)
    assert not any(charge["one_bin"] for charge in release.certificate["charges"])
    assert (chosen(release) < 5).mean() > 0.9


def test_classes_of_the_set_that_no_row_has_and_classes_that_the_set_lacks():
    names = np.array([f"d{label}" for label in NAMES])
    rows = np.array([f"d{label}" for label in LABELS])
    release = keep(Given(SET, names), labels=rows, classes=("d3", "d1", "more"), n=60)
    assert set(chosen(release)) == {1, 3}
    assert release.classes == ("d3", "d1", "more")
    assert all(release.classes[i] == f"d{j}" for i, j in zip(release.labels, chosen(release), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 901}, "--keep: the given set has 900 samples of the classes 0, .*, not 901"),
        ({"samples": None}, "--keep: the given set has 900 samples"),
        ({"steps": 2}, "--steps 2: a given set is voted on once"),
        ({"strategy": simpe.Strategy(lookahead=2)}, "neighbours and metric"),
        ({"strategy": simpe.Strategy(marginals=0.5)}, "neighbours and metric"),
        ({"simulator": Given(SET)}, "has no labels"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_spent(change, message):
    classes = tuple("0123456789")
    private = PrivateData(ROWS, LABELS, budget=Budget(1.0), classes=classes)
    with pytest.raises(InputError, match=message):
        simpe.evolve(**{"simulator": Given(SET, NAMES), "embedder": None, "private": private, "samples": 9} | change)
    assert private.ledger.committed() == []
    assert private.ledger.releases() == []


def test_a_set_with_labels_needs_rows_with_labels():
    with pytest.raises(InputError, match="10 classes, so the private rows need labels"):
        keep(Given(SET, NAMES))


@pytest.mark.parametrize("labels", [NAMES[:5], NAMES[:, None], NAMES.astype(float)])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(InputError, match="labels of a given set"):
        Given(SET, labels)


# --- run folders and the command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "set.npz", images=SET, labels=NAMES)
    np.savez(tmp_path / "bare.npz", images=SET)
    np.savez(tmp_path / "private.npz", images=ROWS, labels=LABELS)
    np.savez(tmp_path / "unlabelled.npz", images=ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["simpe", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return (done.value.code, *capsys.readouterr())


def start(out, noise, **options):
    values = {"simulator": "given", "private": "private.npz", "epsilon": 1.0, "samples": 30}
    values |= {"options": {"samples": "set.npz"}} | options
    return runs.start(make_config(out=out, **values), noise=noise)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", ["0/counts", "0/0/votes"])
def test_a_stopped_run_resumes_to_the_same_bits(folder, after):
    def stops(sigma, n, address):
        if address == after:
            raise Stop
        return addressed_noise(sigma, n, address)

    whole = start(folder / "whole", addressed_noise)
    with pytest.raises(Stop):
        start(folder / "run", stops)
    assert not (folder / "run" / "release").exists()
    again = runs.resume(folder / "run", noise=addressed_noise)
    assert again is not None
    assert torch.equal(again.samples, whole.samples)
    for name in ("samples.npz", "history.npz", "grid.png"):
        assert (folder / "run" / "release" / name).read_bytes() == (folder / "whole" / "release" / name).read_bytes()


def test_a_set_that_changed_is_not_resumed_with(folder):
    def stops(sigma, n, address):
        if address == "0/0/votes":
            raise Stop
        return addressed_noise(sigma, n, address)

    with pytest.raises(Stop):
        start(folder / "run", stops)
    np.savez(folder / "set.npz", images=SET[::-1], labels=NAMES)
    with pytest.raises(InputError, match="another config"):
        runs.resume(folder / "run", noise=addressed_noise)


def test_the_command_keeps_and_reports(folder, monkeypatch, capsys):
    code, said, warned = command(
        monkeypatch, capsys, "filter", "set.npz", "--private", "private.npz", "--keep", 200, "--out", "run"
    )
    assert code == 0
    assert "200 samples, the choice among the given samples is (1, 1e-06)-differentially private" in said
    assert "mostly the noise's" in warned  # 400 rows cannot tell 200 samples apart at epsilon 1
    with np.load("run/release/samples.npz") as arrays:
        assert (arrays["images"] == SET[arrays["param_index"]]).all()
        assert (arrays["labels"] == NAMES[arrays["param_index"]]).all()
    public, _ = report.write(folder / "run")
    text = public.read_text()
    assert "were chosen from a given set" in text
    assert "samples in this folder are synthetic" not in text
    assert "No model was trained" not in text


def test_a_run_of_simpe_and_the_filter_of_its_release_share_a_ledger(folder, monkeypatch, capsys):
    """The release lost its labels on the way: the rows are the same data set all the same."""
    first = start(
        folder / "first", None, simulator="gallery", ledger=folder / "both.jsonl", samples=200, steps=1,
        classes="0123456789", options={"samples": "bare.npz"},
    )  # fmt: skip
    np.savez(folder / "made.npz", images=first.samples.numpy())
    options = ("--private", "private.npz", "--keep", 20, "--ledger", "both.jsonl", "--out", "run")
    code, _, said = command(monkeypatch, capsys, "filter", "made.npz", *options)
    assert (code, "already spent" in said) == (2, True)
    assert not (folder / "run").exists()
    assert command(monkeypatch, capsys, "filter", "made.npz", *options, "--epsilon", 3)[0] == 0
    found = json.loads((folder / "run" / "release" / "certificate.json").read_text())
    assert found["epsilon"] == 3
    assert len(found["other_charges_on_the_ledger"]) == 2
    assert found["scope"].startswith("everything")


def test_a_folder_of_images_is_a_set(folder, monkeypatch, capsys):
    for i, (image, name) in enumerate(zip(SET[:60], NAMES[:60], strict=True)):
        (folder / "photos" / str(name)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "photos" / str(name) / f"{i:03}.png")
    options = ("--private", "private.npz", "--keep", 20, "--epsilon", 20, "--embedder", "blurred-pixels")
    assert command(monkeypatch, capsys, "filter", "photos", *options, "--out", "run")[0] == 0
    with np.load("run/release/samples.npz") as arrays:
        assert {x.tobytes() for x in arrays["images"]} <= {x.tobytes() for x in SET[:60]}
        assert (arrays["labels"] < 5).mean() > 0.8
    found = json.loads((folder / "run" / "release" / "certificate.json").read_text())
    assert "blurred_pixels" in found["public_inputs"]["embedder"]["name"]


def test_what_is_private_is_no_set_to_give_away(folder, monkeypatch, capsys):
    (folder / "inside").mkdir()
    np.savez(folder / "inside" / "private.npz", images=ROWS)
    for arguments in (
        ("filter", "inside", "--private", "inside/private.npz", "--keep", 9),
        ("filter", "inside/../private.npz", "--private", "private.npz", "--keep", 9),
    ):
        code, _, said = command(monkeypatch, capsys, *arguments, "--out", "run")
        assert (code, "the run's private input" in said) == (2, True)
        assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set.npz", "--private", "private.npz", "--keep", 901), "has 900 samples"),
        (("set.npz", "--private", "private.npz", "--keep", 300, "--classes", "1,2"), "of the classes 1, 2, not 300"),
        (("set.npz", "--private", "private.npz", "--keep", 0), "--keep"),
        (("set.npz", "--private", "private.npz"), "--keep"),
        (("set.npz", "--private", "unlabelled.npz", "--keep", 9), "need labels"),
        (("bare.npz", "--private", "private.npz", "--keep", 9, "--classes", "1,2"), "has no labels"),
        (("private.npz", "--private", "private.npz", "--keep", 9), "the run's private input"),
        (("nothing.npz", "--private", "private.npz", "--keep", 9), "no such file"),
        (("set.npz", "--private", "private.npz", "--keep", 9, "--embedder", "nothing"), "not registered"),
        (("set.npz", "--private", "private.npz", "--keep", 9, "--epsilon", "-1"), "--epsilon"),
        (("colour.npz", "--private", "unlabelled.npz", "--keep", 9), "make them alike"),
    ],
)
def test_bad_input_is_one_line_before_there_is_a_folder(folder, monkeypatch, capsys, arguments, message):
    np.savez(folder / "colour.npz", images=np.stack([SET] * 3, 3))
    code, _, said = command(monkeypatch, capsys, "filter", *arguments, "--out", "run")
    assert code == 2
    assert len(said.strip().splitlines()) == 1, said
    assert message in said
    assert not (folder / "run").exists()
