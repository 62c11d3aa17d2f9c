"""What ``simpe federated`` does: a run whose rows are clients', and a client with its rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from simpe import runs, store
from simpe.config import RunConfig, read_config
from simpe.errors import InputError
from simpe.evolution import Progress, Watch
from simpe.federated.door import Clients, Exchange, FederatedDoor
from simpe.federated.member import Member
from simpe.preflight import classes_of, preflight
from simpe.privacy.accounting import Budget
from simpe.privacy.ledger import Ledger
from simpe.private import TestNoise
from simpe.release import Release
from simpe.rows import schema_of
from simpe.scheduling import schedule

LEAST_SECRET = 16  # bytes


def start(
    config: RunConfig,
    exchange: Exchange,
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
    noise: TestNoise | None = None,
) -> Release:
    """Begin a federation's run in a new folder ``config.out`` and carry it to its release, with the clients' votes.

    Everything that can be wrong with the configuration and the clients is found before the folder is made. ``noise``
    replaces the server's secret noise in tests of the central model.

    Raises InputError.
    """
    store.refuse_existing(config.out)
    _federated(config)
    ledger = None if config.ledger is None else config.ledger.resolve()
    config = config.model_copy(
        update={"run": secrets.token_hex(8), "modules": runs.modules_of(config), "ledger": ledger}
    )
    return _run(config, exchange, True, progress, watch, noise)


def resume(
    folder: Path,
    exchange: Exchange,
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
    noise: TestNoise | None = None,
) -> Release | None:
    """Continue a federation's run from wherever it stopped; None, and nothing changed, when it is finished.

    Releases on the server's ledger are replayed. One that the clients have answered and the server lost is answered
    again as it was in the models ``central`` and ``local``; in ``distributed`` it is lost, and the run with it.

    Raises InputError.
    """
    if store.finished(folder):
        return None
    config = _federated(read_config(folder / "private" / store.CONFIG)).model_copy(update={"out": folder})
    return _run(config, exchange, False, progress, watch, noise)


def join(
    config: RunConfig,
    private: Sequence[str],
    *,
    ledger: Path,
    epsilon: float | None = None,
    delta: float | None = None,
    label: str | None = None,
    secret: Path | None = None,
    progress: Progress | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Member:
    """A client with its rows and its ledger, ready to answer.

    Raises InputError.
    """
    _federated(config)
    own = config.model_copy(
        update={"private": tuple(private), "label": label or config.label, "modules": runs.modules_of(config)}
    )
    runs.refuse_public(own)
    try:
        budget = Budget(epsilon or config.epsilon, delta or config.delta, config.relation)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    return Member(own, runs.inputs_of(own, progress), budget=budget, ledger=ledger, secret=_secret(secret), told=told)


def _run(
    config: RunConfig,
    exchange: Exchange,
    new: bool,
    progress: Progress | None,
    watch: Watch | None,
    noise: TestNoise | None,
) -> Release:
    told = progress or (lambda what, done, total: None)
    clients = Clients(exchange, config, lambda line: told(line, 0, 0))
    schema = schema_of(clients)
    stages = runs.stages_of(config, schema)
    declared = (config.classes or schema.classes) if schema.labels is not None else None
    if config.classes is not None and schema.labels is None:
        raise InputError("classes need labels, and the clients' rows have none; leave classes out")
    classes = declared or classes_of(stages[0].simulator, schema.labels is not None)
    stages = preflight(stages, len(classes), schema.shape, schema.dtype, runs.device_of(config.device))

    def door(ledger: Ledger | None) -> FederatedDoor:
        private = FederatedDoor(clients, config, stages, ledger=ledger, noise=noise)
        private.declare(classes)
        return private

    if new:
        private = door(None if config.ledger is None else Ledger(config.ledger))
        schedule(
            private.budget, config.steps, one_bin=private.one_bin, strategy=stages[0].strategy, then=stages[1:],
            spent=private.ledger.committed(), law=private.law,
        )  # fmt: skip
        store.create_run(config.out, config.to_toml(), config.ledger)
    with store.exclusively(config.out):
        private = door(store.open_ledger(config.out))
        return runs.carry_on(config, private, stages, runs.device_of(config.device), progress, watch)


def _federated(config: RunConfig) -> RunConfig:
    if config.federation is None:
        raise InputError("the configuration has no table [federation]; it is that of a run of one's own: simpe run")
    return config


def _secret(path: Path | None) -> bytes:
    """What all clients hold and the server does not, from a file."""
    if path is None:
        return b""
    try:
        content = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"--secret {path}: cannot be read ({error.strerror})") from None
    if len(content) < LEAST_SECRET:
        raise InputError(f"--secret {path}: holds fewer than {LEAST_SECRET} bytes; make one: openssl rand -hex 32")
    return content
