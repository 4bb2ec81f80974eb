"""The end of a large benchmark: its numbers and report, of N pictures × S settings, in time and peak memory.

    python -m bench.scale RUN [--pictures 50000] [--settings 12]

RUN is the folder of a finished benchmark. Its rows are repeated under other names, classes spread as they are, until
there are enough; the numbers mean nothing, but cost what a run of that size costs. No model is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.resident import peak_mib
from cliploc._files import part_path, write_part
from cliploc.jobs.benchmark_localization import TASK
from cliploc.jobs.rows import as_parquet
from cliploc.jobs.task import conclude
from cliploc.report import write_report


def repeat(run: Path, out: Path, pictures: int, settings: int) -> int:
    """Writes a run of so many pictures and settings, and gives the bytes of its parts."""
    manifest = json.loads((run / "manifest.json").read_text())
    first = manifest["settings"][0]["id"]
    table = pa.concat_tables(pq.read_table(path) for path in sorted((run / "parts").glob("*.parquet")))
    rows = table.filter(pa.compute.equal(table["setting"], first))
    size = manifest["shard_size"]
    manifest["settings"] = [{**manifest["settings"][0], "id": f"setting-{number}"} for number in range(settings)]
    manifest["dataset"]["samples"] = pictures
    manifest["shards"] = -(-pictures // size)
    (out / "parts").mkdir(parents=True)
    (out / "manifest.json").write_text(json.dumps(manifest))
    total = 0
    for index in range(manifest["shards"]):
        numbers = range(index * size, min((index + 1) * size, pictures))
        taken = rows.take([number % len(rows) for number in numbers])
        taken = taken.set_column(taken.column_names.index("sample"), "sample", pa.array([f"{n:08}" for n in numbers]))
        place = taken.column_names.index("setting")
        each = [
            taken.set_column(
                place, taken.schema.field(place), pa.array([one["id"]] * len(taken), taken.schema.types[place])
            )
            for one in manifest["settings"]
        ]
        write_part(part_path(out, index), as_parquet(pa.concat_tables(each).combine_chunks()))
        total += part_path(out, index).stat().st_size
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--settings", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        size = repeat(given.run, out, given.pictures, given.settings)
        print(f"{given.pictures} pictures × {given.settings} settings, {size / 1e6:.0f} MB of parts")
        for name, work in (
            ("numbers", lambda path: conclude(path, TASK)),
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
