"""Is this installation sound, are a model's weights there, and does the model behave?"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from cliploc import __version__
from cliploc.demo import demo_photos
from cliploc.errors import ModelError

if TYPE_CHECKING:
    from cliploc.localizer import Localizer

PACKAGES = ("torch", "torchvision", "timm", "tokenizers", "safetensors", "numpy", "pillow", "opencv-python-headless")
OPTIONAL = ("open_clip_torch", "supervision")
ANIMAL, ABSENT = "cat", "pizza"
# Of the demo's photographs that a trained model must call by a right name. Guessing gives fewer than 1 in 10; `mini` is
# right on all.
RIGHT_SHARE = 0.7


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str  # what was looked at
    good: bool  # whether it is as it should be
    detail: str  # what was seen; for a failed check also what to do


def checks(
    model: str, pretrained: str | None, device: str | None, precision: str, threads: int | None
) -> Iterator[Finding]:
    """Looks at everything in turn, cheapest first, whatever fails; fetches missing weights, sets torch's threads."""
    yield Finding("cliploc", True, __version__)
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    for package in (*PACKAGES, *OPTIONAL):
        optional = package in OPTIONAL
        missing = "not installed (optional)" if optional else f"not installed: pip install {package}"
        try:
            check = Finding(package, True, metadata.version(package))
        except metadata.PackageNotFoundError:
            check = Finding(package, optional, missing)
        yield check
    yield _devices(threads)
    yield from _model(model, pretrained, device, precision)


def _devices(threads: int | None) -> Finding:
    try:
        import torch
    except Exception as error:  # a broken build of torch raises whatever its loader does
        return Finding("device", False, f"torch cannot be imported ({str(error).splitlines()[0]}): install it again")
    from cliploc.localizer import best_device

    if threads is not None:
        torch.set_num_threads(threads)
    device = best_device()
    own = torch.get_num_threads()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{own} thread{'s' * (own != 1)}"
    return Finding("device", True, f"{device} ({name})")


def _model(model: str, pretrained: str | None, device: str | None, precision: str) -> Iterator[Finding]:
    from cliploc.localizer import classifier

    start = time.perf_counter()
    try:
        localizer = classifier(model, pretrained, device=device, precision=precision, text_cache=False)
    except (ModelError, OSError) as error:
        advice = ": install cliploc again" if model in ("mini", "mini-vit") else ""
        yield Finding("weights", False, f"{model} cannot be loaded ({error}){advice}")
        return
    seconds = time.perf_counter() - start
    file = localizer.backbone.weights_file
    where = "" if file is None else f"{file} ({file.stat().st_size / 1e6:,.1f} MB), "
    yield Finding("weights", True, f"{localizer.backbone.name}: {where}loaded in {seconds:.1f} s")
    try:
        yield _photographs(localizer)
        if model == "mini":
            yield _boxes(localizer)
    except ModelError as error:  # NaN
        yield Finding("pictures", False, str(error))


def _photographs(localizer: Localizer) -> Finding:
    """Whether the demo's photographs are called by the names of what is in them, among all names of the demo."""
    photos = list(demo_photos())
    names = list(dict.fromkeys(name for photo in photos for name in photo.ask))
    start = time.perf_counter()
    answers = [best.name for (best,) in localizer.classify([str(photo.path) for photo in photos], names, top_k=1)]
    seconds = time.perf_counter() - start
    wrong = [
        f"{photo.path.name} is called {answer}"
        for photo, answer in zip(photos, answers, strict=True)
        if answer not in photo.truth
    ]
    share = 1 - len(wrong) / len(photos)
    chance = sum(len(photo.truth) for photo in photos) / (len(photos) * len(names))
    detail = f"{len(photos) - len(wrong)} of {len(photos)} named right, out of {len(names)} names, in {seconds:.1f} s"
    if wrong:
        detail += f"; {', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}"
    if share < RIGHT_SHARE:
        detail += (
            f": {share:.0%}, expected {RIGHT_SHARE:.0%} or more, guessing reaches {chance:.0%}: these weights are "
            "random, or not of this model: download trained ones"
        )
    return Finding("pictures", share >= RIGHT_SHARE, detail)


def _boxes(localizer: Localizer) -> Finding:
    photo = next(photo for photo in demo_photos() if ANIMAL in photo.truth)
    result = localizer(str(photo.path), [ANIMAL, ABSENT])
    boxes, wrong = len(result.boxes.of(ANIMAL)), len(result.boxes.of(ABSENT))
    detail = f"{photo.path.name}: boxes of the {ANIMAL}: {boxes}, of a {ABSENT}: {wrong}"
    good = boxes > 0 and wrong == 0
    return Finding(
        "boxes", good, detail if good else f"{detail}: expected boxes of the {ANIMAL} only, install cliploc again"
    )
