"""Runs that stop anywhere continue to the same end, and never spend twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Oscillator, addressed_noise

from simpe import InputError, runs, store
from simpe.config import make_config

HERE = Path(__file__).parent


@pytest.fixture
def private(tmp_path, series):
    path = tmp_path / "series.npz"
    np.savez(path, samples=series)
    return path


def begin(private, out, **options):
    values = {"simulator": "support:Oscillator", "epsilon": 1.0, "samples": 20, "steps": 2} | options
    return runs.start(make_config(private=str(private), out=out, **values), noise=addressed_noise)


class Stop(Exception):
    pass


def stop_after(count):
    """Test noise that gives up after so many releases: a crash between two of them."""
    given = 0

    def noise(sigma, n, address):
        nonlocal given
        if given == count:
            raise Stop
        given += 1
        return addressed_noise(sigma, n, address)

    return noise


def stopped_run(private, out, after=2, **options):
    values = {"simulator": "support:Oscillator", "epsilon": 1.0, "samples": 20, "steps": 2} | options
    with pytest.raises(Stop):
        runs.start(make_config(private=str(private), out=out, **values), noise=stop_after(after))


def test_killed_at_every_write_a_run_resumes_to_the_same_bits(private, tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_driver.py"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["killed"] > 40
    assert seen["resumed_from_ledger"] > 20


def test_resume_of_a_finished_run_changes_nothing(private, tmp_path):
    out = tmp_path / "run"
    begin(private, out)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    assert runs.resume(out, noise=addressed_noise) is None
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()} == before


def test_resume_replays_without_drawing_noise_again(private, tmp_path):
    out = tmp_path / "run"
    first = begin(private, out)
    shutil.rmtree(out / "release")

    def forbidden(sigma, n, address):
        raise AssertionError("noise was drawn for a release that the ledger holds")

    again = runs.resume(out, noise=forbidden)
    assert again is not None
    assert torch.equal(again.samples, first.samples)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("epsilon = 1.0", "epsilon = 2.0", "another budget"),
        ("samples = 20", "samples = 21", "another config"),
        ("steps = 2", "steps = 2\nrelation = 'replace_one'", "another relation"),
        ("steps = 2", "steps = 2\nseed = 3", "another config"),
        ("steps = 2", "steps = 3", "another config"),
    ],
)
def test_resume_under_another_configuration_is_refused(private, tmp_path, old, new, reason):
    out = tmp_path / "run"
    stopped_run(private, out)
    config = out / "private" / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(InputError, match=reason):
        runs.resume(out, noise=addressed_noise)


def test_resume_on_other_data_is_refused(private, tmp_path, series):
    out = tmp_path / "run"
    stopped_run(private, out)
    series[0, 0] += 1
    np.savez(private, samples=series)
    with pytest.raises(InputError, match="another data set"):
        runs.resume(out, noise=addressed_noise)


def test_resume_on_an_altered_record_is_refused(private, tmp_path):
    out = tmp_path / "run"
    stopped_run(private, out)
    ledger = out / "private" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    record = json.loads(lines[-1])
    record["counts"][0] += 1
    ledger.write_text("\n".join([*lines[:-1], json.dumps(record)]) + "\n")
    with pytest.raises(InputError, match="was altered"):
        runs.resume(out, noise=addressed_noise)


def test_resume_with_another_simulator_is_refused(private, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped_run(private, out)
    monkeypatch.setattr(Oscillator, "public_inputs", lambda self: {"changed": True}, raising=False)
    with pytest.raises(InputError, match="another config"):
        runs.resume(out, noise=addressed_noise)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        runs.resume(tmp_path)


def test_runs_on_a_shared_ledger_share_one_budget(private, tmp_path):
    ledger = tmp_path / "shared.jsonl"
    first = begin(private, tmp_path / "a", ledger=ledger)
    with pytest.raises(InputError, match="already spent"):
        begin(private, tmp_path / "b", ledger=ledger)
    assert not (tmp_path / "b").exists()
    second = begin(private, tmp_path / "b", ledger=ledger, epsilon=3.0)
    assert first.certificate["spent_epsilon"] <= 1
    assert 1 < second.certificate["spent_epsilon"] <= 3
    assert second.certificate["scope"].startswith("everything")
    assert second.certificate["accounting"] == "zCDP"
    assert sorted(path.name for path in (tmp_path / "a").rglob("ledger.jsonl")) == ["ledger.jsonl"]


def test_a_shared_ledger_refuses_other_data_before_there_is_a_folder(private, tmp_path, series):
    ledger = tmp_path / "shared.jsonl"
    begin(private, tmp_path / "a", ledger=ledger)
    np.savez(private, samples=series + 1)
    with pytest.raises(InputError, match="another data set"):
        begin(private, tmp_path / "b", ledger=ledger, epsilon=5.0)
    assert not (tmp_path / "b").exists()


def test_a_lost_or_rolled_back_ledger_is_refused(private, tmp_path):
    for damage in ("lose", "cut"):
        out = tmp_path / damage
        stopped_run(private, out)
        ledger = out / "private" / "ledger.jsonl"
        if damage == "lose":
            ledger.unlink()
        else:
            ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
        with pytest.raises(InputError, match="lost or older"):
            runs.resume(out, noise=addressed_noise)


def test_a_stopped_run_goes_on_within_a_larger_total_and_says_so(private, tmp_path):
    ledger = tmp_path / "shared.jsonl"
    stopped_run(private, tmp_path / "a", ledger=ledger)
    second = begin(private, tmp_path / "b", ledger=ledger, epsilon=3.0)
    first = runs.resume(tmp_path / "a", noise=addressed_noise)
    assert first is not None
    for release in (first, second):
        assert release.certificate["epsilon"] == 3.0
        assert release.certificate["spent_epsilon"] <= 3.0
    assert len(first.certificate["other_charges_on_the_ledger"]) == 3


def test_a_refused_run_leaves_no_ledger_behind(private, tmp_path):
    ledger = tmp_path / "shared.jsonl"
    with pytest.raises(InputError, match="--steps"):
        begin(private, tmp_path / "a", ledger=ledger, epsilon=0.001, steps=900)
    assert not ledger.exists()
    begin(private, tmp_path / "a", ledger=ledger, relation="replace_one")


def test_two_processes_cannot_work_on_one_run(private, tmp_path):
    out = tmp_path / "run"
    stopped_run(private, out)
    with store.exclusively(out), pytest.raises(InputError, match="another process"):
        runs.resume(out, noise=addressed_noise)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"simulator": "digits"}, "need labels"),
        ({"simulator": "digits", "classes": "ABC"}, "need labels"),
        ({"simulator": "support:Patches"}, "need labels"),
        ({"simulator": "support:addressed_noise"}, "no simulator"),
        ({"embedder": "support:no_noise"}, "embed"),
        ({"embedder": "pixels-and-gradients"}, "embed"),
        ({"strategy": {"start": 0}}, "start"),
        ({"strategy": {"metric": "taxicab"}}, "metric"),
        ({"k": 3}, "--unit"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_spent(private, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        begin(private, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_samples_of_another_length_are_said_before_anything_is_spent(private, tmp_path, series):
    np.savez(private, samples=series[:, :20])
    with pytest.raises(InputError, match="32 and 20"):
        begin(private, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_outside_the_classes_altogether_are_said(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.array(["A"] * 9))
    with pytest.raises(InputError, match="--classes"):
        begin(tmp_path / "x.npz", tmp_path / "run", simulator="digits")
