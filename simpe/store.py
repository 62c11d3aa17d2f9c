"""The run folder: it appears whole, grows by whole files, and says for itself how to resume.

DIR/release/   what may be given away: samples.npz, certificate.json, history.npz, and pictures or what the simulator
               exports; also report.html, and metrics.json of a public reference
DIR/private/   the operator's own (mode 0700): config.toml, ledger.jsonl, run.log, metrics.json, report.html
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from simpe.errors import InputError
from simpe.privacy.ledger import Ledger, write_atomically
from simpe.release import Release

CONFIG = "config.toml"
LEDGER = "ledger.jsonl"
LOG = "run.log"


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder under construction beside its place; renamed there at the end, removed on an error."""
    beside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed here
        beside.mkdir(parents=True)
        yield beside
        for path in [*beside.rglob("*"), beside]:
            _sync(path)
        beside.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); free or choose another place") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raise InputError when something stands where a run folder is to be."""
    if folder.exists() or folder.is_symlink():
        run = (folder / "private" / CONFIG).is_file()
        more = f", or continue it with: simpe resume {folder}" if run else ""
        raise InputError(f"--out {folder}: exists already; choose another place{more}")


def create_run(folder: Path, config: str, ledger: Path | None) -> None:
    """A new run folder with its configuration inside; a shared ledger is linked to.

    Raises InputError when the folder exists or cannot be made.
    """
    refuse_existing(folder)
    with _appearing(folder) as new:
        private = new / "private"
        private.mkdir(mode=0o700)
        _write(private / CONFIG, config.encode(), 0o600)
        if ledger is not None:
            (private / LEDGER).symlink_to(ledger.resolve())


def finished(folder: Path) -> bool:
    """Whether the run has made its release."""
    return (folder / "release").is_dir()


def require_finished(folder: Path) -> None:
    """Raise InputError unless the folder holds a release."""
    if not finished(folder):
        run = (folder / "private" / CONFIG).is_file()
        said = f"not finished; continue it with: simpe resume {folder}" if run else "no run folder; give one"
        raise InputError(f"{folder}: {said}")


def write_release(folder: Path, release: Release) -> None:
    """Put ``release/`` into a run folder, whole."""
    with _appearing(folder / "release") as new:
        _fill(new, release)


def save_release(folder: Path, release: Release) -> Path:
    """A run folder made from a finished release. Raises InputError when it exists or cannot be written."""
    refuse_existing(folder)
    with _appearing(folder) as new:
        private = new / "private"
        private.mkdir(mode=0o700)
        if release.ledger.path is None:
            release.ledger.copy_to(private / LEDGER)
        else:
            (private / LEDGER).symlink_to(release.ledger.path)
        (new / "release").mkdir()
        _fill(new / "release", release)
    return folder


def log(folder: Path, line: str) -> None:
    """Append a line to the operator's run log. It never holds a private value."""
    handle = os.open(folder / "private" / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")


def write_private(folder: Path, name: str, content: str) -> Path:
    """Write a file into ``private/``, whole."""
    path = folder / "private" / name
    write_atomically(path, content.encode(errors="replace"), mode=0o600)  # a file name may be no Unicode
    return path


def write_public(folder: Path, name: str, content: str) -> Path:
    """Write a file into ``release/``, whole: nothing but what follows from the release and from public inputs."""
    path = folder / "release" / name
    write_atomically(path, content.encode(errors="replace"))
    return path


def open_ledger(folder: Path) -> Ledger:
    """The ledger of a run folder, witnessed by its run log."""
    return Ledger(folder / "private" / LEDGER, witness=folder / "private" / LOG)


@contextlib.contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process alone. Raises InputError when another one has it."""
    handle = os.open(folder / "private" / CONFIG, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{folder}: another process is at work on this run; wait for it") from None
    finally:
        os.close(handle)


def _fill(folder: Path, release: Release) -> None:
    for name, content in release.files().items():
        _write(folder / name, content)
    if release.export is not None:
        release.export(release, folder)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
