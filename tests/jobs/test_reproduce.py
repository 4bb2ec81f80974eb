"""`reproduce`: its rows are benchmark commands; a rehearsal on small sets and the package's models; what is missing."""

import json

import pytest

pytest.importorskip("pyarrow")

from cliploc._documents import Published
from cliploc.datasets import labelled_readers, readers
from cliploc.jobs.reproduce import Reproduced, on_model, published_rows
from tests.commands import cliploc_, refused, succeeded
from tests.datasets import labelled
from tests.jobs.samples import judged_here, rows_file, wsol_folder

pytestmark = pytest.mark.usefixtures("one_model")
QUICK = ("--threads", "1")


@pytest.fixture
def sets(tmp_path):
    labelled.voc(tmp_path / "voc")
    return f"voc21={tmp_path / 'voc'}"


def test_every_published_row_is_a_command_that_benchmark_takes(tmp_path):
    rows = published_rows()
    assert len({one.id for one in rows}) == len(rows)
    for one in {(one.task, one.model, one.options): one for one in rows}.values():
        known = labelled_readers if one.task == "segmentation" else readers
        assert one.dataset in known.names()
        assert 0 < one.value < 100
        assert "http" in one.table
        # All that can be refused before the set is read is refused first.
        assert "/nowhere" in refused(*one.command("/nowhere", f"{tmp_path}"))


def test_without_out_rows_are_listed_with_their_commands():
    ran = succeeded("reproduce", "naclip-voc21,vl_score")
    assert "naclip-voc21: miou 64.07" in ran.out
    said = "cliploc benchmark --task segmentation --dataset voc21 --root DIR --model ViT-B-16 --pretrained openai"
    assert said in ran.out
    assert ran.out.count("cliploc benchmark") == 3


def test_a_rehearsal_on_a_bundled_model_gives_numbers_that_are_not_called_the_papers(sets, tmp_path):
    asked = ("reproduce", "naclip-voc21,sclip-voc20", "--root", sets, "--model", "mini-vit", "--sample", "2")
    ran = cliploc_(*asked, *QUICK, "--out", tmp_path / "out")
    assert ran.code == 1  # a row has no folder
    (naclip, sclip) = json.loads((tmp_path / "out/reproduced.json").read_text())["rows"]
    summary = json.loads((tmp_path / "out/naclip-voc21/summary.json").read_text())["settings"]
    (numbers,) = summary.values()
    assert naclip["ours"] == numbers["miou"] is not None
    assert naclip["theirs"] == 64.07
    assert naclip["note"] == "not comparable: on mini-vit, 2 pictures"
    assert sclip["ours"] is None
    assert "add --root voc20=DIR" in sclip["note"]
    left = tmp_path / f"out/.cliploc-reproduced-{0:016x}.tmp"  # by a kill
    left.write_bytes(b"half of it")
    again = cliploc_(*asked, *QUICK, "--out", tmp_path / "out", "--json")  # resumes
    assert json.loads(again.out)["rows"] == [naclip, sclip]
    assert not left.exists()


def test_where_no_row_could_be_computed_nothing_is_done(tmp_path):
    ran = cliploc_("reproduce", "naclip-voc21", "--root", f"voc21={tmp_path / 'none'}", "--out", tmp_path / "out")
    assert (ran.code, "not run: see the line above" in ran.out) == (2, True), ran.err


def test_a_file_of_ones_own_rows_is_compared(tmp_path):
    root = wsol_folder(tmp_path / "wsol", 4)
    rows = rows_file(tmp_path, {"wsol": "gt_known"})
    asked = ("reproduce", rows, "--root", f"wsol={root}", *QUICK, "--out", tmp_path / "out")
    with judged_here():
        ran = cliploc_(*asked)
    assert ran.code == 0, ran.err
    assert cliploc_(*asked, "--sample", "2").code == 2  # other settings: the file below stays
    found = json.loads((tmp_path / "out/reproduced.json").read_text())["rows"][0]
    assert found["note"] == ""
    assert f"{found['ours']:.2f}" in ran.out
    assert found["confidence_95"][0] <= found["ours"] <= found["confidence_95"][1]
    picture = root / "val/000.jpg"
    picture.write_bytes(picture.read_bytes()[:-100])
    with judged_here():
        assert cliploc_(*asked).code == 1
    assert json.loads((tmp_path / "out/reproduced.json").read_text())["rows"][0]["note"] == "some pictures failed"


def test_other_published_weights_of_the_rows_own_model_are_not_the_papers():
    row = next(one for one in published_rows() if one.id == "naclip-voc21")
    assert on_model(row, None, "openai") == on_model(row, row.model, None) == (row, "")
    other, note = on_model(row, None, "laion2b_s34b_b88k")
    assert (other.pretrained, note) == ("laion2b_s34b_b88k", "with laion2b_s34b_b88k")
    assert on_model(row, None, "weights.pt")[1] == "", "a file of them"


def test_the_verdict_is_by_the_interval():
    row = Published("a", "p", "t", "localization", "wsol", "mini", "cam", (), "gt_known", 60.0)
    assert Reproduced(row, 58.0, (55.0, 61.0)).verdict == "in our interval"
    assert Reproduced(row, 50.0, (45.0, 55.0)).verdict == "-10.00"
    assert Reproduced(row, 60.0, (55.0, 61.0), "on mini, not comparable").verdict == "on mini, not comparable"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("nothing",), "unknown row 'nothing': expected all, a FILE.json, or some of sclip-voc21"),
        ((",",), "expected rows to reproduce, got none"),
        (("none.json",), "expected a file of published rows"),
        (("all", "--root", "voc21"), "expected --root NAME=DIR, got 'voc21'"),
    ],
)
def test_what_cannot_be_is_one_line(asked, said):
    assert said in refused("reproduce", *asked)


@pytest.mark.parametrize("word", ["--import", "--import=evil", "--out=/"])
def test_a_file_of_rows_cannot_import_code_or_write_elsewhere(word, tmp_path):
    rows = rows_file(tmp_path, {"wsol": "gt_known"}, options=[word, "evil"])
    assert "wsol: expected options of the protocol, got --" in refused("reproduce", rows)


def test_a_row_with_a_wrong_key_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text('{"rows": [{"id": "a b"}]}')
    assert "cannot be read as published rows" in refused("reproduce", tmp_path / "rows.json")
