"""Adds everyday names to the text tower of `mini` and `mini-vit`: person, sky, hand … and sharper ones of chair, wall …

    python tools/build_everyday.py            # about 4 minutes, one thread; the same bytes each time
    python tools/build_everyday.py --folds /tmp/folds   # also weights learnt without each fifth of the pictures

ImageNet's classes lack people, what the world is made of (sky, grass, wall) and parts (hand, wing). Each such name gets
an *anchor*: a direction in the joint space that tells places which show the thing from other places (linear
discriminant analysis of `mini`'s last features). Places come from

* tools/everyday_regions.txt, cells read off the pictures of `imagenet_one_per_class`;
* the polygons of `coco_tune`.

A name that the tower reads by its relatives ("wall" by stone wall and so on) keeps that row, and the learnt direction
is added to it. **No name of ImageNet's own is touched**: words of the 1,000 classes never get an anchor. Each candidate
is measured in five folds of pictures, and is taken only if it holds there (`holds`). Words that were unknown and that
WordNet files below an anchor's meaning ("astronaut" below person) are read as that anchor.

Writes everyday.safetensors (the rows) and everyday.txt (the words) beside the other weights of `mini`, and the section
"everyday names" of docs/studies/mini.md. Needs WordNet 3.0, as tools/build_mini.py does.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from build_mini import OUT, ROOT, WordNet, stored_rows
from marked import put
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cliploc.find import prompts
from cliploc.towers._mini_text import MiniTextTower, normalise
from cliploc.towers.mini import Mini

REGIONS = ROOT / "tools/everyday_regions.txt"
STUDY = ROOT / "docs/studies/mini.md"
CELLS = 10  # of the regions' grid; the last stage has as many places at 320 pixels
FOLDS = 5
INSIDE, OUTSIDE = 0.5, 0.05  # covered shares from which a place counts as inside, and below which as outside
FINE_WEIGHT = 0.25  # of a place of COCO's pictures at 640 pixels, which have four times as many
RIDGE = 3.0  # × the mean variance of the channels
NEAR = 0.3  # of what a name is told from: the places around it in its own pictures; the rest: all places
VIEWS = 0.5  # weight of telling windows that show the thing from other windows, beside places from places
LEAST = 8  # pictures from which on a name is tried
FEW = 10  # with so many pictures, the learnt direction weighs as much as the row that a name has already
LEARNT = 2.0  # the learnt direction's weight with very many pictures
MIN_AUC, MIN_PLACES = 0.75, 0.65  # of a name that was unknown

# Rows to which a learnt direction is added, of names that were unknown: what they are a kind of, or look like.
LIKE = {"man": "person", "woman": "person", "child": "person", "donut": "bagel"}
FEWER = {"donut": 5}  # pictures that are enough: 29 donuts are in them
# Other words for an anchor, and its meaning in WordNet (word and number of the sense) below which unknown words lie.
WORDS = {
    "person": "people human crowd",
    "child": "boy girl kid baby infant toddler children",
    "leaves": "leaf foliage",
    "potted plant": "plant",
    "rock": "stone boulder",
    "sea": "ocean",
    "water": "pond",
    "trousers": "pants",
    "text": "writing letters lettering",
    "ground": "soil dirt",
    "road": "roadway",
    "forest": "woods woodland",
    "donut": "doughnut",
    "table": "tabletop",
    "feather": "feathers plumage",
    "wine glass": "wineglass",
}
KINDS = {
    "person": ("person", 1),
    "man": ("man", 1),
    "woman": ("woman", 1),
    "child": ("child", 1),
    "tree": ("tree", 1),
    "grass": ("grass", 1),
    "flower": ("flower", 1),
    "cloud": ("cloud", 2),
    "food": ("food", 2),
    "meat": ("meat", 1),
    "vegetable": ("vegetable", 1),
    "fruit": ("fruit", 1),
    "building": ("building", 1),
    "road": ("road", 1),
    "water": ("body of water", 1),
}
# People that WordNet's senses say nothing of, or take for what they use (a worker is an ant, a gardener a lawn mower),
# words by which nobody means what WordNet files them as, and slurs that its definitions do not call so.
ALSO = {
    "person": "adult|baker|barber|builder|butcher|carpenter|climber|clown|commuter|construction worker|driver|farmer|"
    "gardener|guard|hunter|mechanic|passenger|pedestrian|photographer|security guard|worker",
    "woman": "mum|queen",
}
NOT_KINDS = {"chess", "stroller", "abo", "blackamoor", "cripple", "doxy", "kaffir", "negress", "polack", "squaw"}
PEOPLE = {981, 982, 983}  # ImageNet's classes that are people: ball player, groom, scuba diver
INSULT = re.compile(  # in WordNet's definition of a word that is left out
    "offensive|slur|derogat|disparag|contempt|vulgar|obscen|prostitut|insult|abuse|stupid|foolish|incompeten|subnormal|"
    "not very bright|low opinion|thoroughly disliked|sexual|promiscu|adulter|copulat|urinates|defecates|dirty untidy|"
    "white parent"
)
# Coarse maps cannot show them, or the sheets have them of animals only, so the plain word would promise too much.
LEFT_OUT = {"paper", "fur"}


@dataclass(frozen=True)
class Pictures:
    """Pictures with where things are.

    Attributes:
        places: the tower's readings minus μ, `[n, h, h, 1280]` float16.
        shown: of each picture, name → the covered share of each place `[h, h]`.
        names: which names are marked wherever they occur.
        views: unit-norm means of the whole and of windows `[n, V, 1280]`.
        weight: of a place.
    """

    places: Tensor
    shown: list[dict[str, np.ndarray]]
    names: frozenset[str]
    views: Tensor
    weight: float

    def folds(self) -> Tensor:
        """`[n]`, the fold of each picture."""
        return torch.arange(len(self.shown)) % FOLDS


# -------------------------------------------------------------------------------------------------------------- sources


def read_regions(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Of each picture of the file: name → `[10, 10]` float32, 1 where it is."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        picture, rest = line.split(": ")
        cells: dict[str, np.ndarray] = {}
        for part in rest.split("; ") if rest != "-" else []:
            name, rectangles = part.split(" ", 1)
            grid = cells.setdefault(name, np.zeros((CELLS, CELLS), np.float32))
            for top, bottom, left, right in re.findall(r"r(\d)(?:-(\d))? c(\d)(?:-(\d))?", rectangles):
                grid[int(top) : int(bottom or top) + 1, int(left) : int(right or left) + 1] = 1
        people = [cells[name] for name in ("person", "man", "woman", "child", "baby") if name in cells]
        if people:
            cells["person"] = np.maximum.reduce(people)
        found[picture] = cells
    return found


def coco_shares(document: Mapping[str, list[dict[str, object]]], side: int) -> list[dict[str, np.ndarray]]:
    """Of each picture of COCO's annotations: name → the share of each place that its polygons cover `[side, side]`."""
    names = {one["id"]: str(one["name"]) for one in document["categories"]}
    fine, found = side * 8, []
    for picture in document["images"]:
        scale = np.array([fine / float(str(picture["width"])), fine / float(str(picture["height"]))])
        cells: dict[str, np.ndarray] = {}
        for one in document["annotations"]:
            if one["image_id"] != picture["id"]:
                continue
            mask = Image.new("L", (fine, fine))
            draw = ImageDraw.Draw(mask)
            polygons = one["segmentation"]
            if isinstance(polygons, list):
                for polygon in polygons:
                    draw.polygon((np.array(polygon).reshape(-1, 2) * scale).flatten().tolist(), fill=255)
            else:  # a crowd, run-length coded: its box says enough
                x, y, width, height = np.array(one["bbox"])
                corners = np.array([[x, y], [x + width, y + height]]) * scale
                draw.rectangle(corners.flatten().tolist(), fill=255)
            share = np.asarray(mask, np.float32).reshape(side, 8, side, 8).mean(axis=(1, 3)) / 255
            name = names[one["category_id"]]
            cells[name] = np.maximum(cells.get(name, 0), share)
        found.append(cells)
    return found


@torch.inference_mode()
def readings(model: Mini, paths: Sequence[Path], side: int) -> Tensor:
    """The tower's readings of every place of pictures stretched to a square: `[n, h, h, 1280]` float16."""
    parts = []
    for start in range(0, len(paths), 8):
        images = [
            Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            for path in paths[start : start + 8]
        ]
        features = model.normalize(torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]) / 255)
        for stage in model.stages:
            features = stage(features)
        parts.append(model.read_locations(features).permute(0, 2, 3, 1).half())
    return torch.cat(parts)


def pooled(grids: Tensor) -> Tensor:
    """Means of the whole and of windows of 1/1.5 and 1/2 of the side: `[n, C, h, h]` → `[n, V, C]`."""
    side = grids.shape[-1]
    parts = [grids.mean(dim=(2, 3))[..., None]]
    for size, stride in ((round(side / 1.5), max(1, side // 6)), (side // 2, side // 4)):
        parts.append(F.avg_pool2d(grids, size, stride=stride).flatten(2))
    return torch.cat(parts, dim=2).transpose(1, 2)


def with_views(
    places: Tensor, shown: list[dict[str, np.ndarray]], names: Iterable[str], weight: float = 1.0
) -> Pictures:
    """Pictures of these readings `[n, h, h, 1280]`."""
    means = [F.normalize(pooled(one.float().permute(2, 0, 1)[None]), dim=-1)[0] for one in places]
    return Pictures(places, shown, frozenset(names), torch.stack(means), weight)


# ------------------------------------------------------------------------------------------------------------- learning


@dataclass(frozen=True)
class Example:
    """What one picture says of one name it shows: means of places inside and outside `[1280]`, and of its views."""

    fold: int
    inside: Tensor
    outside: Tensor
    views: Tensor  # mean of the views, each by the share of it that shows the thing


class Learner:
    """Learns rows from pictures, of all folds or without one of them."""

    def __init__(self, sets: Sequence[Pictures]) -> None:
        size = sets[0].places.shape[-1]
        self._gram = torch.zeros(FOLDS, size, size, dtype=torch.float64)
        self._sum, self._count = torch.zeros(FOLDS, size, dtype=torch.float64), torch.zeros(FOLDS, dtype=torch.float64)
        self._view_gram = torch.zeros(FOLDS, size, size, dtype=torch.float64)
        self._view_sum = torch.zeros(FOLDS, size, dtype=torch.float64)
        self._view_count = torch.zeros(FOLDS, dtype=torch.float64)
        self.examples: dict[str, list[Example]] = {}
        for one in sets:
            for fold in range(FOLDS):
                of_fold = one.folds() == fold
                rows = one.places[of_fold].flatten(0, 2).float()  # [n · h · h, 1280]
                self._gram[fold] += one.weight * (rows.T @ rows).double()
                self._sum[fold] += one.weight * rows.double().sum(dim=0)
                self._count[fold] += one.weight * len(rows)
                views = one.views[of_fold].flatten(0, 1)  # [n · V, 1280]
                self._view_gram[fold] += (views.T @ views).double()
                self._view_sum[fold] += views.double().sum(dim=0)
                self._view_count[fold] += len(views)
            for number, cells in enumerate(one.shown):
                for name, grid in cells.items():
                    if name in one.names and (example := _example(one, number, grid)) is not None:
                        self.examples.setdefault(name, []).append(example)

    def rows(self, names: Sequence[str], without: int | None = None) -> Tensor:
        """`[names, 1280]`, unit norm; learnt without the pictures of a fold."""
        kept = [fold for fold in range(FOLDS) if fold != without]
        mean, of_places = _moments(self._gram[kept], self._sum[kept], self._count[kept])
        mean_view, of_views = _moments(self._view_gram[kept], self._view_sum[kept], self._view_count[kept])
        covariance = (of_places + of_views) / 2 + RIDGE * torch.eye(len(mean), dtype=torch.float64)
        wanted = []
        for name in names:
            known = [one for one in self.examples[name] if one.fold != without]
            inside, outside, views = (
                torch.stack([getattr(one, part) for one in known]).double().mean(dim=0)
                for part in ("inside", "outside", "views")
            )
            places = F.normalize(inside - NEAR * outside - (1 - NEAR) * mean, dim=0)
            wanted.append(places + VIEWS * F.normalize(views - mean_view, dim=0))
        solved = torch.linalg.solve(covariance, torch.stack(wanted).T).T  # [names, 1280]
        return F.normalize(solved, dim=1).float()


def _moments(gram: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance, whose mean variance is 1, of sums over some folds `[f, D, D]`, `[f, D]` and `[f]`."""
    mean = total.sum(dim=0) / count.sum()
    covariance = gram.sum(dim=0) / count.sum() - torch.outer(mean, mean)
    return mean, covariance / covariance.diagonal().mean()


def _example(pictures: Pictures, number: int, grid: np.ndarray) -> Example | None:
    """What a picture says of a name with these covered shares `[h, h]`; None where too little of it is there."""
    inside = inside_of(grid)
    if not inside.any():
        return None
    places = pictures.places[number].flatten(0, 1).float()  # [h · h, 1280]
    outside = torch.from_numpy(grid.flatten() < OUTSIDE)
    share = pooled(torch.from_numpy(grid)[None, None])[0]  # [V, 1]
    views = (pictures.views[number] * share).sum(dim=0) / share.sum()
    around = places[outside] if outside.any() else places
    return Example(number % FOLDS, places[torch.from_numpy(inside)].mean(dim=0), around.mean(dim=0), views)


def inside_of(grid: np.ndarray) -> np.ndarray:
    """Which places show a thing, `[h · h]`: those half covered; of a small thing, those that it covers most."""
    shares = grid.flatten()
    inside: np.ndarray = shares >= INSIDE
    return inside if inside.any() else shares >= max(INSIDE / 2, float(shares.max()))


def mixed(learnt: Tensor, old: Tensor | None, pictures: int) -> Tensor:
    """The row of a name `[1280]`: the learnt one added to the one it has, by how many pictures it was learnt from."""
    if old is None:
        return learnt
    return F.normalize(old + LEARNT * pictures / (pictures + FEW) * learnt, dim=0)


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Measured:
    """How a row holds in pictures that it was not learnt from.

    Attributes:
        presence: AUC of the best view's cosine: pictures with the thing against those without.
        places: mean AUC of places that show the thing against the others of the same picture.
        hottest: share of the pictures with the thing whose hottest place shows it.
        area: mean share of these pictures that the thing covers, which is what chance would hit.
    """

    presence: float
    places: float
    hottest: float
    area: float

    @property
    def together(self) -> float:
        return self.presence + self.places + self.hottest


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """How often a positive value is higher than a negative one."""
    order = np.argsort(np.argsort(np.concatenate([positive, negative]), kind="stable"), kind="stable") + 1
    count = len(positive)
    return float((order[:count].sum() - count * (count + 1) / 2) / (count * len(negative)))


def measure(name: str, rows: Tensor, sets: Sequence[Pictures]) -> Measured:
    """Of one name by the rows of the folds `[5, 1280]`, each asked of its own pictures; mean of the sets that mark it.

    Of the two sizes of `coco_tune`'s pictures, the larger one is asked.
    """
    results = []
    for one in [sets[0], sets[-1]]:
        there = np.array([name in cells for cells in one.shown])
        if name not in one.names or there.sum() < 2:
            continue
        own = rows[one.folds()]  # [n, 1280]
        best = torch.einsum("nvd,nd->nv", one.views, own).amax(dim=1).numpy()  # [n]
        places, hottest, area = [], [], []
        for number in np.flatnonzero(there):
            inside = inside_of(one.shown[number][name])
            heat = (one.places[number].flatten(0, 1).float() @ own[number]).numpy()  # [h · h]
            hottest.append(float(inside[heat.argmax()]))
            area.append(float(inside.mean()))
            if inside.any() and not inside.all():
                places.append(auc(heat[inside], heat[~inside]))
        results.append([auc(best[there], best[~there]), *(float(np.mean(part)) for part in (places, hottest, area))])
    return Measured(*np.mean(results, axis=0).tolist())


def holds(learnt: Measured, old: Measured | None) -> bool:
    """Whether a name gets its anchor: a new one by itself, one that was known if it is better than before."""
    if old is not None:
        return learnt.together > old.together
    return learnt.presence >= MIN_AUC and learnt.places >= MIN_PLACES and learnt.hottest > learnt.area


# ---------------------------------------------------------------------------------------------------------------- words


def words_of(
    anchors: Sequence[str], tower: MiniTextTower, wordnet: WordNet, own: frozenset[str]
) -> list[tuple[list[str], list[str]]]:
    """The words that mean each anchor, its name first, and those that mean a kind of it; each belongs to one anchor.

    Args:
        anchors: their names.
        tower: knows which words were unknown.
        wordnet: knows what lies below what.
        own: words of ImageNet's classes, which stay theirs.
    """
    synonyms = {entry[0]: entry[1:] for entry in prompts.packaged_entries("coco.txt")}
    taken: dict[str, int] = {normalise(name): number for number, name in enumerate(anchors)}
    for number, name in enumerate(anchors):
        other = WORDS.get(name, "").split()
        if name != "person":  # COCO's list has man, woman and child for it, which have anchors of their own
            other += synonyms.get(name, ())
        for word in map(normalise, other):
            if word not in own:
                taken.setdefault(word, number)
    same = frozenset(taken)
    for name in ALSO.keys() & set(anchors):
        taken |= dict.fromkeys(ALSO[name].split("|"), anchors.index(name))
    classes = F.normalize(tower.class_rows, dim=1)  # [1000, 1280]
    meaning = {
        wordnet.senses[word][sense - 1]: anchors.index(name) for name, (word, sense) in KINDS.items() if name in anchors
    }
    adjectives = {line.split(" ", 1)[0] for line in wordnet.lines("index.adj")}  # an Egyptian cat is no Egyptian
    for word, senses in sorted(wordnet.senses.items()):
        text = normalise(word)
        if word in adjectives or " " in text or not text or text in taken or text in own | NOT_KINDS:
            continue
        if wordnet.synsets[senses[0]].instance or INSULT.search(wordnet.synsets[senses[0]].definition):
            continue
        above = [meaning[offset] for offset in wordnet.ancestors[senses[0]] if offset in meaning]
        # Other known words keep what they resemble, but those that resemble one of three people: a wife is no groom.
        if above and (tower.unknown_reason(text) is not None or int((classes @ tower([text])[0]).argmax()) in PEOPLE):
            taken[text] = above[0]
    for plural, singular in wordnet.plurals:
        if normalise(singular) in taken and normalise(plural) not in own and " " not in plural:
            taken.setdefault(normalise(plural), taken[normalise(singular)])
            same |= {normalise(plural)} if normalise(singular) in same else set()
    listed: list[tuple[list[str], list[str]]] = [([], []) for _ in anchors]
    for word, number in taken.items():
        listed[number][word not in same].append(word)
    return listed


# ------------------------------------------------------------------------------------------------------------ the whole


def save_rows(rows: Tensor, folder: Path) -> None:
    """Writes the anchors' rows `[E, 1280]` beside the other weights in a folder."""
    stored = stored_rows(rows)
    save_file({"rows": stored["inner_rows"], "scale": stored["inner_scale"]}, folder / "everyday.safetensors")


def moved_names(plain: MiniTextTower, tower: MiniTextTower, names: Sequence[str]) -> list[str]:
    """Names of ImageNet's classes that the anchors would move, normalised."""
    known = [name for name in names if plain.unknown_reason(name) is None]
    apart = 1 - (plain(known) * tower(known)).sum(dim=1)
    return sorted({normalise(name) for name, distance in zip(known, apart.tolist(), strict=True) if distance > 1e-5})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folds", type=Path, help="weights learnt without each fold, for tools/everyday_lifts.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Mini.bundled()
    tower = MiniTextTower.load(OUT, everyday=False)
    wordnet = WordNet(options.wordnet)

    one_each = sorted((options.data / "imagenet_one_per_class").glob("n*.jpg"))
    regions = read_regions(REGIONS)
    in_regions = {name for cells in regions.values() for name in cells} - LEFT_OUT
    root = options.data / "coco_tune"
    document = json.loads((root / "annotations/instances_val2017.json").read_text())
    photographs = [root / "val2017" / one["file_name"] for one in document["images"]]
    of_coco = [str(one["name"]) for one in document["categories"]]
    sets = [
        with_views(readings(model, one_each, 320), [regions[path.stem] for path in one_each], in_regions),
        with_views(readings(model, photographs, 320), coco_shares(document, 10), of_coco),
        with_views(readings(model, photographs, 640), coco_shares(document, 20), of_coco, FINE_WEIGHT),
    ]

    with (options.data / "ilsvrc_val_dev/synsets.csv").open(newline="") as file:
        classes = [word for row in csv.DictReader(file) for word in row["synset_words"].split(",")]
    classes += [word for one in prompts.imagenet_classes() for word in (one.name, *one.synonyms)]
    own = frozenset(map(normalise, classes))
    learner = Learner(sets)
    pictures = {
        name: max(sum(name in cells for cells in one.shown) for one in sets if name in one.names)
        for name in sorted(learner.examples)
    }
    tried = [name for name, count in pictures.items() if count >= FEWER.get(name, LEAST) and normalise(name) not in own]
    folds = torch.stack([learner.rows(tried, fold) for fold in range(FOLDS)])  # [5, tried, 1280]
    learnt = learner.rows(tried)
    person = (learnt[tried.index("person")], folds[:, tried.index("person")])
    chosen: list[tuple[str, Tensor]] = []
    in_folds: list[Tensor] = []  # of each chosen name [5, 1280]
    table = []
    for number, name in enumerate(tried):
        known = tower.unknown_reason(name) is None
        like = LIKE.get(name)
        base: tuple[Tensor, Tensor] | None = None  # the row that it has, and in each fold
        if like == "person":
            base = person
        elif known or like:
            row = tower([f"a photo of a {like or name}."])[0]
            base = (row, row.expand(FOLDS, -1))
        count = pictures[name]
        cross = torch.stack(
            [mixed(folds[fold, number], None if base is None else base[1][fold], count) for fold in range(FOLDS)]
        )
        old = measure(name, base[1], sets) if known and base is not None else None
        new = measure(name, cross, sets)
        taken = holds(new, old)
        table.append((name, count, old, new, taken))
        if taken:
            in_folds.append(cross)
            chosen.append((name, mixed(learnt[number], None if base is None else base[0], count)))

    names = [name for name, _ in chosen]
    save_rows(torch.stack([row for _, row in chosen]), options.out)
    words = words_of(names, tower, wordnet, own)
    lines = "".join(f"{'|'.join(same)}||{'|'.join(kinds)}\n" for same, kinds in words)
    (options.out / "everyday.txt").write_text(lines + "\n", encoding="utf-8")
    moved = moved_names(tower, MiniTextTower.load(options.out), sorted(set(classes)))
    (options.out / "everyday.txt").write_text(f"{lines}{'|'.join(moved)}\n", encoding="utf-8")
    for name in ("everyday.safetensors", "everyday.txt"):
        path = options.out / name
        path.chmod(0o644)
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    for fold, of_fold in enumerate(torch.stack(in_folds, dim=1)) if options.folds else ():
        save_rows(of_fold, shutil.copytree(options.out, options.folds / str(fold), dirs_exist_ok=True))
    text = tables(table, len(chosen), sum(len(same) + len(kinds) for same, kinds in words))
    put(STUDY, "everyday names", text)
    print(text)


def tables(table: Sequence[tuple[str, int, Measured | None, Measured, bool]], anchors: int, words: int) -> str:
    """Of docs/studies/mini.md: names that are new, that were known, and that were left as they were."""
    fresh = [
        f"| {name} | {count} | {new.presence:.2f} | {new.places:.2f} | {new.hottest:.2f} | {new.area:.2f} |"
        for name, count, old, new, taken in table
        if taken and old is None
    ]
    known = [(name, old, new) for name, _, old, new, taken in table if taken and old is not None]

    def mean(number: str) -> str:
        _, olds, news = zip(*known, strict=True)
        before, after = (sum(getattr(one, number) for one in part) / len(known) for part in (olds, news))
        return f"{before:.2f} → {after:.2f}"

    return f"""
{anchors} anchors with {words:,} words. New names:

| name | pictures | presence | places | hottest | area |
|---|---|---|---|---|---|
{chr(10).join(fresh)}

Known before by their relatives, and sharper now, the mean of {len(known)} names: presence {mean("presence")},
places {mean("places")}, hottest {mean("hottest")}. They are {", ".join(name for name, *_ in known)}.

Left as they were, because the folds say no better: {", ".join(one[0] for one in table if not one[4]) or "none"}."""


if __name__ == "__main__":
    main()
