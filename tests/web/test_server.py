"""The server: what it lets in and out, over HTTP, as a program and as somebody who means harm."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from tests.commands import cliploc_, localizer_of
from tests.web.asking import DEMO, FAST, SLOW, get, located, post_json, service, started


def test_the_api_gives_the_localizers_boxes(address):
    for given in ({}, {"recipe": "fast"}, {"method": "cam"}, {"method": "cam", "threshold": 0.4}):
        document = located(address, "cat.jpg", "cat, dog", **given)
        localizer = localizer_of("mini", **given)
        wanted = localizer(DEMO / "cat.jpg", ["cat", "dog"])
        [picture] = document["pictures"]
        cat, dog = picture["names"]
        assert (picture["file"], picture["method"]) == ("cat.jpg", "cam")
        assert (picture["recipe"] or {}).get("options") == (localizer.recipe and str(localizer.recipe))
        boxes = [box["xyxy"] for box in cat["boxes"]]
        assert boxes == [pytest.approx(box, abs=0.01) for box in wanted.boxes.xyxy.tolist()]
        assert (cat["found"], dog["found"]) == (True, False)


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        ("cat", {"compare": ["layer_cam", "legrad"]}, "does not run on mini"),
        ("cat", {"recipe": "quick"}, "expected recipe to be one of default, fast, best"),
        ("cat", {"recipe": "fast", "method": "cam"}, "expected a method or a recipe"),
        ("cat", {"exemplar": "dogs.jpg", "exemplar_box": "0,0,9000,9"}, "expected the box of the exemplar of 'dogs'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(address, names, settings, said):
    assert said in located(address, "cat.jpg", names, **settings)


def test_ten_at_once_each_get_their_own(address):
    photos = sorted(one.name for one in DEMO.glob("*.jpg"))[:10]
    with ThreadPoolExecutor(10) as pool:
        documents = list(pool.map(lambda one: located(address, one, one[:-4], min_presence=0, **FAST), photos))
    assert [document["pictures"][0]["file"] for document in documents] == photos
    assert [f"{document['pictures'][0]['names'][0]['name']}.jpg" for document in documents] == photos


def test_the_browser_is_told_to_ask_nobody_else_and_to_run_no_other_script(address):
    code, page, headers = get(address)
    assert code == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "style=" not in page
    assert "<style" not in page
    assert page.count("<script") == page.count('<script type="application/json"') + page.count(' src="/static/')


def test_a_server_ends_at_once_and_silently_though_many_look(tmp_path, capfd):
    looked_at = service()
    with ThreadPoolExecutor(3) as pool:
        for address in started(looked_at, tmp_path):
            # Those who wait must not have their turn when the first is stopped.
            asked = [
                pool.submit(post_json, address, {"picture": one, **SLOW}) for one in ("cat.jpg", "bee.jpg", "dogs.jpg")
            ]
            while not any(run.steps[0] for run in list(looked_at.runs._runs)):
                time.sleep(0.01)
    assert {one.result()[0] for one in asked} == {503}
    for run in list(looked_at.runs._runs):
        run._thread.join(20)
        assert not run._thread.is_alive()
    assert "Traceback" not in capfd.readouterr().err


def test_a_stranger_is_turned_away_where_there_is_a_password(tmp_path):
    mine = f"Basic {base64.b64encode(b'me:secret').decode()}"
    for address in started(service(), tmp_path, auth=("me", "secret")):
        for path in ("/", "/static/find.js", "/examples/cat.jpg", "/api/menu", "/files/a/b"):
            code, _, headers = get(address + path)
            assert (code, headers["www-authenticate"][:6]) == (401, "Basic ")
            assert get(address + path, authorization=mine)[0] == (404 if "files" in path else 200)
        for path in ("/api/show", "/api/localize", "/api/files"):
            assert post_json(address, {"picture": "cat.jpg", "names": "cat"}, path)[0] == 401


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "70000"), "expected --port from 0 to 65535"),
        (("--queue", "0"), "expected --queue from 1 to 10000"),
        (("--auth-env", "NOT_SET"), "expected NOT_SET to hold user:password"),
        (("--model", "mini", "--pretrained", "a", "--pretrained", "b"), "expected --pretrained once"),
        (("--host", "no.such.host.invalid"), "choose another --host or --port"),
        (("--head", "absent.safetensors"), "absent.safetensors"),
        (("--recipe", "quick"), "expected --recipe to be one of default, fast, best"),
    ],
)
def test_a_server_that_cannot_be_says_why(arguments, said):
    result = cliploc_("serve", *arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "Traceback" not in result.err
