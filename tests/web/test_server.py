"""The server: what it lets in and out, over HTTP, as gradio's own client and as somebody who means harm."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'cliploc[web]'")
import gradio_client

from cliploc.web.server import application, listener
from cliploc.web.service import Offer, Service
from tests.commands import cliploc_, localizer_of

PATIENCE = 120  # seconds: a busy machine takes long
DEMO = Path(__file__).parents[2] / "src/cliploc/demo_photos"


def service() -> Service:
    """For one server: it ends with it."""
    return Service([Offer("mini")], device="cpu", max_pixels=1_000_000)


def started(service: Service, folder: Path, **options) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        server = listener(application(service, **options), port=0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:  # also where a test fails: nothing may compute on
            server.should_exit = True
            thread.join(PATIENCE)
        assert not thread.is_alive()


def get(url: str, data: dict | None = None) -> tuple[int, str, dict]:
    body = None if data is None else json.dumps(data).encode()
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode(errors="replace"), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), dict(error.headers)


def client(address: str, folder: Path) -> gradio_client.Client:
    patient = {"timeout": PATIENCE}
    return gradio_client.Client(
        address, verbose=False, download_files=str(folder), analytics_enabled=False, httpx_kwargs=patient
    )


def test_the_interface_gives_the_localizers_boxes(address, tmp_path):
    mine = client(address, tmp_path)
    photo = gradio_client.handle_file(str(DEMO / "cat.jpg"))
    for given in ({}, {"recipe": "fast"}, {"method": "cam"}, {"method": "cam", "threshold": 0.4}):
        document = mine.predict(photo, "cat, dog", given, api_name="/locate")
        localizer = localizer_of("mini", **given)
        wanted = localizer(DEMO / "cat.jpg", ["cat", "dog"])
        [picture] = document["pictures"]
        cat, dog = picture["names"]
        assert (picture["file"], picture["method"]) == ("cat.jpg", "cam")
        assert (picture["recipe"] or {}).get("options") == (localizer.recipe and str(localizer.recipe))
        boxes = [box["xyxy"] for box in cat["boxes"]]
        assert boxes == [pytest.approx(box, abs=0.01) for box in wanted.boxes.xyxy.tolist()]
        assert (cat["found"], dog["found"]) == (True, False)
    files = mine.predict(photo, "cat", {"method": "cam"}, api_name="/files")
    assert "coco.json" in [Path(file).name for file in files]
    assert json.loads(Path(files[-1]).read_text())["pictures"][0]["names"][0]["found"]


def test_an_exemplar_is_an_upload_and_never_a_path(address, tmp_path):
    """As `-p cat=@dogs.jpg[…]`; a photograph's own name beside it is text."""
    from cliploc.exemplars import Exemplar

    mine, box = client(address, tmp_path), (40, 30, 200, 220)
    photo, shown = (gradio_client.handle_file(str(DEMO / name)) for name in ("dogs.jpg", "cat.jpg"))
    given = {"recipe": "fast", "exemplar_name": "pet", "exemplar_box": "40, 30, 200, 220"}
    [picture] = mine.predict(photo, "dog", given, shown, api_name="/locate")["pictures"]
    exemplar = Exemplar("pet", DEMO / "cat.jpg", box)
    wanted = localizer_of("mini", recipe="fast", exemplars=[exemplar])(DEMO / "dogs.jpg", ["dog", "pet"])
    assert [one["name"] for one in picture["names"]] == ["dog", "pet"]
    boxes = [box["xyxy"] for one in picture["names"] for box in one["boxes"]]
    assert boxes == [pytest.approx(box, abs=0.01) for box in wanted.boxes.xyxy.tolist()]
    assert [one["found"] for one in picture["names"]] == wanted.found.tolist()
    outside = {**given, "exemplar_box": "0,0,9000,9"}
    with pytest.raises(gradio_client.exceptions.AppError, match="expected the box of the exemplar of 'pet' inside its"):
        mine.predict(photo, "dog", outside, shown, api_name="/locate")
    for path in ("/etc/hostname", str(Path(__file__))):
        data = [None, "dog", given, {"path": path, "meta": {"_type": "gradio.FileData"}}]
        code, body, _ = get(f"{address}/gradio_api/call/locate", {"data": data})
        assert (code, "was not uploaded here" in body) == (422, True)
    # What asked before there were exemplars sends three arguments.
    assert get(f"{address}/gradio_api/call/locate", {"data": [None, "dog", {"recipe": "fast"}]})[0] == 200


def test_the_interface_compares_any_number_of_methods(address, tmp_path):
    mine = client(address, tmp_path)
    photo = gradio_client.handle_file(str(DEMO / "cat.jpg"))
    methods = ["cam", "grad_cam", "layer_cam", "xgrad_cam"]
    wanted = [localizer_of("mini", method=method)(DEMO / "cat.jpg", ["cat"]) for method in methods]
    for compare in (methods[1:], ",".join(methods[1:])):
        document = mine.predict(photo, "cat", {"method": "cam", "compare": compare}, api_name="/locate")
        assert [one["method"] for one in document["pictures"]] == methods
        for one, alone in zip(document["pictures"], wanted, strict=True):
            boxes = [box["xyxy"] for box in one["names"][0]["boxes"]]
            assert boxes == [pytest.approx(box, abs=0.01) for box in alone.boxes.xyxy.tolist()]
    files = mine.predict(photo, "cat", {"method": "cam", "compare": methods[1:]}, api_name="/files")
    assert "cat_compare.png" in [Path(file).name for file in files]


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        ("", {}, "expected a name to look for"),
        ("cat", {"method": "legrad"}, "does not run on mini"),
        ("cat", {"compare": ["layer_cam", "legrad"]}, "does not run on mini"),
        ("cat", {"model": "/etc/passwd"}, "expected a model of the menu"),
        ("cat", {"thresold": 1}, "expected one of the settings"),
        ("cat", {"recipe": "quick"}, "expected recipe to be one of default, fast, best"),
        ("cat", {"recipe": "fast", "method": "cam"}, "expected a method or a recipe"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(address, tmp_path, names, settings, said):
    photo = gradio_client.handle_file(str(DEMO / "cat.jpg"))
    with pytest.raises(gradio_client.exceptions.AppError, match=said):
        client(address, tmp_path).predict(photo, names, settings, api_name="/locate")


def test_a_photograph_of_too_many_pixels_is_refused(address, tmp_path):
    from PIL import Image

    Image.new("L", (1001, 1000)).save(tmp_path / "large.png")
    with pytest.raises(
        gradio_client.exceptions.AppError, match=r"large\.png: 1001×1000 pixels, expected at most 1 mill"
    ):
        client(address, tmp_path).predict(
            gradio_client.handle_file(str(tmp_path / "large.png")), "cat", {}, api_name="/locate"
        )


def test_ten_at_once_each_get_their_own(address, tmp_path):
    photos = sorted(DEMO.glob("*.jpg"))[:10]
    clients = [client(address, tmp_path / photo.stem) for photo in photos]

    def ask(one, photo):
        settings = {"min_presence": 0, "recipe": "fast"}
        return one.predict(gradio_client.handle_file(str(photo)), photo.stem, settings, api_name="/locate")

    with ThreadPoolExecutor(10) as pool:
        documents = list(pool.map(ask, clients, photos))
    assert [document["pictures"][0]["file"] for document in documents] == [photo.name for photo in photos]
    assert [document["pictures"][0]["names"][0]["name"] for document in documents] == [photo.stem for photo in photos]


@pytest.mark.parametrize("named", [__file__, "/etc/passwd", "http://127.0.0.1:9/x.jpg", str(DEMO / "../demo.py")])
def test_no_file_is_read_but_uploads_and_examples(address, tmp_path, named):
    for path in (f"/gradio_api/file={named}", f"/file={named}", f"/gradio_api/proxy={named}"):
        code, text, _ = get(address + path)
        assert code in (403, 404)
        assert "root:" not in text
    mine = client(address, tmp_path)
    with pytest.raises((gradio_client.exceptions.AppError, gradio_client.exceptions.ValidationError)):
        mine.predict({"path": named, "meta": {"_type": "gradio.FileData"}}, "cat", {}, api_name="/locate")
    code, text, _ = get(
        f"{address}/gradio_api/call/locate",
        {"data": [{"path": named, "url": named, "meta": {"_type": "gradio.FileData"}}, "cat", {}]},
    )
    if code == 200:
        _, text, _ = get(f"{address}/gradio_api/call/locate/{json.loads(text)['event_id']}")
        assert "event: error" in text
    assert "schema_version" not in text


def test_the_browser_knows_every_component(address):
    """Of a component of our own gradio takes the name of the class that it is derived from first."""
    import gradio

    known = {name.lower() for name in dir(gradio)} | {"form"}
    assert [
        one["type"] for one in json.loads(get(f"{address}/config")[1])["components"] if one["type"] not in known
    ] == []


def test_the_browser_is_told_to_ask_nobody_else(address):
    code, _, headers = get(address)
    assert code == 200
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_an_upload_of_too_many_bytes_is_turned_away(address):
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    for size, wanted in ((900_000, 200), (1_100_000, 413)):
        body = head.encode() + bytes(size) + b"\r\n--x--\r\n"
        asked = urllib.request.Request(
            f"{address}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )
        try:
            code = urllib.request.urlopen(asked, timeout=PATIENCE).status
        except urllib.error.HTTPError as error:
            code = error.code
        assert code == wanted


def test_a_server_ends_at_once_and_silently_though_many_look(tmp_path, capfd):
    looked_at = service()
    for address in started(looked_at, tmp_path):
        # Their connections stay open; those who wait must not have their turn when the first is stopped.
        mine = [client(address, tmp_path) for _ in range(3)]
        photos = [gradio_client.handle_file(str(DEMO / name)) for name in ("cat.jpg", "bee.jpg", "dogs.jpg")]
        slow = {"method": "score_cam", "scales": "1,1.43,2"}
        long_ones = [
            one.submit(photo, "cat", slow, api_name="/locate") for one, photo in zip(mine, photos, strict=True)
        ]
        while not any(run.steps[0] for run in list(looked_at.runs._runs)):
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 15
    for one in long_ones:
        assert one.exception(timeout=PATIENCE) is not None
    for run in list(looked_at.runs._runs):
        run._thread.join(PATIENCE)
        assert not run._thread.is_alive()
    assert "Traceback" not in capfd.readouterr().err


def test_a_stranger_is_turned_away_where_there_is_a_password(tmp_path):
    for address in started(service(), tmp_path, auth=("me", "secret")):
        assert get(f"{address}/gradio_api/queue/status")[0] == 401
        assert get(f"{address}/gradio_api/upload", {})[0] == 401
        with pytest.raises(gradio_client.exceptions.AuthenticationError):
            client(address, tmp_path)
        mine = gradio_client.Client(address, auth=("me", "secret"), verbose=False, analytics_enabled=False)
        photo = gradio_client.handle_file(str(DEMO / "cat.jpg"))
        document = mine.predict(photo, "cat", {"recipe": "fast"}, api_name="/locate")
        assert document["pictures"][0]["names"][0]["found"]


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
