"""The dashboard shows what was released of each step, and nothing that was not."""

import io
import os
import pty
import re
import select
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from support import Oscillator, addressed_noise, no_noise

import simpe
from simpe.watch import Dashboard, Summary


def console(width=100):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40)


def run(noise, watch, steps=3):
    rows = Oscillator().render(Oscillator.space.sample(200, torch.Generator().manual_seed(1)))
    private = simpe.PrivateData(rows, budget=simpe.Budget(2, 1e-6), noise=noise)
    return simpe.evolve(Oscillator(), None, private, samples=5, steps=steps, watch=watch)


@pytest.fixture(scope="module")
def steps():
    seen = []
    release = run(addressed_noise, lambda info, steps: seen.append((info, steps)))
    return seen, release


def test_every_step_is_told_once_with_what_the_history_holds(steps):
    seen, release = steps
    assert [(info.step, of) for info, of in seen] == [(0, 3), (1, 3), (2, 3)]
    for t, (info, _) in enumerate(seen, start=1):
        assert info.counts.tolist() == release.history[f"votes_{t}"].tolist()


def test_a_summary_is_of_noisy_votes(steps):
    info, of = steps[0][0]
    summary = Summary.of(info, of)
    votes = info.counts.numpy()
    assert (summary.step, summary.steps, summary.survivors) == (1, 3, len(votes))
    assert summary.candidates == len(info.candidates)
    assert summary.clear == pytest.approx((votes > 2 * info.noise).mean())
    assert summary.curve[0] == pytest.approx(votes.max() / info.noise)
    assert summary.curve[-1] == pytest.approx(votes.min() / info.noise)
    assert "noisy votes at sigma" in str(summary)


def test_exact_votes_would_look_different(steps):
    """The broken twin: without noise, the same run shows other numbers, so what is shown carries the noise."""
    exact = []
    run(no_noise, lambda info, steps: exact.append(Summary.of(info, steps)))
    shown = [Summary.of(info, of) for info, of in steps[0]]
    assert [one.median for one in shown] != [one.median for one in exact]
    assert all(one.median == int(one.median) for one in exact[:1])


def test_the_dashboard_draws_steps_activity_remarks_and_time(steps):
    out = console()
    dashboard = Dashboard(out, "epsilon 2")
    dashboard("step 1: voting", 3, 10)
    assert dashboard.left() is None
    out.print(dashboard)
    for info, of in steps[0][:2]:
        dashboard.watch(info, of)
    dashboard("warning: about 200 units", 0, 0)
    out.print(dashboard)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.file.getvalue())
    assert "step 1: voting" in text
    assert "step 3 of 3" in text
    assert "warning: about 200 units" in text
    assert re.search(r"about \d+:\d\d left", text)
    assert dashboard.left() >= 0
    for info, of in steps[0]:
        assert f"{Summary.of(info, of).noise:.1f}" in text
    dashboard.watch(*steps[0][2])
    out.print(dashboard)
    assert "finishing" in out.file.getvalue()


def test_a_narrow_terminal_is_no_error(steps):
    out = console(width=30)
    dashboard = Dashboard(out)
    dashboard.watch(*steps[0][0])
    out.print(dashboard)


def terminal(*arguments, cwd):
    """What a command shows on a real terminal, and its exit code."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "110", "LINES": "40"}
    command = [sys.executable, "-m", "simpe", *arguments]
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    with subprocess.Popen(command, cwd=cwd, env=environment, **streams) as process:
        os.close(follower)
        shown = b""
        while True:
            ready, _, _ = select.select([leader], [], [], 120)
            try:
                part = os.read(leader, 65536) if ready else b""
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            shown += part
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode(errors="replace")), process.returncode


DIGITS = ("digits", "--private", "sklearn", "--epsilon", "1", "--samples", "50", "--steps", "2", "--watch", "--out")


def test_the_command_shows_it_on_a_terminal(tmp_path):
    shown, code = terminal(*DIGITS, "run", cwd=tmp_path)
    assert code == 0, shown
    assert "step 2 of 2" in shown
    assert "above 2 sigma" in shown
    assert "to give away" in shown


def test_elsewhere_each_step_is_a_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "simpe", *DIGITS, "run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ") and "survive" in line]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 2", "step 2 of 2"]
