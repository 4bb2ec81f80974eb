"""What a text such as "gem+legrad" names, and whether there is such a method: known before torch is imported."""

from __future__ import annotations

from cliploc.errors import UsageError
from cliploc.saliency._infra.registration import methods


def names_in(spec: str) -> list[str]:
    """The names that "+" joins.

    Raises:
        UsageError: names with a comma between them.
    """
    if "," in spec:
        joined = "+".join(name.strip() for name in spec.split(","))
        raise UsageError(
            f"expected one method, got several, {spec!r}: write {joined} for the mean of their maps, or ask for one "
            "after the other"
        )
    return [name.strip() for name in spec.split("+")]


def refuse_unknown(spec: str) -> None:
    """Refuses names of methods that there are not, as `find` does, without importing the methods.

    Raises:
        UnknownNameError: one of them is not known.
        UsageError: names with a comma between them.

    Example:
        >>> refuse_unknown("cam+layer_cam")
    """
    for name in names_in(spec):
        methods.refuse_unknown(name)
