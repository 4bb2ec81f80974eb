"""ILSVRC's 1,000 classes as classes of a dataset."""

from __future__ import annotations

from cliploc.prompts import imagenet_classes
from cliploc.values import ClassName


def imagenet_class_names() -> tuple[ClassName, ...]:
    """In the order of their labels; names and synonyms are those that prompts are made of."""
    return tuple(ClassName(one.name, (one.name, *one.synonyms), one.wnid) for one in imagenet_classes())
