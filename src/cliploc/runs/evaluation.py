"""The file of an evaluation: what it depends on, the pictures that are done, and a row for each picture and setting."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cliploc.errors import UsageError
from cliploc.runs.store import FILE, Store

KIND, VERSION = "evaluation", 1
PICTURE = """CREATE TABLE picture (
    place INTEGER PRIMARY KEY,    -- in the dataset, from 0
    sample TEXT NOT NULL UNIQUE,
    blake2b TEXT NOT NULL,        -- digest of the content of its files
    stamp TEXT NOT NULL           -- of their sizes and times, by which a replaced file is noticed without reading it
)"""
JSON = "JSON TEXT"  # the type of columns that hold lists and objects
BATCH = 1_000  # rows that are held in memory at a time
Row = dict[str, Any]


def open_run(out: Path, tables: Sequence[str] = ()) -> Store:
    """Opens the file of an evaluation, or makes it with these tables."""
    if not (out / FILE).exists() and os.path.lexists(out / "manifest.json"):
        raise UsageError(
            f"{out} holds a manifest.json without {FILE}, made by cliploc 0.2 or another tool: its tables and report "
            "hold its numbers; choose another --out"
        )
    return Store(out / FILE, KIND, VERSION, tables)


def manifest_of(run: Store) -> dict[str, Any]:
    """Everything that the numbers of a run depend on, and when, where and with which versions it ran."""
    about = run["manifest"]
    dataset, settings = {**about["dataset"], **run["samples"], **run["here"]}, [*about["settings"].values()]
    return {**about, "dataset": dataset, "settings": settings, "sessions": run["sessions"]}


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
        of_json = [place for place, name in enumerate(names) if kinds[name] == JSON]
        of_bool = [place for place, name in enumerate(names) if kinds[name] == "BOOLEAN"]
        for cells in found:
            read = list(cells)
            for places, made in ((of_json, json.loads), (of_bool, bool)):
                for place in places:
                    read[place] = None if read[place] is None else made(read[place])
            yield dict(zip(names, read, strict=True))


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows as lists that memory holds one at a time."""
    left = iter(rows)
    while batch := list(islice(left, BATCH)):
        yield batch
