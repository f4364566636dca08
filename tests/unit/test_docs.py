"""The documentation is true where a machine can tell: links, commands, examples, numbers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import textwrap
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

import compass_agent.cli
import compass_coordinator.cli
from compass_agent.assignments import DEFAULT_DEADLINE_S
from compass_agent.bundles import load_bundle
from compass_agent.execution import MAX_WAITING
from compass_agent.measure.routes import MAX_TRANSFER_BYTES
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.repeats import MAX_REPLIES
from compass_agent.requests import FALLBACK_MARGIN
from compass_agent.shares import BURST_REQUESTS, BURST_S, GRACE_S, HEADROOM
from compass_agent.states import MAX_QUERIES
from compass_agent.worker import BODY_TIMEOUT_S, failure
from compass_coordinator.commands.files import ACCURACY_Z
from compass_coordinator.core import PATIENCE_S, REJOIN_S, SETTLE_S, SHARE_TIMEOUT_S
from compass_coordinator.demo.broker import RETAINED_LIMIT
from compass_coordinator.planning.searched import MAX_ENUMERATED
from compass_coordinator.profiler.latency.feedback import (
    HALF_LIFE_S,
    MAX_WEIGHT,
    MOVED,
    PRIOR_WEIGHT,
    WINDOW_WEIGHT,
)
from compass_coordinator.profiler.latency.next_probe import DELTA
from compass_shared import calls, codec, errors, framing, messages, topics
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import model_refs_from
from compass_shared.pipeline import REQUEST
from compass_shared.pipeline_file import MAX_CONFIGS, load_pipeline
from compass_shared.pipeline_tables import OperatorTable, PipelineDocument
from compass_shared.toml_file import read_toml
from compass_shared.transport import QUEUE_LIMIT
from support.markdown import ROOT, all_blocks, anchors, blocks, documents, links, page, spans, tables, words

PAGES = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in documents()]
READ_TEXT = ROOT / "examples" / "read_text"

# --- every page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def _parser(words: list[str]) -> argparse.ArgumentParser:
    if words[0] == "compass":
        return compass_coordinator.cli._parser(words[1:])
    return compass_agent.cli._parser()


@pytest.mark.parametrize("path", PAGES)
def test_commands_in_blocks_are_understood(path: Path) -> None:
    for info, text in all_blocks(path.read_text(encoding="utf-8")):
        if info in {"sh", "bash"}:
            _understood(text)
        elif info == "console":  # beside commands it holds what they print
            typed = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
            _understood("\n".join(typed))


@pytest.mark.parametrize("cli", [compass_agent.cli, compass_coordinator.cli], ids=lambda cli: cli.__name__)
def test_examples_of_the_help_are_understood(cli: ModuleType) -> None:
    assert _understood(textwrap.dedent(cli._EXAMPLES).replace("\n  ", "\n")) > 3


def _understood(text: str) -> int:
    """Parse every line that is one of our commands; returns how many were."""
    count = 0
    for line in text.replace("\\\n", " ").splitlines():
        command = shlex.split(re.split(r"[|>&]", line)[0], comments=True)
        if command and command[0] in {"compass", "compass-agent"}:
            _parser(command).parse_args(command[1:])  # argparse ends the test if it cannot
            count += 1
    return count


@pytest.mark.parametrize("path", PAGES)
def test_commands_in_sentences_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for span in spans(path.read_text(encoding="utf-8")):
        command = span.split()
        if command[0] == "make" and len(command) > 1:
            assert command[1] in targets, span
        elif command[0] in {"compass", "compass-agent"}:
            _walk(_parser(command), command[1:], span)


def _walk(parser: argparse.ArgumentParser, rest: list[str], span: str) -> None:
    for word in rest:
        branches = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if word.startswith("-"):
            assert word in parser._option_string_actions, span
        elif branches is not None:
            assert word in branches.choices, span
            parser = branches.choices[word]


# --- wire.md --------------------------------------------------------------------------------------


def test_every_topic_and_every_field_of_its_message_is_listed() -> None:
    listed = {}
    for cell, _, _, _, fields in tables(page("wire.md"))[0]:
        topic = "compass/1/home/" + re.sub(r"\{\w+\}", "x", cell.strip("`"))
        listed[topics.parse(topic).kind] = fields.split(", ")
    assert listed == {
        kind: [field.name for field in dataclasses.fields(codec._TYPES[kind])] for kind in topics.Kind
    }


def _bytes(block: str) -> bytes:
    return bytes.fromhex(" ".join(re.split(r" {3,}", line)[0] for line in block.splitlines()))


def test_the_hexadecimal_examples_decode_to_what_they_say() -> None:
    status, array = map(_bytes, blocks(page("wire.md"), "hex"))
    message = messages.StatusMessage(online=True, session=1732369500001)
    assert codec.decode(topics.Kind.STATUS, status) == message
    assert codec.encode(message) == status
    expected = np.array([[1, 2, 3], [256, 513, 65535]], np.uint16)
    decoded = framing.decode_value(array)
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == expected.dtype
    assert decoded.tolist() == expected.tolist()
    assert framing.encode_value(expected) == array
    dtypes = next(span for span in spans(page("wire.md")) if span.startswith("|b1"))
    assert set(dtypes.split()) == framing._DTYPES


def test_the_call_and_its_answer_are_complete() -> None:
    (call_text,) = blocks(page("wire.md"), "json call")
    (answer_text,) = blocks(page("wire.md"), "json answer")
    for text, header in ((call_text, calls.CallHeader), (answer_text, calls.AnswerHeader)):
        assert list(json.loads(text)["header"]) == [field.name for field in dataclasses.fields(header)]
    call = calls.decode_call(framing.encode_value(json.loads(call_text)))
    answer = calls.decode_answer(framing.encode_value(json.loads(answer_text)))
    assert (answer.header.request, answer.header.attempt) == (call.header.request, call.header.attempt)
    assert set(answer.values) == set(call.header.exports)
    pipeline = load_pipeline(READ_TEXT)
    assert set(call.values) == set(pipeline.operator(call.header.operators[0]).inputs)
    assert [timing.operator for timing in answer.header.timings] == list(call.header.operators)


def test_every_error_has_its_status() -> None:
    rows = next(rows for rows in tables(page("wire.md")) if rows[0][0] == "400")
    documented = {(int(status), name) for status, names, *_ in rows for name in names.split(", ")}
    raised = (
        errors.MessageError(""),
        errors.ConfigError(""),
        errors.RefusedError(""),
        errors.RefusedError("", retry_after_s=1.0),
        errors.InferenceError("o", ""),
        errors.BackendError(""),
        errors.ModelLoadError(""),
        errors.DeadlineError("", 1.0),
    )
    given = {(failure(error).status, type(error).__name__) for error in raised}
    # These two are decided by where they are raised, see tests/integration/test_worker.py.
    assert documented == given | {(413, "MessageError"), (503, "RefusedError")}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wire.md", f"at most {codec.MAX_MESSAGE_BYTES // 1024} KiB, a list or map"),
        ("wire.md", f"at most {codec._MAX_ITEMS:,} entries"),
        ("wire.md", f"a text at most {codec._MAX_STRING_BYTES // 1024} KiB"),
        ("wire.md", f"up to {QUEUE_LIMIT:,} QoS 1 messages wait"),
        ("wire.md", f"silent for {SHARE_TIMEOUT_S:g} s"),
        ("wire.md", f"reads up to {MAX_TRANSFER_BYTES >> 20} MiB"),
        ("wire.md", f"`{calls.MEDIA_TYPE}`"),
        ("wire.md", f"the last {MAX_REPLIES} replies"),
        ("wire.md", f"those of at most {MAX_QUERIES} queries"),
        ("wire.md", f"at most {framing.MAX_FRAME_BYTES >> 20} MiB, {framing.MAX_ITEMS:,} values"),
        ("wire.md", f"and {framing.MAX_DEPTH} levels"),
        ("wire.md", f"took over {BODY_TIMEOUT_S:g} s"),
        ("wire.md", f"| {MAX_WAITING} calls are waiting already"),
        ("wire.md", f"fill at {HEADROOM:g} times the share and hold what comes in {BURST_S:g} s"),
        ("wire.md", f"or {BURST_REQUESTS} planned requests"),
        ("wire.md", f"superseded or withdrawn, for {GRACE_S:g} s"),
        ("wire.md", f"embedded broker gives {RETAINED_LIMIT},"),
        ("wire.md", f"coordinator waits {REJOIN_S:g} s"),
        ("estimates.md", f"take it {ACCURACY_Z:g} standard errors below"),
        ("estimates.md", f"halve in {HALF_LIFE_S:g} s"),
        (
            "estimates.md",
            f"profile counts as {PRIOR_WEIGHT:g} runs, a minute of serving as at most {WINDOW_WEIGHT:g}",
        ),
        ("estimates.md", f"together as at most {MAX_WEIGHT:g}"),
        ("estimates.md", f"moved by {MOVED:.0%} and by three standard errors"),
        ("estimates.md", f"until less than {DELTA:.0%} of all weight is at stake"),
        ("architecture.md", f"changed for {SETTLE_S:g} s, or {PATIENCE_S:g} s after the first"),
        ("architecture.md", f"the fallback starts {FALLBACK_MARGIN:g} times its predicted p95"),
        ("architecture.md", f"else {DEFAULT_DEADLINE_S:g} s."),
        ("architecture.md", f"after {SHARE_TIMEOUT_S:g} s of silence"),
        ("architecture.md", f"more than {MAX_ENUMERATED // 1_000_000} million plans"),
        ("bundles.md", f"{MAX_CONFIGS:,}"),
        ("bundles.md", f"= {load_pipeline(READ_TEXT).config_count()}."),
    ],
)
def test_numbers_are_those_of_the_code(name: str, said: str) -> None:
    assert said in words(name)


def test_every_layer_rule_is_listed() -> None:
    project, _ = read_toml(ROOT / "pyproject.toml")
    rules = [contract["name"] for contract in project["tool"]["importlinter"]["contracts"]]
    assert rules in [[row[0] for row in rows] for rows in tables(page("architecture.md"))]


# --- bundles.md -----------------------------------------------------------------------------------


def test_every_toml_block_loads(tmp_path: Path) -> None:
    example = (READ_TEXT / "pipeline.toml").read_text(encoding="utf-8")
    load_pipeline(READ_TEXT)
    for index, block in enumerate(blocks(page("bundles.md"), "toml")):
        path = tmp_path / f"{index}.toml"
        path.write_text(block)
        document, _ = read_toml(path)
        if "schema" in document and "operators" in document:
            load_pipeline(path)
        elif "operators" in document:
            assert set(document) <= {"operators", "endpoints"}
            assert msgspec.convert(document["operators"], list[OperatorTable])
        elif block not in example:
            assert set(document) == {"models"}, "neither a whole file, nor from read-text, nor models"
            assert model_refs_from(document["models"])


def test_every_field_is_explained() -> None:
    explained = {
        name.strip("` ") for rows in tables(page("bundles.md")) for row in rows for name in row[0].split(",")
    }
    assert set(OperatorTable.__struct_fields__) <= explained
    sections = {"inputs", "metric", "models", "operators"}
    assert set(PipelineDocument.__struct_fields__) <= explained | sections


def test_the_small_bundle_runs(tmp_path: Path) -> None:
    text = page("bundles.md")
    for block in [blocks(text, "toml")[0], *blocks(text, "python")[:2]]:
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    bundle = load_bundle(tmp_path)
    store = ModelStore(ModelCache(tmp_path / "cache"))
    host, score = OperatorHost([bundle], store), bundle.metric()

    def accuracy(stride: int) -> float:
        scores: list[float] = []
        for example in bundle.examples("profiling", store):
            sample = host.run("count-words", "sample", {REQUEST: example.value}, {"stride": stride})
            scores.append(score(host.run("count-words", "count", {"sample": sample}, {}), example.truth))
        return sum(scores) / len(scores)

    assert accuracy(1) == 1
    assert 0 < accuracy(4) < 1
