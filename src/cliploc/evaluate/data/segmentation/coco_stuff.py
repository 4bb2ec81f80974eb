"""COCO-Stuff 164k (Caesar 2018): COCO's pictures with 80 classes of things and 91 of stuff."""

from pathlib import Path

from cliploc.evaluate.data._infra.candidates import Problems
from cliploc.evaluate.data._infra.files import needed_folder
from cliploc.evaluate.data._infra.labelled import Labelled, labelled_reader, pictures_or_maps
from cliploc.evaluate.data._infra.registration import Split
from cliploc.find.segmentation.protocol import class_list

SUFFIX = "_labelTrainIds.png"


@labelled_reader(
    "coco_stuff",
    title="COCO-Stuff 164k",
    about="171 classes of things and stuff",
    source="cocodataset.org, github.com/nightrome/cocostuff (stuffthingmaps), and mmsegmentation's coco_stuff164k.py",
    splits=(Split("val2017", "report", "5,000 pictures"), Split("train2017", "tune", "118,287 pictures")),
    layout="""
images/val2017/000000000139.jpg                        the pictures (all below coco_stuff164k/, or the folder itself)
annotations/val2017/000000000139_labelTrainIds.png     label maps, 0–170, 255 for no label
""",
)
def read(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split."""
    maps = needed_folder(root, [f"{at}annotations/{split}" for at in ("", "coco_stuff164k/")], "label maps")
    return class_list("coco_stuff"), pictures_or_maps(maps.parent.parent / "images" / split, maps, SUFFIX)
