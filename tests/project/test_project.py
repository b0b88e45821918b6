"""The checkout itself: the pins agree, the Makefile explains itself, and nobody imports what they should not."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

import net2net

OURS = {"experiments", "net2net", "training", "train", "replicate", "figures", "bench", "examples", "tests"}
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
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"net2net"}  # and net2net-<version>.dist-info
    assert "net2net/py.typed" in names


def test_the_wheel_of_the_sdist_works_without_the_checkout(tmp_path):
    """Built from the sdist alone, and imported from where it is unpacked, with torch and safetensors beside it."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path), "--target"]
    subprocess.run([*hatchling, "sdist"], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # not in 3.11.2
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*hatchling, "wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    packages = Path(torch.__file__).parents[1]
    code = f"""
import sys
sys.path[:] = [p for p in sys.path if {str(ROOT)!r} not in p or "site-packages" in p]
sys.path.insert(0, {str(tmp_path / "site")!r})
import torch, net2net
student = net2net.widen(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)),
                        torch.randn(3, 4), factor=2)
print(net2net.__file__, net2net.__version__, student[0].out_features)
"""
    environment = {**ENV, "PYTHONPATH": str(packages)}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    place, version, width = ran.stdout.split()
    assert Path(place).is_relative_to(tmp_path)
    assert (version, width) == (net2net.__version__, "16")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


PACKAGES = ("net2net", "training", "experiments", "replicate", "figures")


def cycles(graph):
    """The groups of modules that import each other, directly or by way of others."""
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count as well: they are where circles hide."""
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]
    names = {}
    for file in [*files, ROOT / "train.py"]:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {name: set() for name in names}
    for name, file in names.items():
        tree = ast.parse(file.read_text(), file)
        types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        names_alone = {inner for block in types for inner in ast.walk(block)}
        for node in set(ast.walk(tree)) - names_alone:
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                within = {f"{node.module}.{alias.name}" for alias in node.names}
                found = {x if x in names else node.module for x in within}
            else:
                continue
            graph[name] |= (found & names.keys()) - {name}
    assert cycles({"a": {"b"}, "b": {"a"}})
    assert cycles(graph) == []


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
    forbidden = (OURS | {"torch", "torchvision", "timm"}) - {"experiments", "figures"}
    assert [x for x in imports("figures") if x[1] in forbidden] == []


def test_the_library_needs_torch_and_safetensors_and_nothing_else():
    allowed = sys.stdlib_module_names | {"torch", "safetensors", "net2net"}
    assert [x for x in imports("net2net") if x[1] not in allowed] == []


def test_nothing_is_loaded_that_could_run_code():
    """Every torch.load says weights_only=True, and only tests, of what a pickle does, unpickle anything."""
    for file in ROOT.rglob("*.py"):
        if any(part.startswith(".") or part == "gpu-day" for part in file.relative_to(ROOT).parts):
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
                assert file.is_relative_to(ROOT / "tests"), where


def test_training_uses_only_the_library_of_ours():
    forbidden = OURS - {"training", "net2net", "experiments"}
    assert [x for x in imports("training") if x[1] in forbidden] == []
