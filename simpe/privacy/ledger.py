"""The ledger: an append-only record of every charge together with the noisy counts that it bought.

One line of JSON a record. A record is written by making the whole new file beside the old one, fsyncing it and
renaming it over (then fsyncing the folder), all under a lock. So a record is there whole or not at all, and what
it holds is used only afterwards: a crash before the rename has shown nobody anything, and a crash after it
repeats nothing, because the record is replayed. Each record carries the SHA-256 of itself and its predecessor,
so an altered or re-ordered ledger is refused. A run also keeps a list of the records that it has seen (the
``witness``), so a ledger that was lost or rolled back on its own is refused too. What no file can show is that the
whole private folder was rolled back or copied; doing that voids every certificate issued on it.

The ledger stays with the operator: it holds the key of the data set's fingerprint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from simpe.errors import InputError
from simpe.privacy.accounting import Budget, Charge, delta_of, epsilon_of

Record = dict[str, Any]
Plan = dict[str, Charge]
"""What a run announces before its first release: address -> charge."""

VERSION = 1


class BudgetExceeded(InputError):
    """A charge was refused because it would exceed the budget; no private row was read."""


class Ledger:
    """Records of one data set, in the file ``path``, or in memory when it is None.

    ``witness`` is a text file to which every record's number and hash are appended as they are published.

    Raises InputError when the file is not a ledger, was altered, or lacks a record that the witness has seen.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, witness: Path | None = None):
        # Through a link to the file itself, or the rename would replace the link.
        self.path = None if path is None else Path(path).resolve()
        if self.path is not None and self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path}: not a file; give --ledger a file (it is made where there is none)")
        self._witness = witness
        self._pending: Record | None = None
        self._records: list[Record] = []
        self._held = False
        self._mutex = threading.RLock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger: other threads and processes that charge the same file wait. Reads what they wrote."""
        with self._mutex, self._file_locked():
            yield

    @contextlib.contextmanager
    def _file_locked(self) -> Iterator[None]:
        if self.path is None or self._held:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._held = True
            _partial(self.path).unlink(missing_ok=True)  # a record that was never published: nobody may see it
            self._records = _read(self.path) if self.path.exists() else []
            self._check_witness()
            yield
        finally:
            self._held = False
            os.close(lock)

    @property
    def header(self) -> Record | None:
        """The first record: key and keyed fingerprint of the data set, privacy unit and relation."""
        return self._records[0] if self._records else None

    def key(self) -> bytes:
        """The data set's secret key; fresh for a ledger that has no record yet. Call under the lock."""
        return bytes.fromhex(self.header["key"]) if self.header else secrets.token_bytes(32)

    def bind(self, key: bytes, description: Record) -> None:
        """Make this the ledger of the data set described, or check that it is. Call under the lock.

        A new ledger is written with its first run or release: a run that is refused leaves none behind.

        Raises InputError when the ledger belongs to another data set, unit, cap, relation or delta.
        """
        if self.header is None:
            self._pending = {"type": "data", "version": VERSION, "key": key.hex(), **description}
            return
        for name, value in description.items():
            if self.header.get(name) != value:
                what = "data set" if name == "fingerprint" else name
                raise InputError(
                    f"{self.path or 'the ledger'} belongs to another {what}; "
                    "use the one it was made for, or another --ledger"
                )

    def open_run(self, run: str, description: Record, plan: Callable[[], Plan]) -> Plan:
        """Record that a run begins and what it plans to spend; or check that it is the one recorded.

        With ``adaptive`` true in the description, the plan is a pool: see :meth:`admit`.

        Returns the plan: a run that was begun before keeps the one it began with. Costs nothing. Call under the lock.

        Raises InputError when the run was begun under another configuration or budget, or made releases before.
        """
        record = self.begun(run)
        if record is None:
            if self.releases(run):  # a plan that may know their results is none
                raise InputError("this run has made releases already; begin it before the first")
            planned = plan()
            charges = {address: asdict(charge) for address, charge in planned.items()}
            self.append({"type": "run", "run": run, **description, "plan": charges})
            return planned
        for name, value in description.items():
            if record.get(name) != value:
                raise InputError(
                    f"this run was begun with another {name}; restore the original config or start a new run"
                )
        return {address: Charge(**charge) for address, charge in record["plan"].items()}

    def begun(self, run: str) -> Record | None:
        """What a run was begun with, if it was."""
        return next((r for r in self._records if r["type"] == "run" and r["run"] == run), None)

    def pool(self, run: str) -> list[Charge]:
        """What an adaptive run may spend, as it planned; nothing of any other run."""
        record = self.begun(run)
        return [Charge(**c) for c in record["plan"].values()] if record and record.get("adaptive") else []

    def find(self, run: str, address: str) -> Record | None:
        """The release of this run at this address, if it was made."""
        for record in self._records:
            if record["type"] == "release" and record["run"] == run and record["address"] == address:
                return record
        return None

    def releases(self, run: str | None = None) -> list[Record]:
        """Every release on the ledger, or those of one run, in order."""
        return [r for r in self._records if r["type"] == "release" and run in (None, r["run"])]

    def runs(self) -> int:
        """How many runs the ledger has served."""
        return sum(record["type"] == "run" for record in self._records)

    def committed(self) -> list[Charge]:
        """What counts as spent: the whole plan of every run, carried out or not, and every release without a plan.

        How much of a plan is carried out may depend on results, so no part of it is ever given back.
        """
        planned = [Charge(**c) for r in self._records if r["type"] == "run" for c in r["plan"].values()]
        return planned + [Charge(**r["charge"]) for r in self.releases() if not self._planned(r)]

    @property
    def adaptive(self) -> bool:
        """Whether charges have to be counted as adaptively chosen: several runs, releases without a plan, or a run that
        adapts its charges."""
        runs = {record["run"] for record in self._records if record["type"] != "data"}
        adapts = any(record["type"] == "run" and record.get("adaptive") for record in self._records)
        return adapts or len(runs) > 1 or not all(map(self._planned, self.releases()))

    def _planned(self, release: Record) -> bool:
        record = self.begun(release["run"])
        if record is None:
            return False
        if record.get("adaptive"):
            return self._within_pool(release)
        planned = record["plan"].get(release["address"])
        return planned is not None and Charge(**planned) == Charge(**release["charge"])

    def _within_pool(self, release: Record) -> bool:
        """Whether what an adaptive run has released up to and with this release costs no more than its plan."""
        drawn, pool = self.releases(release["run"]), self.pool(release["run"])
        here = next((i for i, other in enumerate(drawn) if other["address"] == release["address"]), len(drawn))
        charges = [Charge(**other["charge"]) for other in (*drawn[:here], release)]
        spent, most = (math.fsum(charge.rho for charge in some) for some in (charges, pool))
        return len(charges) <= len(pool) and spent <= most

    def admit(self, run: str, address: str, charge: Charge, budget: Budget) -> None:
        """Raise BudgetExceeded unless the charge fits into the budget beside all others. Call under the lock.

        **An adaptive run** may choose each charge after it has seen the releases before it. It is admitted while the
        sum of its rho is no more than that of its plan, which was fixed before its first release and counts as spent as
        a whole: a zCDP filter (Rogers et al., NeurIPS 2016; Feldman and Zrnic, NeurIPS 2021, Thm. 4.1).

        *Why that is enough.* Fix neighbouring inputs, alpha > 1, and let L_t be the log-ratio of the joint densities of
        the first t releases, drawn under the second input. Given the past, release t is rho_t-zCDP with a rho_t that
        the past determines, so E[exp(alpha (L_t - L_(t-1))) | past] <= exp(alpha (alpha - 1) rho_t). Hence
        M_t = exp(alpha L_t - alpha (alpha - 1) (rho_1 + ... + rho_t)) is a supermartingale from M_0 = 1. The filter
        keeps the sum at most rho on every path, so at the end E[exp(alpha L)] <= exp(alpha (alpha - 1) rho) E[M] <=
        exp(alpha (alpha - 1) rho): the Renyi divergence of order alpha is at most alpha rho, for every alpha and either
        order of the inputs, which is rho-zCDP of the whole, as if the plan had been carried out to the letter.
        """
        planned = self._planned({"run": run, "address": address, "charge": asdict(charge)})
        charges = self.committed() if planned else [*self.committed(), charge]
        adaptive = self.adaptive or not planned
        budget = self.total(budget)
        if delta_of(charges, budget.epsilon, budget.relation, adaptive) > budget.delta:
            raise BudgetExceeded(
                f"refused: with this release the data set would be past epsilon {budget.epsilon:g} at delta "
                f"{budget.delta:g}, counting every run begun on its ledger; raise --epsilon (the total) or stop here"
            )

    def total(self, budget: Budget) -> Budget:
        """The budget that covers all runs: the largest epsilon that any of them was begun with.

        A run that was begun with more counts the plans of those before it, so they may go on within its total.
        """
        totals = [r["budget"]["epsilon"] for r in self._records if r["type"] == "run" and "budget" in r]
        return replace(budget, epsilon=max([budget.epsilon, *totals]))

    def spent(self, budget: Budget) -> float:
        """The epsilon that all that is committed costs together at the budget's delta."""
        charges, adaptive = self.committed(), self.adaptive
        if not charges:
            return 0.0
        spent = epsilon_of(charges, budget.delta, budget.relation, adaptive)
        within = delta_of(charges, budget.epsilon, budget.relation, adaptive) <= budget.delta
        return min(spent, budget.epsilon) if within else spent  # epsilon_of rounds up

    def append(self, record: Record) -> None:
        """Publish one record, whole or not at all. Call under the lock."""
        fresh = [record]
        if self._pending is not None:
            if self._records:
                raise InputError(f"{self.path}: begun by another run at the same moment; try again")
            fresh = [self._pending, record]
        records = list(self._records)
        for one in fresh:
            records.append({**one, "hash": _digest(records[-1]["hash"] if records else "", one)})
        if self.path is not None:
            write_atomically(self.path, _lines(records), mode=0o600)
        self._records, self._pending = records, None
        if self._witness is not None:
            with self._witness.open("a") as file:
                file.write(f"ledger record {len(records)} is {records[-1]['hash']}\n")

    def _check_witness(self) -> None:
        if self._witness is None or not self._witness.exists():
            return
        for number, seen in re.findall(r"^ledger record (\d+) is ([0-9a-f]{64})$", self._witness.read_text(), re.M):
            if len(self._records) < int(number) or self._records[int(number) - 1]["hash"] != seen:
                raise InputError(
                    f"{self.path}: lost or older than this run ({self._witness} has seen record {number}); restore it"
                )

    def copy_to(self, path: Path) -> None:
        """Write the records of a ledger in memory to a file."""
        write_atomically(path, _lines(self._records), mode=0o600)


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file that appears whole: beside its place, fsync, rename, fsync the folder.

    On an error the leftover is removed and what stood at ``path`` is untouched.
    """
    beside = _partial(path)
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _lines(records: list[Record]) -> bytes:
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records).encode()


def _digest(previous: str, record: Record) -> str:
    plain = json.dumps({k: v for k, v in record.items() if k != "hash"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{plain}".encode()).hexdigest()


def _read(path: Path) -> list[Record]:
    records: list[Record] = []
    previous = ""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            intact = record["hash"] == _digest(previous, record)
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise InputError(f"{path}: record {number} was altered or is not a ledger's; restore the original file")
        previous = record["hash"]
        records.append(record)
    if records and (records[0]["type"] != "data" or records[0]["version"] != VERSION):
        raise InputError(f"{path}: not a ledger of this version")
    return records
