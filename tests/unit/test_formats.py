"""File formats: schemas made from the types, examples and documentation valid by them."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from compass_coordinator.cli import main
from compass_coordinator.commands.files import load_planned
from compass_coordinator.measurements import (
    KindWork,
    LinkFigures,
    MeasurementsDocument,
    SiteWork,
    VariantWork,
    load_measurements,
)
from compass_coordinator.plan_document import PlanDocument
from compass_coordinator.schemas import DOCUMENTS, schema_of, schema_text
from compass_coordinator.what_if import problem_from
from compass_shared.fleet_file import (
    AgentTable,
    FleetDocument,
    GridTable,
    QueryTable,
    ShapeTable,
    SloTable,
    load_fleet,
)
from compass_shared.fleet_links import LinkTable
from compass_shared.fleet_sites import PricesTable, SiteTable, UnitsTable
from compass_shared.profile import Accuracy
from compass_shared.profile_file import AccuracyDocument
from compass_shared.toml_file import read_toml
from support.markdown import ROOT, blocks, page, spans, tables

EXAMPLES = ROOT / "examples" / "what_if"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/fleet.toml"))
FILES = [
    ("pipeline", ROOT / "examples" / "read_text" / "pipeline.toml"),
    ("fleet", ROOT / "examples" / "read_text" / "fleet.toml"),
    ("accuracy", ROOT / "examples" / "read_text" / "profile" / "accuracy.json"),
    *((kind, EXAMPLES / name / f"{kind}.toml") for name in NAMES for kind in ("pipeline", "fleet")),
    *((kind, EXAMPLES / name / f"{kind}.json") for name in NAMES for kind in ("profiles", "accuracy")),
]


def content(file: Path) -> Any:
    return read_toml(file)[0] if file.suffix == ".toml" else json.loads(file.read_text(encoding="utf-8"))


def problems(kind: str, document: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(schema_of(kind)).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_schemas_in_docs_are_those_of_the_types(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = (ROOT / "docs" / "schemas" / f"{kind}.json").read_text(encoding="utf-8")
    assert kept == schema_text(kind), f"compass schema {kind} > docs/schemas/{kind}.json"
    assert main(["schema", kind]) == 0
    assert capsys.readouterr().out == kept
    jsonschema.Draft202012Validator.check_schema(json.loads(kept))


@pytest.mark.parametrize(("kind", "file"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_example_files_are_valid_by_their_schemas(kind: str, file: Path) -> None:
    assert problems(kind, content(file)) == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("fleet", {"city": 1}),
        ("fleet", {"sites": [{"name": "a", "tier": "moon"}]}),
        ("fleet", {"sites": [{"name": "a", "tier": "edge", "cores": 0}]}),
        ("fleet", {"links": [{"source": "a", "to": "b", "rtt_s": 0, "up_bps": 1, "down_bps": 1}]}),
        ("profiles", {"kinds": [{"kind": "a", "pipeline": "p", "operators": {"o": {"mean_s": -1}}}]}),
        ("accuracy", {"configs": {"c": {"mean": 1}}}),
    ],
)
def test_schemas_refuse_what_the_loaders_refuse(kind: str, change: dict[str, Any]) -> None:
    valid = content(next(file for each, file in FILES if each == kind and EXAMPLES in file.parents))
    assert problems(kind, valid | change) != []
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(valid | change, DOCUMENTS[kind][0])


def test_schemas_carry_the_docstrings() -> None:
    definitions = schema_of("fleet")["$defs"]
    assert "or `count` sites alike" in definitions["SiteTable"]["description"]
    assert "round trip" in definitions["LinkTable"]["properties"]["rtt_s"]["description"]
    assert "arise" in definitions["LinkTable"]["properties"]["from"]["description"]


def example_files(folder: Path) -> dict[str, Path]:
    return {
        "pipeline": folder / "pipeline.toml",
        "fleet": folder / "fleet.toml",
        "profiles": folder / "profiles.json",
        "accuracy": folder / "accuracy.json",
    }


@pytest.mark.parametrize("name", NAMES)
def test_examples_make_a_problem_in_which_every_query_has_sites(name: str) -> None:
    files = example_files(EXAMPLES / name)
    pipelines, accuracy = load_planned([files["pipeline"]], [files["accuracy"]])
    (table,) = accuracy.values()
    assert str(table.provenance["source"]).startswith("made up")
    problem = problem_from(
        load_fleet(files["fleet"]), pipelines, [load_measurements(files["profiles"])], accuracy
    )
    (pipeline,) = pipelines.values()
    assert len(table.configs) == pipeline.config_count()
    for query in problem.queries:
        assert len(problem.sites_for(query)) > 1
        assert {(site, pipeline.name) for site in problem.sites_for(query)} <= set(problem.profiles)


def test_there_are_three_examples() -> None:
    assert NAMES == ["driving", "inspection", "voice"]


@pytest.mark.parametrize(
    ("name", "options", "served"),
    [
        ("driving", ["--policy", "device"], "4 of 9"),  # all placements take seconds
        ("inspection", [], "80 of 80"),
        ("voice", [], "of 600"),
    ],
)
def test_examples_are_planned(
    name: str, options: list[str], served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--{kind}={file}" for kind, file in example_files(EXAMPLES / name).items()]
    assert main(["plan", *files, *options]) == 0
    assert f"{served} queries served" in capsys.readouterr().out


# --- formats.md -----------------------------------------------------------------------------------

TYPES = (
    FleetDocument,
    AgentTable,
    ShapeTable,
    SiteTable,
    PricesTable,
    UnitsTable,
    LinkTable,
    QueryTable,
    SloTable,
    GridTable,
    MeasurementsDocument,
    KindWork,
    SiteWork,
    VariantWork,
    LinkFigures,
    AccuracyDocument,
    Accuracy,
    PlanDocument,
)


def test_every_field_is_explained() -> None:
    explained = {word for span in spans(page("formats.md")) for word in span.replace(",", " ").split()}
    explained |= {word.strip("[]") for word in explained}
    for described in TYPES:
        for field in typing.get_type_hints(described):
            spelled = {"source": "from", "target": "to"}.get(field, field)
            assert field in explained or spelled in explained, f"{described.__name__}.{field}"


def test_files_in_the_documentation_make_a_problem(tmp_path: Path) -> None:
    text = page("formats.md")
    pipeline, fleet = blocks(text, "toml")
    profiles, accuracy = blocks(text, "json")
    for name, block in {
        "pipeline.toml": pipeline,
        "fleet.toml": fleet,
        "profiles.json": profiles,
        "accuracy.json": accuracy,
    }.items():
        (tmp_path / name).write_text(block)
    files = example_files(tmp_path)
    pipelines, tables_ = load_planned([files["pipeline"]], [files["accuracy"]])
    found = problem_from(
        load_fleet(files["fleet"]), pipelines, [load_measurements(files["profiles"])], tables_
    )
    assert len(found.queries) == 200
    assert found.sites_for(found.queries[0]) == ("bell-1", "box-1", "box-2", "pool")


def test_the_files_are_listed_with_their_schemas() -> None:
    (rows, *_) = tables(page("formats.md"))
    listed = {row[2].split("](schemas/")[1].removesuffix(".json)") for row in rows}
    assert listed | {"plan"} == set(DOCUMENTS)
