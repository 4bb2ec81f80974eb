"""What `benchmark` and `evaluate` refuse, by task: in one line, before anything is written."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from tests.commands import refused
from tests.datasets import labelled
from tests.jobs.samples import coco_folder, wsol_folder

START = {
    "boxes": ("benchmark", "--dataset", "wsol"),
    "labels": ("benchmark", "--task", "segmentation", "--dataset", "coco_object", "--template", "name-only"),
    "faithfulness": ("benchmark", "--task", "faithfulness", "--dataset", "wsol", "--method", "cam"),
    "presence": ("benchmark", "--task", "presence", "--dataset", "coco"),
}
REFUSED_BY_BENCHMARK = [
    ("boxes", "--method gem", "gem does not work on mini"),
    ("boxes", "--method cam -o temperature=1", "none of cam has this option"),
    ("boxes", "--threshold 1.5", "expected --threshold from 0 to 1, or own, got 1.5"),
    ("boxes", "--engine slurm", "expected --engine to be one of local, ray, got 'slurm'"),
    ("boxes", "--pretrained a --pretrained b", "expected --pretrained once, or for each of 1 models, got 2"),
    ("boxes", "--limit 0", "expected --limit from 1 to 10000000"),
    ("boxes", "--address auto", "expected --address with --engine ray only"),
    ("boxes", "--window 64", "--window is an option of --task segmentation: add it"),
    ("boxes", "--steps 3", "--steps is an option of --task faithfulness: add it"),
    ("boxes", "--metric deletion", "--metric is an option of --task faithfulness: add it"),
    ("boxes", "--negatives all", "--negatives is an option of --task presence"),
    ("labels", "--flip", "--flip is not an option of --task segmentation: leave it out"),
    ("labels", "--threshold 0.5", "--threshold is not an option of --task segmentation"),
    ("labels", "--scales 1,2", "--scales is not an option of --task segmentation"),
    ("labels", "--min-score 0.5", "--min-score is not an option of --task segmentation"),
    ("labels", "--learnt a.safetensors", "--learnt is not an option of --task segmentation"),
    ("labels", "--logit-scale 0", "expected --logit-scale above 0"),
    ("labels", "--method centre_box", "centre_box has the same map for every name"),
    (
        "labels",
        "--task x",
        "expected --task to be one of localization, segmentation, faithfulness, presence, got 'x'",
    ),
    ("faithfulness", "--threshold 0.5", "--threshold is not an option of --task faithfulness: leave it out"),
    ("faithfulness", "--resize crop", "--resize is not an option of --task faithfulness: leave it out"),
    ("faithfulness", "--steps 1", "expected --steps, a whole number from 2 to 50,176, got 1"),
    ("faithfulness", "--window 224", "--window is an option of --task segmentation: add it"),
    ("presence", "--negatives hard", "expected --negatives"),
    ("presence", "--save-maps", "--save-maps is not an option of --task presence"),
    ("presence", "--steps 3", "--steps is an option of --task faithfulness"),
    ("presence", "--method cam --threshold 0.2 --threshold 0.4", "expected each method once"),
]
OF_MAPS = "--maps x --task faithfulness --root x"
REFUSED_BY_EVALUATE = [
    ("", "expected --maps, a folder of score maps, got none"),
    ("--maps x", "expected --metadata, a folder"),
    ("--truth x", "--truth is an option of --task segmentation: add it"),
    ("--maps x --metadata x --steps 3", "--steps is an option of --task faithfulness: add it"),
    ("--maps x --metadata x --metric deletion", "--metric is an option of --task faithfulness: add it"),
    ("--task segmentation", "expected --predictions, the folder of label maps, got none"),
    ("--maps x --task faithfulness", "expected --root, the dataset's folder"),
    (f"{OF_MAPS} --metric adcc", "adcc needs the method that made the maps"),
    (f"{OF_MAPS} --threshold 1", "--threshold is not an option of --task faithfulness"),
    (f"{OF_MAPS} --convention exact", "--convention is not an option of --task faithfulness"),
    (f"{OF_MAPS} --workers 2", "--workers is not an option of --task faithfulness"),
]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    boxes = wsol_folder(tmp_path_factory.mktemp("wsol"), 2)
    labels = labelled.coco_object(tmp_path_factory.mktemp("coco_object"))
    names = coco_folder(tmp_path_factory.mktemp("coco"))
    return {"boxes": boxes, "faithfulness": boxes, "labels": labels, "presence": names}


@pytest.mark.parametrize(("task", "words", "said"), REFUSED_BY_BENCHMARK)
def test_benchmark_refuses(roots: dict[str, Path], tmp_path: Path, task: str, words: str, said: str) -> None:
    assert said in refused(*START[task], "--root", roots[task], "--out", tmp_path / "out", *words.split())
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(("words", "said"), REFUSED_BY_EVALUATE)
def test_evaluate_refuses(words: str, said: str) -> None:
    assert said in refused("evaluate", *words.split())
