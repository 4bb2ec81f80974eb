"""ADE20K (Zhou 2017): the 150 classes of its scene parsing benchmark, and 847."""

from pathlib import Path

from cliploc.evaluate.data._infra.candidates import Problems
from cliploc.evaluate.data._infra.files import needed_folder
from cliploc.evaluate.data._infra.labelled import Labelled, labelled_reader, pictures_with_maps
from cliploc.evaluate.data._infra.registration import Split
from cliploc.find.segmentation.protocol import class_list


@labelled_reader(
    "ade20k",
    title="ADE20K, 150 classes",
    about="150 classes of things and stuff",
    source="data.csail.mit.edu/places/ADEchallenge (ADEChallengeData2016.zip)",
    splits=(Split("validation", "report", "2,000 pictures"), Split("training", "tune", "20,210 pictures")),
    layout="""
images/validation/ADE_val_00000001.jpg         the pictures (all below ADEChallengeData2016/, or the folder itself)
annotations/validation/ADE_val_00000001.png    label maps, 1–150, 0 for no label
""",
)
def read(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads a split; label 0 does not count."""
    at = ("", "ADEChallengeData2016/", "ade/ADEChallengeData2016/")
    images = needed_folder(root, [f"{prefix}images/{split}" for prefix in at], "pictures")
    maps = images.parent.parent / "annotations" / split
    pairs = ((path.stem, path, maps / f"{path.stem}.png") for path in sorted(images.glob("*.jpg")))
    return class_list("ade20k"), pictures_with_maps(pairs, reduce_zero_label=True)


@labelled_reader(
    "ade847",
    title="ADE20K, 847 classes",
    about="847 classes of things, parts and stuff; the classes that the whole set annotates",
    source="groups.csail.mit.edu/vision/datasets/ADE20K (ADE20K_2021_17_01), made with CAT-Seg's "
    "datasets/prepare_ade20k_full.py",
    splits=(Split("validation", "report", "2,000 pictures"),),
    layout="""
images_detectron2/validation/ADE_val_00000001.jpg       the pictures (all below ADE20K_2021_17_01/, or the folder)
annotations_detectron2/validation/ADE_val_00000001.tif  label maps of 16 bits, 0–846, 65535 for no label
""",
)
def read_847(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads the split; label 65535 does not count."""
    images = needed_folder(root, [f"{at}images_detectron2/{split}" for at in ("", "ADE20K_2021_17_01/")], "pictures")
    maps = images.parent.parent / "annotations_detectron2" / split
    pairs = ((path.stem, path, maps / f"{path.stem}.tif") for path in sorted(images.glob("*.jpg")))
    return class_list("ade847"), pictures_with_maps(pairs)
