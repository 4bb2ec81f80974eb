"""ILSVRC's 1,000 classes as a dataset's classes."""

from __future__ import annotations

from cliploc.prompts import imagenet_classes
from cliploc.values import ClassName


def imagenet_class_names() -> tuple[ClassName, ...]:
    """ILSVRC's classes in the order of their labels, with the names and synonyms that prompts use."""
    return tuple(ClassName(one.name, (one.name, *one.synonyms), one.wnid) for one in imagenet_classes())
