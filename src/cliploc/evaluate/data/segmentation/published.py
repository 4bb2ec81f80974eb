"""The sets whose label maps are files beside the pictures: ADE20K, Cityscapes, COCO-Stuff, Pascal VOC and Context.

Sets with a background, as label 0, are also there without it: then the background's pixels do not count.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cliploc.evaluate.data._base import OF_COCO, Labelled, Problems, Split, labelled_reader, needed_folder, words
from cliploc.evaluate.data._labelled import ids_in, pictures_with_maps
from cliploc.find.segmentation.protocol import class_list


def files(
    name: str,
    title: str,
    about: str,
    images: str,
    maps: str,
    ids: Callable[[Path, str], Iterable[str]] | None = None,  # of the first place with pictures; None: all files
    places: tuple[str, ...] = ("",),
    reduce_zero_label: bool = False,
    without: tuple[str, str] | None = None,  # name and title of the same set without its background
    **facts: Any,
) -> None:
    """Registers a set of files; in `images` and `maps` is `#` for the split and `*` for a picture's id."""

    @labelled_reader(name, title=title, about=about, **facts)
    def read(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
        images_of, maps_of = (text.replace("#", split) for text in (images, maps))
        folder = images_of.split("*")[0]
        needed_folder(root, [place + folder for place in places], "pictures")
        base = next(root / place for place in places if (root / place / folder).is_dir())
        chosen = None if ids is None else ids(base, split)
        return class_list(name), pictures_with_maps(base, images_of, maps_of, chosen, reduce_zero_label)

    if without is not None:
        about = "the same pictures without the background, whose pixels do not count"
        files(*without, about, images, maps, ids, places, reduce_zero_label=True, **facts)


files(
    "ade20k",
    "ADE20K, 150 classes",
    "150 classes of things and stuff",
    "images/#/*.jpg",
    "annotations/#/*.png",
    places=("", "ADEChallengeData2016/", "ade/ADEChallengeData2016/"),
    reduce_zero_label=True,
    source="data.csail.mit.edu/places/ADEchallenge (ADEChallengeData2016.zip)",
    splits=(Split("validation", "report", "2,000 pictures"), Split("training", "tune", "20,210 pictures")),
    layout="""
images/validation/ADE_val_00000001.jpg         the pictures (all below ADEChallengeData2016/, or the folder itself)
annotations/validation/ADE_val_00000001.png    label maps, 1–150, 0 for no label
""",
)
files(
    "ade847",
    "ADE20K, 847 classes",
    "847 classes of things, parts and stuff; the classes that the full set annotates",
    "images_detectron2/#/*.jpg",
    "annotations_detectron2/#/*.tif",
    places=("", "ADE20K_2021_17_01/"),
    source="groups.csail.mit.edu/vision/datasets/ADE20K (ADE20K_2021_17_01), made with CAT-Seg's "
    "datasets/prepare_ade20k_full.py",
    splits=(Split("validation", "report", "2,000 pictures"),),
    layout="""
images_detectron2/validation/ADE_val_00000001.jpg       the pictures (all below ADE20K_2021_17_01/, or the folder)
annotations_detectron2/validation/ADE_val_00000001.tif  label maps of 16 bits, 0–846, 65535 for no label
""",
)
files(
    "cityscapes",
    "Cityscapes",
    "19 classes of streets",
    "leftImg8bit/#/*_leftImg8bit.png",
    "gtFine/#/*_gtFine_labelTrainIds.png",
    places=("", "cityscapes/"),
    source="cityscapes-dataset.com (leftImg8bit, gtFine), label maps by cityscapesscripts' csCreateTrainIdLabelImgs",
    splits=(Split("val", "report", "500 pictures"), Split("train", "tune", "2,975 pictures")),
    layout="""
leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png    the pictures
gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png  label maps, 0–18, 255 for no label
""",
)
files(
    "coco_stuff",
    "COCO-Stuff 164k",
    "171 classes of things and stuff",
    "images/#/*.jpg",
    "annotations/#/*_labelTrainIds.png",
    places=("", "coco_stuff164k/"),
    source="cocodataset.org, github.com/nightrome/cocostuff (stuffthingmaps), and mmsegmentation's coco_stuff164k.py",
    splits=OF_COCO,
    layout="""
images/val2017/000000000139.jpg                        the pictures (all below coco_stuff164k/, or the folder itself)
annotations/val2017/000000000139_labelTrainIds.png     label maps, 0–170, 255 for no label
""",
)


def _listed(lists: str) -> Callable[[Path, str], list[str]]:
    """The ids in a list of a year's challenge."""
    return lambda base, split: [text.split()[0] for [text] in words(base / "ImageSets" / lists / f"{split}.txt", 1)]


files(
    "voc21",
    "Pascal VOC 2012, 21 classes",
    "20 classes of things and the background",
    "JPEGImages/*.jpg",
    "SegmentationClass/*.png",
    _listed("Segmentation"),
    ("VOCdevkit/VOC2012/", "VOC2012/", ""),
    without=("voc20", "Pascal VOC 2012, 20 classes"),
    source="host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar)",
    splits=(Split("val", "report", "1,449 pictures"), Split("train", "tune", "1,464 pictures")),
    layout="""
VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg          the pictures (also: VOC2012/, or the folder itself)
VOCdevkit/VOC2012/SegmentationClass/2007_000033.png   label maps, 255 along the edges
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt      the ids
""",
)
files(
    "context60",
    "Pascal Context, 60 classes",
    "59 classes of things and stuff, and the background",
    "JPEGImages/*.jpg",
    "SegmentationClassContext/*.png",
    _listed("SegmentationContext"),
    ("VOCdevkit/VOC2010/", "VOC2010/", ""),
    without=("context59", "Pascal Context, 59 classes"),
    source="VOC 2010's pictures, and label maps made with mmsegmentation's tools/dataset_converters/pascal_context.py",
    splits=(Split("val", "report", "5,104 pictures"), Split("train", "tune", "4,996 pictures")),
    layout="""
VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg                the pictures (also: VOC2010/, or the folder itself)
VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png  label maps, 0 for the background
VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt     the ids
""",
)
files(
    "context459",
    "Pascal Context, 459 classes",
    "459 classes of things and stuff; every pixel counts",
    "JPEGImages/*.jpg",
    "annotations_detectron2/pc459_#/*.tif",
    lambda base, split: ids_in(base / f"annotations_detectron2/pc459_{split}", ".tif"),
    ("VOCdevkit/VOC2010/", "VOC2010/", ""),
    source="VOC 2010's pictures, and label maps made with CAT-Seg's datasets/prepare_pascal_context_459.py",
    splits=(Split("val", "report", "5,104 pictures"),),
    layout="""
VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg                       the pictures (also: VOC2010/, or the folder itself)
VOCdevkit/VOC2010/annotations_detectron2/pc459_val/2008_000002.tif label maps of 16 bits, 0–458
""",
)
