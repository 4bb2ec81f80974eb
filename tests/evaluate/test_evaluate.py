"""`cliploc evaluate`: the numbers of a folder, and everything that may be wrong with one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cliploc.evaluate.metrics import Bootstrap
from cliploc.evaluate.tasks.evaluate import evaluate_folder
from tests.commands import cliploc_, refused
from tests.evaluate.data import labelled
from tests.evaluate.data.folders import metadata
from tests.evaluate.metrics import literal
from tests.evaluate.samples import coco_folder, wsol_folder

SIZES = {"val/a.JPEG": (448, 224), "val/b.JPEG": (224, 448), "c.JPEG": (500, 375)}
BOXES = {
    "val/a.JPEG": [(100, 20, 300, 120)],
    "val/b.JPEG": [(10, 10, 50, 90), (100, 200, 220, 440)],
    "c.JPEG": [(0, 0, 499, 374)],
}
LABELS = {"val/a.JPEG": 3, "val/b.JPEG": 3, "c.JPEG": 7}


@pytest.fixture
def folders(tmp_path):
    """Maps that light the first true box of each image, with a ramp; and their metadata."""
    maps = tmp_path / "maps"
    for one, size in SIZES.items():
        x0, y0, x1, y1 = literal.true_boxes(BOXES[one][:1], size)[0]
        heat = np.random.default_rng(len(one)).random((28, 28)).repeat(8, 0).repeat(8, 1) * 0.2
        heat[y0:y1, x0:x1] += np.linspace(0.2, 0.8, x1 - x0)
        path = maps / f"{one}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, heat.astype(np.float32))
    return maps, metadata(tmp_path / "metadata", {one: (LABELS[one], SIZES[one], BOXES[one]) for one in SIZES})


def evaluate(folders, *more):
    return cliploc_("evaluate", "boxes", "--maps", folders[0], "--metadata", folders[1], *more)


def predictions(folder, lines):
    path = Path(folder) / "predictions.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_numbers_are_those_of_the_literal_definition(folders, tmp_path):
    maps = [np.load(folders[0] / f"{one}.npy") for one in SIZES]
    truths = [literal.true_boxes(BOXES[one], SIZES[one]) for one in SIZES]
    table = predictions(
        tmp_path, ["image_id,1,2,3,4,5", "val/a.JPEG,3,1,2,4,5", "val/b.JPEG,1,2,4,5,3", "c.JPEG,1,2,3,4,5"]
    )
    result = evaluate(folders, "--json", "--predictions", table)
    assert result.code == 0
    document = json.loads(result.out)
    accuracy, tau = literal.max_box_acc(maps, truths, False, 0.5)
    assert (document["max_box_acc"], document["best_threshold"]) == (pytest.approx(100 * accuracy), tau)
    parts = [literal.max_box_acc(maps, truths, True, level)[0] for level in (0.3, 0.5, 0.7)]
    assert [document[f"max_box_acc_iou{level}"] for level in (30, 50, 70)] == pytest.approx(
        [100 * part for part in parts]
    )
    assert document["max_box_acc_v2"] == pytest.approx(100 * np.mean(parts))
    assert document["gt_known"] == document["max_box_acc"]
    assert document["threshold_chosen_on_these_images"]
    right = [literal.ious(heat, boxes, False, [tau])[0] >= 0.5 for heat, boxes in zip(maps, truths, strict=True)]
    assert document["top1_loc"] == pytest.approx(100 * sum(right[:1]) / 3)
    assert document["top5_loc"] == pytest.approx(100 * sum(right[:2]) / 3)
    assert document["top1_cls"] == pytest.approx(100 / 3)
    assert document["top5_cls"] == pytest.approx(200 / 3)


def test_a_stated_threshold_is_no_oracle(folders):
    document = json.loads(evaluate(folders, "--json", "--threshold", "0.95").out)
    maps = [np.load(folders[0] / f"{one}.npy") for one in SIZES]
    truths = [literal.true_boxes(BOXES[one], SIZES[one]) for one in SIZES]
    hits = [literal.ious(heat, boxes, False, [0.95])[0] >= 0.5 for heat, boxes in zip(maps, truths, strict=True)]
    assert document["gt_known"] == pytest.approx(100 * np.mean(hits))
    assert document["gt_known"] < document["max_box_acc"]
    assert not document["threshold_chosen_on_these_images"]
    assert document["top1_loc"] is None
    assert "τ 0.95, as given" in evaluate(folders, "--threshold", "0.95").out


def test_the_exact_convention_takes_maps_of_any_size(folders):
    for path in folders[0].rglob("*.npy"):
        path.unlink()
    for one, (width, height) in SIZES.items():
        heat = np.zeros((height, width))
        for x0, y0, x1, y1 in BOXES[one][:1]:
            heat[y0:y1, x0:x1] = 1
        np.save(folders[0] / f"{one}.npy", heat)
    result = evaluate_folder(*folders, convention="exact", bootstrap=Bootstrap(replicates=0))
    assert result.document["max_box_acc_v2"] == 100
    assert evaluate(folders).code == 2  # the WSOL evaluation compares 224×224


def header(path, shape):
    """A .npy file with any header."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


FLAWS = {
    "missing": Path.unlink,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "huge": lambda path: header(path, "(1000000000000, 1000000000000)"),
    "nested": lambda path: header(path, "(" * 9000),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "shape": lambda path: np.save(path, np.zeros((7, 7))),
    "nan": lambda path: np.save(path, np.full((224, 224), np.nan)),
    "range": lambda path: np.save(path, np.full((224, 224), 255.0)),
    "integers": lambda path: np.save(path, np.zeros((224, 224), np.uint8)),
    "pickle": lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "extra map": lambda path: np.save(path.parents[1] / "other.npy", np.zeros((224, 224))),
}


def change(folders, what):
    """Damages the first map, or replaces a text in one of the files of metadata."""
    maps, metadata = folders
    if isinstance(what, str):
        FLAWS[what](maps / "val/a.JPEG.npy")
        return
    name, old, new = what
    path = metadata / f"{name}.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("what", "named", "said", "evaluated"),
    [
        ("missing", "val/a.JPEG", "found none: make it", 2),
        ("folder", "val/a.JPEG", "expected a map at", 2),
        ("huge", "val/a.JPEG", "is not a .npy file of numbers", 2),
        ("nested", "val/a.JPEG", "is not a .npy file of numbers", 2),
        ("cut", "val/a.JPEG", "is not a .npy file of numbers", 2),
        ("shape", "val/a.JPEG", "expected a map of 224×224, got 7×7", 2),
        ("nan", "val/a.JPEG", "expected finite scores, got 50176 that are NaN", 2),
        ("range", "val/a.JPEG", "expected scores in 0–1, got 255 to 255", 2),
        ("integers", "val/a.JPEG", "expected floating-point scores in 0–1, got uint8", 2),
        ("pickle", "val/a.JPEG", "is not a .npy file of numbers", 2),
        ("extra map", "other.npy", "not in image_ids.txt", 3),
        (("image_sizes", "c.JPEG,500,375\n", "c.JPEG,500,375\nc.JPEG,5,5\n"), "c.JPEG", "two different lines", 3),
    ],
)
def test_what_is_wrong_is_named_and_counted(folders, what, named, said, evaluated):
    change(folders, what)
    result = evaluate(folders, "--json")
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.startswith(f"failed: {named}: ") and said in line]
    assert len(lines) == 1
    assert len(lines[0]) < 400
    document = json.loads(result.out)
    assert (document["images"], document["evaluated"]) == (3, evaluated)
    assert sum(document["problems"].values()) == len(document["failed"]) == result.err.count("failed: ")
    assert f"{evaluated} of 3 pictures evaluated; " in result.err


def test_nothing_to_evaluate_is_2(folders, tmp_path):
    assert (
        "expected a folder of maps"
        in cliploc_("evaluate", "boxes", "--maps", tmp_path / "no", "--metadata", folders[1]).err
    )
    missing = cliploc_("evaluate", "boxes", "--maps", folders[0], "--metadata", tmp_path / "no")
    assert "expected a folder of metadata" in missing.err
    for option, value in (("--threshold", "1.5"), ("--convention", "voc")):
        result = evaluate(folders, option, value)
        assert result.code == 2
        assert "expected" in result.err
    for path in folders[0].rglob("*.npy"):
        path.unlink()
    result = evaluate(folders)
    assert result.code == 2
    assert "none of 3 pictures could be evaluated" in result.err
    (folders[1] / "class_labels.txt").unlink()
    assert re.search(r"expected \S+class_labels.txt, found no such file", evaluate(folders).err)


def test_predictions_that_do_not_fit(folders, tmp_path):
    part = predictions(tmp_path, ["val/a.JPEG,3", "other,4"])
    result = evaluate(folders, "--json", "--predictions", part)
    assert result.code == 1
    assert "failed: other: predicted, but not in image_ids.txt" in result.err
    assert "failed: c.JPEG: no line in the predictions" in result.err
    document = json.loads(result.out)
    assert (document["with_predictions"], document["evaluated"]) == (1, 3)
    assert (document["top1_cls"], document["top5_cls"]) == (100, None)  # one class a line says nothing of five
    wrong = ((["a,cat"], "classes as integers"), (["a,1,2", "b,1"], "expected 2 classes"), ([], "none"))
    for lines, said in wrong:
        result = evaluate(folders, "--predictions", predictions(tmp_path, lines))
        assert result.code == 2
        assert said in result.err


def test_the_document_explains_every_key(folders):
    pages = Path(__file__).parents[2] / "docs"
    document = (pages / "json.md").read_text() + (pages / "benchmark.md").read_text()
    shown = json.loads(evaluate(folders, "--json").out)
    assert shown["schema_version"] == 1
    for key in shown:
        assert f"`{key}`" in document or f"`_{key.rsplit('_')[-1]}`" in document, key


def test_an_id_cannot_leave_the_folder(folders):
    np.save(folders[0].parent / "c.JPEG.npy", np.zeros((224, 224)))
    for name in ("image_ids", "class_labels", "image_sizes", "localization"):
        change(folders, (name, "c.JPEG", "../c.JPEG"))
    assert "failed: ../c.JPEG: expected an image id that stays inside" in evaluate(folders).err


# ------------------------------------------------------------------------------------------------------------- refusals
pytest.importorskip("pyarrow")
START = {
    "boxes": ("--dataset", "wsol"),
    "segmentation": ("--dataset", "coco_object", "--template", "name-only"),
    "faithfulness": ("--dataset", "wsol", "--method", "cam"),
    "presence": ("--dataset", "coco"),
}
REFUSED_BY_BENCHMARK = [
    ("boxes", "--method cam -o temperature=1", "none of cam has this option"),
    ("boxes", "--method cam(threshold=2)", "expected the threshold of cam from 0 to 1, got 2"),
    ("boxes", "--engine slurm", "expected --engine to be one of local, ray, got 'slurm'"),
    ("boxes", "--pretrained a --pretrained b", "expected --pretrained once, or for each of 1 models, got 2"),
    ("boxes", "--limit 0", "expected --limit, a whole number from 1 to"),
    ("boxes", "--address auto", "expected --address with --engine ray only"),
    ("boxes", "--columns gt_known,gt_knwn", "unknown number 'gt_knwn': did you mean gt_known"),
    ("segmentation", "--threshold 0.5", "No such option: --threshold"),
    ("segmentation", "--method centre_box", "centre_box has the same map for every name"),
    ("faithfulness", "--resize crop", "No such option: --resize"),
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
