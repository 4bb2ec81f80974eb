"""Pascal VOC 2012's segmentation set (Everingham 2010), and Pascal Context (Mottaghi 2014): 59 classes or 459.

Sets with a background, as label 0, are also there without it: then the background's pixels do not count.
"""

from dataclasses import dataclass
from pathlib import Path

from cliploc.evaluate.data._infra.candidates import Problems
from cliploc.evaluate.data._infra.files import needed_folder
from cliploc.evaluate.data._infra.labelled import Labelled, labelled_reader, listed, pictures_with_maps
from cliploc.evaluate.data._infra.registration import Split
from cliploc.find.segmentation.protocol import class_list


@dataclass(frozen=True)
class _Challenge:
    """Where the pictures of a year's challenge, their label maps and the lists of their ids are."""

    year: int
    maps: str
    lists: str
    source: str
    splits: tuple[Split, ...]
    layout: str

    def register(self, name: str, title: str, about: str, reduce_zero_label: bool) -> None:
        """Registers a reader of its pictures with this list of classes."""

        @labelled_reader(name, title=title, about=about, source=self.source, splits=self.splits, layout=self.layout)
        def read(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
            places = [f"{at}JPEGImages" for at in (f"VOCdevkit/VOC{self.year}/", f"VOC{self.year}/", "")]
            images = needed_folder(root, places, "pictures")
            base = images.parent
            ids = listed(base / "ImageSets" / self.lists / f"{split}.txt")
            pairs = [
                (picture_id, images / f"{picture_id}.jpg", base / self.maps / f"{picture_id}.png") for picture_id in ids
            ]
            return class_list(name), pictures_with_maps(pairs, reduce_zero_label)


VOC = _Challenge(
    2012,
    "SegmentationClass",
    "Segmentation",
    source="host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar)",
    splits=(Split("val", "report", "1,449 pictures"), Split("train", "tune", "1,464 pictures")),
    layout="""
VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg          the pictures (also: VOC2012/, or the folder itself)
VOCdevkit/VOC2012/SegmentationClass/2007_000033.png   label maps, 255 along the edges
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt      the ids
""",
)
CONTEXT = _Challenge(
    2010,
    "SegmentationClassContext",
    "SegmentationContext",
    source="VOC 2010's pictures, and label maps made with mmsegmentation's tools/dataset_converters/pascal_context.py",
    splits=(Split("val", "report", "5,104 pictures"), Split("train", "tune", "4,996 pictures")),
    layout="""
VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg                the pictures (also: VOC2010/, or the folder itself)
VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png  label maps, 0 for the background
VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt     the ids
""",
)


@labelled_reader(
    "context459",
    title="Pascal Context, 459 classes",
    about="459 classes of things and stuff; every pixel counts",
    source="VOC 2010's pictures, and label maps made with CAT-Seg's datasets/prepare_pascal_context_459.py",
    splits=(Split("val", "report", "5,104 pictures"),),
    layout="""
VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg                       the pictures (also: VOC2010/, or the folder itself)
VOCdevkit/VOC2010/annotations_detectron2/pc459_val/2008_000002.tif label maps of 16 bits, 0–458
""",
)
def read_459(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads the pictures that have a label map."""
    base = needed_folder(root, ["VOCdevkit/VOC2010/JPEGImages", "VOC2010/JPEGImages", "JPEGImages"], "pictures").parent
    maps = sorted((base / f"annotations_detectron2/pc459_{split}").glob("*.tif"))
    return class_list("context459"), pictures_with_maps(
        (path.stem, base / f"JPEGImages/{path.stem}.jpg", path) for path in maps
    )


WITHOUT = "the same pictures without the background, whose pixels do not count"
VOC.register("voc21", "Pascal VOC 2012, 21 classes", "20 classes of things and the background", False)
VOC.register("voc20", "Pascal VOC 2012, 20 classes", WITHOUT, True)
CONTEXT.register("context60", "Pascal Context, 60 classes", "59 classes of things and stuff, and the background", False)
CONTEXT.register("context59", "Pascal Context, 59 classes", WITHOUT, True)
