"""Typefaces: font files that pip installs, and those that the user names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

# Light cuts where there is a choice: a pen is thickened without harm, but thinning it opens gaps.
_BUILT_IN = (
    ("caveat", "Caveat[wght].ttf", "Regular"),
    ("dancing-script", "DancingScript[wght].ttf", "Regular"),
    ("delius", "Delius-Regular.ttf", None),
    ("great-vibes", "GreatVibes-Regular.ttf", None),
    ("indie-flower", "IndieFlower-Regular.ttf", None),
    ("kalam", "Kalam-Light.ttf", None),
    ("lobster-two", "LobsterTwo-Italic.ttf", None),
    ("oleo-script", "OleoScript-Regular.ttf", None),
    ("permanent-marker", "PermanentMarker-Regular.ttf", None),
    ("satisfy", "Satisfy-Regular.ttf", None),
    ("shadows-into-light", "ShadowsIntoLight.ttf", None),
    ("yellowtail", "Yellowtail-Regular.ttf", None),
    ("zeyada", "Zeyada.ttf", None),
    ("abeezee", "ABeeZee-Regular.ttf", None),
    ("abel", "Abel-Regular.ttf", None),
    ("alumni-sans", "AlumniSans[wght].ttf", "Thin"),
    ("antic-slab", "AnticSlab-Regular.ttf", None),
    ("comfortaa", "Comfortaa[wght].ttf", "Light"),
    ("crimson-text", "CrimsonText-Regular.ttf", None),
    ("crimson-text", "CrimsonText-Italic.ttf", None),
    ("exo-2", "Exo2[wght].ttf", "Thin"),
    ("fredoka", "Fredoka[wdth,wght].ttf", "Light"),
    ("hammersmith-one", "HammersmithOne-Regular.ttf", None),
    ("josefin-sans", "JosefinSans[wght].ttf", "Thin"),
    ("jost", "Jost[wght].ttf", "Thin"),
    ("libre-baskerville", "LibreBaskerville[wght].ttf", "Regular"),
    ("libre-baskerville", "LibreBaskerville-Italic[wght].ttf", "Italic"),
    ("maven-pro", "MavenPro[wght].ttf", "Regular"),
    ("news-cycle", "NewsCycle-Regular.ttf", None),
    ("nunito", "Nunito[wght].ttf", "ExtraLight"),
    ("questrial", "Questrial-Regular.ttf", None),
    ("quicksand", "Quicksand[wght].ttf", "Light"),
    ("raleway", "Raleway[wght].ttf", "Thin"),
    ("share-tech", "ShareTech-Regular.ttf", None),
    ("smooch-sans", "SmoochSans[wght].ttf", "Thin"),
    ("urbanist", "Urbanist[wght].ttf", "Thin"),
    ("varela-round", "VarelaRound-Regular.ttf", None),
)


class Typeface(NamedTuple):
    """A font file, and the named cut of a variable one (None: its default)."""

    path: Path
    cut: str | None


class Source(NamedTuple):
    """Where glyphs come from: a package and its version ("file" and "" for a file of the user's), the file's name and
    its SHA-256."""

    package: str
    version: str
    file: str
    sha256: str


def typefaces(fonts: Iterable[Path] = ()) -> list[Typeface]:
    """The built-in typefaces, and those in ``fonts``: TrueType or OpenType files, folders of them, or the file names
    of fonts that the system has ("DejaVuSans.ttf").

    Raises ImportError naming the pip package of a missing typeface, FileNotFoundError for a font that does not exist.
    """
    built_in = [Typeface(packaged(package, name), cut) for package, name, cut in _BUILT_IN]
    return built_in + [Typeface(path, None) for path in _files(fonts)]


def packaged(package: str, name: str) -> Path:
    """The file called ``name`` in the pip package fontpkg-``package``.

    Raises ImportError when it is not installed.
    """
    try:
        path = Path(str(resources.files("fontpkg_" + package.replace("-", "_")))) / "files" / name
    except ModuleNotFoundError:
        raise ImportError(f"the typeface {package} is missing: pip install fontpkg-{package}") from None
    if not path.is_file():
        raise ImportError(f"fontpkg-{package} has no {name}: pip install --force-reinstall fontpkg-{package}")
    return path


def sources(faces: Iterable[Typeface]) -> list[Source]:
    """The files behind some typefaces, each once."""
    return [_source(path) for path in dict.fromkeys(face.path for face in faces)]


def hershey_source() -> Source:
    """The file that holds Hershey's single-stroke faces."""
    path = Path(str(resources.files("HersheyFonts"))) / "HersheyFonts.py"
    return Source("Hershey-Fonts", metadata.version("Hershey-Fonts"), path.name, _digest(path))


def stroke_sources() -> list[Source]:
    """The files that hold the pen forms."""
    files = [Path(__file__).with_name(name) for name in ("strokes.py", "tablets.txt")]
    return [Source("simpe", metadata.version("simpe"), file.name, _digest(file)) for file in files]


def _source(path: Path) -> Source:
    module = path.parent.parent.name
    package = module.replace("_", "-") if module.startswith("fontpkg_") else ""
    return Source(package or "file", metadata.version(package) if package else "", path.name, _digest(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(fonts: Iterable[Path]) -> Iterator[Path]:
    for path in fonts:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in {".ttf", ".otf"})
        elif path.is_file():
            yield path
        else:
            yield _of_the_system(path)


def _of_the_system(name: Path) -> Path:
    try:
        return Path(str(ImageFont.truetype(str(name)).path))  # looks where the system keeps its fonts
    except OSError:
        raise FileNotFoundError(
            f"no font at {name}: give a .ttf or .otf file, a folder of them, or the file name of a system font"
        ) from None
