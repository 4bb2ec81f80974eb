"""What `benchmark` and `evaluate` refuse, by task: in one line, before anything is written."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from tests.commands import refused
from tests.evaluate.data import labelled
from tests.evaluate.samples import coco_folder, wsol_folder

START = {
    "boxes": ("--dataset", "wsol"),
    "segmentation": ("--dataset", "coco_object", "--template", "name-only"),
    "faithfulness": ("--dataset", "wsol", "--method", "cam"),
    "presence": ("--dataset", "coco"),
}
REFUSED_BY_BENCHMARK = [
    ("boxes", "--method gem", "gem does not work on mini"),
    ("boxes", "--method cam -o temperature=1", "none of cam has this option"),
    ("boxes", "--threshold 1.5", "expected --threshold"),
    ("boxes", "--method cam(threshold=2)", "expected the threshold of cam from 0 to 1, got 2"),
    ("boxes", "--engine slurm", "expected --engine to be one of local, ray, got 'slurm'"),
    ("boxes", "--pretrained a --pretrained b", "expected --pretrained once, or for each of 1 models, got 2"),
    ("boxes", "--limit 0", "expected --limit, a whole number from 1 to"),
    ("boxes", "--address auto", "expected --address with --engine ray only"),
    ("boxes", "--columns gt_known,gt_knwn", "unknown number 'gt_knwn': did you mean gt_known"),
    ("segmentation", "--columns mIoU", "unknown number 'mIoU': did you mean miou"),
    ("segmentation", "--threshold 0.5", "No such option: --threshold"),
    ("segmentation", "--logit-scale 0", "expected --logit-scale above 0"),
    ("segmentation", "--method centre_box", "centre_box has the same map for every name"),
    ("faithfulness", "--resize crop", "No such option: --resize"),
    ("faithfulness", "--steps 1", "expected --steps, a whole number from 2 to 50,176, got 1"),
    ("presence", "--negatives hard", "expected --negatives"),
]
REFUSED_BY_EVALUATE = [
    ("boxes", "expected --maps, got none: cliploc evaluate boxes --maps maps"),
    ("boxes --maps x --metadata x --steps 3", "No such option: --steps"),
    ("segmentation", "expected --predictions, got none"),
    ("faithfulness --maps x", "expected --root, got none"),
    ("faithfulness --maps x --root x --metric adcc", "adcc needs the method that made the maps"),
]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    boxes = wsol_folder(tmp_path_factory.mktemp("wsol"), 2)
    labels = labelled.coco_object(tmp_path_factory.mktemp("coco_object"))
    names = coco_folder(tmp_path_factory.mktemp("coco"))
    return {"boxes": boxes, "faithfulness": boxes, "segmentation": labels, "presence": names}


@pytest.mark.parametrize(("task", "words", "said"), REFUSED_BY_BENCHMARK)
def test_benchmark_refuses(roots: dict[str, Path], tmp_path: Path, task: str, words: str, said: str) -> None:
    assert said in refused(
        "benchmark", task, *START[task], "--root", roots[task], "--out", tmp_path / "out", *words.split()
    )
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(("words", "said"), REFUSED_BY_EVALUATE)
def test_evaluate_refuses(words: str, said: str) -> None:
    assert said in refused("evaluate", *words.split())
