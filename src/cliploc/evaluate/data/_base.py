"""What readers of datasets are made of: what they find, the registries, and how it becomes samples or problems."""

import csv
import difflib
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import Box, Size, coco
from cliploc.images.reading import SUFFIXES, open_picture, orientation
from cliploc.options import is_integer, short
from cliploc.registry import Registry
from cliploc.runs.picture_files import LabelledPicture, PromptedDataset, PromptedPicture
from cliploc.support.files import read_json, read_text
from cliploc.values import ClassName, Dataset, FloatArray, Problem, Role, Sample

F = TypeVar("F")
HELP = "`cliploc datasets NAME` shows the layout"
ENDINGS = [end for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"})) for end in (suffix, suffix.upper())]
BY_DESIGN = frozenset({"crowd", "difficult"})  # kinds of problems that the dataset's authors intended to be left out


class Problems(list[Problem]):
    """Everything that was left out or corrected, in the order of reading."""

    def add(self, kind: str, source: str, reason: str) -> None:
        """Adds a problem."""
        self.append(Problem(kind, source, reason))


@dataclass(frozen=True)
class Candidate:
    """The annotation of one class in one picture, not checked yet; id, path, label, masks and ignore as in `Sample`."""

    id: str
    path: Path
    label: int
    boxes: Sequence[Box] = ()  # exclusive right and bottom edges, in pixels of the picture as it was annotated
    size_wh: Size | None = None  # the annotated size; None if the annotations have none, so that the file's size counts
    masks: tuple[Path, ...] = ()
    ignore: Path | None = None
    resized: bool = False  # whether the file may have another size than the annotated one
    upright: bool = False  # whether the annotations are for the picture as it is displayed, not as it is stored (EXIF)
    hint: str = ""  # what to do if the picture is missing


@dataclass(frozen=True)
class Split:
    """A part of a dataset."""

    name: str  # such as "val"
    role: Role  # "tune" if thresholds may be chosen on it, else "report"
    about: str  # a short description


WHOLE = (
    Split("report", "report", "all of the folder, to report numbers on"),
    Split("tune", "tune", "all of the folder, kept aside to choose thresholds on"),
)
OF_COCO = (Split("val2017", "report", "5,000 pictures"), Split("train2017", "tune", "118,287 pictures"))


@dataclass(frozen=True)
class Annotations:
    """What a reader found in the annotations, before any picture is opened."""

    classes: tuple[ClassName, ...]  # the names of the class of each label
    candidates: Sequence[Candidate]  # for samples in a fixed order, those of the same picture next to each other
    # pictures and labels that are there as what evaluations ignore, such as crowds, beside samples or alone
    unclear: frozenset[tuple[Path, int]] = frozenset()
    # picture → labels known not to be there; None if all labels without a candidate are absent
    absent: Mapping[Path, frozenset[int]] | None = None


Read: TypeAlias = Callable[[Path, str, Problems], F]  # root, split and the list of problems → what it found


@dataclass(frozen=True)
class DatasetReader(Generic[F]):
    """A reader, and what it says of its dataset."""

    name: str  # as typed on the command line
    title: str  # the dataset's name as papers write it
    about: str  # what the dataset contains
    source: str  # where to get it; nothing is downloaded
    splits: tuple[Split, ...]  # the first is the default
    layout: str  # the files expected below the root, one per line
    read: Read[F]

    def split(self, name: str | None) -> Split:
        """The split of that name; the first for None."""
        for split in self.splits:
            if name in (None, split.name):
                return split
        names = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}: expected one of {names}")


class Readers(Registry[DatasetReader[F]]):
    """A registry of readers."""

    def reader(self, name: str, *, layout: str, **facts: Any) -> Callable[[Read[F]], Read[F]]:
        """Registers a function as the reader of a dataset; the arguments are the attributes of `DatasetReader`."""

        def register(read: Read[F]) -> Read[F]:
            self.register(name, DatasetReader(name=name, layout=layout.strip("\n"), read=read, **facts))
            return read

        return register


Reader: TypeAlias = DatasetReader[Annotations]
readers: Readers[Annotations] = Readers(
    "dataset", "cliploc.evaluate.data", "cliploc.datasets", home=lambda reader: reader.read.__module__,
    listed_by="datasets",
)  # fmt: skip
reader = readers.reader
Labelled: TypeAlias = tuple[tuple[ClassName, ...], Sequence[LabelledPicture]]
LabelledReader: TypeAlias = DatasetReader[Labelled]
labelled_readers: Readers[Labelled] = Readers("segmentation dataset", "cliploc.evaluate.data.segmentation")
labelled_reader = labelled_readers.reader


# -------------------------------------------------------------------------------------------------------------- files
@contextmanager
def reading(path: Path, missing: str = "") -> Iterator[None]:
    """Reads a file of a dataset in a `with` block; `missing`: the line for a file that is not there."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(missing or f"expected {path}, found no such file: {HELP}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check the file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not text in UTF-8 with values in columns: write it again") from error


def coco_document(path: Path, again: str = "download", missing: str = "") -> coco.Document:
    """A file in COCO's format; `again` is what to do once more if it is damaged."""
    with reading(path, missing):
        try:
            return coco.read_document(read_json(path))
        except ValueError as error:
            raise UsageError(f"{path} is not in COCO's format ({error}): {again} it again") from None


def csv_rows(path: Path, cells: int | None = None) -> list[list[str]]:
    """The rows of a comma-separated file without empty lines; each must have `cells` cells, unless None."""
    with reading(path):
        rows = list(csv.reader(read_text(path).splitlines(keepends=True)))
    return _checked(path, [[cell.strip() for cell in row] for row in rows], cells)


def words(path: Path, cells: int) -> list[list[str]]:
    """The rows of a text file with so many cells separated by spaces; the last cell may contain spaces."""
    with reading(path):
        return _checked(path, [line.strip().split(maxsplit=cells - 1) for line in read_text(path).splitlines()], cells)


def _checked(path: Path, rows: list[list[str]], cells: int | None) -> list[list[str]]:
    for i, row in enumerate(rows, start=1):
        if row and cells not in (None, len(row)):
            raise UsageError(f"{path}, line {i}: expected {cells} values, got {len(row)}: correct the line")
    return [row for row in rows if row]


def numbers(
    path: Path, count: int, kind: type[float] = int, separator: str = ","
) -> list[tuple[str, tuple[float, ...]]]:
    """The rows of a file of an id and `count` numbers each; a line of names may come first."""
    found = []
    rows = csv_rows(path, 1 + count) if separator == "," else words(path, 1 + count)
    for i, (key, *cells) in enumerate(rows, start=1):
        try:
            found.append((key, tuple(map(kind, cells))))
        except ValueError:
            if (key, i) == ("image_id", 1):
                continue
            what, got = "integers" if kind is int else "numbers", ",".join(cells)[:60]
            raise UsageError(f"{path}, row {i}: expected {what}, got {got}: correct the line") from None
    return found


def first_folder(root: Path, places: Iterable[str]) -> Path | None:
    """The first of these paths below the root that is a folder, or None."""
    return next((root / place for place in places if (root / place).is_dir()), None)


def needed_folder(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of these paths below the root that is a folder."""
    folder = first_folder(root, places)
    if folder is None:
        raise UsageError(f"expected a folder of {what} at {root}/{', or '.join(places)}; found none: {HELP}")
    return folder


def picture_of(folders: Sequence[Path], stem: str) -> Path:
    """The picture with this name in the first of these folders that has it; as a JPEG in the first one if none has."""
    places = (folder / f"{stem}{end}" for folder in folders for end in ENDINGS)
    return next((path for path in places if path.is_file()), folders[0] / f"{stem}.jpg")


def safe_id(sample_id: str) -> bool:
    """Whether a file named by this id stays inside its folder."""
    parts = PurePosixPath(sample_id.replace("\\", "/")).parts
    return bool(sample_id) and not Path(sample_id).is_absolute() and ".." not in parts


def picture_ids(names: Iterable[str]) -> dict[str, str]:
    """The id of each picture: its path without the extension, or the full path where others have the same."""
    stems = {name: Path(name).with_suffix("").as_posix() for name in names}
    times = Counter(stems.values())
    return {name: stem if times[stem] == 1 else name for name, stem in stems.items()}


def picture_header(path: Path) -> tuple[Size, int]:
    """Size as stored, and EXIF orientation, 1–8, of a picture file; the picture is not decoded."""
    try:
        with open_picture(path) as opened:
            return opened.image.size, orientation(opened.image)
    except InputError as error:
        if not os.path.exists(path):
            raise InputError(f"expected a picture at {path}, found none: left out") from None
        raise InputError(f"{error}; left out") from None


def turned_wh(size_wh: Size, orientation: int) -> Size:
    """The size of a picture after its EXIF orientation is applied."""
    return (size_wh[1], size_wh[0]) if orientation >= 5 else size_wh


def by(size_wh: Iterable[float]) -> str:
    """A size in words: 640×480."""
    return "×".join(map(str, size_wh))


# -------------------------------------------------- phrases as classes, where each thing has a sentence of its own
SIGNS = str.maketrans(dict.fromkeys("|~@", " "))  # which mean something in a name; see `cliploc.find.prompts.parse`
PhraseRow: TypeAlias = tuple[str, str, Path, list[Box], Size]  # sample's id, phrase, picture, boxes, picture's size


def plain_phrase(text: str) -> str:
    """A phrase on one line, without the signs that mean something in a name."""
    return " ".join(text.translate(SIGNS).split())


def found_phrases(rows: Sequence[PhraseRow]) -> Annotations:
    """The candidates of these rows, with a class for each different phrase, sorted."""
    phrases = sorted({phrase for _, phrase, *_ in rows})
    labels = {phrase: label for label, phrase in enumerate(phrases)}
    candidates = [Candidate(name, path, labels[phrase], boxes, size) for name, phrase, path, boxes, size in rows]
    return Annotations(tuple(ClassName(phrase, (phrase,)) for phrase in phrases), candidates)


# -------------------------------------------------------------------------------------------------------------- samples
C = TypeVar("C")
S = TypeVar("S")
Header = tuple[Size, int]  # size as stored, and the EXIF orientation: 1–8, 1 for none
NEGATIVES = ("random", "popular", "confusable", "all")  # how names that are not there are chosen


class Checker:
    """Turns candidates into samples and records what is left out; `classes` 0: pictures with label maps."""

    def __init__(self, problems: Problems, classes: int = 0) -> None:
        self.add = problems.add
        self._classes = classes
        self._ids: set[str] = set()
        self._last: tuple[Path, Header | InputError] | None = None

    def is_new(self, sample_id: str) -> bool:
        """Whether an id can be used and has not come before."""
        if sample_id in self._ids:
            self.add("duplicate id", sample_id, "more than once in the annotations: counted once")
            return False
        self._ids.add(sample_id)
        if not safe_id(sample_id):
            self.add("unsafe id", sample_id, "expected an id that stays inside its folder: use a relative path")
            return False
        return True

    def header(self, sample_id: str, path: Path, what: str = "picture", hint: str = "") -> Header | None:
        """The header of a sample's picture or mask, read once for samples of the same picture; None if it has none."""
        if self._last is None or self._last[0] != path:
            try:
                self._last = (path, picture_header(path))
            except InputError as error:
                self._last = (path, error)
        header = self._last[1]
        if not isinstance(header, InputError):
            return header
        missing = not os.path.exists(path)  # also of a name too long for the system
        self.add(f"{'missing' if missing else 'broken'} {what}", sample_id, f"{header}{hint if missing else ''}")
        return None

    def sample(self, candidate: Candidate) -> Sample | None:
        """The sample of a candidate, or None if it is left out."""
        if not self.is_new(candidate.id):
            return None
        if not 0 <= candidate.label < self._classes:
            reason = f"expected a label of 0–{self._classes - 1}, got {candidate.label}: left out"
            self.add("label mismatch", candidate.id, reason)
            return None
        if not candidate.boxes and not candidate.masks:
            self.add("empty annotation", candidate.id, "no box and no mask: left out")
            return None
        hint = f"; {candidate.hint}" if candidate.hint else ""
        header = self.header(candidate.id, candidate.path, hint=hint)
        placed = None if header is None else self._upright(candidate, *header)
        if placed is None:
            return None
        for mask in (*candidate.masks, *([candidate.ignore] if candidate.ignore else [])):
            if not os.path.isfile(mask):
                self.add("missing mask", candidate.id, f"expected a mask at {mask}, found none: left out")
                return None
        size_wh, boxes = placed
        inside, problems = boxes_inside(boxes, size_wh)
        for kind, reason in problems:
            self.add(kind, candidate.id, reason)
        if not inside and not candidate.masks:
            self.add("empty annotation", candidate.id, "none of its boxes can be used: left out")
            return None
        xyxy = np.array(inside, np.float32).reshape(-1, 4)  # [m, 4]
        return Sample(candidate.id, candidate.path, candidate.label, size_wh, xyxy, candidate.masks, candidate.ignore)

    def _upright(self, candidate: Candidate, stored_wh: Size, orientation: int) -> tuple[Size, Sequence[Box]] | None:
        """The annotated size and the boxes, both for the upright picture; None if the candidate is left out."""
        upright_wh, boxes = turned_wh(stored_wh, orientation), candidate.boxes
        size_wh = candidate.size_wh or (upright_wh if candidate.upright else stored_wh)
        if min(size_wh) < 1:
            self.add("size mismatch", candidate.id, f"expected a size of at least 1×1, got {by(size_wh)}: correct it")
            return None
        # Of a picture that is turned by 90 degrees the annotated size tells whether it was annotated as displayed.
        as_displayed = candidate.upright or (orientation >= 5 and size_wh == upright_wh != stored_wh)
        if orientation != 1 and not as_displayed:
            if candidate.masks:
                self.add("turned picture", candidate.id, "its EXIF orientation turns it but not its masks: left out")
                return None
            self.add("turned picture", candidate.id, "its EXIF orientation turns it: the boxes are turned too")
            boxes = [turned(box, size_wh, orientation) for box in boxes]
            size_wh = turned_wh(size_wh, orientation)
        if size_wh != upright_wh and not candidate.resized:
            reason = f"annotated as {by(size_wh)}, the file has {by(upright_wh)}: taken as resized"
            self.add("size mismatch", candidate.id, reason)
        return size_wh, boxes


def boxes_inside(boxes: Iterable[Box], size_wh: Size) -> tuple[list[Box], list[tuple[str, str]]]:
    """The boxes clipped to the picture, without those that hold no pixel of it; the kinds and reasons of problems."""
    both = [clipped(box, size_wh) for box in boxes]
    return [box for box, _ in both if box is not None], [problem for _, problem in both if problem is not None]


def clipped(box: Box, size_wh: Size) -> tuple[Box | None, tuple[str, str] | None]:
    """Clips a box to the picture: the part inside or None, and the kind and reason of its problem or None."""
    width, height = size_wh
    x0, y0, x1, y1 = box
    text = f"box {x0:g} {y0:g} {x1:g} {y1:g}"
    if not all(map(math.isfinite, box)) or x1 < x0 or y1 < y0:
        return None, ("broken box", f"{text} is not a box with x0 < x1, y0 < y1: left out")
    inside: FloatArray = np.array(box, np.float32).clip(0, np.array([width, height] * 2, np.float32))
    a, b, c, d = inside.tolist()
    if a >= c or b >= d:
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            return None, ("box outside", f"{text} is outside the picture of {by(size_wh)}: left out")
        return None, ("broken box", f"{text} holds no pixel: left out")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        return (a, b, c, d), ("box outside", f"{text} is partly outside the picture of {by(size_wh)}: clipped")
    return (a, b, c, d), None


def turned(box: Box, size_wh: Size, orientation: int) -> Box:
    """Applies the EXIF orientation to a box of the stored picture of this size."""
    corners: npt.NDArray[np.float64] = np.array([box[:2], box[2:]], np.float64)  # [2, (x, y)]
    size = np.array(size_wh, np.float64)
    if orientation in (2, 3, 7, 8):
        corners[:, 0] = size[0] - corners[:, 0]
    if orientation in (3, 4, 6, 7):
        corners[:, 1] = size[1] - corners[:, 1]
    if orientation >= 5:
        corners = corners[:, ::-1]
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (*low.tolist(), *high.tolist())


# ---------------------------------------------------------------------------------------------------------- selection
@dataclass(frozen=True)
class Subset:
    """A subset of a dataset's classes, chosen by their kind, never by a method's results."""

    name: str  # as typed on the command line
    title: str  # its purpose
    reasons: dict[str, str]  # WordNet id → why this class was chosen

    def labels(self, classes: Sequence[ClassName], dataset: str) -> set[int]:
        """The labels of its classes."""
        labels = {class_name.wnid: label for label, class_name in enumerate(classes)}
        absent = [wnid for wnid in self.reasons if wnid not in labels]
        if absent:
            raise UsageError(f"{dataset} has no class {', '.join(absent)} of the subset {self.name}: choose --classes")
        return {labels[wnid] for wnid in self.reasons}


subsets: Registry[Subset] = Registry("subset")

subsets.register(
    "ten-classes",
    Subset(
        "ten-classes",
        "ten ILSVRC classes, each a different kind of thing with a different look",
        {
            "n02106662": "mammal: fur, a face that is more typical than the body, any pose",
            "n01843383": "bird: the bill alone identifies it, so that a map may show only this part",
            "n01665541": "reptile: one large dark shape, as dull as the sand around it",
            "n02279972": "insect: a strong pattern on thin wings, mostly on a flower, which attracts heat too",
            "n12267677": "plant: small, several together, among leaves of the same tree",
            "n07753592": "food: yellow, in bunches, where instances touch and overlap",
            "n03272562": "vehicle: long and large, always seen with rails and wires",
            "n04086273": "tool held in the hand: thin, metal, of two very different parts",
            "n03854065": "musical instrument: fills the picture, a repeated pattern of pipes, indoors",
            "n04380533": "furniture: a shade and a foot that look like two things, indoors among other furniture",
        },
    ),
)


def labels_of(names: Iterable[str], classes: Sequence[ClassName]) -> set[int]:
    """Labels of the classes with these names, synonyms or WordNet ids; case does not matter."""
    chosen = set()
    for name in names:
        folded = " ".join(name.split()).casefold()
        labels = [i for i, of in enumerate(classes) if folded in (of.name.casefold(), of.wnid.casefold())]
        labels = labels or [i for i, of in enumerate(classes) if folded in map(str.casefold, of.synonyms)]
        if not labels:
            near = difflib.get_close_matches(folded, [of.name for of in classes], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"unknown class {name!r}: {hint}expected a class's name, synonym or WordNet id")
        if len(labels) > 1:
            meant = " or ".join(f"{classes[i].wnid} {classes[i].name}".strip() for i in labels)
            raise UsageError(f"{name!r} fits {len(labels)} classes: choose one of them, {meant}")
        chosen.add(labels[0])
    return chosen


@dataclass(frozen=True)
class Draw:
    """How many samples are read: all, the first `limit`, or `sample` drawn at random."""

    limit: int | None
    sample: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.limit is not None and self.sample is not None:
            raise UsageError("expected a limit or a sample, got both: leave one out")
        for option, value in (("limit", self.limit), ("sample", self.sample)):
            if value is not None and not is_integer(value, 1):
                raise UsageError(f"expected a {option} of at least 1, got {short(value)}")

    def of(self, candidates: Sequence[C], check: Callable[[C], S | None]) -> tuple[S, ...]:
        """The samples of candidates, in order; what cannot be used does not count, and few more are checked."""
        order = list(range(len(candidates)))
        if self.sample is not None:
            random.Random(self.seed).shuffle(order)
        samples = ((i, sample) for i in order if (sample := check(candidates[i])) is not None)
        chosen = dict(itertools.islice(samples, self.limit or self.sample))  # None: all
        return tuple(chosen[i] for i in sorted(chosen))


def nothing_usable(name: str, root: Path, problems: Problems, otherwise: str) -> UsageError:
    """The error for a folder of which no picture can be used; `otherwise` is the reason if there were no problems."""
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items())
    why = f"{counts}; the first, {problems[0].source}: {problems[0].reason}" if counts else otherwise
    return UsageError(f"no picture in {root} can be used ({why}): the layout is shown by cliploc datasets {name}")


def prompted_pictures(dataset: Dataset, negatives: str, names: Collection[int], draw: Draw) -> PromptedDataset:
    """Each picture with names that are there, not only as crowds, and as many POPE negatives (Li et al. 2023)."""
    truths: dict[Path, dict[int, FloatArray]] = {}
    size_of = {}
    for sample in dataset.samples:
        if not len(sample.boxes_xyxy):
            raise UsageError(f"expected a dataset with true boxes, got {dataset.name} with masks: choose another")
        truths.setdefault(sample.path, {})[sample.label] = sample.boxes_xyxy
        size_of[sample.path] = sample.size_wh
    # [K, K]: the number of pictures with both names; on the diagonal with the name.
    together = np.zeros((len(dataset.classes),) * 2, np.int64)
    for truth in truths.values():
        together[np.ix_([*truth], [*truth])] += 1
    pictures = []
    for path, truth in truths.items():
        id_ = (path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path).as_posix()
        known = names if dataset.absent is None else dataset.absent.get(path, frozenset()).intersection(names)
        absent = [label for label in sorted(known) if label not in truth and (path, label) not in dataset.unclear]
        if negatives == "random":
            count = min(len(truth), len(absent))
            chosen = random.Random(f"{draw.seed} {id_}").sample(absent, count)
        elif negatives == "all":
            chosen = absent
        else:
            often = together.diagonal() if negatives == "popular" else together[list(truth)].sum(axis=0)
            chosen = sorted(absent, key=lambda label: (-often[label], -together[label, label], label))[: len(truth)]
        labels = tuple(sorted({*truth, *chosen}))
        pictures.append(PromptedPicture(id_, path, size_of[path], labels, truth))
    drawn = draw.of(pictures, lambda picture: picture)
    about = dataset.name, dataset.root, dataset.split, dataset.role, dataset.classes
    return PromptedDataset(*about, drawn, dataset.problems)
