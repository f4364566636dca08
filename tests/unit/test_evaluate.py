"""One plan, computed by hand; and waiting against queueing theory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from compass_shared.errors import PlanningError, ProfileError
from compass_shared.evaluate import estimate_at_load, evaluate_plan, paths, resulting_loads
from compass_shared.pipeline import REQUEST, Operator, Pipeline
from compass_shared.plan import Plan
from compass_shared.problem import Z95, Problem, SiteLoad
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.queueing import SiteMix, total_mix, wait_at
from compass_shared.segments import cut
from compass_shared.site import Link, Prices, Site, Tier


def _operator_profile(variant: str, mean_s: float, size_bytes: float) -> OperatorProfile:
    return OperatorProfile(
        variant=variant,
        mean_s=mean_s,
        var_s2=mean_s**2,
        p95_s=3 * mean_s,
        count=9,
        output_mean_bytes=size_bytes,
        output_var_bytes2=size_bytes,
    )


def _profile(site: str, slowdown: float) -> SiteProfile:
    work = {"shrink": (0.010, 1000.0), "find": (0.020, 100.0), "read[beam=2]": (0.040, 10.0)}
    return SiteProfile(
        site=site,
        pipeline="scan",
        digest="d",
        operators={
            variant: _operator_profile(variant, slowdown * mean_s, size)
            for variant, (mean_s, size) in work.items()
        },
        request_mean_bytes=5000.0,
        request_var_bytes2=64.0,
    )


SCAN = Pipeline(
    name="scan",
    version="1",
    description="",
    operators=(
        Operator(name="shrink", inputs=(REQUEST,), runtime="python"),
        Operator(name="find", inputs=("shrink",), runtime="onnx"),
        Operator(name="read", inputs=("shrink", "find"), runtime="onnx", knobs={"beam": (1, 2)}),
    ),
    output="read",
)
QUERY = Query(
    name="q",
    origin="phone",
    pipeline="scan",
    rate_hz=2.0,
    slo=Slo(latency_p95_s=1.0, accuracy=0.5, cost_usd_per_1000=10.0),
)
PROBLEM = Problem(
    pipelines={"scan": SCAN},
    sites={
        "phone": Site(
            name="phone",
            tier=Tier.DEVICE,
            cores=1,
            prices=Prices(energy_j_usd=0.5, egress_byte_usd=1e-5),
            power_w=2.0,
        ),
        "cloud": Site(
            name="cloud", tier=Tier.CLOUD, cores=4, prices=Prices(core_s_usd=3.0, egress_byte_usd=1e-4)
        ),
    },
    links={
        ("phone", "cloud"): Link(
            source="phone",
            target="cloud",
            rtt_s=0.03,
            rtt_var_s2=1e-6,
            bandwidth_bps=1e4,
            bandwidth_rel_sd=0.1,
        ),
        ("cloud", "phone"): Link(source="cloud", target="phone", rtt_s=0.5, bandwidth_bps=1e3),
    },
    profiles={("phone", "scan"): _profile("phone", 4.0), ("cloud", "scan"): _profile("cloud", 1.0)},
    accuracy={
        "scan": AccuracyTable(
            pipeline="scan",
            metric="m",
            split="s",
            configs={"shrink;find;read[beam=2]": Accuracy(mean=0.9, standard_error=0.01, count=10)},
        )
    },
    queries=(QUERY,),
)
SPLIT = Plan(config={"read": {"beam": 2}}, placement={"shrink": "phone", "find": "cloud", "read": "cloud"})


def test_a_split_plan_by_hand() -> None:
    estimate = evaluate_plan(PROBLEM, QUERY, SPLIT, {})
    up_s, down_s = 1000 / 1e4, 10 / 1e3
    assert estimate.latency_mean_s == pytest.approx(0.04 + 0.06 + 0.03 + up_s + down_s)
    variance = 0.04**2 + 0.02**2 + 0.04**2 + 1e-6 + 1000 / 1e8 + (up_s * 0.1) ** 2 + 10 / 1e6
    assert estimate.latency_var_s2 == pytest.approx(variance)
    assert estimate.latency_p95_s == pytest.approx(estimate.latency_mean_s + Z95 * math.sqrt(variance))
    assert estimate.accuracy == 0.9
    assert estimate.cost_usd_per_1000 == pytest.approx(1000 * (0.04 * 1.0 + 1000e-5 + 0.06 * 3.0 + 10e-4))
    assert estimate.demand == pytest.approx(
        {"cores@phone": 0.08, "cores@cloud": 0.12, "link@phone>cloud": 2000, "link@cloud>phone": 20}
    )


def test_a_value_that_two_remote_segments_need_is_sent_twice() -> None:
    detour = replace(SPLIT, placement={"shrink": "cloud", "find": "phone", "read": "cloud"})
    demand = evaluate_plan(PROBLEM, QUERY, detour, {}).demand
    # Up: the request, then shrink's and find's values for read. Down: shrink's value, then the result.
    assert demand["link@phone>cloud"] == pytest.approx(2 * (5000 + 1000 + 100))
    assert demand["link@cloud>phone"] == pytest.approx(2 * (1000 + 10))


def test_every_segment_waits_at_its_site() -> None:
    loads = {
        "phone": SiteLoad(utilisation=0.5, residual_s=0.1),
        "cloud": SiteLoad(utilisation=0.8, residual_s=0.2),
    }
    idle, busy = evaluate_plan(PROBLEM, QUERY, SPLIT, {}), evaluate_plan(PROBLEM, QUERY, SPLIT, loads)
    phone_s = 0.5 / 0.5 * 0.1
    cloud_s = 0.8 ** (math.sqrt(10) - 1) / (4 * 0.2) * 0.2
    assert busy.latency_mean_s - idle.latency_mean_s == pytest.approx(phone_s + cloud_s)
    assert busy.latency_var_s2 - idle.latency_var_s2 == pytest.approx(phone_s**2 * 3 + cloud_s**2 * 1.5)


def test_the_resulting_load_counts_everybody() -> None:
    twin = replace(QUERY, name="twin", rate_hz=1.0)
    both = replace(PROBLEM, queries=(QUERY, twin))
    local = replace(SPLIT, placement=dict.fromkeys(("shrink", "find", "read"), "phone"))
    loads = resulting_loads(both, {"q": SPLIT, "twin": local})
    busy = 2 * 0.04 + 1 * 0.28
    second = 2 * (2 * 0.04**2) + 1 * (0.04**2 + 0.08**2 + 0.16**2 + 0.28**2)
    assert loads["phone"].utilisation == pytest.approx(busy)
    assert loads["phone"].residual_s == pytest.approx(second / (2 * busy))
    assert loads["cloud"].utilisation == pytest.approx(0.12 / 4)
    assert estimate_at_load(both, {"q": SPLIT, "twin": local}) == {
        "q": evaluate_plan(both, QUERY, SPLIT, loads),
        "twin": evaluate_plan(both, twin, local, loads),
    }


def test_paths_of_a_diamond() -> None:
    diamond = Pipeline(
        name="d",
        version="1",
        description="",
        operators=(
            Operator(name="a", inputs=(REQUEST,), runtime="python"),
            Operator(name="b", inputs=("a",), runtime="python"),
            Operator(name="c", inputs=("a",), runtime="python"),
            Operator(name="d", inputs=("b", "c"), runtime="python"),
        ),
        output="d",
    )
    segments = cut(diamond, {"a": "x", "b": "y", "c": "z", "d": "x"}, "x")
    sites = [tuple(segments[index].site for index in path) for path in paths(segments)]
    assert sorted(sites) == [("x", "y", "x"), ("x", "z", "x")]


@pytest.mark.parametrize(
    ("plan", "error", "named"),
    [
        (replace(SPLIT, config={"read": {"beam": 1}}), ProfileError, "beam=1"),
        (replace(SPLIT, placement={**SPLIT.placement, "find": "moon"}), PlanningError, "moon"),
        (replace(SPLIT, placement={"shrink": "phone"}), PlanningError, "find"),
    ],
)
def test_what_cannot_be_evaluated_is_named(plan: Plan, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        evaluate_plan(PROBLEM, QUERY, plan, {})


def test_one_core_waits_as_pollaczek_and_khinchine_say() -> None:
    rate_hz, mean_s, second_s2 = 3.0, 0.2, 0.07
    mix = SiteMix(busy_cores=rate_hz * mean_s, second_moment_s=rate_hz * second_s2)
    assert wait_at(mix.load(1), 1).mean_s == pytest.approx(rate_hz * second_s2 / (2 * (1 - rate_hz * mean_s)))


def test_the_spread_of_the_wait_is_exact_for_one_exponential_server() -> None:
    rate_hz, service_hz = 3.0, 5.0
    mix = SiteMix(busy_cores=rate_hz / service_hz, second_moment_s=rate_hz * 2 / service_hz**2)
    rho, sojourn_s = rate_hz / service_hz, 1 / (service_hz - rate_hz)
    assert wait_at(mix.load(1), 1).var_s2 == pytest.approx((2 * rho - rho**2) * sojourn_s**2)


@pytest.mark.parametrize("cores", [2, 4, 8])
@pytest.mark.parametrize("utilisation", [0.5, 0.7, 0.9])
def test_several_cores_wait_about_as_erlang_says(cores: int, utilisation: float) -> None:
    offered = cores * utilisation
    terms = [offered**k / math.factorial(k) for k in range(cores)]
    last = offered**cores / math.factorial(cores) / (1 - utilisation)
    erlang_s = last / (sum(terms) + last) / (cores * (1 - utilisation))
    mix = SiteMix(busy_cores=offered, second_moment_s=2 * offered)
    assert wait_at(mix.load(cores), cores).mean_s == pytest.approx(erlang_s, rel=0.1, abs=0.03)


def test_an_idle_site_does_not_wait_and_an_overloaded_one_never_ends() -> None:
    assert wait_at(total_mix([]).load(2), 2).mean_s == 0
    assert wait_at(SiteLoad(utilisation=1.0, residual_s=0.1), 1).mean_s == math.inf
