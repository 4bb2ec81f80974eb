"""Reads corrected sets (COCO, YOLO, VOC, Label Studio, CVAT) and finds the run's picture of each of their entries."""

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

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import PICTURES, flat_stem
from cliploc.formats.yolo import CLASS_LISTS, class_names
from cliploc.images import polygons, rle
from cliploc.images.reading import SUFFIXES, small_png
from cliploc.images.rle import Counts
from cliploc.runs.labelling import Correction
from cliploc.support.documents import finite, integer, read_bytes, read_json, read_text, read_xml

FORMATS = "what review.html saves, COCO's JSON, Label Studio's JSON, CVAT's XML, or a folder in YOLO's or VOC's layout"
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, OSError)
MOST_LETTERS = 200  # of a library's error in a message
LEAST_SIDE = 1e-3  # pixels of a box inside its picture
VOID = 255  # in VOC's PNGs of 8 bits, pixels that are no object's
# What Label Studio stores besides shapes.
NO_SHAPES = ("choices", "datetime", "number", "rating", "relation", "taxonomy", "textarea")
UPLOAD = re.compile(r"[0-9a-f]{8}(?:-|__)(?=.)")  # what Label Studio puts before the names of files
Size: TypeAlias = tuple[int, int]  # width, height
# Label; x0, y0, x1, y1 in pixels, or None for those of the mask; and the runs of the mask, column by column, if the set
# has one and masks are read.
Shapes: TypeAlias = Iterable[tuple[str, Sequence[float] | None, Counts | None]]


class UnusableError(ValueError):
    """Why a picture's boxes cannot be taken."""


@dataclass(frozen=True)
class Corrections:
    """What a corrected set has for the pictures of a run."""

    form: str  # the format that was read
    pictures: dict[str, Correction]  # picture → its corrected boxes
    problems: dict[str, str]  # picture, as the set names it → why it was left as it is


@dataclass(frozen=True)
class Entry:
    """A picture as a corrected set has it."""

    names: tuple[str, ...]  # what may be its name, the best first
    shapes: Callable[[Size, bool], Shapes]  # by the picture's size, and whether masks are read
    size_wh: Size | None = None  # its size, if the set has it
    more: tuple[str, ...] = ()  # what may be its name if none of the names is that of a picture


@dataclass
class CorrectedSet:
    """A corrected set as its format's reader has it."""

    form: str
    entries: list[Entry]
    listed: Mapping[str, str] = field(default_factory=dict)  # its list of files: file → picture


def read_corrections(
    source: Path | Sequence[Mapping[str, Any]],  # a corrected set, or tasks as Label Studio's JSON has them
    sizes: Mapping[str, Size],  # of the run's pictures, upright
    labels: Sequence[Sequence[str]],  # the names of each label of the run: the label, then its synonyms
    lists: Sequence[Path] = (),  # further lists of files, as exports write them: which file is which picture
    masks: bool = False,  # whether masks are read, and polygons as masks; else only boxes are taken
) -> Corrections:
    """Reads a corrected set."""
    read = _read(source) if isinstance(source, Path) else _of_tasks(source)
    find = _Finder(sizes, read.listed, {k: v for names in lists for k, v in _listed(names).items()})
    known = _label_index(labels)
    corrections, problems, named = dict[str, Correction](), dict[str, str](), Counter[str]()
    for entry in read.entries:
        try:
            picture = find(entry.names, entry.more)
            named[picture] += 1
            if named[picture] > 1:
                corrections.pop(picture, None)
                raise UnusableError(f"several pictures of the set match {picture}")
            size = sizes[picture]
            _check_size(entry.size_wh or size, size)
            corrections[picture] = _checked(entry.shapes(size, masks), size, known, masks)
        except (InputError, *UNREADABLE) as error:
            problems[entry.names[0]] = _reason(error, read.form)
    return Corrections(read.form, corrections, problems)


def _reason(error: Exception, form: str) -> str:
    """Why a picture is not taken, in one line for people who do not know Python's errors."""
    if isinstance(error, UnusableError):
        return str(error)
    what = "a value has the wrong form"
    if isinstance(error, KeyError):
        what = f"{error.args[0]} is missing"
    elif isinstance(error, OSError):
        what = error.strerror or str(error)
    elif isinstance(error, ValueError | InputError) and str(error):
        what = _line(error)
    return f"its boxes cannot be read as {form}'s ({what}): export the set again"


def _line(error: Exception) -> str:
    """An error in one line, which may quote a number of thousands of digits."""
    return (str(error).splitlines() or [type(error).__name__])[0][:MOST_LETTERS]


def _check_size(size: Size, expected: Size) -> None:
    if size != expected:
        raise UnusableError(f"it is {size[0]}×{size[1]} in the set, but was annotated at {expected[0]}×{expected[1]}")


def _checked(shapes: Shapes, size: Size, known: Mapping[str, int], masks: bool) -> Correction:
    """The boxes, clipped to the picture."""
    corners, numbers, codes = [], [], list[str | None]()
    for label, xyxy, mask in shapes:
        number = known.get(label, known.get(label.casefold()))
        if number is None:
            raise UnusableError(f"{label!r} is not a label of this run")
        if xyxy is None:
            assert mask is not None
            xyxy = rle.bounds(mask, size[1])
        box = clipped(xyxy, size)
        if box is None:
            raise UnusableError(f"a box of {label!r} is empty, or lies outside of the picture")
        if mask is not None and not mask[1::2].any():
            raise UnusableError(f"a mask of {label!r} is empty")
        corners.append(box)
        numbers.append(number)
        codes.append(None if mask is None else rle.compressed(mask))
    return Correction(corners, numbers, masks=codes if masks else None)


def clipped(xyxy: Sequence[float], size: Size) -> list[float] | None:
    """A box inside the picture, in hundredths of a pixel; None if nothing is left of it."""
    corners = np.array(xyxy, float)
    if not np.isfinite(corners).all():
        return None
    inside = np.clip(corners, 0, [*size, *size]).tolist()
    x0, y0, x1, y1 = (round(value, 2) for value in inside)
    return [x0, y0, x1, y1] if x1 - x0 > LEAST_SIDE and y1 - y0 > LEAST_SIDE else None


def _label_index(labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name, also in small letters → label; a label's name comes before a synonym."""
    first = [(names[0], number) for number, names in enumerate(labels)]
    synonyms = [(name, number) for number, names in enumerate(labels) for name in names[1:]]
    index = dict[str, int]()
    for names, spelt in ((first, str), (first, str.casefold), (synonyms, str), (synonyms, str.casefold)):
        for name, number in names:
            index.setdefault(spelt(name), number)
    return index


# ----------------------------------------------------------------------------------------------------- which picture
class _Finder:
    """Finds the picture of the run that a set's name means: by its path, its end, or the name an export gave it."""

    def __init__(self, pictures: Mapping[str, Any], first: Mapping[str, str], last: Mapping[str, str]) -> None:
        self._pictures, self._first, self._last = pictures, _with_stems(first), _with_stems(last)
        self._by_end, self._by_stem = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for picture in pictures:
            path = PurePosixPath(picture)
            for start in range(1, len(path.parts)):
                self._by_end["/".join(path.parts[start:])].append(picture)
            for stem in {path.stem, flat_stem(picture), str(path.with_suffix(""))}:
                self._by_stem[stem].append(picture)

    def __call__(self, names: Sequence[str], more: Sequence[str] = ()) -> str:
        """The picture that one of the names means, or else one of some more."""
        # Base names without the prefix that Label Studio puts before them, of those that have it.
        base = [PurePosixPath(name).name for name in (*names, *more)]
        bare = [name[match.end() :] for name in base if (match := UPLOAD.match(name))]
        first, last = partial(self._listed, self._first), partial(self._listed, self._last)
        for spelt in (names, more, bare):
            for look in (first, self._path, self._end, self._stem, last):
                for name in spelt:
                    matching = look(name)
                    if len(matching) == 1:
                        return matching[0]
                    if matching:
                        raise UnusableError(f"it may be {' or '.join(sorted(matching)[:3])}: give its path")
        raise UnusableError("no annotated picture of this run has this name")

    def _listed(self, listed: Mapping[str, str], name: str) -> list[str]:
        return self._path(listed.get(PurePosixPath(name).name, ""))

    def _path(self, name: str) -> list[str]:
        return [name] if name in self._pictures else []

    def _end(self, name: str) -> list[str]:
        """The end of one path is the other."""
        parts = PurePosixPath(name).parts
        tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
        longest = next((tail for tail in tails if tail in self._pictures), None)
        return self._by_end.get(name, []) if longest is None else [longest]

    def _stem(self, name: str) -> list[str]:
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
def _read(path: Path) -> CorrectedSet:
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
    except (RecursionError, *UNREADABLE) as error:
        raise UsageError(f"expected {FORMATS}; {path} cannot be read ({_line(error)}): export it again") from None
    raise UsageError(f"expected {FORMATS}; {path} has other content: check the path")


def _read_folder(folder: Path) -> CorrectedSet:
    if listed := next((folder / name for name in CLASS_LISTS if (folder / name).exists()), None):
        return _yolo(folder, listed)
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise ValueError("it has no data.yaml, no classes.txt and no XML")
    return _voc(folder, files)


def _coco(content: Mapping[str, Any]) -> CorrectedSet:
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    if len({image["id"] for image in content["images"]}) < len(content["images"]):
        raise ValueError("several of its images have the same id")
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)

    def shapes(image_id: Any, size: Size, masks: bool) -> Shapes:
        for annotation in of_image[image_id]:
            if "bbox" not in annotation:
                raise UnusableError("a shape in it has no box")
            x, y, width, height = (float(value) for value in annotation["bbox"])
            segmentation = annotation.get("segmentation") if masks else None
            mask = _coco_mask(segmentation, size) if segmentation else None
            yield names[annotation["category_id"]], (x, y, x + width, y + height), mask

    entries = []
    for image in content["images"]:
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        entries.append(Entry(_spellings(str(image["file_name"])), partial(shapes, image["id"]), size))
    return CorrectedSet("COCO", entries)


def _coco_mask(segmentation: Any, size: Size) -> Counts:
    """The runs of polygons, or of run lengths, compressed or not."""
    if not isinstance(segmentation, dict):
        return _drawn(segmentation, size)
    if list(segmentation["size"]) != [size[1], size[0]]:
        raise ValueError(f"a mask of height and width {segmentation['size']}, not {[size[1], size[0]]}")
    return rle.without_empty(rle.counts_of(segmentation))


def _drawn(shapes: Any, size: Size) -> Counts:
    """The runs of polygons `[x, y, x, y …]` in pixels, along edges of pixels."""
    return rle.united([polygons.runs(outline, (size[1], size[0])) for outline in polygons.outlines_of(shapes, size)])


def _yolo(folder: Path, described: Path) -> CorrectedSet:
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    names = class_names(described)

    def shapes(text: Path, size: Size, masks: bool) -> Shapes:
        lines = [line for line in read_text(text).splitlines() if line.strip()]
        outlined = [len(line.split()) > 6 for line in lines]
        if any(outlined) and not masks:
            raise UnusableError("a shape in it is a polygon, not a box")
        detections = yolo_annotations_to_detections(lines, size, with_masks=False)
        classes = [] if detections.class_id is None else [int(number) for number in detections.class_id]
        if strange := set(classes) - names.keys():
            raise UnusableError(f"class {min(strange)} is not in {described.name}")
        for i, xyxy, line, polygon in zip(classes, detections.xyxy.tolist(), lines, outlined, strict=True):
            mask = _yolo_mask([finite(number) for number in line.split()[1:]], size) if polygon else None
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
        entries.append(Entry((stem,), partial(shapes, text), more=more))
    if not entries:
        raise ValueError("it has no text files in labels/")
    return CorrectedSet("YOLO", entries, _listed(folder))


def _yolo_mask(shares: Sequence[float], size: Size) -> Counts:
    """The runs of a polygon in shares of the picture, filled with its border, as YOLO's readers fill it."""
    points = np.array(shares, float).reshape(-1, 2)
    if not (np.isfinite(points).all() and points.min() >= -0.01 and points.max() <= 1.01):
        raise ValueError("a polygon outside the picture")
    width, height = size
    corners = np.floor(points * size + 1e-3).clip(0, [width - 1, height - 1]).astype(np.int32)
    least = corners.min(axis=0)
    right, bottom = (corners.max(axis=0) - least + 1).tolist()
    drawn = np.zeros((bottom, right), np.uint8)
    cv2.fillPoly(drawn, [corners - least], 1)
    return rle.placed(drawn.astype(bool), int(least[0]), int(least[1]), (height, width))


def _voc(folder: Path, files: Sequence[Path]) -> CorrectedSet:
    # Not by supervision's reader: it makes a mask of all the picture for every object.
    def shapes(root: ET.Element, file: Path, size: Size, masks: bool) -> Shapes:
        of_number = _voc_masks(file, size) if masks else {}
        for number, thing in enumerate(root.findall("object"), start=1):
            x0, y0, x1, y1 = (finite(thing.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
            left, top = min(x0, x1) - 1, min(y0, y1) - 1  # pixels count from 1 in VOC, the last one inside
            yield thing.findtext("name") or "", (left, top, max(x0, x1), max(y0, y1)), of_number.get(number)

    def fail(error: Exception, *_: object) -> Shapes:
        raise error

    entries, broken = list[Entry](), list[Exception]()
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix().removeprefix("Annotations/")
        try:
            root = read_xml(file)
            width, height = (integer(root.findtext(f"size/{key}") or "0") for key in ("width", "height"))
        except (OSError, ValueError) as error:  # the others are read all the same
            broken.append(error)
            entries.append(Entry((stem,), partial(fail, error), more=(file.stem,)))
            continue
        if root.tag != "annotation":
            continue
        named, path = (_spellings(root.findtext(key) or "") for key in ("filename", "path"))
        # A path, or else where the file lies, tells pictures of the same name in several folders apart.
        place = PurePosixPath(stem).with_name(PurePosixPath(named[0]).name or file.stem).as_posix()
        first = tuple(name for name in (*named, *path, place) if "/" in name)
        names = tuple(filter(None, (*named, *path, stem)))
        size = (width, height) if width and height else None
        entries.append(Entry(first or names, partial(shapes, root, file), size, names if first else ()))
    if len(entries) == len(broken):
        raise broken[0] if broken else ValueError("it has no VOC annotation")
    return CorrectedSet("VOC", entries, _listed(folder))


def _voc_masks(file: Path, size: Size) -> dict[int, Counts]:
    """Number of an XML file's object → the runs of its pixels in the PNG of such numbers, if there is one."""
    png = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    if not png.is_file():
        return {}
    numbers: npt.NDArray[Any] = np.asarray(small_png(read_bytes(png), max(size)))
    if numbers.shape != (size[1], size[0]):
        raise UnusableError(f"{png.name} in {png.parent.name} is of another size")
    flat = numbers.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    of_run = flat[starts]
    order = np.argsort(of_run, kind="stable")  # the runs of each number lie together
    kinds, first = np.unique(of_run[order], return_index=True)
    return {
        int(number): rle.of_switches(np.concatenate([starts[some], ends[some]]), flat.size)
        for number, some in zip(kinds, np.split(order, first[1:]), strict=True)
        if number != VOID or numbers.dtype != np.uint8
    }


def _cvat(root: ET.Element) -> CorrectedSet:
    if root.tag != "annotations":
        raise ValueError(f"the XML is <{root.tag}>, not CVAT's <annotations>")

    def shapes(image: ET.Element, size: Size, masks: bool) -> Shapes:
        for shape in image:
            of, label = shape.attrib, shape.attrib["label"]
            if shape.tag == "mask" and masks:
                yield label, None, _cvat_mask(of, size)
            elif shape.tag == "polygon" and masks:  # "x,y;x,y;…"
                points = [finite(value) for corner in of["points"].split(";") for value in corner.split(",")]
                yield label, None, _drawn([points], size)
            elif shape.tag == "box" and finite(of.get("rotation", "0")) == 0:
                yield label, [finite(of[key]) for key in ("xtl", "ytl", "xbr", "ybr")], None
            elif shape.tag != "tag":
                rotated = "rotated " if shape.tag == "box" else ""
                raise UnusableError(f"a shape in it is a {rotated}{shape.tag}, not a box")

    entries = []
    for image in root.iter("image"):
        size = integer(image.attrib["width"]), integer(image.attrib["height"])
        entries.append(Entry(_spellings(image.attrib["name"]), partial(shapes, image), size))
    if not entries:  # CVAT for video has tracks instead
        raise ValueError("it has no <image>: it must be CVAT for images")
    return CorrectedSet("CVAT", entries)


def _cvat_mask(code: Mapping[str, str], size: Size) -> Counts:
    """The runs of a `<mask>`, which has those of its rectangle, row by row, beginning with those of 0."""
    left, top, width, height = (int(float(code[key])) for key in ("left", "top", "width", "height"))
    counts = np.array([int(number) for number in code["rle"].split(",")], np.int64)
    inside = 0 <= left < left + width <= size[0] and 0 <= top < top + height <= size[1]
    if not inside or not rle.fills(counts, width * height):
        raise ValueError("a mask that does not fill its rectangle, or lies outside the picture")
    return rle.placed(rle.of_runs(counts).reshape(height, width), left, top, (size[1], size[0]))


def _of_tasks(tasks: Sequence[Mapping[str, Any]]) -> CorrectedSet:
    try:
        return _label_studio(tasks)
    except UNREADABLE as error:
        raise UsageError(f"expected annotated tasks of Label Studio, got something else ({_line(error)})") from None


def _label_studio(tasks: Sequence[Mapping[str, Any]]) -> CorrectedSet:
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
        entries.append(Entry(names or (f"task {task.get('id')}",), partial(_task_shapes, last["result"])))
    return CorrectedSet("Label Studio", entries)


def _task_shapes(results: Sequence[Mapping[str, Any]], size: Size, masks: bool) -> Shapes:
    width, height = size
    for result in results:
        value, kind = result.get("value", {}), result["type"]
        if kind in NO_SHAPES:
            continue
        of_mask = masks and kind in ("brushlabels", "polygonlabels")
        if not of_mask and (kind != "rectanglelabels" or value.get("rotation")):
            what = "a rotated rectangle" if kind == "rectanglelabels" else kind
            raise UnusableError(f"a shape in it is {what}, not a box")
        _check_size((result.get("original_width", width), result.get("original_height", height)), size)
        if len(value[kind]) != 1:
            raise UnusableError(f"a shape in it has {len(value[kind])} labels, not one")
        (label,) = value[kind]
        if kind == "brushlabels":
            yield label, None, _brush_mask(value["rle"], size)
        elif kind == "polygonlabels":
            points = np.array(value["points"], float) * [width / 100, height / 100]
            yield label, None, _drawn([points.ravel().tolist()], size)
        else:
            x0, y0 = value["x"] * width / 100, value["y"] * height / 100
            yield label, [x0, y0, x0 + value["width"] * width / 100, y0 + value["height"] * height / 100], None


def _brush_mask(packed: Sequence[int], size: Size) -> Counts:
    """The runs of a brush; see `cliploc.formats.labelstudio.brush`. Half transparent is outside."""
    width, height = size
    packed = [*packed]
    if int.from_bytes(bytes(packed[:4]), "big") != 4 * width * height:  # values of RGBA
        raise ValueError("a brush of another size than the picture")
    bits, at = f"{int.from_bytes(bytes(packed), 'big'):0{8 * len(packed)}b}", 32

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a brush that ends too early")
        return int(bits[at - count : at], 2)

    word, sizes = read(5) + 1, [read(4) + 1 for _ in range(4)]
    lengths, values, left = list[int](), list[int](), 4 * width * height
    while left > 0:
        same, count = read(1), read(sizes[read(2)]) + 1
        left -= count
        lengths += [count] if same else [1] * count
        values += [read(word) for _ in range(1 if same else count)]
    ends = np.cumsum(np.array(lengths, np.int64)) // 4  # in pixels, row by row: that of a value is that of its alpha
    opaque = np.array(values) >= 128
    by_row = rle.of_switches(np.concatenate([np.append(0, ends[:-1])[opaque], ends[opaque]]), width * height)
    top, x0, bottom, x1 = (int(side) for side in rle.bounds(by_row, width))
    if top == bottom:
        return by_row  # empty
    rows = np.diff(by_row.cumsum().clip(top * width, bottom * width), prepend=top * width)
    return rle.placed(rle.of_runs(rows).reshape(bottom - top, width)[:, x0:x1], x0, top, (height, width))


def _spellings(name: str) -> tuple[str, ...]:
    """What a name or an address may stand for: itself, its path, its `d`."""
    plain = name.replace("\\", "/")
    spellings = [plain]
    if "?" in plain or "%" in plain or "://" in plain or "/data/" in plain:
        address = urlsplit(plain)
        spellings += [*parse_qs(address.query).get("d", []), unquote(address.path)]
    return tuple(dict.fromkeys(spellings))
