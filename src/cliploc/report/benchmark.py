"""Writes a benchmark's report as one HTML page, and its tables as CSV, Markdown and LaTeX; no model is loaded."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cliploc.report import benchmark_tables as tables
from cliploc.report.benchmark_data import BenchmarkRun, SettingResult, in_words, is_imagenet, read_run, worth
from cliploc.report.benchmark_gallery import Photographs
from cliploc.report.benchmark_sections import Section, sections
from cliploc.report.html import REPORT_TEMPLATES
from cliploc.report.task_folder import write_files

FILES = ("tables.csv", "tables.md", "tables.tex", "report.html")
MOST_LISTED = 200  # problems; the rows hold all failures


def write_report(out_folder: str | os.PathLike[str], *, pictures: bool = True) -> Path:
    """Writes `report.html`, `tables.csv`, `tables.md` and `tables.tex` into a benchmark's folder.

    The input is manifest.json, summary.json and parts/*.parquet of the folder, and the dataset's pictures; the page
    lists pictures that cannot be read. Existing files are overwritten; the same folder gives the same bytes.

    Args:
        pictures: whether to embed small copies of the photographs in the galleries; maps and boxes are always there.

    Example:
        >>> write_report("out/benchmark", pictures=False)  # doctest: +SKIP
        PosixPath('out/benchmark/report.html')
    """
    run = read_run(Path(out_folder))
    both = [tables.comparison(run), tables.every_number(run)]
    texts = (
        tables.to_csv(run),
        tables.to_markdown(f"cliploc benchmark: {tables.dataset_line(run)}", both),
        tables.to_latex(both),
        page(run, both, pictures),
    )
    return write_files(run.folder, texts, FILES)


def page(run: BenchmarkRun, both: Sequence[tables.Table], pictures: bool) -> str:
    """The whole page as HTML."""
    photographs = Photographs(Path(str(run.dataset.get("root", "."))), pictures)
    evaluated = [one for one in run.ranked if len(run.of(one))]
    compared, numbers = both
    sources = list(tables.published()["sources"].values()) if is_imagenet(run) else []
    parts = [
        Section("published", "Published", compared.title, {"table": compared, "sources": sources}),
        Section("numbers", "All numbers", numbers.title, {"table": numbers}),
        *(sections(run, evaluated, photographs) if evaluated else []),
        Section("problems", "Problems", "Problems and failures", _problems(run)),
        Section("manifest", "Manifest", "How it was made", _manifest(run)),
    ]
    return REPORT_TEMPLATES.render(
        "benchmark.html",
        title=f"Benchmark: {tables.dataset_line(run)}",
        about=_facts(run),
        headline=_headline(evaluated),
        parts=parts,
        photographs=photographs,
    )


# ----------------------------------------------------------------------------------------------------------- the head
def _facts(run: BenchmarkRun) -> dict[str, str]:
    data = run.dataset
    subset = data.get("subset")
    samples = run.rows["sample"].nunique()
    facts = {
        "dataset": " ".join(str(data[key]) for key in ("name", "split") if data.get(key)),
        "role": {"tune": "may choose τ", "report": "may only be reported on"}.get(str(data.get("role")), ""),
        "subset": in_words(subset.get("name") if isinstance(subset, Mapping) else subset) if subset else "",
        "samples": f"{samples:,}",
        "settings": f"{len(run.settings):,}",
        "models": in_words(sorted({str(one.about.get("model")) for one in run.settings})),
        "started": " ".join(str((run.manifest.get("sessions") or [{}])[0].get("started", ""))[:16].split("T")),
        "cliploc": str(run.manifest.get("cliploc_version") or ""),
    }
    return {key: value for key, value in facts.items() if value}


def _headline(settings: Sequence[SettingResult]) -> dict[str, Any] | None:
    """The best settings, for the head of the page; None where nothing was evaluated.

    `best` by MaxBoxAcc, `fixed` by GT-known Loc at a τ fixed beforehand (each None if there is no such setting), and
    `alike`, the number of other settings whose intervals overlap with the best one's.
    """
    if not settings:
        return None
    best, *others = settings
    fixed = [one for one in settings if not one.oracle and one.number("gt_known") is not None]
    ends = best.interval("max_box_acc")
    overlapping = [one for one in others if ends and (other := one.interval("max_box_acc")) and other[1] > ends[0]]
    return {
        "best": best if best.number("max_box_acc") is not None else None,
        "fixed": max(fixed, key=lambda one: (worth(one.number("gt_known")), -one.index)) if fixed else None,
        "alike": len(overlapping),
    }


# -------------------------------------------------------------------------------------------------------------- notes
def _problems(run: BenchmarkRun) -> dict[str, Any]:
    """Problems of the dataset and failures: a table of the first ones and the number of each."""
    problems: Sequence[Mapping[str, Any]] = run.dataset.get("problems") or []
    kinds = Counter(str(one.get("kind")) for one in problems)
    failed = run.rows[run.rows["status"] != "ok"]
    failures: Sequence[Any] = []
    if len(failed):
        failures = failed.groupby(["setting", "sample", "reason"], dropna=False, sort=True).size().index
    named = {one.id: one.label for one in run.settings}
    columns = ("kind", "source", "reason")
    left_out = [[one.get(key) for key in columns] for one in problems[:MOST_LISTED]]
    broken = [[named.get(setting, setting), sample, reason] for setting, sample, reason in failures[:MOST_LISTED]]
    return {
        "counted": ", ".join(f"{kind} {amount:,}" for kind, amount in sorted(kinds.items())),
        "dataset": _list(columns, left_out, len(problems)),
        "failed": len(failed),
        "rows": len(run.rows),
        "failures": _list(("setting", "sample", "reason"), broken, len(failures)),
    }


def _list(titles: Sequence[str], rows: Sequence[Sequence[object]], total: int) -> tables.Table:
    """A table whose last column may have long text."""
    notes = [f"The first {len(rows)} of {total:,}."] if total > len(rows) else []
    cells = [[*map(tables.Cell, map(str, row[:-1])), tables.Cell(str(row[-1]), wrap=True)] for row in rows]
    return tables.Table("Problems", dict.fromkeys(titles, ""), {"": cells}, notes=notes)


def _manifest(run: BenchmarkRun) -> dict[str, Any]:
    shown = {key: value for key, value in run.manifest.items() if key not in ("settings", "dataset", "sessions")}
    data = {key: value for key, value in run.dataset.items() if key not in ("classes", "reasons", "problems")}
    data["classes"] = len(run.dataset.get("classes") or [])
    keys = list(dict.fromkeys(key for one in run.settings for key in one.about))
    rows = [[tables.Cell(_short(one.about.get(key))) for key in keys] for one in run.settings]
    return {
        "sessions": [_pairs(one) for one in run.manifest.get("sessions") or []],
        "run": _pairs(shown),
        "dataset": _pairs(data),
        "settings": tables.Table("Settings", dict.fromkeys(keys, ""), {"": rows}),
        "raw": json.dumps({**run.manifest, "dataset": data}, ensure_ascii=False, indent=1),
    }


def _short(value: Any) -> str:
    text = in_words(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Entries of the manifest: name, value in words, and whether the value is a command."""
    return [(key.replace("_", " "), *_value(value)) for key, value in values.items()]


def _value(value: Any) -> tuple[str, bool]:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return shlex.join(value), True
    return in_words(value), False
