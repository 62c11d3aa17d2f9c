"""Kills a run at every one of its writes, resumes it, and compares the outcome with an uninterrupted run.

Run as a script by test_resume.py: ``kill_driver.py FOLDER``. Each attempt is a fork of this process, so that torch is
imported once; it runs on one thread, since a thread pool does not survive a fork.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from support import addressed_noise

from simpe import Budget, runs, schedule
from simpe.config import make_config

torch.set_num_threads(1)

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.symlink", "shutil.rmtree", "fcntl.flock"}


def config(folder, name):
    return make_config(
        simulator="support:Oscillator", private=str(folder / "series.npz"), epsilon=1.0, out=folder / name,
        samples=20, steps=2, strategy={"places": 2},
    )  # fmt: skip


def die_at(number):
    """SIGKILL this process just before its ``number``-th write."""
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event == "open":
            flags = arguments[2] or 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        if event in WATCHED:
            step()

    sys.addaudithook(hook)
    sync = os.fsync

    def fsync(handle):
        step()
        sync(handle)
        step()

    os.fsync = fsync


def attempt(act):
    """Exit status of ``act`` in a fork; -9 when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder):
    with np.load(folder / "release" / "samples.npz") as arrays:
        samples = {name: arrays[name].tobytes() for name in arrays}
    ledger = [json.loads(line) for line in (folder / "private" / "ledger.jsonl").read_text().splitlines()]
    releases = [(r["address"], r["charge"], r["counts"]) for r in ledger if r["type"] == "release"]
    return samples, (folder / "release" / "certificate.json").read_bytes(), releases


def main(folder):
    schedule(Budget(1.0), 2)  # remembered, so that no fork has to compute it
    assert attempt(lambda: runs.start(config(folder, "whole"), noise=addressed_noise)) == 0
    expected = outcome(folder / "whole")
    killed = resumed_from_ledger = 0
    for number in range(1, 1000):
        run = folder / f"run{number}"

        def begin(run=run, number=number):
            die_at(number)
            runs.start(config(folder, run.name), noise=addressed_noise)

        status = attempt(begin)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed += 1
        assert not (run / "release").exists() or outcome(run) == expected
        if not run.exists():  # killed before the run folder appeared
            assert attempt(lambda run=run: runs.start(config(folder, run.name), noise=addressed_noise)) == 0
        else:
            ledger = run / "private" / "ledger.jsonl"
            resumed_from_ledger += ledger.exists() and '"release"' in ledger.read_text()
            assert attempt(lambda run=run: runs.resume(run, noise=addressed_noise)) == 0
        assert outcome(run) == expected, number
        assert not [path for path in folder.rglob("*.partial") if run in path.parents]
    print(json.dumps({"killed": killed, "resumed_from_ledger": resumed_from_ledger}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
