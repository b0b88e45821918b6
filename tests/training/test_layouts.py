"""One's own images as people have them: each layout is read, or named with what to do; nothing is left out unsaid."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from images import add, contents
from PIL import Image

from experiments.output import script
from training.data.__main__ import main
from training.data.augment import Preparation
from training.data.decode import decode
from training.data.imagenet.check import check
from training.data.imagenet.layouts import readers

pytestmark = pytest.mark.usefixtures("own_cache")


def make(root, classes=("cat", "dog"), splits=("train", "val"), ending=".jpg"):
    """Two images of each class in each part."""
    for number, (part, name, k) in enumerate((s, c, k) for s in splits for c in classes for k in range(2)):
        path = root / part / name / f"{k}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents(number))
    return root


def problems(root):
    return "\n".join(check(root, None, None, None, workers=0).problems)


def test_names_of_any_letters_and_links_to_folders_are_read(tmp_path):
    make(tmp_path / "là bas", ("Großer Hund", "猫 tabby", "a,b", "-x", "$HOME", "~"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "là bas" / "train")
    (tmp_path / "set" / "valid").symlink_to(tmp_path / "là bas" / "val")
    assert problems(tmp_path / "set") == ""


def test_litter_of_other_systems_is_no_class(tmp_path):
    make(tmp_path)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN"):
        (tmp_path / "train" / name).mkdir()
    assert problems(tmp_path) == ""


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (lambda root: make(root / "imagenette2-320"), "has images further down: give {root}/imagenette2-320 instead"),
        (lambda root: make(root / "a" / "b" / "c"), "give {root}/a/b/c instead"),
        (lambda root: make(root, splits=("Train", "Val")), "rename or link them (Train -> train; Val -> val)"),
        (lambda root: make(root, splits=("training", "test")), "(test -> val; training -> train)"),
        (lambda root: make(root, splits=("train", "test")), "it has test, train"),
        (lambda root: make(root, splits=("train", "test")), "ln -s test {root}/val"),
        (lambda root: make(root, splits=(".",)), "not parted into a training and a validation set"),
        (lambda root: (root / "a.jpg").write_bytes(b""), "not parted into a training and a validation set"),
        (lambda root: (root / "train.zip").touch(), "train.zip is packed: unpack it"),
        (lambda root: (root / "x-train-0.tar.gz").touch(), "decompress it to a plain .tar"),
        (lambda root: (root / "00000.tar").touch(), "have to tell which set they are of"),
        (lambda root: make(root, ("cat",)), "there is 1 class, cat"),
        (lambda root: make(root, ending=".bmp"), "2 files that would be left out, such as "),
        (lambda root: make(root / "train" / "animal", splits=(".",)) and make(root, splits=("val",)), "too deep"),
    ],
)
def test_a_layout_that_is_not_read_is_named_with_what_to_do(tmp_path, arrange, words):
    arrange(tmp_path)
    assert words.format(root=tmp_path) in problems(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda train: (train / "cat" / "x.gif").write_bytes(b""), "train/cat holds 1 file that would be left out"),
        (lambda train: (train / "puppy").symlink_to("dog"), "train/dog and {root}/train/puppy are the same folder"),
        (lambda train: make(train / "..", splits=("validation",)), "/val and {root}/validation are both there"),
        (lambda train: Image.new("1", (20_000, 20_000)).save(train / "cat" / "x.png"), "178,956,970 pixels, which"),
        (lambda train: (train / "cat" / "x.HEIC").write_bytes(b""), "such as x.HEIC"),
        (lambda train: make(train / "cat", ("more",), (".",)), "train/cat/more holds images, one folder too deep"),
        (lambda train: (train / "zebra").symlink_to("/nowhere"), "train/zebra is a link that leads nowhere"),
        (lambda train: (train / "loop").symlink_to("loop"), "train/loop is a link that leads nowhere"),
        (lambda train: (train / "cat" / "x.jpg").symlink_to("/nowhere"), "1 image of 9 cannot be read"),
        (lambda train: (train / "dog").rename(train / "Dog"), "their letters' case or Unicode form differs"),
        (lambda train: make(train, ("e\u0301",), (".",)) and make(train, ("\u00e9",), ("../val",)), "Unicode form"),
    ],
)
def test_what_would_be_left_out_is_said(tmp_path, change, words):
    change(make(tmp_path) / "train")
    assert words.format(root=tmp_path) in problems(tmp_path)


def test_the_same_images_in_both_parts_are_no_validation(tmp_path):
    make(tmp_path, splits=("train",))
    (tmp_path / "val").symlink_to("train")
    assert "are the same folder" in problems(tmp_path)


def test_one_folder_by_two_names_or_an_empty_one_are_no_second_validation(tmp_path):
    make(tmp_path)
    (tmp_path / "valid").symlink_to("val")
    (tmp_path / "validation").mkdir()
    assert problems(tmp_path) == ""


def test_what_is_passed_over_is_counted_and_named_in_one_warning(tmp_path, capsys):
    make(tmp_path)
    for name in ("train/list.txt", "train/cat/0.npy", "train/cat/1.npy", "val/dog/0.txt", "val/dog/1.txt"):
        (tmp_path / name).touch()
    for name in (".DS_Store", "._0.jpg", "Thumbs.db"):
        (tmp_path / "val" / "dog" / name).touch()
    named = ", ".join(f"{tmp_path}/train/{name}" for name in ("list.txt", "cat/0.npy", "cat/1.npy"))
    words = f"{tmp_path}: 5 files beside the images, no images by name, passed over: {named} and 2 more."
    for command in (["check", str(tmp_path), "--own", "--fast"], ["resize", str(tmp_path), f"{tmp_path}-small"]):
        assert main([*command, "--workers=0"]) == 0
        assert capsys.readouterr().err == f"warning: {words}\n"


@pytest.mark.parametrize("by", [shutil.copytree, lambda train, val: shutil.copytree(train, val, copy_function=os.link)])
def test_a_copy_of_train_in_val_is_told(tmp_path, by):
    make(tmp_path)
    assert check(tmp_path, None, None, None, fast=True).warnings == []  # the same names alone are none
    shutil.rmtree(tmp_path / "val")
    by(tmp_path / "train", tmp_path / "val")
    (warning,) = check(tmp_path, None, None, None, fast=True).warnings
    assert "of 4 images of val that train has by the same name, and that were compared, 4 are the same" in warning
    assert f"such as {tmp_path}/val/cat/0.jpg" in warning


def test_numbers_that_are_given_hold_for_ones_own_images_too(tmp_path, capsys):
    make(tmp_path)
    assert main(["check", str(tmp_path), "--own", "--fast", "--classes=2", "--val-images=4"]) == 0
    assert main(["check", str(tmp_path), "--own", "--fast", "--classes=3", "--val-images=4"]) == 2
    assert "train has 2 classes where 3 were expected" in capsys.readouterr().err


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    """Pillow's own conversion makes white of nearly all of them."""
    file = io.BytesIO()
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(file, "PNG")
    assert Image.open(io.BytesIO(file.getvalue())).mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(decode(file.getvalue()))[..., 1], grey >> 8)
    shown = Preparation(64, 1.0, 1.0, False, 0.0, "pillow", "pillow").val(file.getvalue())
    np.testing.assert_array_equal(shown[..., 0], grey >> 8)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_the_terminal_cannot_show_is_shown_all_the_same(tmp_path, monkeypatch, encoding):
    make(tmp_path / "é")
    (tmp_path / "é" / "train" / "cat" / b"\xff\xfe.jpg".decode(errors="surrogateescape")).write_bytes(b"no image")
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(SystemExit, match="2"):
        script(main, ["check", str(tmp_path / "é"), "--own", "--workers=0"])
    stream.flush()
    said = stream.buffer.getvalue()
    assert b"1 image of 9 cannot be read" in said
    assert rb"\udcff\udcfe.jpg: not an image" in said


# Shards


def shards(root, *files, name="x-{}-0.tar"):
    """The same samples in both parts."""
    for part in ("train", "val"):
        path = root / name.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, data in files:
                add(tar, member, data if isinstance(data, bytes) else str(data).encode())
    return root


def samples(*labels, image="{}.jpg", label="{}.cls"):
    return [x for k, text in enumerate(labels) for x in ((image.format(k), contents(k)), (label.format(k), text))]


@pytest.mark.parametrize(
    "files",
    [
        samples(0, 1, image="{}.JPG", label="{}.CLS"),
        samples(*(json.dumps({"label": k}) for k in (0, 1)), image="{}.Jpeg", label="{}.JSON"),
        samples(b" 0\n", b"\xef\xbb\xbf1\r\n"),
        samples(0, 1, image="./{}.jpg"),  # as `tar c .` names them, and the labels without
        samples(0, 1, image="a.{}.jpg", label="a.{}.cls"),  # dots in their names, each with a label of its own
        samples(0, 1, image="{}/a.jpg", label="{}/a.cls"),
        [*samples(0, 1), ("0.seg.png", contents(9))],  # another part of the sample
    ],
    ids=["letters", "letters of json", "white space", "folders", "dots", "equal names", "parts"],
)
@pytest.mark.parametrize("name", ["x-{}-0.tar", "x-{}-0.TAR", "{}/0.tar"])
def test_samples_as_people_name_them(tmp_path, files, name):
    shards(tmp_path, *files, name=name)
    (tmp_path / "._x-train-0.tar").write_bytes(b"Mac OS X")
    assert problems(tmp_path) == ""
    for reader in readers(tmp_path).values():
        assert [reader[k] for k in range(2)] == [(contents(k), k) for k in range(2)]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (samples("cat", "dog"), "the label of 0.jpg is 'cat'"),
        (samples("0.0", "1.0"), "the label of 0.jpg is '0.0'"),
        (samples(0, "1_0"), "the label of 1.jpg is '1_0'"),  # which Python takes for ten
        (samples(0, "9" * 5000), "expected a class's number"),
        (samples('{"class_id": 0}', '{"class_id": 1}', label="{}.json"), "its JSON, which has class_id"),
        (samples('{"label": false}', '{"label": true}', label="{}.json"), "the label of 0.jpg is False"),
        (samples("[0]", "[1]", label="{}.json"), "in JSON without keys"),
        (samples("[" * 100_000, "1", label="{}.json"), "no valid JSON"),
        ([("cat/0.jpg", b""), ("dog/0.jpg", b"")], "unpack it to train/<class>/"),
        ([("0.jpg", b""), ("0.png", b""), ("0.cls", 0)], "several images for one label (0.jpg, 0.png)"),
        ([("0.left.jpg", b""), ("0.right.jpg", b""), ("0.cls", 0)], "several images for one label"),
        ([("0.jpg", b""), ("0.cls", 0), ("0.jpg", b""), ("0.cls", 1)], "several images for one label (0.jpg, 0.jpg)"),
        ([*samples(0, 1), ("2.cls", 1)], "has 2.cls and no image beside it"),
        ([*samples(0, 1), ("2.gif", b"")], "1 file that would be left out, such as 2.gif"),
        ([*samples(0, 1), ("inner.tar", b"")], "holds images and another tar file, inner.tar"),
    ],
)
def test_a_sample_that_could_mean_two_things_or_nothing_is_named(tmp_path, files, words):
    assert words in problems(shards(tmp_path, *files))


def test_a_shard_whose_name_has_both_parts_is_of_none(tmp_path):
    shards(tmp_path, *samples(0, 1), name="of-val-and-{}.tar")
    assert "its name has both train and val in it" in problems(tmp_path)


def test_images_of_one_name_are_not_written_over_each_other(tmp_path, capsys):
    shards(tmp_path / "shards", *samples(0, 0, 1, image="{}/a.jpg", label="{}/a.cls"))
    assert main(["resize", str(tmp_path / "shards"), str(tmp_path / "small"), "--workers=0"]) == 2
    assert "two images of train would both be 0000/a.jpg in the copy" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


# Tables


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Two classes, two images each, as a table of `datasets`."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": contents(k), "path": f"{k}.jpg"} for k in range(4)]
    return datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("data/train-00000-of-00001.parquet", "data/val-00000-of-00001.parquet"),
        ("train.parquet", "valid.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
    ],
)
def test_parquet_wherever_the_hub_puts_it(table, tmp_path, train, val):
    root = tmp_path / "set [1] *"  # no pattern
    for name in (train, val):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / name)
    (root / "set [1] *.py").write_text("raise SystemExit('a script that is not asked for')")
    (root / "README.md").write_text("---\nconfigs:\n- config_name: other\n  data_files: nowhere/*\n---\n")
    assert problems(root) == ""
    for reader in readers(root).values():
        assert [reader[k] for k in range(4)] == [(contents(k), k % 2) for k in (0, 2, 1, 3)]


def test_what_save_to_disk_wrote(table, tmp_path):
    import datasets

    datasets.DatasetDict(train=table, validation=table.with_format("numpy")).save_to_disk(tmp_path / "both")
    table.save_to_disk(tmp_path / "apart" / "train")
    table.shuffle(seed=1).save_to_disk(tmp_path / "apart" / "val")
    for root in (tmp_path / "both", tmp_path / "apart"):
        assert problems(root) == ""
        reader = readers(root)["val"]
        assert {reader[k] for k in range(4)} == {(contents(k), k % 2) for k in range(4)}
    table.save_to_disk(tmp_path / "one")
    assert "was written by save_to_disk and has one split: expected train and val" in problems(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "test")
    assert "has the splits test, train: expected train and val" in problems(tmp_path / "test")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{"bytes": contents(0), "path": None}, None], "row 1): 00000001.JPEG: not an image"),
        ([{"bytes": contents(0), "path": None}, {"bytes": None, "path": "b.jpg"}], "b.jpg: No such file"),
        (["a.jpg", "b.jpg"], "the column image holds string: expected the files' bytes"),
        ([[1, 2], [3, 4]], "the column image holds list"),
    ],
)
def test_rows_without_an_image(tmp_path, monkeypatch, images, words):
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    for part in ("train", "val"):
        parquet.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / f"{part}.parquet")
    assert words in problems(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda train, val: val.unlink(), "none of the val set: their names should contain val or validation or valid"),
        (lambda train, val: val.write_bytes(train.read_bytes()[:99]), "val.parquet cannot be read as parquet"),
        (lambda train, val: val.rename(val.with_name("train-val.parquet")), "both train and val in it"),
    ],
)
def test_parquet_of_half_a_set(table, tmp_path, change, words):
    files = [tmp_path / f"{part}.parquet" for part in ("train", "val")]
    for file in files:
        table.to_parquet(file)
    change(*files)
    assert words in problems(tmp_path)
