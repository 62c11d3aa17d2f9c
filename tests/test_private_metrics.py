"""Figures bought on private rows: what they say, what they cost, and what the certificate says then."""

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
from support import Patches, no_noise

from simpe import InputError, PrivateData, private, private_metrics, runs, store
from simpe.cli import main
from simpe.config import make_config
from simpe.metrics import support
from simpe.privacy.accounting import Charge, delta_of
from simpe.private_metrics import FILE, _Question, figures, release_metrics
from simpe.report import of_release
from simpe.rows import Rows


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(private_metrics, "trained", partial(private_metrics.trained, steps=100))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on 400 images of two classes, finished."""
    place = tmp_path_factory.mktemp("made")
    p = {**Patches.space.sample(400, torch.Generator().manual_seed(5)), "label": torch.arange(400) % 4 // 3}
    np.savez(place / "rows.npz", images=Patches().render(p), labels=np.array(Patches.classes)[p["label"].numpy()])
    config = make_config(
        simulator="support:Patches", private=str(place / "rows.npz"), epsilon=2.0, samples=200, steps=1,
        out=place / "run",
    )  # fmt: skip
    runs.start(config)
    return place / "run"


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def released(folder, name):
    return json.loads((folder / "release" / name).read_text())


def test_figures_are_right_where_there_is_hardly_any_noise(run):
    found = release_metrics(run, 10_000.0)
    assert found["rows"] == 400
    assert found["rows_by_class"] == {"left": 300, "right": 100}
    assert found["accuracy"]["value"] > 0.9
    assert 0 < found["recall"]["value"] <= 1
    assert released(run, FILE) == found


def test_the_certificate_claims_the_total_and_keeps_what_it_said_of_the_run(run):
    before = released(run, "certificate.json")
    found = release_metrics(run, 0.5)
    after = released(run, "certificate.json")
    assert before["epsilon"] == 2.0
    assert after["epsilon"] > 2.0
    assert f"{after['epsilon']:g}" in after["statement"]
    assert f"{after['epsilon']:g}" in found["statement"]
    assert FILE in after["covers"]
    assert after["scope"].startswith("everything on this data set's ledger")
    for name in ("charges", "public_inputs", "versions", "unit", "delta", "caveats"):
        assert after[name] == before[name]
    bought = {name: found["charge"][name] for name in ("sigma", "sensitivity", "one_bin", "law")}
    assert after["other_charges_on_the_ledger"] == [bought]
    everything = [Charge(c["sigma"], c["sensitivity"], c["one_bin"]) for c in after["charges"]] + [Charge(**bought)]
    assert delta_of(everything, after["epsilon"], adaptive=True) <= after["delta"]
    assert delta_of([Charge(**bought)], 0.5) <= after["delta"]
    # A twin: the old claim does not hold for all of it.
    assert delta_of(everything, before["epsilon"], adaptive=True) > after["delta"]


def test_the_report_shows_what_was_bought_and_nothing_where_nothing_was(run):
    assert "Bought figures" not in of_release(run / "release")
    found = release_metrics(run, 10_000.0)
    page = of_release(run / "release")
    assert f"{found['accuracy']['value']:.3f} ± {found['accuracy']['noise']:.3f}" in page
    assert found["statement"] in page
    assert ">300<" in page


def test_asked_again_they_cost_nothing_and_are_the_same(run):
    found = release_metrics(run, 0.5)
    ledger = (run / "private" / store.LEDGER).read_bytes()
    certificate = released(run, "certificate.json")
    assert release_metrics(run, 0.5) == found
    assert (run / "private" / store.LEDGER).read_bytes() == ledger
    assert released(run, "certificate.json") == certificate
    with pytest.raises(InputError, match=r"bought with epsilon 0\.5"):
        release_metrics(run, 0.4)
    with pytest.raises(InputError, match="another config"):
        release_metrics(run, 0.5, seed=1)


def test_figures_have_the_noise_that_was_paid_for(run, monkeypatch):
    drawn = []
    true = private.discrete_gaussian
    monkeypatch.setattr(private, "discrete_gaussian", lambda *a, **b: drawn.append(true(*a, **b)) or drawn[-1])
    found = release_metrics(run, 0.5)
    assert len(drawn) == 1
    assert len(drawn[0]) == 8
    assert found["rows"] == 400 + int(drawn[0].sum())
    assert found["noise"] == pytest.approx(found["charge"]["sigma"])


def test_shares_of_noise_alone_are_not_given():
    assert figures(np.array([3.0, -5, 2, 7, 0, 1, -2, 4]), ("a", "b"), 8.0)["accuracy"] is None
    found = figures(np.array([10.0, 20, 30, 40, 0, 0, 0, 100]), ("a", "b"), 0.1)
    assert found["accuracy"]["value"] == pytest.approx(170 / 200)
    assert found["recall"]["value"] == pytest.approx(160 / 200)
    assert found["rows_by_class"] == {"a": 100, "b": 100}


def test_the_noise_of_a_share_is_as_said():
    rng = np.random.default_rng(0)
    exact = np.array([10.0, 20, 30, 440, 10, 20, 70, 400])
    found = [figures(exact + rng.normal(0, 5, 8), ("a", "b"), 5.0)["accuracy"] for _ in range(2000)]
    assert np.std([one["value"] for one in found]) == pytest.approx(np.mean([one["noise"] for one in found]), rel=0.1)


def test_recall_is_that_of_the_metrics():
    rng = np.random.default_rng(1)
    samples, rows = rng.normal(size=(300, 4)).astype(np.float32), rng.normal(size=(200, 4)).astype(np.float32)

    def flat(x):
        return x.flatten(1)

    question = _Question(samples, None, ("",), flat, 0, lambda *_: None)
    bins = question(Rows.at_hand(torch.from_numpy(rows), torch.zeros(200, dtype=torch.int64)))
    assert float((bins == 1).double().mean()) == support(samples, rows, k=5).recall


def test_no_row_moves_another_s_bin(made):
    with np.load(made / "release" / "samples.npz") as kept:
        samples, labels = kept["images"], kept["labels"]
    rows = torch.from_numpy(
        Patches().render({**Patches.space.sample(300, torch.Generator()), "label": np.arange(300) % 2})
    )
    question = _Question(samples, labels, Patches.classes, lambda x: x.flatten(1).float(), 0, lambda *_: None)
    codes = torch.arange(300) % 2
    alone = question(Rows.at_hand(rows[1:], codes[1:]))
    assert torch.equal(question(Rows.at_hand(rows, codes))[1:], alone)


def test_units_weigh_the_same_however_many_rows_they_have():
    door = PrivateData(
        np.zeros((6, 2), np.float32), budget=runs.Budget(1e5), classes=("",), units=np.array([0, 0, 0, 0, 1, 2]), k=4,
        noise=no_noise,
    )  # fmt: skip
    counts = door.noisy_sum(lambda rows: torch.tensor([[0]] * 4 + [[1]] * 2), 4, 1.0, address="a", one_bin=False)
    assert (counts / door.charge(1.0, one_bin=False).sensitivity).tolist() == [1, 2, 0, 0]


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["simpe", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_the_command(run, made, monkeypatch, capsys):
    rows = made.parent / "rows.npz"
    assert command(monkeypatch, "evaluate", run, "--against", rows, "--private-metrics-epsilon", 1) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["differentially_private"]
    assert "To give away" in said.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--private-metrics-epsilon", "1", "--against", "sklearn"], "own private rows alone"),
        (["--private-metrics-epsilon", "1", "--public"], "leave out"),
        (["--private-metrics-epsilon", "-1"], "epsilon"),
        ([], "--against is missing"),
    ],
)
def test_bad_input_is_refused_and_buys_nothing(options, said, run, monkeypatch, capsys):
    before = (run / "private" / store.LEDGER).read_bytes()
    assert command(monkeypatch, "evaluate", run, *options) == 2
    assert said in capsys.readouterr().err
    assert (run / "private" / store.LEDGER).read_bytes() == before
    assert not (run / "release" / FILE).exists()


def test_a_run_that_is_not_finished_is_refused(run):
    shutil.rmtree(run / "release")
    with pytest.raises(InputError, match="not finished"):
        release_metrics(run, 1.0)
