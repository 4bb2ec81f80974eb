"""Writes the report of a benchmark of boxes: the page, and its table as CSV and Markdown."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.draw.html import LIGHT, count
from cliploc.evaluate.metrics import TAUS, all_numbers
from cliploc.evaluate.tasks.boxes import gallery
from cliploc.evaluate.tasks.boxes.data import MISSES, BenchmarkRun, distinct, in_words, read_run, wilson
from cliploc.evaluate.tasks.figures import Figure, figure, legend, look, plot
from cliploc.evaluate.tasks.report import Floats, SettingResult, worth, write_files
from cliploc.evaluate.tasks.tables import Cell, Table, counted, decimal, numbers_csv, percent, to_markdown

MOST_DRAWN = 8  # settings in one figure, and histograms
FORGIVING = 2.0  # percentage points of MaxBoxAcc; a τ this close to the best is about as good
MOST_BARS = 12  # best and worst classes
QUARTILES = ("smallest quarter", "second", "third", "largest quarter")
INSTANCES = ("1", "2", "3", "4 and more")
WITHOUT_A_MODEL = (
    "Boxes without a model are fixed beforehand and the same for every picture and name: a method whose boxes are not "
    "better has only found the middle of the picture. Their Top-1 and Top-5 Loc use the model's classification."
)
Section = Mapping[str, Any]  # `id`, whose template renders it; `short`, its link's text; `title`; and its data


def write_boxes_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into the folder of a benchmark of boxes; see `write_report`."""
    run = read_run(folder)
    data = run.dataset
    subset = f" ({data['subset']})" if data.get("subset") else ""
    name = f"{data['name']} {data['split']}{subset}"
    photographs = gallery.Photographs(Path(str(data.get("root", "."))), pictures, run.unreadable)
    facts = {
        "dataset": f"{data['name']} {data['split']}",
        "role": {"tune": "may choose τ", "report": "may only be reported on"}.get(str(data.get("role")), ""),
        "subset": data.get("subset") or "",
        "samples": f"{run.rows['sample'].nunique():,}",
        "settings": f"{len(run.settings):,}",
        "models": in_words(sorted({str(setting.about.get("model")) for setting in run.settings})),
        "started": " ".join(str((run.manifest.get("sessions") or [{}])[0].get("started", ""))[:16].split("T")),
        "cliploc": str(run.manifest.get("cliploc_version") or ""),
    }
    table = every_number(run)
    evaluated = [setting for setting in run.ranked if len(run.of(setting))]
    parts: list[Section] = [{"id": "numbers", "short": "All numbers", "title": table.title, "table": table}]
    page = run.render(
        "boxes.html",
        title=f"Benchmark: {name}",
        about={key: value for key, value in facts.items() if value},
        headline=_headline(evaluated) if evaluated else None,
        parts=[*parts, *(sections(run, evaluated, photographs) if evaluated else [])],
        photographs=photographs,
    )
    taus = ("best_threshold", "threshold", "threshold_chosen_on_these_images")
    csv = numbers_csv(
        run, all_numbers(), (*taus, "images"), lambda setting: {"pretrained": setting.about.get("pretrained")}
    )
    return write_files(folder, (csv, to_markdown(f"cliploc benchmark: {name}", [table]), page))


def _headline(evaluated: Sequence[SettingResult]) -> dict[str, Any]:
    """The best setting, the best of those with a τ fixed beforehand, and how many are not told from the best."""
    best, *others = evaluated
    ends = best.interval("max_box_acc")
    fixed = [setting for setting in evaluated if not setting.oracle and setting.number("gt_known") is not None]
    overlap = [one for one in others if ends and (other := one.interval("max_box_acc")) and other[1] > ends[0]]
    return {
        "best": best if best.number("max_box_acc") is not None else None,
        "fixed": max(fixed, key=lambda one: (worth(one.number("gt_known")), -one.index), default=None),
        "alike": len(overlap),
    }


def every_number(run: BenchmarkRun) -> Table:
    """Every setting × every metric that any of them has."""
    numbers = {
        key: number
        for key, number in all_numbers().items()
        if any(setting.number(key) is not None for setting in run.settings)
    }
    columns = {
        "setting": "",
        "τ": "of GT-known, Top-1 and Top-5 Loc, VL-Score's rule and mean best IoU; "
        "fixed: before these pictures were seen; oracle: chosen on them",
        **{number.title: number.about for number in numbers.values()},
        "best τ": "of MaxBoxAcc, chosen on these pictures",
        "evaluated": "",
        "failed": "",
    }
    rows = []
    for setting in run.ranked:
        tau = "each map's own"
        if setting.threshold is not None:
            tau = f"{setting.threshold:.3g} ({'oracle' if setting.oracle else 'fixed'})"
        rows.append(
            [
                Cell(setting.label),
                Cell(tau, setting.threshold),
                *(percent(setting.number(key), setting.interval(key)) for key in numbers),
                decimal(setting.numbers.get("best_threshold"), 3),
                counted(setting.number("evaluated")),
                counted(len(setting.failed)),
            ]
        )
    notes = ["Percent, with 95 % intervals (bootstrap over pictures). The best by MaxBoxAcc first."]
    if any(setting.baseline for setting in run.settings):
        notes.append(WITHOUT_A_MODEL)
    return Table("All settings, all metrics", columns, rows, {"setting", "τ"}, notes)


# --------------------------------------------------------------------------------------------------- sections from rows
def sections(run: BenchmarkRun, evaluated: Sequence[SettingResult], photographs: gallery.Photographs) -> list[Section]:
    """The sections that have content."""

    def section(name: str, short: str, title: str, data: Mapping[str, Any]) -> Section:
        return {"id": name, "short": short, "title": title, "drawn": len(drawn), "total": len(different), **data}

    different = distinct(evaluated)
    drawn = different[:MOST_DRAWN]
    if not run.rows["iou"].notna().any():
        return [section("iou", "IoU", "How well boxes fit", {"histograms": []})]
    objects = "Hits and misses by size and number of objects"
    parts = [
        section("tau", "Thresholds", "Accuracy at every threshold", _thresholds(drawn)),
        section("iou", "IoU", "How well boxes fit", _iou(run, drawn)),
        section("objects", "Size, number", objects, _objects(run, drawn, objects)),
    ]
    # The classes with a reason in the manifest and with pictures: label → reason why its details are here.
    reasons: Mapping[str, str] = run.dataset.get("reasons") or {}
    labels = {str(entry.get("wnid")): label for label, entry in enumerate(run.dataset["classes"])}
    present = set(run.rows["label"].unique().tolist())
    if studied := {labels[wnid]: reason for wnid, reason in reasons.items() if labels.get(wnid) in present}:
        ten = {
            "leader": drawn[0].label,
            "studies": gallery.studies(run, drawn, studied, photographs),
            "confusions": gallery.confusion(run, evaluated, list(studied)),
        }
        parts.append(section("ten", "Ten classes", "Ten classes in detail", ten))
    parts.append(section("classes", "Classes", "Class by class", _classes(run, drawn)))
    parts.append(section("pictures", "Pictures", "Pictures", gallery.galleries(run, drawn, photographs)))
    return parts


def _thresholds(settings: Sequence[SettingResult]) -> dict[str, Any]:
    """MaxBoxAcc over τ: a dot marks the best τ of each line, a ring the setting's τ; and a table."""
    curves = [(setting, setting.curve) for setting in settings if setting.curve is not None]
    columns = {
        "setting": "",
        "best τ": "",
        "MaxBoxAcc": "there, %",
        "own τ": "",
        "at own τ": "%",
        f"within {FORGIVING:g} points": "the range of τ around the best in which MaxBoxAcc is this close to the best",
    }
    rows, bests = [], []
    for setting, curve in curves:
        best = int(curve.argmax())
        near = curve >= curve[best] - FORGIVING
        start = best - int(near[: best + 1][::-1].argmin() or best + 1) + 1
        stop = best + int(near[best:].argmin() or len(near) - best) - 1
        rows.append(
            [
                Cell(setting.label),
                decimal(float(TAUS[best]), 3),
                percent(float(curve[best])),
                decimal(setting.threshold, 3),
                percent(None if setting.threshold is None else setting.number("gt_known")),
                Cell(f"{TAUS[start]:.3f} – {TAUS[stop]:.3f}", float(TAUS[stop] - TAUS[start])),
            ]
        )
        bests.append(f"{setting.label}: {curve[best]:.1f} % at {TAUS[best]:.3f}")

    def draw(axes: Any) -> None:
        for setting, curve in curves:
            colour, best = plot(axes, setting.index, TAUS, curve), int(curve.argmax())
            axes.plot(TAUS[best], curve[best], "o", color=colour, markersize=6)
            if setting.threshold is not None and not setting.oracle:
                ring: dict[str, Any] = {"markersize": 9, "fillstyle": "none", "markeredgewidth": 1.6}
                axes.plot(setting.threshold, setting.number("gt_known"), "o", color=colour, **ring)
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="threshold τ, share of the map's maximum", ylabel="MaxBoxAcc, %")

    return {
        "figure": figure(draw, f"MaxBoxAcc at every threshold. Best: {'; '.join(bests)}", (5.8, 4.0)),
        "legend": legend((setting.index, setting.label) for setting, _ in curves),
        "table": Table("Thresholds", columns, rows, {"setting"}),
    }


def _iou(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    """IoU of the largest contour's box at each setting's τ: histograms, right ones filled, wrong ones hatched."""
    shares: dict[str, Floats] = {}  # setting → percentage of pictures in each of 20 equal ranges of IoU, [20]
    for setting in settings:
        counts = np.histogram(run.of(setting)["iou"].dropna(), bins=np.linspace(0, 1, 21))[0]
        shares[setting.id] = 100 * counts / max(counts.sum(), 1)
    top = float(5 * np.ceil(max(each.max() for each in shares.values()) / 5 + 0.2))  # of the axis that all share

    def draw(setting: SettingResult, axes: Any) -> None:
        colour, _, _ = look(setting.index)
        for i, share in enumerate(shares[setting.id]):
            style = {"color": colour} if i >= 10 else {"color": "none", "hatch": "////"}
            axes.bar((i + 0.5) / 20, share, 0.042, edgecolor=colour, linewidth=0.8, **style)
        axes.axvline(0.5, color=LIGHT["soft"], linewidth=1, dashes=(4, 3))
        axes.set(xlim=(0, 1), ylim=(0, top), xlabel="IoU", ylabel="pictures, %")

    histograms = []
    for setting in settings:
        text = f"{setting.label}: {shares[setting.id][10:].sum():.1f} % of pictures have IoU ≥ 0.5"
        histograms.append(
            {
                "figure": figure(partial(draw, setting), text, (4.4, 2.7)),
                "label": setting.label,
                "median": run.of(setting)["iou"].median(),
                "right": 100 * float(run.of(setting)["hit"].mean()),
            }
        )
    return {"histograms": histograms}


def _objects(run: BenchmarkRun, settings: Sequence[SettingResult], title: str) -> dict[str, Any]:
    """Right boxes by size and number of objects, as figures and counts, and how the others are wrong."""
    cuts = run.rows.drop_duplicates("sample")["area_share"].dropna().quantile([0.25, 0.5, 0.75]).tolist()
    size: dict[str, list[tuple[int, int]]] = {}  # setting → (hits, pictures) of each of four groups
    number: dict[str, list[tuple[int, int]]] = {}
    misses, cells = [], []  # of each setting, its label and the percentages of right boxes and of each kind of error
    for setting in settings:
        rows, label = run.of(setting), setting.label
        groups = np.searchsorted(cuts, rows["area_share"]), rows["n_boxes"].to_numpy(int).clip(1, 4) - 1
        for counts_of, group in zip((size, number), groups, strict=True):
            hits = [rows["hit"][group == i] for i in range(4)]
            counts_of[setting.id] = [(int(hit.sum()), len(hit)) for hit in hits]
        counts = [*size[setting.id], *number[setting.id]]
        cells.append([Cell(label), Cell("right"), *(counted(hits) for hits, _ in counts)])
        cells.append([Cell(label), Cell("wrong"), *(counted(n - hits) for hits, n in counts)])
        kinds = {kind: 100 * float((rows["miss"] == kind).mean()) for kind in MISSES}
        kinds = {"hit": 100 * float(rows["hit"].mean()), **kinds}
        misses.append((label, {kind: share for kind, share in kinds.items() if share > 0}))
    boxes = [f"{name} {'box' if name == '1' else 'boxes'}" for name in INSTANCES]
    columns = {"setting": "", "box": "", **dict.fromkeys((*QUARTILES, *boxes), "pictures")}
    return {
        "legend": legend((setting.index, setting.label) for setting in settings),
        "size": _breakdown(settings, size, QUARTILES, "size of the object"),
        "cuts": ", ".join(f"{100 * end:.0f}" for end in cuts),
        "number": _breakdown(settings, number, INSTANCES, "number of true boxes"),
        "table": Table(title, columns, cells, {"setting", "box"}),
        "kinds": {"hit": ("right", "IoU of at least 0.5"), **MISSES},
        "misses": misses if (run.rows["miss"] != "").any() else [],
    }


def _breakdown(
    settings: Sequence[SettingResult],
    counts_of: Mapping[str, Sequence[tuple[int, int]]],
    names: Sequence[str],
    what: str,
) -> Figure:
    """Draws the share of hits in groups of pictures, with 95 % intervals."""

    def draw(axes: Any) -> None:
        for place, setting in enumerate(settings):
            points = [(i, h, n) for i, (h, n) in enumerate(counts_of[setting.id]) if n]
            # Side by side, so that the intervals do not overlap.
            x = [i + 0.04 * (place - (len(settings) - 1) / 2) for i, _, _ in points]
            ends = np.array([wilson(h, n) for _, h, n in points]).reshape(-1, 2)
            colour = plot(axes, setting.index, x, [100 * h / n for _, h, n in points], marked=True)
            axes.vlines(x, ends[:, 0], ends[:, 1], color=colour, linewidth=1, alpha=0.7)
        axes.set_xticks(range(len(names)), [name.replace(" quarter", "\nquarter") for name in names])
        axes.set(xlim=(-0.4, len(names) - 0.6), ylim=(-3, 103), xlabel=what, ylabel="right boxes, %")

    shares = "; ".join(
        f"{setting.label}: "
        + ", ".join(f"{name} {h} of {n}" for name, (h, n) in zip(names, counts_of[setting.id], strict=True))
        for setting in settings
    )
    return figure(draw, f"Right boxes by {what}. {shares}", (5.2, 3.7))


def _classes(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    """The best and worst classes, and GT-known Loc for every class and setting, at the setting's τ."""
    pictures = run.rows.drop_duplicates("sample").groupby("label")["sample"].count()
    words = [f"{len(pictures):,} classes, {count(int(pictures.sum()), 'sample')}."]
    few = int((pictures <= 2).sum())
    if few > len(pictures) / 2:
        words.append(f"{few:,} of them have one or two: too few for reliable numbers.")
    columns = {"class": "", "id": "", "pictures": "", **{setting.label: "GT-known Loc, %" for setting in settings}}
    rows = []
    for label, amount in pictures.sort_index().items():
        of_class = [Cell(run.class_name(label)), Cell(run.wnid(label) or str(label)), Cell(str(amount), amount)]
        rows.append([*of_class, *(decimal(setting.of_class(label).get("gt_known"), 1) for setting in settings)])
    return {
        "words": " ".join(words),
        "leader": settings[0].label,
        "bars": class_bars(run, settings[0]),
        "table": Table("Every class and every setting", columns, rows, {"class", "id"}),
    }


def class_bars(run: BenchmarkRun, setting: SettingResult) -> dict[str, list[dict[str, Any]]]:
    """Heading → bars: the best and worst classes of a setting, ranked by the cautious end of their intervals."""
    bars: list[dict[str, Any]] = []
    for label, row in run.of(setting).groupby("label")["hit"].agg(["sum", "count"]).sort_index().iterrows():
        hits, n = map(int, row)
        low, high = wilson(hits, n)
        bars.append({"name": run.class_name(int(label)), "hits": hits, "n": n, "low": low, "high": high})
    if len(bars) <= MOST_BARS:
        return {"Best": sorted(bars, key=lambda bar: -bar["low"])}
    # However few classes there are, one without a hit is not among the best, nor one without a miss among the worst.
    best = sorted((bar for bar in bars if bar["hits"]), key=lambda bar: -bar["low"])[:MOST_BARS]
    worst = sorted((bar for bar in bars if bar["hits"] < bar["n"]), key=lambda bar: bar["high"])[:MOST_BARS]
    return {heading: bars for heading, bars in (("Best", best), ("Worst", worst)) if bars}
