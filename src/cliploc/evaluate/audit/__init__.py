"""`cliploc audit`: does a model look at the thing, or at what stands around it?"""

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.evaluate.audit.job import audit

__all__ = ["audit"]

__getattr__ = on_first_use(__name__, {"cliploc.evaluate.audit.job": ("audit",)})  # without torch until then
