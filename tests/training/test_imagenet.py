"""ImageNet as it lies on people's disks: every layout is the same data, and what is wrong with it is said plainly."""

import hashlib
import io
import os
import pickle
import socket
import sys
import tarfile

import numpy as np
import pytest
import torch
from images import (
    CLASSES,
    COUNTS,
    TRAIN,
    add,
    copy,
    make_archive,
    make_parquet,
    make_shards,
    truncate,
    val_order,
)
from PIL import Image

from training.data import workers
from training.data.__main__ import main
from training.data.imagenet import readers as reading
from training.data.imagenet import tars
from training.data.imagenet.check import check
from training.data.imagenet.layouts import readers
from training.data.imagenet.readers import TarReader, fingerprint
from training.data.workers import cgroup_quota, cpus

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def said(capsys):
    """What the command says when it fails, and that it fails."""

    def run(*arguments):
        assert main([str(x) for x in arguments]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert "Traceback" not in err
        return err

    return run


def everything(root):
    """Every image of both splits: contents, label and name without its ending."""
    return {
        split: [
            (hashlib.sha256(reader[i][0]).hexdigest(), reader[i][1], os.path.splitext(reader.name(i))[0])
            for i in range(len(reader))
        ]
        for split, reader in readers(root).items()
    }


def counts(**changed):
    values = dict(zip(("classes", "train_images", "val_images"), COUNTS, strict=True)) | changed
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]


# Layouts


def test_class_folders(original):
    found = readers(original)
    assert [len(found[split]) for split in ("train", "val")] == list(COUNTS[1:])
    assert found["train"].classes == list(CLASSES)
    for reader in found.values():
        names = [reader.name(i) for i in range(len(reader))]
        assert sorted(names, key=lambda name: os.path.splitext(name)[0]) == names
        for i, name in enumerate(names):
            data, label = reader[i]
            assert data == (original / reader.split / name).read_bytes()
            assert CLASSES[label] == name.split("/")[0]
            assert reader.filename(i) == str(original / reader.split / name)


@pytest.mark.parametrize("kind", ["tar files", "shards", "shards in folders", "json", "other numbers", "validation"])
def test_another_layout_has_the_same_images(original, tmp_path, kind):
    root = tmp_path / "other"
    if kind == "tar files":
        make_archive(original, root)
    elif kind == "validation":
        (copy(original, root) / "val").rename(root / "validation")
    else:
        numbers = (2, 0, 3, 1) if kind == "other numbers" else range(len(CLASSES))
        # Validation images do not have their class in the name, so that other numbers need it beside the label.
        label = "json" if kind in ("json", "other numbers") else "cls"
        make_shards(original, root, inside="folders" in kind, label=label, numbers=numbers)
    assert everything(root) == everything(original)
    for split in ("train", "val"):
        assert fingerprint(readers(root)[split]) == fingerprint(readers(original)[split])
    assert check(root, *COUNTS, fast=True).problems == []


def test_parquet_has_the_same_images(original, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    root = make_parquet(original, tmp_path / "parquet")
    assert everything(root) == everything(original)
    report = check(root, *COUNTS, fast=True)
    assert report.problems == []
    assert report.facts["layout"] == "Hugging Face parquet"
    again = pickle.loads(pickle.dumps(report.readers["train"]))
    assert again[3] == report.readers["train"][3]
    assert all(path.is_relative_to(root) for path in root.rglob("*"))
    assert sorted(path.name for path in root.rglob("*.*")) == [
        "train-00000-of-00001.parquet",
        "validation-00000-of-00001.parquet",
    ]


def test_parquet_without_its_package(original, tmp_path, monkeypatch, said):
    (tmp_path / "train-00000-of-00001.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in said("check", tmp_path)


def test_labels_without_names_of_classes(original, tmp_path):
    """Shards that have numbers only: these stay the labels."""
    root = tmp_path / "shards"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for label in (3, 0, 1, 2):
                add(tar, f"{9 - label}.png", b"x%d" % label)
                add(tar, f"{9 - label}.cls", b"%d" % label)
    found = readers(root)["val"]
    assert [found[i] for i in range(4)] == [(b"x0", 0), (b"x1", 1), (b"x2", 2), (b"x3", 3)]
    assert found.classes == ["0000", "0001", "0002", "0003"]


def test_a_reader_is_sent_while_its_files_are_open(original, tmp_path):
    reader = readers(make_shards(original, tmp_path / "shards"))["train"]
    before = reader[5]
    assert reader._open
    again = pickle.loads(pickle.dumps(reader))
    assert isinstance(again, TarReader)
    assert not again._open
    assert again[5] == before
    assert len(pickle.dumps(reader)) < 20_000


def test_few_files_are_open_at_once(original, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "OPEN_TARS", 1)
    reader = readers(make_shards(original, tmp_path / "shards"))["train"]
    for i in range(len(reader)):
        assert reader[i] == readers(original)["train"][i]
        assert len(reader._open) == 1


def test_the_fingerprint_is_of_names_and_labels(folders, tmp_path):
    before = fingerprint(readers(folders)["train"])
    path = folders / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    truncate(path)
    moved = tmp_path / "elsewhere"
    folders.rename(moved)
    assert fingerprint(readers(moved)["train"]) == before
    path = moved / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    path.rename(path.with_name("other.JPEG"))
    assert fingerprint(readers(moved)["train"]) != before


def test_the_index_of_tar_files_is_kept_if_it_took_long(original, tmp_path, monkeypatch):
    root = make_archive(original, tmp_path / "archive")
    monkeypatch.setattr(tars, "SLOW", 0)
    before = everything(root)
    assert len(list((tmp_path / "cache" / "net2net").iterdir())) == 2
    assert sorted(path.name for path in root.iterdir()) == [
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "meta.bin",
    ]
    monkeypatch.setattr(tars, "_members", None)  # not needed any more
    assert everything(root) == before
    for path in (tmp_path / "cache" / "net2net").iterdir():
        path.write_text("[[")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "meta.bin"))  # nowhere to write
    monkeypatch.setattr(tars, "SLOW", 0)
    assert everything(root) == before


# What is wrong, in a sentence


def test_complete_data(original, capsys):
    assert main(["check", str(original), *counts(), "--workers=0"]) == 0
    assert "class folders, 4 classes, 24 + 12 images; every image can be read" in capsys.readouterr().out
    assert main(["check", str(original), *counts(), "--fast"]) == 0
    assert "names and numbers are right" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["folders", "tar files"])
def test_every_image_is_decoded_by_processes(original, tmp_path, layout):
    root = copy(original, tmp_path / "x") if layout == "folders" else make_archive(original, tmp_path / "x")
    report = check(root, *COUNTS, workers=1)
    assert report.problems == []


def test_a_folder_that_is_not_there(tmp_path, said):
    assert "does not exist, or its disk is not mounted" in said("check", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is not a folder" in said("check", tmp_path / "file")


def test_a_folder_with_something_else(tmp_path, said):
    (tmp_path / "notes.txt").touch()
    assert "holds notes.txt: no images in a layout that is known here" in said("check", tmp_path)


def test_kaggles_folder_further_down(folders, tmp_path, said):
    inside = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    inside.parent.mkdir(parents=True)
    folders.rename(inside)
    assert f"give {inside} instead" in said("check", tmp_path / "kaggle")


def test_no_validation_folder(folders, said):
    (folders / "val").rename(folders / "test")
    assert "has no folder val/" in said("check", folders)


def test_a_folder_that_may_not_be_listed(folders, monkeypatch, said):
    closed = folders / "train" / CLASSES[1]
    listing = os.scandir

    def scandir(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"{closed} cannot be listed (Permission denied)" in said("check", folders)


def test_a_class_that_validation_lacks(folders, said):
    (folders / "val" / CLASSES[2]).rename(folders / "val" / "n99999999")
    text = said("check", folders, *counts(), "--fast")
    assert f"1 class of train not in val ({CLASSES[2]})" in text
    assert "1 class of val not in train (n99999999)" in text


def test_wrong_numbers(folders, said):
    (folders / "train" / CLASSES[1] / f"{CLASSES[1]}_37.JPEG").unlink()
    text = said("check", folders, *counts(), "--fast")
    assert f"train has 23 images where 24 were expected (fewest in class {CLASSES[1]}: 5): copy or unpack again" in text
    text = said("check", folders, *counts(train_images=20, classes=1000), "--fast")
    assert "23 images where 20 were expected" in text
    assert "train has 4 classes where 1,000 were expected" in text
    assert "data.train_images" in text


def test_an_empty_class(folders, said):
    for split in ("train", "val"):
        (folders / split / "n99999999").mkdir()
    assert "there is no image of the class n99999999 in val" in said("check", folders, *counts(classes=5), "--fast")


def test_unreadable_images(folders, said, tmp_path):
    damaged = sorted((folders / "train").rglob("*.JPEG"))[:23]
    for path in damaged:
        truncate(path)
    damaged[1].write_bytes(b"")
    damaged[2].write_text("404 not found")
    text = said("check", folders, *counts(), "--workers=0", "--list", tmp_path / "list")
    assert "23 images of 36 cannot be read: fetch these files again" in text
    assert f"{damaged[1]}: not an image" in text
    assert "image file is truncated" in text
    assert "and 3 more; --list FILE writes all of them" in text
    assert len((tmp_path / "list").read_text().splitlines()) == 23
    assert check(folders, *COUNTS, fast=True).problems == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_loose_images_of_ones_own(folders, said, split):
    (folders / split / "x.jpg").touch()
    words = f"{split} holds 1 image outside of class folders, such as x.jpg: move it into its class's folder: {split}/"
    text = said("check", folders)
    assert words in text
    assert "sort-val" not in text


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_an_image_that_cannot_be_read(folders, said, kind, monkeypatch):
    path = sorted((folders / "train").rglob("*.JPEG"))[0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as there:
            monkeypatch.chdir(path.parent)  # the path of a socket is short
            there.bind(path.name)
    assert f"{path}: not an image" in said("check", folders, *counts(), "--workers=0")


def test_a_pipe_for_a_tar_file(original, tmp_path, said):
    path = sorted(make_shards(original, tmp_path / "shards").rglob("*.tar"))[0]
    path.unlink()
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to(tmp_path / "pipe")
    assert f"{path} is a pipe, a socket or a device, where a file was expected" in said("check", tmp_path / "shards")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "--workers", "-1"], "--workers: expected a whole number from 0 to 1,024, got '-1'"),
        (["resize", "--workers", "-1"], "--workers: expected a whole number from 0 to 1,024, got '-1'"),
        (["resize", "--short-side", "0"], "--short-side: expected a whole number from 1 to 65,535, got '0'"),
        (["resize", "--short-side", "-5"], "--short-side: expected a whole number from 1 to 65,535, got '-5'"),
        (["resize", "--quality", "500"], "--quality: expected a whole number from 1 to 100, got '500'"),
        (["check", "--classes", "1"], "--classes: expected a whole number from 2 to"),
    ],
)
def test_a_number_that_is_none_of_the_option_s(capsys, words, message):
    with pytest.raises(SystemExit) as exit_:
        main([*words, "here", *(["there"] if words[0] == "resize" else [])])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_list_that_cannot_be_written_is_said_before_any_image_is_read(folders, said, monkeypatch):
    monkeypatch.setattr("training.data.__main__.checked", None)
    text = said("check", folders, "--list", folders / "nowhere" / "list")
    assert (
        text
        == f"--list {folders / 'nowhere' / 'list'}: cannot be written (No such file or directory): give a new file\n"
    )


def test_class_tars_that_nobody_unpacked(tmp_path, said):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{CLASSES[0]}.tar").touch()
    assert "holds 1 tar file and no class folder: unpack each" in said("check", tmp_path)


@pytest.mark.parametrize("label", [-1, -100])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_label_below_zero_in_a_shard(tmp_path, said, label, split):
    for name in ("train", "val"):
        with tarfile.open(tmp_path / f"{name}-0.tar", "w") as tar:
            for k in range(3):
                add(tar, f"{k}.jpg", b"")
                add(tar, f"{k}.cls", str(label if k == 1 and name == split else k).encode())
    text = said("check", tmp_path, "--fast")
    assert f"{split}-0.tar: 1.jpg, {split}: 1 of 3 images have the label {label}, and classes count from 0" in text


def test_labels_from_one_on_are_said_to_be(original, tmp_path, said):
    make_shards(original, tmp_path, numbers=(1, 2, 3, 4))
    for split in ("train", "val"):  # without wnids in the names: numbers are all there is
        for path in tmp_path.glob(f"*{split}*.tar"):
            files = {}
            with tarfile.open(path) as tar:
                for member in tar:
                    files[member.name.replace("n0", "x0")] = tar.extractfile(member).read()
            with tarfile.open(path, "w") as tar:
                for name, data in files.items():
                    add(tar, name, data)
    assert "there is no image of the class 0000: labels count from 0, and these begin at 1" in said(
        "check", tmp_path, *counts(), "--fast"
    )


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_compressed_shard_whatever_its_name(original, tmp_path, said, kind):
    make_shards(original, tmp_path)
    path = next(tmp_path.glob("*train*.tar"))
    with tarfile.open(path, f"w:{kind}") as tar:
        add(tar, "a.jpg", b"1234")
        add(tar, "a.cls", b"0")
    assert f"The tar file {path} is compressed" in said("check", tmp_path)


def test_webp_among_the_images(folders):
    path = next((folders / "train" / CLASSES[0]).iterdir())
    Image.open(path).convert("RGB").save(path.with_suffix(".webp"), "WEBP")
    path.unlink()
    assert check(folders, *COUNTS, workers=0).problems == []


def test_tiny_imagenets_layout(folders, said):
    folder = folders / "train" / CLASSES[1]
    (folder / "images").mkdir()
    for path in folder.glob("*.JPEG"):
        path.rename(folder / "images" / path.name)
    assert f"{folder} has its images in a folder images/, as tiny-imagenet's archive does" in said("check", folders)


def test_all_validation_images_in_one_folder(folders, said):
    (folders / "val").rename(folders / "images")
    (folders / "val").mkdir()
    (folders / "images").rename(folders / "val" / "images")
    for path in list((folders / "val" / "images").rglob("*.JPEG")):
        path.rename(folders / "val" / "images" / path.name)
    for name in CLASSES:
        (folders / "val" / "images" / name).rmdir()
    assert "one folder images/, as tiny-imagenet's archive does" in said("check", folders)


def test_a_folder_under_a_file(tmp_path, said):
    (tmp_path / "file").touch()
    assert f"cannot be there, for {tmp_path / 'file'} is a file" in said("check", tmp_path / "file" / "imagenet")


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels"), ("img", "labels")])
def test_parquet_with_other_columns(original, tmp_path, monkeypatch, said, columns):
    text = parquet_with(original, tmp_path, monkeypatch, said, lambda table: table.rename_columns(list(columns)))
    assert f"the columns are {', '.join(columns)}: expected image and label" in text


@pytest.mark.parametrize(("value", "shown"), [("tench", "'tench'"), (None, "None"), (-1, "the label -1")])
def test_parquet_with_odd_labels(original, tmp_path, monkeypatch, said, value, shown):
    def change(table):
        kinds = {str: (pa.string(), str), type(None): (pa.int64(), int), int: (pa.int64(), int)}
        kind, convert = kinds[type(value)]
        labels = [convert(x) for x in table.column("label").to_pylist()]
        return table.set_column(1, "label", pa.array([value, *labels[1:]], kind)).replace_schema_metadata(None)

    pa = pytest.importorskip("pyarrow")
    assert shown in parquet_with(original, tmp_path, monkeypatch, said, change)


def parquet_with(original, tmp_path, monkeypatch, said, change):
    """What the check says of parquet files whose tables were changed."""
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    root = make_parquet(original, tmp_path / "hf")
    for path in (root / "data").glob("*.parquet"):
        parquet.write_table(change(parquet.read_table(path)), path)
    return said("check", root, "--fast")


# The validation folder


@pytest.fixture
def unsorted(folders):
    """val/ as it comes out of the archive."""
    wnids = val_order(folders)
    for path in list((folders / "val").rglob("*.JPEG")):
        path.rename(folders / "val" / path.name)
    for folder in list((folders / "val").iterdir()):
        if folder.is_dir():
            folder.rmdir()
    return folders, wnids


def devkit(root, wnids, monkeypatch):
    """A devkit of our classes, in its odd formats, and torchvision's checksum set to it."""
    io_ = pytest.importorskip("scipy.io")
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(k, name, f"word {k}, other", "what it is", 0) for k, name in enumerate(reversed(CLASSES), start=1)]
    rows.append((99, "n88888888", "an inner node", "", 3))
    synsets = np.empty((len(rows), 1), dtype=kind)
    for k, row in enumerate(rows):
        synsets[k, 0] = row
    meta = io.BytesIO()
    io_.savemat(meta, {"synsets": synsets})
    ids = {name: k for k, name, *_ in rows}
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{ids[name]}\n" for name in wnids)
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    from torchvision.datasets import imagenet as theirs

    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(theirs.ARCHIVE_META, "devkit", (path.name, md5))
    return path


def kaggle(root, wnids):
    lines = [f"ILSVRC2012_val_{k:08d},{name} 1 2 3 4 {name} 5 6 7 8" for k, name in enumerate(wnids, start=1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")


@pytest.mark.parametrize("source", ["kaggle", "devkit"])
def test_an_unsorted_validation_folder(unsorted, original, said, capsys, source, monkeypatch):
    folders, wnids = unsorted
    text = said("check", folders)
    assert "val holds 12 images outside of class folders, as they come out of the archive: run `python" in text
    assert f"sort-val {folders}" in text
    assert "put ILSVRC2012_devkit_t12.tar.gz (from image-net.org) or LOC_val_solution.csv" in said("sort-val", folders)
    if source == "kaggle":
        kaggle(folders.parent, wnids)
    else:
        devkit(folders, wnids, monkeypatch)
    (folders / "val" / wnids[0]).mkdir()  # it was stopped once
    (folders / "val" / "ILSVRC2012_val_00000001.JPEG").rename(
        folders / "val" / wnids[0] / "ILSVRC2012_val_00000001.JPEG"
    )
    assert main(["sort-val", str(folders)]) == 0
    assert "11 images moved" in capsys.readouterr().out
    assert everything(folders) == everything(original)
    assert main(["sort-val", str(folders)]) == 0
    assert "nothing to move" in capsys.readouterr().out


def test_the_devkit_in_place(original, tmp_path, monkeypatch):
    """torchvision's layout, before torchvision has been there."""
    root = make_archive(original, tmp_path / "archive")
    (root / "meta.bin").unlink()
    devkit(root, val_order(original), monkeypatch)
    assert everything(root) == everything(original)
    assert not (root / "meta.bin").exists()


def test_a_damaged_devkit(unsorted, said, monkeypatch):
    folders, wnids = unsorted
    truncate(devkit(folders, wnids, monkeypatch))
    assert "is damaged (its md5 is not the original's): fetch it again" in said("sort-val", folders)


def test_a_devkit_without_scipy(unsorted, said, monkeypatch):
    folders, wnids = unsorted
    devkit(folders, wnids, monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert "pip install scipy" in said("sort-val", folders)


def test_a_validation_folder_that_cannot_be_written(unsorted, said, monkeypatch):
    folders, wnids = unsorted
    kaggle(folders, wnids)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    assert "cannot be sorted (Read-only file system): make it writable, or copy it" in said("sort-val", folders)


KAGGLES = "ImageId,PredictionString\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_kaggles_table_with_and_without_a_byte_order_mark(unsorted, capsys, mark):
    root, wnids = unsorted
    lines = [f"ILSVRC2012_val_{k:08d},{name} 1 2 3 4\n" for k, name in enumerate(wnids, 1)]
    (root / "LOC_val_solution.csv").write_bytes(mark + (KAGGLES + "".join(lines)).encode())
    assert main(["sort-val", str(root)]) == 0
    assert "12 images moved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (KAGGLES + "ILSVRC2012_val_00000001,\n", "line 2: no class for ILSVRC2012_val_00000001"),
        (KAGGLES + "ILSVRC2012_val_00000001\n", "line 2: no class for ILSVRC2012_val_00000001"),
        ("", "expected the columns ImageId and PredictionString, found none"),
        ("a,b\n1,2\n", "expected the columns ImageId and PredictionString, found a, b"),
        ("\x80\x81", "is no table of text in UTF-8"),
    ],
)
def test_a_damaged_table_of_kaggles(unsorted, said, content, message):
    root, _ = unsorted
    (root / "LOC_val_solution.csv").write_bytes(content.encode("latin-1"))
    assert message in said("sort-val", root)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04]\x94.", b"PK\x03\x04"])
def test_a_damaged_meta_bin(unsorted, said, content):
    root, _ = unsorted
    (root / "meta.bin").write_bytes(content)
    assert "meta.bin is damaged, or not what torchvision made of the devkit" in said("sort-val", root)


def test_a_stranger_in_the_validation_folder(unsorted, said):
    folders, wnids = unsorted
    kaggle(folders, wnids)
    (folders / "val" / "me.jpg").touch()
    assert "me.jpg is no image of the validation set" in said("sort-val", folders)


# Damaged tar files


@pytest.mark.parametrize("layout", ["shards", "tar files"])
@pytest.mark.parametrize("damage", ["short", "in the middle", "no tar"])
def test_a_damaged_tar_file(original, tmp_path, said, layout, damage):
    root = (make_shards if layout == "shards" else make_archive)(original, tmp_path / "x")
    path = sorted(root.glob("*train*.tar"))[0]
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    if damage == "short":
        path.write_bytes(data[: second + 700])
    elif damage == "in the middle":
        path.write_bytes(data[:second] + b"\xff" * 512 + data[second + 512 :])
    else:
        path.write_bytes(b"<html>" * 1000)
    assert f"The tar file {path} is damaged or incomplete" in said("check", root)


def test_a_damaged_tar_inside(original, tmp_path, said):
    root = make_archive(original, tmp_path / "x")
    path = root / "ILSVRC2012_img_train.tar"
    with tarfile.open(path) as tar:
        inner = tar.getmembers()[2]
    data = bytearray(path.read_bytes())
    data[inner.offset_data : inner.offset_data + 512] = b"\xff" * 512
    path.write_bytes(data)
    assert f"{path} ({inner.name}) is damaged or incomplete" in said("check", root)


def test_damage_inside_an_image_of_a_shard(original, tmp_path, said):
    root = make_shards(original, tmp_path / "x")
    path = sorted(root.glob("*train*.tar"))[0]
    with tarfile.open(path) as tar:
        image = next(m for m in tar if m.name.endswith(".jpg"))
    data = bytearray(path.read_bytes())
    data[image.offset_data : image.offset_data + 2000] = bytes(2000)
    path.write_bytes(data)
    assert f"{path}: {image.name}: not an image" in said("check", root, *counts(), "--workers=0")


def test_a_sample_without_label(tmp_path, said):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            add(tar, "a.jpg", b"x")
            add(tar, "a.json", b"not json")
    assert "the label of a.jpg is in a file that is no valid JSON: expected a class's number" in said("check", tmp_path)


def test_shards_of_one_split_only(original, tmp_path, said):
    root = make_shards(original, tmp_path / "x")
    for path in root.glob("*validation*"):
        path.unlink()
    assert "none of the val set" in said("check", root)


def test_tar_files_without_validation(original, tmp_path, said):
    root = make_archive(original, tmp_path / "x")
    (root / "ILSVRC2012_img_val.tar").unlink()
    assert "has no ILSVRC2012_img_val.tar: put it there" in said("check", root)


def test_a_tar_file_that_shrinks_while_it_is_read(original, tmp_path):
    root = make_shards(original, tmp_path / "x")
    reader = readers(root)["train"]
    for path in root.glob("*train*"):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match="shorter than it was"):
        reader.read(TRAIN)


# The job's cores


@pytest.fixture
def job(monkeypatch):
    """cpus() of a machine with so many cores, a quota, and Slurm's variables."""

    def of(local_world=1, cores=64, quota=None, **slurm):
        for name in ("ON_NODE", "PER_TASK"):
            monkeypatch.delenv(f"SLURM_CPUS_{name}", raising=False)
        for name in ("SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in slurm.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setattr(workers, "cgroup_quota", lambda: quota)
        return cpus(local_world)

    return of


def test_the_jobs_cores_and_not_the_machines(job, monkeypatch):
    assert job() == 64
    assert job(cores=3) == 3
    assert job(local_world=8) == 8
    assert job(local_world=8, cores=4) == 1
    assert job(quota=6.5) == 6
    monkeypatch.setenv("TRAIN_CORES", "5")  # of each process, as the launcher shares them out
    assert job(local_world=2) == 5
    assert job(local_world=16) == 4
    monkeypatch.delenv("TRAIN_CORES")
    assert job(local_world=2, quota=6.5) == 3
    assert job(CPUS_ON_NODE="12") == 12
    assert job(CPUS_ON_NODE="²", CPUS_PER_TASK="9" * 5000, NTASKS_PER_NODE="9" * 5000) == 64
    # torchrun: one task starts all the processes of a machine
    assert job(local_world=4, CPUS_PER_TASK="32", NTASKS_PER_NODE="1", CPUS_ON_NODE="32") == 8
    assert job(local_world=4, CPUS_PER_TASK="32") == 8
    # srun: each process is a task, and sees its own cores only
    slurm = {"CPUS_PER_TASK": "10", "STEP_TASKS_PER_NODE": "4(x2)", "CPUS_ON_NODE": "40"}
    assert job(local_world=4, cores=10, **slurm) == 10
    assert job(local_world=4, cores=40, **slurm) == 10


def test_the_quota_of_the_cgroup(tmp_path):
    mounted = tmp_path / "cgroup"
    inner = mounted / "pod" / "box"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=x:/other\n0::/pod/box\n")
    assert cgroup_quota(own, mounted) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(own, mounted) is None
    (mounted / "pod" / "cpu.max").write_text("250000 100000\n")
    assert cgroup_quota(own, mounted) == 2.5
    (inner / "cpu.max").write_text("100000 100000\n")
    assert cgroup_quota(own, mounted) == 1
    assert cgroup_quota(tmp_path / "none", mounted) is None


def test_many_names_in_one_tensor():
    strings = reading.Strings(["a", "", "größe", "x" * 300])
    assert list(strings) == [strings[i] for i in range(4)] == ["a", "", "größe", "x" * 300]
    assert strings.text.dtype == torch.uint8


def test_too_few_files_for_a_worker_are_said(monkeypatch, capsys):
    def check(*args, **options):
        raise RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)")

    monkeypatch.setattr("training.data.__main__.checked", check)
    assert main(["check", "images"]) == 2
    assert "Too many open files" in capsys.readouterr().err
