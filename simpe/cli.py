"""The command line. Nothing heavy is imported before a command needs it, so that help answers at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpe.errors import InputError

if TYPE_CHECKING:
    from simpe.config import RunConfig
    from simpe.evolution import Info
    from simpe.release import Release
    from simpe.watch import Dashboard

app = typer.Typer(
    name="simpe",
    help="""Differentially private synthetic data with simulators.

    A simulator's parameters are drawn at random, rendered, and voted on by the private rows; the noisy votes decide
    which live on and vary. No private row is trained on, and only noisy counts leave the private side.

    Start with:  [bold]simpe digits --private sklearn --out runs/first[/bold]
    """,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FILES = (
    "a folder of MNIST-style IDX files, an .npz with images and labels, a folder of images in one sub-folder a class"
)
PATHS = f"{FILES}, or the word sklearn for scikit-learn's digits"
GENDER = "0,1"  # how public face data sets write the label gender

Private = Annotated[str, typer.Option(help=f"The private rows: {PATHS}.")]
Epsilon = Annotated[
    float, typer.Option(help="Privacy budget: smaller is more private. The total, counting all runs on a --ledger.")
]
Delta = Annotated[
    float, typer.Option(help="Probability that the guarantee may fail; keep it well below one over the rows.")
]
Steps = Annotated[int | None, typer.Option(help="Steps of evolution.  \\[default: 4, or what the budget bears]")]
Relation = Annotated[str, typer.Option(help="What neighbouring data sets are: add_remove or replace_one unit.")]
Samples = Annotated[int, typer.Option(help="How many synthetic images to make.")]
Unit = Annotated[
    str | None,
    typer.Option(help="Array of the .npz that names each row's owner: the privacy unit.  \\[default: a row]"),
]
K = Annotated[int, typer.Option("--k", help="Rows that each unit may contribute, at most (with --unit).")]
Size = Annotated[int | None, typer.Option(help="Side of the images to make.  \\[default: the private images']")]
SharedLedger = Annotated[
    Path | None, typer.Option("--ledger", help="A ledger that several runs on the same data share one budget on.")
]
Seed = Annotated[int, typer.Option(help="Seed of the public randomness; the noise never comes from it.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path, typer.Option(help="The run folder to make: release/ to give away, private/ to keep.")]
SaveConfig = Annotated[Path | None, typer.Option(help="Also write the configuration that repeats this command.")]
OnCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Render and vote on the workers of a Dask cluster: tcp://..., tls://... or local\\[:N], N processes here.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What a process that holds private rows may use in all, such as 2G: rows are then read in turn, and their "
        "embeddings lie in a file that goes with the process.",
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Show steps, noisy votes, survivors and time left while it runs.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]


@app.command()
def digits(
    private: Private,
    out: Out,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    samples: Samples = 10_000,
    steps: Steps = None,
    classes: Annotated[
        str | None,
        typer.Option(help="The classes, public: one character each, or separated by commas.  \\[default: 0123456789]"),
    ] = None,
    unit: Unit = None,
    k: K = 1,
    relation: Relation = "add_remove",
    size: Size = None,
    font: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="A font file, a folder of them or the file name of a system font, public, to draw with besides the "
            "built-in typefaces. May be repeated.",
        ),
    ] = None,
    ledger: SharedLedger = None,
    seed: Seed = 0,
    device: Device = "auto",
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Make a private set of handwritten digits (or letters) look-alikes.

    Example:  [bold]simpe digits --private mnist/ --epsilon 1 --out runs/digits[/bold]
    """
    from simpe.config import make_config

    _run(
        make_config(
            simulator="digits", private=private, out=out, epsilon=epsilon, delta=delta, samples=samples, steps=steps,
            classes=classes, unit=unit, k=k, relation=relation, size=size, ledger=ledger, seed=seed, device=device,
            options={"fonts": [str(Path(name).resolve()) if Path(name).exists() else name for name in font]}
            if font
            else None,
        ),
        save_config,
        watch,
    )  # fmt: skip


@app.command()
def faces(
    private: Annotated[str, typer.Option(help=f"The private rows: {FILES}. All images have one size.")],
    out: Out,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    samples: Samples = 10_000,
    steps: Steps = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="ARRAY",
            help="Array of the .npz that names each face's class, such as gender; each class gets faces of its own.  "
            "\\[default: labels, where there are some]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="The classes, public, separated by commas; faces of others take no part.  "
            f"\\[default: {GENDER} for the label gender; any other must be declared]"
        ),
    ] = None,
    unit: Unit = None,
    k: K = 1,
    relation: Relation = "add_remove",
    size: Size = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="A morphable face model, public, in place of the built-in head: arrays mean (V, 3), tri (T, 3), "
            "id_q (I, V, 3), id_scale (I,), ex_q (E, V, 3) and ex_scale (E,), as a reduced ICT-FaceKit has.",
        ),
    ] = None,
    ledger: SharedLedger = None,
    seed: Seed = 0,
    device: Device = "auto",
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Make a private set of face photographs look-alikes: rendered heads of nobody.

    Needs [bold]pip install 'simpe\\[faces]'[/bold]: faces are compared by a network that knows photographs.

    The faces should be aligned and cropped as in public face data sets: eyes level, brows to chin filling the frame.
    The images made are of their size, and grey where the private ones are (a folder is read in colour).

    Example:  [bold]simpe faces --private faces.npz --label gender --epsilon 1 --out runs/faces[/bold]

    A folder:  [bold]simpe faces --private photos/ --classes indoors,outdoors --epsilon 1 --out runs/photos[/bold]
    """
    from simpe.config import make_config

    if classes is None and label == "gender":
        classes = GENDER
    _run(
        make_config(
            simulator="faces", private=private, out=out, epsilon=epsilon, delta=delta, samples=samples, steps=steps,
            label=label, classes=None if classes is None else _names(classes), unit=unit, k=k, relation=relation,
            size=size, ledger=ledger, seed=seed, device=device,
            options=None if model is None else {"model": str(model.resolve())},
        ),
        save_config,
        watch,
    )  # fmt: skip


@app.command()
def gallery(
    public: Annotated[
        str,
        typer.Option(
            help="The gallery: samples that are public, and are released as they are. A folder of images, an .npz "
            "file, or a release's samples.npz. None of the private rows may be among them."
        ),
    ],
    private: Annotated[str, typer.Option(help=f"The private rows: {FILES}.")],
    out: Out,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    samples: Samples = 10_000,
    steps: Steps = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="What says which samples are alike: an embedder from simpe list, or module:Name.  "
            "\\[default: that of the samples' kind]"
        ),
    ] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Read folders of images in colour.")] = False,
    label: Annotated[
        str | None, typer.Option(metavar="ARRAY", help="Array of the private .npz that names each row's class.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="The classes, public, separated by commas.")] = None,
    unit: Unit = None,
    k: K = 1,
    relation: Relation = "add_remove",
    ledger: SharedLedger = None,
    seed: Seed = 0,
    device: Device = "auto",
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Choose public samples that resemble private ones.

    Example:  [bold]simpe gallery --public faces/ --private photos.npz --epsilon 1 --out runs/photos[/bold]
    """
    from simpe.config import make_config

    where = str(Path(public).resolve()) if Path(public).exists() else public  # the word sklearn is no path
    options = {"samples": where, "colour": colour or None, "embedder": embedder}
    _run(
        make_config(
            simulator="gallery", private=private, out=out, epsilon=epsilon, delta=delta, samples=samples, steps=steps,
            label=label, classes=None if classes is None else _names(classes), unit=unit, k=k, relation=relation,
            ledger=ledger, seed=seed, device=device,
            options={name: value for name, value in options.items() if value is not None},
        ),
        save_config,
        watch,
    )  # fmt: skip


@app.command(name="filter")
def filter_(
    given: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help=f"The samples to choose from: {FILES} or loose, or a release's samples.npz. Its labels, if it has "
            "some, are the classes: an array labels, or the names of sub-folders.",
        ),
    ],
    private: Annotated[str, typer.Option(help=f"The private rows: {FILES}.")],
    keep: Annotated[int, typer.Option(min=1, help="How many samples of SET to keep.")],
    out: Out,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Where SET comes from and under what guarantee, as you declare it in the certificate.  "
            "\\[default: public, or made under a guarantee of its own]",
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="What says which samples are alike: an embedder from simpe list, or module:Name.  "
            "\\[default: that of the samples' kind]"
        ),
    ] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Read folders of images in colour.")] = False,
    label: Annotated[
        str | None, typer.Option(metavar="ARRAY", help="Array of the private .npz that names each row's class.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="The classes, public, separated by commas; samples and rows of others take no part.  "
            "\\[default: the labels of SET]"
        ),
    ] = None,
    unit: Unit = None,
    k: K = 1,
    relation: Relation = "add_remove",
    ledger: SharedLedger = None,
    seed: Seed = 0,
    device: Device = "auto",
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Keep those samples of a given set that resemble the private rows: one vote, and the best by noisy count.

    SET is what others made: a generative model's output, a vendor's set, a release. Rows vote within their class.

    [bold]The guarantee covers the choice alone.[/bold] What is kept are samples of SET as they are, and if SET was made
    with the private rows, what that cost adds to it: say so with --origin. If SET is a release of simpe, give its
    --ledger, and one certificate covers both.

    Keep few where rows are few: a warning says how many samples the votes can tell from the noise.

    Example:  [bold]simpe filter made.npz --private photos.npz --epsilon 1 --keep 500 --out runs/best[/bold]

    Its origin:  [bold]--origin "a diffusion model trained on the same rows with DP-SGD, epsilon 4, delta 1e-6"[/bold]
    """
    from simpe.config import make_config

    where = str(Path(given).resolve()) if Path(given).exists() else given  # the word sklearn is no path
    options = {"samples": where, "colour": colour or None, "origin": origin}
    _run(
        make_config(
            simulator="given", private=private, out=out, epsilon=epsilon, delta=delta, samples=keep, steps=1,
            label=label, classes=None if classes is None else _names(classes), unit=unit, k=k, relation=relation,
            ledger=ledger, seed=seed, device=device, embedder=embedder,
            options={name: value for name, value in options.items() if value is not None},
        ),
        save_config,
        watch,
    )  # fmt: skip


@app.command()
def text(
    private: Annotated[
        list[str], typer.Option(help="The private texts: a CSV or Parquet table, a row a text. May be repeated.")
    ],
    out: Out,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    samples: Annotated[int, typer.Option(help="How many synthetic texts to make.")] = 500,
    steps: Steps = None,
    column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that names each text's class (with --classes).")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="The classes, public, separated by commas.")] = None,
    about: Annotated[str, typer.Option(help="What the texts are, in public words.")] = "short text",
    keywords: Annotated[
        str | None, typer.Option(help="Public words, separated by commas, one of which each text starts from.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the model is asked for a text, in place of what --about makes: {label}, {keyword}."),
    ] = None,
    rephrase: Annotated[
        str | None,
        typer.Option(
            help="What it is asked to vary one: {label}, {text}.  \\[default: words are blanked and filled in]"
        ),
    ] = None,
    contrast: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="When it varies a text, also show it N texts of the class that noisy votes favoured, and N that they "
            "did not.  \\[default: none]",
        ),
    ] = None,
    length: Annotated[int, typer.Option(help="Bytes of a text, at most, public; longer ones are cut.")] = 256,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The language model: a folder, a .gguf file or an id on the Hugging Face hub.  "
            "With --api, its name there.  \\[default: the packaged SmolLM2-135M-Instruct]",
        ),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask an API that speaks as OpenAI's does, such as http://localhost:8000/v1."),
    ] = None,
    api_key: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable that holds the API's key; '' for none.")
    ] = "OPENAI_API_KEY",
    prices: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT", help="What the API takes for a million tokens asked and answered (for --cap)."),
    ] = None,
    cap: Annotated[float | None, typer.Option(help="What all requests may cost, at most.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="Column that names each text's owner: the privacy unit.  \\[default: a text]"),
    ] = None,
    k: K = 1,
    relation: Relation = "add_remove",
    ledger: SharedLedger = None,
    seed: Seed = 0,
    device: Device = "auto",
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Make texts that resemble private ones, by a language model on this machine or behind an API.

    Needs [bold]pip install 'simpe\\[text]'[/bold] and a model; docs/foundation.md says how to get a small one.

    The model is asked with public words alone, and goes on from its own texts that noisy votes chose. What an API
    answered is kept in OUT.replies, and not paid for again by simpe resume.

    Example:  [bold]simpe text --private mails.csv --label kind --classes praise,complaint --about "mail to a shop"
    --out runs/mails[/bold]
    """
    from simpe.config import make_config

    if (label is None) != (classes is None):
        raise InputError("--label and --classes go together: the column of the classes, and their public names")
    names = None if classes is None else _names(classes)
    options: dict[str, Any] = {
        "text": column, "label": label, "classes": names, "about": about, "prompt": prompt, "rephrase": rephrase,
        "contrast": contrast,
        "keywords": None if keywords is None else _names(keywords), "length": length,
    }  # fmt: skip
    if api is None:
        options["model"] = str(Path(model).resolve()) if model and Path(model).exists() else model
        options["device"] = device if device.startswith("cuda") else None
        if prices is not None or cap is not None:
            raise InputError("--prices and --cap are for an API: name one with --api, or leave them out")
    else:
        asked = {"base_url": api, "model": model or "", "cache": str(_replies(out)), "key": api_key, "cap": cap}
        options["api"] = {name: value for name, value in asked.items() if value is not None}
        options["prices"] = None if prices is None else _prices(prices)
    _run(
        make_config(
            simulator="text" if api is None else "text-api", private=tuple(private), out=out, epsilon=epsilon,
            delta=delta, samples=samples, steps=steps, classes=names, unit=unit, k=k, relation=relation, ledger=ledger,
            seed=seed, device=device,
            options={name: value for name, value in options.items() if value is not None},
        ),
        save_config,
        watch,
    )  # fmt: skip


def _prices(text: str) -> tuple[float, float]:
    try:
        asked, answered = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--prices {text}: give two numbers, such as 0.15,0.6") from None
    return asked, answered


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(","))


@app.command()
def network(
    captures: Annotated[
        list[str],
        typer.Argument(
            metavar="CAPTURE...",
            help="Captures (pcap, pcapng, plain or gzip), flow tables (CSV, Parquet), folders of them or URLs; or the "
            "word [bold]recorded[/bold] for the capture that comes with simpe (./recorded for a file of that name). "
            "After the word [bold]inspect[/bold], they are only looked at.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The run folder to make: release/ to give away, private/ to keep.")
    ] = None,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    unit: Annotated[
        str,
        typer.Option(
            help="The privacy unit: flow; src, a client address; pair, two addresses; window or window:SECONDS, a "
            "client for so long; or a column of the flow tables."
        ),
    ] = "flow",
    k: Annotated[
        int | None,
        typer.Option(
            "--k", help="Flows of each unit that are looked at, at most.  \\[default: 32; of the unit flow, 1]"
        ),
    ] = None,
    flows: Annotated[
        int | None, typer.Option(help="How many flows to make.  \\[default: the noisy count of the units, times k]")
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option(help="How many whole sessions to make, with --unit src or window.  \\[default: the noisy count]"),
    ] = None,
    internal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Prefix of the internal hosts, public; synthetic ones get theirs from it where it is wide enough. "
            "May be repeated.  \\[default: those of private networks]",
        ),
    ] = None,
    window: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="START LENGTH",
            help="When the capture was made, public: 2024-01-31T08:00:00 6h. Flows that start outside take no part.  "
            "\\[default: arrival times are not looked at, and uniform over an hour]",
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the flow tables that names each flow's class.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="The classes of --labels, public, separated by commas.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="The tool that made the flow tables.  \\[default: known by its columns]")
    ] = None,
    words_by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A language model that writes the host names, paths and user agents in the packets: a folder, a .gguf "
            "file, an id on the Hugging Face hub, or the word packaged; with --words-api, its name there. It is told "
            "nothing of the input.  \\[default: they are public words]",
        ),
    ] = None,
    words_api: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask an API that speaks as OpenAI's does for them (key: OPENAI_API_KEY)."),
    ] = None,
    by_file: Annotated[
        bool,
        typer.Option(
            "--by-file",
            help="Read each file by itself, so that workers share files and --memory holds. A flow that goes on in the "
            "next file is another flow there; a unit's flows must lie in one file.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw the release beside the input, into private/: not private.")
    ] = False,
    steps: Steps = None,
    relation: Relation = "add_remove",
    ledger: SharedLedger = None,
    seed: Seed = 0,
    device: Device = "auto",
    cluster: OnCluster = None,
    memory: Memory = None,
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Make a synthetic capture, and its flow table, that resemble private traffic.

    Example:  [bold]simpe network office.pcap --epsilon 1 --unit src --out runs/office[/bold]

    What a capture holds, for your eyes:  [bold]simpe network inspect office.pcap[/bold]

    To try it:  [bold]simpe network recorded --out runs/network[/bold]
    """
    from simpe.simulators.network import inputs

    if captures[0] == "inspect":
        _inspect(captures[1:])
        return
    from simpe.config import make_config

    if out is None:
        raise InputError("--out is missing: name the run folder to make")
    options: dict[str, Any] = {"labels": labels, "preset": preset, "by_file": by_file or None}
    whole = inputs.of_sessions(unit)
    if whole and flows is not None:
        raise InputError(f"--flows: --unit {unit} makes whole sessions; say how many with --sessions, or leave it out")
    if not whole and sessions is not None:
        raise InputError(f"--sessions: --unit {unit} makes flows; say how many with --flows, or leave it out")
    if whole:
        options |= {"k": k, "length": inputs.window_seconds(unit)}
    if internal:
        options |= inputs.internal(internal)
    if window is not None:
        options |= inputs.window(*window)
    options["words"] = _words(words_by, words_api, out)
    rows = 1 if whole or unit == "flow" else 32
    _run(
        make_config(
            simulator="network-sessions" if whole else "network", private=tuple(captures), out=out, epsilon=epsilon,
            delta=delta, samples=sessions if whole else flows, unit=unit, k=rows if whole or k is None else k,
            steps=steps, relation=relation, ledger=ledger, seed=seed, device=device,
            classes=None if classes is None else _names(classes),
            options={name: value for name, value in options.items() if value is not None},
        ),
        save_config,
        watch,
        cluster,
        memory,
    )  # fmt: skip
    if compare:
        from simpe.simulators.network.traces import compare_with_input

        print(f"  not private:   {compare_with_input(out)}")


def _words(model: str | None, api: str | None, out: Path) -> dict[str, Any] | None:
    """The language model that writes names."""
    if api is not None:
        if model is None:
            raise InputError("--words-api: name the API's model with --words-by")
        return {"api": {"base_url": api, "model": model, "cache": str(_replies(out))}}
    if model is None or model == "packaged":
        return None if model is None else {}
    return {"model": str(Path(model).resolve()) if Path(model).exists() else model}


def _replies(out: Path) -> Path:
    """Where what an API answered is kept."""
    return out.resolve().with_name(f"{out.name}.replies")


def _inspect(paths: list[str]) -> None:
    from simpe.simulators.network.summary import summarise

    console = _console()
    with _Progress() as progress:
        parts = list(summarise(paths, lambda done, total: progress("reading", done, total)))
    for part in parts:
        console.print(part, highlight=False, markup=False)
        console.print()
    _say("Not private: for your eyes")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="A configuration, as --save-config writes it.")],
    out: Annotated[Path | None, typer.Option(help="Another run folder than the configuration names.")] = None,
    cluster: OnCluster = None,
    memory: Memory = None,
    save_config: SaveConfig = None,
    watch: Watch = False,
) -> None:
    """Make a data set with any simulator, as a configuration says.

    The configuration names what the options of other commands name, and simulator = "module:Name" for your own. Many
    private rows may be a folder of shards, .npz or .parquet files, or its URL; see docs/scale.md.
    """
    from simpe.config import read_config

    read = read_config(config)
    _run(read if out is None else read.model_copy(update={"out": out}), save_config, watch, cluster, memory)


@app.command()
def resume(folder: Folder, cluster: OnCluster = None, memory: Memory = None, watch: Watch = False) -> None:
    """Continue a run that was stopped, from where it was. Nothing is drawn or spent twice."""
    from simpe.runs import resume

    with _placed(cluster, memory) as where, _shown(watch) as progress:
        release = resume(folder, progress=progress, watch=progress.watch if watch else None, **where)
    if release is None:
        print(f"{folder} is finished already: {folder / 'release'}")
    else:
        _conclude(folder, release)


@app.command()
def evaluate(
    folder: Folder,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What to compare the release with: {PATHS}; of network traffic, captures or flow tables (may be "
            "repeated). Test files, where there are some."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classify: train a classifier on the release and test it on real rows.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="The feature space of the distances: an embedder from simpe list, such as efficientnet, or "
            "module:Name.  \\[default: that of the samples' kind]"
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="The reference is public: the figures may go to DIR/release/.")
    ] = False,
    private_metrics_epsilon: Annotated[
        float | None,
        typer.Option(
            help="Buy accuracy, recall and counts on the run's own private rows, with this epsilon on its ledger: they "
            "go to DIR/release/, and the certificate there claims the new total."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the classifier.")] = 0,
) -> None:
    """Measure a release against real rows. The figures are not private: they go to DIR/private/ and to you.

    With --public you declare that the reference is public; then they go to DIR/release/.

    With --private-metrics-epsilon a few figures on the run's own private rows are bought through the door, and may be
    given away:  [bold]simpe evaluate runs/mnist --private-metrics-epsilon 0.1[/bold]
    """
    from simpe import runs

    if private_metrics_epsilon is not None:
        if public or task or embedder:
            raise InputError(
                "--private-metrics-epsilon: has its own figures; leave out --public, --task and --embedder"
            )
        from simpe.private_metrics import FILE, release_metrics

        with _Progress() as progress:
            bought = release_metrics(
                folder, private_metrics_epsilon, against=tuple(against or ()), seed=seed, progress=progress
            )
        print(json.dumps(bought, indent=2))
        _say(f"To give away: {folder / 'release' / FILE}, with the certificate beside it; write the report again")
        return
    if not against:
        raise InputError("--against is missing: say what to compare the release with")
    with _Progress() as progress:
        found = runs.evaluate(
            folder, tuple(against), public=public, task=task, embedder=embedder, seed=seed, progress=progress
        )
    print(json.dumps(found, indent=2))
    if not public:
        _say("Not private: keep it with the run's private/ folder")


@app.command()
def report(
    folder: Folder,
    against: Annotated[
        list[str] | None,
        typer.Option(help="A public reference to compare the release with first, as simpe evaluate --public does."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classify: also train a classifier on the release; needs --against.")
    ] = None,
) -> None:
    """Write release/report.html, one file to give away: guarantee, budget, samples, votes, metrics, certificate.

    Figures of simpe evaluate against private rows go to a second one, private/report.html.
    """
    from simpe import report, runs

    if task is not None and not against:
        raise InputError("--task needs --against: a public reference to test on")
    if against:
        with _Progress() as progress:
            runs.evaluate(folder, tuple(against), public=True, task=task, progress=progress)
    for path in report.write(folder):
        print(f"  {'to give away' if path.parent.name == 'release' else 'to keep'}:  {path}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="A simulator or an embedder (class or function).")],
    fit: Annotated[
        str | None,
        typer.Option(metavar="PATH", help=f"Public samples that the simulator should be able to make: {PATHS}."),
    ] = None,
) -> None:
    """Check a simulator or an embedder of your own: shapes, ranges, determinism, independence of rows.

    With --fit, also evolve it, without noise, towards public samples and say what distance remains.
    """
    from simpe import check as checks
    from simpe.data import read
    from simpe.plugins import make

    public = None if fit is None else read(fit)
    plugin = make(name, "simpe.simulators")
    simulates = hasattr(plugin, "render") or hasattr(plugin, "space")
    if not simulates and not callable(plugin):
        raise InputError(f"{name} is neither a simulator (space and render) nor an embedder (a function)")
    findings = checks.check_simulator(plugin) if simulates else checks.check_embedder(plugin)
    console = _console()
    for finding in findings:
        mark = "[green]ok[/green]  " if finding.ok else "[red]fail[/red]"
        console.print(f"{mark} {finding.check}", end="" if finding.message else "\n", highlight=False)
        if finding.message:
            console.print(f": {finding.message}", markup=False, highlight=False)
    failed = sum(not finding.ok for finding in findings)
    if failed:
        _say(f"{failed} of {len(findings)} checks failed")
        raise typer.Exit(1)
    print(f"{name}: all {len(findings)} checks passed")
    if public is not None:
        if not simulates:
            raise InputError("--fit needs a simulator")
        with _Progress() as progress:
            found = checks.fit(plugin, public.samples, public.labels, progress=progress)
        print(found)


@app.command()
def audit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A run folder, or a configuration as --save-config writes it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder to make for the audit.  \\[default: the run folder]")
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Audit at another epsilon than the run's. May be repeated.")
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(help="Canaries of each kind.  \\[default: 500, or fewer where rows are few]")
    ] = None,
    trials: Annotated[int, typer.Option(min=1000, help="Repetitions of the mechanism.")] = 200_000,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of all findings together.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the canaries; the noise is the real one.")] = 0,
) -> None:
    """Attack a run: is it as private as its certificate claims?

    The run is made again, on its private rows with canaries among them and with a ledger of its own, so the budget of
    yours is not touched. Then adversaries guess which canaries were there, the mechanism is repeated with and without a
    unit, and every released byte is searched for planted secrets. What one finds stands beside the claim.

    Exit code 0: nothing contradicts the claim. 1: something does. The result is not private; it goes to private/.

    Example:  [bold]simpe audit runs/mnist[/bold]
    """
    from simpe import audit as audits
    from simpe.audit import words
    from simpe.config import with_options

    found = []
    with audits.place(config, out) as (read, folder):
        for one in epsilon or [read.epsilon]:
            run = with_options(read, epsilon=one)
            with _Progress() as progress:
                found.append(
                    audits.audit(
                        run, folder, canaries=canaries, trials=trials, confidence=confidence, seed=seed,
                        progress=progress,
                    )
                )  # fmt: skip
            _console().print(words.table(found[-1]), highlight=False)
        audits.write(folder, found, words.text(found))
    _say(f"Not private: {folder / 'private' / 'audit.txt'}")
    if any(one.violated for one in found):
        raise typer.Exit(1)


@app.command(name="list")
def list_() -> None:
    """List the simulators and embedders that are installed."""
    from rich.table import Column, Table

    from simpe.plugins import GROUPS, available

    table = Table(*(Column(name, overflow="fold") for name in ("kind", "name", "defined in", "package")), box=None)
    for group in GROUPS:
        for name, point in available(group).items():
            table.add_row(
                group.removeprefix("simpe.").rstrip("s"), name, point.value, point.dist.name if point.dist else ""
            )
    _console().print(table)


@app.command()
def budget(
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    steps: Steps = None,
    relation: Relation = "add_remove",
    units: Annotated[bool, typer.Option("--units", help="For units that own many rows.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a budget buys: the noise of each step, and what every further step costs."""
    from simpe.privacy.accounting import Budget, Charge, epsilon_of
    from simpe.scheduling import MAX_STEPS, schedule

    try:
        total = Budget(epsilon, delta, relation)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"--{error}") from None
    plan = schedule(total, steps, one_bin=not units)
    charges = [Charge(z, 1, not units) for z in (plan.count_noise, *plan.vote_noise)]
    after = [epsilon_of(charges[: i + 1], delta, total.relation) for i in range(len(charges))]
    names = ["class counts"] + [f"votes of step {t + 1}" for t in range(plan.steps)]
    rows = [
        {"release": name, "sigma": charge.noise_multiplier, "epsilon_so_far": spent}
        for name, charge, spent in zip(names, charges, after, strict=True)
    ]
    further = {
        t: schedule(total, t, one_bin=not units).vote_noise[0]
        for t in range(plan.steps + 1, min(MAX_STEPS, plan.steps + 4) + 1)
    }
    if as_json:
        print(json.dumps({"epsilon": epsilon, "delta": delta, "relation": relation, "steps": plan.steps,
                          "releases": rows, "sigma_with_more_steps": further}, indent=2))  # fmt: skip
        return
    from rich.table import Table

    table = Table("release", "sigma (votes)", "epsilon so far", box=None)
    for row in rows:
        table.add_row(str(row["release"]), f"{row['sigma']:.4f}", f"{row['epsilon_so_far']:.4f}")
    console = _console()
    console.print(f"epsilon {epsilon:g}, delta {delta:g}, {relation}, {plan.steps} steps\n", highlight=False)
    console.print(table)
    base = plan.vote_noise[0]
    console.print("\nWith more steps, each has more noise:", highlight=False)
    for t, sigma in further.items():
        console.print(f"  {t} steps: sigma {sigma:.4f} ({100 * (sigma / base - 1):+.1f} %)", highlight=False)


federated = typer.Typer(
    name="federated",
    help="""Many data owners: each votes on its own rows, and only vectors of votes leave it.

    All agree on one configuration (docs/federated.md); one is the server, the others are clients.

    Needs [bold]pip install 'simpe\\[federated]'[/bold], and Flower in an environment of its own (--flower).
    """,
)
app.add_typer(federated)

Flower = Annotated[
    Path | None,
    typer.Option(
        "--flower", metavar="BIN", help="The folder of Flower's programs.  \\[default: beside Python, or on the PATH]"
    ),
]


@federated.command()
def server(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="What all have agreed on; or a run folder, to continue it.")
    ],
    out: Annotated[Path | None, typer.Option(help="Another run folder than the configuration names.")] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients reach the server.")
    ] = "127.0.0.1:9092",
    certificate: Annotated[Path | None, typer.Option(help="The server's certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key, PEM.")] = None,
    authority: Annotated[Path | None, typer.Option(help="Who signed the certificate, PEM.")] = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds for clients to come, and to answer.")] = 600.0,
    flower: Flower = None,
    watch: Watch = False,
) -> None:
    """Make a data set from clients' votes.

    Example:  [bold]simpe federated server agreement.toml --out runs/together --flower flower/bin[/bold]

    After a crash:  [bold]simpe federated server runs/together --flower flower/bin[/bold]
    """
    from simpe.config import read_config
    from simpe.store import CONFIG, refuse_existing

    commands, carrier = _federated()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that Flower's processes end too
    again = (config / "private" / CONFIG).is_file()
    read = read_config(config / "private" / CONFIG if again else config)
    if not again:
        read = read if out is None else read.model_copy(update={"out": out})
        refuse_existing(read.out)
    if read.federation is None:
        raise InputError(f"{config}: has no table [federation]; it is that of a run of one's own: simpe run")
    given = (certificate, key, authority)
    if any(given) and not all(given):
        raise InputError("--certificate, --key and --authority go together")
    tls = given if certificate and key and authority else None
    with carrier.superlink(carrier.programs(flower), listen, tls, wait) as exchange, _shown(watch) as progress:
        told = {"progress": progress, "watch": progress.watch if watch else None}
        begin = commands.resume if again else commands.start
        release = begin(config if again else read, exchange, **told)
    if release is None:
        print(f"{config} is finished already: {config / 'release'}")
    else:
        _conclude(config if again else read.out, release)


@federated.command()
def client(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What all have agreed on.")],
    private: Annotated[list[str], typer.Option(help="This client's rows, which stay here. May be repeated.")],
    ledger: Annotated[Path, typer.Option(help="This client's ledger: it remembers what was spent on its rows.")],
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The server. Without it, only the --socket is served.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="This client's own budget, all runs together.  \\[default: the agreement's]")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Of the same.  \\[default: the agreement's]")] = None,
    label: Annotated[
        str | None, typer.Option(metavar="ARRAY", help="Array of this client's .npz that names each row's class.")
    ] = None,
    secret: Annotated[
        Path | None, typer.Option(help="A file that all clients have and the server has not (distributed model).")
    ] = None,
    authority: Annotated[Path | None, typer.Option(help="Who signed the server's certificate, PEM.")] = None,
    socket: Annotated[
        Path | None, typer.Option(help="Where Flower finds this client.  \\[default: a private folder]")
    ] = None,
    flower: Flower = None,
) -> None:
    """Take part with rows of your own, until interrupted.

    Example:  [bold]simpe federated client agreement.toml --private mine.npz --ledger mine.jsonl
    --superlink HOST:9092 --flower flower/bin[/bold]

    Flower runs what the server hands out. To run it as a user who cannot read the rows, serve only a --socket here, and
    start its SuperNode there (docs/federated.md).
    """
    import tempfile

    from simpe.config import read_config

    commands, carrier = _federated()
    for ending in (signal.SIGTERM, signal.SIGINT):  # so that Flower's processes end too
        signal.signal(ending, signal.default_int_handler)
    if superlink is None and socket is None:
        raise InputError("--superlink is missing: name the server, or serve only a --socket")
    programs = None if superlink is None else carrier.programs(flower)
    with _Progress() as progress:
        member = commands.join(
            read_config(config), private, ledger=ledger, epsilon=epsilon, delta=delta, label=label, secret=secret,
            progress=progress, told=_say,
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="simpe-") as folder:
        path = socket or Path(folder) / "socket"
        with carrier.served(member.answer, path), contextlib.ExitStack() as stack:
            _say(f"ready: {path}" if superlink is None else f"ready, for {superlink}")
            try:
                if superlink is None or programs is None:
                    signal.pause()
                else:
                    stack.enter_context(carrier.supernode(programs, superlink, path, authority)).wait()
                    raise InputError(f"--superlink {superlink}: Flower's SuperNode ended; is the server there?")
            except KeyboardInterrupt:
                _say("left; what was spent stays on the ledger")


def _federated() -> tuple[Any, Any]:
    try:
        from simpe.federated import commands, flower
    except ImportError:
        raise InputError("federations need cryptography: pip install 'simpe[federated]'") from None
    return commands, flower


@contextlib.contextmanager
def _placed(cluster: str | None, memory: str | None) -> Iterator[dict[str, Any]]:
    """Where a run is to work, and in how much memory."""
    from simpe.cluster import Cluster
    from simpe.scratch import parse

    size = None if memory is None else parse(memory)
    if cluster is None:
        yield {"memory": size}
        return
    if cluster.startswith("tcp://") and not re.match(r"tcp://(127\.|localhost|\[::1\])", cluster):
        _say("warning: whoever reaches a tcp:// scheduler can read the private rows and the ledger's key; use tls://")
    with Cluster(cluster) as workers:
        yield {"memory": size, "cluster": workers}


def _run(
    config: RunConfig, save_config: Path | None, watch: bool, cluster: str | None = None, memory: str | None = None
) -> None:
    from simpe import runs

    if save_config is not None:
        if save_config.exists():
            raise InputError(f"--save-config {save_config}: exists already; choose another name")
        save_config.write_text(config.to_toml())
    try:
        title = f"epsilon {config.epsilon:g}, delta {config.delta:g}"
        with _placed(cluster, memory) as where, _shown(watch, title) as progress:
            release = runs.start(config, progress=progress, watch=progress.watch if watch else None, **where)
    except InputError:
        if save_config is not None and not config.out.exists():  # refused: it repeats nothing
            save_config.unlink()
        raise
    _conclude(config.out, release)


def _conclude(folder: Path, release: Release) -> None:
    print(f"{len(release.samples)} samples, {release.certificate['statement']}.")
    pictures = sorted((folder / "release").glob("*.png"), key=lambda path: path.name == "evolution.png")
    look = f"  (look at {pictures[0]})" if pictures else ""  # a simulator's own export may bring none
    print(f"  to give away:  {folder / 'release'}{look}")
    print(f"  to keep:       {folder / 'private'}")


def _shown(watch: bool, title: str = "") -> _Progress | Dashboard:
    """A dashboard where one is asked for and there is a terminal to draw it on."""
    from rich.console import Console

    console = Console(stderr=True)
    if watch and console.is_terminal:
        from simpe.watch import Dashboard

        return Dashboard(console, title)
    return _Progress()


class _Progress:
    """A progress bar on a terminal, a line for each thing begun elsewhere; both on standard error."""

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = (
            Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console)
            if console.is_terminal
            else None
        )
        self._what = ""
        if self._bar:
            self._bar.start()
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if total == 0:  # a remark
            if self._bar:
                self._bar.console.print(what, markup=False, highlight=False)
            else:
                _say(what)
            return
        if what != self._what:
            self._what = what
            if self._bar:
                self._task = self._bar.add_task(what, total=total)
            else:
                _say(what)
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)

    def watch(self, info: Info, steps: int) -> None:
        """A line for each step."""
        from simpe.watch import Summary

        _say(str(Summary.of(info, steps)))

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check or target failed, 2 bad input."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, prog_name="simpe", standalone_mode=False)
    except InputError as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        code = _fail("interrupted; continue with: simpe resume DIR", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        code = _fail(f"{where}{error.strerror or error}" + ("; free space, then: simpe resume DIR" if full else ""))
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line
            code = _fail(error.format_message())
        elif os.environ.get("SIMPE_DEBUG"):
            raise
        else:
            said = (str(error).splitlines() or [""])[0]
            code = _fail(f"{type(error).__name__}: {said} (a defect, ours or of a plug-in; SIMPE_DEBUG=1 shows where)")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> int:
    _say(f"simpe: error: {message}")
    return code
