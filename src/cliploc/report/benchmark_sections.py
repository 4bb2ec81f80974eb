"""What the rows of a benchmark tell, a part of the page each: thresholds, IoU, objects, classes, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cliploc.report._html import count, escape
from cliploc.report.benchmark_classes import class_bars, class_page, class_table, confusion, studied
from cliploc.report.benchmark_data import MISSES, TAUS, Run, Setting, details
from cliploc.report.benchmark_figures import (
    INSTANCES,
    QUARTILES,
    breakdown,
    iou_histogram,
    iou_shares,
    legend,
    tau_curves,
)
from cliploc.report.benchmark_gallery import Photographs, caption, chosen, disputed, figures, picture
from cliploc.report.benchmark_tables import Cell, Table, percent, to_html

EACH = 10  # pictures of a kind
MOST_DRAWN = 8  # settings in one figure, and histograms
MOST_GALLERIES = 4
FORGIVING = 2.0  # points of MaxBoxAcc below the best within which a τ is about as good
OWNER = (
    "The photographs belong to their owners; those of ILSVRC, among others, must not be passed on. This page embeds "
    "small copies for your own use. Before you share it, write it without them: cliploc report {folder} --no-pictures"
)


@dataclass(frozen=True)
class Section:
    """A part of the page; `short` is its link at the top."""

    id: str
    short: str
    title: str
    body: str


def sections(run: Run, settings: Sequence[Setting], photographs: Photographs) -> list[Section]:
    """All parts that there is something to say in.

    Args:
        run: the benchmark.
        settings: those with results, best first; at least one.
        photographs: where the page keeps them.
    """
    if not run.rows["iou"].notna().any():
        words = "<p>No picture has true boxes: maps were compared with masks alone, see PxAP above.</p>"
        return [Section("iou", "IoU", "How well boxes fit", words)]
    shown = list(settings[:MOST_DRAWN])
    left = "" if len(shown) == len(settings) else f"<p>The {len(shown)} best of {len(settings)} settings.</p>"
    found = [
        Section("tau", "Thresholds", "Accuracy at every threshold", left + _tau(shown)),
        Section("iou", "IoU", "How well boxes fit", left + _iou(run, shown)),
        Section(
            "objects", "Size, number", "Hits and misses by size and number of objects", left + _objects(run, shown)
        ),
    ]
    if reasons := studied(run):
        who = f"Pictures, with the best, the middle and the worst box, are of {settings[0].label}."
        body = (
            f"<p>{escape(who)}</p>{KEY}{class_page(run, shown, reasons, photographs)}"
            f"<h3>What is predicted instead</h3>{confusion(run, settings, list(reasons))}"
        )
        found.append(Section("ten", "Ten classes", "Ten classes, looked at closely", body))
    found.append(Section("classes", "Classes", "Class by class", left + _classes(run, shown)))
    found.append(Section("pictures", "Pictures", "Pictures", _pictures(run, settings, photographs)))
    return found


# --------------------------------------------------------------------------------------------------------- thresholds
def _tau(settings: Sequence[Setting]) -> str:
    note = (
        "Dot: the best τ for all pictures, an oracle. Ring: the τ that the setting used, if fixed beforehand. "
        "A broad hill forgives a τ that is a little off."
    )
    curves = [one for one in settings if one.curve is not None]
    columns = {
        "setting": "",
        "best τ": "",
        "MaxBoxAcc": "there, %",
        "own τ": "",
        "at own τ": "%",
        f"within {FORGIVING:g} points": "the range of τ around the best in which MaxBoxAcc is so near to it",
    }
    rows = []
    for one in curves:
        assert one.curve is not None
        best = int(one.curve.argmax())
        near = one.curve >= one.curve[best] - FORGIVING
        start = best - int(near[: best + 1][::-1].argmin() or best + 1) + 1
        stop = best + int(near[best:].argmin() or len(near) - best) - 1
        own = None if one.threshold is None else one.curve[min(round(one.threshold * 1000), len(TAUS) - 1)]
        rows.append(
            [
                Cell(one.label),
                Cell(f"{TAUS[best]:.3f}", float(TAUS[best])),
                percent(float(one.curve[best])),
                Cell("–" if one.threshold is None else f"{one.threshold:.3f}", one.threshold),
                percent(None if own is None else float(own)),
                Cell(f"{TAUS[start]:.3f} – {TAUS[stop]:.3f}", float(TAUS[stop] - TAUS[start])),
            ]
        )
    table = Table("", columns, {"": rows}, frozenset(columns) - {"setting"})
    return (
        f"<p>{note}</p><div class=beside><div>{tau_curves(curves)}{legend(curves)}</div>"
        f"<div>{to_html(table, 'Thresholds', best=True)}</div></div>"
    )


# ---------------------------------------------------------------------------------------------------------------- IoU
def _iou(run: Run, settings: Sequence[Setting]) -> str:
    top = 5 * np.ceil(max(iou_shares(run, one).max() for one in settings) / 5 + 0.2)
    pieces = []
    for one in settings:
        rows = run.of(one)
        right = 100 * float(rows["hit"].mean())
        pieces.append(
            f"<figure>{iou_histogram(run, one, float(top))}<figcaption><b>{escape(one.label)}</b> · median IoU "
            f"{rows['iou'].median():.2f} · {right:.1f} % at least 0.5</figcaption></figure>"
        )
    note = (
        "IoU of the largest contour's box, at the setting's own τ, with the true box that it fits best. "
        "Filled: right, at least 0.5. Hatched: wrong."
    )
    return f"<p>{note}</p><div class=plots>{''.join(pieces)}</div>"


# ------------------------------------------------------------------------------------------------- size and number
Counts = Mapping[str, Sequence[tuple[int, int]]]  # setting → (hits, pictures) of each group


def _objects(run: Run, settings: Sequence[Setting]) -> str:
    shares = run.rows.drop_duplicates("sample")["area_share"].dropna().to_numpy(dtype=float)
    ends = np.quantile(shares, [0.25, 0.5, 0.75])
    size = _by(run, settings, lambda rows: np.searchsorted(ends, rows["area_share"].to_numpy(dtype=float)))
    number = _by(run, settings, lambda rows: rows["n_boxes"].to_numpy(dtype=int).clip(1, 4) - 1)
    cuts = ", ".join(f"{100 * end:.0f}" for end in ends)
    parts = [
        "<p>At the setting's own τ. Bars are 95 % intervals.</p>",
        legend(settings),
        f"<div class=plots><figure>{breakdown(settings, size, QUARTILES, 'size of the object')}<figcaption>Size: the "
        "share of the picture that the largest true box covers, in quarters of all pictures, "
        f"cut at {cuts} %.</figcaption></figure>",
        f"<figure>{breakdown(settings, number, INSTANCES, 'number of true boxes')}<figcaption>Instances of the class "
        "in the picture.</figcaption></figure></div><h3>Counts</h3>",
        _count_table(settings, size, number),
    ]
    if (run.rows["miss"] != "").any():
        parts += ["<h3>How boxes are wrong</h3>", _misses(run, settings)]
    return "".join(parts)


def _by(run: Run, settings: Sequence[Setting], group: Callable[[Any], Any], groups: int = 4) -> Counts:
    found = {}
    for one in settings:
        rows = run.of(one)
        places, hits = group(rows), rows["hit"].to_numpy(dtype=bool)
        found[one.id] = [(int(hits[places == i].sum()), int((places == i).sum())) for i in range(groups)]
    return found


def _count_table(settings: Sequence[Setting], size: Counts, number: Counts) -> str:
    groups = [(name, size, i) for i, name in enumerate(QUARTILES)]
    groups += [(f"{name} {'box' if name == '1' else 'boxes'}", number, i) for i, name in enumerate(INSTANCES)]
    columns = {"setting": "", "box": "", **dict.fromkeys((name for name, _, _ in groups), "pictures")}
    rows = []
    for one in settings:
        for what in ("right", "wrong"):
            counts = [found[one.id][i] for _, found, i in groups]
            amounts = [hits if what == "right" else n - hits for hits, n in counts]
            rows.append([Cell(one.label), Cell(what), *[Cell(f"{amount:,}", amount) for amount in amounts]])
    table = Table("", columns, {"": rows}, frozenset(columns) - {"setting", "box"})
    return to_html(table, "Hits and misses by size and number of objects")


def _misses(run: Run, settings: Sequence[Setting]) -> str:
    """A bar for each setting: right boxes, and each kind of wrong ones."""
    kinds = {"hit": ("right", "IoU of at least 0.5"), **MISSES}
    bars = []
    for one in settings:
        rows = run.of(one)
        shares = {"hit": 100 * float(rows["hit"].mean())}
        shares |= {kind: 100 * float((rows["miss"] == kind).mean()) for kind in MISSES}
        there = {kind: share for kind, share in shares.items() if share > 0}
        spans = "".join(
            f'<span class="k-{kind}" style="--v:{share:.2f}%" title="{escape(kinds[kind][0])}: {share:.1f} %">'
            f"<b>{f'{share:.0f}' if share >= 6 else ''}</b></span>"
            for kind, share in there.items()
        )
        says = ", ".join(f"{kinds[kind][0]} {share:.1f} %" for kind, share in there.items())
        bars.append(
            f'<li><span class=name>{escape(one.label)}</span><span class=stack role=img aria-label="{escape(says)}">'
            f"{spans}</span></li>"
        )
    keys = "".join(
        f'<li><i class="k-{kind}"></i><b>{escape(title)}</b>: {escape(meaning)}</li>'
        for kind, (title, meaning) in kinds.items()
    )
    return (
        "<p>Percent of pictures; the kinds of errors are TS-CAM's (Gao et al. 2021), of which the first that applies "
        f"counts.</p><ol class=stacks>{''.join(bars)}</ol><ul class=kinds>{keys}</ul>"
    )


# ------------------------------------------------------------------------------------------------------------ classes
def _classes(run: Run, settings: Sequence[Setting]) -> str:
    present = run.rows.drop_duplicates("sample").groupby("label")["sample"].count()
    few = int((present <= 2).sum())
    words = [f"{len(present):,} classes, {count(int(present.sum()), 'sample')}."]
    if few > len(present) / 2:
        words.append(f"{few:,} of them have one or two: their own numbers say little.")
    words.append(
        f"Bars: right boxes of {settings[0].label} at its τ; the thin line is the 95 % interval, by whose cautious end "
        "classes are ranked, so that one lucky picture does not lead."
    )
    return (
        f"<p>{escape(' '.join(words))}</p>{class_bars(run, settings[0])}<h3>All classes</h3>"
        f"<p>Right boxes in percent: GT-known Loc at each setting's τ.</p>{class_table(run, settings)}"
    )


# ----------------------------------------------------------------------------------------------------------- pictures
def _line(kind: str) -> str:
    shape = "x=2 y=2 width=30 height=8"
    return (
        f'<svg width=34 height=12 viewBox="0 0 34 12" aria-hidden=true><rect class="edge {kind}" {shape} />'
        f'<rect class="{kind}" {shape} /></svg>'
    )


KEY = f"<p class=key><span>{_line('found')} found, the largest thick</span> <span>{_line('true')} true</span></p>"
SWITCHES = (
    "<p class=switches>show <label><input type=checkbox id=show-heat checked> maps</label> "
    "<label><input type=checkbox id=show-found checked> found boxes</label> "
    "<label><input type=checkbox id=show-true checked> true boxes</label></p>"
)
KINDS = {
    "best": "The highest IoU.",
    "borderline": "IoU nearest to 0.5, on either side.",
    "worst": "The lowest IoU; of equal ones, the largest objects.",
}


def _pictures(run: Run, settings: Sequence[Setting], photographs: Photographs) -> str:
    shown, compared = settings[:MOST_GALLERIES], settings[:MOST_DRAWN]
    picks = {one.id: chosen(run, one, EACH) for one in shown}
    argued = disputed(run, compared, EACH) if len(compared) > 1 else []
    wanted = {key for kinds in picks.values() for keys in kinds.values() for key in keys}
    full = details(run, wanted | {(one.id, sample) for one in compared for sample in argued})

    def one_figure(one: Setting, sample: str, title: str) -> tuple[str, str]:
        text, says = caption(run, full[one.id, sample], one, title)
        return picture(full[one.id, sample], one, photographs, says), text

    def name(key: tuple[str, str]) -> str:
        return run.class_name(int(full[key]["label"]))

    parts = []
    for i, one in enumerate(shown):
        inside = "".join(
            f"<h4>{kind.capitalize()}</h4><p>{KINDS[kind]}</p>"
            f"{figures(one_figure(one, sample, name((one.id, sample))) for _, sample in keys)}"
            for kind, keys in picks[one.id].items()
        )
        opened = " open" if i == 0 else ""
        parts.append(f"<details{opened}><summary><h3>{escape(one.label)}</h3></summary>{inside}</details>")
    if argued:
        parts.append("<h3>Where the settings differ most</h3>")
    for sample in argued:
        parts.append(f"<h4>{escape(name((compared[0].id, sample)))}</h4>")
        parts.append(figures(one_figure(one, sample, one.label) for one in compared))
    note = (
        OWNER.format(folder=run.folder) if photographs.shown else "Written without photographs: maps and boxes alone."
    )
    return f"<p class=hint>{escape(note)}</p>{missing(photographs)}{KEY}{SWITCHES}{''.join(parts)}"


def missing(photographs: Photographs) -> str:
    """Which photographs could not be read, if any."""
    if not photographs.missing:
        return ""
    _, reason = min(photographs.missing.items())
    return (
        f"<p class=hint><b>{count(len(photographs.missing), 'photograph')} cannot be read</b>: their maps and boxes "
        f"stand alone. The first: {escape(reason)}</p>"
    )
