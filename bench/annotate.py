"""`cliploc annotate` beside the bare forward pass of its model, its memory, and how good its draft boxes are.

    python -m bench.annotate [--pictures DIR] [--truth DIR] [--images 1000] [--threads 1] [--only speed] [--out DIR]

Three parts, `--only` one of them:
* `speed`: pictures of a folder by `--names` and a `--recipe`, with the second look and what teaching needs. By turns,
  480 pictures at a time, so that a busy machine slows both: the run, from the files to the store on the disk; and the
  tower's forward passes in the same batches of the same sizes, on zeros. Then what is written at the end.
* `memory`: ten names by CAM alone, in a process of its own, over three times as many pictures: its peak after each
  third, and at last.
* `boxes`: by CAM alone; a dataset in the WSOL layout, whose classes are cut, seeded, into tens: a picture is asked for
  its true name and the nine others of its ten. A draft box is right when it overlaps a true box of its name, that no
  better draft took, by an IoU of at least 0.5. Other things that are in a picture, but not annotated, count as absent.

Boxes are chosen on no picture that is reported on. Prints Markdown; `--out` writes annotate.md and annotate.json there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.keep import headed, keep
from bench.resident import peak_mib
from bench.vit_methods import machine
from cliploc import towers
from cliploc.evaluate.data import open_dataset
from cliploc.formats import exports
from cliploc.images.geometry import iou_matrix
from cliploc.images.reading import SUFFIXES
from cliploc.label.annotate import annotate
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.engine import MakeWorker, Part, Shard
from cliploc.runs.label_store import LabellingRun
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Needs, Trace

NAMES = ("dog", "bird", "fish", "snake", "car", "boat", "monkey", "spider", "clock", "guitar")
BATCH, TURN = 16, 480  # pictures; each turn has a run's start and end, of which a run of 1,000 pictures has one
FORMATS = tuple(exports.names())
IOU = 0.5
TEN = 10
REPLICATES = 1000


# -------------------------------------------------------------------------------------------------------------- speed
class Turns:
    """An engine that takes turns with the bare forward pass."""

    def __init__(self) -> None:
        self.bare: list[tuple[float, float]] = []  # seconds a picture: by the clock, of the processor
        self.run: list[tuple[float, float]] = []
        self.ended = self.passes = 0.0

    def __call__(
        self,
        shards: Sequence[Shard],
        make_worker: MakeWorker,
        on_part: Callable[[Part], None],
        reporter: Reporter = SILENT,
    ) -> None:
        with closing(make_worker()) as worker, torch.no_grad():
            backbone = worker.localizer.backbone  # type: ignore[attr-defined]
            shapes: list[torch.Size] = []  # of the batches that the tower sees
            trace = backbone.trace

            def noted(images: torch.Tensor, needs: Needs) -> Trace:
                shapes.append(images.shape)
                return trace(images, needs)

            backbone.trace = noted
            for part in worker.stream(shards[:1]):  # warms everything
                on_part(part)
            at_once = max(1, TURN // len(shards[0].samples))
            for start in range(1, len(shards), at_once):
                shapes.clear()
                turn = shards[start : start + at_once]
                images = sum(len(shard.samples) for shard in turn)
                before = time.perf_counter(), time.process_time()
                for part in worker.stream(turn, reporter):
                    on_part(part)
                between = time.perf_counter(), time.process_time()
                for shape in shapes:
                    trace(torch.zeros(shape), Needs())
                after = time.perf_counter(), time.process_time()
                self.run.append(((between[0] - before[0]) / images, (between[1] - before[1]) / images))
                self.bare.append(((after[0] - between[0]) / images, (after[1] - between[1]) / images))
                self.passes = len(shapes) * shapes[0][0] / images
        self.ended = time.perf_counter()


def speed(pictures: Path, images: int, names: int, recipe: str) -> tuple[list[str], dict[str, Any]]:
    turns = Turns()
    with tempfile.TemporaryDirectory() as out:
        asked: dict[str, Any] = {"formats": FORMATS, "limit": images, "device": "cpu", "recipe": recipe}
        result = annotate(pictures, NAMES[:names], out, engine=turns, **asked)
        wrote = time.perf_counter() - turns.ended
    clock = [bare[0] / run[0] for bare, run in zip(turns.bare, turns.run, strict=True)]
    processor = [bare[1] / run[1] for bare, run in zip(turns.bare, turns.run, strict=True)]
    lines = [
        f"## Speed: {result.pictures} pictures, {names} names, recipe {recipe}, {sum(result.boxes.values())} boxes",
        "",
        "| | images/s, median of the turns (10th to 90th percentile) | processor ms/image |",
        "|---|---|---|",
    ]
    found: dict[str, Any] = {"pictures": result.pictures}
    for name, measured in (("bare forward passes", turns.bare), ("annotate, files to store", turns.run)):
        rates = [1 / seconds for seconds, _ in measured]
        busy = 1000 * statistics.median(seconds for _, seconds in measured)
        low, high = np.percentile(rates, [10, 90])
        lines.append(f"| {name} | {statistics.median(rates):.1f} ({low:.1f}–{high:.1f}) | {busy:.1f} |")
        found[name] = {"images_per_second": rates, "processor_ms": busy}
    found["of_bare"] = {"clock": clock, "processor": processor}
    lines += [
        "",
        f"Of the rate of the bare passes, {turns.passes:.0f} a picture: {statistics.median(clock):.0%} by the clock "
        f"({np.percentile(clock, 10):.0%}–{np.percentile(clock, 90):.0%}), {statistics.median(processor):.0%} in "
        f"processor time. All six formats and the review page of 100 pictures at the end: {wrote:.1f} s.",
    ]
    return lines, found


# ------------------------------------------------------------------------------------------------------------- memory
def measure_memory(pictures: Path, images: int) -> None:
    """In the child: prints peaks as JSON."""
    peaks, done = [], 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if done % images == 0:
            peaks.append(peak_mib())

    with tempfile.TemporaryDirectory() as folder:
        found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in SUFFIXES)[:images]
        for copy in range(3):
            (Path(folder) / f"in/{copy}").mkdir(parents=True)
            for path in found:
                (Path(folder) / f"in/{copy}/{path.name}").symlink_to(path.resolve())
        images = len(found)
        annotate(
            f"{folder}/in",
            NAMES,
            Path(folder) / "out",
            formats=FORMATS,
            batch_size=BATCH,
            device="cpu",
            method="cam",
            reporter=Reporter(images=count),
        )
    print(json.dumps([*peaks, peak_mib()]))


def memory(pictures: Path, images: int, threads: int) -> tuple[list[str], dict[str, Any]]:
    arguments = ["--pictures", str(pictures), "--images", str(images), "--threads", str(threads), "--child"]
    command = [sys.executable, "-m", "bench.annotate", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    *peaks, last = json.loads(output.splitlines()[-1])
    each = ", ".join(f"{peak:.0f} MiB after {number * images:,}" for number, peak in enumerate(peaks, start=1))
    lines = [
        f"## Memory: {3 * images} pictures, {len(NAMES)} names",
        "",
        f"Peak of the process: {each}; {last:.0f} MiB when all is written.",
    ]
    return lines, {"peak_mib": peaks, "at_the_end": last}


# -------------------------------------------------------------------------------------------------------------- boxes
def boxes(root: Path, seed: int, limit: int | None) -> tuple[list[str], dict[str, Any]]:
    dataset = open_dataset("wsol", root, limit=limit)
    labels = list(range(len(dataset.classes)))
    random.Random(seed).shuffle(labels)
    backbone = towers.create("mini", None, "cpu")
    tallies: list[list[int]] = []  # a picture each
    for start in range(0, len(labels), TEN):
        ten = labels[start : start + TEN]
        samples = {str(one.path): one for one in dataset.samples if one.label in ten}
        if not samples:
            continue
        wnids = [dataset.classes[label].wnid for label in ten]
        with tempfile.TemporaryDirectory() as out:
            annotate(list(samples), wnids, out, formats=["csv"], model=backbone, batch_size=BATCH, method="cam")
            with LabellingRun.open(Path(out)) as run:
                folder = AnnotatedFolder(run)
                found = {name: folder.view(name).drafts() for name, one in folder.pictures.items() if one.error is None}
        by_name = {Path(path).name: sample for path, sample in samples.items()}
        for name, drafts in found.items():
            sample = by_name[Path(name).name]
            row = {"boxes": drafts.xyxy.tolist(), "labels": drafts.labels.tolist()}
            scale = np.array(drafts.size_wh) / sample.size_wh
            truth = sample.boxes_xyxy * np.tile(scale, 2)
            tallies.append(tally(row, truth, ten.index(sample.label), len(ten)))
    if len(tallies) != len(dataset.samples):
        raise RuntimeError(f"expected {len(dataset.samples)} pictures done, got {len(tallies)}")
    return report_boxes(np.array(tallies, np.float64), seed)


def tally(row: dict[str, Any], truth: Any, true_label: int, asked: int) -> list[int]:
    """Of one picture: true boxes, matched; drafts, of the true name; true name boxed, best right; absent, boxed."""
    own = [box for box, label in zip(row["boxes"], row["labels"], strict=True) if label == true_label]  # best first
    free, matched, best = set(range(len(truth))), 0, 0
    for number, box in enumerate(own):
        overlaps = iou_matrix(np.array([box]), truth)[0]
        best += number == 0 and overlaps.max() >= IOU
        taken = max(free, key=lambda t: overlaps[t], default=None)
        if taken is not None and overlaps[taken] >= IOU:
            free.remove(taken)
            matched += 1
    others = {label for label in row["labels"] if label != true_label}
    return [len(truth), matched, len(row["boxes"]), len(own), int(bool(own)), int(best), asked - 1, len(others)]


def report_boxes(tallies: Any, seed: int) -> tuple[list[str], dict[str, Any]]:
    truths, matched, drafts, own, boxed, best, absent, absent_boxed = tallies.T
    draws = np.random.default_rng(seed).integers(0, len(tallies), (REPLICATES, len(tallies)))

    def share(part: Any, whole: Any) -> tuple[float, float, float]:
        low, high = np.percentile(part[draws].sum(1) / whole[draws].sum(1), [2.5, 97.5])
        return float(part.sum() / whole.sum()), float(low), float(high)

    one = np.ones(len(tallies))
    rows = {
        f"recall: true boxes that a draft found, of {truths.sum():.0f}": share(matched, truths),
        f"precision: drafts that are right, of {drafts.sum():.0f}": share(matched, drafts),
        f"precision of the true names' drafts, of {own.sum():.0f}": share(matched, own),
        "pictures whose true name got a box": share(boxed, one),
        "pictures whose true name's best box is right": share(best, one),
        f"absent names that got a box, of {absent.sum():.0f}": share(absent_boxed, absent),
        "pictures with a box of an absent name": share((absent_boxed > 0).astype(float), one),
    }
    lines = [
        f"## Draft boxes: {len(tallies)} pictures, the true name and 9 others each (seed {seed}), IoU {IOU}",
        "",
        "| | share | 95 % interval (bootstrap over pictures) |",
        "|---|---|---|",
        *(f"| {name} | {value:.1%} | {low:.1%}–{high:.1%} |" for name, (value, low, high) in rows.items()),
    ]
    return lines, {name: list(values) for name, values in rows.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("../shared/data/imagenet_one_per_class"))
    parser.add_argument("--truth", type=Path, default=Path("../shared/data/ilsvrc_val_dev"))
    parser.add_argument("--images", type=int, default=1000, help="pictures of speed; of each third of memory")
    parser.add_argument("--names", type=int, default=3, choices=range(1, 1 + len(NAMES)), help="of speed")
    parser.add_argument("--recipe", default="default", help="of speed")
    parser.add_argument("--limit", type=int, help="pictures of boxes; all when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("speed", "memory", "boxes"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        measure_memory(given.pictures, given.images)
        return 0
    parts: dict[str, tuple[Path, Callable[[], tuple[list[str], dict[str, Any]]]]] = {
        "speed": (given.pictures, lambda: speed(given.pictures, given.images, given.names, given.recipe)),
        "memory": (given.pictures, lambda: memory(given.pictures, given.images, given.threads)),
        "boxes": (given.truth, lambda: boxes(given.truth, given.seed, given.limit)),
    }
    on, lines, document = machine(given.threads), [], {}
    for name, (folder, work) in parts.items():
        if given.only not in (None, name):
            continue
        if not folder.is_dir():
            print(f"skipped: no pictures at {folder}")
            continue
        table, document[name] = work()
        print("\n".join([*table, ""]), flush=True)
        lines += [*table, ""]
    if lines:
        command = f"`python -m bench.annotate {' '.join(sys.argv[1:])}`"
        about = f"{command}: `mini`, and the defaults of `cliploc annotate`."
        keep(given.out, "annotate", {"machine": on, **document}, headed("Annotating", about, on, lines[:-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
