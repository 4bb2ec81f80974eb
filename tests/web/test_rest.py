"""`POST /api/localize` and `/api/files`: answers, refusals with their status, and the examples of docs/web.md."""

import json
import re
import shlex
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")
from cliploc import towers
from cliploc.images.exemplars import Exemplar
from cliploc.localizer import Localizer
from cliploc.web.service import Offer, Service
from tests.commands import localizer_of
from tests.web.asking import CAT, DEMO, FAST, get, located, post, post_json, started

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


@pytest.mark.parametrize("value", [{"names": "cat"}, {"names": "cat", "picture": ""}, {"visitor": "c" * 32}])
def test_files_of_nothing_are_a_sentence(address, value):
    code, document = post_json(address, value, "/api/files")
    assert (code, "got none" in document["error"] or "no results any longer" in document["error"]) == (422, True)


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
