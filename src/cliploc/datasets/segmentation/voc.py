"""Pascal VOC 2012's segmentation set (Everingham 2010), with and without its background class."""

from __future__ import annotations

from pathlib import Path

from cliploc.datasets._infra.candidates import Problems
from cliploc.datasets._infra.files import needed_folder
from cliploc.datasets._infra.labelled import (
    Labelled,
    LabelledPicture,
    class_list,
    labelled_reader,
    listed,
    pictures_with_maps,
)
from cliploc.datasets._infra.registration import Split

SPLITS = (Split("val", "report", "1,449 pictures"), Split("train", "tune", "1,464 pictures"))
SOURCE = "host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar)"
LAYOUT = """
VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg          the pictures (also: VOC2012/, or the folder itself)
VOCdevkit/VOC2012/SegmentationClass/2007_000033.png   label maps, 255 along the edges
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt      the ids
"""


def _pictures(root: Path, split: str, reduce_zero_label: bool) -> list[LabelledPicture]:
    images = needed_folder(root, [f"{at}JPEGImages" for at in ("VOCdevkit/VOC2012/", "VOC2012/", "")], "pictures")
    base = images.parent
    ids = listed(base / "ImageSets" / "Segmentation" / f"{split}.txt")
    pairs = ((one, images / f"{one}.jpg", base / "SegmentationClass" / f"{one}.png") for one in ids)
    return pictures_with_maps(pairs, reduce_zero_label)


@labelled_reader(
    "voc21",
    title="Pascal VOC 2012, 21 classes",
    about="20 classes of things and the background",
    source=SOURCE,
    splits=SPLITS,
    layout=LAYOUT,
)
def read_voc21(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split; label 0 is the background."""
    return class_list("voc21"), _pictures(root, split, reduce_zero_label=False)


@labelled_reader(
    "voc20",
    title="Pascal VOC 2012, 20 classes",
    about="the same pictures without the background, whose pixels do not count",
    source=SOURCE,
    splits=SPLITS,
    layout=LAYOUT,
)
def read_voc20(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split; the background does not count."""
    return class_list("voc20"), _pictures(root, split, reduce_zero_label=True)
