"""Which labels are wrong? A tower reads boxes; the rest are chances of features alone. N boxes, P names, D features.

Both opinions of a name are one model: a logistic regression of the set's labels on region features that starts at what
the text says. With few boxes it stays there; a name without text starts at nothing and is learnt from its boxes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from typing import Any, NamedTuple, TypeAlias

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
    regions: FloatArray  # [k, 4] in 0–1
    of_regions: npt.NDArray[np.float16]  # [k, D / 2]: in the picture's pass


def read_picture(backbone: Backbone, image: Image.Image, xyxy: Floats, copied: BoolArray) -> Reading:
    """Reads boxes, moved copies of some of them, and regions in which a label may be missing."""
    rng = np.random.default_rng(0)
    copies = [jittered(rng, box, image.size) for box in xyxy[copied]]
    every = np.concatenate([[(0, 0, *image.size)], xyxy, *copies])  # the picture, so that there is one
    whole, n = seen(backbone, image, every[:1], OF_PICTURE), 1 + len(xyxy)
    features, edges = read_boxes(backbone, image, every, whole)
    regions = regions_of(whole[0][0])
    of_regions = normalize(mean_in(whole[0][0], UNIT, regions), dim=1).numpy().astype(np.float16)
    return Reading(features[1:n].astype(np.float16), edges[1:n], edges[n:], regions, of_regions)


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
    boxes = (xyxy - np.tile(squares[:, :2], 2)) / np.tile(squares[:, 2:] - squares[:, :2], 2)
    parts = (small[start : start + BATCH] for start in range(0, len(small), BATCH))
    own_passes = ((some, seen(backbone, image, squares[some], OF_BOX)) for some in parts)
    inside, edges = torch.zeros(len(xyxy), whole[0].shape[1]), dict[int, Floats]()
    for some, of_pass in chain([(large, whole)], own_passes):
        for i, *maps in zip(some, *(stage.expand(len(some), -1, -1, -1) for stage in of_pass), strict=True):
            inside[i] = mean_in(maps[0], UNIT, boxes[i : i + 1])[0]
            area = np.log(max(sides[i].prod(), 1e-9))
            edges[i] = np.concatenate([[area], *(edge_features(stage, boxes[i]) for stage in maps)])
    features = torch.cat([normalize(inside, dim=1), normalize(mean_in(whole[0][0], UNIT, within), dim=1)], dim=1)
    return features.numpy(), np.array([edges[i] for i in range(len(xyxy))], np.float32)


def seen(backbone: Backbone, image: Image.Image, parts: Floats, scale: float) -> tuple[Tensor, Tensor]:
    """One pass of parts `[B, 4]` of a picture: places in the joint space `[B, D, h, w]`, and of the middle stage."""
    height, width = (max(1, round(side * scale / backbone.stride)) * backbone.stride for side in backbone.input_hw)
    resized = (image.resize((width, height), Image.Resampling.BICUBIC, tuple(part)) for part in parts.tolist())
    pixels = torch.from_numpy(np.stack([*map(np.asarray, resized)])).permute(0, 3, 1, 2)
    stage = backbone.middle_stage
    with torch_modes(backbone.device):
        normal = backbone.normalize(pixels.to(backbone.device).float().div_(255))
        trace = backbone.trace(normal, Needs(features=(-1, stage), dense=int(backbone.kind == "vit")))
        return backbone.dense(trace).float().cpu(), trace.features[stage].float().cpu()


def regions_of(places: Tensor) -> FloatArray:
    """Boxes `[k, 4]` in 0–1 of parts of a picture `[D, h, w]` that look alike, merged by Ward's criterion (1963)."""
    height, width = places.shape[1:]
    y, x = np.indices((height, width)).reshape(2, -1)
    alike = normalize(places, dim=0).flatten(1).T.double().numpy()
    merged = ward(np.column_stack([alike, DISTANCE * y / height, DISTANCE * x / width]))[:, :2].astype(int)
    edges = [*np.column_stack([-x, -y, x + 1, y + 1])]  # −x0 and −y0, so that the larger ones are those of both parts
    for pair in merged:
        edges.append(np.maximum(*(edges[part] for part in pair)))
    kept = np.abs([edges[part] for part in merged[1 - PARTS :].ravel()])
    return (np.unique(kept, axis=0) / [width, height, width, height]).astype(np.float32)


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
MEANS = np.linspace(0.25, 4, 16)  # how far from the copies right boxes are, in the copies' deviations
WIDTHS = np.geomspace(0.5, 2, 9)
PLACED_RATE = 0.07  # of coco_tune: boxes that are right and look like wrong ones
LEAST_SHARE = 0.003
EXPLAINED = 0.01  # IoU of two boxes of one name from which they may be of one thing
BACKGROUND = 0.3  # IoU with any label below which a region shows nothing, as far as the set says
Missing: TypeAlias = tuple[Floats, int, float]  # a box in 0–1 without a label, the number of its name, and the chance


class Names(NamedTuple):
    """What the names of N boxes are judged to be."""

    chance: Floats  # [N] that the given one is wrong; NaN where there is nothing to tell it from, and of regions
    likelier: IntArray  # [N] the likeliest other name
    logits: Floats  # [N, P] of all names, fitted without the box's picture; -inf for those that no label has
    inputs: Floats  # [N, F] of the fit


def wrong_names(
    features: npt.NDArray[np.floating[Any]],  # [N, D] of the boxes: readings, each of unit length
    text: Floats,  # [P, E] of the names, as each reading; a row of NaN for one that the tower does not know
    xyxy: Floats,  # [N, 4] in 0–1
    given: IntArray,  # [N] numbers of names; `UNLABELLED` for a region, which is read and not learnt from
    pictures: IntArray,  # [N] numbers of pictures
    scale: float,  # the tower's logit scale
) -> Names:
    """The chance that each given name is wrong, by what the text says and labels of other pictures add to it."""
    features = features.astype(np.float32)
    chance, logits = np.full(len(given), np.nan), np.full((len(given), len(text)), -np.inf)
    labelled = given != UNLABELLED
    used, label = np.unique(given[labelled], return_inverse=True)
    cosines = features.reshape(len(features), -1, text.shape[1]).mean(axis=1) @ text[used].T.astype(np.float32)
    known = np.isfinite(cosines)
    # Unknown names get a box's mean of the known ones, so that the text speaks neither for nor against them.
    mean = np.where(known, cosines, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    text = TEXT_SCALE * scale * np.where(known, cosines, mean[:, None])
    number = np.where(labelled, np.searchsorted(used, given), UNLABELLED)
    inputs = design(features, xyxy)
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


def design(features: npt.NDArray[np.floating[Any]], xyxy: Floats) -> Floats:
    """Principal components (Halko et al. 2011), size, shape and a constant: `[N, F]`."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        u, s, _ = torch.pca_lowrank(torch.from_numpy(features), min(COMPONENTS, *features.shape), niter=4)
    parts = (u * s).double().numpy()
    shape = np.log(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1e-4))
    shape = np.stack([shape.sum(axis=1), shape[:, 0] - shape[:, 1]], axis=1)
    shape = (shape - shape.mean(axis=0)) / (shape.std(axis=0) + 1e-6)
    return np.hstack([parts / np.sqrt(np.mean(parts**2) + 1e-12), shape, np.ones((len(features), 1))])


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
    scores, copies = np.split(logits[:, 1] - logits[:, 0], [len(edges)])  # logs of how much denser moved ones lie there
    # Scores are bent so that the copies' are normal (0, 1); right boxes' are then taken as normal (−μ, σ).
    rank = (np.searchsorted(np.sort(copies), scores) + 0.5) / (len(copies) + 1)
    bent = torch.special.ndtri(torch.from_numpy(rank)).numpy()
    right = (np.exp(-(((bent + mean) / width) ** 2) / 2) / width for mean, width in product(MEANS, WIDTHS))
    as_copies = np.exp(-(bent**2) / 2)
    look = of_second((one, as_copies) for one in right)
    share = float(look.mean())
    return np.asarray(look * max(share - PLACED_RATE, LEAST_SHARE) / max(share, LEAST_SHARE))


def missing_labels(
    of: Sequence[Reading], boxes: Sequence[Floats], given: Sequence[IntArray], text: Floats, scale: float
) -> list[list[Missing]]:
    """Where a label is missing in each picture, the likeliest first: regions that show a thing no label explains."""
    regions = [each.regions for each in of]
    counts, found = ([len(each) for each in some] for some in (given, regions))
    n, pictures = sum(counts), np.repeat([*range(len(of))] * 2, counts + found)  # of boxes, then of regions
    if n < LEAST_PLACED or len(np.unique(pictures[:n])) < FOLDS or not sum(found):
        return [[] for _ in of]
    # Boxes are read as regions are: in the picture's pass.
    features = np.concatenate([*(each.features[:, -text.shape[1] :] for each in of), *(each.of_regions for each in of)])
    labels = np.concatenate([*given, np.full(sum(found), UNLABELLED)])
    names = wrong_names(features, text, np.concatenate([*boxes, *regions]), labels, pictures, scale)
    logits = torch.from_numpy(names.logits)
    shown = logits.logsumexp(dim=1).numpy()[:, None]
    inputs = np.hstack([names.inputs, (shown - shown.mean()) / (shown.std() + 1e-6)])
    most, inside = np.hstack([overlaps(*each) for each in zip(regions, boxes, strict=True)])
    kind = np.concatenate([np.ones(n, np.int64), np.where(most < BACKGROUND, 0, UNLABELLED)])  # a thing, or nothing
    nothing, thing = learnt(inputs, np.zeros((len(inputs), 2)), kind, pictures, RIDGE, 0.0)[n:].T
    best, number = (each.numpy() for each in logits[n:].softmax(dim=1).max(dim=1))
    chance = best / (1 + np.exp(nothing - thing)) * (1 - inside)
    judged = (np.split(each, np.cumsum(found)[:-1]) for each in (number, chance))
    return [[*apart(*each)] for each in zip(regions, boxes, given, *judged, strict=True)]


def overlaps(regions: npt.NDArray[np.floating[Any]], boxes: Floats) -> Floats:
    """`[2, k]` of regions: the largest IoU with a box, and the largest share that lies in one."""
    area, other = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (regions, boxes))
    iou = iou_matrix(regions, boxes)
    return np.stack([each.max(axis=1, initial=0) for each in (iou, iou / (1 + iou) * (1 + other / area[:, None]))])


def apart(regions: Floats, boxes: Floats, given: IntArray, names: IntArray, chance: Floats) -> Iterator[Missing]:
    """A picture's regions, the likeliest first, but for those that overlap a label or an earlier one of their name."""
    near = iou_matrix(regions, np.vstack([boxes, regions])) > EXPLAINED
    near &= names[:, None] == np.concatenate([given, names])
    taken = np.arange(near.shape[1]) < len(boxes)
    for i in np.argsort(-chance, kind="stable"):
        if not (near[i] & taken).any():
            taken[len(boxes) + i] = True
            yield regions[i], int(names[i]), float(chance[i])
