"""The worked example of docs/estimates.md: every sum of it, and that the code comes to the same."""

from __future__ import annotations

import math

import pytest

from compass_shared.evaluate import estimate_at_load
from compass_shared.pipeline import REQUEST, Operator, Pipeline
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Prices, Site, Tier
from support.markdown import blocks, page, tables, words


def _number(cell: str) -> float:
    """A quantity in SI units; milliseconds are the only others."""
    value, _, unit = cell.partition(" ")
    return float(value) * (1e-3 if unit == "ms" else 1)


def _example() -> Problem:
    """The worked example, as its tables state it."""
    by_heading = {rows[0][0]: rows for rows in tables(page("estimates.md"))}
    timed, linked, sited = by_heading["shrink"], by_heading["phone to cloud"], by_heading["phone, tablet"]
    operators = {
        name: OperatorProfile(
            variant=name,
            mean_s=_number(mean),
            var_s2=_number(sd) ** 2,
            p95_s=0.0,
            count=1,
            output_mean_bytes=_number(size),
            output_var_bytes2=_number(size_sd) ** 2,
        )
        for name, _, mean, sd, size, size_sd in timed
    }
    sites = {
        name: Site(
            name=name,
            tier=Tier.CLOUD if name == "cloud" else Tier.DEVICE,
            cores=_number(cores),
            prices=Prices(core_s_usd=_number(core_s), egress_byte_usd=_number(byte)),
        )
        for names, cores, core_s, byte in sited
        for name in names.split(", ")
    }
    two_ways = {
        tuple(way.replace("phone", device).split(" to ")): tuple(map(_number, figures))
        for way, *figures in linked
        for device in ("phone", "tablet")
    }
    chain = [("shrink", REQUEST), ("find", "shrink"), ("read", "find")]
    return Problem(
        pipelines={
            "scan": Pipeline(
                name="scan",
                version="1",
                description="",
                operators=tuple(Operator(name=n, inputs=(up,), runtime="python") for n, up in chain),
                output="read",
            )
        },
        sites=sites,
        links={
            (source, target): Link(
                source=source,
                target=target,
                rtt_s=rtt_s,
                rtt_var_s2=rtt_sd_s**2,
                bandwidth_bps=bandwidth_bps,
                bandwidth_rel_sd=rel_sd,
            )
            for (source, target), (rtt_s, rtt_sd_s, bandwidth_bps, rel_sd) in two_ways.items()
        },
        profiles={
            (name, "scan"): SiteProfile(
                site=name, pipeline="scan", digest="", operators=operators, request_mean_bytes=0.0
            )
            for name in sites
        },
        accuracy={
            "scan": AccuracyTable(
                pipeline="scan",
                metric="",
                split="",
                configs={"shrink;find;read": Accuracy(mean=1.0, standard_error=0.0, count=1)},
            )
        },
        queries=tuple(
            Query(
                name=origin,
                origin=origin,
                pipeline="scan",
                rate_hz=rate_hz,
                slo=Slo(latency_p95_s=1.0, accuracy=0.0, cost_usd_per_1000=1.0),
            )
            for origin, rate_hz in (("phone", 2.0), ("tablet", 8.0))
        ),
    )


def test_the_worked_example() -> None:
    (sums,) = blocks(page("estimates.md"), "sums")
    said: dict[str, float] = {}
    for line in filter(None, sums.splitlines()):
        name, formula, result = (part.strip() for part in line.split(" = "))
        said[name] = float(result)
        value = eval(formula, {"__builtins__": {}, "sqrt": math.sqrt})
        assert value == pytest.approx(said[name], rel=2e-3), line
    plans = {
        origin: Plan(config={}, placement={"shrink": origin, "find": "cloud", "read": "cloud"})
        for origin in ("phone", "tablet")
    }
    problem = _example()
    estimate = estimate_at_load(problem, plans)["phone"]
    assert estimate.latency_mean_s == pytest.approx(said["latency: mean"], rel=1e-3)
    assert estimate.latency_var_s2 == pytest.approx(said["latency: variance"], rel=2e-3)
    assert estimate.latency_p95_s == pytest.approx(said["latency: p95"], rel=1e-3)
    assert estimate.cost_usd_per_1000 == pytest.approx(said["cost of 1,000"], rel=1e-3)
    demand = {name.removeprefix("demand: "): value for name, value in said.items() if "demand" in name}
    assert estimate.demand == pytest.approx(demand)
    assert f"of the {problem.capacities()['cores@cloud']:.1f} cores" in words("estimates.md")
    assert f"So: {1e3 * estimate.latency_p95_s:.0f} ms at p95" in words("estimates.md")
