"""Which method runs on which tower; `Localizer`, the lists, the web page and the benchmarks all ask here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from cliploc.method import Method
from cliploc.saliency._infra.registration import methods
from cliploc.tower import Pooling, TowerKind


class Tower(Protocol):
    """The facts about a model that decide which methods run on it: a loaded one (`Backbone`) or a listed one."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def kind(self) -> TowerKind:
        """The kind of its image tower."""
        ...

    @property
    def pooling(self) -> Pooling:
        """How the tower makes one embedding of its last features."""
        ...


def unfit_reason(
    method: Method,
    tower: Tower,
    options: Mapping[str, Any] | None = None,
    trained: Collection[str] = (),
    guided: bool = False,
) -> str | None:
    """Why a method does not run on a tower, in one line; None where it runs.

    Args:
        method: a method, or an ensemble, which runs where all its members do.
        options: of the method; some need more of a tower than the method alone.
        trained: names of methods that have a head trained on this tower; they then run on any kind of tower.

    Example:
        >>> from cliploc.backbones import models
        >>> unfit_reason(methods.get("gem"), models.get("mini"))
        'gem does not work on mini, a cnn tower'
    """
    for member in method.members or (method,):
        if tower.kind not in member.towers and member.name not in trained:
            return f"{method.name} does not work on {tower.name}, a {tower.kind} tower"
        if tower.kind == "vit" and tower.pooling not in member.poolings:
            return f"{method.name} does not work on {tower.name}, a {tower.kind} tower with {tower.pooling} pooling"
        if member.needs().guide and not guided:
            return f"{method.name} needs a guide, a second image tower, such as --guide dinov2-s or --guide mini"
    if options and tower.kind != "vit" and method.needs(**options).only_vit:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"{method.name} with {given} needs a vit tower, and {tower.name} is a {tower.kind} tower"
    return None


def fitting(tower: Tower, trained: Collection[str] = (), guided: bool = False) -> tuple[str, ...]:
    """The names of all methods that run on a tower; `trained` and `guided` as for `unfit_reason`."""
    reasons = {method.name: unfit_reason(method, tower, trained=trained, guided=guided) for method in methods}
    return tuple(name for name, reason in reasons.items() if reason is None)
