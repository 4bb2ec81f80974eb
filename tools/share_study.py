"""How far drafts gain when reviewed pictures, or one name for a whole folder, move the chances of names.

    cliploc annotate COCO_TUNE/val2017 --labels NAMES --teach off --out RUN    # NAMES: COCO's 80, and raccoon
    cliploc annotate RACCOONS/images -p raccoon --teach off --out RACCOONS_RUN
    python tools/share_study.py RUN COCO_TUNE/annotations/instances_val2017.json RACCOONS_RUN

First, of all pictures that are not reviewed: names found where they are and where they are not, boxes right (IoU ≥ 0.5)
and boxes of absent names. Then how often the only name asked is taken to be everywhere, in random folders.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cliploc.images.geometry import iou_matrix
from cliploc.label.drafts import DraftRule, Prior, choose, is_everywhere
from cliploc.runs.label_store import Candidates, LabellingRun
from cliploc.values import Floats

SETS = (("person", "dog", "car"), ("dog", "person", "umbrella", "cake", "bicycle", "car", "boat", "bottle"))
REVIEWED, DRAWS, FOLDERS = (5, 10, 20, 40), 6, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("raccoons", type=Path)
    given = parser.parse_args()
    names, rows = read(given.run)
    true = boxes_in(given.truth)
    coco = tuple(name for name in names if name != "raccoon")
    print("names  reviewed   found there    not there        boxes right      of absent names")
    for some in (*SETS, coco):
        for reviewed in REVIEWED:
            each = [drafts(rows, names, some, true, reviewed, seed) for seed in range(DRAWS)]
            means = [f"{before:8.1f} → {after:5.1f}" for before, after in np.mean(each, axis=0).T]
            print(f"{len(some):5d} {reviewed:9d}{''.join(means)}")
    others = np.array([found.presence for _, found in rows])  # [n, P]
    own = np.array([found.presence[0] for _, found in read(given.raccoons)[1]])
    apart = others[:, names.index("raccoon")]
    random = np.random.default_rng(0)

    def taken(drawn: Callable[[int], Floats]) -> str:
        counts = (20, 40, 100, 170)
        return "".join(f"{np.mean([is_everywhere(drawn(n)) for _ in range(FOLDERS)]):8.2f}" for n in counts)

    def mixed(share: float) -> Callable[[int], Floats]:
        def drawn(count: int) -> Floats:
            of_own = round(share * count)
            return np.concatenate([random.choice(own, of_own, False), random.choice(apart, count - of_own, False)])

        return drawn

    print("\nthe only name, taken to be everywhere in folders of 20, 40, 100, 170 pictures")
    for share in (1.0, 0.9, 0.75, 0.5, 0.25, 0.0):
        print(f"raccoon in {share:4.0%} {taken(mixed(share))}")
    for p, name in enumerate(names):
        shown = sum(p in {names.index(one) for one in true[picture]} for picture, _ in rows)
        if shown >= 5 and not np.isnan(others[0, p]):
            said = taken(lambda count, p=p: random.choice(others[:, p], count, False))
            if name in SETS[1] or float(said.split()[0]):
                print(f"{name} in {shown / len(rows):4.0%} {said}")


def read(run: Path) -> tuple[tuple[str, ...], list[tuple[str, Candidates]]]:
    """The names of a run, and the candidates of its pictures."""
    with LabellingRun.open(run) as opened:
        pictures = sorted(opened.pictures().items())
        return opened.names, [(name, opened.candidates(one)) for name, one in pictures if one.error is None]


def boxes_in(truth: Path) -> dict[str, dict[str, list[list[float]]]]:
    """File → name → boxes, of COCO's annotations."""
    given = json.loads(truth.read_text())
    names = {one["id"]: one["name"] for one in given["categories"]}
    files = {one["id"]: one["file_name"] for one in given["images"]}
    found: dict[str, dict[str, list[list[float]]]] = {name: defaultdict(list) for name in files.values()}
    for one in given["annotations"]:
        x, y, w, h = one["bbox"]
        found[files[one["image_id"]]][names[one["category_id"]]].append([x, y, x + w, y + h])
    return found


def drafts(rows: list, names: tuple, some: tuple, true: dict, reviewed: int, seed: int) -> list[list[int]]:
    """The counts of some names in pictures that are left, by these alone, and when so many others are reviewed."""
    ids = [names.index(name) for name in some]
    presence = np.array([found.presence for _, found in rows])
    there = np.full((len(rows), len(ids)), np.nan)
    order = np.random.default_rng(seed).permutation(len(rows))
    for i in order[:reviewed]:
        there[i] = [name in true[rows[i][0]] for name in some]
    shifts = np.zeros(len(names))
    shifts[ids] = Prior.of(presence[:, ids], [None] * len(ids), there).shifts
    # A name that is not asked is never there.
    rule = DraftRule(tuple(0.32 if p in ids else 2.0 for p in range(len(names))))
    counts = [[0] * 4, [0] * 4]
    for i in order[reviewed:]:
        of_row, own = true[rows[i][0]], rows[i][1]
        for count, moved in zip(counts, (shifts * 0, shifts), strict=True):
            found = defaultdict(list)
            for box in choose(own, rule, Prior(moved)).drafts:
                found[names[own.labels[box]]].append(own.xyxy[box])
            for name, boxes in found.items():
                count[name not in of_row] += 1
                if name in of_row:
                    count[2] += int((iou_matrix(np.array(boxes), np.array(of_row[name])).max(axis=0) >= 0.5).sum())
                else:
                    count[3] += len(boxes)
    return counts


if __name__ == "__main__":
    main()
