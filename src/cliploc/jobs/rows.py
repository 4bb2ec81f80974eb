"""Rows of benchmarks as Parquet. No torch, so that judging processes are small."""

import io
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cliploc._files import parts_in, read_part
from cliploc._imports import install, not_installed
from cliploc.datasets import AskedPicture, LabelledPicture
from cliploc.errors import UsageError
from cliploc.metrics import all_metrics
from cliploc.report.task_folder import THUMB
from cliploc.values import Sample

Row = dict[str, Any]


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


def sample_facts(sample: Sample | LabelledPicture | AskedPicture, root: Path, digest: str) -> Row:
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


# -------------------------------------------------------------------------------------------------------------- parts
def to_table(rows: Sequence[Row], schema: Any) -> Any:
    """Rows as a `pyarrow.Table` of a schema; columns that a row does not have are null."""
    pa = arrow()
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def as_parquet(table: Any) -> bytes:
    """A `pyarrow.Table` as the content of a part."""
    content = io.BytesIO()
    arrow().parquet.write_table(table, content, compression="zstd")
    return content.getvalue()


def check_part(content: bytes, schema: Any, samples: Sequence[str], settings: Sequence[str]) -> None:
    """Compares a part with what it was written with: its columns, and a row for each sample and setting."""
    pa = arrow()
    try:
        file = pa.parquet.ParquetFile(pa.BufferReader(content))
        written = file.schema_arrow
        if not {"sample", "setting"} <= set(written.names):
            raise ValueError("expected columns sample and setting")
        if file.metadata.num_rows != len(samples) * len(settings):  # a small file can hold a billion equal rows
            raise ValueError("expected a row for each sample and setting")
        rows = file.read(columns=["sample", "setting"])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a table: {error}") from None
    pairs = zip(rows["sample"].to_pylist(), rows["setting"].to_pylist(), strict=True)
    if sorted(pairs, key=repr) != sorted(product(samples, settings), key=repr):
        raise ValueError("expected a row for each sample and setting")
    of_plugins = {name for metric in all_metrics() for name in metric.columns}
    for field in schema:
        if field.name not in written.names:
            if field.name not in of_plugins:  # a plugin may have come since
                raise ValueError(f"expected a column {field.name}")
        elif not written.field(field.name).type.equals(field.type):
            raise ValueError(f"expected {field.name} as {field.type}, got {written.field(field.name).type}")


def read_columns(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A part as `pyarrow.Table`, all columns or these; a metric that was not installed has none."""
    content = read_part(path)
    if content is None:
        raise UsageError(f"{path} is damaged: run the same command again, to compute it again")
    pa = arrow()
    file = pa.parquet.ParquetFile(pa.BufferReader(content))
    there = set(file.schema_arrow.names)
    return file.read(columns=None if columns is None else [column for column in columns if column in there])


def rows_in(out: Path, columns: Sequence[str] | None = None, count: int | None = None) -> Iterator[Row]:
    """The rows of all finished parts; see `parts_in` and `read_columns`."""
    for path in parts_in(out, count=count):
        yield from read_columns(path, columns).to_pylist()
