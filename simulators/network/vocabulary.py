"""The names in payloads: host names, paths of requests and user agents; public words, or what a language model wrote.

A model is asked with the prompts below, which are the same for every run: it is told nothing of an input, nor of a
release. What it answers is data: only what has the form of a name is taken, and every host name is put under a name
that is reserved for examples and tests (RFC 2606), so that none is anybody's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simpe.errors import InputError
from simpe.stages import flatten
from simpe.store import write_private

if TYPE_CHECKING:
    from simpe.simulators.foundation.text import Text

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

WORDS = (
    "beacon", "bronze", "cinema", "orange", "banana", "maroon", "banker", "carbon", "bonsai", "cobras", "corner",
    "garage", "ginger", "ambers", "azures", "breeze", "bureau", "canary", "canoes", "cavern", "cigars", "comics",
    "cosmic", "crocus", "cruise", "encore", "engine", "finger", "frozen", "fungus", "geyser", "graven", "groove",
    "grouse", "jargon", "jockey", "mangos", "mirror", "mosaic", "cougar", "nieces", "oceans", "onions", "organs",
    "quarry", "queens", "quiver", "ranger", "ravine", "ravens", "resins", "ribbon", "rivers", "season", "senior",
    "sierra", "source", "savory", "sugars", "survey", "unison", "voyage", "wagons", "winner",
)  # fmt: skip
"""Public words of six letters, for names and filler.

None has a d, h, l, p, t or x, whose two lowest bits are 0: so no reader takes what lies within a stream for the fast
path of RDP ([MS-RDPBCGR] 2.2.9.1.2), which is known by these bits alone.
"""

TOPICS = (
    "weather", "music", "school", "travel", "cooking", "sport", "gardens", "books", "films", "cars", "banking",
    "health", "games", "news", "maps", "photographs", "toys", "clothes", "furniture", "trains", "boats", "farming",
    "science", "history", "art", "jobs", "mail", "software", "cameras", "telephones", "printers", "energy",
)  # fmt: skip
CLIENTS = (
    "a browser on Windows", "a browser on Linux", "a browser on a telephone", "a browser on a tablet", "a television",
    "a mail program", "a download program", "a software updater", "a camera", "a game console", "a music player",
    "a search engine's robot", "a watch", "a printer", "a router", "a thermostat",
)  # fmt: skip
ADDRESS = "Write one web address of a site about {}, such as https://www.cityshop.com/news/today.html"
AGENT = "Write the HTTP User-Agent of {}, such as:\nMozilla/5.0 (X11; Linux x86_64)\ncurl/8.5.0\n"
ADDRESSES, AGENTS = tuple(map(ADDRESS.format, TOPICS)), tuple(map(AGENT.format, CLIENTS))
PROMPTS = 2 * (ADDRESSES + AGENTS)
"""All that a model is asked."""

_ANSWER = 160  # bytes of an answer, at most
_LOCAL = {"model", "batch", "dtype", "device", "temperature", "top"}
_REMOTE = {"api", "prices", "parameters"}
_KEPT = "words.json"

_FIRST, _NAME = 6, 21  # bytes of a host's first label, and of its name: what messages have room for
_ZONES = {6: "example", 9: "test"}  # of a second label of so many bytes, which make up one length with it
_PATHS, _AGENTS = 64, 120  # bytes, at most
_MOST = 256  # names of a kind
_LABEL = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
_HOST = re.compile(rf"[a-z][a-z0-9]{{{_FIRST - 1}}}\.{_LABEL}\.(?:{'|'.join(_ZONES.values())})")
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-]+)+(?:\.(?:html?|php|js|css|json|xml|txt|csv|pdf|png|jpe?g|gif|svg|ico|zip))?")
_AGENT = re.compile(r"[A-Za-z][A-Za-z0-9_-]*/[0-9][A-Za-z0-9._-]*(?: [\x20-\x7e]*[\x21-\x7e])?")
_ADDRESS_OF_SOMEBODY = re.compile(r"@|//|\.[A-Za-z]{2}")
_BETWEEN = re.compile(r"[\s\"'`*<>()\[\]{},;|]+")
_URL = re.compile(r"(?:https?://)?([A-Za-z0-9.-]*)(/[^?#]*)?(?:[?#].*)?")


def _is_path(path: str) -> bool:
    return 1 < len(path) <= _PATHS and _PATH.fullmatch(path) is not None


def _is_agent(agent: str) -> bool:
    whole = agent.count("(") == agent.count(")") and not agent.startswith("HTTP/")
    return whole and len(agent) <= _AGENTS and bool(_AGENT.fullmatch(agent)) and not _ADDRESS_OF_SOMEBODY.search(agent)


@dataclass(frozen=True)
class Vocabulary:
    """Names that payloads are written with.

    ``hosts``: of 21 bytes, six of them the first label, under .example or .test. ``paths`` of requests, from "/" on;
    ``agents``: user agents, a product with its version first, and no address in them. Without paths and agents, filler
    and simpe's own name stand in their place.

    Raises ValueError for what is no such name.
    """

    hosts: tuple[str, ...] = tuple(f"{one}.{two}.example" for one in WORDS for two in WORDS)
    paths: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        hosts = self.hosts and all(len(host) == _NAME and _HOST.fullmatch(host) for host in self.hosts)
        if not (hosts and all(map(_is_path, self.paths)) and all(map(_is_agent, self.agents))):
            raise ValueError("a vocabulary has host names under .example or .test, paths and user agents alone")

    @cached_property
    def texts(self) -> Bytes:
        """The host names as they are written: (n, 21)."""
        return np.frombuffer("".join(self.hosts).encode(), dtype=np.uint8).reshape(-1, _NAME)

    @cached_property
    def zones(self) -> Bytes:
        """Host names less their first labels, as DNS writes them (RFC 1035, 3.1), without the root: (n, 15)."""
        labels = [host.encode().split(b".")[1:] for host in self.hosts]
        wire = b"".join(bytes([len(label)]) + label for two in labels for label in two)
        return np.frombuffer(wire, dtype=np.uint8).reshape(-1, _NAME - _FIRST)

    def of(self, chance: Integers, other: Integers) -> Integers:
        """Which host (m,) each flow has, by two numbers that chance gives it."""
        return (chance % len(WORDS) * len(WORDS) + other % len(WORDS)) % len(self.hosts)


PUBLIC = Vocabulary()
"""Names of public words."""


def of_run(options: Mapping[str, Any], folder: Path, progress: Progress) -> Vocabulary:
    """The vocabulary of a run in a folder: as it is kept in ``private/words.json``, or written now and kept there.

    Raises InputError as :func:`written`, and where what is kept is damaged.
    """
    path = folder / "private" / _KEPT
    asked = hashlib.sha256(json.dumps(described(options), sort_keys=True).encode()).hexdigest()
    try:
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if kept.pop("asked", None) == asked:
            return Vocabulary(**{name: tuple(values) for name, values in kept.items()})
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: is damaged; delete it, and the model writes it again") from None
    vocabulary = written(options, progress)
    if path.parent.is_dir():
        write_private(folder, _KEPT, json.dumps({"asked": asked, **asdict(vocabulary)}, indent=1))
    return vocabulary


def written(options: Mapping[str, Any], progress: Progress) -> Vocabulary:
    """What a language model writes, as far as it can be used; public words where nothing can.

    ``options``: of :class:`LocalText` ``model`` (the packaged one without it), ``batch``, ``dtype``, ``device``,
    ``temperature`` and ``top``, or of :class:`RemoteText` ``api``, ``prices`` and ``parameters``.

    Raises InputError where the model cannot be had or does not answer, or an option is unknown.
    """
    source = source_of(options)
    source.report_to(progress)
    answers = source.write(PROMPTS, range(len(PROMPTS)))
    found = []
    for kind, prompts, names_in in _KINDS:
        each = [names_in(answer, prompt) for prompt, answer in zip(PROMPTS, answers, strict=True) if prompt in prompts]
        found.append(tuple(dict.fromkeys(name for names in each for name in names))[:_MOST])
        lost = each.count([])
        if lost:
            instead = "" if found[-1] else "; public words stand in their place"
            progress(f"{lost} of {len(each)} answers of the language model hold no {kind}{instead}", 0, 0)
    return Vocabulary(found[0] or PUBLIC.hosts, *found[1:])


def described(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a certificate says of the names' writer: the model and how it is asked.

    Raises InputError as :func:`written`, as far as that can be known before.
    """
    own = source_of(options).public_inputs()
    asked = ("simulator", "model", "base_url", "dtype", "temperature", "top", "parameters")
    writer = {name: own[name] for name in asked if name in own}
    return {"written_by": writer, "prompts": list(ADDRESSES + AGENTS)}


def hosts_in(answer: str, prompt: str = "") -> list[str]:
    """The host names in an answer, in the form that a vocabulary has them in; not those of the prompt."""
    return _others([host for name, _ in _addresses(answer) for host in _hosts(name)], hosts_in, prompt)


def paths_in(answer: str, prompt: str = "") -> list[str]:
    """The paths in an answer; not those of the prompt."""
    paths = [path for name, path in _addresses(answer) if "." in name or not name]
    return _others([path for path in paths if _is_path(path)], paths_in, prompt)


def agents_in(answer: str, prompt: str = "") -> list[str]:
    """The user agents in an answer, one a line at most, cut between words and comments; not those of the prompt."""
    found = []
    for line in answer.splitlines():
        begun = re.search(r"[A-Za-z][A-Za-z0-9_-]*/[0-9][^\"'`*<>]*", line)
        text = begun[0] if begun else ""
        text = text if len(text) <= _AGENTS else text[:_AGENTS].rpartition(" ")[0]
        whole = text if text.count("(") == text.count(")") else text[: text.rfind(")") + 1] or text.partition("(")[0]
        found.append(whole.rstrip(" .,;:-"))
    return _others([agent for agent in found if _is_agent(agent)], agents_in, prompt)


_KINDS = (("host names", ADDRESSES, hosts_in), ("paths", ADDRESSES, paths_in), ("user agents", AGENTS, agents_in))


def _others(found: list[str], names_in: Callable[[str], list[str]], prompt: str) -> list[str]:
    given = names_in(prompt) if prompt else []
    return [name for name in found if name not in given]


def _addresses(text: str) -> list[tuple[str, str]]:
    """Host and path of each word that could be an address, either of which may be empty."""
    words = (_URL.fullmatch(word.rstrip(".:!?")) for word in _BETWEEN.split(text))
    return [(word[1], word[2] or "") for word in words if word]


def _hosts(name: str) -> list[str]:
    """A name in the form of a vocabulary's: its first and its second-level label, cut or filled up with digits."""
    labels = name.lower().split(".")
    if len(labels) < 2:
        return []
    first, second = (labels[0].replace("-", "") if len(labels) > 2 else "www"), labels[-2]
    width = min(_ZONES) if len(second) <= min(_ZONES) else max(_ZONES)
    digits = str(int(hashlib.sha256(name.encode()).hexdigest(), 16))
    filled = ((label[:size].rstrip("-") + digits)[:size] for label, size in ((first, _FIRST), (second, width)))
    host = ".".join((*filled, _ZONES[width]))
    return [host] if _HOST.fullmatch(host) and second != "www" else []


def source_of(options: Mapping[str, Any]) -> Text:
    """The language model that options name; it is not loaded yet.

    Raises InputError where it, or a package, is missing, or an option is unknown.
    """
    from simpe.simulators.foundation.language import LocalText
    from simpe.simulators.foundation.remote import RemoteText

    kind, known, needs = (RemoteText, _REMOTE, "openai") if "api" in options else (LocalText, _LOCAL, "transformers")
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(
            f"words: {unknown[0]} is none of its options {', '.join(sorted(known))}; see docs/foundation.md"
        )
    if find_spec(needs) is None:
        raise InputError(f"words by a language model need {needs}: pip install 'simpe[text,api]'")
    return kind(**options, length=_ANSWER, embedder=flatten)
