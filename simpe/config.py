"""The configuration of a run: one validated model behind every command that makes a data set."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from simpe.errors import InputError
from simpe.federated.terms import MOST_EPSILON, Federation
from simpe.privacy.accounting import LARGEST_EPSILON, SMALLEST_DELTA, SMALLEST_EPSILON, Relation
from simpe.scheduling import MAX_STEPS, Strategy


class StageConfig(BaseModel):
    """A later stage: the fields of :class:`simpe.Stage`, with ``options`` for the simulator's constructor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    simulator: str
    embedder: str | None = None
    options: dict[str, Any] = {}
    steps: int = Field(default=2, ge=1, le=MAX_STEPS)
    share: float | None = Field(default=None, gt=0, lt=1)
    strategy: Strategy | None = None

    @model_validator(mode="after")
    def _mixed(self) -> StageConfig:
        _check_sources(self.simulator, self.options)
        return self


def _check_sources(simulator: str, options: dict[str, Any]) -> None:
    """Raise ValueError unless a mixture has its sources."""
    sources = options.get("sources")
    tables = isinstance(sources, list | tuple) and all(isinstance(s, dict) and "simulator" in s for s in sources)
    if simulator == "mixture" and not (set(options) == {"sources"} and sources and tables):
        raise ValueError("a mixture needs options.sources: tables, each a simulator and its options")


class RunConfig(BaseModel):
    """Everything that repeats a run. The field names are the options of the command line.

    ``simulator`` and ``embedder`` are names from ``simpe list`` or ``module:Name``; ``private`` is one
    input or, where the simulator reads them, several. ``label`` names the array of labels in an .npz. ``options`` are
    passed to the simulator's constructor; without ``samples`` there are as many as the noisy count of the rows;
    ``strategy`` replaces the simulator's own (see :class:`simpe.Strategy`). ``then`` are later stages, ``[[then]]`` in
    TOML, and ``adaptive`` lets a stage end early (see :func:`simpe.evolve`). The simulator ``mixture`` takes its
    ``sources`` as tables in ``options``, each a ``simulator`` and its options. simpe sets ``run`` in a run folder,
    which identifies the run on its ledger, and ``modules``, the folder where ``module:Name`` was found. With a
    ``federation`` the rows are clients' (see :class:`simpe.federated.terms.Federation`), and ``private`` is left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    simulator: str = "digits"
    embedder: str | None = None
    private: tuple[str, ...] = ()
    epsilon: float = Field(ge=SMALLEST_EPSILON, le=LARGEST_EPSILON, allow_inf_nan=False)
    delta: float = Field(default=1e-6, ge=SMALLEST_DELTA, lt=1)
    relation: Relation = "add_remove"
    out: Path
    samples: int | None = Field(default=None, ge=1, le=10_000_000)
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    label: str | None = None
    classes: tuple[str, ...] | None = None
    unit: str | None = None
    k: int = Field(default=1, ge=1, le=10_000)
    size: int | None = Field(default=None, ge=4, le=1024)
    ledger: Path | None = None
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    options: dict[str, Any] = {}
    strategy: Strategy | None = None
    then: tuple[StageConfig, ...] = ()
    adaptive: bool = False
    run: str | None = None
    modules: Path | None = None
    federation: Federation | None = None

    @field_validator("private", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("classes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """``0,1,2`` or, without commas, ``012``: one character a class."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",")) if "," in value else tuple(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if not self.private and self.federation is None:
            raise ValueError("private is missing: name the private rows")
        if self.private and self.federation is not None:
            raise ValueError("private: the rows of a federation are its clients'; leave it out")
        if self.federation is not None and self.federation.trust == "distributed" and self.epsilon > MOST_EPSILON:
            raise ValueError(f"--epsilon: noise in shares is accounted for up to {MOST_EPSILON:g}; use less")
        if self.unit is None and self.k != 1:
            raise ValueError("--k caps the rows of a unit: name the column with --unit too")
        if self.ledger is not None and self.ledger.resolve().is_relative_to(self.out.resolve()):
            raise ValueError("--ledger lies inside --out; a run folder has a ledger of its own, so leave it out")
        _check_sources(self.simulator, self.options)
        if self.classes is not None and (len(set(self.classes)) < len(self.classes) or "" in self.classes):
            raise ValueError("--classes must be different, non-empty names")
        return self

    def to_toml(self) -> str:
        """The configuration as TOML; reading it back gives the same run."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


def make_config(**values: Any) -> RunConfig:
    """A configuration from options; those that are None take their default.

    Raises InputError naming the option.
    """
    try:
        return RunConfig(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise InputError(_explain(error, "--")) from None


def with_options(config: RunConfig, **values: Any) -> RunConfig:
    """A configuration with other values of some options.

    Raises InputError naming the option.
    """
    return make_config(**{**config.model_dump(exclude_unset=True), **values})


def read_config(path: Path) -> RunConfig:
    """Read a TOML file.

    Raises InputError naming the file and the field.
    """
    try:
        return RunConfig(**tomllib.loads(path.read_text()))
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error, '')}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{path}: not a configuration in TOML ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a configuration file") from None


def _explain(error: ValidationError, prefix: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    if not name:
        return said
    if first["type"] == "missing":
        return f"{prefix}{name} is missing: give it"
    if first["type"] == "extra_forbidden":
        return f"{prefix}{name} is not an option of a run: remove it"
    return f"{prefix}{name}: {said}, got {first['input']!r}"
