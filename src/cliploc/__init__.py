"""cliploc: name things, and see where they are in a picture, without training.

Example:
    >>> import cliploc
    >>> localizer = cliploc.Localizer()  # the bundled model `mini`
    >>> found = localizer("street.jpg", ["bicycle", "traffic light"])
    >>> found.boxes.xyxy.shape[1], found.heatmaps.shape[0]
    (4, 2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

__version__ = "0.2.0"

if TYPE_CHECKING:
    from cliploc.detector import Detector
    from cliploc.errors import CliplocError, CliplocWarning, InputError, ModelError, UnknownNameError, UsageError
    from cliploc.evaluate.data import list_datasets
    from cliploc.evaluate.metrics import list_metrics
    from cliploc.find.memory import Memory
    from cliploc.find.recipes import list_methods, list_models
    from cliploc.formats import list_exports
    from cliploc.label.annotate import annotate
    from cliploc.label.results import AnnotateResult
    from cliploc.localization import Localization
    from cliploc.localizer import Localizer
    from cliploc.options import Options
    from cliploc.support.reporter import Reporter
    from cliploc.values import Boxes, Masks

__all__ = [
    "AnnotateResult", "Boxes", "CliplocError", "CliplocWarning", "Detector", "InputError", "Localization", "Localizer",
    "Masks", "Memory", "ModelError", "Options", "Reporter", "UnknownNameError", "UsageError", "__version__",
    "annotate", "list_datasets", "list_exports", "list_methods", "list_metrics", "list_models",
]  # fmt: skip

__getattr__ = on_first_use(  # so that `import cliploc` stays light: no torch
    __name__,
    {
        "cliploc.options": ("Options",),
        "cliploc.detector": ("Detector",),
        "cliploc.errors": (
            "CliplocError", "CliplocWarning", "InputError", "ModelError", "UnknownNameError", "UsageError",
        ),
        "cliploc.label.annotate": ("annotate",),
        "cliploc.label.results": ("AnnotateResult",),
        "cliploc.evaluate.data": ("list_datasets",),
        "cliploc.evaluate.metrics": ("list_metrics",),
        "cliploc.find.recipes": ("list_methods", "list_models"),
        "cliploc.formats": ("list_exports",),
        "cliploc.localization": ("Localization",),
        "cliploc.localizer": ("Localizer",),
        "cliploc.find.memory": ("Memory",),
        "cliploc.support.reporter": ("Reporter",),
        "cliploc.values": ("Boxes", "Masks"),
    },
)  # fmt: skip


def __dir__() -> list[str]:
    """All public names, also those that were not imported yet: for completion in a shell."""
    return sorted({*globals(), *__all__})
