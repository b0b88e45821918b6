"""Images on their way to the network: the same whoever loads them, and nothing that happens to the files is silent."""

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compare import same
from images import COUNTS, make_archive, make_shards, picture, section, truncate
from jobs import serve
from PIL import Image
from places import ROOT
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from training.config import differences, flatten
from training.config import load as load_config
from training.data import decode, loader, pool
from training.data import workers as processes_of
from training.data.augment import Preparation, draw_of, drawn_colors, drawn_crop, jittered, jittered_tensor
from training.data.decode import silence_pillow
from training.data.imagenet.layouts import readers
from training.data.loader import ImageData
from training.errors import ConfigError, DataError

SIZE, BATCH, CHUNK = 32, 8, 4  # 24 training images: three mini-batches of two chunks in an epoch
CPU = torch.device("cpu")


@pytest.fixture
def load(monkeypatch):
    """ImageData of a folder; ended after the test."""
    monkeypatch.setattr(loader, "RETRIES", (0.05, 0.1))
    made = []

    def make(root, workers=0, seed=3, rank=0, world=1, device=CPU, chunk=CHUNK, **changed):
        changed = {"workers": workers, **changed}
        made.append(ImageData(section(root, SIZE, **changed), seed, BATCH, chunk, device, rank=rank, world=world))
        return made[-1]

    yield make
    for data in made:
        data.close()


def take(data, n, step=0):
    stream = data.stream(step)
    return [next(stream) for _ in range(n)]


def exhaust(stream):
    for _ in range(50):
        next(stream)


@pytest.fixture(scope="module")
def reference(original):
    """Ten chunks, over the end of the first epoch, loaded by this process."""
    data = ImageData(section(original, SIZE), 3, BATCH, CHUNK, CPU)
    chunks = take(data, 10)
    data.close()
    return chunks


# The same, whoever loads them


def test_what_the_network_gets(reference):
    for images, labels in reference:
        assert images.shape == (CHUNK, 3, SIZE, SIZE)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
        assert labels.shape == (CHUNK,)
    pixels = torch.stack([images for images, _ in reference])
    assert -2.2 < float(pixels.min()) < -1
    assert 1 < float(pixels.max()) < 2.7


def test_an_epoch_has_every_image_once_in_the_order_of_order(original, load):
    data = load(original)
    reader = readers(original)["train"]
    expected = [int(reader.labels[i]) for step in range(6) for chunk in data.order.chunks(step)[1] for i in chunk]
    found = torch.cat([labels for _, labels in take(data, 12)]).tolist()
    assert found == expected
    assert sorted(found[:24]) == sorted(found[24:]) == sorted(reader.labels.tolist())


def test_the_workers_do_not_matter(original, load, reference):
    """Neither how many they are, nor whether they are there at all."""
    for workers in (1, 2):
        data = load(original, workers=workers)
        assert same(take(data, 10), reference)
    assert same(take(data, 4, step=2), reference[4:8])
    validation = list(load(original).validation())
    assert torch.equal(torch.cat([x for x, _ in data.validation()]), torch.cat([x for x, _ in validation]))
    assert torch.equal(data.first_images(7), load(original).first_images(7))


def test_a_resumed_run_goes_on_where_it_was(original, load, reference):
    for step in (1, 2, 3, 4):
        assert same(take(load(original), 10 - 2 * step, step), reference[2 * step :])


def test_two_processes_share_the_same_chunks(original, load, reference):
    ranks = [take(load(original, rank=rank, world=2), 5) for rank in range(2)]
    assert same([chunk for pair in zip(*ranks, strict=True) for chunk in pair], reference)


def test_the_layout_does_not_matter(original, load, reference, tmp_path):
    assert same(take(load(make_archive(original, tmp_path / "tars")), 10), reference)
    shards = load(make_shards(original, tmp_path / "shards"))
    assert same(take(shards, 10), reference)
    assert shards.fingerprint == load(original).fingerprint


def test_epochs_and_seeds_differ(original, load):
    data = load(original)
    one, two = (data._work[("train", epoch, [5, 6])][0] for epoch in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one, data._work[("train", 0, [6, 5])][0].flip(0))
    assert not torch.equal(one, load(original, seed=4)._work[("train", 0, [5, 6])][0])
    assert len({draw_of(s, e, i) for s in range(9) for e in range(9) for i in range(9)}) == 729


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_numbers_stay_as_they_were(original, load, workers):
    data = load(original, workers=workers)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    take(data, 2)
    data.first_images(3)
    list(data.validation())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_images_are_those_of_the_first_epoch(original, load, reference):
    whole = load(original).first_images(10)
    assert torch.equal(whole, torch.cat([images for images, _ in reference])[:10])
    assert torch.equal(load(original, rank=1, world=2).first_images(10), whole)
    assert len(load(original).first_images(1000)) == 24


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("chunk", [1, 4])
def test_every_validation_image_comes_once(original, load, world, chunk):
    shares = [load(original, rank=rank, world=world, chunk=chunk) for rank in range(world)]
    batches = [list(share.validation()) for share in shares]
    assert all(len(labels) <= chunk for share in batches for _, labels in share)
    labels = torch.cat([labels for share in batches for _, labels in share])
    reader = readers(original)["val"]
    assert sorted(labels.tolist()) == sorted(reader.labels.tolist())
    images = torch.cat([images for share in batches for images, _ in share])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(reader) == shares[0].val_images


def test_more_processes_than_validation_images(original, load):
    shares = [load(original, rank=rank, world=8, chunk=1) for rank in range(8)]
    assert sum(len(labels) for share in shares for _, labels in share.validation()) == COUNTS[2]


# What is done to an image


def jpeg(number=0, size=(500, 375), mode="RGB"):
    file = io.BytesIO()
    picture(number, size).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


def difference(a, b):
    return float(np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean())


@pytest.mark.parametrize("size", [(500, 375), (300, 460), (1400, 1100)])
def test_training_crops_are_torchvisions(size):
    """Crop and resize in one step, and a large JPEG decoded at reduced scale, change next to nothing."""
    plain, theirs = Preparation(224, 0.875, 0.05, 0, False), v2.RandomResizedCrop(224, scale=(0.05, 1))
    data = jpeg(size=size)
    for draw in range(8):
        torch.manual_seed(draw)
        ours = plain.train(data, draw)
        assert ours.shape == (224, 224, 3)
        assert difference(ours, theirs(Image.open(io.BytesIO(data)))) < 1


@pytest.mark.parametrize("size", [(500, 375), (33, 70), (1, 1), (1000, 3), (3, 1000), (100, 60)])
def test_torchvision_draws_the_same(size):
    crop, jitter = v2.RandomResizedCrop(224, scale=(0.3, 1)), v2.ColorJitter(0.4, 0.4, 0.4)
    for draw in range(50):
        generator = torch.Generator().manual_seed(draw)
        torch.manual_seed(draw)
        box = crop.make_params([Image.new("L", size)])
        assert drawn_crop(*size, 0.3, generator) == (box["left"], box["top"], box["width"], box["height"])
        order, factors = drawn_colors(0.4, generator)
        colors = jitter.make_params([])
        assert order == colors["fn_idx"].tolist()
        assert factors == tuple(colors[f"{kind}_factor"] for kind in ("brightness", "contrast", "saturation"))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (120, 90), (2000, 1300)])
def test_validation_crops_are_torchvisions(size):
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    data = jpeg(size=size)
    assert difference(Preparation(224, 0.875, 0.05, 0, False).val(data), theirs(Image.open(io.BytesIO(data)))) < 1


def prepared(by, resize):
    return Preparation(224, 0.875, 0.05, 0, False, by, resize)


@pytest.fixture(params=["its own", "torchvision's"])
def torchcodec(request, monkeypatch):
    """torchcodec where it is installed, and in its place the decoder that it comes from."""
    if request.param == "its own":
        pytest.importorskip("torchcodec.decoders")
    else:
        theirs = SimpleNamespace(decode_jpeg=lambda data, mode: decode_jpeg(data, mode=ImageReadMode[mode]))
        for module in (decode, loader):
            monkeypatch.setattr(module, "torchcodec", lambda: theirs)
        monkeypatch.setattr(decode.importlib.metadata, "version", lambda _: "0")


@pytest.mark.parametrize("size", [(500, 375), (300, 460), (1400, 1100), (33, 70), (2, 3)])
def test_resized_by_torch_pixels_are_torchvisions(size):
    """A crop first and then resized, as torchvision has it; Pillow looks at what is around the crop, too."""
    ours, theirs = prepared("pillow", "torch"), v2.RandomResizedCrop(224, scale=(0.05, 1))
    whole = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    data = jpeg(size=size)
    for draw in range(4):
        torch.manual_seed(draw)
        found = ours.train(data, draw)
        assert found.shape == (224, 224, 3)
        assert difference(found, theirs(Image.open(io.BytesIO(data)))) < 1
    if min(size) > 100:
        assert difference(ours.val(data), prepared("pillow", "pillow").val(data)) < 1.5
        assert difference(ours.val(data), whole(Image.open(io.BytesIO(data)))) < 1.5


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "PNG"])
def test_torchcodec_decodes_the_pixels_that_pillow_does(torchcodec, mode):
    file = io.BytesIO()
    picture(1, (500, 375)).convert("RGB" if mode == "PNG" else mode).save(file, "PNG" if mode == "PNG" else "JPEG")
    data = file.getvalue()
    for draw in range(3):
        ours, theirs = (prepared(by, "torch").train(data, draw) for by in ("torchcodec", "pillow"))
        assert np.abs(ours.astype(int) - theirs).max() <= (0 if mode in ("CMYK", "PNG") else 1)
    ours, theirs = (prepared(by, "torch").val(data) for by in ("torchcodec", "pillow"))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_damaged_jpeg_is_unreadable_for_torchcodec_too(torchcodec, folders, load):
    reader = readers(folders)["train"]
    truncate(folders / "train" / reader.name(7))
    data = load(folders, decode="torchcodec", resize="torch")
    take(data, 6)
    assert data.fault_count == 1
    assert [line.split(": ")[0] for line in data.faults()] == [str(folders / "train" / reader.name(7))]
    assert data.facts["decode"].startswith("torchcodec ")
    assert data.facts["decode"].endswith(f"bilinear with antialiasing by torch {torch.__version__}")


def test_a_begun_run_keeps_what_decodes_and_resizes():
    standard = ROOT / "configs" / "imagenet" / "standard.yaml"
    was = flatten(load_config(standard, ["data.resize=pillow"]))
    before = {key: value for key, value in was.items() if key not in ("data.decode", "data.resize")}  # there were none
    assert differences(was, before) == []
    torchs, codecs = (flatten(load_config(standard, [f"data.decode={by}"])) for by in ("pillow", "torchcodec"))
    assert differences(torchs, before) == ["data.resize"]
    assert differences(codecs, torchs) == ["data.decode"]
    with pytest.raises(ConfigError, match=r"data\.resize: expected torch where data\.decode is torchcodec"):
        load_config(standard, ["data.decode=torchcodec", "data.resize=pillow"])


def test_without_torchcodec_a_sentence_says_so(original, load, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    decode.torchcodec.cache_clear()
    with pytest.raises(
        DataError, match=r"data\.decode is torchcodec, which cannot be used here .*pip install"
    ) as error:
        load(original, decode="torchcodec", resize="torch")
    assert "\n" not in str(error.value)
    decode.torchcodec.cache_clear()


def test_colour_jitter_is_torchvisions_to_the_bit():
    jitter = v2.ColorJitter(0.9, 0.9, 0.9)
    for number in range(40):
        image = picture(number, (60, 50))
        torch.manual_seed(number)
        drawn = drawn_colors(0.9, torch.Generator().manual_seed(number))
        assert np.array_equal(jittered(image, *drawn), jitter(image))


def test_colour_jitter_by_torch_is_torchvisions_but_for_rounding():
    for number in range(40):
        image = picture(number, (60, 50))
        drawn = drawn_colors(0.4, torch.Generator().manual_seed(number))
        theirs = np.asarray(jittered(image, *drawn)).astype(int)
        found = jittered_tensor(torch.from_numpy(np.array(image)).permute(2, 0, 1), *drawn)
        assert (found.dtype, found.shape) == (torch.uint8, (3, 50, 60))
        away = np.abs(found.permute(1, 2, 0).numpy() - theirs)
        assert away.mean() < 0.4
        assert away.max() <= 3


def test_resized_by_torch_an_image_has_the_same_colours_and_is_flipped_alike():
    data = jpeg(3)
    for draw in range(8):
        by_torch, by_pillow = (Preparation(224, 0.875, 0.05, 0.4, True, resize=by) for by in ("torch", "pillow"))
        found, wanted = by_torch.train(data, draw), by_pillow.train(data, draw)
        assert found.flags.c_contiguous
        assert difference(found, wanted) < 1.5
        assert difference(found[:, ::-1], wanted) > 5


@pytest.mark.parametrize("resize", ["pillow", "torch"])
def test_the_flip_comes_half_of_the_time(resize):
    flipped, plain = (Preparation(SIZE, 0.875, 0.999, 0, flip, resize=resize) for flip in (True, False))
    data = jpeg(size=(100, 90))
    pairs = [(flipped.train(data, draw), plain.train(data, draw)) for draw in range(60)]
    turned = [np.array_equal(a, b[:, ::-1]) for a, b in pairs]
    assert all(np.array_equal(a, b) for (a, b), turn in zip(pairs, turned, strict=True) if not turn)
    assert 15 < sum(turned) < 45


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_odd_kinds_of_images_become_rgb(mode):
    file = io.BytesIO()
    image = picture(1, (80, 60)).convert("I;16" if mode == "I;16" else mode)
    image.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    prepared = Preparation(SIZE, 0.875, 0.05, 0.4, True)
    with warnings.catch_warnings():
        silence_pillow()
        assert prepared.train(file.getvalue(), 0).shape == prepared.val(file.getvalue()).shape == (SIZE, SIZE, 3)


def test_the_orientation_in_exif_is_ignored():
    image, exif = picture(1, (80, 60)), Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    image.save(files[0], "JPEG")
    image.save(files[1], "JPEG", exif=exif)
    plain, turned = (Preparation(SIZE, 0.875, 0.05, 0, False).val(file.getvalue()) for file in files)
    assert np.array_equal(plain, turned)


def test_normalised_as_everywhere(original, load):
    pixels = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    theirs = F.normalize(pixels.permute(0, 3, 1, 2) / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(load(original)._normalised(pixels), theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu_as_on_the_cpu(original, load, reference):
    data = load(original, workers=2, device=torch.device("cuda"))
    for (images, labels), (images_, labels_) in zip(take(data, 10), reference, strict=True):
        torch.testing.assert_close(images.cpu(), images_)
        assert torch.equal(labels.cpu(), labels_)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_facts_name_what_decodes(original, load, tmp_path):
    facts = load(original).facts
    assert facts["decode"].startswith(f"Pillow {Image.__version__} with libjpeg")
    assert facts["layout"] == "class folders"
    assert (facts["classes"], facts["train_images"], facts["val_images"]) == COUNTS
    assert facts["workers"] == 0


# What can go wrong


def test_incomplete_data_is_refused(original, load):
    with pytest.raises(DataError, match="24 images where 25 were expected"):
        load(original, train_images=25)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_replaced_counted_and_named_once(folders, load, workers):
    data = load(folders, workers=workers)
    reader = readers(folders)["train"]
    truncate(folders / "train" / reader.name(7))
    (folders / "train" / reader.name(8)).write_bytes(b"")
    chunks = take(data, 12)  # two epochs
    order = [int(i) for step in range(6) for chunk in data.order.chunks(step)[1] for i in chunk]
    labels = torch.cat([labels for _, labels in chunks]).tolist()
    assert labels == [int(reader.labels[9 if i in (7, 8) else i]) for i in order]
    assert data.fault_count == 4  # two images, twice
    faults = data.faults()
    assert [line.split(": ")[0] for line in sorted(faults)] == [
        str(folders / "train" / reader.name(i)) for i in sorted((7, 8), key=reader.name)
    ]
    assert any("truncated" in line for line in faults)
    assert any(line.endswith("not an image") for line in faults)
    assert data.faults() == []
    # The next image, augmented as the damaged one would have been.
    place = order.index(7)
    other = data._work.preparation
    pixels = other.train(reader.read(9), draw_of(3, 0, 7)).copy()
    images = torch.cat([images for images, _ in chunks])
    assert torch.equal(images[place], data._normalised(torch.from_numpy(pixels)[None])[0])


def test_the_last_image_is_replaced_by_the_first(folders, load):
    reader = readers(folders)["train"]
    truncate(folders / "train" / reader.name(23))
    _, labels, faults, replaced, problem = load(folders)._work[("train", 0, [23])]
    assert labels.tolist() == [int(reader.labels[0])]
    assert (len(faults), replaced, problem) == (1, 1, "")


def test_a_truncated_validation_image_is_a_wrong_answer(folders, load):
    data = load(folders)
    reader = readers(folders)["val"]
    truncate(folders / "val" / reader.name(4))
    for _ in range(2):
        batches = list(data.validation())
        labels = torch.cat([labels for _, labels in batches])
        assert labels.tolist() == [-1 if i == 4 else int(label) for i, label in enumerate(reader.labels)]
        black = torch.cat([images for images, _ in batches])[4]
        assert torch.equal(black, data._normalised(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))[0])
    assert [line.split(": ")[0] for line in data.faults()] == [str(folders / "val" / reader.name(4))]
    assert data.fault_count == 0


def test_when_nothing_can_be_decoded_training_ends(folders, load):
    for path in (folders / "train").rglob("*.JPEG"):
        path.write_text("404")
    with pytest.raises(DataError, match=r"11 images in a row cannot be decoded.*training.data check"):
        take(load(folders), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_disappears(folders, load, workers):
    data = load(folders, workers=workers)
    stream = data.stream(0)
    next(stream)
    folders.rename(folders.with_name("gone"))
    sentence = r"data folder .* is gone: .*No such file.*run the same command again"
    with pytest.raises(DataError, match=sentence) as caught:
        exhaust(stream)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_comes_back_in_time(folders, load, monkeypatch, reference):
    data = load(folders)
    stream = data.stream(0)
    chunks = [next(stream)]
    away = folders.with_name("away")
    folders.rename(away)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            away.rename(folders)

    monkeypatch.setattr(time, "sleep", sleep)
    chunks += [next(stream) for _ in range(9)]
    assert same(chunks, reference)
    assert waits == [0.05, 0.1]
    assert data.faults() == []


def test_a_shard_that_is_cut_short(original, load, tmp_path):
    root = make_shards(original, tmp_path / "shards")
    data = load(root)
    for path in root.glob("*train*.tar"):
        os.truncate(path, 600)
    with pytest.raises(DataError, match=r"cannot be read: .*train.*\.tar: .*shorter than it was"):
        take(data, 1)


def test_a_damaged_image_in_a_shard(original, load, tmp_path):
    root = make_shards(original, tmp_path / "shards")
    data = load(root)
    reader = readers(root)["train"]
    tar, offset = reader.tars[int(reader.tar[3])], int(reader.offset[3])
    with open(tar, "r+b") as file:
        file.seek(offset)
        file.write(bytes(1000))
    take(data, 6)
    assert data.fault_count == 1
    assert data.faults() == [f"{tar}: {reader.files[3]}: not an image"]


@pytest.fixture
def workers_of(load):
    """Data with two workers that are at work, their stream, and the processes."""

    def begin(root):
        before = set(multiprocessing.active_children())
        data = load(root, workers=2)
        stream = data.stream(0)
        next(stream)
        return data, stream, list(set(multiprocessing.active_children()) - before)

    return begin


def test_a_killed_worker(original, workers_of, monkeypatch):
    monkeypatch.setattr(pool, "POLL", 0.2)
    _, stream, processes = workers_of(original)
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"data worker was killed.*data\.workers=N, now 2.* same command goes on"):
        exhaust(stream)
    del stream
    for process in processes:
        process.join(10)
        assert not process.is_alive()


def test_an_idle_worker_that_is_killed(original, load, monkeypatch):
    """While it waits for work, so that no connection breaks."""
    monkeypatch.setattr(pool, "POLL", 0.2)
    monkeypatch.setattr(pool, "PREFETCH", 1)
    data = load(original, workers=1)
    stream = data.stream(0)
    next(stream)
    time.sleep(0.3)
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="data worker was killed"):
        exhaust(stream)


def test_data_that_does_not_answer(original, tmp_path, load, monkeypatch):
    monkeypatch.setattr(pool, "POLL", 0.2)
    monkeypatch.setattr(pool, "STALL", 0.5)
    data = load(make_shards(original, tmp_path / "shards"), workers=1)
    for path in (tmp_path / "shards").rglob("*.tar"):
        path.unlink()
        os.mkfifo(path)  # reading waits for somebody to write, as from a server that is gone
    with pytest.raises(DataError, match=r"No image came for \d s: the data folder .* does not answer"):
        exhaust(data.stream(0))


def test_a_pipe_among_the_images_is_one_that_cannot_be_read(folders, load):
    path = next((folders / "train").rglob("*.JPEG"))
    path.unlink()
    os.mkfifo(path)
    data = load(folders, workers=0)
    stream = data.stream(0)
    for _ in range(12):
        next(stream)
    assert data.faults() == [f"{path}: not an image"]


KILLED = """
import multiprocessing, time
from training.data.workers import parallel
work = parallel(time.sleep, [0, 0, 600], 1, "naps")
next(work)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
next(work), next(work)
"""


def test_workers_end_with_a_process_that_is_killed():
    main = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with main:
        worker = Path("/proc", main.stdout.readline().strip())
        assert worker.exists()
        main.kill()
    for _ in range(100):
        with suppress(FileNotFoundError, ProcessLookupError):
            if "(zombie)" not in (worker / "status").read_text():  # it may wait for the server to take note of its end
                time.sleep(0.1)
                continue
        return
    os.kill(int(worker.name), signal.SIGKILL)
    pytest.fail("the worker goes on without the process that it worked for")


@pytest.fixture
def own_server():
    """The server that workers are forked from, one that a training begins; that of the tests is not protected."""
    _forkserver._stop()
    yield _forkserver
    _forkserver._stop()
    serve()


def test_signals_that_ask_to_stop_are_not_for_the_workers(original, own_server, workers_of, reference):
    """A scheduler sends them to each process of a job; the one that trains needs its workers until it has saved."""
    data, stream, processes = workers_of(original)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for pid in (*(process.pid for process in processes), own_server._forkserver_pid):
            os.kill(pid, number)
    time.sleep(0.2)
    assert same([next(stream) for _ in range(9)], reference[1:])
    assert all(process.is_alive() for process in processes)
    data.close()
    for process in processes:
        process.join(10)
        assert not process.is_alive()
    with pytest.raises(StopIteration):
        next(stream)


def test_workers_end_with_a_stream_that_nobody_holds(original, workers_of):
    _, stream, processes = workers_of(original)
    del stream
    for process in processes:
        process.join(10)
        assert not process.is_alive()


def test_an_evaluation_has_the_workers_of_training(original, workers_of, load, reference):
    """They are the same processes before, in and after it, and what training had asked for is not lost."""
    data, stream, processes = workers_of(original)
    wanted = list(load(original).validation())
    for round_ in range(2):
        found = []
        for batch in data.validation():
            found.append(batch)
            assert set(multiprocessing.active_children()) == set(processes)
        for k in (0, 1):
            assert torch.equal(torch.cat([batch[k] for batch in found]), torch.cat([batch[k] for batch in wanted]))
        assert same([next(stream) for _ in range(3)], reference[1 + 3 * round_ : 4 + 3 * round_])
    left = data.validation()  # as where a run is stopped in an evaluation
    next(left)
    del left
    assert same([next(stream) for _ in range(3)], reference[7:10])
    assert set(multiprocessing.active_children()) == set(processes)


def test_mini_batches_that_come_in_an_evaluation_can_be_trained_on(original, load):
    """`evaluate` runs in inference mode, whose tensors no backward pass takes."""
    data = load(original, workers=1)
    stream = data.stream(0)
    next(stream)
    with torch.inference_mode():
        for _ in data.validation():
            pass
    for _ in range(3):
        assert not any(tensor.is_inference() for tensor in next(stream))


def test_what_is_waited_for_is_what_is_read(original, load, reference):
    data = load(original)
    asked = []

    class Noted:
        def __getitem__(self, task):
            asked.append(task[0])
            return data._work[task]

    data._pool.work = Noted()
    stream = data.stream(0)
    first = next(stream)
    measured = data.validation()
    next(measured)
    other = data.stream(2)  # a second training stream, as the one that measures step 0, beside the first one
    assert same([first, next(stream)], reference[:2])
    assert same([next(other) for _ in range(2)], reference[4:6])
    assert asked == ["train", "val", "train", "train", "train"]


def test_the_process_that_trains_goes_before_its_workers(workers_of, original):
    _, _, processes = workers_of(original)
    wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + processes_of.NICE)
    deadline = time.monotonic() + 60  # the first batch needs one of them: the other may still be starting
    while (found := {os.getpriority(os.PRIO_PROCESS, worker.pid) for worker in processes}) != {wanted}:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    assert len(processes) == 2


@pytest.mark.parametrize(("cores", "world", "wanted"), [(16, 1, 15), (2, 1, 1), (1, 1, 1), (16, 4, 3)])
def test_the_main_thread_has_a_core_of_its_own(monkeypatch, original, load, cores, world, wanted):
    monkeypatch.setattr(processes_of, "cpus", lambda local_world: cores // local_world)
    assert processes_of.beside_training(world) == wanted
    if world == 1 and wanted == 1:
        assert load(original, workers=None).workers == 1


def test_a_resized_copy_is_named_in_the_facts(folders, load):
    (folders / "resize.json").write_text('{"settings": {"short_side": 256}}')
    assert load(folders).facts["resized"] == {"short_side": 256}
    shutil.rmtree(folders)


def test_a_long_name_of_the_temporary_folder(tmp_path):
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    script = "from training.data.workers import parallel\nif __name__ == '__main__':\n"
    script += "    print(list(parallel(abs, [-1, 2], 1, 'numbers')))\n"
    (tmp_path / "script.py").write_text(script)
    call = [sys.executable, str(tmp_path / "script.py")]
    environment = {**os.environ, "TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")
