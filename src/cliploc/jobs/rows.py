"""One Parquet row for each sample and setting: how a map is judged, what a row holds, how parts come to and from disk.

Imports no torch, so that the processes that judge maps are small.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc._files import write_whole
from cliploc.errors import InputError, UsageError
from cliploc.jobs.folder import part_path as part_path
from cliploc.jobs.folder import parts_in as parts_in
from cliploc.jobs.folder import plain as plain
from cliploc.metrics import (
    BoxCurve,
    EnergyInBoxes,
    MeanBestIoU,
    PointingGame,
    VLScoreRule,
    box_curve,
    boxes_on_map,
    packed_hits,
    pixel_counts,
)
from cliploc.schema import FloatArray, Sample

SIDE = 224  # of the maps that are judged and saved, the WSOL evaluation's
THUMB = 28  # side of the small maps kept in the rows
IOUS = (0.3, 0.5, 0.7)
Row = dict[str, Any]


def arrow() -> Any:
    """`pyarrow`, with `pyarrow.parquet`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("a benchmark needs pandas and pyarrow: pip install 'cliploc[bench]'") from None
    return pyarrow


def row_schema() -> Any:
    """The columns, as a `pyarrow.Schema`; docs/benchmark.md explains them."""
    pa = arrow()
    f32, bits = pa.float32(), pa.binary(32)
    return pa.schema(
        [
            pa.field("sample", pa.string(), nullable=False),
            pa.field("setting", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("n_boxes", pa.int16(), nullable=False),
            pa.field("area_share", f32),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("true_boxes", pa.list_(pa.list_(f32, 4))),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
            pa.field("score", f32),
            pa.field("presence", f32),
            pa.field("found", pa.bool_()),
            pa.field("predictions", pa.list_(pa.int32())),
            pa.field("prediction_scores", pa.list_(f32)),
            pa.field("boxes", pa.list_(pa.list_(f32, 4))),
            pa.field("box_scores", pa.list_(f32)),
            pa.field("highest", pa.uint8()),
            pa.field("hits_largest_50", bits),
            *(pa.field(f"hits_every_{iou * 100:.0f}", bits) for iou in IOUS),
            pa.field("iou", f32),
            pa.field("best_iou", f32),
            pa.field("vl_hit", pa.bool_()),
            pa.field("pointing_hit", pa.bool_()),
            pa.field("energy", f32),
            pa.field("pxap", pa.binary()),
            pa.field("thumb", pa.binary(THUMB * THUMB)),
        ]
    )


# ------------------------------------------------------------------------------------------------------------ judging
def sample_facts(sample: Sample, root: Path) -> Row:
    """The columns that are the same for every setting."""
    width, height = sample.size_wh
    sides = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).astype(np.float64)
    area = sides.prod(axis=1).max() / (width * height) if len(sides) else None
    try:
        path = sample.path.relative_to(root).as_posix()
    except ValueError:  # a picture outside of the dataset's folder
        path = sample.path.as_posix()
    return {
        "sample": sample.id,
        "path": path,
        "label": sample.label,
        "n_boxes": max(len(sides), len(sample.masks)),
        "area_share": area,
        "width": width,
        "height": height,
        "true_boxes": sample.boxes_xyxy.tolist(),
    }


def judge(sample: Sample, maps: FloatArray, thresholds: Sequence[Sequence[float]]) -> list[list[Row]]:
    """Compares one sample's maps with what is true.

    Args:
        sample: its boxes, or masks.
        maps: `[S, 224, 224]` in 0–1 over the whole picture.
        thresholds: for each map, the τ of every setting that uses it.

    Returns:
        For each map and each of its thresholds, the columns that depend on the map.

    Raises:
        InputError: a mask that cannot be read.
    """
    if not len(sample.boxes_xyxy) and not sample.masks:
        raise InputError(f"{sample.id}: expected true boxes or masks, got none: leave the sample out")
    truncated = boxes_on_map(sample.boxes_xyxy, sample.size_wh, (SIDE, SIDE), "wsoleval")
    exact = boxes_on_map(sample.boxes_xyxy, sample.size_wh, (SIDE, SIDE), "exact")
    true, ignore = read_masks(sample)
    rows: list[list[Row]] = []
    for heat, taus in zip(maps, thresholds, strict=True):
        common: Row = {} if true is None else {"pxap": pack_counts(*pixel_counts(sample.id, heat, true, ignore))}
        if not len(truncated):
            rows.append([common for _ in taus])
            continue
        curve = box_curve(sample.id, heat, truncated)
        common |= {
            "highest": len(curve.best) - 1,
            "hits_largest_50": packed_hits(curve, 0.5, "largest").tobytes(),
            **{f"hits_every_{iou * 100:.0f}": packed_hits(curve, iou, "every").tobytes() for iou in IOUS},
            "pointing_hit": bool(PointingGame().value(heat, exact)),
            "energy": EnergyInBoxes().value(heat, exact),
        }
        rows.append([common | _at(tau, curve, heat, exact) for tau in taus])
    return rows


def _at(tau: float, curve: BoxCurve, heat: FloatArray, exact: npt.NDArray[np.float64]) -> Row:
    return {
        "iou": float(curve.largest[curve.index(tau)]),
        "best_iou": MeanBestIoU(tau).value(curve),
        "vl_hit": bool(VLScoreRule(tau).value(heat, exact)),
    }


def read_masks(sample: Sample) -> tuple[npt.NDArray[np.bool_] | None, npt.NDArray[np.bool_] | None]:
    """The pixels `[224, 224]` of the sample's instances together, and those to be ignored; None where it has none.

    As Choe et al. 2020 have it: every pixel that is not black, nearest neighbour as OpenCV rounds it; a pixel to be
    ignored that is of an instance counts.
    """
    if not sample.masks:
        return None, None
    true = np.logical_or.reduce([_mask(path) for path in sample.masks])
    return true, None if sample.ignore is None else _mask(sample.ignore)


def _mask(path: Path) -> npt.NDArray[np.bool_]:
    try:
        with Image.open(path) as opened:
            grey = np.asarray(opened.convert("L"))
    except Exception as error:  # Pillow raises whatever a damaged file makes it trip over
        raise InputError(f"{path}: not a mask that can be read ({type(error).__name__}): fetch it again") from None
    y, x = ((np.arange(SIDE) * (size / SIDE)).astype(np.intp) for size in grey.shape)
    return grey[np.ix_(y, x)] > 0


def pack_counts(true: npt.NDArray[np.int64], false: npt.NDArray[np.int64]) -> bytes:
    """What `PxAP` needs of one image, compressed; `unpack_counts` reads it."""
    return zlib.compress(np.concatenate([true, false]).astype("<u4").tobytes())


def unpack_counts(packed: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many pixels inside and outside of the object have each score.

    Example:
        >>> true, false = unpack_counts(pack_counts(np.array([1, 2]), np.array([3, 4])))
        >>> false.tolist()
        [3, 4]
    """
    both = np.frombuffer(zlib.decompress(packed), "<u4").astype(np.int64)
    true, false = np.split(both, 2)
    return true, false


# -------------------------------------------------------------------------------------------------------------- parts
def to_table(rows: Sequence[Row]) -> Any:
    """Rows as a `pyarrow.Table` of `row_schema`; what a row does not say is null."""
    pa = arrow()
    schema = row_schema()
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def write_part(path: Path, table: Any) -> None:
    """All of a part or nothing of it, whenever the machine stops.

    Raises:
        OSError: no room, or a folder that cannot be written.
    """
    pq = arrow().parquet

    def write(temporary: Path) -> None:
        pq.write_table(table, temporary, compression="zstd")

    write_whole(path, write)


def save_map(path: Path, heat: FloatArray) -> None:
    """A map `[224, 224]` of 0–1 as `cliploc evaluate` reads it: float32, so that it gives the very same numbers."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, heat)
    temporary.replace(path)


def rows_in(out: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of all finished parts; only some columns where they are named, which spares memory."""
    pq = arrow().parquet
    for path in parts_in(out):
        yield from pq.read_table(path, columns=None if columns is None else list(columns)).to_pylist()


def failed_row(facts: Row, setting: str, reason: str) -> Row:
    """The row of a sample that could not be done."""
    return {**facts, "setting": setting, "status": "failed", "reason": reason}
