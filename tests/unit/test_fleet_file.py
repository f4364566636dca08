"""``fleet.toml``: agents, queries and the grid that queries are drawn from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from compass_shared.errors import ConfigError
from compass_shared.fleet_file import Fleet, load_fleet, scaled
from compass_shared.query import Query, Slo
from compass_shared.resources import data_folder
from compass_shared.site import Tier

VALID = """\
schema = 1
name = "street"

[[agents]]
name = "phone"
tier = "device"
profile = "phone-2020"
emulate = true

[agents.shape.cloud]
delay_s = 0.02
up_bps = 1e6

[[agents]]
name = "edge"
tier = "edge"
profile = "edge-box"
cores = 2
utilisation_cap = 0.6

[[queries]]
name = "sign"
origin = "phone"
pipeline = "read-text"
rate_hz = 0.5
slo = { latency_p95_s = 1.5, accuracy = 0.9, cost_usd_per_1000 = 0.2 }

[query_grid]
seed = 7
pipeline = "read-text"
origins = ["phone", "edge"]
latency_p95_s = [0.5, 1.0, 2.0]
accuracy = [0.7, 0.8, 0.9]
cost_usd_per_1000 = [0.1, 0.2, 0.3]
rate_hz = [1.0, 2.0, 3.0]
weight = [1, 2, 3]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fleet.toml"


def loaded(file: Path, text: str) -> Fleet:
    file.write_text(text, encoding="utf-8")
    return load_fleet(file)


def replaced(old: str, new: str) -> str:
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)


def test_a_fleet_is_its_agents_and_its_queries(file: Path) -> None:
    fleet = loaded(file, VALID)
    phone, edge = fleet.agents
    assert (phone.name, phone.tier, phone.emulate, phone.cores) == ("phone", Tier.DEVICE, True, None)
    assert (phone.shape["cloud"].delay_s, phone.shape["cloud"].up_bps) == (0.02, 1e6)
    assert phone.shape["cloud"].down_bps is None
    assert (edge.cores, edge.utilisation_cap, edge.shape) == (2.0, 0.6, {})
    assert fleet.queries[0] == Query(
        name="sign",
        origin="phone",
        pipeline="read-text",
        rate_hz=0.5,
        slo=Slo(latency_p95_s=1.5, accuracy=0.9, cost_usd_per_1000=0.2),
    )


def test_a_grid_deals_every_level_to_every_origin_once(file: Path) -> None:
    drawn = loaded(file, VALID).queries[1:]
    assert [query.name for query in drawn] == ["phone-1", "phone-2", "phone-3", "edge-1", "edge-2", "edge-3"]
    for origin in ("phone", "edge"):
        own = [query for query in drawn if query.origin == origin]
        assert [query.slo.latency_p95_s for query in own] == [0.5, 1.0, 2.0], "one a latency level, in order"
        assert Counter(query.slo.accuracy for query in own) == Counter([0.7, 0.8, 0.9])
        assert Counter(query.slo.cost_usd_per_1000 for query in own) == Counter([0.1, 0.2, 0.3])
        assert Counter(query.rate_hz for query in own) == Counter([1.0, 2.0, 3.0])
        assert Counter(query.weight for query in own) == Counter([1.0, 2.0, 3.0])


def test_the_draw_is_the_published_one(file: Path) -> None:
    """A seed means the same queries on every machine and Python: these, for seed 7."""
    drawn = loaded(file, VALID).queries[1:]
    assert [(q.slo.accuracy, q.slo.cost_usd_per_1000, q.rate_hz, q.weight) for q in drawn] == [
        (0.8, 0.3, 3.0, 3.0),
        (0.7, 0.1, 1.0, 1.0),
        (0.9, 0.2, 2.0, 2.0),
        (0.7, 0.2, 1.0, 3.0),
        (0.9, 0.1, 2.0, 1.0),
        (0.8, 0.3, 3.0, 2.0),
    ]


def test_another_seed_deals_otherwise(file: Path) -> None:
    draws = {str(loaded(file, replaced("seed = 7", f"seed = {seed}")).queries) for seed in range(5)}
    assert len(draws) == 5


def test_the_draw_does_not_depend_on_how_strings_are_hashed(file: Path) -> None:
    file.write_text(VALID, encoding="utf-8")
    code = (
        "import pathlib, sys; from compass_shared.fleet_file import load_fleet; "
        "print(load_fleet(pathlib.Path(sys.argv[1])).queries)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{load_fleet(file).queries}\n"}


def test_rates_can_be_scaled(file: Path) -> None:
    queries = loaded(file, VALID).queries
    doubled = scaled(queries, 2.0)
    assert [query.rate_hz for query in doubled] == [2 * query.rate_hz for query in queries]
    assert [query.slo for query in doubled] == [query.slo for query in queries]


def test_the_example_is_valid() -> None:
    fleet = load_fleet(data_folder("examples") / "read_text" / "fleet.toml")
    origins = {query.origin for query in fleet.queries}
    assert origins
    assert origins <= {agent.name for agent in fleet.agents}


@pytest.mark.parametrize(
    ("old", "new", "place", "problem"),
    [
        ("schema = 1", "schema = 9", "1 schema", "schema 9 is not 1"),
        ('name = "street"', 'name = "Our Street"', "2 name", "must match [a-z0-9-]{1,64}"),
        ('name = "street"\n', "", "- name", "missing required field `name`"),
        ('name = "street"', 'name = "street"\ncity = 1', "3 city", "unknown field `city`"),
        ('name = "phone"', 'name = "my phone"', "5 agents[0].name", "must match"),
        ('name = "edge"', 'name = "phone"', "5 agents[0].name", "two agents are called 'phone'"),
        ('tier = "edge"', 'tier = "fog"', "16 agents[1].tier", "Invalid enum value 'fog'"),
        ('profile = "edge-box"\n', "", "14 agents[1].profile", "missing required field `profile`"),
        ("cores = 2", "cores = 0.5", "18 agents[1].cores", "must be at least 1"),
        ("cores = 2", "cores = nan", "18 agents[1].cores", "must be at least 1"),
        ("_cap = 0.6", "_cap = 1.0", "19 agents[1].utilisation_cap", "must lie between 0 and 1"),
        ("shape.cloud", "shape.moon", "4 agents[0].shape", "'moon' is not a tier"),
        ("delay_s = 0.02", "delay_s = -1", "11 agents[0].shape.cloud.delay_s", "must not be negative"),
        ("delay_s = 0.02", "delay_ms = 20", "4 agents[0].shape[...].delay_ms", "unknown field"),
        ("up_bps = 1e6", "up_bps = 0", "12 agents[0].shape.cloud.up_bps", "must be a positive number"),
        ('name = "sign"', 'name = "phone-1"', "22 queries[0].name", "two queries are called 'phone-1'"),
        ('name = "sign"', 'name = "Sign"', "22 queries[0].name", "must match"),
        (
            'origin = "phone"',
            'origin = "tablet"',
            "23 queries[0].origin",
            "no agent or site is called 'tablet'",
        ),
        ("rate_hz = 0.5", "rate_hz = 0", "25 queries[0].rate_hz", "must lie between"),
        ("rate_hz = 0.5", "rate_hz = inf", "25 queries[0].rate_hz", "must lie between"),
        ("rate_hz = 0.5", 'rate_hz = "1"', "25 queries[0].rate_hz", "Expected `float`, got `str`"),
        ("_s = 1.5", "_s = nan", "26 queries[0].slo.latency_p95_s", "must lie between"),
        ("accuracy = 0.9,", "accuracy = 90,", "26 queries[0].slo.accuracy", "must lie in [0, 1]"),
        ("_1000 = 0.2 }", "_1000 = -1 }", "26 queries[0].slo.cost_usd_per_1000", "must lie between"),
        ("accuracy = 0.9, ", "", "26 queries[0].slo.accuracy", "missing required field `accuracy`"),
        (
            '["phone", "edge"]',
            '["phone", "tablet"]',
            "31 query_grid.origins",
            "no agent or site is called 'tablet'",
        ),
        ('["phone", "edge"]', '["edge", "edge"]', "31 query_grid.origins", "two queries are called 'edge-1'"),
        ("[0.7, 0.8, 0.9]", "[0.7, 0.8]", "33 query_grid.accuracy", "needs 3 values"),
        ("[1, 2, 3]", "[1, 2, 3, 4]", "36 query_grid.weight", "needs 3 values"),
        ("[1, 2, 3]", "[1, 2, 0]", "36 query_grid.weight", "must lie between"),
        ("[0.7, 0.8, 0.9]", "[0.7, 0.8, 9]", "28 query_grid.slo.accuracy", "must lie in [0, 1]"),
        ("seed = 7\n", "", "28 query_grid.seed", "missing required field `seed`"),
    ],
)
def test_what_is_wrong_is_refused_where_it_stands(
    file: Path, old: str, new: str, place: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(file, replaced(old, new))
    error = caught.value
    assert error.file == str(file)
    assert f"{error.line or '-'} {error.field}" == place
    assert problem in error.problem


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_fleet(tmp_path / "fleet.toml")
