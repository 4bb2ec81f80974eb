"""TLP against its linear system as a dense matrix, written from the equations; and in a segmenter."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cliploc.find.segmentation import propagation
from cliploc.find.segmentation.propagation import alike, propagated, solved


def dense(cosines, grey, weight):
    """The system's matrix `[N, N]` and C `[N]`, cell by cell, in float64."""
    count, height, width = cosines.shape
    p = np.exp(cosines) / np.exp(cosines).sum(axis=0)
    cells = [(y, x) for y in range(height) for x in range(width)]
    at = [p[:, y, x] for y, x in cells]
    trust = np.array([max(one.max(), 0.05) ** 2 * (1 + (one**2 * weight).sum()) for one in at])
    matrix = np.diag(trust)
    steps = {(0, 1): np.abs(np.diff(grey, axis=1)).mean(), (1, 0): np.abs(np.diff(grey, axis=0)).mean()}
    for (y, x), ((dy, dx), mean) in ((cell, one) for cell in cells for one in steps.items()):
        if y + dy < height and x + dx < width:
            gain = 1 + sum(p[q, y, x] * weight[q] * p[q, y + dy, x + dx] for q in range(count))
            edge = abs(grey[y + dy, x + dx] - grey[y, x]) / (mean + 1e-6)
            link = min(1.0, np.exp(-5 * edge) * gain)
            i, j = cells.index((y, x)), cells.index((y + dy, x + dx))
            matrix[i, i] += link
            matrix[j, j] += link
            matrix[i, j] -= link
            matrix[j, i] -= link
    return matrix, trust


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    return random.uniform(0, 0.3, (4, 6, 5)), random.uniform(-1, 1, (6, 5)), random.uniform(0.9, 1, 4)


def as_tensors(*arrays):
    return [torch.tensor(one, dtype=torch.float64) for one in arrays]


def test_the_solution_is_that_of_the_dense_system(case, monkeypatch):
    matrix, trust = dense(*case)
    flat = case[0].reshape(4, -1)
    exact = np.linalg.solve(matrix, (trust * flat).T).T
    monkeypatch.setattr(propagation, "STEPS", 200)
    assert solved(*as_tensors(*case)).reshape(4, -1).numpy() == pytest.approx(exact, abs=1e-5)


def test_25_steps_of_conjugate_gradients_for_all_queries_together():
    random = np.random.default_rng(0)
    case = random.uniform(0, 0.3, (4, 14, 12)), random.uniform(-1, 1, (14, 12)), random.uniform(0.9, 1, 4)
    matrix, trust = dense(*case)
    x = case[0].reshape(4, -1)
    r = trust * x - x @ matrix
    d = r
    for _ in range(25):
        a = (r * r).sum() / ((d @ matrix) * d).sum()
        before, x, old, r = x, x + a * d, r, r - a * (d @ matrix)
        d = r + (r * r).sum() / (old * old).sum() * d
    assert solved(*as_tensors(*case)).reshape(4, -1).numpy() == pytest.approx(x, abs=1e-6)
    assert np.abs(x - before).max() > 1e-5


def test_cells_have_the_means_of_maps_and_of_brightness():
    torch.manual_seed(0)
    picture, maps, queries = torch.rand(1, 3, 50, 90), torch.rand(3, 165, 330), torch.randn(3, 8)
    found = propagated(lambda start, end: maps[start:end], picture, queries, (165, 330), 2**23)
    red, green, blue = F.avg_pool2d(F.interpolate(picture, (165, 330), mode="bilinear"), (2, 4))[0]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    spread = solved(F.avg_pool2d(maps, (2, 4)), grey, alike(queries))
    torch.testing.assert_close(
        found(0, 3), F.interpolate(spread[None], (165, 330), mode="bilinear")[0], atol=1e-4, rtol=1e-4
    )


def test_a_querys_likeness_to_itself():
    queries = torch.eye(3)[[0, 1, 1]]
    e = np.exp(1 / 0.5)
    expected = [(e / (e + 2) + 10) / 11, *[(e / (2 * e + 1) + 10) / 11] * 2]
    assert alike(5 * queries).tolist() == pytest.approx(expected, abs=1e-6)


def test_blocks_of_queries_change_nothing_and_heat_stays_inside_edges():
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 165, 200)
    picture[..., 100:] = 1.0
    maps, queries = 0.1 * torch.rand(3, 165, 200), torch.randn(3, 8)
    maps[0, 20:60, 20:60] += 0.2
    found, again = (
        propagated(lambda start, end: maps[start:end], picture, queries, (165, 200), values)(0, 3)
        for values in (2**23, 165 * 200)
    )
    assert found.shape == maps.shape
    torch.testing.assert_close(again, found, atol=1e-6, rtol=0)
    raised = found[0] - F.avg_pool2d(maps[:1], 41, 1, 20)[0].mean()
    assert raised[:, :90].mean() > 2 * raised[:, 110:].mean().abs()
