"""The packages that only some features need, and the one error that names the extra which installs them."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

from cliploc.errors import UsageError

# Extra of pyproject.toml → what its feature imports, for the features that are refused before anything is computed.
PACKAGES = {
    "autodistill": ("autodistill",),
    "bench": ("matplotlib", "pandas", "pyarrow"),
    "fiftyone": ("fiftyone",),
    "heic": ("pillow_heif",),
    "openvino": ("openvino",),
    "ray": ("ray",),
    "refine": ("kornia",),
    "sam": ("transformers",),
    "segmentation": ("h5py",),
    "train": ("accelerate",),
    "video": ("av",),
    "web": ("starlette", "uvicorn", "python_multipart"),
}


def install(extra: str, feature: str, *packages: str) -> str:
    """The line for a feature whose packages are not there.

    Example:
        >>> install("bench", "a report")
        "a report needs matplotlib, pandas and pyarrow: pip install 'cliploc[bench]'"
    """
    *others, last = (name.replace("_", "-") for name in packages or PACKAGES[extra])
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{feature} needs {names}: pip install 'cliploc[{extra}]'"


@cache
def compiled(module: str) -> ModuleType | None:
    """A module with code that numba compiles; None where numba (the extra `fast`) is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module(module)
    except RuntimeError:  # numba finds no folder where it may keep what it compiled
        return None


def refuse_without(extra: str, feature: str, *packages: str) -> None:
    """Refuses a feature whose packages are not there, at once: they are looked for, not imported."""
    if any(importlib.util.find_spec(name) is None for name in packages or PACKAGES[extra]):
        raise UsageError(install(extra, feature, *packages))
