"""Plants errors in labels that are taken as right, and prints how well `cliploc check` finds them.

    python tools/planted_errors.py ../shared/data/coco_dev [--seeds 6] [--share 0.1] [--cache FILE.npz]

The folder is in COCO's layout. Numbers are chosen on coco_tune and reported on coco_dev: docs/studies/check.md.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cliploc import Localizer
from cliploc.images.reading import load
from cliploc.label.checking import judge
from cliploc.label.checking.regions import found_in, jittered, read_boxes
from cliploc.values import Floats

KINDS = ("random", "frequent", "in the picture")
COPIES = 2  # of each box, moved
FIRST, FIRST_MISSING = 50, 20
Data = dict[str, Any]


def read(root: Path) -> Data:
    """Boxes, labels, what the tower reads in boxes, moved copies and drafts."""
    truth = json.loads((root / "annotations/instances_val2017.json").read_text())
    words = [category["name"] for category in truth["categories"]]
    number = {category["id"]: place for place, category in enumerate(truth["categories"])}
    localizer, rng = Localizer("mini", recipe="fast"), np.random.default_rng(0)
    text = localizer.embed_names(words).cpu().numpy().astype(float)
    text[[words.index(word) for word in localizer.unknown_names(words)]] = np.nan
    rows: dict[str, list[Any]] = {key: [] for key in ("features", "edges", "sizes", "boxes", "labels", "pictures")}
    moved: dict[str, list[Any]] = {key: [] for key in ("edges", "owners")}
    found: dict[str, list[Any]] = {key: [] for key in ("features", "sizes", "boxes", "labels", "pictures")}

    def add(of: dict[str, list[Any]], image: dict[str, Any], xyxy: Floats, labels: list[int], size: Any) -> None:
        features, edges = read_boxes(localizer.backbone, picture, xyxy)
        values = {"features": features, "edges": edges, "boxes": xyxy}
        values |= {"sizes": (xyxy[:, 2:] - xyxy[:, :2]) / size, "labels": labels}
        values["pictures"] = [image["id"]] * len(labels)
        for key in of:
            of[key].append(np.asarray(values[key]))

    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        if not own:
            continue
        picture = load(root / "val2017" / image["file_name"]).image
        boxes = np.array([a["bbox"] for a in own], float)
        boxes[:, 2:] += boxes[:, :2]
        start = sum(map(len, rows["labels"]))
        add(rows, image, boxes, [number[a["category_id"]] for a in own], picture.size)
        copies = [(start + i, jittered(rng, box, picture.size)) for i, box in enumerate(boxes) for _ in range(COPIES)]
        copies = [(owner, copy) for owner, copy in copies if copy is not None]
        if copies:
            xyxy = np.array([copy for _, copy in copies])
            moved["edges"].append(read_boxes(localizer.backbone, picture, xyxy, with_picture=False)[1])
            moved["owners"].append(np.array([owner for owner, _ in copies]))
        drafts = found_in(localizer, picture, words)
        if len(drafts.label):
            add(found, image, drafts.xyxy.astype(float), drafts.label.tolist(), picture.size)
    parts = (("own", rows), ("moved", moved), ("draft", found))
    joined = {f"{name}_{key}": np.concatenate(values) for name, of in parts for key, values in of.items()}
    return {**joined, "text": text, "scale": float(localizer.backbone.logit_scale)}


def renamed(true: Any, pictures: Any, kind: str, rng: np.random.Generator, share: float) -> Any:
    """The labels with a share of other names."""
    given, there, count = true.copy(), np.unique(true), np.bincount(true).astype(float)
    for box in np.flatnonzero(rng.random(len(true)) < share):
        others = np.unique(true[pictures == pictures[box]]) if kind == KINDS[2] else there
        others = others[others != true[box]]
        if len(others):
            chance = count[others] / count[others].sum() if kind == KINDS[1] else None
            given[box] = rng.choice(others, p=chance)
    return given


def cosines(data: Data, features: Floats) -> Floats:
    """`[n, P]`, the mean of both readings."""
    half = data["text"].shape[1]
    return (features[:, :half] + features[:, half:]) @ data["text"].T / 2


def names_trial(data: Data, kind: str, seed: int, share: float) -> tuple[Floats, Any]:
    """Chances of all boxes, and whether each is wrong."""
    true, pictures, features = data["own_labels"], data["own_pictures"], data["own_features"]
    given = renamed(true, pictures, kind, np.random.default_rng(seed), share)
    texts = cosines(data, features)
    judged = judge.judge_names(features, texts, data["own_sizes"], given, pictures, float(data["scale"]))
    return judged.chance, given != true


def places_trial(data: Data, seed: int, share: float) -> tuple[Floats, Any]:
    """As `names_trial`: the first moved copy of a box takes its place."""
    owners, edges = data["moved_owners"], data["own_edges"].copy()
    movable, firsts = np.unique(owners, return_index=True)
    chosen = np.random.default_rng(seed).random(len(edges))[movable] < share
    bad = np.isin(np.arange(len(edges)), movable[chosen])
    edges[bad] = data["moved_edges"][firsts[chosen]]
    rest = ~bad[owners]
    pictures = data["own_pictures"]
    return judge.judge_places(edges, pictures, data["moved_edges"][rest], pictures[owners[rest]]), bad


def missing_trial(data: Data, seed: int, share: float) -> tuple[Floats, Any]:
    """Chances of drafts, and whether each overlaps a hidden label of its name."""
    shown = np.random.default_rng(seed).random(len(data["own_labels"])) >= share
    features, sizes, pictures = (
        np.concatenate([data[f"own_{key}"][shown], data[f"draft_{key}"]]) for key in ("features", "sizes", "pictures")
    )
    given = np.concatenate([data["own_labels"][shown], np.full(len(data["draft_labels"]), judge.DRAFT)])
    judged = judge.judge_names(features, cosines(data, features), sizes, given, pictures, float(data["scale"]))
    explained, matched, right = (np.zeros(len(data["draft_labels"]), bool) for _ in range(3))
    for picture in np.unique(data["draft_pictures"]):
        here, own = data["draft_pictures"] == picture, data["own_pictures"] == picture
        drafts = data["draft_boxes"][here], data["draft_labels"][here]
        visible, hidden = own & shown, own & ~shown
        explained[here], matched[here] = judge.compare(*drafts, data["own_boxes"][visible], data["own_labels"][visible])
        right[here] = judge.compare(*drafts, data["own_boxes"][hidden], data["own_labels"][hidden])[0]
    logits = judged.logits[shown.sum() :]
    return judge.judge_missing(logits, data["draft_labels"], explained, matched), right & ~explained


def report(title: str, trial: Callable[[int], tuple[Floats, Any]], seeds: int, first: int) -> None:
    """Prints a row of a table: means over the seeds, each with its standard error."""
    rows = []
    for seed in range(seeds):
        chance, wrong = trial(seed)
        chance, wrong = (values[np.isfinite(chance)] for values in (chance, wrong))  # the others are not judged
        top = np.argsort(-chance, kind="stable")[:first]
        rows.append((roc_auc_score(wrong, chance), wrong[top].sum(), chance[top].sum()))
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(seeds)
    print(f"| {title} | {mean[0]:.3f} ± {error[0]:.3f} | {mean[1]:.1f} of {first} | {mean[2]:.1f} |", flush=True)


def main() -> None:
    """Reads the set once, then plants errors of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--cache", type=Path, help="keeps what was read, which takes longest")
    options = parser.parse_args()
    if options.cache is not None and options.cache.exists():
        data = dict(np.load(options.cache))
    else:
        data = read(options.root)
        if options.cache is not None:
            np.savez(options.cache, **data)
    print("| planted | AUROC | wrong of the first | said |\n|---|---|---|---|")
    for kind in KINDS:
        report(
            f"name: {kind}", lambda seed, kind=kind: names_trial(data, kind, seed, options.share), options.seeds, FIRST
        )
    report("badly placed", lambda seed: places_trial(data, seed, options.share), options.seeds, FIRST)
    report("missing", lambda seed: missing_trial(data, seed, options.share), options.seeds, FIRST_MISSING)


if __name__ == "__main__":
    main()
