"""Door 1: labels, as drafts, corrected and checked."""

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.label.checking.job import check

__getattr__ = on_first_use(__name__, {"cliploc.label.checking.job": ("check",)})  # without torch until then
