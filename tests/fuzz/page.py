"""`python -m tests.fuzz.page`: hostile requests to a server of the page, each counted.

A case is right when the server answers it, or refuses it in a sentence: no traceback in an answer or in its log, no
word of a file that was not uploaded, no connection to another server, and the next request is served.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from tests.commands import CAT
from tests.web.serving import serving

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
JSON = {"Content-Type": "application/json"}
SHOW = "/api/show"
FILES = "/api/files"
LOCALIZE = "/api/localize"
WORDS = ("Traceback", "error in cliploc", "root:", "OMP_NUM_THREADS")  # of what nobody may see
Answer = tuple[int, str]


class Visitor:
    """Somebody who means harm, and counts how it went."""

    def __init__(self, address: str) -> None:
        self.where = urlsplit(address)
        self.cases = self.failures = 0
        self.cat = self.upload(CAT.read_bytes())[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """The status and text of an answer; 0 and the error where there is none."""
        connection = http.client.HTTPConnection(str(self.where.hostname), self.where.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "a.jpg") -> Answer:
        """200 and the picture's id, or a refusal."""
        code, text = self.ask("POST", SHOW, form(content, name, "picture", "cat", "f" * 32), **FORM)
        return code, json.loads(text.splitlines()[-1])["ids"]["picture"] if code == 200 else text

    def locate(self, picture: Any, names: Any, settings: Any, exemplar: Any = None) -> Answer:
        """What comes of a search."""
        asked = {"picture": picture, "names": names, "exemplar": exemplar}
        asked |= settings if isinstance(settings, dict) else {"settings": settings}
        return self.ask("POST", LOCALIZE, json.dumps(asked).encode(), **JSON)

    def check(self, name: str, answer: Answer, codes: Collection[int], wanted: str = "") -> None:
        """Counts a case."""
        self.cases += 1
        code, text = answer
        if code not in codes or wanted not in text or any(word in text for word in WORDS):
            self.failures += 1
            print(f"{name[:80]!r}: {code} {text[:200]}")


def form(content: bytes, name: str, field: str = "picture", names: str | None = None, visitor: str = "") -> bytes:
    fields = {"names": names, "visitor": visitor or None}
    head = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n'
        for key, text in fields.items()
        if text is not None
    )
    head += f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"


# ------------------------------------------------------------------------------------------------------------- pictures
def saved(size: tuple[int, int], kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, kind)
    return content.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100))))
    written = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + written


PICTURES = {
    "an archive": b"PK\3\4" + bytes(100),
    "HTML": b"<html><script>alert(1)</script>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n{} loop\n",
    "PDF": b"%PDF-1.4\n1 0 obj",
    "60,000 pixels a side": png_of(60_000, 60_000),
    "2 thousand million pixels a side": png_of(2**31 - 1, 2**31 - 1),
    "no pixels": png_of(0, 0),
    "half of one": CAT.read_bytes()[:500],
    "one pixel": saved((1, 1)),
    "a line": saved((1, 20_000)),
    "nothing": b"",
    "ICO": saved((16, 16), "ICO"),
    "PSD": b"8BPS\0\1" + bytes(40),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "MPO": b"\xff\xd8\xff\xe2\0\x10MPF\0" + b"\xff" * 200,
    "PCX": saved((16, 16), "PCX"),
    "XBM": b"#define x_width 10\n#define x_height 10\nstatic char x[] = {",
    "20,000 frames": b"GIF89a\1\0\1\0\0\0\0" + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0" * 20_000 + b";",
}
NAMES_OF_FILES = (
    "../../../tmp/evil.jpg", "..%2f..%2fevil.jpg", "a" * 400 + ".jpg", "<img src=x onerror=alert(1)>.jpg",
    "a\\..\\b.jpg", ".jpg", "con.jpg", " .jpg", "ä😀.jpg",
)  # fmt: skip


def pictures(visitor: Visitor) -> None:
    for name, content in PICTURES.items():
        code, number = visitor.upload(content)
        answer = (code, number) if code != 200 else visitor.locate(number, "cat", {})
        visitor.check(name, answer, (413, 422))
    for name in NAMES_OF_FILES:
        visitor.check(name, visitor.upload(CAT.read_bytes(), name), (200, 422))


# ------------------------------------------------------------------------------------------------------------ arguments
SETTINGS: tuple[Any, ...] = (
    [], "text", 3, True, 1.5, [[{}]], {"threshold": "x"}, {"threshold": [1]}, {"threshold": 9e99}, {"threshold": True},
    {"max_boxes": -1}, {"max_boxes": 2.5}, {"max_boxes": 10**30}, {"scales": [1, 2]}, {"scales": "9"},
    {"flip": "maybe"}, {"flip": 3}, {"refine": {"a": 1}}, {"refine": [1, 2]}, {"refine": ["none", "x"]},
    {"compare": [None]}, {"compare": "cam," * 100}, {"model": ["mini"]}, {"model": "../mini"},
    {"model": "http://127.0.0.1:9/x"}, {"method": "cam+" * 50}, {"method": 5}, {"recipe": ["fast"]},
    {"recipe": "recipe:fast"}, {"masks": "x"}, {"masks": []}, {"opacity": 7}, {"templates": "../x"},
    {"templates": "a photo of {}"}, {"exemplar_box": "0,0,9,9"}, {"exemplar_name": {}},
    {"split_peaks": None, "min_score": "auto"}, {"resize": "x" * 5000}, {"": 1}, {"__class__": 1}, {"names": ["cat"]},
    {"min_presence": -5}, {"windows": "99"},
)  # fmt: skip
NAMES: tuple[Any, ...] = (
    None, 3, [], {}, ["cat"], "cat|" * 300, "\0cat", "\ud800", "a" * 9000, "," * 5000, "cat\n" * 100,
    "<script>alert(1)</script>", "\u202ecat",
)  # fmt: skip
BODIES = {
    "a mark of the byte order": b'\xef\xbb\xbf{"names":"cat"}',
    "UTF-16": '{"names":"cat"}'.encode("utf-16"),
    "NaN": b'{"threshold":NaN}',
    "deep": b'{"compare":' + b"[" * 50 + b"]" * 50 + b"}",
    "5,000 digits": b'{"threshold":' + b"9" * 5000 + b"}",
    "a key twice": b'{"names":"cat","names":[1]}',
    "a list": b"[]",
    "null": b"null",
    "a visitor that is long": json.dumps({"visitor": "a" * 500}).encode(),
    "a visitor that is no text": json.dumps({"visitor": {"a": 1}}).encode(),
    "large": b'{"names":"' + b"a" * 300_000 + b'"}',
}


def arguments(visitor: Visitor) -> None:
    for given in SETTINGS:
        visitor.check(f"settings {given!r}", visitor.locate(visitor.cat, "cat", given), (200, 422))
    for names in NAMES:
        visitor.check(f"names {names!r}", visitor.locate(visitor.cat, names, {"recipe": "fast"}), (200, 422))
    for name, body in BODIES.items():
        for path in (LOCALIZE, SHOW, FILES):
            visitor.check(f"{name}, {path}", visitor.ask("POST", path, body, **JSON), (413, 422))
    for query in (
        "model=/etc/passwd",
        "a=b&" * 5000,
        "names=%ff%fe%00",
        "threshold=nan&refine=[",
        "=",
        "model=mini" * 900,
    ):
        visitor.check(f"menu {query}", visitor.ask("GET", f"/api/menu?{query}"), (200, 400))


# --------------------------------------------------------------------------------------------------- hosts, addresses
def strangers(visitor: Visitor) -> None:
    mine = str(visitor.where.netloc)
    hosts = ("evil.example.com", "127.0.0.1.evil.com", "localhost.evil.com:80", f"{mine}@evil.com", "", "[::1")
    for host in (*hosts, "127.0.0.1:99999", "LOCALHOST:-1", "0x7f000001", f"{mine}, evil.com"):
        visitor.check(f"host {host}", visitor.ask("GET", "/", Host=host), (400, 421))
    origins = ("http://evil.com", "null", "file://", f"https://{mine}.evil.com", "http://127.0.0.1:1")
    for origin in (*origins, "http://localhost", "chrome-extension://x", f"ftp://{mine}"):
        for method, path in (("POST", LOCALIZE), ("POST", SHOW), ("POST", FILES), ("GET", "/api/menu"), ("GET", "/")):
            answer = visitor.ask(method, path, b"{}" if method == "POST" else None, Origin=origin, **JSON)
            visitor.check(f"origin {origin} {path}", answer, (403,))


def addresses(visitor: Visitor) -> None:
    files = ("/etc/passwd", "../../../../etc/passwd", f"{visitor.cat}/../../../../etc/passwd", "%2fetc%2fpasswd", "%00",
             "/proc/self/environ", "http://127.0.0.1:9/x", "..%2f..%2f..%2fetc/passwd", "..%5c..%5cx", "")  # fmt: skip
    folders = ("static", "examples", "files", f"files/{visitor.cat}", f"files/{'0' * 32}", "api", "proxy")
    for path in (*(f"/{folder}/{one}" for folder in folders for one in files), "/docs", "/openapi.json", "//", "/api"):
        visitor.check(path, visitor.ask("GET", path), (404,))
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND"):
        visitor.check(method, visitor.ask(method, "/"), (400, 405))


def files_elsewhere(visitor: Visitor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg"
        cat = visitor.cat
        named: tuple[Any, ...] = (
            url, {"path": url}, {"url": url}, "/etc/passwd", f"{cat}/..", f"{cat}/a.jpg", "\0", "a" * 5000, [cat], 3,
            True, {"path": cat}, "data:image/png;base64,AAAA", "../demo_photos/cat.jpg", "file:///etc/passwd",
        )  # fmt: skip
        for one in named:
            visitor.check(f"photograph {one!r}", visitor.locate(one, "cat", {}), (404, 422))
            visitor.check(f"exemplar {one!r}", visitor.locate(cat, "cat", {}, one), (404, 422))
        try:
            listening.accept()
            came = 1
        except TimeoutError:
            came = 0
    visitor.check("connections to another server", (came, ""), (0,))


def forms(field: str) -> dict[str, tuple[dict[str, str], bytes | None]]:
    """Headers and bodies of uploads that are none."""
    fields = (f'--x\r\nContent-Disposition: form-data; name="f{i}"\r\n\r\na\r\n' for i in range(5000))
    return {
        "no boundary": ({"Content-Type": "multipart/form-data"}, b"abc"),
        "a huge length": ({**FORM, "Content-Length": "99999999999"}, None),
        "a negative length": ({**FORM, "Content-Length": "-1"}, None),
        "no form": ({"Content-Type": "text/plain"}, b"abc"),
        "many fields": (FORM, "".join(fields).encode() + b"--x--\r\n"),
        "21 megabytes": (FORM, form(bytes(21_000_000), "a.jpg", field)),
    }


def uploads(visitor: Visitor) -> None:
    for path in (LOCALIZE, SHOW, FILES):
        for name, (headers, body) in forms("picture").items():
            # 0: the connection is closed, as for a length that no request can have
            visitor.check(f"{name}, {path}", visitor.ask("POST", path, body, **headers), (0, 400, 411, 413, 415, 422))


def programs(visitor: Visitor) -> None:
    """The address for programs."""

    def ask(body: bytes | None, **headers: str) -> Answer:
        return visitor.ask("POST", LOCALIZE, body, **headers)

    for one in ("/etc/passwd", "../" * 20, "0" * 40, "http://127.0.0.1:9/x", "\0", "a" * 5000):
        for field in ("picture", "exemplar"):
            given = {"names": "cat", "picture": "0" * 40, field: one}
            visitor.check(f"{field} {one!r}", ask(json.dumps(given).encode(), **JSON), (404,))
    for given in ([3], {"path": visitor.cat}, True, None, [visitor.cat]):
        body = json.dumps({"names": "cat", "picture": given}).encode()
        visitor.check(f"picture {given!r}", ask(body, **JSON), (422,))
    cat = CAT.read_bytes()
    for name, content in PICTURES.items():
        visitor.check(f"{name}, {LOCALIZE}", ask(form(content, "a.jpg", "picture", "cat"), **FORM), (422,))
    for name in ("../../etc/passwd", "/etc/passwd", "a\0b", "", "..", "x" * 4000, "\u202ea.jpg", "%2e%2e%2fa"):
        visitor.check(f"file {name!r}", ask(form(cat, name, "picture", "cat"), **FORM), (200, 422))
    for names in ("", "\0cat", "a" * 9000, "<script>alert(1)</script>"):
        visitor.check(f"names {names!r}", ask(form(cat, "a.jpg", "picture", names), **FORM), (200, 422))
    for host in ("evil.example.com", ""):
        visitor.check(f"host {host}, {LOCALIZE}", ask(b"{}", Host=host, **JSON), (400, 421))
    visitor.check(f"origin, {LOCALIZE}", ask(b"{}", Origin="http://evil.com", **JSON), (403,))
    for method in ("GET", "PUT", "OPTIONS"):
        visitor.check(f"{method} {LOCALIZE}", visitor.ask(method, LOCALIZE), (405,))


ATTACKS = (pictures, arguments, strangers, addresses, files_elsewhere, uploads, programs)


def main() -> int:
    """Asks, and says how it went."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with serving("--rate", "0", log=log) as address:
            visitor = Visitor(address)
            for attack in ATTACKS:
                attack(visitor)
                answer = visitor.locate(visitor.cat, "cat", {"recipe": "fast"})
                visitor.check(f"the next request after {attack.__name__}", answer, (200,), "schema_version")
        visitor.check("the log", (200, log.read_text()), (200,))
    print(f"page: {visitor.cases} cases, {visitor.failures} failures")
    return 1 if visitor.failures else 0


if __name__ == "__main__":
    sys.exit(main())
