"""COCO's JSON format of boxes and masks (Lin et al. 2014), with a score for each box."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cliploc import formats
from cliploc.formats import Box, ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures, number
from cliploc.images import rle
from cliploc.support.files import parse_json, write_atomic

Id = int | str


def order(one: Id) -> tuple[bool, Id]:
    """A key to sort ids by: numbers before texts."""
    return isinstance(one, str), one


# ---------------------------------------------------------------------------------------------------------------- read
class Category(msgspec.Struct):
    """A class; of LVIS with synonyms."""

    id: Id
    name: str
    synonyms: list[str] = []


class CocoImage(msgspec.Struct):
    """A picture; the last two are of LVIS."""

    id: Id
    file_name: str = ""
    width: int | None = None
    height: int | None = None
    coco_url: str = ""
    neg_category_ids: list[Id] = []

    @property
    def size_wh(self) -> formats.Size | None:
        """None: the file does not say it."""
        return (self.width, self.height) if self.width and self.height else None


class Annotation(msgspec.Struct):
    """A thing in a picture."""

    image_id: Id
    category_id: Id
    id: Id | None = None
    bbox: list[float] | None = None
    segmentation: Any = None
    area: float | None = None
    iscrowd: int = 0

    def __post_init__(self) -> None:
        if self.bbox and len(self.bbox) != 4:
            raise ValueError(f"expected a bbox of four numbers, got {len(self.bbox)}")

    @property
    def xyxy(self) -> Box:
        """The bbox, x, y, width and height from 0, as edges."""
        if not self.bbox:
            raise ValueError("a shape in it has no box")
        x, y, width, height = self.bbox
        return x, y, x + width, y + height


class Document(msgspec.Struct):
    """A file of instances."""

    images: list[CocoImage]
    annotations: list[Annotation]
    categories: list[Category]


def read_document(content: Any) -> Document:
    """A parsed JSON file in COCO's format; a `ValueError` says where it is not."""
    return msgspec.convert(content, Document, strict=False)


def read(content: Any) -> LabelSet:
    """The pictures of a parsed file; crowds are boxes, too."""
    document = read_document(content)
    names = {category.id: category.name for category in document.categories}
    if len({image.id for image in document.images}) < len(document.images):
        raise ValueError("several of its images have the same id")
    of_image: dict[Id, list[Annotation]] = defaultdict(list)
    for annotation in document.annotations:
        of_image[annotation.image_id].append(annotation)

    def boxes(image: Id, size_wh: formats.Size, masks: bool) -> Iterator[LabelledBox]:
        for place, of in enumerate(of_image[image], start=1):
            mask = partial(mask_runs, of.segmentation, size_wh) if masks and of.segmentation else None
            yield LabelledBox(str(of.id or place), names[of.category_id], of.xyxy, mask)

    pictures = [
        PictureLabels(formats.spellings(image.file_name), partial(boxes, image.id), image.size_wh)
        for image in document.images
    ]
    return LabelSet("COCO", tuple(pictures), names=[one.name for one in document.categories], rewrite=rewrite)


def rewrite(file: Path, edits: formats.Edits) -> bytes:
    """The file after edits: of a moved box the segmentation goes, new ones get the next ids."""
    before = file.read_bytes()
    content = parse_json(before)
    document = read_document(content)
    images = {image.id: place for place, image in enumerate(document.images)}
    annotations, categories = content["annotations"], content["categories"]
    ids = {category.name: raw["id"] for category, raw in zip(document.categories, categories, strict=True)}
    seen, kept = Counter[int | None](), []

    def category(name: str) -> Any:
        if name not in ids:
            ids[name] = _next_id(categories)
            categories.append({"id": ids[name], "name": name})
        return ids[name]

    for raw, annotation in zip(annotations, document.annotations, strict=True):
        image = images.get(annotation.image_id)
        edit = formats.Edit() if image is None else formats.edit_of(edits, image, seen[image])
        seen[image] += 1
        if edit is None:
            continue
        if edit.name is not None:
            raw["category_id"] = category(edit.name)
        if edit.xyxy is not None:
            raw.pop("segmentation", None)
            raw.update(_box_of(edit.xyxy))
        kept.append(raw)
    number = _next_id(annotations)
    for image, of_picture in edits.items():
        for name, xyxy in of_picture.added:
            of_box = {"image_id": content["images"][image]["id"], "category_id": category(name), **_box_of(xyxy)}
            kept.append({"id": number, **of_box, "iscrowd": 0})
            number += 1
    content["annotations"] = kept
    return formats.json_again(content, before)


def _next_id(entries: Iterable[Mapping[str, Any]]) -> int:
    """One more than the greatest number among ids."""
    return max((int(one["id"]) for one in entries if str(one.get("id", "")).isdecimal()), default=0) + 1


def _box_of(xyxy: Box) -> dict[str, Any]:
    x0, y0, x1, y1 = xyxy
    bbox = [number(value) for value in (x0, y0, x1 - x0, y1 - y0)]
    return {"bbox": bbox, "area": number(bbox[2] * bbox[3])}


def mask_runs(segmentation: Any, size_wh: formats.Size) -> rle.Counts:
    """The runs of an annotation's mask: polygons, or run lengths, compressed or not."""
    if not isinstance(segmentation, dict):
        return formats.polygon_runs(segmentation, size_wh)
    if list(segmentation["size"]) != [*size_wh[::-1]]:
        raise ValueError(f"a mask of height and width {segmentation['size']}, not {[*size_wh[::-1]]}")
    counts = rle.counts_of(segmentation)
    return rle.of_switches(counts.cumsum(), int(counts.sum()))  # without empty runs


# --------------------------------------------------------------------------------------------------------------- write
@formats.export
class Coco(formats.Export):
    """COCO's JSON format, one file."""

    name = "coco"
    about = "COCO's JSON: x, y, width, height in pixels with fractions; `score` of boxes, `state` of pictures"
    files = ("coco.json",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `coco.json`; ids count from 1."""
        from supervision.dataset.formats.coco import classes_to_coco_categories, detections_to_coco_annotations

        def images() -> Iterator[dict[str, Any]]:
            for picture in pictures():
                width, height = picture.size_wh
                image = {"id": picture.number, "file_name": picture.name, "width": width, "height": height}
                yield {**image, "state": picture.state}

        def annotations() -> Iterator[dict[str, Any]]:
            next_id = 1
            for picture in pictures():
                written, next_id = detections_to_coco_annotations(picture.detections(), picture.number, next_id)
                for i, (box, score) in enumerate(zip(written, picture.score, strict=True)):
                    bbox = [number(value) for value in box["bbox"]]
                    shape = {"area": number(bbox[2] * bbox[3])}
                    if settings.masks:
                        shape = _segmentation(picture.masks[i])
                    yield {**box, "bbox": bbox, **shape, "score": number(score)}

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.write(f'{{"info": {json.dumps({"description": f"draft boxes by cliploc, {settings.model}"})},\n')
                file.write(f'"categories": {json.dumps(classes_to_coco_categories(list(settings.names)))},\n"images": ')
                formats.json_list(file, images())
                file.write(',\n"annotations": ')
                formats.json_list(file, annotations())
                file.write("}\n")

        write_atomic(folder / self.files[0], fill)


def _segmentation(code: rle.Rle) -> dict[str, Any]:
    """A mask and its area; COCO's polygons know no holes, so that a mask with holes is run lengths."""
    from cliploc.boxes.masks import outlines  # its package needs torch

    area = int(rle.counts_of(code)[1::2].sum())
    part, left, top = rle.part_of(code)
    rings = outlines(part)
    if not rings or any(ring.hole for ring in rings):
        return {"segmentation": dict(code), "area": area}
    corner = np.array([left, top], np.float32)
    return {"segmentation": [(ring.points + corner).ravel().tolist() for ring in rings], "area": area}
