"""The pictures of the page of boxes: galleries, and ten classes in detail.

Each photograph is embedded once; maps and boxes of each setting are drawn over it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.draw.colours import heat_cover
from cliploc.draw.html import data_uri, jpeg_uri
from cliploc.draw.overlay import OPACITY
from cliploc.errors import CliplocError
from cliploc.evaluate.tasks.boxes.data import BenchmarkRun, PictureRow, as_boxes
from cliploc.evaluate.tasks.report import Floats, SettingResult, heat_of
from cliploc.evaluate.tasks.tables import Cell, Table, decimal, percent
from cliploc.images.reading import load, picture_bytes
from cliploc.values import GOOD_IOU, ResizePolicy, rounded_below

SIDE = 240  # longest side of a photograph in the page
SHADES = 32  # levels of a map, so that its 784 pixels take about 700 bytes
EACH = 10  # pictures of each kind
MOST_GALLERIES = 4
KINDS = {
    "Best": "The highest IoU.",
    "Borderline": "IoU nearest to 0.5, on either side.",
    "Worst": "The lowest IoU; of equal ones, the largest objects.",
}
Place = tuple[float, float, float, float]  # x, y, width, height


@dataclass
class Photographs:
    """The photographs that a page needs, each embedded once."""

    root: Path  # the dataset's folder
    visible: bool  # whether photographs are embedded at all
    missing: dict[str, str]  # those that cannot be read, with the reason
    _known: dict[str, tuple[str, tuple[int, int]] | None] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)  # id → data URI of each, for the end of the page

    def find(self, path: str) -> tuple[str, tuple[int, int]] | None:
        """The photograph's id in the page and its size in pixels; None if it is not embedded."""
        if self.visible and path not in self._known:
            try:
                image = load(self.root / path).image
            except CliplocError as error:
                self.missing[path] = str(error)
                self._known[path] = None
            else:
                name = f"photo-{len(self._known)}"
                self._known[path] = name, image.size
                image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                self.addresses[name] = jpeg_uri(image, quality=80, optimize=True, progressive=True)
        return self._known.get(path)


def gallery_picture(
    run: BenchmarkRun, row: PictureRow, setting: SettingResult, photographs: Photographs, title: str = ""
) -> dict[str, Any]:
    """One row's photograph with the setting's map, its boxes (solid) and the true boxes (dashed); for `photo`."""
    known = photographs.find(row.path)
    size_wh = (row.width, row.height)
    heat = None  # the data URI of the map, and its place; None where the run stored no map
    if row.thumb is not None:
        x, y, w, h = _view(setting.about, known[1] if known else size_wh)
        heat = _heat(row.thumb), (x * row.width, y * row.height, w * row.width, h * row.height)
    xyxy = as_boxes(row.boxes)
    largest = int((xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1).argmax()) if len(xyxy) else -1
    boxes = [("found" if i == largest else "found other", _place(box)) for i, box in enumerate(xyxy)]
    words, ranked = [], row.predictions or []  # words about the predicted class; none where nothing was predicted
    if ranked and ranked[0] == row.label:
        words = ["class right"]
    elif ranked:
        words = [f"taken for {run.class_name(ranked[0])}"]
        if row.label in ranked:
            place = ranked.index(row.label) + 1
            words[0] += f", true class {({2: '2nd', 3: '3rd'}).get(place, f'{place}th')}"
    iou = row.iou or 0.0
    file, text = row.path.rsplit("/", 1)[-1], rounded_below(iou, GOOD_IOU)
    return {
        "width": row.width,  # of the original; places are in its pixels
        "height": row.height,
        "photo": known[0] if known else None,  # the photograph's id in the page
        "heat": heat,
        "boxes": [*boxes, *(("true", _place(box)) for box in as_boxes(row.true_boxes))],
        "title": title,  # the start of the caption
        "iou": text,  # of the largest box
        "right": iou >= GOOD_IOU,
        "words": words,  # the end of the caption
        "says": f"{run.class_name(row.label)} in {file}, {setting.label}: {', '.join([f'IoU {text}', *words])}",
    }


def _view(about: Mapping[str, Any], file_wh: tuple[int, int]) -> Place:
    """The place of the model's input on the photograph: x, y, width, height as fractions of its size."""
    policy: ResizePolicy = about.get("resize") or "squash"
    if policy == "squash":
        return 0, 0, 1, 1
    from cliploc.images.geometry import Frame  # imports torch

    height, width = about["image_size"]
    frame = Frame.fit(policy, (file_wh[1], file_wh[0]), (height, width))
    x0, y0, x1, y1 = frame.to_original([0, 0, width, height], clip=False)[0] / np.array(file_wh * 2)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def _heat(thumb: bytes) -> str:
    """A map of 28×28 bytes as the data URI of a PNG in the heat's colours; opacity rises with the heat."""
    shades = (heat_of(thumb).astype(int) * (SHADES - 1) + 127) // 255
    image = Image.fromarray(shades.astype(np.uint8), "P")
    levels = np.linspace(0, 255, SHADES).round().astype(int)
    colours, alpha = (table[levels] for table in heat_cover(OPACITY))
    image.putpalette(colours.tobytes())
    content = picture_bytes(image, "PNG", optimize=True, bits=8, transparency=alpha.tobytes())
    return data_uri(content, "image/png")


def _place(box: Floats) -> Place:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, max(x1 - x0, 0), max(y1 - y0, 0)


# ----------------------------------------------------------------------------------------------------------- galleries
def galleries(run: BenchmarkRun, settings: Sequence[SettingResult], photographs: Photographs) -> dict[str, Any]:
    """The best settings' best, borderline and worst pictures, and those on which these settings differ most."""
    picks = {setting.id: _picks(run.of(setting)) for setting in settings[:MOST_GALLERIES]}
    disputed: list[str] = []  # the samples with the largest standard deviation of IoU between settings
    if len(settings) > 1:
        rows = run.rows[(run.rows["status"] == "ok") & run.rows["setting"].isin([setting.id for setting in settings])]
        spread = rows.groupby("sample", sort=True)["iou"].agg(["std", "count"])
        spread = spread[spread["count"] == len(settings)].sort_values("std", ascending=False, kind="stable")
        disputed = [str(sample) for sample in spread.index[:EACH]]
    pictures = run.pictures({*disputed, *(one for kinds in picks.values() for each in kinds.values() for one in each)})

    def name(setting: SettingResult, sample: str) -> str:
        return run.class_name(pictures[sample, setting.id].label)

    def drawn(setting: SettingResult, sample: str, title: str) -> dict[str, Any]:
        return gallery_picture(run, pictures[sample, setting.id], setting, photographs, title)

    def of_setting(setting: SettingResult) -> list[tuple[str, str, list[dict[str, Any]]]]:
        return [
            (kind, KINDS[kind], [drawn(setting, sample, name(setting, sample)) for sample in samples])
            for kind, samples in picks[setting.id].items()
        ]

    return {
        "galleries": [(setting.label, of_setting(setting)) for setting in settings[:MOST_GALLERIES]],
        "disputed": [
            (name(settings[0], sample), [drawn(each, sample, each.label) for each in settings]) for sample in disputed
        ],
    }


def _picks(rows: Any) -> dict[str, list[str]]:
    """Kind → samples of a setting's rows: one of each class at first, then the others."""
    rows = rows[rows["iou"].notna()]
    rows = rows.assign(far=(rows["iou"] - 0.5).abs())
    # Of equally bad boxes the one around the largest object was the easiest to get right.
    orders = (["iou", "sample"], [False, True]), (["far", "sample"], True), (
        ["iou", "area_share", "sample"], [True, False, True],
    )  # fmt: skip
    picks = {}
    for kind, (columns, ascending) in zip(KINDS, orders, strict=True):
        ordered = rows.sort_values(columns, ascending=ascending)
        first = ordered.duplicated("label").to_numpy().argsort(kind="stable")[:EACH]
        picks[kind] = ordered["sample"].iloc[first].tolist()
    return picks


# --------------------------------------------------------------------------------------------------------- ten classes
def studies(
    run: BenchmarkRun, settings: Sequence[SettingResult], reasons: Mapping[int, str], photographs: Photographs
) -> list[dict[str, Any]]:
    """The details of each class that has a reason: the reason, numbers per setting, three pictures."""
    leader = settings[0]
    rows = run.of(leader)
    chosen: dict[int, list[str]] = {}  # label → its best, middle and worst picture
    for label in reasons:
        mine = rows[(rows["label"] == label) & rows["iou"].notna()]
        ordered = mine.sort_values(["iou", "sample"], ascending=[False, True])["sample"].tolist()
        places = sorted({0, (len(ordered) - 1) // 2, len(ordered) - 1}) if ordered else []
        chosen[label] = [ordered[place] for place in places]
    pictures = run.pictures({sample for samples in chosen.values() for sample in samples})
    return [
        {
            "name": run.class_name(label),
            "wnid": run.wnid(label),
            "pictures": run.rows[run.rows["label"] == label]["sample"].nunique(),
            "reason": reason,
            "table": _numbers(run, settings, label),
            "examples": [
                gallery_picture(run, pictures[sample, leader.id], leader, photographs) for sample in chosen[label]
            ],
        }
        for label, reason in reasons.items()
    ]


def _numbers(run: BenchmarkRun, settings: Sequence[SettingResult], label: int) -> Table:
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
    for setting in settings:
        mine = run.of(setting)
        mine = mine[mine["label"] == label]
        if not len(mine):
            rows.append([Cell(setting.label), *[Cell("–")] * (len(columns) - 1)])
            continue
        first, hit = mine["predicted"] == label, mine["hit"]
        shares = [100 * float(each.mean()) for each in (hit, first, first & hit, mine["pointing_hit"])]
        stored = setting.of_class(label)
        cells = [percent(stored.get("gt_known", shares[0])), percent(stored.get("max_box_acc"))]
        rows.append(
            [Cell(setting.label), *cells, decimal(float(mine["iou"].mean()), 2), *(percent(one) for one in shares[1:])]
        )
    return Table(f"Numbers for {run.class_name(label)}", columns, rows, {"setting"})


def confusion(run: BenchmarkRun, settings: Sequence[SettingResult], labels: Sequence[int]) -> list[dict[str, Any]]:
    """Each classifier's confusion matrix of these labels, titled by its settings; `rows`: counts, shares, others."""
    groups: dict[bytes, list[SettingResult]] = {}
    for setting in settings:
        rows = run.of(setting).sort_values("sample")
        if len(rows) and (rows["predicted"] >= 0).any():
            groups.setdefault(rows["predicted"].to_numpy(dtype=np.int64).tobytes(), []).append(setting)
    matrices = []
    for same in groups.values():
        rows, taken_for = run.of(same[0]), []
        for label in labels:
            predicted = rows[rows["label"] == label]["predicted"]
            total = max(len(predicted), 1)
            inside = [int((predicted == other).sum()) for other in labels]
            others = predicted[~predicted.isin(list(labels))].value_counts()
            others = others.sort_index().sort_values(ascending=False, kind="stable")
            most = ", ".join(f"{run.class_name(int(other))} {n}" for other, n in others.head(3).items())
            outside = int(others.sum())
            taken_for.append(([(n, n / total) for n in inside], (outside, outside / total), most))
        title = ", ".join(setting.label for setting in same) if len(groups) > 1 else "All settings predict alike"
        matrices.append({"title": title, "names": [run.class_name(label) for label in labels], "rows": taken_for})
    return matrices
