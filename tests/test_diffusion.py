"""Images by diffusion models: tiny ones, saved to disk and loaded as the real ones are."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import diffusion_model, text_to_image_model

pytest.importorskip("diffusers")

import simpe
from simpe import Budget, InputError, PrivateData, Strategy, cli
from simpe.simulators.foundation.diffusion import Diffusion, TextToImage


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return diffusion_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    return diffusion_model(
        tmp_path_factory.mktemp("by_class") / "model", channels=3, classes=2, scheduler="DDIMScheduler"
    )


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    return text_to_image_model(tmp_path_factory.mktemp("painter") / "model")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def follows_the_generator(source, shape):
    labels = torch.tensor([0, 1, 0, 1, 1])
    first = source.random_of(labels, generator(1))
    assert first["image"].dtype == torch.uint8
    assert tuple(first["image"].shape) == (5, *shape)
    assert torch.equal(source.random_of(labels, generator(1))["image"], first["image"])
    assert not torch.equal(source.random_of(labels, generator(2))["image"], first["image"])
    p = {**first, "label": labels}
    assert torch.equal(source.variation(p, 0.0, generator())["image"], first["image"])
    near, far = (source.variation(p, strength, generator(3))["image"] for strength in (0.1, 1.0))
    assert torch.equal(source.variation(p, 0.1, generator(3))["image"], near)
    assert not torch.equal(near, far)
    assert tuple(source.random_of(labels[:0], generator())["image"].shape) == (0, *shape)
    return first["image"]


def test_an_unconditional_model_draws_any_for_all_classes(plain):
    source = Diffusion(plain, classes=("a", "b"), steps=4, batch=2)
    assert source.size == (8, 8)
    made = follows_the_generator(source, (8, 8))
    assert torch.equal(made, source.random_of(torch.zeros(5, dtype=torch.int64), generator(1))["image"])


def test_a_model_with_classes_draws_each(by_class):
    source = Diffusion(by_class, classes=("a", "b"), steps=4, batch=2, colour=True)
    made = follows_the_generator(source, (8, 8, 3))
    assert not torch.equal(made, source.random_of(torch.zeros(5, dtype=torch.int64), generator(1))["image"])


def test_little_strength_moves_little(plain):
    """The network of random weights predicts hardly any noise, so an image comes back with the noise it was given."""
    source = Diffusion(plain, steps=10)
    images = torch.full((6, 8, 8), 128, dtype=torch.uint8)
    moved = [
        float(
            (source.variation({"image": images, "label": torch.zeros(6)}, s, generator())["image"] - 128.0).abs().mean()
        )
        for s in (0.1, 0.5, 1.0)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_making_images_says_how_far_it_is(plain):
    source, said = Diffusion(plain, steps=2, batch=2), []
    source.report_to(lambda *what: said.append(what))
    source.random_of(torch.zeros(5, dtype=torch.int64), generator())
    assert said == [("making images", done, 5) for done in (0, 2, 4, 5)]
    said.clear()
    source.random_of(torch.zeros(0, dtype=torch.int64), generator())
    assert all(total for _, _, total in said), "a total of 0 would be a remark"


def test_batches_do_not_decide_what_is_drawn(plain):
    labels = torch.zeros(5, dtype=torch.int64)
    one, all_ = (Diffusion(plain, steps=3, batch=b).random_of(labels, generator())["image"].int() for b in (1, 5))
    assert int((one - all_).abs().max()) <= 1


@pytest.mark.parametrize(("colour", "shape"), [(True, (16, 16, 3)), (False, (16, 16))])
def test_a_model_that_reads_text_draws_prompts(painter, colour, shape):
    source = TextToImage(painter, "a {label} page", classes=("dark", "bright"), steps=3, batch=2, colour=colour)
    assert source.size == (16, 16)
    made = follows_the_generator(source, shape)
    labels = torch.zeros(5, dtype=torch.int64)
    assert not torch.equal(made, source.random_of(labels, generator(1))["image"]), "the prompt of another class"
    assert TextToImage(painter, "x", size=24, steps=1).random_of(labels[:1], generator())["image"].shape == (
        1,
        24,
        24,
        3,
    )


def test_a_run_with_a_model_as_its_source(by_class):
    source = Diffusion(by_class, classes=("a", "b"), steps=3, colour=True)
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
    private = PrivateData(images, np.array(["a", "b"] * 30), budget=Budget(2.0))
    strategy = Strategy(places=3, start=2, children=1)
    release = simpe.evolve(source, None, private, samples=8, steps=2, strategy=strategy)
    assert release.samples.shape == (8, 8, 8, 3)
    settings = release.certificate["public_inputs"]["simulator"]["settings"]
    assert len(settings["model"]["files"]["unet/diffusion_pytorch_model.safetensors"]) == 64
    json.dumps(settings)


def test_images_of_another_size_or_kind_are_not_adopted(plain, by_class):
    source = Diffusion(plain)
    images = torch.zeros((2, 8, 8), dtype=torch.uint8)
    assert torch.equal(source.adopt(images, {})["image"], images)
    for other in (torch.zeros((2, 9, 8)).byte(), torch.zeros((2, 8, 8, 3)).byte(), torch.zeros((2, 8, 8))):
        with pytest.raises(InputError, match="8 x 8"):
            source.adopt(other, {})
    assert Diffusion(by_class, colour=True).adopt(torch.zeros((2, 8, 8, 3)).byte(), {})["image"].ndim == 4


@pytest.mark.parametrize("missing", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler"])
def test_a_folder_that_lacks_a_file_is_one_line(missing, tmp_path):
    folder = diffusion_model(tmp_path / "model")
    (folder / missing).rename(tmp_path / "away")
    with pytest.raises(InputError, match="has no"):
        Diffusion(folder)
    with pytest.raises(InputError, match="has no"):
        TextToImage(folder, "x")


@pytest.mark.parametrize("damaged", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_model_is_one_line(damaged, tmp_path):
    folder = diffusion_model(tmp_path / "model")
    (folder / damaged).write_bytes(b"{")
    with pytest.raises(InputError, match="cannot be loaded as a diffusion model") as caught:
        Diffusion(folder)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_one_line(plain, painter, tmp_path):
    for make in (
        lambda: Diffusion(painter, colour=True),  # takes a text
        lambda: Diffusion(diffusion_model(tmp_path / "two", channels=2)),
        lambda: Diffusion(plain, colour=True),
        lambda: Diffusion(tmp_path / "none"),
        lambda: Diffusion(plain, steps=0),
        lambda: Diffusion(plain, dtype="int8"),
        lambda: TextToImage(painter, "a {mood} page"),
        lambda: TextToImage(painter, {"dark": "x"}, classes=("dark", "bright")),
        lambda: TextToImage(painter, "x", size=17),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_more_classes_than_the_model_knows_are_refused(by_class):
    with pytest.raises(InputError, match="knows 2 classes, not 3"):
        Diffusion(by_class, classes="abc", colour=True)


def test_the_command_ends_with_one_line(plain, tmp_path, monkeypatch, capsys):
    config = f'simulator = "diffusion"\nprivate = ["sklearn"]\nepsilon = 1.0\nout = "{tmp_path / "run"}"\nsamples = 5\n'
    for options, said in (
        (f'model = "{tmp_path / "none"}"', "no such file or folder"),
        (f'model = "{plain}"\nmood = "x"', "diffusion cannot be made"),
    ):
        (tmp_path / "run.toml").write_text(f"{config}[options]\n{options}\n")
        monkeypatch.setattr(sys, "argv", ["simpe", "run", str(tmp_path / "run.toml")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_nothing_is_imported_before_it_is_used():
    code = "import sys; "
    code += "from simpe.simulators.foundation import diffusion, language, remote; import simpe.embedders.sentences; "
    code += "assert not {'transformers', 'tokenizers', 'gguf', 'diffusers', 'openai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
