"""Pascal Context (Mottaghi 2014) with the 59 most frequent classes, with and without the background."""

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

SPLITS = (Split("val", "report", "5,104 pictures"), Split("train", "tune", "4,996 pictures"))
SOURCE = "VOC 2010's pictures, and label maps made with mmsegmentation's tools/dataset_converters/pascal_context.py"
LAYOUT = """
VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg                the pictures (also: VOC2010/, or the folder itself)
VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png  label maps, 0 for the background
VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt     the ids
"""


def _pictures(root: Path, split: str, reduce_zero_label: bool) -> list[LabelledPicture]:
    images = needed_folder(root, [f"{at}JPEGImages" for at in ("VOCdevkit/VOC2010/", "VOC2010/", "")], "pictures")
    base = images.parent
    ids = listed(base / "ImageSets" / "SegmentationContext" / f"{split}.txt")
    pairs = ((one, images / f"{one}.jpg", base / "SegmentationClassContext" / f"{one}.png") for one in ids)
    return pictures_with_maps(pairs, reduce_zero_label)


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
    return class_list("context60"), _pictures(root, split, reduce_zero_label=False)


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
    return class_list("context59"), _pictures(root, split, reduce_zero_label=True)
