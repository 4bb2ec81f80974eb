"""Which labels are wrong? Chances from region features alone: no file, no tower. N boxes, P names, D features.

Both opinions of a name are one model: a logistic regression of the set's labels on region features that starts at what
the text says. With few boxes it stays there; a name without text starts at nothing and is learnt from its boxes alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cliploc.values import Floats

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

DRAFT = -1  # in the place of a given name
FOLDS = 5
COMPONENTS = 128  # of the region features
RIDGE = 40.0  # the higher, the longer the text alone speaks
PRIOR = 0.5  # power of the names' frequencies that the fit explains away; 1: none is favoured, 0: frequent ones win
TEXT_SCALE = 0.6  # of the tower's logit scale
STEPS = 40  # of the fit
SHARES = np.geomspace(0.001, 0.5, 40)  # of wrong names; all are as likely on a log scale, but for one error seen before
TEMPERATURES = np.exp(np.linspace(-1.2, 1.2, 41))
LEAST_PLACED = 60  # boxes from which placement can be learnt
PLACE_RIDGE = 100.0
LEAST_DRAFTS = 20  # that match a label, from which missing ones can be judged
MEANS = np.linspace(0.25, 4, 16)  # how far from the examples the others are, in the examples' deviations
WIDTHS = np.geomspace(0.5, 2, 9)
PLACED_RATE, DRAFTS_RATE = 0.07, 0.0  # of coco_tune: boxes, and drafts, that are right and look like wrong ones
LEAST_SHARE = 0.003
EXPLAINED = 0.1  # share of the smaller of two boxes of one name from which a label explains a draft
MATCHED = 0.5  # IoU


class Names(NamedTuple):
    """What the names of N boxes are judged to be."""

    chance: Floats  # [N] that the given one is wrong; NaN where there is nothing to tell it from, and of drafts
    likelier: Ints  # [N] the likeliest other name
    logits: Floats  # [N, P] of all names, fitted without the box's picture; -inf for those that no label has


def judge_names(
    features: npt.NDArray[np.floating[Any]],  # [N, D] of the regions, of unit length for each reading
    cosines: Floats,  # [N, P] of regions and names; a column of NaN for a name that the tower does not know
    sizes: Floats,  # [N, 2] width and height, as shares of the picture
    given: Ints,  # [N] numbers of names; `DRAFT` for a draft, which is read and not learnt from
    pictures: Ints,  # [N] numbers of pictures
    scale: float,  # the tower's logit scale
) -> Names:
    """The chance that each given name is wrong, by what the text says and labels of other pictures add to it."""
    chance, logits = np.full(len(given), np.nan), np.full(cosines.shape, -np.inf)
    labelled = given != DRAFT
    used, label = np.unique(given[labelled], return_inverse=True)
    cosines = cosines[:, used]
    known = np.isfinite(cosines)
    # Unknown names get a box's mean of the known ones, so that the text speaks neither for nor against them.
    mean = np.where(known, cosines, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    text = TEXT_SCALE * scale * np.where(known, cosines, mean[:, None])
    number = np.full(len(given), DRAFT)
    number[labelled] = label
    logits[:, used] = text + learnt(design(features, sizes), text, number, pictures, RIDGE, PRIOR)
    if len(used) > 1:
        of_pictures = np.unique(np.stack([label, pictures[labelled]], axis=1), axis=0)
        elsewhere = np.bincount(of_pictures[:, 0])[label] > 1  # the name is that of a label in another picture, too
        # A right name is drawn from softmax(logits / T), a wrong one from all others alike.
        tempered, wrong = torch.from_numpy(logits[np.ix_(labelled, used)]), np.full(len(label), 1 / (len(used) - 1))
        right = ((tempered / t).softmax(dim=1).numpy()[np.arange(len(label)), label] for t in TEMPERATURES)
        posterior = of_second((one, wrong) for one in right)
        chance[labelled] = np.where(known[:, label].any(axis=0) | elsewhere, posterior, np.nan)
    others = logits.copy()
    others[np.flatnonzero(labelled), given[labelled]] = -np.inf
    return Names(chance, others.argmax(axis=1), logits)


def design(features: npt.NDArray[np.floating[Any]], sizes: Floats) -> Floats:
    """Principal components (by iterating a subspace, Halko et al. 2011), size, shape and a constant: `[N, F]`."""
    centred = features - features.mean(axis=0)
    count = min(COMPONENTS, *centred.shape)
    wide = min(count + 10, *centred.shape)
    basis = np.random.default_rng(0).standard_normal((centred.shape[1], wide)).astype(centred.dtype)
    for _ in range(4):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    u, s, _ = np.linalg.svd(centred @ basis, full_matrices=False)
    parts = np.asarray(u[:, :count] * s[:count], np.float64)
    shape = np.log(np.maximum(sizes, 1e-4))
    shape = np.stack([shape.sum(axis=1), shape[:, 0] - shape[:, 1]], axis=1)
    shape = (shape - shape.mean(axis=0)) / (shape.std(axis=0) + 1e-6)
    return np.hstack([parts / np.sqrt(np.mean(parts**2) + 1e-12), shape, np.ones((len(features), 1))])


def learnt(inputs: Floats, offset: Floats, given: Ints, pictures: Ints, ridge: float, prior: float) -> Floats:
    """What rows of other pictures add to logits `[N, P]`: each fold of pictures is read by a fit to the others."""
    unique, number = np.unique(pictures, return_inverse=True)
    added, fold = np.zeros_like(offset), (np.random.default_rng(0).permutation(len(unique)) % FOLDS)[number]
    for test in (fold == i for i in range(FOLDS)):
        train = ~test & (given != DRAFT)
        if test.any() and train.any():
            added[test] = inputs[test] @ fit(inputs[train], offset[train], given[train], ridge, prior)
    return added


def fit(inputs: Floats, offset: Floats, given: Ints, ridge: float, prior: float) -> Floats:
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


def judge_places(edges: Floats, pictures: Ints, planted: Floats, of_planted: Ints) -> Floats:
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


def judge_missing(logits: Floats, names: Ints, explained: Bools, matched: Bools) -> Floats:
    """The chance `[M]` that each draft misses a label: that it is as those which match one. 0 where one explains it."""
    scores = torch.from_numpy(logits).log_softmax(dim=1).numpy()[np.arange(len(names)), names]
    chance, free = np.zeros(len(names)), ~explained
    few = matched.sum() < LEAST_DRAFTS or free.sum() < LEAST_DRAFTS
    chance[free] = np.nan if few else alike(scores[free], scores[matched], DRAFTS_RATE)
    return chance


def compare(drafts: Floats, names: Ints, boxes: Floats, given: Ints) -> tuple[Bools, Bools]:
    """For each draft of a picture whether a label of its name lies in it or around it, and whether one fits."""
    low, high = np.maximum(drafts[:, None, :2], boxes[:, :2]), np.minimum(drafts[:, None, 2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2) * (names[:, None] == given)
    one, other = ((xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) for xyxy in (drafts, boxes))
    smaller, union = np.minimum(one[:, None], other), one[:, None] + other - shared
    return (shared > EXPLAINED * smaller).any(axis=1), (shared > MATCHED * union).any(axis=1)
