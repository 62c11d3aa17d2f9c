"""The two renderers of faces: the batched one against a plain loop and against pyrender."""

import functools
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d

from simpe.errors import InputError
from simpe.rendering import Parallel
from simpe.simulators.faces import raster, reference
from simpe.simulators.faces.head import head
from simpe.simulators.faces.scene import Scene, scene, space
from simpe.simulators.faces.simulator import Faces, draw


def heads(n, seed=0):
    model = head()
    return scene(model, space(model).sample(n, torch.Generator().manual_seed(seed)))


def soup(seed, n=2, triangles=60):
    """Random triangles of all sizes, some of them far outside the picture."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=random)

    middle, size = uniform(n, triangles, 1, 2) * 3 - 1.5, uniform(n, triangles, 1, 1) ** 2
    corners = (middle + size * (uniform(n, triangles, 3, 2) * 2 - 1)).reshape(n, -1, 2)
    background = torch.stack([0.2 + 0.6 * uniform(n, 3), uniform(n, 3) * 0.2 - 0.1, uniform(n, 3) * 0.2 - 0.1], 1)
    v = 3 * triangles
    return Scene(
        corners[..., 0], corners[..., 1], 0.5 + uniform(n, v), uniform(n, 3, v), background,
        torch.arange(v).reshape(-1, 3),
    )  # fmt: skip


def loop(view, height, width, nearest=True):
    """Every pixel, every triangle, in double precision: images, and where a rounding could change them."""
    n = len(view.x)
    x, y = ((view.x.double() + 1) * width / 2).numpy(), ((1 - view.y.double()) * height / 2).numpy()
    images, doubtful = np.zeros((n, height, width, 3)), np.zeros((n, height, width), bool)
    px, py = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    middle, right, up = view.background.double().numpy().transpose(1, 0, 2)
    for i in range(n):
        images[i] = middle[i] + (2 * px / width - 1)[..., None] * right[i] + (1 - 2 * py / height)[..., None] * up[i]
        depth = np.zeros((height, width))
        for corners in view.triangles.numpy():
            (x0, x1, x2), (y0, y1, y2) = x[i, corners], y[i, corners]
            area = (x2 - x0) * (y1 - y0) - (x1 - x0) * (y2 - y0)
            if area <= 1e-6:
                continue
            edges = [
                (px - xa) * (yb - ya) - (py - ya) * (xb - xa)
                for xa, ya, xb, yb in ((x1, y1, x2, y2), (x2, y2, x0, y0), (x0, y0, x1, y1))
            ]
            inside = np.min(edges, axis=0)
            doubtful[i] |= np.abs(inside) < 3e-3
            weights = np.stack(edges) / area
            near = np.tensordot(view.near[i, corners].double().numpy(), weights, 1)
            doubtful[i] |= (inside > 0) & (np.abs(near - depth) < 1e-4)
            wins = (inside > 0) & ((near > depth) if nearest else True)
            colour = np.einsum("ck,kyx->yxc", view.colour[i][:, corners].double().numpy(), weights)
            images[i][wins], depth[wins] = colour[wins], near[wins]
    return images * 255, doubtful


@given(seed=st.integers(0, 2**32), height=st.integers(8, 40), width=st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_the_batched_renderer_is_the_plain_loop(seed, height, width):
    view = soup(seed)
    expected, doubtful = loop(view, height, width)
    off = np.abs(raster.draw(view, height, width).numpy() - expected).max(-1)
    assert off[~doubtful].max() <= 0.51
    assert doubtful.mean() < 0.5


def test_the_plain_loop_can_tell():
    view = soup(0)
    expected, doubtful = loop(view, 32, 32, nearest=False)
    off = np.abs(raster.draw(view, 32, 32).numpy() - expected).max(-1)
    assert off[~doubtful].max() > 20


def test_several_samples_are_the_mean_of_a_larger_picture():
    view = heads(5)
    large = raster.draw(view, 64, 96).double().reshape(5, 32, 2, 48, 2, 3).mean((2, 4))
    assert (raster.draw(view, 32, 48, samples=2) - large).abs().max() <= 0.5


@pytest.mark.parametrize("edge", [raster._EDGE, -raster._EDGE])
def test_there_are_no_gaps_between_triangles(monkeypatch, edge):
    """A wall of many triangles lets nothing of a bright background through, unless they are a little too small."""
    monkeypatch.setattr(raster, "_EDGE", edge)
    u = torch.linspace(-1.2, 1.2, 30)
    y, x = torch.meshgrid(u, u + 0.013, indexing="ij")
    i, j = torch.meshgrid(torch.arange(29), torch.arange(29), indexing="ij")
    a = (i * 30 + j).flatten()
    triangles = torch.cat([torch.stack([a, a + 1, a + 30], 1), torch.stack([a + 1, a + 31, a + 30], 1)])
    x, y = x.reshape(1, -1) + 0.1 * y.reshape(1, -1), y.reshape(1, -1)
    white = torch.zeros(1, 3, 3).index_fill(1, torch.tensor([0]), 1.0)
    wall = Scene(x, y, torch.ones_like(x), torch.zeros(1, 3, 900), white, triangles)
    assert raster.draw(wall, 61, 53)[:, :, 6:-6].any() == (edge < 0)
    assert raster.draw(Scene(x, y, wall.near, wall.colour, white, triangles.flip(1)), 61, 53).all()  # from behind


@given(counts=st.lists(st.integers(0, 5), max_size=30))
def test_things_are_spread_as_repeat_interleave_does(counts):
    counts = torch.tensor(counts, dtype=torch.int32)
    owner, start = raster._spread(counts)
    expected = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    assert torch.equal(owner, expected)
    assert torch.equal(start, counts.cumsum(0) - counts)
    # Were one that owns nothing passed over, those after it would be off by one.
    if len(owner) and not counts[: int(owner[-1])].all():
        assert not torch.equal(raster._spread(counts[counts > 0])[0], expected)


def away_from_silhouettes(view, size):
    """Pixels (n, size, size) around which one surface runs on: the same part, and no jump in depth."""
    model = head()
    part = (model.part.float() / 255).expand(len(view.x), -1)
    near = (view.near - 0.5).clamp(0, 1)
    flat = Scene(
        view.x, view.y, view.near, torch.stack([part, near, 0 * part], 1), view.background * 0 + 1, view.triangles
    )
    seen = raster.draw(flat, 3 * size, 3 * size).permute(0, 3, 1, 2).float()
    spread = max_pool2d(seen, 5, 3, 1) + max_pool2d(-seen, 5, 3, 1)
    return (spread[:, 0] == 0) & (spread[:, 1] <= 4)


needs_pyrender = pytest.mark.skipif(bool(reference.missing()), reason=reference.missing() or "nothing is missing")


@needs_pyrender
def test_both_renderers_agree_away_from_silhouettes():
    view = heads(200)
    inner = away_from_silhouettes(view, 64)
    theirs = reference.draw(view, 64, 64).float()
    off = (raster.draw(view, 64, 64).float() - theirs).abs().mean(3)
    assert inner.double().mean() > 0.5
    assert off[inner].mean() <= 0.5  # of 255; 3 would do
    assert off.mean() <= 4  # edges and all: theirs are smooth
    # The check can fail: a light from elsewhere, or a head moved by a pixel, is seen.
    other = Scene(view.x + 2 / 64, view.y, view.near, view.colour, view.background, view.triangles)
    assert (raster.draw(other, 64, 64).float() - theirs).abs().mean(3)[inner].mean() > 1
    dim = Scene(view.x, view.y, view.near, view.colour * 0.95, view.background, view.triangles)
    assert (raster.draw(dim, 64, 64).float() - theirs).abs().mean(3)[inner].mean() > 3


@needs_pyrender
def test_the_reference_draws_any_size_and_serves_the_simulator():
    faces = Faces((48, 80), renderer="pyrender")
    p = faces.space.sample(3, torch.Generator().manual_seed(0))
    p["label"] = torch.zeros(3, dtype=torch.int64)
    images = faces.render(p)
    assert images.shape == (3, 48, 80, 3)
    assert torch.equal(images[1:2], faces.render({name: x[1:2] for name, x in p.items()}))
    assert (images.float() - Faces((48, 80)).render(p).float()).abs().mean() < 5
    view = heads(1)
    assert torch.equal(draw(view, 32, 32, renderer="pyrender"), reference.draw(view, 32, 32))


@needs_pyrender
def test_the_reference_refuses_to_be_spread_over_processes():
    p = Faces(16).space.sample(3, torch.Generator().manual_seed(0)) | {"label": torch.zeros(3, dtype=torch.int64)}
    with (
        Parallel(Faces(16, renderer="pyrender"), processes=2) as parallel,
        pytest.raises(InputError, match="a process of its own") as error,
    ):
        parallel.render(p)
    assert "\n" not in str(error.value)
    assert pickle.loads(pickle.dumps(Faces(16))).size == (16, 16)


@needs_pyrender
@pytest.mark.skipif(not reference.osmesa(), reason="OSMesa is not installed: apt-get install libosmesa6")
def test_osmesa_takes_the_place_of_egl(monkeypatch):
    """It smooths no edges, as the batched renderer does not, so they agree better than EGL and the batched do."""
    view = heads(16)
    batched = raster.draw(view, 64, 64).float()
    if reference._platform() == "egl" and "PYOPENGL_PLATFORM" not in os.environ:
        assert 1 < (batched - reference.draw(view, 64, 64).float()).abs().mean() < 4
    with monkeypatch.context() as patched:
        patched.setattr(reference, "_egl_devices", lambda: 0)
        assert reference._platform() == "osmesa"
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    monkeypatch.setattr(reference, "_process", functools.cache(reference._process.__wrapped__))  # one of its own
    theirs = reference.draw(view, 64, 64).float()
    reference._process().shutdown()
    assert (batched - theirs).abs().mean() < 0.2


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setattr(reference, "_library", lambda *names: None)
    if not reference.importlib.util.find_spec("pyrender"):
        pytest.skip("pyrender is not installed: pip install 'simpe[faces]'")
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 (or libosmesa6)" in reference.missing()
    with pytest.raises(InputError, match="libegl1"):
        Faces(renderer="pyrender")
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'simpe[faces]'" in reference.missing()
    assert "\n" not in reference.missing()
