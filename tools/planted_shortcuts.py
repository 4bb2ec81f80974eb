"""Plants shortcuts, trains heads on them, and prints whether `cliploc audit` finds them.

    python tools/planted_shortcuts.py ../shared/data [--seeds 10] [--first 0] [--side 72]

Ten names group ImageNet's classes. A head is trained on `mini`'s embeddings of `imagenet_one_per_class` and audited on
ilsvrc_val_dev. In half of the runs all pictures of one name, drawn by the seed, carry the same sticker beside the thing
(even seeds: a small photograph of something else) or the same coloured border (odd ones), in training and in the audit;
in the other half none does. "Learnt" is how far the sticker or border raises the name's cosine in pictures of others.
"""

import argparse
import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from cliploc import Localizer
from cliploc.evaluate import audit
from cliploc.find import prompts

GROUPS = {
    "hound": range(151, 179), "terrier": range(179, 205), "retriever": range(205, 223), "sheepdog": range(223, 269),
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)], "snake": range(52, 69), "lizard": range(25, 52),
    "monkey": range(365, 383), "insect": range(300, 327), "fruit": range(924, 970),
}  # fmt: skip
SIZE, SCALES = 224, (1.0,)  # pixels of a side, which the model sees at this size
MOST = 16  # pictures of a name that are audited
LARGE = 0.8  # share of a picture, from which a thing leaves no room
BORDER = 10  # pixels


def plant(
    image: Image.Image, box: np.ndarray | None, seed: int, stickers: list[Image.Image], rng: np.random.Generator
) -> Image.Image:
    """The picture with the seed's sticker in the corner that the thing covers least, or with its border."""
    planted = image.copy()
    if seed % 2:
        style = np.random.default_rng(100 + seed)
        colour = tuple(style.integers(0, 256, 3).tolist())
        inner = planted.crop((BORDER, BORDER, SIZE - BORDER, SIZE - BORDER))
        planted.paste(colour, (0, 0, SIZE, SIZE))
        planted.paste(inner, (BORDER, BORDER))
        return planted
    sticker = stickers[np.random.default_rng(100 + seed).integers(len(stickers))]
    side = sticker.width
    end = SIZE - side - 4
    corners = [(x, y) for x in (4, end) for y in (4, end)]
    rng.shuffle(corners)

    def covered(corner: tuple[int, int]) -> float:
        if box is None:
            return 0.0
        low, high = np.maximum(corner, box[:2]), np.minimum(np.add(corner, side), box[2:])
        return float((high - low).clip(min=0).prod())

    planted.paste(sticker, min(corners, key=covered))
    return planted


def squashed(path: Path) -> Image.Image:
    """A picture as RGB at the size of all."""
    return Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def pictures(
    data: Path, side: int
) -> tuple[list[tuple[Image.Image, int]], list[tuple[Image.Image, int, np.ndarray]], list[Image.Image]]:
    """Those to train on, each with its name, those to audit, each with its name and true box, and stickers."""
    group = {label: number for number, labels in enumerate(GROUPS.values()) for label in labels}
    labels = {one.wnid: number for number, one in enumerate(prompts.imagenet_classes())}
    files = sorted(path for path in (data / "imagenet_one_per_class").rglob("n*.*") if path.stem in labels)
    train = [(squashed(path), group[labels[path.stem]]) for path in files if labels[path.stem] in group]
    stickers = [squashed(path).resize((side, side)) for path in files if labels[path.stem] not in group]
    facts = data / "ilsvrc_val_dev" / "metadata"
    sizes = {row[0]: np.array([*row[1:3]] * 2, float) for row in csv.reader((facts / "image_sizes.txt").open())}
    boxes: dict[str, list[np.ndarray]] = {}
    for name, *edges in csv.reader((facts / "localization.txt").open()):
        boxes.setdefault(name, []).append(np.array(edges[:4], float) / sizes[name] * SIZE)
    test, counts = [], [0] * len(GROUPS)
    for name, label in csv.reader((facts / "class_labels.txt").open()):
        number = group.get(int(label))
        every = np.array(boxes[name])
        box = np.concatenate([every[:, :2].min(axis=0), every[:, 2:].max(axis=0)])
        if number is not None and counts[number] < MOST and (box[2:] - box[:2]).prod() < LARGE * SIZE**2:
            counts[number] += 1
            test.append((squashed(data / "ilsvrc_val_dev" / name), number, box))
    return train, test, stickers


def embeddings(localizer: Localizer, images: list[Image.Image]) -> torch.Tensor:
    """`[n, D]` of whole pictures, as the audit sees them."""
    found = localizer.stream(images, ["dog"], boxes=False)  # any name
    return torch.from_numpy(np.stack([one.embedding for one in found if one.embedding is not None]))


def trained(embedding: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """`[P, D]` unit norm: a linear head of cosines."""
    rows = torch.stack([embedding[label == number].mean(dim=0) for number in range(len(GROUPS))])
    rows = (rows - embedding.mean(dim=0)).requires_grad_()
    optimizer = torch.optim.LBFGS([rows], max_iter=60)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(20 * embedding @ F.normalize(rows, dim=1).T, label)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return F.normalize(rows.detach(), dim=1)


def main() -> None:
    """The study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--side", type=int, default=72)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    train, test, stickers = pictures(args.data, args.side)
    localizer = Localizer("mini", recipe="fast", scales=SCALES, min_presence=0.0)
    groups, unplanted = np.array([own for _, own, _ in test]), embeddings(localizer, [image for image, *_ in test])
    clean, label = embeddings(localizer, [image for image, _ in train]), torch.tensor([number for _, number in train])
    names, first, flagged, false = [*GROUPS], 0, 0, 0
    for seed in range(args.first, args.first + 2 * args.seeds):
        rng, embedding = np.random.default_rng(seed), clean.clone()
        number, planted = int(rng.integers(len(names))), seed < args.first + args.seeds
        if planted:
            some = (label == number).nonzero().flatten().tolist()
            embedding[some] = embeddings(localizer, [plant(train[i][0], None, seed, stickers, rng) for i in some])
        kept = torch.from_numpy(rng.permutation(len(label))[: int(0.9 * len(label))])
        head = trained(embedding[kept], label[kept])
        with TemporaryDirectory() as folder:
            for place, (image, own, box) in enumerate(test):
                picture = plant(image, box, seed, stickers, rng) if planted and own == number else image
                picture.save(Path(folder, f"{place:03}.png"))
            audited = audit(folder, dict(zip(names, head.numpy(), strict=True)), seed=seed, scales=SCALES)
        leans = [of.name for of in sorted(audited.names, key=lambda of: -of.lean)]
        found = [of.name for of in audited.names if of.flagged]
        if planted:
            rank = leans.index(names[number]) + 1
            first, flagged = first + (rank <= 3), flagged + (names[number] in found)
            others = embeddings(localizer, [plant(image, box, seed, stickers, rng) for image, _, box in test])
            learnt = float(((others - unplanted) @ head[number])[groups != number].mean())
            style = "border" if seed % 2 else "sticker"
            print(f"{seed} {names[number]}, {style}, learnt {learnt:.3f}: place {rank}, flagged {found}")
        else:
            false += bool(found)
            print(f"{seed} none planted: flagged {found}")
        for one in audited.names if args.verbose else ():
            numbers = f"{one.lean} from {one.low}, others {one.others}"
            print(f"    {one.name}, {one.pictures}: {numbers}; {one.surroundings}", flush=True)
    print(f"of {args.seeds} planted: {first} among the first three names, {flagged} flagged")
    print(f"of {args.seeds} clean: {false} with a flagged name")


if __name__ == "__main__":
    main()
