"""Pascal VOC's layout: XML for each picture, the pictures, their list, and masks as PNGs."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.errors import CliplocWarning, UsageError
from cliploc.formats import (
    AnnotatedPicture,
    Export,
    ExportSettings,
    FileNames,
    Pictures,
    export,
    file_suffix,
    write_list,
    write_picture,
)
from cliploc.images import rle
from cliploc.support.files import write_atomic_folder

MOST = 254  # values of a PNG between 0, the background, and 255, VOC's void
ANNOTATIONS, IMAGES, LEGEND = "Annotations", "JPEGImages", "labelmap.txt"
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
SUBSET = "trainval.txt"  # drafts are not split into training and validation


@export
class Voc(Export):
    """Pascal VOC's layout, with an XML file for each picture."""

    name = "voc"
    about = (
        "Pascal VOC's `Annotations/` with XML for each picture: whole pixels counted from 1, the last one inside the "
        "box, no scores; `JPEGImages/` with links to your pictures, or with `--copy` the pictures; `ImageSets/`"
    )
    folders = ("voc",)
    needs = frozenset({"picture_files"})

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
            names_of_files = FileNames(target)
            listed, crowded = [], []
            sets = ("Main", "Segmentation") if settings.masks else ("Main",)
            for made in (ANNOTATIONS, IMAGES, *(f"ImageSets/{part}" for part in sets)):
                (target / made).mkdir(parents=True)
            pngs = (f"{CLASSES}/*.png", f"{OBJECTS}/*.png") if settings.masks else ()
            for picture in pictures():
                endings = (f"{IMAGES}/*{file_suffix(picture)}", f"{ANNOTATIONS}/*.xml", *pngs)
                image, path, *masks = names_of_files.of(picture, *endings)
                write_picture(picture, image, settings.copies)
                listed.append((image.name, picture.name))
                shape = (picture.size_wh[1], picture.size_wh[0], 3)
                boxes = picture.detections()  # what begins in the last half of a pixel must not be rounded beyond it
                boxes.xyxy[:, :2] = np.minimum(boxes.xyxy[:, :2], np.array(picture.size_wh) - 1)
                xml = detections_to_pascal_voc(boxes, list(settings.names), image.name, shape)
                xml = xml.replace("<database>roboflow.ai<", "<database>cliploc<", 1)
                if settings.masks:
                    xml = xml.replace("<segmented>0<", "<segmented>1<", 1)
                    _write_masks(picture, *masks)
                    crowded += [picture.name] if len(picture.label) > MOST else []
                path.write_text(xml, encoding="utf-8")
            for one_set in sets:
                ids = "".join(f"{Path(file).stem}\n" for file, _ in listed)
                (target / "ImageSets" / one_set / SUBSET).write_text(ids, encoding="utf-8")
            # Colons separate the fields of a line.
            labels = ["background", *(name.replace(":", "_") for name in settings.names)]
            legend = zip(labels, palette(len(labels)).tolist(), strict=True)
            lines = [f"{label}:{','.join(map(str, colour))}::" for label, colour in legend]
            text = "\n".join(["# label:color_rgb:parts:actions", *lines, ""])
            (target / LEGEND).write_text(text, encoding="utf-8")
            write_list(target, listed)
            if crowded:
                others = f" and {len(crowded) - 1:,} more pictures" if len(crowded) > 1 else ""
                warnings.warn(
                    f"voc: {crowded[0]}{others}: {OBJECTS}/ numbers only the best {MOST} objects of a picture, as its "
                    "pixels are bytes; the others are void there: write coco too, which has all masks",
                    CliplocWarning,
                    stacklevel=2,
                )

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


def palette(count: int = 256) -> npt.NDArray[np.uint8]:
    """The colours `[count, 3]` of VOC's development kit (`VOClabelcolormap`): a value's bits, dealt to R, G and B."""
    values = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= (((values >> (3 * level + channel)) & 1) << (7 - level)).astype(np.uint8)
    return colours
