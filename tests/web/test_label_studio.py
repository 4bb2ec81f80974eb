"""Label Studio's ML backend over loopback: its answers by the definition of its formats, and what it refuses."""

import base64
import http.server
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.errors import CliplocError, InputError, UsageError
from cliploc.label.label_studio.app import PictureSource, Predictor, Task, application, read_labelling
from cliploc.localizer import Localizer
from cliploc.options import MIN_SCORE, Options
from cliploc.web.server import Hosts
from tests.commands import check_refusal, cliploc_
from tests.tiny import tower
from tests.web.asking import CAT, DEMO, running, sent

NAMES = '<Label value="{0}red" predicted_values="dark red, a red one"/><Label value="{0}blue" alias="light blue"/>'
CONFIG = """<View><Image name="img" value="$photo"/><Header value="Draw"/>
<RectangleLabels name="box" toName="img">{0}</RectangleLabels>
<PolygonLabels name="poly" toName="img">{0}</PolygonLabels>
<Choices name="ok" toName="img"><Choice value="yes"/></Choices></View>""".format(NAMES.format(""))
OPTIONS = {
    "method": "cam", "min_presence": 0, "min_score": 0, "text_cache": False, "threshold": 0.5, "templates": ("{}",),
}  # fmt: skip
WORDS = ["red|dark red|a red one", "blue|light blue"]


def interface(labels: str) -> str:
    image = "<Image name='b' value='$c'/>"
    return f"<View>{image}<RectangleLabels name='a' toName='b'>{labels}</RectangleLabels></View>"


def painted(width: int = 120, height: int = 100) -> Image.Image:
    """Grey, with a red and a blue square."""
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((20, 20, 39, 39), fill=(255, 0, 0))
    draw.rectangle((80, 60, 99, 79), fill=(0, 0, 255))
    return picture


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


PAINTED = png(painted())
IN_TASK = f"data:image/png;base64,{base64.b64encode(PAINTED).decode()}"


@pytest.fixture(scope="module")
def backbone() -> Any:
    return tower("gap_cnn")


def predictor(backbone: Any, source: PictureSource | None = None) -> Predictor:
    return Predictor(Options.of(model=backbone, **OPTIONS), source or PictureSource(), 1_000_000)


def predict(address: str, *pictures: Any, config: str = CONFIG, **headers: str) -> tuple[int, Any]:
    tasks = [{"id": 7 + i, "data": {"photo": one}} for i, one in enumerate(pictures)]
    # As Label Studio sends it.
    params = {"login": None, "password": None, "context": None}
    body = {"tasks": tasks, "model_version": "", "project": "1.17", "label_config": config, "params": params}
    return sent(f"{address}/predict", body, **headers)


@pytest.fixture(scope="module")
def server(backbone) -> Iterator[tuple[str, list[str]]]:
    message: list[str] = []
    with running(application(predictor(backbone), Hosts(), say=message.append)) as address:
        yield address, message


# ------------------------------------------------------------------------------------------------------------ answers
def test_a_task_gets_what_the_localizer_finds_in_each_of_its_tags(server, backbone):
    address, _ = server
    status, answer = predict(address, IN_TASK)
    found = Localizer(model=backbone, **OPTIONS)(painted(), WORDS)
    assert (status, len(answer["results"]), len(found.boxes)) == (200, 1, 2)
    [prediction] = answer["results"]
    version = answer["model_version"]
    assert prediction["model_version"] == version != ""
    assert prediction["score"] == pytest.approx(found.boxes.score.min(), abs=1e-4)
    size = np.array([120, 100, 120, 100])
    labels = [["red", "light blue"][i] for i in found.boxes.label]  # an alias is what Label Studio stores
    masks = dict(found.box_masks())
    of_kind = {kind: [one for one in prediction["result"] if one["type"] == kind] for kind in
               ("rectanglelabels", "polygonlabels")}  # fmt: skip
    assert sum(map(len, of_kind.values())) == len(prediction["result"])
    for i, one in enumerate(of_kind["rectanglelabels"]):
        value = one["value"]
        corners = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
        assert np.array(corners) * size / 100 == pytest.approx(found.boxes.xyxy[i], abs=0.01)
    for i, one in enumerate(of_kind["polygonlabels"]):
        canvas = Image.new("1", (120, 100))
        ImageDraw.Draw(canvas).polygon([(x * 1.2, y) for x, y in one["value"]["points"]], fill=1)
        drawn = np.asarray(canvas)
        assert (drawn & masks[i]).sum() / (drawn | masks[i]).sum() > 0.8
        assert len(one["value"]["points"]) < 40
    for kind, tag in (("rectanglelabels", "box"), ("polygonlabels", "poly")):
        assert [one["value"][kind] for one in of_kind[kind]] == [[label] for label in labels]
        assert {(one["from_name"], one["to_name"]) for one in of_kind[kind]} == {(tag, "img")}
    assert {(one["original_width"], one["original_height"]) for one in prediction["result"]} == {(120, 100)}
    assert len({one["id"] for one in prediction["result"]}) == len(prediction["result"])


def test_label_studios_own_sdk_takes_the_prediction(server):
    """Where the SDK is installed (`pip install label-studio-sdk`, which brings much with it)."""
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    _, answer = predict(server[0], IN_TASK)
    assert interface.LabelInterface(CONFIG).validate_prediction(answer["results"][0], return_errors=True) == []


def test_names_are_embedded_once_for_all_tasks(backbone, monkeypatch):
    requested: list[str] = []
    encode = type(backbone).encode_text
    monkeypatch.setattr(
        type(backbone), "encode_text", lambda self, texts: requested.extend(texts) or encode(self, texts)
    )
    mine = predictor(backbone)
    labelling = read_labelling(CONFIG)
    for _ in range(2):
        made = mine([Task({"photo": IN_TASK})] * 2, labelling)
        assert not made.errors
        assert len(requested) == len(set(requested)) == 5


def test_a_task_that_fails_has_no_prediction_and_the_others_have(server):
    address, message = server
    message.clear()
    status, answer = predict(address, IN_TASK, "data:image/png;base64,AAAA", {"no": "text"}, IN_TASK)
    assert status == 200
    first, second, third, fourth = answer["results"]
    assert (second, third) == ([], [])
    assert first["result"] == fourth["result"] != []
    assert message[0].startswith("task 8: not a picture that can be read")
    assert message[1] == "task 9: expected the address of a picture in 'photo', found none: check the task"
    status, answer = predict(address, "data:image/png;base64,AAAA")  # else nobody in Label Studio would see it
    assert status == 422
    assert answer["error"].startswith("task 7: not a picture")
    assert "/tmp" not in answer["error"]


def test_health_setup_and_webhooks(server, backbone):
    address, message = server
    with urllib.request.urlopen(f"{address}/health") as answer:
        health = json.load(answer)
    assert health["status"] == "UP"
    message.clear()
    body = {"project": "1.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "x"}
    for _ in range(2):  # Label Studio sends it again with each task
        assert sent(f"{address}/setup", body) == (200, {"model_version": health["model_version"]})
    assert message == [f"connected: {', '.join(WORDS)}"]
    status, answer = sent(f"{address}/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 1}})
    assert (status, answer["status"]) == (201, "ok")
    other = Predictor(Options.of(model=backbone, **{**OPTIONS, "threshold": 0.4}), PictureSource(), 10)
    assert other.version != health["model_version"]  # so that Label Studio asks again


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("<View", "XML"),
        ("<View><Text name='a' value='$b'/></View>", "RectangleLabels"),
        ("<View><RectangleLabels name='a' toName='b'><Label value='c'/></RectangleLabels></View>", "Image"),
        ("<View><Image name='b' value='http://x'/><PolygonLabels name='a' toName='b'/></View>", "$image"),
        ("<View><Image name='b' value='$c'/><PolygonLabels name='a' toName='b'/></View>", "labels"),
    ],
)
def test_an_interface_that_cannot_be_used_is_a_sentence(server, config, names):
    for path, body in (("setup", {"schema": config}), ("predict", {"tasks": [], "label_config": config})):
        status, answer = sent(f"{server[0]}/{path}", body)
        assert status == 400
        check_refusal(answer["error"], names)
        assert server[1][-1] == answer["error"]  # as Label Studio shows only the status


def test_labels_are_told_apart_and_keep_the_order_of_the_interface():
    """However often they come, and in whichever tag; a label belongs to the nearest tag around it."""
    many = "".join(f"<Label value='{i}' alias='a{i}'/>" for i in range(900))
    inner = f"<PolygonLabels name='c' toName='b'>{many}<Label value='x'/></PolygonLabels>"
    read = read_labelling(interface(f"<Label value='7'/>{many * 5}<View>{inner}</View>"))
    assert read.entries == ("7|a7", *(f"{i}|a{i}" for i in range(900) if i != 7), "x")
    outer, inner = read.controls
    assert sorted(outer.labels) == list(range(900))
    assert len(inner.labels) == 901
    assert {900: "x", 0: "a7"}.items() <= inner.labels.items()


LETTERS = st.text("ab|,@ &<>'\"\t\x00\ud800\u00e9", max_size=12)


@given(LETTERS, LETTERS)
def test_any_label_is_read_or_refused(value, alias):
    from xml.sax.saxutils import quoteattr

    label = f"<Label value={quoteattr(value)} alias={quoteattr(alias)}/>"
    config = f'<View><Image name="i" value="$i"/><PolygonLabels name="b" toName="i">{label}</PolygonLabels></View>'
    try:
        read = read_labelling(config)
    except UsageError:
        return
    assert len(read.entries) == len(read.controls[0].labels) == 1


# ------------------------------------------------------------------------------------------------ where pictures lie
def test_local_files_are_read_below_the_folder_only(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "sub dir/a.png").write_bytes(PAINTED)
    (tmp_path / "secret.png").write_bytes(PAINTED)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    source = PictureSource(folder)
    for address in ("/data/local-files/?d=sub%20dir/a.png", "sub dir/a.png"):
        with source.picture(address) as path:
            assert path.read_bytes() == PAINTED
    for address, message in (
        ("/data/local-files/?d=../secret.png", "lies outside"),
        ("/data/local-files/?d=%2e%2e/secret.png", "lies outside"), ("link.png", "lies outside"),
        ("/data/local-files/?d=gone.png", "no such file"), ("/data/local-files/?d=a%00b", "no such file"),
        ("circle.png", "no such file"), (f"/data/local-files/?d=/{tmp_path}/secret.png", "no such file"),
        (str(tmp_path / "secret.png"), "not fetched: start with --pictures"),
        ("http://example.org/a.png", "not fetched: start with"), ("file:///etc/passwd", "not fetched"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message), source.picture(address):
            pass
    with pytest.raises(InputError, match="not fetched"), PictureSource().picture("sub dir/a.png"):
        pass


class Studio(http.server.BaseHTTPRequestHandler):
    """Serves a picture to who has the token, and redirects, as Label Studio may."""

    requested: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.requested.append((self.path, self.headers["Authorization"]))
        if self.headers["Authorization"] not in ("Token abc", "Bearer fresh"):
            return self.answer(401)
        if self.path == "/data/away":
            return self.answer(302, Location="http://127.0.0.1:1/elsewhere")
        if self.path == "/data/strange":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            return None
        return self.answer(200, bytes(2_000_000) if self.path == "/data/large" else PAINTED)

    def do_POST(self) -> None:
        requested = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200 if requested == {"refresh": "a.b.c"} else 401, b'{"access": "fresh"}')

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def studio() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Studio)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_one_picture_that_cannot_be_fetched_fails_its_task_only(backbone):
    """Whatever its name, and whatever the answer."""
    with studio() as url:
        mine = predictor(backbone, PictureSource(None, url, "abc"))
        good = ("/data/upload/1/a b.png", "/data/upload/1/\u00e4.png", f"{url}/data/upload/1/a%20b.png?x=1 2")
        made = mine([Task({"photo": one}) for one in ("/data/strange", *good)], read_labelling(CONFIG))
    assert list(made.errors) == [0]
    assert "not fetched" in made.errors[0]
    assert made.errors[0].isprintable()
    assert all(one is not None for one in made.results[1:])
    sent = ["/data/upload/1/a%20b.png", "/data/upload/1/%C3%A4.png", "/data/upload/1/a%20b.png?x=1%202"]
    assert [path for path, _ in Studio.requested[-3:]] == sent


def test_label_studios_own_pictures_are_fetched_and_nobody_elses():
    with studio() as url:
        for token, sent in (("abc", "Token abc"), ("a.b.c", "Bearer fresh")):
            source = PictureSource(None, url, token, 1_000_000)
            for address in ("/data/upload/1/a.png", f"{url}/data/upload/1/a.png", "/data/local-files/?d=a.png"):
                with source.picture(address) as path:
                    assert path.read_bytes() == PAINTED
                assert Studio.requested[-1] == (address.removeprefix(url), sent)
        count = len(Studio.requested)
        for address, message in (
            ("http://127.0.0.1:1/data/upload/1/a.png", "only pictures of"),
            (f"http://me@127.0.0.1:{urlsplit(url).port}/data/a.png", "only pictures of"),
            (f"https://127.0.0.1:{urlsplit(url).port}/data/a.png", "only pictures of"),
            ("//example.org/data/a.png", "only pictures of"),
            ("s3://bucket/a.png", "only pictures of"),
            ("/api/projects", "below /data/"),
            ("/data/../api/projects", "below /data/"),
            ("/data/%2e%2e/api/projects", "below /data/"),
        ):
            with pytest.raises(InputError, match=message), source.picture(address):
                pass
        assert len(Studio.requested) == count  # none of them was asked
        for address, message in (("/data/away", "answered with 302"), ("/data/large", "more than 1 million bytes")):
            with pytest.raises(InputError, match=message), source.picture(address):
                pass
        source = PictureSource(None, url, "no", 1000)
        with pytest.raises(InputError, match="401 Unauthorized: check the token"), source.picture("/data/a.png"):
            pass


@given(st.text(max_size=80) | st.text("/.:%@?=&d2e\\", max_size=30).map("http://127.0.0.1:1/data".__add__))
def test_any_address_is_a_sentence(tmp_path_factory, address):
    source = PictureSource(tmp_path_factory.getbasetemp(), "http://127.0.0.1:1")
    try:
        with source.picture(address) as path:
            assert path.is_file()
    except CliplocError as error:
        message = str(error)
        assert message.isprintable()


@pytest.mark.parametrize(("least", "boxes"), [([], 1), (["--min-score", "1"], 0)])
def test_the_command_finds_what_localize_finds_and_says_why_a_task_is_empty(monkeypatch, least, boxes):
    """Also a box whose score is low: a found name keeps its best one."""
    cat = f"data:image/jpeg;base64,{base64.b64encode(CAT).decode()}"
    answers: list[Any] = []

    def serve(app: Any, *_: Any) -> None:
        with running(app) as address:
            config = interface('<Label value="cat"/>').replace("$c", "$photo")
            answers.append(predict(address, cat, config=config)[1]["results"][0]["result"])

    monkeypatch.setattr("cliploc.web.server.run", serve)
    given = ["--recipe", "fast", "--threshold", "0.95", *least]  # of a small part, whose score is low
    ran = cliploc_("label-studio", "--port", "0", *given)
    document = json.loads(cliploc_("localize", "--json", *given, "-p", "cat", DEMO / "cat.jpg").out)
    [name] = document["pictures"][0]["names"]
    assert (ran.code, len(answers[0]), len(name["boxes"])) == (0, boxes, boxes)
    assert ("task 7: nothing was found: cat: no box scores" in ran.err) == (not boxes)
    if boxes:
        assert name["boxes"][0]["score"] < MIN_SCORE
