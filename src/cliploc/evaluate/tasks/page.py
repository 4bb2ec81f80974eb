"""`write_report`: any benchmark's report as one HTML page, and its tables as CSV and Markdown; no model is loaded."""

import os
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.tasks.boxes.page import write_boxes_report
from cliploc.evaluate.tasks.faithfulness.job import write_faithfulness_report
from cliploc.evaluate.tasks.presence.job import write_presence_report
from cliploc.evaluate.tasks.segmentation.job import write_segmentation_report
from cliploc.runs.store import open_run

WRITERS = {
    "benchmark": write_boxes_report,
    "segmentation": write_segmentation_report,
    "faithfulness": write_faithfulness_report,
    "presence": write_presence_report,
}


def write_report(folder: str | os.PathLike[str], *, pictures: bool = True) -> Path:
    """Writes any benchmark's report into its folder, the same bytes each time; `pictures`: with photographs."""
    with open_run(Path(folder)) as run:
        kind = run.manifest["kind"]
    if kind not in WRITERS:
        raise UsageError(f"expected the folder of a benchmark, got one of {kind}, {folder}: give a benchmark's --out")
    return WRITERS[kind](Path(folder), pictures=pictures)
