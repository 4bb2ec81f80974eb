"""What is refused: files and addresses in requests, foreign hosts and pages, what cannot be asked, too much at once."""

import contextlib
import http.client
import io
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.web.server import Hosts, RefusedError
from cliploc.web.service import Offer, Service
from cliploc.web.settings import MOST_LETTERS, Settings
from tests.commands import check_refusal, cliploc_
from tests.web.asking import (
    ANNA,
    CAT,
    DEMO,
    FAST,
    FORM,
    SLOW,
    ask,
    form,
    get,
    located,
    post,
    post_json,
    served,
    show,
    started,
)

JSON = "application/json"
PATHS = ("/api/localize", "/api/show", "/api/files")
KNOWN = {"visitor": ANNA, "picture": "cat.jpg", "names": "cat", **FAST}


def refusal(address: str, path: str, wish: object) -> tuple[int, str]:
    """Status and sentence of an answer; 422 and the status line where /api/show says what is wrong there."""
    if path != "/api/show":
        code, document = post_json(address, wish, path)
        return code, document.get("error", "")
    code, lines = show(address, wish)
    status = lines[-1].get("status", {})
    return (422, status["text"]) if status.get("kind") == "problem" else (code, lines[-1].get("error", ""))


# --------------------------------------------------------------------------------------------- files and addresses


@pytest.mark.parametrize(
    "named", [__file__, "/etc/passwd", "..%2f..%2fdemo.py", "../photos.json", "photos.json", "..%5cx", "%00", ""]
)
def test_no_file_is_sent_but_downloads_and_examples(address, named):
    for folder in ("examples", "files", "static", f"files/{'0' * 32}", "api", "proxy"):
        assert get(f"{address}/{folder}/{named}")[0] == 404


def test_no_upload_is_sent_back_whatever_it_is_besides_a_picture(address):
    """A picture that is HTML or a script, too, would run under the server's address."""
    script, page = io.BytesIO(), b"<script src=a.js></script>"
    Image.new("L", (0x2A2F, 40)).save(script, "GIF")  # its width is "/*"
    polyglots = {"a.js": script.getvalue() + b"*/=1;alert(1)", "b.html": CAT + page, "c.svg": CAT}
    for name, content in polyglots.items():
        code, made = post(address, ("picture", name, content), path="/api/files", names="cat", **FAST)
        number = made["ids"]["picture"]
        assert code == 200, made
        for path in (f"examples/{number}", f"files/{number}/{name}", f"uploads/{number}", f"static/{number}"):
            assert get(f"{address}/{path}")[0] == 404
        for one in made["files"]:  # what is made of it is no document of this server's
            _, _, headers = get(address + one["address"])
            assert headers["content-disposition"].startswith("attachment;")
            assert "sandbox; default-src 'none'" in headers["content-security-policy"]
            assert headers["content-type"].partition(";")[0] not in ("text/html", "text/javascript", "image/svg+xml")
    assert get(f"{address}/examples/cat.jpg")[2]["content-type"] == "image/jpeg"


@pytest.mark.parametrize("field", ["picture", "exemplar"])
@pytest.mark.parametrize("path", PATHS)
def test_only_the_id_of_an_upload_and_the_name_of_an_example_are_a_picture(address, path, field):
    files = (__file__, "/etc/passwd", "../photos.json", str(DEMO / "cat.jpg"), "http://127.0.0.1:9/a.jpg", "\0")
    for named in (*files, "0" * 40, "../" + "0" * 37, "a" * 5000):
        code, said = refusal(address, path, {**KNOWN, field: named})
        assert (code, "no picture with this id" in said) == (404, True), named
    for named in (3, True, ["cat.jpg"], {"path": "/etc/passwd"}):
        code, said = refusal(address, path, {**KNOWN, field: named})
        assert (code, f"expected {field} as a file or as the id" in said) == (422, True), named


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_cannot_be_is_refused_in_a_line(address, path):
    no_object = (b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"threshold": NaN}', b'{"names": "\\ud800"}')
    for body in (*no_object, b'{"compare": ' + b"[" * 20 + b"]" * 20 + b"}", b'{"names": "cat", "names": [1]}'):
        code, document = ask(address, body, path=path, content_type=JSON)
        assert code == 422, body
        check_refusal(document["error"], *(["JSON object"] if body in no_object else []))
    code, document = ask(address, b'{"names": "' + b"a|" * 300_000 + b'"}', path=path, content_type=JSON)
    assert code == 413
    check_refusal(document["error"], "600013")


def test_what_is_no_form_is_refused(address):
    assert ask(address, b"abc", content_type="text/plain")[0] == 415
    for body in (b"abc", b'--x\r\nContent-Disposition: form-data; name="a"'):
        assert ask(address, body, content_type="multipart/form-data")[0] == 422
    picture = ("picture", "a.jpg", CAT)
    for body, names in (
        (form(names="cat"), "picture"),
        (form(("picture", "a.jpg", b"abc"), names="cat"), "a.jpg"),
        (form(picture, ("names", "b.jpg", CAT)), "names"),
        (form(picture, names="cat")[:-7] + form(names="dog"), "field"),
        (form(picture, **{f"f{number}": "" for number in range(100)}), "form"),
        (form(picture, names="a" * 50_000), "form"),
    ):
        code, document = ask(address, body, content_type=FORM)
        assert code == 422, document
        check_refusal(document["error"], names)


# ------------------------------------------------------------------------------------------------- settings and names
REFUSED = [  # fields, and what the sentence names
    ({"names": ""}, "name"), ({"names": "a" * (MOST_LETTERS + 1)}, f"{MOST_LETTERS} characters"),
    ({"head": "/etc/passwd"}, "'head'"), ({"model": "/etc/passwd"}, "/etc/passwd"),
    ({"recipe": None, "method": "/etc/passwd"}, "/etc/passwd"),
    ({"recipe": None, "compare": ["layer_cam", "legrad"]}, "legrad"),
    ({"exemplar": "dogs.jpg", "exemplar_box": "0,0,9000,9"}, "'dogs'"), ({"visitor": "A" * 32}, "visitor"),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_what_cannot_be_searched_is_a_sentence(address, path):
    for fields_, names in REFUSED:
        code, sentence = refusal(address, path, {**KNOWN, **fields_})
        assert code == 422, fields_
        check_refusal(sentence, names)


STRANGE = (None, 1, -1, True, "x", [], {}, [None], {"a": 1}, "../x", "\0cat", "," * 5000, 9e99, 10**30, "<b>cat</b>")


# ------------------------------------------------------------------------------------------------------ hosts and pages
def refused(host: str, origin: str | None = None, hosts: Hosts | None = None) -> int | None:
    try:
        (hosts or Hosts()).check(host, origin, "127.0.0.1")
    except RefusedError as error:
        check_refusal(str(error), "--allow-host")
        return error.status
    return None


def test_a_foreign_name_and_a_foreign_page_are_turned_away():
    place = "127.0.0.1:7860"
    for host in (place, "localhost:7860", "LOCALHOST", "[::1]:7860", "[::ffff:127.0.0.1]"):
        assert refused(host) is None
    strange = ("8.8.8.8", "0x7f000001", "localhost@evil.example", f"{place}, evil.example", "LOCALHOST:-1", "[::1", "")
    strange += ("127.0.0.1%2eevil", "127.0.0.1%00", "[::1]evil", "[::1]evil:80", "127.0.0.1:99999", "localhost:1\n")
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", *strange):
        assert refused(host) == 421, host
    assert refused(place, f"http://{place}") is None
    strange = ("null", "file://", "chrome-extension://x", f"ftp://{place}", f"http://{place}.evil.example")
    for origin in ("http://evil.example", "http://localhost:1", *strange):
        assert refused(place, origin) == 403, origin
    public = Hosts("0.0.0.0", ["page.example"])
    assert refused("page.example", "https://page.example", public) is None
    assert refused("127.0.0.1", "https://page.example", public) is None
    assert refused("other.example", None, public) == 421


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


# ----------------------------------------------------------------------------------------------------------- too much
def test_a_request_that_takes_too_long_is_ended_and_the_next_is_served(tmp_path):
    hasty = Service([Offer("mini")], device="cpu", max_seconds=0.5)
    for address in started(hasty, tmp_path):
        for path, status in (("/api/localize", 503), ("/api/show", 422)):
            code, said = refusal(address, path, {"visitor": ANNA, "picture": "cat.jpg", **SLOW})
            assert (code, "It took longer than 0.5 seconds" in said) == (status, True)
        hasty.searches._seconds = 60
        assert located(address, "cat.jpg", "cat", **FAST)["pictures"]


def test_what_is_too_large_is_refused(address):
    half, large = ("picture", "a.jpg", bytes(600_000)), io.BytesIO()
    assert post(address, half, ("exemplar", *half[1:]), names="cat")[0] == 413  # many files count as one
    assert post(address, ("picture", "a.jpg", bytes(1_100_000)), names="cat")[0] == 413
    Image.new("L", (1001, 1000)).save(large, "PNG")
    code, document = post(address, ("picture", "a.png", large.getvalue()), names="cat")
    assert (code, "1001×1000 pixels" in document["error"]) == (422, True)


def test_nothing_that_is_sent_is_worth_a_traceback(address, capfd):
    port = int(address.rpartition(":")[2])
    for text in (b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as mine:
            mine.sendall(text)
            assert mine.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))
    with socket.create_connection(("127.0.0.1", port)) as mine:  # who leaves in the middle of an upload
        mine.sendall(
            b"POST /api/localize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            b'Content-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\nabc'
        )
        time.sleep(0.3)
    for field in (*(one.name for one in fields(Settings)), "picture", "exemplar", "visitor", "", "__class__"):
        recipe = None if field == "method" else "fast"
        for value in STRANGE:
            wish = json.dumps({**KNOWN, "recipe": recipe, field: value}).encode()
            code, text, _ = get(address + PATHS[0], "POST", wish, content_type=JSON)
            assert (code in (200, 404, 422), "error in cliploc" in text) == (True, False), (field, value)
    assert "pictures" in located(address, "cat.jpg", "cat", **FAST)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert len(said) < 1000


# -------------------------------------------------------------------------------------------------- as a user starts it
@pytest.mark.parametrize(
    "arguments", [("--port", "70000"), ("--auth-env", "NOT_SET"), ("--host", "no.such.host.invalid")]
)
def test_a_server_that_cannot_be_says_why(arguments):
    ran = cliploc_("serve", *arguments)
    assert (ran.code, ran.out) == (2, "")
    check_refusal(ran.err.splitlines()[-1], arguments[1])


def test_a_server_for_everybody_warns_and_ends_by_a_signal_under_load(tmp_path):
    """One process for all of it: a start takes seconds."""
    folder, log = tmp_path / "temporary", tmp_path / "log"
    folder.mkdir()
    options = ("--host", "0.0.0.0", "--model", "mini")
    with served(*options, log=log, TMPDIR=str(folder)) as (said, process):
        port = said.rpartition(":")[2]
        assert said == f"http://0.0.0.0:{port}"
        address = f"http://127.0.0.1:{port}"
        assert get(address)[0] == 200
        assert get(address, Host="other.example")[0] == 421
        assert "warning: anyone who can reach 0.0.0.0 can use this page" in log.read_text()
        names = ", ".join(f"cat {number}" for number in range(50))
        long_one = {"names": names, "method": "layer_cam", "scales": "1,1.43,2", "templates": "openai-80"}
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(post_json, address, {"picture": "cat.jpg", **long_one}) for _ in range(5)]
            time.sleep(1)
            assert list(folder.glob("cliploc-serve-*"))
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
            for one in asked:
                with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):  # cut off
                    one.result()
        assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert list(folder.glob("cliploc-serve-*")) == []
