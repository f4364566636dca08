"""Whatever a file holds, loading it gives a valid document or the typed error; nothing else ever escapes."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compass_shared.device_profile import load_device_profile
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.fleet_file import Fleet, load_fleet
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.pipeline_file import load_pipeline, pipeline_from
from compass_shared.pipeline_tables import OperatorTable, PipelineDocument
from compass_shared.profile_file import load_accuracy
from compass_shared.query import check_query
from compass_shared.resources import data_folder

Load = Callable[[Path], object]

EXAMPLE = data_folder("examples") / "read_text"
PROFILE = min(data_folder("device_profiles").glob("*.toml"))
LOADERS: list[Any] = [
    pytest.param(load_pipeline, EXAMPLE / "pipeline.toml", id="pipeline"),
    pytest.param(load_fleet, EXAMPLE / "fleet.toml", id="fleet"),
    pytest.param(load_device_profile, PROFILE, id="device profile"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
ACCURACY = {
    "schema": 1,
    "kind": "accuracy",
    "pipeline": "p",
    "metric": "m",
    "split": "s",
    "provenance": {"models": {"det": "a" * 64}},
    "configs": {"a[x=1];b": {"mean": 0.5, "standard_error": 0.01, "count": 10}},
}

TOKEN = re.compile(r'"[^"\n]*"|[\w.+-]+|\s+|.')
FRAGMENTS = [
    *("[]", "{}", "[[1]]", "[1, [2]]", "{ a = 1 }", '""', '"x"', '"a,b=c"', "'\\'", '"\\u0000"', "true"),
    *("0", "-1", "1e400", "nan", "-inf", "9223372036854775808", "1979-05-27", "07:32:00", "1_0", "=", "#"),
    *("\n", "[a]\n", "[[operators]]\n", "[[agents]]\n", "request", "name", "schema", "knobs", "model", "."),
]


@st.composite
def mutations(draw: st.DrawFn, text: str) -> str:
    """A text in which a few tokens are dropped, doubled or replaced by others."""
    tokens = TOKEN.findall(text)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(tokens) - 1))
        other = st.sampled_from(FRAGMENTS) | st.sampled_from(tokens) | st.text(max_size=3)
        how = draw(st.sampled_from(["drop", "double", "replace", "replace", "replace"]))
        tokens[at : at + 1] = {"drop": [], "double": [tokens[at]] * 2}.get(how) or [draw(other)]
    return "".join(tokens)


def outcome(load: Load, content: bytes, name: str, error: type[Exception]) -> object:
    """What loading gives; None if it is refused in the one way that it may be."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        try:
            return load(file)
        except error as caught:
            refused = caught
        assert str(file) in str(refused)
        return None


@pytest.mark.parametrize(("load", "valid"), LOADERS)
@given(
    content=st.binary(max_size=64) | st.text(max_size=64).map(lambda text: text.encode("utf-8", "replace"))
)
def test_anything_at_all_is_refused(load: Load, valid: Path, content: bytes) -> None:
    assert outcome(load, content, valid.name, ConfigError) is None


@pytest.mark.parametrize(("load", "valid"), LOADERS)
@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_a_valid_file_that_went_wrong_somewhere_is_valid_or_refused(
    load: Load, valid: Path, data: st.DataObject
) -> None:
    text = data.draw(mutations(valid.read_text(encoding="utf-8")))
    found = outcome(load, text.encode("utf-8", "replace"), valid.name, ConfigError)
    if isinstance(found, Pipeline):
        check_pipeline(found)
    elif isinstance(found, Fleet):
        check_fleet(found)


def check_pipeline(pipeline: Pipeline) -> None:
    seen = {REQUEST}
    for operator in pipeline.operators:
        assert seen.issuperset(operator.inputs), "operators come after what they read"
        seen.add(operator.name)
        for knobs in operator.variants():
            model = operator.model_for(knobs)
            assert model is None or model in pipeline.models
    assert pipeline.output in seen
    if pipeline.config_count() <= 500:
        check_keys(pipeline)


def check_keys(pipeline: Pipeline) -> None:
    configs = list(pipeline.configs())
    assert len(configs) == pipeline.config_count()
    assert len({pipeline.config_key(config) for config in configs}) == len(configs)
    for config in configs:
        pipeline.check_config(config)


def check_fleet(fleet: Fleet) -> None:
    agents = {agent.name for agent in fleet.agents}
    assert len(agents) == len(fleet.agents)
    assert len({query.name for query in fleet.queries}) == len(fleet.queries)
    for query in fleet.queries:
        assert query.origin in agents
        check_query(query)


@given(content=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_is_no_accuracy_table(content: bytes) -> None:
    assert outcome(load_accuracy, content, "accuracy.json", ProfileError) is None


@given(data=st.data())
def test_an_accuracy_table_that_went_wrong_somewhere_is_valid_or_refused(data: st.DataObject) -> None:
    document: Any = copy.deepcopy(ACCURACY)
    here = document
    while True:
        key = data.draw(st.sampled_from(sorted(here)))
        if not isinstance(here[key], dict) or not here[key] or data.draw(st.booleans()):
            break
        here = here[key]
    match data.draw(st.sampled_from(["drop", "replace", "rename"])):
        case "drop":
            del here[key]
        case "replace":
            here[key] = data.draw(JSON)
        case "rename":
            here[data.draw(st.text(max_size=5))] = here.pop(key)
    content = json.dumps(document).encode()
    table: Any = outcome(load_accuracy, content, "accuracy.json", ProfileError)
    if table is not None:
        assert all(0 <= accuracy.mean <= 1 for accuracy in table.configs.values())


# Few values, and such that would run into each other if a key were just glued together from them.
KNOB_VALUES = st.sampled_from([1, 1.0, True, 10**22, 1e22, "1", "1.0", "true", "1,b=1", "1,b=1,b=1"])
KNOBS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.lists(KNOB_VALUES, min_size=1, max_size=2), min_size=1
)


@given(knobs=KNOBS)
@settings(max_examples=300)
def test_every_config_has_a_key_of_its_own(knobs: dict[str, list[Any]]) -> None:
    values = {name: tuple(chosen) for name, chosen in knobs.items()}
    tables = (
        OperatorTable(name="first", inputs=(REQUEST,), runtime="python", function=".o:f", knobs=values),
        OperatorTable(name="last", inputs=("first",), runtime="python", function=".o:f", knobs=values),
    )
    document = PipelineDocument(schema=1, name="p", version="1", operators=tables, output="last")
    try:
        pipeline = pipeline_from(document, digest="")
    except ConfigError as caught:
        refused = caught
    else:
        check_keys(pipeline)
        return
    assert (refused.field or "").startswith("operators[0].knobs.")
