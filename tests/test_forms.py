"""benchmarks/forms.py: pen forms from the ways of pens on tablets, on files in UNIPEN's format written here."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from simpe.simulators import strokes

PATH = Path(__file__).parents[1] / "benchmarks" / "forms.py"


@pytest.fixture(scope="module")
def forms():
    spec = importlib.util.spec_from_file_location("forms", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, writer, ways, segments):
    """A writer's file: ways of the pen, each with a lift after it, and segments of them."""
    for part, text in (
        (f"include/{writer}.dat", lines(ways)),
        (f"data/1a/{writer}", f".INCLUDE {writer.upper()}.DAT\n" + "\n".join(segments)),
    ):
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def lines(ways):
    """Time comes first, then y, then x."""
    down = ("\n".join([".PEN_DOWN", *(f"0 {y} {x}" for x, y in way), ".PEN_UP", "0 999 999"]) for way in ways)
    return "\n".join([".COORD T Y X", *down])


def test_segments_are_cut_from_where_the_pen_is_down(forms, tmp_path):
    ways = [[(0, 0), (10, 20), (20, 40)], [(5, 5), (6, 6)], [(1, 2), (3, 4), (5, 6)]]
    segments = [
        '.SEGMENT CHARACTER 0 OK "1"',
        '.SEGMENT CHARACTER 0:1-0:2,2:0-2:1 OK "4"',
        '.SEGMENT CHARACTER 9 OK "2"',
    ]
    write(tmp_path, "aga/ann", ways, [*segments, '.SEGMENT WORD 0-2 OK "14"'])
    write(tmp_path, "tos/cut", ways, segments)  # a source whose segments are wrong
    found = forms.digits_of(tmp_path)
    assert [(label, [part.tolist() for part in parts]) for label, _, parts in found] == [
        (1, [[[0, 0], [10, 20], [20, 40]]]),
        (4, [[[10, 20], [20, 40]], [[1, 2], [3, 4]]]),
    ]


def test_a_form_is_the_mean_of_two_peoples(forms):
    def bar(x):
        return np.stack([np.linspace(x, 100 - x, 32), np.linspace(0, 100, 32)], 1)[None]

    def made(ways):
        return forms.pairs(ways, np.random.default_rng(0))

    (form,) = made([(bar(0), "ann"), (bar(10), "bob")])
    points = np.array([point.split(",") for point in form.split()], float)
    assert points[0].tolist() == [5, 0]
    assert points[-1].tolist() == [95, 100]
    np.testing.assert_allclose(points[:, 0], 5 + 0.9 * points[:, 1], atol=1)  # half-way between the two
    assert made([(bar(0), "ann"), (bar(10), "ann")]) == []  # one person's alone
    assert made([(bar(0), "ann"), (bar(40), "bob")]) == []  # not alike
    assert made([(bar(0), "ann"), (bar(0), "bob")]) == []  # the same way twice


def test_few_points_follow_a_way(forms):
    t = np.linspace(0, 2 * np.pi, 32)
    ring = np.stack([50 + 50 * np.sin(t), 50 - 50 * np.cos(t)], 1)
    kept = forms.simplified(ring)
    off = np.linalg.norm(ring[:, None] - forms.curve(ring[kept])[None], axis=2).min(1)
    assert len(kept) < 12
    assert off.max() < 4
    assert (
        np.linalg.norm(ring[:, None] - forms.curve(ring[kept[:-2]])[None], axis=2).min(1).max() > 4
    )  # not so with less


def test_corners_are_marked(forms):
    down, back = np.linspace(0, 100, 16), np.linspace(100, 40, 16)
    hook = np.stack([np.full(32, 50.0), np.concatenate([down, back])], 1)
    words = forms.text(hook[None]).split()
    assert words.count("/") == 1
    assert words[words.index("/") - 1] == "50,100"


def test_the_packaged_forms_are_a_hundred_a_digit():
    assert {character: len(own) for character, own in strokes._WRITTEN.items()} == dict.fromkeys("0123456789", 100)
