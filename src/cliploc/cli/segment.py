"""`cliploc segment`: one of the names for every pixel of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cliploc
from cliploc import InputError, ModelError, Options, Reporter, UsageError
from cliploc.cli import options as cli
from cliploc.cli.output import json_text, write
from cliploc.cli.photos import LEGEND, RESULTS, PhotoRun, settings_of
from cliploc.options import SegmentationOptions
from cliploc.support.files import picture_path

OF_SEGMENTER = (
    "model", "pretrained", "method", "method_options", "templates", "refine", "guide", "device", "precision",
    "batch_size", "text_cache",
)  # fmt: skip


class SegmentFlags(cli.PhotoFlags):
    """What `segment` has besides options of `Localizer` and of protocols."""

    background: list[str] | None = cli.flag(
        "Pixels that fit this name best are background; repeatable.", None, metavar="NAME"
    )
    rle: bool = cli.rare(
        "Add each name's pixels to results.json, as COCO's RLE; --json has them.", False, group="output"
    )
    out: Path | None = cli.flag(
        "Folder for a label map and a drawing per picture, and results.json.", None, metavar="DIR", group="output"
    )


@cli.command(
    only=OF_SEGMENTER,
    without={"method": "the method of the model's recipe", "refine": "none", "templates": "openai-80"},
)
def segment(flags: SegmentFlags, options: Options, segmentation: SegmentationOptions) -> int:
    """Give each pixel of a picture one of your names.

    This is open-vocabulary segmentation. Names are words, not pictures.

    Example: cliploc segment street.jpg -p bicycle -p "car|van" --model mini-vit --out segmented
    """
    from cliploc.find import prompts

    if flags.rle and flags.out is None and not flags.as_json:
        raise UsageError("expected --json or --out with --rle, got neither: choose where to write the pixels")
    names, background = flags.names(), flags.background or []
    if not names:
        raise UsageError(f'expected names, got none: cliploc segment {flags.photos[0]} -p "cat" -p "sofa"')
    cli.check_words([*names, *background], "segment")
    # refused before a model is loaded
    prompts.parse(names, prompts.resolve_templates(options.templates), contrasts=False)
    others = (flags.labels, options.pretrained)
    run = PhotoRun(flags.photos, flags.out, quiet=flags.as_json, others=others, files=(RESULTS, LEGEND))
    with run.started(f"loading {options.model}") as reporter:
        from cliploc.draw.overlay import label_legend
        from cliploc.find.segmentation.protocol import protocol_for

        protocol = protocol_for(names, background, segmentation)
        labels = [class_name.name for class_name in protocol.classes]
        legend = label_legend(labels[1:])
        cli.use_threads(flags.threads)
        localizer, segmenter = _loaded(options, protocol)
        unknown = segmenter.unknown.values()
        readings = [reading for reading in localizer.readings(names) if reading not in unknown]
        for line in (*(f"left out: {reason}" for reason in unknown), *readings):
            run.terminal.say(line, style="yellow")
        if len(segmenter.classes) == 1:
            only = labels[next(iter(segmenter.classes))]
            run.terminal.say(f"{only} is the only name that {options.model} knows: it gets every pixel", style="yellow")
        run.count(reporter, localizer.method.name)
        try:
            _segment(run, segmenter, labels, reporter, rle=flags.rle or flags.as_json)
        finally:  # also when interrupted: what is done is not lost
            if run.folder is not None:
                write(run.folder / LEGEND, json_text(legend).encode())
            of_segmenter = {"protocol": protocol.describe(), "unknown": segmenter.unknown, **legend}
            settings = {**settings_of(localizer), "cosines": localizer.method.cosines, **of_segmenter}
            run.keep({"names": names, "background": background, **settings})
    return run.end(written="label maps, segments")


def _loaded(options: Options, protocol: Any) -> tuple[cliploc.Localizer, Any]:
    """The model and its segmenter; the recipe's method where none is named, without the recipe's refinements."""
    from cliploc.find.recipes import recipe_of
    from cliploc.find.segmentation.protocol import TEMPLATES
    from cliploc.find.segmentation.segmenter import Segmenter, segmenting_methods

    method = options.method or recipe_of(str(options.model)).method
    localizer = cliploc.Localizer(**options.but(method=method, templates=options.templates or TEMPLATES).changed())
    model = localizer.backbone.name
    if method not in (able := segmenting_methods(localizer)):
        raise UsageError(
            f"{method} gives no cosines, so its maps of different names cannot be compared: use one of "
            f"{', '.join(able)} with {model}"
        )
    segmenter = Segmenter(localizer, protocol, {method: options.method_options})
    if not segmenter.classes - {0}:
        raise UsageError(f"expected a name that {model} knows: {next(iter(segmenter.unknown.values()))}")
    return localizer, segmenter


def _segment(run: PhotoRun, segmenter: Any, names: Sequence[str], reporter: Reporter, *, rle: bool) -> None:
    """Each picture, one after the other."""
    from cliploc.document import segmented_record
    from cliploc.draw.overlay import draw_segments
    from cliploc.images.reading import load

    protocol, localizer = segmenter.protocol, segmenter.localizer
    windows = f"windows {protocol.window} every {protocol.stride}" if protocol.window else "whole picture"
    steps = [] if not localizer.refine else ["+".join(localizer.refine)]
    steps += [] if protocol.regions == "none" else [f"regions by {protocol.regions.partition(':')[0]}"]
    how = " · ".join([localizer.method.title, *steps, localizer.backbone.name, windows])
    for path in run.paths:
        try:
            picture = load(path)
            made = segmenter.label_maps(picture.image, reporter=reporter, name=picture_path(path).stem)
        except (InputError, ModelError) as error:  # ModelError: no numbers for this picture
            run.fail(path, error if str(error).startswith(path) else InputError(f"{path}: {error}"))
            continue
        labels = made[localizer.method.name]  # [H, W]
        source = picture.source
        record = segmented_record(picture, labels, names, rle)
        if run.folder is not None:
            run.write_labels(source, record, labels.astype("uint16"), len(names) - 1)
            name = run.names.drawing(source, "_segments", picture.image.size)
            run.draw(source, record, "segments", name, partial(draw_segments, picture.image, labels, names, how))
        counts = [(name["name"], name["share"]) for name in record["names"] if name["value"] or name["pixels"]]
        run.done(source, record, [(name, f"{100 * share:5.1f} %") for name, share in counts])
