"""The benchmark class by class: all of them, and ten looked at closely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cliploc.report._html import count, escape
from cliploc.report.benchmark_data import Run, Setting, details, wilson
from cliploc.report.benchmark_gallery import Photographs, caption, figures, picture
from cliploc.report.benchmark_tables import Cell, Table, percent, to_html

SHOWN = 12  # best and worst classes


# -------------------------------------------------------------------------------------------------------- all classes
def class_bars(run: Run, setting: Setting) -> str:
    """The best and the worst classes of a setting as bars, by the cautious end of each one's interval."""
    shares = run.of(setting).groupby("label")["hit"].agg(["sum", "count"])
    found = [(int(label), int(row["sum"]), int(row["count"])) for label, row in shares.iterrows()]
    best = sorted(found, key=lambda one: (-wilson(*one[1:])[0], one[0]))[:SHOWN]
    worst = sorted(found, key=lambda one: (wilson(*one[1:])[1], one[0]))[:SHOWN]
    lists = [("Best", best)] if len(found) <= SHOWN else [("Best", best), ("Worst", worst)]
    return f"<div class=columns>{''.join(_bars(run, *one) for one in lists)}</div>"


def _bars(run: Run, title: str, found: Sequence[tuple[int, int, int]]) -> str:
    items = []
    for label, hits, n in found:
        low, high = wilson(hits, n)
        items.append(
            f"<li><span class=name>{escape(run.class_name(label))}</span>"
            f'<span class=bar style="--v:{100 * hits / n:.1f}%;--low:{low:.1f}%;--high:{high:.1f}%">'
            f"<i></i><em></em></span>"
            f"<span class=n>{hits} of {n}</span></li>"
        )
    return f"<div><h3>{title}</h3><ol class=bars>{''.join(items)}</ol></div>"


def class_table(run: Run, settings: Sequence[Setting]) -> str:
    """Every class × every setting: GT-known at the setting's τ; with a field to find a class."""
    pictures = run.rows.drop_duplicates(["sample"]).groupby("label")["sample"].count()
    columns = {"class": "", "id": "", "pictures": "", **{one.label: "GT-known Loc, %" for one in settings}}
    rows = []
    for label in sorted(int(one) for one in pictures.index):
        cells = [Cell(run.class_name(label)), Cell(run.wnid(label) or str(label))]
        cells.append(Cell(str(pictures[label]), int(pictures[label])))
        for one in settings:
            numbers = (one.numbers.get("per_class") or {}).get(str(label)) or {}
            share = numbers.get("gt_known")
            cells.append(Cell("–") if share is None else Cell(f"{share:.1f}", share))
        rows.append(cells)
    numeric = frozenset(columns) - {"class", "id"}
    return to_html(Table("", columns, {"": rows}, numeric), "Every class and every setting", search="Find a class")


# -------------------------------------------------------------------------------------------------------- ten classes
def studied(run: Run) -> Mapping[int, str]:
    """Label → why it is looked at closely, of the classes for which the manifest says so and that have pictures."""
    reasons: Mapping[str, str] = run.dataset.get("reasons") or {}
    labels = {str(one.get("wnid")): i for i, one in enumerate(run.dataset.get("classes") or [])}
    present = set(run.rows["label"].unique().tolist())
    return {labels[wnid]: reason for wnid, reason in reasons.items() if labels.get(wnid) in present}


def class_page(run: Run, settings: Sequence[Setting], reasons: Mapping[int, str], photographs: Photographs) -> str:
    """A part for each class: why, numbers per setting, three pictures."""
    leader = settings[0]
    rows = run.of(leader)
    keys = {label: _three(rows[rows["label"] == label]) for label in reasons}
    full = details(run, {(leader.id, sample) for samples in keys.values() for sample in samples})
    parts = []
    for label, reason in reasons.items():
        pieces = []
        for sample in keys[label]:
            row = full[leader.id, sample]
            words, says = caption(run, row, leader, "")
            pieces.append((picture(row, leader, photographs, says), words))
        amount = run.rows[run.rows["label"] == label]["sample"].nunique()
        parts.append(
            f"<article class=study><h3>{escape(run.class_name(label))} "
            f"<small>{escape(run.wnid(label))} · {count(amount, 'picture')}</small></h3><p>{escape(reason)}</p>"
            f"<div class=beside><div>{_numbers(run, settings, label)}</div>{figures(pieces)}</div></article>"
        )
    return "\n".join(parts)


def _three(rows: Any) -> list[str]:
    """The best, the middle and the worst picture of a class."""
    ordered = rows[rows["iou"].notna()].sort_values(["iou", "sample"], ascending=[False, True])["sample"].tolist()
    places = sorted({0, (len(ordered) - 1) // 2, len(ordered) - 1}) if ordered else []
    return [ordered[place] for place in places]


def _numbers(run: Run, settings: Sequence[Setting], label: int) -> str:
    columns = {
        "setting": "",
        "GT-known Loc": "at the setting's τ",
        "MaxBoxAcc": "at the τ best for all pictures of the run",
        "mean IoU": "of the largest contour's box",
        "Top-1 class": "",
        "Top-1 Loc": "",
        "pointing": "",
    }
    rows = []
    for one in settings:
        mine = run.of(one)
        mine = mine[mine["label"] == label]
        if not len(mine):
            rows.append([Cell(one.label), *[Cell("–")] * (len(columns) - 1)])
            continue
        first = (mine["predicted"] == label).to_numpy() if "predicted" in mine else None
        hit = mine["hit"].to_numpy(dtype=bool)
        stored = (one.numbers.get("per_class") or {}).get(str(label)) or {}
        iou = float(mine["iou"].mean())
        rows.append(
            [
                Cell(one.label),
                percent(stored.get("gt_known", 100 * float(hit.mean()))),
                percent(stored.get("max_box_acc")),
                Cell(f"{iou:.2f}", iou),
                percent(None if first is None else 100 * float(first.mean())),
                percent(None if first is None else 100 * float((first & hit).mean())),
                percent(100 * float(mine["pointing_hit"].mean()) if "pointing_hit" in mine else None),
            ]
        )
    table = Table("", columns, {"": rows}, frozenset(columns) - {"setting"})
    return to_html(table, f"Numbers for {run.class_name(label)}", best=True)


def confusion(run: Run, settings: Sequence[Setting], labels: Sequence[int]) -> str:
    """Which class is predicted instead, once for each of the run's classifiers (settings that predict the same)."""
    groups: dict[bytes, list[Setting]] = {}
    for one in settings:
        rows = run.of(one).sort_values("sample")
        if "predicted" in rows and len(rows) and (rows["predicted"] >= 0).any():
            groups.setdefault(rows["predicted"].to_numpy(dtype=np.int64).tobytes(), []).append(one)
    parts = []
    for same in groups.values():
        title = ", ".join(one.label for one in same) if len(groups) > 1 else "All settings predict alike"
        parts.append(f"<h4>{escape(title)}</h4>{_matrix(run, same[0], labels)}")
    return "\n".join(parts)


def _matrix(run: Run, setting: Setting, labels: Sequence[int]) -> str:
    rows = run.of(setting)
    names = [run.class_name(label) for label in labels]
    head = "".join(f"<th scope=col class=up><span>{escape(name)}</span></th>" for name in names)
    body = []
    for label, name in zip(labels, names, strict=True):
        predicted = rows[rows["label"] == label]["predicted"]
        total = max(len(predicted), 1)
        cells = []
        for other in labels:
            amount = int((predicted == other).sum())
            kind = " same" if other == label else ""
            cells.append(f'<td class="n heat{kind}" style="--v:{amount / total:.2f}">{amount or "·"}</td>')
        outside = (
            predicted[~predicted.isin(list(labels))]
            .value_counts()
            .sort_index()
            .sort_values(ascending=False, kind="stable")
        )
        most = ", ".join(f"{run.class_name(int(one))} {n}" for one, n in outside.head(3).items())
        cells.append(f'<td class="n heat" style="--v:{outside.sum() / total:.2f}">{int(outside.sum()) or "·"}</td>')
        cells.append(f"<td class=wrap>{escape(most) or '–'}</td>")
        body.append(f"<tr><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>\n")
    return (
        '<div class=scroll role=region aria-label="True classes in rows, predicted classes in columns" tabindex=0>'
        f"<table class=confusion><thead><tr><th scope=col>true ↓ predicted →</th>{head}"
        "<th scope=col class=up><span>another class</span></th><th scope=col>of these, most often</th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
