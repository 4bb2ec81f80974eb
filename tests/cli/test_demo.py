"""The demo: every photo and name in the table, IoU as its rule says, a sheet for each photo."""

import re
from pathlib import Path

import pytest
from PIL import Image

from cliploc.cli.demo import IOU_RULE
from cliploc.images.demo import demo_photos
from cliploc.images.geometry import iou_matrix
from tests.commands import Outcome, cliploc_


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    # The recipe that sees a photo once: the table is made in the same way of any boxes.
    return cliploc_("demo", "--recipe", "fast", "--out", out), out


@pytest.fixture(scope="module")
def rows(demo) -> list[list[str]]:
    """The table's cells: photo, name, found, score, box, IoU."""
    table = demo[0].out.split("\nfound ")[0].splitlines()
    return [re.split(r"  +", line) for line in table[1:] if line]


def test_every_name_of_every_photo_has_a_row(demo, rows):
    assert demo[0].code == 0, demo[0].err
    assert [(row[0], row[1]) for row in rows] == [(p.path.name, name) for p in demo_photos() for name in p.ask]
    assert len({row[0] for row in rows}) >= 8
    assert max(map(len, demo[0].out.split("\nfound ")[0].splitlines())) <= 80, "the table fits a screen of 80 columns"


def test_iou_is_that_of_the_best_box_with_the_true_box_it_overlaps_most(rows):
    truth = {(p.path.name, name): p.truth.get(name) for p in demo_photos() for name in p.ask}
    compared = 0
    for photo, name, found, _, box, overlap in rows:
        true = truth[photo, name]
        if true is None:
            assert overlap == "absent"
        elif found.startswith("no"):
            assert overlap == "0.00 ✗"
        else:
            best = [float(value) for value in box.split(" (")[0].split()]
            expected = iou_matrix([best], true).max()
            assert float(overlap.split()[0]) == pytest.approx(expected, abs=0.02)  # the box is printed in whole pixels
            compared += 1
    assert compared >= 8


def test_the_summary_is_that_of_the_rows(demo, rows):
    overlaps = [float(row[5].split()[0]) for row in rows if row[5] != "absent"]
    absent = [row for row in rows if row[5] == "absent"]
    alarms = sum(row[2].startswith("yes") for row in absent)
    line = next(line for line in demo[0].out.splitlines() if line.startswith("found "))
    good, total, missed, mean = re.match(r"found (\d+) of (\d+) .*, missed (\d+), .*mean IoU ([\d.]+);", line).groups()
    assert float(mean) == pytest.approx(sum(overlaps) / len(overlaps), abs=0.011)
    assert int(total) == len(overlaps)
    assert int(good) == sum("✗" not in row[5] for row in rows if row[5] != "absent")
    unsure = sum(row[2] == "unsure" for row in rows)
    assert int(missed) == int(total) - int(good)
    assert f", invented {alarms} of {len(absent)};" in line
    assert line.endswith(f"; {unsure} unsure")
    assert IOU_RULE in demo[0].out
    assert "OpenAI's CLIP" in demo[0].out.splitlines()[-1]


def test_a_sheet_for_each_photo(demo):
    _, out = demo
    photos = list(demo_photos())
    assert {path.name for path in out.iterdir()} == {p.path.name for p in photos}
    for photo in photos:
        with Image.open(out / photo.path.name) as sheet:
            sheet.load()
            assert min(sheet.size) > 300
