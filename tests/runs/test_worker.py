"""The worker of all benchmarks: what fails of a picture, alone; what is said of it; and what tells runs apart."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from cliploc.errors import InputError
from cliploc.evaluate.data import LabelFile
from cliploc.evaluate.tasks.faithfulness.job import FaithfulnessJudge
from cliploc.evaluate.tasks.segmentation.job import COLUMNS, LabelMapJudge
from cliploc.evaluate.tasks.worker import EvaluationWorker, PictureJudge
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.images.exemplars import Exemplar
from cliploc.options import BENCHMARK, FaithfulnessOptions
from cliploc.runs.engine import Shard
from cliploc.runs.evaluation import Row
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.runs.samples import LabelledPicture
from cliploc.support.reporter import SILENT, Reporter
from tests.commands import python
from tests.tiny import tower

NAMES = ("red", "blue", "green")
OPTIONS = BENCHMARK.but(model=tower("gap_cnn", (8, 8)), resize="squash")
SETUPS = tuple(ModelSetup(OPTIONS.but(flip=one)) for one in (False, True))
SETTINGS = (Setting("a", 0, "cam"), Setting("b", 0, "layer_cam"), Setting("c", 1, "cam"))


class NamedMaps(PictureJudge):
    """Its maps are the names of their pictures; some pictures have something wrong."""

    def describe(self, setting: Setting) -> dict[str, Any]:
        return {"id": setting.id}

    def look(self, sample: Any) -> str:
        if sample.id == "cut off":
            raise InputError("cut off: damaged")
        if sample.id == "large":
            raise MemoryError
        return str(sample.id)

    def maps(self, seen: str, methods: Sequence[str], reporter: Reporter) -> dict[str, str]:
        if seen == "hard" and "layer_cam" in methods:
            raise MemoryError
        if seen == "bug":
            raise RuntimeError("a bug")
        return dict.fromkeys(methods, seen)

    def judge(self, seen: str, setting: Setting, heat: str, reporter: Reporter) -> Row:
        if seen == "odd" and setting.id == "c":
            raise InputError("odd: expected one number per pixel")
        return {"preview": heat.encode()}


def shard(index: int, *names: str) -> Shard:
    pictures = (LabelledPicture(one, Path(one), (4, 3), LabelFile(Path(one))) for one in names)
    return Shard(index, tuple(pictures))


def test_a_failure_costs_no_more_than_the_rows_that_it_must() -> None:
    worker = EvaluationWorker(NamedMaps, COLUMNS, Path(), SETUPS, SETTINGS)
    images: list[int] = []
    first, second = worker.stream(
        [shard(0, "good", "cut off", "hard"), shard(1, "odd", "large")], Reporter(images=images.append)
    )
    assert (first.index, second.index, sum(images)) == (0, 1, 2 * 5)
    memory = "not enough memory for a single picture: use a smaller --image-size or fewer --scales"
    message = [(row["sample"], row["setting"], row["preview"] or row["reason"]) for row in first.content]
    assert message == [
        *(("good", one, b"good") for one in "abc"),
        *(("cut off", one, "cut off: damaged") for one in "abc"),
        ("hard", "a", b"hard"), ("hard", "b", memory), ("hard", "c", b"hard"),
    ]  # fmt: skip
    assert first.notes == (f"b failed on hard: {memory}",)
    message = [(row["sample"], row["setting"], row["status"], row["reason"]) for row in second.content]
    assert message == [
        ("odd", "a", "ok", None), ("odd", "b", "ok", None),
        ("odd", "c", "failed", "odd: expected one number per pixel"),
        *(("large", one, "failed", memory) for one in "abc"),
    ]  # fmt: skip
    assert len(second.notes) == 1
    with pytest.raises(RuntimeError, match="a bug"):
        list(worker.stream([shard(0, "bug")], SILENT))


def test_processes_that_judge_maps_import_no_torch() -> None:
    """It would take each of them seconds and hundreds of megabytes."""
    code = "import sys, cliploc.evaluate.tasks.judges; sys.exit('torch' in sys.modules)"
    assert python("-c", code, check=False).returncode == 0


@pytest.mark.parametrize(
    "judge_of",
    [
        partial(LabelMapJudge, protocol_for(NAMES), None),
        partial(FaithfulnessJudge, NAMES, ("deletion",), FaithfulnessOptions()),
    ],
)
def test_pictures_that_stand_for_names_and_a_background_make_another_run(judge_of: Any) -> None:
    """They change the embeddings of the names, and what the texts have in common."""
    of_red = [Exemplar("red", np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)) for i in (0, 1)]
    options = [OPTIONS, *(OPTIONS.but(exemplars=[one]) for one in of_red), OPTIONS.but(background=["grey"])]
    workers = [EvaluationWorker(judge_of, COLUMNS, Path(), (ModelSetup(one),), SETTINGS[:1]) for one in options]
    message = [one.describe() for one in workers]
    assert all(one != other for place, one in enumerate(message) for other in message[:place])
    assert "exemplars" not in message[0][0]  # so that runs which began before they counted can be resumed
