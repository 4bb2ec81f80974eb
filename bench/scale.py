"""The end of a large benchmark: its numbers and report, of N pictures × S settings, in time and peak memory.

    python -m bench.scale RUN [--pictures 50000] [--settings 12]

RUN is the folder of a finished benchmark. Its rows are repeated under other names, classes spread as they are, until
there are enough; the numbers mean nothing, but cost what a run of that size costs. No model is loaded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from bench.resident import peak_mib
from cliploc.evaluate.tasks.boxes.job import TASK
from cliploc.evaluate.tasks.page import write_report
from cliploc.evaluate.tasks.rows import BATCH, cells_of, table_of
from cliploc.evaluate.tasks.task import conclude
from cliploc.runs.store import FILE, PICTURE, Row, open_run, rows_in


def repeat(run: Path, out: Path, pictures: int, settings: int) -> int:
    """Writes a run of so many pictures and settings, and gives the bytes of its file."""
    out.mkdir()
    columns = TASK.columns()
    with open_run(run) as old, open_run(out, (PICTURE, table_of(columns))) as new:
        about = old["manifest"]
        first, entry = next(iter(about["settings"].items()))
        names = [f"setting-{number}" for number in range(settings)]
        new["manifest"] = {**about, "settings": {name: {**entry, "id": name} for name in names}}
        new["samples"], new["here"], new["sessions"] = {"samples": pictures}, old["here"], old["sessions"]
        rows = enumerate(islice(cycle(list(rows_in(run, None, "row.setting = ?", first))), pictures))
        while taken := list(islice(rows, BATCH)):
            with new.transaction():
                new.insert("picture", [(number, f"{number:08}", "", "") for number, _ in taken])
                each: list[Row] = [
                    {**row, "sample": f"{number:08}", "setting": name} for number, row in taken for name in names
                ]
                new.insert("row", cells_of(each, columns))
    return (out / FILE).stat().st_size


def numbers(out: Path) -> None:
    with open_run(out) as run:
        conclude(out, run, TASK)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--settings", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        size = repeat(given.run, out, given.pictures, given.settings)
        print(f"{given.pictures} pictures × {given.settings} settings, {size / 1e6:.0f} MB of rows")
        for name, work in (
            ("numbers", numbers),
            ("report", lambda path: write_report(path, pictures=False)),
        ):
            start, busy = time.perf_counter(), time.process_time()
            work(out)
            print(
                f"{name}: {time.perf_counter() - start:.0f} s, {time.process_time() - busy:.0f} of the processor; "
                f"peak memory until here {peak_mib():.0f} MiB",
                flush=True,
            )
        print(f"report.html: {(out / 'report.html').stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
