"""Generators behind an OpenAI-compatible endpoint: llama.cpp, vLLM, a hosted service.

The pipeline names an endpoint and the model that it should serve; where it is and the key are settings of the
machine, in its environment, so that no bundle holds an address or a secret::

    COMPASS_ENDPOINT_WRITER=http://127.0.0.1:8081/v1
    COMPASS_ENDPOINT_WRITER_KEY=...                    # if it wants one

Calls hold a thread of the agent while they wait: an endpoint's time counts as compute at the site that asks
it. What it answers has no hash: unlike with model files, Compass cannot know that two sites ask the same
model.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from compass_agent.deadline import left_s
from compass_shared.errors import InferenceError, ModelLoadError
from compass_shared.model_ref import is_loopback

if TYPE_CHECKING:
    from compass_shared.values import Array

PREFIX = "COMPASS_ENDPOINT_"
TIMEOUT_S = 120.0
"""For one completion, if its request has no deadline before that."""
REACH_TIMEOUT_S = 5.0
"""For the first look at the endpoint."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_EXCERPT = 200
_NOT_ALLOWED = (401, 403)
_STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Where an endpoint is."""

    url: str
    """Base URL, as in ``http://127.0.0.1:8081/v1``."""
    key: str = ""


def variable_of(name: str) -> str:
    """The environment variable that says where an endpoint is."""
    return PREFIX + name.upper().replace("-", "_")


def settings_of(name: str, environment: Mapping[str, str]) -> EndpointSettings:
    """What the environment says of an endpoint.

    Raises:
        ModelLoadError: If it says nothing, or no URL that a key may be sent to.
    """
    variable = variable_of(name)
    url, key = environment.get(variable, "").rstrip("/"), environment.get(f"{variable}_KEY", "")
    if not url:
        raise ModelLoadError(
            f"is not set up on this machine: set {variable}=http://HOST:PORT/v1 (and {variable}_KEY)",
            model=name,
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ModelLoadError(f"{variable} is no URL: {error}", model=name) from error
    if parts.scheme not in {"http", "https"} or not host or parts.username is not None:
        raise ModelLoadError(f"{variable} must be http://HOST:PORT/v1 or https://HOST/v1", model=name)
    if key and parts.scheme == "http" and not is_loopback(host):
        raise ModelLoadError(f"{variable} is plain http: no key is sent over it; use https", model=name)
    return EndpointSettings(url=url, key=key)


def configured(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the endpoints that an environment sets up, as variables spell them."""
    return tuple(
        sorted(
            name.removeprefix(PREFIX).lower().replace("_", "-")
            for name, url in environment.items()
            if name.startswith(PREFIX) and not name.endswith("_KEY") and url
        )
    )


class ChatEndpoint:
    """A chat model behind an endpoint; any number of threads may ask it at once.

    Args:
        name: The endpoint's name in its pipeline, for errors.
        model: What the endpoint calls the model.
        settings: Where it is.
        timeout_s: For one completion.
    """

    input_names: tuple[str, ...] = ()
    assets: Mapping[str, Path] = MappingProxyType({})

    def __init__(
        self, name: str, model: str, settings: EndpointSettings, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._name = name
        self._model = model
        self._settings = settings
        self._timeout_s = timeout_s
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:  # noqa: ARG002
        """A chat model takes messages, not arrays."""
        raise InferenceError(self._name, "is a chat model: call model.complete(messages)")

    def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The model's next message.

        Args:
            messages: ``{"role": ..., "content": ...}`` each.
            max_tokens: Most that it may write.
            temperature: 0 takes the likeliest token; whatever changes answers should be a knob.
            seed: For endpoints that draw.

        Raises:
            InferenceError: If the endpoint cannot be reached, refuses, or answers with something else.
        """
        body = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        answer = self._post("/chat/completions", body)
        match answer:
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                return text
        raise InferenceError(self._name, f"its answer holds no message: {json.dumps(answer)[:_EXCERPT]}")

    def reach(self) -> None:
        """See whether it is there, before requests need it.

        Raises:
            ModelLoadError: If it cannot be reached or refuses the key.
        """
        try:
            connection = self._connect(REACH_TIMEOUT_S)
            try:
                connection.request("GET", self._path("/models"), headers=self._headers())
                status = connection.getresponse().status  # one that lists no models is as good
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            problem = f"no endpoint answers at {self._settings.url}: {error}"
            raise ModelLoadError(problem, model=self._name) from error
        if status in _NOT_ALLOWED:
            raise ModelLoadError(self._refused(status), model=self._name)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            status, data = self._exchange(path, json.dumps(body).encode())
        except (OSError, http.client.HTTPException) as error:
            problem = f"{self._settings.url} does not answer: {type(error).__name__}: {error}"
            raise InferenceError(self._name, problem) from error
        if status in _NOT_ALLOWED:
            raise InferenceError(self._name, self._refused(status))
        if status != http.client.OK:
            text = data[:_EXCERPT].decode(errors="replace")
            raise InferenceError(self._name, f"{self._settings.url} answers {status}: {text}")
        if len(data) > MAX_ANSWER_BYTES:
            raise InferenceError(self._name, f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InferenceError(self._name, f"its answer is not JSON: {error}") from error

    def close(self) -> None:
        """Close the connections that wait for the next completion."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Over a connection that is idle; one that the endpoint closed meanwhile gives way to a fresh one."""
        with self._lock:
            held = self._idle.pop() if self._idle else None
        if held is not None:
            try:
                return self._exchange_over(held, path, body)
            except _STALE:
                pass
        return self._exchange_over(self._connect(self._timeout_s), path, body)

    def _exchange_over(
        self, connection: http.client.HTTPConnection, path: str, body: bytes
    ) -> tuple[int, bytes]:
        headers = {**self._headers(), "Content-Type": "application/json"}
        keep = False
        try:
            connection.timeout = left_s(self._timeout_s)
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            connection.request("POST", self._path(path), body, headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES + 1)
            keep = response.isclosed() and not response.will_close
        finally:
            if keep:
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()
        return response.status, data

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self._settings.url)
        assert parts.hostname is not None, "settings_of checks it"
        if parts.scheme == "https":
            return http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_s, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def _path(self, path: str) -> str:
        return urlsplit(self._settings.url).path + path

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._settings.key}"} if self._settings.key else {}

    def _refused(self, status: int) -> str:
        return f"{self._settings.url} answers {status}: check {variable_of(self._name)}_KEY"


def open_endpoint(name: str, model: str) -> ChatEndpoint:
    """The endpoint of that name, as this machine's environment sets it up.

    Raises:
        ModelLoadError: If it is not set up here or cannot be reached.
    """
    endpoint = ChatEndpoint(name, model, settings_of(name, os.environ))
    endpoint.reach()
    return endpoint
