"""`POST /api/localize` and `/api/files`: answers, refusals with their status, and the examples of docs/web.md."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")
from PIL import Image

from cliploc import backbones
from cliploc.exemplars import Exemplar
from cliploc.localizer import Localizer
from cliploc.web.runs import ENDING, STOPPED, StoppedError
from cliploc.web.service import Offer, Service
from tests.commands import localizer_of
from tests.web.asking import CAT, DEMO, SLOW, ask, form, get, post, post_json, service, started

ROOT = Path(__file__).parents[2]
PATH = "/api/localize"


def boxes_in(document: Any) -> list[list[float]]:
    return [box["xyxy"] for name in document["pictures"][0]["names"] for box in name["boxes"]]


def test_it_answers_as_the_localizer_does(address):
    status, document = post(address, ("picture", "cat.jpg", CAT), names="cat, dog", method="cam", threshold="0.3")
    wanted = Localizer("mini", method="cam", threshold=0.3)(DEMO / "cat.jpg", ["cat", "dog"])
    assert status == 200
    assert boxes_in(document) == [pytest.approx(box, abs=0.01) for box in wanted.boxes.xyxy.tolist()]
    assert [one["found"] for one in document["pictures"][0]["names"]] == [True, False]
    ids = document["ids"]
    again = {"picture": ids["picture"], "names": "cat, dog", "method": "cam", "threshold": 0.3}
    assert post_json(address, again) == (200, document)
    status, of_example = post_json(address, {**again, "picture": "cat.jpg"})
    assert (status, of_example["pictures"]) == (200, document["pictures"])


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


def test_files_of_many_methods_have_a_comparison(address):
    methods = ["cam", "grad_cam", "layer_cam", "xgrad_cam"]
    wanted = [localizer_of("mini", method=method)(DEMO / "cat.jpg", ["cat"]) for method in methods]
    for compare in (methods[1:], ",".join(methods[1:])):
        asked = {"picture": "cat.jpg", "names": "cat", "method": "cam", "compare": compare}
        _, document = post_json(address, asked)
        assert [one["method"] for one in document["pictures"]] == methods
        for one, alone in zip(document["pictures"], wanted, strict=True):
            boxes = [box["xyxy"] for box in one["names"][0]["boxes"]]
            assert boxes == [pytest.approx(box, abs=0.01) for box in alone.boxes.xyxy.tolist()]
    assert "cat_compare.png" in [one["name"] for one in post_json(address, asked, "/api/files")[1]["files"]]


@pytest.mark.parametrize("value", [{"names": "cat"}, {"names": "cat", "picture": ""}, {"visitor": "c" * 32}])
def test_files_of_nothing_are_a_sentence(address, value):
    code, document = post_json(address, value, "/api/files")
    assert (code, "got none" in document["error"] or "no results to download" in document["error"]) == (422, True)


def test_an_overlay_is_a_jpeg_of_the_pictures_size(address):
    status, document = post(address, ("picture", "cat.jpg", CAT), names="cat", recipe="fast", overlay="true")
    head, code = document["pictures"][0]["overlay"].split(",")
    with Image.open(DEMO / "cat.jpg") as photo, Image.open(io.BytesIO(base64.b64decode(code))) as drawn:
        assert (status, head, drawn.format) == (200, "data:image/jpeg;base64", "JPEG")
        assert drawn.size == photo.size


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


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"names": ""}, 422, "expected a name to look for"),
        ({"names": "cat", "thresold": "1"}, 422, "expected one of the settings"),
        ({"names": "cat", "threshold": "high"}, 422, "threshold"),
        ({"names": "cat", "method": "legrad"}, 422, "does not run on mini"),
        ({"names": "cat", "model": "/etc/passwd"}, 422, "expected a model of the menu"),
        ({"names": "cat", "overlay": "maybe"}, 422, "expected overlay as true or false"),
        ({"names": "cat", "exemplar": "/etc/hostname"}, 404, "no picture with this id"),
    ],
)
def test_a_setting_that_cannot_be_is_a_sentence(address, fields, status, said):
    code, document = post(address, ("picture", "cat.jpg", CAT), **fields)
    assert (code, said in document["error"]) == (status, True), document


def test_an_exemplar_may_be_left_empty(address):
    """As a form in a browser sends a file that was not chosen, and a program null."""
    given = {"names": "cat", "recipe": "fast"}
    status, document = post(address, ("picture", "cat.jpg", CAT), ("exemplar", "", b""), **given)
    assert status == 200, document
    for empty in (None, ""):
        again = post_json(address, {**given, **document["ids"], "exemplar": empty})
        assert again == (200, document)
    code, document = post(address, ("picture", "", b""), **given)
    assert (code, "expected a picture, got none" in document["error"]) == (422, True)


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        ({"names": "cat"}, 422, "expected a picture"),
        ({"names": "cat", "picture": 3}, 422, "expected picture as a file or as the id"),
        ({"names": "cat", "picture": {"path": "/etc/hostname"}}, 422, "expected picture as a file or as the id"),
        ({"names": ["cat"], "picture": "0" * 40}, 404, "no picture with this id"),
        ({"names": "cat", "picture": "0" * 40}, 404, "no picture with this id"),
        ({"names": "cat", "picture": "../" + "0" * 37}, 404, "no picture with this id"),
        ({"names": "cat", "picture": str(DEMO / "cat.jpg")}, 404, "no picture with this id"),
        ({"names": "cat", "picture": "http://127.0.0.1:9/a.jpg"}, 404, "no picture with this id"),
        ([], 422, "expected a JSON object"),
    ],
)
def test_only_an_id_names_a_picture(address, value, status, said):
    code, document = post_json(address, value)
    assert (code, said in document["error"]) == (status, True), document


def test_what_is_no_form_and_no_json_is_refused(address):
    assert ask(address, b"abc", content_type="text/plain")[0] == 415
    assert ask(address, b"{", content_type="application/json")[0] == 422
    assert ask(address, b"abc", content_type="multipart/form-data")[0] == 422
    assert (
        ask(address, b'--x\r\nContent-Disposition: form-data; name="a"', content_type="multipart/form-data")[0] == 422
    )
    code, document = post(address, ("picture", "a.jpg", b"abc"), names="cat")
    assert (code, "a.jpg: not a picture" in document["error"]) == (422, True)
    code, document = post(address, names="cat")
    assert (code, "expected a picture" in document["error"]) == (422, True)
    code, document = post(address, ("picture", "a.jpg", CAT), ("names", "b.jpg", CAT))
    assert (code, "expected a file only as" in document["error"]) == (422, True)
    twice = form(("picture", "a.jpg", CAT), names="cat")[:-7] + form(names="dog")
    code, document = ask(address, twice, content_type="multipart/form-data; boundary=x")
    assert (code, "each field once" in document["error"]) == (422, True)
    many = form(("picture", "a.jpg", CAT), **{f"f{number}": "" for number in range(100)})
    assert ask(address, many, content_type="multipart/form-data; boundary=x")[0] == 422


def test_what_is_too_large_is_refused(address):
    assert post(address, ("picture", "a.jpg", bytes(1_100_000)), names="cat")[0] == 413
    assert post_json(address, {"names": "a" * 300_000})[0] == 413
    assert post(address, ("picture", "a.jpg", CAT), names="a" * 50_000)[0] == 422
    large = io.BytesIO()
    Image.new("L", (1001, 1000)).save(large, "PNG")
    code, document = post(address, ("picture", "a.png", large.getvalue()), names="cat")
    assert (code, "1001×1000 pixels" in document["error"]) == (422, True)


def test_foreign_hosts_pages_and_methods_are_refused(address):
    body, kind = form(("picture", "cat.jpg", CAT), names="cat"), "multipart/form-data; boundary=x"
    assert ask(address, body, content_type=kind, host="evil.example.com")[0] == 421
    assert ask(address, body, content_type=kind, origin="http://evil.example.com")[0] == 403
    for method in ("GET", "PUT", "OPTIONS"):
        assert ask(address, None, method)[0] == 405


def test_the_names_of_pictures_are_no_paths(address, folder):
    for name in ("../../../escaped.jpg", "..\\..\\escaped.jpg", "..", "a\0b.jpg", "x" * 300 + ".jpg"):
        status, document = post(address, ("picture", name, CAT), names="cat", recipe="fast")
        assert status == 200, document
        assert re.fullmatch(r"[\w. -]+", document["pictures"][0]["file"])
        [stored] = (folder / document["ids"]["picture"]).iterdir()
        assert stored.read_bytes() == CAT


def test_an_id_is_of_one_server_and_ends_with_its_file(address, folder):
    ids = [post(address, ("picture", name, CAT), names="cat", recipe="fast")[1]["ids"] for name in ("a", "a", "b")]
    assert ids[0] == ids[1] != ids[2]
    (folder / ids[0]["picture"] / "a").unlink()
    code, document = post_json(address, {"names": "cat", **ids[0]})
    assert (code, "upload it" in document["error"]) == (404, True)
    for other in started(service(), folder, max_bytes=1_000_000):
        assert post(other, ("picture", "b", CAT), names="cat", recipe="fast")[1]["ids"] != ids[2]


def test_more_than_may_wait_are_refused_and_the_end_of_the_server_too(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for address in started(service(), tmp_path, queue=1):
            asked = [pool.submit(post, address, ("picture", "a.jpg", CAT), **SLOW) for _ in range(4)]
            while not any(one.done() for one in asked):
                time.sleep(0.01)
            refused = [one for one in asked if one.done()]
            assert {one.result()[0] for one in refused} == {503}
            assert "too many requests are waiting" in refused[0].result()[1]["error"].lower()
            assert sum(not one.done() for one in asked) >= 2
        # The server has ended: those who were not refused need not wait any longer.
        for one in asked:
            code, document = one.result()
            assert code == 503
            assert one in refused or document["error"] in (STOPPED, ENDING)


@pytest.mark.parametrize("auth", [None, ("me", "secret")])
def test_a_model_that_loads_makes_nobody_wait_who_asks_for_another(tmp_path, monkeypatch, auth):
    create, begun, go_on = backbones.create, threading.Event(), threading.Event()

    def slow(model, *args, **options):
        if model == "mini-vit":
            begun.set()
            assert go_on.wait(60)
        return create(model, *args, **options)

    monkeypatch.setattr(backbones, "create", slow)
    login = f"Basic {base64.b64encode(b'me:secret').decode()}"
    for address in started(Service([Offer("mini"), Offer("mini-vit")], device="cpu"), tmp_path, auth=auth, queue=12):

        def ask_for(model: str, address: str = address) -> int:
            body = form(("picture", "cat.jpg", CAT), names="cat", recipe="fast", model=model)
            kind = "multipart/form-data; boundary=x"
            return ask(address, body, content_type=kind, authorization=login)[0]

        with ThreadPoolExecutor(12) as pool:
            try:
                waiting = [pool.submit(ask_for, "mini-vit") for _ in range(12)]
                assert begun.wait(60)
                assert [ask_for("mini") for _ in range(6)] == [200] * 6
                assert not any(one.done() for one in waiting)
            finally:
                go_on.set()
            assert [one.result() for one in waiting] == [200] * 12


def test_a_program_that_leaves_is_not_computed_for(tmp_path):
    looked_at = service()
    for address in started(looked_at, tmp_path):
        where = urlsplit(address)
        body = form(("picture", "a.jpg", CAT), **SLOW)
        head = f"POST {PATH} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        with socket.create_connection((where.hostname, where.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while not (runs := list(looked_at.runs._runs)):
                time.sleep(0.01)
        runs[0]._thread.join(20)
        assert not runs[0]._thread.is_alive()
        # Its upload is closed when it leaves: a run that has not read it yet ends by that.
        with pytest.raises((StoppedError, ValueError), match=r"Stopped|closed file"):
            runs[0].result()


def test_a_password_is_asked_for_and_guesses_are_limited(tmp_path):
    for address in started(service(), tmp_path, auth=("me", "secret")):
        body, kind = form(("picture", "cat.jpg", CAT), names="cat", recipe="fast"), "multipart/form-data; boundary=x"
        mine, other = (f"Basic {base64.b64encode(one).decode()}" for one in (b"me:secret", b"me:guess"))
        assert ask(address, body, content_type=kind, authorization=mine)[0] == 200
        assert ask(address, body, content_type=kind)[0] == 401
        codes = [ask(address, body, content_type=kind, authorization=other)[0] for _ in range(12)]
        assert set(codes[:9]) == {401}
        assert codes[-1] == 429


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
