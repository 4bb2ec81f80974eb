"""A run over photos: what is printed, drawn and written for each, and how the run ends."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cliploc._inputs import Inputs
from cliploc._terminal import Terminal, grid, printable
from cliploc.cli.output import DONE, NOTHING_DONE, SOME_FAILED, box_text, json_text, make_folder, write
from cliploc.errors import CliplocError, InputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from cliploc.config import Options
    from cliploc.images import Picture
    from cliploc.jobs.picture_files import Skipped
    from cliploc.localization import Localization
    from cliploc.localizer import Classification, Localizer
    from cliploc.report import ModelResults
    from cliploc.segmentation.segmenter import Labels

JPEG_MAX_SIDE = 65_500
RESULTS, MAPS, LEGEND = "results.json", "maps", "labels.json"


@dataclass(frozen=True)
class AskedPhotos:
    """The photos of a run: files that were named, and those of folders that were named."""

    paths: list[str]  # each file
    # path → its path below the folder that was named; the file's name if the file itself was named
    ids: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()  # files of the folders that were left out, and why


def asked_photos(terminal: Terminal, photos: Sequence[str], out: Path | None = None) -> AskedPhotos:
    """The photos named, and those in each folder named and its sub-folders; prints what is skipped there.

    Args:
        photos: files and folders. A folder without a picture stays, and will fail as a picture.
        out: the folder of results; pictures in it are left out.
    """
    from cliploc.jobs.picture_files import find_pictures

    paths: list[str] = []
    ids: dict[str, str] = {}
    skipped: list[Skipped] = []
    for photo in photos:
        path = Path(photo)
        try:
            found = find_pictures(photo, out) if os.path.isdir(photo) else None
        except (UsageError, ValueError):
            found = None
        if found is None:
            paths.append(photo)
            ids[photo] = path.name
            continue
        paths += [str(one.path) for one in found.pictures]
        ids |= {str(one.path): one.id for one in found.pictures}
        skipped += [replace(one, file=os.path.join(photo, one.file)) for one in found.skipped]
        if note := found.skipped_note():
            terminal.say(note, style="yellow")
    return AskedPhotos(paths, ids, skipped)


class _Photos:
    """What every run over photos keeps: a light record of each, what failed, and the exit code."""

    def __init__(self, terminal: Terminal, photos: AskedPhotos, quiet: bool) -> None:
        self._terminal, self._quiet, self._photos = terminal, quiet, photos
        self._records: list[dict[str, Any]] = []
        self._failures: list[tuple[str, str]] = []

    def fail(self, source: str, error: CliplocError) -> None:
        """Records a picture that cannot be used; the run goes on with the others."""
        self._failures.append((source, str(error)))
        self._terminal.say(f"failed: {error}", style="red")
        if not self._quiet and not self._terminal.one_screen:
            self._terminal.data(Text(printable(f"{source}  failed")))

    def _fail_drawing(self, source: str, what: str, error: Exception, kept: str = "its boxes are kept") -> None:
        """Records that a picture could not be drawn, for whatever reason; its results are kept and the run goes on."""
        reason = (str(error).splitlines() or [""])[0]
        self._fail_part(source, f"{what} could not be drawn ({type(error).__name__}: {reason}); {kept}")

    def _fail_part(self, source: str, reason: str) -> None:
        """Records that a part of the work on a picture failed."""
        line = f"{source}: {reason}"
        self._failures.append((source, line))
        self._terminal.say(f"failed: {line}", style="red")

    def document(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON document of the run so far."""
        from cliploc.jobs.picture_files import skipped_document
        from cliploc.report import to_document

        document = to_document([], self._failures, settings)
        return {**document, "pictures": self._records, "skipped": skipped_document(self._photos.skipped)}

    def summary(self, seconds: float) -> str:
        """One line at the end."""
        words = [f"{len(self._records)} of {len(self._photos.paths)} photos done{self._count()}, {seconds:.1f} s"]
        if self._failures:
            words.append(f"{len(self._failures)} failed")
        if not self._records:
            words.append("nothing could be done: check the photos named above")
        elif written := self._written():
            words.append(written)
        return "; ".join(words)

    def _count(self) -> str:
        return ""

    def _written(self) -> str:
        return ""

    @property
    def exit_code(self) -> int:
        if not self._records:
            return NOTHING_DONE
        return SOME_FAILED if self._failures else DONE


class LocalizeRun(_Photos):
    """Localizations as they come: each is printed and drawn.

    Args:
        folder: for overlays and results; None for none.
        quiet: whether nothing is printed of a photo that is done.
        masks: whether masks are in the records, and drawn into the folder.
    """

    def __init__(
        self,
        terminal: Terminal,
        folder: Path | None,
        photos: AskedPhotos,
        quiet: bool,
        others: Sequence[str] = (),
        save_maps: bool = False,
        masks: bool = False,
    ) -> None:
        super().__init__(terminal, photos, quiet)
        inputs = Inputs([*photos.paths, *others])
        self._folder, self._names, self._save_maps, self._masks = folder, _FileNames(inputs), save_maps, masks
        if folder is not None:
            inputs.refuse([folder / RESULTS, *([folder / LEGEND] if masks else [])])

    def take(self, result: Localization) -> None:
        """One picture is done."""
        from cliploc.report import to_document
        from cliploc.report.label_maps import label_picture

        record = to_document([result], [], {}, self._masks)["pictures"][0]
        if self._folder is not None:
            self._draw(result, self._folder, record, "overlay", "its overlay")
            if self._masks:
                self._draw(result, self._folder, record, "masks", "its masks")
                name = self._names.label_map(result.source, self._folder)
                labels = label_picture(result.label_map(), len(result.names))
                write(self._folder / name, _encoded(labels, name))
                record["label_map"] = name
            if self._save_maps:
                self._write_maps(result, self._folder, record)
        self._records.append(record)
        if not self._quiet:
            notes = "".join(f"  ({note})" for note in result.notes)
            size = f"  {result.image.width}×{result.image.height}{notes}"
            self._terminal.data(Text.assemble((printable(result.source), "bold"), printable(size)))
            self._terminal.data(grid(_lines(result), indent=2))

    def _draw(self, result: Localization, folder: Path, record: dict[str, Any], kind: str, what: str) -> None:
        """Draws a picture's "overlay" or "masks"; the record names the file."""
        name = self._names.overlay(result.source, folder, max(result.image.size), kind)
        try:
            drawn = _encoded(_overlay(result, kind == "masks"), name)
        except Exception as error:  # whatever it is: the results of this and of the other photos stay
            self._fail_drawing(result.source, what, error)
        else:
            write(folder / name, drawn)
            record[kind] = name

    def finish(self, names: Sequence[str]) -> None:
        """Writes the legend of the label maps, which is for all photos."""
        from cliploc import prompts
        from cliploc.report.label_maps import label_legend

        if self._folder is not None and self._masks:
            write(self._folder / LEGEND, json_text(label_legend(prompts.parse(names).names)).encode())

    def _write_maps(self, result: Localization, folder: Path, record: dict[str, Any]) -> None:
        """Writes a map for each name, for `cliploc evaluate --maps FOLDER/maps/NAME`, and adds it to the record."""
        import numpy as np

        from cliploc.metrics import SIDE

        for index, name in enumerate(result.names):
            [heat] = replace(result, maps=result.maps[index : index + 1]).maps_over_picture((SIDE, SIDE))
            file = self._names.heatmap(name, self._photos.ids[result.source], folder)
            content = io.BytesIO()
            np.save(content, heat)
            make_folder((folder / file).parent)
            write(folder / file, content.getvalue())
            record["names"][index]["map"] = file

    def _count(self) -> str:
        found = sum(name["found"] for record in self._records for name in record["names"])
        asked = sum(len(record["names"]) for record in self._records)
        return f", {found} of {asked} names found"

    def _written(self) -> str:
        kinds = ["overlays", *(["masks"] if self._masks else []), *(["maps"] if self._save_maps else [])]
        return "" if self._folder is None else f"{', '.join(kinds)} and {RESULTS} in {self._folder}"


def _lines(result: Localization) -> list[Sequence[str | Text]]:
    rows: list[Sequence[str | Text]] = []
    for index, name in enumerate(result.names):
        if not result.found[index]:
            rows.append((name, Text("no", style="yellow"), result.reasons[index] or ""))
            continue
        of_name = result.boxes.label == index
        presence = "" if result.presence_rule == "calibrated" else f"  presence {result.presence_text(index)}"
        boxes = [
            f"score {score:.2f}  box {box_text(xyxy)}{presence}"
            for xyxy, score in zip(result.boxes.xyxy[of_name], result.boxes.score[of_name], strict=True)
        ]
        rows.append((name, Text("found", style="green"), boxes[0]))
        rows += [("", "", box) for box in boxes[1:]]
    return rows


class CompareRun(_Photos):
    """Comparisons as they come: each is printed and drawn.

    Args:
        titles: method → its title, in the order of the rows.
        quiet: whether nothing is printed of a photo that is done.
    """

    def __init__(
        self,
        terminal: Terminal,
        folder: Path,
        photos: AskedPhotos,
        titles: Mapping[str, str],
        quiet: bool,
        others: Sequence[str] = (),
    ) -> None:
        super().__init__(terminal, photos, quiet)
        inputs = Inputs([*photos.paths, *others])
        self._folder, self._titles, self._names = folder, titles, _FileNames(inputs)
        inputs.refuse([folder / RESULTS])

    def take(self, source: str, models: Sequence[ModelResults], errors: Mapping[str, InputError]) -> None:
        """One picture is done, by all models."""
        from cliploc.report import compared_record, draw_comparison

        if len(errors) == len(models):
            self.fail(source, next(iter(errors.values())))
            return
        for model, error in errors.items():
            self._fail_part(source, f"not compared on {model}: {str(error).removeprefix(f'{source}: ')}")
        record = compared_record(models, self._titles)
        try:
            drawn = _encoded(draw_comparison(models, self._titles), ".png")
        except Exception as error:
            self._fail_drawing(source, "its sheet", error)
        else:
            name = self._names.comparison(source, self._folder)
            write(self._folder / name, drawn)
            record["figure"] = name
        self._records.append(record)
        if not self._quiet:
            size = f"  {record['width']}×{record['height']}" + "".join(f"  ({note})" for note in record["notes"])
            self._terminal.data(Text.assemble((printable(source), "bold"), printable(size)))
            self._terminal.data(grid(_compared_lines(models, list(self._titles)), indent=2))

    def _count(self) -> str:
        names = [name for record in self._records for one in record["results"] for name in one["names"]]
        return f", {sum(name['found'] for name in names)} of {len(names)} names found by the methods together"

    def _written(self) -> str:
        return f"sheets and {RESULTS} in {self._folder}"


def _compared_lines(models: Sequence[ModelResults], methods: Sequence[str]) -> list[Sequence[str | Text]]:
    """The lines of `_lines`, after model and method; a single model is not named."""
    rows: list[Sequence[str | Text]] = []
    for one in models:
        for method in methods:
            result = one.results.get(method)
            lines = [("", "–", one.missing[method])] if result is None else _lines(result)
            for number, line in enumerate(lines):
                start = ("", "") if number else (one.model, method)
                rows.append([*(start if len(models) > 1 else start[1:]), *line])
    return rows


class ClassifyRun(_Photos):
    """Classifications as they come: a line for each photo and rank, in columns known beforehand."""

    def __init__(self, terminal: Terminal, photos: AskedPhotos, names: Sequence[str], quiet: bool) -> None:
        super().__init__(terminal, photos, quiet)
        self._widths = [
            max(cell_len(printable(text)) for text in (title, *texts))
            for title, texts in (("photo", photos.paths), ("name", names))
        ]
        if not quiet:
            self._line(("photo", "rank", "name", "probability", "cosine"), "bold")

    def take(self, result: Classification) -> None:
        """One picture is done."""
        from cliploc.report import classified_record

        picture = result.picture
        self._records.append(classified_record(picture.source, picture.image.size, picture.notes, result.names))
        if not self._quiet:
            for rank, (name, probability, cosine) in enumerate(result.names, start=1):
                self._line((picture.source, f"{rank}", name, f"{probability:.4f}", f"{cosine:.4f}"))

    def _line(self, cells: tuple[str, str, str, str, str], style: str = "") -> None:
        photo, rank, name, probability, cosine = map(printable, cells)
        photo, name = (set_cell_size(text, width) for text, width in zip((photo, name), self._widths, strict=True))
        self._terminal.data(Text(f"{photo}  {rank:>4}  {name}  {probability:>11}  {cosine:>7}", style=style))


class SegmentRun(_Photos):
    """Label maps as they come: the share of each name is printed, and the map is written and drawn.

    Args:
        folder: for pictures and results; None for none.
        quiet: whether nothing is printed of a photo that is done.
        masks: whether the records hold each name's pixels as run lengths.
    """

    def __init__(
        self,
        terminal: Terminal,
        folder: Path | None,
        photos: AskedPhotos,
        names: Sequence[str],
        quiet: bool,
        others: Sequence[str] = (),
        masks: bool = False,
    ) -> None:
        super().__init__(terminal, photos, quiet)
        inputs = Inputs([*photos.paths, *others])
        self._folder, self._files, self._names, self._masks = folder, _FileNames(inputs), names, masks
        if folder is not None:
            inputs.refuse([folder / RESULTS, folder / LEGEND])

    def take(self, picture: Picture, labels: Labels, run: str) -> None:
        """One picture is done.

        Args:
            labels: its label map `[H, W]`.
            run: a line on how it was made, below the drawing.
        """
        from cliploc.report.label_maps import draw_segments, label_picture, segmented_record

        record = segmented_record(picture, labels, self._names, self._masks)
        if self._folder is not None:
            name = self._files.label_map(picture.source, self._folder)
            write(self._folder / name, _encoded(label_picture(labels.astype("uint16"), len(self._names) - 1), name))
            record["label_map"] = name
            name = self._files.overlay(picture.source, self._folder, max(picture.image.size), "segments")
            try:
                drawn = _encoded(draw_segments(picture.image, labels, self._names, run), name)
            except Exception as error:  # whatever it is: the label maps of this and of the other photos stay
                self._fail_drawing(picture.source, "its segments", error, "its label map is kept")
            else:
                write(self._folder / name, drawn)
                record["segments"] = name
        self._records.append(record)
        if not self._quiet:
            size = f"  {picture.image.width}×{picture.image.height}" + "".join(f"  ({one})" for one in picture.notes)
            self._terminal.data(Text.assemble((printable(picture.source), "bold"), printable(size)))
            rows = [(one["name"], f"{100 * one['share']:5.1f} %") for one in self._printed(record["names"])]
            self._terminal.data(grid(rows, indent=2))

    @staticmethod
    def _printed(names: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """All names, and the background where it has a pixel: many runs have none."""
        return [one for one in names if one["value"] or one["pixels"]]

    def finish(self) -> None:
        """Writes the legend of the label maps, which is for all photos."""
        from cliploc.report.label_maps import label_legend

        if self._folder is not None:
            write(self._folder / LEGEND, json_text(label_legend(self._names[1:])).encode())

    def _written(self) -> str:
        return "" if self._folder is None else f"label maps, segments and {RESULTS} in {self._folder}"


# ----------------------------------------------------------------------------------------------------------- overlays
class _FileNames:
    """Gives each overlay and map a file name: unique, and never that of an input."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._taken: set[str] = set()
        self._folders: dict[str, str] = {}  # of each name's maps

    def overlay(self, source: str, folder: Path, longest_side: int, kind: str = "overlay") -> str:
        """The name, such as `cat_overlay.jpg`; for a second picture of that stem `cat_overlay-2.jpg`."""
        suffix = ".jpg" if longest_side <= JPEG_MAX_SIDE else ".png"
        return self._free(f"{_short(_as_utf8(Path(source).stem))}_{kind}", suffix, folder)

    def label_map(self, source: str, folder: Path) -> str:
        """The name, such as `cat_labels.png`; for a second picture of that stem `cat_labels-2.png`."""
        return self._free(f"{_short(_as_utf8(Path(source).stem))}_labels", ".png", folder)

    def comparison(self, source: str, folder: Path) -> str:
        """The name, such as `cat-compare.png`; for a second picture of that stem `cat-compare-2.png`."""
        return self._free(f"{_short(_as_utf8(Path(source).stem))}-compare", ".png", folder)

    def heatmap(self, name: str, photo: str, folder: Path) -> str:
        """The map of a name in a photo, such as `maps/cat/cat.jpg.npy`; the photo's folders are kept."""
        if name not in self._folders:
            plain = _short(re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", _as_utf8(name)).strip(" .")) or "_"
            self._folders[name] = self._free(f"{MAPS}/{plain}", "", folder)
        where, _, file = _as_utf8(photo).rpartition("/")
        return self._free("/".join(filter(None, (self._folders[name], where, _short(file)))), ".npy", folder)

    def _free(self, stem: str, suffix: str, folder: Path) -> str:
        """The name if it is free, else with `-2`, `-3` … after the stem."""
        number = 1
        while True:
            name = f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
            # On macOS and Windows, names that differ in case only are the same file.
            if name.casefold() not in self._taken and folder / name not in self._inputs:
                self._taken.add(name.casefold())
                return name
            number += 1


def _as_utf8(text: str) -> str:
    """Replaces bytes of a file's name that are not UTF-8 by `_`, as results.json cannot hold them."""
    return "".join("_" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


def _short(stem: str) -> str:
    while len(os.fsencode(stem)) > 200:  # most file systems allow 255 bytes
        stem = stem[:-1]
    return stem


def _overlay(result: Localization, masks: bool) -> Image.Image:
    from cliploc.report import draw_overlay, panels

    draw = panels if len(result.names) > 1 else draw_overlay
    return draw(result, masks=True) if masks else draw(result)


def _encoded(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    if name.endswith(".jpg"):
        image.save(buffer, "JPEG", quality=90, subsampling=0)  # thin coloured lines and letters must stay crisp
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------- document
def model_settings(localizer: Localizer, options: Options, names: Iterable[str]) -> dict[str, Any]:
    """These options of a run, with the model's own values for templates, device and precision."""
    return {
        **{name: getattr(options, name) for name in names},
        "templates": localizer.templates,
        "device": str(localizer.backbone.device),
        "precision": localizer.precision,
    }
