"""Fleet state: who is online, what was measured, and the planning problem that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compass_coordinator.fleet import Fleet
from compass_shared.device_profile import find_device_profile
from compass_shared.messages import LinkReport, StatusMessage, WorkerInfo
from compass_shared.query import Query
from compass_shared.site import Link, Prices, Site, Tier
from support.coordinators import (
    ACCURACY,
    EASY,
    PIPELINE,
    PRICES,
    TIERS,
    address_of,
    hello_of,
    profile_of,
    query_of,
)

ONLINE = StatusMessage(online=True, session=101)
OFFLINE = StatusMessage(online=False, session=101)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(pipelines={"chain": PIPELINE}, accuracy={"chain": ACCURACY})


def joined(fleet: Fleet, *agents: str) -> None:
    for agent in agents:
        fleet.take_hello(agent, hello_of(agent))
        fleet.take_status(agent, ONLINE)
        assert fleet.take_profile(agent, profile_of(agent), 0.0) is None


def ask(fleet: Fleet, *queries: Query) -> None:
    fleet.queries.update({query.name: query for query in queries})


# --- who is there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hello_first", [True, False])
def test_an_agent_is_online_once_it_said_hello_and_that_it_is(fleet: Fleet, hello_first: bool) -> None:
    steps: list[Callable[[], bool]] = [
        lambda: fleet.take_hello("phone", hello_of("phone")),
        lambda: fleet.take_status("phone", ONLINE),
    ]
    first, second = steps if hello_first else reversed(steps)
    first()
    assert not fleet.agents["phone"].online
    assert second(), "a change"
    assert fleet.agents["phone"].online


@pytest.mark.parametrize(
    ("status", "online"),
    [
        (StatusMessage(online=False, session=101), False),
        (StatusMessage(online=False, session=100), True),
        (StatusMessage(online=False, session=102), False),
        (StatusMessage(online=True, session=102), True),
    ],
    ids=["its own will", "a late will", "a clean goodbye", "a new connection"],
)
def test_the_latest_session_speaks(fleet: Fleet, status: StatusMessage, online: bool) -> None:
    joined(fleet, "phone")
    assert fleet.take_status("phone", status) == (not online)
    assert fleet.agents["phone"].online == online


def test_a_will_of_before_a_restart_does_not_count_against_the_new_hello(fleet: Fleet) -> None:
    """It is the retained status until the new one arrives."""
    fleet.take_status("phone", OFFLINE)
    fleet.take_hello("phone", hello_of("phone", session=200))
    assert fleet.agents["phone"].online


def test_the_same_again_is_no_change(fleet: Fleet) -> None:
    joined(fleet, "phone")
    assert not fleet.take_status("phone", ONLINE)
    assert not fleet.take_hello("phone", hello_of("phone"))
    assert not fleet.take_hello("phone", hello_of("phone", session=99)), "of an earlier start"
    assert fleet.take_hello("phone", replace(hello_of("phone"), cores=4.0))
    assert fleet.take_hello("phone", None)
    assert not fleet.take_hello("phone", None)
    assert not fleet.agents["phone"].online


def test_workers_are_who_is_online_and_has_an_address(fleet: Fleet) -> None:
    joined(fleet, *TIERS)
    assert fleet.workers() == {
        "cloud": WorkerInfo(address=str(address_of("cloud")), tier=Tier.CLOUD),
        "edge": WorkerInfo(address=str(address_of("edge")), tier=Tier.EDGE),
    }
    fleet.take_status("cloud", OFFLINE)
    assert set(fleet.workers()) == {"edge"}


def test_a_querys_worker_uses_itself_alone_where_it_found_no_way_to_others(fleet: Fleet) -> None:
    joined(fleet, *TIERS)
    ask(fleet, query_of("local"), query_of("nightly", origin="cloud"))
    problem, _ = fleet.problem()
    local, nightly = problem.queries
    assert ("cloud", "phone") in problem.links, "the way back of what the phone measured"
    assert problem.sites_for(nightly) == ("cloud",)
    assert problem.sites_for(local) == ("phone", "cloud", "edge")


# --- what was measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"site": "tablet"}, "agent 'phone' sent a profile of 'tablet'"),
        ({"pipeline": "other"}, "measured pipeline 'other', which is not planned here"),
        ({"digest": "0" * 64}, "000000000000, planned is digest-of-ch: install the same bundle on both"),
        ({"request_mean_bytes": -1.0}, "makes no sense: request_mean_bytes is -1.0"),
    ],
)
def test_a_profile_that_is_not_of_this_is_refused(
    fleet: Fleet, changes: dict[str, str], problem: str
) -> None:
    message = profile_of("phone")
    wrong = replace(message, profile=replace(message.profile, **changes))  # type: ignore[arg-type]
    assert problem in str(fleet.take_profile("phone", wrong, 0.0))
    assert fleet.agents == {}


def test_a_later_measurement_replaces_an_earlier_one(fleet: Fleet) -> None:
    joined(fleet, "phone")
    faster = LinkReport(target="edge", rtt_s=0.001, rtt_var_s2=0.0, up_bps=1e8, down_bps=1e8)
    again = replace(profile_of("phone"), links=(faster,))
    assert fleet.take_profile("phone", again, 0.0) is None
    assert fleet.agents["phone"].links["edge"] == faster
    assert "cloud" not in fleet.agents["phone"].links, "it could not be measured any more"


def test_a_profile_of_an_earlier_session_is_refused(fleet: Fleet) -> None:
    joined(fleet, "phone")
    late = replace(profile_of("phone"), session=profile_of("phone").session - 1, links=())
    assert "earlier session" in str(fleet.take_profile("phone", late, 0.0))
    assert fleet.agents["phone"].links


# --- the problem ----------------------------------------------------------------------------------


def test_the_problem_is_what_is_online_and_measured(fleet: Fleet) -> None:
    joined(fleet, "phone", "edge")
    ask(fleet, query_of("q2"), query_of("q1"))
    problem, left_out = fleet.problem()
    assert left_out == {}
    assert [query.name for query in problem.queries] == ["q1", "q2"], "in the same order every time"
    common: dict[str, Any] = {"cores": 2.0, "utilisation_cap": 0.7, "memory_bytes": float(4 << 30)}
    assert problem.sites == {
        "edge": Site(name="edge", tier=Tier.EDGE, prices=PRICES[Tier.EDGE], power_w=0.0, **common),
        "phone": Site(name="phone", tier=Tier.DEVICE, prices=Prices(), power_w=3.0, **common),
    }
    assert problem.profiles == {(agent, "chain"): profile_of(agent).profile for agent in ("phone", "edge")}
    assert (problem.pipelines, problem.accuracy) == ({"chain": PIPELINE}, {"chain": ACCURACY})


def test_a_site_has_the_memory_of_its_machine_or_of_the_device_that_it_emulates() -> None:
    board = find_device_profile("raspberry-pi-4")
    fleet = Fleet(pipelines={"chain": PIPELINE}, accuracy={"chain": ACCURACY}, devices={"board": board})
    for machine_bytes, device_profile, expected in (
        (64 << 30, "board", board.memory_bytes.value),
        (1 << 30, "board", float(1 << 30)),
        (64 << 30, "unheard-of", float(64 << 30)),
        (0, None, math.inf),
    ):
        joined(fleet, "phone")
        hello = hello_of("phone")
        hardware = replace(hello.hardware, memory_bytes=machine_bytes)
        fleet.take_hello("phone", replace(hello, hardware=hardware, device_profile=device_profile))
        assert fleet.problem()[0].sites["phone"].memory_bytes == expected


def test_links_go_both_ways_at_their_own_bandwidth(fleet: Fleet) -> None:
    joined(fleet, "phone", "edge")
    problem, _ = fleet.problem()
    up = Link(source="phone", target="edge", rtt_s=0.01, rtt_var_s2=1e-6, bandwidth_bps=1e7)
    down = Link(source="edge", target="phone", rtt_s=0.01, rtt_var_s2=1e-6, bandwidth_bps=2e7)
    assert problem.links == {("phone", "edge"): up, ("edge", "phone"): down}


def test_who_leaves_takes_its_site_links_and_profiles_along_and_brings_them_back(fleet: Fleet) -> None:
    joined(fleet, "phone", "edge")
    before = fleet.problem()
    fleet.take_status("edge", OFFLINE)
    problem, _ = fleet.problem()
    assert set(problem.sites) == {"phone"}
    assert problem.links == {}
    assert set(problem.profiles) == {("phone", "chain")}
    fleet.take_status("edge", StatusMessage(online=True, session=102))
    assert fleet.problem() == before


def test_queries_that_cannot_be_planned_are_left_out_with_the_reason(fleet: Fleet) -> None:
    bare = Fleet(
        pipelines={"chain": PIPELINE, "bare": replace(PIPELINE, name="bare")}, accuracy=fleet.accuracy
    )
    joined(bare, "phone")
    bare.take_hello("tablet", hello_of("tablet"))
    bare.take_status("tablet", ONLINE)
    ask(
        bare,
        query_of("ready"),
        replace(query_of("unknown"), pipeline="other"),
        replace(query_of("unscored"), pipeline="bare"),
        query_of("away", origin="edge"),
        query_of("unmeasured", EASY, origin="tablet"),
    )
    problem, left_out = bare.problem()
    assert [query.name for query in problem.queries] == ["ready"]
    assert left_out == {
        "unknown": "pipeline 'other' is not planned here; planned: bare, chain",
        "unscored": "pipeline 'bare' has no accuracy profile",
        "away": "its origin 'edge' is offline",
        "unmeasured": "its origin 'tablet' has not measured 'chain' yet",
    }


def test_the_problem_does_not_change_under_the_planner(fleet: Fleet) -> None:
    joined(fleet, "phone", "edge")
    ask(fleet, query_of("q1"))
    problem, _ = fleet.problem()
    sites, links, profiles = dict(problem.sites), dict(problem.links), dict(problem.profiles)
    fleet.take_status("edge", OFFLINE)
    fleet.queries.clear()
    fleet.take_profile("phone", replace(profile_of("phone"), links=()), 0.0)
    assert (problem.sites, problem.links, problem.profiles) == (sites, links, profiles)
    assert [query.name for query in problem.queries] == ["q1"]
