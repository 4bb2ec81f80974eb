"""Draws docs/gallery: every method of the registry on three of the demo's pictures.

    python tools/make_gallery.py [--model ViT-B-16 --pretrained openai] [--out docs/gallery]

Methods that work on CNNs are shown with `mini`, those that work on ViTs with `mini-vit`; a third model can stand beside
them by --model and --pretrained. Random weights are possible, to see that it runs, and are said to be random on every
sheet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc import Localizer
from cliploc.cli.terminal import Terminal
from cliploc.draw.colours import COLORMAP
from cliploc.draw.overlay import drawn_parts, file_name, scaled
from cliploc.draw.sheet import Panel, Sheet
from cliploc.errors import UsageError
from cliploc.images.demo import DemoPhoto, demo_photos
from cliploc.images.geometry import iou_matrix
from cliploc.localization import Localization
from cliploc.methods import Method, methods, unfit_reason

ROOT = Path(__file__).parents[1]
SHOWN = {"cat.jpg": "cat", "dogs.jpg": "dog", "bee.jpg": "bee"}
QUALITY = 70
COLUMNS, WIDTH = 3, 480  # pictures beside each other, and their pixels: methods can be told apart


def fitting(localizer: Localizer) -> list[Method]:
    """Every registered method that works on the localizer's tower and looks at the picture: baselines do not."""
    guided = localizer.guide is not None
    fit = [one for one in methods if unfit_reason(one, localizer.backbone, guided=guided) is None]
    return [method for method in fit if method.family != "baseline"]


def iou(result: Localization, photo: DemoPhoto, name: str) -> float:
    """Of the best box with the true box that it overlaps most; 0 without a box."""
    boxes = result.boxes.of(name)
    return float(iou_matrix(boxes[:1], photo.truth[name]).max()) if len(boxes) else 0.0


def draw(localizer: Localizer, remark: str, photos: Sequence[DemoPhoto], out: Path, terminal: Terminal) -> list[str]:
    """Writes a sheet for each picture; the README's lines on them."""
    shown = fitting(localizer)
    model = localizer.backbone.name
    sheets: list[str] = []
    for photo in photos:
        name = SHOWN[photo.path.name]
        with terminal.progress(f"{photo.path.name} by {model}") as reporter:
            compared = localizer.compare(
                [photo.path],
                [name],
                [method.name for method in shown],
                reporter=reporter,
            )
            (results,) = compared
        lines = {
            method.title: f"{method.name} · IoU {iou(results[method.name], photo, name):.2f}{remark}"
            for method in shown
        }
        sheet = f"{photo.path.stem}-{model}.webp"
        comparison({method.title: results[method.name] for method in shown}, name, lines).save(
            out / sheet, quality=QUALITY, method=6
        )
        sheets += [f"![{name}, by every method]({sheet})", ""]
        terminal.say(f"wrote {out / sheet}")
    return [f"## `{model}`{remark}", "", ", ".join(f"`{method.name}`" for method in shown), "", *sheets]


def readme(localizers: Sequence[Localizer], sections: Sequence[str], credits: Sequence[str], command: str) -> str:
    """The page that lists the sheets, the methods that are on none, and whose the pictures are."""
    covered = {method.name for localizer in localizers for method in fitting(localizer)}
    left_out = [method for method in methods if method.name not in covered and method.family != "baseline"]
    lines = [
        "# Gallery: the maps of every method on three pictures",
        "",
        f"`{command}` draws this page. Every method runs with its own options and threshold; below each map is its "
        "best box's IoU with the true",
        "box. Three pictures do not say which method is better.",
        "",
        *sections,
    ]
    if left_out:
        lines += [
            "## Not shown",
            "",
            "These need another kind of image tower, or a second one: "
            + ", ".join(f"`{method.name}`" for method in left_out)
            + ".",
            "",
        ]
    return "\n".join([*lines, "## Pictures", "", *(f"* {credit}" for credit in credits), ""])


def comparison(results: Mapping[str, Localization], name: str, lines: Mapping[str, str]) -> Image.Image:
    """Draws one sheet for one picture and one name: the picture, and a panel for the result of every title."""
    if not results:
        raise UsageError("expected the results of at least one method, got none")
    first = next(iter(results.values()))
    width, height = first.image.size
    shown_wh = (WIDTH, round(WIDTH * height / width))
    file = file_name(first)
    cells = [Panel(scaled(first, shown_wh).image, file, f"{name} · {width}×{height}")]
    for title, result in results.items():
        picture, boxes = drawn_parts(scaled(result, shown_wh), [0])
        cells.append(Panel(picture, title, lines.get(title, ""), None, boxes))
    models = dict.fromkeys(result.model for result in results.values())
    return Sheet(cells, COLUMNS, next(iter(models)) if len(models) == 1 else "", COLORMAP).image()


def make_gallery(out: Path, localizers: Sequence[Localizer], random: Sequence[str] = (), command: str = "") -> None:
    """Writes sheets and README.md.

    Args:
        out: a folder, made where it is not there.
        localizers: one for each model.
        random: names of the models whose weights are random.
        command: said to have made it.
    """
    terminal = Terminal()
    out.mkdir(parents=True, exist_ok=True)
    photos = [photo for photo in demo_photos() if photo.path.name in SHOWN]
    sections: list[str] = []
    for localizer in localizers:
        remark = " · random weights" if localizer.backbone.name in random else ""
        sections += draw(localizer, remark, photos, out, terminal)
    page = readme(localizers, sections, [photo.credit for photo in photos], command)
    (out / "README.md").write_text(page, encoding="utf-8")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="beside the bundled ones, by its name in `cliploc models`")
    parser.add_argument("--pretrained", help="its weights")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/gallery")
    given = parser.parse_args(arguments)
    settings: dict[str, Any] = {"min_presence": 0, "text_cache": False}
    localizers, random = [Localizer(model, **settings) for model in ("mini", "mini-vit")], []
    if given.model:
        localizers.append(Localizer(given.model, given.pretrained, method="grad_cam", **settings))
        random = [localizers[-1].backbone.name] if given.pretrained == "random" else []
    make_gallery(given.out, localizers, random, " ".join(["python tools/make_gallery.py", *arguments]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
