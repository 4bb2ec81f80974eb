"""`cliploc localize`: where named things are in pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cliploc
from cliploc import Options, UsageError
from cliploc.cli import options as cli
from cliploc.cli.output import json_text, write
from cliploc.cli.photos import LEGEND, RESULTS, PhotoRun, rows_of, settings_of
from cliploc.options import words_of
from cliploc.support.files import DEMO

MAPS_AT_ONCE = 4096  # photos × names; of 224×224 pixels they take 0.8 GB


class LocalizeFlags(cli.PhotoFlags, cli.DrawingFlags):
    """What `localize` has besides the options of `Localizer`."""

    out: Path | None = cli.flag(
        "Folder for one overlay per picture and results.json.", None, metavar="DIR", group="output"
    )
    save_maps: bool = cli.rare(
        "Save each heatmap in --out, in the format that `evaluate` reads.", False, group="output"
    )
    masks: bool = cli.rare(
        "Add the mask of each box and name to --json; with --out, as overlays and label maps.", False, group="output"
    )


@cli.command()
def localize(flags: LocalizeFlags, options: Options) -> int:
    """Find named things in pictures.

    Example: cliploc localize street.jpg -p bicycle -p "traffic light" --out found
    """
    from cliploc.find import prompts

    out, masks = flags.out, flags.masks or options.masks_by != "heat"
    if flags.save_maps and out is None:
        raise UsageError("expected --out with --save-maps, got none: choose a folder for the maps")
    if masks and out is None and not flags.as_json:
        raise UsageError("expected --json or --out with --masks, got neither: choose where to write the masks")
    names = flags.names()
    of_drafts = {name: value for name, value in options.changed().items() if name != "text_cache"}
    if not names:
        raise UsageError(
            f'expected at least one name to look for, got none: cliploc localize {flags.photos[0]} -p "cat"'
        )
    names, options = cli.with_exemplars(names, options)
    labels = prompts.parse(names, prompts.resolve_templates(options.templates)).names  # before a model is loaded
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // len(names))))
    others = (flags.labels, options.pretrained, options.head, options.learnt)
    files = (RESULTS, LEGEND) if masks else (RESULTS,)
    run = PhotoRun(flags.photos, out, quiet=flags.as_json, others=others, files=files)
    with run.started(f"loading {options.model}") as reporter:
        cli.use_threads(flags.threads)
        localizer = cliploc.Localizer(**options.changed())
        run.count(reporter, localizer.method.name)
        absent_maps = flags.save_maps
        if out is not None:  # a larger sheet shows only the names found
            from cliploc.draw.overlay import MOST_PANELS

            absent_maps = absent_maps or len(names) <= MOST_PANELS
        try:
            for result in localizer.stream(
                run.paths,
                names,
                on_error="skip",
                reporter=replace(reporter, failed=run.fail),
                absent_maps=absent_maps,
                keep_maps=out is not None or masks,
            ):
                _take(run, result, flags, masks=masks)
        finally:  # also when interrupted: what is done is not lost
            if out is not None and masks:
                from cliploc.draw.overlay import label_legend

                write(out / LEGEND, json_text(label_legend(labels)).encode())
            run.keep({"names": names, **settings_of(localizer)})
    found = [name["found"] for record in run.records for name in record["names"]]
    kinds = ["overlays", *(["masks"] if masks else []), *(["maps"] if flags.save_maps else [])]
    counted = f", {sum(found)} of {len(found)} {'name' if len(found) == 1 else 'names'} found"
    return run.end(counted, ", ".join(kinds), _following(flags.photos, flags.prompt or (), words_of(of_drafts)))


def _following(photos: Sequence[str], names: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command with which most users of a folder go on; none for single pictures."""
    if len(photos) > 1 or not names or not (photos[0] == DEMO or Path(photos[0]).is_dir()):
        return []
    prompts = [word for name in names for word in ("-p", name)]
    return ["cliploc", "annotate", photos[0], *prompts, *options, "--out", "drafts"]


def _take(run: PhotoRun, result: cliploc.Localization, flags: LocalizeFlags, *, masks: bool) -> None:
    """One picture is done."""
    from cliploc.document import to_document

    record = to_document([result], [], {}, masks)["pictures"][0]
    if run.folder is not None:
        from cliploc.draw import overlay

        alone = len(result.names) == 1 and flags.figures in ("jpg", "png")  # at the picture's own size
        draw = partial(overlay.draw_overlay if alone else overlay.sheet, result, colormap=flags.colormap)
        source, wh = result.source, result.image.size
        name = run.names.drawing(source, "_overlay", wh, flags.figures)
        run.draw(source, record, "overlay", name, draw)
        if masks:
            name = run.names.drawing(source, "_masks", wh, flags.figures)
            run.draw(source, record, "masks", name, partial(draw, masks=True))
            run.write_labels(source, record, result.label_map(), len(result.names))
        if flags.save_maps:  # a map for each name, for `cliploc evaluate boxes --maps FOLDER/maps/NAME`
            import numpy as np

            from cliploc.values import WSOL_SIDE

            for index, label in enumerate(result.names):
                [heat] = replace(result, maps=result.maps[index : index + 1]).maps_over_picture((WSOL_SIDE, WSOL_SIDE))
                file = run.names.heatmap(label, run.ids[source])
                content = io.BytesIO()
                np.save(content, heat)
                write(run.folder / file, content.getvalue())
                record["names"][index]["map"] = file
    run.done(result.source, record, rows_of(result))
