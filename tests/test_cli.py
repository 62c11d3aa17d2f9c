"""The command line as a contract: commands, options, files, exit codes, one-line errors."""

import gzip
import json
import os
import re
import resource
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from simpe.simulators.typefaces import packaged

EXAMPLES = Path(__file__).parents[1] / "examples"


def simpe(*arguments, cwd, expect=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "simpe", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


def error(*arguments, cwd, **options):
    """The one line on standard error of a command that must exit with 2."""
    said = simpe(*arguments, cwd=cwd, expect=2, **options).stderr.strip().splitlines()
    errors = [line for line in said if not line.startswith(("step ", "rendering"))]  # progress may come before
    assert len(errors) == 1, said
    assert errors[0].startswith("simpe: error: ")
    return errors[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def finished(folder):
    (folder / "Own.ttf").write_bytes(packaged("kalam", "Kalam-Light.ttf").read_bytes())
    simpe(
        "digits", "--private", "sklearn", "--epsilon", "1", "--samples", "300", "--steps", "2", "--seed", "3",
        "--font", "Own.ttf", "--save-config", "again.toml", "--out", "run", cwd=folder,
    )  # fmt: skip
    return folder / "run"


def test_a_run_folder_holds_what_may_be_given_away_and_what_may_not(finished):
    release = {path.name for path in (finished / "release").iterdir()}
    assert release == {"samples.npz", "history.npz", "grid.png", "evolution.png", "certificate.json"}
    private = {path.name for path in (finished / "private").iterdir()}
    assert {"ledger.jsonl", "config.toml", "run.log"} <= private
    assert stat.S_IMODE((finished / "private").stat().st_mode) == 0o700
    for name in (*release, "ledger.jsonl", "config.toml", "run.log"):
        assert len(list(finished.rglob(name))) == 1


def test_the_samples_are_images_with_labels_and_parameters(finished):
    with np.load(finished / "release" / "samples.npz") as arrays:
        assert arrays["images"].shape == (300, 28, 28)
        assert arrays["images"].dtype == np.uint8
        assert set(arrays["labels"].tolist()) <= set(range(10))
        assert all(len(arrays[name]) == 300 for name in arrays)
        assert any(name.startswith("param_") for name in arrays)


def test_the_certificate_states_the_guarantee_and_nothing_about_the_input(finished):
    text = (finished / "release" / "certificate.json").read_text()
    certificate = json.loads(text)
    assert certificate["private"] is True
    assert (certificate["epsilon"], certificate["delta"], certificate["relation"]) == (1.0, 1e-6, "add_remove")
    assert certificate["unit"] == "row"
    assert len(certificate["charges"]) == 3
    assert certificate["spent_epsilon"] <= 1
    faces = certificate["public_inputs"]["simulator"]["settings"]["typefaces"]
    assert ("file", "Own.ttf") in {(face["package"], face["file"]) for face in faces}
    assert "1797" not in text  # the number of private rows
    assert str(finished.parent) not in text


def test_the_saved_configuration_repeats_the_run(folder, finished):
    config = tomllib.loads((folder / "again.toml").read_text())
    assert (config["samples"], config["steps"], config["seed"]) == (300, 2, 3)
    simpe("run", "again.toml", "--out", "second", cwd=folder)
    assert (folder / "second" / "release" / "samples.npz").is_file()


def test_resume_of_a_finished_run_exits_0(folder, finished):
    assert "finished already" in simpe("resume", "run", cwd=folder).stdout


def test_evaluate_prints_json_and_keeps_it_private(folder, finished):
    out = simpe("evaluate", "run", "--against", "sklearn", "--task", "classify", cwd=folder).stdout
    found = json.loads(out)
    assert found == json.loads((finished / "private" / "metrics.json").read_text())
    assert found["classify"]["accuracy"] > 0.4
    assert 1 <= found["diversity"]["ancestors"] <= found["diversity"]["survivors"]
    assert found["diversity"]["parents"] >= 1
    assert not (finished / "release" / "metrics.json").exists()
    command = ("evaluate", "run", "--against", "sklearn", "--embedder")
    again = json.loads(simpe(*command, "blurred-pixels", cwd=folder).stdout)
    assert again["feature_space"].startswith("simpe.embedders.images:blurred_pixels")
    assert again["frechet_distance"] != found["frechet_distance"]
    assert "not registered" in error(*command, "blurred", cwd=folder)


def test_report_writes_two_files_and_takes_a_public_reference(folder, finished):
    digits = load_digits()
    np.savez(folder / "public.npz", images=digits.images.astype(np.uint8) * 15, labels=digits.target)
    out = simpe("report", "run", "--against", folder / "public.npz", cwd=folder).stdout
    assert re.findall(r"\S+report.html", out) == ["run/release/report.html", "run/private/report.html"]
    metrics = json.loads((finished / "release" / "metrics.json").read_text())
    assert metrics["against"] == ["public.npz"]  # its name, not where it lies
    text = (finished / "release" / "report.html").read_text()
    assert "Against public.npz" in text
    assert str(folder) not in text
    assert "sklearn" not in text


def test_bad_reports_are_refused(folder, finished):
    assert "private input" in error("report", "run", "--against", "sklearn", cwd=folder)
    assert "private input" in error("evaluate", "run", "--against", "sklearn", "--public", cwd=folder)
    assert "needs --against" in error("report", "run", "--task", "classify", cwd=folder)
    assert "no run folder" in error("report", "nothing", cwd=folder)
    (folder / "half" / "private").mkdir(parents=True)
    (folder / "half" / "private" / "config.toml").write_bytes((finished / "private" / "config.toml").read_bytes())
    assert "not finished; continue it with: simpe resume half" in error("report", "half", cwd=folder)


def test_budget_says_what_steps_cost(folder):
    found = json.loads(
        simpe("budget", "--epsilon", "1", "--delta", "1e-6", "--steps", "8", "--json", cwd=folder).stdout
    )
    assert len(found["releases"]) == 9
    assert found["releases"][-1]["epsilon_so_far"] == pytest.approx(1, abs=1e-6)
    assert found["sigma_with_more_steps"]["9"] > found["releases"][1]["sigma"]
    assert "step 8" in simpe("budget", "--epsilon", "1", "--steps", "8", cwd=folder).stdout


def test_list_names_the_built_in_plug_ins(folder):
    out = simpe("list", cwd=folder).stdout
    assert "digits" in out
    assert "pixels-and-gradients" in out


def test_a_third_party_entry_point_appears_in_list_and_runs(folder, tmp_path):
    package = tmp_path / "site"
    info = package / "bells-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "bells.py").write_text((EXAMPLES / "custom_simulator.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bells\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[simpe.simulators]\nbells = bells:Oscillator\n")
    environment = os.environ | {"PYTHONPATH": str(package)}
    assert "bells" in simpe("list", cwd=folder, env=environment).stdout
    np.savez(tmp_path / "series.npz", samples=np.random.default_rng(0).normal(size=(50, 256)))
    (tmp_path / "bells.toml").write_text(
        'simulator = "bells"\nprivate = "series.npz"\nepsilon = 1\nsamples = 20\nout = "run"\n'
    )
    simpe("run", "bells.toml", cwd=tmp_path, env=environment)
    with np.load(tmp_path / "run" / "release" / "samples.npz") as arrays:
        assert arrays["samples"].shape == (20, 256)
        assert arrays["param_damping"].shape == (20,)


def test_an_export_without_pictures_is_no_error(tmp_path):
    (tmp_path / "mine.py").write_text(
        (EXAMPLES / "custom_simulator.py").read_text()
        + "\n\nclass Silent(Oscillator):\n    def export(self, release, folder):\n"
        + "        (folder / 'rows.txt').write_text('rows')\n"
    )
    np.savez(tmp_path / "series.npz", samples=np.random.default_rng(0).normal(size=(50, 256)))
    (tmp_path / "c.toml").write_text(
        'simulator = "mine:Silent"\nprivate = "series.npz"\nepsilon = 1\nsamples = 5\nsteps = 1\nout = "run"\n'
    )
    said = simpe("run", "c.toml", cwd=tmp_path).stdout
    assert "to give away" in said
    assert "look at" not in said


def test_check_passes_a_good_simulator_and_fails_a_bad_one(tmp_path):
    (tmp_path / "mine.py").write_text(
        (EXAMPLES / "custom_simulator.py").read_text()
        + "\n\nclass Broken(Oscillator):\n    def render(self, p):\n"
        + "        return super().render(p) + torch.rand(len(p['phase']), 1)\n"
    )
    assert "passed" in simpe("check", "mine:Oscillator", cwd=tmp_path).stdout
    assert "fail" in simpe("check", "mine:Broken", cwd=tmp_path, expect=1).stdout


def test_help_teaches_and_every_command_has_some(folder):
    assert "simpe digits" in simpe("--help", cwd=folder).stdout
    for command in ("digits", "run", "resume", "evaluate", "check", "list", "budget"):
        assert len(simpe(command, "--help", cwd=folder).stdout) > 200


def test_help_imports_nothing_heavy(folder):
    code = (
        "import sys; sys.argv = ['simpe', '--help']\n"
        "import simpe.cli\n"
        "try: simpe.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pydantic', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, stdout=subprocess.DEVNULL)


BAD = [
    (["--epsilon", "0"], "--epsilon"),
    (["--epsilon", "-1"], "--epsilon"),
    (["--epsilon", "nan"], "--epsilon"),
    (["--epsilon", "inf"], "--epsilon"),
    (["--epsilon", "much"], "--epsilon"),
    (["--delta", "0"], "--delta"),
    (["--delta", "1"], "--delta"),
    (["--delta", "nan"], "--delta"),
    (["--steps", "0"], "--steps"),
    (["--steps", "900", "--epsilon", "0.001"], "--steps"),
    (["--samples", "0"], "--samples"),
    (["--size", "2"], "--size"),
    (["--relation", "sideways"], "--relation"),
    (["--device", "toaster"], "--device"),
    (["--k", "3"], "--unit"),
    (["--classes", "0,0"], "classes"),
    (["--private", "nowhere"], "nowhere"),
    (["--unit", "writer"], "writer"),
    (["--ledger", "."], "ledger"),
    (["--frobnicate"], "--frobnicate"),
    (["--font", "nothing.ttf"], "nothing.ttf"),
]


@pytest.mark.parametrize(("options", "named"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_options_are_one_line_that_names_them(folder, options, named):
    base = {"--private": "sklearn", "--out": "never"}
    given = [part for pair in base.items() if pair[0] not in options for part in pair]
    assert named in error("digits", *given, *options, cwd=folder)
    assert not (folder / "never").exists()


def test_an_existing_run_folder_is_left_alone(folder, finished):
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))
    assert "exists already" in error("digits", "--private", "sklearn", "--out", "run", cwd=folder)
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*")) == before


def idx(folder, images, labels):
    folder.mkdir()
    head = b"\x00\x00\x08" + bytes([images.ndim]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(head + images.tobytes())
    head = b"\x00\x00\x08\x01" + len(labels).to_bytes(4, "big")
    (folder / "train-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def test_idx_files_make_images_of_their_own_size_and_odd_labels_are_dropped(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.uint8)
    labels[:5] = 99
    idx(tmp_path / "mnist", rng.integers(0, 256, (200, 20, 20)).astype(np.uint8), labels)
    simpe(
        "digits", "--private", "mnist", "--epsilon", "4", "--samples", "30", "--classes", "0,1,2", "--out", "run",
        cwd=tmp_path,
    )  # fmt: skip
    with np.load(tmp_path / "run" / "release" / "samples.npz") as arrays:
        assert arrays["images"].shape == (30, 20, 20)
        assert set(arrays["labels"].tolist()) <= {0, 1, 2}


def test_a_truncated_file_is_named(tmp_path):
    idx(tmp_path / "mnist", np.zeros((20, 8, 8), np.uint8), np.zeros(20, np.uint8))
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-10])
    assert path.name in error("digits", "--private", "mnist", "--out", "run", cwd=tmp_path)
    assert not (tmp_path / "run").exists()


def test_units_of_an_npz_are_the_privacy_unit(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "written.npz", images=rng.integers(0, 256, (120, 12, 12)).astype(np.uint8),
        labels=rng.integers(0, 10, 120), writer=np.arange(120) // 4,
    )  # fmt: skip
    simpe(
        "digits", "--private", "written.npz", "--unit", "writer", "--k", "3", "--relation", "replace_one",
        "--epsilon", "8", "--samples", "20", "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    certificate = json.loads((tmp_path / "run" / "release" / "certificate.json").read_text())
    assert (certificate["unit"], certificate["k"], certificate["relation"]) == ("writer", 3, "replace_one")
    assert certificate["accounting"] == "zCDP"


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    options = ("--private", "sklearn", "--samples", "300", "--steps", "1", "--out", "run")
    said = error("digits", *options, cwd=tmp_path, preexec_fn=small_files, env=environment).lower()
    assert "run" in said
    assert "file too large" in said
    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if name.endswith(".partial")]
    assert "release" not in left
    simpe("resume", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "release" / "samples.npz").is_file()


def test_a_missing_configuration_field_is_named(tmp_path):
    (tmp_path / "c.toml").write_text('private = "sklearn"\nout = "run"\n')
    assert "epsilon is missing" in error("run", "c.toml", cwd=tmp_path)
    (tmp_path / "c.toml").write_text('private = "sklearn"\nepsilon = 1\nout = "run"\ncolour = 3\n')
    assert "colour" in error("run", "c.toml", cwd=tmp_path)
    (tmp_path / "c.toml").write_text("not toml [")
    assert "c.toml" in error("run", "c.toml", cwd=tmp_path)
    assert "absent.toml" in error("run", "absent.toml", cwd=tmp_path)
