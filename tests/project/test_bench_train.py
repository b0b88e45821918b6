"""bench/train.py's pieces on tiny inputs; nothing here depends on how long something takes."""

import csv
import importlib.util
import io
from itertools import repeat

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT, script
from torch import nn

from training.session import Session

WANTED = "hardware,torch,model,width,extra_pairs,image_size,batch,precision,what,loop,images_per_s"
# timm leaves closing the files that it opens to the garbage collector.
LEFT_OPEN = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def bench():
    return script("bench", "train.py")


@pytest.fixture
def tiny(bench):
    return bench.Case("inception_bn", 0.1, 0, 64, 4, compared=True)


@pytest.fixture
def setup(bench, tmp_path):
    def made(chunks=1):
        return bench.Setup(Session(), "float32", False, chunks, 0, tmp_path, train_images=8, val_images=bench.FOLDERS)

    return made


def test_a_convolutions_operations_are_those_counted_by_hand(bench):
    first, second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 5, 1, bias=False)
    counted = bench.step_flops(nn.Sequential(first, second).to("meta"), 8)
    # Two for each multiplication and addition; forward and the weights' gradient, and but for the images the inputs'.
    assert counted == 2 * 2 * (8 * 8) * 4 * (3 * 3 * 3) + 3 * 2 * (8 * 8) * 5 * 4


def test_inception_v3_has_the_operations_that_torchvision_states(bench, setup):
    case = bench.Case("inception_v3", 1.0, 0, 299, 2)
    counted = bench.step_flops(bench.make_model(case, setup().config(case), "meta"), 299)
    assert counted / (3 * 2 * 5.71e9) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("chunks", [1, 2])
def test_both_loops_make_the_same_update(bench, tiny, setup, chunks):
    made = setup(chunks)
    config = made.config(tiny)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(tiny.batch, 3, tiny.image_size, tiny.image_size, generator=generator)
    batch = images.contiguous(memory_format=torch.channels_last), torch.arange(tiny.batch)
    ours, timms = (kind(made, tiny, bench.make_model(tiny, config, made.device)) for kind in (bench.Ours, bench.Timms))
    ours(repeat(batch))
    timms(repeat(batch))
    assert timms.losses.val == pytest.approx(ours.update.losses[0].item(), rel=1e-6)
    before = bench.make_model(tiny, config, made.device).state_dict()
    averages = timms.task.get_trainable_module(ema=True).module.parameters()
    for (name, a), b, average in zip(
        ours.update.model.named_parameters(), timms.model.parameters(), averages, strict=True
    ):
        assert not torch.equal(a, before[name]), name
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(b, average, msg=name)


@LEFT_OPEN
def test_both_pipelines_read_the_same_files(bench, tiny, setup):
    made = setup()
    files = bench.write_images(made.root, made.train_images, made.val_images)
    assert len(files) == 8
    for kind in (bench.Ours, bench.Timms):
        loop = kind(made, tiny, bench.make_model(tiny, made.config(tiny), made.device))
        with loop.batches() as batches:
            for _ in range(5):  # more than an epoch
                images, labels = next(batches)
                assert images.shape == (4, 3, 64, 64)
                assert images.dtype == torch.float32
                assert images.abs().max() < 3
                assert set(labels.tolist()) <= set(range(bench.FOLDERS))


def test_generated_jpegs_are_as_large_as_photographs(bench):
    data = bench.photograph(np.random.default_rng(0))
    assert 80_000 < len(data) < 130_000
    assert Image.open(io.BytesIO(data)).size == (500, 375)
    assert data == bench.photograph(np.random.default_rng(0))


@LEFT_OPEN
def test_the_script_writes_a_table(bench, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TRAIN_IMAGES", 8)
    other = bench.Case("inception_bn", 0.2, 1, 64, 4)
    monkeypatch.setattr(bench, "cases", lambda *_: [tiny, other])
    out = tmp_path / "t.csv"
    assert bench.main(["--repeat", "1", "--seconds", "1e-6", "--batches", "4", "--out", str(out)]) == 0
    with out.open() as file:
        reader = csv.DictReader(file)
        table = list(reader)
    assert ",".join(reader.fieldnames).startswith(WANTED)
    compared = [("step", "net2net"), ("step", "timm"), ("input", "net2net"), ("input", "timm")]
    compared += [("end_to_end", "net2net"), ("end_to_end", "timm"), ("floor_matmul", "")]
    alone = [("step", "net2net"), ("end_to_end", "net2net"), ("floor_matmul", "")]
    ways = ["pillow + pillow", "pillow + torch"]
    decoders = [("prepare", way) for way in ways]
    if importlib.util.find_spec("torchcodec"):
        decoders = [("decode", "torchcodec"), *decoders, ("prepare", "torchcodec + torch")]
    expected = [("floor_decode", ""), *decoders, *compared, *alone]
    assert [(row["what"], row["loop"]) for row in table] == expected
    assert all(f"| prepare | {way} |" in bench.summary(out) for way in ways)
    assert all(float(row["images_per_s"]) > 0 for row in table)
    assert {row["width"] for row in table} == {"", "0.1", "0.2"}


def test_the_cases_have_each_network_once(bench):
    found = bench.cases([4, 2, 8], bench.PAIRS, bench.WIDTHS)
    keys = [(case.model, case.width, case.extra_pairs, case.batch) for case in found]
    assert len(keys) == len(set(keys)) == 2 + 8 + 2
    assert [case.compared for case in found] == [True, True] + [False] * 10


def test_the_docs_have_the_tables_of_the_committed_files(bench):
    files = sorted((ROOT / "results" / "bench").glob("train_*.csv"))
    assert files
    text = (ROOT / "docs" / "speed.md").read_text()
    for file in files:
        assert bench.summary(file) in text, file.name
