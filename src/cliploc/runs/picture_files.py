"""The pictures of a run: finds them (folder, pattern, list, paths), with what is true of them; sees replaced ones."""

import functools
import glob
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from cliploc.errors import UsageError
from cliploc.formats import Size, exports
from cliploc.images.reading import SUFFIXES, LabelMap, load
from cliploc.options import short
from cliploc.runs import engine, store
from cliploc.support.files import DEMO, AnyPath, demo_folder, demo_names, picture_path, read_text, user_path
from cliploc.values import DatasetSplit, FloatArray, Sample


@dataclass(frozen=True)
class TrueLabels:
    """Where the true label map of a picture comes from."""

    read: Callable[[], LabelMap]  # `[H, W]` labels; 255 for pixels that do not count
    facts: tuple[Any, ...]  # what distinguishes it from another label map, as plain values without the dataset's folder
    files: tuple[Path, ...] = ()  # that it is read from, beside the picture's


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with a true label map."""

    id: str  # unique in its dataset; may hold sub-folders
    path: Path  # the picture, or the file that it is in
    size_wh: Size  # width and height of the picture and of its label map; 0, 0 until the picture's file is checked
    truth: TrueLabels  # its label map
    # what is asked for if each picture has one name of its own (ImageNet-Segmentation); None: all classes
    name: str | None = None
    decode: Callable[[], Image.Image] | None = None  # reads the picture, if `path` is not a picture file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this picture alone; none of a file that holds all pictures."""
        return () if self.decode is not None else (self.path, *self.truth.files)

    def picture(self) -> Image.Image:
        """The picture, RGB."""
        return load(self.path).image if self.decode is None else self.decode()


@dataclass(frozen=True)
class PromptedPicture:
    """A picture with the names to ask."""

    id: str  # its path below the dataset's folder
    path: Path
    size_wh: Size  # of the original picture, to which the boxes belong
    labels: tuple[int, ...]  # to ask, in order
    truth: Mapping[int, FloatArray]  # label → its boxes `[m, 4]`, of those that are there


PromptedDataset: TypeAlias = DatasetSplit[PromptedPicture]
LabelledDataset: TypeAlias = DatasetSplit[LabelledPicture]


# ---------------------------------------------------------------------------------------------------------------- files
LISTS = (".txt", ".lst", ".list")
NO_PICTURE, RESULTS, CLOSED = "without a picture's extension", "of results", "that cannot be read"
IN_NOTE = 5  # skipped files that a note names
READERS = 4  # files read at the same time


@dataclass(frozen=True)
class PictureFile:
    """A file to annotate."""

    id: str  # its path below the root, with slashes; the whole path if it is elsewhere
    path: Path  # the file
    labels: tuple[int, ...] = field(default=(), kw_only=True)  # that are looked for; none: all of the run


def by_path(picture: PictureFile) -> list[tuple[bool, str]]:
    """Sorts pictures by path, those of a folder before those of its sub-folders, as folders are searched."""
    *folders, name = picture.id.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


class Skipped(NamedTuple):
    """A file that was found and left out, or a folder, whose path ends with a slash."""

    file: str  # its path below the root, with slashes
    reason: str  # why it was left out


@dataclass(frozen=True)
class FoundPictures:
    """The pictures that were found, and what was left out."""

    root: Path  # the folder that the pictures' ids are relative to
    pictures: list[PictureFile]  # the pictures in order, each once
    skipped: list[Skipped]  # other files and folders there, except hidden ones

    def skipped_note(self) -> str | None:
        """One line on what was skipped; None if nothing was."""
        parts = []
        for reason in (NO_PICTURE, RESULTS, CLOSED):
            if names := [each.file for each in self.skipped if each.reason == reason]:
                more = f" and {len(names) - IN_NOTE:,} more" if len(names) > IN_NOTE else ""
                parts.append(f"{len(names):,} {reason}: {', '.join(names[:IN_NOTE])}{more}")
        return f"skipped in {self.root}: {'; '.join(parts)}" if parts else None


def find_pictures(where: AnyPath | Sequence[AnyPath], out: Path | None = None) -> FoundPictures:
    """The pictures of a folder, pattern, list file or paths; without results (`out`) and other files."""
    if not isinstance(where, str | os.PathLike):
        if not isinstance(where, Sequence) or not all(isinstance(path, str | os.PathLike) for path in where):
            raise UsageError(f"expected a folder, pattern, list file or paths of pictures, got {short(where)}")
        return _below(Path.cwd(), (picture_path(path) for path in where), "the list")
    text = os.fspath(where)
    if text == DEMO:  # without the other files of the package
        return _below(demo_folder(), [demo_folder() / name for name in demo_names()], text)
    path = picture_path(text)
    if path.is_dir():
        return _below(path, _walk(path, out), text)
    if path.is_file() and path.suffix.lower() in LISTS:
        try:
            lines = [line.strip() for line in read_text(path).splitlines()]
        except UnicodeDecodeError:
            raise UsageError(f"expected {path} to list pictures, one per line, in UTF-8: save it as UTF-8") from None
        listed = (path.parent / user_path(line) for line in lines if line and not line.startswith("#"))
        return _below(path.parent, listed, text)
    if path.is_file() and _is_picture(path.name):
        return _below(path.parent, [path], text)
    if glob.has_magic(text):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
        return _below(root, _matches(root, path), text)
    ways = "a folder of pictures, a pattern such as 'photos/**/*.jpg' or a .txt list of them"
    raise UsageError(f"expected {ways}, got {text}: check the path")


def _walk(root: Path, out: Path | None) -> Iterator[Path | Skipped]:
    """The pictures of a folder, and what is left out."""
    excluded = None if out is None else os.path.realpath(out)
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append):
        paths = {name: Path(folder, name) for name in sorted(folders) if not name.startswith(".")}
        folders.clear()
        for name, path in paths.items():
            if _of_results(path) or os.path.realpath(path) == excluded:
                yield Skipped(f"{_id(root, path)}/", RESULTS)
            else:
                folders.append(name)
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            yield path if _is_picture(path.name) else Skipped(_id(root, path), NO_PICTURE)
    yield from (Skipped(f"{_id(root, Path(error.filename))}/", CLOSED) for error in errors)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _matches(root: Path, pattern: Path) -> Iterator[Path | Skipped]:
    """The pictures that match a pattern, without hidden ones; unlike the `glob` module's, `**` follows no links."""
    inside, below = functools.cache(functools.partial(_in_results, root)), pattern.relative_to(root)
    for path in sorted(root.glob(str(below)) if below.parts else [root]):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if inside(path.parent):
            yield Skipped(_id(root, path), RESULTS)
        elif _is_picture(path.name):
            yield path
        elif not path.is_dir():
            yield Skipped(_id(root, path), NO_PICTURE)


def _of_results(folder: Path) -> bool:
    """Whether a folder is an annotation's, or an export in one: links to pictures are annotated already."""
    written = (folder.parent / store.FILE).is_file() and any(folder.name in form.outputs for form in exports)
    return written or (folder / store.FILE).is_file()


def _in_results(root: Path, folder: Path) -> bool:
    """Whether a folder below the root is an annotation's or is in one."""
    return folder not in (root, folder.parent) and (_of_results(folder) or _in_results(root, folder.parent))


def _below(root: Path, paths: Iterable[Path | Skipped], where: str) -> FoundPictures:
    """The result for these paths."""
    found = list(paths)
    skipped = [one for one in found if isinstance(one, Skipped)]
    files = dict[str, PictureFile]()
    for path in (one for one in found if isinstance(one, Path)):
        name = _id(root, path)
        files.setdefault(name, PictureFile(name, path))
    if not files:
        if closed := [one.file for one in skipped if one.reason == CLOSED]:
            raise UsageError(f"expected pictures in {where}, but {root / closed[0]} cannot be read: check permissions")
        raise UsageError(f"expected pictures in {where}, found none: check the path ({', '.join(sorted(SUFFIXES))})")
    return FoundPictures(root, [*files.values()], skipped)


def _id(root: Path, path: Path) -> str:
    """A file's path below the root, with slashes; its absolute path if it is elsewhere."""
    try:
        return path.absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def bad_name(name: str) -> str | None:
    """Why an export cannot contain a file's name; None if it can."""
    kinds = {unicodedata.category(letter) for letter in name}
    if "Cs" in kinds:
        return "its name is not UTF-8: rename it"
    return "its name holds a control character: rename it" if "Cc" in kinds else None


SampleLike: TypeAlias = Sample | LabelledPicture | PromptedPicture | PictureFile


def files_of(sample: SampleLike) -> list[Path]:
    """The files that a sample's row depends on: its picture and masks."""
    if isinstance(sample, LabelledPicture):
        return list(sample.files)
    if isinstance(sample, PictureFile | PromptedPicture):
        return [sample.path]
    return [sample.path, *sample.masks, *([] if sample.ignore is None else [sample.ignore])]


def stamp(sample: SampleLike) -> str:
    """A stamp of a sample's files by size and times, also the inode's, which cannot be set back; nothing is read."""
    facts: list[tuple[int, int, int] | None] = []
    for path in files_of(sample):
        try:
            status = path.stat()
            facts.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except (OSError, ValueError):
            facts.append(None)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


_NOT_READ = b"cannot be read"
UNREAD = hashlib.blake2b(_NOT_READ, digest_size=16).hexdigest()  # the digest of a picture that cannot be read


def content_digest(sample: SampleLike) -> str:
    """blake2b digest of the files' content; a file that cannot be read gives a fixed value."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files_of(sample):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        except (OSError, ValueError):
            digest.update(_NOT_READ)
    return digest.hexdigest()


def digested(shards: Iterable[engine.Shard]) -> Iterator[tuple[engine.Shard, list[str]]]:
    """Shards with the digests of their samples, in order, which are computed before these are decoded."""
    with ThreadPoolExecutor(READERS, "cliploc-digest") as pool:
        for shard in shards:
            yield shard, list(pool.map(content_digest, shard.samples))
