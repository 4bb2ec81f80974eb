"""Pictures with a label map: a class for every pixel. Readers for segmentation give these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc._documents import lines_of
from cliploc._files import user_path
from cliploc.datasets._infra.candidates import Problems, picture_header, safe_id
from cliploc.datasets._infra.files import needed_folder, reading
from cliploc.datasets._infra.registration import DatasetFacts, Split
from cliploc.datasets._infra.selection import order_of, refuse_counts
from cliploc.errors import InputError, UsageError
from cliploc.images import load, open_picture
from cliploc.polygons import Outline, draw
from cliploc.registry import Registry
from cliploc.values import IGNORE, ClassName, Problem, Role

GREY = ("L", "P", "1", "I", "I;16", "I;16B")  # of Pillow: one number per pixel
BACKGROUND_WORDS = ("voc21", "coco_object")  # sets whose class list begins with words for the background
LabelMap = npt.NDArray[np.int32]


class Truth(Protocol):
    """Where the true label map of a picture comes from."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from, beside the picture's."""
        ...

    @property
    def facts(self) -> list[Any]:
        """What distinguishes it from another label map, as plain values without the dataset's folder."""
        ...

    def read(self) -> LabelMap:
        """`[H, W]` labels; 255 for pixels that do not count."""
        ...


@dataclass(frozen=True)
class LabelFile:
    """A label map in a picture file with one number per pixel."""

    path: Path  # the file
    # whether label 0 does not count and the others are one less, as mmsegmentation calls it
    reduce_zero_label: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def facts(self) -> list[Any]:
        """Its name, and whether labels are moved."""
        return [self.path.name, self.reduce_zero_label]

    def read(self) -> LabelMap:
        """See `Truth.read`."""
        labels = read_labels(self.path)
        return reduced(labels) if self.reduce_zero_label else labels


@dataclass(frozen=True)
class Outlines:
    """Polygons of things, as COCO annotates them; what no outline covers is label 0."""

    size_wh: tuple[int, int]  # width and height of the picture
    # label and outlines of each thing; later ones are drawn over earlier ones
    things: tuple[tuple[int, tuple[Outline, ...]], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """None: they are in memory."""
        return ()

    @property
    def facts(self) -> list[Any]:
        """The outlines themselves."""
        return [self.size_wh, self.things]

    def read(self) -> LabelMap:
        """See `Truth.read`."""
        width, height = self.size_wh
        labels = np.zeros((height, width), np.int32)
        for label, outlines in self.things:
            for outline in outlines:
                labels[draw(outline, (height, width))] = label
        return labels


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with a true label map."""

    id: str  # unique in its dataset; may hold sub-folders
    path: Path  # the picture, or the file that it is in
    size_wh: tuple[int, int]  # width and height in pixels, of the picture and of its label map
    truth: Truth  # its label map
    # what is asked for if each picture has one name of its own (ImageNet-Segmentation); None: all classes
    name: str | None = None
    decode: Callable[[], Image.Image] | None = None  # reads the picture, if `path` is not a picture file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this picture alone; none of a file that holds all pictures."""
        return () if self.decode is not None else (self.path, *self.truth.files)

    def picture(self) -> Image.Image:
        """The picture, RGB."""
        return load(self.path).image if self.decode is None else self.decode()


@dataclass(frozen=True)
class LabelledDataset:
    """A split of a segmentation set as its reader found it.

    Attributes:
        name, root, split, role, problems: as in `Dataset`.
        classes: label → names; each synonym is a query of its own.
        samples: pictures in a fixed order.
    """

    name: str
    root: Path
    split: str
    role: Role
    classes: tuple[ClassName, ...]
    samples: tuple[LabelledPicture, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)


# ----------------------------------------------------------------------------------------------------------- label maps
def read_labels(path: Path) -> LabelMap:
    """A picture file as labels `[H, W]`; a palette's colours are not used."""
    with open_picture(path) as opened:
        if opened.image.mode not in GREY:
            raise InputError(
                f"{path}: expected a label map, one number per pixel, got an image of mode {opened.image.mode}: save "
                "labels as a grey or palette PNG"
            )
        return np.asarray(opened.image).astype(np.int32)


def reduced(labels: LabelMap) -> LabelMap:
    """mmsegmentation's reduce_zero_label: 0 does not count, the others are one less, and 255 stays.

    Example:
        >>> reduced(np.array([[0, 1, 150, 255]], np.int32)).tolist()
        [[255, 0, 149, 255]]
    """
    return np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1).astype(np.int32)


def class_list(name: str) -> tuple[ClassName, ...]:
    """The classes of a segmentation set with their synonyms, in the order of the labels.

    Example:
        >>> class_list("voc20")[0].name, len(class_list("ade20k"))
        ('aeroplane', 150)
    """
    text = (resources.files("cliploc.datasets") / "class_lists" / f"{name}.txt").read_text(encoding="utf-8")
    first, *others = classes_of(text.splitlines())
    if name in BACKGROUND_WORDS:
        first = ClassName("background", first.synonyms)
    return (first, *others)


def classes_of(lines: Iterable[str]) -> tuple[ClassName, ...]:
    """Classes out of lines, each a name and its synonyms, separated by ", ".

    Example:
        >>> classes_of(["person, body"])
        (ClassName(name='person', synonyms=('person', 'body'), wnid=''),)
    """
    split = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines if line.strip()]
    return tuple(ClassName(words[0], words) for words in split)


# -------------------------------------------------------------------------------------------------------------- readers
Labelled: TypeAlias = tuple[tuple[ClassName, ...], Sequence[LabelledPicture]]
Read: TypeAlias = Callable[[Path, str, Problems], Labelled]


@dataclass(frozen=True)
class LabelledReader(DatasetFacts):
    """The reader of a segmentation set; further attributes as in `DatasetFacts`."""

    read: Read  # function of root, split and the list of problems, which returns classes and pictures


labelled_readers: Registry[LabelledReader] = Registry("segmentation dataset", "cliploc.datasets.segmentation")


def labelled_reader(
    name: str, *, title: str, about: str, source: str, splits: tuple[Split, ...], layout: str
) -> Callable[[Read], Read]:
    """Registers a function `root, split, problems → classes, pictures` as the reader of a segmentation set.

    The function checks that annotations can be read; `open_labelled` checks pictures and their label maps.
    """

    def register(read: Read) -> Read:
        labelled_readers.register(name, LabelledReader(name, title, about, source, splits, layout.strip("\n"), read))
        return read

    return register


def open_labelled(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> LabelledDataset:
    """Reads a segmentation set and checks that its pictures and label maps are there.

    Args:
        split: the name of a split; None for the reader's first.
        limit: read only this number of pictures, from the first on.
        sample: read only this number of pictures, drawn at random, in their usual order.

    Returns:
        The pictures that can be used, and a problem for everything that was left out.
    """
    entry = labelled_readers.get(name)
    part = entry.split(split)
    refuse_counts(limit, sample)
    root = user_path(root)
    if not root.exists():
        raise UsageError(f"expected {entry.title} at {root}, found nothing there: check the path")
    problems = Problems()
    classes, found = entry.read(root, part.name, problems)
    order, wanted = order_of(len(found), limit, sample, seed)
    kept: list[int] = []
    seen: set[str] = set()
    for index in order:
        if len(kept) == wanted:
            break
        if _usable(found[index], seen, problems):
            kept.append(index)
    if not kept:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in problems.met).items())
        why = f"{counts}; the first, {problems.met[0].source}: {problems.met[0].reason}" if counts else "none is there"
        raise UsageError(f"no picture in {root} can be used ({why}): the layout is shown by cliploc datasets {name}")
    samples = tuple(found[index] for index in sorted(kept))
    return LabelledDataset(name, root, part.name, part.role, classes, samples, tuple(problems.met))


def _usable(one: LabelledPicture, seen: set[str], problems: Problems) -> bool:
    """Whether a picture and its label map can be used; if not, why is added to the problems."""
    if one.id in seen:
        problems.add("duplicate id", one.id, "more than once in the annotations: counted once")
        return False
    seen.add(one.id)
    if not safe_id(one.id):
        problems.add("unsafe id", one.id, "expected an id that stays inside its folder: use a relative path")
        return False
    if one.decode is not None:
        return True
    try:
        size, turn = picture_header(one.path)
    except InputError as error:
        problems.add("broken picture" if one.path.exists() else "missing picture", one.id, str(error))
        return False
    if turn != 1:
        problems.add("turned picture", one.id, "its EXIF orientation turns it but not its label map: left out")
        return False
    sizes = {"the picture": size}
    for path in one.truth.files:
        try:
            sizes[f"its label map {path.name}"], _ = picture_header(path)
        except InputError as error:
            problems.add("broken mask" if path.exists() else "missing mask", one.id, str(error))
            return False
    if not one.truth.files:
        sizes["its annotation"] = one.size_wh
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{what} has {width}×{height}" for what, (width, height) in sizes.items())
        problems.add("size mismatch", one.id, f"{said}: left out")
        return False
    return True


def pictures_with_maps(
    pairs: Iterable[tuple[str, Path, Path]], reduce_zero_label: bool = False
) -> list[LabelledPicture]:
    """A `LabelledPicture` for each id, picture and label map; a picture that cannot be read has no size yet."""
    made = []
    for one, picture, labels in pairs:
        try:
            size, _ = picture_header(picture)
        except InputError:
            size = (0, 0)  # `open_labelled` names the problem
        made.append(LabelledPicture(one, picture, size, LabelFile(labels, reduce_zero_label)))
    return made


def voc_pictures(
    root: Path, year: int, maps: str, lists: str, split: str, reduce_zero_label: bool
) -> list[LabelledPicture]:
    """The pictures of a split in the folders of a VOC challenge.

    Args:
        root: holds VOCdevkit or VOC and the year, or is the latter.
    """
    images = needed_folder(root, [f"{at}JPEGImages" for at in (f"VOCdevkit/VOC{year}/", f"VOC{year}/", "")], "pictures")
    base = images.parent
    ids = listed(base / "ImageSets" / lists / f"{split}.txt")
    return pictures_with_maps(
        ((one, images / f"{one}.jpg", base / maps / f"{one}.png") for one in ids), reduce_zero_label
    )


def listed(path: Path) -> list[str]:
    """The ids in a list file, one per line."""
    try:
        with reading(path):
            return [line.split()[0] for line in lines_of(path) if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: download it again") from error
