"""Draws docs/methods: one small picture for each saliency method, which docs/methods_explained.md shows.

    python tools/make_method_pictures.py [--only pearl,rise]

Methods that run on a ViT are drawn with `mini-vit`, the others with `mini`. Those that need a guide have `mini`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cliploc import Localizer, Memory
from cliploc.draw.overlay import draw_overlay, scaled
from cliploc.errors import CliplocError
from cliploc.images.demo import demo_photos
from cliploc.methods import methods, unfit_reason

OUT = Path(__file__).parents[1] / "docs/methods"
PHOTO, NAME = "otters.jpg", "otter"
WIDTH = 360  # pixels
QUALITY = 82
MOST_BYTES = 40_000


def draw(out: Path, localizers: Sequence[Localizer], only: Sequence[str] = ()) -> list[str]:
    """Writes a picture for each method, by the first localizer whose tower it fits; returns the methods drawn.

    Args:
        out: a folder, made if it is not there.
        localizers: one for each model.
        only: these methods; none for all.

    Raises:
        CliplocError: a picture is larger than the documentation takes.
    """
    out.mkdir(parents=True, exist_ok=True)
    (photo,) = (one.path for one in demo_photos() if one.path.name == PHOTO)
    left = [one for one in methods if not only or one.name in only]
    drawn: list[str] = []
    for localizer in localizers:
        guided = localizer.guide is not None
        fitting = [one.name for one in left if unfit_reason(one, localizer.backbone, guided=guided) is None]
        left = [one for one in left if one.name not in fitting]
        for name in fitting:
            (found,) = localizer.compare([photo], [NAME], [name])
            width, height = found[name].image.size
            small = scaled(found[name], (WIDTH, round(WIDTH * height / width)))  # first, so that labels stay legible
            picture = draw_overlay(small, opacity=0.75, caption=False)
            file = out / f"{name}.jpg"
            picture.save(file, quality=QUALITY, optimize=True, progressive=True)
            if file.stat().st_size > MOST_BYTES:
                raise CliplocError(f"{file} has {file.stat().st_size} bytes, expected at most {MOST_BYTES}")
            drawn.append(name)
    return drawn


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="methods, separated by commas")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    localizers = [
        Localizer(model, method=method, min_presence=0, components="largest", guide=guide, memory=Memory())
        for model, method, guide in (("mini-vit", "maskclip", "mini"), ("mini", "cam", None))
    ]
    print(*draw(given.out, localizers, [name for name in given.only.split(",") if name]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
