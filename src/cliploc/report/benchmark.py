"""A benchmark's folder → one self-contained page, and its tables as CSV, Markdown and LaTeX; no model is loaded."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cliploc.errors import UsageError
from cliploc.report import benchmark_tables as tables
from cliploc.report._html import STYLE, count, decimal, escape
from cliploc.report.benchmark_data import Run, Setting, is_imagenet, read_run, said
from cliploc.report.benchmark_gallery import Photographs
from cliploc.report.benchmark_sections import Section, missing, sections

MOST_LISTED = 200  # problems; the rows hold all failures


def write_report(out_folder: str | os.PathLike[str], *, pictures: bool = True) -> Path:
    """Writes `report.html`, `tables.csv`, `tables.md` and `tables.tex` into a benchmark's folder.

    All comes from its manifest.json, summary.json and parts/*.parquet, and from the dataset's pictures; one that cannot
    be read is said on the page. Files of the same names are written over; the same folder gives the same bytes.

    Args:
        out_folder: what `cliploc benchmark --out` wrote.
        pictures: whether to embed small copies of the photographs in the galleries; maps and boxes are there anyway.

    Returns:
        Where the page is.

    Raises:
        UsageError: a file of the benchmark is absent or cannot be read, the report cannot be written, or a package of
            the extra `[bench]` is absent.

    Example:
        >>> write_report("out/benchmark", pictures=False)  # doctest: +SKIP
        PosixPath('out/benchmark/report.html')
    """
    run = read_run(Path(out_folder))
    both = [tables.comparison(run), tables.all_numbers(run)]
    files = {
        "tables.csv": tables.to_csv(run),
        "tables.md": tables.to_markdown(f"cliploc benchmark: {tables.dataset_line(run)}", both),
        "tables.tex": tables.to_latex(both),
        "report.html": page(run, both, pictures),
    }
    for name, text in files.items():
        path = run.folder / name
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}: make room, or check its permissions") from error
    return run.folder / "report.html"


def page(run: Run, both: Sequence[tables.Table], pictures: bool) -> str:
    """The whole page as HTML."""
    photographs = Photographs(Path(str(run.dataset.get("root", "."))), pictures)
    evaluated = [one for one in run.ranked if len(run.of(one))]
    compared, numbers = both
    parts = [
        Section("published", "Published", compared.title, _compared(run, compared)),
        Section("numbers", "All numbers", numbers.title, _numbers(numbers)),
        *(sections(run, evaluated, photographs) if evaluated else []),
        Section("problems", "Problems", "Problems and failures", _problems(run, photographs)),
        Section("manifest", "Manifest", "How it was made", _manifest(run)),
    ]
    style, script = (
        Path(__file__).with_name(f"benchmark.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    name = f"Benchmark: {tables.dataset_line(run)}"
    links = "".join(f'<li><a href="#{one.id}">{escape(one.short)}</a></li>' for one in parts)
    body = "\n".join(
        f'<section id="{one.id}" aria-labelledby="{one.id}-name">\n<h2 id="{one.id}-name">{escape(one.title)}</h2>\n'
        f"{one.body}\n</section>"
        for one in parts
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(name)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<a class=skip href="#published">Skip to the numbers</a>
<header>
<h1>{escape(name)}</h1>
<dl>{_facts(run)}</dl>
{_headline(evaluated)}
</header>
<nav aria-label="Parts of this page"><ul>{links}</ul></nav>
<main>
{body}
</main>
{photographs.definitions()}
<script>{script}</script>
</body>
</html>
"""


MARKS = {
    "<circle class=fixed cx=7 cy=7 r=3.2 />": "GT-known Loc, published or at a τ fixed before, with 95 % interval",
    "<circle class=best cx=7 cy=7 r=3.2 />": "at the best τ, an oracle",
    "<path class=rule d='M7 3L10 10H4Z'/>": "by VL-Score's lenient rule",
}
CHART_KEY = "<p class=key>{}</p>".format(
    " ".join(
        f"<span><svg class=marks viewBox='0 0 14 14' aria-hidden=true>{mark}</svg> {meaning}</span>"
        for mark, meaning in MARKS.items()
    )
)


# ----------------------------------------------------------------------------------------------------------- the head
def _facts(run: Run) -> str:
    data = run.dataset
    subset = data.get("subset")
    samples = run.rows["sample"].nunique()
    facts = {
        "dataset": " ".join(str(data[key]) for key in ("name", "split") if data.get(key)),
        "role": {"tune": "may choose τ", "report": "may only be reported on"}.get(str(data.get("role")), ""),
        "subset": said(subset.get("name") if isinstance(subset, Mapping) else subset) if subset else "",
        "samples": f"{samples:,}",
        "settings": f"{len(run.settings):,}",
        "models": said(sorted({str(one.about.get("model")) for one in run.settings})),
        "started": " ".join(str((run.manifest.get("sessions") or [{}])[0].get("started", ""))[:16].split("T")),
        "cliploc": str(run.manifest.get("cliploc_version") or ""),
    }
    return "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items() if value
    )


def _headline(settings: Sequence[Setting]) -> str:
    """What one would say first, in two sentences."""
    if not settings:
        return "<p class=hint>No picture could be evaluated in any setting: see below what failed.</p>"
    best = settings[0]
    value, ends = best.number("max_box_acc"), best.interval("max_box_acc")
    words = []
    if value is not None:
        interval = f" (95 % interval {ends[0]:.1f}–{ends[1]:.1f})" if ends else ""
        words.append(
            f"Best by MaxBoxAcc: <b>{escape(best.label)}</b> with <b>{value:.1f} %</b>{interval} at "
            f"τ {decimal(best.numbers.get('best_threshold'), 3)}, which was chosen on these pictures."
        )
    fixed = [one for one in settings if not one.oracle and one.number("gt_known") is not None]
    if fixed:
        top = max(fixed, key=lambda one: (one.number("gt_known") or 0.0, -one.index))
        words.append(
            f"At a τ fixed beforehand: <b>{escape(top.label)}</b>, GT-known Loc "
            f"<b>{decimal(top.number('gt_known'), 1)} %</b> at τ {said(top.threshold)}."
        )
    if ends and len(settings) > 1 and (second := settings[1].interval("max_box_acc")) and second[1] > ends[0]:
        alike = sum(1 for one in settings[1:] if (other := one.interval("max_box_acc")) and other[1] > ends[0])
        words.append(f"The interval of {count(alike, 'other setting')} overlaps with the best one's.")
    return f"<p class=lead>{' '.join(words)}</p>" if words else ""


# ------------------------------------------------------------------------------------------------- numbers and notes
def _compared(run: Run, table: tables.Table) -> str:
    sources = "".join(f"<li>{escape(source)}</li>" for source in tables.published()["sources"].values())
    listed = (
        f"<details><summary>Sources</summary><ul class=sources>{sources}</ul></details>" if is_imagenet(run) else ""
    )
    return f"{CHART_KEY}{tables.to_html(table, table.title)}{listed}"


def _numbers(table: tables.Table) -> str:
    body = tables.to_html(table, table.title, best=True)
    meanings = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(hint)}</dd></div>" for title, hint in table.columns.items() if hint
    )
    return f"{body}<details><summary>What the columns mean</summary><dl class=meanings>{meanings}</dl></details>"


def _problems(run: Run, photographs: Photographs) -> str:
    """What was left out or mended, what failed, and photographs that the page could not show."""
    problems: Sequence[Mapping[str, Any]] = run.dataset.get("problems") or []
    failed = run.rows[run.rows["status"] != "ok"]
    parts = []
    if problems:
        kinds = Counter(str(one.get("kind")) for one in problems)
        counted = ", ".join(f"{kind} {amount:,}" for kind, amount in sorted(kinds.items()))
        rows = [
            [
                tables.Cell(str(one.get("kind"))),
                tables.Cell(str(one.get("source"))),
                tables.Cell(str(one.get("reason")), wrap=True),
            ]
            for one in problems[:MOST_LISTED]
        ]
        parts.append(
            f"<p>In the dataset: {escape(counted)}.</p>{_list(rows, ('kind', 'source', 'reason'), len(problems))}"
        )
    if len(failed):
        lines = failed.groupby(["setting", "sample", "reason"], dropna=False, sort=True).size().index
        named = {one.id: one.label for one in run.settings}
        rows = [
            [
                tables.Cell(named.get(setting, str(setting))),
                tables.Cell(str(sample)),
                tables.Cell(str(reason), wrap=True),
            ]
            for setting, sample, reason in lines[:MOST_LISTED]
        ]
        parts.append(
            f"<p>{count(len(failed), 'row')} failed, of {len(run.rows):,}; they are not in the numbers.</p>"
            f"{_list(rows, ('setting', 'sample', 'reason'), len(lines))}"
        )
    parts.append(missing(photographs))
    return "".join(parts) or "<p>None: every picture was evaluated in every setting.</p>"


def _list(rows: Sequence[Sequence[tables.Cell]], titles: Sequence[str], total: int) -> str:
    notes = [f"The first {len(rows)} of {total:,}."] if total > len(rows) else []
    table = tables.Table("", dict.fromkeys(titles, ""), {"": rows}, notes=notes)
    return tables.to_html(table, "Problems", search="Find a problem" if total > 10 else "")


def _manifest(run: Run) -> str:
    shown = {key: value for key, value in run.manifest.items() if key not in ("settings", "dataset", "sessions")}
    sessions = run.manifest.get("sessions") or []
    data = {key: value for key, value in run.dataset.items() if key not in ("classes", "reasons", "problems")}
    data["classes"] = len(run.dataset.get("classes") or [])
    keys = list(dict.fromkeys(key for one in run.settings for key in one.about))
    rows = [[tables.Cell(_short(one.about.get(key))) for key in keys] for one in run.settings]
    settings = tables.to_html(tables.Table("", dict.fromkeys(keys, ""), {"": rows}), "Settings")
    raw = json.dumps({**run.manifest, "dataset": data}, ensure_ascii=False, indent=1)
    runs = "".join(
        f"<h3>{'Session' if len(sessions) == 1 else f'Session {i} of {len(sessions)}'}</h3>{_pairs(one)}"
        for i, one in enumerate(sessions, start=1)
    )
    return (
        f"{runs}<h3>Run</h3>{_pairs(shown)}<h3>Dataset</h3>{_pairs(data)}<h3>Settings</h3>{settings}"
        "<details><summary>manifest.json, without classes and problems</summary>"
        f"<pre tabindex=0>{escape(raw)}</pre></details>"
        "<p>The tables of this page lie beside it as tables.csv, tables.md and tables.tex.</p>"
    )


def _short(value: Any) -> str:
    text = said(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _pairs(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{escape(key.replace('_', ' '))}</dt><dd>{_value(value)}</dd></div>" for key, value in values.items()
    )
    return f"<dl class=facts>{items}</dl>"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return f"<code>{escape(shlex.join(value))}</code>"
    return escape(said(value))
