"""Which labels are wrong? A tower reads boxes; the rest are chances of features alone. N boxes, P names, D features.

Both opinions of a name are one model: a logistic regression of the set's labels on region features that starts at what
the text says. With few boxes it stays there; a name without text starts at nothing and is learnt from its boxes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.cluster.hierarchy import ward
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cliploc.find.running import torch_modes
from cliploc.find.second_look import mean_in
from cliploc.images.geometry import Frame, iou_matrix
from cliploc.towers.tower import Backbone, Needs
from cliploc.values import BoolArray, FloatArray, Floats, IntArray

OF_PICTURE, OF_BOX = 1.43, 0.72  # sides of what is read, in the tower's own inputs
LARGE = 0.3  # of the picture's side: from here on the picture's pass shows a box as large as one of its own would
AROUND = 1.5  # a small box is seen in a square of so many of its longer sides
STRIP = 0.25  # of a box's side: along each edge, a strip inside and one outside
CORE = 1 / 3  # from each edge
BATCH = 16  # boxes at once
TRIES = 200  # to move a box
PARTS = 12  # into which a picture is divided; these and the steps of their merging are its regions
DISTANCE = 2.0  # of places a picture's side apart, where that of unlike features is about 1.4
LEAST_SIDE = 4.0  # pixels of what a box is seen in
UNIT = Frame.fit("squash", (1, 1), (1, 1))  # boxes in 0–1


class Reading(NamedTuple):
    """What was read in n boxes of a picture, m moved copies of them, and k regions; D and E numbers of each."""

    features: npt.NDArray[np.float16]  # [n, D]
    edges: FloatArray  # [n, E]
    moved: FloatArray  # [m, E] edges of the copies
    owners: IntArray  # [m] which box each copy is of
    regions: FloatArray  # [k, 4]
    of_regions: npt.NDArray[np.float16]  # [k, D / 2]: in the picture's pass


def read_picture(
    backbone: Backbone, image: Image.Image, xyxy: Floats, copied: Sequence[int], missing: bool = True
) -> Reading:
    """Reads boxes, moved copies of some of them, and the regions in which a label may be missing."""
    rng = np.random.default_rng(0)
    copies = [jittered(rng, xyxy[i], image.size) for i in copied]
    owners = np.repeat(np.array(copied, np.int64), [len(copy) for copy in copies])
    whole, n = seen(backbone, image, [(0, 0, *image.size)], OF_PICTURE), 1 + len(xyxy)
    every = np.concatenate([[(0, 0, *image.size)], xyxy, *copies])  # the picture, so that there is one
    features, edges = read_boxes(backbone, image, every, whole)
    regions = regions_of(whole[0][0]) if missing else np.zeros((0, 4))
    of_regions = normalize(mean_in(whole[0][0], UNIT, regions), dim=1).numpy().astype(np.float16)
    regions = (regions * (image.size * 2)).astype(np.float32)
    return Reading(features[1:n].astype(np.float16), edges[1:n], edges[n:], owners, regions, of_regions)


def read_boxes(
    backbone: Backbone, image: Image.Image, xyxy: Floats, whole: tuple[Tensor, Tensor]
) -> tuple[FloatArray, FloatArray]:
    """`[n, D]` of what is in boxes, and their edges `[n, E]`; small ones have passes of their own."""
    squares = np.tile([0.0, 0.0, *image.size], (len(xyxy), 1))
    within = xyxy / squares[:, [2, 3, 2, 3]]
    sides = within[:, 2:] - within[:, :2]
    is_small = sides.max(axis=1) < LARGE
    small, large = np.flatnonzero(is_small), np.flatnonzero(~is_small)
    for i in small:
        squares[i] = square_around(xyxy[i], image.size, LEAST_SIDE, AROUND)
    parts = (small[start : start + BATCH] for start in range(0, len(small), BATCH))
    own_passes = ((some, seen(backbone, image, squares[some].tolist(), OF_BOX)) for some in parts)
    inside, edges = torch.zeros(len(xyxy), whole[0].shape[1]), dict[int, Floats]()
    for some, of_pass in chain([(large, whole)], own_passes):
        for i, *maps in zip(some, *(stage.expand(len(some), -1, -1, -1) for stage in of_pass), strict=True):
            start = squares[i, :2]
            box = (xyxy[i] - np.tile(start, 2)) / np.tile(squares[i, 2:] - start, 2)
            inside[i] = mean_in(maps[0], UNIT, box[None])[0]
            area = np.log(max(sides[i].prod(), 1e-9))
            edges[i] = np.concatenate([[area], *(edge_features(stage, box) for stage in maps)])
    of_picture = mean_in(whole[0][0], UNIT, within)
    features = torch.cat([normalize(inside, dim=1), normalize(of_picture, dim=1)], dim=1)
    return features.numpy(), np.array([edges[i] for i in range(len(xyxy))], np.float32)


def seen(
    backbone: Backbone, image: Image.Image, parts: Iterable[Sequence[float]], scale: float
) -> tuple[Tensor, Tensor]:
    """One pass of parts of a picture: places in the joint space `[B, D, h, w]`, and of the middle stage."""
    height, width = (max(1, round(side * scale / backbone.stride)) * backbone.stride for side in backbone.input_hw)
    resized = (image.resize((width, height), Image.Resampling.BICUBIC, (x0, y0, x1, y1)) for x0, y0, x1, y1 in parts)
    pixels = torch.from_numpy(np.stack([*map(np.asarray, resized)])).permute(0, 3, 1, 2)
    stage = backbone.middle_stage
    with torch_modes(backbone.device):
        normal = backbone.normalize(pixels.to(backbone.device).float().div_(255))
        trace = backbone.trace(normal, Needs(features=(-1, stage), dense=int(backbone.kind == "vit")))
        return backbone.dense(trace).float().cpu(), trace.features[stage].float().cpu()


def regions_of(places: Tensor) -> Floats:
    """Boxes `[k, 4]` in 0–1 around parts of a picture `[D, h, w]` that look alike, merged by Ward's criterion (1963)."""
    height, width = places.shape[1:]
    y, x = np.indices((height, width)).reshape(2, -1)
    alike = normalize(places, dim=0).flatten(1).T.double().numpy()
    tree = ward(np.column_stack([alike, DISTANCE * y / height, DISTANCE * x / width]))[:, :2].astype(int)
    starts, ends = [*np.column_stack([x, y])], [*np.column_stack([x + 1, y + 1])]
    for one, other in tree:
        starts.append(np.minimum(starts[one], starts[other]))
        ends.append(np.maximum(ends[one], ends[other]))
    kept = tree[1 - PARTS :].ravel()
    return np.unique(np.hstack([starts, ends])[kept], axis=0) / np.array([width, height] * 2)


def square_around(box: Floats, size_wh: tuple[int, int], least: float, around: float) -> Floats:
    """The square `[4]` about a box, moved into the picture; less where that is narrower."""
    size = np.minimum(max(least, around * float(np.max(box[2:] - box[:2]))), size_wh)
    start = np.clip((box[:2] + box[2:] - size) / 2, 0, np.array(size_wh) - size)
    return np.concatenate([start, start + size])


def edge_features(places: Tensor, box: Floats) -> Floats:
    """How alike places `[C, h, w]` are to a box's inside (0–1) rather than to its outside: means, sorted by edges."""
    flat = normalize(places, dim=0)
    inside, size = mean_in(flat, UNIT, box[None])[0], box[2:] - box[:2]
    share = min(float(np.prod(size)), 1.0)
    outside = flat.mean(dim=(1, 2)) - share * inside  # of the outside's mean only the direction counts
    likeness = torch.einsum("c,chw->hw", inside - outside / max(1 - share, 0.05), flat)[None]
    (x0, y0, x1, y1), (a, b) = box, STRIP * size
    outer = np.array([(x0 - a, y0, x0, y1), (x1, y0, x1 + a, y1), (x0, y0 - b, x1, y0), (x0, y1, x1, y1 + b)])
    inner = np.array([(x0, y0, x0 + a, y1), (x1 - a, y0, x1, y1), (x0, y0, x1, y0 + b), (x0, y1 - b, x1, y1)])
    core = box + CORE * np.concatenate([size, -size])
    read = mean_in(likeness, UNIT, np.vstack([box, core, outer, inner]))[:, 0].numpy()
    of_inner, exists = read[6:], (np.minimum(outer[:, 2:], 1) - np.maximum(outer[:, :2], 0) > 1e-3).all(axis=1)
    # An edge of the picture gets the mean of the others; a box that is the picture has none.
    of_outer = (of_inner - read[2:6], read[2:6])
    steps, around = (np.where(exists, each, each[exists].mean() if exists.any() else 0) for each in of_outer)
    return np.concatenate([read[:2], np.sort(steps), np.sort(around), np.sort(of_inner)])


def jittered(rng: np.random.Generator, box: Floats, size_wh: tuple[int, int]) -> Floats:
    """A badly placed copy of a box, IoU 0.15–0.5 with it: `[1, 4]`, or `[0, 4]` where none was found."""
    size = box[2:] - box[:2]
    centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.8, 0.8, (TRIES, 2)) * size
    half = size * np.exp(rng.uniform(-0.7, 0.7, (TRIES, 2))) / 2
    moved = np.hstack([np.maximum(centre - half, 0), np.minimum(centre + half, size_wh)])
    overlap, sides = iou_matrix(moved, box)[:, 0], moved[:, 2:] - moved[:, :2]
    return np.asarray(moved[(sides.min(axis=1) >= 2) & (overlap >= 0.15) & (overlap <= 0.5)][:1])


# -------------------------------------------------------------------------------------------------------------- chances
UNLABELLED = -1  # in the place of a given name
FOLDS = 5
COMPONENTS = 128  # of the region features
RIDGE = 40.0  # the higher, the longer the text alone speaks
PRIOR = 0.5  # power of the names' frequencies that the fit explains away; 1: none is favoured, 0: frequent ones win
TEXT_SCALE = 0.6  # of the tower's logit scale
STEPS = 40  # of the fit
SHARES = np.geomspace(0.001, 0.5, 40)  # of wrong names; all are as likely on a log scale, but for one error seen before
BESIDE = 0.02  # share of wrong names that are those of something else in the picture; of coco_tune
TEMPERATURES = np.exp(np.linspace(-1.2, 1.2, 41))
LEAST_PLACED = 60  # boxes from which placement can be learnt
PLACE_RIDGE = 100.0
MEANS = np.linspace(0.25, 4, 16)  # how far from the examples the others are, in the examples' deviations
WIDTHS = np.geomspace(0.5, 2, 9)
PLACED_RATE = 0.07  # of coco_tune: boxes that are right and look like wrong ones
LEAST_SHARE = 0.003
EXPLAINED = 0.1  # share of the smaller of two boxes of one name from which they may be of one thing
BACKGROUND = 0.3  # IoU with any label below which a region shows nothing, as far as the set says
JOINED = 0.5  # of the chance of a region, from which others of its name make the box larger


class Names(NamedTuple):
    """What the names of N boxes are judged to be."""

    chance: Floats  # [N] that the given one is wrong; NaN where there is nothing to tell it from, and of regions
    likelier: IntArray  # [N] the likeliest other name
    logits: Floats  # [N, P] of all names, fitted without the box's picture; -inf for those that no label has
    inputs: Floats  # [N, F] of the fit


class Missing(NamedTuple):
    """Where a label may be missing."""

    xyxy: tuple[float, float, float, float]
    name: int
    chance: float


def wrong_names(
    features: npt.NDArray[np.floating[Any]],  # [N, D] of the regions: two readings, each of unit length
    text: Floats,  # [P, D / 2] of the names; a row of NaN for one that the tower does not know
    sizes: Floats,  # [N, 2] width and height, as shares of the picture
    given: IntArray,  # [N] numbers of names; `UNLABELLED` for a region, which is read and not learnt from
    pictures: IntArray,  # [N] numbers of pictures
    scale: float,  # the tower's logit scale
) -> Names:
    """The chance that each given name is wrong, by what the text says and labels of other pictures add to it."""
    features = features.astype(np.float32)
    chance, logits = np.full(len(given), np.nan), np.full((len(given), len(text)), -np.inf)
    labelled = given != UNLABELLED
    used, label = np.unique(given[labelled], return_inverse=True)
    half = text.shape[1]
    cosines = (features[:, :half] + features[:, half:]) @ text[used].T.astype(np.float32) / 2
    known = np.isfinite(cosines)
    # Unknown names get a box's mean of the known ones, so that the text speaks neither for nor against them.
    mean = np.where(known, cosines, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    text = TEXT_SCALE * scale * np.where(known, cosines, mean[:, None])
    number = np.where(labelled, np.searchsorted(used, given), UNLABELLED)
    inputs = design(features, sizes, labelled)
    logits[:, used] = text + learnt(inputs, text, number, pictures, RIDGE, PRIOR)
    if len(used) > 1:
        _, picture = np.unique(pictures[labelled], return_inverse=True)
        there = np.zeros((picture.max() + 1, len(used)))  # labels of each name in each picture
        np.add.at(there, (picture, label), 1)
        elsewhere = (there > 0).sum(axis=0)[label] > 1  # the name is that of a label in another picture, too
        # A right name is drawn from softmax(logits / T), a wrong one from all others alike, or from the picture's.
        beside = np.where(there[picture, label] > 1, 1 / (there > 0).sum(axis=1)[picture], 0)
        wrong = (1 - BESIDE) / (len(used) - 1) + BESIDE * beside
        tempered = torch.from_numpy(logits[np.ix_(labelled, used)])
        right = ((tempered / t).softmax(dim=1).numpy()[np.arange(len(label)), label] for t in TEMPERATURES)
        posterior = of_second((one, (1 - one) * wrong) for one in right)
        chance[labelled] = np.where(known[:, label].any(axis=0) | elsewhere, posterior, np.nan)
    others = logits.copy()
    others[np.flatnonzero(labelled), given[labelled]] = -np.inf
    return Names(chance, others.argmax(axis=1), logits, inputs)


def design(features: npt.NDArray[np.float32], sizes: Floats, labelled: BoolArray) -> Floats:
    """Principal components of labelled boxes (Halko et al. 2011), size, shape and a constant: `[N, F]`."""
    every = torch.from_numpy(features - features[labelled].mean(axis=0))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        *_, axes = torch.pca_lowrank(every[labelled], min(COMPONENTS, labelled.sum(), features.shape[1]), niter=4)
    parts = (every @ axes).double().numpy()
    shape = np.log(np.maximum(sizes, 1e-4))
    shape = np.stack([shape.sum(axis=1), shape[:, 0] - shape[:, 1]], axis=1)
    shape = (shape - shape[labelled].mean(axis=0)) / (shape[labelled].std(axis=0) + 1e-6)
    return np.hstack([parts / np.sqrt(np.mean(parts[labelled] ** 2) + 1e-12), shape, np.ones((len(features), 1))])


def learnt(inputs: Floats, offset: Floats, given: IntArray, pictures: IntArray, ridge: float, prior: float) -> Floats:
    """What rows of other pictures add to logits `[N, P]`: each fold of pictures is read by a fit to the others."""
    unique, number = np.unique(pictures, return_inverse=True)
    added, fold = np.zeros_like(offset), (np.random.default_rng(0).permutation(len(unique)) % FOLDS)[number]
    for test in (fold == i for i in range(FOLDS)):
        train = ~test & (given != UNLABELLED)
        if test.any() and train.any():
            added[test] = inputs[test] @ fit_logistic(inputs[train], offset[train], given[train], ridge, prior)
    return added


def fit_logistic(inputs: Floats, offset: Floats, given: IntArray, ridge: float, prior: float) -> Floats:
    """Weights W `[F, P]` of softmax(offset + prior · log frequency + inputs · W), with a ridge."""
    count = np.bincount(given, minlength=offset.shape[1]) + 1.0
    x, start = torch.from_numpy(inputs), torch.from_numpy(offset + prior * np.log(count / count.sum()))
    y = torch.from_numpy(given)
    weights = torch.zeros(inputs.shape[1], offset.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        value = cross_entropy(start + x @ weights, y, reduction="sum") + ridge / 2 * weights.square().sum()
        (weights.grad,) = torch.autograd.grad(value, [weights])
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy()


def of_second(densities: Iterable[tuple[Floats, Floats]]) -> Floats:
    """The chance `[N]` of a mixture's second kind; pairs of densities `[N]`, and shares, count by their likelihood."""
    evidence, posteriors = [], []
    for first, second in densities:
        mixed = (1 - SHARES) * first[:, None] + SHARES * second[:, None]  # [N, shares]
        likely = np.log(mixed).sum(axis=0) + np.log(SHARES)
        weight = np.exp(likely - likely.max())
        evidence.append(likely.max() + np.log(weight.sum()))
        posteriors.append((1 / mixed) @ (SHARES * weight / weight.sum()) * second)
    weights = np.exp(np.array(evidence) - np.max(evidence))
    return np.asarray(weights @ np.array(posteriors) / weights.sum())


def wrong_places(edges: Floats, pictures: IntArray, planted: Floats, of_planted: IntArray) -> Floats:
    """The chance `[N]` that each box is badly placed, learnt from M moved copies; NaN where there are too few boxes."""
    if len(edges) < LEAST_PLACED or len(np.unique(pictures)) < FOLDS or not len(planted):
        return np.full(len(edges), np.nan)
    rows = np.vstack([edges, planted])
    rows = np.hstack([(rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6), np.ones((len(rows), 1))])
    moved = (np.arange(len(rows)) >= len(edges)).astype(np.int64)
    logits = learnt(rows, np.zeros((len(rows), 2)), moved, np.concatenate([pictures, of_planted]), PLACE_RIDGE, 1.0)
    scores = logits[:, 1] - logits[:, 0]  # the log of how much denser moved ones lie there
    return alike(scores[moved == 0], scores[moved == 1], PLACED_RATE)


def alike(scores: Floats, examples: Floats, rate: float) -> Floats:
    """The chance `[N]` that each is as the examples, which score higher; a share `rate` of all only looks so."""
    # Scores are bent so that the examples' are normal (0, 1); the others' are then taken as normal (−μ, σ).
    rank = (np.searchsorted(np.sort(examples), scores) + 0.5) / (len(examples) + 1)
    bent = torch.special.ndtri(torch.from_numpy(rank)).numpy()
    others = (np.exp(-(((bent + mean) / width) ** 2) / 2) / width for mean, width in product(MEANS, WIDTHS))
    as_examples = np.exp(-(bent**2) / 2)
    look = of_second((other, as_examples) for other in others)
    share = float(look.mean())
    return np.asarray(look * max(share - rate, LEAST_SHARE) / max(share, LEAST_SHARE))


def names_of_regions(
    of: Sequence[Reading],
    boxes: Sequence[Floats],
    given: Sequence[IntArray],
    sizes_wh: Floats,
    text: Floats,
    scale: float,
) -> Names:
    """As `wrong_names`, of all boxes of pictures; then of these again as regions are read, and of all regions."""
    features, *_, regions, of_regions = map(np.concatenate, zip(*of, strict=True))
    again = slice(None if len(regions) else 0)
    as_regions = np.tile(np.concatenate([features[again, features.shape[1] // 2 :], of_regions]), 2)
    xyxy = np.concatenate([*boxes, np.concatenate(boxes)[again], regions])
    counts, found = [len(each) for each in given], [len(each.regions) for each in of]
    own, others = (np.repeat(range(len(of)), each) for each in (counts, found))
    pictures = np.concatenate([own, own[again], others])
    names = np.concatenate([*given, np.full(len(as_regions), UNLABELLED)])
    sizes = (xyxy[:, 2:] - xyxy[:, :2]) / sizes_wh[pictures]
    return wrong_names(np.concatenate([features, as_regions]), text, sizes, names, pictures, scale)


def missing_labels(
    of: Sequence[Reading], boxes: Sequence[Floats], given: Sequence[IntArray], names: Names
) -> list[list[Missing]]:
    """Where a label is missing in each picture, the likeliest first: regions that show a thing no label explains.

    `names` are those of all boxes, of these again as regions are read, and of all regions.
    """
    counts = [len(each) for each in given]
    n = sum(counts)
    overlaps = [shared(each.regions, own) for each, own in zip(of, boxes, strict=True)]
    most = np.concatenate([iou.max(axis=1, initial=0) for _, iou in overlaps])
    pictures = np.repeat([*range(len(of))] * 2, counts + [len(each.regions) for each in of])
    if n < LEAST_PLACED or len(np.unique(pictures[:n])) < FOLDS or not len(most):
        return [[] for _ in of]
    kind = np.concatenate([np.ones(n, np.int64), np.where(most < BACKGROUND, 0, UNLABELLED)])  # a thing, or nothing
    logits = torch.from_numpy(names.logits[n:])
    shown = logits.logsumexp(dim=1).numpy()[:, None]
    inputs = np.hstack([names.inputs[n:], (shown - shown[:n].mean()) / (shown[:n].std() + 1e-6)])
    nothing, thing = learnt(inputs, np.zeros((len(inputs), 2)), kind, pictures, RIDGE, 0.0)[n:].T
    best, number = logits[n:].softmax(dim=1).max(dim=1)
    chance = best.numpy() / (1 + np.exp(nothing - thing)) * (1 - most)
    ends = np.cumsum([len(each.regions) for each in of])[:-1]
    rows = zip(of, given, overlaps, np.split(number.numpy(), ends), np.split(chance, ends), strict=True)
    return [[*joined(each.regions, *facts)] for each, labels, (share, _), called, sure in rows
            for facts in [(called, sure, (share > EXPLAINED) & (called[:, None] == labels))]]  # fmt: skip


def joined(regions: Floats, names: IntArray, chance: Floats, explained: BoolArray) -> Iterator[Missing]:
    """The likeliest of a picture's regions of one name that overlap, made larger by those nearly as likely."""
    near = (shared(regions, regions)[0] > EXPLAINED) & (names[:, None] == names)
    free = ~explained.any(axis=1)
    for i in np.argsort(-chance, kind="stable"):
        if free[i]:
            of_one = near[i] & free & (chance >= JOINED * chance[i])
            box = (*regions[of_one, :2].min(axis=0).tolist(), *regions[of_one, 2:].max(axis=0).tolist())
            yield Missing(box, int(names[i]), float(chance[i]))
            free &= ~near[of_one].any(axis=0)


def shared(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """What boxes `[n, 4]` share with others `[m, 4]`, as shares `[n, m]` of the smaller one and of both: IoU."""
    low, high = np.maximum(one[:, None, :2], other[:, :2]), np.minimum(one[:, None, 2:], other[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    a, b = ((xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) for xyxy in (one, other))
    return both / np.minimum(a[:, None], b), both / (a[:, None] + b - both)
