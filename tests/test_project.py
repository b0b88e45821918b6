"""The checkout itself: the pins agree, the Makefile explains itself, and nobody imports what they should not."""

import ast
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OURS = {"net2net", "training", "train", "replicate", "figures", "bench", "examples", "tests"}
# A make called by the make that runs these tests would inherit its flags and variables.
ENV = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}}


def pins(lines):
    """The `name==version` lines as a dict; a second pin of the same name is an error."""
    found = {}
    for line in lines:
        requirement = Requirement(line.split("#")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        name = canonicalize_name(requirement.name)
        assert found.setdefault(name, specifier.version) == specifier.version, line
    return found


@pytest.fixture(scope="module")
def locked():
    return pins(x for x in (ROOT / "requirements.txt").read_text().splitlines() if not x.startswith("#"))


@pytest.fixture(scope="module")
def direct():
    """Everything that pyproject.toml asks for by name, the build backend too."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    asked = [
        *project["dependencies"],
        *(x for extra in project["optional-dependencies"].values() for x in extra),
        *pyproject["build-system"]["requires"],
    ]
    return [Requirement(x) for x in asked]


def test_the_lock_satisfies_pyproject(direct, locked):
    for requirement in direct:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not allow the locked {version}"


def test_conda_installs_the_locked_versions(direct, locked):
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (x["pip"] for x in dependencies if isinstance(x, dict))
    assert pip[-1] == "-e ."
    names = {canonicalize_name(x.name) for x in direct}
    assert pins(pip[:-1]) == {name: locked[name] for name in names}


def test_the_lock_names_no_place():
    text = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"://|--|^\s*-| @ |(^|[\s=])[./~]*/", text, re.MULTILINE)


def make(*arguments, cwd=ROOT):
    return subprocess.check_output(["make", *arguments], cwd=cwd, env=ENV, stdin=subprocess.DEVNULL, text=True)


def test_help_describes_every_target():
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    described = dict(re.findall(r"^  make (\S+) +(\S.*)$", make("help"), re.MULTILINE))
    assert sorted(described) == sorted(phony)
    assert make() == make("help")


def test_setup_runs_once_and_again_when_the_pins_change(tmp_path):
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    stamp = tmp_path / ".venv" / ".installed"
    assert "tools/setup.sh" in make("-n", "figures", cwd=tmp_path)
    stamp.parent.mkdir()
    stamp.touch()
    assert "tools/setup.sh" not in make("-n", "figures", cwd=tmp_path)
    for name in ("requirements.txt", "pyproject.toml"):
        later = time.time() + 10
        os.utime(tmp_path / name, (later, later))
        assert "tools/setup.sh" in make("-n", "figures", cwd=tmp_path), name
        os.utime(stamp, (later, later))


def test_the_wheel_holds_only_the_library(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0].split("-")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"net2net"}  # the package, and net2net-<version>.dist-info


def test_the_editable_install_finds_the_checkout(tmp_path):
    names = ["figures", "net2net", "replicate", "train", "training"]
    code = f"from importlib.util import find_spec\nfor name in {names}: print(find_spec(name).origin)"
    found = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True).splitlines()
    parts = [Path(x).resolve().relative_to(ROOT.resolve()).parts[0] for x in found]
    assert parts == ["figures", "net2net", "replicate", "train.py", "training"]


def imports(package):
    """(file, top-level name) of every absolute import in a package, those inside functions too."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no Python file"
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(), file)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            yield from ((str(file.relative_to(ROOT)), name.split(".")[0]) for name in names)


def test_figures_need_neither_torch_nor_our_code():
    forbidden = (OURS | {"torch", "torchvision", "timm"}) - {"figures"}
    assert [x for x in imports("figures") if x[1] in forbidden] == []


def test_the_library_needs_torch_and_safetensors_and_nothing_else():
    allowed = sys.stdlib_module_names | {"torch", "safetensors", "net2net"}
    assert [x for x in imports("net2net") if x[1] not in allowed] == []


def test_nothing_is_loaded_that_could_run_code():
    """Every torch.load says weights_only=True, and only tests, of what a pickle does, unpickle anything."""
    for file in ROOT.rglob("*.py"):
        if any(part.startswith(".") for part in file.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(), file)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called = ast.unparse(node.func)
            where = f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
            if called == "torch.load":
                safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
                assert safe, where
            elif called in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"):
                assert file.parent == ROOT / "tests", where


def test_training_uses_only_the_library_of_ours():
    forbidden = OURS - {"training", "net2net"}
    assert [x for x in imports("training") if x[1] in forbidden] == []
