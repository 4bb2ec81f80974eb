"""Door 2: how good are maps and boxes? Data sets, metrics, tasks, and the training of TS-CAM's and LCTR's layers."""

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.evaluate.auditing.job import audit

__getattr__ = on_first_use(__name__, {"cliploc.evaluate.auditing.job": ("audit",)})  # without torch until then
