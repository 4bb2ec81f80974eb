"""Converts texts of a command line to the types that a method's function declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from cliploc.errors import UsageError


def as_declared(function: Callable[..., Any], name: str, option: str, text: str) -> Any:
    """Converts a text to the type that the function declares for one of its options.

    Args:
        function: the method's function.
        name: the method's name, for the error.
        option: the name of the option.
        text: the value as typed.

    Raises:
        UsageError: the text cannot be converted.
    """
    return typed(f"{name}'s option {option}", text, get_type_hints(function).get(option, str))


def typed(what: str, text: str, wanted: Any) -> Any:
    """Converts a text to a type: bool, int, float, str, a sequence of one of them, or a union.

    Raises:
        UsageError: the text cannot be converted; the message names `what`.

    Example:
        >>> typed("stages", "-1,-2", tuple[int, ...])
        (-1, -2)
    """
    if get_origin(wanted) in (tuple, list, Sequence):
        return tuple(typed(what, part.strip(), get_args(wanted)[0]) for part in text.strip("()[]").split(",") if part)
    if get_origin(wanted) in (Union, UnionType):
        kinds = [kind for kind in get_args(wanted) if kind is not NoneType]
        if text.lower() == "none" and len(kinds) < len(get_args(wanted)):
            return None
        for kind in kinds[:-1]:
            try:
                return typed(what, text, kind)
            except UsageError:
                continue
        return typed(what, text, kinds[-1])
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if wanted is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (KeyError, ValueError):
        raise UsageError(f"expected {what} to be {words[wanted]}, got {text!r}") from None
