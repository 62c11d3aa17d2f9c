"""Avatars: flat cartoon people, put together from the parts that `pip install "simpe[faces]"` brings.

The parts are those of the package ``python_avatars`` (MIT), after Pablo Stanley's Avataaars; what may vary is what its
``Avatar`` takes, as in Sim-PE (Lin et al., arXiv 2502.05505). Drawing a whole avatar from its SVG takes tens of
milliseconds. So every part is rasterised once, by resvg (MIT), in black and in white, which tells what any colour of it
looks like; an avatar is then a dozen of these pictures laid over one another, thousands a second.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simpe.embedders.images import PixelsAndGradients
from simpe.errors import InputError
from simpe.simulators.typefaces import packaged
from simpe.space import Categorical, ParameterSpace, Params

Frame = Literal["whole", "face"]

_FRAMES = {"whole": (0.0, 0.0, 264.0, 280.0), "face": (62.0, 32.0, 140.0, 160.0)}  # left, top, width, height
_WORDS = ("Hola!", "Hello", "1984")  # on shirts
_FONT = ("fredoka", "Fredoka[wdth,wght].ttf", "Fredoka")
_SVG = "{http://www.w3.org/2000/svg}"
_SHARED = {_SVG + tag for tag in ("defs", "mask", "clipPath", "filter")}  # what draws nothing, and others refer to
_COLOUR = "COLOUR"  # stands in an SVG for the colour that varies
_BLOCK = 2**17  # pixels composed at a time


class Avatars:
    """Cartoon people with hair, hats, beards, glasses and clothes, each choice and colour a parameter.

    >>> avatars = Avatars()
    >>> p = avatars.space.sample(100, torch.Generator().manual_seed(0))
    >>> images = avatars.render({**p, "label": torch.zeros(100, dtype=torch.int64)})  # uint8 (100, 64, 64, 3)

    ``size``: pixels, a side or (height, width). ``frame``: ``whole``, or ``face``, cropped to the head as aligned
    photographs are. ``grey``: brightness alone, uint8 (n, height, width). The background colour fills a circle, and the
    rest is white, or, in the style ``transparent``, the frame. A word on a shirt is one of its graphics.

    A label changes nothing: every class is drawn from the same space.

    Raises InputError for a size that cannot be drawn, an unknown frame, or a missing library.
    """

    colour = True  # folders of photographs are read in colour

    def __init__(self, size: int | tuple[int, int] = 64, frame: Frame = "whole", grey: bool = False):
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if not 8 <= min(self.size) <= max(self.size) <= 512:
            raise InputError(f"size must be 8 to 512 pixels, got {self.size}")
        if frame not in get_args(Frame):
            raise InputError(f"frame must be one of {', '.join(get_args(Frame))}, got {frame!r}")
        for package in ("python_avatars", "resvg_py"):
            if util.find_spec(package) is None:
                raise InputError(f"avatars need {package}: pip install 'simpe[faces]'")
        self.frame = frame
        self.grey = grey
        self.embedder = PixelsAndGradients()

    @cached_property
    def space(self) -> ParameterSpace:
        """Choices, all of them: the parts by the names of ``python_avatars``, the colours by theirs."""
        parameters: Any = {name: Categorical(tuple(choices)) for name, choices in self._choices.items()}
        return ParameterSpace(**parameters)

    def render(self, p: Params) -> Tensor:
        """Draw n rows: parameters -> uint8 (n, height, width, 3), or (n, height, width) where grey.

        Deterministic and row by row, bit for bit, on the device of the parameters.
        """
        height, width = self.size
        device = p["top"].device
        pictures = {name: table.to(device) for name, table in self._pictures.items()}
        out = torch.empty((len(p["top"]), height, width, 3), dtype=torch.uint8, device=device)
        rows = max(1, _BLOCK // (height * width))
        for i in range(0, len(out), rows):
            part = {name: x[i : i + rows] for name, x in p.items()}
            behind = self._colours["background_color"].to(device)[part["background_color"]]
            circle = part["style"] == list(self._choices["style"]).index("circle")
            out[i : i + rows] = _composed(pictures, *self._layers(part), behind, circle)
        return _luma(out) if self.grey else out

    def public_inputs(self) -> dict[str, Any]:
        """What the samples are made from: the settings, and the versions of the packages."""
        packages = ("python_avatars", "resvg_py", f"fontpkg-{_FONT[0]}")
        return {
            "simulator": "avatars",
            "size": list(self.size),
            "frame": self.frame,
            "grey": self.grey,
            "packages": {name: metadata.version(name) for name in packages},
        }

    @cached_property
    def _choices(self) -> dict[str, dict[str, str]]:
        """Parameter -> name of each choice -> its file, without the ending, or its colour; empty for nothing."""
        import python_avatars as parts

        def of(*kinds: str) -> dict[str, str]:
            """Names in small letters; a name that two kinds have is told apart by the later kind's."""
            found: dict[str, str] = {}
            for kind in kinds:
                folder = getattr(parts, kind).__path__.removeprefix("avatar_parts/")
                for choice in getattr(parts, kind):
                    name = choice.name.lower()
                    value = f"{folder}/{choice.value}" if folder and choice.value else choice.value
                    found[f"{name}_{kind.lower()}" if name in found else name] = value
            return found

        graphics = {name: value for name, value in of("ClothingGraphic").items() if name != "custom_text"}
        return {
            "style": of("AvatarStyle"),
            "background_color": of("BackgroundColor"),
            "top": of("HairType", "HatType"),
            "hat_color": of("ClothingColor"),
            "eyebrows": of("EyebrowType"),
            "eyes": of("EyeType"),
            "nose": of("NoseType"),
            "mouth": of("MouthType"),
            "facial_hair": of("FacialHairType"),
            "skin_color": of("SkinColor"),
            "hair_color": of("HairColor"),
            "facial_hair_color": of("HairColor"),
            "accessory": of("AccessoryType"),
            "clothing": of("ClothingType"),
            "clothing_color": of("ClothingColor"),
            "shirt_graphic": {**graphics, **{f"the word {word}": word for word in _WORDS}},
        }

    @cached_property
    def _colours(self) -> dict[str, Tensor]:
        """Colours (choices, 3) in 0..1 of each parameter that names some."""
        return {
            name: torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in choices.values()])
            for name, choices in self._choices.items()
            if name.endswith("_color")
        }

    def _layers(self, p: Params) -> tuple[Tensor, Tensor]:
        """The drawing of each layer (layers, n), from the back to the front, and its colour (layers, n, 3).

        They are the body, clothing, graphic, mouth, nose, eyes, eyebrows and the top, in three pieces between which lie
        beard and accessory, in the order that the top has.
        """
        top = p["top"]
        of = {name: table.to(top.device) for name, table in self._drawings[1].items()}
        colour = {name: shades.to(top.device)[p[name]] for name, shades in self._colours.items()}
        hair = torch.where((top < self._hats)[:, None], colour["hair_color"], colour["hat_color"])
        none, beard_colour = torch.zeros_like(hair), colour["facial_hair_color"]
        beard, accessory = of["facial_hair"][top, p["facial_hair"]], of["accessory"][top, p["accessory"]]
        beard_first = of["beard first"][top]
        pieces = of["top"][top].unbind(1)
        layers = [
            (of["body"].expand(len(top)), colour["skin_color"]),
            (of["clothing"][p["clothing"]], colour["clothing_color"]),
            (of["shirt_graphic"][p["clothing"], p["shirt_graphic"]], none),
            *((of[name][p[name]], none) for name in ("mouth", "nose", "eyes", "eyebrows")),
            (pieces[0], hair),
            (torch.where(beard_first, beard, accessory), beard_colour),  # an accessory has no colour to fill
            (pieces[1], hair),
            (torch.where(beard_first, accessory, beard), beard_colour),
            (pieces[2], hair),
        ]
        return torch.stack([drawing for drawing, _ in layers]), torch.stack([shade for _, shade in layers])

    @cached_property
    def _hats(self) -> int:
        """The number of tops that are hair; hats come after them."""
        return sum(not file.startswith("top/hat/") for file in self._choices["top"].values())

    @cached_property
    def _drawings(self) -> tuple[list[str], dict[str, Tensor]]:
        """Every SVG once, and which of them each choice of each layer is; the first is empty."""
        svgs = {"": 0}

        def number(ancestors: Sequence[Element], content: Iterable[Element]) -> int:
            return svgs.setdefault(_text(ancestors, content), len(svgs))

        template = _read("styles/transparent", "Skin-Color")

        def each(name: str, place: str, colour: str = "") -> list[int]:
            where = _path(template, place)[1:]
            return [number(where, _read(file, colour)) if file else 0 for file in self._choices[name].values()]

        shared = [child for child in template if child.tag in _SHARED]
        *page, body = _path(template, "Body")[1:]
        tables: dict[str, Any] = {"body": number(page, [*shared, body])}
        for name, place in (("mouth", "Mouth"), ("nose", "Nose"), ("eyes", "Eyes"), ("eyebrows", "Eyebrow")):
            tables[name] = each(name, place)
        tables["clothing"] = each("clothing", "Clothing", "Fabric-Color")
        graphics = []
        for file in self._choices["clothing"].values():
            if not file.endswith("graphic_shirt"):
                graphics.append([0] * len(self._choices["shirt_graphic"]))
                continue
            where = [*_path(template, "Clothing")[1:], *_path(_read(file), "Graphic")[1:]]
            graphics.append([number(where, _graphic(g)) if g else 0 for g in self._choices["shirt_graphic"].values()])
        tables["shirt_graphic"] = graphics

        tables |= {"top": [], "facial_hair": [], "accessory": [], "beard first": []}
        where = _path(template, "Top")[1:]
        for i, file in enumerate(self._choices["top"].values()):
            top = _read(file, "Hair-Color" if i < self._hats else "Fabric-Color")
            places = {name: path[-1] for name in ("Facial-Hair", "Accessory") if (path := _path(top, name))}
            pieces = [number(where, piece) for piece in _split(top, list(places.values()))]
            tables["top"].append(pieces + [0] * (3 - len(pieces)))
            order = [element for element in top.iter() if element in places.values()]
            tables["beard first"].append(order[:1] == [places.get("Facial-Hair")])
            for name, place, colour in (
                ("facial_hair", "Facial-Hair", "Facial-Hair-Color"),
                ("accessory", "Accessory", ""),
            ):
                chain = [*where, *_path(top, place)[1:]] if place in places else []
                tables[name].append(
                    [number(chain, _read(f, colour)) if f and chain else 0 for f in self._choices[name].values()]
                )
        return list(svgs), {name: torch.tensor(table) for name, table in tables.items()}

    @cached_property
    def _pictures(self) -> dict[str, Tensor]:
        """The drawings.

        ``black`` uint8 (m, 4, h, w): with black for the colour, times opacity, and opacity; ``tint`` uint8 (m, h, w):
        how much of the colour there is; ``outlines`` uint8 (2, h, w): of the circle, and of who stands in it;
        ``boxes`` (m, 4): what holds all of a drawing, left, top, right and bottom.
        """
        black, tint = [], []
        for drawing in self._drawings[0]:
            dark = self._raster(drawing.replace(_COLOUR, "#000000"))
            light = self._raster(drawing.replace(_COLOUR, "#ffffff")) if _COLOUR in drawing else dark
            black.append(dark)
            tint.append((light - dark)[:3].mean(0))
        circle = Element(_SVG + "circle", {"cx": "132", "cy": "160", "r": "120"})
        above = Element(_SVG + "rect", {"x": "-9999", "y": "-9999", "width": "19998", "height": str(9999 + 160)})
        outlines = [self._raster(_text([], shapes))[3] for shapes in ([circle], [circle, above])]
        found = {"black": torch.stack(black), "tint": torch.stack(tint), "outlines": torch.stack(outlines)}
        return {
            **{name: (picture * 255).round().byte() for name, picture in found.items()},
            "boxes": torch.tensor([_box(picture[3]) for picture in found["black"]]),
        }

    def _raster(self, drawing: str) -> Tensor:
        """Draw what stands inside an SVG: float (4, h, w) in 0..1, red, green and blue times opacity, and opacity."""
        import resvg_py

        height, width = self.size
        left, top, across, down = _FRAMES[self.frame]
        scale = max(across / width, down / height)  # units a pixel: the frame is in the middle, and whole
        corner = left + (across - width * scale) / 2, top + (down - height * scale) / 2
        view = " ".join(str(x) for x in (*corner, width * scale, height * scale))
        svg = f'<svg xmlns="{_SVG[1:-1]}" width="{width}" height="{height}" viewBox="{view}">{drawing}</svg>'
        package, file, family = _FONT
        font = str(packaged(package, file))
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, font_files=[font], font_family=family)
        pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32) / 255
        colour, opacity = pixels.transpose(2, 0, 1)[:3], pixels.transpose(2, 0, 1)[3:]
        return torch.from_numpy(np.concatenate([colour * opacity, opacity]))


def _composed(pictures: dict[str, Tensor], layers: Tensor, colours: Tensor, behind: Tensor, circle: Tensor) -> Tensor:
    """Lay pictures over one another: uint8 (n, h, w, 3).

    ``layers`` (l, n), pictures from the back to the front, in ``colours`` (l, n, 3), in front of the colours ``behind``
    (n, 3), which fill the frame or, where ``circle`` (n,), a circle on white.
    """
    disc, body = (torch.where(circle[:, None, None], outline / 255, 1.0)[:, None] for outline in pictures["outlines"])
    image = torch.zeros((len(circle), 4, *disc.shape[2:]), device=circle.device)
    for layer, colour in zip(layers, colours, strict=True):
        rows = layer.nonzero().squeeze(1)  # the first drawing is empty
        if len(rows) == 0:
            continue
        drawn, where = torch.unique(layer[rows], return_inverse=True)
        left, top, right, bottom = pictures["boxes"][drawn].T.tolist()
        box = (..., slice(min(top), max(bottom)), slice(min(left), max(right)))
        black, tint = (pictures[name][drawn][box].float()[where] for name in ("black", "tint"))
        part = image[box][rows].mul_(1 - black[:, 3:] / 255).add_(black)
        part[:, :3].addcmul_(tint[:, None], colour[rows, :, None, None])
        image[box][rows] = part
    image *= body
    ground = 255 + disc * (255 * behind[:, :, None, None] - 255)
    return (image[:, :3] + (1 - image[:, 3:] / 255) * ground).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def _box(opacity: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is seen (h, w)."""
    down, across = ((opacity > 0).any(dim).nonzero().squeeze(1).tolist() or [0, -1] for dim in (1, 0))
    return across[0], down[0], across[-1] + 1, down[-1] + 1


# --- drawings


def _read(file: str, colour: str = "") -> Element:
    """The SVG of a part; what has the id ``colour`` is filled with the colour that varies."""
    import python_avatars

    root = ElementTree.parse(Path(python_avatars.__file__).parent / "avatar_parts" / f"{file}.svg").getroot()
    for element in root.iter():
        if element.get("fill") == "":  # is no colour, so that of the group holds
            del element.attrib["fill"]
        if colour and element.get("id") == colour:
            element.set("fill", _COLOUR)
    return root


def _graphic(name: str) -> Element:
    """The SVG of what is printed on a shirt: a picture, or a word."""
    if name not in _WORDS:
        root = _read(name)
        picture = next(e for e in root.iter() if (e.get("id") or "").startswith("Clothing/Graphic/"))
        picture.set("transform", "translate(77, 58)")
        return root
    root = _read("clothes/graphic/custom_text")
    for element in root.iter():
        if "font-family" in element.attrib:
            element.set("font-family", _FONT[2])
        if element.tag == _SVG + "tspan":
            element.text = name
    return root


def _path(root: Element, name: str) -> list[Element]:
    """The elements from the root to the one with this id; empty where there is none."""
    if root.get("id") == name:
        return [root]
    below = next((path for child in root if (path := _path(child, name))), [])
    return [root, *below] if below else []


def _shell(element: Element) -> Element:
    """The element without its children and its name."""
    return Element(element.tag, {name: value for name, value in element.attrib.items() if name != "id"})


def _text(groups: Sequence[Element], content: Iterable[Element]) -> str:
    """The SVG of some content inside groups, the outermost first."""
    inner = Element(_SVG + "g")
    inner.extend(content)
    for group in reversed(groups):
        outer = _shell(group)
        outer.append(inner)
        inner = outer
    return ElementTree.tostring(inner, encoding="unicode") if len(inner) else ""


def _split(element: Element, marks: Sequence[Element]) -> list[Element]:
    """Copies of an element with what stands before, between and behind the marks; definitions go with all."""
    copies = [_shell(element)]
    for child in element:
        if any(child is mark for mark in marks):
            copies.append(_shell(element))
        elif any(mark in child.iter() for mark in marks):
            first, *rest = _split(child, marks)
            copies[-1].append(first)
            for part in rest:
                copies.append(_shell(element))
                copies[-1].append(part)
        elif child.tag not in _SHARED:
            copies[-1].append(child)
    for copy in copies:
        copy[:0] = [child for child in element if child.tag in _SHARED]
    return copies


def _luma(images: Tensor) -> Tensor:
    """Colours (n, h, w, 3) -> their brightness (n, h, w), uint8, by ITU-R BT.601 in whole numbers."""
    red, green, blue = images.int().unbind(3)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)
