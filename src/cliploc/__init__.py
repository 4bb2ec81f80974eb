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
    from cliploc.errors import CliplocError, InputError, ModelError, UsageError
    from cliploc.jobs.annotate import annotate
    from cliploc.localization import Localization
    from cliploc.localizer import Localizer
    from cliploc.memory import Memory
    from cliploc.schema import Boxes

__all__ = [
    "Boxes",
    "CliplocError",
    "Detector",
    "InputError",
    "Localization",
    "Localizer",
    "Memory",
    "ModelError",
    "Options",
    "UsageError",
    "__version__",
    "annotate",
]

_HOMES = {
    "Boxes": "cliploc.schema",
    "CliplocError": "cliploc.errors",
    "Detector": "cliploc.detector",
    "InputError": "cliploc.errors",
    "Localization": "cliploc.localization",
    "Localizer": "cliploc.localizer",
    "Memory": "cliploc.memory",
    "ModelError": "cliploc.errors",
    "Options": "cliploc.config",
    "UsageError": "cliploc.errors",
    "annotate": "cliploc.jobs.annotate",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that `import cliploc` stays light (no torch)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cliploc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
