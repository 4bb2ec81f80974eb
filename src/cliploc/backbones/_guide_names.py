"""The names of guides, known without importing torch or timm, which takes seconds."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cliploc.backbones._catalogue import models, plain_name
from cliploc.errors import UnknownNameError
from cliploc.registry import Registry


@dataclass(frozen=True)
class GuideEntry:
    """A guide with a short name: a line below `cliploc models`."""

    name: str  # as typed after `--guide`
    timm: str  # timm's name of the tower and its weights
    stride: int  # pixels along a cell of its grid
    parameters: float  # in millions
    licence: str  # of the weights


guides: Registry[GuideEntry] = Registry("guide")
for _entry in (
    GuideEntry("dino-s16", "vit_small_patch16_224.dino", 16, 21.7, "Apache-2.0"),
    GuideEntry("dino-s8", "vit_small_patch8_224.dino", 8, 21.7, "Apache-2.0"),
    GuideEntry("dino-b16", "vit_base_patch16_224.dino", 16, 85.8, "Apache-2.0"),
    GuideEntry("dino-b8", "vit_base_patch8_224.dino", 8, 85.8, "Apache-2.0"),
    GuideEntry("dinov2-s", "vit_small_patch14_dinov2.lvd142m", 14, 22.1, "Apache-2.0"),
    GuideEntry("dinov2-b", "vit_base_patch14_dinov2.lvd142m", 14, 86.6, "Apache-2.0"),
    GuideEntry("dinov2-l", "vit_large_patch14_dinov2.lvd142m", 14, 304.4, "Apache-2.0"),
    GuideEntry("dinov3-s", "vit_small_patch16_dinov3.lvd1689m", 16, 21.6, "DINOv3 License"),
    GuideEntry("dinov3-b", "vit_base_patch16_dinov3.lvd1689m", 16, 85.6, "DINOv3 License"),
    GuideEntry("dinov3-l", "vit_large_patch16_dinov3.lvd1689m", 16, 303.1, "DINOv3 License"),
):
    guides.register(_entry.name, _entry)


def refuse_unknown_guide(spec: str) -> None:
    """Refuses an unknown guide, as `create_guide` does, without importing torch.

    Example:
        >>> refuse_unknown_guide("dinov2-s@dinov2.safetensors")
    """
    name = spec.partition("@")[0]
    if name not in guides.names() and not in_catalogue(name) and not _may_be_of_timm(name):
        raise unknown_guide(name)


def unknown_guide(name: str) -> UnknownNameError:
    """The error for a name that is no guide; it does not list the hundreds of towers of open_clip and timm."""
    return UnknownNameError("guide", name, [*guides.names(), "mini", "mini-vit"])


def in_catalogue(name: str) -> bool:
    """Whether a guide is a model of `cliploc models`."""
    try:
        models.refuse_unknown(plain_name(name))
    except UnknownNameError:
        return False
    return True


def _may_be_of_timm(name: str) -> bool:
    """Whether timm has such a tower, as far as that is known without importing it.

    If timm is imported already, it is asked, as towers may have been added to it. Otherwise its files are searched:
    each of its towers is a function there, and the old name of a tower is a text in quotes.
    """
    if "timm" in sys.modules:
        import timm

        return timm.is_model(name)
    spec = importlib.util.find_spec("timm")
    folder = Path("" if spec is None or spec.origin is None else spec.origin).parent / "models"
    architecture = re.escape(name.partition(".")[0])  # the name of weights comes after the dot
    wanted = re.compile(rf"""^def {architecture}\(|["']{architecture}["']""", re.MULTILINE)
    return any(wanted.search(file.read_text(encoding="utf-8")) for file in folder.glob("*.py"))
