"""Whether the data is complete, and every image whole: before any training."""

from __future__ import annotations

import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from training.data.decode import Unreadable, decode, silence_pillow
from training.data.imagenet.layouts import readers
from training.data.imagenet.readers import SHOWN, SPLITS, Reader, counted
from training.data.workers import cpus, parallel
from training.errors import DataError

COMPARED = 100  # images, spread over the classes
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000


@dataclass
class DataReport:
    """What `check` found; no problems: the data may be trained on."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # of what may be trained on all the same
    unreadable: list[str] = field(default_factory=list)
    readers: dict[str, Reader] = field(default_factory=dict)


def check(
    root: str | Path,
    classes: int | None = CLASSES,
    train_images: int | None = TRAIN_IMAGES,
    val_images: int | None = VAL_IMAGES,
    fast: bool = False,
    workers: int | None = None,
) -> DataReport:
    """Whether the data is complete; unless `fast`, every image is decoded too, by `workers` processes.

    A number that is None may be any: classes have the same names in both splits, and each has an image, all the same.
    """
    report = DataReport()
    try:
        report.readers = readers(root)
    except DataError as error:
        report.problems.append(str(error))
        return report
    train, val = (report.readers[split] for split in SPLITS)
    report.facts = {
        "layout": train.layout,
        "classes": len(train.classes),
        "train_images": len(train),
        "val_images": len(val),
    }
    report.warnings = warnings(report.readers)
    for some, other in ((train, val), (val, train)):
        missing = sorted(set(some.classes) - set(other.classes))
        if missing:
            number = counted(len(missing), "class", "classes")
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "")
            alike = {_plain(name) for name in other.classes}
            but = "; their letters' case or Unicode form differs" if any(_plain(n) in alike for n in missing) else ""
            report.problems.append(
                f"{root}: {number} of {some.split} not in {other.split} ({names}{but}): both need the same class "
                "names; restore or rename what is missing."
            )
    if len(train.classes) < 2:
        report.problems.append(f"{root}: there is 1 class, {train.classes[0]}: nothing to tell apart; expected two.")
    for reader, images in ((train, train_images), (val, val_images)):
        counts = Counter(reader.labels.tolist())
        least = min(range(len(reader.classes)), key=lambda k: counts[k])
        if classes not in (None, len(reader.classes)):
            report.problems.append(
                f"{root}: {reader.split} has {counted(len(reader.classes), 'class', 'classes')} where {classes:,} were "
                f"expected: {_more_or_less(len(reader.classes), classes, 'data.classes')}"
            )
        if images not in (None, len(reader)):
            advice = _more_or_less(len(reader), images, f"data.{reader.split}_images")
            report.problems.append(
                f"{root}: {reader.split} has {counted(len(reader), 'image')} where {images:,} were expected (fewest in "
                f"class {reader.classes[least]}: {counts[least]}): {advice}"
            )
        elif not counts[least]:
            report.problems.append(f"{root}: there is no image of the class {reader.classes[least]} in {reader.split}.")
        if not counts[0] and reader.classes[0] == "0000":  # named after numbers, of which the first is missing
            report.problems.append(
                f"{root}: {reader.split}: there is no image of the class 0000: labels count from 0, and these begin at "
                f"{min(counts)}: subtract it."
            )
    if not fast:
        for reader in (train, val):
            report.unreadable += unreadable(reader, workers)
        if report.unreadable:
            shown = report.unreadable[:20]
            more = len(report.unreadable) - len(shown)
            report.problems.append(
                f"{counted(len(report.unreadable), 'image')} of {len(train) + len(val):,} cannot be read: fetch these "
                "files again, or mend what is said of them (training would take another image in place of one, "
                "validation count it as a wrong answer):\n  "
                + "\n  ".join(shown)
                + (f"\n  and {more:,} more; --list FILE writes all of them" if more else "")
            )
    return report


def warnings(readers: dict[str, Reader]) -> list[str]:
    """What is passed over in class folders, and images of val that train has too."""
    train, val = (readers[split] for split in SPLITS)
    found = []
    if others := sum(reader.others[0] for reader in (train, val)):
        named = [*train.others[1], *val.others[1]][:SHOWN]
        more = f" and {others - len(named):,} more" if others > len(named) else ""
        found.append(
            f"{train.root}: {counted(others, 'file')} beside the images, no images by name, passed over: "
            f"{', '.join(named)}{more}."
        )
    same, looked = _shared(train, val)
    if same:
        found.append(
            f"{train.root}: of {counted(looked, 'image')} of val that train has by the same name, and that were "
            f"compared, {len(same):,} are the same to the byte, such as {same[0]}: the accuracy on val says nothing "
            "of images that the net has not seen; take others for val."
        )
    return found


def _shared(train: Reader, val: Reader) -> tuple[list[str], int]:
    """Images of val that are those of the same name in train, of at most `COMPARED`, and how many were looked at."""
    if train.classes != val.classes:
        return [], 0
    places = {name: i for i, name in enumerate(zip(val.labels.tolist(), val.files, strict=True))}
    named = enumerate(zip(train.labels.tolist(), train.files, strict=True))
    pairs = [(i, places[name]) for i, name in named if name in places]
    pairs = pairs[:: -(-len(pairs) // COMPARED) or 1]
    same = []
    for i, k in pairs:
        with suppress(OSError):  # which training, or the check of every image, will tell
            if (content := val.read(k)) and content == train.read(i):
                same.append(val.filename(k))
    return same, len(pairs)


def _plain(name: str) -> str:
    """Two names that look the same: macOS and Linux may write an accent in two ways."""
    return unicodedata.normalize("NFKC", name).casefold()


def _more_or_less(found: int, expected: int, key: str) -> str:
    if found < expected:
        return f"copy or unpack again what is missing (or set {key}, if this smaller set is what you want)."
    return f"remove what does not belong to it (or set {key}, if this larger set is what you want)."


def unreadable(reader: Reader, workers: int | None = None) -> list[str]:
    """ "path: reason" of every image that cannot be read or decoded."""
    blocks = [range(start, min(start + 64, len(reader))) for start in range(0, len(reader), 64)]
    test = partial(_try, reader)
    return [
        line for lines in parallel(test, blocks, cpus() if workers is None else workers, reader.split) for line in lines
    ]


def _try(reader: Reader, block: range) -> list[str]:
    silence_pillow()
    found = []
    for i in block:
        try:
            decode(reader.read(i))
        except OSError as error:
            found.append(f"{reader.filename(i)}: {error.strerror or error}")
        except Unreadable as error:
            found.append(f"{reader.filename(i)}: {error}")
    return found
