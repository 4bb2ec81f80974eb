"""Pascal VOC 2012's segmentation set (Everingham 2010), with and without its background class."""

from __future__ import annotations

from pathlib import Path

from cliploc.datasets._infra.candidates import Problems
from cliploc.datasets._infra.labelled import Labelled, class_list, labelled_reader, voc_pictures
from cliploc.datasets._infra.registration import Split

SPLITS = (Split("val", "report", "1,449 pictures"), Split("train", "tune", "1,464 pictures"))
SOURCE = "host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar)"
FOLDERS = (2012, "SegmentationClass", "Segmentation")  # the year, label maps and lists
LAYOUT = """
VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg          the pictures (also: VOC2012/, or the folder itself)
VOCdevkit/VOC2012/SegmentationClass/2007_000033.png   label maps, 255 along the edges
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt      the ids
"""


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
    return class_list("voc21"), voc_pictures(root, *FOLDERS, split, reduce_zero_label=False)


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
    return class_list("voc20"), voc_pictures(root, *FOLDERS, split, reduce_zero_label=True)
