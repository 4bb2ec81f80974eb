"""`POST /api/show`: what the page shows, as its JavaScript asks for it; what is refused; who leaves; who may not."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'cliploc[web]'")

from cliploc.localizer import Localizer
from cliploc.web.runs import StoppedError
from cliploc.web.service import Offer, Service
from tests.commands import create_once
from tests.web.test_guard import CAT, upload
from tests.web.test_server import DEMO, service, started

PATH = "/api/show"
ANNA, BERT = "a" * 32, "b" * 32
CAM = {"names": "cat, dog", "method": "cam"}
SLOW = {"names": "cat", "method": "score_cam", "scales": "1,1.43,2"}


def ask(address: str, wish: object, **headers: str) -> tuple[int, list[Any]]:
    """Status, and the lines of the answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("POST", PATH, json.dumps(wish).encode(), {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    return answer.status, [json.loads(line) for line in answer.read().splitlines()]


def wish(photo: str | None, settings: dict[str, Any], visitor: str = ANNA, **others: Any) -> dict[str, Any]:
    return {"visitor": visitor, "search": True, "photo": photo, "settings": settings, **others}


def shown(address: str, wanted: dict[str, Any]) -> dict[str, str]:
    code, lines = ask(address, wanted)
    assert (code, lines[-1]["done"]) == (200, True), lines
    return lines[-1]["shown"]


def boxes_in(html: str) -> list[str]:
    return re.findall(r"(\d+ \d+ \d+ \d+) <span", html)


@pytest.fixture(scope="module")
def photo(address) -> str:
    return upload(address, CAT)


def test_it_shows_the_localizers_boxes_and_how_to_get_them_again(address, photo):
    found = shown(address, wish(photo, CAM))
    [box] = Localizer(create_once("mini"), method="cam")(DEMO / "cat.jpg", ["cat", "dog"]).boxes.xyxy
    assert boxes_in(found["figures"]) == ["{:.0f} {:.0f} {:.0f} {:.0f}".format(*box)]
    assert found["figures"].count("<figure>") == 3
    assert "CAM: 1 of 2 names found, 1 box" in found["status"]
    assert "Localizer(model='mini', method='cam'" in found["python"]
    assert "cliploc localize" in found["command"]
    assert found["address"] == "?names=cat%2C+dog&method=cam"
    again = shown(address, wish(photo, {**CAM, "names": "dog"}))
    assert "0 of 1 name found" in again["status"]


def test_a_slider_changes_the_visitors_own_results_and_runs_no_model(tmp_path, monkeypatch):
    looked_at = service()
    for address in started(looked_at, tmp_path):
        cat, bee = upload(address, CAT), upload(address, (DEMO / "bee.jpg").read_bytes(), "bee.jpg")
        before = shown(address, wish(cat, CAM))
        shown(address, wish(bee, {**CAM, "names": "bee"}, BERT))
        monkeypatch.setattr(looked_at, "look", None)
        moved = shown(address, wish(None, {**CAM, "threshold": 0.8}, search=False))
        assert boxes_in(moved["figures"]) != boxes_in(before["figures"])
        assert "threshold=0.8" in moved["address"]
        of_bert = shown(address, wish(None, {**CAM, "threshold": 0.8}, BERT, search=False))
        assert "bee.jpg" in of_bert["figures"]
        other = shown(address, wish(None, {**CAM, "method": "layer_cam"}, search=False))
        assert list(other) == ["status"]
        assert "Press Find to search with these settings" in other["status"]
        nobody = shown(address, wish(None, CAM, "c" * 32, search=False))
        assert "not kept any longer" in nobody["status"]


def test_the_files_are_those_of_the_visitors_results(tmp_path):
    for address in started(service(), tmp_path):
        shown(address, wish(upload(address, CAT), CAM))
        config = json.loads(urllib.request.urlopen(f"{address}/config").read())
        inputs = {one["id"]: one["props"] for one in config["components"]}
        [make] = [one for one in config["dependencies"] if one["api_name"] == "make_files"]
        for visitor, said in (
            (ANNA, "cat_overlay.png"),
            (BERT, "no results to download yet"),
            (3, "no results"),
            ({}, "no"),
        ):
            data = [visitor, *[inputs[number].get("value") for number in make["inputs"][1:]]]
            body = {"data": data, "fn_index": make["id"], "session_hash": "s1"}
            sent = urllib.request.Request(
                f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(sent).read()
            events = urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=s1").read().decode()
            assert said in events


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": ""}, "expected a name to look for"),
        ({"names": "<b>", "method": "<i>"}, "&lt;i&gt;"),
        ({"names": "cat", "thresold": 1}, "expected one of the settings"),
        ({"names": ["cat"]}, "expected names as a text"),
    ],
)
def test_what_cannot_be_found_is_a_status_line(address, photo, settings, said):
    found = shown(address, wish(photo, settings))
    assert list(found) == ["status"]
    assert said in found["status"]
    assert 'role="alert"' in found["status"]


def test_no_photograph_or_a_broken_one_is_a_status_line(address):
    assert "expected a photograph, got none" in shown(address, wish(None, CAM))["status"]
    broken = upload(address, b"this is no picture", "notes.jpg")
    assert "notes.jpg: not a picture" in shown(address, wish(broken, CAM))["status"]


@pytest.mark.parametrize("path", ["/etc/hostname", __file__, "http://127.0.0.1:9/a.jpg", 3, {"path": "/etc/passwd"}])
def test_only_uploads_and_examples_are_read(address, photo, path):
    for wanted in (wish(path, CAM), wish(photo, CAM, exemplar=path)):
        code, [refusal] = ask(address, wanted)
        assert (code, "was not uploaded here" in refusal["error"]) == (422, True)
    assert "figures" in shown(address, wish(str((DEMO / "bee.jpg").resolve()), CAM))


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ([], 422),
        ({"settings": CAM}, 422),
        (wish(None, CAM, "A" * 32), 422),
        (wish(None, CAM, visitor=["a" * 32]), 422),
        ({"visitor": ANNA, "search": True}, 422),
        ({"visitor": ANNA, "settings": []}, 422),
        ({"visitor": ANNA, "settings": {"names": "a" * 300_000}}, 413),
    ],
)
def test_what_is_no_wish_is_refused(address, wanted, code):
    answered, [refusal] = ask(address, wanted)
    assert (answered, bool(refusal["error"])) == (code, True)


def test_foreign_hosts_pages_and_methods_are_refused(address, photo):
    assert ask(address, wish(photo, CAM), Host="evil.example.com")[0] == 421
    assert ask(address, wish(photo, CAM), Origin="http://evil.example.com")[0] == 403
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", PATH)
    assert connection.getresponse().status == 405


def test_a_long_search_says_how_far_it_is_and_ends_when_the_page_leaves(tmp_path):
    looked_at = service()
    for address in started(looked_at, tmp_path):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request("POST", PATH, json.dumps(wish(upload(address, CAT), SLOW)).encode())
        answer = connection.getresponse()
        for line in answer:
            assert not json.loads(line)["done"]
            if "masked photographs done" in json.loads(line)["shown"]["status"]:
                break
        [run] = list(looked_at.runs._runs)
        answer.close()
        connection.close()
        with pytest.raises(StoppedError):
            run.result()


def test_a_search_has_a_time_limit(tmp_path):
    hasty = Service([Offer("mini")], device="cpu", max_seconds=0.5)
    for address in started(hasty, tmp_path):
        assert "It took longer than 0.5 seconds" in shown(address, wish(upload(address, CAT), SLOW))["status"]


def test_a_new_search_ends_the_visitors_last_one(address, photo):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shown, address, wish(photo, SLOW, BERT))
        while not first.done():
            shown(address, wish(photo, CAM, BERT))  # which may have begun before the first, and then ends itself
        assert "Stopped" in first.result()["status"]


def test_more_than_may_wait_are_refused(tmp_path):
    looked_at, visitors = service(), [f"{number:032}" for number in range(4)]
    for address in started(looked_at, tmp_path, queue=1):
        photo = upload(address, CAT)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(shown, address, wish(photo, SLOW, visitor)) for visitor in visitors]
            while not any(one.done() for one in asked):
                time.sleep(0.01)
            [refused] = [one.result() for one in asked if one.done()]
            # Sliders wait for no model.
            answer = shown(address, wish(None, CAM, search=False))
            while not all(one.done() for one in asked):  # who waited begins when another has ended
                for visitor in visitors:
                    looked_at.runs.stop(visitor)
                time.sleep(0.01)
    assert "Too many requests are waiting" in refused["status"]
    assert "not kept" in answer["status"]


def test_where_there_is_a_password_a_page_must_have_logged_in(tmp_path):
    for address in started(service(), tmp_path, auth=("me", "secret")):
        photo = str((DEMO / "cat.jpg").resolve())
        code, [refusal] = ask(address, wish(photo, CAM))
        assert (code, "not logged in" in refusal["error"]) == (401, True)
        assert ask(address, wish(photo, CAM), Cookie="access-token-x=1")[0] == 401
        login = urllib.request.Request(
            f"{address}/login", urllib.parse.urlencode({"username": "me", "password": "secret"}).encode()
        )
        with urllib.request.urlopen(login) as answer:
            cookies = "; ".join(one.partition(";")[0] for one in answer.headers.get_all("set-cookie"))
        code, lines = ask(address, wish(photo, CAM), Cookie=cookies)
        assert (code, "figures" in lines[-1]["shown"]) == (200, True)
