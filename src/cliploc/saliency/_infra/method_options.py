"""Options of methods: refuses unknown ones, and converts texts to the types that a method's function declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cliploc.config import short
from cliploc.errors import UsageError
from cliploc.method import Method

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "none"}


def check_options(method: Method, options: dict[str, Any]) -> None:
    """Refuses options that a method does not have."""
    for option in options:
        if option not in method.options:
            there = ", ".join(method.options) or "none"
            raise UsageError(f"{method.name} has no option {option!r}: it has {there}")


def resolve_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the method's function takes them: a bare name goes to every member that has such an option."""
    resolved: dict[str, Any] = {}
    for option, value in options.items():
        keys = [f"{m.name}.{option}" for m in method.members if option in m.options] or [option]
        resolved |= {key: value for key in keys if key not in options or key == option}  # exact name wins
    check_options(method, resolved)
    return {key: _typed(method, key, value) for key, value in resolved.items()}


def _typed(method: Method, key: str, value: Any) -> Any:
    for member in method.members:
        if key.startswith(f"{member.name}."):
            return as_declared(member.function, member.name, key.removeprefix(f"{member.name}."), value)
    return as_declared(method.function, method.name, key, value)


def as_declared(function: Callable[..., Any], name: str, option: str, value: Any) -> Any:
    """An option's value in the type that the function declares; a text, as on a command line, is converted."""
    what = f"{name}'s option {option}"
    if isinstance(value, str):
        return typed(what, value, get_type_hints(function).get(option, str))
    try:
        wanted = get_type_hints(function).get(option, Any)
    except (NameError, TypeError):  # of a plugin, whose types may be known to its type checker only
        return value
    if not _fits(value, wanted):
        raise UsageError(f"expected {what} to be {_in_words(wanted)}, got {short(value)}")
    return value


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value that is no text has a type; True for types that only the method can judge, such as heads."""
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(wanted))
    if get_origin(wanted) in (tuple, list, Sequence):
        item = get_args(wanted)[0]
        return isinstance(value, tuple | list) and all(_fits(part, item) for part in value)
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted in (int, float):  # numpy's numbers too
        return isinstance(value, Integral if wanted is int else Real) and not isinstance(value, bool)
    return not isinstance(wanted, type) or wanted not in WORDS or isinstance(value, wanted)


def _in_words(wanted: Any) -> str:
    """A type in words."""
    if get_origin(wanted) in (Union, UnionType):
        return " or ".join(_in_words(kind) for kind in get_args(wanted))
    if get_origin(wanted) in (tuple, list, Sequence):
        return f"a list, each of its items {_in_words(get_args(wanted)[0])}"
    if get_origin(wanted) is Literal:
        return " or ".join(map(str, get_args(wanted)))
    return WORDS.get(wanted) or str(getattr(wanted, "__name__", wanted))


def typed(what: str, text: str, wanted: Any) -> Any:
    """Converts a text to a type: bool, int, float, str, a sequence of one of them, or a union."""
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
    try:
        if wanted is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (KeyError, ValueError):
        raise UsageError(f"expected {what} to be {WORDS[wanted]}, got {text!r}") from None
