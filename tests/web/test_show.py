"""`POST /api/show`: what the page shows, as its JavaScript asks for it; what is refused; who leaves; who may not."""

import http.client
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.localizer import Localizer
from cliploc.web.runs import StoppedError
from tests.commands import create_once
from tests.web.asking import ANNA, BERT, CAT, DEMO, FORM, SLOW, form, get, post_json, service, show, started, uploaded

PATH = "/api/show"
JSON = {"Content-Type": "application/json"}
CAM = {"names": "cat, dog", "method": "cam"}


def wish(picture: object, settings: dict[str, Any], visitor: str = ANNA) -> dict[str, Any]:
    return {"visitor": visitor, "picture": picture, **settings}


def shown(address: str, wanted: object, **headers: str) -> dict[str, Any]:
    code, lines = show(address, wanted, **headers)
    assert (code, lines[-1]["done"]) == (200, True), lines
    return lines[-1]


def said(address: str, wanted: object, **headers: str) -> str:
    """The status line, where that is all."""
    found = shown(address, wanted, **headers)
    assert set(found) == {"done", "status", "ids"}
    return found["status"]["text"]


def boxes_in(html: str) -> list[str]:
    return re.findall(r"(\d+ \d+ \d+ \d+) <span", html)


@pytest.fixture(scope="module")
def photo(address) -> str:
    return uploaded(address)


def test_it_shows_the_localizers_boxes_and_how_to_get_them_again(address, photo):
    found = shown(address, wish(photo, CAM))
    [box] = Localizer(create_once("mini"), method="cam")(DEMO / "cat.jpg", ["cat", "dog"]).boxes.xyxy
    assert boxes_in(found["figures"]) == ["{:.0f} {:.0f} {:.0f} {:.0f}".format(*box)]
    assert found["figures"].count("<figure") == 1
    assert "1 of 2 names found, 1 box" in found["status"]["text"]
    assert "Localizer(model='mini', method='cam'" in found["python"]
    assert "cliploc localize" in found["command"]
    assert found["address"] == "?names=cat%2C+dog&method=cam"
    again = shown(address, wish(photo, {**CAM, "names": "dog"}))
    assert "0 of 1 name found" in again["status"]["text"]


def test_the_json_is_the_documents_though_a_smaller_copy_is_shown(address):
    large = io.BytesIO()
    with Image.open(DEMO / "cat.jpg") as opened:
        opened.resize((900, 600)).save(large, "JPEG")
    asked = form(("picture", "large.jpg", large.getvalue()), visitor=ANNA, **CAM)
    found = shown(address, asked, content_type=FORM)
    assert 'width="900" height="600"' in found["figures"]
    _, wanted = post_json(address, {"picture": found["ids"]["picture"], **CAM})
    assert json.loads(found["json"]) == wanted["pictures"]
    assert (wanted["pictures"][0]["width"], wanted["pictures"][0]["height"]) == (900, 600)


def test_a_slider_changes_the_visitors_own_results_and_runs_no_model(tmp_path, monkeypatch):
    looked_at = service()
    for address in started(looked_at, tmp_path):
        cat, bee = uploaded(address), uploaded(address, (DEMO / "bee.jpg").read_bytes(), "bee.jpg")
        before = shown(address, wish(cat, CAM))
        shown(address, wish(bee, {**CAM, "names": "bee"}, BERT))
        monkeypatch.setattr(looked_at, "look", None)
        moved = shown(address, wish(None, {**CAM, "threshold": 0.8}))
        assert boxes_in(moved["figures"]) != boxes_in(before["figures"])
        assert "threshold=0.8" in moved["address"]
        of_bert = shown(address, wish(None, {**CAM, "threshold": 0.8}, BERT))
        assert "bee.jpg" in of_bert["figures"]
        other = said(address, wish(None, {**CAM, "method": "layer_cam"}))
        assert other == "Press Find to search with these settings."
        assert "no results any longer" in said(address, wish(None, CAM, "c" * 32))


def test_the_files_are_those_of_the_visitors_results(address, photo):
    shown(address, wish(photo, CAM))
    for visitor, wanted in ((ANNA, "cat_overlay.png"), ("d" * 32, "no results any longer"), (3, "hexadecimal")):
        assert wanted in str(post_json(address, {"visitor": visitor, **CAM}, "/api/files")[1])
    other = {"visitor": ANNA, **CAM, "method": "layer_cam"}  # its threshold is not that of what is shown
    assert post_json(address, other, "/api/files") == (422, {"error": "Press Find to search with these settings."})


def test_a_picture_is_sent_once_and_known_by_its_id_then(address):
    asked = form(("picture", "cat.jpg", CAT), ("exemplar", "bee.jpg", CAT), visitor=ANNA, **CAM)
    first = shown(address, asked, content_type=FORM)
    assert sorted(first["ids"]) == ["exemplar", "picture"]
    assert "cat.jpg with the heatmap" in first["figures"]
    again = shown(address, wish(first["ids"]["picture"], {**CAM, "exemplar": first["ids"]["exemplar"]}))
    assert again == first
    code, [refusal] = show(address, wish("0" * 40, CAM))
    assert (code, "upload it" in refusal["error"]) == (404, True)


def test_no_photograph_or_a_broken_one_is_a_status_line(address):
    assert show(address, CAM)[0] == 422  # who asks does not say who it is
    broken = uploaded(address, b"this is no picture", "notes.jpg")
    assert "notes.jpg: not a picture" in said(address, wish(broken, CAM))


def test_a_long_search_says_how_far_it_is_and_ends_when_the_page_leaves(tmp_path):
    looked_at = service()
    for address in started(looked_at, tmp_path):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request("POST", PATH, json.dumps(wish("cat.jpg", SLOW)).encode(), JSON)
        answer = connection.getresponse()
        for line in answer:
            assert "done" not in json.loads(line)
            if "masked pictures done" in json.loads(line)["status"]["text"]:
                break
        [run] = looked_at.searches._runs
        answer.close()
        connection.close()
        with pytest.raises(StoppedError):
            run.future.result()


def test_a_new_search_ends_the_visitors_last_one(address, photo):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shown, address, wish(photo, SLOW, BERT))
        while not first.done():
            shown(address, wish(photo, CAM, BERT))  # which may have begun before the first, and then ends itself
        assert "Stopped" in first.result()["status"]["text"]


def test_the_menu_is_of_the_model_and_its_values_of_the_address(address):
    of_page, menu = (json.loads(get(f"{address}/api/menu{query}")[1]) for query in ("", "?names=dog&method=grad_cam"))
    assert of_page["values"]["method"] == of_page["choices"]["method"][0][0] == "recipe:default"
    assert (menu["problem"], menu["values"]["names"], menu["values"]["method"]) == ("", "dog", "grad_cam")
    assert menu["own"]["threshold"] == Localizer(create_once("mini"), method="grad_cam").box_rule.threshold
    assert ["layer_cam", "LayerCAM"] in menu["choices"]["compare"]
    assert not [value for name, value in menu["values"].items() if value is None]
    strange = json.loads(get(f"{address}/api/menu?model=/etc&threshold=0.7&compare=legrad,cam&refine=none")[1])
    assert "expected a model of the menu" in strange["problem"]
    values = strange["values"]
    assert [values[name] for name in ("model", "threshold", "compare", "refine")] == ["mini", 0.7, ["cam"], ["none"]]
