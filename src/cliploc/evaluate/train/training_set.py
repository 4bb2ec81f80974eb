"""Training pictures with image-level labels, from a folder for each class or a CSV file; boxes are never read."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.images.geometry import Frame
from cliploc.images.reading import SUFFIXES, load
from cliploc.support.documents import lines_of
from cliploc.support.files import files_below, user_path
from cliploc.values import Interpolation, ResizePolicy

CROP = 224 / 256  # side of a random crop, as a share of the resized picture's: 224 of 256, as published


@dataclass(frozen=True)
class LabelledPictures:
    """A training set of pictures with one label each."""

    paths: tuple[Path, ...]  # paths of the pictures, in a fixed order
    labels: tuple[int, ...]  # for each picture an index into `classes`
    classes: tuple[tuple[str, ...], ...]  # each class as its name followed by its synonyms

    def __len__(self) -> int:
        return len(self.paths)


def read_folder(root: str | Path) -> LabelledPictures:
    """A training set `ROOT/CLASS/…/picture`; "cat,kitten" has a synonym, or CLASS is a WordNet id."""
    root = user_path(root)
    if not root.is_dir():
        raise UsageError(
            f"expected --root to be a folder with a folder for each class, got {root}, which is "
            "not a folder: check the path"
        )
    rows = []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        paths = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
        rows += [(path, folder.name) for path in paths]
    # A class without pictures is one of those that `train` says it leaves out.
    return _labelled(rows, [folder.name for folder in folders], f"a folder for each class in {root}")


def read_csv(file: str | Path) -> LabelledPictures:
    """A training set of lines `path,label`, paths from the file's folder, "cat|kitten" or a WordNet id."""
    file = user_path(file)
    try:
        lines = list(csv.reader(lines_of(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"expected --root to be a CSV file of path,label, but {file} cannot be read: {reason}"
        ) from None
    rows = []
    for number, cells in enumerate(lines, start=1):
        if not any(cells) or (number == 1 and [cell.strip().lower() for cell in cells] == ["path", "label"]):
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise UsageError(f"{file}, line {number}: expected path,label, got {','.join(cells)!r}")
        rows.append((file.parent / cells[0].strip(), cells[1].strip()))
    rows = [*dict.fromkeys(rows)]  # a picture that is there twice must not be trained on and held out
    return _labelled(rows, [label for _, label in rows], f"lines path,label in {file}")


def _labelled(rows: list[tuple[Path, str]], labels: list[str], where: str) -> LabelledPictures:
    wordnet = prompts.imagenet_entries()
    if (count := len({label for _, label in rows})) < 2:
        raise UsageError(f"expected pictures of at least two classes ({where}), found {count}: add another class")
    entries = {label: wordnet.get(label, _entry(label)) for label in labels}
    texts = prompts.parse(list(entries.values()), contrasts=False)
    index = {label: number for number, label in enumerate(entries)}
    return LabelledPictures(tuple(path for path, _ in rows), tuple(index[label] for _, label in rows), texts.synonyms)


def only_usable_classes(pictures: LabelledPictures, usable: tuple[int, ...]) -> LabelledPictures:
    """The set without classes of which no picture can be read: those pictures get the label −1."""
    used = sorted({pictures.labels[number] for number in usable})
    if len(used) < 2:
        raise UsageError(
            f"expected pictures that can be read of at least two classes, got them of {len(used)} of "
            f"{len(pictures.classes)}: check the files"
        )
    place = {label: index for index, label in enumerate(used)}
    labels = tuple(place.get(label, -1) for label in pictures.labels)
    return LabelledPictures(pictures.paths, labels, tuple(pictures.classes[label] for label in used))


def _entry(label: str) -> str:
    words = [word for word in re.split(r"[|,]", label) if word.strip()]
    return "|".join(word if " " in word.strip() else word.replace("_", " ") for word in words) or label


def view(
    path: Path,
    number: int,
    which: int,
    policy: ResizePolicy,
    input_hw: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """`[3, H, W]` uint8: view 0 as in localisation, others random crops of 7/8 with flips, by their numbers."""
    image = load(path).image
    height, width = input_hw
    if which == 0:
        laid = Frame.fit(policy, (image.height, image.width), input_hw).apply(image, interpolation)
    else:
        larger = (round(height / CROP), round(width / CROP))
        laid = Frame.fit(policy, (image.height, image.width), larger).apply(image, interpolation)
        random = np.random.default_rng([which, number])
        y, x = (int(random.integers(0, big - small + 1)) for big, small in zip(larger, input_hw, strict=True))
        laid = laid.crop((x, y, x + width, y + height))
        if random.random() < 0.5:
            laid = laid.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.ascontiguousarray(np.asarray(laid).transpose(2, 0, 1))


@dataclass(frozen=True)
class PictureSplit:
    """The split into training and held-out pictures; indices into `LabelledPictures.paths`."""

    train: tuple[int, ...]  # pictures to train on
    held_out: tuple[int, ...]  # pictures to validate on; may be empty
    train_classes: tuple[int, ...]  # the classes to choose from in training
    held_out_classes: tuple[int, ...]  # the classes to choose from in validation


def hold_out(labels: tuple[int, ...], usable: tuple[int, ...], share: float, by: str, seed: int) -> PictureSplit:
    """Holds out this share, of each class's "pictures" (one stays) or of "classes", for early stopping."""
    random = np.random.default_rng([seed, 0])
    of_class: dict[int, list[int]] = {}
    for index in usable:
        of_class.setdefault(labels[index], []).append(index)
    classes = sorted(of_class)
    if by == "classes":
        count = round(share * len(classes))
        if share > 0 and not 2 <= count <= len(classes) - 2:
            raise UsageError(
                f"expected --held-out to hold out at least two of {len(classes)} classes and leave two, got {share:g}"
            )
        out = set(random.permutation(classes)[:count].tolist())
        validation = [index for label in sorted(out) for index in of_class[label]]
        train = [index for label in classes if label not in out for index in of_class[label]]
        return PictureSplit(
            tuple(train), tuple(validation), tuple(c for c in classes if c not in out), tuple(sorted(out))
        )
    train, validation = [], []
    for label in classes:
        order = random.permutation(of_class[label]).tolist()
        count = min(len(order) - 1, round(share * len(order)) or (1 if len(order) * share >= 0.5 else 0))
        validation += order[:count]
        train += order[count:]
    if share > 0 and not validation:
        most = max(Counter(labels[index] for index in usable).values())
        raise UsageError(
            f"a share of {share:g} holds out no picture of classes with at most {most}: use a larger --held-out, "
            f"0 for none, or --hold-out classes with an open head"
        )
    return PictureSplit(tuple(sorted(train)), tuple(sorted(validation)), tuple(classes), tuple(classes))
