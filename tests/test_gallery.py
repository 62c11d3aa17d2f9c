"""Galleries: public samples as a simulator, of images, series and flows; and what is wrong with them, in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import simpe
from simpe import report, runs
from simpe.config import make_config
from simpe.simulators.gallery import Gallery

DIGITS = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "samples",
    [
        DIGITS[:300],
        np.random.default_rng(0).integers(0, 256, (50, 12, 9, 3)).astype(np.uint8),
        np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32),
    ],
    ids=["grey", "colour", "series"],
)
def test_it_passes_the_checks(samples):
    assert [str(f) for f in simpe.check_simulator(Gallery(samples)) if not f.ok] == []


def test_flows_are_a_gallery_too():
    from simpe.embedders.flows import FlowEmbedding
    from simpe.simulators.network.traces import Traces

    traces = Traces()
    flows = traces.render({**traces.random(200, generator()), "label": torch.zeros(200, dtype=torch.int64)})
    gallery = Gallery(flows, embedder=FlowEmbedding(time=0))
    assert [str(f) for f in simpe.check_simulator(gallery) if not f.ok] == []
    moved = gallery.render(gallery.variation({"index": torch.arange(200)}, 0.3, generator()))
    embed = gallery.embedder
    near = (embed(moved) - embed(flows)).norm(dim=1).mean()
    apart = (embed(flows.roll(1, 0)) - embed(flows)).norm(dim=1).mean()
    assert near < 0.6 * apart


def test_random_draws_without_replacement_and_again_when_there_are_too_few():
    gallery = Gallery(DIGITS[:10])
    assert sorted(gallery.random(10, generator())["index"].tolist()) == list(range(10))
    assert sorted(gallery.random(25, generator())["index"].bincount().tolist()) == [2] * 5 + [3] * 5
    assert len(gallery.random(7, generator())["index"].unique()) == 7
    assert len(gallery.random(0, generator())["index"]) == 0


def ranks(gallery, strength):
    """How far each of 300 samples moved: the rank of where it went, by plain distances."""
    index = torch.arange(300)
    moved = gallery.variation({"index": index}, strength, generator())["index"]
    x = gallery.embedder(torch.from_numpy(DIGITS[:300])).double()
    distance = (x[:, None] - x).norm(dim=2)
    return (distance < distance[index, moved][:, None]).sum(1)


def test_variation_walks_to_near_samples_and_less_far_with_less_strength():
    gallery = Gallery(DIGITS[:300])
    assert int(ranks(gallery, 0.0).max()) == 0
    for strength, most in ((0.25, 4), (0.5, 16), (1.0, 64), (3.0, 64)):
        far = ranks(gallery, strength)
        assert int(far.max()) == most
        assert far.double().mean().item() == pytest.approx(most / 2, rel=0.25)
    assert int(ranks(Gallery(DIGITS[:300], embedder="blurred-pixels"), 0.25).max()) <= 4


def test_that_check_of_nearness_can_fail():
    """A graph over other values than the embedder's is found out."""
    gallery = Gallery(DIGITS[:300])
    gallery._neighbours = gallery._neighbours.flip(0)
    assert int(ranks(gallery, 0.25).max()) > 4


def test_copies_in_a_gallery_keep_each_sample_where_it_is_at_strength_0():
    gallery = Gallery(np.repeat(DIGITS[:2], 100, axis=0))
    index = torch.arange(200)
    assert torch.equal(gallery.variation({"index": index}, 0.0, generator())["index"], index)


def test_votes_choose_the_samples_that_resemble_the_private_ones():
    """Private rows are threes; of all digits, the gallery's threes win."""
    target = load_digits().target
    gallery = Gallery(DIGITS[:900])
    private = simpe.PrivateData(DIGITS[900:][target[900:] == 3], budget=simpe.Budget(20, 1e-6))
    release = simpe.evolve(gallery, None, private, samples=100, steps=3, seed=0)
    chosen = target[release.params["index"].numpy()]
    assert (chosen == 3).mean() > 0.7
    settings = release.certificate["public_inputs"]["simulator"]["settings"]
    assert "public" in settings["declared"]
    assert len(settings["sha256"]) == 64


def test_the_fingerprint_tells_galleries_apart():
    one, other = DIGITS[:20], DIGITS[:20].copy()
    other[3, 3, 3] ^= 1
    assert Gallery(one).public_inputs() == Gallery(one).public_inputs()
    assert Gallery(one).public_inputs()["sha256"] != Gallery(other).public_inputs()["sha256"]


# --- from the command line


def simpe_command(*arguments, cwd, expect=0):
    command = [sys.executable, "-m", "simpe", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done


def error(*arguments, cwd):
    lines = simpe_command(*arguments, cwd=cwd, expect=2).stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    """A gallery in colour and one in grey with alpha, and private rows of both kinds."""
    (tmp_path / "colour").mkdir()
    (tmp_path / "alpha").mkdir()
    for i, image in enumerate(DIGITS[:30]):
        Image.fromarray(np.stack([image, image // 2, image], 2)).save(tmp_path / "colour" / f"{i:02}.png")
        Image.fromarray(np.stack([image, np.full_like(image, 200)], 2)).save(tmp_path / "alpha" / f"{i:02}.png")
    np.savez(tmp_path / "grey.npz", images=DIGITS[900:1000])
    np.savez(tmp_path / "coloured.npz", images=np.stack([DIGITS[900:1000]] * 3, 3))
    return tmp_path


def test_a_folder_is_a_gallery_on_the_command_line(folder):
    said = simpe_command(
        "gallery", "--public", "alpha", "--private", "grey.npz", "--samples", 50, "--out", "run", cwd=folder
    )
    assert "to give away" in said.stdout
    with np.load(folder / "run" / "release" / "samples.npz") as arrays:
        images = arrays["images"]
    assert images.shape == (50, 8, 8)
    assert {x.tobytes() for x in images} <= {x.tobytes() for x in DIGITS[:30]}  # more than there are, and as they are
    certificate = json.loads((folder / "run" / "release" / "certificate.json").read_text())
    assert certificate["public_inputs"]["simulator"]["settings"]["samples"] == 30


def test_a_folder_in_colour(folder):
    command = ("gallery", "--public", "colour", "--colour", "--private", "coloured.npz", "--samples", 9, "--out", "run")
    simpe_command(*command, cwd=folder)
    with np.load(folder / "run" / "release" / "samples.npz") as arrays:
        assert arrays["images"].shape == (9, 8, 8, 3)


def test_bad_galleries_are_one_line_that_says_what_to_do(folder):
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    (folder / "broken").mkdir()
    Image.fromarray(DIGITS[0]).save(folder / "mixed" / "a.png")
    Image.fromarray(DIGITS[0][:5]).save(folder / "mixed" / "b.png")
    Image.fromarray(DIGITS[0]).save(folder / "broken" / "a.png")
    (folder / "broken" / "b.png").write_bytes((folder / "broken" / "a.png").read_bytes()[:60])
    np.savez(folder / "one.npz", images=DIGITS[:1])
    for public, message in {
        "empty": "has no data",
        "mixed": "bring all to one size",
        "broken": "b.png: cannot be read",
        "nothing": "no such file",
        "one.npz": "at least 2 samples",
        "coloured.npz": "make them alike",
    }.items():
        said = error("gallery", "--public", public, "--private", "grey.npz", "--out", "run", cwd=folder)
        assert message in said, said
        assert not (folder / "run").exists()


def start(folder, monkeypatch, public, private, **values):
    monkeypatch.chdir(folder)
    given = {"options": {"samples": public}, "samples": 20, "steps": 1, "epsilon": 9, **values}
    return runs.start(make_config(simulator="gallery", private=private, out=folder / "run", **given))


@pytest.mark.parametrize(
    ("public", "private"),
    [("grey.npz", "grey.npz"), ("link.npz", "grey.npz"), ("alpha", "alpha"), (".", "alpha"), ("sklearn", "sklearn")],
)
def test_the_private_rows_are_no_gallery(folder, monkeypatch, public, private):
    """They would be released as they are, under a certificate."""
    (folder / "link.npz").symlink_to(folder / "grey.npz")
    with pytest.raises(simpe.InputError, match="private input"):
        start(folder, monkeypatch, public, private)
    assert not (folder / "run").exists()


def test_a_word_is_a_gallery_too(folder):
    command = ("gallery", "--public", "sklearn", "--private", "grey.npz", "--samples", 9, "--steps", 1, "--out", "run")
    simpe_command(*command, cwd=folder)
    settings = json.loads((folder / "run" / "release" / "certificate.json").read_text())["public_inputs"]["simulator"]
    assert settings["settings"]["samples"] == len(DIGITS)


def test_classes_of_rows_without_labels_are_not_ignored(folder, monkeypatch):
    with pytest.raises(simpe.InputError, match="--classes need labels"):
        start(folder, monkeypatch, "alpha", "grey.npz", classes=("a", "b"))
    assert not (folder / "run").exists()


def test_classes_are_called_as_they_are_declared(folder, monkeypatch):
    """01 is no 1: neither the samples nor the report may take it for one."""
    np.savez(folder / "named.npz", images=DIGITS[900:1000], labels=np.array(["01", "2"])[np.arange(100) % 2])
    start(folder, monkeypatch, "alpha", "named.npz", classes=("01", "2"))
    with np.load(folder / "run" / "release" / "samples.npz") as arrays:
        assert set(arrays["labels"].tolist()) == {"01", "2"}
    assert report.write(folder / "run")


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((0, 8, 8), dtype=np.uint8),
        np.zeros((5, 0), dtype=np.float32),
        np.full((5, 3), np.nan),
        np.zeros((5, 8, 8, 4), dtype=np.uint8),
        np.zeros(5),
        np.zeros((5, 3), dtype=np.int64),
    ],
)
def test_arrays_that_are_no_gallery(samples):
    with pytest.raises(simpe.InputError, match="a gallery"):
        Gallery(samples)


def test_it_goes_on_from_what_another_made_by_its_nearest_samples():
    gallery = Gallery(DIGITS[:300])
    shuffled = torch.randperm(300, generator=generator())
    assert torch.equal(gallery.adopt(gallery.render({"index": shuffled}), {})["index"], shuffled)
    dimmed = (torch.from_numpy(DIGITS[:300]).float() * 0.9).byte()
    assert (gallery.adopt(dimmed, {})["index"] == torch.arange(300)).double().mean() > 0.9
    private = simpe.PrivateData(DIGITS[300:600], budget=simpe.Budget(5.0))
    stages = [simpe.Stage(gallery, steps=1)]
    release = simpe.evolve(Gallery(DIGITS[600:900]), None, private, samples=20, steps=1, then=stages)
    ours = {image.tobytes() for image in DIGITS[:300]}
    assert all(image.numpy().tobytes() in ours for image in release.samples)


@pytest.mark.parametrize("where", ["a later stage", "a mixture"])
def test_the_private_rows_are_no_gallery_in_any_stage_or_mixture(folder, where):
    table = {"simulator": "gallery", "samples": "grey.npz"}
    if where == "a mixture":
        parts = {"simulator": "mixture", "options": {"sources": [table, {"simulator": "gallery", "samples": "alpha"}]}}
    else:
        later = {"simulator": "gallery", "options": {"samples": "grey.npz"}}
        parts = {"simulator": "gallery", "options": {"samples": "alpha"}, "then": [later]}
    config = make_config(private=str(folder / "grey.npz"), out=folder / "run", samples=20, epsilon=9, **parts)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        with pytest.raises(simpe.InputError, match="private input"):
            runs.start(config)
    assert not (folder / "run").exists()


def test_a_gallery_s_path_is_kept_whole_so_that_the_run_resumes_from_anywhere(folder, monkeypatch, tmp_path_factory):
    def stop(info, steps):
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    config = make_config(
        simulator="gallery", private="grey.npz", out=folder / "run", options={"samples": "alpha"}, samples=20, steps=1,
        epsilon=9,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        runs.start(config, watch=stop)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    release = runs.resume(folder / "run")
    assert release is not None
    assert len(release.samples) == 20


def test_the_array_of_labels_is_that_of_the_run_where_the_reference_has_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    labels = np.arange(60) % 2
    np.savez(folder / "named.npz", images=DIGITS[:60], kind=labels)
    np.savez(folder / "plain.npz", images=DIGITS[60:120], labels=labels)
    config = make_config(
        simulator="gallery", private="named.npz", label="kind", classes=("0", "1"), out=folder / "run",
        options={"samples": "grey.npz"}, samples=20, steps=1, epsilon=9,
    )  # fmt: skip
    runs.start(config)
    for reference in ("named.npz", "plain.npz"):
        assert "label_total_variation" in runs.evaluate(folder / "run", (reference,))


@pytest.mark.parametrize("private", ["/rows/x.npz", "file:///rows/x.npz", "local:///rows", "file:/rows/y/../x.npz"])
@pytest.mark.parametrize("public", ["/rows/x.npz", "file:///rows/x.npz", "file:///rows/./x.npz"])
def test_a_local_file_is_private_by_its_url_too(private, public):
    with pytest.raises(simpe.InputError, match="private input"):
        runs._refuse_private((private,), (public,))
    runs._refuse_private((private,), ("file:///other/x.npz",))
    runs._refuse_private((private,), ("s3://rows/x.npz",))
