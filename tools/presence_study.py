"""Presence by the bank of names beside the bundled models' calibrated presence. For docs/studies/presence.md.

`mini` and `mini-vit` are calibrated, so both rules can be applied to the same embeddings of whole pictures. Recall: the
share of names in a picture that are found at 0.5. False positives: the same share of the names that are not in it.

* tuning: the 118 pictures of tools/tuning_boxes.json, each asked for its class and nine others, drawn with a seed. The
  two shares of the rule are chosen on these (`--choose`), by this and by a second question: general names ("dog") that
  are right where the class is of their kind.
* ilsvrc: ../shared/data/ilsvrc_val_dev, each picture asked for its class and nine others. The bank's
  rule is not chosen on it; the presence of the bundled models is fitted to it.
* coco: ../shared/data/coco_dev, each picture asked for all of COCO's names that the model knows. Nothing is chosen on
  it.

    python tools/presence_study.py --choose
    python tools/presence_study.py
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cliploc import Localizer
from cliploc.evaluate.data import open_dataset
from cliploc.find import prompts
from cliploc.find.presence import PASS_SHARE, RELATED_SHARE, Bank
from cliploc.find.texts import Texts

ROOT = Path(__file__).parents[1]
DATA = ROOT / "../shared/data"
MODELS = ("mini", "mini-vit")
OTHERS = 9  # names that are not in a picture of one class
PASS_SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08)
RELATED_SHARES = (0, 0.03, 0.06, 0.1, 0.15)
GENERAL = {  # name → labels of its kinds among ImageNet's 1,000 classes, first to last
    "dog": ((151, 268),),
    "bird": ((7, 24), (80, 100), (127, 146)),
    "snake": ((52, 68),),
    "spider": ((72, 77),),
    "lizard": ((38, 48),),
    "turtle": ((33, 37),),
    "monkey": ((369, 382),),
    "frog": ((30, 32),),
    "shark": ((2, 4),),
    "beetle": ((300, 307),),
    "butterfly": ((321, 326),),
    "cat": ((281, 285),),
    "bear": ((294, 297),),
    "fox": ((277, 280),),
    "wolf": ((269, 272),),
    "crab": ((118, 121),),
}


@dataclass(frozen=True)
class Asked:
    """A picture, the names asked for, and which of them are in it."""

    path: Path
    names: list[str]
    true: list[bool]


def of_classes(pictures: Iterable[tuple[Path, int]]) -> list[Asked]:
    """Pictures of one class each, asked for it and for others."""
    names = [one.name for one in prompts.imagenet_classes()]
    draw, asked = random.Random(0), []
    for path, label in pictures:
        others = draw.sample([name for name in names if name != names[label]], OTHERS)
        asked.append(Asked(path, [names[label], *others], [True] + [False] * OTHERS))
    return asked


def tuning() -> list[tuple[Path, int]]:
    """The tuning pictures and their labels."""
    labels = {one.wnid: label for label, one in enumerate(prompts.imagenet_classes())}
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    return [(DATA / f"imagenet_one_per_class/{wnid}.jpg", labels[wnid]) for wnid in drawn]


def general() -> list[Asked]:
    """The tuning pictures, asked for general names."""
    return [
        Asked(path, list(GENERAL), [any(a <= label <= b for a, b in spans) for spans in GENERAL.values()])
        for path, label in tuning()
    ]


def ilsvrc(limit: int | None) -> list[Asked]:
    """The pictures of ilsvrc_val_dev."""
    dataset = open_dataset("ilsvrc", DATA / "ilsvrc_val_dev", limit=limit)
    return of_classes((one.path, one.label) for one in dataset.samples)


def coco(localizer: Localizer) -> list[Asked]:
    """The pictures of coco_dev, asked for all names that the model knows."""
    dataset = open_dataset("coco", DATA / "coco_dev")
    all_names = [one.name for one in dataset.classes]
    unknown = localizer.unknown_names(all_names)
    names = [name for name in all_names if name not in unknown]
    of_picture: dict[Path, set[str]] = {}
    for one in dataset.samples:
        of_picture.setdefault(one.path, set()).add(all_names[one.label])
    return [Asked(path, names, [name in there for name in names]) for path, there in of_picture.items()]


def embeddings(localizer: Localizer, asked: Sequence[Asked]) -> list[Tensor]:
    """`[D]` of each whole picture."""
    results = localizer.stream([str(one.path) for one in asked], [one.names[:1] for one in asked])
    return [torch.from_numpy(result.embedding) for result in results]


def shares(found: Iterable[Tensor], asked: Sequence[Asked]) -> tuple[float, float, float]:
    """Recall, false positives and precision of the names found `[P]` in each picture."""
    there = torch.cat(list(found))
    true = torch.tensor([one for picture in asked for one in picture.true])
    right = int((there & true).sum())
    return right / int(true.sum()), float((there & ~true).sum() / (~true).sum()), right / max(1, int(there.sum()))


def calibrated(localizer: Localizer, asked: Sequence[Asked], seen: Sequence[Tensor]) -> tuple[float, float, float]:
    """`shares` of the model's own presence scores."""
    backbone = localizer.backbone
    cosines = [localizer.embed_names(one.names) @ picture for one, picture in zip(asked, seen, strict=True)]
    return shares([backbone.presence(one) >= 0.5 for one in cosines], asked)


def by_bank(bank: Bank, asked: Sequence[Asked], seen: Sequence[Tensor]) -> tuple[float, float, float]:
    """`shares` of the bank's presence scores."""
    return shares(
        [
            bank.presence(picture[None], [(name,) for name in one.names])[0] >= 0.5
            for one, picture in zip(asked, seen, strict=True)
        ],
        asked,
    )


def row(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def choose(localizer: Localizer, model: str) -> None:
    """Prints both rules on the tuning pictures, the bank's at several shares."""
    questions = [of_classes(tuning()), general()]
    seen = embeddings(localizer, questions[0])
    own = [value for asked in questions for value in calibrated(localizer, asked, seen)[:2]]
    print(row(model, "calibrated", "", *own), flush=True)
    texts = Texts(localizer.backbone, prompts.DEFAULT_TEMPLATES)
    for related in RELATED_SHARES:
        for passing in PASS_SHARES:
            bank = Bank(texts, pass_share=passing, related_share=related)
            values = [value for asked in questions for value in by_bank(bank, asked, seen)[:2]]
            print(row(model, f"{related:g}", f"{passing:g}", *values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="only the tuning pictures, at several shares")
    parser.add_argument("--limit", type=int, help="only the first N pictures of ilsvrc_val_dev")
    parser.add_argument("--model", choices=MODELS, help="one alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.choose:
        print("| model | related share | pass share | recall | false positives | general: recall | false positives |")
        print("|---" * 7 + "|")
    else:
        print(f"pass share {PASS_SHARE:g}, related share {RELATED_SHARE:g}\n")
        print("| pictures | names asked for | in it | model | rule | recall | false positives | precision |")
        print("|---" * 8 + "|")
    for model in [arguments.model] if arguments.model else MODELS:
        localizer = Localizer(model, min_presence=0, text_cache=False)
        if arguments.choose:
            choose(localizer, model)
            continue
        bank = Bank(Texts(localizer.backbone, prompts.DEFAULT_TEMPLATES))
        sets = {"tuning": of_classes(tuning()), "ilsvrc_val_dev": ilsvrc(arguments.limit), "coco_dev": coco(localizer)}
        for name, asked in sets.items():
            seen = embeddings(localizer, asked)
            true = sum(sum(one.true) for one in asked)
            facts = (f"{name}, {len(asked)}", sum(len(one.names) for one in asked), true, model)
            print(row(*facts, "calibrated", *calibrated(localizer, asked, seen)), flush=True)
            print(row(*facts, "bank", *by_bank(bank, asked, seen)), flush=True)


if __name__ == "__main__":
    main()
