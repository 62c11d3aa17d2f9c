"""Rules of the house, kept by machine: the engine knows no domain, public names are documented, examples run."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import simpe

ROOT = Path(__file__).parents[1]
APP = ROOT / "simpe" / "federated" / "app"  # Flower's to import
ENGINE = sorted(path for path in (ROOT / "simpe").rglob("*.py") if path.parent != APP)
PLUMBING = {"cli.py", "runs.py", "config.py"}  # the command line may name a domain


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def domains(path):
    return [name for name in imported(path) if name.startswith(("simpe.simulators", "simpe.embedders"))]


def test_the_engine_imports_no_domain():
    engine = [path for path in ENGINE if path.parent.name != "metrics" and path.name not in PLUMBING]
    offenders = {path.name: domains(path) for path in engine if domains(path)}
    assert offenders == {}


def test_that_check_can_fail(tmp_path):
    (tmp_path / "x.py").write_text("from simpe.simulators import digits\n")
    assert domains(tmp_path / "x.py")


def test_the_engine_uses_no_ambient_randomness():
    pattern = re.compile(r"np\.random\.(seed|rand|normal|choice|randint|shuffle|uniform)\(|^import random$|manual_seed")
    # The checker holds the global generators still to see whether a plug-in moves them.
    engine = [path for path in ENGINE if path.name != "check.py"]
    places = [*engine, *(ROOT / "simulators").rglob("*.py"), *(ROOT / "embedders").rglob("*.py")]
    lines = [(path.name, line) for path in places for line in path.read_text().splitlines() if pattern.search(line)]
    assert [line for line in lines if "torch.Generator()" not in line[1]] == []


@pytest.mark.parametrize("name", simpe.__all__)
def test_every_public_name_exists_and_is_documented(name):
    found = getattr(simpe, name)
    assert inspect.getdoc(found)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute"):
        simpe.nothing  # noqa: B018


def test_every_module_imports_on_its_own():
    for path in ENGINE:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__main__", "__init__"):
            importlib.import_module(".".join(parts))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example, tmp_path):
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_s_python_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    code = "\n".join(blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_s_commands_exist():
    commands = set(re.findall(r"^ *simpe ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert commands
    for command in commands:
        subprocess.run([sys.executable, "-m", "simpe", command, "--help"], check=True, stdout=subprocess.DEVNULL)
