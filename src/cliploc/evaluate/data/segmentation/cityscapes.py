"""Cityscapes (Cordts 2016): streets, 19 classes."""

from pathlib import Path

from cliploc.evaluate.data._infra.candidates import Problems
from cliploc.evaluate.data._infra.files import needed_folder
from cliploc.evaluate.data._infra.labelled import Labelled, labelled_reader, pictures_with_maps
from cliploc.evaluate.data._infra.registration import Split
from cliploc.find.segmentation.protocol import class_list

PICTURE, LABELS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"


@labelled_reader(
    "cityscapes",
    title="Cityscapes",
    about="19 classes of streets",
    source="cityscapes-dataset.com (leftImg8bit, gtFine), label maps by cityscapesscripts' csCreateTrainIdLabelImgs",
    splits=(Split("val", "report", "500 pictures"), Split("train", "tune", "2,975 pictures")),
    layout="""
leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png    the pictures
gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png  label maps, 0–18, 255 for no label
""",
)
def read(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split; ids are city and picture."""
    images = needed_folder(root, [f"{at}leftImg8bit/{split}" for at in ("", "cityscapes/")], "pictures")
    maps = images.parent.parent / "gtFine" / split
    files = sorted(images.glob(f"*/*{PICTURE}"))
    ids = [path.relative_to(images).as_posix().removesuffix(PICTURE) for path in files]
    pairs = ((picture_id, path, maps / f"{picture_id}{LABELS}") for picture_id, path in zip(ids, files, strict=True))
    return class_list("cityscapes"), pictures_with_maps(pairs)
