"""Reads a label file or folder in any format, and finds the picture that a name in it means."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelSet, coco, cvat, flat_stem, labelstudio, table, voc, yolo
from cliploc.support.files import read_json, read_xml

FORMATS = "COCO's JSON, Label Studio's JSON, CVAT's XML, a CSV table, or a folder in YOLO's or VOC's layout"
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, OSError, RecursionError)
UPLOAD = re.compile(r"[0-9a-f]{8}(?:-|__)(?=.)")  # what Label Studio puts before the names of files


def read_labels(path: Path, formats: str = FORMATS) -> LabelSet:
    """Reads a set by its content; `formats` are those that an error names as expected."""
    try:
        if path.is_dir() or path.name.lower() in yolo.CLASS_LISTS:
            return _read_folder(path if path.is_dir() else path.parent)
        if path.suffix.lower() == ".xml":
            return replace(cvat.read(read_xml(path)), files=[path])
        if path.suffix.lower() == ".csv":
            return replace(table.read(path), files=[path])
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content:
            return replace(coco.read(content), files=[path])
        if isinstance(content, list) and content and all(isinstance(task, dict) and "data" in task for task in content):
            return replace(labelstudio.read(content), files=[path])
    except FileNotFoundError:
        raise UsageError(f"expected labels in {path}, found no such file: check the path") from None
    except UNREADABLE as error:
        raise UsageError(f"expected {formats}; {path} cannot be read ({in_one_line(error)}): export it again") from None
    raise UsageError(f"expected {formats}; {path} has other content: check the path")


def _read_folder(folder: Path) -> LabelSet:
    if described := next((folder / name for name in yolo.CLASS_LISTS if (folder / name).exists()), None):
        return yolo.read(folder, described)
    if files := sorted(folder.rglob("*.xml")):
        return voc.read(folder, files)
    raise ValueError("it has no data.yaml, no classes.txt and no XML")


def in_one_line(error: Exception) -> str:
    """An error in one line for people who do not know Python's errors; it may quote a number of thousands of digits."""
    if isinstance(error, InputError):  # which starts with the path
        return str(error).partition(": ")[2] or str(error)
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if isinstance(error, TypeError | IndexError | AttributeError | OverflowError):
        return "a value has the wrong form"
    return (str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__])[0][:200]


class PictureFinder:
    """Finds the picture that a set's name means: by its path, its end, or the name that an export gave it."""

    def __init__(
        self,
        pictures: Iterable[str],
        first: Mapping[str, str],
        more: Mapping[str, str],
        none: str = "no annotated picture of this run has this name",
    ) -> None:
        self._none = none
        self._pictures, self._first, self._more = set(pictures), _with_stems(first), _with_stems(more)
        self._deepest = 0  # folders and name of a picture
        self._by_end: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for picture in self._pictures:
            parts = PurePosixPath(picture).parts
            self._deepest = max(self._deepest, len(parts))
            for start in range(1, len(parts)):
                self._by_end["/".join(parts[start:])].append(picture)
            for stem in {PurePosixPath(picture).stem, flat_stem(picture), str(PurePosixPath(picture).with_suffix(""))}:
                self._by_stem[stem].append(picture)

    def __call__(self, names: Sequence[str], more: Sequence[str] = ()) -> str:
        """The picture that one of the names means, or else one of some more; a `ValueError` if none or several."""
        # Base names without the prefix that Label Studio puts before them, of those that have it.
        base = [PurePosixPath(name).name for name in (*names, *more)]
        bare = [name[match.end() :] for name in base if (match := UPLOAD.match(name))]
        first, last = partial(self._listed, self._first), partial(self._listed, self._more)
        for spelt in (names, more, bare):
            for look in (first, self._same, self._end, self._of_stem, last):
                for name in spelt:
                    matching = look(name)
                    if len(matching) == 1:
                        return matching[0]
                    if matching:
                        raise ValueError(f"it may be {' or '.join(sorted(matching)[:3])}: give its path")
        raise ValueError(self._none)

    def _listed(self, listed: Mapping[str, str], name: str) -> list[str]:
        return self._same(listed.get(PurePosixPath(name).name, ""))

    def _same(self, name: str) -> list[str]:
        return [name] if name in self._pictures else []

    def _end(self, name: str) -> list[str]:
        """The end of one path is the other."""
        parts = PurePosixPath(name).parts
        starts = range(max(1, len(parts) - self._deepest), len(parts))  # a name may have a million folders
        tails = ("/".join(parts[start:]) for start in starts)
        longest = next((tail for tail in tails if tail in self._pictures), None)
        return self._by_end.get(name, []) if longest is None else [longest]

    def _of_stem(self, name: str) -> list[str]:
        """The name as it is first: YOLO's has no ending, and `photo.1` may be `photo.1.jpg` beside `photo.jpg`."""
        path = PurePosixPath(name)
        stem = str(path.with_suffix("")) if path.name else name
        return self._by_stem.get(name) or self._by_stem.get(stem) or []


def _with_stems(listed: Mapping[str, str]) -> dict[str, str]:
    return {**{PurePosixPath(file).stem: picture for file, picture in listed.items()}, **listed}
