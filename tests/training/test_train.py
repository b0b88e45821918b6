"""train.py end to end on generated images: what it writes, that a resume is exact, and what is said when it fails."""

import contextlib
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from compare import same
from jobs import FAST, Job, call, ending, finish, manifest, rows, state
from places import ROOT

import net2net
from training import runfolder
from training.config import ModelConfig, load
from training.data.source import open_data
from training.evaluation import evaluate
from training.network import build, training_flops
from training.optim import learning_rate, make_optimizer
from training.session import Session, StopSignals
from training.step import TrainStep
from training.student import teacher_of

CPU = torch.device("cpu")


def config_file(arm):
    return ROOT / "configs" / "smoke" / f"{arm}.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The smoke scale's teachers, trained once, as <runs>/<arm>/seed0."""
    folder = tmp_path_factory.mktemp("runs")
    for arm in ("teacher_narrow", "standard"):
        assert call(arm, folder / arm / "seed0") == 0
    return folder


PLAIN = "growth.noise=0.0"
FEW = "growth.calibration_images=32"  # certified by as many


def trained(runs, arm, *overrides):
    """A student's folder; tests that ask for the same run share it, as a finished one is not repeated."""
    out = runs / re.sub(r"\W+", "_", "_".join((arm, *overrides))) / "seed0"
    assert call(arm, out, FEW, *overrides) == 0
    return out


# ---- what it writes


def test_metrics_begin_at_step_0_and_end_at_the_last(runs):
    table = rows(runs / "standard" / "seed0")
    assert list(table[0]) == list(runfolder.COLUMNS)
    assert [int(row["step"]) for row in table] == [0, 2, 4, 6]
    assert [int(row["images"]) for row in table] == [0, 64, 128, 192]
    assert all(0 <= float(row[key]) <= 1 for row in table for key in ("train_top1", "val_top1"))


def test_the_manifest_tells_what_was_run(runs):
    noted = manifest(runs / "standard" / "seed0")
    assert noted["status"] == "finished"
    assert noted["config"]["training.steps"] == 6
    assert noted["versions"]["torch"] == torch.__version__
    assert noted["result"]["val_images"] == 200
    assert noted["result"]["val_top1"] == pytest.approx(float(rows(runs / "standard" / "seed0")[-1]["val_top1"]))


def test_the_training_loss_is_cross_entropy_in_every_row(tmp_path):
    """With label smoothing too, which is in what is minimised and not in the column: at a rate of next to nothing the
    loss of the first mini-batches is that of step 0, which nothing was minimised for."""
    still = (
        "optimizer.lr=1e-12",
        "training.ema_decay=0",
        "training.eval_every=4",
        "training.steps=4",
        "data.flip=false",
    )
    tables = {}
    for smoothing in (0.0, 0.5):
        assert call("standard", tmp_path / str(smoothing), *still, f"training.label_smoothing={smoothing}") == 0
        first, last = tables[smoothing] = rows(tmp_path / str(smoothing))
        assert float(last["train_loss"]) == pytest.approx(float(first["train_loss"]), rel=1e-4)
        assert first["objective"] == ""
    plain, smooth = (tables[smoothing][1] for smoothing in (0.0, 0.5))
    assert plain["objective"] == plain["train_loss"]
    assert smooth["train_loss"] == plain["train_loss"]
    assert smooth["objective"] != smooth["train_loss"]


def test_a_run_begun_before_there_was_the_column_goes_on(tmp_path):
    """Its checkpoint lacks the cross-entropies since the last row: the losses stand in."""
    options = ("training.eval_every=4",)
    stops = iter([False, False, False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "__call__", lambda self: next(stops, False))
        assert call("standard", tmp_path / "run", *options) != 0
    path = tmp_path / "run" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 2
    del saved["cross_entropies"]
    torch.save({**saved, "rows": [{k: v for k, v in row.items() if k != "objective"} for row in saved["rows"]]}, path)
    assert call("standard", tmp_path / "run", *options) == 0
    assert call("standard", tmp_path / "whole", *options) == 0
    assert [{**r, "wall_s": "", "objective": ""} for r in rows(tmp_path / "run")] == [
        {**r, "wall_s": "", "objective": ""} for r in rows(tmp_path / "whole")
    ]


def test_a_finished_run_is_not_repeated(runs, capsys):
    before = (runs / "standard" / "seed0" / "checkpoint.pt").stat().st_mtime_ns
    assert call("standard", runs / "standard" / "seed0") == 0
    assert (runs / "standard" / "seed0" / "checkpoint.pt").stat().st_mtime_ns == before
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize("arm", ["wider", "deeper", "wider_sqrt2", "deeper_4pairs"])
def test_a_student_starts_where_its_teacher_ended(runs, arm):
    out = trained(runs, arm, PLAIN)
    noted = manifest(out)
    teacher = Path(noted["growth"]["teacher"]).parent
    assert float(rows(out)[0]["val_top1"]) == float(rows(teacher)[-1]["val_top1"])
    for error in noted["growth"]["error"]:  # evaluation and training mode, on a float32 teacher
        assert error["relative"] < 1e-5
    sha = noted["growth"]["teacher_sha256"]
    assert len(sha) == 64
    assert noted["growth"]["history"][0]["op"] == ("deepen" if "deeper" in arm else "widen")


def test_the_checkpoint_holds_the_record_that_rebuilds_the_student(runs):
    teacher, student = runs / "teacher_narrow" / "seed0", trained(runs, "wider", PLAIN)
    assert net2net.load_record(teacher / "checkpoint.pt") == []
    record = net2net.load_record(student / "checkpoint.pt")
    assert record == manifest(student)["growth"]["history"]
    config = state(teacher)["config"]
    was = ModelConfig(**{k.removeprefix("model."): v for k, v in config.items() if k.startswith("model.")})
    rebuilt = net2net.replay(record, build(was, load(config_file("wider")).data))
    rebuilt.load_state_dict(net2net.load_weights(student / "checkpoint.pt", key="model"), strict=True)
    assert net2net.history(rebuilt) == record


def test_noise_moves_the_student_a_little_and_is_certified_apart(runs):
    record = manifest(trained(runs, "wider", "growth.noise=0.05", "growth.optimizer=carried"))["growth"]
    assert all(error["relative"] < 1e-5 for error in record["error_without_noise"])
    assert 1e-4 < record["error"][0]["relative"] < 0.5  # evaluation mode; a teacher of six steps has little to lose


def test_exact_noise_changes_the_weights_and_not_the_start(runs):
    noisy, plain = trained(runs, "wider", "growth.noise=0.05", "growth.exact=true"), trained(runs, "wider", PLAIN)
    record = manifest(noisy)["growth"]
    assert record["history"][0]["exact"] is True
    assert all(error["relative"] < 1e-5 for error in record["error"])
    assert not same(*(state(out, "step0.pt")["model"] for out in (noisy, plain)))


@pytest.mark.parametrize("arm", ["wider", "deeper", "random_pad"])
def test_a_carried_optimizer_begins_with_what_the_teachers_remembers(runs, arm):
    plain = () if arm == "random_pad" else (PLAIN,)
    folder, fresh = trained(runs, arm, *plain, "growth.optimizer=carried"), trained(runs, arm, *plain)
    noted = manifest(folder)
    config = load(config_file(arm), ["growth.optimizer=carried"])
    teacher = torch.load(noted["growth"]["teacher"], weights_only=True)
    first = state(folder, "step0.pt")
    student = build(config.model, config.data)
    optimizer = make_optimizer(config, student)
    optimizer.load_state_dict(first["optimizer"])
    was = ModelConfig(**{k.removeprefix("model."): v for k, v in teacher["config"].items() if k.startswith("model.")})
    old = build(was, config.data)
    before = make_optimizer(config, old)
    before.load_state_dict(teacher["optimizer"])
    # The stem's first convolution is outside of what grows: its state is the teacher's.
    (name, parameter), (_, theirs) = next(student.named_parameters()), next(old.named_parameters())
    assert parameter.shape == theirs.shape, name
    for key in ("square_avg", "momentum_buffer"):
        assert torch.equal(optimizer.state[parameter][key], before.state[theirs][key])
    new = [n for n, p in student.named_parameters() if p not in optimizer.state]
    assert bool(new) == (arm == "deeper")  # what is new there has nothing to remember
    assert state(fresh, "step0.pt")["optimizer"]["state"] == {}
    assert not same(ending(folder)["model"], ending(fresh)["model"])


def seven_classes(runs, arm, folder):
    """The checkpoint of an arm as one of a net for seven classes, as the override that makes it a teacher."""
    saved = state(runs / arm / "seed0")
    for weights in (saved["model"], saved["ema"]):
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][:7].clone()
    torch.save(saved, folder / "seven.pt")
    return f"growth.teacher={folder / 'seven.pt'}"


def test_a_new_head_for_another_number_of_classes(runs, tmp_path, capsys):
    """Or, where it is asked for, for other classes of the same number."""
    seven = (seven_classes(runs, "teacher_narrow", tmp_path), PLAIN)
    error = refused("wider", tmp_path / "refused", capsys, *seven)
    assert "seven.pt tells 7 classes apart, and the data have 10: growth.new_head=true gives" in error

    def grown(*overrides):
        out = trained(runs, "wider", *overrides)
        return manifest(out)["growth"], state(out, "step0.pt")

    record, other = grown(*seven, "growth.new_head=true")
    assert record["history"][-1]["op"] == "new_head"
    assert record["history"][-1]["heads"] == {"classifier": {"from": 7, "to": 10}}
    assert all(one["relative"] < 1e-5 for one in record["error"])  # of the growth, before the classifier is exchanged
    record, same_head = grown(PLAIN, "growth.optimizer=carried")
    assert [entry["op"] for entry in record["history"]] == ["widen"]
    record, new_head = grown(PLAIN, "growth.optimizer=carried", "growth.new_head=true")
    assert [entry["op"] for entry in record["history"]] == ["widen", "new_head"]
    for name, tensor in same_head["model"].items():
        for found in (other, new_head):
            assert torch.equal(found["model"][name], tensor) == (not name.startswith("classifier")), name
            assert found["model"][name].shape == tensor.shape
    # The teacher's optimizer has nothing to say of a classifier that it never saw.
    assert len(same_head["optimizer"]["state"]) - len(new_head["optimizer"]["state"]) == 2


@pytest.mark.parametrize(
    ("arm", "teacher", "overrides", "operations"),
    [
        ("deeper", "standard", (), ["deepen", "new_head"]),
        ("random_pad", "teacher_narrow", (), ["random_pad", "new_head"]),
        ("wider", "standard", ("growth.method=continue", "growth.noise=0.0"), ["new_head"]),
    ],
)
def test_a_new_head_however_the_student_was_made(runs, tmp_path, capsys, arm, teacher, overrides, operations):
    asked = (seven_classes(runs, teacher, tmp_path), *overrides)
    assert "tells 7 classes apart, and the data have 10" in refused(arm, tmp_path / "refused", capsys, *asked)
    assert call(arm, tmp_path / "student", *asked, FEW, "growth.new_head=true") == 0
    record = manifest(tmp_path / "student")
    assert [entry["op"] for entry in record["growth"]["history"]] == operations
    if arm != "random_pad":  # which does not preserve
        assert all(one["relative"] < 1e-5 for one in record["growth"]["error"])
    assert len(state(tmp_path / "student")["model"]["classifier.weight"]) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"predictors": {"0.weight": torch.zeros(1)}}, "layers that predict its own teacher's"),
        ({"config": {"optimizer.momentum": 0.0}}, "was trained without momentum, and optimizer.momentum is 0.9"),
    ],
)
def test_a_state_that_cannot_be_carried_is_refused(runs, tmp_path, capsys, change, words):
    saved = state(runs / "teacher_narrow" / "seed0")
    saved |= {key: saved["config"] | value if key == "config" else value for key, value in change.items()}
    torch.save(saved, tmp_path / "teacher.pt")
    asked = (FEW, f"growth.teacher={tmp_path / 'teacher.pt'}", "growth.optimizer=carried")
    said = refused("wider", tmp_path / "student", capsys, *asked)
    assert words in said
    assert "growth.optimizer=fresh" in said


def test_a_continued_teacher_is_the_teacher(runs):
    overrides = ["growth.method=continue", "growth.teacher=standard", PLAIN]
    for optimizer in ("fresh", "carried"):
        out = trained(runs, "wider", *overrides, f"growth.optimizer={optimizer}")
        teacher = state(runs / "standard" / "seed0")
        assert same(state(out, "step0.pt")["model"], teacher["ema"])


def test_the_last_accuracy_is_of_all_validation_images(runs, tmp_path):
    folder = tmp_path / "standard" / "seed0"
    assert call("standard", folder, "data.val_images=100") == 0
    result = manifest(folder)["result"]
    assert (result["val_images"], result["all_val_images"]) == (100, 2000)
    # Trained alike: with all of them in every evaluation the last row is that number.
    assert call("standard", tmp_path / "all" / "seed0", "data.val_images=2000") == 0
    last = manifest(tmp_path / "all" / "seed0")["result"]
    assert (last["all_val_images"], last["all_val_top1"]) == (2000, last["val_top1"])
    assert last["val_top1"] == pytest.approx(result["all_val_top1"])


def test_training_operations_are_counted():
    config = load(config_file("standard"))
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 28 * 28, 10)
    )
    forward = 2 * (28 * 28 * 9 * 8 + 8 * 28 * 28 * 10)
    assert training_flops(model, None, config) == 3 * forward


def test_random_pad_has_the_students_shape_and_not_its_function(runs):
    record = manifest(trained(runs, "random_pad"))["growth"]
    assert record["error"][0]["relative"] > 0.01


def test_averaged_weights_are_what_is_evaluated_and_handed_on(runs):
    saved = state(runs / "teacher_narrow" / "seed0")
    assert not same(saved["model"], saved["ema"])
    config = load(config_file("teacher_narrow"))
    model = build(config.model, config.data)
    model.load_state_dict(saved["ema"])
    found = evaluate(model, open_data(config, CPU), Session(), contextlib.nullcontext)
    assert found[1] == saved["rows"][-1]["val_top1"]


# ---- order, schedule


def images_of(*overrides, rank=0, world=1):
    return open_data(load(config_file("standard"), overrides), CPU, rank, world)


def batches(data, step, n=1):
    """The chunks of `n` mini-batches from `step` on."""
    return list(itertools.islice(data.stream(step), n * len(data.order.mine)))


def test_every_image_comes_once_an_epoch_and_the_order_is_a_function_of_seed_and_epoch():
    a, b = images_of(), images_of()
    later = [batches(b, step) for step in (400, 3, 800)]  # asked for out of order: the same batches
    for step, batch in zip((400, 3, 800), later, strict=True):
        assert same(batches(a, step), batch)
    assert not same(batches(images_of("seed=1"), 3), later[1])
    seen = torch.cat([a.order.chunks(step)[1][0] for step in range(a.order.per_epoch)])
    assert len(seen.unique()) == len(seen) == 12_000


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_mini_batch_is_the_same_on_any_number_of_processes(world):
    whole = images_of()
    parts = [images_of("training.bn_batch_size=4", rank=rank, world=world) for rank in range(world)]
    for step in (0, 374, 375):  # the last of an epoch, the first of the next one
        images, labels = batches(whole, step)[0]
        chunks = {c: batch for part in parts for c, batch in zip(part.order.mine, batches(part, step), strict=True)}
        assert sorted(chunks) == list(range(8))
        assert same(torch.cat([chunks[c][0] for c in range(8)]), images)
        assert same(torch.cat([chunks[c][1] for c in range(8)]), labels)
    assert same(parts[-1].first_images(50), whole.first_images(50))


def test_flips_follow_the_seed_the_epoch_and_the_image():
    images, plain = batches(images_of(), 0)[0][0], batches(images_of("data.flip=false"), 0)[0][0]
    flipped = [not torch.equal(a, b) for a, b in zip(images, plain, strict=True)]
    assert 0 < sum(flipped) < 32
    assert all(torch.equal(a, b.flip(-1) if f else b) for a, b, f in zip(images, plain, flipped, strict=True))


def test_held_out_images_are_not_trained_on():
    assert images_of("data.validation=held_out").order.n == 2_000


def test_the_schedules():
    base = ["optimizer.lr=0.2", "optimizer.lr_scale=0.1", "training.steps=100", "schedule.warmup_steps=10"]
    cosine = load(config_file("standard"), [*base, "schedule.name=cosine"])
    assert learning_rate(cosine, 0) == pytest.approx(0.002)
    assert learning_rate(cosine, 10) == pytest.approx(0.02)
    assert learning_rate(cosine, 55) == pytest.approx(0.01)
    exponential = load(config_file("standard"), [*base, "schedule.decay_rate=0.5", "schedule.decay_steps=30"])
    assert learning_rate(exponential, 40) == pytest.approx(0.01)
    assert learning_rate(exponential, 70) == pytest.approx(0.005)


# ---- options of the larger scales


def test_half_precision_computes_in_it_and_keeps_the_weights_whole(tmp_path):
    options = ("training.precision=bfloat16", "training.label_smoothing=0.1", "optimizer.clip_norm=2.0")
    assert call("standard", tmp_path / "half", *options) == 0
    assert call("standard", tmp_path / "whole", *options[1:]) == 0
    ours, theirs = (state(tmp_path / x) for x in ("half", "whole"))
    assert all(t.dtype == torch.float32 for t in ours["model"].values() if t.is_floating_point())
    first, other = (found["rows"][0]["val_loss"] for found in (ours, theirs))
    assert first != other
    assert first == pytest.approx(other, abs=0.02)


def test_norms_and_biases_are_not_decayed():
    config = load(config_file("standard"), ["optimizer.weight_decay=0.1"])
    model = build(config.model, config.data)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in make_optimizer(config, model).param_groups:
        for parameter in group["params"]:
            weights = parameter.ndim > 1
            assert group["weight_decay"] == (0.1 if weights else 0.0), names.pop(id(parameter))
            del names[id(parameter)]
    assert not names


def test_the_average_of_weights_warms_up_as_tensorflow_s():
    config = load(config_file("standard"), ["training.ema_warmup=true", "training.ema_decay=0.99"])
    model = build(config.model, config.data)
    update = TrainStep(config, model, Session(), open_data(config, CPU).order)
    assert [update.ema.get_decay(n) for n in (2, 11)] == [pytest.approx(1 / 10), pytest.approx(10 / 19)]
    assert update.ema.get_decay(100_000) == 0.99


# ---- interruption


LONG = ("training.steps=40", "training.eval_every=10", "training.batch_size=8", "data.val_images=20")


def test_a_run_killed_at_random_moments_ends_as_one_that_never_was(runs, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "teacher_narrow").symlink_to(runs / "teacher_narrow")
    Job("standard", tmp_path / "warm_up", *FAST).wait()  # the first process waits until torch and timm are imported
    began = time.monotonic()
    whole = finish("wider", folder / "whole" / "seed0", *LONG, FEW)
    duration = time.monotonic() - began

    moments, killed = random.Random(0), 0
    out = folder / "killed" / "seed0"
    for _ in range(30):
        job = Job("wider", out, *LONG, FEW)
        if killed < 5:
            job.processes[0].join(duration * moments.uniform(0.05, 0.4))
            if job.processes[0].is_alive():
                job.kill()
                killed += 1
        if job.wait() == [0]:
            break
    assert killed >= 3
    assert same(ending(out), ending(whole))
    ours, theirs = rows(out), rows(whole)
    assert [{**row, "wall_s": ""} for row in ours] == [{**row, "wall_s": ""} for row in theirs]
    assert manifest(out)["growth"]["history"]  # written by the first, killed process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # SIGTERM and SIGUSR1: test_faults.py
def test_asked_to_stop_it_saves_and_goes_on_later(tmp_path, number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("it is ignored here, as under nohup, and train.py leaves it so")
    job = Job("standard", tmp_path / "run", *LONG)
    job.until((tmp_path / "run" / "metrics.csv").exists)
    job.send(number)
    assert job.wait() == [128 + number]
    (error,) = job.errors()
    assert "run the same command again to go on" in error
    at = state(job.out)["step"]
    assert f"saved at step {at};" in error
    assert at < 40
    assert call("standard", job.out, *LONG) == 0
    assert [int(row["step"]) for row in rows(job.out)] == list(range(0, 41, 10))


# ---- what goes wrong


def refused(arm, out, capsys, *overrides):
    """The one sentence with which train.py ends."""
    assert call(arm, out, *overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert "Traceback" not in error
    return error


def test_the_teacher_is_missing(tmp_path, capsys):
    error = refused("wider", tmp_path / "wider" / "seed0", capsys)
    assert "teacher_narrow/seed0/checkpoint.pt does not exist: train it first" in error


def test_the_teacher_is_the_run_itself(tmp_path, capsys):
    for teacher in ("wider", tmp_path / "x" / ".." / "wider" / "seed0" / "checkpoint.pt"):
        error = refused("wider", tmp_path / "wider" / "seed0", capsys, f"growth.teacher={teacher}")
        assert f"growth.teacher: '{teacher}' is this run itself" in error
        assert not (tmp_path / "wider").exists()


def test_a_dot_in_an_arm_s_name_makes_no_path_of_it(tmp_path):
    def teacher(name):
        return teacher_of(load(config_file("wider"), [f"growth.teacher={name}"]), tmp_path / "wider" / "seed0")

    assert teacher("teacher_v1.5") == tmp_path / "teacher_v1.5" / "seed0" / "checkpoint.pt"
    assert teacher("here.pt") == Path("here.pt")
    assert teacher("there/v1.5") == Path("there/v1.5")


def test_the_teacher_saw_images_of_another_kind(runs, tmp_path, capsys):
    saved = state(runs / "teacher_narrow" / "seed0")
    first = next(iter(saved["model"]))
    for weights in (saved["model"], saved["ema"]):
        weights[first] = weights[first].repeat(1, 3, 1, 1)
    torch.save(saved, tmp_path / "color.pt")
    error = refused("wider", tmp_path / "out", capsys, f"growth.teacher={tmp_path / 'color.pt'}")
    assert "color.pt was trained on other images" in error
    assert first in error


@pytest.mark.parametrize("arm", ["wider", "random_pad", "deeper", "narrow_continued", "teacher_prediction"])
def test_the_teacher_is_no_net_any_more(runs, tmp_path, capsys, arm):
    saved = state(runs / "teacher_narrow" / "seed0")
    first = next(iter(saved["model"]))
    for weights in (saved["model"], saved["ema"]):
        weights[first].view(-1)[0] = float("nan")
    torch.save(saved, tmp_path / "lost.pt")
    section = "teacher_prediction" if arm == "teacher_prediction" else "growth"
    error = refused(arm, tmp_path / "out", capsys, f"{section}.teacher={tmp_path / 'lost.pt'}")
    assert f"lost.pt holds numbers that are not finite, in {first}: train it again" in error


def test_before_the_first_update_no_rate_is_to_blame(runs, tmp_path, capsys):
    saved = state(runs / "teacher_narrow" / "seed0")
    for weights in (saved["model"], saved["ema"]):
        weights["classifier.weight"].fill_(3e38)
    torch.save(saved, tmp_path / "large.pt")
    error = refused("narrow_continued", tmp_path / "out", capsys, f"growth.teacher={tmp_path / 'large.pt'}")
    assert "not a number at step 0" in error
    assert f"look at its teacher, {tmp_path / 'large.pt'}, whose numbers are too large" in error


def test_a_seed_too_large_for_what_is_drawn_from_it(tmp_path, capsys):
    error = refused("standard", tmp_path / "run", capsys, "seed=20261127082555")
    assert "seed" in error
    assert "less than 4294967296, got 20261127082555" in error
    assert open_data(load(config_file("standard"), [f"seed={2**32 - 1}"]), CPU).first_images(2).shape[0] == 2


def test_the_teacher_is_truncated_or_no_checkpoint(runs, tmp_path, capsys):
    content = (runs / "teacher_narrow" / "seed0" / "checkpoint.pt").read_bytes()
    for broken in (content[: len(content) // 2], b"", b"hello", content[:-100]):
        (tmp_path / "broken.pt").write_bytes(broken)
        error = refused("wider", tmp_path / "out", capsys, f"growth.teacher={tmp_path / 'broken.pt'}")
        assert "broken.pt cannot be read, it is truncated or not a checkpoint" in error
    torch.save({"a": 1}, tmp_path / "other.pt")
    error = refused("wider", tmp_path / "out2", capsys, f"growth.teacher={tmp_path / 'other.pt'}")
    assert "was not written by this version of train.py" in error
    folder = runs / "teacher_narrow" / "seed0"
    error = refused("wider", tmp_path / "out3", capsys, f"growth.teacher={folder}")
    assert f"is a folder: give the file that a run has, {folder / 'checkpoint.pt'}" in error
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pt")
    error = refused("wider", tmp_path / "out4", capsys, f"growth.teacher={tmp_path / 'whole.pt'}")
    assert "or holds more than tensors, numbers and words): is it the right file?" in error  # not: remove its folder


# What somebody may have done to a checkpoint that torch can read.
CHANGES = {
    "no config": lambda state: state.pop("config"),
    "rows": lambda state: state.update(rows=5),
    "no model": lambda state: state.pop("model"),
    "model": lambda state: state.update(model=torch.zeros(1), ema=torch.zeros(1)),
    "weights": lambda state: [state[part].popitem() for part in ("model", "ema") if state[part]],
    "no optimizer": lambda state: state.pop("optimizer"),
    "optimizer": lambda state: state["optimizer"].update(param_groups=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_was_changed_is_a_sentence_for_a_student_and_for_its_run(runs, tmp_path, capsys, change):
    folder = tmp_path / "run"
    shutil.copytree(runs / "teacher_narrow" / "seed0", folder)
    saved = state(folder)
    CHANGES[change](saved)
    torch.save(saved, folder / "checkpoint.pt")
    words = "does not hold what this version of train.py writes into one"
    carried = ("growth.optimizer=carried", f"growth.teacher={folder / 'checkpoint.pt'}")
    assert f"the teacher's checkpoint {folder / 'checkpoint.pt'} {words}" in refused(
        "wider", tmp_path / "out", capsys, *carried
    )
    noted = manifest(folder)
    (folder / "run.json").write_text(json.dumps({**noted, "status": "running"}))
    assert f"the run's checkpoint {folder / 'checkpoint.pt'} {words}" in refused("teacher_narrow", folder, capsys)


@pytest.mark.parametrize(
    ("arm", "teacher", "overrides", "words"),
    [
        ("deeper", "teacher_narrow", [], ["model.width is 1, the teacher's 0.5477: growth.method=net2deeper keeps it"]),
        (
            "deeper",
            "standard",
            ["model.extra_pairs=0"],
            ["model.extra_pairs is 0, the teacher's 0", "must be more than"],
        ),
        ("wider", "standard", ["growth.method=net2deeper"], ["model.extra_pairs is 0", "must be more than"]),
        (
            "wider",
            "teacher_narrow",
            ["growth.method=continue"],
            ["model.width is 1", "growth.method=continue keeps it"],
        ),
        ("wider", "standard", ["model.width=0.5"], ["model.width is 0.5, the teacher's 1", "must not be less"]),
        ("wider", "standard", ["model.extra_pairs=1"], ["model.extra_pairs is 1, the teacher's 0", "keeps them"]),
        (
            "wider",
            "standard",
            ["model.name=inception_bn_28_full"],
            ["model.name is inception_bn_28_full, the teacher's inception_bn_28"],
        ),
    ],
)
def test_the_teacher_is_of_another_architecture(runs, tmp_path, capsys, arm, teacher, overrides, words):
    path = runs / teacher / "seed0" / "checkpoint.pt"
    error = refused(arm, tmp_path / "out", capsys, f"growth.teacher={path}", FEW, *overrides)
    for word in [f"the teacher {path} cannot be grown into this model: model.", *words]:
        assert word in error


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("{runs}/standard", "standard is a folder: give the file that a run has, {runs}/standard/seed0/checkpoint.pt"),
        ("{runs}", "is a folder: give the file that a run has, of which there is none in it"),
        ("teacher_narow", "does not exist: train it first, or was 'teacher_narrow' meant?"),
        ("standard.safetensors", "standard.safetensors does not exist: give an arm, or a checkpoint that is there"),
        ("{runs}/standard/seed0/chekpoint.pt", "does not exist: was 'checkpoint.pt' meant?"),
    ],
)
def test_what_is_meant_by_a_teacher_that_is_not_there(runs, tmp_path, capsys, teacher, words):
    out = tmp_path / "wider" / "seed0"
    error = refused("wider", out, capsys, f"growth.teacher={teacher.format(runs=runs)}", FEW)
    assert words.format(runs=runs) in error


def test_the_folder_holds_a_run_of_another_config(runs, capsys):
    folder = runs / "standard" / "seed0"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
    error = refused("standard", folder, capsys, "optimizer.lr=0.5", "training.steps=7")
    assert f"{folder} holds a run of another config" in error
    assert "training.steps (6 there, 7 now)" in error
    assert "optimizer.lr (0.01 there, 0.5 now)" in error
    theirs, mine = re.search(r"hash (\w{16}), this one's is (\w{16})", error).groups()
    assert theirs == runfolder.config_hash(manifest(folder)["config"]) != mine
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_the_run_s_own_checkpoint_is_truncated(runs, tmp_path, capsys):
    assert call("standard", tmp_path / "run") == 0
    noted = manifest(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**noted, "status": "running"}))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK\x03\x04")
    assert "cannot be read, it is truncated" in refused("standard", tmp_path / "run", capsys)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"config": null}', '{"config": {}, "data": 1}', '{"config": {}, "status": "finished"}'],
)
def test_run_json_is_no_run_s_manifest(tmp_path, capsys, content):
    (tmp_path / "run.json").write_text(content)
    assert f"{tmp_path / 'run.json'} is not a run's manifest" in refused("standard", tmp_path, capsys)


def test_a_finished_run_of_somebody_else_can_be_looked_at(runs, capsys, monkeypatch):
    """Its folder may be read and not written; an unfinished one is refused."""
    real = os.open

    def no_lock(path, *arguments, **options):
        if Path(path).name == "lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", no_lock)
    folder = runs / "standard" / "seed0"
    assert call("standard", folder) == 0
    assert f"{folder} is finished" in capsys.readouterr().out
    before = (folder / "run.json").read_text()
    (folder / "run.json").write_text(json.dumps({**json.loads(before), "status": "running"}))
    try:
        assert f"cannot write into {folder}: Permission denied" in refused("standard", folder, capsys)
    finally:
        (folder / "run.json").write_text(before)


def test_a_run_s_files_are_its_group_s_where_the_folder_and_the_umask_say_so(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, -1, 4321)
    folder.chmod(0o2775)
    before = os.umask(0o002)
    try:
        config = load(config_file("standard"))
        with runfolder.RunFolder(folder, config, Session()) as run:
            run.start("0" * 64, {})
            run.save({"step": 0, "rows": []})
            run.write_progress(0, 1.0)
            found = {path.name: path.stat() for path in folder.iterdir()}
    finally:
        os.umask(before)
    assert found.keys() == {"lock", "run.json", "metrics.csv", "checkpoint.pt", "progress.json"}
    for name, status in found.items():
        assert status.st_mode & 0o777 == 0o664, name
        assert status.st_gid == folder.stat().st_gid, name


def test_the_output_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    error = refused("standard", tmp_path / "file" / "run", capsys)
    assert f"cannot write into {tmp_path / 'file' / 'run'}" in error
    assert "--out" in error
    (tmp_path / "link").symlink_to("/nowhere/run")
    for name in ("file", "link"):
        error = refused("standard", tmp_path / name, capsys)
        assert f"cannot write into {tmp_path / name}: it is a file, or a link that leads nowhere; choose" in error


def test_the_loss_is_not_a_number(tmp_path, capsys):
    error = refused("standard", tmp_path / "run", capsys, *LONG, "optimizer.lr=1e6", "optimizer.lr_scale=1e6")
    assert "the training loss is not a number at step" in error
    assert "the checkpoint of step 0 is kept" in error
    assert ending(tmp_path / "run")["step"] == 0
    assert manifest(tmp_path / "run")["status"] == "failed"


def test_the_data_is_damaged(tmp_path, capsys):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"not the data")
    error = refused("standard", tmp_path / "run", capsys, "data.name=fashion_mnist", f"data.root={tmp_path / 'data'}")
    assert "train-images-idx3-ubyte.gz is damaged" in error


def test_more_images_are_asked_for_than_there_are(tmp_path, capsys):
    assert "data.val_images: 9999 asked for" in refused("standard", tmp_path / "a", capsys, "data.val_images=9999")
    assert "training.batch_size: 99999" in refused("standard", tmp_path / "b", capsys, "training.batch_size=99999")
    assert "training.bn_batch_size: 7" in refused("standard", tmp_path / "c", capsys, "training.bn_batch_size=7")


# ---- predicting a teacher's layers (sec 2.1)


def predicting(runs, out, *overrides):
    teacher = runs / "teacher_narrow" / "seed0" / "checkpoint.pt"
    options = (f"teacher_prediction.teacher={teacher}", "teacher_prediction.layers=[inception.3b, inception.3c]")
    return call("teacher_prediction", out, *options, *overrides)


def test_predictors_are_trained_and_the_teacher_is_not(runs, tmp_path):
    assert predicting(runs, tmp_path / "a") == 0
    saved = ending(tmp_path / "a")
    assert [tuple(t.shape[2:]) for k, t in saved["predictors"].items() if k.endswith("weight")] == [(1, 1)] * 2
    assert predicting(runs, tmp_path / "b", "teacher_prediction.weight=1e-12") == 0
    other = ending(tmp_path / "b")
    assert not same(saved["predictors"], other["predictors"])
    assert not same(saved["model"], other["model"])
    ours, theirs = saved["rows"][1], other["rows"][1]
    assert ours["objective"] > ours["train_loss"] + 0.1  # it has the predictions' error in it
    assert theirs["objective"] == pytest.approx(theirs["train_loss"])
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=0.3)  # in this one it is not
    # What is evaluated and handed on is a net like any other.
    config = load(config_file("standard"))
    build(config.model, config.data).load_state_dict(saved["ema"])
    noted = manifest(tmp_path / "a")
    assert len(noted["teacher_prediction"]["teacher_sha256"]) == 64
    plain = manifest(runs / "standard" / "seed0")["training_flops_per_image"]
    assert plain < noted["training_flops_per_image"] < 1.5 * plain


def test_a_predicting_run_goes_on_bit_for_bit_and_with_its_own_teacher_alone(runs, tmp_path, capsys):
    assert predicting(runs, tmp_path / "whole") == 0
    stops = iter([False, False, False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "__call__", lambda self: next(stops, False))
        assert predicting(runs, tmp_path / "parts") != 0
    noted = manifest(tmp_path / "parts")
    assert noted["status"] == "running"
    (tmp_path / "parts" / "run.json").write_text(
        json.dumps(noted | {"teacher_prediction": noted["teacher_prediction"] | {"teacher_sha256": "0" * 64}})
    )
    assert predicting(runs, tmp_path / "parts") == 2
    assert "not the one that this run was begun with" in capsys.readouterr().err
    (tmp_path / "parts" / "run.json").write_text(json.dumps(noted))
    assert predicting(runs, tmp_path / "parts") == 0
    assert same(ending(tmp_path / "parts"), ending(tmp_path / "whole"))


def test_layers_that_cannot_be_predicted_are_named(runs, tmp_path, capsys):
    assert predicting(runs, tmp_path / "a", "teacher_prediction.layers=[inception.9z]") == 2
    assert "no layer 'inception.9z'" in capsys.readouterr().err
    assert predicting(runs, tmp_path / "b", "teacher_prediction.layers=[classifier]") == 2
    assert "'classifier' returns [10]" in capsys.readouterr().err
    assert call("teacher_prediction", tmp_path / "c", "teacher_prediction.teacher=standard") == 2
    assert "does not exist" in capsys.readouterr().err
    extra = ["teacher=x", "method=net2wider", "noise=0.0", "exact=false", "optimizer=fresh", "calibration_images=32"]
    assert call("teacher_prediction", tmp_path / "d", *(f"growth.{word}" for word in extra)) == 2
    assert "has one of the two" in capsys.readouterr().err
