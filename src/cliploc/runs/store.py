"""A run's results in one SQLite file: what was committed is in it after a kill, and nothing else.

SQLite's transactions are the only mechanism: a batch of pictures, a person's save and a refit are each written whole or
not at all. Readers see the state before or after a transaction, also while another process writes.
"""

import errno
import json
import os
import platform
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Self, TypeVar

import msgspec

from cliploc.errors import CliplocError, UsageError
from cliploc.support.files import Inputs, locked, refuse_taken

T = TypeVar("T")
FILE = "run.sqlite"
WAIT_S = 30.0  # for another process that writes; a transaction takes milliseconds
NO_ROOM = "no room left on the disk for {}: what was saved is kept; free space and run the same command again"
FULL = (errno.ENOSPC, errno.EDQUOT)  # what the system says of a full disk
NAMED = 3  # differences that a message names
LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
RUN = "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"  # values are JSON


class DiskFullError(CliplocError):
    """The disk is full. What was committed is kept, and the same command goes on."""


class Entry(Generic[T]):
    """An entry of the table `run`, as an attribute of an object with a `store`."""

    def __init__(self, kind: Any, default: T) -> None:
        self._kind, self._default = kind, default

    def __set_name__(self, _: type, name: str) -> None:
        self._key = name

    def __get__(self, run: Any, _: type | None = None) -> T:
        value = run.store.get(self._key)
        made: T = self._default if value is None else msgspec.convert(value, self._kind)
        return made

    def __set__(self, run: Any, value: T) -> None:
        run.store[self._key] = value


class Store:
    """The file of a run. Threads may share it; any number of processes may have it open."""

    sessions: Entry[list[dict[str, Any]]] = Entry(list[dict[str, Any]], [])  # when, where and how it was worked on

    def __init__(self, path: Path, kind: str, version: int, tables: Iterable[str] = ()) -> None:
        """Opens the file of a run of this kind and version, or makes it with these tables.

        Without any tables the file must be there, and one that cannot be written is opened to be read.
        """
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0  # of transactions
        with self._errors():
            self._db = self._opened(bool(tables))
            if tables and not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone():
                with self.transaction():
                    for statement in (RUN, *tables):
                        self._db.execute(statement)
                    self["kind"], self["version"] = kind, version
            has_run = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone()
            found = (self.get("kind"), self.get("version")) if has_run else (None, None)
        if found != (kind, version):
            self.close()
            what = "another file" if found[0] is None else f"a run of {found[0]}, version {found[1]} of its file"
            raise UsageError(
                f"expected a run of {kind}, version {version} of its file, in {path}, got {what}: choose another "
                "--out, or use the cliploc that made it"
            )

    def _opened(self, new: bool) -> sqlite3.Connection:
        """The connection: to write where that can be done, else to look."""
        if not new and not self.path.is_file():
            folder, file = self.path.parent, self.path.name
            raise UsageError(f"expected a run in {folder}, found no {file}: give the --out of a run")
        address = self.path.absolute().as_uri()
        if new or (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)):
            db = _connect(f"{address}?mode={'rwc' if new else 'rw'}")
            db.execute("PRAGMA journal_mode = WAL")  # a file system without shared memory keeps its journal
            db.execute("PRAGMA synchronous = FULL")  # a save that was answered survives a power cut
            db.execute("PRAGMA foreign_keys = ON")
            self.writable = True
            return db
        self.writable = False
        db = _connect(f"{address}?mode=ro")
        try:
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:  # nobody can write beside it, so no journal is needed
            db.close()
            db = _connect(f"{address}?immutable=1")
        return db

    def close(self) -> None:
        """Closes the file; whoever closes it last leaves one file, without a journal."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------ statements
    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, whenever the process ends or the disk is full; one within another is part of it."""
        with self._lock, self._errors():
            if self._depth:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    @contextmanager
    def snapshot(self) -> Iterator[Self]:
        """The file as it is now, on a connection of its own, however others go on writing."""
        other = object.__new__(type(self))
        other.path, other._lock, other._depth = self.path, threading.RLock(), 0
        with ExitStack() as ending, self._errors():
            other._db = other._opened(new=False)
            ending.callback(other.close)
            other._db.execute("BEGIN")
            yield other

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._lock, self._errors():
            return self._db.execute(statement, values).fetchall()

    def row(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row of a query; None where there is none."""
        with self._lock, self._errors():
            first: tuple[Any, ...] | None = self._db.execute(statement, values).fetchone()
            return first

    def each(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one after the other, where memory should not hold them all."""
        with self._errors():
            yield from self._db.execute(statement, values)

    def write(self, statement: str, *values: Any) -> int:
        """Changes rows → the id of an inserted one; within a transaction, or as one."""
        with self.transaction():
            return int(self._db.execute(statement, values).lastrowid or 0)

    def insert(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Adds rows, with a value for each column."""
        with self.transaction():
            lines = list(rows)
            if lines:
                marks = ", ".join("?" * len(lines[0]))
                self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", lines)

    # ------------------------------------------------------------------------------------------------ the table `run`
    store = property(lambda self: self)  # where entries that are attributes are found: see `Entry`

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the table `run`, read from its JSON."""
        row = self.row("SELECT value FROM run WHERE key = ?", key)
        return default if row is None else json.loads(row[0])

    def __getitem__(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        text = json.dumps(value, allow_nan=False, default=partial(msgspec.to_builtins, enc_hook=str))
        with self.transaction():
            if self.row("SELECT value FROM run WHERE key = ?", key) != (text,):  # else the file stays as it is
                self.write("INSERT OR REPLACE INTO run VALUES (?, ?)", key, text)

    def keep(self, key: str, requested: Mapping[str, Any]) -> None:
        """Stores settings that all of a run has in common; where there are others, refuses with what differs."""
        with self.transaction():
            stored = self.get(key)
            if stored is None:
                self[key] = requested
                return
        if differences := differences_of(stored, json.loads(json.dumps(requested, allow_nan=False, default=str))):
            more = f", and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
            raise UsageError(
                f"{self.path.parent} holds a run with other settings ({'; '.join(differences[:NAMED])}{more}): repeat "
                "its command to resume it, or choose another --out"
            )

    def begin_session(self) -> None:
        """Notes when, where and with which versions a run was started or resumed."""
        self.sessions = [*self.sessions, session()]

    # ---------------------------------------------------------------------------------------------------------- errors
    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns SQLite's errors into a line that says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            code = None if code is None else code & 0xFF  # the primary one
            if code == sqlite3.SQLITE_FULL or _no_room(self.path.parent):
                raise DiskFullError(NO_ROOM.format(self.path)) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise UsageError(
                    f"{self.path} is damaged ({error}): make a new run in another --out; exports in "
                    f"{self.path.parent} hold what they held when they were written"
                ) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise UsageError(f"{self.path} is being written by another process: try again") from error
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
                what = f"cannot write {self.path} ({error})"
                raise UsageError(f"{what}: check permissions, or choose another --out") from error
            raise


def kind_of(folder: Path) -> str | None:
    """What the run in a folder does, "" where its file cannot be read; None where there is no run."""
    path = folder / FILE
    if not path.is_file():
        return None
    with suppress(sqlite3.Error), closing(_connect(f"{path.absolute().as_uri()}?mode=ro")) as db:
        return str(json.loads(db.execute("SELECT value FROM run WHERE key = 'kind'").fetchone()[0]))
    return ""


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turns the error of a full disk, when other files of a run are written, into a line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(NO_ROOM.format(out)) from error


@contextmanager
def interrupt_message(out: Path, done: Callable[[], str]) -> Iterator[None]:
    """Lets an interruption say what is kept, and that the run goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{done()} in {out} are kept, and the same command goes on") from stop


@dataclass(frozen=True)
class RunKind:
    """What a run is that keeps a row for each picture in a store, and writes its results at the end."""

    name: str
    version: int  # of its store
    table: str  # the statement that makes its table `picture`
    outputs: tuple[str, ...]  # files beside the store

    @contextmanager
    def opened(self, out: Path | None, inputs: Iterable[Path], settings: Mapping[str, Any]) -> Iterator[Store]:
        """The store of a run with these settings, in a locked folder; without one it is thrown away."""
        with ExitStack() as stack:
            folder = out or Path(stack.enter_context(TemporaryDirectory()))
            Inputs(inputs).check_outputs(folder / name for name in (FILE, *self.outputs))
            if not (folder / FILE).exists():
                refuse_taken(folder, self.outputs)
            stack.enter_context(locked(folder))
            stack.enter_context(disk_errors(folder))
            store = stack.enter_context(Store(folder / FILE, self.name, self.version, (self.table,)))
            store.keep("settings", settings)
            store.begin_session()
            if out is not None:
                rows = "SELECT COUNT(*) FROM picture"
                stack.enter_context(interrupt_message(out, lambda: f"{store.rows(rows)[0][0]:,} pictures"))
            yield store


def _connect(address: str) -> sqlite3.Connection:
    return sqlite3.connect(address, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False)


def _no_room(folder: Path) -> bool:
    """Whether a disk is full: SQLite says "disk I/O error" where its journal has no room."""
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # not on Windows
        return False
    return status.f_bavail * status.f_frsize < 2**16


def differences_of(stored: Any, requested: Any, where: str = "") -> list[str]:
    """What differs between settings, as "key: … there, … asked for"."""
    if isinstance(stored, dict) and isinstance(requested, dict):
        found: list[str] = []
        for key in dict.fromkeys([*stored, *requested]):
            name = f"{where}.{key}" if where else key
            if (key in stored) != (key in requested):
                found.append(f"{name}: only {'there' if key in stored else 'asked for'}")
            else:
                found += differences_of(stored[key], requested[key], name)
        return found
    if stored == requested:
        return []
    both = [stored, requested]
    if isinstance(stored, list) and isinstance(requested, list):  # long ones may differ in one entry
        both = [[value for value in one if value not in other] for one, other in (both, both[::-1])]
        both = [stored, requested] if both == [[], []] else both
    texts = [json.dumps(value, ensure_ascii=False) for value in both]
    there, asked = (text if len(text) <= 60 else f"{text[:57]}…" for text in texts)
    return [f"{where}: {there} there, {asked} asked for"]


def session() -> dict[str, Any]:
    """An entry of a run's sessions: when, where and with which versions a run was started or resumed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    processor = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    machine = {"node": platform.node(), "system": platform.platform(), **processor}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"started": started, "command": sys.argv, "versions": versions, "machine": machine}


KIND, VERSION = "evaluation", 1
# ---------------------------------------------------------------------------------------------------------- evaluations
PICTURE = """CREATE TABLE picture (
    place INTEGER PRIMARY KEY,    -- in the dataset, from 0
    sample TEXT NOT NULL UNIQUE,
    blake2b TEXT NOT NULL,        -- digest of the content of its files
    stamp TEXT NOT NULL           -- of their sizes and times, by which a replaced file is noticed without reading it
)"""
JSON = "JSON TEXT"  # the type of columns that hold lists and objects
READ: Mapping[str, Any] = {JSON: json.loads, "BOOLEAN": bool}  # type of a column → what makes a value of its cells
Row = dict[str, Any]


class Evaluation(Store):
    """The file of an evaluation."""

    manifest: Entry[Mapping[str, Any]] = Entry(dict[str, Any], {})  # what its numbers depend on, besides its samples
    samples: Entry[Mapping[str, Any]] = Entry(dict[str, Any], {})  # their number, and a digest of them
    here: Entry[Mapping[str, Any]] = Entry(dict[str, Any], {})  # where the dataset is, and what was wrong with it
    summary: Entry[dict[str, dict[str, Any]]] = Entry(dict[str, dict[str, Any]], {})  # setting → numbers


def open_run(out: Path, tables: Sequence[str] = ()) -> Evaluation:
    """Opens the file of an evaluation, or makes it with these tables."""
    if not (out / FILE).exists() and os.path.lexists(out / "manifest.json"):
        raise UsageError(
            f"{out} holds a manifest.json without {FILE}, made by cliploc 0.2 or another tool: its tables and report "
            "hold its numbers; choose another --out"
        )
    return Evaluation(out / FILE, KIND, VERSION, tables)


def manifest_of(run: Evaluation) -> dict[str, Any]:
    """Everything that the numbers of a run depend on, and when, where and with which versions it ran."""
    about = run.manifest
    dataset, settings = {**about["dataset"], **run.samples, **run.here}, [*about["settings"].values()]
    return {**about, "dataset": dataset, "settings": settings, "sessions": run.sessions}


def rows_in(out: Path, columns: Sequence[str] | None = None, where: str = "1", *values: Any) -> Iterator[Row]:
    """The rows of a run one after the other, in the order of pictures and settings: all or these columns, if there."""
    with open_run(out) as run:
        kinds = {name: kind for _, name, kind, *_ in run.rows("PRAGMA table_info(row)")}
        names = [name for name in (kinds if columns is None else columns) if name in kinds]
        chosen = ", ".join(f'row."{name}"' for name in names)
        found = run.each(
            f"SELECT {chosen} FROM picture CROSS JOIN row ON row.sample = picture.sample WHERE {where} "
            "ORDER BY picture.place, row.rowid",
            *values,
        )
        read = [READ.get(kinds[name]) for name in names]
        for cells in found:
            of_columns = zip(names, read, cells, strict=True)
            yield {name: cell if make is None or cell is None else make(cell) for name, make, cell in of_columns}
