"""Generated wrong inputs for every entry point: a sentence and exit code 2, or it works; no traceback, no hang.

Good inputs are written and then damaged at random: text in its bytes, lines, values and structure; folders of images
and of runs in their files; words of a command line; and, from a table, environments. A case's number makes it:
`NET2NET_FUZZ=1000 pytest tests/project/test_wrong_inputs.py` tries so many of each kind, other ones each time, and
`NET2NET_FUZZ=1 NET2NET_FUZZ_FROM=NUMBER` one that it named.
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from finished import add
from images import contents, make_folders, make_shards
from places import ROOT
from safetensors.torch import save_file
from torch import nn

import experiments
import train
from experiments.output import script
from experiments.reading import YamlError
from figures import claims
from figures.command import main as draw
from net2net import __main__ as library
from replicate import clean, launch, new_scale, record, status, study
from training.config import _keys
from training.data.__main__ import main as prepare

BUDGET = int(os.environ.get("NET2NET_FUZZ", 0))
FIRST = int(os.environ.get("NET2NET_FUZZ_FROM", random.randrange(10**9) if BUDGET else 0))
TOGETHER = 60.0  # seconds that no single case may take

VALUES = [
    *("null", "[]", "{}", "word", "''", "-1", "0", "1", "0.5", "1e400", ".inf", ".nan", "0100", "1:30", "yes", "true"),
    *("99999999999999999999999", "1e-300", "[[[]]]", "../..", "~", "$HOME", "$NOWHERE/a", "é", "/dev/null", "|"),
    *("/proc/self/mem", "!!python/name:os.system", "2026-01-01"),
]
VALUES += ["[1, 2", "{a: {a: {a: 1}}}", "&a [*a]", "a" * 5000, "\u202e"]
PLAUSIBLE = ["2", "3", "7", "0.9", "1e-3", "true", "false", "cosine", "float32", "modules", "cpu", "standard"]
BITS = "\t|:|: |{|[|}|]|,|- |-|&a |*a|'|\"|#|\r|\n\n|? |%YAML 9\n|---\n|...\n|<<: *a\n|ключ: 1\n|e9|\u202e"
BITS = [*(bit.encode() for bit in BITS.split("|")), b"|\n", b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xe9"]
BITS += [b"!!python/object:os.system "]


def damaged(text: bytes, rng: random.Random) -> bytes:
    """One to three faults in it."""
    for _ in range(rng.randint(1, 3)):
        at, lines = rng.randrange(len(text) + 1), text.splitlines(keepends=True) or [b""]
        line = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            text = text[:at] + rng.choice(BITS) + text[at:]
        elif kind == 2:  # another value for a key, of YAML or of JSON
            key, sign, _ = lines[line].partition(b":")
            lines[line] = key + sign + b" " + rng.choice(VALUES).encode() + b"\n" if sign else lines[line] * 2
            text = b"".join(lines)
        elif kind == 3:
            text = b"".join(lines[:line] + lines[line + 1 :])
        elif kind == 4:
            text = b"".join([*lines[: line + 1], lines[line], *lines[line + 1 :]])
        elif kind == 5:
            text = b"".join([*lines[:line], b"  " + lines[line], *lines[line + 1 :]])
        elif kind == 6:
            rng.shuffle(lines)
            text = b"".join(lines)
        else:
            text = text[:at] + text[at + rng.randint(1, 40) :]
    return text


def misplaced(path: Path, rng: random.Random) -> None:
    """A file that is damaged, empty, gone, a folder, a dead link, or another of its folder."""
    kind = rng.randrange(8)
    if kind < 4:
        path.write_bytes(damaged(path.read_bytes(), rng))
        return
    others = sorted(other for other in path.parent.iterdir() if other.is_file())
    content = rng.choice(others).read_bytes()
    path.unlink()
    if kind == 4:
        path.mkdir()
    elif kind == 5:
        path.symlink_to("nowhere")
    elif kind == 6:
        path.write_bytes(content)


# ---- the entry points, each with a good input and a way to damage it


def of_configs(folder, rng):
    """A file of configs/ is damaged: a scale's, an arm's, or the one it extends."""
    configs = shutil.copytree(ROOT / "configs", folder / "configs")
    files = [configs / "smoke" / "base.yaml", configs / "laptop" / "base.yaml", *sorted((configs / "arms").iterdir())]
    misplaced(rng.choice(files), rng)
    return configs


def plan_of_damaged_configs(folder, rng):
    words = ["--scale", "smoke", "--configs", str(of_configs(folder, rng)), "--runs", str(folder / "runs"), "--dry-run"]
    return lambda: launch.main("", (), words)


def status_of_damaged_configs(folder, rng):
    words = ["--scale", "smoke", "--configs", str(of_configs(folder, rng)), "--runs", str(folder / "runs")]
    return lambda: status.main(words)


SMALL = ("training.steps=1", "training.eval_every=1", "training.batch_size=100", "training.bn_batch_size=100")
SMALL = (*SMALL, "data.val_images=4", "model.width=0.1")  # of what trains after all


def training_of_damaged_configs(folder, rng):
    file = of_configs(folder, rng) / "smoke" / f"{rng.choice(['standard', 'teacher_narrow'])}.yaml"
    sets = [word for value in SMALL for word in ("--set", value)]
    return lambda: train.main([str(file), "--out", str(folder / "out"), *sets])


def training_of_wrong_words(folder, rng):
    key = rng.choice([k for k in _keys() if k not in ("data.root", "training.steps", "data.name", "wandb.mode")])
    value = rng.choice(rng.choice([VALUES, PLAUSIBLE]))
    sets = [*SMALL, f"{key}={value}" if rng.random() < 0.9 else value]
    words = [str(ROOT / "configs" / "smoke" / "standard.yaml"), "--out", str(folder / "out")]
    words += [word for value in sets for word in ("--set", value)]
    if rng.random() < 0.2:
        words += ["--seed", rng.choice(VALUES)]
    return lambda: train.main(words)


def jobs_of_a_damaged_cluster(folder, rng):
    cluster = folder / "cluster.yaml"
    cluster.write_bytes((ROOT / "replicate" / "cluster.example.yaml").read_bytes())
    misplaced(cluster, rng)
    words = ["--smoke", "--runs", str(folder / "runs"), "--launcher", "print", "--cluster", str(cluster)]
    return lambda: launch.main("", ("fig4",), words)


def claims_of_a_damaged_file(folder, rng):
    (folder / "results").mkdir()
    file = folder / "results" / "claims.yaml"
    file.write_bytes((ROOT / "results" / "claims.yaml").read_bytes())
    misplaced(file, rng)
    return lambda: claims.main([str(folder / "results"), "--out", str(folder / "out")])


def a_damaged_table_of_experiments(folder, rng):
    name = rng.choice(["figures.yaml", "study.yaml"])
    file = folder / name
    file.write_bytes((ROOT / "experiments" / name).read_bytes())
    misplaced(file, rng)

    def call():
        try:
            experiments.figures(file) if name == "figures.yaml" else experiments.study(file)
        except YamlError as error:  # the scripts print it, and end with 2
            print(error, file=sys.stderr)
            return 2
        return 0

    return call


def runs_with_a_damaged_file(folder, rng):
    for arm, levels in {
        "teacher_narrow": (60, 80),
        "standard": (20, 82),
        "wider": (79, 83),
        "random_pad": (50, 81),
    }.items():
        for seed in (0, 1):
            add(folder / "runs" / "smoke", arm, seed, [*levels], teacher="teacher_narrow" if arm == "wider" else None)
    files = sorted(path for path in (folder / "runs").rglob("*") if path.is_file())
    for noted in rng.sample(files, 2):
        (noted.parent / "job.json").write_text(json.dumps({"started": 1.5, "host": "here", "pid": 1}))
        (noted.parent / "progress.json").write_text(json.dumps({"step": 3}))
    files = sorted(path for path in (folder / "runs").rglob("*") if path.is_file())
    misplaced(rng.choice(files), rng)
    return folder / "runs"


def status_of_damaged_runs(folder, rng):
    runs = runs_with_a_damaged_file(folder, rng)
    return lambda: status.main(["--scale", "smoke", "--runs", str(runs), *rng.choice([[], ["--json"]])])


def plan_of_damaged_runs(folder, rng):
    words = ["--smoke", "--dry-run", "--runs", str(runs_with_a_damaged_file(folder, rng))]
    return lambda: launch.main("", ("fig4",), words)


def cleaning_of_damaged_runs(folder, rng):
    runs = runs_with_a_damaged_file(folder, rng)
    return lambda: clean.main(["--runs", str(runs), "--yes"])


def records_of_damaged_runs(folder, rng):
    runs = runs_with_a_damaged_file(folder, rng)
    return lambda: record.main(["smoke", "--runs", str(runs), "--results", str(folder / "results")])


def figures_of_damaged_runs(folder, rng):
    runs = runs_with_a_damaged_file(folder, rng)
    words = [str(runs / "smoke"), "--out", str(folder / "out"), *rng.choice([[], ["--partial"]])]
    return lambda: draw("fig4", argv=words)


def commands_of_wrong_words(folder, rng):
    """A value that is none, in the place of one."""
    runs, wrong = str(folder / "runs"), rng.choice(VALUES)
    plan = ["--smoke", "--dry-run", "--runs", runs]
    ways = [
        lambda: launch.main("", (), [*plan, "--set", wrong]),
        lambda: launch.main("", (), [*plan, "--set", f"data.root={wrong}"]),
        lambda: launch.main("", (), [*plan, "--seeds", wrong]),
        lambda: launch.main("", (), [*plan, "--jobs", wrong]),
        lambda: launch.main("", (), ["--dry-run", "--runs", runs, "--scale", wrong]),
        lambda: launch.main("", (), ["--smoke", "--dry-run", "--runs", wrong]),
        lambda: study.main(["--dry-run", "--runs", runs, "--seeds", wrong]),
        lambda: study.main([wrong, "--dry-run", "--runs", runs]),
        lambda: status.main(["--scale", wrong, "--runs", runs]),
        lambda: status.main(["--runs", wrong]),
        lambda: draw("fig5", argv=[wrong, "--out", str(folder / "out")]),
        lambda: draw("fig5", argv=[str(folder), "--out", wrong]),
        lambda: claims.main([wrong, "--out", str(folder / "out")]),
        lambda: clean.main(["--runs", wrong]),
        lambda: record.main([wrong, "--runs", runs, "--results", str(folder / "results")]),
        lambda: new_scale.main([wrong, "--data", wrong, "--configs", str(folder)]),
        lambda: prepare(["check", wrong, "--fast", "--own"]),
        lambda: prepare(["sort-val", wrong]),
        lambda: prepare(["resize", wrong, str(folder / "small"), "--workers", "0"]),
        lambda: prepare(["resize", str(folder), wrong, "--workers", "0"]),
    ]
    return rng.choice(ways)


ODD = ("notes.txt", ".hidden.JPEG", "Thumbs.db", "a b.JPEG", "\u202e.jpg", "x.JPEG.part", "image", "A.JPG", "-.png")


def folders_of_damaged_images(folder, rng):
    root = make_folders(folder / "images")
    for _ in range(rng.randint(1, 3)):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        folders = sorted(path for path in root.rglob("*") if path.is_dir())
        if not files:
            break
        file, place, kind = rng.choice(files), rng.choice(folders), rng.randrange(10)
        if kind < 2:
            misplaced(file, rng)
        elif kind == 2:
            place.unlink() if place.is_symlink() else shutil.rmtree(place)
        elif kind == 3:
            (place / rng.choice(ODD)).write_bytes(rng.choice([b"", b"text", contents(3), b"\xff\xd8\xff" + bytes(50)]))
        elif kind == 4:
            (place / rng.choice(["extra", "n00000007", ".cache", "images", "train", "1"])).mkdir(exist_ok=True)
        elif kind == 5:
            shutil.move(place, place.with_name(rng.choice(["other", "VAL", "validation", "n0", "é"])))
        elif kind == 6:
            (place / f"loop{len(folders)}").symlink_to(root, target_is_directory=True)
        elif kind == 7:
            shutil.move(file, root / file.name)
        elif kind == 8:
            file.write_bytes(b"")
        else:
            file.rename(file.with_suffix(rng.choice([".txt", "", ".webp", ".TIFF", ".jpeg~"])))
    words = ["check", str(root), "--own", "--workers=0", *rng.choice([[], ["--fast"]])]
    return lambda: prepare(words)


def shards_of_damaged_images(folder, rng):
    folders = make_folders(folder / "images")
    root = make_shards(folders, folder / "shards", label=rng.choice(["cls", "json"]))
    shard = rng.choice(sorted(root.rglob("*.tar")))
    if rng.random() < 0.5:
        misplaced(shard, rng)
    else:  # a member with another label, name or content
        with tarfile.open(shard) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers() if m.isfile()]
        shard.unlink()
        which = rng.randrange(len(members))
        wrong = rng.choice(
            [b"", b"-1", b"x", b"1e3", b"7", b"\xff", b"null", b'{"label": null}', b'{"label": "cat"}', b"{}"]
        )
        name = members[which][0]
        stem, _, ending = name.rpartition(".")
        named = rng.choice([name, f"{stem}.txt", f"../{name}", f"{stem}.{ending}.gz", ending, f"{stem}x.{ending}"])
        members[which] = named, rng.choice([wrong, members[which][1]])
        with tarfile.open(shard, rng.choice(["w", "w:gz"])) as tar:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    words = ["check", str(root), "--own", "--workers=0", *rng.choice([[], ["--fast"]])]
    return lambda: prepare(words)


def resizing_of_damaged_images(folder, rng):
    root = make_folders(folder / "images")
    misplaced(rng.choice(sorted(path for path in root.rglob("*") if path.is_file())), rng)
    words = ["resize", str(root), str(folder / "small"), "--short-side", "32", "--workers", "0"]
    return lambda: prepare(words)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def library_with_wrong_words(folder, rng):
    model, path = f"{__name__}:net", folder / "teacher.safetensors"
    save_file(net().state_dict(), path)
    teacher = ["--weights", str(path), "--input", "3x8x8", "--out", str(folder / "student.safetensors")]
    wrong = rng.choice([*VALUES, "3x8", "1.5.2", "0x0", "0=8", "0.weight=8", "4=3"])
    ways = [
        ["widen", model, *teacher, "--factor", wrong],
        ["widen", model, *teacher, "--width", wrong],
        ["widen", model, *teacher, "--noise", wrong],
        ["widen", model, *teacher, "--seed", wrong],
        ["widen", model, *teacher, "--new-head", wrong],
        ["widen", model, *teacher, "--multiple-of", wrong],
        ["deepen", model, *teacher, "--after", wrong],
        ["explain", model, "--input", wrong],
        ["explain", wrong, "--input", "3x8x8"],
        [wrong, model],
    ]
    words = rng.choice(ways)
    return lambda: library.main(words)


def library_with_damaged_files(folder, rng):
    model, student = f"{__name__}:net", folder / "student.safetensors"
    path = folder / rng.choice(["teacher.safetensors", "teacher.pt"])
    save_file(net().state_dict(), path) if path.suffix == ".safetensors" else torch.save(net().state_dict(), path)
    words = [model, "--weights", str(path), "--input", "3x8x8"]
    if rng.random() < 0.5:
        misplaced(path, rng)
        return lambda: library.main(["widen", *words, "--factor", "1.5", "--out", str(student)])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert library.main(["widen", *words, "--factor", "1.5", "--out", str(student)]) == 0
    misplaced(rng.choice(sorted(folder.glob("student*"))), rng)
    return lambda: library.main(["verify", *words, "--student", str(student)])


# ---- environments

LONG = "a" * 60


def variables(**values):
    def arrange(folder):
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return arrange


def closed(*fds):
    def arrange(folder):
        for fd in fds:
            os.close(fd)

    return arrange


def onto(path, fd):
    return lambda folder: os.dup2(os.open(path, os.O_WRONLY), fd)


def few_files(folder):
    few = max(24, max(map(int, os.listdir("/proc/self/fd"))) + 8)  # the worker of the tests has files of its own
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))


def little_space(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def long_tmpdir(folder):
    path = folder / LONG / LONG / LONG
    path.mkdir(parents=True)
    os.environ["TMPDIR"] = str(path)


def no_folder_to_be_in(folder):
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()


ENVIRONMENTS = {
    **{f"RANK={value}": variables(RANK=value) for value in ("", " ", "x", "-1", "3")},
    **{f"WORLD_SIZE={value}": variables(WORLD_SIZE=value) for value in ("", "0", "1.0")},
    "LOCAL_RANK=9": variables(LOCAL_RANK="9"),
    "a scheduler's": variables(SLURM_JOB_ID="x", SLURM_NTASKS="", SLURM_CPUS_PER_TASK="many", SLURM_JOB_NODELIST="?"),
    "a GPU that is not there": variables(SLURM_JOB_ID="1", SLURM_GPUS_ON_NODE="1", CUDA_VISIBLE_DEVICES="0"),
    "no HOME": variables(HOME=None, XDG_CACHE_HOME=None),
    "a HOME that is none": variables(HOME="/dev/null/home", XDG_CACHE_HOME="/dev/null/cache"),
    "no TMPDIR": variables(TMPDIR="/nowhere"),
    "long TMPDIR": long_tmpdir,
    "no words": variables(LANG="C", LC_ALL="POSIX", TERM="", COLUMNS="x"),
    "umask 777": lambda folder: os.umask(0o777),
    "umask 000": lambda folder: os.umask(0),
    "closed stdin": closed(0),
    "closed stdout": closed(1),
    "closed stdin and stdout": closed(0, 1),
    "full stdout": onto("/dev/full", 1),
    "few files": few_files,
    "little space": little_space,
    "no folder to be in": no_folder_to_be_in,
}


def training(folder):
    sets = [word for value in SMALL for word in ("--set", value)]
    return train.main([str(ROOT / "configs" / "smoke" / "standard.yaml"), "--out", str(folder / "out"), *sets])


def planning(folder):
    return launch.main("", (), ["--smoke", "--dry-run", "--runs", str(folder / "runs")])


def checking(folder):
    workers = os.environ.get("TMPDIR") or resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 100
    return prepare(["check", str(folder / "images"), "--own", f"--workers={int(bool(workers))}"])


# What begins no process and no training: the rest of the entry points, each on what lies in `things`.


def statuses(folder):
    return status.main(["--scale", "smoke", "--runs", str(folder / "things" / "runs")])


def cleaning(folder):
    return clean.main(["--runs", str(folder / "things" / "runs")])


def recording(folder):
    return record.main(["smoke", "--runs", str(folder / "things" / "runs"), "--results", str(folder / "results")])


def studying(folder):
    return study.main(["--dry-run", "--runs", str(folder / "things" / "runs"), "sweep_rate", "--seeds", "1"])


def drawing(folder):
    return draw("fig4", argv=[str(folder / "things" / "runs" / "smoke"), "--out", str(folder / "out")])


def claiming(folder):
    (folder / "none").mkdir()
    shutil.copyfile(ROOT / "results" / "claims.yaml", folder / "none" / "claims.yaml")
    return claims.main([str(folder / "none"), "--out", str(folder / "out")])


def making_a_scale(folder):
    (folder / "configs").mkdir()
    for name in ("arms", "imagenet"):
        (folder / "configs" / name).symlink_to(ROOT / "configs" / name)
    return new_scale.main(["mine", "--data", str(folder / "images"), "--configs", str(folder / "configs")])


def resizing(folder):
    return prepare(["resize", str(folder / "images"), str(folder / "small"), "--short-side", "32", "--workers", "0"])


def growing(folder):
    words = ["--input", "3x8x8", "--factor", "1.5", "--out", str(folder / "student")]
    return library.main(["widen", f"{__name__}:net", *words])


LIGHT = [statuses, cleaning, recording, studying, making_a_scale, resizing, growing]
# Drawing takes seconds: in those environments in which it writes and looks for fonts.
DRAWN = ["no HOME", "a HOME that is none", "no TMPDIR", "closed stdin and stdout", "few files", "little space"]


def foreign(folder):
    """What launchers and schedulers of other jobs leave behind, all at once."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "SLURM_NTASKS", "PBS_NGPUS")
    names += ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "MASTER_PORT")
    os.environ.update(zip(names, ["", " ", "x", "-1", "\u00b2", "9" * 5000] * 2, strict=True))


OF_NO_RANK = {name: arrange for name, arrange in ENVIRONMENTS.items() if "=" not in name and "a scheduler" not in name}
OF_NO_RANK["variables of other jobs"] = foreign
TRIED = {
    **dict.fromkeys((training, planning, checking), ENVIRONMENTS),
    **dict.fromkeys(LIGHT, OF_NO_RANK),
    **{call: {name: ENVIRONMENTS[name] for name in DRAWN} for call in (drawing, claiming)},
}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Images and finished runs, for all cases to look at."""
    folder = tmp_path_factory.mktemp("things")
    make_folders(folder / "images")
    for arm in ("teacher_narrow", "standard", "wider", "random_pad"):
        add(folder / "runs" / "smoke", arm, 0, [60, 80], teacher="teacher_narrow" if arm == "wider" else None)
    return folder


def _there(arrange, call, folder):
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    arrange(folder)
    # As Python begins: what is closed is None. pytest has put its own there.
    sys.stdin, sys.stdout, sys.stderr = (_stream(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
    script(call, folder)


def _stream(fd, mode):
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return open(fd, mode, closefd=False)
    return None


@pytest.mark.parametrize("call", TRIED, ids=lambda call: call.__name__)
def test_a_wrong_environment_is_a_sentence_or_works(call, tmp_path, things):
    context = multiprocessing.get_context("fork")
    failures = []
    for name, arrange in TRIED[call].items():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "things").symlink_to(things)
        (folder / "images").symlink_to(things / "images")
        process = context.Process(target=_there, args=(arrange, call, folder))
        process.start()
        process.join(TOGETHER)
        if process.is_alive():
            process.kill()
            failures.append(f"{name}: still there after {TOGETHER:.0f} s")
            continue
        said = (folder / "stderr").read_text(errors="replace").strip()
        if process.exitcode not in (0, 2) or "Traceback" in said or (process.exitcode == 2 and not said):
            failures.append(f"{name}: exit code {process.exitcode}: {said[-600:]}")
    assert not failures, "\n".join(failures)


def test_ctrl_c_is_a_word_and_not_a_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        script(interrupted)
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped\n")


# How many of each are tried in every run of the tests.
KINDS = {
    plan_of_damaged_configs: 40,
    status_of_damaged_configs: 20,
    training_of_damaged_configs: 20,
    training_of_wrong_words: 40,
    jobs_of_a_damaged_cluster: 40,
    claims_of_a_damaged_file: 20,
    a_damaged_table_of_experiments: 40,
    status_of_damaged_runs: 30,
    plan_of_damaged_runs: 20,
    cleaning_of_damaged_runs: 15,
    records_of_damaged_runs: 15,
    figures_of_damaged_runs: 15,
    commands_of_wrong_words: 60,
    folders_of_damaged_images: 25,
    shards_of_damaged_images: 25,
    resizing_of_damaged_images: 10,
    library_with_wrong_words: 40,
    library_with_damaged_files: 25,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore")  # of what works after all
def test_a_wrong_input_is_a_sentence_or_works(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures = []
    cases = range(FIRST, FIRST + (BUDGET or KINDS[kind]))
    for case in cases:
        rng = random.Random(f"{kind.__name__} {case}")
        folder = tmp_path / str(case)
        folder.mkdir()
        problem = fault(kind(folder, rng))
        if problem:
            failures.append(f"case {case}: {problem}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not failures, f"{len(failures)} of {len(cases)}\n" + "\n".join(failures)


def fault(call):
    """What is wrong with how the call ended, if anything."""
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            script(call)
    except SystemExit as exit_:
        code = exit_.code
    except BaseException as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({Path(last.filename).name}:{last.lineno})"
    took, said = time.monotonic() - start, err.getvalue().strip()
    if took > TOGETHER:
        return f"took {took:.0f} s"
    if code not in (0, 2):
        return f"exit code {code!r}: {said[-300:]}"
    if code == 2 and not said:
        return f"exit code 2 and nothing on stderr; on stdout {out.getvalue()[-200:]!r}"
    if "Traceback" in said or " object at 0x" in said:
        return f"no sentence: {said[-300:]}"
    if code == 2 and len(said) > 12_000:
        return f"{len(said):,} characters: {said[:200]}"
    return None
