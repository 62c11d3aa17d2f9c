"""Draw-text: Pillow's pixels exactly, the published variation, and a run end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

import simpe
from simpe.embedders.images import PixelsAndGradients
from simpe.scheduling import places
from simpe.simulators.drawtext import DrawText


@pytest.fixture(scope="module")
def simulator():
    return DrawText()


def draw(simulator, n, seed=0):
    return simulator.space.sample(n, torch.Generator().manual_seed(seed)) | {"label": torch.arange(n) % 10}


def drawn_by_pillow(simulator, p, i):
    """What the authors' code does for one sample."""
    image = Image.new("L", (28, 28))
    pen = ImageDraw.Draw(image)
    path, text = str(simulator._files[p["font"][i]]), simulator.classes[p["text"][i]]
    font = ImageFont.truetype(path, int(p["font_size"][i]), layout_engine=ImageFont.Layout.BASIC)
    stroke = int(p["stroke_width"][i])
    _, _, w, h = pen.textbbox((0, 0), text, font=font, stroke_width=stroke)
    pen.text(((28 - w) / 2, (28 - h) / 2), text, font=font, fill=255, stroke_width=stroke, stroke_fill=255)
    return np.asarray(image.rotate(int(p["rotation"][i])))


def agrees(simulator, p, drawn_with):
    return np.array_equal(
        simulator.render(p).numpy(), [drawn_by_pillow(simulator, drawn_with, i) for i in range(len(p["label"]))]
    )


def test_samples_are_pillow_s_pixel_for_pixel(simulator):
    p = draw(simulator, 100)
    assert agrees(simulator, p, p)


@pytest.mark.parametrize("name", ["font", "text", "font_size", "stroke_width", "rotation"])
def test_that_check_can_fail(simulator, name):
    p = draw(simulator, 30)
    first, last = {"font_size": (10, 29), "rotation": (-30, 30), "stroke_width": (0, 2)}.get(name, (0, 9))
    assert not agrees(simulator, p, p | {name: torch.where(p[name] < last, p[name] + 1, first)})


def test_it_passes_the_checks(simulator):
    assert [str(finding) for finding in simpe.check_simulator(simulator) if not finding.ok] == []


def test_the_label_is_not_looked_at(simulator):
    p = draw(simulator, 50)
    assert torch.equal(simulator.render(p), simulator.render(p | {"label": torch.zeros(50, dtype=torch.long)}))


@pytest.mark.parametrize(
    ("step", "new_font", "size", "rotation", "stroke"),
    [(0, 0.8, 5, 9, 1), (1, 0.4, 4, 7, 1), (2, 0.2, 3, 5, 0), (3, 0.0, 2, 3, 0)],
)
def test_the_variation_of_each_step_is_the_published_one(simulator, step, new_font, size, rotation, stroke):
    n, middle = 20_000, {"font_size": 20, "rotation": 0, "stroke_width": 1, "text": 3, "font": 5}
    p = {name: torch.full((n,), value) for name, value in middle.items()}
    varied = simulator.variation(p, DrawText.strategy.strength_at(step), torch.Generator().manual_seed(step))
    for name, farthest in (("font_size", size), ("rotation", rotation), ("stroke_width", stroke), ("text", 0)):
        moves, counts = (varied[name] - middle[name]).unique(return_counts=True)
        assert moves.tolist() == list(range(-farthest, farthest + 1))
        assert (counts / n - 1 / len(counts)).abs().max() < 0.02
    assert (varied["font"] != 5).double().mean() == pytest.approx(new_font * 36 / 37, abs=0.02)


def test_variation_stops_at_the_ends(simulator):
    p = {name: torch.zeros(500, dtype=torch.long) for name in ("font", "text", "stroke_width")}
    ends = p | {"font_size": torch.full((500,), 29), "rotation": torch.full((500,), -30)}
    varied = simulator.variation(ends, 0.8, torch.Generator().manual_seed(0))
    assert (varied["font_size"] == 29).double().mean() == pytest.approx(6 / 11, abs=0.1)  # clamped, not reflected
    assert varied["rotation"].min() == -30


def test_the_strategy_keeps_as_many_candidates_as_samples_in_every_class():
    assert places([6000.0, 5400.0], 8.0, [6100, 5300], DrawText.strategy) == [6100, 5300]
    assert DrawText.strategy.start == 1
    noise = simpe.schedule(simpe.Budget(epsilon=1, delta=1e-5), 4).vote_noise[0]
    assert DrawText.strategy.threshold * noise == pytest.approx(1, abs=0.01)


def test_a_small_run_end_to_end():
    real = load_digits()
    images = (real.images * 255 / 16).round().astype(np.uint8)
    private = simpe.PrivateData(
        images,
        real.target.astype(str),
        budget=simpe.Budget(epsilon=10, delta=1e-5),
        noise=lambda sigma, n, address: np.zeros(n, dtype=np.int64),
    )
    strategy = replace(DrawText.strategy, threshold=1.0, lookahead=2)
    embedder = PixelsAndGradients(size=8)
    release = simpe.evolve(DrawText(), embedder, private, samples=600, steps=2, strategy=strategy)
    assert release.samples.shape == (600, 28, 28)
    assert len(release.params["text"]) == 600
    # The text is no label: votes alone bring the two together; chance is 0.1. There is no noise here, so the figure
    # repeats (0.33).
    agreed = (release.params["text"] == release.labels).double().mean()
    assert agreed > 0.25


def test_public_inputs_name_every_font_once_and_are_json(simulator):
    inputs = simulator.public_inputs()
    assert json.loads(json.dumps(inputs)) == inputs
    assert len(inputs["typefaces"]) == len(simulator._files)
    assert all(len(face["sha256"]) == 64 and face["package"].startswith("fontpkg-") for face in inputs["typefaces"])


def test_other_texts_and_fonts_of_ones_own(tmp_path, simulator):
    (tmp_path / "own.ttf").write_bytes(simulator._files[0].read_bytes())
    more = DrawText(classes=["10", "b"], fonts=[tmp_path])
    assert len(more.space["font"]) == len(simulator.space["font"]) + 1
    assert len(more.space["text"]) == 2
    assert more.public_inputs()["typefaces"][-1]["package"] == "file"


@pytest.mark.parametrize("classes", [[], ["1", "1"]])
def test_classes_must_differ(classes):
    with pytest.raises(ValueError, match="different texts"):
        DrawText(classes)


def test_a_font_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        _ = DrawText(fonts=["no-such-folder"]).space
