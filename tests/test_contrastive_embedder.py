"""The contrastive embedder: it finds a sample's variation, row by row and bit for bit; embedders side by side."""

import numpy as np
import pytest
import torch
from test_inverse_embedder import Squares, is_row_wise, noise

import simpe
from simpe.embedders.contrastive import Beside, Contrastive
from simpe.embedders.images import PixelsAndGradients, blurred_pixels
from simpe.embedders.inverse import retrieval
from simpe.fingerprint import describe


@pytest.fixture(scope="module")
def trained():
    return Contrastive.fit(Squares(), n=2000, steps=200, features=16)


def test_rows_do_not_depend_on_the_batch(trained):
    assert is_row_wise(trained, noise(150, 12, 12))


def test_vectors_have_length_one_and_blank_images_are_no_error(trained):
    found = trained(noise(50, 12, 12))
    assert found.shape == (50, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(50))
    assert bool(trained(torch.zeros((3, 12, 12), dtype=torch.uint8)).isfinite().all())


def test_it_learns_to_find_variations(trained):
    before = retrieval(Contrastive.fit(Squares(), n=200, steps=1, features=16), Squares(), strength=0.3)
    after = retrieval(trained, Squares(), strength=0.3)
    assert after > 1.25 * before
    assert after > 0.25  # by chance it is 0.002


def test_a_fit_repeats_from_its_seed_and_survives_a_file(trained, tmp_path):
    images = noise(20, 12, 12)
    again, other = (Contrastive.fit(Squares(), n=300, steps=5, features=8, seed=seed) for seed in (1, 2))
    assert torch.equal(again(images), Contrastive.fit(Squares(), n=300, steps=5, features=8, seed=1)(images))
    assert not torch.equal(again(images), other(images))
    trained.save(tmp_path / "c.npz")
    loaded = Contrastive.load(tmp_path / "c.npz")
    assert type(loaded) is Contrastive
    assert torch.equal(loaded(images), trained(images))
    assert loaded.public_inputs() == trained.public_inputs()
    assert loaded.public_inputs()["embedder"] == "contrastive"
    assert loaded.public_inputs()["strength"] == 0.3


def test_what_is_categorical_stays_in_a_training_pair():
    """Otherwise the network would learn to overlook it: dim and bright would be one."""
    seen = []

    class Watched(Squares):
        def render(self, p):
            seen.append({name: value.clone() for name, value in p.items()})
            return super().render(p)

    Contrastive.fit(Watched(), n=200, steps=1, features=4)
    rows = {name: torch.cat([p[name] for p in seen]) for name in ("shade", "x", "label")}
    for name, stays in (("shade", True), ("label", True), ("x", False)):
        assert torch.equal(rows[name][:200], rows[name][200:400]) is stays


def test_beside_joins_weighted_vectors_and_says_what_it_is_made_of(trained):
    images = noise(9, 12, 12)
    both = Beside((blurred_pixels, trained), (1.0, 0.5))
    assert torch.equal(both(images), torch.cat([blurred_pixels(images), trained(images) * 0.5], dim=1))
    assert is_row_wise(Beside((PixelsAndGradients(), trained), (1.0, 0.6)), noise(70, 12, 12))
    said = describe(both)["settings"]
    assert said["weights"] == [1.0, 0.5]
    assert said["parts"] == [describe(blurred_pixels), describe(trained)]
    with pytest.raises(ValueError, match="2 embedders need as many weights, got 1"):
        Beside((blurred_pixels, trained), (1.0,))


def test_a_run_takes_it_and_its_certificate_names_it(trained):
    squares = Squares()
    p = squares.space.sample(300, torch.Generator().manual_seed(5)) | {"label": torch.arange(300) % 2}
    private = simpe.PrivateData(
        squares.render(p).numpy(), np.array(squares.classes)[p["label"]], budget=simpe.Budget(epsilon=10, delta=1e-5)
    )
    release = simpe.evolve(squares, Beside((PixelsAndGradients(), trained), (1.0, 0.6)), private, samples=50)
    parts = release.certificate["public_inputs"]["embedder"]["settings"]["parts"]
    assert [part["name"].partition(":")[2] for part in parts] == ["PixelsAndGradients", "Contrastive"]
    assert parts[1]["settings"]["sha256"] == trained.public_inputs()["sha256"]
