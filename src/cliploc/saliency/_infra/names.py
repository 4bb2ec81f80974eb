"""Parses method names such as "gem+legrad" and refuses unknown ones, without importing torch."""

from __future__ import annotations

from cliploc.errors import UsageError
from cliploc.saliency._infra.registration import methods


def names_in(spec: str) -> list[str]:
    """The method names that "+" joins."""
    if "," in spec:
        joined = "+".join(name.strip() for name in spec.split(","))
        raise UsageError(
            f"expected one method, got several, {spec!r}: write {joined} for the mean of their maps, or ask for one "
            "after the other"
        )
    return [name.strip() for name in spec.split("+")]


def refuse_unknown(spec: str) -> None:
    """Refuses unknown method names, as `find` does, without importing the methods.

    Example:
        >>> refuse_unknown("cam+layer_cam")
    """
    for name in names_in(spec):
        methods.refuse_unknown(name)
