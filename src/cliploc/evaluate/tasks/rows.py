"""Rows of benchmarks in a run's file and as Parquet. No torch, so that judging processes are small."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import all_metrics
from cliploc.evaluate.tasks.report import THUMB
from cliploc.runs.evaluation import JSON, Row, batches
from cliploc.runs.samples import LabelledPicture, PromptedPicture
from cliploc.support.files import write_atomic
from cliploc.support.imports import install, not_installed
from cliploc.values import Sample


def arrow() -> Any:
    """Imports `pyarrow` with `pyarrow.parquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise not_installed(error, install("bench", "benchmark", "pyarrow")) from None
    return pyarrow


NEVER_NULL = frozenset({"sample", "setting", "path", "label", "n_boxes", "width", "height", "status"})


def schema_of(**columns: Any) -> Any:
    """Columns with these types as a `pyarrow.Schema`."""
    pa = arrow()
    return pa.schema([pa.field(name, kind, nullable=name not in NEVER_NULL) for name, kind in columns.items()])


def columns_of_pictures() -> dict[str, Any]:
    """The columns of every row of an asked picture."""
    pa = arrow()
    texts = dict.fromkeys(("sample", "setting", "path", "blake2b", "status", "reason"), pa.string())
    return {**texts, "width": pa.int32(), "height": pa.int32()}


def row_schema() -> Any:
    """The columns of a row of boxes, as a `pyarrow.Schema`; docs/benchmark.md explains them."""
    pa = arrow()
    text, f32, i32 = pa.string(), pa.float32(), pa.int32()
    boxes = pa.list_(pa.list_(f32, 4))
    types = {"float": f32, "bool": pa.bool_(), "level": pa.uint8(), "hits": pa.binary(32), "bytes": pa.binary()}
    own = dict(
        **dict.fromkeys(("sample", "setting", "path", "blake2b"), text),
        label=i32, n_boxes=pa.int16(), area_share=f32, width=i32, height=i32, true_boxes=boxes,
        status=text, reason=text, score=f32, presence=f32, found=pa.bool_(),
        predictions=pa.list_(i32), prediction_scores=pa.list_(f32), boxes=boxes, box_scores=pa.list_(f32),
    )  # fmt: skip
    judged: dict[str, Any] = {}
    for metric in all_metrics():
        for name, kind in metric.columns.items():
            if kind not in types or name in {*own, "thumb"} or judged.setdefault(name, types[kind]) != types[kind]:
                raise UsageError(
                    f"expected columns of the metric {metric.name} that are {', '.join(types)} and take no name "
                    f"that is taken, got {name!r}: correct it"
                )
    return schema_of(**own, **judged, thumb=pa.binary(THUMB * THUMB))


def place_of(path: Path, root: Path) -> str:
    """A file's path below the dataset's folder; the whole path of a file outside it."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def sample_facts(sample: Sample | LabelledPicture | PromptedPicture, root: Path, digest: str) -> Row:
    """The columns that are the same for every setting; `digest` is the digest of the content of the sample's files."""
    width, height = sample.size_wh
    facts = {
        "sample": sample.id,
        "path": place_of(sample.path, root),
        "blake2b": digest,
        "width": width,
        "height": height,
    }
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
def table_of(schema: Any) -> str:
    """The statement that makes the table `row` of a run, with the columns of a schema."""
    types = arrow().types
    lines = []
    for field in schema:
        named = (
            (types.is_string, "TEXT"), (types.is_boolean, "BOOLEAN"), (types.is_integer, "INTEGER"),
            (types.is_floating, "REAL"), (types.is_binary, "BLOB"), (types.is_fixed_size_binary, "BLOB"),
        )  # fmt: skip
        kind = next((name for is_kind, name in named if is_kind(field.type)), JSON)
        lines.append(f'"{field.name}" {kind}{"" if field.nullable else " NOT NULL"}')
    return f"CREATE TABLE row ({', '.join(lines)}, PRIMARY KEY (sample, setting))"


def cells_of(rows: Iterable[Row], schema: Any) -> Iterator[list[Any]]:
    """The values of rows as the table `row` has them."""
    nested = arrow().types.is_nested
    kinds = [(field.name, nested(field.type)) for field in schema]
    for row in rows:
        yield [json.dumps(row[name]) if is_json and row[name] is not None else row[name] for name, is_json in kinds]


def to_table(rows: Sequence[Row], schema: Any) -> Any:
    """Rows as a `pyarrow.Table` of a schema; columns that a row does not have are null."""
    pa = arrow()
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def as_parquet(table: Any) -> bytes:
    """A `pyarrow.Table` as a worker sends it."""
    content = io.BytesIO()
    arrow().parquet.write_table(table, content, compression="zstd")
    return content.getvalue()


def from_parquet(content: bytes) -> list[Row]:
    """The rows of what a worker has sent."""
    rows: list[Row] = arrow().parquet.read_table(io.BytesIO(content)).to_pylist(maps_as_pydicts="strict")
    return rows


def write_parquet(path: Path, rows: Iterable[Row], schema: Any) -> None:
    """Writes rows into a Parquet file, for pandas and others."""

    def write(temporary: Path) -> None:
        with arrow().parquet.ParquetWriter(temporary, schema, compression="zstd") as file:
            for batch in batches(rows):
                file.write_table(to_table(batch, schema))

    write_atomic(path, write)
