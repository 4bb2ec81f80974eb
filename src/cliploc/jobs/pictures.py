"""Which pictures are meant: those of a folder with its sub-folders, of a pattern, of a list file, or named."""

from __future__ import annotations

import functools
import glob
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.images import SUFFIXES

RUN_KIND = "annotate"  # of the manifest in an annotation's folder
LISTS = (".txt", ".lst", ".list")
NO_XML = frozenset("\ufffe\uffff")  # besides the control characters


@dataclass(frozen=True)
class PictureFile:
    """A file to annotate.

    Attributes:
        id: its path below the root, with slashes; the whole path where it lies elsewhere.
        path: the file.
    """

    id: str
    path: Path


def find_pictures(where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, list[PictureFile]]:
    """The pictures meant, and the folder that their ids are below.

    Args:
        where: a folder, searched with its sub-folders (hidden ones left out) for files that end as pictures do; a
            pattern such as `photos/**/*.jpg`; one picture; a `.txt` file with a path a line, relative to the file; or
            a list of paths. Folders and patterns leave out what lies in the folder of an annotation.

    Raises:
        UsageError: nothing there.
    """
    if not isinstance(where, str | os.PathLike):
        return _below(Path.cwd(), (Path(one) for one in where), "the list")
    text = os.fspath(where)
    path = Path(text).expanduser()
    if path.is_dir():
        return _below(path, _walk(path), text)
    if path.is_file() and path.suffix.lower() in LISTS:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"expected {path} to list pictures, one a line, in UTF-8: save it as UTF-8") from None
        said = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return _below(path.parent, (path.parent / Path(line).expanduser() for line in said), text)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _below(path.parent, [path], text)
    if glob.has_magic(text):
        root = Path(*_until_magic(path))
        inside = functools.cache(functools.partial(_in_results, root))
        matches = (Path(one) for one in sorted(glob.glob(str(path), recursive=True)))
        return _below(root, (one for one in matches if one.suffix.lower() in SUFFIXES and not inside(one.parent)), text)
    raise UsageError(
        f"expected a folder of pictures, a pattern such as 'photos/**/*.jpg' or a .txt list of them, got {text}: check "
        "the path"
    )


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and not _of_results(Path(folder, one)))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(folder) / name


def _of_results(folder: Path) -> bool:
    """Whether it is an annotation's: YOLO's export in it links to pictures that are annotated already."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == RUN_KIND


def _in_results(root: Path, folder: Path) -> bool:
    """Whether a folder is an annotation's or lies in one, below the root."""
    return folder not in (root, folder.parent) and (_of_results(folder) or _in_results(root, folder.parent))


def _until_magic(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts or ["."]


def _below(root: Path, paths: Iterable[Path], said: str) -> tuple[Path, list[PictureFile]]:
    pictures: dict[str, PictureFile] = {}
    for path in paths:
        try:
            name = path.absolute().relative_to(root.absolute()).as_posix()
        except ValueError:  # elsewhere
            name = path.absolute().as_posix()
        pictures.setdefault(name, PictureFile(name, path))
    if not pictures:
        raise UsageError(f"expected pictures in {said}, found none: check the path ({', '.join(sorted(SUFFIXES))})")
    return root, list(pictures.values())


def bad_name(name: str) -> str | None:
    """Why a file's name could not be written down in an export; None when it can."""
    kinds = {unicodedata.category(letter) for letter in name}
    if "Cs" in kinds:
        return "its name is not UTF-8: rename it"
    return "its name holds a control character: rename it" if "Cc" in kinds or NO_XML & set(name) else None
