"""Rows of evaluations: their columns, in a run's file and as Parquet. No torch, so that other processes are small."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import all_metrics
from cliploc.runs import picture_files, store
from cliploc.support.files import write_atomic
from cliploc.support.imports import install, not_installed
from cliploc.values import Sample

# column → its kind, a key of `SQL` or "box", "values", "curves"; "float[]": a list of floats
Columns = Mapping[str, str]
THUMB = 28  # side of the small maps in rows of boxes
BATCH = 1_000  # rows that are held in memory at a time
SQL = {
    "text": "TEXT",
    "bool": "BOOLEAN",
    **dict.fromkeys(("level", "int16", "int32", "int64"), "INTEGER"),
    **dict.fromkeys(("float", "double"), "REAL"),
    **dict.fromkeys(("bytes", "hits", "thumb"), "BLOB"),
}  # other kinds are JSON
NEVER_NULL = frozenset({"sample", "setting", "path", "label", "n_boxes", "width", "height", "status"})
OF_PICTURE: Columns = {
    **dict.fromkeys(("sample", "setting", "path", "blake2b", "status", "reason"), "text"),
    "width": "int32",
    "height": "int32",
}


class PictureRow(msgspec.Struct, frozen=True, kw_only=True):
    """What every row has: a picture, a setting, and whether it was evaluated; a task's own add what else is read."""

    sample: str
    setting: str
    status: str = "ok"
    reason: str | None = None  # why it was not evaluated
    path: str = ""
    blake2b: str = ""
    width: int = 0
    height: int = 0

    @property
    def ok(self) -> bool:
        """Whether it was evaluated."""
        return self.status == "ok"


R = TypeVar("R", bound=PictureRow)


def box_columns() -> Columns:
    """The columns of a row of boxes; docs/benchmark.md explains them."""
    columns = {
        **dict.fromkeys(("sample", "setting", "path", "blake2b"), "text"),
        "label": "int32", "n_boxes": "int16", "area_share": "float", "width": "int32", "height": "int32",
        "true_boxes": "box[]", "status": "text", "reason": "text", "score": "float", "presence": "float",
        "found": "bool", "predictions": "int32[]", "prediction_scores": "float[]", "boxes": "box[]",
        "box_scores": "float[]",
    }  # fmt: skip
    judged: dict[str, str] = {}
    for metric in all_metrics():
        for name, kind in metric.columns.items():
            if kind not in SQL or name in {*columns, "thumb"} or judged.setdefault(name, kind) != kind:
                raise UsageError(
                    f"expected columns of the metric {metric.name} with names of their own and a kind of "
                    f"{', '.join(SQL)}, got {name!r} of {kind!r}: correct it"
                )
    return {**columns, **judged, "thumb": "thumb"}


def place_of(path: Path, root: Path) -> str:
    """A file's path below the dataset's folder; the full path of a file outside it."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def sample_facts(
    sample: Sample | picture_files.LabelledPicture | picture_files.PromptedPicture, root: Path, digest: str
) -> store.Row:
    """The columns that are the same for every setting; `digest` is the digest of the content of the sample's files."""
    width, height = sample.size_wh
    path = place_of(sample.path, root)
    facts = {"sample": sample.id, "path": path, "blake2b": digest, "width": width, "height": height}
    if not isinstance(sample, Sample):
        return facts
    sides = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).astype(np.float64)
    return {
        **facts,
        "label": sample.label,
        "n_boxes": max(len(sides), len(sample.masks)),
        "area_share": sides.prod(axis=1).max() / (width * height) if len(sides) else None,
        "true_boxes": sample.boxes_xyxy.tolist(),
    }


# ------------------------------------------------------------------------------------------------------ rows in a store
def table_of(columns: Columns) -> str:
    """The statement that makes the table `row` of a run."""
    lines = [
        f'"{name}" {SQL.get(kind, store.JSON)}{" NOT NULL" if name in NEVER_NULL else ""}'
        for name, kind in columns.items()
    ]
    return f"CREATE TABLE row ({', '.join(lines)}, PRIMARY KEY (sample, setting))"


def rows_of(folder: Path, kind: type[R], where: str = "1", *values: Any) -> Iterator[R]:
    """The rows of a run, one after the other, with the columns that `kind` has; its defaults stand for null."""
    for row in store.rows_in(folder, kind.__struct_fields__, where, *values):
        yield msgspec.convert({name: value for name, value in row.items() if value is not None}, kind)


def cells_of(rows: Iterable[store.Row], columns: Columns) -> Iterator[list[Any]]:
    """The values of rows as the table `row` has them."""
    for row in rows:
        cells = ((row[name], kind in SQL) for name, kind in columns.items())
        yield [value if plain or value is None else json.dumps(value) for value, plain in cells]


# ----------------------------------------------------------------------------------------------------- rows in Parquet
def arrow() -> Any:
    """Imports `pyarrow` with `pyarrow.parquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise not_installed(error, install("bench", "benchmark", "pyarrow")) from None
    return pyarrow


def schema_of(columns: Columns) -> Any:
    """Columns as a `pyarrow.Schema`."""
    pa = arrow()
    types = {
        "text": pa.string(), "bool": pa.bool_(), "level": pa.uint8(), "int16": pa.int16(), "int32": pa.int32(),
        "int64": pa.int64(), "float": pa.float32(), "double": pa.float64(), "bytes": pa.binary(),
        "hits": pa.binary(32), "thumb": pa.binary(THUMB * THUMB), "box": pa.list_(pa.float32(), 4),
        "values": pa.map_(pa.string(), pa.float64()), "curves": pa.map_(pa.string(), pa.list_(pa.float32())),
    }  # fmt: skip

    def of(kind: str) -> Any:
        return pa.list_(of(kind[:-2])) if kind.endswith("[]") else types[kind]

    return pa.schema([pa.field(name, of(kind), nullable=name not in NEVER_NULL) for name, kind in columns.items()])


def to_table(rows: Sequence[store.Row], columns: Columns) -> Any:
    """Rows as a `pyarrow.Table`; columns that a row does not have are null."""
    return arrow().Table.from_pylist(rows, schema=schema_of(columns))


def write_parquet(path: Path, rows: Iterable[store.Row], columns: Columns) -> None:
    """Writes rows into a Parquet file, for pandas and others."""

    def write(temporary: Path) -> None:
        with arrow().parquet.ParquetWriter(temporary, schema_of(columns), compression="zstd") as file:
            left = iter(rows)
            while batch := list(islice(left, BATCH)):
                file.write_table(to_table(batch, columns))

    write_atomic(path, write)
