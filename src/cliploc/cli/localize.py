"""`cliploc localize`: where named things are in pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli.options import FilePhotoFlags, ImagePhotoFlags, command, flag, rare, use_threads, with_exemplars
from cliploc.cli.output import json_text, write
from cliploc.cli.photos import LEGEND, RESULTS, PhotoRun, lines_of, model_settings
from cliploc.errors import UsageError
from cliploc.options import OPTIONS, Options, words_of
from cliploc.support.files import DEMO

if TYPE_CHECKING:
    from cliploc.localization import Localization
    from cliploc.localizer import Localizer

MAPS_AT_ONCE = 4096  # photos × names; of 224×224 pixels they take 0.8 GB
NOT_OF_DRAFTS = ("background", "text_cache")  # `annotate` has no such options


class LocalizeFlags(ImagePhotoFlags, FilePhotoFlags):
    """What `localize` has besides the options of `Localizer`."""

    photos: list[str] = flag(
        "Pictures (JPEG, PNG, WebP, HEIC …), folders or patterns of them.", metavar="PICTURE", positional=True
    )
    out: Path | None = flag("Folder for one overlay per picture and results.json.", None, metavar="DIR", group="output")
    save_maps: bool = rare("Save each heatmap in --out, in the format that `evaluate` reads.", False, group="output")
    masks: bool = rare(
        "Add the mask of each box and name to --json; with --out, as overlays and label maps.", False, group="output"
    )


@command()
def localize(asked: LocalizeFlags, options: Options) -> int:
    """Find named things in pictures.

    Example: cliploc localize street.jpg -p bicycle -p "traffic light" --out found
    """
    from cliploc.find import prompts

    out, masks = asked.out, asked.masks or options.masks_by != "heat"
    if asked.save_maps and out is None:
        raise UsageError("expected --out with --save-maps, got none: choose a folder for the maps")
    if masks and out is None and not asked.as_json:
        raise UsageError("expected --json or --out with --masks, got neither: choose where to write the masks")
    names, around = asked.names()
    given = {name: value for name, value in options.changed().items() if name not in NOT_OF_DRAFTS}
    options = options.but(background=(*options.background, *around))
    if not names:
        raise UsageError(
            f'expected at least one name to look for, got none: cliploc localize {asked.photos[0]} -p "cat"'
        )
    names, options = with_exemplars(names, options)
    prompts.parse(names, prompts.resolve_templates(options.templates))  # refused before a model is loaded
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // len(names))))
    others = (asked.classes, asked.prompts_file, options.pretrained, options.head, options.learnt)
    files = (RESULTS, LEGEND) if masks else (RESULTS,)
    run = PhotoRun(asked.photos, out, quiet=asked.as_json, others=others, files=files)
    with run.started(f"loading {options.model}") as reporter:
        from cliploc.localizer import Localizer

        use_threads(asked.threads)
        localizer = Localizer(**options.changed())
        run.count(reporter, localizer.method.name)
        try:
            results = localizer.stream(
                run.paths,
                names,
                on_error="skip",
                reporter=replace(reporter, failed=run.fail),
                absent_maps=asked.save_maps or (run.folder is not None and _all_are_drawn(names)),
                keep_maps=out is not None or masks,
            )
            for result in results:
                _take(run, result, masks=masks, save_maps=asked.save_maps)
        finally:  # also when interrupted: what is done is not lost
            if run.folder is not None and masks:
                from cliploc.draw.label_maps import label_legend

                write(run.folder / LEGEND, json_text(label_legend(prompts.parse(names).names)).encode())
            run.keep({"names": names, **_settings(localizer)})
    found = [name["found"] for record in run.records for name in record["names"]]
    kinds = ["overlays", *(["masks"] if masks else []), *(["maps"] if asked.save_maps else [])]
    counted = f", {sum(found)} of {len(found)} {'name' if len(found) == 1 else 'names'} found"
    return run.end(counted, ", ".join(kinds), _following(asked.photos, asked.prompt or (), words_of(given)))


def _following(photos: Sequence[str], names: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command with which most users of a folder go on; none for single pictures."""
    folder = photos[0] if len(photos) == 1 and (photos[0] == DEMO or Path(photos[0]).is_dir()) else None
    if folder is None or not names:
        return []
    asked = [word for name in names for word in ("-p", name)]
    return ["cliploc", "annotate", folder, *asked, *options, "--out", "drafts"]


def _all_are_drawn(names: list[str]) -> bool:
    """Whether overlays show all names; a larger sheet shows only those found, so that maps of others are not needed."""
    from cliploc.draw.overlay import MOST_PANELS  # where nothing is drawn, nothing that draws is imported

    return len(names) <= MOST_PANELS


def _take(run: PhotoRun, result: Localization, *, masks: bool, save_maps: bool) -> None:
    """One picture is done."""
    from cliploc.document import to_document
    from cliploc.draw import overlay

    record = to_document([result], [], {}, masks)["pictures"][0]
    if run.folder is not None:
        draw = overlay.panels if len(result.names) > 1 else overlay.draw_overlay
        source, wh = result.source, result.image.size
        name = run.names.drawing(source, "_overlay", wh)
        run.draw(source, record, "overlay", name, lambda: draw(result), what="its overlay")
        if masks:
            name = run.names.drawing(source, "_masks", wh)
            run.draw(source, record, "masks", name, lambda: draw(result, masks=True), what="its masks")
            run.write_labels(source, record, result.label_map(), len(result.names))
        if save_maps:  # a map for each name, for `cliploc evaluate boxes --maps FOLDER/maps/NAME`
            import numpy as np

            from cliploc.values import WSOL_SIDE

            for index, of_name in enumerate(result.names):
                [heat] = replace(result, maps=result.maps[index : index + 1]).maps_over_picture((WSOL_SIDE, WSOL_SIDE))
                file = run.names.heatmap(of_name, run.ids[source])
                content = io.BytesIO()
                np.save(content, heat)
                (run.folder / file).parent.mkdir(parents=True, exist_ok=True)
                write(run.folder / file, content.getvalue())
                record["names"][index]["map"] = file
    run.done(result.source, record, lines_of(result))


def _settings(localizer: Localizer) -> dict[str, Any]:
    """The settings of the run, with the values that defaults stand for."""
    return {
        **model_settings(
            localizer, localizer.options, [name for name, option in OPTIONS.items() if not option.python_only]
        ),
        **({"exemplars": localizer.exemplars} if localizer.exemplars else {}),
        "recipe": None if localizer.recipe is None else localizer.recipe.name,
        "method": localizer.method.name,
        "resize": localizer.resize,
        "interpolation": localizer.backbone.interpolation,
        "refine": localizer.refine,
        "image_size": localizer.input_hw,
        "threshold": localizer.box_rule.threshold,
        "method_options": localizer.options_of(localizer.method.name, localizer.options.method_options),
        "masked_precision": localizer.masked_precision,
    }
