"""The ledger: whole or not at all, never altered unseen, never overspent."""

import json
import multiprocessing
import os
import signal
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpe.errors import InputError
from simpe.privacy.accounting import Budget, Charge, delta_of
from simpe.privacy.ledger import BudgetExceeded, Ledger
from simpe.private import PrivateData

BUDGET = Budget(1.0, 1e-6)
SAMPLES = np.arange(12, dtype=np.float32).reshape(6, 2)
LABELS = np.array([0, 1, 0, 1, 1, 2])


def door(ledger=None, samples=SAMPLES, budget=BUDGET, **more):
    return PrivateData(samples, LABELS, budget=budget, classes=["0", "1"], ledger=ledger, **more)


def counted(private, address, noise=20.0, digest=""):
    """Class counts, and whether the rows were looked at."""
    looked = []

    def query(rows):
        looked.append(True)
        return rows.labels[:, None]

    try:
        return private.noisy_sum(query, 2, noise, address=address, digest=digest), bool(looked)
    except InputError as error:
        return error, bool(looked)


def written(folder):
    path = folder / "ledger"
    private = door(path)
    for i in range(4):
        counted(private, f"a/{i}")
    return path.read_bytes()


def read(folder, content):
    path = folder / "altered"
    path.write_bytes(content)
    return list(loaded(path)._records)


def loaded(path):
    ledger = Ledger(path)
    with ledger.locked():
        return ledger


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_altered_byte_is_noticed_or_means_the_same(tmp_path, data):
    content = tmp_path / "content"
    if not content.exists():
        content.write_bytes(written(tmp_path))
    original = content.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255))
    altered = original[:place] + bytes([byte]) + original[place + 1 :]
    try:
        assert read(tmp_path, altered) == read(tmp_path, original)
    except InputError as error:
        assert "altered" in str(error)  # noqa: PT017


@pytest.mark.parametrize("edit", ["drop", "swap", "repeat", "insert"])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_dropped_swapped_repeated_or_foreign_records_are_noticed(tmp_path, edit, at):
    lines = written(tmp_path).splitlines(keepends=True)
    if edit == "drop":
        del lines[at]
    elif edit == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    elif edit == "repeat":
        lines.insert(at, lines[at])
    else:
        lines.insert(at, json.dumps({"type": "release", "hash": "0" * 64}).encode() + b"\n")
    with pytest.raises(InputError, match="altered"):
        read(tmp_path, b"".join(lines))
    with pytest.raises(InputError, match="altered"):
        read(tmp_path, b"\n".join(lines) + b"no ledger")


def test_a_rewritten_count_is_noticed_even_where_the_line_is_whole(tmp_path):
    lines = written(tmp_path).splitlines()
    record = json.loads(lines[2])
    record["counts"][0] += 1
    lines[2] = json.dumps(record, separators=(",", ":")).encode()
    with pytest.raises(InputError, match="record 3 was altered"):
        read(tmp_path, b"\n".join(lines))


def test_a_charge_past_the_budget_is_refused_before_a_row_is_read():
    private = door()
    assert counted(private, "small", 20.0)[1]
    error, looked = counted(private, "large", 1.0)
    assert isinstance(error, BudgetExceeded)
    assert not looked
    assert len(private.ledger.committed()) == 1
    assert counted(private, "small again", 20.0)[1]


def test_a_replay_reads_no_row_and_draws_no_noise(tmp_path):
    drawn = []

    def noise(sigma, n, address):
        drawn.append(address)
        return np.full(n, len(drawn))

    private = door(tmp_path / "ledger", noise=noise)
    private.begin("run", {}, dict)
    first, _ = counted(private, "a")
    for again in (private, door(tmp_path / "ledger", noise=noise)):
        again.begin("run", {}, dict)
        replayed, looked = counted(again, "a")
        assert replayed.tolist() == first.tolist()
        assert not looked
    assert drawn == ["a"]
    assert counted(again, "b")[0].tolist() != first.tolist()


def test_a_replay_to_another_question_is_refused():
    private = door()
    counted(private, "a", digest="one")
    error, looked = counted(private, "a", digest="two")
    assert isinstance(error, InputError)
    assert not looked
    with pytest.raises(InputError, match="another question"):
        private.noisy_sum(lambda rows: rows.labels[:, None], 3, 20.0, address="a", digest="one")


@pytest.mark.parametrize(
    "change",
    [
        {"samples": SAMPLES + 1},
        {"samples": SAMPLES[::-1]},
        {"unit": "person"},
        {"units": np.arange(6)},
        {"units": np.arange(6), "k": 2},
        {"budget": Budget(1.0, 1e-6, "replace_one")},
    ],
)
def test_a_ledger_serves_one_data_set_unit_cap_and_relation(tmp_path, change):
    counted(door(tmp_path / "ledger"), "a")
    counted(door(tmp_path / "ledger"), "a")  # the same is welcome
    with pytest.raises(InputError, match="belongs to another"):
        door(tmp_path / "ledger", **change)


def test_a_run_goes_on_under_its_own_budget_and_config_only(tmp_path):
    description = {"budget": {"epsilon": 1.0}, "config": "a"}
    plan = {"x": Charge(20.0)}
    assert door(tmp_path / "ledger").begin("run", description, lambda: plan) == plan
    assert door(tmp_path / "ledger").begin("run", description, dict) == plan  # the first plan stays
    for other in ({"budget": {"epsilon": 2.0}}, {"config": "b"}):
        with pytest.raises(InputError, match="begun with another"):
            door(tmp_path / "ledger").begin("run", description | other, lambda: plan)


def test_runs_that_share_a_file_add_up_adaptively(tmp_path):
    for run in ("one", "two"):
        private = door(tmp_path / "ledger")
        private.begin(run, {}, lambda: {"x": Charge(10.0)})
        assert private.ledger.adaptive is False or run == "two"
        counted(private, "x", 10.0)
    ledger = private.ledger
    assert ledger.adaptive
    assert ledger.runs() == 2
    both = [Charge(10.0)] * 2
    assert delta_of(both, ledger.spent(BUDGET), adaptive=True) <= BUDGET.delta
    assert delta_of(both, ledger.spent(BUDGET) * 0.999, adaptive=True) > BUDGET.delta
    planned = next(s for s in np.geomspace(4, 6, 100) if delta_of([Charge(s)], 1.0) <= 1e-6)
    alone, unplanned = door(), door()
    alone.begin("run", {}, lambda: {"x": Charge(planned)})
    assert counted(alone, "x", planned)[1]
    assert isinstance(counted(unplanned, "x", planned)[0], BudgetExceeded)  # without a plan: zCDP, dearer


def test_a_plan_that_does_not_fit_whole_is_not_carried_out_in_parts():
    """Else the choice of the part, made on earlier results, would be counted as if it had been fixed."""
    private = door()
    private.begin("run", {}, lambda: {"coarse": Charge(20.0), "fine": Charge(1.0)})
    assert isinstance(counted(private, "coarse", 20.0)[0], BudgetExceeded)


def test_a_plan_made_after_the_first_release_is_refused():
    private = door()
    private.run = "run"
    counted(private, "x", 20.0)
    with pytest.raises(InputError, match="releases already"):
        private.begin("run", {}, lambda: {"x": Charge(20.0)})


def test_the_ledger_is_for_the_operators_eyes(tmp_path):
    before = os.umask(0)
    try:
        written(tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def kill_at(path, moment):
    """In a child: publish a release, and die at the given call to fsync or rename (before it is made)."""
    calls = [0]

    def deadly(real):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    private = door(path)
    os.fsync, Path.rename = deadly(os.fsync), deadly(Path.rename)
    os.rename, os.replace = deadly(os.rename), deadly(os.replace)
    private.class_counts(20.0, address="late")


def test_a_kill_while_publishing_leaves_the_old_or_the_new_ledger_whole(tmp_path):
    fork = multiprocessing.get_context("fork")
    seen = []
    for moment in range(1, 10):
        folder = tmp_path / str(moment)
        folder.mkdir()
        old = written(folder)
        child = fork.Process(target=kill_at, args=(folder / "ledger", moment))
        child.start()
        child.join(60)
        new = (folder / "ledger").read_bytes()
        assert new.startswith(old)
        assert len(loaded(folder / "ledger").committed()) == 4 + (new != old)
        assert {p.name for p in folder.iterdir()} == {"ledger", "ledger.lock"}  # the leftover is gone
        seen.append((child.exitcode, new != old))
        if child.exitcode == 0:
            break
    assert seen[0] == (-signal.SIGKILL, False)
    assert (-signal.SIGKILL, True) in seen
    assert seen[-1] == (0, True)


def spend(path, name, start):
    start.wait(60)
    private = door(path)
    for i in range(6):
        counted(private, f"{name}/{i}", 12.0)


def test_processes_on_one_ledger_never_overspend(tmp_path):
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    counted(door(tmp_path / "ledger"), "first", 12.0)  # two that begin a ledger at once would send one of them away
    children = [fork.Process(target=spend, args=(tmp_path / "ledger", i, start)) for i in range(4)]
    for child in children:
        child.start()
    start.set()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    charges = loaded(tmp_path / "ledger").committed()
    assert 1 < len(charges) < 25  # all of them together would be too much
    assert delta_of(charges, 1.0, adaptive=True) <= 1e-6
    assert delta_of([*charges, Charge(12.0)], 1.0, adaptive=True) > 1e-6


@pytest.mark.parametrize("file", [True, False])
def test_threads_at_one_door_never_overspend(tmp_path, file):
    """A second thread asks while the first one's query runs; it has to wait, and is refused."""
    private = door(tmp_path / "ledger" if file else None)
    second_asked, results = threading.Event(), {}

    def second():
        second_asked.set()
        results["second"] = counted(private, "second", 5.5)[0]

    other = threading.Thread(target=second)

    def query(rows):
        other.start()
        second_asked.wait(60)
        other.join(0.2)  # time enough for an unguarded door to let it through
        return rows.labels[:, None]

    private.noisy_sum(query, 2, 5.5, address="first")
    other.join(60)
    assert isinstance(results["second"], BudgetExceeded)
    assert len(private.ledger.committed()) == 1
