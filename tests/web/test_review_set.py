"""A data set in the editor's server: its boxes, the suspects of a check, and the corrected set in its own format."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.errors import UsageError
from cliploc.label.checking import job
from cliploc.label.editor.data_set import open_set
from tests.commands import cliploc_
from tests.web.asking import sent
from tests.web.review_server import served

SUSPECT = {"picture": "a.jpg", "name": "cat", "likelier": "", "x0": 1, "y0": 2, "x1": 21, "y1": 12, "reason": ""}
SUSPECTS = [
    {**SUSPECT, "kind": "wrong name", "chance": 0.4, "id": "12", "likelier": "dog"},
    {**SUSPECT, "kind": "missing", "chance": 0.7, "id": "", "name": "", "likelier": "dog", "x0": 30},
    {**SUSPECT, "kind": "odd", "chance": None, "id": "", "picture": "b.jpg", "reason": "a picture without a label"},
]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two pictures, the first with two boxes, one of them without area."""
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 20), "red").save(tmp_path / name)
    content = {
        "info": {"mine": 1.5},
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 12, "image_id": 7, "category_id": 2, "bbox": [1, 2, 20, 10], "who": "me"},
            {"id": 13, "image_id": 7, "category_id": 2, "bbox": [50, 2, 0, 10], "iscrowd": 0},
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 3, "name": "emu"}, {"id": 5, "name": "dog"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path / "set.json"


@pytest.fixture
def checked(labels: Path, tmp_path: Path) -> Path:
    """The folder of a check of these."""
    out = tmp_path / "checked"
    with job.RUN.opened(out, [], {"labels": str(labels), "pictures": str(tmp_path), "format": "COCO"}):
        pass
    (out / "suspects.json").write_text(json.dumps({"suspects": SUSPECTS}))
    return out


def corrected(out: Path) -> Any:
    return json.loads((out / "corrected" / "set.json").read_text())


def saved(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {key: state[key] for key in ("revision", "status", "boxes", "drawn", "answered")} | more


def test_a_set_is_opened_corrected_and_written_in_its_own_format(labels: Path) -> None:
    before = labels.read_bytes()
    out, failed = open_set(labels, None, None)
    assert (out.name, failed) == ("set_review", {})
    with served(out) as address:
        assert sent(f"{address}/exports", {})[1]["files"] == ["corrected/set.json"]
        assert (out / "corrected" / "set.json").read_bytes() == before
        _, state = sent(f"{address}/pictures/0")
        assert [(box["xyxy"], box["label"]) for box in state["boxes"]] == [([1, 2, 21, 12], 0), ([39, 2, 40, 12], 0)]
        first, odd = state["boxes"]
        drawn = {"xyxy": [3, 4, 13, 14], "label": 1, "draft": None}
        assert sent(f"{address}/pictures/0", saved(state, boxes=[{**first, "label": 2}, odd, drawn]))[0] == 200
        assert sent(f"{address}/exports", {})[0] == 200
    expected = json.loads(before)
    expected["annotations"][0]["category_id"] = 5
    added = {"id": 14, "image_id": 7, "category_id": 3, "bbox": [3, 4, 10, 10], "area": 100, "iscrowd": 0}
    expected["annotations"].append(added)
    assert corrected(out) == expected
    assert labels.read_bytes() == before


def test_suspects_of_a_check_come_first_and_answers_stay(checked: Path) -> None:
    out = open_set(checked, None, None)[0]
    assert out == checked / "review"
    with served(out) as address:
        margins = {one["name"]: one["margin"] for one in sent(f"{address}/pictures")[1]}
        assert margins == pytest.approx({"a.jpg": 0.3, "b.jpg": 0.9})
        _, state = sent(f"{address}/pictures/0")
        assert [(one["kind"], one.get("box"), one.get("xyxy")) for one in state["suspects"]] == [
            ("missing", None, [30, 2, 21, 12]), ("wrong name", 0, None),
        ]  # fmt: skip
        assert sent(f"{address}/pictures/0", saved(state, answered=[0]))[0] == 200
    open_set(checked, None, None)  # the same suspects
    with served(out) as address:
        assert sent(f"{address}/pictures")[1][0]["margin"] == pytest.approx(0.6)
        assert sent(f"{address}/pictures/0")[1]["answered"] == [0]


def test_what_cannot_be_opened_is_one_line(labels: Path, checked: Path, tmp_path: Path) -> None:
    out = open_set(labels, None, None)[0]
    with served(out) as address:
        assert "dropped in its pictures" in sent(f"{address}/names", {"name": "cat", "to": None})[1]["error"]
        assert sent(f"{address}/names", {"name": "cat", "to": "lynx"})[0] == 200
        assert sent(f"{address}/exports", {})[0] == 200
    assert [one["name"] for one in corrected(out)["categories"]] == ["cat", "emu", "dog", "lynx"]
    labels.write_text(labels.read_text().replace('"me"', '"you"'))
    with served(out) as address:
        assert "was changed since it was opened" in sent(f"{address}/exports", {})[1]["error"]
    with pytest.raises(UsageError, match=r"run of other labels, or .* was changed since"):
        open_set(labels, None, None)
    (checked / "suspects.json").unlink()
    with pytest.raises(UsageError, match=r"expected suspects.json in .*, found none: run its"):
        open_set(checked, None, None)
    result = cliploc_("review", out, "--pictures", tmp_path)
    assert (result.code, "expected --pictures and --out with a data set" in result.err) == (2, True)
