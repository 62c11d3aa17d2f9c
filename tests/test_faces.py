"""The faces simulator: rows stay apart, parameters do what their names say, and models of others are read with care."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import simpe
from simpe.errors import InputError
from simpe.protocols import Simulator
from simpe.simulators.faces import scene as module
from simpe.simulators.faces import simulator
from simpe.simulators.faces.head import head
from simpe.simulators.faces.model import COLOURS
from simpe.simulators.faces.photograph import photograph
from simpe.simulators.faces.scene import scene
from simpe.simulators.faces.simulator import Faces


def draws(n, seed=0, faces=None, **fixed):
    p = (faces or Faces()).space.sample(n, torch.Generator().manual_seed(seed))
    p |= {name: torch.full_like(p[name], value) for name, value in fixed.items()}
    return {**p, "label": torch.zeros(n, dtype=torch.int64)}


def plain(n=6, seed=0, **fixed):
    """Rows that look straight ahead, in even light, with nothing on."""
    still = dict.fromkeys(("expression", "gaze", "yaw", "pitch", "roll", "position", "light_across", "light_colour"), 0)
    still |= dict.fromkeys(("shade", "cast", "brightness", "blur"), 0)
    bare = {name: choice(name, "none") for name in ("beard", "glasses", "hat")} | {"hair": choice("hair", "bald")}
    return draws(
        n,
        seed,
        **(
            still
            | bare
            | {"saturation": 1, "scale": 1, "stretch": 1, "skin": 0.2, "ambient": 0.6, "contrast": 1}
            | fixed
        ),
    )


def choice(parameter, name):
    """The first index that stands for a name."""
    names, times = module._CHOICES[parameter]
    return sum(times[: names.index(name)])


def rows(p, index):
    return {name: x[index] for name, x in p.items()}


def is_row_wise(render, p):
    """Does every row come out the same alone, in pieces, and in another order?"""
    whole = render(p)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    return (
        torch.equal(render(rows(p, order)), whole[order])
        and torch.equal(torch.cat([render(rows(p, part)) for part in torch.arange(len(whole)).split(7)]), whole)
        and all(torch.equal(render(rows(p, slice(i, i + 1)))[0], whole[i]) for i in range(0, len(whole), 11))
    )


@pytest.mark.parametrize("size", [32, (40, 24), 64])
def test_rows_do_not_depend_on_the_batch(size):
    faces = Faces(size)
    assert is_row_wise(faces.render, draws(70))


def test_the_check_of_rows_can_fail():
    faces = Faces()
    assert not is_row_wise(lambda p: faces.render(p | {"yaw": p["yaw"] - p["yaw"].mean()}), draws(30))


def test_rows_do_not_depend_on_the_threads(monkeypatch):
    faces, p, before = Faces(), draws(40), torch.get_num_threads()
    whole = faces.render(p)
    monkeypatch.setattr(simulator, "_BLOCK", 2)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(faces.render(p), whole)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_shape_and_determinism():
    faces = Faces((40, 24))
    p = draws(20)
    images = faces.render(p)
    assert isinstance(faces, Simulator)
    assert images.dtype == torch.uint8
    assert images.shape == (20, 40, 24, 3)
    assert torch.equal(images, Faces((40, 24)).render(p))
    assert faces.render(rows(p, slice(0, 0))).shape == (0, 40, 24, 3)
    assert faces.embedder(images).shape[0] == 20


def test_it_keeps_the_contract_of_simulators():
    assert [str(f) for f in simpe.check_simulator(Faces(), n=32) if not f.ok] == []


def test_the_head_is_a_linear_function_whose_sums_are_exact():
    model = head()
    c = torch.rand((40, len(model.names)), generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = model.shape(c)
    assert torch.equal(torch.cat([model.shape(row[None]) for row in c]), whole)
    backwards = model.rest + sum(
        (c[:, [k]].double() * 2**16).round() / 2**16 * model.basis[k] for k in reversed(range(len(model.names)))
    )
    assert torch.equal(backwards.float().reshape(whole.shape), whole)


def plain_photograph(images, p, i):
    """Light, tint, contrast and blur of image i, in double precision, pixel by pixel."""
    x, (height, width) = images[i].double().numpy() / 255, images.shape[1:3]
    v, u = ((np.arange(size) + 0.5) / size for size in (height, width))
    across, down = (np.stack([(1 - t) ** 2, 2 * t * (1 - t), t * t]) for t in (u, v))
    x = x * (1 + 0.45 * (down.T @ p["shade"][i].double().numpy().reshape(3, 3) @ across))[..., None]
    warm, green = 0.14 * float(p["cast"][i, 0]), 0.05 * float(p["cast"][i, 1])
    x = (x * [1 + warm - green, 1 + green, 1 - warm - green] - 0.5) * float(p["contrast"][i]) + 0.5
    x, reach = np.clip(x + float(p["brightness"][i]), 0, 1), max(1, round(min(height, width) / 48))
    for axis, size in ((0, height), (1, width)):
        before, after = (np.take(x, np.clip(np.arange(size) + s, 0, size - 1), axis) for s in (-reach, reach))
        x = x + float(p["blur"][i]) * (before / 4 + after / 4 - x / 2)
    return x * 255


@pytest.mark.parametrize("size", [(8, 13), (40, 24), (96, 110)])
def test_a_photograph_is_the_plain_one(size):
    p = draws(6)
    images = torch.randint(0, 256, (6, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    off = [np.abs(photograph(images, p)[i].numpy() - plain_photograph(images, p, i)).max() for i in range(6)]
    assert max(off) <= 0.51
    for name in ("shade", "cast", "contrast", "brightness", "blur"):  # and the check sees each of them
        other = p | {name: p[name] * 0.9 + 0.01}
        assert (
            max(np.abs(photograph(images, other)[i].numpy() - plain_photograph(images, p, i)).max() for i in range(6))
            > 1
        )


def test_without_the_grain_the_order_of_a_sum_shows():
    """The exactness above comes from the grain, not from luck."""
    x = torch.rand((1000, 60), generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    assert not torch.equal(sum(x.unbind(1)), sum(x.flip(1).unbind(1)))


def test_the_mesh_is_whole():
    model = head()
    v = len(model.part)
    assert 4000 < len(model.triangles) < 6000
    assert model.triangles.unique().numel() == v  # no vertex that nothing uses
    shares = model.paint[:, [COLOURS.index(c) for c in COLOURS if c not in COLOURS[1:9]]].sum(1)
    assert ((shares - 1).abs() < 1e-3).all()  # without what is added to skin, paint sums to 1
    there = torch.zeros((1, len(model.names)))
    there[0, model.names["hair short"]] = 1
    points = model.shape(there)
    normals = module._normals(points, model.ring)
    away = points - torch.tensor([0.0, 0.0, -1.0])[:, None]
    for part in (0, int(model.part[model.triangles].amax(1).mode().values)):  # the skin, the largest other part
        mine = model.part == part
        outward = (normals * away).sum(1)[0, mine] > 0
        assert outward.double().mean() > 0.97
    # The mesh is its own mirror image.
    front = points[0].T[model.part == 0].double()
    mirrored = front * torch.tensor([-1.0, 1, 1])
    assert torch.cdist(front, mirrored).amin(1).max() < 1e-3


def test_what_is_not_chosen_is_not_drawn():
    faces = Faces()
    p = plain(hat_colour=0)
    assert torch.equal(faces.render(p | {"hat_colour": torch.ones(6, 3), "frame": torch.ones(6)}), faces.render(p))


@pytest.mark.parametrize(
    ("parameter", "name", "top", "bottom"),
    [("hat", "beanie", 0, 10), ("hair", "afro", 0, 20), ("glasses", "sun", 8, 18), ("beard", "beard", 22, 31)],
)
def test_what_is_chosen_shows_where_it_belongs(parameter, name, top, bottom):
    faces = Faces()
    p = plain(hair_colour=0, beard_density=1, background=0.8)
    change = (faces.render(p | {parameter: torch.full((6,), choice(parameter, name))}).int() - faces.render(p)).abs()
    there = change[:, top:bottom, 4:-4].double().mean((1, 2, 3))
    assert (there > 15).all()
    elsewhere = change.clone()
    elsewhere[:, max(0, top - 6) : bottom + 5] = 0
    assert (elsewhere.double().mean((1, 2, 3)) < 3).all()


def test_position_moves_the_picture_and_scale_enlarges_the_head():
    faces = Faces(64)
    p = plain(background=0, scale=0.9)  # on black
    here = faces.render(p).int()
    there = faces.render(p | {"position": torch.tensor([[2 / 64, 3 / 64]]).expand(6, 2)}).int()  # right and up
    off = (there[:, :-3, 2:] - here[:, 3:, :-2]).abs().double()
    assert off.mean() < 0.2  # edges may fall on the other side of a sample
    larger = faces.render(p | {"scale": torch.full((6,), 1.1)})
    assert ((larger > 0).double().mean((1, 2, 3)) > 1.1 * (here > 0).double().mean((1, 2, 3))).all()


def test_the_head_turns_and_nods_the_way_it_says():
    model = head()
    nose = int((model.rest.reshape(3, -1)[2] * (model.part == 0)).argmax())
    for name, axis in (("yaw", "x"), ("pitch", "y")):
        a, b = (scene(model, plain(**{name: angle})) for angle in (-0.2, 0.2))
        assert (getattr(b, axis)[:, nose] - getattr(a, axis)[:, nose] > 0.05).all()


def test_light_falls_from_where_it_says():
    faces = Faces()
    for name, flip in (("light_across", 2), ("light_up", 1)):
        image = faces.render(plain(ambient=0.3) | {name: torch.full((6,), 1.0)}).double().mean(3)
        half = image.flip(flip) - image if name == "light_across" else image - image.flip(flip)
        inner = half[:, 8:24, :16] if name == "light_across" else half[:, :16, 8:24]
        assert (inner.mean((1, 2)) > 5).all()


def test_half_of_every_expression_is_none():
    faces = Faces()
    p = plain()
    assert torch.equal(faces.render(p | {"expression": torch.full_like(p["expression"], -1)}), faces.render(p))
    assert not torch.equal(faces.render(p | {"expression": torch.full_like(p["expression"], 1)}), faces.render(p))


def test_public_inputs_name_the_model():
    said = {"simulator": "faces", "size": [32, 32], "renderer": "torch", "grey": False, "model": None}
    assert Faces().public_inputs() == said


@pytest.mark.parametrize("size", [0, (4, 32), 100_000])
def test_sizes_that_cannot_be_drawn(size):
    with pytest.raises(InputError, match="8 to 2048"):
        Faces(size)


def test_unknown_renderers_are_refused():
    with pytest.raises(InputError, match="torch, pyrender"):
        Faces(renderer="crayon")


# --- models of others


def dome(n=24):
    """A small morphable model: a dome with two holes for eyes, one shape of identity and one of expression."""
    u = np.linspace(-1, 1, n)
    x, y = np.meshgrid(u * 9, u * 11 - 2)
    points = np.stack([x, y, 9 - 0.07 * x**2 - 0.04 * y**2], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij")
    a = (i * n + j).ravel()
    triangles = np.concatenate([np.stack([a, a + 1, a + n], 1), np.stack([a + 1, a + n + 1, a + n], 1)])
    middle = points[triangles].mean(1)
    eye = np.hypot((np.abs(middle[:, 0]) - 3.2) / 1.6, middle[:, 1] / 1.1) < 1
    wider = np.sign(points) * np.array([127, 0, 0])
    return {
        "mean": points.astype(np.float32), "tri": triangles[~eye].astype(np.uint16),
        "id_q": wider[None].astype(np.int8), "id_scale": np.array([0.01], dtype=np.float32),
        "ex_q": -wider[None].astype(np.int8), "ex_scale": np.array([0.01], dtype=np.float32),
    }  # fmt: skip


def saved(tmp_path, **changes):
    path = tmp_path / "model.npz"
    np.savez(path, **{name: value for name, value in (dome() | changes).items() if value is not None})
    return path


def test_a_model_of_others_is_drawn(tmp_path):
    faces = Faces(model=saved(tmp_path))
    p = draws(12, faces=faces)
    assert p["identity"].shape == p["expression"].shape == (12, 1)
    assert is_row_wise(faces.render, p)
    assert faces.public_inputs()["model"]["file"] == "model.npz"
    model = faces._model
    assert (model.part == 0).sum() == 24 * 24
    x = model.shape(torch.zeros(1, len(model.names)))[0, 0]
    coefficient = torch.zeros(1, len(model.names))
    coefficient[0, model.names["identity 0"]] = 1
    moved = model.shape(coefficient)[0, 0] - x
    skin = (model.part == 0) & (x > 0.5)
    assert moved[skin].max() - moved[skin].min() < 1e-3  # as far as the file says, in one scale
    assert moved[skin].min() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "has no mean"),
        ({"ex_q": None, "ex_scale": None}, "has no ex_q, ex_scale"),
        ({"mean": np.zeros((576, 2), np.float32)}, r"mean has shape \(576, 2\), not \(n, 3\)"),
        ({"mean": np.zeros((0, 3), np.float32)}, "0 vertices"),
        ({"mean": np.full((576, 3), np.nan, np.float32)}, "mean holds NaN"),
        ({"mean": np.full((576, 3), "x")}, "mean is <U1, not numbers"),
        ({"tri": np.zeros((5, 4), int)}, r"tri has shape \(5, 4\), not \(n, 3\)"),
        ({"tri": np.full((5, 3), 576)}, "outside 0..575"),
        ({"tri": np.full((5, 3), -1)}, "outside 0..575"),
        ({"tri": np.zeros((5, 3))}, "tri is float64, not whole numbers"),
        ({"tri": np.zeros((0, 3), int)}, "outside 0..575"),
        ({"id_q": np.zeros((2, 575, 3), np.int8)}, r"id_q has shape \(2, 575, 3\), not \(n, 576, 3\)"),
        ({"id_q": np.zeros((0, 576, 3), np.int8), "id_scale": np.zeros(0)}, "id_q is empty"),
        ({"id_scale": np.ones((2,), np.float32)}, r"id_scale has shape \(2,\), not \(1,\)"),
        ({"tri": np.array([[0, 1, 24], [1, 25, 24]])}, "no two holes for eyes"),
        ({"mean": dome()["mean"] * 0}, "no two holes for eyes"),
        ({"id_scale": np.array([1e3])}, "farther than 60 cm"),
    ],
)
def test_bad_models_are_one_line_errors(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        Faces(model=saved(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_files_that_are_no_models(tmp_path):
    for name, content in (("a.npz", b"PK\x03\x04 broken"), ("b.npz", b""), ("c.npy", b"\x93NUMPY nothing")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            Faces(model=tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        Faces(model=tmp_path / "d.npz")
    np.save(tmp_path / "e.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"not an \.npz file"):
        Faces(model=tmp_path / "e.npy")


@pytest.mark.data
@pytest.mark.skipif("SIMPE_DATA" not in os.environ, reason="set SIMPE_DATA to the folder with faces/")
def test_the_reduced_ict_facekit_is_read_and_drawn():
    path = Path(os.environ["SIMPE_DATA"]) / "faces" / "ict_face_only_id20_expr11_int8.npz"
    faces = Faces(model=path)
    p = draws(8, faces=faces)
    assert p["identity"].shape == (8, 20)
    assert p["expression"].shape == (8, 11)
    assert is_row_wise(faces.render, p)
    z = np.load(path)
    skin = faces._model.rest.reshape(3, -1)[:, : len(z["mean"])].T.numpy()
    scale, _, rank, _ = np.linalg.lstsq(np.c_[z["mean"], np.ones(len(skin))], skin, rcond=None)
    assert rank == 4
    np.testing.assert_allclose(scale[:3], np.eye(3) * scale[0, 0], atol=1e-5)  # moved and enlarged, nothing else
