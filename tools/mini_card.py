# ruff: noqa: E501  (a row of a Markdown table is one line)
"""Measures the bundled model `mini` and puts the tables into docs/mini.md and docs/studies/mini.md (`make mini-card`, about 4 minutes).

Needs ../shared/data (see its README); figures come from the package's public code.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from build_mini import LEARNT_FROM, PARTS, RIDGE
from marked import put
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc import towers
from cliploc.evaluate.metrics import Bootstrap, MaxBoxAcc, box_curve, boxes_on_map
from cliploc.find import prompts
from cliploc.find.texts import embed
from cliploc.methods import Context, methods
from cliploc.towers._backbone import Backbone
from cliploc.towers._mini_text import MiniTextTower, Reading, normalise
from cliploc.towers.mini import WEIGHTS, Mini
from cliploc.values import TextSet

ROOT = Path(__file__).resolve().parent.parent
CARD, STUDY = ROOT / "docs/mini.md", ROOT / "docs/studies/mini.md"
WORDS = ROOT / "tests/towers/everyday_words.csv"
TEMPLATE = "a photo of a {}."
SIDE = 224


def load_names(data: Path) -> list[tuple[str, str]]:
    """(WordNet id, first name) of each class, in ILSVRC's order."""
    with (data / "ilsvrc_val_dev/synsets.csv").open(newline="") as file:
        return [(row["wnid"], row["synset_words"].split(",")[0]) for row in csv.DictReader(file)]


def called(data: Path) -> dict[str, list[str]]:
    """What the 1,000 classes may be asked by, "name|synonym" each."""
    classes = prompts.imagenet_classes()
    return {
        "by WordNet's first words": [name for _, name in load_names(data)],
        "by the names that `cliploc classify` asks": [one.name for one in classes],
        "by these and WordNet's synonyms, averaged": [one.entry for one in classes],
    }


def class_texts(model: Backbone, names: Sequence[str]) -> Tensor:
    """`[n, D]`; unlike `prompts.parse`, two classes may have one name, as WordNet's two "crane" have."""
    words = tuple(tuple(entry.split("|")) for entry in names)
    return embed(TextSet(tuple(one[0] for one in words), words, (TEMPLATE,)), model.encode_text)


def load_split(folder: Path) -> tuple[list[Path], list[int], list[np.ndarray]]:
    """Pictures, labels and true boxes at 224 pixels (truncated to whole pixels, as the WSOL evaluation does)."""
    labels = dict(line.split(",") for line in (folder / "metadata/class_labels.txt").read_text().split())
    sizes = {}
    for line in (folder / "metadata/image_sizes.txt").read_text().split():
        name, width, height = line.split(",")
        sizes[name] = (int(width), int(height))
    boxes = defaultdict(list)
    for line in (folder / "metadata/localization.txt").read_text().split():
        name, *corners = line.split(",")
        boxes[name].append([int(corner) for corner in corners])
    return (
        [folder / name for name in labels],
        [int(label) for label in labels.values()],
        [boxes_on_map(boxes[name], sizes[name], (SIDE, SIDE)) for name in labels],
    )


def pixels(model: Backbone, paths: Sequence[Path], side: int = SIDE) -> Tensor:
    """Pictures squashed to the input, normalised `[B, 3, side, side]`."""
    images = [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for path in paths]
    return model.normalize(torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float() / 255)


@torch.inference_mode()
def embed_pictures(model: Backbone, paths: Sequence[Path], side: int = SIDE) -> Tensor:
    return torch.cat([model.encode_image(pixels(model, paths[i : i + 32], side)) for i in range(0, len(paths), 32)])


def top_k(images: Tensor, texts: Tensor, labels: Sequence[int]) -> tuple[float, float]:
    """Top-1 and top-5 of pictures `[n, D]` among texts `[m, D]`."""
    hits = (images @ texts.T).topk(5, dim=1).indices == torch.tensor(labels)[:, None]  # [n, 5]
    return float(hits[:, 0].float().mean()), float(hits.any(dim=1).float().mean())


def left_out(
    tower: MiniTextTower, images: Tensor, labels: Sequence[int], names: Sequence[str], *, lexicon: bool
) -> tuple[float, float]:
    """Top-1 and top-5 among 200 classes taken out of the text tower, mean over the pictures of five folds."""
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    first, five, count = 0.0, 0.0, 0
    for fold in range(5):
        out = order[200 * fold : 200 * fold + 200]
        without = tower.without(out)
        if lexicon:
            texts = without([TEMPLATE.format(names[c]) for c in out])
        else:
            readings = [Reading((), tuple(normalise(names[c]).split()), outside=False) for c in out]
            texts = without.embed_readings(readings)
        chosen = [i for i, label in enumerate(labels) if label in out]
        a, b = top_k(images[chosen], texts, [out.index(labels[i]) for i in chosen])
        first, five, count = first + a * len(chosen), five + b * len(chosen), count + len(chosen)
    return first / count, five / count


@torch.inference_mode()
def cam_maps(mini: Mini, paths: Sequence[Path], texts: Tensor) -> np.ndarray:
    """CAM of each picture for its own text `[n, D]`, min-max normalised, at 224: float32 `[n, 224, 224]` in 0–1."""
    cam = methods.get("cam")
    maps = []
    for start in range(0, len(paths), 32):
        images = pixels(mini, paths[start : start + 32])
        trace = mini.trace(images, cam.needs())
        raw = cam.function(
            Context(lambda images=images: images, texts[start : start + 32, None], trace, mini)
        ).relu()  # [B, 1, 7, 7]
        low, high = raw.amin(dim=(2, 3), keepdim=True), raw.amax(dim=(2, 3), keepdim=True)
        scaled = (raw - low) / (high - low).clamp_min(1e-12)
        large = F.interpolate(scaled, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        maps.append(large[:, 0].clamp(0, 1).numpy())
    return np.concatenate(maps)


def max_box_acc(maps: np.ndarray, truths: Sequence[np.ndarray]) -> tuple[float, float]:
    """MaxBoxAcc V1 (largest contour, IoU ≥ 0.5) at the one τ that is best for all pictures, and that τ."""
    metric = MaxBoxAcc()
    for i, (heat, boxes) in enumerate(zip(maps, truths, strict=True)):
        metric.update(box_curve(str(i), heat, boxes))
    result = metric.compute(Bootstrap(replicates=0))
    return result.accuracy, result.threshold


def everyday_words(tower: MiniTextTower) -> dict[str, list[str]]:
    """The listed words by how they fared: right, wrong, unknown as they should be, known though they should not.

    Those of kind "everyday" became known later, and are counted by themselves.
    """
    rows = F.normalize(tower.class_rows, dim=1)  # [1000, 1280]
    fared: dict[str, list[str]] = {"right": [], "wrong": [], "unknown": [], "not unknown": [], "everyday": []}
    with WORDS.open(newline="") as file:
        for row in csv.DictReader(file):
            word, known = row["word"], tower.unknown_reason(row["word"]) is None
            if row["kind"] == "everyday":
                fared["everyday"].append(word)
            elif row["kind"] == "unknown":
                fared["not unknown" if known else "unknown"].append(word)
            else:
                first = str(int((rows @ tower([TEMPLATE.format(word)])[0]).argmax()))
                fared["right" if known and first in row["classes"].split() else "wrong"].append(word)
    return fared


def tables(data: Path) -> dict[tuple[Path, str], str]:
    """(page, name of the comment) → its tables."""
    names_of = load_names(data)
    names = [name for _, name in names_of]
    mini = towers.create("mini", device="cpu")
    assert isinstance(mini, Mini)
    facts = json.loads((WEIGHTS / "mini.json").read_text())
    paths, labels, truths = load_split(data / "ilsvrc_val_dev")
    images = embed_pictures(mini, paths)
    pictures = [data / f"imagenet_one_per_class/{wnid}.jpg" for wnid, _ in names_of]
    chosen_on = embed_pictures(mini, pictures)
    texts = mini.encode_text([TEMPLATE.format(name) for name in names])  # [1000, 1280]

    folds = {
        (where, lexicon): left_out(mini.text, vectors, marks, names, lexicon=lexicon)
        for where, vectors, marks in (("val", images, labels), ("one", chosen_on, list(range(1000))))
        for lexicon in (True, False)
    }
    located, tau = max_box_acc(cam_maps(mini, paths, texts[labels]), truths)
    words = everyday_words(mini.text)
    text = facts["text"]

    def accuracies(by: str, entries: Sequence[str]) -> str:
        asked = class_texts(mini, entries)
        val, one = top_k(images, asked, labels), top_k(chosen_on, asked, range(1000))
        return f"| top-1 / top-5 of 1,000 classes, {by} | {val[0]:.3f} / {val[1]:.3f} | {one[0]:.3f} / {one[1]:.3f} |"

    accuracy = "\n".join(accuracies(by, entries) for by, entries in called(data).items())

    def row(label: str, where: str, lexicon: bool) -> str:
        first, five = folds[where, lexicon]
        return f"| {label} | {first:.3f} / {five:.3f} |"

    wrong, odd = ", ".join(words["wrong"]) or "none", ", ".join(words["not unknown"]) or "none"
    return {
        (CARD, "figures"): f"""
| | ilsvrc_val_dev | imagenet_one_per_class |
|---|---|---|
{accuracy}
| CAM at 224, GT-known (MaxBoxAcc V1, IoU 0.5), best τ on this split, an oracle | {located:.3f} at τ {tau:.2f} | no boxes |""",
        (STUDY, "left-out classes"): f"""
| | ilsvrc_val_dev | imagenet_one_per_class |
|---|---|---|
{row("names that WordNet has", "val", True)} {folds["one", True][0]:.3f} / {folds["one", True][1]:.3f} |
{row("the same names by static vectors alone", "val", False)} {folds["one", False][0]:.3f} / {folds["one", False][1]:.3f} |""",
        (STUDY, "words"): f"""
Everyday words (tests/towers/everyday_words.csv): {len(words["right"])} of {len(words["right"]) + len(words["wrong"])} rank a class of
theirs first; wrong: {wrong}. {len(words["unknown"])} of {len(words["unknown"]) + len(words["not unknown"])} words without anything like
them in ImageNet are said to be unknown; not: {odd}. {len(words["everyday"])} more are everyday names now.""",
        (STUDY, "constants"): f"""
| constant | value | chosen on |
|---|---|---|
| weights of name, definition and hierarchy in a sense's score | 0.3, 1, 0.3 | left-out classes, imagenet_one_per_class |
| β over a sense's nodes / over word vectors | {text["sense_beta"]:g} / {text["word_beta"]:g} | the same |
| dimensions of the word vectors | 128 (as good as 192, 256, 384) | the same |
| score below which a sense is unknown, penalty for another kind of thing | 0.76, 0.2 | about 200 words' senses |
| cosine below which a word vector is unknown | {text["min_cosine"]:g} | left-out names (1 in 10 lost) against random letters |
| ridge, parts of a picture, classes from which on a wider name has the learnt row alone | {RIDGE:g}, {PARTS}, {LEARNT_FROM} | presence of wider names, five folds of imagenet_one_per_class |
| logit scale | {facts["logit_scale"]:g} | cross-entropy, imagenet_one_per_class |""",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mini and write its tables.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    options = parser.parse_args()
    for name in ("ilsvrc_val_dev", "imagenet_one_per_class"):
        if not (options.data / name).is_dir():
            sys.exit(f"expected {name} in {options.data}, found no such folder: give its parent with --data")
    torch.set_num_threads(2)
    for (page, name), text in tables(options.data).items():
        put(page, name, text)
        print(f"{page.name}, {name}\n{text}\n")


if __name__ == "__main__":
    main()
