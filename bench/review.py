"""A session of `cliploc review` by a script: from a folder to corrected boxes, in a real browser; minutes and clicks.

    python -m bench.review [--truth DIR] [--pictures 60] [--out DIR]

The pictures are those of the classes with the most pictures of a dataset in the WSOL layout, which are the labels.
`annotate` draws drafts. The script then does what a person would do who knows the true boxes, by mouse and keys on the
page: it drops drafts of a wrong name and those that hit nothing (a click each), drags two corners of a draft whose IoU
with its true box is below 0.9 (a click and two drags), draws true boxes that no draft hits with an IoU of 0.5 (a drag,
and a choice of the label where the page has another), and says that the picture is reviewed (a key). At last it writes
the exports. From nothing, each true box takes a drag and mostly a choice. A person takes longer for each action than
the script; what the drafts save is told by the number of actions, and the minutes tell what waits for the machine.

Needs playwright and chromium, as `make test-web`. Prints Markdown; `--out` writes review.md and review.json there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.keep import headed, keep
from bench.vit_methods import machine
from cliploc.evaluate.data import open_dataset
from cliploc.images.geometry import iou_matrix
from cliploc.label.annotate import annotate
from cliploc.label.editor.review_folder import ReviewFolder, Suggester

HIT, GOOD = 0.5, 0.9  # IoU from which a draft belongs to a true box, and is left as it is
EDGE = 1.5  # pixels of the screen that a drag stays inside the picture


@contextmanager
def served(out: Path) -> Iterator[str]:
    from cliploc.label.editor.app import application
    from cliploc.web.server import Listener

    with ReviewFolder.opened(out) as folder:
        server = Listener(application(folder, Suggester("mini", device="cpu")), port=0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


class Person:
    """Mouse and keys on the page, counted."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.done: Counter[str] = Counter()

    def open(self, name: str) -> None:
        self.page.wait_for_function("(name) => document.getElementById('name').textContent === name", arg=name)
        self.page.wait_for_selector(".a9s-annotationlayer")

    def click(self, selector: str, at: int = 0) -> None:
        self.page.locator(selector).nth(at).click()
        self.done["clicks"] += 1

    def choose(self, label: int) -> None:
        self.page.locator("#active").select_option(str(label))
        self.done["choices of a label"] += 1

    def key(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.done["keys"] += 1

    def drag(self, start: Any, end: Any, size_wh: Any) -> None:
        bounds = self.page.locator("#canvas").bounding_box()
        side = np.array([bounds["width"], bounds["height"]])
        corner = np.array([bounds["x"], bounds["y"]])
        a, b = ((corner + np.clip(np.array(one) / size_wh * side, EDGE, side - EDGE)).tolist() for one in (start, end))
        self.page.mouse.move(*a)
        self.page.mouse.down()
        self.page.mouse.move((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
        self.page.mouse.move(*b)
        self.page.mouse.up()
        self.page.wait_for_timeout(15)
        self.done["drags"] += 1

    def boxes(self) -> list[tuple[int, list[float]]]:
        """Label and corners of each box on the page, as its list has them."""
        read = "(one) => [Number(one.querySelector('.kind').value), one.title.match(/\\d+/g).map(Number)]"
        found = self.page.locator("#boxes li").evaluate_all(f"(all) => all.map({read})")
        return [(label, [x, y, x + w, y + h]) for label, (w, h, x, y) in found]


def correct(person: Person, truth: Any, label: int, size_wh: Any) -> None:
    """What is to be done in one picture, whose true boxes `[n, 4]` have this label."""
    free = set(range(len(truth)))
    matched: dict[int, int] = {}  # place in the list → true box
    drafts = person.boxes()
    for place, (own, box) in enumerate(drafts):
        overlaps = iou_matrix(np.array([box], float), truth)[0]
        taken = max(free, key=lambda t: overlaps[t], default=None)
        if own == label and taken is not None and overlaps[taken] >= HIT:
            free.remove(taken)
            matched[place] = taken
    for place in reversed(range(len(drafts))):
        if place not in matched:
            person.click("#boxes .away", place)
    left = [matched[place] for place in sorted(matched)]
    for place, number in enumerate(left):
        drawn, true = np.array(person.boxes()[place][1], float), truth[number]
        if iou_matrix(drawn[None], true[None])[0, 0] < GOOD:
            person.click("#boxes .pick", place)
            person.drag(drawn[:2], true[:2], size_wh)
            person.drag(drawn[2:], true[2:], size_wh)
            person.page.keyboard.press("Escape")
    for number in sorted(free):
        if int(person.page.locator("#active").input_value()) != label:
            person.choose(label)
        person.drag(truth[number][:2], truth[number][2:], size_wh)
        person.page.keyboard.press("Escape")
    person.key("r")


def session(root: Path, pictures: int, threads: int) -> tuple[list[str], dict[str, Any]]:
    from playwright.sync_api import sync_playwright

    dataset = open_dataset("wsol", root)
    counts = Counter(one.label for one in dataset.samples)
    often = sorted(dataset.samples, key=lambda one: (-counts[one.label], one.label, one.id))[:pictures]
    labels = list(dict.fromkeys(one.label for one in often))
    names = [str(dataset.classes[label].wnid) for label in labels]
    by_name = {one.path.name: one for one in often}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        photos, out = Path(folder, "photos"), Path(folder, "drafts")
        photos.mkdir()
        for one in often:
            shutil.copy(one.path, photos)
        begun = time.perf_counter()
        # Drafts that stay as they are: the script follows the order of the beginning.
        drafts = annotate(photos, names, out, formats=["coco"], device="cpu", teach=False)
        drafted = time.perf_counter() - begun
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with served(out) as address:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            begun = time.perf_counter()
            page.goto(address)
            page.wait_for_selector(".a9s-annotationlayer")
            person = Person(page)
            order = [one["name"] for one in page.evaluate("async () => (await fetch('/pictures')).json()")]
            shown = page.evaluate("async () => (await (await fetch('/pictures')).json()).map((one) => one.margin)")
            for place in sorted(range(len(order)), key=lambda i: (shown[i], order[i])):
                sample = by_name[order[place]]
                person.open(order[place])
                state = page.evaluate(f"async () => (await fetch('/pictures/{place}')).json()")
                truth = sample.boxes_xyxy * np.tile(np.array(state["size"]) / sample.size_wh, 2)
                correct(person, truth, labels.index(sample.label), np.array(state["size"]))
            page.wait_for_function("document.getElementById('saved').textContent.startsWith('Saved')")
            person.click("#exports")
            page.wait_for_function(
                "document.getElementById('saved').textContent.startsWith('Written')", timeout=120_000
            )
            corrected = time.perf_counter() - begun
        browser.close()
        right, true, written = compare(out, by_name, labels)
        scores = json.loads((out / "draft_scores.json").read_text())["all"]
        best = scores["suggested"] or {}
    actions = sum(person.done.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in person.done.most_common())
    lines = [
        "| | |",
        "|---|---|",
        f"| pictures, labels, true boxes | {len(often)}, {len(labels)}, {true} |",
        f"| drafts | {sum(drafts.boxes.values())} in {drafted / 60:.1f} min ({threads} thread) |",
        f"| actions | {actions}: {kinds} |",
        f"| actions a picture | {actions / len(often):.1f} |",
        f"| from the first picture to the exports, by the script | {corrected / 60:.1f} min |",
        f"| drafts against the corrected boxes, IoU 0.5 | precision {scores['precision']:.2f}, "
        f"recall {scores['recall']:.2f} |",
        f"| the same with the suggested `--min-score {best.get('min_score', 0):.2f}` | precision "
        f"{best.get('precision', 0):.2f}, recall {best.get('recall', 0):.2f} |",
        f"| boxes in coco.json with an IoU of {GOOD} or more with a true box | {right} of {written} |",
    ]
    return lines, {
        "pictures": len(often), "labels": len(labels), "true_boxes": true, "drafts": sum(drafts.boxes.values()),
        "draft_seconds": drafted, "actions": dict(person.done), "session_seconds": corrected, "right": right,
        "written": written, "draft_scores": scores,
    }  # fmt: skip


def compare(out: Path, by_name: dict[str, Any], labels: list[int]) -> tuple[int, int, int]:
    """Boxes of the export that are true ones, true boxes, and all boxes."""
    read = json.loads((out / "coco.json").read_text())
    right = true = 0
    for image in read["images"]:
        sample = by_name[image["file_name"]]
        truth = sample.boxes_xyxy * np.tile(np.array([image["width"], image["height"]]) / sample.size_wh, 2)
        true += len(truth)
        for one in read["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, width, height = one["bbox"]
                own = one["category_id"] == labels.index(sample.label) + 1
                overlaps = iou_matrix(np.array([[x, y, x + width, y + height]]), truth)
                right += own and bool(overlaps.max() >= GOOD)
    return right, true, len(read["annotations"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, default=Path("../shared/data/ilsvrc_val_dev"))
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.truth.is_dir():
        print(f"skipped: no pictures at {given.truth}")
        return 0
    on = machine(given.threads)
    lines, document = session(given.truth, given.pictures, given.threads)
    print("\n".join(lines))
    about = f"`python -m bench.review {' '.join(sys.argv[1:])}`: `mini`, the defaults of `cliploc annotate`."
    keep(given.out, "review", {"machine": on, **document}, headed("A review by a script", about, on, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
