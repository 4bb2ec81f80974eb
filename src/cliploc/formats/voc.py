"""Pascal VOC's layout: XML for each picture, the pictures, their list, and masks as PNGs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc import formats
from cliploc.errors import UsageError
from cliploc.formats import AnnotatedPicture, Box, ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures
from cliploc.images import rle
from cliploc.images.reading import small_png
from cliploc.support.files import finite, integer, parse_xml, read_xml, write_atomic_folder, xml_again
from cliploc.values import ByteArray

VOID = 255  # in PNGs of 8 bits, pixels that are no object's
MOST = 254  # values of a PNG between 0, the background, and `VOID`
ANNOTATIONS, IMAGES, LEGEND = "Annotations", "JPEGImages", "labelmap.txt"
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"


# ---------------------------------------------------------------------------------------------------------------- read
@dataclass(frozen=True)
class VocObject:
    """An `<object>`."""

    names: tuple[str, ...]  # one; of Flickr30k Entities the ids of its phrases
    edges: Box | None  # xmin, ymin, xmax, ymax as written; None: it has no bndbox
    difficult: bool

    @property
    def xyxy(self) -> Box:
        """The box by VOC's rule: pixels count from 1, and the last one is inside."""
        if self.edges is None:
            raise ValueError("an object without its bndbox")
        x0, y0, x1, y1 = self.edges
        return x0 - 1, y0 - 1, x1, y1


@dataclass(frozen=True)
class VocPicture:
    """An XML file."""

    root: str  # the tag of its root, "annotation"
    names: tuple[str, ...]  # its filename and path, where it has them
    size_wh: formats.Size | None
    objects: tuple[VocObject, ...]


def read_picture(path: Path) -> VocPicture:
    """Reads one XML file; an `OSError` or a `ValueError` says why it cannot be read."""
    root = read_xml(path)
    width, height = (integer(root.findtext(f"size/{key}") or "0") for key in ("width", "height"))
    objects = []
    for thing in root.iter("object"):
        names = tuple((name.text or "").strip() for name in thing.findall("name"))
        if not all(names) or not names:
            raise ValueError("no name in <object>")
        edges = None
        if thing.find("bndbox") is not None:
            x0, y0, x1, y1 = (finite(thing.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
            edges = (x0, y0, x1, y1)
        objects.append(VocObject(names, edges, (thing.findtext("difficult") or "").strip() == "1"))
    names = tuple(text for key in ("filename", "path") if (text := (root.findtext(key) or "").strip()))
    return VocPicture(root.tag, names, (width, height) if min(width, height) > 0 else None, tuple(objects))


def read(folder: Path, files: Sequence[Path]) -> LabelSet:
    """The pictures of these XML files of a folder; objects marked difficult are boxes, too."""
    pictures, broken = [], list[Exception]()
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix().removeprefix("Annotations/")
        try:
            picture = read_picture(file)
        except (OSError, ValueError) as error:  # the others are read all the same
            broken.append(error)
            pictures.append(PictureLabels((stem,), partial(_refused, error), more=(file.stem,), file=file))
            continue
        if picture.root != "annotation":
            continue
        named = [spelling for name in picture.names for spelling in formats.spellings(name)]
        # A path, or else the file's own place, tells pictures of the same name in several folders apart.
        first = PurePosixPath(named[0] if named else "").name or file.stem
        paths = tuple(name for name in (*named, PurePosixPath(stem).with_name(first).as_posix()) if "/" in name)
        names = (*named, stem)
        boxes = partial(_boxes, picture.objects, file)
        pictures.append(PictureLabels(paths or names, boxes, picture.size_wh, names if paths else (), file))
    if len(pictures) == len(broken):
        raise broken[0] if broken else ValueError("it has no VOC annotation")
    return LabelSet("VOC", tuple(pictures), formats.read_list(folder), files=files, rewrite=rewrite)


def rewrite(file: Path, edits: formats.Edits) -> bytes:
    """A picture's XML after edits; the pixels in PNGs stay as they are."""
    before = file.read_bytes()
    root = parse_xml(before)
    [(picture, of_picture)] = edits.items()
    above = {child: parent for parent in root.iter() for child in parent}
    things = [*root.iter("object")]
    for place, thing in enumerate(things):
        edit = formats.edit_of(edits, picture, place)
        if edit is None:
            above[thing].remove(thing)
            continue
        if edit.name is not None:
            thing.find("name").text = edit.name  # type: ignore[union-attr] # it was read
        if edit.xyxy is not None:
            for key, value in _edges(edit.xyxy).items():
                thing.find(f"bndbox/{key}").text = value  # type: ignore[union-attr]
    for name, xyxy in of_picture.added:
        thing = ElementTree.SubElement(root, "object")
        thing.tail = "\n"
        of_thing = {"name": name, "pose": "Unspecified", "truncated": "0", "difficult": "0"}
        for key, value in of_thing.items():
            ElementTree.SubElement(thing, key).text = value
        edges = ElementTree.SubElement(thing, "bndbox")
        for key, value in _edges(xyxy).items():
            ElementTree.SubElement(edges, key).text = value
    return xml_again(root, before)


def _edges(xyxy: Box) -> dict[str, str]:
    """Whole pixels from 1, the last one inside."""
    x0, y0, x1, y1 = (round(value) for value in xyxy)
    edges = {"xmin": min(x0 + 1, x1), "ymin": min(y0 + 1, y1), "xmax": x1, "ymax": y1}
    return {key: str(max(1, value)) for key, value in edges.items()}


def _refused(error: Exception, *_: object) -> Iterator[LabelledBox]:
    raise error


def _boxes(objects: Sequence[VocObject], file: Path, size_wh: formats.Size, masks: bool) -> Iterator[LabelledBox]:
    of_number = mask_runs(file, size_wh) if masks else {}
    for number, thing in enumerate(objects, start=1):
        x0, y0, x1, y1 = thing.xyxy
        box = (min(x0, x1 - 1), min(y0, y1 - 1), max(x0 + 1, x1), max(y0 + 1, y1))  # corners may be the other way round
        runs = of_number.get(number)
        mask = None if runs is None else lambda runs=runs: runs
        yield LabelledBox(str(number), thing.names[0], box, mask)


def mask_runs(file: Path, size_wh: formats.Size) -> dict[int, rle.Counts]:
    """Number of an object of an XML file → the runs of its pixels in SegmentationObject/, if there is such a PNG."""
    png = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    if not png.is_file():
        return {}
    numbers: npt.NDArray[Any] = np.asarray(small_png(png.read_bytes(), max(size_wh)))
    if numbers.shape != size_wh[::-1]:
        raise ValueError(f"{png.name} in {png.parent.name} is of another size")
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


# --------------------------------------------------------------------------------------------------------------- write
@formats.export
class Voc(formats.Export):
    """Pascal VOC's layout, with an XML file for each picture."""

    name = "voc"
    about = "Pascal VOC's folders: whole pixels from 1, the last one in the box, no scores; links to your pictures"
    folders = ("voc",)

    def check(self, settings: ExportSettings) -> None:
        """At most 254 labels with masks."""
        if settings.masks and len(settings.names) > MOST:
            raise UsageError(
                f"expected at most {MOST} names for masks in Pascal VOC's format, whose pixels are bytes, got "
                f"{len(settings.names)}: choose another format, or split them into several runs"
            )

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `voc/` without sub-folders, `labelmap.txt`, `pictures.csv`, and masks, better boxes over others."""
        from supervision.dataset.formats.pascal_voc import detections_to_pascal_voc

        def fill(target: Path) -> None:
            names_of_files = formats.FileNames(target)
            listed = []
            sets = ("Main", "Segmentation") if settings.masks else ("Main",)
            for made in (ANNOTATIONS, IMAGES, *(f"ImageSets/{part}" for part in sets)):
                (target / made).mkdir(parents=True)
            pngs = (f"{CLASSES}/*.png", f"{OBJECTS}/*.png") if settings.masks else ()
            for picture in pictures():
                endings = (f"{IMAGES}/*{formats.file_suffix(picture)}", f"{ANNOTATIONS}/*.xml", *pngs)
                image, path, *masks = names_of_files.of(picture, *endings)
                formats.write_picture(picture, image, settings.copies)
                listed.append((image.name, picture.name))
                shape = (picture.size_wh[1], picture.size_wh[0], 3)
                boxes = picture.detections()  # what begins in the last half of a pixel must not be rounded beyond it
                boxes.xyxy[:, :2] = np.minimum(boxes.xyxy[:, :2], np.array(picture.size_wh) - 1)
                xml = detections_to_pascal_voc(boxes, list(settings.names), image.name, shape)
                xml = xml.replace("<database>roboflow.ai<", "<database>cliploc<", 1)
                if settings.masks:
                    xml = xml.replace("<segmented>0<", "<segmented>1<", 1)
                    _write_masks(picture, *masks)
                path.write_text(xml, encoding="utf-8")
            val = formats.validation(pictures, settings.val)
            subsets = {"trainval": [*dict(listed)]}
            if val:
                for subset, inside in (("train", False), ("val", True)):
                    subsets[subset] = [file for file, name in listed if (name in val) == inside]
            for one_set, (subset, files) in itertools.product(sets, subsets.items()):
                ids = "".join(f"{Path(file).stem}\n" for file in files)
                (target / "ImageSets" / one_set / f"{subset}.txt").write_text(ids, encoding="utf-8")
            # Colons separate the fields of a line.
            labels = ["background", *(name.replace(":", "_") for name in settings.names)]
            legend = zip(labels, palette(len(labels)).tolist(), strict=True)
            lines = [f"{label}:{','.join(map(str, colour))}::" for label, colour in legend]
            text = "\n".join(["# label:color_rgb:parts:actions", *lines, ""])
            (target / LEGEND).write_text(text, encoding="utf-8")
            formats.write_list(target, listed)

        write_atomic_folder(folder / self.folders[0], fill)


def _write_masks(picture: AnnotatedPicture, classes: Path, objects: Path) -> None:
    width, height = picture.size_wh
    of_class, of_object = (np.zeros((height, width), np.uint8) for _ in range(2))
    for i in reversed(range(len(picture.label))):  # the best comes first, and is painted last
        part, left, top = rle.part_of(picture.masks[i])
        here = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        of_class[here][part], of_object[here][part] = picture.label[i] + 1, min(i, MOST) + 1
    for path, values in ((classes, of_class), (objects, of_object)):
        image = Image.fromarray(values)
        image.putpalette(palette().ravel().tolist())
        image.save(path)


def palette(count: int = 256) -> ByteArray:
    """The colours `[count, 3]` of VOC's development kit (`VOClabelcolormap`): a value's bits, dealt to R, G and B."""
    values = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= (((values >> (3 * level + channel)) & 1) << (7 - level)).astype(np.uint8)
    return colours
