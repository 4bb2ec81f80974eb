"""A server on this machine that plays the hub: its addresses, headers, redirects and ways to fail."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = (".safetensors", ".bin")
STATUS = {"gated": (403, "GatedRepo"), "gone": (404, "RepoNotFound"), "down": (503, "")}


@dataclass
class Hub:
    """What the server has and was asked; a fault is a name of `STATUS`, or damaged."""

    repositories: dict[str, dict[str, bytes]]
    faults: dict[str, str] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)  # the paths

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requested.append(path)
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            self._large("/".join(parts[1:3]), "/".join(parts[3:]))
        elif parts[:2] == ["api", "models"]:
            self._listing("/".join(parts[2:4]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._answer(200, b"the hub")

    def _refused(self, repository: str) -> bool:
        fault = self.hub.faults.get(repository, "" if repository in self.hub.repositories else "gone")
        if fault in STATUS:
            code, name = STATUS[fault]
            self._answer(code, b"", **({"X-Error-Code": name} if name else {}))
        return fault in STATUS

    def _listing(self, repository: str) -> None:
        if not self._refused(repository):
            files = [{"rfilename": name} for name in self.hub.repositories[repository]]
            self._answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())

    def _resolve(self, repository: str, name: str) -> None:
        if self._refused(repository):
            return
        content = self.hub.repositories[repository].get(name)
        if content is None:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif name.endswith(LFS):  # kept elsewhere: a redirect to another host says how large it is, and its checksum
            other = self.hub.url.replace("127.0.0.1", "localhost")
            headers = {
                "Location": f"{other}/cdn/{repository}/{name}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            }
            self._answer(302, b"", **headers)
        else:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._answer(200, content, **{"X-Repo-Commit": COMMIT, "ETag": f'"{git}"'})

    def _large(self, repository: str, name: str) -> None:
        content = self.hub.repositories[repository][name]
        if self.hub.faults.get(repository) == "damaged":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._answer(200, content)

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
