"""Is this installation sound? Versions, devices, and one photograph through the bundled model."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from cliploc import __version__
from cliploc.errors import CliplocError

PACKAGES = ("torch", "torchvision", "timm", "tokenizers", "safetensors", "numpy", "pillow", "opencv-python-headless")
OPTIONAL = ("open_clip_torch", "supervision")
ANIMAL, RIVALS = "cat", ("bicycle", "rocket", "pizza")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        good: whether it is as it should be.
        detail: what was seen; for a failed check also what to do.
    """

    name: str
    good: bool
    detail: str


def checks() -> Iterator[Check]:
    """Looks at everything in turn, cheapest first; a failed check does not end it."""
    yield Check("cliploc", True, __version__)
    new_enough = sys.version_info >= (3, 11)
    yield Check(
        "python",
        new_enough,
        f"{platform.python_version()} on {platform.platform()}" + ("" if new_enough else ": use 3.11"),
    )
    for package in PACKAGES:
        yield _package(package)
    for package in OPTIONAL:
        found = _package(package)
        yield found if found.good else Check(package, True, "not installed (optional)")
    yield _devices()
    yield from _model()


def _package(package: str) -> Check:
    try:
        return Check(package, True, metadata.version(package))
    except metadata.PackageNotFoundError:
        return Check(package, False, f"not installed: pip install {package}")


def _devices() -> Check:
    try:
        import torch
    except Exception as error:  # a broken build of torch raises whatever its loader does
        return Check("device", False, f"torch cannot be imported ({str(error).splitlines()[0]}): install it again")
    from cliploc.localizer import best_device

    device = best_device()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    return Check("device", True, f"{device} ({name})")


def _model() -> Iterator[Check]:
    from cliploc.demo import demo_photos
    from cliploc.localizer import Localizer

    start = time.perf_counter()
    try:
        localizer = Localizer("mini", device="cpu")
    except (CliplocError, OSError) as error:
        yield Check("weights", False, f"mini cannot be loaded ({error}): install cliploc again")
        return
    yield Check("weights", True, f"mini is loaded in {time.perf_counter() - start:.1f} s")
    photo = next(one for one in demo_photos() if ANIMAL in one.truth)
    start = time.perf_counter()
    result = localizer(str(photo.path), [ANIMAL, *RIVALS])
    seconds = time.perf_counter() - start
    ranked = [result.names[i] for i in (-result.scores).argsort()]
    boxes = len(result.boxes.of(ANIMAL))
    good = ranked[0] == ANIMAL and boxes > 0
    detail = f"{photo.path.name} ranks {' > '.join(ranked)}, boxes of the {ANIMAL}: {boxes}, in {seconds:.2f} s"
    yield Check(
        "photo", good, detail if good else f"{detail}: expected {ANIMAL} first and boxed, install cliploc again"
    )
