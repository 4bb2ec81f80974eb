"""Files: paths as users write them, documents read by a schema, and writing that is whole or not at all."""

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import msgspec
from msgspec import Meta, Struct

from cliploc.errors import InputError, UnknownNameError, UsageError


class DocumentError(ValueError):
    """A document that is not as its kind of file is written; the text says where."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file, with "\\n" at the end of each line."""
    return Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], kind: Any = Any) -> Any:
    """A JSON document in a file; see `parse_json`."""
    return parse_json(Path(path).read_bytes(), kind)


def parse_json(content: bytes | str, kind: Any = Any) -> Any:
    """A JSON document, as plain values that pass a schema: `kind`, a type as `msgspec` knows them."""
    try:
        read = json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except ValueError as error:
        raise DocumentError(str(error).partition(";")[0]) from None
    try:
        msgspec.convert(read, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise DocumentError(str(error)) from None
    return read


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def finite(text: str) -> float:
    """A number that a document has as text."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise DocumentError(f"expected a number, got {text[:24]!r}")


def integer(text: str) -> int:
    """An integer that a document has as text, such as 500 or 500.0."""
    value = finite(text)
    if value % 1 or abs(value) > 2**53:
        raise DocumentError(f"expected a whole number, got {text[:24]!r}")
    return int(value)


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """The root of an XML document; expat limits what entities expand to."""
    return parse_xml(Path(path).read_bytes(), comments=False)


def parse_xml(content: bytes, comments: bool = True) -> ElementTree.Element:
    """The root of an XML document, with comments or without."""
    builder = ElementTree.TreeBuilder(insert_comments=comments, insert_pis=comments)
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=builder))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # or of an unknown encoding
        raise DocumentError(str(error)) from None


def xml_again(root: ElementTree.Element, before: bytes) -> bytes:
    """An XML document that was changed, in UTF-8, with a declaration where it had one."""
    text: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=False)
    return (b'<?xml version="1.0" encoding="utf-8"?>\n' if before.lstrip().startswith(b"<?xml") else b"") + text


def read_yaml(path: Path) -> Any:
    """A YAML document of lists, mappings and texts: yaml's base loader, so that a class named "no" stays a text."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # that in C is much faster, but not in every build
    try:
        return yaml.load(read_text(path), loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None


# ------------------------------------------------------------------------------------------- folders of transformers
Width = Annotated[int, Meta(ge=1, le=2**20)]  # of a layer


class OpenClipConfig(Struct):  # open_clip_config.json
    model_cfg: dict[str, Any]


class WeightIndex(Struct):  # model.safetensors.index.json
    weight_map: dict[str, str]


# ---------------------------------------------------------------------------------------------------------------- files
LOCK = ".cliploc.lock"  # in a folder that a run writes into
DEMO = "demo:"  # before the file name of a photograph of the package
AnyPath = str | os.PathLike[str]


def user_path(path: AnyPath) -> Path:
    """A path as users write it, with `~` and `~name` replaced by that home folder, if it exists, as in a shell."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"expected a path, got {type(path).__name__}: write it as a text")
    return Path(os.path.expanduser(path))  # `Path.expanduser` raises an error where there is no such user


def demo_folder() -> Path:
    """The folder of the photographs that the package ships."""
    return Path(__file__).parents[1] / "demo_photos"


def demo_names() -> list[str]:
    """The names of the photographs of the package."""
    return sorted(path.name for path in demo_folder().glob("*.jpg"))


def picture_path(path: AnyPath) -> Path:
    """A picture's path as users write it, also with `~`: `demo:dogs.jpg` is of the package, if no file is called so."""
    text = os.fspath(path)
    if not text.startswith(DEMO) or os.path.lexists(text):
        return user_path(path)
    name, photos = text.removeprefix(DEMO), demo_names()
    if name not in photos:
        raise InputError(f"{text}: {UnknownNameError('demo picture', name, photos)}")
    return demo_folder() / name


def files_below(root: Path) -> list[Path]:
    """The files below a folder, sorted; a folder that cannot be read is an error, as `Path.rglob` leaves it out."""

    def fail(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): check permissions") from error

    return sorted(Path(folder, name) for folder, _, names in os.walk(root, onerror=fail) for name in names)


# ------------------------------------------------------------------------------------------------------------- writing
def write_atomic(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Lets `write` fill a temporary file beside `path`, which takes its place, once it is on the disk if `durable`."""
    temporary = _temporary(path)
    try:
        write(temporary)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # The user knows this name, not the temporary one; an error of fsync has no name.
        if isinstance(error, OSError) and error.filename in (temporary, str(temporary), None):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomic_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a new folder beside `path`, which then replaces what is at `path`."""
    temporary, earlier = _temporary(path), _temporary(path)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if hasattr(os, "sync"):  # one sync for thousands of small files
            os.sync()
        if path.exists():
            path.rename(earlier)
        try:
            temporary.rename(path)
        except BaseException:
            if earlier.exists():  # the old folder is better than none
                earlier.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A new name beside a file; the file's name is not part of it, as names have a maximum length."""
    return path.with_name(f".cliploc-{os.urandom(8).hex()}.tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically; one that holds this already stays as it is."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    # A byte of a file name that is not UTF-8 becomes a \udcff, which JSON reads back.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], end: str = "\n") -> str:
    """A CSV table; a missing value and None are empty cells."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def write_output(path: Path, content: bytes, option: str) -> None:
    """Writes a file that an option names atomically; a link of its name is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {path}: {reason}: free space or choose another place with {option}") from error


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Makes a folder, into which no other run writes meanwhile; nothing is locked for None.

    Temporary files of a run that was killed are removed first.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout  # late, as it takes 30 ms

    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / LOCK, timeout=0))
            for left in folder.glob(".cliploc-" + "[0-9a-f]" * 16 + ".tmp"):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink(missing_ok=True)
        except Timeout:
            raise UsageError(
                f"another run is writing into {folder}: wait until it ends, or choose another --out"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}: choose another folder with --out") from error
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps it while it is open
                (folder / LOCK).unlink()


# -------------------------------------------------------------------------------------------------------------- inputs
def refuse_taken(folder: Path, names: Iterable[str]) -> None:
    """Refuses a folder that holds files of these names, which something else wrote."""
    if taken := [name for name in names if os.path.lexists(folder / name)]:
        raise UsageError(
            f"{folder} holds {', '.join(taken)}, not written by this run, which would overwrite it: move it away, or "
            "choose another --out"
        )


class Inputs:
    """Files that a run reads, also by the name of a link: no output may have such a name."""

    def __init__(self, paths: Iterable[AnyPath]) -> None:
        self._paths = set[str]()
        for path in paths:
            if "\0" not in os.fspath(path):  # such a name has no file
                self._paths |= {_place(path), os.path.normcase(os.path.realpath(path))}

    def __contains__(self, path: AnyPath) -> bool:
        return _place(path) in self._paths

    def check_outputs(self, files: Iterable[AnyPath], folders: Iterable[AnyPath] = ()) -> None:
        """Refuses outputs that would overwrite inputs."""
        for file in files:
            if file in self:
                raise UsageError(f"{file} is read by this run, and would be overwritten: choose another --out")
        for folder in folders:
            inside = os.path.join(os.path.normcase(os.path.realpath(folder)), "")
            if any(path.startswith(inside) for path in self._paths):
                raise UsageError(
                    f"{folder} holds what this run reads, and its content would be replaced: choose another --out"
                )


def _place(path: AnyPath) -> str:
    """A file's name in its folder, whatever links lead to the folder."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.normcase(os.path.join(os.path.realpath(folder or "."), name))
