"""Reads corrected sets (COCO, YOLO, VOC, Label Studio, CVAT) and matches them with a run, pictures whole or not."""

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import PICTURES, flat_stem
from cliploc.formats.yolo import CLASS_LISTS, class_names
from cliploc.images import rle
from cliploc.images.reading import SUFFIXES, small_png
from cliploc.images.rle import Counts
from cliploc.label import correction_masks
from cliploc.label.correction_masks import Canvas, UnusableError
from cliploc.runs.labelling import Correction
from cliploc.support.documents import (
    MOST_TEXT,
    finite,
    read_bytes,
    read_json,
    read_text,
    read_xml,
    whole,
)

FORMATS = "what review.html saves, COCO's JSON, Label Studio's JSON, CVAT's XML, or a folder in YOLO's or VOC's layout"
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, OSError)
MOST_SHAPES = 20_000  # of a picture; each is checked, and written into every format
MOST_SAID = 200  # characters of a library's error
LEAST_SIDE = 1e-3  # pixels of a box inside its picture
VOID = 255  # in VOC's PNGs of 8 bits, pixels that are no object's
# What Label Studio stores besides shapes.
NO_SHAPES = ("choices", "datetime", "number", "rating", "relation", "taxonomy", "textarea")
UPLOAD = re.compile(r"[0-9a-f]{8}(?:-|__)(?=.)")  # what Label Studio puts before the names of files
SizeWh: TypeAlias = tuple[int, int]
# Label; x0, y0, x1, y1 in pixels, or None for those of the mask; and the runs of the mask, column by column, if the set
# has one and masks are asked for.
LabelledShapes: TypeAlias = Iterable[tuple[str, Sequence[float] | None, Counts | None]]


@dataclass(frozen=True)
class Corrections:
    """What a corrected set has for the pictures of a run."""

    form: str  # the format that was read
    pictures: dict[str, Correction]  # picture → its corrected boxes
    problems: dict[str, str]  # picture, as the set names it → why it was left as it is


@dataclass(frozen=True)
class _Entry:
    """A picture as a corrected set has it."""

    names: tuple[str, ...]  # what may be its name, the best first
    # gives its boxes for the picture's size, and, if asked for, their masks
    shapes: Callable[[Canvas, bool], LabelledShapes]
    size_wh: SizeWh | None = None  # its size, if the set says it
    more: tuple[str, ...] = ()  # what may be its name if none of the names is that of a picture


@dataclass
class _Set:
    form: str
    entries: list[_Entry]
    listed: Mapping[str, str] = field(default_factory=dict)  # its own list: file → picture


def read_corrections(
    given: Path | Sequence[Mapping[str, Any]],  # a corrected set, or tasks as Label Studio's JSON has them
    sizes: Mapping[str, SizeWh],  # of the run's pictures, upright
    labels: Sequence[Sequence[str]],  # the names of each label of the run: the label, then its synonyms
    lists: Sequence[Path] = (),  # further lists of files, as exports write them, that tell which file is which picture
    masks: bool = False,  # whether masks are read, and polygons as masks; else only boxes are taken
) -> Corrections:
    """Reads a corrected set."""
    read = _read(given) if isinstance(given, Path) else _of_tasks(given)
    find = _Finder(sizes, read.listed, {k: v for names in lists for k, v in _listed(names).items()})
    known = _label_index(labels)
    corrections: dict[str, Correction] = {}
    problems: dict[str, str] = {}
    named: Counter[str] = Counter()
    for entry in read.entries:
        title = entry.names[0]
        try:
            picture = find(entry.names, entry.more)
            named[picture] += 1
            if named[picture] > 1:
                corrections.pop(picture, None)
                raise UnusableError(f"several pictures of the set match {picture}")
            size = sizes[picture]
            if entry.size_wh not in (None, size):
                width, height = entry.size_wh or size
                raise UnusableError(f"it is {width}×{height} in the set, but was annotated at {size[0]}×{size[1]}")
            corrections[picture] = _checked(entry.shapes(Canvas(size), masks), size, known, masks)
        except (UnusableError, InputError, *UNREADABLE) as error:
            problems[title] = _why(error, read.form)
    return Corrections(read.form, corrections, problems)


def _why(error: Exception, form: str) -> str:
    """Why the boxes of a picture were not taken, in one line for people who do not know Python's errors."""
    if isinstance(error, UnusableError):
        return str(error)
    if isinstance(error, KeyError):
        what = f"{error.args[0]} is missing"
    elif isinstance(error, OSError):
        what = error.strerror or str(error)
    elif isinstance(error, ValueError | InputError) and str(error):
        what = _line(error)
    else:
        what = "a value has the wrong form"
    return f"its boxes cannot be read as {form}'s ({what}): export the set again"


def _line(error: Exception) -> str:
    """An error in one line, which may quote a number of thousands of digits."""
    return (str(error).splitlines() or [type(error).__name__])[0][:MOST_SAID]


def _refuse_many(count: int) -> None:
    if count > MOST_SHAPES:
        raise UnusableError(f"it has {count:,} shapes, expected at most {MOST_SHAPES:,}: split the picture")


def _checked(shapes: LabelledShapes, size: SizeWh, known: Mapping[str, int], masks: bool) -> Correction:
    """The boxes, clipped to the picture."""
    corners, numbers, codes = [], [], list[str | None]()
    for count, (label, xyxy, mask) in enumerate(shapes, start=1):
        _refuse_many(count)
        number = known.get(label, known.get(label.casefold()))
        if number is None:
            raise UnusableError(f"{label!r} is not a label of this run")
        if xyxy is None:
            assert mask is not None
            xyxy = rle.bounds(mask, size[1])
        box = clipped(xyxy, size)
        if box is None:
            raise UnusableError(f"a box of {label!r} is empty, or lies outside of the picture")
        corners.append(box)
        numbers.append(number)
        if mask is not None and not mask[1::2].any():
            raise UnusableError(f"a mask of {label!r} is empty")
        codes.append(None if mask is None else rle.compressed(mask))
    return Correction(corners, numbers, masks=codes if masks else None)


def clipped(xyxy: Sequence[float], size: SizeWh) -> list[float] | None:
    """A box inside the picture, in hundredths of a pixel; None if nothing is left of it."""
    corners = np.array(xyxy, float)
    if not np.isfinite(corners).all():
        return None
    inside = np.clip(corners, 0, [*size, *size]).tolist()
    x0, y0, x1, y1 = (round(value, 2) for value in inside)
    return [x0, y0, x1, y1] if x1 - x0 > LEAST_SIDE and y1 - y0 > LEAST_SIDE else None


def _label_index(labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name, also in small letters → label; names as they are first, and a label's own before a synonym."""
    own = [(names[0], number) for number, names in enumerate(labels)]
    synonyms = [(name, number) for number, names in enumerate(labels) for name in names[1:]]
    index = dict(own)
    for names, spelt in ((own, str.casefold), (synonyms, str), (synonyms, str.casefold)):
        for name, number in names:
            index.setdefault(spelt(name), number)
    return index


# ----------------------------------------------------------------------------------------------------- which picture
class _Finder:
    """Finds the picture of the run that a set's name means: by its path, its end, or the name an export gave it."""

    def __init__(self, pictures: Mapping[str, Any], first: Mapping[str, str], more: Mapping[str, str]) -> None:
        self._pictures, self._first, self._more = pictures, _with_stems(first), _with_stems(more)
        self._deepest = 0  # folders and name of a picture
        self._by_end: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            parts = PurePosixPath(picture).parts
            self._deepest = max(self._deepest, len(parts))
            for start in range(1, len(parts)):
                self._by_end["/".join(parts[start:])].append(picture)
            for stem in {PurePosixPath(picture).stem, flat_stem(picture), str(PurePosixPath(picture).with_suffix(""))}:
                self._by_stem[stem].append(picture)

    def __call__(self, names: Sequence[str], more: Sequence[str] = ()) -> str:
        """The picture that one of the names means, or else one of some more."""
        # Base names without the prefix that Label Studio puts before them, of those that have it.
        base = [PurePosixPath(name).name for name in (*names, *more)]
        bare = [name[match.end() :] for name in base if (match := UPLOAD.match(name))]
        first, last = partial(self._listed, self._first), partial(self._listed, self._more)
        looks = (first, self._whole, self._end, self._of_stem, last)
        for spelt in (names, more, bare):
            for look in looks:
                for name in spelt:
                    matching = look(name)
                    if len(matching) == 1:
                        return matching[0]
                    if matching:
                        raise UnusableError(f"it may be {' or '.join(sorted(matching)[:3])}: give its path")
        raise UnusableError("no annotated picture of this run has this name")

    def _listed(self, listed: Mapping[str, str], name: str) -> list[str]:
        return self._whole(listed.get(PurePosixPath(name).name, ""))

    def _whole(self, name: str) -> list[str]:
        return [name] if name in self._pictures else []

    def _end(self, name: str) -> list[str]:
        """The end of one path is the other."""
        parts = PurePosixPath(name).parts
        shown = range(max(1, len(parts) - self._deepest), len(parts))  # a name may have a million folders
        tails = ("/".join(parts[start:]) for start in shown)
        longest = next((tail for tail in tails if tail in self._pictures), None)
        return self._by_end.get(name, []) if longest is None else [longest]

    def _of_stem(self, name: str) -> list[str]:
        """The name as it is first: YOLO's has no ending, and `photo.1` may be `photo.1.jpg` beside `photo.jpg`."""
        path = PurePosixPath(name)
        stem = str(path.with_suffix("")) if path.name else name
        return self._by_stem.get(name) or self._by_stem.get(stem) or []


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
        if path.name.lower() in CLASS_LISTS:
            return _read_folder(path.parent)
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content:
            return _coco(content)
        if isinstance(content, list) and content and all(isinstance(task, dict) and "data" in task for task in content):
            return _label_studio(content)
    except FileNotFoundError:
        raise UsageError(f"expected corrections in {path}, found no such file: check the path") from None
    except (OSError, RecursionError, *UNREADABLE) as error:
        raise UsageError(f"expected {FORMATS}; {path} cannot be read ({_line(error)}): export it again") from None
    raise UsageError(f"expected {FORMATS}; {path} has other content: check the path")


def _read_folder(folder: Path) -> _Set:
    if listed := next((folder / name for name in CLASS_LISTS if (folder / name).exists()), None):
        return _yolo(folder, listed)
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise ValueError("it has no data.yaml, no classes.txt and no XML")
    return _voc(folder, files)


def _coco(content: Mapping[str, Any]) -> _Set:
    from supervision.dataset.formats.coco import coco_annotations_to_detections

    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    if len({image["id"] for image in content["images"]}) < len(content["images"]):
        raise ValueError("several of its images have the same id")
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)

    def shapes(image_id: Any, canvas: Canvas, masks: bool) -> LabelledShapes:
        own = of_image[image_id]
        if not all("bbox" in annotation for annotation in own):
            raise UnusableError("a shape in it has no box")
        detections = coco_annotations_to_detections(own, canvas.size_wh, with_masks=False, use_iscrowd=False)
        outlined = (annotation.get("segmentation") if masks else None for annotation in own)
        of_each = (correction_masks.of_coco(outlines, canvas) if outlines else None for outlines in outlined)
        labels = [names[annotation["category_id"]] for annotation in own]
        return zip(labels, detections.xyxy.tolist(), of_each, strict=True)

    entries = []
    for image in content["images"]:
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        entries.append(_Entry(_spellings(str(image["file_name"])), partial(shapes, image["id"]), size))
    return _Set("COCO", entries)


def _yolo(folder: Path, described: Path) -> _Set:
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    names = class_names(described)

    def shapes(text: Path, canvas: Canvas, masks: bool) -> LabelledShapes:
        lines = [line for line in read_text(text).splitlines() if line.strip()]
        _refuse_many(len(lines))
        outlined = [len(line.split()) > 6 for line in lines]
        if any(outlined) and not masks:
            raise UnusableError("a shape in it is a polygon, not a box")
        detections = yolo_annotations_to_detections(lines, canvas.size_wh, with_masks=False)
        classes = [] if detections.class_id is None else [int(number) for number in detections.class_id]
        if strange := set(classes) - names.keys():
            raise UnusableError(f"class {min(strange)} is not in {described.name}")
        for i, xyxy, line, polygon in zip(classes, detections.xyxy.tolist(), lines, outlined, strict=True):
            mask = (
                correction_masks.of_yolo([finite(number) for number in line.split()[1:]], canvas) if polygon else None
            )
            yield names[i], None if polygon else xyxy, mask

    entries = []
    for text in sorted(folder.rglob("*.txt")):
        parts = text.relative_to(folder).parts
        if "labels" not in parts[:-1]:
            continue
        place = parts[len(parts) - parts[::-1].index("labels") :]
        stem = "/".join(place).removesuffix(".txt")
        split, _, rest = stem.partition("/")
        more = (rest,) if rest and split.startswith(("train", "val", "test")) else ()
        entries.append(_Entry((stem,), partial(shapes, text), more=more))
    if not entries:
        raise ValueError("it has no text files in labels/")
    return _Set("YOLO", entries, _listed(folder))


def _voc(folder: Path, files: Sequence[Path]) -> _Set:
    # Not by supervision's reader: it makes a mask of the whole picture for every object.
    def shapes(root: ET.Element, file: Path, canvas: Canvas, masks: bool) -> LabelledShapes:
        numbered = _numbered_objects(file, canvas.size_wh) if masks else None
        of_number = {} if numbered is None else correction_masks.of_voc(numbered)
        if numbered is not None and numbered.dtype == np.uint8:
            of_number.pop(VOID, None)
        for number, thing in enumerate(root.findall("object"), start=1):
            x0, y0, x1, y1 = (finite(thing.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
            left, top = min(x0, x1) - 1, min(y0, y1) - 1  # pixels there count from 1, the last one inside
            mask = of_number.get(number)
            yield thing.findtext("name") or "", (left, top, max(x0, x1), max(y0, y1)), mask

    entries = []
    broken: list[Exception] = []
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix().removeprefix("Annotations/")
        try:
            root = read_xml(file, MOST_TEXT)
            width, height = (whole(root.findtext(f"size/{key}") or "0") for key in ("width", "height"))
        except (OSError, ValueError) as error:  # the others are read all the same
            broken.append(error)
            entries.append(_Entry((stem,), partial(_refused, error), more=(file.stem,)))
            continue
        if root.tag != "annotation":
            continue
        named, path = (_spellings(root.findtext(key) or "") for key in ("filename", "path"))
        # A path, or else the file's own place, tells pictures of the same name in several folders apart.
        place = PurePosixPath(stem).with_name(PurePosixPath(named[0]).name or file.stem).as_posix()
        first = tuple(name for name in (*named, *path, place) if "/" in name)
        names = tuple(filter(None, (*named, *path, stem)))
        size = (width, height) if width and height else None
        entries.append(_Entry(first or names, partial(shapes, root, file), size, names if first else ()))
    if len(entries) == len(broken):
        raise broken[0] if broken else ValueError("it has no VOC annotation")
    return _Set("VOC", entries, _listed(folder))


def _refused(error: Exception, *_: object) -> LabelledShapes:
    raise error


def _numbered_objects(file: Path, size: SizeWh) -> npt.NDArray[Any] | None:
    """The PNG `[H, W]` in SegmentationObject/ whose values are the numbers of an XML file's objects; None without."""
    png = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    if not png.is_file():
        return None
    numbers = np.asarray(small_png(read_bytes(png), max(size)))
    if numbers.shape != (size[1], size[0]):
        raise UnusableError(f"{png.name} in {png.parent.name} is of another size")
    return numbers


def _cvat(root: ET.Element) -> _Set:
    if root.tag != "annotations":
        raise ValueError(f"the XML is <{root.tag}>, not CVAT's <annotations>")

    def shapes(image: ET.Element, canvas: Canvas, masks: bool) -> LabelledShapes:
        for shape in image:
            if shape.tag == "tag":
                continue
            if masks and shape.tag in ("mask", "polygon"):
                if shape.tag == "mask":
                    mask = correction_masks.of_cvat(shape.attrib, canvas)
                else:  # "x,y;x,y;…"
                    corners = shape.attrib["points"].split(";")
                    points = np.array([[finite(value) for value in corner.split(",")] for corner in corners])
                    mask = correction_masks.of_points(points, canvas)
                yield shape.attrib["label"], None, mask
                continue
            if shape.tag != "box" or finite(shape.get("rotation", "0")) != 0:
                raise UnusableError(
                    f"a shape in it is a {'rotated ' if shape.tag == 'box' else ''}{shape.tag}, not a box"
                )
            edges = [finite(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
            yield shape.attrib["label"], edges, None

    entries = [
        _Entry(
            _spellings(image.attrib["name"]),
            partial(shapes, image),
            (whole(image.attrib["width"]), whole(image.attrib["height"])),
        )
        for image in root.iter("image")
    ]
    if not entries:  # CVAT for video has tracks instead
        raise ValueError("it has no <image>: it must be CVAT for images")
    return _Set("CVAT", entries)


def _of_tasks(tasks: Sequence[Mapping[str, Any]]) -> _Set:
    try:
        return _label_studio(tasks)
    except UNREADABLE as error:
        raise UsageError(f"expected annotated tasks of Label Studio, got something else ({_line(error)})") from None


def _label_studio(tasks: Sequence[Mapping[str, Any]]) -> _Set:
    entries = []
    for task in tasks:
        done = [annotation for annotation in task.get("annotations") or [] if not annotation.get("was_cancelled")]
        if not done:
            continue  # nobody has looked at it
        last = max(enumerate(done), key=lambda pair: (str(pair[1].get("updated_at", "")), pair[0]))[1]
        data = task["data"]
        paths = [data.get("path"), *(value for key, value in data.items() if key != "path")]
        names = tuple(name for path in paths if isinstance(path, str) for name in _spellings(path))
        # What else a task has, such as an id of "12", may be the name of another picture.
        names = tuple(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES) or names
        entries.append(_Entry(names or (f"task {task.get('id')}",), partial(_drawn_shapes, last["result"])))
    return _Set("Label Studio", entries)


def _drawn_shapes(results: Sequence[Mapping[str, Any]], canvas: Canvas, masks: bool) -> LabelledShapes:
    size = width, height = canvas.size_wh
    for result in results:
        if result["type"] in NO_SHAPES:
            continue
        value, kind = result["value"], result["type"]
        of_mask = masks and kind in ("brushlabels", "polygonlabels")
        if not of_mask and (kind != "rectanglelabels" or value.get("rotation")):
            what = "a rotated rectangle" if kind == "rectanglelabels" else kind
            raise UnusableError(f"a shape in it is {what}, not a box")
        there = (result.get("original_width", width), result.get("original_height", height))
        if there != size:
            raise UnusableError(f"it is {there[0]}×{there[1]} in the set, but was annotated at {width}×{height}")
        if len(value[kind]) != 1:
            raise UnusableError(f"a shape in it has {len(value[kind])} labels, not one")
        (label,) = value[kind]
        if of_mask:
            if kind == "brushlabels":
                mask = correction_masks.of_brush(value["rle"], canvas)
            else:
                points = np.array(value["points"], float) * [width / 100, height / 100]
                mask = correction_masks.of_points(points, canvas)
            yield label, None, mask
            continue
        x0, y0 = value["x"] * width / 100, value["y"] * height / 100
        box = [x0, y0, x0 + value["width"] * width / 100, y0 + value["height"] * height / 100]
        yield label, box, None


def _spellings(name: str) -> tuple[str, ...]:
    """What a name or an address may stand for: itself, its path, its `d`."""
    plain = name.replace("\\", "/")
    spellings = [plain]
    if "?" in plain or "%" in plain or "://" in plain or "/data/" in plain:
        address = urlsplit(plain)
        spellings += [*parse_qs(address.query).get("d", []), unquote(address.path)]
    return tuple(dict.fromkeys(spellings))
