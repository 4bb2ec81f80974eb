"""A rehearsal of `leaderboard` on small sets: τ is held out, numbers follow from rows, a changed file is seen."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from cliploc.jobs import leaderboard
from cliploc.jobs.engine import run_here
from cliploc.jobs.leaderboard import Wish, run_leaderboard
from cliploc.report.leaderboard_page import signature_of
from tests.commands import cliploc_, document_of, refused
from tests.jobs.samples import coco_folder, judged_here, wsol_folder

pytestmark = pytest.mark.usefixtures("one_model")
METHODS = ("--method", "cam,grad_cam", "--image-size", "96", "--threads", "1")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    wsol_folder(folder / "report", 5)
    wsol_folder(folder / "tune", 4)
    coco_folder(folder / "coco")
    return ("--root", f"wsol={folder / 'report'}", "--root", f"wsol:tune={folder / 'tune'}", "--root",
            f"coco={folder / 'coco'}")  # fmt: skip


def run(out, roots, *more):
    with judged_here():
        return cliploc_("leaderboard", "run", "--sets", "wsol,coco", *roots, *METHODS, "--out", out, *more)


@pytest.fixture(scope="module")
def board(roots, tmp_path_factory):
    out = tmp_path_factory.mktemp("board") / "out"
    ran = run(out, roots)
    assert ran.code == 0, ran.err
    assert "τ chosen on wsol tune" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    return out


def document(out):
    return json.loads((out / "leaderboard.json").read_text())


def test_tau_is_the_best_of_the_held_out_split_and_gt_known_that_of_a_benchmark_with_it(board, roots, tmp_path):
    found = document(board)["sets"][0]
    assert [row["method"] for row in found["rows"]] == ["cam", "grad_cam", "centre_box", "centre_gaussian"]
    tuned = json.loads((board / "sets/wsol/tune/summary.json").read_text())["settings"]
    for row in found["rows"]:
        assert row["threshold"] == tuned[row["setting"]]["best_threshold"]
    row = found["rows"][0]
    with judged_here():
        settings = document_of(
            "benchmark", "--dataset", "wsol", "--root", roots[1].partition("=")[2], "--method", "cam", "--image-size",
            "96", "--threshold", row["threshold"], "--no-baselines", "--out", tmp_path / "again",
        )["settings"]  # fmt: skip
    (again,) = settings.values()
    for ours, theirs in (("gt_known", "gt_known"), ("pointing", "pointing_game"), ("v2_oracle", "max_box_acc_v2")):
        assert row["numbers"][ours] == pytest.approx(again[theirs])
        assert row["confidence_95"][ours] == pytest.approx(again["confidence_95"][theirs])
    assert row["numbers"]["v2"] <= row["numbers"]["v2_oracle"]


def test_names_that_are_absent_are_asked_where_all_are_annotated(board):
    wsol, coco = document(board)["sets"]
    assert not {"ap", "f1_popular"} & wsol["rows"][0]["numbers"].keys()
    numbers = {"ap", "ap_given", "f1_random", "f1_popular", "f1_confusable", "false_finds"}
    assert numbers <= coco["rows"][0]["numbers"].keys()
    assert "ap" not in coco["rows"][-1]["numbers"]  # a baseline
    negatives = json.loads((board / "sets/coco/negatives.json").read_text())
    assert negatives["popular"]["val2017/cat.jpg"] == [2]  # a dog, of which there is one; no cup, no sun


def test_the_folder_is_checked_and_computed_again(board):
    with judged_here():
        ran = cliploc_("leaderboard", "check", board, "--sample", "2")
    assert ran.code == 0, ran.err
    rows = 4 * (4 + 5 + 2 + 2) + 2 * 2  # parts are larger than these sets; names are asked by two methods
    assert f"{rows} rows computed again are equal" in ran.out


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("leaderboard.json", "was changed after it was signed"),
        ("sets/coco/negatives.json", "is not the file that was signed"),
        ("sets/wsol/report/summary.json", "is not the file that was signed"),
        ("sets/wsol/tune/manifest.json", "is not the file that was signed"),
    ],
)
def test_a_changed_file_is_refused(board, tmp_path, file, said):
    copy = shutil.copytree(board, tmp_path / "copy")
    text = (copy / file).read_text()
    changed = text.replace("0", "1") if file.endswith("negatives.json") else text.replace("cam", "cat")
    assert changed != text
    (copy / file).write_text(changed)
    assert said in refused("leaderboard", "check", copy, "--sample", "0")


def test_numbers_that_were_signed_anew_but_do_not_follow_from_the_rows_are_refused(board, tmp_path):
    copy = shutil.copytree(board, tmp_path / "copy")
    changed = document(copy)
    changed["sets"][0]["rows"][0]["numbers"]["gt_known"] += 20
    (copy / "leaderboard.json").write_text(json.dumps({**changed, "signature": signature_of(changed)}))
    said = refused("leaderboard", "check", copy, "--sample", "0")
    assert "do not follow from its rows (0 rows 0 numbers gt_known)" in said


def test_a_folder_of_another_version_is_refused_by_its_name(board, tmp_path):
    copy = shutil.copytree(board, tmp_path / "copy")
    changed = {**document(copy), "schema_version": 2, "cliploc_version": "9.9"}
    (copy / "leaderboard.json").write_text(json.dumps(changed))
    said = refused("leaderboard", "page", copy, "--out", tmp_path / "a.html")
    assert "is of cliploc 9.9, in format 2, expected 1: use that version" in said
    changed = {**document(board), "cliploc_version": "9.9"}
    (copy / "leaderboard.json").write_text(json.dumps({**changed, "signature": signature_of(changed)}))
    assert "was made by cliploc 9.9" in refused("leaderboard", "check", copy)


def test_the_engine_asked_for_carries_out_every_run_and_can_be_sent_its_workers(board, roots, tmp_path):
    carried = []

    def sending(shards, make_worker, on_part, reporter):
        carried.append(len(shards))
        run_here(shards, pickle.loads(pickle.dumps(make_worker)), on_part, reporter, threads=1)

    asked = document(board)
    places = {name: Path(place) for name, _, place in (root.partition("=") for root in roots[1::2])}
    found, _ = run_leaderboard(Wish.of(asked["asked"]), places, tmp_path, engine=sending, judges=0)
    assert len(carried) == 5  # of each set what τ is chosen on and what is reported, of one the absent names
    assert found == asked


def test_a_resumed_run_gives_the_same_folder(board, roots, tmp_path):
    copy = shutil.copytree(board, tmp_path / "copy")
    (copy / "sets/coco/names/parts/00000.parquet").unlink()
    (copy / "leaderboard.json").unlink()
    for place, run_of in (("", "sets/wsol/report"), ("sets/coco", "sets/coco/names")):
        token = json.loads((copy / run_of / "manifest.json").read_text())["token"]
        (copy / place / f".cliploc-{token}-{0:016x}.tmp").write_bytes(b"half of it")  # left by a kill
    for part in (copy / "sets/wsol/report/parts").iterdir():
        part.unlink()
    assert run(copy, roots).code == 0
    assert document(copy) == document(board)
    assert not list(copy.rglob(".*"))


def test_the_page_has_every_set_and_method(board, tmp_path):
    page = tmp_path / "page.html"
    assert cliploc_("leaderboard", "page", board, board, "--out", page).code == 0
    text = page.read_text()
    assert "wsol report" in text
    assert "coco val2017" in text
    assert document(board)["signature"] in text
    assert text.count("grad_cam") >= 4
    assert "<script src" not in text


def test_what_cannot_be_is_one_line(board, roots, tmp_path):
    out = ("--out", tmp_path / "none")
    assert "expected --root coco=DIR" in refused("leaderboard", "run", "--sets", "coco", *out)
    assert "expected other pictures of wsol" in refused(
        "leaderboard", "run", "--sets", "wsol", *roots[:2], *METHODS, *out
    )
    assert "got 'walk'" in refused("leaderboard", "walk")
    assert "for choosing thresholds only" in refused("leaderboard", "run", "--sets", "imagenetv2", *out)
    assert "found no leaderboard.json" in refused("leaderboard", "page", tmp_path, "--out", tmp_path / "a.html")
    assert "other settings" in refused(
        "leaderboard", "run", "--sets", "wsol,coco", *roots, *METHODS, "--flip", "--out", board
    )


def test_phrases_have_no_ap(board):
    rows = leaderboard._by_setting(board / "sets/wsol/report", leaderboard.ROWS)
    (setting, own) = next(iter(rows.items()))
    taus = leaderboard._chosen(board / "sets/wsol/tune")[setting]
    assert "ap_given" in leaderboard._numbers(own, taus, {}, phrases=False)
    assert "ap_given" not in leaderboard._numbers(own, taus, {}, phrases=True)
