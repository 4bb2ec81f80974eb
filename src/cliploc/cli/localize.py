"""`cliploc localize`, `segment`, `classify`, `demo`: commands that go over pictures, and the run that they share."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

import cliploc
from cliploc import CliplocError, InputError, ModelError, Options, Reporter, UsageError
from cliploc.cli import options as cli
from cliploc.cli import output
from cliploc.cli.output import DONE, box_text, json_text, printable, writable, write
from cliploc.cli.terminal import Terminal, grid, title_row
from cliploc.options import OPTIONS, SegmentationOptions, words_of
from cliploc.support.files import DEMO, Inputs, demo_names, locked, picture_path, write_bytes
from cliploc.support.reporter import SILENT

JPEG_MAX_SIDE = 65_500
OF_LOCALIZER = ("templates", "precision", "masked_precision", "resize", "refine")
RESULTS, MAPS, LEGEND = "results.json", "maps", "labels.json"


class PhotoRun:
    """A run over pictures: a light record of each that is done, what failed, and the exit code."""

    def __init__(
        self,
        photos: Sequence[str],
        out: Path | None = None,  # the folder for pictures and results
        *,
        quiet: bool = False,  # whether only the document is printed, at the end
        others: Iterable[object] = (),  # files besides the photos that the run reads
        files: Sequence[str] = (RESULTS,),  # what is written into the folder besides files of single photos
    ) -> None:
        self.folder = None if out is None else output.writable(out)
        self.terminal, self.quiet = Terminal(), quiet
        self._reporter = SILENT  # until the run has started
        self.paths: list[str] = []  # of the files that were named, and of those in folders and patterns that were named
        self.ids: dict[str, str] = {}  # path → the path below the folder that was named, or the name of a named file
        self._skipped: list[Any] = []  # files of the folders that were left out, and why
        for one in photos:
            for photo in [f"{DEMO}{name}" for name in demo_names()] if one == DEMO else [os.path.expanduser(one)]:
                self._add(photo)
        inputs = Inputs([*self.paths, *(str(path) for path in others if path is not None)])
        self.names = ResultNames(inputs, self.folder or Path())
        if self.folder is not None:
            inputs.check_outputs([self.folder / file for file in files])
        self.records: list[dict[str, Any]] = []
        self._failures: list[tuple[str, str]] = []
        self._first_drawn: Path | None = None
        self._document: dict[str, Any] = {}

    def _add(self, photo: str) -> None:
        """A picture, or those of a folder or pattern."""
        # Not every shell replaces a pattern; an address with a "?" is none.
        pattern = not {"*", "?"}.isdisjoint(photo) and "://" not in photo and not os.path.lexists(photo)
        if os.path.isdir(photo) or pattern:
            from cliploc.runs.picture_files import find_pictures

            listed = find_pictures(photo, self.folder)
            self.paths += [str(picture.path) for picture in listed.pictures]
            self.ids |= {str(picture.path): picture.id for picture in listed.pictures}
            self._skipped += [one._replace(file=os.path.join(listed.root, one.file)) for one in listed.skipped]
            if note := listed.skipped_note():
                self.terminal.say(note, style="yellow")
            return
        self.paths.append(photo)
        self.ids[photo] = _file_of(photo).name

    @contextmanager
    def started(self, label: str) -> Iterator[Reporter]:
        """Shows progress; no other run may write into the folder meanwhile."""
        self._start = time.perf_counter()
        with locked(self.folder), self.terminal.progress(label) as self._reporter:
            yield self._reporter

    def count(self, reporter: Reporter, phase: str) -> None:
        """The models are loaded: from here on pictures are counted."""
        reporter.phase(phase)
        reporter.start(len(self.paths), len(self.paths))

    # ------------------------------------------------------------------------------------------------ for each photo
    def fail(self, source: str, error: CliplocError) -> None:
        """Records a picture that cannot be used; the run goes on with the others."""
        self._failures.append((source, str(error)))
        self._reporter.images(1)
        self.terminal.say(f"failed: {error}", style="red")
        if not self.quiet and not self.terminal.one_screen:
            self.terminal.data(printable(f"{source}  failed"))

    def draw(
        self,
        source: str,
        record: dict[str, Any],
        key: str,
        name: str,
        draw: Callable[[], Any],
        *,
        what: str,
        rest: str = "its boxes are kept",
    ) -> None:
        """Draws a file, which the record then names; if that fails, the results are kept and the run goes on."""
        assert self.folder is not None
        try:
            drawn = encoded(draw(), name)
        except Exception as error:  # whatever it is: the results of this and of the other photos stay
            reason = (str(error).splitlines() or [""])[0]
            line = f"{source}: {what} could not be drawn ({type(error).__name__}: {reason}); {rest}"
            self._failures.append((source, line))
            self.terminal.say(f"failed: {line}", style="red")
        else:
            write(self.folder / name, drawn)
            record[key] = name
            self._first_drawn = self._first_drawn or self.folder / name

    def write_labels(self, source: str, record: dict[str, Any], labels: Any, count: int) -> None:
        """Writes a picture's label map, of so many names, which the record then names."""
        from cliploc.draw.overlay import label_picture

        assert self.folder is not None
        record["label_map"] = name = self.names.of(source, "_labels")
        write(self.folder / name, encoded(label_picture(labels, count), name))

    def done(self, source: str, record: dict[str, Any], rows: Iterable[Sequence[str | Text]]) -> None:
        """A picture is done: records it, and prints its name, size and rows, which are read only to be printed."""
        self.records.append(record)
        self._reporter.images(1)
        if not self.quiet:
            size = f"  {record['width']}×{record['height']}" + "".join(f"  ({note})" for note in record["notes"])
            self.terminal.data(Text().append(printable(source), "bold").append(printable(size)))
            self.terminal.data(grid(list(rows), indent=2))

    # ---------------------------------------------------------------------------------------------------- at the end
    def keep(self, settings: Mapping[str, Any]) -> None:
        """Writes the document of the run so far."""
        from cliploc.document import skipped_document, to_document

        document = to_document([], self._failures, settings)
        self._document = document | {"pictures": self.records, "skipped": skipped_document(self._skipped)}
        if self.folder is not None:
            write(self.folder / RESULTS, output.json_text(self._document).encode())

    def end(self, counted: str = "", written: str = "", following: Sequence[object] = ()) -> int:
        """Prints the document, counts, files, and what to do next (else: open the first drawing) → the exit code."""
        if self.quiet:
            output.print_document(self._document)
        seconds = time.perf_counter() - self._start
        pictures = "picture" if len(self.paths) == 1 else "pictures"
        words = [f"{len(self.records)} of {len(self.paths)} {pictures} done{counted}, {seconds:.1f} s"]
        if self._failures:
            words.append(f"{len(self._failures)} failed")
        if not self.records:
            words.append("nothing could be done: check the pictures named above")
        elif written and self.folder is not None:
            words.append(f"{written} and {RESULTS} in {self.folder}")
        self.terminal.say("; ".join(words), style="dim")
        if self._first_drawn is not None:
            self.terminal.say_next(following or ("open", self._first_drawn), quiet=self.quiet)
        if not self.records:
            return output.NOTHING_DONE
        return output.SOME_FAILED if self._failures else output.DONE


# --------------------------------------------------------------------------------------------------------- file names
class ResultNames:
    """Gives each file of a folder its name: unique, and never that of an input."""

    def __init__(self, inputs: Inputs, folder: Path) -> None:
        self._inputs, self._folder = inputs, folder
        self._taken: set[str] = set()
        self._numbers: dict[tuple[str, str], int] = {}  # (stem, suffix) → the last number after the stem
        self._folders: dict[str, str] = {}  # of each name's maps

    def of(self, source: str, end: str, suffix: str = ".png") -> str:
        """The name, such as `cat_labels.png`; for a second picture of that stem `cat_labels-2.png`."""
        return self._free(f"{_plain(_file_of(source).stem)}{end}", suffix)

    def drawing(self, source: str, end: str, wh: tuple[int, int], kind: str = "jpg") -> str:
        """The same for a drawing of the picture's size, such as `cat_overlay.jpg`."""
        return self.of(source, end, f".{kind}" if max(wh) <= JPEG_MAX_SIDE or kind != "jpg" else ".png")

    def heatmap(self, name: str, photo: str) -> str:
        """The map of a name in a picture, such as `maps/cat/cat.jpg.npy`; the picture's folders are kept."""
        if name not in self._folders:
            plain = _plain(re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", name).strip(" .")) or "_"
            self._folders[name] = self._free(f"{MAPS}/{plain}", "")
        where, _, file = photo.rpartition("/")
        parts = (self._folders[name], *map(_plain, where.split("/")), _plain(file))
        return self._free("/".join(filter(None, parts)), ".npy")

    def _free(self, stem: str, suffix: str) -> str:
        """The name if it is free, else with `-2`, `-3` … after the stem."""
        # On macOS and Windows, names that differ in case only are the same file.
        same = (stem.casefold(), suffix)
        while True:
            number = self._numbers[same] = self._numbers.get(same, 0) + 1  # no name becomes free again
            name = f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
            if name.casefold() not in self._taken and self._folder / name not in self._inputs:
                self._taken.add(name.casefold())
                return name


def _file_of(source: str) -> Path:
    """A picture's path, whose name and stem name what is made of it; `demo:` is no part of them."""
    return Path(source.removeprefix(DEMO))


def _plain(text: str) -> str:
    """A name in UTF-8, as results.json holds it, with at most 200 bytes: most file systems allow 255."""
    text = re.sub("[\ud800-\udfff]", "_", text)
    return text.encode()[:200].decode(errors="ignore")


def encoded(drawn: Any, name: str) -> bytes:
    """A drawing as the content of a file of this name."""
    from cliploc.draw.sheet import Sheet, raster

    kind: Any = name.rpartition(".")[2]
    return drawn.file(kind) if isinstance(drawn, Sheet) else raster(drawn, kind)


# ------------------------------------------------------------------------------------------------ printed and recorded
def rows_of(result: cliploc.Localization) -> Iterator[Sequence[str | Text]]:
    """A localization as rows of a table: one for each box, or for a name that was not found."""
    for index, name in enumerate(result.names):
        is_found = result.found[index]
        boxes = result.boxes if is_found else result.unsure
        boxes = boxes.where(boxes.label == index)
        lines = [
            f"{result.score_text(index, score)}  box {output.box_text(xyxy)}"
            for xyxy, score in zip(boxes.xyxy, boxes.score, strict=True)
        ]
        if is_found:
            verdict = Text("found", "green")
            if result.presence_rule != "calibrated":
                lines = [f"{line}  presence {result.presence_text(index)}" for line in lines]
        else:
            verdict = Text(result.verdict(index).replace("not found", "no"), "yellow")
            lines.insert(0, result.reasons[index] or "")
        for number, line in enumerate(lines):
            yield ("", "", line) if number else (name, verdict, line)


def settings_of(localizer: cliploc.Localizer) -> dict[str, Any]:
    """The options of a run, with the values that defaults stand for."""
    options = localizer.options
    given = {name: getattr(options, name) for name, option in OPTIONS.items() if not option.python_only}
    method = localizer.method.name
    return given | {
        "method": method,
        "method_options": localizer.options_of(method, options.method_options),
        **{name: getattr(localizer, name) for name in OF_LOCALIZER},
        "device": str(localizer.backbone.device),
        "recipe": None if localizer.recipe is None else localizer.recipe.name,
        "interpolation": localizer.backbone.interpolation,
        "image_size": localizer.input_hw,
        "threshold": localizer.box_rule.threshold,
        **({"exemplars": localizer.exemplars} if localizer.exemplars else {}),
    }


MAPS_AT_ONCE = 4096  # photos × names; of 224×224 pixels they take 0.8 GB
NOT_OF_DRAFTS = ("background", "text_cache")  # `annotate` has no such options


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
    names, background = flags.names()
    of_drafts = {name: value for name, value in options.changed().items() if name not in NOT_OF_DRAFTS}
    options = options.but(background=(*options.background, *background))
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
        run.draw(source, record, "overlay", name, draw, what="its overlay")
        if masks:
            name = run.names.drawing(source, "_masks", wh, flags.figures)
            run.draw(source, record, "masks", name, partial(draw, masks=True), what="its masks")
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
    names, in_file = flags.names()
    background = [*(flags.background or []), *in_file]
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
                write(run.folder / LEGEND, json_text(label_legend(labels[1:])).encode())
            run.keep({"names": names, "background": background, **_settings(localizer, segmenter)})
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
            draw = partial(draw_segments, picture.image, labels, names, how)
            run.draw(source, record, "segments", name, draw, what="its segments", rest="its label map is kept")
        counts = [(name["name"], name["share"]) for name in record["names"] if name["value"] or name["pixels"]]
        run.done(source, record, [(name, f"{100 * share:5.1f} %") for name, share in counts])


def _settings(localizer: cliploc.Localizer, segmenter: Any) -> dict[str, Any]:
    """The settings of the run, with the values that defaults stand for."""
    from cliploc.draw.overlay import label_legend

    return {
        **settings_of(localizer),
        "cosines": localizer.method.cosines,
        "protocol": segmenter.protocol.describe(),
        "unknown": segmenter.unknown,
        "labels": label_legend([class_name.name for class_name in segmenter.protocol.classes[1:]])["labels"],
    }


OF_CLASSIFIER = ("model", "pretrained", "templates", "resize", "device", "precision", "batch_size", "text_cache")


class ClassifyFlags(cli.PhotoFlags):
    """What `classify` has besides options of `Localizer`."""

    top_k: cli.Count = cli.flag("Number of names per picture, best first.", 5, group="output")


@cli.command(only=OF_CLASSIFIER)
def classify(flags: ClassifyFlags, options: Options) -> int:
    """Rank names by how well they fit a whole picture.

    Without names, ImageNet's 1,000 classes are ranked. Pictures are fitted as the model's own preprocessing does it:
    CLIP takes the middle.

    Example: cliploc classify street.jpg -p bicycle -p car --top-k 1
    """
    from cliploc.find import prompts

    typed, background = flags.names()
    if background:
        raise UsageError(f"expected no background name, got {background[0]!r}: classify compares whole pictures")
    names = typed or cli.read_names("imagenet")[0]
    cli.check_words(names, "classify")
    prompts.parse(names, prompts.resolve_templates(options.templates), contrasts=False)  # before a model is loaded
    run = PhotoRun(flags.photos, quiet=flags.as_json)
    with run.started(f"loading {options.model}") as reporter:
        from cliploc.document import classified_record
        from cliploc.localizer import classifier

        cli.use_threads(flags.threads)
        localizer = classifier(**options.changed())
        reporter = replace(reporter, failed=run.fail)
        results = localizer.classify_stream(run.paths, names, flags.top_k, on_error="skip", reporter=reporter)
        for reason in localizer.unknown_names(names).values():
            run.terminal.say(f"left out: {reason}", style="yellow")
        for reading in localizer.readings(typed) if typed else ():  # nobody typed ImageNet's names
            run.terminal.say(reading, style="yellow")
        run.count(reporter, "classify")
        for result in results:
            picture = result.picture
            record = classified_record(picture.source, picture.image.size, picture.notes, result.names)
            ranked = [(name, f"{chance:.4f}", f"cosine {cosine:.4f}") for name, chance, cosine in result.names]
            rows = [(f"{rank}", *cells) for rank, cells in enumerate(ranked, start=1)]
            run.done(picture.source, record, rows)
    run.keep({"names": names, "top_k": flags.top_k, **settings_of(localizer)})
    return run.end()


CLIP_HINT = "With OpenAI's CLIP (the weights are downloaded once): cliploc demo --model RN50 --pretrained openai"
IOU_RULE = "IoU: the name's best-scored box with the true box it overlaps most; 0: it is there but has no box."


class DemoFlags(cli.WithThreads):
    """What `demo` has besides options of `Localizer`."""

    out: Path = cli.flag("Folder for the overlays.", Path("demo-out"), metavar="DIR", group="output")


@cli.command(only=("model", "pretrained", "method", "recipe", "min_score", "device", "precision"))
def demo(flags: DemoFlags, options: Options) -> int:
    """Try cliploc on the pictures that it includes."""
    from cliploc.draw.overlay import sheet
    from cliploc.images.demo import demo_photos
    from cliploc.images.geometry import iou_matrix
    from cliploc.values import GOOD_IOU

    folder, photos = writable(flags.out), list(demo_photos())
    files = [folder / f"{photo.path.stem}.jpg" for photo in photos]
    Inputs(photo.path for photo in photos).check_outputs(files)
    terminal = Terminal()
    rows = [title_row("picture", "name", "found", "score", "best box", "IoU")]
    verdicts: list[tuple[str, float | None]] = []  # and the IoU of the best box; None for a name that is not there
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        cli.use_threads(flags.threads)
        localizer = cliploc.Localizer(**options.changed())
        reporter.phase(localizer.method.name)
        reporter.start(len(photos), len(photos))
        results = localizer.stream([photo.path for photo in photos], [photo.ask for photo in photos])
        for photo, file, result in zip(photos, files, results, strict=False):
            for index, name in enumerate(result.names):
                boxes = result.visible_boxes.where(result.visible_boxes.label == index)
                iou = None if name not in photo.truth else 0.0
                if iou is not None and len(boxes):
                    iou = float(iou_matrix(boxes.xyxy[:1], photo.truth[name]).max())
                verdicts.append((result.verdict(index), iou))
                cells = _cells(result.verdict(index), iou, boxes, result.is_calibrated(index))
                rows.append([Text(photo.path.name), Text(name), *cells])
            write_bytes(file, sheet(result).file("jpg"))
            reporter.images(1)
    terminal.listing(rows)
    ious = [iou for _, iou in verdicts if iou is not None]
    absent = [verdict for verdict, iou in verdicts if iou is None]
    right, unsure = sum(iou >= GOOD_IOU for iou in ious), sum(verdict == "unsure" for verdict, _ in verdicts)
    line = f"found {right} of {len(ious)} (IoU ≥ {GOOD_IOU:g}), missed {len(ious) - right}, invented "
    line += f"{absent.count('found')} of {len(absent)}; mean IoU {sum(ious) / len(ious):.2f}; {unsure} unsure"
    for text in (line, IOU_RULE, f"wrote {len(photos)} overlays into {folder}", CLIP_HINT):
        terminal.data(printable(text))
    return DONE


def _cells(verdict: str, iou: float | None, boxes: cliploc.Boxes, calibrated: bool) -> list[Text]:
    """Whether a name was found, with what score and box, and the IoU; a wrong result has a sign too, not just red."""
    from cliploc.values import GOOD_IOU, rounded_below

    def marked(text: str, right: bool) -> Text:
        return Text(text, "green") if right else Text(f"{text} ✗", "red")

    word = {"found": "yes", "not found": "no"}.get(verdict, verdict)
    more = f" (+{len(boxes) - 1})" if len(boxes) > 1 else ""
    return [
        Text(word, "yellow") if word == "unsure" else marked(word, (verdict == "found") == (iou is not None)),
        Text(f"{boxes.score[0]:.2f}" if len(boxes) and calibrated else "–"),
        Text(box_text(boxes.xyxy[0]) + more if len(boxes) else "–"),
        Text("absent") if iou is None else marked(rounded_below(iou, GOOD_IOU), iou >= GOOD_IOU),
    ]
