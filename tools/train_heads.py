"""Trains TS-CAM's and LCTR's heads on photographs and says whether it helped: the figures of docs/studies/training.md.

Trains on `imagenet_one_per_class` (one picture a class) without 200 seeded classes, and reports on `ilsvrc_val_dev`,
which it never trains on: MaxBoxAcc V1 at the best τ of each row, for classes that trained and classes left out.

    python tools/train_heads.py --model mini-vit --work /tmp/heads     # minutes; goes on where it was
"""

from __future__ import annotations

import argparse
import csv
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from marked import put
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc import towers
from cliploc.evaluate.metrics import Bootstrap, MaxBoxAcc, box_curve, boxes_on_map, largest_hits
from cliploc.evaluate.metrics.max_box_acc import LocalizationAccuracy
from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.evaluate.train.trainer import read_csv, train
from cliploc.find import prompts
from cliploc.find.heads import SemanticHead, load_head, look
from cliploc.find.texts import embed
from cliploc.methods import Context, methods, min_max
from cliploc.methods._infra.attention import summed_attention
from cliploc.support.reporter import Reporter
from cliploc.towers.tower import Backbone, Needs
from cliploc.values import TextSet

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/studies/training.md"
LEFT_OUT, SEED, SIDE = 200, 0, 224
Maps = Callable[[Context], Tensor]


def left_out_classes() -> set[int]:
    return set(np.random.default_rng(SEED).permutation(1000)[:LEFT_OUT].tolist())


def write_csv(data: Path, file: Path) -> None:
    """The training pictures: all but those of the classes left out."""
    out = left_out_classes()
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["path", "label"])
        for label, one in enumerate(prompts.imagenet_classes()):
            if label not in out:
                writer.writerow([(data / "imagenet_one_per_class" / f"{one.wnid}.jpg").resolve(), one.wnid])


def read_split(folder: Path) -> list[tuple[Path, int, np.ndarray]]:
    """Pictures, labels and true boxes on a map of 224 × 224."""

    def lines(name: str) -> list[list[str]]:
        return list(csv.reader((folder / "metadata" / name).read_text().splitlines()))

    sizes = {name: (int(w), int(h)) for name, w, h in lines("image_sizes.txt")}
    boxes: dict[str, list[list[int]]] = {}
    for name, *corners in lines("localization.txt"):
        boxes.setdefault(name, []).append([int(corner) for corner in corners])
    return [
        (folder / name, int(label), boxes_on_map(boxes[name], sizes[name], (SIDE, SIDE)))
        for name, label in lines("class_labels.txt")
    ]


def settings_of(method: str, kind: str, changed: Mapping[str, Any]) -> TrainSettings:
    """One picture a class: a closed head has none to hold out, an open one holds out whole classes."""
    held = {"held_out": 0.0} if kind == "closed" else {"held_out": 0.1, "hold_out": "classes"}
    return TrainSettings(method=method, kind=kind, **{"augmentations": 1, **held, **changed})  # type: ignore[arg-type]


class Evaluation:
    """GT-known and Top-1 of any number of ways to make maps, out of one pass over the split."""

    def __init__(self, backbone: Backbone, data: Path) -> None:
        self.backbone, self.split = backbone, read_split(data / "ilsvrc_val_dev")
        classes = prompts.imagenet_classes()
        words = [self._known((one.name, *one.synonyms)) for one in classes]
        texts = TextSet(tuple(one.name for one in classes), tuple(words), prompts.DEFAULT_TEMPLATES)
        self.names, self.words = texts.names, words
        self.text = embed(texts, backbone.encode_text)  # [1000, D]

    def _known(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word for word in words if self.backbone.unknown_reason(word) is None) or words

    @torch.no_grad()
    def run(
        self, ways: Mapping[str, Maps], needs: Needs, heads: Mapping[str, SemanticHead]
    ) -> tuple[dict[str, MaxBoxAcc], dict[str, list[tuple[str, int, list[int], Any]]], dict[str, np.ndarray]]:
        metrics = {name: MaxBoxAcc() for name in ways}
        rows: dict[str, list[tuple[str, int, list[int], Any]]] = {name: [] for name in ways}
        guesses: dict[str, list[int]] = {name: [] for name in ["model", *heads]}
        for start in range(0, len(self.split), 32):
            batch = self.split[start : start + 32]
            images = [Image.open(p).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p, _, _ in batch]
            pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
            labels = torch.tensor([label for _, label, _ in batch])
            x = self.backbone.normalize(pixels.float() / 255)
            trace = self.backbone.trace(x, needs)
            words = [[self.words[label]] for label in labels.tolist()]
            ctx = Context(lambda x=x: x, self.text[labels][:, None], trace, self.backbone, words=words)
            ranked = (trace.embedding @ self.text.T).topk(5, dim=1).indices.tolist()
            guesses["model"] += [five[0] for five in ranked]
            for name, head in heads.items():
                guesses[name] += self._guesses(head, ctx)
            for name, way in ways.items():
                maps = F.interpolate(min_max(way(ctx).float().relu()), size=(SIDE, SIDE), mode="bilinear")[:, 0]
                for (path, label, boxes), heat, five in zip(batch, maps.clamp(0, 1).numpy(), ranked, strict=True):
                    curve = box_curve(path.name, heat, boxes)
                    metrics[name].update(curve, label)
                    rows[name].append((path.name, label, five, curve))
        truth = np.array([label for _, label, _ in self.split])
        return metrics, rows, {name: np.array(one) == truth for name, one in guesses.items()}

    def _guesses(self, head: SemanticHead, ctx: Context) -> list[int]:
        """What the head itself calls each picture; of a closed head, among its own classes."""
        seen = look(ctx, attention=head.reads_attention, dense=head.config.reads_dense)
        if not head.closed:
            return head.logits(seen, self.text).argmax(dim=1).tolist()
        own = torch.tensor([self.names.index(words[0]) for words in head.config.classes])
        return own[head.logits(seen).argmax(dim=1)].tolist()


def ways_of(backbone: Backbone, heads: Mapping[str, SemanticHead]) -> tuple[dict[str, Maps], Needs]:
    """The rows of the table, and what one trace must hold for all."""
    ways: dict[str, Maps] = {}
    needs = Needs()
    plain = ["cam"] if backbone.kind == "cnn" else ["maskclip", "legrad", "ts_cam", "lctr"]
    if backbone.kind == "vit":
        ways["summed attention alone"] = lambda ctx: summed_attention(ctx)[:, None]
    for name in plain:
        method = methods.get(name)
        ways[f"{method.title}, untrained"] = method.function
        needs = needs | method.needs()
    for name, head in heads.items():
        method = methods.get(head.method)
        ways[name] = lambda ctx, method=method, head=head: method.function(ctx, head=head)
        needs = needs | method.needs(head=head)
    return ways, needs


def table(backbone: Backbone, evaluation: Evaluation, heads: Mapping[str, SemanticHead]) -> str:
    ways, needs = ways_of(backbone, heads)
    metrics, rows, right = evaluation.run(ways, needs, heads)
    out = left_out_classes()
    unseen = np.array([label in out for _, label, _ in evaluation.split])
    lines = [
        f"`{backbone.name}`, {len(unseen)} pictures of `ilsvrc_val_dev`: {(~unseen).sum()} of classes that trained, "
        f"{unseen.sum()} of classes that were left out.\nIn percent; ± is half a 95 % interval of all pictures.",
        "",
        "| | τ | GT-known, all | classes trained | left out | Top-1 Loc | head's own Top-1: trained | left out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ways:
        best = metrics[name].compute(Bootstrap(replicates=300))
        half = (best.interval[1] - best.interval[0]) / 2
        closed = name in heads and heads[name].closed
        hits = {}
        for part, mask in (("all", unseen | ~unseen), ("in", ~unseen), ("out", unseen)):
            accuracy = LocalizationAccuracy(best.threshold)
            for keep, (_, label, five, curve) in zip(mask, rows[name], strict=True):
                if keep:
                    accuracy.add(curve.image_id, largest_hits(curve), label, five)
            scores = accuracy.summarise(False, Bootstrap(replicates=0)).scores
            hits[part] = {key: 100 * (score.value or 0) for key, score in scores.items()}
        own = right.get(name)
        cells = [
            name,
            f"{best.threshold:.2f}",
            "–" if closed else f"{100 * best.accuracy:.1f} ± {100 * half:.1f}",
            f"{hits['in']['gt_known']:.1f}",
            "–" if closed else f"{hits['out']['gt_known']:.1f}",
            "–" if closed else f"{hits['all']['top1_loc']:.1f}",
            "" if own is None else f"{100 * own[~unseen].mean():.1f}",
            "" if own is None or closed else f"{100 * own[unseen].mean():.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    model = right["model"]
    lines += [
        "",
        f"The model's own zero-shot Top-1 among the 1,000 names: {100 * model[~unseen].mean():.1f} and "
        f"{100 * model[unseen].mean():.1f}; Top-1 Loc takes these predictions in every row.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-vit")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, required=True, help="features, heads and checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KIND.KEY=VALUE", help="a setting")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.name}")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.data, arguments.work / "train.csv")
    pictures = read_csv(arguments.work / "train.csv")
    backbone = towers.create(arguments.model)
    heads, notes = {}, []
    for method in ("ts_cam", "lctr"):
        for kind in ("open", "closed"):
            changed = dict(_setting(text) for text in arguments.set if text.startswith(f"{method}.{kind}."))
            chosen, out = settings_of(method, kind, changed), arguments.work / f"{arguments.model}-{method}-{kind}"
            start = time.perf_counter()
            trained = train(
                backbone, pictures, out, chosen, features=arguments.work / "features",
                reporter=Reporter(note=functools.partial(print, flush=True)),
            )  # fmt: skip
            title = f"{methods.get(method).title}, {kind} head"
            heads[title] = load_head(out, backbone)
            held = trained.history[trained.best - 1].accuracy
            said = "" if held is None else f", best on the classes held out: {held:.3f}"
            notes.append(
                f"* {title}: {chosen.optimizer}, lr {chosen.lr:g}, weight decay {chosen.weight_decay:g}, epoch "
                f"{trained.best} of {len(trained.history)}{said}."
            )
            print(f"{notes[-1]} {time.perf_counter() - start:.0f} s", flush=True)
    text = table(backbone, Evaluation(backbone, arguments.data), heads) + "\n\n" + "\n".join(notes)
    print(text)
    if arguments.write:
        put(DOCUMENT, f"figures of {arguments.model}", text)


def _setting(text: str) -> tuple[str, Any]:
    key, value = text.split(".", 2)[2].split("=", 1)
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


if __name__ == "__main__":
    main()
