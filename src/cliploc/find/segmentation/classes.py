"""The classes of segmentation sets, with the synonyms that papers on CLIP ask for."""

from collections.abc import Iterable
from importlib import resources

from cliploc.values import ClassName

BACKGROUND_WORDS = ("voc21", "coco_object")  # sets whose class list begins with words for the background
WITHOUT_BACKGROUND = {"voc20": "voc21", "context59": "context60"}  # set → the set that has its classes and a background


def class_list(name: str) -> tuple[ClassName, ...]:
    """The classes of a segmentation set with their synonyms, in the order of the labels."""
    file = f"{WITHOUT_BACKGROUND.get(name, name)}.txt"
    text = (resources.files("cliploc.find.segmentation") / "class_lists" / file).read_text(encoding="utf-8")
    first, *others = classes_of(text.splitlines())
    if name in WITHOUT_BACKGROUND:
        return tuple(others)
    if name in BACKGROUND_WORDS:
        first = ClassName("background", first.synonyms)
    return (first, *others)


def classes_of(lines: Iterable[str]) -> tuple[ClassName, ...]:
    """Classes out of lines, each a name and its synonyms, separated by ", "."""
    split = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines if line.strip()]
    return tuple(ClassName(words[0], words) for words in split)
