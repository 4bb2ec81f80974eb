"""What is imported late: public names on first use, and packages that only some features need."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cliploc.errors import CliplocError, UsageError
from cliploc.support.process import out_of_memory

# Extra of pyproject.toml → what its feature imports, for the features that are refused before anything is computed.
PACKAGES = {
    "autodistill": ("autodistill",),
    "bench": ("matplotlib", "pandas", "pyarrow"),
    "calibrate": ("pyarrow", "sklearn"),
    "fiftyone": ("fiftyone",),
    "heic": ("pillow_heif",),
    "quantus": ("quantus",),
    "ray": ("ray",),
    "refine": ("kornia",),
    "regions": ("sklearn",),
    "sam": ("transformers",),
    "segmentation": ("h5py",),
    "web": ("starlette", "uvicorn", "python_multipart"),
}
NO_ROOM_TO_LOAD = "not enough memory to load a library: close other programs"
E = TypeVar("E", bound=CliplocError)


def on_first_use(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562): module → the public names that are taken from there."""
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return get


def install(extra: str, feature: str, *packages: str) -> str:
    """The line for a feature whose packages are not there."""
    *others, last = (name.replace("_", "-").replace("sklearn", "scikit-learn") for name in packages or PACKAGES[extra])
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{feature} needs {names}: pip install 'cliploc[{extra}]'"


def check_installed(extra: str, feature: str, *packages: str) -> None:
    """Refuses a feature whose packages are not there, at once: they are looked for, not imported."""
    if any(importlib.util.find_spec(name) is None for name in packages or PACKAGES[extra]):
        raise UsageError(install(extra, feature, *packages))


def not_installed(error: ImportError, advice: str, kind: type[E] = UsageError) -> E:  # type: ignore[assignment]
    """The error to raise where a package cannot be imported."""
    return kind(f"{NO_ROOM_TO_LOAD} ({error.name or error})" if out_of_memory(error) else advice)
