"""``[[sites]]`` and ``[[links]]`` of a fleet file: groups, patterns, reach, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from compass_shared import fleet_file, fleet_links, fleet_sites
from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import Fleet, load_fleet
from compass_shared.site import Tier

CITY = """\
schema = 1
name = "city"

[[agents]]
name = "lab"
tier = "edge"
profile = "edge-nuc"

[[sites]]
name = "phone"
count = 12
tier = "device"
kind = "arm"
cores = 1
slowdowns = { default = 4, vision = 2.5 }
reach = ["pool"]
reach_some = { "box-*" = 2 }

[[sites]]
name = "box"
count = 4
tier = "edge"
profile = "edge-nuc"
overhead_s = 0.001

[[sites]]
name = "pool"
tier = "cloud"
kind = "rack"
prices = { core_s_usd = 2e-5 }
memory_bytes = 1e9
units = { cores = 8, usd_per_hour = 0.5, minimum = 1, maximum = 3 }

[[links]]
from = "phone-*"
to = "edge"
rtt_s = 0.01
up_bps = 1e6
down_bps = 4e6

[[links]]
from = "device"
to = "pool"
rtt_s = 0.05
rtt_var_s2 = 1e-4
up_bps = 1e6
down_bps = 2e6
rel_sd = 0.2

[[links]]
from = "phone-3"
to = "box-*"
rtt_s = 0.02
up_bps = 5e5
down_bps = 5e5

[[queries]]
name = "scan"
origin = "phone-*"
pipeline = "p"
rate_hz = 0.5
weight = 2
divisible = true
slo = { latency_p95_s = 1.5, accuracy = 0.9, cost_usd_per_1000 = 0.2 }

[[queries]]
name = "own"
origin = "lab"
pipeline = "p"
rate_hz = 1
slo = { latency_p95_s = 1.5, accuracy = 0.9, cost_usd_per_1000 = 0.2 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fleet.toml"


def loaded(file: Path, text: str = CITY) -> Fleet:
    file.write_text(text, encoding="utf-8")
    return load_fleet(file)


def replaced(old: str, new: str) -> str:
    assert CITY.count(old) == 1, old
    return CITY.replace(old, new)


def test_a_table_with_a_count_makes_sites_alike(file: Path) -> None:
    sites = {described.site.name: described for described in loaded(file).sites}
    assert list(sites)[:2] == ["phone-1", "phone-2"]
    assert len(sites) == 12 + 4 + 1
    first, last = sites["phone-1"], sites["phone-12"]
    assert last.slowdowns is first.slowdowns, "what they share is there once"
    assert (last.site.tier, last.site.cores, last.kind) == (Tier.DEVICE, 1.0, "arm")
    assert last.slowdowns == {"default": 4.0, "vision": 2.5}


def test_figures_come_from_the_device_profile_unless_given(file: Path) -> None:
    sites = {described.site.name: described for described in loaded(file).sites}
    profile = find_device_profile("edge-nuc")
    box, pool = sites["box-2"], sites["pool"].site
    assert (box.site.cores, box.site.utilisation_cap) == (profile.cores.value, profile.utilisation_cap)
    assert box.site.prices == profile.prices()
    assert box.site.memory_bytes == profile.memory_bytes.value
    assert (box.slowdowns, box.overhead_s) == (profile.slowdowns(), 0.001)
    assert (pool.prices.core_s_usd, pool.prices.egress_byte_usd, pool.memory_bytes) == (2e-5, 0.0, 1e9)


def test_a_pool_has_as_many_cores_as_may_be_bought(file: Path) -> None:
    pool = next(found.site for found in loaded(file).sites if found.site.name == "pool")
    assert pool.units is not None
    assert (pool.units.minimum, pool.units.maximum, pool.cores) == (1, 3, 24.0)
    fixed = loaded(file, replaced('kind = "rack"', 'kind = "rack"\ncores = 16'))
    assert next(found.site.cores for found in fixed.sites if found.site.name == "pool") == 16.0


def test_every_site_of_a_pattern_has_a_query_of_its_own(file: Path) -> None:
    queries = loaded(file).queries
    assert [query.name for query in queries] == [*(f"scan-{n}" for n in range(1, 13)), "own"]
    assert queries[4].origin == "phone-5"
    assert all(query.weight == 2 and query.divisible for query in queries[:12])
    by_tier = loaded(file, replaced('name = "scan"\norigin = "phone-*"', 'name = "scan"\norigin = "device"'))
    assert by_tier.queries[0].name == "scan-phone-1"


def test_reach_is_dealt_out_in_a_ring(file: Path) -> None:
    reach = loaded(file).reach
    assert reach["phone-1"] == ("pool", "box-1", "box-2")
    assert reach["phone-4"] == ("pool", "box-4", "box-1")
    assert reach["phone-5"] == reach["phone-1"]
    assert "lab" not in reach, "agents reach what was measured"
    per_box = Counter(site for sites in reach.values() for site in sites if site.startswith("box-"))
    assert set(per_box.values()) == {6}, "twelve phones reach two of four boxes each"


def test_without_reach_links_say_what_is_reached(file: Path) -> None:
    text = replaced('reach = ["pool"]\nreach_some = { "box-*" = 2 }\n', "")
    reach = loaded(file, text).reach
    assert reach["phone-1"] == ("lab", "box-1", "box-2", "box-3", "box-4", "pool")


def test_links_go_both_ways_and_the_last_table_counts(file: Path) -> None:
    links = loaded(file).links
    there, back = links["phone-1", "box-1"], links["box-1", "phone-1"]
    assert (there.bandwidth_bps, back.bandwidth_bps) == (1e6, 4e6)
    assert there.rtt_s == back.rtt_s == 0.01
    assert links["phone-3", "box-3"].rtt_s == 0.02
    assert links["phone-3", "pool"].rtt_s == 0.05
    assert links["pool", "phone-3"].bandwidth_rel_sd == 0.2
    assert ("phone-1", "box-3") not in links, "out of reach"
    assert len(links) == 2 * 12 * 3


def test_an_agent_has_the_links_that_lead_from_it(file: Path) -> None:
    fleet = loaded(
        file, CITY + '\n[[links]]\nfrom = "lab"\nto = "pool"\nrtt_s = 0\nup_bps = 1\ndown_bps = 1\n'
    )
    assert ("lab", "pool") in fleet.links
    assert ("pool", "lab") in fleet.links
    assert ("lab", "box-1") not in fleet.links


def test_a_grid_may_name_patterns(file: Path) -> None:
    grid = """
[query_grid]
seed = 3
pipeline = "p"
origins = ["phone-*", "lab"]
latency_p95_s = [0.5, 1.0]
accuracy = [0.7, 0.8]
cost_usd_per_1000 = [0.1, 0.2]
rate_hz = [1.0, 2.0]
weight = [1, 2]
"""
    drawn = loaded(file, CITY + grid).queries[13:]
    assert len(drawn) == 2 * 13
    assert drawn[0].name == "phone-1-1"
    assert drawn[-1].origin == "lab"


@pytest.mark.parametrize(
    ("old", "new", "place", "problem"),
    [
        ('tier = "cloud"', 'tier = "sky"', "28 sites[2].tier", "Invalid enum value 'sky'"),
        ("cores = 1\n", "cores = 0\n", "14 sites[0].cores", "> 0.0"),
        ("cores = 1\n", "cores = inf\n", "14 sites[0].cores", "<= 1e+18"),
        ("cores = 1\n", "", "9 sites[0].cores", "say how many cores it has"),
        ("count = 12", "count = 0", "11 sites[0].count", ">= 1"),
        ("count = 12", "count = 100000", "9 sites", "100,005 sites are more than 100,000"),
        ("vision = 2.5", "vision = nan", "15 sites[0].slowdowns[...]", "> 0.0"),
        ('"edge-nuc"\noverhead', '"toaster"\noverhead', "23 sites[1].profile", "no device profile is called"),
        ("minimum = 1", "minimum = 4", "32 sites[2].units", "minimum 4 is above maximum 3"),
        ('name = "box"', 'name = "Box"', "20 sites[1].name", "'Box-1' must match"),
        ('name = "pool"', 'name = "box-1"', "27 sites[2].name", "two sites are called 'box-1'"),
        ('name = "pool"', 'name = "lab"', "27 sites[2].name", "two sites are called 'lab'"),
        ('reach = ["pool"]', 'reach = ["poll"]', "16 sites[0].reach", "no agent or site is called 'poll'"),
        ('"box-*" = 2', '"box-*" = 5', "17 sites[0].reach_some", "'box-*' are 4 sites, not 5"),
        ('"box-*" = 2', '"bag-*" = 2', "17 sites[0].reach_some", "no agent or site is called 'bag-*'"),
        ('from = "device"', 'from = "cloud-*"', "42 links[1].from", "a pattern such as 'phone-*', or a tier"),
        ("rel_sd = 0.2", "rel_sd = -1", "48 links[1].rel_sd", ">= 0.0"),
        ("rtt_s = 0.05", "rtt_ms = 50", "44 links[1].rtt_ms", "unknown field"),
        ('origin = "lab"', 'origin = "lap"', "68 queries[1].origin", "no agent or site is called 'lap'"),
        ('name = "own"', 'name = "scan-7"', "67 queries[1].name", "two queries are called 'scan-7'"),
        ('name = "scan"', f'name = "{"s" * 63}"', "58 queries[0].name", "must match"),
    ],
)
def test_what_is_wrong_is_refused_where_it_stands(
    file: Path, old: str, new: str, place: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(file, replaced(old, new))
    assert problem in caught.value.problem
    assert f"{caught.value.line or '-'} {caught.value.field}" == place
    assert caught.value.file == str(file)


def test_a_name_that_is_also_a_tier_of_others_is_ambiguous(file: Path) -> None:
    with pytest.raises(ConfigError, match="both a site and the tier of others"):
        loaded(file, CITY.replace('"lab"', '"edge"'))


def test_limits_hold_before_anything_is_expanded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_file, "MAX_QUERIES", 12)
    with pytest.raises(ConfigError, match="13 queries are more than 12"):
        loaded(file)
    monkeypatch.undo()
    monkeypatch.setattr(fleet_links, "MAX_LINKS", 50)
    with pytest.raises(ConfigError, match="say with reach or reach_some"):
        loaded(file)
    monkeypatch.undo()
    monkeypatch.setattr(fleet_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(ConfigError, match="larger than 100 bytes"):
        loaded(file)
    assert fleet_sites.MAX_SITES == 100_000
