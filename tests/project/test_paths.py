"""`~` and `$VAR` in the paths of every command line: a shell leaves `--out=~/x` and quoted words as they are."""

import re
from functools import partial

import pytest
from finished import add
from images import make_folders
from places import ROOT

import train
from experiments.paths import PathError, expanded
from figures import claims
from figures.command import main as draw
from replicate import clean, launch, new_scale, record, status, study
from training.data.__main__ import main as prepare


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/a b", "/home/me/a b"),
        ("$DISK/x", "/disk/x"),
        ("${DISK}_2", "/disk_2"),
        ("a/~/$", "a/~/$"),
        ("a$-b", "a$-b"),
    ],
)
def test_what_a_path_stands_for(text, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/disk")
    assert str(expanded(text)) == path


@pytest.mark.parametrize("text", ["", " ", "a\0b", "$NOWHERE_AT_ALL/x", "${NOWHERE_AT_ALL}"])
def test_what_stands_for_no_path_is_an_error(text):
    with pytest.raises(PathError, match=r"expected a path|is not set here: set it, or write the path out"):
        expanded(text)


def test_every_option_of_a_path_is_read_by_it():
    files = [
        ROOT / "train.py",
        *(f for part in ("training", "replicate", "figures") for f in (ROOT / part).rglob("*.py")),
    ]
    found = {file: re.findall(r"type=(Path|to_path|to_folder)\b", file.read_text()) for file in files}
    assert sum(len(types) for types in found.values()) >= 20
    assert not [name for name, types in found.items() if "Path" in types]


def test_commands_go_where_a_variable_points(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    monkeypatch.chdir(tmp_path)
    make_folders(tmp_path / "place" / "images")
    for arm in ("teacher_narrow", "standard", "wider", "random_pad"):
        add(tmp_path / "place" / "runs" / "smoke", arm, 0, [60, 80])
    (tmp_path / "place" / "runs" / "smoke" / "wider" / "seed7").mkdir()
    (tmp_path / "cluster.yaml").write_text("partition: here\ngpus_per_node: 1\nminutes: 60\n")
    (tmp_path / "place" / "configs" / "imagenet").mkdir(parents=True)
    plan = ["--smoke", "--dry-run", "--runs", "$PLACE/runs"]
    calls = {
        "check": lambda: prepare(["check", "~/place/images", "--own", "--fast", "--list=$PLACE/list"]),
        "resize": lambda: prepare(["resize", "$PLACE/images", "~/small", "--short-side=20", "--workers=0"]),
        "plan": lambda: launch.main("", (), plan),
        "cluster": lambda: launch.main("", (), [*plan[:1], *plan[2:], "--launcher=print", "--cluster=~/cluster.yaml"]),
        "status": lambda: status.main(["--scale=smoke", "--runs=~/place/runs"]),
        "clean": lambda: clean.main(["--runs=~/place/runs", "--yes"]),
        "record": lambda: record.main(["smoke", "--runs=~/place/runs", "--results=$PLACE/results"]),
        "study": lambda: study.main(["--dry-run", "--runs=~/place/runs", "sweep_rate"]),
        "figure": lambda: draw("fig4", argv=["~/place/runs/smoke", "--out=~/drawn"]),
    }
    said = {}
    for name, call in calls.items():
        assert call() == 0, f"{name}: {capsys.readouterr().err}"
        said[name] = capsys.readouterr().out
        assert "$PLACE" not in said[name]
        assert "~" not in said[name]
    assert (tmp_path / "place" / "list").exists()
    assert (tmp_path / "small" / "resize.json").exists()
    assert "wider/seed7" in said["status"]
    assert "partition=here" in said["cluster"]
    assert not (tmp_path / "place" / "runs" / "smoke" / "wider" / "seed7").exists()
    assert (tmp_path / "place" / "results" / "smoke" / "wider" / "seed0" / "run.json").exists()
    assert (tmp_path / "drawn" / "fig4.pdf").exists()
    assert not {"~", "$PLACE"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (train.main, ["$NOWHERE_AT_ALL/x.yaml"]),
        (train.main, ["configs/smoke/standard.yaml", "--out="]),
        (lambda words: launch.main("", (), words), ["--runs", ""]),
        (lambda words: draw("fig4", argv=words), [""]),
        (claims.main, ["--out", "$NOWHERE_AT_ALL"]),
        (clean.main, ["--runs", "$NOWHERE_AT_ALL"]),
        (new_scale.main, ["mine", "--data", "x", "--configs", "$NOWHERE_AT_ALL"]),
        (prepare, ["check", ""]),
        (prepare, ["resize", "", "x"]),
    ],
)
def test_a_path_of_an_empty_variable_is_no_path(call, words, capsys):
    """`--out $OUT` with no OUT is not the folder that one happens to be in."""
    with pytest.raises(SystemExit, match="2"):
        call(words)
    assert re.search("expected a path, got ''|NOWHERE_AT_ALL is not set here", capsys.readouterr().err)


@pytest.mark.parametrize("where", ["file", "file/runs"])
@pytest.mark.parametrize("command", [partial(launch.main, "", ()), study.main, status.main, record.main, clean.main])
def test_a_folder_that_is_a_file_is_named(tmp_path, monkeypatch, capsys, command, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        command([*(["laptop"] if command is record.main else []), "--runs", where])
    assert stopped.value.code == 2
    assert "argument --runs: expected a folder, file is a file" in capsys.readouterr().err
