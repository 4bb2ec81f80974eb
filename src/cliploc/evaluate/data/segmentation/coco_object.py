"""COCO-Object: COCO's 80 classes of things, and everything else as the background.

The label maps are those that SCLIP's cvt_coco_object.py makes of COCO-Stuff's, or they are drawn here from COCO's own
annotations: every pixel inside a thing's polygons or a crowd's run lengths has its class. Where things overlap, the
smaller one is on top, of equal ones the later; COCO-Stuff's maps may differ there.
"""

from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data import _base as base
from cliploc.evaluate.data._labelled import outlines, pictures_with_maps
from cliploc.evaluate.data.coco import things_in
from cliploc.find.segmentation.protocol import class_list
from cliploc.formats import coco
from cliploc.images.rle import Outline, outlines_of
from cliploc.runs.picture_files import LabelledPicture

SUFFIX = "_instanceTrainIds.png"


@base.labelled_reader(
    "coco_object",
    title="COCO-Object",
    about="80 classes of things and the background",
    source="cocodataset.org (2017 val images, 2017 train/val annotations)",
    splits=base.OF_COCO,
    layout="""
annotations/instances_val2017.json                     polygons, from which label maps are drawn
val2017/000000000139.jpg                               the pictures (also: images/val2017/)
annotations/val2017/000000000139_instanceTrainIds.png  or, instead of the JSON: label maps, 0 for the background
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Labelled:
    """Reads a split: label maps where there are any, else polygons."""
    classes = class_list("coco_object")
    images = base.needed_folder(root, [split, f"images/{split}"], "pictures")
    maps = base.first_folder(root, [f"annotations/{split}"])
    if maps is not None and any(maps.glob(f"*{SUFFIX}")):
        place = images.relative_to(root).as_posix()
        return classes, pictures_with_maps(root, f"{place}/*.jpg", f"annotations/{split}/*{SUFFIX}")
    path = root / "annotations" / f"instances_{split}.json"
    missing = f"expected {path}, or label maps in annotations/{split}; found neither: {base.HELP}"
    document = base.coco_document(path, missing=missing)
    if len(document.categories) != len(classes) - 1 or any(image.size_wh is None for image in document.images):
        raise UsageError(f"expected COCO's 80 categories and the sizes of pictures in {path}: download it again")
    return classes, _of_polygons(document, images, problems)


def _of_polygons(document: coco.Document, folder: Path, problems: base.Problems) -> list[LabelledPicture]:
    """The pictures of a file of instances, each with its outlines; pictures without a thing are background only."""
    categories = sorted((category.id for category in document.categories), key=coco.order)
    label_of = {category: label for label, category in enumerate(categories, start=1)}
    images = {image.id: image for image in document.images}
    of_picture: dict[coco.Id, list[tuple[float, int, int, tuple[Outline, ...]]]] = {image: [] for image in images}
    for place, (thing, source) in enumerate(things_in(document, label_of, problems)):
        try:
            shape = outlines_of(thing.segmentation, images[thing.image_id].size_wh or (0, 0))
        except ValueError as error:
            problems.add("broken mask", source, f"{error}: left out")
            continue
        of_picture[thing.image_id].append((-(thing.area or 0), place, label_of[thing.category_id], shape))
    ids = base.picture_ids(image.file_name for image in images.values())
    pictures = []
    for image in sorted(images.values(), key=lambda image: coco.order(image.id)):
        size, name = image.size_wh or (0, 0), image.file_name
        drawn = tuple((label, shape) for _, _, label, shape in sorted(of_picture[image.id]))
        pictures.append(LabelledPicture(ids[name], folder / name, size, outlines(size, drawn)))
    return pictures
