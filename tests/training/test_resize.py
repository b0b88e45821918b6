"""The smaller copy: complete, the same images under the same names, and made only once."""

import errno
import io
import json
import os

import pytest
from images import COUNTS, copy, make_archive, truncate
from PIL import Image

from training.data.__main__ import main
from training.data.decode import decode
from training.data.imagenet import resize as module
from training.data.imagenet.check import check
from training.data.imagenet.layouts import readers
from training.data.imagenet.readers import fingerprint
from training.data.imagenet.resize import resize
from training.errors import DataError

SIDE = 48


@pytest.fixture(scope="module")
def images(original, tmp_path_factory):
    """Images of 90x70 and 64x100, and one that is smaller than asked for."""
    root = copy(original, tmp_path_factory.mktemp("resize") / "folders")
    path = sorted((root / "train").rglob("*.JPEG"))[3]
    decode(path.read_bytes()).resize((40, 60)).save(path, "JPEG")
    return root


@pytest.fixture
def target(tmp_path):
    return tmp_path / "small"


def make(source, target, **changed):
    return resize(source, target, **{"short_side": SIDE, "workers": 0} | changed)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_image_smaller_under_its_own_name(images, target):
    record = make(images, target)
    assert check(target, *COUNTS, workers=0).problems == []
    assert record["images"] == {"train": COUNTS[1], "val": COUNTS[2]}
    assert record["now"] == {"already": 0, "written": 35, "copied": 1}
    assert record["complete"]
    for split, reader in readers(images).items():
        small = readers(target)[split]
        assert fingerprint(small) == fingerprint(reader)
        for i in range(len(reader)):
            before, after = decode(reader.read(i)), Image.open(io.BytesIO(small.read(i)))
            if min(before.size) <= SIDE:
                assert small.read(i) == reader.read(i)
                continue
            assert min(after.size) == SIDE
            assert (after.format, after.mode) == ("JPEG", "RGB")
            assert abs(after.size[0] / after.size[1] - before.size[0] / before.size[1]) < 0.03
    settings = json.loads((target / "resize.json").read_text())["settings"]
    assert {k: settings[k] for k in ("short_side", "quality", "subsampling")} == {
        "short_side": SIDE,
        "quality": 95,
        "subsampling": "4:2:0",
    }


def test_from_tar_files_by_processes(images, target, tmp_path):
    make(images, target)
    other = tmp_path / "other"
    make(make_archive(images, tmp_path / "tars"), other, workers=2)
    assert contents(other) == contents(target)


def test_it_goes_on_where_it_stopped(images, target, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    make(images, whole)
    write, written = module.write_atomic, []

    def killed_at_ten(path, data):
        written.append(path)
        if len(written) == 10:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", killed_at_ten)
    with pytest.raises(KeyboardInterrupt):
        make(images, target)
    monkeypatch.undo()
    assert not json.loads((target / "resize.json").read_text())["complete"]
    (target / "train" / "n00000007" / ".n00000007_0.JPEG.part99").write_bytes(b"half")  # a kill leaves such
    done = contents(target)
    record = make(images, target)
    assert record["now"]["already"] == 8
    assert {k: v for k, v in contents(target).items() if k in done and k.suffix == ".JPEG"} == {
        k: v for k, v in done.items() if k.suffix == ".JPEG"
    }
    assert contents(target).keys() - {next(k for k in done if "part99" in k.name)} == contents(whole).keys()
    assert make(images, target)["now"] == {"already": 36, "written": 0, "copied": 0}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"short_side": 32}, "made with short_side 48 instead of 32"), ({"quality": 80}, "quality 95 instead of 80")],
)
def test_other_settings_need_another_folder(images, target, changed, sentence):
    make(images, target)
    with pytest.raises(DataError, match=sentence):
        make(images, target, **changed)


def test_other_images_need_another_folder(images, target, tmp_path):
    make(images, target)
    other = copy(images, tmp_path / "other")
    next((other / "train").rglob("*.JPEG")).unlink()
    with pytest.raises(DataError, match="made from other images"):
        make(other, target)


def test_a_folder_that_is_not_ours(images, target, tmp_path):
    target.mkdir()
    (target / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"is not empty and has no resize\.json"):
        make(images, target)
    with pytest.raises(DataError, match="give a folder outside of the original"):
        make(images, images / "small")
    (target / "thesis.tex").rename(target / "resize.json")
    with pytest.raises(DataError, match="is damaged"):
        make(images, target)


def test_damaged_images_are_listed_and_copied(images, target, tmp_path, capsys):
    source = copy(images, tmp_path / "source")
    damaged = [sorted((source / split).rglob("*.JPEG"))[5] for split in ("train", "val")]
    for path in damaged:
        truncate(path)
    arguments = ["resize", str(source), str(target), f"--short-side={SIDE}", "--workers=0"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "24 + 12 images" in out
    assert [f"cannot be decoded, copied as it is: {path}: " in err for path in damaged] == [True, True]
    assert all((target / path.relative_to(source)).read_bytes() == path.read_bytes() for path in damaged)
    record = (target / "resize.json").read_bytes()
    assert main(arguments) == 0  # nothing left to do; what was damaged is still known
    assert (target / "resize.json").read_bytes() == record
    assert "0 resized, 0 copied, 36 there from before" in capsys.readouterr().out


def test_a_full_disk(images, target, monkeypatch, capsys):
    replace = os.replace

    def full(source, path):
        if str(path).endswith(".JPEG"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        replace(source, path)

    monkeypatch.setattr(os, "replace", full)
    assert main(["resize", str(images), str(target), "--workers=0"]) == 2
    text = capsys.readouterr().err
    assert f"The disk of {target} is full: make room" in text
    assert "same command goes on where this one stopped" in text
    assert not [path for path in target.rglob("*") if path.name.endswith(".tmp")]


def test_an_image_that_vanishes_from_the_copy(images, target):
    make(images, target)
    path = next((target / "val").rglob("*.JPEG"))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty: remove it"):
        make(images, target)
    path.unlink()
    assert make(images, target)["now"]["written"] == 1
    path.with_name("more.JPEG").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="13 images of val where 12 were expected"):
        make(images, target)
