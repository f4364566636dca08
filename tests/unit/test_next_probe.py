"""What is worth a probe: what may change a decision, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist

import pytest

from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_coordinator.profiler.latency.completion import Prediction
from compass_coordinator.profiler.latency.next_probe import MOST_VARIANTS, Wish, next_probes
from compass_shared.pipeline import REQUEST, variant_key
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Prices, Site, Tier
from support.agents import pipeline_of, python_operator

PIPELINE = pipeline_of("p", python_operator("find", REQUEST, knobs={"side": (1, 2, 3, 4, 5)}))
CONFIGS = list(PIPELINE.configs())
ACCURACY = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.8, 5: 0.9}
NEVER_S = 100.0
Unsure = Mapping[tuple[str, int], float]
"""(site, side) -> relative sd of a mean that was predicted."""


def key_of(side: int) -> str:
    return variant_key("find", {"side": side})


def problem_of(
    means_s: Mapping[str, Mapping[int, float]], *queries: Query, unsure: Unsure
) -> tuple[Problem, dict[tuple[str, str], dict[str, Prediction]]]:
    """Sites with these mean times, nearly without spread; the phone is free, each site after it dearer."""
    predictions: dict[tuple[str, str], dict[str, Prediction]] = {}
    profiles = {}
    for site, known in means_s.items():
        operators = {}
        for side, mean_s in known.items():
            rel_sd = unsure.get((site, side))
            var_s2 = 1e-8
            if rel_sd is not None:
                predictions.setdefault((site, "p"), {})[key_of(side)] = Prediction(
                    rel_sd=rel_sd, var_s2=var_s2
                )
                var_s2 += (rel_sd * mean_s) ** 2
            operators[key_of(side)] = OperatorProfile(
                variant=key_of(side),
                mean_s=mean_s,
                var_s2=var_s2,
                p95_s=mean_s,
                count=20 if rel_sd is None else 0,
                output_mean_bytes=1.0,
            )
        profiles[site, "p"] = SiteProfile(
            site=site, pipeline="p", digest=PIPELINE.digest, operators=operators, request_mean_bytes=1.0
        )
    names = list(means_s)
    problem = Problem(
        pipelines={"p": PIPELINE},
        sites={
            name: Site(
                name=name,
                tier=Tier.EDGE if at else Tier.DEVICE,
                cores=64.0,
                prices=Prices(core_s_usd=1e-3 * at),
            )
            for at, name in enumerate(names)
        },
        links={
            (a, b): Link(source=a, target=b, rtt_s=0.0, bandwidth_bps=1e9)
            for a in names
            for b in names
            if a != b
        },
        profiles=profiles,
        accuracy={
            "p": AccuracyTable(
                pipeline="p",
                metric="m",
                split="s",
                configs={
                    PIPELINE.config_key(config): Accuracy(mean=mean, standard_error=0.0, count=1)
                    for config, mean in zip(CONFIGS, ACCURACY.values(), strict=True)
                },
            )
        },
        queries=queries,
    )
    return problem, predictions


def query_of(name: str = "q", *, latency_s: float = 1.0, side: int = 5, weight: float = 1.0) -> Query:
    """A query that only sides from this one on are accurate enough for."""
    slo = Slo(latency_p95_s=latency_s, accuracy=ACCURACY[side], cost_usd_per_1000=100.0)
    return Query(name=name, origin="phone", pipeline="p", rate_hz=1e-3, slo=slo, weight=weight)


def wishes_of(
    means_s: Mapping[str, Mapping[int, float]], *queries: Query, unsure: Unsure
) -> tuple[tuple[Wish, ...], FleetPlan]:
    problem, predictions = problem_of(means_s, *queries, unsure=unsure)
    plan = plan_fleet(problem)
    return next_probes(problem, plan, predictions), plan


def test_a_refused_query_that_a_probe_may_save_is_worth_one() -> None:
    (wish,), plan = wishes_of({"phone": {5: 0.9}}, query_of(), unsure={("phone", 5): 0.2})
    assert plan.plans == {}
    assert (wish.site, wish.pipeline, wish.variants) == ("phone", "p", (key_of(5),))
    assert wish.stake == pytest.approx(0.5 * (1 + math.erf((1 - 0.9) / 0.18 / math.sqrt(2))), rel=0.01)


def test_a_cheaper_plan_that_was_thought_too_slow_is_worth_a_probe() -> None:
    known = {"phone": {5: 0.9}, "edge": {5: 0.1}}
    (wish,), plan = wishes_of(known, query_of(), unsure={("phone", 5): 0.2})
    assert plan.plans["q"].placement == {"find": "edge"}
    assert wish.site == "phone"


def test_a_dearer_plan_that_may_be_cheaper_is_worth_a_probe_of_either() -> None:
    known = {"phone": {5: NEVER_S}, "edge": {4: 0.2, 5: 0.21}}
    (wish,), plan = wishes_of(known, query_of(side=4), unsure={("edge", 4): 0.1, ("edge", 5): 0.01})
    assert plan.plans["q"].config == {"find": {"side": 4}}
    assert wish.site == "edge"
    assert wish.variants == (key_of(4), key_of(5)), "the less certain one teaches more"
    difference, sd = 0.21 - 0.99 * 0.2, math.hypot(0.02, 0.0021)
    assert wish.stake == pytest.approx(0.5 * math.erfc(difference / sd / math.sqrt(2)), rel=0.05)


def test_a_chosen_plan_that_may_be_too_slow_is_worth_a_probe() -> None:
    mean_s = 0.99 / (1 + 1.645 * 0.1)
    (wish,), plan = wishes_of({"phone": {5: mean_s}}, query_of(), unsure={("phone", 5): 0.1})
    assert set(plan.plans) == {"q"}
    assert wish.stake == pytest.approx(0.04, abs=0.02), "its p95 has that in it already"


@pytest.mark.parametrize(
    ("mean_s", "unsure"),
    [
        (0.3, {("phone", 5): 0.1}),
        (5.0, {("phone", 5): 0.1}),
        (0.9, {}),
        (0.9, {("phone", 5): 1e-6}),
        (0.9, {("phone", 1): 0.5}),
    ],
    ids=["clearly fast", "clearly slow", "measured", "all but sure", "not accurate enough anyway"],
)
def test_what_changes_no_decision_is_not_worth_a_probe(mean_s: float, unsure: Unsure) -> None:
    wishes, _ = wishes_of({"phone": {1: 0.9, 5: mean_s}}, query_of(), unsure=unsure)
    assert wishes == ()


def test_the_heavier_query_comes_first_and_what_is_long_to_measure_later() -> None:
    def order(weight: float, slow_s: float) -> list[str]:
        known = {"phone": {5: NEVER_S}, "edge": {5: 0.9}, "cloud": {4: slow_s, 5: NEVER_S}}
        problem, predictions = problem_of(
            known,
            replace(query_of("one"), weight=weight),
            query_of("other", side=4, latency_s=slow_s / 0.9),
            unsure={("edge", 5): 0.2, ("cloud", 4): 0.2},
        )
        reachable = {"one": ("edge",), "other": ("cloud",)}
        problem = replace(problem, reachable=reachable)
        return [wish.site for wish in next_probes(problem, plan_fleet(problem), predictions)]

    assert order(1.0, 0.9) == ["cloud", "edge"], "equal, by name"
    assert order(2.0, 0.9) == ["edge", "cloud"]
    assert order(1.0, 9.0) == ["edge", "cloud"]


def test_at_most_a_few_variants_are_asked_of_a_site_and_little_at_stake_is_nothing() -> None:
    known = {"phone": {side: 0.9 + 0.01 * side for side in ACCURACY}}
    queries = [query_of(f"q{side}", side=side) for side in ACCURACY]
    unsure = {("phone", side): 0.2 for side in ACCURACY}
    problem, predictions = problem_of(known, *queries, unsure=unsure)
    plan = plan_fleet(problem)
    (wish,) = next_probes(problem, plan, predictions)
    assert len(wish.variants) <= MOST_VARIANTS
    assert next_probes(problem, plan, predictions, delta=1.0) == ()


def test_its_probability_is_the_share_of_worlds_in_which_the_decision_changes() -> None:
    known = {"phone": {5: 0.95}, "edge": {5: 0.1}}
    (wish,), _ = wishes_of(known, query_of(), unsure={("phone", 5): 0.15})
    worlds = [0.95 * (1 + 0.15 * NormalDist().inv_cdf((at + 0.5) / 8)) for at in range(8)]
    changed = 0
    for true_s in worlds:
        problem, _ = problem_of({**known, "phone": {5: true_s}}, query_of(), unsure={})
        changed += plan_fleet(problem).plans["q"].placement == {"find": "phone"}
    assert changed / len(worlds) == pytest.approx(wish.stake, abs=1 / len(worlds))
