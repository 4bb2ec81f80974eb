"""`check` on a few photographs of the package, two of whose labels are planted errors."""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import cliploc
from cliploc.label import check
from cliploc.label.checking import job
from cliploc.support.files import demo_folder
from tests.commands import cliploc_, refused

PHOTOS = ("cat.jpg", "coffee.jpg", "dogs.jpg", "osprey.jpg", "otters.jpg", "wren.jpg")
PLANTED = {"otters.jpg": "dog", "wren.jpg": "cup"}  # the new name of its first box


def instances() -> dict[str, Any]:
    """COCO's instances of the photographs; ids are texts, as others write them."""
    photos = [one for one in json.loads((demo_folder() / "photos.json").read_text()) if one["file"] in PHOTOS]
    annotations = []
    for one in photos:
        for place, box in enumerate(one["boxes"]):
            name, (x0, y0, x1, y1) = box["name"] if place else PLANTED.get(one["file"], box["name"]), box["xyxy"]
            facts = {"id": f"{one['file']}-{place}", "image_id": one["file"], "category_id": name}
            annotations.append({**facts, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    return {
        "images": [{"id": one["file"], "file_name": one["file"]} for one in photos],
        "annotations": annotations,
        "categories": [{"id": name, "name": name} for name in {one["category_id"] for one in annotations}],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels beside their pictures, checked by the command line once."""
    folder = tmp_path_factory.mktemp("set")
    for name in PHOTOS:
        shutil.copyfile(demo_folder() / name, folder / name)
    content = instances()
    content["annotations"].append({**content["annotations"][0], "id": "twice"})
    content["annotations"].append({**content["annotations"][0], "id": "empty", "bbox": [5, 5, 0, 9]})
    (folder / "labels.json").write_text(json.dumps(content))
    (folder / "said.json").write_text(cliploc_("check", folder / "labels.json", "--out", folder / "out", "--json").out)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_planted_names_are_the_first_suspects_with_the_right_name(folder: Path) -> None:
    suspects = table(folder / "out" / "suspects.csv")
    names = [(one["picture"], one["name"], one["likelier"]) for one in suspects if one["kind"] == "wrong name"]
    assert {*names[:2]} == {("otters.jpg", "dog", "otter"), ("wren.jpg", "cup", "bird")}
    assert [(one["id"], one["reason"]) for one in suspects if one["kind"] == "double"] == [
        ("twice", "the same as cat.jpg-0")
    ]
    assert [(one["id"], one["reason"]) for one in suspects if one["kind"] == "odd"] == [("empty", "without area")]


def test_every_label_has_a_row_with_its_own_id(folder: Path) -> None:
    rows = table(folder / "out" / "labels.csv")
    content = json.loads((folder / "labels.json").read_text())
    assert {(one["id"], one["picture"], one["name"]) for one in rows} == {
        (one["id"], one["image_id"], one["category_id"]) for one in content["annotations"]
    }
    judged = {one["id"]: one for one in rows}
    assert float(judged["wren.jpg-0"]["wrong_name"]) > 0.5
    unknown = judged["empty"]["wrong_name"], judged["empty"]["double"], judged["cat.jpg-0"]["badly_placed"]
    assert unknown == ("", "", "")


def test_the_document_is_that_of_the_file_and_the_page_shows_the_suspects(folder: Path) -> None:
    said = json.loads((folder / "said.json").read_text())
    assert said == json.loads((folder / "out" / "suspects.json").read_text())
    labels = len(instances()["annotations"]) + 2
    assert (said["format"], said["labels"], said["pictures"]) == ("COCO", labels, len(PHOTOS))
    assert said["kinds"]["wrong name"]["wrong_of_first"] == pytest.approx(
        sum(one["chance"] for one in said["suspects"] if one["kind"] == "wrong name"), abs=0.1
    )
    page = (folder / "out" / "check.html").read_text()
    assert page.count("<img src=") == len(said["suspects"])
    assert "few: names are judged nearly by the text alone" in page


def test_the_same_command_reads_nothing_again_and_changes_no_file_of_the_set(folder: Path) -> None:
    before, out = digests(folder), digests(folder / "out")
    result = cliploc_("check", folder / "labels.json", "--out", folder / "out")
    assert "0 of these pictures read now" in result.err
    assert {name: one for name, one in digests(folder / "out").items() if name != "run.sqlite"} == {
        name: one for name, one in out.items() if name != "run.sqlite"
    }
    assert digests(folder) == before
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_stopped_check_goes_on_and_a_corrected_label_costs_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, real, seen = instances(), job.load, list[str]()

    def load(path: Path) -> Any:
        seen.append(path.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(path)

    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(content))
    with monkeypatch.context() as patched:
        patched.setattr(job, "load", load)
        with pytest.raises(KeyboardInterrupt, match=r"2 pictures in .* are kept"):
            check(labels, folder, tmp_path / "out")
    assert check(labels, folder, tmp_path / "out").computed == len(PHOTOS) - 2
    content["annotations"][0]["category_id"] = "dog"
    labels.write_text(json.dumps(content))
    again = check(labels, folder, tmp_path / "out")
    assert again.computed == 0
    assert again.labels[0].name == "dog"
    with pytest.raises(cliploc.UsageError, match="holds a run with other settings"):
        check(labels, folder, tmp_path / "out", min_presence=0.9)


def test_names_that_the_model_does_not_know_and_one_name_alone(folder: Path, tmp_path: Path) -> None:
    content = instances()
    for one in content["annotations"]:
        one["category_id"] = "zorblat"
    content["categories"] = [{"id": "zorblat", "name": "zorblat"}]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    checked = check(tmp_path / "labels.json", folder)
    assert any("does not know zorblat: judged by the set alone" in line for line in checked.notes)
    assert any("nothing can be learnt" in line for line in checked.notes)
    assert {one.wrong_name for one in checked.labels} == {None}


def test_folders_of_classes(folder: Path, tmp_path: Path) -> None:
    for name, kind in (("cat.jpg", "cat"), ("wren.jpg", "cat"), ("dogs.jpg", "dog"), ("otters.jpg", "otter")):
        (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, tmp_path / "set" / kind / name)
    (tmp_path / "set" / "cat" / "broken.jpg").write_text("no picture")
    result = cliploc_("check", tmp_path / "set", "--out", tmp_path / "out")
    assert (result.code, "failed: cat/broken.jpg: not a picture" in result.err) == (1, True)
    rows = table(tmp_path / "out" / "labels.csv")
    worst = max(rows, key=lambda one: float(one["wrong_name"]))
    assert worst["id"] == worst["picture"] == "cat/wren.jpg"
    assert {one["double"] for one in rows} == {one["badly_placed"] for one in rows} == {""}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing.json"], "expected labels in nothing.json, found no such file: check the path"),
        (["bad.json"], "expected COCO's JSON, "),
        (["labels.csv", "--out", "."], "is read by this run, and would be overwritten: choose another --out"),
        (
            ["labels.csv", "--out", "taken"],
            "taken holds check.html, not written by this run",
        ),
        (["labels.csv", "--pictures", "nowhere"], "expected a folder of pictures"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(demo_folder() / "cat.jpg", "cat.jpg")
    Path("bad.json").write_text("{}")
    Path("labels.csv").write_text("path,label,x0,y0,x1,y1\ncat.jpg,cat,0,0,400,300\n")
    Path("taken").mkdir()
    Path("taken/check.html").write_text("mine")
    assert line in refused("check", *(arguments if "--out" in arguments else [*arguments, "--out", "out"]))
    assert Path("labels.csv").read_text().startswith("path,label")
