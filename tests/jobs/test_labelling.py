"""`benchmark --task labelling`: the numbers by hand, reviews that teach what annotate would learn, and the folder."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from cliploc import backbones
from cliploc.config import Options
from cliploc.datasets import AskedDataset, AskedPicture
from cliploc.errors import UsageError
from cliploc.jobs.annotate import annotate
from cliploc.jobs.annotation_edits import write_corrections
from cliploc.jobs.benchmark_labelling import LabellingTally, run_labelling
from cliploc.jobs.corrections import Correction
from cliploc.jobs.draft_scores import Work, work_on
from cliploc.jobs.plan import ModelSetup, Setting
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.jobs.reviewer import Reviewer, Walk
from cliploc.jobs.rows import rows_in
from cliploc.jobs.task import summed_up
from cliploc.report import write_report
from cliploc.values import ClassName
from tests.commands import PHOTOS, cliploc_, refused, succeeded
from tests.datasets import folders
from tests.jobs.test_teach import Job, engine_of
from tests.teaching.planted import SIDE, planted
from tests.tiny import tower

SETUPS = [ModelSetup(Options(device="cpu", recipe="fast"))]
SETTINGS = [Setting("one", 0, "cam")]


# --------------------------------------------------------------------------------------------------------- the numbers
def row(sample: str, order: str, seed: int, place: int | None, untaught: int, taught: list[int]) -> dict[str, Any]:
    """A picture with one name; its corrections are boxes to draw, but the first taught ones are drafts to delete."""
    return {
        "sample": sample, "setting": "s", "status": "ok", "reason": None, "order": order, "seed": seed, "place": place,
        "labels": [4], "boxes": [2], "untaught": [[0, untaught, 0]],
        "taught": [[[one if i == 0 else 0, one if i else 0, 0] for i, one in enumerate(taught)]],
    }  # fmt: skip


HAND = [
    row("a", "random", 0, 0, 3, [2]), row("b", "random", 0, None, 1, [1, 0]), row("c", "random", 0, None, 2, [0, 1]),
    row("a", "random", 1, None, 3, [2, 1]), row("b", "random", 1, 0, 1, [1]), row("c", "random", 1, None, 2, [0, 0]),
]  # fmt: skip


def test_numbers_by_hand() -> None:
    tally = LabellingTally([0, 1])
    found = summed_up([*HAND, {**HAND[0], "sample": "d", "status": "failed", "reason": "x"}], {"s": tally})["s"]
    curve = found["curves"]["random"]
    assert curve["left"] == [3, 2]
    assert curve["untaught"] == pytest.approx([200, 200])  # at the end b and c, then a and c: 1 + 2 + 3 + 2 of four
    assert curve["taught"] == pytest.approx([100, 50])
    assert curve["saved"] == pytest.approx([100, 150])
    assert curve["whole"] == pytest.approx([100, 100 * (2 + 0 + 1 + 1 + 1 + 0) / 6])
    assert curve["delete"] == pytest.approx([100, 0])
    assert curve["draw"] == pytest.approx([0, 50])
    assert curve["minutes_low"] == pytest.approx([100 * 7 / 60, 50 * 25 / 60])
    assert curve["minutes_high"] == pytest.approx([100 * 7 / 60, 50 * 35 / 60])
    assert curve["untaught_minutes_high"] == pytest.approx([200 * 35 / 60] * 2)
    # saved at first: a 1, b 0, c 2 in both draws. Then a 2; b 1; c 1 and 2; in the first draw 1 and 1, then 2 and 2.
    first, last = np.var([1, 0, 2], ddof=1) / 3, np.var([2, 1, 1.5], ddof=1) / 3 + np.var([1, 2], ddof=1) / 2
    assert curve["saved_error"] == pytest.approx([100 * math.sqrt(first), 100 * math.sqrt(last)])
    assert found["seeds"]["random"] == [pytest.approx([100, 50]), pytest.approx([100, 50])]
    assert (found["boxes"], found["nothing"], found["names"]) == (6, 200, 1)
    assert found["nothing_minutes_low"] == pytest.approx(200 * 25 / 60)
    assert (found["images"], found["evaluated"], len(found["failed"])) == (4, 3, 1)
    assert found["per_class"]["4"]["taught_1"] == pytest.approx(50)
    assert (found["per_class"]["4"]["pictures"], found["per_class"]["4"]["boxes"]) == (3, 6)
    turned = summed_up(HAND[::-1], {"s": LabellingTally([0, 1])})["s"]
    assert found == {**turned, "images": 4, "failed": found["failed"]}


def test_names_that_need_nothing_in_a_picture_count_as_nothing() -> None:
    empty = {**HAND[1], "labels": [], "boxes": [], "untaught": [], "taught": []}
    found = summed_up([HAND[0], empty], {"s": LabellingTally([0, 1])})["s"]
    assert found["curves"]["random"]["untaught"] == pytest.approx([150, 0])
    assert found["curves"]["random"]["saved_error"][1] is None  # of one picture
    none_left = summed_up([HAND[0]], {"s": LabellingTally([0, 1])})["s"]["curves"]["random"]
    assert (none_left["left"], none_left["taught"], none_left["minutes_low"][1]) == ([1, 0], [200, None], None)
    assert none_left["whole"] == [200, 200]


# ------------------------------------------------------------------------------------------------------------- reviews
@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "create", lambda *_, **__: tower("gap_cnn", (8, 8), seed=0))


class Planted(Job):
    """A dataset of pictures with planted things."""

    def __init__(self, root: Path, count: int, presence: float | None = 0.9, **kind: Any) -> None:
        super().__init__(root, count, presence, **kind)
        side = 2 * SIDE  # boxes belong to a larger original, which the file is a copy of
        samples = [
            AskedPicture(name, self.photos / name, (side, side), (0,), {0: 2 * one.box[None]})
            for name, one in self.things.items()
        ]
        classes = (ClassName("thing", ("thing", "object")),)
        self.dataset = AskedDataset("planted", self.photos, "report", "tune", classes, tuple(samples))

    def run(self, **more: Any) -> Any:
        given = {"seeds": 2, "steps": (0, 3, 6), "engine": self.engine, **more}
        return run_labelling(given.pop("dataset", self.dataset), SETUPS, SETTINGS, self.out, **given)

    def reviewer(self) -> Reviewer:
        return Reviewer(self.out / "drafts" / "one", self.dataset.samples, [0])


@pytest.fixture
def twenty(tmp_path: Path, tiny: None) -> Planted:
    return Planted(tmp_path, 20)


def test_what_the_reviews_leave_is_what_annotate_draws_after_the_same_corrections(twenty: Planted) -> None:
    twenty.run()
    rows = [one for one in rows_in(twenty.out) if (one["order"], one["seed"]) == ("random", 1)]
    assert len(rows) == len(twenty.things)
    places = {one["place"]: one["sample"] for one in rows if one["place"] is not None}
    assert [places[i] for i in range(6)] == Walk("random", 1).drawn(list(twenty.things))[:6]
    drafts = twenty.out / "drafts" / "one"
    assert not (drafts / "corrections.json").exists()
    for step, reviewed in ((0, []), (1, [places[i] for i in range(3)]), (2, [places[i] for i in range(6)])):
        if reviewed:
            corrected = {name: Correction([twenty.things[name].box.tolist()], [0], drafts=[None]) for name in reviewed}
            state = {name: {"status": "reviewed", "revision": 1} for name in reviewed}
            write_corrections(drafts, corrected, ReviewFolder(drafts)._run, state)
        annotate(
            twenty.dataset.root, ["thing|object"], drafts, teach=True, engine=twenty.engine, formats=("csv",), review=0,
            options=SETUPS[0].options,
        )  # fmt: skip
        shown = ReviewFolder(drafts)._folder
        for one in rows:
            name = one["sample"]
            if name in reviewed:
                continue
            work = work_on(shown.shown_row(name, unsure=False)["boxes"], twenty.things[name].box[None])
            found = Work(*one["taught"][0][step]) if one["labels"] else Work(0, 0, 0)
            assert found == work, (step, name)
        (drafts / "taught.jsonl").unlink(missing_ok=True)


def test_the_suggested_order_is_the_least_certain_first_as_it_is_after_each_step(
    twenty: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    twenty.run(seeds=1, steps=(0,))
    reviewer, seen = twenty.reviewer(), []
    margins = {name: float(i) for i, name in enumerate(reversed(twenty.things))}
    chosen = type(reviewer._folder).chosen

    def own(self: Any, picture: str) -> Any:
        found = chosen(self, picture)
        object.__setattr__(found, "margin", margins[picture] // 2)
        return found

    def taught(self: Reviewer, reviewed: Any) -> Mapping[str, Any]:
        seen.append(list(reviewed))
        margins[next(iter(twenty.things))] = -1.0  # the most certain one before is the least certain one then
        return {}

    monkeypatch.setattr(type(reviewer._folder), "chosen", own)
    monkeypatch.setattr(Reviewer, "_alone", {})
    monkeypatch.setattr(Reviewer, "_taught", taught)
    walked = reviewer.walked(Walk("suggested", 0), (0, 2, 3))
    first, *_, before_last, last = twenty.things
    assert {*seen[0]} == {last, before_last}
    assert seen[1][2] == first
    assert walked[first].place == 2
    assert len(walked[first].taught) == 2
    margins[first] = float(len(margins))
    orders = set()
    for seed in range(8):
        found = reviewer.walked(Walk("suggested", seed), (0, 2))
        orders.add((found[last].place, found[before_last].place))
        margins[first] = float(len(margins))
    assert orders == {(0, 1), (1, 0)}  # equally certain: by the seed


def test_a_name_that_the_model_does_not_know_has_nothing_but_boxes_to_draw_until_it_is_taught(
    tmp_path: Path, tiny: None
) -> None:
    job = Planted(tmp_path, 12, presence=None, seen=False)
    numbers = job.run().summary["one"]
    curve = numbers["curves"]["random"]
    assert curve["untaught"] == curve["untaught_draw"] == [100, 100, 100]
    assert curve["taught"][0] == 100
    assert curve["taught"][2] < 60
    assert numbers["nothing"] == 100


def test_the_folder_is_resumed_with_the_same_result(twenty: Planted) -> None:
    first = twenty.run()
    assert (first.computed, first.resumed) == (4, False)
    assert first.summary["one"]["taught"] < first.summary["one"]["untaught"]
    parts = sorted((twenty.out / "parts").glob("*.parquet"))
    whole = [path.read_bytes() for path in parts]
    parts[2].unlink()
    again = twenty.run()
    assert (again.computed, again.resumed, again.summary) == (1, True, first.summary)
    (twenty.out / "drafts/one/parts/00000.jsonl").unlink()
    assert (twenty.run().computed, [path.read_bytes() for path in parts]) == (0, whole)
    for other in ({"seeds": 3}, {"steps": (0, 3)}, {"asked": {"limit": 20}}):
        with pytest.raises(UsageError, match="holds a run with other settings"):
            twenty.run(**other)


def test_other_drafts_make_the_reviews_again(twenty: Planted) -> None:
    first = twenty.run()
    Image.new("RGB", (SIDE, SIDE), (200, 0, 0)).save(twenty.dataset.samples[4].path)
    twenty.things["04.png"] = planted(99)
    again = twenty.run()
    assert again.computed == 4
    assert again.summary != first.summary


def test_a_picture_that_fails_is_named_once(twenty: Planted) -> None:
    def failing(row: Mapping[str, Any]) -> dict[str, Any]:
        if row["picture"] != "03.png":
            return {**row}
        return {"picture": row["picture"], "blake2b": row["blake2b"], "status": "failed", "reason": "broken"}

    result = twenty.run(engine=engine_of(twenty.things, 0.9, failing))
    assert result.failed == {"03.png": "broken"}
    numbers = result.summary["one"]
    assert numbers["failed"] == [{"sample": "03.png", "reason": "broken"}]
    assert (numbers["images"], numbers["evaluated"], numbers["curves"]["random"]["left"][0]) == (20, 19, 19)
    assert "19 of 20 samples × 1 settings done" in result.closing(1.0)


def test_the_report_has_the_curve_and_the_tables(twenty: Planted) -> None:
    result = twenty.run()
    page = write_report(twenty.out).read_text()
    root = json.loads((twenty.out / "manifest.json").read_text())["dataset"]["root"]
    for words in (f"Labelling: {Path(root).name}, 20 pictures", "Corrections left", "suggested, taught", "± "):
        assert words in page
    assert "Each name" not in page
    lines = list(csv.DictReader((twenty.out / "tables.csv").open()))
    assert [(one["order"], one["reviewed"]) for one in lines] == [
        (order, step) for order in ("random", "suggested") for step in ("0", "3", "6")
    ]
    curve = result.summary["one"]["curves"]["suggested"]
    assert [float(one["taught"]) for one in lines[3:]] == pytest.approx(curve["taught"])
    [name] = csv.DictReader((twenty.out / "names.csv").open())
    assert (name["name"], name["boxes"]) == ("thing", "20")
    again = write_report(twenty.out).read_text()
    assert again == page
    summary = json.loads((twenty.out / "summary.json").read_text())
    summary["settings"]["one"]["curves"]["random"]["whole"].pop()
    (twenty.out / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=r"is damaged \(the numbers of one\): run the benchmark again"):
        write_report(twenty.out)


# ---------------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name, word in (("cat", "cat"), ("dogs", "dog"), ("coffee", "sun")):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            small = photo.resize((photo.width // 4, photo.height // 4))
        (root / "images").mkdir(parents=True, exist_ok=True)
        small.save(root / "images" / f"{name}.jpg")
        folders.xml(root / f"annotations/{name}.xml", small.size, [(word, (3, 3, small.width - 3, small.height), 0)])
    return root


@pytest.mark.usefixtures("one_model")
def test_the_command_reads_a_folder_and_prints_its_numbers(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("benchmark", "--task", "labelling", "--dataset", photos, "--truth", "voc", "--seeds", "1", "--out", out)
    words = (*words, "--recipe", "fast")
    ran = succeeded(*words)
    assert "whole folder" in ran.out
    assert "mini_fast-recipe" in ran.out
    assert "3 of 3 samples × 1 settings done" in ran.err
    assert ran.err.count("does not know 'sun'") == 1
    assert "Each name" in (out / "report.html").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["reviewed"], manifest["seeds"], manifest["settings"][0]["min_score"]) == ([0], 1, 0.2)
    again = cliploc_(*words, "--json")
    assert "resumed" in again.err
    assert json.loads(again.out)["settings"].keys() == {"mini_fast-recipe"}
    named = ["voc" if one == photos else one for one in words if one not in ("--truth", "voc")]
    by_name = cliploc_(*named, "--root", photos)
    assert (by_name.code, by_name.out, "resumed" in by_name.err) == (0, ran.out, True)
    other = cliploc_(*words, "--min-score", "0.3")
    assert (other.code, "holds a run with other settings" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "labelling", "--dataset", "FOLDER"], "expected --truth, the layout of"),
        (["--task", "labelling", "--dataset", "FOLDER", "--truth", "vok"], "unknown dataset 'vok'"),
        (["--task", "labelling", "--dataset", "FOLDER", "--truth", "voc", "--root", "x"], "got both"),
        (["--task", "labelling", "--dataset", "FOLDER", "--truth", "voc", "--save-maps"], "--save-maps is not an"),
        (["--task", "labelling", "--dataset", "FOLDER", "--truth", "voc", "--learnt", "x"], "--learnt is not an"),
        (["--task", "labelling", "--dataset", "FOLDER", "--truth", "reviewed", "--split", "x"], "--split is an option"),
        (["--task", "presence", "--dataset", "coco", "--root", "x", "--truth", "voc"], "--truth is an option of"),
        (["--dataset", "coco", "--root", "x", "--seeds", "2"], "--seeds is an option of --task labelling"),
        (["--dataset", "coco"], "expected --root, the folder of coco"),
        (["--task", "labelling", "--dataset", "FOLDER", "--truth", "voc", "--refine", "guided"], "can be taught"),
    ],
)
def test_what_is_refused_is_one_line(photos: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    places = [str(photos) if one == "FOLDER" else one for one in arguments]
    assert said in refused("benchmark", "--out", tmp_path / "out", *places)
