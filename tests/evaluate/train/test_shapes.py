"""The proof that training helps: in scenes of two things a head, taught on whole pictures, boxes the named one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cliploc import Localizer
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.evaluate.train.trainer import train
from cliploc.evaluate.train.training_set import read_folder
from cliploc.images.geometry import iou_matrix
from tests.evaluate.train.shapes import PAIRS, SEEN, UNSEEN, Box, ShapeVit, random_tower, scene, write_folder

TAUS = [0.05 * step for step in range(4, 18)]


def two_things(pairs: Sequence[str], each: int, seed: int) -> list[tuple[str, Image.Image, Box]]:
    random = np.random.default_rng(seed)
    rows = []
    for pair in pairs * each:
        other = PAIRS[(PAIRS.index(pair) + int(random.integers(1, len(PAIRS)))) % len(PAIRS)]
        rows.append((pair, *scene(pair, random, other)))
    return rows


SCENES = {"seen": two_things(SEEN, 3, seed=5), "unseen": two_things(UNSEEN, 9, seed=6)}


def gt_known(localizer: Localizer, which: str) -> float:
    rows = SCENES[which]
    hits = np.zeros(len(TAUS))
    found = localizer.stream([picture for _, picture, _ in rows], [[pair] for pair, _, _ in rows])
    for (_, _, box), result in zip(rows, found, strict=True):
        for index, tau in enumerate(TAUS):
            boxes = boxes_from_maps(result.maps, BoxRule(threshold=tau, components="largest")).xyxy
            hits[index] += len(boxes) > 0 and iou_matrix(boxes, np.array([box], dtype=float)).max() >= 0.5
    return float(hits.max()) / len(rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShapeVit, Path, dict[str, dict[str, float]]]:
    """The tower, the training pictures, and each method's GT-known without training."""
    folder = tmp_path_factory.mktemp("shapes")
    backbone = random_tower()
    write_folder(folder / "root", SEEN, each=36, seed=1)
    untrained = {
        method: {which: gt_known(Localizer(backbone, method=method), which) for which in SCENES}
        for method in ("ts_cam", "lctr")
    }
    return backbone, folder, untrained


@pytest.mark.parametrize(
    ("method", "kind", "settings"),
    [
        ("ts_cam", "closed", {"lr": 0.02}),
        ("ts_cam", "open", {"lr": 0.02, "start": "random"}),
        ("lctr", "closed", {"lr": 1e-3}),
        ("lctr", "open", {"lr": 1e-3, "start": "random"}),
    ],
)
def test_training_raises_gt_known(world: Any, method: str, kind: str, settings: dict[str, Any]) -> None:
    backbone, folder, untrained = world
    chosen = TrainSettings(method=method, kind=kind, epochs=10, batch_size=32, held_out=0.05, patience=10, **settings)  # type: ignore[arg-type]
    out = folder / f"{method}-{kind}.safetensors"
    trained = train(backbone, read_folder(folder / "root"), out, chosen, features=folder / "features")
    localizer = Localizer(backbone, method=method, head=out)
    after = {which: gt_known(localizer, which) for which in (SCENES if kind == "open" else ["seen"])}
    for which, value in after.items():
        print(f"{method} {kind}, {which} pairs: GT-known {untrained[method][which]:.2f} → {value:.2f}")
        assert value > untrained[method][which] + 0.3
        assert value > 0.5
    assert trained.history[-1].loss < trained.history[0].loss
