"""How often one client may ask, and how often it may guess the password."""

import asyncio
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliploc.web import clients
from cliploc.web.clients import Hosts, Rate, again, client_of, is_loopback
from cliploc.web.guard import LOCALIZE, SHOW, Guard
from cliploc.web.store import Uploads
from tests.web.asking import handed


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 100), st.integers(1, 10))
def test_nobody_gets_more_than_the_rate(pauses, a_minute, at_once):
    now = [0.0]
    rate = Rate(a_minute, at_once, clock=lambda: now[0])
    answered = 0
    for pause in pauses:
        now[0] += pause
        wait = rate.take("10.0.0.1")
        answered += wait == 0
        assert answered <= at_once + now[0] * a_minute / 60 + 1e-6
        if wait:  # and after that time there is one more
            now[0] += wait + 1e-6
            assert rate.take("10.0.0.1") == 0
            answered += 1


def test_clients_are_told_apart_and_few_are_remembered(monkeypatch):
    monkeypatch.setattr(clients, "KNOWN", 3)
    rate = Rate(1, 1, clock=lambda: 0.0)
    assert [rate.take(f"10.0.0.{i}") for i in range(5)] == [0] * 5
    assert rate.take("10.0.0.4") > 0
    assert len(rate._left) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("", "unix", False),
    ],
)
def test_what_counts_as_one_client(one, other, same):
    assert (client_of(one) == client_of(other)) is same


def test_when_to_ask_again_in_words():
    said = [again(seconds).removeprefix("try again in ") for seconds in (0.2, 1, 1.2)]
    assert said == ["1 second", "1 second", "2 seconds"]


def test_this_machine():
    assert [is_loopback(one) for one in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1")] == [True] * 4
    assert not any(map(is_loopback, ("10.0.0.1", "", "2001:db8::1")))


class Asked:
    """A guard before an application that answers as it is told."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.status, self.seen = 200, 0
        uploads = Uploads(folder, 1000, 60)
        self.guard = Guard(self.answer, Hosts(), uploads, 100, lambda: None, ("me", "secret"), rate)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.seen += 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def post(self, path: str, client: str, password: str = "secret") -> tuple[int, str]:
        headers = {"Host": "localhost", "Content-Length": "2"}
        if password:
            headers["Authorization"] = f"Basic {b64encode(f'me:{password}'.encode()).decode()}"
        bodies = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive() -> Any:
            return next(bodies, {"type": "http.disconnect"})

        told = asyncio.run(handed(self.guard, path, headers, receive, client))
        return told[0]["status"], b"".join(one.get("body", b"") for one in told).decode()


def test_wrong_passwords_are_limited_and_right_ones_are_not(tmp_path):
    asked = Asked(tmp_path, 0)
    assert {asked.post("/", "127.0.0.1", "")[0] for _ in range(30)} == {401}  # no guess: a browser asks so at first
    assert [asked.post("/", "127.0.0.1", "guess")[0] for _ in range(12)] == [401] * 10 + [429] * 2
    assert asked.seen == 0
    said = "Too many wrong passwords from this address: try again in 10 seconds."
    assert said in asked.post(LOCALIZE, "::ffff:127.0.0.1")[1]
    assert {asked.post(SHOW, "10.0.0.1")[0] for _ in range(30)} == {200}
    assert asked.post("/", "127.0.0.1")[0] == 429


def test_requests_are_limited_for_each_client_but_this_machine(tmp_path):
    asked = Asked(tmp_path, 5)
    assert [asked.post(SHOW, "10.0.0.1")[0] for _ in range(7)] == [200] * 5 + [429] * 2
    assert "Too many requests from this address: try again in 12 seconds." in asked.post(SHOW, "10.0.0.1")[1]
    assert asked.post(LOCALIZE, "10.0.0.1")[0] == 429
    assert asked.post(SHOW, "10.0.0.2")[0] == 200
    assert {asked.post(SHOW, "127.0.0.1")[0] for _ in range(20)} == {200}
    assert {Asked(tmp_path, 0).post(SHOW, "10.0.0.1")[0] for _ in range(20)} == {200}
