"""Text drawn with Pillow: the simulator that Sim-PE used for MNIST (Lin et al., arXiv 2502.05505), for comparison.

Its parameters, their ranges and their variation are those of the authors' code (github.com/microsoft/DPSDA,
``pe/api/image/draw_text_api.py`` and ``example/image/simulator/mnist_text_render.py``). There are only so many
pictures before the rotation, and only 61 rotations, so both are tabulated once; a sample is then looked up, which gives
Pillow's pixels exactly, in every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from simpe.embedders.images import PixelsAndGradients
from simpe.scheduling import Strategy
from simpe.simulators.typefaces import Typeface, sources, typefaces
from simpe.space import Categorical, Integer, ParameterSpace, Params

_SIZE = 28
_FONT_SIZES = range(10, 30)  # pixels
_STROKES = range(3)  # pixels added to each side of an outline
_ROTATIONS = range(-30, 31)  # degrees, anticlockwise

# The published variation at each of the four steps, at strengths 0.8, 0.4, 0.2 and 0.1. In front stands no variation,
# behind what the published lists begin with: the authors' code reads them from their second entry on.
_STRENGTH = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
_NEW_FONT = (0.0, 0.0, 0.2, 0.4, 0.8, 1.0)  # probability
_MOVES = {  # the farthest move of a number
    "font_size": (0, 2, 3, 4, 5, 6),
    "rotation": (0, 3, 5, 7, 9, 11),
    "stroke_width": (0, 0, 0, 1, 1, 1),
}


class DrawText:
    """Digits as Sim-PE draws them: font, text, font size, stroke width and rotation; the label is not looked at.

    >>> simulator = DrawText()
    >>> private = simpe.PrivateData(images, labels, budget=simpe.Budget(epsilon=1, delta=1e-5))
    >>> release = simpe.evolve(simulator, None, private, samples=60_000, steps=4)

    Samples are uint8 (n, 28, 28), white on black: the text in the middle of the frame as far as Pillow's text box
    goes, which counts the empty space above the digits; then turned about the middle of the frame. ``classes``: the
    texts, one a class. ``fonts``: font files, or folders of them, to add to the typefaces of
    :class:`simpe.simulators.digits.Digits`; variable ones are drawn in their default cut. The authors used some 3,500
    files of Google Fonts; each takes 0.5 MB here, and a tenth of a second.

    ``strategy`` is the published schedule: as many candidates as samples are released, in every class and step
    (with samples=60_000, 60,000 of them), all resampled in proportion to their votes and all replaced by their
    variations; an embedding that is the mean over 8 variations; the variation of each step as published. Four steps are
    the default wherever the budget can bear them. It differs in three points:

    - The published threshold is one vote, ours is in standard deviations of the noise. 0.13 is one vote at
      epsilon 1, delta 1e-5 and 4 steps; for another budget give
      ``replace(DrawText.strategy, threshold=1 / simpe.schedule(budget, 4).vote_noise[0])``.
    - Candidates are resampled systematically, which adds less chance than independent draws do.
    - The number of samples a class follows noisy counts; the authors take the private class sizes as public.

    The ``embedder`` is ours; the authors embedded with an Inception network trained on ImageNet.

    Raises ImportError (with the package to install) when a typeface is missing, FileNotFoundError for a font that does
    not exist, ValueError for no or repeated classes.
    """

    size = (_SIZE, _SIZE)
    strategy = Strategy(elitist=False, start=1, places=1_000_000, strength=0.8, decay=0.5, threshold=0.13, lookahead=8)

    def __init__(self, classes: Sequence[str] = "0123456789", fonts: Sequence[str | Path] = ()):
        self.classes = tuple(classes)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must be different texts, such as '0123456789'")
        self._fonts = tuple(Path(font) for font in fonts)
        self.embedder = PixelsAndGradients()

    @cached_property
    def space(self) -> ParameterSpace:
        """What varies from sample to sample; lengths in pixels, the rotation in degrees, anticlockwise."""
        return ParameterSpace(
            font=Categorical(len(self._files)),
            text=Categorical(self.classes),
            font_size=Integer(_FONT_SIZES[0], _FONT_SIZES[-1]),
            stroke_width=Integer(_STROKES[0], _STROKES[-1]),
            rotation=Integer(_ROTATIONS[0], _ROTATIONS[-1]),
        )

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation as published, linear between the strengths of its steps: a new font with some probability, numbers
        moved by whole steps, uniform up to a farthest one, and kept in range; the text stays."""
        n, device = len(p["font"]), p["font"].device
        renew = torch.rand(n, generator=generator) < np.interp(strength, _STRENGTH, _NEW_FONT)
        fresh = self.space["font"].sample(n, generator)
        varied = {**p, "font": torch.where(renew.to(device), fresh.to(device), p["font"])}
        for name, moves in _MOVES.items():
            farthest = round(float(np.interp(strength, _STRENGTH, moves)))
            move = torch.randint(-farthest, farthest + 1, (n,), generator=generator)
            limits = self.space[name]
            assert isinstance(limits, Integer)
            varied[name] = (p[name] + move.to(device)).clamp(limits.low, limits.high)
        return varied

    def render(self, p: Params) -> Tensor:
        """Draw n rows: parameters -> uint8 (n, 28, 28), bright on black, on the device of the parameters.

        Deterministic and row by row, bit for bit.
        """
        device = p["font"].device
        upright = _upright(self._files, self.classes).to(device)
        picture = upright[p["font"], p["text"], p["font_size"] - _FONT_SIZES[0], p["stroke_width"] - _STROKES[0]]
        turned = picture.gather(1, _turns().to(device)[p["rotation"] - _ROTATIONS[0]])
        return turned.reshape(-1, _SIZE, _SIZE)

    def public_inputs(self) -> dict[str, Any]:
        """What the samples are made from: the texts, and every font file with its version and SHA-256."""
        return {
            "simulator": "drawtext",
            "classes": list(self.classes),
            "typefaces": [s._asdict() for s in sources(Typeface(path, None) for path in self._files)],
        }

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(face.path for face in typefaces(self._fonts)))


@lru_cache(maxsize=4)
def _upright(files: tuple[Path, ...], texts: tuple[str, ...]) -> Tensor:
    """Every picture before it is turned: uint8 (files, texts, font sizes, stroke widths, 1 + pixels), black first."""
    pictures = np.zeros((len(files), len(texts), len(_FONT_SIZES), len(_STROKES), 1 + _SIZE**2), dtype=np.uint8)
    for i, path in enumerate(files):
        for k, size in enumerate(_FONT_SIZES):
            font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
            for j, text in enumerate(texts):
                for m, stroke in enumerate(_STROKES):
                    pictures[i, j, k, m, 1:] = _drawn(font, text, stroke).ravel()
    return torch.from_numpy(pictures)


def _drawn(font: ImageFont.FreeTypeFont, text: str, stroke: int) -> np.ndarray:
    image = Image.new("L", (_SIZE, _SIZE))
    draw = ImageDraw.Draw(image)
    _, _, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=stroke)
    corner = (_SIZE - right) / 2, (_SIZE - bottom) / 2
    draw.text(corner, text, font=font, fill=255, stroke_width=stroke, stroke_fill=255)
    return np.asarray(image)


@lru_cache(maxsize=1)
def _turns() -> Tensor:
    """Where each pixel of a turned picture comes from: int64 (rotations, pixels), from 1; 0 is outside the frame."""
    numbers = Image.fromarray(np.arange(1, _SIZE**2 + 1, dtype=np.int32).reshape(_SIZE, _SIZE))
    return torch.from_numpy(np.stack([np.asarray(numbers.rotate(a)).ravel() for a in _ROTATIONS]).astype(np.int64))
