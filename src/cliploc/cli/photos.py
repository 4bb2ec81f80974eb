"""A run over pictures: what is printed, drawn and written for each, and how the run ends."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.text import Text

import cliploc
from cliploc.cli import output
from cliploc.cli.output import printable, write
from cliploc.cli.terminal import Terminal, grid
from cliploc.options import OPTIONS
from cliploc.support.files import DEMO, Inputs, demo_names, locked
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
    def started(self, label: str) -> Iterator[cliploc.Reporter]:
        """Shows progress; no other run may write into the folder meanwhile."""
        self._start = time.perf_counter()
        with locked(self.folder), self.terminal.progress(label) as self._reporter:
            yield self._reporter

    def count(self, reporter: cliploc.Reporter, phase: str) -> None:
        """The models are loaded: from here on pictures are counted."""
        reporter.phase(phase)
        reporter.start(len(self.paths), len(self.paths))

    # ------------------------------------------------------------------------------------------------ for each photo
    def fail(self, source: str, error: cliploc.CliplocError) -> None:
        """Records a picture that cannot be used; the run goes on with the others."""
        self._failures.append((source, str(error)))
        self._reporter.images(1)
        self.terminal.say(f"failed: {error}", style="red")
        if not self.quiet and not self.terminal.one_screen:
            self.terminal.data(printable(f"{source}  failed"))

    def draw(self, source: str, record: dict[str, Any], key: str, name: str, draw: Callable[[], Any]) -> None:
        """Draws a file, which the record then names; if that fails, the results are kept and the run goes on."""
        assert self.folder is not None
        try:
            drawn = encoded(draw(), name)
        except Exception as error:  # whatever it is: the results of this and of the other photos stay
            reason = (str(error).splitlines() or [""])[0]
            line = f"{source}: its {key} could not be drawn ({type(error).__name__}: {reason}); its results are kept"
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
