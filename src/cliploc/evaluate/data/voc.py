"""Pascal VOC (Everingham et al. 2010): a sample for each class in each picture.

VOC counts pixels from 1 and includes the last: xmin … xmax are the edges xmin − 1 … xmax. Objects marked difficult are
left out, and so is a class whose objects in a picture are all difficult; VOC's evaluation ignores them too. They are
listed as problems of the kind "difficult", which is by design.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.data._infra.candidates import Box, Candidate, Problems
from cliploc.evaluate.data._infra.files import HELP, first_folder, picture_of, words
from cliploc.evaluate.data._infra.registration import Found, Split, reader
from cliploc.support.documents import finite, integer, read_xml
from cliploc.values import ClassName

PLACES = (".", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007", "VOC2012", "VOC2007")
# Where labelling tools put the XML and the pictures that no list names; "": beside each other.
PLAIN_XML = ("Annotations", "annotations", "xml", ".")
PLAIN_PICTURES = ("JPEGImages", "images", ".")
# The names in the files, in the official order; and the usual ones where these are others.
NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
USUAL: dict[str, tuple[str, ...]] = {
    "aeroplane": ("aeroplane", "airplane"),
    "diningtable": ("dining table",),
    "motorbike": ("motorbike", "motorcycle"),
    "pottedplant": ("potted plant",),
    "sofa": ("sofa", "couch"),
    "tvmonitor": ("TV monitor", "television"),
}


@reader(
    "voc",
    title="Pascal VOC",
    about="20 classes, several per picture; or your own in VOC's XML",
    source="host.robots.ox.ac.uk/pascal/VOC (VOC2012 trainval; VOC2007 trainval and test)",
    splits=(
        Split("val", "report", "ImageSets/Main/val.txt"),
        Split("train", "tune", "ImageSets/Main/train.txt"),
        Split("trainval", "tune", "ImageSets/Main/trainval.txt"),
        Split("test", "report", "ImageSets/Main/test.txt, where it has annotations (VOC2007)"),
    ),
    layout="""
ImageSets/Main/val.txt        one picture name per line, such as 2008_000002
Annotations/2008_000002.xml   the size, and one object per box
JPEGImages/2008_000002.jpg    the pictures (also: .png and other formats)
classes.txt                   only for classes other than VOC's: one per line
                              (also below VOCdevkit/VOC2012 or VOC2007)

Or without lists, as labelling tools write it: the whole folder, whichever
split is asked for, with the classes of the files:
annotations/a.xml             (also: Annotations/, xml/, or the folder itself)
images/a.jpg                  (also: JPEGImages/, or the folder itself)
""",
)
def read(root: Path, split: str, problems: Problems) -> Found:
    """Reads a split. Sample ids are picture and class: 2008_000002/tvmonitor."""
    base = first_folder(root, [p for p in PLACES if (root / p / "Annotations").is_dir()])
    if base is None or not (base / "ImageSets").is_dir():
        return _plain(root, problems)
    own = _own_names(base)
    usual = {} if own else USUAL
    names = {name: usual.get(name, (name,)) for name in own or NAMES}
    stems = (row[0].split()[0] for row in words(base / "ImageSets" / "Main" / f"{split}.txt", 1))
    read = ((stem, _read_or_problem(base / "Annotations" / f"{stem}.xml", stem, problems)) for stem in stems)
    pictures = (
        (stem, picture_of([base / "JPEGImages"], stem), annotation)
        for stem, annotation in read
        if annotation is not None
    )
    return _found(names, pictures, problems)


def _plain(root: Path, problems: Problems) -> Found:
    """Reads a folder without lists, as labelling tools write it."""
    places = (root / place / name for place in PLACES for name in PLAIN_XML)
    folder = next((path for path in places if path.is_dir() and any(path.glob("*.xml"))), None)
    if folder is None:
        raise UsageError(f"expected a folder Annotations below {root}, or XML in {root}, found none: {HELP}")
    base = folder.parent if folder.name in PLAIN_XML else folder
    read = {path.stem: _read_or_problem(path, path.stem, problems) for path in sorted(folder.glob("*.xml"))}
    there = {stem: annotation for stem, annotation in read.items() if annotation is not None}
    own = _own_names(base) or sorted({thing.name for annotation in there.values() for thing in annotation.things})
    folders = [place for place in (*(base / name for name in PLAIN_PICTURES), folder) if place.is_dir()]
    pictures = ((stem, picture_of(folders, stem), annotation) for stem, annotation in there.items())
    return _found({name: (name,) for name in own}, pictures, problems)


def _own_names(base: Path) -> list[str]:
    """The names of classes.txt; empty without it."""
    return [row[0] for row in words(base / "classes.txt", 1)] if (base / "classes.txt").is_file() else []


def _read_or_problem(path: Path, stem: str, problems: Problems) -> Annotation | None:
    try:
        return read_annotation(path)
    except InputError as error:
        problems.add("broken annotation", stem, str(error))
        return None


def _found(
    names: Mapping[str, tuple[str, ...]], pictures: Iterable[tuple[str, Path, Annotation]], problems: Problems
) -> Found:
    """The candidates of pictures, each with its id and annotation; `names`: name in the files → synonyms."""
    labels = {name: label for label, name in enumerate(names)}
    candidates, difficult = [], set()
    for stem, path, annotation in pictures:
        if not annotation.things:
            problems.add("empty annotation", stem, "no object: left out")
        boxes: dict[str, list[Box]] = {}
        for thing in annotation.things:
            if thing.name not in labels:
                reason = f"an object is {thing.name!r}, not one of the {len(labels)} classes: left out; see classes.txt"
                problems.add("label mismatch", stem, reason)
            elif thing.difficult:
                problems.add("difficult", f"{stem}/{thing.name}", "an object marked difficult: its box is left out")
                difficult.add((path, labels[thing.name]))
            else:
                x0, y0, x1, y1 = thing.box
                boxes.setdefault(thing.name, []).append((x0 - 1, y0 - 1, x1, y1))
        for name in sorted(boxes, key=labels.__getitem__):
            candidates.append(Candidate(f"{stem}/{name}", path, labels[name], boxes[name], annotation.size_wh))
    classes = tuple(ClassName(synonyms[0], synonyms, name) for name, synonyms in names.items())
    return Found(classes, candidates, frozenset(difficult))


# --------------------------------------------------------------------------------------- the XML, which ILSVRC uses too
@dataclass(frozen=True)
class Thing:
    """An `<object>` of the file: its box is xmin, ymin, xmax, ymax, unchanged."""

    name: str
    box: Box
    difficult: bool


@dataclass(frozen=True)
class Annotation:
    """The annotation of a picture: its size (None if the file has none) and its objects."""

    size_wh: tuple[int, int] | None
    things: tuple[Thing, ...]


def read_annotation(path: Path) -> Annotation:
    """Reads one picture's annotation."""
    try:
        root = read_xml(path)
        size = root.find("size")
        wh = None if size is None else (integer(_text(size, "width")), integer(_text(size, "height")))
        things = []
        for thing in root.iter("object"):
            box = thing.find("bndbox")
            if box is None:
                raise ValueError("an object without its bndbox")
            corners = [finite(_text(box, tag)) for tag in ("xmin", "ymin", "xmax", "ymax")]
            difficult = (thing.findtext("difficult") or "0").strip() == "1"
            things.append(Thing(_text(thing, "name"), (corners[0], corners[1], corners[2], corners[3]), difficult))
    except FileNotFoundError:
        raise InputError(f"expected an annotation at {path}, found none: left out") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not an annotation that can be read ({error}): left out") from None
    return Annotation(None if wh is not None and min(wh) < 1 else wh, tuple(things))


def _text(element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"no {tag} in <{element.tag}>")
    return text
