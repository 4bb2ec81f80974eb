"""The server of the review editor, without a browser: what it takes, what it refuses in one line, what it writes."""

import base64
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc import Localizer, towers
from cliploc.boxes import hot_levels
from cliploc.errors import UsageError
from cliploc.images import rle
from cliploc.label.annotate import annotate
from cliploc.label.corrections import ReviewedPicture, review_of
from cliploc.label.editor import review_folder
from cliploc.label.editor.review_folder import FLAT, ReviewFolder, Suggester, options_of, valley
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import LabellingRun
from cliploc.support.files import locked
from tests.commands import cliploc_
from tests.label.labelled import held
from tests.tiny import tower
from tests.web.asking import get, sent
from tests.web.review_server import corrections, served

LABELS = ["red", "blue"]
OPTIONS = {
    "device": "cpu", "recipe": "fast", "min_presence": 0, "min_score": 0, "formats": ["coco", "csv"], "max_boxes": 1,
}  # fmt: skip


def create(model: str = "mini", pretrained: str | None = None, device: str = "cpu", *, precision: str = "fp32"):
    return tower("gap_cnn", (8, 8), seed=0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(towers, "create", create)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path]:
    """Photographs, and the folder with the drafts and masks of them; tests copy it."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "create", create)
        annotate(root, LABELS, root.parent / "done", masks=True, **OPTIONS)
    return root, root.parent / "done"


@pytest.fixture
def out(done, tmp_path) -> Path:
    shutil.copytree(done[1], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def address(out) -> Iterator[str]:
    with served(out) as address:
        yield address


def box(*xyxy: float, label: int = 0, **more: object) -> dict:
    return {"xyxy": xyxy, "label": label, "draft": None, **more}


def saved(*boxes: dict, revision: int = 0, status: str = "none") -> dict:
    return {"revision": revision, "status": status, "boxes": boxes}


def test_a_page_of_another_folder_at_this_port_changes_nothing(out, address):
    status, error_text = sent(f"{address}/pictures/1?of=another", saved(box(10, 10, 30, 20)))
    assert (status, "another folder" in error_text["error"]) == (409, True)
    for path in ("/pictures/1", "/pictures", "/images/1.jpg", "/learning"):
        assert sent(f"{address}{path}?of=another")[0] == 409
    for path in ("/exports", "/learning", "/learning/undo"):
        assert "another folder" in sent(f"{address}{path}?of=another", {})[1]["error"]
    assert corrections(out)["reviews"] == {}


def test_the_editor_shows_the_pictures_of_the_last_call_and_keeps_corrections_of_the_others(done, out):
    photos, _ = done
    with served(out) as address:
        assert sent(f"{address}/pictures/2", saved(box(10, 10, 30, 20), status="reviewed"))[0] == 200
    annotate(photos, LABELS, out, masks=True, limit=2, **OPTIONS)
    for _ in range(2):  # writing the exports again changes nothing
        with served(out) as address:
            assert [one["name"] for one in sent(f"{address}/pictures")[1]] == ["a.png", "b.png"]
            assert sent(f"{address}/exports", {})[0] == 200
        assert len(json.loads((out / "coco.json").read_text())["images"]) == 2
    annotate(photos, LABELS, out, masks=True, **OPTIONS)
    with served(out) as address:
        assert sent(f"{address}/pictures/2")[1]["boxes"][0]["xyxy"] == [10, 10, 30, 20]


def test_what_is_saved_is_on_the_disk_and_in_the_exports_of_a_later_call(out, address):
    status, entries = sent(f"{address}/pictures")
    assert (status, [one["name"] for one in entries]) == (200, ["a.png", "b.png", "c.png"])
    _, state = sent(f"{address}/pictures/1")
    [draft] = state["boxes"][:1]
    assert draft["draft"] == 0
    ring = [10, 10, 30, 10, 30, 20, 10, 20]
    hole = [14, 12, 18, 12, 18, 16, 14, 16]
    boxes = [draft, box(10, 10, 30, 20, polygons=[[ring, hole]]), box(1, 2, 5, 4)]
    answer = sent(f"{address}/pictures/1", saved(*boxes, status="reviewed"))
    assert answer == (200, {"revision": 1})
    assert sent(f"{address}/pictures/0", saved(*sent(f"{address}/pictures/0")[1]["boxes"], status="skipped"))[0] == 200
    read = corrections(out)
    statuses = {"b.png": "reviewed", "a.png": "skipped"}
    assert read["reviews"] == {name: {"status": one, "revision": 1} for name, one in statuses.items()}
    assert list(read["pictures"]) == ["b.png"], (
        "a person who says nothing of the boxes leaves the drafts, with their scores"
    )
    one = read["pictures"]["b.png"]
    masks = [rle.decode({"size": [40, 60], "counts": counts}) for counts in one["masks"]]
    assert one["masks"][0] == draft["mask"]
    assert (masks[1].sum(), masks[1][13, 15]) == (20 * 10 - 4 * 4, False)
    assert masks[2].sum() == 4 * 2, "of a box that was drawn all pixels"
    before = (out / "coco.json").read_bytes()
    status, answer = sent(f"{address}/exports", {})
    assert (status, "coco.json" in answer["files"]) == (200, True)
    written = json.loads((out / "coco.json").read_text())
    assert (out / "coco.json").read_bytes() != before
    mine = [one for one in written["annotations"] if one["image_id"] == 2]
    assert [one["score"] for one in mine] == [1.0] * 3


def test_a_later_call_of_annotate_keeps_what_was_saved(done, out):
    with served(out) as address:
        sent(f"{address}/pictures/1", saved(box(1, 2, 5, 4), status="reviewed"))
        sent(f"{address}/exports", {})
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    result = annotate(done[0], LABELS, out, masks=True, **OPTIONS)
    assert (result.corrected, result.reviewed, result.computed) == (1, 1, 0)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before, "the button wrote what the command writes"
    with ReviewFolder.opened(out) as folder:
        assert folder.state(1)["boxes"][0]["xyxy"] == [1, 2, 5, 4]
        assert (folder.state(1)["status"], folder.state(1)["revision"]) == ("reviewed", 1)


def test_a_save_and_the_list_after_it_look_at_its_own_picture_only(out, monkeypatch):
    """In a folder of ten thousand, all of them take longer than the save."""
    visible = []
    with ReviewFolder.opened(out) as folder:
        first = folder.entries()
        with monkeypatch.context() as patch:
            complete = AnnotatedFolder.reviewed
            patch.setattr(
                AnnotatedFolder, "reviewed", lambda self, *of: visible.append(of[0].id) or complete(self, *of)
            )
            revisions = [0, 0, 0]
            for number, status in ((1, "reviewed"), (0, "none"), (1, "skipped"), (2, "reviewed"), (1, "reviewed")):
                boxes = [box(1, 2, 5, 4)] if number else []
                message = saved(*boxes, revision=revisions[number], status=status)
                revisions[number] = folder.save(number, msgspec.convert(message, ReviewedPicture))
                assert folder.entries()[number]["revision"] == revisions[number]
                assert folder.facts()["names"] == LABELS
            counted, listed = len(folder.run.reviewed()), folder.entries()
        assert visible == ["b.png", "a.png", "b.png", "c.png", "b.png"]
        assert counted == 2
    with ReviewFolder.opened(out) as again:
        assert len(again.run.reviewed()) == counted
        listed_again = again.entries()
        assert listed != first
    for entry in (*listed, *listed_again):
        del entry["margin"]  # by now what was reviewed counts for the others
    assert listed_again == listed


def test_others_save_while_the_polygons_of_a_picture_are_drawn(address, monkeypatch):
    begun, others = threading.Event(), threading.Event()

    def slow(drafts, picture, passed):
        if passed.status == "reviewed":
            begun.set()
            assert others.wait(20)
        return review_of(drafts, picture, passed)

    monkeypatch.setattr(review_folder, "review_of", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sent, f"{address}/pictures/0", saved(box(1, 2, 5, 4), status="reviewed"))
        assert begun.wait(20)
        assert sent(f"{address}/pictures/1", saved(box(1, 2, 5, 4))) == (200, {"revision": 1})
        others.set()
        assert first.result() == (200, {"revision": 1})


def test_a_folder_that_cannot_be_written_is_said_and_nothing_counts_as_saved(out, monkeypatch):
    before = held(out)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with served(out) as address:
            status, answer = sent(f"{address}/pictures/0", saved(box(1, 2, 5, 4)))
            assert (status, answer["error"].startswith(f"cannot write {out / 'run.sqlite'}")) == (507, True)
            page = sent(address)[1]
            assert "what you change is not saved" in page
            assert "Everything is saved" not in page
    assert held(out) == before
    with served(out) as address:
        assert "Everything is saved" in sent(address)[1]
        assert sent(f"{address}/pictures/0", saved(box(1, 2, 5, 4))) == (200, {"revision": 1})


def test_two_editors_and_annotate_share_a_folder(done, out):
    photos = shutil.copytree(done[0], out.parent / "more")
    shutil.copy(photos / "a.png", photos / "d.png")
    with served(out) as one, served(out) as other:
        assert sent(f"{one}/pictures/0", saved(box(1, 2, 5, 4)))[0] == 200
        assert sent(f"{other}/pictures/0", saved(box(2, 2, 9, 9)))[0] == 409
        assert sent(f"{other}/pictures")[1][0]["revision"] == 1
        assert annotate(photos, LABELS, out, masks=True, **OPTIONS).computed == 1
        assert sent(f"{one}/pictures/1", saved(box(1, 2, 5, 4)))[0] == 200
        with locked(out):
            assert "another run is writing" in sent(f"{one}/exports", {})[1]["error"]
    assert list(corrections(out)["pictures"]) == ["a.png", "b.png"]


def test_an_editor_that_is_open_while_names_are_added_is_told(done, out, address):
    annotate(done[0], [*LABELS, "green"], out, masks=True, **OPTIONS)
    for path, body in (("", None), ("/1", None), ("/1", saved(status="later"))):
        status, error_text = sent(f"{address}/pictures{path}", body)
        assert (status, "open the folder again" in error_text["error"]) == (409, True)
    assert sent(f"{address}/exports", {})[0] == 409
    assert corrections(out)["reviews"] == {}


def test_the_older_tab_is_told_and_overwrites_nothing(address):
    assert sent(f"{address}/pictures/0", saved(box(1, 1, 9, 9)))[0] == 200
    status, answer = sent(f"{address}/pictures/0", saved(box(2, 2, 9, 9)))
    assert (status, answer["error"]) == (409, "expected revision 1 of this picture, got 0: load it again")
    assert sent(f"{address}/pictures/0")[1]["boxes"][0]["xyxy"] == [1, 1, 9, 9]
    assert sent(f"{address}/pictures/0", saved(box(2, 2, 9, 9), revision=1)) == (200, {"revision": 2})


BAD = {
    "no JSON": (b"{", 422, "expected what the editor sends"),
    "no object": ([], 422, "Expected `object`, got `array`"),
    "another key": ({**saved(), "path": "/etc/passwd"}, 422, "unknown field `path`"),
    "a status of its own": (saved(status="done"), 422, "Invalid enum value 'done'"),
    "a label that is not there": (saved(box(1, 1, 2, 2, label=2)), 422, "expected labels below 2, got 2"),
    "a draft that is not there": (saved({**box(1, 1, 2, 2), "draft": 99}), 422, "expected drafts below"),
    "a box outside": (saved(box(100, 100, 120, 120)), 422, "expected boxes inside the picture, with a width"),
    "no number": (saved(box(1, 1, float("inf"), 2)), 422, "JSON is malformed"),
    "a mask of another size": (saved(box(1, 1, 2, 2, mask="22")), 422, "expected masks of the picture's size"),
    "no mask": (saved(box(1, 1, 2, 2, mask="é")), 422, "expected a mask as COCO's run lengths"),
    "a polygon far outside": (saved(box(1, 1, 2, 2, polygons=[[[1, 1, 9e5, 1, 2, 2]]])), 422, "far outside"),
    "too many boxes": (saved(*[box(1, 1, 2, 2)] * 20_001), 422, "length <= 20000"),
    "too much": (b" " * 4_000_001, 413, "expected at most 4 million bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_in_one_line(out, address, name):
    body, code, error_text = BAD[name]
    status, answer = sent(f"{address}/pictures/0", body)
    assert (status, error_text in answer["error"]) == (code, True), answer
    assert "\n" not in answer["error"]
    assert corrections(out) == {"pictures": {}, "reviews": {}}


def test_only_pictures_of_the_run_by_number(address):
    for path in ("/pictures/3", "/images/3.jpg", "/thumbnails/99.jpg"):
        status, answer = sent(f"{address}{path}")
        number = path.strip("/.jpg").split("/")[-1]
        assert (status, answer["error"]) == (404, f"expected the number of a picture below 3, got {number}")
    other = "/images/a.png /parts/0.jpg /images/..%2f..%2fetc/passwd /pictures/-1 /pictures/1e0 /run.sqlite"
    for path in other.split():
        assert sent(f"{address}{path}") == (404, {"error": "There is no such address here."})
    status, _, headers = get(f"{address}/images/0.jpg")
    assert (status, headers["content-type"]) == (200, "image/jpeg")


@pytest.mark.parametrize("threshold", ["auto", 0, 0.7, None])
def test_a_suggestion_begins_with_the_threshold_of_the_models_boxes(done, threshold):
    options = {"device": "cpu", "recipe": "fast", "min_presence": 0, "threshold": threshold}
    suggester = Suggester("mini", **options)
    with Image.open(done[0] / "a.png") as picture:
        image = picture.convert("RGB")
    found = Localizer("mini", **options)(image, LABELS)
    name = LABELS[int(found.maps.max(axis=(1, 2)).argmax())]
    found = Localizer("mini", **options)(image, [name])
    _, theirs, _ = suggester.heat(image, 0, name)
    [level] = hot_levels(found.maps, found.threshold)
    assert theirs == pytest.approx(level / found.maps.max(), abs=1e-6)
    y, x = np.unravel_index(found.heatmaps[0].argmax(), found.heatmaps[0].shape)
    at = (int(x), int(y))
    assert suggester.box(image, 0, name, None, at) == suggester.box(image, 0, name, theirs, at)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "fast", "threshold": "auto", "second_look": False},
        {"method": "grad_cam", "method_options": {"block": -2}, "scales": (1, 1.5), "flip": True, "image_size": 96},
    ],
)
def test_the_model_is_asked_as_the_drafts_were_made(options):
    drafted = Localizer("mini", **options).describe()
    assert Localizer("mini", **options_of(json.loads(json.dumps(drafted)))).describe() == drafted


def test_a_suggestion_is_a_box_of_this_picture(address):
    status, answer = sent(f"{address}/pictures/0/suggestion", {"name": "red"})
    assert (status, answer["heat"].startswith("data:image/png;base64,")) == (200, True)
    for request, error_text in [
        ({"name": "red|@/etc/passwd"}, "expected a name, such as cat or cat|kitten"),
        ({"name": "dog"}, "expected a label of this run, got 'dog'"),
        ({"name": "red", "threshold": 2}, "Expected `float` < 1"),
        ({"name": "red", "at": [1]}, "length 2"),
        ({}, "missing required field `name`"),
    ]:
        status, answer = sent(f"{address}/pictures/0/suggestion", request)
        assert status in (409, 422)
        assert error_text in answer["error"]
    for name in LABELS:
        answer = sent(f"{address}/pictures/0/suggestion", {"name": name})[1]
        assert answer["said"].endswith("click in a hot region to make a box"), "also where the model finds none"
        with Image.open(io.BytesIO(base64.b64decode(answer["heat"].partition(",")[2]))) as image:
            values = np.asarray(image)
        assert values.shape == (40, 60)
        y, x = np.unravel_index(values.argmax(), values.shape)
        status, answer = sent(
            f"{address}/pictures/0/suggestion",
            {"name": f"{name.upper()}|cat", "threshold": 0.5, "at": [int(x), int(y)]},
        )
        if values.max() == 0:  # a map without any heat
            assert (status, "the map is not hot there" in answer["error"]) == (409, True)
            continue
        assert answer["label"] == LABELS.index(name)
        x0, y0, x1, y1 = answer["xyxy"]
        assert 0 <= x0 <= x < x1 <= 60
        assert 0 <= y0 <= y < y1 <= 40
        region = rle.decode({"size": [40, 60], "counts": answer["mask"]})
        assert (region[y, x], region.any(axis=0).sum() <= x1 - x0) == (True, True)


def test_names_are_added_changed_joined_and_removed(out):
    with served(out) as address:
        drawn = saved(box(10, 10, 30, 20, label=1), status="reviewed")
        assert sent(f"{address}/pictures/0", drawn)[0] == 200
        assert sent(f"{address}/names", {"name": "blue", "to": "sky"}) == (200, {})
        assert [*LabellingRun.open(out).names] == ["red", "sky"]
        assert sent(f"{address}/pictures/0")[1]["boxes"][0]["label"] == 1
        for name, to, line in (("blue", "sea", "blue"), ("sky", " ", "expected a name, got ' '")):
            status, answer = sent(f"{address}/names", {"name": name, "to": to})
            assert (status, line in answer["error"]) == (409, True)
        assert sent(f"{address}/names", {"name": "sky", "to": "red"})[0] == 200
        [one] = sent(f"{address}/pictures/0")[1]["boxes"]
        assert (one["label"], one["xyxy"]) == (0, [10, 10, 30, 20])
        assert "only name" in sent(f"{address}/names", {"name": "red", "to": None})[1]["error"]
        assert sent(f"{address}/names", {"name": None, "to": " owl "}) == (200, {})
        assert "no label has, got owl" in sent(f"{address}/names", {"name": None, "to": "owl"})[1]["error"]
        again = saved(box(10, 10, 30, 20, label=1), status="reviewed", revision=1)
        assert sent(f"{address}/pictures/0", again)[0] == 200
        assert sent(f"{address}/pictures/0")[1]["boxes"][0]["label"] == 1


def test_a_box_is_split_where_its_heat_is_least(address):
    profile = np.concatenate([np.linspace(0, 1, 30), np.linspace(1, 0.2, 20), np.linspace(0.2, 0.8, 30), np.zeros(20)])
    depth, place = valley(profile)
    assert (depth, place) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.5, abs=0.02))
    assert valley(np.ones(50))[0] > FLAT
    assert valley(np.ones(1)) == (1.0, 0.5)
    status, cut = sent(f"{address}/pictures/0/suggestion", {"name": "red", "split": [10, 5, 40, 15]})
    assert status == 200
    low, high = ((10, 40), (5, 15))[cut["axis"]]
    assert low < cut["line"] < high


@pytest.mark.parametrize("size", [(9, 9), (60, 40)])
def test_a_replaced_picture_and_a_folder_that_is_none_are_named(done, out, tmp_path, size):
    root = shutil.copytree(done[0], tmp_path / "moved")
    with LabellingRun.open(out) as run:
        run.store["root"] = str(root)
    Image.new("RGB", size).save(root / "b.png")
    (root / "c.png").unlink()
    with served(out) as address:
        assert [one["name"] for one in sent(f"{address}/pictures")[1]] == ["a.png", "b.png"]
        status, answer = sent(f"{address}/images/1.jpg")
        assert (status, answer["error"].startswith("b.png was replaced since it was annotated")) == (409, True)
    shutil.rmtree(root)
    with pytest.raises(UsageError, match="found none of them: put the pictures back"), ReviewFolder.opened(out):
        pass
    result = cliploc_("review", tmp_path)
    assert result.code == 2
    assert "expected the --out folder of annotate or check, COCO's JSON, " in result.err


def test_the_end_of_a_review_says_what_comes_next(out, monkeypatch):
    monkeypatch.setattr("cliploc.web.server.run", lambda *_: None)
    with LabellingRun.open(out) as run:
        run.command = "cliploc annotate photos -p red"
    result = cliploc_("review", out, "--port", 0)
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[-1] == "next: cliploc annotate photos -p red"


def test_many_names_get_colours_by_what_is_found(out):
    with ReviewFolder.opened(out) as folder:
        folder.names = [f"name {number}" for number in range(60)]
        assert len(folder.facts()["colours"]) == 60
