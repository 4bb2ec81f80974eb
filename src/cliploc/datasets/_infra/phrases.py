"""Phrases as classes, for datasets in which each thing has a sentence of its own."""

from collections.abc import Iterable

from cliploc.values import ClassName

SIGNS = str.maketrans(dict.fromkeys("|~@", " "))  # which mean something in a name; see `cliploc.prompts.parse`


def plain_phrase(text: str) -> str:
    """A phrase on one line, without the signs that mean something in a name."""
    return " ".join(str(text).translate(SIGNS).split())


def phrase_classes(phrases: Iterable[str]) -> tuple[tuple[ClassName, ...], dict[str, int]]:
    """A class for each different phrase, sorted, and the label of each."""
    distinct = sorted(set(phrases))
    return tuple(ClassName(one, (one,)) for one in distinct), {one: label for label, one in enumerate(distinct)}
