"""The README's first screen in a browser: a thing that the model does not know, labelled in six clicks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tools import draw_slides

from cliploc.images.geometry import iou_matrix
from cliploc.label.annotate import annotate
from tests.web.asking import sent
from tests.web.browsing import SHOTS, in_a_browser
from tests.web.review_server import served
from tests.web.test_review import Editor

pytestmark = [*in_a_browser, pytest.mark.usefixtures("one_model")]
PICTURES = 40 if SHOTS else 12
FIRST, UNTOUCHED = (1, 2, 3), "04.jpg"


def still(page, number: int) -> None:
    """A picture for the README, where one is asked for."""
    if SHOTS:
        page.mouse.move(0, 0)
        page.screenshot(path=f"{SHOTS}/six-clicks-{number}.jpg", type="jpeg", quality=70)


def test_a_thing_that_no_model_knows_has_drafts_after_six_clicks(browser, tmp_path: Path) -> None:
    tool = [sys.executable, draw_slides.__file__, str(tmp_path / "slides"), "--pictures", str(PICTURES)]
    subprocess.run(tool, check=True, capture_output=True)
    out = tmp_path / "drafts"
    annotate(tmp_path / "slides/images", ["diatom"], out, device="cpu", formats=["yolo"])
    context = browser.new_context(viewport={"width": 1000, "height": 640})
    truth = {number: draw_slides.draw_slide(number)[1] for number in range(1, PICTURES + 1)}
    with served(out) as address:
        editor = Editor(context, address)
        editor.page.set_default_timeout(60_000)
        for number in FIRST:
            editor.open(f"{number:02}.jpg")
            assert not editor.boxes
            if number == FIRST[0]:
                still(editor.page, 1)
            x0, y0, x1, y1 = truth[number][0]
            editor.drag((x0, y0), (x1, y1))
            editor.drawn()
            assert len(editor.boxes) == 1
            if number == FIRST[0]:
                still(editor.page, 2)
            editor.saved()
            editor.press("Reviewed")
        editor.page.wait_for_function("() => document.body.textContent.includes('Learnt from 3 pictures')")
        editor.open(UNTOUCHED)
        still(editor.page, 3)
        pictures = [sent(f"{address}/pictures/{number}")[1] for number in range(PICTURES)]
    context.close()
    others = [one for one in pictures if not one["name"].startswith(tuple(f"{n:02}" for n in FIRST))]
    hits = [_hit(one["drafts"], truth[int(one["name"][:2])]) for one in others if truth[int(one["name"][:2])]]
    assert np.mean(hits) > 0.6


def _hit(drafts, boxes) -> bool:
    return bool(drafts) and iou_matrix(np.array([drafts[0]["xyxy"]]), np.array(boxes))[0, 0] >= 0.5
