"""The openai runtime against a local server that speaks the protocol, well and badly."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from compass_agent.deadline import Deadline, present
from compass_agent.runtimes import installed_runtimes
from compass_agent.runtimes.openai import ChatEndpoint, EndpointSettings, open_endpoint, settings_of
from compass_shared.errors import DeadlineError, InferenceError, ModelLoadError

MESSAGES = [{"role": "user", "content": "Say hello."}]


class Server:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: bytes = json.dumps({"choices": [{"message": {"content": "Hello."}}]}).encode()
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.connections = 0
        self.hang_up = False
        self.release = threading.Event()
        self.release.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_GET(self) -> None:
                self._reply(outer.status, b'{"data": []}')

            def do_POST(self) -> None:
                outer.keys.append(self.headers["Authorization"])
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.release.wait(10)
                self._reply(outer.status, outer.answer)
                self.close_connection = outer.hang_up

            def _reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # whoever asked may have given up
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def chat(server: Server) -> Iterator[ChatEndpoint]:
    endpoint = ChatEndpoint("writer", "tiny", EndpointSettings(url=server.url), timeout_s=5)
    yield endpoint
    endpoint.close()


def test_it_asks_for_a_completion(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPASS_ENDPOINT_WRITER", server.url + "/")
    monkeypatch.setenv("COMPASS_ENDPOINT_WRITER_KEY", "secret")
    with contextlib.closing(open_endpoint("writer", "tiny")) as chat:
        assert chat.complete(MESSAGES, max_tokens=9, seed=3) == "Hello."
    assert server.keys == ["Bearer secret"]
    assert server.asked == [
        {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "temperature": 0.0, "seed": 3}
    ]
    assert installed_runtimes()["openai"] == "endpoints writer"


def test_a_connection_is_kept(server: Server, chat: ChatEndpoint) -> None:
    for _ in range(3):
        chat.complete(MESSAGES)
    assert server.connections == 1


def test_a_connection_that_was_closed_is_opened_again(server: Server, chat: ChatEndpoint) -> None:
    server.hang_up = True  # without saying so in its answer
    for _ in range(3):
        assert chat.complete(MESSAGES) == "Hello."
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "answer", "problem"),
    [
        (401, b"", "check COMPASS_ENDPOINT_WRITER_KEY"),
        (503, b"loading the model", "answers 503: loading the model"),
        (200, b"<html>", "is not JSON"),
        (200, b'{"choices": []}', "holds no message"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "holds no message"),
    ],
)
def test_bad_answers_are_inference_errors(
    server: Server, chat: ChatEndpoint, status: int, answer: bytes, problem: str
) -> None:
    server.status, server.answer = status, answer
    with pytest.raises(InferenceError, match=problem):
        chat.complete(MESSAGES)


def test_a_key_is_checked_when_it_is_opened(server: Server, chat: ChatEndpoint) -> None:
    server.status = 403
    with pytest.raises(ModelLoadError, match="COMPASS_ENDPOINT_WRITER_KEY"):
        chat.reach()


def test_an_endpoint_out_of_reach_is_said(server: Server, chat: ChatEndpoint) -> None:
    server.close()
    with pytest.raises(ModelLoadError, match="no endpoint answers"):
        chat.reach()
    with pytest.raises(InferenceError, match="does not answer"):
        chat.complete(MESSAGES)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, "set COMPASS_ENDPOINT_MY_WRITER=http"),
        ({"COMPASS_ENDPOINT_MY_WRITER": "localhost:80"}, "must be http"),
        ({"COMPASS_ENDPOINT_MY_WRITER": "http://a:b@host/v1"}, "must be http"),
        ({"COMPASS_ENDPOINT_MY_WRITER": "http://[::1/v1"}, "no URL"),
        (
            {"COMPASS_ENDPOINT_MY_WRITER": "http://host/v1", "COMPASS_ENDPOINT_MY_WRITER_KEY": "k"},
            "no key is sent",
        ),
    ],
)
def test_settings_are_checked(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        settings_of("my-writer", environment)


def test_it_takes_messages_not_arrays(chat: ChatEndpoint) -> None:
    with pytest.raises(InferenceError, match=r"model\.complete"):
        chat.run({})


def test_a_slow_endpoint_is_given_up_at_the_requests_deadline(server: Server, chat: ChatEndpoint) -> None:
    server.release.clear()
    with present(Deadline("a request", 0.05)), pytest.raises(InferenceError, match="does not answer"):
        chat.complete(MESSAGES)
    server.release.set()
    assert chat.complete(MESSAGES) == "Hello."
    with present(Deadline("a request", 0.0)), pytest.raises(DeadlineError):
        chat.complete(MESSAGES)
