"""CUB-200-2011 (Wah et al. 2011): birds, one per picture, in the official text files.

A box is x, y, width, height with x and y from 0: edges x, y, x + width, y + height. The WSOL evaluation's metadata have
the same edges (limited to width − 1 and height − 1 of the picture).
"""

from pathlib import Path

from cliploc.evaluate.data._base import Annotations, Candidate, Problems, Split, numbers, reader, words
from cliploc.values import ClassName


@reader(
    "cub",
    title="CUB-200-2011",
    about="11,788 pictures of 200 kinds of birds, one box each",
    source="vision.caltech.edu/datasets/cub_200_2011 (CUB_200_2011.tgz)",
    splits=(
        Split("test", "report", "5,794 pictures"),
        Split("train", "tune", "5,994 pictures; the WSOL protocol itself tunes on CUBV2 instead"),
    ),
    layout="""
CUB_200_2011/images.txt               IMAGE_ID PATH    (or all below the root)
CUB_200_2011/bounding_boxes.txt       IMAGE_ID X Y WIDTH HEIGHT
CUB_200_2011/image_class_labels.txt   IMAGE_ID CLASS_ID
CUB_200_2011/train_test_split.txt     IMAGE_ID 1 for train, 0 for test
CUB_200_2011/classes.txt              CLASS_ID 001.Black_footed_Albatross
CUB_200_2011/images/PATH              the pictures
""",
)
def read(root: Path, split: str, problems: Problems) -> Annotations:  # noqa: ARG001 - the samples' checks find all
    """Reads a split. Sample ids are paths below images/, as in the WSOL metadata."""
    top = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    folders = [folder for _, folder in words(top / "classes.txt", 2)]
    names = [folder.split(".", 1)[-1].replace("_", " ") for folder in folders]
    classes = tuple(ClassName(name, (name,), folder) for name, folder in zip(names, folders, strict=True))
    boxes = {
        image: (x, y, x + width, y + height)
        for image, (x, y, width, height) in numbers(top / "bounding_boxes.txt", 4, float, " ")
    }
    labels = {image: int(number) - 1 for image, (number,) in numbers(top / "image_class_labels.txt", 1, int, " ")}
    in_train = {image: bool(flag) for image, (flag,) in numbers(top / "train_test_split.txt", 1, int, " ")}
    candidates = [
        Candidate(path, top / "images" / path, labels.get(image, -1), [boxes[image]] if image in boxes else [])
        for image, path in words(top / "images.txt", 2)
        if in_train.get(image) == (split == "train")
    ]
    return Annotations(classes, candidates)
