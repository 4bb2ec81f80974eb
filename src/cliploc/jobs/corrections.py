"""Reads a corrected set of boxes from another tool, and matches its pictures and labels with those of a run.

COCO, YOLO, Pascal VOC, Label Studio and CVAT. A picture is taken as a whole or not at all: where a label, a shape or
the picture itself is not known to the run, the picture keeps its drafts, and the reason is named.
"""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from cliploc._documents import MOST_TEXT, read_json, read_text, read_xml
from cliploc.errors import UsageError
from cliploc.report.exports import PICTURES, flat_stem

if TYPE_CHECKING:
    from supervision import Detections

FORMATS = (
    "decisions of review.html, COCO's JSON, Label Studio's JSON, CVAT's XML, or a folder in YOLO's or VOC's layout"
)
MOST_YAML = 4 * 2**20  # bytes of data.yaml, which lists the classes
MOST_DEEP = 20  # of its lists in lists
LEAST_SIDE = 1e-3  # pixels of a box inside its picture
UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts before an uploaded file's name
SizeWh: TypeAlias = tuple[int, int]
LabelledBoxes: TypeAlias = list[tuple[str, Sequence[float]]]  # label, x0, y0, x1, y1 in pixels


class _UnusableError(ValueError):
    """Why a picture's boxes cannot be taken."""


@dataclass(frozen=True)
class Correction:
    """The corrected boxes of one picture.

    Attributes:
        boxes: x0, y0, x1, y1 of each in pixels of the upright picture, inside it.
        labels: of each, from 0.
        drafts: of each the number of the draft that it comes of, None for a new one; None where nobody knows.
        masks: of each its mask, as COCO's compressed counts; None where there are none.
    """

    boxes: list[list[float]]
    labels: list[int]
    drafts: list[int | None] | None = None
    masks: list[str] | None = None


@dataclass(frozen=True)
class Corrections:
    """What a corrected set says on the pictures of a run.

    Attributes:
        form: the format that was read.
        pictures: picture → its corrected boxes.
        problems: picture, as the set names it → why it was left as it is.
    """

    form: str
    pictures: dict[str, Correction]
    problems: dict[str, str]


@dataclass(frozen=True)
class _Entry:
    """A picture as a corrected set has it.

    Attributes:
        names: what may be its name, the best first.
        boxes: gives its boxes for the picture's size.
        size_wh: its size, if the set says it.
    """

    names: tuple[str, ...]
    boxes: Callable[[SizeWh], LabelledBoxes]
    size_wh: SizeWh | None = None


@dataclass
class _Set:
    form: str
    entries: list[_Entry]
    listed: Mapping[str, str] = field(default_factory=dict)  # its own list: file → picture


def read_corrections(
    path: Path,
    sizes: Mapping[str, SizeWh],
    labels: Sequence[Sequence[str]],
    lists: Sequence[Path] = (),
) -> Corrections:
    """Reads a corrected set.

    Args:
        path: a file or folder in one of the formats.
        sizes: picture of the run → width and height of the upright picture.
        labels: the names of each label of the run: the label, then its synonyms.
        lists: further lists of files, as exports write them, that tell which file is which picture.

    Raises:
        UsageError: it cannot be read, or is in none of the formats.
    """
    read = _read(path)
    find = _Finder(sizes, read.listed, {k: v for one in lists for k, v in _listed(one).items()})
    known = _label_index(labels)
    found: dict[str, Correction] = {}
    problems: dict[str, str] = {}
    named: Counter[str] = Counter()
    for entry in read.entries:
        title = entry.names[0]
        try:
            picture = find(entry.names)
            named[picture] += 1
            if named[picture] > 1:
                found.pop(picture, None)
                raise _UnusableError(f"several pictures of the set are {picture}")
            size = sizes[picture]
            if entry.size_wh not in (None, size):
                width, height = entry.size_wh or size
                raise _UnusableError(f"it is {width}×{height} there, and was annotated at {size[0]}×{size[1]}")
            found[picture] = _checked(entry.boxes(size), size, known)
        except (_UnusableError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            problems[title] = (
                str(error) if isinstance(error, _UnusableError) else f"its boxes cannot be read ({error!r})"
            )
    return Corrections(read.form, found, problems)


def _checked(boxes: LabelledBoxes, size: SizeWh, known: Mapping[str, int]) -> Correction:
    """The boxes, clipped to the picture."""
    width, height = size
    corners, numbers = [], []
    for label, xyxy in boxes:
        if label.casefold() not in known:
            raise _UnusableError(f"{label!r} is no label of this run")
        x0, y0, x1, y1 = np.clip(np.array(xyxy, float), 0, [width, height, width, height]).tolist()
        if not (x1 - x0 > LEAST_SIDE and y1 - y0 > LEAST_SIDE):  # nor where one of them is no number
            raise _UnusableError(f"a box of {label!r} is empty, or lies outside of the picture")
        corners.append([round(value, 2) for value in (x0, y0, x1, y1)])
        numbers.append(known[label.casefold()])
    return Correction(corners, numbers)


def _label_index(labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name, in small letters → label; a label's own name goes before another's synonym."""
    index: dict[str, int] = {}
    own = [(names[0], number) for number, names in enumerate(labels)]
    synonyms = [(name, number) for number, names in enumerate(labels) for name in names[1:]]
    for name, number in [*own, *synonyms]:
        index.setdefault(name.casefold(), number)
    return index


# ----------------------------------------------------------------------------------------------------- which picture
class _Finder:
    """Finds the picture of the run that a set's name means: by its path, its path's end, or the name an export gave it.

    Args:
        pictures: the run's.
        first: a list of files that goes before everything.
        more: one that is asked last.
    """

    def __init__(self, pictures: Mapping[str, Any], first: Mapping[str, str], more: Mapping[str, str]) -> None:
        self._pictures, self._first, self._more = pictures, _with_stems(first), _with_stems(more)
        self._deepest = 0  # folders and name of a picture
        self._by_end: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for one in pictures:
            parts = PurePosixPath(one).parts
            self._deepest = max(self._deepest, len(parts))
            for start in range(1, len(parts)):
                self._by_end["/".join(parts[start:])].append(one)
            for stem in {PurePosixPath(one).stem, flat_stem(one), str(PurePosixPath(one).with_suffix(""))}:
                self._by_stem[stem].append(one)

    def __call__(self, names: Sequence[str]) -> str:
        """The picture that one of the names means.

        Raises:
            _UnusableError: none, or several.
        """
        for look in (self._listed_first, self._whole, self._end, self._of_stem, self._listed_last):
            for name in names:
                found = look(name)
                if len(found) == 1:
                    return found[0]
                if found:
                    raise _UnusableError(f"it may be {' or '.join(sorted(found)[:3])}: give its path")
        raise _UnusableError("no picture of this run has this name")

    def _listed_first(self, name: str) -> list[str]:
        return self._whole(self._first.get(PurePosixPath(name).name, ""))

    def _whole(self, name: str) -> list[str]:
        return [name] if name in self._pictures else []

    def _end(self, name: str) -> list[str]:
        """The end of one path is the other."""
        parts = PurePosixPath(name).parts
        shown = range(max(1, len(parts) - self._deepest), len(parts))  # a name may have a million of folders
        tails = ("/".join(parts[start:]) for start in shown)
        longest = next((one for one in tails if one in self._pictures), None)
        return self._by_end.get(name, []) if longest is None else [longest]

    def _of_stem(self, name: str) -> list[str]:
        path = PurePosixPath(name)
        stem = str(path.with_suffix("")) if path.name else name
        return self._by_stem.get(stem) or self._by_stem.get(name) or []

    def _listed_last(self, name: str) -> list[str]:
        return self._whole(self._more.get(PurePosixPath(name).name, ""))


def _with_stems(listed: Mapping[str, str]) -> dict[str, str]:
    return {**{PurePosixPath(file).stem: picture for file, picture in listed.items()}, **listed}


def _listed(folder: Path) -> dict[str, str]:
    """The list of files that an export wrote into a folder; empty where there is none."""
    try:
        rows = csv.DictReader(io.StringIO(read_text(folder / PICTURES), newline=""))
        return {line["file"]: line["picture"] for line in rows}
    except (OSError, ValueError, KeyError, csv.Error):
        return {}


# ------------------------------------------------------------------------------------------------------------ formats
def _read(path: Path) -> _Set:
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix.lower() == ".xml":
            return _cvat(read_xml(path))
        if path.name.lower() in ("data.yaml", "data.yml"):
            return _read_folder(path.parent)
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content:
            return _coco(content)
        if isinstance(content, list) and content and all(isinstance(one, dict) and "data" in one for one in content):
            return _label_studio(content)
    except FileNotFoundError:
        raise UsageError(f"expected corrections in {path}, found no such file: check the path") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"expected {FORMATS}; {path} cannot be read ({error})") from None
    raise UsageError(f"expected {FORMATS}; {path} has other content: check the path")


def _read_folder(folder: Path) -> _Set:
    if (folder / "data.yaml").exists() or (folder / "data.yml").exists():
        return _yolo(folder)
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise ValueError("it has no data.yaml and no XML")
    return _voc(folder, files)


def _coco(content: Mapping[str, Any]) -> _Set:
    from supervision.dataset.formats.coco import coco_annotations_to_detections

    names = {one["id"]: str(one["name"]) for one in content["categories"]}
    if len({image["id"] for image in content["images"]}) < len(content["images"]):
        raise ValueError("several of its images have one id")
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in content["annotations"]:
        of_image[one["image_id"]].append(one)

    def boxes(image_id: Any, size: SizeWh) -> LabelledBoxes:
        own = of_image[image_id]
        if not all("bbox" in one for one in own):
            raise _UnusableError("a shape there has no box")
        found = coco_annotations_to_detections(own, size, with_masks=False, use_iscrowd=False)
        return [(names[one["category_id"]], xyxy) for one, xyxy in zip(own, found.xyxy.tolist(), strict=True)]

    entries = []
    for image in content["images"]:
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        entries.append(_Entry(_spellings(str(image["file_name"])), partial(boxes, image["id"]), size))
    return _Set("COCO", entries)


def _yolo(folder: Path) -> _Set:
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    described = next(one for one in (folder / "data.yaml", folder / "data.yml") if one.exists())
    listed = _yaml(described)["names"]
    names = dict(enumerate(listed)) if isinstance(listed, list) else {int(key): one for key, one in listed.items()}

    def boxes(text: Path, size: SizeWh) -> LabelledBoxes:
        lines = [line for line in read_text(text).splitlines() if line.strip()]
        if any(len(line.split()) > 6 for line in lines):
            raise _UnusableError("a shape there is a polygon, not a box")
        found = yolo_annotations_to_detections(lines, size, with_masks=False)
        classes = _class_ids(found)
        if strange := set(classes) - names.keys():
            raise _UnusableError(f"class {min(strange)} is not in {described.name}")
        return [(str(names[i]), xyxy) for i, xyxy in zip(classes, found.xyxy.tolist(), strict=True)]

    entries = []
    for text in sorted(folder.rglob("*.txt")):
        parts = text.relative_to(folder).parts
        if "labels" not in parts[:-1]:
            continue
        place = parts[len(parts) - parts[::-1].index("labels") :]
        stem = "/".join(place).removesuffix(".txt")
        entries.append(_Entry((stem,), partial(boxes, text)))
    if not entries:
        raise ValueError("it has no text files in labels/")
    return _Set("YOLO", entries, _listed(folder))


def _yaml(path: Path) -> Any:
    """A YAML document without aliases, by which a small one can mean an endless one."""
    import yaml

    content = read_text(path, MOST_YAML)
    try:
        depth = 0
        for token in yaml.scan(content):  # whose time grows with the square of the depth
            kind = type(token).__name__
            depth += ("Start" in kind) - ("End" in kind)
            if kind == "AliasToken" or depth > MOST_DEEP:
                raise ValueError(f"{path.name} has aliases, or is nested more than {MOST_DEEP} deep")
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None


def _voc(folder: Path, files: Sequence[Path]) -> _Set:
    # Not by supervision's reader: it makes a mask of the whole picture for every object.
    def boxes(root: ET.Element, _: SizeWh) -> LabelledBoxes:
        found: LabelledBoxes = []
        for one in root.findall("object"):
            x0, y0, x1, y1 = (float(one.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
            left, top = min(x0, x1) - 1, min(y0, y1) - 1  # pixels there count from 1, the last one inside
            found.append((one.findtext("name") or "", (left, top, max(x0, x1), max(y0, y1))))
        return found

    entries = []
    for file in files:
        root = read_xml(file, MOST_TEXT)
        if root.tag != "annotation":
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix().removeprefix("Annotations/")
        named = [root.findtext(key) for key in ("filename", "path")]
        width, height = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
        names = tuple(one for name in named if name for one in _spellings(name))
        entries.append(_Entry((*names, stem), partial(boxes, root), (width, height) if width and height else None))
    if not entries:
        raise ValueError("it has no VOC annotation")
    return _Set("VOC", entries, _listed(folder))


def _class_ids(found: Detections) -> list[int]:
    return [] if found.class_id is None else [int(one) for one in found.class_id]


def _cvat(root: ET.Element) -> _Set:
    if root.tag != "annotations":
        raise ValueError(f"the XML is <{root.tag}>, not CVAT's <annotations>")

    def boxes(image: ET.Element, _: SizeWh) -> LabelledBoxes:
        found: LabelledBoxes = []
        for one in image:
            if one.tag == "tag":
                continue
            if one.tag != "box" or float(one.get("rotation", 0)) != 0:
                raise _UnusableError(f"a shape there is a {'rotated ' if one.tag == 'box' else ''}{one.tag}, not a box")
            found.append((one.attrib["label"], [float(one.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")]))
        return found

    entries = [
        _Entry(
            _spellings(one.attrib["name"]), partial(boxes, one), (int(one.attrib["width"]), int(one.attrib["height"]))
        )
        for one in root.iter("image")
    ]
    return _Set("CVAT", entries)


def _label_studio(tasks: Sequence[Mapping[str, Any]]) -> _Set:
    entries = []
    for task in tasks:
        done = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
        if not done:
            continue  # nobody has looked at it
        last = max(enumerate(done), key=lambda pair: (str(pair[1].get("updated_at", "")), pair[0]))[1]
        data = task["data"]
        paths = [data.get("path"), *(value for key, value in data.items() if key != "path")]
        names = tuple(one for path in paths if isinstance(path, str) for one in _spellings(path))
        entries.append(_Entry(names or (f"task {task.get('id')}",), partial(_rectangles, last["result"])))
    return _Set("Label Studio", entries)


def _rectangles(results: Sequence[Mapping[str, Any]], size: SizeWh) -> LabelledBoxes:
    width, height = size
    found: LabelledBoxes = []
    for one in results:
        if one["type"] in ("choices", "textarea", "rating", "relation"):
            continue
        value = one["value"]
        if one["type"] != "rectanglelabels" or value.get("rotation"):
            what = "a rotated rectangle" if one["type"] == "rectanglelabels" else one["type"]
            raise _UnusableError(f"a shape there is {what}, not a box")
        there = (one.get("original_width", width), one.get("original_height", height))
        if there != size:
            raise _UnusableError(f"it is {there[0]}×{there[1]} there, and was annotated at {width}×{height}")
        (label,) = value["rectanglelabels"]
        x0, y0 = value["x"] * width / 100, value["y"] * height / 100
        found.append((label, [x0, y0, x0 + value["width"] * width / 100, y0 + value["height"] * height / 100]))
    return found


def _spellings(name: str) -> tuple[str, ...]:
    """What a name or an address may stand for: itself, its path, its `d`, without the prefix of an upload."""
    return tuple(dict.fromkeys(_spelt(name)))


def _spelt(name: str) -> Iterator[str]:
    plain = name.replace("\\", "/")
    yield plain
    if "?" in plain or "%" in plain or "://" in plain or "/data/" in plain:
        address = urlsplit(plain)
        yield from parse_qs(address.query).get("d", [])
        path = unquote(address.path)
        yield path
        last = PurePosixPath(path).name
        if match := UPLOAD.match(last):
            yield last[match.end() :]
