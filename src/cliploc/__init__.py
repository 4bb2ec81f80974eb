"""cliploc: name anything, and see where it is in a picture, without training.

Example:
    >>> import cliploc
    >>> localizer = cliploc.Localizer()                                   # the bundled model `mini`
    >>> found = localizer("street.jpg", ["bicycle", "traffic light"])     # doctest: +SKIP
    >>> found.boxes.xyxy, found.heatmaps                                  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cliploc.config import Options
    from cliploc.detector import Detector
    from cliploc.errors import CliplocError, CliplocWarning, InputError, ModelError, UnknownNameError, UsageError
    from cliploc.jobs.annotate import AnnotateResult, annotate
    from cliploc.listing import list_datasets, list_exports, list_methods, list_metrics, list_models
    from cliploc.localization import Localization
    from cliploc.localizer import Localizer
    from cliploc.memory import Memory
    from cliploc.reporter import Reporter
    from cliploc.values import Boxes

__all__ = [
    "AnnotateResult",
    "Boxes",
    "CliplocError",
    "CliplocWarning",
    "Detector",
    "InputError",
    "Localization",
    "Localizer",
    "Memory",
    "ModelError",
    "Options",
    "Reporter",
    "UnknownNameError",
    "UsageError",
    "__version__",
    "annotate",
    "list_datasets",
    "list_exports",
    "list_methods",
    "list_metrics",
    "list_models",
]

_HOMES = {
    "cliploc.config": ("Options",),
    "cliploc.detector": ("Detector",),
    "cliploc.errors": ("CliplocError", "CliplocWarning", "InputError", "ModelError", "UnknownNameError", "UsageError"),
    "cliploc.jobs.annotate": ("AnnotateResult", "annotate"),
    "cliploc.listing": ("list_datasets", "list_exports", "list_methods", "list_metrics", "list_models"),
    "cliploc.localization": ("Localization",),
    "cliploc.localizer": ("Localizer",),
    "cliploc.memory": ("Memory",),
    "cliploc.reporter": ("Reporter",),
    "cliploc.values": ("Boxes",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that `import cliploc` stays light (no torch)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cliploc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """All public names, also those that were not imported yet: for completion in a shell."""
    return sorted({*globals(), *__all__})
