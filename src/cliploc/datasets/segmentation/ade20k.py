"""ADE20K's scene parsing benchmark (Zhou 2017): 150 classes."""

from __future__ import annotations

from pathlib import Path

from cliploc.datasets._infra.candidates import Problems
from cliploc.datasets._infra.files import needed_folder
from cliploc.datasets._infra.labelled import Labelled, class_list, labelled_reader, pictures_with_maps
from cliploc.datasets._infra.registration import Split


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
    images = needed_folder(root, [f"{one}images/{split}" for one in at], "pictures")
    maps = images.parent.parent / "annotations" / split
    pairs = ((path.stem, path, maps / f"{path.stem}.png") for path in sorted(images.glob("*.jpg")))
    return class_list("ade20k"), pictures_with_maps(pairs, reduce_zero_label=True)
