"""Avatars: put together from rasterised parts, they must look as the package's own whole drawing does."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import simpe
from simpe.simulators import avatars as module
from simpe.simulators.avatars import Avatars

parts = pytest.importorskip("python_avatars")
resvg = pytest.importorskip("resvg_py")

SIZE = 66, 70  # whole avatars are 264 x 280, so that a pixel is four units


@pytest.fixture(scope="module")
def avatars():
    return Avatars((70, 66))


def draw(avatars, n, seed=0):
    p = avatars.space.sample(n, torch.Generator().manual_seed(seed))
    return p, avatars.render({**p, "label": torch.zeros(n, dtype=torch.int64)})


def whole(avatars, p, i):
    """The same avatar by the package, drawn in one go; the background as here."""
    c = {name: list(avatars.space[name].choices)[int(value[i])] for name, value in p.items()}
    hair = {x.name.lower(): x for x in parts.HairType}
    top = parts.HatType.HAT if c["top"] == "hat_hattype" else hair.get(c["top"])
    graphic = c["shirt_graphic"]
    word = graphic.removeprefix("the word ") if graphic.startswith("the word ") else None
    svg = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=top or parts.HatType[c["top"].upper()],
        hat_color=parts.ClothingColor[c["hat_color"].upper()],
        eyebrows=parts.EyebrowType[c["eyebrows"].upper()],
        eyes=parts.EyeType[c["eyes"].upper()],
        nose=parts.NoseType[c["nose"].upper()],
        mouth=parts.MouthType[c["mouth"].upper()],
        facial_hair=parts.FacialHairType[c["facial_hair"].upper()],
        skin_color=parts.SkinColor[c["skin_color"].upper()],
        hair_color=parts.HairColor[c["hair_color"].upper()],
        facial_hair_color=parts.HairColor[c["facial_hair_color"].upper()],
        accessory=parts.AccessoryType[c["accessory"].upper()],
        clothing=parts.ClothingType[c["clothing"].upper()],
        clothing_color=parts.ClothingColor[c["clothing_color"].upper()],
        shirt_graphic=parts.ClothingGraphic["CUSTOM_TEXT" if word else graphic.upper()],
        shirt_text=word or "",
    ).render()
    svg = svg.replace(' fill=""', "").replace("Avenir-Heavy, Avenir", module._FONT[2])
    font = str(module.packaged(*module._FONT[:2]))
    png = resvg.svg_to_bytes(svg_string=svg, width=SIZE[0], height=SIZE[1], skip_system_fonts=True, font_files=[font])
    drawn = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float64) / 255
    shade = np.array(Image.new("RGB", (1, 1), parts.BackgroundColor[c["background_color"].upper()].value))[0, 0] / 255
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] * 4 + 2.0
    inside = np.hypot(x - 132, y - 160) < 120
    if c["style"] == "circle":
        shade = np.where(inside[..., None], shade, 1.0)
        drawn[~inside & (y > 160)] = 0
    return 255 * (drawn[..., :3] * drawn[..., 3:] + (1 - drawn[..., 3:]) * shade), np.abs(
        np.hypot(x - 132, y - 160) - 120
    ) < 6


def differences(avatars, p, images):
    """Mean difference of each avatar in grey levels, and the largest, off the rim of the circle."""
    found = []
    for i, image in enumerate(images.numpy().astype(np.float64)):
        wanted, rim = whole(avatars, p, i)
        found.append(np.abs(image - wanted)[~rim])
    return np.array([(x.mean(), x.max()) for x in found])


def comparable(p):
    """The rows whose glasses the package draws whole: it loses the gradient of these two (it renames its id alone)."""
    names = Avatars().space["accessory"].choices
    gradient = torch.tensor([names.index(name) for name in ("sunglasses", "wayfarers")])
    return ~torch.isin(p["accessory"], gradient)


def test_an_avatar_of_parts_is_the_whole_drawing(avatars):
    p, images = draw(avatars, 60)
    same = comparable(p)
    found = differences(avatars, {name: value[same] for name, value in p.items()}, images[same])
    assert len(found) > 40
    assert found[:, 0].max() < 0.6
    assert found[:, 1].max() < 30  # at edges that a circle or a mask cuts


@pytest.mark.parametrize("name", ["top", "hair_color", "mouth", "skin_color", "clothing", "accessory", "facial_hair"])
def test_that_comparison_can_fail(avatars, name):
    p, images = draw(avatars, 12)
    wrong = {**p, name: (p[name] + 1) % len(avatars.space[name])}
    assert (differences(avatars, wrong, images)[:, 1] > 60).any()


def test_all_that_the_package_has_is_drawn(avatars):
    tables = avatars._drawings[1]
    assert tables["top"].any(1).all()
    assert (tables["mouth"] > 0).all()
    assert (tables["clothing"][1:] > 0).all()
    assert (tables["facial_hair"] > 0).any(1).sum() >= 50  # of 61 tops: some hide the chin
    assert (tables["accessory"] > 0).any(1).sum() >= 50
    assert avatars._pictures["boxes"][0].tolist() == [0, 0, 0, 0]
    assert (avatars._pictures["boxes"][1:, 2] > 0).double().mean() > 0.8  # some pieces of a top hold nothing


@pytest.mark.parametrize("options", [{"size": 32}, {"size": (20, 31), "frame": "face", "grey": True}])
def test_it_passes_the_checks(options):
    avatars = Avatars(**options)
    quiet = {"parameters"} if "frame" in options else set()  # clothes are out of the frame of a face
    assert [str(f) for f in simpe.check_simulator(avatars) if not f.ok and f.check not in quiet] == []


def test_every_choice_shows(avatars):
    """Each colour and part changes some avatar of many."""
    p, images = draw(avatars, 300)
    for name in avatars.space:
        other = {**p, name: (p[name] + 1) % len(avatars.space[name]), "label": torch.zeros(300, dtype=torch.int64)}
        assert (avatars.render(other) != images).flatten(1).any(1).any(), name


def test_sizes_keep_the_shape_of_the_head():
    p = {name: value[:4] for name, value in draw(Avatars(), 4)[0].items()} | {
        "label": torch.zeros(4, dtype=torch.int64)
    }
    wide, square = Avatars((40, 80)).render(p), Avatars(40).render(p)
    assert (wide[:, :, 20:60].int() - square.int()).abs().max() <= 16  # edges
    assert Avatars(33, grey=True).render(p).shape == (4, 33, 33)
    face = Avatars(40, "face").render(p)
    assert face.shape == (4, 40, 40, 3)
    assert not torch.equal(face, square)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 4}, "8 to 512"), ({"size": (9, 900)}, "8 to 512"), ({"frame": "feet"}, "whole, face")],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(simpe.InputError, match=message):
        Avatars(**options)


@pytest.mark.parametrize("name", ["python_avatars", "resvg_py"])
def test_a_missing_package_names_the_extra_in_one_line(monkeypatch, name):
    monkeypatch.setattr(module.util, "find_spec", lambda n, real=module.util.find_spec: None if n == name else real(n))
    with pytest.raises(simpe.InputError, match=rf"{name}: pip install 'simpe\[faces\]'"):
        Avatars()


def test_public_inputs_name_the_packages():
    assert set(Avatars().public_inputs()["packages"]) == {"python_avatars", "resvg_py", "fontpkg-fredoka"}
