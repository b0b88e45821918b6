"""The growth from its record, and weights from files: the same student in a new process, and no code run on the way."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from compare import same
from places import ROOT
from torch import nn

from net2net import (
    GrowthError,
    deepen,
    history,
    load_record,
    load_weights,
    random_pad,
    replay,
    save_weights,
    widen,
)

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

BUILD = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=7),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7),
    "shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=7),
}


def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 3)
    )


SMALL = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def teacher(randomise):
    return randomise(small()).double()


# ---- the record


@pytest.mark.parametrize("options", [{}, {"noise": 0.1}, {"noise": 0.1, "exact": True, "seed": 3}])
def test_the_same_weights_make_the_same_student_bit_for_bit(teacher, options):
    student = widen(teacher, SMALL, 2, **options)
    record = json.loads(json.dumps(history(student)))
    for given in (record, record[0], tuple(record), json.dumps(record), json.dumps(record[0])):
        again = replay(given, teacher)
        assert same(again, student)
        assert history(again) == history(student) == record
        assert str(again) == str(student)  # what the layers say of themselves, the groups too
    assert history(teacher) == []
    assert not same(replay(record, small().double()), student)  # other weights


def test_random_pad_replays_the_same_record_with_another_fill(teacher):
    def init(module):
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.125)

    padded = random_pad(teacher, SMALL, 2, init=init, seed=4)
    assert same(replay(history(padded), teacher, init=init), padded)
    assert not same(replay(history(padded), teacher), padded)
    widened = widen(teacher, SMALL, 2, seed=4)
    ours, theirs = (
        {k: v for k, v in history(m)[0].items() if k not in ("op", "noise", "exact")} for m in (padded, widened)
    )
    assert ours == theirs


def test_several_entries_and_those_that_are_done_already(teacher):
    first = widen(teacher, SMALL, widths={"0": 6}, seed=1, noise=0.1)
    second = random_pad(widen(first, SMALL, 2), SMALL, widths={"0": 14})
    assert [entry["op"] for entry in history(second)] == ["widen", "widen", "random_pad"]
    assert same(replay(history(second), teacher), second)
    assert same(replay(history(second), first), second)
    assert history(replay(history(second), first)) == history(second)
    assert same(replay([], teacher), teacher)
    assert replay([], teacher) is not teacher


def test_what_comes_back_is_ones_own(teacher):
    record = history(widen(teacher, SMALL, 2))
    again = replay(record, teacher)
    record[0]["seed"] = "changed"
    assert history(again)[0]["seed"] == 0
    with torch.no_grad():
        again[0].weight.zero_()
    assert (teacher[0].weight != 0).all()


def test_deepen_replays_its_architecture(teacher):
    student = widen(deepen(teacher, SMALL, {"2": [3]}, [SMALL]), SMALL, 2)
    again = replay(json.dumps(history(student)), small().double())
    again.load_state_dict(student.state_dict())
    again.train(student.training)
    assert str(again) == str(student)
    assert torch.equal(again.eval()(SMALL), student.eval()(SMALL))
    assert history(again) == history(student)


IN_A_NEW_PROCESS = """
import sys, torch, torchvision, net2net
for name in sys.argv[2:]:
    file = f"{sys.argv[1]}/{name}"
    student = net2net.replay(open(f"{file}.json").read(), getattr(torchvision.models, name)(num_classes=7))
    for weights in (net2net.load_weights(f"{file}.safetensors"), torch.load(f"{file}.pt", weights_only=True)):
        with torch.no_grad():
            for tensor in student.state_dict().values():
                tensor.zero_()
        print(student.load_state_dict(weights, strict=True))
        x, y = net2net.load_weights(f"{file}.outputs.safetensors").values()
        with torch.no_grad():
            print(torch.equal(student.eval()(x), y), float(y.std()) > 0)
    print(net2net.load_record(f"{file}.safetensors") == net2net.history(student))
"""


def test_a_saved_student_loads_in_a_new_process(randomise, tmp_path):
    for name, build in BUILD.items():
        factor = 2 if "shuffle" in name else 1.25  # halves and shuffles its channels
        student = widen(randomise(build()), X, factor, noise=0.05, verify=False)
        record = json.dumps(history(student))
        assert 1000 < len(record) < 150_000, name
        (tmp_path / f"{name}.json").write_text(record)
        save_weights(tmp_path / f"{name}.safetensors", student)
        torch.save(student.state_dict(), tmp_path / f"{name}.pt")
        with torch.no_grad():
            y = student.eval()(X)
        safetensors.torch.save_file({"x": X, "y": y}, tmp_path / f"{name}.outputs.safetensors")
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path), *BUILD]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the order of a sum depends on them
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **threads})
    assert out.returncode == 0, out.stderr
    expected = [*(["<All keys matched successfully>", "True True"] * 2), "True"]
    assert out.stdout.splitlines() == expected * len(BUILD)


# ---- what is no record, or another model's


def changed(record, change):
    record = copy.deepcopy(record)
    change(record[0])
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(op="shrink"), "'op' is 'shrink'"),
        (lambda e: e.pop("spaces"), "not a record of net2net.widen"),
        (lambda e: e.update(spaces=5), "not a record of net2net.widen"),
        (lambda e: e.update(tensors=[]), "not a record of net2net.widen"),
        (lambda e: e["spaces"][0].update({"from": 10**12}), "widens from"),
        (lambda e: e["spaces"][0].update({"from": "4"}), "not a record of net2net.widen"),
        (lambda e: e["spaces"][0].update(copies_of=[99] * 4), "a copy of a channel that is none of 2"),
        (lambda e: e["spaces"][0].update(copies_of=[-1] * 4), "a copy of a channel that is none of 2"),
        (lambda e: e["spaces"][0]["copies_of"].pop(), "3 channels where it says 4"),
        (lambda e: e["tensors"]["0.weight"].__setitem__(0, [0, "eats", [[0, 1]]]), "as 'eats'"),
        (lambda e: e["tensors"]["0.weight"].__setitem__(0, [0, "makes", [[7, 1]]]), "0.weight along 0 by"),
        (lambda e: e["tensors"]["0.weight"].__setitem__(0, [0, "makes", [[0, 10**15]]]), "from shape"),
        (lambda e: e["tensors"]["0.weight"].__setitem__(0, [9, "makes", [[0, 1]]]), "at least 10 dimensions"),
        (
            lambda e: e["tensors"].update(absent=[[0, "makes", [[0, 1]]]]),
            "grows 'absent', which this Sequential does not",
        ),
        (lambda e: e["attributes"].update({"0": {"groups": "2"}}), "expected whole numbers"),
        (lambda e: e.update(noise=-1.0), "noise -1.0"),
        (lambda e: e.update(noise=float("nan")), "noise nan"),
        (lambda e: e.update(seed="0"), "seed '0'"),
        (lambda e: e.pop("seed"), "seed None"),
    ],
)
def test_a_record_with_something_wrong_is_refused(teacher, change, message):
    record = history(widen(teacher, SMALL, 2))
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(GrowthError, match=message):
        replay(changed(record, change), teacher)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert history(teacher) == []


def test_a_record_sets_numbers_that_are_there_and_nothing_else_of_a_module(teacher):
    record = changed(
        history(widen(teacher, SMALL, 2)), lambda e: e["attributes"].update({"0": {"forward": 5, "no": 5}})
    )
    assert {"forward", "no"}.isdisjoint(vars(replay(record, teacher)[0]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON"),
        ("5", "a int"),
        (None, "a NoneType"),
        ([[]], "a list: expected"),
        ([{}], "'op' is None"),
        ({"op": "deepen"}, "not a record of net2net.deepen"),
        ({"op": "deepen", "sites": {"nowhere": {"place": "after", "layers": []}}}, "deepens 'nowhere', which this"),
    ],
)
def test_what_is_no_record_is_refused(teacher, record, message):
    with pytest.raises(GrowthError, match=message):
        replay(record, teacher)


def test_another_model_is_refused_by_the_name_of_the_tensor(teacher):
    record = history(widen(teacher, SMALL, 2))
    other = small().double()
    other[0] = nn.Conv2d(3, 6, 3)
    with pytest.raises(
        GrowthError, match=r"grows '0.weight' from shape \(4, 3, 3, 3\), and in this Sequential it is \(6, "
    ):
        replay(record, other)
    with pytest.raises(GrowthError, match=r"grows '0.weight', which this Linear does not have: give replay the class"):
        replay(record, nn.Linear(32, 8))
    wide = widen(small().double(), SMALL, 2)
    del wide.net2net_history
    with pytest.raises(GrowthError, match=r"grows '0.weight' from shape"):
        replay(record, wide)
    with pytest.raises(GrowthError, match="meta device"):
        replay(record, small().to("meta"))


# ---- files


class Harmful:
    """A pickle that would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_wants_to_run_code_runs_none(tmp_path, suffix, zipped):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "it_ran"
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Harmful(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(GrowthError, match=r"holds more than tensors and plain data.*nothing was run") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(GrowthError, match="nothing was run"):
        load_record(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Harmful(trace)))  # no file of torch.save
    with pytest.raises(GrowthError):
        load_weights(path)
    assert not trace.exists()
    named_so = path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(GrowthError, match="damaged"):
        load_weights(named_so)
    assert not trace.exists()


def nests(state):
    yield state
    yield {"state_dict": state, "epoch": 3}
    yield {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}
    yield {"model_state_dict": state, "loss": 0.5}
    yield {"model": {"state_dict": state}}
    yield {f"module.{k}": v for k, v in state.items()}
    yield {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}
    yield {f"_orig_mod.module.{k}": v for k, v in state.items()}


@pytest.mark.parametrize("number", range(8))
def test_a_state_dict_is_found_where_it_usually_is(teacher, tmp_path, number):
    path = tmp_path / "checkpoint.pt"
    torch.save(list(nests(teacher.state_dict()))[number], path)
    again = small().double()
    again.load_state_dict(load_weights(path), strict=True)
    assert same(again, teacher)


def test_other_peoples_safetensors(teacher, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"module.{k}": v for k, v in teacher.state_dict().items()}, path)
    assert load_weights(str(path)).keys() == teacher.state_dict().keys()
    with pytest.raises(GrowthError, match="holds no record of a growth"):
        load_record(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"", "damaged"),
        ("a.pt", b"no checkpoint at all", "a.pt"),
        ("a.safetensors", b"no checkpoint at all", "damaged or not safetensors"),
        ("a.h5", b"", r"of no known kind: expected .safetensors, .pt"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GrowthError, match=message) as caught:
        load_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_truncated_and_missing_files(teacher, tmp_path):
    save_weights(tmp_path / "a.safetensors", teacher)
    torch.save(teacher.state_dict(), tmp_path / "a.pt")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(GrowthError, match="damaged"):
            load_weights(path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"a\."):
            load_weights(path)
    torch.save({"optimizer": {}, "epoch": 1}, tmp_path / "a.pt")
    with pytest.raises(GrowthError, match=r"holds no state dict.*found the keys 'optimizer', 'epoch'"):
        load_weights(tmp_path / "a.pt")
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(GrowthError, match="found list"):
        load_weights(tmp_path / "a.pt")


class Tied(nn.Module):
    """One weight with two names, and one that is not contiguous."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.c = nn.Parameter(torch.randn(3, 5).t())


def test_shared_and_transposed_tensors_are_saved_once_and_load_strictly(tmp_path):
    model = Tied()
    save_weights(tmp_path / "a.safetensors", model)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert len(list(file.keys())) == 4
    again = Tied()
    again.load_state_dict(load_weights(tmp_path / "a.safetensors"), strict=True)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert again.a.weight is again.b.weight
    assert load_record(tmp_path / "a.safetensors") == []


def test_a_model_whose_names_begin_with_module_keeps_them(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    save_weights(tmp_path / "a.safetensors", model)
    model.load_state_dict(load_weights(tmp_path / "a.safetensors"), strict=True)


def test_a_write_that_fails_leaves_the_old_file(teacher, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_weights(path, teacher)
    before = path.read_bytes()

    def half(model, name, **options):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("net2net.weights.save_model", half)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, teacher)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_what_cannot_be_saved_is_refused(teacher, tmp_path):
    with pytest.raises(GrowthError, match=r"'a.pt' the suffix .safetensors"):
        save_weights(tmp_path / "a.pt", teacher)
    with pytest.raises(GrowthError, match="meta device"):
        save_weights(tmp_path / "a.safetensors", nn.Linear(2, 2, device="meta"))

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(GrowthError, match="'_extra_state' is a dict"):
        save_weights(tmp_path / "a.safetensors", Extra(2, 2))
    assert os.listdir(tmp_path) == []
