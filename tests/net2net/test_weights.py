"""Weights as other people's programs write them: what is found in a file, what is asked for, what is refused."""

import argparse
import collections
import functools
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import net2net
from net2net import GrowthError, load_weights
from net2net import __main__ as cli

NAME = f"{__name__}:small"


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(collections.OrderedDict(first=nn.Linear(3, 6), act=nn.ReLU(), last=nn.Linear(6, 2)))


class Extra(nn.Linear):
    """Keeps something that is no tensor, as layers with scales of their own do."""

    def get_extra_state(self):
        return {"amax": 3}

    def set_extra_state(self, state):
        self.amax = state["amax"]


def extra():
    return nn.Sequential(collections.OrderedDict(first=Extra(3, 6), act=nn.ReLU(), last=nn.Linear(6, 2)))


@pytest.fixture
def explain(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, name=NAME):
        capsys.readouterr()
        status = cli.main(["widen", name, "--input", "3", "--factor", "2", "--out", "wide", "--force", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def loaded(call, state, *arguments, note=None):
    """The command grows from these weights, and says what it chose."""
    status, _, err = call(*arguments)
    assert (status, "Traceback" in err) == (0, False), err
    assert (note in err) if note else err == "", err
    teacher = small()
    teacher.load_state_dict(state)
    wide = load_weights("wide.safetensors")
    assert torch.equal(wide["first.weight"][:6], state["first.weight"])


OURS, OTHER = small(1).state_dict(), small(2).state_dict()


def prefixed(prefix, state=OURS):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("content", [["cat", "dog"], {"0": "cat"}, {"history": [{"loss": 0.1}]}, {"history": {}}, 3])
def test_a_json_file_of_somebody_else_beside_the_weights(explain, content):
    torch.save(OURS, "x.pth")
    with open("x.json", "w") as file:
        json.dump(content, file)
    loaded(explain, OURS, "--weights", "x.pth")


PREFIXED = {
    "lightning": ({"state_dict": prefixed("model."), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, "called model.*"),
    "lightning with a loss": (prefixed("net.") | {"loss.weight": torch.ones(2)}, "net.* in x.pt, without loss.weight"),
    "averaged": (prefixed("module.") | {"n_averaged": torch.tensor(7)}, None),
    "averaged in a checkpoint": ({"model": prefixed("module.") | {"n_averaged": torch.tensor(7)}}, None),
    "nested": (prefixed("student.backbone."), "called student.backbone.*"),
}


@pytest.mark.parametrize("name", PREFIXED)
def test_names_that_begin_otherwise(explain, name):
    saved, note = PREFIXED[name]
    torch.save(saved, "x.pt")
    loaded(explain, OURS, "--weights", "x.pt", note=note)


def test_two_models_in_one_state_dict(explain):
    torch.save(prefixed("student.") | prefixed("teacher.", OTHER), "x.pt")
    status, _, err = explain("--weights", "x.pt")
    assert status == 2
    assert "x.pt fits the model more than once: --weights-key student or teacher takes one" in err
    loaded(explain, OTHER, "--weights", "x.pt", "--weights-key", "teacher")
    save_file(prefixed("student.") | prefixed("teacher.", OTHER), "x.safetensors")
    loaded(explain, OTHER, "--weights", "x.safetensors", "--weights-key", "teacher")
    assert load_weights("x.safetensors", key="student").keys() == OURS.keys()


KEYED = {
    "net": ({"net": OURS, "acc": 93.1, "epoch": 200}, None, None),
    "ema alone": ({"ema": OURS}, None, None),
    "deep": ({"state": {"generator": OURS}, "optimizer": {"first": {"exp_avg": torch.ones(3)}}}, None, None),
    "two": ({"student": OURS, "teacher": OTHER}, "student", None),
    "timm": ({"state_dict": OTHER, "state_dict_ema": OURS, "epoch": 3}, "state_dict_ema", None),
    "timm's usual": ({"state_dict": OURS, "state_dict_ema": OTHER}, None, "--weights-key takes 'state_dict_ema'"),
    "inside": ({"a": {"model": OURS}, "b": {"model": OTHER}}, "a.model", None),
    "generator": ({"model": OURS, "rng": {"cpu": torch.zeros(5, dtype=torch.uint8)}}, None, None),
}


@pytest.mark.parametrize("name", KEYED)
def test_which_of_several(explain, name):
    saved, key, note = KEYED[name]
    torch.save(saved, "x.pt")
    loaded(explain, OURS, "--weights", "x.pt", *(["--weights-key", key] if key else []), note=note)
    if note is None:
        assert load_weights("x.pt", key=key).keys() == OURS.keys()


def test_a_choice_that_has_to_be_made_and_one_that_there_is_not(explain):
    torch.save({"student": OURS, "teacher": OTHER}, "x.pt")
    status, _, err = explain("--weights", "x.pt")
    assert (status, err.count("\n")) == (2, 1)
    assert "x.pt holds several state dicts: choose one by --weights-key, 'student' or 'teacher'" in err
    with pytest.raises(net2net.GrowthError, match=r"choose one by key=, 'student' or 'teacher'"):
        load_weights("x.pt")
    status, _, err = explain("--weights", "x.pt", "--weights-key", "ema")
    assert (status, "x.pt has no 'ema': expected one of 'student', 'teacher'" in err) == (2, True)
    status, _, err = explain("--weights-key", "ema")
    assert (status, "give --weights, too" in err) == (2, True)
    torch.save({"state_dict": OURS, "state_dict_ema": OTHER}, "x.pt")
    with pytest.warns(UserWarning, match=r"took 'state_dict' of x\.pt; key= takes 'state_dict_ema'"):
        assert torch.equal(load_weights("x.pt")["last.bias"], OURS["last.bias"])


def test_a_state_that_is_no_tensor(explain):
    state = extra().state_dict()
    assert not isinstance(state["first._extra_state"], torch.Tensor)
    torch.save({"model": state}, "x.pt")
    model = extra()
    model.load_state_dict(load_weights("x.pt"))
    assert model.first.amax == 3
    status, _, err = explain("--weights", "x.pt", name=f"{__name__}:extra")
    assert (status, "'first._extra_state' is a dict, and safetensors holds tensors only" in err) == (2, True)


def shard(suffix):
    """In two files, with an index beside them, as by transformers."""
    names = list(OURS)
    files = {f"w-0000{k}-of-00002{suffix}": names[k - 1 :: 2] for k in (1, 2)}
    for file, part in files.items():
        content = {name: OURS[name].clone() for name in part}
        save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
    return {name: file for file, part in files.items() for name in part}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_folder_of_shards(explain, suffix, tmp_path):
    weight_map = shard(suffix)
    (tmp_path / "config.json").write_text("{}")
    loaded(explain, OURS, "--weights", ".")  # all of one kind, as there is no index
    (tmp_path / f"model{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file({"first.weight": torch.zeros(1)}, "another.safetensors")
    loaded(explain, OURS, "--weights", ".")
    loaded(explain, OURS, "--weights", f"model{suffix}.index.json")
    assert cli.main(["verify", NAME, "--input", "3", "--weights", ".", "--student", "wide.safetensors"]) == 0
    (tmp_path / next(iter(weight_map.values()))).unlink()
    status, _, err = explain("--weights", ".")
    assert (status, err.count("\n"), "w-00001" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "../secret.pt"}}', "not an index of shards"),
        ('{"weight_map": []}', "not an index of shards"),
        ("[1]", "not an index of shards"),
        ("{", "not an index of shards"),
    ],
)
def test_indices_that_are_none(explain, tmp_path, index, message):
    (tmp_path / "m.index.json").write_text(index)
    status, _, err = explain("--weights", ".")
    assert (status, err.count("\n"), message in err) == (2, 1, True)


def test_folders_without_weights_and_with_too_many(explain, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty has no file of weights: expected .safetensors" in explain("--weights", "empty")[2]
    save_file(OURS, tmp_path / "empty" / "a.safetensors")
    save_file(OTHER, tmp_path / "empty" / "b.safetensors")
    assert "empty: two files have 'first.bias'; give one of them" in explain("--weights", "empty")[2]


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("more", [argparse.Namespace(lr=1), small(), functools.partial(int)])
def test_pickled_objects_are_named_with_what_to_do(explain, more, key):
    torch.save({key: OURS, "hyper_parameters": more}, "x.ckpt")
    status, _, err = explain("--weights", "x.ckpt")
    assert (status, err.count("\n")) == (2, 1)
    kind = type(more)
    assert f"({kind.__module__}.{kind.__name__})" in err
    assert "nothing was run" in err
    assert f"torch.save(torch.load(FILE, weights_only=False)['{key}'], 'weights.pt')" in err
    assert "add_safe_globals" not in err


def test_types_that_safetensors_has_not(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2))
    net.register_parameter("w", nn.Parameter(torch.zeros(2, dtype=torch.complex128)))
    with pytest.raises(GrowthError, match=r"safetensors has no torch.complex128: use torch.save"):
        net2net.save_weights(tmp_path / "net.safetensors", net)
    assert not list(tmp_path.iterdir())
