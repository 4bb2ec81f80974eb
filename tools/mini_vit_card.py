# ruff: noqa: E501  (a row of a Markdown table is one line)
"""Measures `mini-vit` and puts the tables into docs/mini-vit.md and docs/studies/mini-vit.md (`make mini-vit-card`; it takes long).

Every method runs on 677 pictures at two sizes. A run that was cut goes on where it was.

Needs ../shared/data (see its README); figures come from the package's public code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from marked import put
from mini_card import SIDE, TEMPLATE, called, class_texts, embed_pictures, load_names, load_split, pixels, top_k
from recipe_report import best_boxes, pictures_of
from torch import Tensor
from torch.nn import functional as F

from cliploc import towers
from cliploc.evaluate.metrics import TAUS, Bootstrap, MaxBoxAcc, box_curve
from cliploc.localizer import Localizer
from cliploc.methods import Context, methods, min_max
from cliploc.towers._backbone import Backbone
from cliploc.towers.mini_vit import WEIGHTS, MiniVit
from cliploc.towers.tower import Guide, Needs

ROOT = Path(__file__).resolve().parent.parent
CARD, STUDY = ROOT / "docs/mini-vit.md", ROOT / "docs/studies/mini-vit.md"
SLOW_PICTURES = 60
GUIDE = "mini"  # of methods that need one
BATCH = 8
CHUNK = 80  # pictures whose maps are kept together while a row is measured


@dataclass(frozen=True)
class Row:
    """A method with options; those other than its own were chosen on the tuning pictures, and so was τ."""

    method: str
    options: Mapping[str, Any]
    tau: float

    @property
    def label(self) -> str:
        return ", ".join([f"`{self.method}`", *(f"{key}={value}" for key, value in self.options.items())])


@dataclass(frozen=True)
class Found:
    """GT-known at the best τ of this same split, that τ, half of the 95 % interval, and GT-known at each τ of `TAUS`."""

    best: float
    tau: float
    half: float
    curve: list[float]

    def at(self, tau: float) -> float:
        return self.curve[int(np.abs(TAUS - tau).argmin())]

    def cells(self, row: Row) -> str:
        return f"{self.at(row.tau):.3f} | {self.best:.3f}"


# Options chosen on the tuning pictures (tools/choose_thresholds.py --option …), on which no figure is reported.
TUNED = [
    Row("ts_cam", {"blocks": 2}, 0.35),
    Row("naclip", {"sigma": 2}, 0.6),
    Row("lctr", {"blocks": 2}, 0.55),
]
# These send every picture through the tower 50 times or more, so: with few masks, on the first pictures only.
SLOW = [
    Row("score_cam", {}, methods.get("score_cam").threshold),
    Row("gscore_cam", {"top_k": 32}, methods.get("gscore_cam").threshold),
    Row("vl_score", {}, methods.get("vl_score").threshold),
    Row("rise", {"budget": 32}, methods.get("rise").threshold),
    Row("occlusion", {}, methods.get("occlusion").threshold),
    Row("m2ib", {}, methods.get("m2ib").threshold),
    Row("integrated_gradients", {}, methods.get("integrated_gradients").threshold),
    Row("smooth_grad", {}, methods.get("smooth_grad").threshold),
]

BASELINES = [Row("centre_gaussian", {}, methods.get("centre_gaussian").threshold)]


def fast_rows() -> list[Row]:
    """Every other method, as it is by default, and those of `TUNED`."""
    slow = {row.method for row in SLOW}
    there = [one for one in methods if "vit" in one.towers and one.family not in ("perturbation", "baseline")]
    own = [Row(one.name, {}, one.threshold) for one in there if one.name not in slow]
    return [*own, *TUNED]


def context(model: MiniVit, guide: Guide, images: Tensor, text: Tensor, needs: Needs) -> Context:
    """What methods read of normalised pictures `[B, 3, H, W]`; the guide sees the same pixels."""
    black, white = (model.normalize(torch.full((1, 3, 1, 1), one)) for one in (0.0, 1.0))
    seen = cache(lambda: guide.features(((images - black) / (white - black)).clamp(0, 1)))
    return Context(lambda: images, text, model.trace(images, needs), model, guide=seen)


def maps_of(
    model: MiniVit, guide: Guide, rows: Sequence[Row], paths: Sequence[Path], texts: Tensor, side: int
) -> list[Tensor]:
    """For each row the raw map of each picture for its own text `[n, D]`: `[n, 1, h, w]`."""
    needs = reduce(or_, [methods.get(row.method).needs(**row.options) for row in rows])
    maps: list[list[Tensor]] = [[] for _ in rows]
    for start in range(0, len(paths), BATCH):
        images = pixels(model, paths[start : start + BATCH], side)
        ctx = context(model, guide, images, texts[start : start + BATCH, None], needs)
        for row, kept in zip(rows, maps, strict=True):
            raw = methods.get(row.method).function(ctx, **row.options).detach()  # [B, 1, h, w]
            kept.append(raw.relu() if methods.get(row.method).relu else raw)
    return [torch.cat(kept) for kept in maps]


def accuracy_of(raw: Tensor, truths: Sequence[np.ndarray]) -> Found:
    """MaxBoxAcc V1 of raw maps `[n, 1, h, w]`, enlarged to 224."""
    metric = MaxBoxAcc()
    large = F.interpolate(min_max(raw), size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)
    for i, (heat, boxes) in enumerate(zip(large.numpy(), truths, strict=True)):
        metric.update(box_curve(str(i), heat, boxes))
    result = metric.compute(Bootstrap(replicates=300))
    assert result.interval is not None
    low, high = result.interval
    return Found(result.accuracy, result.threshold, (high - low) / 2, result.curve.tolist())


def localisation(
    model: MiniVit, guide: Guide, rows: Sequence[Row], paths: Sequence[Path], texts: Tensor,
    truths: Sequence[np.ndarray], side: int, work: Path,
) -> dict[str, Found]:  # fmt: skip
    """What each row finds on pictures of that side; rows that were measured before are read from `work`.

    So are the maps of the pictures that an interrupted run had finished, `CHUNK` of them at a time.
    """
    files = {row.label: work / f"{_weights()} {side} {len(paths)} {row.label.replace('`', '')}.json" for row in rows}
    missing = [row for row in rows if not files[row.label].exists()]
    if missing:
        kept: dict[str, list[Path]] = {row.label: [] for row in missing}
        for start in range(0, len(paths), CHUNK):
            part = slice(start, start + CHUNK)
            for row in missing:
                plain = files[row.label].name.removesuffix(".json")
                kept[row.label].append(work / f"{plain} from {start}.npy")
            todo = [row for row in missing if not kept[row.label][-1].exists()]
            made = maps_of(model, guide, todo, paths[part], texts[part], side) if todo else []
            for row, raw in zip(todo, made, strict=True):
                np.save(kept[row.label][-1], raw.numpy())
            print(f"{side}: {min(start + CHUNK, len(paths))} of {len(paths)}", flush=True)
        for row in missing:
            one = accuracy_of(torch.from_numpy(np.concatenate([np.load(file) for file in kept[row.label]])), truths)
            files[row.label].write_text(json.dumps(asdict(one)))
            for file in kept[row.label]:
                file.unlink()
            print(f"{row.label} at {side}: {one.best:.3f} at τ {one.tau:.2f}", flush=True)
    return {label: Found(**json.loads(file.read_text())) for label, file in files.items()}


def on_coco(rows: Sequence[Row], data: Path, work: Path) -> dict[str, list[str]]:
    """For each row two cells: the share of COCO's names whose best-scored box is right, and that of small things alone."""
    found = {}
    for row in rows:
        file = work / f"{_weights()} coco {row.label.replace('`', '')}.json"
        if not file.exists():
            guide = GUIDE if methods.get(row.method).needs().guide else None
            localizer = Localizer(
                "mini-vit", method=row.method, method_options=dict(row.options), guide=guide, min_presence=0
            )
            cells = best_boxes(localizer, pictures_of("coco", data / "coco_dev", localizer, None), [])
            file.write_text(json.dumps(cells))
            print(f"{row.label} on COCO: {cells[0]}", flush=True)
        found[row.label] = json.loads(file.read_text())
    return found


def costs(model: MiniVit, guide: Guide, rows: Sequence[Row], path: Path, text: Tensor) -> str:
    """A table of processor milliseconds of one picture and name at 224, one thread, cheapest first: the median of five."""
    images = pixels(model, [path], SIDE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def median(run: Callable[[], Any], times: int) -> float:
        seconds = []
        for _ in range(times):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
        return 1000 * float(np.median(seconds))

    def maps(row: Row) -> Tensor:
        method = methods.get(row.method)
        return method.function(context(model, guide, images, text, method.needs(**row.options)), **row.options)

    model.encode_image(images)
    forward = median(lambda: model.encode_image(images), 9)
    taken = {row.label: median(lambda row=row: maps(row), 1 if row in SLOW else 5) for row in rows}  # type: ignore[misc]
    torch.set_num_threads(threads)
    lines = [f"| forward pass alone | {forward:.0f} | 1 |"]
    for row in sorted(rows, key=lambda row: taken[row.label]):
        lines.append(f"| {row.label} | {taken[row.label]:,.0f} | {taken[row.label] / forward:.3g} |")
    return "\n".join(lines)


def embedded(model: Backbone, paths: Sequence[Path], side: int, work: Path) -> Tensor:
    """Embeddings `[n, D]`; those that were made before are read from `work`."""
    file = work / f"{_weights()} {side} {len(paths)} {model.name}.npy"
    if not file.exists():
        np.save(file, embed_pictures(model, paths, side).numpy())
    return torch.from_numpy(np.load(file))


def _weights() -> str:
    return hashlib.sha256((WEIGHTS / "image.safetensors").read_bytes()).hexdigest()[:12]


def line(row: Row, found: Mapping[str, Found], larger: Mapping[str, Found] | None = None) -> str:
    """A row of the tables; of the larger size the best alone, as τ was chosen at 224."""
    best = f" {larger[row.label].best:.3f} |" if larger else ""
    return f"| {row.label} | {row.tau:g} | {found[row.label].cells(row)} |{best}"


def lines(data: Path, work: Path, names: Sequence[str]) -> str:
    """The rows of some methods alone, to be added to the card."""
    model, guide = towers.create("mini-vit", device="cpu"), towers.create_guide(GUIDE)
    assert isinstance(model, MiniVit)
    paths, labels, truths = load_split(data / "ilsvrc_val_dev")
    texts = model.encode_text([TEMPLATE.format(name) for _, name in load_names(data)])[labels]
    fast, slow = ([row for row in rows if row.method in names] for rows in (fast_rows(), SLOW))
    found = [localisation(model, guide, fast, paths, texts, truths, side, work) for side in (224, 448) if fast]
    some = slice(SLOW_PICTURES)
    masked = localisation(model, guide, slow, paths[some], texts[some], truths[some], 224, work) if slow else {}
    return "\n".join([*(line(row, *found) for row in fast), *(line(row, masked) for row in slow)])


def tables(data: Path, work: Path) -> dict[tuple[Path, str], str]:
    """(page, name of the comment) → its tables."""
    names = [name for _, name in load_names(data)]
    model = towers.create("mini-vit", device="cpu")
    assert isinstance(model, MiniVit)
    facts = json.loads((WEIGHTS / "mini_vit.json").read_text())
    paths, labels, truths = load_split(data / "ilsvrc_val_dev")
    texts = model.encode_text([TEMPLATE.format(name) for name in names])  # [1000, 1280]
    teacher = embedded(towers.create("mini", device="cpu"), paths, 224, work)
    images = embedded(model, paths, 224, work)
    large = top_k(embedded(model, paths, 448, work), texts, labels)
    named = []
    for by, entries in called(data).items():
        asked = class_texts(model, entries)
        own_1, own_5, taught_1, taught_5 = (*top_k(images, asked, labels), *top_k(teacher, asked, labels))
        named.append(
            f"| top-1 / top-5 of 1,000 classes, {by} | {own_1:.3f} / {own_5:.3f} | {taught_1:.3f} / {taught_5:.3f} |"
        )
    same = float(((teacher @ texts.T).argmax(dim=1) == (images @ texts.T).argmax(dim=1)).float().mean())
    wanted = texts[labels]
    some = SLOW_PICTURES
    guide = towers.create_guide(GUIDE)
    at224, at448 = (localisation(model, guide, fast_rows(), paths, wanted, truths, side, work) for side in (224, 448))
    masked = localisation(model, guide, SLOW, paths[:some], wanted[:some], truths[:some], 224, work)
    agreed = facts["agreement_held_out"]

    fast = sorted(fast_rows(), key=lambda row: -at224[row.label].best)
    rows = "\n".join(line(row, at224, at448) for row in fast)
    slow = "\n".join(line(row, masked) for row in SLOW)
    several = on_coco([*BASELINES, *fast_rows(), *(row for row in SLOW if row.method == "m2ib")], data, work)
    shares = {label: cells[0].split(" of ") for label, cells in several.items()}
    asked = next(iter(shares.values()))[1]
    coco = "\n".join(
        f"| {label} | {one[0]} |" for label, one in sorted(shares.items(), key=lambda one: -float(one[1][0]))
    )
    head = "| `--method` | own τ | 224: at own τ | best |"
    return {
        (CARD, "figures"): f"""
| | `mini-vit` | `mini`, its teacher |
|---|---|---|
{chr(10).join(named)}
| the same at 448, by WordNet's first words | {large[0]:.3f} / {large[1]:.3f} | |
| the same first class as the teacher | {same:.3f} | |""",
        (STUDY, "methods"): f"""
{head} 448: best |
|---|---|---|---|---|
{rows}""",
        (STUDY, "left-out pictures"): f"""
On the {agreed["pictures"]} pictures left out of the training: the same first class as the teacher {agreed["same_first_class"]:.3f}, cosine to
its embedding {agreed["cosine"]:.3f}.""",
        (STUDY, "masking methods"): f"""
{head}
|---|---|---|---|
{slow}""",
        (STUDY, "several things"): f"""
| `--method` | right, of {asked} |
|---|---|
{coco}""",
        (STUDY, "costs"): f"""
| `--method` | ms | × forward pass |
|---|---|---|
{costs(model, guide, [*(row for row in fast_rows() if row not in TUNED), *SLOW], paths[0], wanted[:1, None])}""",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mini-vit and write its tables.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/mini-vit-card", help="what was measured before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", metavar="METHOD", help="print the rows of these methods alone")
    options = parser.parse_args()
    for name in ("ilsvrc_val_dev", "imagenet_one_per_class", "coco_dev"):
        if not (options.data / name).is_dir():
            sys.exit(f"expected {name} in {options.data}, found no such folder: give its parent with --data")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.rows:
        print(lines(options.data, options.work, options.rows))
        return
    for (page, name), text in tables(options.data, options.work).items():
        put(page, name, text)
        print(f"{page.name}, {name}\n{text}\n")


if __name__ == "__main__":
    main()
