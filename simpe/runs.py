"""From a configuration to a finished run folder, and back to one after a crash."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simpe import data, metrics, store
from simpe.config import RunConfig, StageConfig, read_config
from simpe.errors import InputError
from simpe.evolution import Progress, Watch, evolve
from simpe.plugins import load, make
from simpe.preflight import classes_of, given, preflight, require_device
from simpe.privacy.accounting import Budget
from simpe.privacy.ledger import Ledger
from simpe.private import PrivateData, TestNoise
from simpe.release import Release, read_samples
from simpe.rendering import report_to
from simpe.rows import Arrays, Here, Schema, Shard, Shards, Source, one_home, schema_of
from simpe.scheduling import schedule
from simpe.stages import Mixture, Stage

if TYPE_CHECKING:
    from simpe.cluster import Cluster

Door = Callable[..., PrivateData]


def start(
    config: RunConfig,
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
    noise: TestNoise | None = None,
    rows: data.DataSet | None = None,
    door: Door = PrivateData,
    cluster: Cluster | None = None,
    memory: int | None = None,
) -> Release:
    """Begin a run in a new folder ``config.out`` and carry it to its release.

    Everything that can be wrong with the input is found before the folder is made. ``noise`` replaces the secret noise
    in tests; the certificate then says NOT PRIVATE. An audit gives the ``rows``, in place of what ``config.private``
    holds, and a ``door`` that watches over them. A ``cluster`` renders, and reads and keeps the private rows;
    ``memory`` bounds a process that holds rows, in bytes. Neither changes the result.

    Raises InputError.
    """
    store.refuse_existing(config.out)
    _refuse_federation(config)
    refuse_public(config)
    if rows is not None:
        at_hand = Arrays(rows.samples, rows.labels, rows.units, rows.classes, rows.caveats)
        shards, schema = _shards(config, [at_hand], cluster, memory)
    else:
        shards, schema = _shards(config, inputs_of(config, None if cluster else progress), cluster, memory)
    if config.classes is not None and schema.labels is None:
        raise InputError("--classes need labels, and the private rows have none; say where they are, or leave it out")
    config = _settled(config, schema)
    stages = _stages(config, schema, cluster)
    for stage in stages:
        report_to(stage.simulator, progress)
    device = device_of(config.device)
    simulator, strategy = stages[0].simulator, stages[0].strategy
    labelled = schema.labels is not None
    declared = (config.classes or schema.classes) if labelled else None
    classes = declared or classes_of(simulator, labelled)
    if labelled and classes != ("",) and not any(shards.each(Shard.known, classes)):
        raise InputError(
            f"{', '.join(config.private)}: no label is one of the classes {', '.join(classes)}; declare them: --classes"
        )
    if schema.named or schema.units is not None:
        one_home(shards, secrets.token_bytes(16))  # as the door does, where it is too late for the folder
    given(simulator, classes, config.samples, config.steps, strategy)
    stages = preflight(stages, len(classes), schema.shape, schema.dtype, device)
    # A shared ledger can refuse before there is a folder; an own one has room for any schedule that exists.
    private = None if config.ledger is None else open_door(config, (shards, schema), Ledger(config.ledger), noise, door)
    one_bin = schema.units is None and all(stage.strategy.neighbours == 1 for stage in stages)
    schedule(
        _budget(config), config.steps, one_bin=one_bin, strategy=strategy, then=stages[1:], adaptive=config.adaptive,
        spent=private.ledger.committed() if private else (),
    )  # fmt: skip
    store.create_run(config.out, config.to_toml(), config.ledger)
    with store.exclusively(config.out):
        private = open_door(config, (shards, schema), store.open_ledger(config.out), noise, door)
        return carry_on(config, private, stages, device, progress, watch)


def prepare(
    config: RunConfig, progress: Progress | None = None
) -> tuple[RunConfig, tuple[Here, Schema], tuple[Stage, ...], tuple[str, ...], torch.device]:
    """What a run of this configuration would begin with: settled options, private rows, stages, classes and device.

    Raises InputError.
    """
    _refuse_federation(config)
    shards = Here(inputs_of(config, progress))
    schema = _schema(config, shards)
    if config.run is None:  # else a run has settled it
        config = _settled(config, schema)
    stages = _stages(config, schema, None)
    labelled = schema.labels is not None
    classes = ((config.classes or schema.classes) if labelled else None) or classes_of(stages[0].simulator, labelled)
    return config, (shards, schema), stages, classes, device_of(config.device)


def stages_of(config: RunConfig, schema: Schema) -> tuple[Stage, ...]:
    """The stages of a configuration for rows of a schema.

    Raises InputError.
    """
    return _stages(_with_schema(config, schema), schema, None)


def _refuse_federation(config: RunConfig) -> None:
    if config.federation is not None:
        raise InputError("the rows are those of a federation's clients; use: simpe federated server")


def resume(
    folder: Path,
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
    noise: TestNoise | None = None,
    cluster: Cluster | None = None,
    memory: int | None = None,
) -> Release | None:
    """Continue the run in a folder from wherever it stopped; None, and nothing changed, when it is finished.

    Releases that the ledger holds are replayed, never drawn again, so the result equals that of an uninterrupted run,
    whatever the ``cluster`` and ``memory`` (see :func:`start`) it began with.

    Raises InputError when the folder is no run, or its data, ledger or configuration are no longer the same.
    """
    if store.finished(folder):
        return None
    if not (folder / "private" / store.CONFIG).is_file():
        raise InputError(f"{folder}: not a run folder (no private/{store.CONFIG}); give the folder of a run")
    config = read_config(folder / "private" / store.CONFIG)
    config = config.model_copy(update={"out": folder})
    _refuse_federation(config)
    shards, schema = _shards(config, inputs_of(config, None if cluster else progress), cluster, memory)
    stages, device = _stages(config, schema, cluster), device_of(config.device)
    with store.exclusively(folder):
        private = open_door(config, (shards, schema), store.open_ledger(folder), noise)
        return carry_on(config, private, stages, device, progress, watch)


def evaluate(
    folder: Path,
    against: tuple[str, ...],
    *,
    public: bool = False,
    task: str | None = None,
    embedder: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the release of a run folder with real inputs: test files of a data set, where there are some.

    The figures are those of the simulator's own ``evaluate``, where it has one, or of :func:`simpe.metrics.evaluate`,
    in the feature space of an ``embedder`` (a name from ``simpe list``, or ``module:Name``) or of its own.

    **Guarantee.** None, unless ``public``: they are also written to ``private/metrics.json`` where the folder has a
    ``private/``. With ``public`` the operator declares that the inputs are public; then the figures are
    post-processing of the release, and go to ``release/metrics.json``.

    Raises InputError, also where an input declared public is, by its path, the private one of the run's configuration.
    A copy elsewhere is not noticed, and nothing is where a run made in Python has no configuration.
    """
    if task not in (None, "classify"):
        raise InputError(f"--task must be classify, got {task!r}")
    path = folder / "private" / store.CONFIG
    config = read_config(path) if path.is_file() else None
    if config and public:
        _refuse_private(config.private, against)
    if config and any(hasattr(kind, "evaluate") for kind in _kinds(config)):
        store.require_finished(folder)
        if embedder is not None:
            raise InputError(f"--embedder: {config.simulator} is measured in its own way; leave it out")
        report = progress or (lambda what, done, total: None)
        found = _simulator(config).evaluate(folder / "release", against, task, seed, report)
    elif len(against) > 1:
        raise InputError("--against: a data set is one input; give one")
    else:
        samples, labels = read_samples(folder / "release" / "samples.npz")
        label = config.label if config and Path(against[0]).suffix == ".npz" else None
        if label is not None and not data.has_array(against[0], label) and data.has_array(against[0], "labels"):
            label = None  # the reference has names of its own
        real = data.read(against[0], split="test", colour=samples.ndim == 4, label=label)
        space = None if embedder is None else make(embedder, "simpe.embedders")
        found = metrics.evaluate(
            samples, labels, real.samples, real.labels, embedder=space, task=task, seed=seed, progress=progress
        )
    found["diversity"] = _diversity(folder / "release" / "history.npz")
    if public:
        names = [Path(name).name for name in against]  # where they lie is the operator's business
        found = {"against": names, "reference": "public, as declared by the operator", **found}
        store.write_public(folder, "metrics.json", json.dumps(found, indent=2) + "\n")
        return found
    found = {"against": against[0] if len(against) == 1 else list(against), "differentially_private": False, **found}
    if (folder / "private").is_dir():
        store.write_private(folder, "metrics.json", json.dumps(found, indent=2) + "\n")
    return found


def _diversity(history: Path) -> dict[str, int]:
    """How many survived the last step, from how many of the first candidates, and how many the samples come from."""
    if not history.is_file():
        return {}
    with np.load(history) as kept:
        last = len(kept["noise"])
        return {
            "survivors": len(kept[f"votes_{last}"]),
            "ancestors": int(kept["ancestors"][-1]),
            "parents": int(kept["parents"]),
        }


def refuse_public(config: RunConfig) -> None:
    """Raise InputError where what a gallery or a given set releases as it is, in whatever stage, is private."""
    parts: tuple[RunConfig | StageConfig, ...] = (config, *config.then)
    tables = [part.options for part in parts] + [source for part in parts for source in _sources(part)]
    _refuse_private(config.private, tuple(s for s in (table.get("samples") for table in tables) if isinstance(s, str)))


def _refuse_private(private: tuple[str, ...], against: tuple[str, ...]) -> None:
    """Raise InputError where an input declared public is a private input, holds one or lies in one.

    Only the paths are compared: a refusal that followed the rows would tell of them.
    """
    for one in against:
        for other in private:
            word = _is_word(one) or _is_word(other)
            ours, theirs = _place(one), _place(other)
            if one == other if word else ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
                raise InputError(f"{one}: is, holds or lies in the run's private input; give another, a public one")


def _place(name: str) -> Path:
    """Where a file is, by its path or by the URL of a local file."""
    return Path(re.sub(r"^(file|local):/*(?=/)", "", name)).resolve()


@dataclass(frozen=True, repr=False)
class _Own:
    """Private inputs as the simulator reads them, all as one source."""

    config: RunConfig
    progress: Progress | None

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(self.config.private)

    def read(self) -> data.DataSet:
        """The rows. Raises InputError."""
        config = self.config
        rows: data.DataSet = _simulator(config).read(config.private, config.unit, self.progress or (lambda *_: None))
        return rows


def inputs_of(config: RunConfig, progress: Progress | None) -> Sequence[Source]:
    """Where the private rows are, as the simulator reads them or else as one of the kinds that everybody knows."""
    kinds = _kinds(config)
    if config.simulator != "mixture" and hasattr(kinds[0], "shards"):
        parts = _simulator(config).shards(config.private)
        return [_Own(config.model_copy(update={"private": part}), progress) for part in parts]
    if any(hasattr(kind, "read") for kind in kinds):
        return [_Own(config, progress)]
    if len(config.private) > 1:
        raise InputError(f"--private: {config.simulator} takes one input; give one")
    colour = config.options.get("colour", any(getattr(one, "colour", False) for one in kinds))
    return data.sources(config.private[0], unit=config.unit, colour=colour, label=config.label)


def _shards(
    config: RunConfig, inputs: Sequence[Source], cluster: Cluster | None, memory: int | None
) -> tuple[Shards, Schema]:
    """The private rows in their place, and what is public about them."""
    place = config.out / "private"
    shards: Shards = Here(inputs, memory, scratch=place) if cluster is None else cluster.shards(inputs, memory)
    return shards, _schema(config, shards)


def _schema(config: RunConfig, shards: Shards) -> Schema:
    """What is public about the private rows."""
    schema = schema_of(shards)
    if hasattr(load(config.simulator, "simpe.simulators", config.modules), "given"):  # the classes are those of the set
        schema = replace(schema, classes=None)
    if schema.units is None and config.k != 1:
        raise InputError("--k caps the rows of a unit; here every row is one, so leave it out or choose another --unit")
    return schema


def _settled(config: RunConfig, rows: Schema) -> RunConfig:
    """The configuration with every choice that depends on the input's public schema made, so that it repeats."""
    private = tuple(path if _is_word(path) or "://" in path else str(Path(path).resolve()) for path in config.private)
    config = _with_schema(config, rows)
    ledger = None if config.ledger is None else config.ledger.resolve()
    return config.model_copy(
        update={
            "private": private,
            "ledger": ledger,
            "run": secrets.token_hex(8),
            "modules": modules_of(config),
        }
    )


def _with_schema(config: RunConfig, rows: Schema) -> RunConfig:
    """The configuration with what its simulators take from the rows' public schema."""
    return config.model_copy(
        update={
            "options": _options(config.simulator, config.options, config, rows),
            "then": tuple(
                stage.model_copy(update={"options": _options(stage.simulator, stage.options, config, rows)})
                for stage in config.then
            ),
        }
    )


def modules_of(config: RunConfig) -> Path | None:
    """The folder in which a configuration's own modules are looked for, where it names some."""
    return Path.cwd() if any(":" in name for name in _plugins(config)) else None


def _options(simulator: str, options: dict[str, Any], config: RunConfig, rows: Schema) -> dict[str, Any]:
    """A simulator's options, with what follows from the input's public schema where nothing else is said."""
    options = dict(options)
    if simulator == "mixture":
        options["sources"] = [_options(source["simulator"], source, config, rows) for source in options["sources"]]
        return options
    if simulator == "digits" and config.classes is not None:
        options.setdefault("classes", list(config.classes))
    if simulator == "digits" and config.private == ("sklearn",):
        options = {"margin": 0.0, "centre": "box"} | options  # these digits fill their frame, and have few pixels
        options.setdefault("size", config.size or 28)
    if simulator in ("faces", "avatars") and len(rows.shape) == 2:
        options.setdefault("grey", True)
    sized = simulator in ("digits", "faces", "avatars")
    if config.size is not None and (sized or simulator == config.simulator):
        options.setdefault("size", config.size)
    elif sized and len(rows.shape) >= 2:
        height, width = rows.shape[:2]
        options.setdefault("size", height if height == width else [height, width])
    public = options.get("samples")
    if simulator in ("gallery", "given") and isinstance(public, str) and not _is_word(public):
        options["samples"] = str(Path(public).resolve())  # so that the run can be resumed from anywhere
    return options


def _plugins(config: RunConfig) -> list[str]:
    """Every name of a simulator or an embedder in a configuration."""
    parts: tuple[RunConfig | StageConfig, ...] = (config, *config.then)
    named = [name for part in parts for name in (part.simulator, part.embedder or "")]
    return named + [source["simulator"] for part in parts for source in _sources(part)]


def _sources(part: RunConfig | StageConfig) -> list[dict[str, Any]]:
    """The sources of a mixture, each a simulator's name among its options; none of anything else."""
    return list(part.options["sources"]) if part.simulator == "mixture" else []


def _kinds(config: RunConfig) -> list[Any]:
    """The class of the simulator, or of each source of a mixture."""
    names = [source["simulator"] for source in _sources(config)] or [config.simulator]
    return [load(name, "simpe.simulators", config.modules) for name in names]


def _is_word(path: str) -> bool:
    """Whether an input is a word for a public one: scikit-learn's digits, or the capture that comes with simpe."""
    return path == "sklearn" or (path == "recorded" and not Path(path).exists())


def _stages(config: RunConfig, rows: Schema, cluster: Cluster | None) -> tuple[Stage, ...]:
    """The stages of a run, on the cluster if there is one; images of different sizes are compared at the smaller."""
    first = _stage(config.simulator, config.options, config.embedder, rows, config.modules, strategy=config.strategy)
    later = (
        _stage(
            stage.simulator, stage.options, stage.embedder, rows, config.modules,
            steps=stage.steps, share=stage.share, strategy=stage.strategy,
        )
        for stage in config.then
    )  # fmt: skip
    stages = (first, *later)
    return stages if cluster is None else tuple(map(cluster.stage, stages))


def _stage(
    name: str, options: dict[str, Any], embedder: str | None, rows: Schema, modules: Path | None, **how: Any
) -> Stage:
    simulator = _make(name, options, modules)
    if not hasattr(simulator, "render") or not hasattr(simulator, "space"):
        raise InputError(f"{name} is no simulator: it needs space and render; see simpe check")
    chosen = None if embedder is None else make(embedder, "simpe.embedders", modules=modules)
    stage = Stage(simulator, chosen, **how)
    size = getattr(simulator, "size", None)
    if hasattr(stage.embedder, "at_size") and isinstance(size, tuple) and len(rows.shape) >= 2:
        smaller = tuple(min(a, b) for a, b in zip(size, rows.shape[:2], strict=True))
        stage = Stage(simulator, stage.embedder.at_size(smaller), **how)
    return stage


def _simulator(config: RunConfig) -> Any:
    return _make(config.simulator, config.options, config.modules)


def _make(name: str, options: dict[str, Any], modules: Path | None) -> Any:
    """A simulator by its name, or a mixture of several."""
    if name != "mixture":
        return make(name, "simpe.simulators", _tuples(options), modules)
    sources = options["sources"]
    made = [
        _make(source["simulator"], {key: value for key, value in source.items() if key != "simulator"}, modules)
        for source in sources
    ]
    names = [source["simulator"] for source in sources]
    unique = [name if names.count(name) == 1 else f"{name} {names[:i].count(name) + 1}" for i, name in enumerate(names)]
    return Mixture(made, unique)


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _budget(config: RunConfig) -> Budget:
    return Budget(config.epsilon, config.delta, config.relation)


def open_door(
    config: RunConfig,
    rows: tuple[Shards, Schema],
    ledger: Ledger,
    noise: TestNoise | None,
    door: Door = PrivateData,
) -> PrivateData:
    """The door to the private rows of a run, with a ledger."""
    return door(
        rows[0],
        budget=_budget(config),
        classes=config.classes or rows[1].classes,
        k=config.k,
        unit=config.unit,
        ledger=ledger,
        noise=noise,
    )


def carry_on(
    config: RunConfig,
    private: PrivateData,
    stages: tuple[Stage, ...],
    device: torch.device,
    progress: Progress | None,
    watch: Watch | None,
) -> Release:
    """Evolve, and write the release."""
    store.log(config.out, "begun or resumed")
    first = stages[0]
    release = evolve(
        first.simulator,
        first.embedder,
        private,
        samples=config.samples,
        steps=config.steps,
        strategy=first.strategy,
        then=stages[1:],
        adaptive=config.adaptive,
        seed=config.seed,
        device=device,
        run_id=config.run,
        progress=progress,
        watch=watch,
    )
    store.write_release(config.out, release)
    store.log(config.out, "released")
    return release


def device_of(name: str) -> torch.device:
    """The device called so.

    Raises InputError where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
    require_device(torch.device(name))
    return torch.device(name)
