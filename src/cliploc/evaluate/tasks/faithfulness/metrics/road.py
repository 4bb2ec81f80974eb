"""ROAD: remove and debias; removed pixels are imputed from their neighbours, so that no edge shows where they were."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cliploc.evaluate.tasks.faithfulness import measure as base

NOISE = 0.01  # standard deviation, in normalised values
DIRECT, DIAGONAL = 1 / 6, 1 / 12  # weights of a pixel's neighbours
SHARES = (0.2, 0.4, 0.6, 0.8)


@base.faithfulness_metric
class Road(base.FaithfulnessMetric):
    """(least − most)/2: the mean probability without the coldest 20, 40, 60, 80 %, minus that without the hottest.

    Removed pixels are noisy linear imputations (`imputed`). The paper takes the accuracy over a set. As in
    pytorch-grad-cam's `ROADCombined`, we take each picture's probability and combine both ends. It is between −0.5 and
    0.5.
    """

    name = "road"
    position = 8
    paper = "Rong et al. 2022, A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML"
    numbers: ClassVar = {
        "road": base.Number(
            "ROAD ↑", "probability without the coldest pixels minus without the hottest, divided by 2", "high"
        )
    }
    curves: ClassVar = {
        "road_most": base.Axis("share of the hottest pixels removed", SHARES),
        "road_least": base.Axis("share of the coldest pixels removed", SHARES),
    }

    def measure(self, judged: base.Judged) -> base.Measured:
        hottest = [judged.order < int(judged.pixels * share) for share in SHARES]
        coldest = [judged.order >= judged.pixels - int(judged.pixels * share) for share in SHARES]
        removed = [*hottest, *coldest]

        def make(first: int, last: int) -> Tensor:
            return torch.cat([imputed(judged.images, mask, judged.seed) for mask in removed[first:last]])

        scores = judged.scores(len(removed), make).probability
        most, least = scores[: len(SHARES)], scores[len(SHARES) :]
        curves = {"road_most": most.tolist(), "road_least": least.tolist()}
        return base.Measured({"road": float(least.mean() - most.mean()) / 2}, curves)


def imputed(images: Tensor, removed: Tensor, seed: int = 0, noise: float = NOISE) -> Tensor:
    """The imputation `[1, 3, H, W]`: removed pixels `[H, W]` are means of neighbours plus noise, one system."""
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    mask = removed.cpu().numpy()
    count = int(mask.sum())
    if not count:
        return images
    if mask.all():
        return torch.zeros_like(images)
    height, width = mask.shape
    values = images[0].float().cpu().double().numpy()  # [3, H, W]
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(count)
    y, x = mask.nonzero()  # [m]
    total = np.zeros(count)  # of the weights of neighbours inside the picture
    known = np.zeros((count, 3))
    rows, columns, weights = [], [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dy == dx == 0:
                continue
            weight = DIAGONAL if dy and dx else DIRECT
            inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            here = inside.nonzero()[0]
            of_y, of_x = y[here] + dy, x[here] + dx
            total[here] += weight
            gone = mask[of_y, of_x]
            known[here[~gone]] += weight * values[:, of_y[~gone], of_x[~gone]].T
            rows.append(here[gone])
            columns.append(number[of_y[gone], of_x[gone]])
            weights.append(np.full(int(gone.sum()), -weight))
    diagonal = np.arange(count)
    entries = np.concatenate([*weights, total])
    places = np.concatenate([*rows, diagonal]), np.concatenate([*columns, diagonal])
    system = csc_matrix((entries, places), (count, count))
    # The matrix is symmetric.
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    solved = torch.from_numpy(factors.solve(known)).float()  # [m, 3]
    solved += noise * torch.randn(solved.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    made = images.clone()
    made[0, :, removed.to(images.device)] = solved.T.to(images)
    return made
