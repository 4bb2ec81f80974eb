"""A folder that teaches itself, and corrections that teach it: which drafts change, and which never do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replaced
from PIL import Image

from cliploc import towers
from cliploc.errors import UsageError
from cliploc.find.learnt import load_learnt, packed
from cliploc.images.geometry import Frame, iou_matrix
from cliploc.images.rle import decode, encode
from cliploc.label.annotate import annotate
from cliploc.label.drafts import Work, work_on
from cliploc.label.results import AnnotateResult
from cliploc.label.teach.teach import (
    AGREED,
    FEWEST,
    FEWEST_REVIEWED,
    Appearance,
    FolderLearner,
    _inside,
    _Presence,
    gains,
    lessons_of,
)
from cliploc.runs.engine import MakeWorker, Part, Shard
from cliploc.runs.label_store import Candidate, Correction, LabellingRun, PictureResult
from cliploc.runs.picture_files import content_digest
from cliploc.support.reporter import SILENT, Reporter
from tests.find.teaching.planted import SIDE, Planted, planted
from tests.label.labelled import correct, taught
from tests.tiny import tower

OPTIONS: dict[str, Any] = {"device": "cpu", "recipe": "fast", "formats": ["coco"], "shard": 8}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "create", lambda *_, **__: tower("gap_cnn", (8, 8), seed=0))


def engine_of(
    things: Mapping[str, Planted],
    presence: float | None,
    change: Callable[[PictureResult], PictureResult] = lambda row: row,
    texts: Sequence[str] = ("thing",),
) -> Callable[..., None]:
    """An engine that finds in every picture the corner of its thing, and keeps its planted lesson."""

    def run(
        shards: Sequence[Shard], _: MakeWorker, on_part: Callable[[Part], None], reporter: Reporter = SILENT
    ) -> None:
        for shard in shards:
            rows = []
            for one in shard.samples:
                box = things[one.id].box
                corner = [float(box[0]), float(box[1]), float(box[0]) + 16, float(box[1]) + 16]
                known = presence is not None
                boxes = [Candidate(0, (corner[0], corner[1], corner[2], corner[3]), 0.7, 0.7)] * known
                features = packed(things[one.id].lesson, texts)
                row = PictureResult(one.id, content_digest(one), None, SIDE, SIDE, [], {0: presence}, boxes, features)
                rows.append(change(row))
            on_part(Part(shard.index, rows))
            reporter.images(len(rows))

    return run


class Job:
    """A folder of pictures with planted things."""

    def __init__(self, root: Path, count: int, presence: float | None = 0.9, **kind: Any) -> None:
        self.photos, self.out, self.names = root / "photos", root / "out", ["thing"]
        self.photos.mkdir(parents=True)
        self.things = {f"{i:02d}.png": planted(i, **kind) for i in range(count)}
        for number, name in enumerate(self.things):
            Image.new("RGB", (SIDE, SIDE), (number, number, 90)).save(self.photos / name)
        self.engine = engine_of(self.things, presence)

    def run(self, **more: Any) -> AnnotateResult:
        return annotate(self.photos, self.names, self.out, engine=self.engine, **{**OPTIONS, **more})

    def drafts(self) -> dict[str, np.ndarray]:
        read = json.loads((self.out / "coco.json").read_text())
        names = {one["id"]: one["file_name"] for one in read["images"]}
        found: dict[str, list[list[float]]] = {name: [] for name in names.values()}
        for one in read["annotations"]:
            x, y, w, h = one["bbox"]
            found[names[one["image_id"]]].append([x, y, x + w, y + h])
        return {name: np.array(boxes).reshape(-1, 4) for name, boxes in found.items()}

    def fit(self) -> float:
        """The mean IoU of the first drafts with the things."""
        pairs = [(boxes[:1], self.things[name].box[None]) for name, boxes in self.drafts().items()]
        return float(np.mean([iou_matrix(*pair).max(initial=0) for pair in pairs]))

    def correct(self, names: Sequence[str], boxes: Callable[[str], list[list[float]]] | None = None) -> None:
        """A person puts boxes around the things of these pictures."""
        mine = boxes or (lambda name: [self.things[name].box.tolist()])
        correct(self.out, {name: Correction(mine(name), [0] * len(mine(name))) for name in names})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, FEWEST)


def test_enough_pictures_teach_and_one_fewer_do_not(job: Job, tmp_path: Path) -> None:
    result = job.run()
    assert f"thing: drafts learnt from the {FEWEST} pictures that show it" in result.notes
    learns = job.fit()
    few = Job(tmp_path / "few", FEWEST - 1)
    few.run()
    off = Job(tmp_path / "off", FEWEST)
    off.run(teach=False)
    assert learns > 0.6 > 0.4 > max(few.fit(), off.fit())
    assert taught(off.out) == ([], [], None)
    learnt = load_learnt(job.out / "learnt.safetensors")
    assert (learnt.names, learnt.about["reviewed"]) == (("thing",), {"thing": 0})
    one = planted(99)
    warm = learnt.project(one.lesson.readings().T.reshape(-1, *one.lesson.features.shape[-2:]), [0])[0]
    assert float(warm[one.mask].mean()) > float(warm[~one.mask].mean()) + 0.5


@pytest.mark.parametrize(("presence", "kind"), [(0.01, {}), (0.9, {"alike": False})], ids=["rare", "not alike"])
def test_the_gate_is_shut_for_rare_names_and_where_pictures_do_not_agree(
    tmp_path: Path, presence: float, kind: dict[str, bool]
) -> None:
    shut = Job(tmp_path, FEWEST, presence, **kind)
    shut.run(min_presence=0.001, min_score=0)
    before = shut.drafts()
    assert all(len(boxes) == 1 for boxes in before.values())  # the corner that the text finds
    assert all(np.ptp(boxes[0, [0, 2]]) == 16 for boxes in before.values())
    assert not (shut.out / "learnt.safetensors").exists()


def test_a_common_name_is_taught_though_no_picture_reaches_the_presence_that_drafts_need(job: Job) -> None:
    job.run(min_presence=1)
    assert sum(map(len, job.drafts().values())) == 0
    learns = taught(job.out)
    job.run()
    assert job.fit() > 0.6
    assert taught(job.out) == learns


def test_corrections_teach_and_no_reviewed_picture_changes(tmp_path: Path) -> None:
    job = Job(tmp_path, 12)  # too few to teach themselves
    job.run()
    before, reviewed = job.fit(), list(job.things)[:4]
    odd = {
        name: [[1.0, 2.0, 30.0, 40.0]] if name == reviewed[0] else [job.things[name].box.tolist()] for name in reviewed
    }
    job.correct(reviewed, odd.__getitem__)
    result = job.run()
    assert any("drafts learnt from 4 reviewed pictures" in note for note in result.notes), result.notes
    assert job.fit() > before + 0.2
    drafts = job.drafts()
    for name in reviewed:
        np.testing.assert_allclose(drafts[name], odd[name], atol=0.01)


def test_boxes_of_other_names_teach_a_name_nothing(tmp_path: Path) -> None:
    alone, both = Job(tmp_path / "alone", 12), Job(tmp_path / "both", 12)
    reviewed, other = list(both.things)[:4], [0.0, 0.0, 8.0, 8.0]
    alone.run()
    alone.correct(reviewed)
    alone.run()

    def with_other(row: PictureResult) -> PictureResult:
        [thing] = row.boxes
        boxes = [replaced(thing, xyxy=tuple(other)), replaced(thing, label=1)]
        return replaced(row, boxes=boxes, presence={0: 0.9, 1: 0.9})

    for name, one in both.things.items():
        both.things[name] = replace(one, lesson=replace(one.lesson, names=(1,)))
    both.names, both.engine = ["other", "thing"], engine_of(both.things, 0.9, with_other, ["other", "thing"])
    both.run()
    corrected = {
        name: Correction([both.things[name].box.tolist(), other][:boxes], [1, 0][:boxes], drafts=[None] * boxes)
        for name, boxes in zip(reviewed, (1, 2, 2, 1), strict=True)
    }
    correct(both.out, corrected)
    both.run()
    facts = [taught(job.out)[0][0] for job in (alone, both)]
    assert facts[0] == facts[1]
    assert facts[0]["thing"].used
    for name, drafts in both.drafts().items():
        of_thing = [box for box in drafts.round(2).tolist() if box != other]
        assert of_thing == alone.drafts()[name].round(2).tolist()


def test_reviewed_pictures_are_among_those_that_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliploc.label.teach.teach.MOST_TAUGHT", 5)
    job = Job(tmp_path, 12)
    job.run()
    job.correct(list(job.things)[::3])
    assert any("4 reviewed pictures" in note for note in job.run().notes)


def test_learnt_drafts_obey_the_rule_of_the_run_where_they_are_compared(tmp_path: Path) -> None:
    job = Job(tmp_path, 12)
    job.run()
    job.correct([*job.things][:4])
    after = []
    for rule in ({}, {"min_score": 0.99}, {"min_presence": 1}):
        job.run(**rule)
        [facts] = taught(job.out)[0][0].values()
        after.append((facts.after, facts.used))
    assert after[0][1]
    assert after[0][0] < 4
    assert after[1:] == [(4, False)] * 2  # no draft is left: four boxes to draw, as before


def test_learnt_drafts_that_are_worse_on_reviewed_pictures_are_not_used(tmp_path: Path) -> None:
    job = Job(tmp_path, FEWEST)
    job.run()
    corner = {name: [[*one.box[:2].tolist(), *(one.box[:2] + 16).tolist()]] for name, one in job.things.items()}
    job.correct(list(job.things)[:8], corner.__getitem__)  # these people want what the text finds
    result = job.run()
    assert any(
        note.startswith("thing: drafts as the model finds them; with 8 reviewed ones 0 → ") for note in result.notes
    ), result.notes
    for name, boxes in job.drafts().items():
        np.testing.assert_allclose(boxes[0], corner[name][0], atol=0.01)


@pytest.mark.parametrize("presence", [None, 0.01], ids=["no such name", "found nowhere"])
def test_a_name_that_the_model_does_not_know_gets_drafts_from_three_pictures(
    presence: float | None, tmp_path: Path
) -> None:
    job = Job(tmp_path, 10, presence=presence, seen=False)
    job.run()
    assert sum(map(len, job.drafts().values())) == 0
    job.correct(list(job.things)[: FEWEST_REVIEWED - 1], lambda name: [job.things[name].box.tolist()] * 2)
    job.run()
    assert sum(map(len, job.drafts().values())) == 2 * (FEWEST_REVIEWED - 1)
    job.correct(list(job.things)[:FEWEST_REVIEWED])
    job.run()
    assert job.fit() > 0.6


def test_a_run_that_is_killed_or_called_again_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, 12)  # too few to teach themselves
    job.run()
    job.correct(list(job.things)[:5])
    job.run()
    remaining = ["learnt.safetensors", "coco.json"]
    once = taught(job.out), *((job.out / name).read_bytes() for name in remaining)
    with monkeypatch.context() as patch:
        patch.setattr(FolderLearner, "names", lambda _: pytest.fail("taught again"))
        assert any("drafts learnt from 5 reviewed pictures" in note for note in job.run().notes)
        assert (taught(job.out), *((job.out / name).read_bytes() for name in remaining)) == once
        (job.out / "learnt.safetensors").unlink()  # by whoever tidies up
        job.run()
    assert (taught(job.out), *((job.out / name).read_bytes() for name in remaining)) == once


def test_drafts_that_somebody_has_seen_stay_when_others_are_learnt_again(job: Job) -> None:
    job.run()
    names = list(job.things)
    job.correct(names[:3])
    correct(job.out, {names[9]: None}, "skipped")

    def boxes(name: str) -> list:
        return [row for row in taught(job.out)[1] if row[0] == name]

    seen, other = boxes(names[9]), boxes(names[12])
    assert seen
    assert job.run().notes
    assert (boxes(names[9]), boxes(names[12]) != other) == (seen, True)
    job.run(limit=5)  # without it for once
    job.run()
    assert boxes(names[9]) == seen


def test_taught_drafts_that_somebody_has_seen_stay_when_a_name_is_added(job: Job) -> None:
    job.run()
    first, second = list(job.things)[:2]
    [box] = [row for row in taught(job.out)[1] if row[0] == first][:1]
    correct(job.out, {first: Correction([[*box[3:7]]], [0], drafts=[box[1]]), second: None}, "later")
    seen = [row for row in taught(job.out)[1] if row[0] in (first, second)]

    def other(row: PictureResult) -> PictureResult:
        boxes = [Candidate(1, (0.0, 0.0, 8.0, 8.0), 0.9, 0.9), Candidate(1, (0.0, 0.0, 4.0, 4.0), 0.1, 0.1)]
        return replaced(row, boxes=boxes, presence={1: 0.9})

    job.names, job.engine = ["thing", "other"], engine_of(job.things, 0.9, other, ["other"])
    assert job.run().computed == len(job.things)
    now = [row for row in taught(job.out)[1] if row[0] in (first, second)]
    assert [(row[0], *row[2:]) for row in now] == [(row[0], *row[2:]) for row in seen]
    assert [row[1] for row in now] == [row[1] + 2 for row in seen], "their numbers follow the other boxes"
    with LabellingRun.open(job.out) as run:
        assert run.saved(run.pictures()[first]).correction == Correction([[*box[3:7]]], [0], drafts=[box[1] + 2])
        [lesson] = lessons_of(run, [run.pictures()[first]])
    assert lesson.names == (0, 1)


def test_a_picture_that_is_replaced_is_not_drawn_from_its_old_lesson(job: Job) -> None:
    job.run()
    name = next(iter(job.things))
    Image.new("RGB", (SIDE, SIDE), (7, 99, 7)).save(job.photos / name)
    job.things[name] = planted(77)
    job.run()
    assert iou_matrix(job.drafts()[name][:1], job.things[name].box[None]).max() > 0.5


def test_teaching_is_part_of_the_identity_and_refused_where_it_cannot_be(job: Job, tmp_path: Path) -> None:
    job.run()
    with pytest.raises(UsageError, match="teach"):
        job.run(teach=False)
    with pytest.raises(UsageError, match="--teach off"):
        annotate(job.photos, ["thing"], tmp_path / "x", teach=True, device="cpu", refine=["guided"], formats=["coco"])


def test_masks_of_learnt_drafts_lie_in_their_boxes(tmp_path: Path) -> None:
    job, complete = Job(tmp_path, FEWEST), encode(np.ones((SIDE, SIDE), bool))["counts"]

    def with_masks(row: PictureResult) -> PictureResult:
        return replaced(row, boxes=[replaced(box, mask=complete) for box in row.boxes])

    job.engine = engine_of(job.things, 0.9, with_masks)
    job.run(masks=True)
    rows_of_run = taught(job.out)[1]
    assert rows_of_run
    for *_, left, top, right, bottom, _, counts, _ in rows_of_run:
        rows, columns = np.nonzero(decode({"size": [SIDE, SIDE], "counts": counts}))
        assert len(rows) > 0.3 * (right - left) * (bottom - top)
        assert columns.min() >= np.floor(left)
        assert rows.min() >= np.floor(top)
        assert columns.max() < np.ceil(right)
        assert rows.max() < np.ceil(bottom)


# -------------------------------------------------------------------------------------------------------------- pieces
def test_corrections_to_make() -> None:
    assert work_on([], [[0, 0, 9, 9]]) == Work(0, 1, 0)
    assert work_on([[0, 0, 9, 9]], []) == Work(1, 0, 0)
    # The better draft takes the box; the second has none left.
    assert work_on([[0, 0, 10, 8], [0, 0, 10, 10]], [[0, 0, 10, 10]]) == Work(1, 0, 0)
    assert work_on([[0, 0, 10, 6]], [[0, 0, 10, 10]]) == Work(0, 0, 1)
    assert Work(1, 2, 3).total == 6


def test_drafts_change_for_more_than_chance() -> None:
    assert not gains(np.array([2.0, 1, 0, 3]), np.array([2.0, 1, 0, 3]))  # a tie
    assert not gains(np.array([1.0, 1, 1]), np.array([0.0, 1, 1]))  # 1 of 3 pictures
    assert gains(np.array([1.0, 1, 1]), np.array([0.0, 0, 0]))
    # The same gain, of each picture and of one: 12 corrections in 12 pictures.
    even, odd = np.ones(12), np.array([12.0] + [0] * 11)
    assert gains(even, np.zeros(12))
    assert not gains(odd + 1, np.array([1.0] * 11 + [12]))
    unsure = np.ones(3), np.array([2.0, 0, 0])
    assert not gains(*unsure)
    assert gains(*unsure, errors=0)
    for worse, stay in ((1, True), (3, False)):  # what the folder has taught, by itself
        assert gains(np.ones(3), np.array([1.0, 1, 1 + worse]), lead=AGREED) == stay
    # By hand: 1, 1 and 0 saved, mean 2/3, squares 2/3 + 2 · 1², error √(8/3 / 4 / 3) = 0.47.
    assert gains(np.array([1.0, 1, 1]), np.array([0.0, 0, 1]))


def test_a_cell_counts_by_its_share_in_boxes() -> None:
    frame = Frame.fit("squash", (40, 80), (60, 80))  # 20 pixels a cell, half as high again
    boxes = np.array([[10, 10, 50, 30], [10, 10, 30, 30]], np.float32)
    shares = np.outer([0.25, 1, 0.25], [0.5, 1, 0.5, 0])
    np.testing.assert_allclose(_inside(frame, boxes, (3, 4)).reshape(3, 4), shares, atol=1e-6)


def test_presence_is_a_gaussian_process_on_the_logits() -> None:
    rng = np.random.default_rng(0)
    embeddings, mean, new = rng.normal(size=(5, 4)), rng.normal(size=4), rng.normal(size=4)
    before, true = np.array([0.1, 0.9, 0.5, np.nan, 0.3]), np.array([True, False, True, True, False])

    def squashed(chance: Any) -> Any:
        known = np.nan_to_num(chance, nan=0.5)
        return np.log(known / (1 - known)) / 4

    def expected(rows: list[int], place: np.ndarray, chance: float) -> float:
        unit = [(one - mean) / np.linalg.norm(one - mean) for one in (*embeddings[rows], place)]
        alike = np.array(unit) @ np.array(unit).T + 0.2
        missing = np.where(true, 1, -1)[rows] - squashed(before[rows])
        moved = alike[-1, :-1] @ np.linalg.inv(alike[:-1, :-1] + 0.5 * np.eye(len(rows))) @ missing
        return float(1 / (1 + np.exp(-4 * (squashed(chance) + moved))))

    corrected = _Presence(*(torch.from_numpy(some).float() for some in (mean, embeddings)), before, true.tolist())
    assert corrected(torch.from_numpy(new), 0.4) == pytest.approx(expected([0, 1, 2, 3, 4], new, 0.4), abs=1e-5)
    assert corrected.without(1, 0.9) == pytest.approx(expected([0, 2, 3, 4], embeddings[1], 0.9), abs=1e-5)


def test_new_pictures_are_known_by_their_looks_if_those_without_the_name_look_otherwise(tmp_path: Path) -> None:
    """Ten with the thing have something in common, ten without have it as well, or not; two are not reviewed."""
    for name, others, known in (("apart", 0.0, True), ("alike", 3.0, False)):
        job = Job(tmp_path / name, 22, presence=None)
        shares = [2.0 + 0.1 * number if number < 10 else others for number in range(22)]
        embeddings = np.concatenate([np.array(shares)[:, None], np.eye(22)], axis=1)
        for one, mine in zip(list(job.things), embeddings, strict=True):
            lesson = replace(job.things[one].lesson, embedding=torch.from_numpy(mine).half())
            job.things[one] = replace(job.things[one], lesson=lesson)
        job.run()
        boxes = {one: [job.things[one].box.tolist()] * (number < 10) for number, one in enumerate(job.things)}
        job.correct(list(job.things)[:20], boxes.__getitem__)
        job.run()
        [alike] = load_learnt(job.out / "learnt.safetensors").alike.tolist()
        assert np.isfinite(alike).all() == known
        if known:
            mine = embeddings[:10] / np.linalg.norm(embeddings[:10], axis=1, keepdims=True)
            rest = mine.sum(axis=0) - mine
            cosines = (mine * rest).sum(axis=1) / np.linalg.norm(rest, axis=1)
            np.testing.assert_allclose(alike, np.quantile(cosines, [0.05, 0.25]), atol=1e-3)


def test_a_folder_without_other_pictures_says_nothing_of_new_ones_unless_its_model_is_known() -> None:
    mine = torch.linspace(0.2, 0.5, 10)
    seen = Appearance(torch.zeros(3), mine, torch.zeros(0))
    for model, found in (("mini", True), ("another", False)):
        assert seen.alike({"model": model}).isfinite().all() == found
    assert not replace(seen, showing=mine - 0.1).alike({"model": "mini"}).isfinite().any()
    for alike, known in ((0, True), (1, True), (2, False)):  # of ten without the name
        others = torch.cat([torch.ones(alike), torch.zeros(10 - alike)])
        assert replace(seen, others=others).alike({"model": "another"}).isfinite().all() == known


def test_one_or_two_odd_pictures_do_not_take_away_what_the_others_say_of_new_ones() -> None:
    """As a label on a picture of something else."""
    mine = torch.linspace(0.3, 0.6, 12)
    for others in (torch.zeros(0), torch.full((20,), 0.2)):
        seen = Appearance(torch.zeros(3), mine, others)
        for number, known in ((1, True), (2, True), (3, False)):
            odd = replace(seen, showing=torch.cat([mine[number:], torch.full((number,), -0.2)]))
            low, high = odd.alike({"model": "mini"}).tolist()
            assert (low < high) == known
            if known:
                assert low == pytest.approx(float(mine[2]))
