"""CVAT's XML format for images, version 1.1: one file."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement
from xml.sax.saxutils import escape

import numpy as np

from cliploc import formats
from cliploc.formats import ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures, attributes
from cliploc.images import rle
from cliploc.support.files import finite, integer, parse_xml, write_atomic, xml_again

EDGES = ("xtl", "ytl", "xbr", "ybr")
OF_SHAPES = {"points", "rle", "left", "top", "width", "height"}  # of polygons and masks


# ---------------------------------------------------------------------------------------------------------------- read
def read(root: Element) -> LabelSet:
    """The pictures of a parsed file: boxes, polygons and masks."""
    if root.tag != "annotations":
        raise ValueError(f"the XML is <{root.tag}>, not CVAT's <annotations>")
    pictures = []
    for image in root.iter("image"):
        width, height = integer(image.attrib["width"]), integer(image.attrib["height"])
        pictures.append(PictureLabels(formats.spellings(image.attrib["name"]), partial(_boxes, image), (width, height)))
    if not pictures:  # CVAT for video has tracks instead
        raise ValueError("it has no <image>: it must be CVAT for images")
    names = [name.text or "" for name in root.iterfind(".//labels/label/name")]
    return LabelSet("CVAT", tuple(pictures), names=[*dict.fromkeys(filter(None, names))], rewrite=rewrite)


def rewrite(file: Path, edits: formats.Edits) -> bytes:
    """The file after edits; a polygon or mask that was moved is a box."""
    before = file.read_bytes()
    root = parse_xml(before)
    if (listed := root.find(".//labels")) is not None:
        known = {label.findtext("name") for label in listed}
        new = [edit.name for of in edits.values() for edit in of.boxes.values() if edit and edit.name]
        for name in dict.fromkeys([*new, *(name for of in edits.values() for name, _ in of.added)]):
            if name not in known:
                SubElement(SubElement(listed, "label"), "name").text = name
    for picture, image in enumerate(root.iter("image")):
        shapes = [shape for shape in image if isinstance(shape.tag, str) and shape.tag != "tag"]
        for place, shape in enumerate(shapes):
            edit = formats.edit_of(edits, picture, place)
            if edit is None:
                image.remove(shape)
                continue
            if edit.name is not None:
                shape.set("label", edit.name)
            if edit.xyxy is not None:
                shape.tag = "box"
                for key in OF_SHAPES & shape.attrib.keys():
                    del shape.attrib[key]
                shape.attrib.update(_edges(edit.xyxy))
        for name, xyxy in edits[picture].added if picture in edits else ():
            of_box = {"label": name, "source": "manual", "occluded": "0", **_edges(xyxy), "z_order": "0"}
            SubElement(image, "box", of_box).tail = "\n"
    return xml_again(root, before)


def _edges(xyxy: Sequence[float]) -> dict[str, str]:
    return {key: f"{value:.2f}" for key, value in zip(EDGES, xyxy, strict=True)}


def _boxes(image: Element, size_wh: formats.Size, masks: bool) -> Iterator[LabelledBox]:
    for place, shape in enumerate(image, start=1):
        if shape.tag == "tag":
            continue
        kind, mask = shape.tag, None
        if kind == "box":
            x0, y0, x1, y1 = (finite(shape.attrib[key]) for key in EDGES)
            kind = "rotated box" if finite(shape.get("rotation", "0")) else kind
        elif kind == "polygon":  # "x,y;x,y;…"
            corners = shape.attrib["points"].split(";")
            points = [float(finite(value)) for corner in corners for value in corner.split(",")]
            x0, y0, x1, y1 = min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
            mask = partial(formats.polygon_runs, [points], size_wh)
        elif kind == "mask":
            x0, y0, width, height = (finite(shape.attrib[key]) for key in ("left", "top", "width", "height"))
            x1, y1 = x0 + width, y0 + height
            mask = partial(mask_runs, shape.attrib, size_wh)
        else:
            raise ValueError(f"a shape in it is {kind}, not a box")
        yield LabelledBox(str(place), shape.attrib["label"], (x0, y0, x1, y1), mask if masks else None, kind)


def mask_runs(code: Mapping[str, str], size_wh: formats.Size) -> rle.Counts:
    """The runs of a `<mask>`, which has those of its rectangle, row by row, beginning with those of 0."""
    left, top, width, height = (int(float(code[key])) for key in ("left", "top", "width", "height"))
    counts = np.array([int(number) for number in code["rle"].split(",")], np.int64)
    inside = 0 <= left < left + width <= size_wh[0] and 0 <= top < top + height <= size_wh[1]
    if not inside or not rle.fills(counts, width * height):
        raise ValueError("a mask that does not fill its rectangle, or lies outside the picture")
    return rle.placed(rle.of_runs(counts).reshape(height, width), left, top, size_wh[::-1])


# --------------------------------------------------------------------------------------------------------------- write
@formats.export
class Cvat(formats.Export):
    """CVAT's XML format for images."""

    name = "cvat"
    about = "CVAT for images 1.1, one XML file; corners in pixels with fractions"
    files = ("cvat.xml",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `cvat.xml`; boxes are corners in pixels, with fractions. A mask replaces its box."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
                labels = "".join(f"<label><name>{escape(name)}</name></label>\n" for name in settings.names)
                file.write(f"<meta><task>\n<labels>\n{labels}</labels>\n</task></meta>\n")
                for picture in pictures():
                    width, height = picture.size_wh
                    head = attributes(id=picture.number - 1, name=picture.name, width=width, height=height)
                    file.write(f"<image {head}>\n")
                    for i, (xyxy, _, label) in enumerate(formats.rows(picture)):
                        corners = attributes(**_edges(xyxy))
                        label_and_source = attributes(label=settings.names[label], source="auto", occluded=0)
                        shape = _mask(picture.masks[i]) if settings.masks else ""
                        tag = f"mask {label_and_source} {shape}" if shape else f"box {label_and_source} {corners}"
                        file.write(f'<{tag} z_order="0"></{tag.partition(" ")[0]}>\n')
                    file.write("</image>\n")
                file.write("</annotations>\n")

        write_atomic(folder / self.files[0], fill)


def _mask(code: rle.Rle) -> str:
    """A mask's rectangle and, row by row inside, its run lengths, beginning with those of 0; "" of an empty mask."""
    part, left, top = rle.part_of(code)
    if not part.size:
        return ""
    counts = ", ".join(map(str, rle.runs(part.ravel()).tolist()))
    return attributes(rle=counts, left=left, top=top, width=part.shape[1], height=part.shape[0])
