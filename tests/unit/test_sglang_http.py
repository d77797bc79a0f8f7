"""Which servers are talked to at all, and what is said of one that is not SGLang."""

import json
import logging
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from twinpass.engine.sglang.address import KEY, is_loopback
from twinpass.engine.sglang.http import Http
from twinpass.engine.sglang.key import ApiKey
from twinpass.errors import EngineError


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:30000", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:30000", True),
        ("http://localhost:1", True),
        ("http://10.0.0.7:30000", False),
        ("https://gpu.example.com", False),
        ("http://localhost.example.com", False),
        ("http://0.0.0.0:1", False),
    ],
)
def test_what_is_this_machine(url: str, local: bool) -> None:
    assert is_loopback(url) is local


def test_a_server_elsewhere_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(EngineError, match=f"not on this machine: put its API key into the environment variable {KEY}"):
        Http("http://192.0.2.1:1", 1.0)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1/server_info cannot be reached .*start the server"):
        Http("http://127.0.0.1:1", 1.0)


class Other(BaseHTTPRequestHandler):
    """Some other service."""

    seen: list[str | None] = []  # noqa: RUF012
    answer = b"<html>"
    status = 200

    def do_GET(self) -> None:
        type(self).seen.append(self.headers["Authorization"])
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Other, "seen", [])
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (200, b"<html>", "no JSON"),
        (404, b"nothing", "status 404"),
        (401, b"", "refuses the API key"),
        (200, json.dumps({"version": "0.4.1"}).encode(), r"runs SGLang 0\.4\.1"),
    ],
)
def test_a_server_of_another_kind(
    other: str, monkeypatch: pytest.MonkeyPatch, status: int, answer: bytes, words: str
) -> None:
    monkeypatch.setattr(Other, "status", status)
    monkeypatch.setattr(Other, "answer", answer)
    monkeypatch.setenv(KEY, "secret-words")
    with pytest.raises(EngineError, match=words) as caught:
        Http(other, 5.0)
    assert Other.seen == ["Bearer secret-words"]
    assert "secret-words" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "secret-words\n",
        " secret-words",
        "secret words",
        "secret-wörds",
        "secret-words\x00",
        "\r\n",
        "secret-words\u2028",
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    other: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(
        ApiKey, "__init__", lambda self, text: setattr(self, "_text", key)
    )  # what os.environ cannot hold
    monkeypatch.setenv(KEY, "secret-words")
    with pytest.raises(EngineError, match=f"{KEY} holds a space, a line's end or another character") as caught:
        Http(other, 5.0)
    assert Other.seen == []
    assert "secret-w" not in shown(caught.value)


def shown(error: BaseException) -> str:
    """All that a traceback can show of an error: the messages of what led to it, and the variables of every frame."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    inside = (frame for frame in whole.stack if "site-packages" not in frame.filename and "tests" not in frame.filename)
    chained = shown(error.__cause__) if error.__cause__ else ""
    return str(error) + chained + "".join(str(frame.locals) for frame in inside)


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_a_server_repeats_is_not_shown(
    other: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    monkeypatch.setattr(Other, "status", status)
    monkeypatch.setattr(Other, "answer", b"you sent secret-words")
    monkeypatch.setenv(KEY, "secret-words")
    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError) as caught:
        Http(other, 5.0)
    assert Other.seen == ["Bearer secret-words"]
    assert "secret-words" not in str(caught.value)
    assert status == 401 or "you sent [API key]" in str(caught.value)
    assert caplog.records
    assert "secret-words" not in caplog.text


def test_no_frame_of_a_failure_holds_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-words")
    with pytest.raises(EngineError, match="cannot be reached") as caught:
        Http("http://127.0.0.1:1", 1.0)
    assert "ApiKey" not in shown(caught.value)
    assert "secret-words" not in shown(caught.value)


@pytest.mark.parametrize("answer", [b"[]", b"3", b"null", b'"text"', b"{}", b"[" * 100_000])
def test_json_of_another_kind(other: str, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(Other, "status", 200)
    monkeypatch.setattr(Other, "answer", answer)
    with pytest.raises(EngineError, match=r"is it an SGLang server|runs SGLang None"):
        Http(other, 5.0)
