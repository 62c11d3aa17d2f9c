"""The digits simulator: rows stay apart, ink sits where it should, and its digits are digits."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.nn.functional import grid_sample, pad

from simpe.protocols import Simulator
from simpe.simulators import digits as module
from simpe.simulators import glyphs, strokes, typefaces
from simpe.simulators.digits import Digits


def draw(simulator, n, seed=0):
    p = simulator.space.sample(n, torch.Generator().manual_seed(seed))
    return {**p, "label": torch.arange(n) % len(simulator.classes)}


def rows(p, index):
    return {name: x[index] for name, x in p.items()}


def is_row_wise(render, p):
    """Does every row come out the same alone, in pieces, and in another order?"""
    whole = render(p)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    return (
        torch.equal(render(rows(p, order)), whole[order])
        and torch.equal(torch.cat([render(rows(p, part)) for part in torch.arange(len(whole)).split(7)]), whole)
        and all(torch.equal(render(rows(p, slice(i, i + 1)))[0], whole[i]) for i in range(0, len(whole), 13))
    )


def test_it_is_a_simulator_with_digits_as_classes():
    simulator = Digits()
    assert isinstance(simulator, Simulator)
    assert simulator.classes == tuple("0123456789")
    assert simulator.embedder(simulator.render(draw(simulator, 3))).shape[0] == 3


@pytest.mark.parametrize(("size", "margin"), [(28, 4 / 28), (8, 0.0), ((20, 32), 0.1), (64, 0.0)])
def test_rows_do_not_depend_on_the_batch(size, margin):
    simulator = Digits(size=size, margin=margin)
    assert is_row_wise(simulator.render, draw(simulator, 100))


def test_the_check_of_rows_can_fail():
    simulator = Digits()

    def positional(p):
        return simulator.render({**p, "face": p["face"] + torch.arange(len(p["face"]))})

    assert not is_row_wise(lambda p: simulator.render({**p, "pen": p["pen"] / p["pen"].mean()}), draw(simulator, 50))
    assert not is_row_wise(positional, draw(simulator, 50))
    assert is_row_wise(simulator.render, draw(simulator, 50))


@pytest.mark.parametrize("size", [28, 8, (20, 32)])
def test_shape_dtype_and_determinism(size):
    simulator = Digits(size=size)
    p = draw(simulator, 20)
    images = simulator.render(p)
    assert images.dtype == torch.uint8
    assert images.shape == (20, *(size if isinstance(size, tuple) else (size, size)))
    assert torch.equal(images, Digits(size=size).render(p))
    assert simulator.render(rows(p, slice(0, 0))).shape == (0, *images.shape[1:])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), margin=st.sampled_from([0.0, 0.1, 4 / 28, 0.3]))
def test_every_digit_has_ink_in_the_frame_and_is_centred_by_mass(seed, margin):
    simulator = Digits(margin=margin)
    images = simulator.render(draw(simulator, 100, seed)).double()
    assert (images.amax((1, 2)) >= 100).all()
    assert (images.sum((1, 2)) / 255 > 28**2 * (1 - 2 * margin) ** 2 * 0.01).all()
    pixel = torch.arange(28) - 14
    for axis in (1, 2):
        mass = images.sum(axis)
        off = (mass * pixel).sum(1) / mass.sum(1)
        # Whole pixels leave the mass half of one off the centre. It is further off only where ink would leave the frame
        # otherwise: it touches the other side. (Where a glyph is bent most, its reach is known to a few pixels only.)
        edge = torch.where(off < 0, mass[:, -2:].amax(1), mass[:, :2].amax(1))
        assert ((off.abs() < 1.2) | (edge > 0)).double().mean() > 0.95
        if margin >= 0.1:  # with room to move
            assert off.abs().mean() < 0.38  # a quarter by rounding


def off_centre(images):
    """How far the centre of mass, and that of the ink's extent, are from the middle of the frame: (n, 2), in pixels."""
    masses, boxes = [], []
    for axis in (1, 2):
        line = images.double().sum(axis)
        pixel = torch.arange(line.shape[1]).double() + 0.5 - line.shape[1] / 2
        masses.append((line * pixel).sum(1) / line.sum(1))
        inked = [torch.where(line > 0, pixel, end) for end in (torch.inf, -torch.inf)]
        boxes.append((inked[0].amin(1) + inked[1].amax(1)) / 2)
    return torch.stack(masses, 1), torch.stack(boxes, 1)


def share(inside):
    return inside.all(1).double().mean().item()


def is_centred(images, by, middle):
    """To a pixel, for nearly all."""
    return share((off_centre(images)[by] - middle).abs() < (0.6, 1.1)[by]) > 0.95


@pytest.mark.parametrize(("size", "middle"), [(28, 0.5), (29, 0.0)])
def test_mass_is_centred_on_the_middle_pixel_or_the_box_in_the_frame(size, middle):
    """At size 28 the centre of mass lies between 14 and 15 pixels from the edge, as MNIST's does."""
    n = 300
    p = draw(Digits(), n) | {"warp": torch.zeros(n, 18)}
    by_mass, by_box = (Digits(size=size, centre=way).render(p) for way in ("mass", "box"))
    assert is_centred(by_mass, 0, middle)
    assert is_centred(by_box, 1, 0)
    assert not is_centred(by_mass, 1, 0)
    assert not is_centred(by_box, 0, middle)
    assert not is_centred(by_mass, 0, 0.5 - middle)  # half a pixel makes the difference


@pytest.mark.parametrize("margin", [0.0, 0.1, 4 / 28])
def test_ink_fits_a_box_of_whole_pixels(margin):
    """The larger side of the ink begins and ends between two pixels; the smaller one is in the middle of such a box."""
    simulator, n = Digits(margin=margin), 400
    box = round(28 * (1 - 2 * margin))
    p = draw(simulator, n) | {
        "softness": torch.full((n,), 0.8),
        "pen": torch.full((n,), 0.2),
        "warp": torch.zeros(n, 18),
    }
    images = simulator.render(p).double()
    lines = torch.stack([images.amax(2), images.amax(1)], 1)  # (n, 2, 28)
    bright = lines >= 64  # a side of the box between two pixels leaves one of them half bright
    sides = bright.sum(2)
    larger = sides.argmax(1)
    assert (sides.amax(1) == box).double().mean() > 0.8
    first, last = bright.double().argmax(2), 27 - bright.flip(2).double().argmax(2)
    tall = torch.arange(n), larger
    before = torch.where(first[tall] > 0, lines[(*tall, (first[tall] - 1).clamp(min=0))], 0)
    assert (before == 0).double().mean() > 0.8
    # Of the smaller side the box leaves as much free before as after. (Were it the ink that begins where a pixel does,
    # the ends would differ by 39 to 51 in the median.)
    short = torch.arange(n), 1 - larger
    ends = [lines[(*short, i[short])] for i in (first, last)]
    assert (ends[0] - ends[1]).abs().median() < 15


@pytest.mark.parametrize("margin", [0.0, 4 / 28])
def test_the_larger_side_fills_the_frame_without_its_margins(margin):
    simulator = Digits(margin=margin)
    ink = simulator.render(draw(simulator, 400)) >= 128
    height, width = ink.any(2).sum(1), ink.any(1).sum(1)
    side = torch.maximum(height, width).double() / (28 * (1 - 2 * margin))
    assert side.median().item() == pytest.approx(1, abs=0.051)
    assert (side > 0.75).double().mean() > 0.95


def faint(images):
    """Where even the thickest ink of an image is grey."""
    return images.amax((1, 2)) < 255


def test_the_thickest_ink_is_black_however_thin_the_pen_and_soft_its_edge():
    simulator, n = Digits(), 200
    p = draw(simulator, n) | {"pen": torch.full((n,), 0.07), "softness": torch.full((n,), 2.0)}
    images = simulator.render(p)
    assert not faint(images).any()
    assert faint((images.double() * 0.9).round()).all()  # what the check is for
    # Small frames are averages of larger ones, as a scanner's are: there a thin stroke is grey.
    assert faint(Digits(size=8).render(p)).double().mean() > 0.5


def test_softness_is_the_width_of_an_edge():
    simulator, n = Digits(size=64), 100
    p = draw(simulator, n) | {"pen": torch.full((n,), 0.2)}
    sharp, soft = (simulator.render(p | {"softness": torch.full((n,), w)}) for w in (0.4, 2.0))
    grey = [((images > 0) & (images < 255)).double().mean() for images in (sharp, soft)]
    assert grey[1] > 1.5 * grey[0]


def test_every_form_is_text_that_a_pen_can_follow():
    for character, forms in strokes.STROKES.items():
        assert len(set(forms)) == len(forms), f"a form of {character} stands twice"
        for form in forms:
            pieces = [piece for lift in form.split(";") for piece in glyphs._pieces(lift)]
            assert all(len(piece) > 1 for piece in pieces), f"{character}: a pen that does not move, in {form!r}"
            numbers = [int(v) for piece in pieces for point in piece for v in point.split(",")]
            assert min(numbers) >= 0
            assert max(numbers) <= 100
            assert max(numbers) - min(numbers) > 80  # they fill the page, so that points move alike


def recognised(simulator, forms):
    """The share of forms (by class) whose plain drawing is nearest to one of their own class among the others'."""
    vectors, labels = [], []
    for label, n in enumerate(forms):
        plain = {"aspect": torch.ones(n), "softness": torch.ones(n)}
        p = plain | {"pen": torch.full((n,), 0.12), "slant": torch.zeros(n), "rotation": torch.zeros(n)}
        p |= {"warp": torch.zeros(n, 18), "face": torch.arange(n), "label": torch.full((n,), label)}
        p |= {"points": torch.zeros(n, simulator.space["points"].size)}
        vectors.append(simulator.embedder(simulator.render(p)))
        labels += [label] * n
    apart = torch.cdist(torch.cat(vectors), torch.cat(vectors)).fill_diagonal_(torch.inf)
    label = torch.tensor(labels)
    right = (label[apart.argmin(1)] == label).double()
    return [right[label == i].mean().item() for i in range(len(forms))]


def test_forms_look_like_their_digit(monkeypatch):
    """A fragment of a digit, or another digit, is nearest to the forms of another class."""
    forms = [len(strokes.STROKES[c]) for c in "0123456789"]
    assert min(recognised(Digits(), forms)) > 0.9
    bars = strokes.STROKES["1"][:20]  # as 4s whose first stroke is missing
    monkeypatch.setattr(glyphs, "STROKES", strokes.STROKES | {"4": (*strokes.STROKES["4"][: -len(bars)], *bars)})
    monkeypatch.setattr(module, "atlas", lru_cache(glyphs.atlas.__wrapped__))
    assert recognised(Digits(), forms)[4] < 0.9


def test_a_thicker_pen_draws_more_and_keeps_its_width_when_stretched():
    simulator = Digits(size=64)
    p = draw(simulator, 200) | {"face": torch.zeros(200, dtype=torch.long), "warp": torch.zeros(200, 18)}
    p["points"] = torch.zeros(200, simulator.space["points"].size)
    thin, thick = (simulator.render(p | {"pen": torch.full((200,), w)}).double().sum() for w in (0.08, 0.2))
    assert thick > 1.7 * thin
    upright = p | {"label": torch.ones(200, dtype=torch.long), "slant": torch.zeros(200), "rotation": torch.zeros(200)}
    bars = simulator.render(upright | {"pen": torch.full((200,), 0.15)}).double()
    width = bars[:, 32].sum(1) / 255  # the first face of 1 is a bar; aspect varies
    assert width.max() - width.min() < 1
    assert width.mean().item() == pytest.approx(0.15 * 2 * 64 * (1 - 8 / 28) / 2.3, abs=0.5)


def test_depths_on_the_page_are_distances_there_up_to_the_middle_of_a_stroke():
    """A straight stroke on a page that is turned, slanted and stretched, against the distance to a line.

    Depths over the slope of their own grid, which falls to 0 in the middle of a stroke, are wrong by more.
    """
    n, side = 60, 40
    p = draw(Digits(), n, seed=3) | {"warp": torch.zeros(n, 18)}
    way = torch.linspace(0, 2 * np.pi, n + 1)[:-1]
    way = torch.stack([way.cos(), way.sin()], 1)
    fields = torch.stack([glyphs._field_of_dots(torch.linspace(-1, 1, 300)[:, None] * own) for own in way])
    found = module._page(p, fields, side)

    there = module._bent_grid(p, side)  # a linear map of the page; so are its inverse and the line
    points = torch.stack(torch.meshgrid(*[module._centres(side, way.device)] * 2, indexing="xy"), -1).reshape(-1, 2)
    linear = torch.linalg.lstsq(points.expand(n, -1, 2), there.flatten(2).transpose(1, 2)).solution.transpose(1, 2)
    line = torch.linalg.solve(linear, way / way.abs().amax(1, keepdim=True))
    line = line / line.norm(dim=1, keepdim=True)
    x, y = (points * module._PAGE).T
    expected = -(x * line[:, 1:] - y * line[:, :1]).abs().reshape(n, side, side)
    inside = there.abs().amax(1) < 0.5 / module._PAGE
    near = inside & (expected > -0.2)
    assert (found - expected)[near].abs().max() < 0.03
    assert (found - expected)[near].abs().mean() < 0.006


def test_the_bent_grid_is_the_linear_map_and_its_bezier_patch():
    """Against the textbook formulas, in float64, point by point."""
    n, side = 5, 9
    p = {name: x.double() for name, x in draw(Digits(), n).items()}
    got = module._bent_grid(p, side)
    t = (np.arange(side) + 0.5) / side
    bernstein = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    for i in range(n):
        angle, slant, aspect = (float(p[name][i]) for name in ("rotation", "slant", "aspect"))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = np.diag([1 / aspect, 1]) @ np.array([[1, slant], [0, 1]]) @ turn
        x, y = np.meshgrid(2 * t - 1, 2 * t - 1)
        bend = -module._PAGE * np.einsum("cji,jy,ix->yxc", p["warp"][i].reshape(2, 3, 3).numpy(), bernstein, bernstein)
        expected = np.stack([x, y], -1) @ linear.T + bend
        np.testing.assert_allclose(got[i].permute(1, 2, 0).numpy(), expected, atol=2e-4)


def test_fields_are_distances():
    bar = glyphs._field_of_dots(torch.stack([torch.zeros(200), torch.linspace(0, 10, 200)], 1))
    disc = np.hypot(*np.mgrid[-50.0:51, -50.0:51]) <= 50.5
    points = torch.tensor([[[[0.5, 0.0], [0.0, 0.9], [1.0, 0.0]]]]) / glyphs.REACH
    read = [
        grid_sample(f[None, None], points, align_corners=False)[0, 0, 0] for f in (bar, glyphs._field_of_mask(disc))
    ]
    torch.testing.assert_close(read[0], torch.tensor([-0.5, 0.0, -1.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(read[1], torch.tensor([0.5, 0.1, 0.0]), atol=0.03, rtol=0)


def still(p):
    """The same, but that no control point moves and nothing is bent."""
    return p | {name: torch.zeros_like(p[name]) for name in ("points", "warp")}


def ways(simulator, p):
    """Dots along the ways of forms, densely, in image pixels from the middle of the box; by NumPy, form by form."""
    faces, box = simulator._atlas(torch.device("cpu")), 20
    for i in range(len(p["label"])):
        form = faces.first_form[p["label"][i]] + p["face"][i]
        control = (faces.control[form] + p["points"][i].reshape(-1, 2)).double().numpy()
        dots = (control[faces.near[form]] * faces.weight[form].double().numpy()[:, :, None]).sum(1)
        t = (dots + 1) / 2
        bend = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # (3, dots, 2)
        dots = dots + np.einsum("crk,rd,kd->dc", p["warp"][i].reshape(2, 3, 3).double(), bend[..., 1], bend[..., 0])
        angle, slant, aspect, pen = (float(p[name][i]) for name in ("rotation", "slant", "aspect", "pen"))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        dots = dots @ (turn @ np.array([[aspect, -slant], [0, 1]])).T
        low, high = dots.min(0) - pen, dots.max(0) + pen
        zoom = box / (high - low).max()
        dots, joined = (dots - (low + high) / 2) * zoom, faces.joined[form].bool().numpy()
        spans = [np.linspace(dots[j], dots[j + 1], 30) if joined[j] else dots[j : j + 1] for j in range(len(dots) - 1)]
        yield np.concatenate([*spans, dots[-1:]]), pen * zoom


def off_by(simulator, p):
    """How much too deep each pixel near an edge is, against brute force with thirty times the dots, in float64."""
    faces = simulator._atlas(torch.device("cpu"))
    found = module._written(faces, p, p["face"], (20, 20), 1)[0].double()
    axis = np.arange(22) - 10.5
    page = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    depths = [pen - np.linalg.norm(page[:, None] - way, axis=2).min(1) for way, pen in ways(simulator, p)]
    expected = torch.from_numpy(np.stack(depths)).reshape(found.shape)
    return (found - expected)[expected.abs() < 1]


def test_a_pen_is_as_wide_as_it_should_be_all_along_its_way(monkeypatch):
    simulator = Digits()
    p = draw(simulator, 200, seed=4)
    p["face"] = p["face"] % simulator._atlas(torch.device("cpu")).forms[p["label"]]
    off = off_by(simulator, p)
    assert off.abs().mean() < 0.025
    assert off.abs().quantile(0.99) < 0.25
    assert off.mean().abs() < 0.005
    monkeypatch.setattr(module, "pad", lambda gap, ends: torch.zeros_like(pad(gap, ends)))
    assert off_by(simulator, p).mean() < -0.015  # between two dots the pen would be thinner


def test_dots_lie_on_the_spline_and_meet_where_names_do():
    """Against Catmull and Rom's matrix; a closed way has no end, and a pen that is lifted leaves a gap."""
    form = glyphs._form("0,0 50,50 / 100,0 ; 50,50 50,100")
    dots = (form.control[form.near] * form.weight[:, :, None]).sum(1)
    assert dots.shape == (glyphs.DOTS, 2)
    assert (form.joined == 0).sum() == 3  # two straight pieces that meet in a corner, and one after the lift
    assert len(form.control) == 4  # 50,50 is one point, named twice
    torch.testing.assert_close(dots.amax(0), torch.ones(2))
    torch.testing.assert_close(dots.amin(0), -torch.ones(2))
    torch.testing.assert_close(form.weight.sum(1), torch.ones(glyphs.DOTS))

    matrix = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    names = [(0, 0), (30, 80), (100, 100), (80, 10), (0, 0)]
    loop = glyphs._form(" ".join(f"{x},{y}" for x, y in names))
    found = (loop.control[loop.near] * loop.weight[:, :, None]).sum(1).double().numpy()
    closed = np.array([names[-2], *names, names[1]], dtype=float)
    t = np.linspace(0, 1, 200)[:, None] ** np.arange(4)
    curve = np.concatenate([t @ matrix @ closed[i : i + 4] for i in range(4)])
    middle, half = (curve.max(0) + curve.min(0)) / 2, (curve.max(0) - curve.min(0)).max() / 2
    apart = np.sqrt((((curve - middle) / half)[None] - found[:, None]) ** 2 @ np.ones(2)).min(1)
    assert apart.max() < 0.02
    open_ends = np.array([names[0], *names, names[-1]], dtype=float)  # what it would be were it not closed
    other = t @ matrix @ open_ends[:4]
    assert np.sqrt((((other - middle) / half)[:, None] - found) ** 2 @ np.ones(2)).min(1).max() > 0.02


def test_control_points_move_their_part_of_the_form():
    """One point of a bar's end moves that end alone; what does not belong to a form changes nothing."""
    simulator = Digits(shapes="strokes")
    p = still(rows(draw(simulator, 20), slice(1, 2))) | {"face": torch.zeros(1, dtype=torch.long)}  # a 1: "50,0 50,100"
    plain = simulator.render(p)
    unused = p["points"].clone()
    unused[:, 4:] = 0.2  # the bar has two points
    assert torch.equal(simulator.render(p | {"points": unused}), plain)
    moved = p["points"].clone()
    moved[:, 0] = 0.2
    assert not torch.equal(simulator.render(p | {"points": moved}), plain)
    assert not torch.equal(simulator.render(p | {"points": -moved}), simulator.render(p | {"points": moved}))


def test_other_characters_and_faces_of_ones_own(tmp_path):
    letters = Digits(classes="AbQ&")
    assert (letters.render(draw(letters, 40)).amax((1, 2)) > 100).all()
    (tmp_path / "own.ttf").write_bytes(typefaces.packaged("kalam", "Kalam-Light.ttf").read_bytes())
    more = Digits(classes="AbQ&", fonts=[tmp_path])
    assert len(more.space["face"]) == len(letters.space["face"]) + 1


def test_shapes_are_of_one_kind_or_of_both():
    both, faces, strokes = (Digits(shapes=shapes) for shapes in ("all", "typefaces", "strokes"))
    counts = [digits._atlas(torch.device("cpu")).count for digits in (both, faces, strokes)]
    assert torch.equal(counts[0], counts[1] + counts[2])
    assert {source["package"] for source in strokes.public_inputs()["typefaces"]} == {"Hershey-Fonts", "simpe"}
    assert "Hershey-Fonts" not in {source["package"] for source in faces.public_inputs()["typefaces"]}
    with pytest.raises(ValueError, match="shapes must be one of all, typefaces, strokes"):
        Digits(shapes="outlines")
    with pytest.raises(ValueError, match="centre must be one of mass, box"):
        Digits(centre="middle")


def test_a_system_font_is_found_by_its_file_name(tmp_path, monkeypatch):
    (tmp_path / "fonts").mkdir()
    own = tmp_path / "fonts" / "OfThisSystem.ttf"
    own.write_bytes(typefaces.packaged("kalam", "Kalam-Light.ttf").read_bytes())
    with pytest.raises(FileNotFoundError, match="OfThisSystem"):
        typefaces.typefaces([Path("OfThisSystem.ttf")])
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    assert typefaces.typefaces([Path("OfThisSystem.ttf")])[-1].path == own


def test_public_inputs_name_every_font_and_are_json():
    inputs = Digits(size=8, margin=0).public_inputs()
    assert json.loads(json.dumps(inputs)) == inputs
    assert inputs["size"] == [8, 8]
    assert {"fontpkg-caveat", "Hershey-Fonts"} <= {face["package"] for face in inputs["typefaces"]}
    assert all(len(face["sha256"]) == 64 and face["version"] for face in inputs["typefaces"])


@pytest.mark.parametrize(("shapes", "named"), [("all", True), ("strokes", True), ("typefaces", False)])
def test_public_inputs_name_the_pen_forms_where_they_are_used(shapes, named):
    files = {face["file"] for face in Digits(shapes=shapes).public_inputs()["typefaces"]}
    assert ({"strokes.py", "tablets.txt"} <= files) == named


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 2}, ValueError, "at least 4"),
        ({"margin": 0.5}, ValueError, "margin"),
        ({"classes": ["10"]}, ValueError, "single characters"),
        ({"classes": "11"}, ValueError, "different"),
        ({"fonts": ["no-such-folder"]}, FileNotFoundError, "no-such-folder"),
        ({"classes": "\u4e00"}, ValueError, "no face can draw"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        _ = Digits(**options).space
    assert "\n" not in str(caught.value)


def test_a_missing_typeface_names_its_package():
    with pytest.raises(ImportError, match="pip install fontpkg-no-such-face"):
        typefaces.packaged("no-such-face", "x.ttf")


def test_its_digits_are_recognised_as_real_ones():
    """1-NN trained on 2,000 draws, tested on scikit-learn's 1,797 real digits: 0.83 was measured; chance is 0.10."""
    simulator = Digits(size=8, margin=0)
    p = draw(simulator, 2000)
    real = load_digits()
    images = torch.from_numpy((real.images * 255 / 16).round().astype(np.uint8))
    train, test = simulator.embedder(simulator.render(p)), simulator.embedder(images)
    guess = p["label"][torch.cdist(test, train).argmin(1)]
    assert (guess == torch.from_numpy(real.target)).double().mean() > 0.75
