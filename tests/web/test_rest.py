"""`/api/localize`, `/api/files` and `/api/show`: answers, refusals, who leaves, and the examples of docs/web.md."""

import http.client
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from cliploc import towers
from cliploc.images.exemplars import Exemplar
from cliploc.localizer import Localizer
from cliploc.web.runs import AT_ONCE, Runs, StoppedError
from cliploc.web.server import RefusedError
from cliploc.web.service import Offer, Service
from cliploc.web.uploads import Store
from tests.commands import create_once, localizer_of
from tests.web.asking import (
    ANNA,
    BERT,
    CAT,
    DEMO,
    FAST,
    FORM,
    SLOW,
    form,
    get,
    located,
    post,
    post_json,
    service,
    show,
    started,
    uploaded,
)

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")
ROOT = Path(__file__).parents[2]


def boxes_in(document: Any) -> list[list[float]]:
    return [box["xyxy"] for name in document["pictures"][0]["names"] for box in name["boxes"]]


@pytest.mark.parametrize("given", [{}, {"recipe": "fast"}, {"method": "cam"}, {"method": "cam", "threshold": 0.3}])
def test_it_answers_as_the_localizer_does(address, given):
    fields = {key: str(value) for key, value in given.items()}
    status, document = post(address, ("picture", "cat.jpg", CAT), names="cat, dog", **fields)
    localizer = localizer_of("mini", **given)
    wanted = localizer(DEMO / "cat.jpg", ["cat", "dog"])
    assert status == 200
    [picture], ids = document["pictures"], document["ids"]
    assert boxes_in(document) == [pytest.approx(box, abs=0.01) for box in wanted.boxes.xyxy.tolist()]
    assert [one["found"] for one in picture["names"]] == [True, False]
    assert (picture["file"], picture["method"]) == ("cat.jpg", "cam")
    assert (picture["recipe"] or {}).get("options") == (localizer.recipe and str(localizer.recipe))
    again = {"picture": ids["picture"], "names": "cat, dog", **given}
    assert post_json(address, again) == (200, document)
    status, of_example = post_json(address, {**again, "picture": "cat.jpg"})
    assert (status, of_example["pictures"]) == (200, document["pictures"])


def test_ten_at_once_each_get_their_own(address):
    photos = sorted(one.name for one in DEMO.glob("*.jpg"))[:10]
    with ThreadPoolExecutor(10) as pool:
        documents = list(pool.map(lambda one: located(address, one, one[:-4], min_presence=0, **FAST), photos))
    assert [document["pictures"][0]["file"] for document in documents] == photos
    assert [f"{document['pictures'][0]['names'][0]['name']}.jpg" for document in documents] == photos


def test_the_files_are_named_and_can_be_fetched_by_who_made_them(address):
    status, made = post(address, ("picture", "cat.jpg", CAT), path="/api/files", names="cat", method="cam")
    assert status == 200, made
    names = [one["name"] for one in made["files"]]
    assert names == [
        "cat.zip", "cat_overlay.png", "cat_heatmaps.npy", "cat_1_cat.png", "coco.json", "boxes.csv", "cvat.xml",
        "labelstudio.json", "labelstudio_config.xml", "results.json",
    ]  # fmt: skip
    for one in made["files"]:
        code, text, headers = get(address + one["address"])
        assert (code, int(headers["content-length"])) == (200, one["bytes"])
        assert headers["content-disposition"] == f'attachment; filename="{one["name"]}"'
    assert json.loads(text)["pictures"][0]["names"][0]["found"]
    _, folder, _ = made["files"][0]["address"].strip("/").split("/")
    for path in (f"files/{folder}/absent", f"files/{made['ids']['picture']}/cat.jpg", f"files/{folder}/..%2fcat.jpg",
                 "files/../cat.jpg", "files/%2e%2e/x", f"files/{'0' * 32}/cat.zip"):  # fmt: skip
        assert get(f"{address}/{path}")[0] == 404


def test_an_exemplar_is_a_second_picture(address):
    files = ("picture", "dogs.jpg", (DEMO / "dogs.jpg").read_bytes()), ("exemplar", "cat.jpg", CAT)
    given = {"names": "dog", "recipe": "fast", "exemplar_name": "pet", "exemplar_box": "40, 30, 200, 220"}
    status, document = post(address, *files, **given)
    exemplar = Exemplar("pet", DEMO / "cat.jpg", (40, 30, 200, 220))
    wanted = Localizer("mini", recipe="fast", exemplars=[exemplar])(DEMO / "dogs.jpg", ["dog", "pet"])
    assert status == 200
    assert boxes_in(document) == [pytest.approx(box, abs=0.01) for box in wanted.boxes.xyxy.tolist()]
    status, again = post_json(address, {**given, **document["ids"]})
    assert (status, again) == (200, document)


def test_the_names_of_pictures_are_no_paths(address, folder):
    for name in ("../../../escaped.jpg", "..\\..\\escaped.jpg", "..", "a\0b.jpg", "x" * 300 + ".jpg"):
        status, document = post(address, ("picture", name, CAT), names="cat", recipe="fast")
        assert status == 200, document
        assert re.fullmatch(r"[\w. -]+", document["pictures"][0]["file"])
        [stored] = (folder / document["ids"]["picture"]).iterdir()
        assert stored.read_bytes() == CAT


def test_a_model_that_loads_makes_nobody_wait_who_asks_for_another(tmp_path, monkeypatch):
    create, begun, go_on = towers.create, threading.Event(), threading.Event()

    def slow(model, *args, **options):
        if model == "mini-vit":
            begun.set()
            assert go_on.wait(60)
        return create(model, *args, **options)

    monkeypatch.setattr(towers, "create", slow)
    for address in started(Service([Offer("mini"), Offer("mini-vit")], device="cpu"), tmp_path):

        def ask_for(model: str, address: str = address) -> int:
            return post_json(address, {"picture": "cat.jpg", "names": "cat", "model": model, **FAST})[0]

        with ThreadPoolExecutor(12) as pool:
            try:
                waiting = [pool.submit(ask_for, "mini-vit") for _ in range(12)]
                assert begun.wait(60)
                assert [ask_for("mini") for _ in range(6)] == [200] * 6
                assert not any(one.done() for one in waiting)
            finally:
                go_on.set()
            assert [one.result() for one in waiting] == [200] * 12


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_of_the_documentation_run(address):
    text = (ROOT / "docs/web.md").read_text()
    [block] = re.findall(r"```console\n(\$ curl.*?)```", text, re.DOTALL)
    picture = ""
    for command in re.findall(r"^\$ (.*(?:\\\n.*)*)", block, re.MULTILINE):
        command = command.replace("http://127.0.0.1:7860", address).replace("PICTURE", picture)
        words = [word for word in shlex.split(command.replace("\\\n", " ")) if word != "-s"]
        done = subprocess.run([*words, "-s"], capture_output=True, cwd=DEMO, check=True)
        document = json.loads(done.stdout)
        assert document["pictures"][0]["file"] == "cat.jpg"
        picture = document["ids"]["picture"]
    assert picture


def test_the_script_of_the_documentation_prints_what_it_says(address, capsys):
    text = (ROOT / "docs/web.md").read_text()
    script, said = re.search(r"```python\n(.*?)```\n\nprints:\n\n(.*?)\n\n", text, re.DOTALL).groups()
    exec(script.replace("http://127.0.0.1:7860", address), {})
    printed = capsys.readouterr().out
    numbers = [[float(one) for one in re.findall(r"[\d.]+", text)] for text in (printed, said)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2)  # pixels
    words = ["cat", "True", "[[0,", "0,", "0,", "0]]", "dog", "False", "[]"]
    assert [re.sub(r"[\d.]+", "0", text).split() for text in (printed, said)] == [words] * 2


# ------------------------------------------------------------------------------------------------------- POST /api/show
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


def boxes_shown(html: str) -> list[str]:
    return re.findall(r"(\d+ \d+ \d+ \d+) <span", html)


@pytest.fixture(scope="module")
def photo(address) -> str:
    return uploaded(address)


def test_it_shows_the_localizers_boxes_and_how_to_get_them_again(address, photo):
    found = shown(address, wish(photo, CAM))
    [box] = Localizer(create_once("mini"), method="cam")(DEMO / "cat.jpg", ["cat", "dog"]).boxes.xyxy
    assert boxes_shown(found["figures"]) == ["{:.0f} {:.0f} {:.0f} {:.0f}".format(*box)]
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
        assert boxes_shown(moved["figures"]) != boxes_shown(before["figures"])
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


# ----------------------------------------------------------------------------------------------------------------- runs
class Work:
    """Steps until it is stopped; a test waits for its first."""

    def __init__(self):
        self.started = threading.Event()

    def __call__(self, reporter):
        while True:
            reporter.masked(2, 5)
            self.started.set()


@pytest.fixture
def runs():
    made = Runs(queue=1)
    yield made
    made.end()


def test_a_run_counts_and_gives_what_the_work_gave(runs):
    run = runs.begin("a", lambda reporter: (reporter.masked(16, 7), reporter.masked(7, 0), "maps")[-1])
    assert (run.future.result(60), run.steps, run.bank) == ("maps", (23, 0), (0, 0))
    run = runs.begin("a", lambda reporter: (reporter.bank(0, 128), reporter.bank(64, 64), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run.future.result(60)
    assert (run.steps, run.bank) == ((0, 0), (64, 64))


@pytest.mark.parametrize("part", ["phase", "images", "masked", "bank"])
def test_a_stopped_run_ends_at_whatever_its_work_reports(runs, part):
    stopped, news = threading.Event(), {"phase": ("writing",), "images": (1,), "masked": (1, 0), "bank": (1, 0)}[part]
    run = runs.begin("a", lambda reporter: (stopped.wait(10), getattr(reporter, part)(*news)))
    run.stop()
    stopped.set()
    with pytest.raises(StoppedError, match="as you asked"):
        run.future.result(60)


def test_a_new_run_ends_the_visitors_last_one_and_no_others(runs):
    work = Work()
    other, mine = runs.begin("b", work), runs.begin("a", Work())
    assert work.started.wait(10)
    assert runs.begin("a", lambda _: "maps").future.result(60) == "maps"
    assert (mine.future.done(), other.future.done()) == (True, False)


def test_a_few_run_some_wait_the_others_are_refused_and_all_end_with_the_server(runs):
    all_of_them = [runs.begin("", Work()) for _ in range(AT_ONCE + 1)]
    with pytest.raises(RefusedError, match="Too many requests are waiting"):
        runs.begin("", Work())
    assert all_of_them[-1].began is None
    runs.end()
    for run in all_of_them:
        with pytest.raises(StoppedError):
            run.future.result(60)
    with pytest.raises(StoppedError, match="shutting down"):
        runs.begin("", Work())


# -------------------------------------------------------------------------------------------------------------- uploads
def test_what_is_old_goes(tmp_path):
    store = Store(tmp_path, {}, seconds=250)
    numbers = [store.keep(io.BytesIO(b"abc"), f"{ago}.jpg") for ago in (300, 200)]
    for number, ago in zip(numbers, (300, 200), strict=True):
        folder = store.picture(number).parent
        os.utime(folder, (0, folder.stat().st_mtime - ago))
    store.sweep()
    assert store.picture(numbers[1]).read_bytes() == b"abc"
    with pytest.raises(RefusedError, match="no longer: upload it"):
        store.picture(numbers[0])
