"""Floors of extra metrics, as people give them: on the command line and through the SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compass_agent.events import QueryDeclared
from compass_agent.sdk import Agent
from compass_coordinator.cli import _parser, main
from compass_shared.errors import ConfigError
from compass_shared.model_cache import ModelCache
from support.bundles import write_tiny_bundle

SUBMIT = [
    *(
        "query",
        "submit",
        "notes",
        "--broker",
        "mqtt://127.0.0.1:1",
        "--origin",
        "phone",
        "--pipeline",
        "tiny",
    ),
    *("--rate", "1", "--latency", "1", "--accuracy", "0.5", "--cost", "1"),
]


def test_the_command_line_takes_several() -> None:
    words = [*SUBMIT, "--metric", "hits=0.8", "--metric", "words=0.75"]
    assert _parser(words).parse_args(words).metric == [("hits", 0.8), ("words", 0.75)]


@pytest.mark.parametrize(("text", "problem"), [("hits", "is not NAME=LEAST"), ("hits=much", "is not NAME")])
def test_what_is_no_floor_is_refused(text: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*SUBMIT, "--metric", text])
    assert problem in capsys.readouterr().err


def test_a_floor_out_of_range_is_refused_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SUBMIT, "--metric", "hits=2"]) == 2
    assert "slo.metrics.hits" in capsys.readouterr().err


def test_the_sdk_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny_bundle(tmp_path)
    agent = Agent(name="phone", bundles=[bundle], cache_root=ModelCache(tmp_path / "cache").root)
    handled: list[Any] = []
    monkeypatch.setattr(agent.shell, "handle", handled.append)
    wish: dict[str, Any] = {"rate_hz": 1, "latency_p95_s": 1, "accuracy": 0.5, "cost_usd_per_1000": 1}
    agent.declare("notes", "tiny", **wish, metrics={"hits": 0.8})
    (declared,) = handled
    assert isinstance(declared, QueryDeclared)
    assert declared.query is not None
    assert declared.query.slo.metrics == {"hits": 0.8}
    with pytest.raises(ConfigError, match=r"slo\.metrics\.hits"):
        agent.declare("notes", "tiny", **wish, metrics={"hits": 2})
