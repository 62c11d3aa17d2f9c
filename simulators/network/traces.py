"""Traces in, traces out: the simulator of flows with a reader of captures and what a release of traffic holds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpe.config import read_config
from simpe.data import DataSet
from simpe.embedders.flows import ROW, FlowEmbedding
from simpe.errors import InputError
from simpe.marginals import Marginals
from simpe.metrics import LEAST
from simpe.plugins import make
from simpe.population import public_generator
from simpe.release import Release, named_labels
from simpe.rendering import Slow
from simpe.scheduling import Strategy
from simpe.selection import apportion
from simpe.simulators.network import evaluation, inputs, plots, tables, vocabulary, writer
from simpe.simulators.network.cells import marginals
from simpe.simulators.network.profiles import NAMES
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, Flows
from simpe.simulators.network.simulator import Traffic, rows_of
from simpe.space import Params
from simpe.store import CONFIG, finished, write_private

START, LENGTH = 1_704_067_200.0, 3600.0  # 2024-01-01T00:00:00Z and an hour
INSIDE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
"""Prefixes that count as internal where none is declared (RFC 1918, RFC 4193)."""
WIDE = {4: "10.0.0.0/8", 6: "fd00::/64"}
"""Prefixes that have addresses for synthetic hosts where the declared ones are too narrow, by version."""
_APART = 0.01  # of the window
_CUT = (
    "Each file was read by itself: a flow that goes on in the next file counts as another one there, of whoever sends "
    "its first packet there."
)
_NEEDS = ("pyarrow", "matplotlib")


@dataclass(frozen=True)
class Traces(Slow, Traffic):
    """Traffic that reads captures and flow tables, and releases a capture.

    ``timed`` says that the window ``start``, ``length`` is declared: flows that start outside of it then take no
    part, and those within are compared by when they start. Without it no time of arrival is looked at, and arrivals
    are uniform over the window, a public constant. ``inside``: the prefixes that count as internal in the input;
    synthetic internal hosts get theirs from ``internal`` and ``internal_v6``. ``labels``: the column of a flow table
    that names each flow's class. ``preset``: how tables are read, see :func:`inputs.read`. ``words``: the language
    model that writes the names in the release's payloads, see :func:`vocabulary.written`; without it they are public
    words. ``by_file``: each file is a shard, read by itself: what goes on in the next file is another flow there, and a
    unit lies in one file.

    Raises ValueError as :class:`Traffic` does, and for what is no prefix.
    """

    start: float = START
    length: float = LENGTH
    internal: str = WIDE[4]
    timed: bool = False
    inside: tuple[str, ...] = INSIDE
    labels: str | None = None
    preset: str | Mapping[str, Any] | None = None
    words: Mapping[str, Any] | None = None
    by_file: bool = False
    _prior: ClassVar[int] = 4096  # rows of Random in the picture
    _untimed: ClassVar[str] = "arrival times in the release are uniform and tell nothing of the input."

    def __post_init__(self) -> None:
        super().__post_init__()
        for prefix in self.inside:
            ip_network(prefix)

    @property
    def embedder(self) -> Callable[[Tensor], Tensor]:
        """The embedder of flow rows; it leaves the time of arrival out where no window is declared."""
        return FlowEmbedding() if self.timed else FlowEmbedding(time=0)

    @property
    def marginals(self) -> Marginals:
        """What a run counts of flows besides its votes."""
        return marginals(self.timed)

    @property
    def strategy(self) -> Strategy:
        """Candidates that all classes share, weighed by marginals; chosen on the development part of a benchmark."""
        return Strategy(start=40, children=5, clear=1.5, decay=0.5, marginals=0.7, release_strength=0.3)

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """As of :class:`Traffic`; without a declared window, arrivals are drawn anew, and within one they move."""
        moved = super().variation(p, strength, generator)
        if self.timed and strength < _APART:  # flows of equal parameters come at different times
            apart = _APART * torch.randn(len(p["start"]), generator=generator, dtype=torch.float64)
            moved["start"] = (p["start"] + apart.to(p["start"])).clamp(0, 1)
        if not self.timed:
            start = torch.rand(len(p["start"]), generator=generator, dtype=torch.float64)
            moved["start"] = start.to(p["start"])
        return moved

    def public_inputs(self) -> dict[str, Any]:
        """What :class:`Traffic` declares, and how the input is read."""
        return super().public_inputs() | {
            "arrivals": "within the declared window" if self.timed else "uniform: no window was declared",
            "internal_in_the_input": list(self.inside),
            "labels": self.labels,
            "preset": self.preset if self.preset is None or isinstance(self.preset, str) else dict(self.preset),
            **({} if self.words is None else {"words": vocabulary.described(self.words)}),
            "files": "each by itself" if self.by_file else "read as one",
        }

    def shards(self, private: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Each file of the inputs, or all inputs as one. Raises InputError where a URL cannot be reached."""
        return [(str(file),) for path in private for file in inputs.files(path)] if self.by_file else [private]

    def read(self, private: tuple[str, ...], unit: str | None, progress: Callable[[str, int, int], None]) -> DataSet:
        """Flow rows float64 (n, len(ROW)) of captures and flow tables, with the owner of each and its label.

        ``unit``: flow (or None), src, pair, window, window:SECONDS, or a column of a flow table. A row depends on its
        own flow and on what is declared. Flows outside a declared window, and rows without a value of a unit's column,
        take no part; nor does what cannot be read. All of it is told to ``progress``.

        Raises InputError where nothing usable is left, an option is wrong, or the extra ``network`` is not installed.
        """
        flows, rows, owners, caveats = self.usable(private, unit, progress)
        labels = None if self.labels is None else flows[inputs.KEPT + self.labels].astype(np.str_)
        return DataSet(rows, labels, owners, None, (inputs.caveat(unit), *caveats))

    def usable(
        self, private: tuple[str, ...], unit: str | None, progress: Callable[[str, int, int], None]
    ) -> tuple[Flows, NDArray[np.float64], NDArray[Any] | None, tuple[str, ...]]:
        """The flows that take part, their rows (n, len(ROW)), their owners (n,), and caveats; see :meth:`read`."""
        missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"network traces need {' and '.join(missing)}: pip install 'simpe[network]'")
        if self.words is not None:
            vocabulary.source_of(self.words)  # what is wrong with it is found before anything is spent
        counts = inputs.Counts()
        columns = [name for name in (inputs.column_of(unit), self.labels) if name is not None]
        flows = inputs.read(
            private, preset=self.preset, extra=columns, idle=self.idle, active=self.active, counts=counts,
            progress=lambda done, total: progress("reading", done, total),
            may_be_silent=self.by_file,  # else one unit's packets would decide whether there is a run
        )  # fmt: skip
        owners = inputs.units(flows, unit)
        rows = rows_of(flows, self.start, self.length, self.inside).numpy()
        ok = np.isfinite(rows).all(axis=1)
        if owners is not None:
            ok &= owners != owners.dtype.type()
        since = flows["start"].astype(np.float64) - self.start
        if self.timed:
            inside = (since >= 0) & (since < self.length)
            if not inside.all():
                progress(f"left out: {int((~inside).sum())} flows outside --window", 0, 0)
            ok &= inside
            if not (self.by_file or ok.any()):
                raise InputError("no flow starts within --window; declare one that the input lies in")
        else:
            rows[:, ROW.index("start")] = 0
        for said in counts.skipped():
            progress(f"left out: {said}", 0, 0)
        for said in counts.unusable[:3]:
            progress(said, 0, 0)
        caveats = ["Flows that start outside the declared window take no part."]
        if not self.timed:
            caveats = [f"No window was declared, so {self._untimed}"]
        if self.by_file:
            caveats.append(_CUT)
        flows = {name: column[ok] for name, column in flows.items()}
        return flows, rows[ok], None if owners is None else owners[ok], tuple(caveats)

    def table(self, p: Params, more: Flows | None = None) -> Flows:
        """The flow table of parameters in the order of their start, with the columns that the writer needs and more.

        Where the declared internal prefix has too few addresses, a wider one gives them.
        """
        try:
            flows = self.flows(p)
        except ValueError:
            flows = replace(self, internal=WIDE[4]).flows(p)
        order = np.argsort(flows["start"], kind="stable")
        return {name: column[order] for name, column in {**flows, **(more or {})}.items()}

    def export(self, release: Release, folder: Path) -> None:
        """Write ``synthetic.pcap``, the same flows as ``flows.parquet`` and ``flows.csv``, and a picture of them.

        The tables have the columns of ``schema.COLUMNS``, addresses and outcomes as text, the name of the profile as
        ``application``, and the label if there is one; the picture (``traffic.png``, its numbers in ``figures.json``)
        compares them with Random, which is public. ``evolution.json`` has the numbers of such pictures of what survived
        each step, by its noisy votes.

        With ``words``, a language model writes the names in payloads first, or they are those that the run folder
        keeps: post-processing that reads nothing of the input, nor of the release.
        """
        labels: Flows = {}
        if release.labels is not None:
            labels["label"] = named_labels(release.labels.numpy(), release.classes).astype(np.str_)
        flows = self.table(release.params, labels)
        names = vocabulary.PUBLIC
        if self.words is not None:
            names = vocabulary.of_run(self.words, folder.parent, self.progress)
        writer.write(folder / "synthetic.pcap", flows, vocabulary=names)
        flows["application"] = np.array(NAMES)[flows["profile"]]
        write_tables({name: flows[name] for name in (*COLUMNS, "application", *labels)}, folder)
        prior = self.table(self.random(self._prior, public_generator(0, "prior")))
        panels = plots.panels({"synthetic": flows, "random parameters": prior}, self.start, self.length)
        plots.draw(panels, folder / "traffic.png")
        (folder / "figures.json").write_text(json.dumps(panels))
        steps = {"random": prior}
        before = len(release.history["noise"]) - len(release.survivors)  # steps of other sources
        for t, survivors in enumerate(release.survivors, start=before + 1):
            votes = torch.from_numpy(release.history[f"votes_{t}"])
            if len(votes):
                index = torch.arange(len(votes)).repeat_interleave(apportion(votes, self._prior))
                steps[f"step {t}"] = self.table({name: value[index] for name, value in survivors.items()})
        (folder / "evolution.json").write_text(json.dumps(plots.stepwise(steps)))

    def evaluate(
        self, release: Path, against: tuple[str, ...], task: str | None, seed: int, progress: evaluation.Progress
    ) -> dict[str, Any]:
        """Compare the flow table of a ``release/`` folder with captures and flow tables: NOT PRIVATE.

        See :func:`evaluation.compare`, and :func:`evaluation.utility` for the task "classify": of the application where
        the reference names it, and of the label where the run has labels and the reference their column.

        Raises InputError where no input is usable, or for a task that has nothing to learn.
        """
        flows, reference = tables.read(release / "flows.parquet", "simpe"), self._reference(against, progress)
        if min(len(table["start"]) for table in (flows, reference)) < LEAST:
            raise InputError(
                f"--against and the release need at least {LEAST} flows (for the discriminator); give more"
            )
        named = [name for name in ("application", "label") if name in reference and (flows[name] != "").any()]
        columns = (*COLUMNS, *named)
        flows, reference = ({name: table[name] for name in columns} for table in (flows, reference))
        found: dict[str, Any] = {"rows": len(flows["start"]), "reference_rows": len(reference["start"])}
        found["distances"] = evaluation.compare(flows, reference)
        found["discriminator_auc"] = evaluation.told_apart(flows, reference, seed)
        if task == "classify":
            if not named:
                raise InputError("--task classify: needs a flow table that names applications, or the run's --labels")
            tasks: dict[str, tuple[str, bool]] = {name: (name, True) for name in named}
            if "application" in named:
                tasks["application_without_ports"] = ("application", False)
            found["classify"] = {
                task: evaluation.utility(flows, reference, name, ports=ports, seed=seed, progress=progress)
                for task, (name, ports) in tasks.items()
            }
        return found

    def _reference(self, against: tuple[str, ...], progress: evaluation.Progress) -> Flows:
        """Real flows, with ``label`` where the run has labels and the inputs their column."""

        def read(extra: tuple[str, ...]) -> Flows:
            return inputs.read(
                against, preset=self.preset, extra=extra, idle=self.idle, active=self.active,
                progress=lambda done, total: progress("reading", done, total),
            )  # fmt: skip

        if self.labels is not None:
            try:
                flows = read((self.labels,))
                return {**flows, "label": flows[inputs.KEPT + self.labels]}
            except InputError:
                progress(f"--against has no column {self.labels!r}, so labels are not compared", 0, 0)
        return read(())


def write_tables(flows: Flows, folder: Path) -> None:
    """Write ``flows.parquet`` and ``flows.csv`` into a folder; addresses and outcomes become text."""
    import pyarrow
    from pyarrow import csv, parquet

    columns: dict[str, Any] = dict(flows)
    for side in ("client", "server"):
        addresses, index = np.unique(flows[side], axis=0, return_inverse=True)
        columns[side] = np.array([_address(address) for address in addresses], dtype=np.str_)[index.ravel()]
    columns["outcome"] = np.array(OUTCOMES)[flows["outcome"]]
    table = pyarrow.table(columns)
    parquet.write_table(table, folder / "flows.parquet")
    csv.write_csv(table, folder / "flows.csv")


def _address(packed: NDArray[np.uint8]) -> str:
    address = ip_address(packed.tobytes())
    assert isinstance(address, IPv6Address)
    return str(address.ipv4_mapped or address)


def compare_with_input(folder: Path) -> Path:
    """Draw the release of a run folder beside the run's input, into ``private/``, as it is NOT PRIVATE; its path.

    Raises InputError when the folder is no finished run of this simulator, or the input is gone.
    """
    config = read_config(folder / "private" / CONFIG)
    traces = make(config.simulator, "simpe.simulators", config.options)
    if not isinstance(traces, Traces) or not finished(folder):
        raise InputError(f"{folder}: no finished run of network traces; give the folder of one")
    drawn = {
        "synthetic": inputs.read([folder / "release" / "flows.parquet"], preset="simpe"),
        "input": inputs.read(config.private, preset=traces.preset),
    }
    panels = plots.panels(drawn, traces.start, traces.length)
    path = folder / "private" / "comparison.png"
    plots.draw(panels, path, "NOT PRIVATE: synthetic (full) and the input (outlined)")
    path.chmod(0o600)
    write_private(folder, "figures.json", json.dumps(panels))
    return path
