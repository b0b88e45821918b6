"""python -m net2net: what it writes and prints is what the library does, and a mistake is one sentence."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet18

import net2net
from net2net import __main__ as cli
from net2net import overview, sources

SHAPE = ("--input", "3x8x8")


def small(classes=5, norm=True, wide=False):
    middle = 12 if wide else 8
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, middle, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(middle, classes)),
    )


def late_norm():
    """Its batch norm sees one value per channel for a batch of one."""
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def layer_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.ReLU(), nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def broken(depth):
    raise ZeroDivisionError("no depth")


def script():
    """As a training script that is taken for a factory parses its own arguments."""
    sys.exit("usage: train.py")


def on_meta():
    with torch.device("meta"):
        return small()


class Loud(nn.Linear):
    def __init__(self, ends=False):
        print("a Loud is made")
        super().__init__(3, 2)
        self.ends = ends

    def forward(self, x):
        print("forward", tuple(x.shape))
        return sys.exit(5) if self.ends else super().forward(x)


SMALL = f"{__name__}:small"


@pytest.fixture
def weights(tmp_path, randomise):
    path = tmp_path / "teacher.safetensors"
    save_file(randomise(small()).state_dict(), path)
    return path


@pytest.fixture
def run(capsys):
    """Calls the command line; returns its status, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        status = cli.main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return call


def teacher(weights):
    model = small()
    model.load_state_dict(load_file(weights))
    return model.eval()


def images(n=2, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_widen_writes_the_library_s_student_with_its_record(run, weights, tmp_path):
    out = tmp_path / "wide.safetensors"
    options = ("--factor", 2, "--noise", 0.1, "--exact", "--seed", 3)
    status, printed, said = run("widen", SMALL, "--weights", weights, *SHAPE, *options, "--out", out)
    assert (status, said) == (0, "")
    expected = net2net.widen(teacher(weights), images(), 2.0, noise=0.1, exact=True, seed=3)
    written = load_file(out)
    assert written.keys() == expected.state_dict().keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.state_dict().items())
    record = json.loads((tmp_path / "wide.json").read_text())
    assert record["history"] == json.loads(json.dumps(net2net.history(expected)))
    assert sources.load_record(out) == record["history"]
    assert record["model"]["name"] == SMALL
    assert record["model"]["weights"]["file"] == "teacher.safetensors"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    before, after = (sum(p.numel() for p in m.parameters()) for m in (small(), expected))
    assert re.search(rf"^parameters +{before:,} +{after:,} +x {after / before:.2f}$", printed, re.MULTILINE)
    macs = [64 * 9 * (3 * a + a * b) + 5 * b for a, b in ((6, 8), (12, 16))]
    assert re.search(rf"^MACs per example +{macs[0]:,} +{macs[1] / 1e6:.3f} M +x", printed, re.MULTILINE)
    assert len(re.findall(r"relative \d\.\d\de-(?:0[7-9]|1\d), .*\((?:eval|train) mode, float64\)", printed)) == 2
    assert "2 channel spaces grew:\n  6 -> 12  0\n  8 -> 16  3.0\n" in printed
    assert "1 channel space did not:\n    1  they are the network's output: 6\n" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["teacher.safetensors", "wide.json", "wide.safetensors"]


def test_what_did_not_grow_and_why(run, weights):
    common = ("widen", SMALL, "--weights", weights, *SHAPE)
    assert "1  outside --modules: 0\n" in run(*common, "--factor", 2, "--modules", "3")[1]
    assert "1  not asked for: 0\n" in run(*common, "--width", "3.0=9")[1]
    assert "1  times 1.07 it is no whole channel more: 0\n" in run(*common, "--factor", 1.07)[1]
    _, printed, _ = run("widen", f"{__name__}:layer_norm", *SHAPE, "--width", "1=3", "--json")
    stayed = json.loads(printed)["stayed"]
    assert [row["made_by"] for row in stayed] == [["3"], ["5"]]
    assert stayed[1]["reason"] == "they are the network's output"


def test_long_lists_are_cut_and_shown_by_all(run, capsys, monkeypatch):
    monkeypatch.setattr(overview, "SHOWN", 1)
    common = ("widen", SMALL, *SHAPE, "--factor", 2)
    assert "  6 -> 12  0\n  and 1 more: --all\n" in run(*common)[1]
    assert "  6 -> 12  0\n  8 -> 16  3.0\n\n" in run(*common, "--all")[1]


def test_widths_are_rounded_up_to_a_multiple(run, weights, tmp_path):
    out = tmp_path / "wide.safetensors"
    options = (*SHAPE, "--factor", 1.1, "--multiple-of", 8, "--out", out)
    status, printed, _ = run("widen", SMALL, "--weights", weights, *options)
    assert status == 0
    assert "   6 -> 8  0\n  8 -> 16  3.0\n" in printed
    (entry,) = sources.load_record(out)
    assert entry["multiple_of"] == 8
    again = net2net.replay([entry], teacher(weights)).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in load_file(out).items())
    assert run("verify", SMALL, "--weights", weights, "--student", out)[0] == 0
    said = run("widen", SMALL, *SHAPE, "--width", "0=9", "--multiple-of", 4)[2]
    assert said.startswith("net2net: --multiple-of rounds what --factor asks for")
    assert "'0'" in run("widen", SMALL, *SHAPE, "--factor", 2, "--multiple-of", 0)[2]


@pytest.mark.parametrize(
    "how", [("widen", "--factor", 1.5), ("widen", "--factor", 1.5, "--random-pad"), ("deepen", "--site", "3=3")]
)
def test_a_new_head_for_other_classes(how, run, weights, tmp_path):
    out = tmp_path / "other.safetensors"
    common = (how[0], SMALL, "--weights", weights, *SHAPE, *how[1:])
    status, printed, _ = run(*common, "--new-head", 7, "--out", out)
    assert status == 0
    assert "new head: 6, 5 -> 7 outputs, initialised anew" in printed
    assert "compared with the teacher's own classifier in place of the new one" in printed
    assert load_file(out)["6.weight"].shape[0] == 7
    # The body is compared again from the file, and a body that is another fails.
    command = ("verify", SMALL, "--weights", weights, "--student", out)
    assert run(*command)[0] == int("--random-pad" in how)
    record, state = sources.load_record(out), load_file(out)
    state["0.weight"][0] += 1
    save_file(state, out, {"net2net": json.dumps(record)})
    assert run(*command)[0] == 1
    assert run(*common, "--new-head", "6=7", "--out", tmp_path / "named")[0] == 0
    assert load_file(tmp_path / "named.safetensors")["6.weight"].shape == load_file(out)["6.weight"].shape
    assert "name the layer of each" in run(*common, "--new-head", "6=7", "--new-head", 3)[2]
    assert "--new-head names '3.0', which does not make the outputs" in run(*common, "--new-head", "3.0=7")[2]


def test_random_pad_is_the_baseline_and_its_error_is_shown(run, weights, tmp_path):
    out = tmp_path / "padded"
    status, printed, _ = run(
        *("widen", SMALL, "--weights", weights, *SHAPE, "--factor", 2, "--random-pad", "--out", out, "--json")
    )
    expected = net2net.random_pad(teacher(weights), images(), 2.0)
    assert torch.equal(load_file(f"{out}.safetensors")["3.0.weight"], expected[3][0].weight)
    assert status == 0
    assert json.loads(printed)["certificates"][0]["relative"] > 0.01
    assert run("verify", SMALL, "--weights", weights, "--student", f"{out}.safetensors")[0] == 1


def test_verify_rebuilds_compares_and_fails_with_the_function(run, weights, tmp_path):
    out = tmp_path / "wide.safetensors"
    run("widen", SMALL, "--weights", weights, *SHAPE, "--factor", 1.5, "--out", out)
    command = ("verify", SMALL, "--weights", weights, "--student", out)
    status, printed, said = run(*command)  # the shape of the inputs is in the record
    assert (status, said) == (0, "")
    assert printed.endswith("passed: tolerance 1e-05 (relative error)\n")
    assert "  6 -> 9  0\n" in printed
    moved = load_file(out)
    moved["6.bias"][0] += 0.05
    metadata = {"net2net": json.dumps(sources.load_record(out))}
    save_file(moved, out, metadata)
    status, printed, _ = run(*command)
    assert (status, "FAILED: tolerance 1e-05" in printed) == (1, True)
    assert run(*command, "--tolerance", 10)[0] == 0
    moved["6.bias"][0] = torch.nan
    save_file(moved, out, metadata)
    status, printed, _ = run(*command, "--tolerance", 10, "--json")
    report = json.loads(printed, parse_constant=pytest.fail)  # NaN is not JSON
    assert (status, report["passed"], report["certificates"][0]["relative"]) == (1, False, None)


def test_verify_takes_the_record_beside_the_file_and_names_another_teacher(run, weights, tmp_path, randomise):
    out, bare = tmp_path / "wide.safetensors", tmp_path / "bare.pt"
    run("widen", SMALL, "--weights", weights, *SHAPE, "--factor", 1.5, "--out", out)
    torch.save(load_file(out), bare)
    assert "bare.pt has no record" in run("verify", SMALL, "--weights", weights, "--student", bare)[2]
    (tmp_path / "wide.json").rename(tmp_path / "bare.json")
    assert run("verify", SMALL, "--weights", weights, "--student", bare)[0] == 0
    assert run("verify", SMALL, "--weights", weights, "--student", out, *SHAPE)[0] == 0  # its metadata alone
    other = tmp_path / "other.safetensors"
    save_file(randomise(small(), seed=1).state_dict(), other)
    status, _, said = run("verify", SMALL, "--weights", other, "--student", bare)
    assert (status, "not the file that the student was grown from" in said) == (1, True)


def test_the_record_is_compared_never_obeyed(run, weights, tmp_path):
    out = tmp_path / "wide.safetensors"
    run("widen", SMALL, *SHAPE, "--model-arg", "classes=7", "--factor", 1.5, "--out", out)
    assert "with --model-arg classes=7: say the same" in run("verify", SMALL, "--student", out)[2]
    assert run("verify", SMALL, "--model-arg", "classes=7", "--student", out)[0] == 0
    record = json.loads((tmp_path / "wide.json").read_text())
    record["history"][0]["spaces"][0]["copies_of"][0] += 1
    (tmp_path / "wide.json").write_text(json.dumps(record))
    assert "differ" in run("verify", SMALL, "--model-arg", "classes=7", "--student", out)[2]
    record["model"] = "os:abort"
    record["history"] = [{"op": "widen"}]
    (tmp_path / "wide.json").unlink()
    (tmp_path / "odd.json").write_text(json.dumps(record))
    torch.save(small().state_dict(), tmp_path / "odd.pt")
    status, _, said = run("verify", SMALL, *SHAPE, "--student", tmp_path / "odd.pt")
    assert (status, said.count("\n"), "Traceback" in said) == (2, 1, False)


def test_a_student_can_be_grown_again_and_verified_against_either_teacher(run, weights, tmp_path):
    deep, wide = tmp_path / "deep.safetensors", tmp_path / "wide.safetensors"
    run("deepen", SMALL, "--weights", weights, *SHAPE, "--site", "3=3", "--out", deep)
    run("widen", SMALL, "--weights", deep, *SHAPE, "--width", "3.1.conv=20", "--out", wide)
    assert len(sources.load_record(wide)) == 2
    assert load_file(wide)["3.1.conv.weight"].shape == (20, 8, 3, 3)
    for first in (weights, deep):
        assert run("verify", SMALL, "--weights", first, "--student", wide)[0] == 0
    assert "records begin differently" in run("verify", SMALL, "--weights", wide, "--student", deep)[2]
    assert "3.1.conv" in run("explain", SMALL, "--weights", wide, *SHAPE)[1]


def test_without_weights_it_says_so_and_the_seed_repeats_them(run, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    state = torch.random.get_rng_state()
    for out, seed in ((first, 1), (again, 1), (other, 2)):
        printed = run("widen", SMALL, *SHAPE, "--factor", 2, "--seed", seed, "--out", out)[1]
        assert printed.startswith(f"{SMALL}, random initialisation (seed {seed})\n")
    assert torch.equal(torch.random.get_rng_state(), state)
    a, b, c = (load_file(f"{out}.safetensors")["0.weight"][:6] for out in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert run("verify", SMALL, "--student", f"{other}.safetensors")[0] == 0  # with the seed of the record


def test_deepen_calibrates_on_files_and_folders(run, weights, tmp_path):
    x = images(6, seed=5)
    folder = tmp_path / "batches"
    folder.mkdir()
    np.save(folder / "a.npy", x[:3].numpy())
    save_file({"images": x[3:], "labels": torch.zeros(3)}, folder / "b.safetensors")
    torch.save(x, tmp_path / "x.pt")
    for path, size, batches in ((folder, 32, [x[:3], x[3:]]), (tmp_path / "x.pt", 4, [x[:4], x[4:]])):
        out = tmp_path / f"deep{size}.safetensors"
        status, printed, said = run(
            *("deepen", SMALL, "--weights", weights, "--site", "2=3", "--site", "3.1=1x3,3x1", "--out", out),
            *("--calibration", path, "--calibration-batch", size),
        )
        assert (status, said) == (0, "")
        expected = net2net.deepen(teacher(weights), x[:2], {"2": [3], "3.1": [(1, 3), (3, 1)]}, batches)
        assert all(torch.equal(load_file(out)[k], t) for k, t in expected.state_dict().items())
        assert "3 layers inserted:\n" in printed
        assert re.search(r"^  after 2 +3x3$", printed, re.MULTILINE)
        assert re.search(r"^  after 3\.1 +1x3, 3x1$", printed, re.MULTILINE)
        assert f"run on the first 2 examples of {folder / 'a.npy' if path is folder else path}, 3x8x8 each" in printed
        assert "(train mode, float64), exact on the whole calibration batch alone\n" in printed
        # On other examples new batch norms are no identity in training mode: that does not fail it.
        status, printed, _ = run("verify", SMALL, "--weights", weights, "--student", out, "--json")
        assert (status, json.loads(printed)["certificates"][1]["relative"] > 1e-3) == (0, True)
    moved = load_file(out)
    moved["6.bias"][0] += 0.05
    save_file(moved, out, {"net2net": json.dumps(sources.load_record(out))})
    assert run("verify", SMALL, "--weights", weights, "--student", out)[0] == 1


def test_calibration_on_noise_has_to_be_asked_for_and_warns_where_it_matters(run, weights):
    common = ("deepen", SMALL, *SHAPE, "--site")
    status, _, said = run(*common, "2=3")
    assert (status, said) == (
        2,
        "net2net: the site '2' has batch normalisation: pass --calibration, batches of training inputs\n",
    )
    status, _, said = run(*common, "2=3", "--calibration", "random")
    assert (status, said.count("warning: --calibration random")) == (0, 1)
    assert run(*common, "3.1=3", "--calibration", "random")[2] == ""  # no batch norm there


def test_examples_from_a_file(run, tmp_path):
    np.save(tmp_path / "x.npy", images(3, seed=9).numpy())
    status, printed, _ = run(
        *("widen", SMALL, "--factor", 2, "--inputs-from", tmp_path / "x.npy", "--batch", 3, "--json")
    )
    assert (status, json.loads(printed)["input"]) == (0, [3, 8, 8])
    out = tmp_path / "wide"
    run("widen", SMALL, "--factor", 2, *SHAPE, "--out", out)
    status, printed, _ = run(
        *("verify", SMALL, "--student", f"{out}.safetensors", "--inputs-from", tmp_path / "x.npy", "--batch", 3)
    )
    assert (status, "the first 3 examples of" in printed) == (0, True)
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    assert "cannot read" in run("widen", SMALL, "--factor", 2, "--inputs-from", tmp_path / "x.npy")[2]


def test_a_mode_that_does_not_run_has_no_certificate(run):
    status, printed, _ = run("widen", f"{__name__}:late_norm", *SHAPE, "--factor", 2, "--batch", 1)
    assert status == 0
    assert re.search(r"no certificate in training mode: .*ValueError: Expected more than 1 value per channel", printed)


def test_it_refuses_to_overwrite_before_it_works(run, weights, tmp_path, monkeypatch):
    out = tmp_path / "wide.safetensors"
    command = ("widen", SMALL, "--weights", weights, *SHAPE, "--factor", 2, "--out")
    (tmp_path / "wide.json").write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(sources, "build", lambda *args, **options: pytest.fail("it began"))
        assert "wide.json exists: --force replaces it" in run(*command, out)[2]
        assert "would replace the teacher's own weights" in run(*command, weights, "--force")[2]
        assert "is not a folder that can be written to" in run(*command, tmp_path / "no" / "wide")[2]
        assert "students are written as .safetensors" in run(*command, tmp_path / "wide.pt")[2]
    assert (tmp_path / "wide.json").read_text() == "mine"
    assert run(*command, out, "--force")[0] == 0
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        patched.setattr(Path, "replace", full)
        status, _, said = run(*command, out, "--force")
    assert (status, "No space left on device" in said) == (2, True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept


MISTAKES = [
    ("explain resnet18", r"does not say where the model comes from: .* e\.g\. timm:resnet18"),
    ("explain torchvision:resnet81", r"torchvision has no model 'resnet81'; did you mean torchvision:resnet18 or "),
    ("explain timmm:resnet18", r"no module 'timmm' .*did you mean timm:resnet18\?"),
    ("explain nowhere.models:small", r"no module 'nowhere' for nowhere\.models:small; is it installed"),
    ("explain SELF:smal", r"has no 'smal'; did you mean 'small'\?"),
    ("explain SELF:SMALL", r"is a str: expected a function or class"),
    ("explain SELF:images", r"returns Tensor: expected a torch\.nn\.Module"),
    ("explain SELF:broken --model-arg depth=3", r"ZeroDivisionError: no depth \(test_cli\.py, line \d+\)"),
    ("explain SELF:small --model-arg nonsense=3", r"unexpected keyword argument 'nonsense'$"),
    ("explain SELF:small --model-arg classes", r"expected KEY=VALUE"),
    ("explain SELF:small", r"does not say what it takes: give the shape of one example, --input 3x224x224"),
    ("explain SELF:small --input 3x", r"expected the shape of one example, e\.g\. 3x224x224, got '3x'"),
    ("explain SELF:small --input 4x8x8", r"the forward pass (.* )?failed in module '0'"),
    ("explain SELF:small --pretrained", r"--pretrained is for timm and torchvision"),
    ("explain SELF:small --device tpu", r"there is no device 'tpu'"),
    ("explain SELF:small --weights none.pt", r"there is no file none\.pt"),
    ("explain SELF:small --weights cut.safetensors", r"cut\.safetensors.*header"),
    ("explain SELF:small --weights cut.pt", r"cut\.pt"),
    ("explain SELF:small --weights whole.pt", r"whole\.pt.*(nothing was run|Unpickling)"),
    (
        "explain SELF:small --weights good.pt --model-arg classes=4",
        r"6\.weight has shape \[5, 8\], the model's \[4, 8\]",
    ),
    (
        "explain SELF:small --weights bare.pt",
        r"it has no 1\.weight, 1\.bias, 1\.running_mean and 1 more; the model has no x$",
    ),
    ("explain SELF:small --weights page.pt", r"page\.pt was not written by torch\.save: it begins with b'<html>"),
    (
        "explain SELF:small --weights pointer.safetensors",
        r"pointer\.safetensors .*a pointer of Git LFS, `git lfs pull`",
    ),
    (
        "explain SELF:small --weights whole.pt",
        r"'weights\.pt'\); of a whole model, \.state_dict\(\)$",
    ),
    ("explain SELF:small --weights=", r"--weights: expected a path, got ''"),
    (
        "explain SELF:script --input 3",
        r"cannot make \S+:script: SystemExit: usage: train\.py \(test_cli\.py, line \d+\)",
    ),
    ("explain SELF:on_meta --input 3x8x8", r"makes '0\.weight' on the meta device, without numbers"),
    (
        "explain ./nets/mine.py:make --input 3",
        r"names a file: expected a module as in `import`, e\.g\. nets\.mine:make",
    ),
    ("explain SELF:small --input 3x8x8 --batch 100000000000000", r"cannot make 100000000000000 examples of 3x8x8: "),
    (
        "explain SELF:small --input 3x8x8 --seed 99999999999999999999",
        r"--seed: expected a whole number of at most 64 bits",
    ),
    ("explain SELF:small --input 3x8x8 --device xla", r"cannot move \S+:small to --device xla: "),
    (
        "widen SELF:small --input 3x8x8 --factor 2 --weights nan.pt",
        r"the model's own outputs are not finite \(eval mode\)",
    ),
    ("widen SELF:small --input 3x8x8 --factor 2 --random-pad --no-exact", r"--random-pad makes none"),
    (
        "widen SELF:small --input 3x8x8 --factor 2 --out empty",
        r"--out empty is a folder: name a file in it, e\.g\. empty/",
    ),
    ("widen SELF:small --input 3x8x8 --factor 2 --out .", r"--out \. is a folder: name a file in it"),
    ("widen SELF:small --input 3x8x8 --factor 2 --out ..", r"--out \.\. is a folder"),
    ("widen SELF:small --input 3x8x8 --factor 2 --out /", r"--out / is a folder"),
    ("widen SELF:small --input 3x8x8 --factor 2 --force --out taken", r"--out taken: taken\.safetensors is a folder"),
    ("widen SELF:small --input 3x8x8 --factor 2 --out link", r"link\.safetensors exists: --force replaces it"),
    ("widen SELF:small --input 3x8x8", r"either --factor or --width"),
    ("widen SELF:small --input 3x8x8 --factor 2 --width 0=12", r"either --factor or --width"),
    ("widen SELF:small --input 3x8x8 --width 0=12 --modules 0", r"--modules restricts --factor"),
    ("widen SELF:small --input 3x8x8 --factor 0.5", r"factor must be at least 1"),
    ("widen SELF:small --input 3x8x8 --factor two", r"--factor: invalid float value: 'two'; see .* widen --help"),
    ("widen SELF:small --input 3x8x8 --factor 2 --modules 7", r"no module matches '7'"),
    ("widen SELF:small --input 3x8x8 --width 0=wide", r"expected LAYER=N with a whole number N"),
    ("widen SELF:small --input 3x8x8 --width 0=4", r"'0' has 6 channels already"),
    ("widen SELF:small --input 3x8x8 --width nine=9", r"--width names 'nine', which makes no channels"),
    ("widen SELF:small --input 3x8x8 --width 0=8 --width 0=9", r"--width 0 is given 2 times"),
    ("widen SELF:small --input 3x8x8 --factor 2 --noise 0 --random-pad", r"give one of them"),
    ("widen SELF:small --input 3x8x8 --factor 2 --noise 1 --random-pad", r"give one of them"),
    ("widen SELF:small --input 3x8x8 --factor 2 --batch 0", r"whole number of at least 1"),
    ("deepen SELF:small --input 3x8x8", r"required: --site"),
    ("deepen SELF:small --input 3x8x8 --site 3=", r"expected GLOB=KERNELS"),
    ("deepen SELF:small --input 3x8x8 --site 3=3y3", r"expected GLOB=KERNELS"),
    ("deepen SELF:small --input 3x8x8 --site 3=2", r"cannot deepen after '3' with kernel 2: expected an odd size"),
    ("deepen SELF:small --input 3x8x8 --site 9=3", r"no module matches the site '9'"),
    ("deepen SELF:small --site 2=3 --calibration none.npy", r"there is no file or folder none\.npy"),
    (
        "deepen SELF:small --site 2=3 --calibration bytes",
        r"bytes\.npy has torch\.uint8: expected images as the model takes",
    ),
    ("deepen SELF:small --site 2=3 --calibration empty", r"empty has no \.safetensors, \.npy or \.pt file"),
    ("verify SELF:small --student none.safetensors", r"there is no file none\.safetensors"),
    ("verify SELF:small --student cut", r"there is no file cut; did you mean cut\.safetensors\?"),
    ("verify SELF:small --student good.pt --tolerance nan", r"--tolerance: expected a number of at least 0"),
    ("verify SELF:small --student good.pt", r"good\.pt has no record of a growth"),
    ("frobnicate", r"invalid choice: 'frobnicate'"),
    ("", r"required: COMMAND"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """A folder with files that are wrong in many ways."""
    folder = tmp_path_factory.mktemp("mistakes")
    state = small().state_dict()
    (folder / "bytes").mkdir()
    np.save(folder / "bytes" / "bytes.npy", np.zeros((2, 3, 8, 8), np.uint8))
    (folder / "empty").mkdir()
    torch.save(state, folder / "good.pt")
    torch.save(small(), folder / "whole.pt")
    torch.save({name: value * float("nan") for name, value in state.items()}, folder / "nan.pt")
    (folder / "page.pt").write_text("<html>404 Not Found</html>")
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    (folder / "taken.safetensors").mkdir()
    (folder / "link.safetensors").symlink_to("nowhere")
    torch.save({**small(norm=False).state_dict(), "x": torch.ones(1)}, folder / "bare.pt")
    save_file(state, folder / "cut.safetensors")
    for name, source in (("cut.safetensors", "cut.safetensors"), ("cut.pt", "good.pt")):
        (folder / name).write_bytes((folder / source).read_bytes()[:500])
    return folder


@pytest.mark.parametrize(("command", "sentence"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_status_2(run, mistakes, monkeypatch, command, sentence):
    monkeypatch.chdir(mistakes)
    status, printed, said = run(*command.replace("SELF", __name__).split())
    assert (status, printed) == (2, "")
    assert said.startswith("net2net: ")
    assert said.count("\n") == 1, said
    assert re.search(sentence, said), said


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_packages_are_needed_only_by_name(run, monkeypatch, name):
    for missing in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert run("explain", f"{name}:resnet18") == (2, "", f"net2net: {name} is not installed: pip install {name}\n")
    assert run("widen", SMALL, *SHAPE, "--factor", 2)[0] == 0


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise OSError("the network is off")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def test_torchvision_offline_with_local_weights(run, offline, tmp_path, randomise):
    torch.save({"state_dict": randomise(resnet18()).state_dict()}, tmp_path / "r18.pt")
    out = tmp_path / "wide.safetensors"
    common = ("torchvision:resnet18", "--weights", tmp_path / "r18.pt", "--input", "3x64x64")
    status, printed, _ = run("widen", *common, "--factor", 1.5, "--out", out)
    assert status == 0
    assert "12 channel spaces grew:\n    64 -> 96  conv1, layer1.0.conv2, layer1.1.conv2\n" in printed
    assert "1  they are the network's output: fc\n" in printed
    assert run("verify", *common, "--student", out)[0] == 0
    explained = net2net.explain(resnet18(), torch.randn(2, 3, 64, 64))
    assert run("explain", *common)[1] == f"{explained}\n"
    assert json.loads(run("explain", *common, "--json")[1])["sites"] == explained.sites
    status, _, said = run("explain", "torchvision:resnet18", "--pretrained")
    assert status == 2
    assert re.search(r"no pretrained weights for torchvision:resnet18, --weights takes a file: ", said)


def test_timm_by_name_with_its_own_input_size(run, offline):
    status, printed, _ = run("widen", "timm:test_resnet", "--factor", 2, "--json")
    report = json.loads(printed)
    assert (status, report["input"]) == (0, [3, 160, 160])
    assert report["grew"]
    assert max(c["relative"] for c in report["certificates"]) < cli.TOLERANCE
    status, _, said = run("explain", "timm:resnett18")
    assert (status, "did you mean timm:resnet18" in said) == (2, True)


def test_input_sizes_of_torchvision():
    for name, size in (("resnet18", 224), ("inception_v3", 299)):
        inputs = sources.Inputs(None, 1, None, 0, f"torchvision:{name}")
        assert inputs.of(nn.Linear(1, 1)).shape == (1, 3, size, size)


def test_macs_are_the_published_ones():
    assert overview.macs(resnet18(), torch.empty(2, 3, 224, 224)) == 1_814_073_344

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.warns(UserWarning, match="the multiply-accumulates of the model are not known"):
        assert overview.macs(Branch(), torch.ones(2, 3)) is None  # nothing to branch on without data


def test_values_of_model_arguments():
    given = ["n=3", "f=0.5", "yes=true", "no=None", "pair=(1, 2)", 'list=["a"]', "text=gelu", "path=a=b"]
    values = dict(map(cli._key_value, given))
    assert list(values.values()) == [3, 0.5, True, None, (1, 2), ["a"], "gelu", "a=b"]
    assert cli._site("a.*=3,1x3,block") == ("a.*", [3, (1, 3), "block"])
    assert cli._site('a=[{"kernel": 5}, 3]') == ("a", [{"kernel": 5}, 3])


@pytest.mark.parametrize("command", ["explain", "widen", "deepen", "verify"])
def test_help_has_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    lines = re.findall(r"^  python -m net2net (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert lines
    for line in [*lines, *re.findall(rf"python -m net2net ({command} .+)", cli.__doc__)]:
        assert cli._parser().parse_args(line.replace("'", "").split()).command == command


def test_as_a_program(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "net2net", "explain", "mine:make", "--input", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split(maxsplit=3) == ["4", "0", "1", "by any factor"]


def test_a_reader_that_has_seen_enough_is_no_error(run, monkeypatch):
    class Closed:  # as with `| head`
        def write(self, text):
            return len(text)

        def flush(self):
            raise BrokenPipeError(32, "Broken pipe")

        def fileno(self):
            return 99

    redirected = []
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Closed())
        patched.setattr(os, "dup2", lambda *fds: redirected.append(fds[1]))
        status = cli.main(["explain", SMALL, *SHAPE])
    assert (status, redirected) == (141, [99])


@pytest.mark.parametrize("stream", ["full", "none"])
def test_output_that_cannot_be_written_is_a_sentence(monkeypatch, capsys, stream):
    with monkeypatch.context() as patched, open("/dev/full", "w") as full:
        patched.setattr(sys, "stdout", full if stream == "full" else None)
        status = cli.main(["explain", SMALL, *SHAPE])
    assert status == (2 if stream == "full" else 0)
    assert ("standard output: No space left on device" in capsys.readouterr().err) == (stream == "full")


def test_what_a_models_code_prints_is_no_part_of_the_table(run):
    status, printed, said = run("explain", f"{__name__}:Loud", "--input", 3, "--json")
    assert (status, [space["width"] for space in json.loads(printed)["spaces"]]) == (0, [2])
    assert said.startswith("a Loud is made\nforward (2, 3)\n")


def test_a_model_that_ends_the_program_does_not_end_it_without_a_word(run):
    status, printed, said = run("explain", f"{__name__}:Loud", "--input", 3, "--model-arg", "ends=true")
    assert (status, printed) == (2, "")
    assert said.endswith("net2net: the model's own code ended the program (SystemExit: 5)\n")


def test_examples_and_calibration_in_another_precision_than_the_models(run, tmp_path):
    np.save(tmp_path / "images.npy", images(4).double().numpy())
    for words in (["widen", "--factor", 2], ["deepen", "--site", "2=3", "--calibration", tmp_path / "images.npy"]):
        status, printed, said = run(words[0], SMALL, "--inputs-from", tmp_path / "images.npy", *words[1:])
        assert (status, said) == (0, ""), said
        assert "max-abs error" in printed


@pytest.mark.parametrize("beside", [b'{"loss": 1}\n{"loss": 0.5}\n', b"\xff\xfe"], ids=["lines", "no text"])
def test_a_foreign_file_beside_the_weights_is_no_obstacle(run, weights, beside):
    weights.with_suffix(".json").write_bytes(beside)
    assert run("explain", SMALL, *SHAPE, "--weights", weights)[::2] == (0, "")


def test_paths_follow_home_and_variables(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    words = ["--weights", "~/teacher.safetensors", "--factor", "1.5", "--out", "$PLACE/student"]
    assert cli.main(["widen", SMALL, *SHAPE, *words]) == 0
    assert (tmp_path / "student.safetensors").exists()
