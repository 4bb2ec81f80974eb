"""Selects classes and samples."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable, Sequence

from cliploc.config import is_whole, short
from cliploc.datasets._infra.candidates import Candidate, Checker
from cliploc.errors import UsageError
from cliploc.values import ClassName, Sample


def labels_of(asked: Iterable[str], classes: Sequence[ClassName]) -> set[int]:
    """Labels of the classes with these names, synonyms or WordNet ids; case does not matter."""
    found = set()
    for text in asked:
        wanted = " ".join(text.split()).casefold()
        by_name = [i for i, one in enumerate(classes) if wanted in (one.name.casefold(), one.wnid.casefold())]
        labels = by_name or [i for i, one in enumerate(classes) if wanted in map(str.casefold, one.synonyms)]
        if not labels:
            near = difflib.get_close_matches(wanted, [one.name for one in classes], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"unknown class {text!r}: {hint}expected a class's name, synonym or WordNet id")
        if len(labels) > 1:
            meant = " or ".join(f"{classes[i].wnid} {classes[i].name}".strip() for i in labels)
            raise UsageError(f"{text!r} fits {len(labels)} classes: give one of them, {meant}")
        found.add(labels[0])
    return found


def refuse_counts(limit: int | None, sample: int | None) -> None:
    """Refuses invalid numbers of samples, before anything is read."""
    if limit is not None and sample is not None:
        raise UsageError("expected a limit or a sample, got both: leave one out")
    for option, value in (("limit", limit), ("sample", sample)):
        if value is not None and not is_whole(value, 1):
            raise UsageError(f"expected a {option} of at least 1, got {short(value)}")


def order_of(count: int, limit: int | None, sample: int | None, seed: int) -> tuple[list[int], int]:
    """The order in which candidates are checked, at random for a sample, and the number of those wanted.

    Example:
        >>> order_of(3, limit=2, sample=None, seed=0)
        ([0, 1, 2], 2)
    """
    order = list(range(count))
    if sample is not None:
        random.Random(seed).shuffle(order)
    return order, next((one for one in (limit, sample) if one is not None), count)


def checked(
    candidates: Sequence[Candidate], checker: Checker, limit: int | None, sample: int | None, seed: int
) -> list[Sample]:
    """Samples of the candidates, in their order; the first `limit`, or `sample` drawn at random.

    Candidates that cannot be used do not count, and no more are checked than needed.
    """
    order, wanted = order_of(len(candidates), limit, sample, seed)
    found: list[tuple[int, Sample]] = []
    for i in order:
        if len(found) == wanted:
            break
        one = checker.sample(candidates[i])
        if one is not None:
            found.append((i, one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]
