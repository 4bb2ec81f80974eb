"""Label Studio's events teach a folder: their payloads are those of Label Studio 1.23.2."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.errors import UsageError
from cliploc.images.geometry import iou_matrix
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.label_studio.app import PictureSource, Predictor, application
from cliploc.options import Options
from cliploc.web.server import Hosts
from tests.commands import cliploc_
from tests.web.asking import running, sent
from tests.web.review_server import COUNT, NAME, OPTIONS, corrections, make

pytestmark = pytest.mark.usefixtures("one_model")
CONFIG = f"""<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="{NAME}"/></RectangleLabels></View>"""
WIDTH, HEIGHT = 450, 350  # of the job's pictures
MODEL: dict[str, Any] = {key: OPTIONS[key] for key in ("device", "recipe", "image_size")}


@contextlib.contextmanager
def backend(job: tuple[Path, Any], out: Path, message: list[str] | None = None) -> Iterator[str]:
    source, say = PictureSource(job[0].parent), print if message is None else message.append
    with ReviewFolder.opened(out) as drafts:
        predictor = Predictor(Options.of(text_cache=False, min_score=0.2, **MODEL), source, 10**7, drafts)
        with running(application(predictor, Hosts(), say=say, drafts=drafts)) as address:
            yield address


def task(number: int) -> dict[str, Any]:
    data = {"image": f"/data/local-files/?d=photos/{number}.jpg"}
    return {"id": 20 + number, "data": data, "meta": {}, "project": 3, "is_labeled": True, "overlap": 1}


def annotation(box: list[int], label: str = NAME, **more: Any) -> dict[str, Any]:
    x, y, right, bottom = (100 * one / side for one, side in zip(box, (WIDTH, HEIGHT) * 2, strict=True))
    value = {"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0, "rectanglelabels": [label]}
    shape = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value, "id": "Dx_aB1"}
    ends = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "origin": "manual"}
    return {"id": 9, "result": [{**shape, **ends}], "was_cancelled": False, "ground_truth": False, "task": 20, **more}


def happens(address: str, action: str, **more: Any) -> str:
    """What the backend says of an event."""
    project = {"id": 3, "title": "job", "label_config": CONFIG, "task_number": COUNT}
    status, answer = sent(f"{address}/webhook", {"action": action, **more, "project": project})
    assert (status, answer["status"]) == (201, "ok")
    return answer["result"]


def annotate(address: str, truth: dict[str, list[int]], *numbers: int) -> str:
    for number in numbers:
        drawn = annotation(truth[f"{number}.jpg"])
        message = happens(address, "ANNOTATION_CREATED", annotation=drawn, task=task(number))
    return message


def version(address: str) -> str:
    return sent(f"{address}/health")[1]["model_version"]


def learnt(address: str, before: str) -> str:
    """The version of the model once it has learnt."""
    for _ in range(1200):
        if (now := version(address)) != before:
            return now
        time.sleep(0.05)
    raise AssertionError("it never learnt")


def predicted(address: str, number: int) -> np.ndarray:
    """The boxes `[n, 4]` that a picture gets."""
    status, answer = sent(f"{address}/predict", {"tasks": [task(number)], "label_config": CONFIG, "project": "3.17"})
    assert status == 200
    values = [one["value"] for one in answer["results"][0]["result"]]
    corners = [[v["x"], v["y"], v["x"] + v["width"], v["y"] + v["height"]] for v in values]
    return np.array(corners).reshape(-1, 4) * [WIDTH, HEIGHT, WIDTH, HEIGHT] / 100


def right(address: str, truth: dict[str, list[int]], number: int) -> bool:
    boxes = predicted(address, number)
    return len(boxes) == 1 and iou_matrix(boxes, np.array([truth[f"{number}.jpg"]]))[0, 0] > 0.5


def test_annotations_teach_predictions_also_after_a_restart(job, out, truth):
    with backend(job, out) as address:
        assert sent(f"{address}/setup", {"schema": CONFIG, "project": "3.17"})[0] == 200, "no name is known yet"
        before = version(address)
        assert len(predicted(address, 5)) == 0
        assert annotate(address, truth, 0, 1).endswith("from 3 reviewed pictures on; 2 so far.")
        assert annotate(address, truth, 2).startswith("2.jpg: corrected; ")
        now = learnt(address, before)
        assert all(right(address, truth, number) for number in range(3, COUNT))
    with backend(job, out) as address:
        assert version(address) == now
        assert right(address, truth, 5)
        happens(address, "ANNOTATION_UPDATED", annotation=annotation([9, 9, 99, 99]), task=task(0))
        annotate(address, truth, 3, 4, 5)
        learnt(address, now)
    stored = corrections(out)
    assert [stored["pictures"][f"{number}.jpg"]["boxes"] for number in (0, 1)] == [
        [[9, 9, 99, 99]],
        [[float(one) for one in truth["1.jpg"]]],
    ]
    assert {one["status"] for one in stored["reviews"].values()} == {"reviewed"}


def test_training_is_started_by_its_button_and_never_is_an_error(job, out, truth):
    """An error would mark the whole backend as broken, and it may be sent after each annotation."""
    with backend(job, out) as address:
        before = version(address)
        assert "expected 3 reviewed pictures to learn from, got 0" in happens(address, "START_TRAINING")
        annotate(address, truth, 0, 1, 2)
        now = learnt(address, before)
        happens(address, "START_TRAINING")
        assert version(address) == now, "nothing new"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"annotation": annotation([9, 9, 99, 99], "dog")}, "photos/1.jpg: nothing is learnt from it: 'dog' is not a"),
        ({"task": {"id": 1, "data": {"image": "other.jpg"}}}, "no annotated picture of this run has this name"),
        ({"annotation": annotation([9, 9, 99, 99], was_cancelled=True)}, "0 so far"),
        ({"annotation": None}, "expected annotated tasks of Label Studio"),
        ({"annotation": {"result": [{"type": "rectanglelabels", "value": 7}]}}, "nothing is learnt from it: its boxes"),
        ({"task": {}}, "expected annotated tasks of Label Studio"),
        ({"action": "TASKS_CREATED", "tasks": [{"id": 1}]}, ""),
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 9}]}, ""),
        ({"action": "ANNOTATIONS_CREATED", "annotation": [annotation([9, 9, 99, 99])], "task": [task(1)]}, ""),
    ],
)
def test_what_cannot_be_used_is_said_and_changes_nothing(event, message, job, out):
    lines: list[str] = []
    drawn = annotation([9, 9, 99, 99])
    with backend(job, out, lines) as address:
        found = happens(address, **{"action": "ANNOTATION_CREATED", "annotation": drawn, "task": task(1), **event})
    assert message in found
    assert bool(found) == bool(message)
    assert "; ".join(lines) == found
    assert corrections(out)["pictures"] == {}


def test_a_picture_elsewhere_is_not_the_one_of_its_name(job, out):
    photos, others = job[0].parent / "photos", job[0].parent / "others"
    others.mkdir()
    (others / "1.jpg").write_bytes((photos / "2.jpg").read_bytes())
    (others / "2.jpg").write_bytes((photos / "2.jpg").read_bytes())
    drawn = annotation([9, 9, 99, 99])
    with backend(job, out) as address:
        for number, message in (
            (1, "1.jpg: nothing is learnt from it: the picture of this name in this run is another file"),
            (2, "2.jpg: corrected"),
        ):
            of = {"id": 21, "data": {"image": f"/data/local-files/?d=others/{number}.jpg"}}
            assert message in happens(address, "ANNOTATION_CREATED", annotation=drawn, task=of)
    assert [*corrections(out)["pictures"]] == ["2.jpg"]


def test_another_model_than_that_of_the_folder_is_refused(out):
    with ReviewFolder.opened(out) as drafts:
        options = Options.of(text_cache=False, **{**MODEL, "image_size": 224})
        with pytest.raises(UsageError, match=r"learnt with image_size \[352, 352\], and image_size is \[224, 224\]"):
            Predictor(options, PictureSource(), 10**7, drafts)
    done = cliploc_("label-studio", "--learn", out.parent)
    assert (done.code, "expected a run in" in done.err) == (2, True)


def test_a_run_that_kept_nothing_is_refused(tmp_path):
    out, _ = make(tmp_path, ["dog"], teach=False)
    with ReviewFolder.opened(out) as drafts, pytest.raises(UsageError, match="annotate the pictures with --teach on"):
        Predictor(Options.of(text_cache=False, **MODEL), PictureSource(), 10**7, drafts)
