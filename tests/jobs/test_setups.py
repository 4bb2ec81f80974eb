"""What tells runs without boxes apart: the parts of a localizer's description that their numbers depend on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cliploc.config import BENCHMARK, FaithfulnessOptions
from cliploc.exemplars import Exemplar
from cliploc.jobs.faithfulness import FaithfulnessJudge
from cliploc.jobs.plan import ModelSetup, Setting
from cliploc.jobs.segmentation import LabelMapJudge, row_schema
from cliploc.jobs.worker import EvaluationWorker
from cliploc.segmentation import protocol_for
from tests.tiny import tower

NAMES = ("red", "blue", "green")
SETTING = (Setting("a", 0, "cam"),)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "judge_of",
    [
        partial(LabelMapJudge, protocol_for(NAMES)),
        partial(FaithfulnessJudge, NAMES, ("deletion",), FaithfulnessOptions()),
    ],
)
def test_pictures_that_stand_for_names_and_a_background_make_another_run(judge_of: Any) -> None:
    """They change the embeddings of the names, and what the texts have in common."""
    plain = BENCHMARK.but(model=tower("gap_cnn", (8, 8)), resize="squash")
    options = [
        plain,
        plain.but(exemplars=[Exemplar("red", noise(0))]),
        plain.but(exemplars=[Exemplar("red", noise(1))]),
        plain.but(background=["grey"]),
    ]
    said = [EvaluationWorker(judge_of, row_schema, Path(), (ModelSetup(one),), SETTING).describe() for one in options]
    assert all(one != other for place, one in enumerate(said) for other in said[:place])
    assert "exemplars" not in said[0][0]  # so that runs which began before they counted can be resumed
