"""Pascal Context (Mottaghi 2014) with the 59 most frequent classes, with and without the background."""

from __future__ import annotations

from pathlib import Path

from cliploc.datasets._infra.candidates import Problems
from cliploc.datasets._infra.labelled import Labelled, class_list, labelled_reader, voc_pictures
from cliploc.datasets._infra.registration import Split

SPLITS = (Split("val", "report", "5,104 pictures"), Split("train", "tune", "4,996 pictures"))
SOURCE = "VOC 2010's pictures, and label maps made with mmsegmentation's tools/dataset_converters/pascal_context.py"
FOLDERS = (2010, "SegmentationClassContext", "SegmentationContext")  # the year, label maps and lists
LAYOUT = """
VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg                the pictures (also: VOC2010/, or the folder itself)
VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png  label maps, 0 for the background
VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt     the ids
"""


@labelled_reader(
    "context60",
    title="Pascal Context, 60 classes",
    about="59 classes of things and stuff, and the background",
    source=SOURCE,
    splits=SPLITS,
    layout=LAYOUT,
)
def read_context60(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split; label 0 is the background."""
    return class_list("context60"), voc_pictures(root, *FOLDERS, split, reduce_zero_label=False)


@labelled_reader(
    "context59",
    title="Pascal Context, 59 classes",
    about="the same pictures without the background, whose pixels do not count",
    source=SOURCE,
    splits=SPLITS,
    layout=LAYOUT,
)
def read_context59(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split; the background does not count."""
    return class_list("context59"), voc_pictures(root, *FOLDERS, split, reduce_zero_label=True)
