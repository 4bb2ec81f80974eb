"""Phrases as classes, for datasets in which each thing has a sentence of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from cliploc.datasets._infra.candidates import Box, Candidate, Size
from cliploc.datasets._infra.registration import Found
from cliploc.values import ClassName

SIGNS = str.maketrans(dict.fromkeys("|~@", " "))  # which mean something in a name; see `cliploc.prompts.parse`
PhraseRow: TypeAlias = tuple[str, str, Path, list[Box], Size]  # sample's id, phrase, picture, boxes, picture's size


def plain_phrase(text: str) -> str:
    """A phrase on one line, without the signs that mean something in a name."""
    return " ".join(str(text).translate(SIGNS).split())


def found_phrases(rows: Sequence[PhraseRow]) -> Found:
    """The candidates of these rows, with a class for each different phrase, sorted."""
    phrases = sorted({phrase for _, phrase, *_ in rows})
    labels = {phrase: label for label, phrase in enumerate(phrases)}
    candidates = [Candidate(name, path, labels[phrase], boxes, size) for name, phrase, path, boxes, size in rows]
    return Found(tuple(ClassName(phrase, (phrase,)) for phrase in phrases), candidates)
