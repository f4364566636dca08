"""Which plan each query gets, what could still change that, and what to measure for it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compass_coordinator.profiler.selective import decisions as module
from compass_coordinator.profiler.selective.decisions import (
    REFUSED,
    SAMPLES,
    TOLERANCE,
    Decisions,
    Stakes,
    stakes,
)
from compass_coordinator.profiler.selective.operator_times import OperatorTimes
from compass_coordinator.profiler.selective.policy import (
    BLOCK,
    Action,
    Prices,
    _left,
    _still_wrong,
    next_actions,
)
from compass_coordinator.profiler.selective.score_model import Belief
from compass_coordinator.profiler.selective.space import Floats, space_of
from support.replayed import PAGES

SPACE = space_of(PAGES)
VARIANTS = len(SPACE.variants)


def _rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def _decisions(seed: int, queries: int = 40, configs: int = 7) -> Decisions:
    """Few different costs, so that there are ties, and some that cannot be paid."""
    rng = _rng(seed)
    costs = rng.integers(1, 5, size=(queries, configs)).astype(np.float64)
    costs[rng.random(costs.shape) < 0.3] = np.inf
    costs[0] = np.inf
    return Decisions(
        costs=costs, needed=rng.uniform(0, 1, queries).round(1), weights=rng.uniform(0.5, 1.5, queries)
    )


def _chosen(decisions: Decisions, accuracy: Floats) -> list[int]:
    found = []
    for costs, needed in zip(decisions.costs, decisions.needed, strict=True):
        best = REFUSED
        for config, cost in enumerate(costs):
            if accuracy[config] >= needed and cost < (np.inf if best == REFUSED else costs[best]):
                best = config
        found.append(best)
    return found


def _belief(seed: int, configs: int = 7) -> Belief:
    rng = _rng(seed)
    root = 0.1 * rng.standard_normal((configs, configs))
    covariance = root @ root.T
    covariance[0] = covariance[:, 0] = 0.0
    ones = np.ones(configs)
    return Belief(mean=rng.uniform(0.2, 0.9, configs), covariance=covariance, input_var=ones, next_var=ones)


@pytest.mark.parametrize("seed", range(8))
def test_the_cheapest_that_is_accurate_enough_is_chosen(seed: int) -> None:
    decisions, accuracy = _decisions(seed), _rng(seed + 50).uniform(0, 1, 7).round(1)
    found = decisions.chosen(accuracy)
    assert found.tolist() == _chosen(decisions, accuracy)
    assert found[0] == REFUSED
    assert len(set(found.tolist())) > 2


def test_nothing_can_be_paid() -> None:
    decisions = Decisions(costs=np.full((2, 3), np.inf), needed=np.zeros(2), weights=np.ones(2))
    assert decisions.chosen(np.ones(3)).tolist() == [REFUSED, REFUSED]
    found = stakes(decisions, _belief(0, 3), np.zeros(3), np.ones(3), _rng())
    assert found.wrong == 0.0
    assert not found.blame.any()


@pytest.mark.parametrize("seed", range(5))
def test_stakes_are_what_a_loop_over_draws_finds(seed: int) -> None:
    decisions, belief = _decisions(seed), _belief(seed)
    low, high = np.maximum(0, belief.mean - 0.15), np.minimum(1, belief.mean + 0.2)
    found = stakes(decisions, belief, low, high, _rng(9))
    chosen = _chosen(decisions, np.clip(belief.mean, low, high))
    draws = module._draws(belief, _rng(9), SAMPLES)
    blame, total = np.zeros(7), decisions.weights.sum() * len(draws)
    for draw in draws:
        accuracy = np.clip(draw, low, high)
        best = _chosen(decisions, accuracy)
        for query, (mine, right) in enumerate(zip(chosen, best, strict=True)):
            costs, weight = decisions.costs[query], decisions.weights[query]
            if mine != REFUSED and accuracy[mine] < decisions.needed[query]:
                blame[mine] += weight / total
            elif right != REFUSED and (mine == REFUSED or costs[right] * (1 + TOLERANCE) < costs[mine]):
                blame[right] += weight / total
    assert found.chosen.tolist() == chosen
    assert found.blame == pytest.approx(blame)
    assert found.wrong == pytest.approx(found.blame.sum())
    assert found.wrong > 0.02


def test_draws_are_of_the_belief_and_leave_what_is_known() -> None:
    belief = _belief(1)
    draws = np.concatenate([module._draws(belief, _rng(seed), SAMPLES) for seed in range(200)])
    assert (draws[:, 0] == belief.mean[0]).all()
    assert draws.mean(axis=0) == pytest.approx(belief.mean, abs=1e-9), "in opposite pairs"
    assert np.cov(draws.T) == pytest.approx(belief.covariance, abs=0.1 * belief.covariance.max())


def test_nothing_is_at_stake_once_everything_is_known() -> None:
    belief = replace(_belief(2), covariance=np.zeros((7, 7)))
    decisions = _decisions(2)
    found = stakes(decisions, belief, np.zeros(7), np.ones(7), _rng())
    assert found.wrong == 0.0
    assert not found.blame.any()
    assert found.chosen.tolist() == _chosen(decisions, belief.mean)


# --- prices ---------------------------------------------------------------------------------------


def _times(mean_s: Floats) -> OperatorTimes:
    zeros = np.zeros(len(mean_s))
    return OperatorTimes(
        mean_s=mean_s,
        var_s2=zeros,
        p95_s=mean_s,
        count=np.zeros(len(mean_s), dtype=np.intp),
        output_mean_bytes=zeros,
        output_var_bytes2=zeros,
        items_mean=zeros,
        items_var=zeros,
        item_s=zeros,
    )


@pytest.mark.parametrize("reuse", [True, False])
def test_a_price_is_that_of_results_which_are_not_there_yet(reuse: bool) -> None:
    rng = _rng(0)
    mean_s, ran = rng.uniform(0.1, 1.0, VARIANTS), rng.uniform(0.5, 1.0, VARIANTS)
    seen = rng.choice([0, 0, 5, 9, 20], size=len(SPACE))
    prices = Prices.of(SPACE, seen, _times(mean_s), reuse=reuse, ran=ran)
    there = {
        (node, place)
        for config, count in enumerate(seen)
        for node in SPACE.nodes[config]
        for place in range(count if reuse else 0)
    }
    for config, upto in itertools.product(range(0, len(SPACE), 5), (10, 20)):
        start = int(seen[config])
        missing = [
            node for node in SPACE.nodes[config] for place in range(start, upto) if (node, place) not in there
        ]
        variants = SPACE.node_variant[np.array(missing, dtype=np.intp)]
        expected = float((mean_s * ran)[variants].sum())
        assert prices.price(config, start, max(upto, start)) == pytest.approx(expected)


def test_variants_that_never_ran_are_as_dear_as_the_dearest() -> None:
    mean_s = np.linspace(0.1, 0.5, VARIANTS)
    mean_s[0] = np.nan
    prices = Prices.of(
        SPACE, np.zeros(len(SPACE), dtype=np.intp), _times(mean_s), reuse=True, ran=np.full(VARIANTS, 0.5)
    )
    assert prices.node_s[SPACE.node_variant == 0] == pytest.approx(0.5)
    assert prices.node_s[SPACE.node_variant == 1] == pytest.approx(mean_s[1] / 2)
    unknown = Prices.of(
        SPACE,
        np.zeros(len(SPACE), dtype=np.intp),
        _times(np.full(VARIANTS, np.nan)),
        reuse=True,
        ran=np.ones(VARIANTS),
    )
    assert (unknown.node_s == 1.0).all()


# --- what to measure ------------------------------------------------------------------------------


def _next(
    decisions: Decisions, belief: Belief, seen: list[int], *, partly: bool = True
) -> tuple[int, int] | None:
    """Config and inputs; of the first configs of ``PAGES`` only: others can serve nobody."""
    counts = np.full(len(SPACE), 100)
    counts[: len(seen)] = seen
    found = stakes(decisions, belief, np.zeros(len(SPACE)), np.ones(len(SPACE)), _rng())
    prices = Prices.of(SPACE, counts, _times(np.ones(VARIANTS)), reuse=False, ran=np.ones(VARIANTS))
    return _best(next_actions(decisions, belief, found, counts, prices, inputs=100, partly=partly))


def _best(actions: list[Action]) -> tuple[int, int] | None:
    return (actions[0].config, actions[0].upto) if actions else None


def _case(means: list[float], spreads: list[float], needed: list[float]) -> tuple[Decisions, Belief]:
    """Dearer from config to config."""
    rest = len(SPACE) - len(means)
    costs = np.array([1.0 + at for at in range(len(means))] + [np.inf] * rest)
    decisions = Decisions(
        costs=np.tile(costs, (len(needed), 1)), needed=np.array(needed), weights=np.ones(len(needed))
    )
    covariance = np.diag(np.array(spreads + [0.0] * rest) ** 2)
    ones = np.ones(len(SPACE))
    return decisions, Belief(
        mean=np.array(means + [0.5] * rest), covariance=covariance, input_var=ones, next_var=ones
    )


def test_the_config_that_decides_is_measured() -> None:
    """Only the second one is near a threshold; the first is as uncertain, and far from any."""
    decisions, belief = _case([0.3, 0.79, 0.95], [0.02, 0.02, 0.02], [0.8, 0.81])
    found = _next(decisions, belief, [0, 0, 0])
    assert found is not None
    assert found[0] == 1


def test_few_inputs_where_the_first_tell_what_all_would() -> None:
    """Nothing was measured of it, and what others scored leaves little to an input's own chance."""
    decisions, belief = _case([0.5, 0.9], [0.1, 0.0], [0.7])
    known = replace(belief, next_var=np.full(len(SPACE), 1e-4))
    assert _next(decisions, known, [0, 100]) == (0, BLOCK)


@pytest.mark.parametrize(
    ("start", "upto", "own"), [(0, 20, 0.04), (30, 50, 0.3), (30, 90, 0.001), (0, 100, 0.1)]
)
def test_the_spread_that_a_part_leaves_is_that_of_a_simulation(start: int, upto: int, own: float) -> None:
    rng = _rng(2)
    common = 0.1 * rng.standard_normal((20_000, 1))
    scores = common + np.sqrt(own) * rng.standard_normal((20_000, 100 - start))
    whole, part = scores.sum(axis=1) / 100, scores[:, : upto - start].mean(axis=1)
    _, belief = _case([0.5], [float(whole.std())], [0.7])
    belief = replace(belief, next_var=np.full(len(SPACE), own))
    left = np.sqrt(1 - np.corrcoef(whole, part)[0, 1] ** 2) if upto < 100 else 0.0
    assert _left(belief, 0, start, upto, 100) == pytest.approx(left, abs=0.02)


def test_measuring_goes_on_where_it_stopped_and_ends_with_the_set() -> None:
    decisions, belief = _case([0.69, 0.9], [0.1, 0.0], [0.7])
    for seen in (0, 1, 50, 85, 99):
        found = _next(decisions, belief, [seen, 100])
        assert found is not None
        assert seen < found[1] <= 100
    assert _next(decisions, belief, [30, 100], partly=False) == (0, 100)


def test_nothing_to_measure_where_nothing_is_at_stake_or_everything_was_measured() -> None:
    assert _next(*_case([0.5, 0.9], [0.01, 0.01], [0.7]), [0, 0]) is None, "23 standard deviations away"
    decisions, belief = _case([0.69, 0.9], [0.1, 0.1], [0.7])
    assert _next(decisions, belief, [100, 100]) is None
    unblamed = Stakes(wrong=0.0, blame=np.zeros(len(SPACE)), chosen=np.array([1]))
    seen = np.zeros(len(SPACE), dtype=np.intp)
    prices = Prices.of(SPACE, seen, _times(np.ones(VARIANTS)), reuse=True, ran=np.ones(VARIANTS))
    assert next_actions(decisions, belief, unblamed, seen, prices, inputs=100, partly=True) == []


def test_what_correlates_with_what_decides_is_measured_if_that_cannot_be_cheaper() -> None:
    """The config at stake was measured whole but for its twin, which tells as much and costs a third."""
    decisions, belief = _case([0.5, 0.7, 0.9], [0.05, 0.05, 0.0], [0.7])
    covariance = belief.covariance.copy()
    covariance[0, 1] = covariance[1, 0] = 0.999 * 0.05**2
    belief = replace(belief, covariance=covariance)
    found = stakes(decisions, belief, np.zeros(len(SPACE)), np.ones(len(SPACE)), _rng())
    seen = np.full(len(SPACE), 100)
    seen[:2] = 0
    prices = Prices.of(SPACE, seen, _times(np.ones(VARIANTS)), reuse=False, ran=np.ones(VARIANTS))
    cheap = replace(
        prices, node_s=np.where(np.isin(np.arange(len(prices.node_s)), SPACE.nodes[0]), 0.01, 9.0)
    )
    actions = next_actions(decisions, belief, found, seen, cheap, inputs=100, partly=False)
    assert _best(actions) == (0, 100)
    apart = replace(belief, covariance=np.diag(np.diag(covariance)))
    actions = next_actions(decisions, apart, found, seen, cheap, inputs=100, partly=False)
    assert _best(actions) == (1, 100)
    assert [action.price_s for action in actions] == [cheap.price(at.config, 0, at.upto) for at in actions]


def test_the_chance_to_be_wrong_that_is_left() -> None:
    gaps = np.array([0.0, 0.5, 2.0])
    assert _still_wrong(gaps, 1.0) == pytest.approx(1.0)
    assert _still_wrong(gaps, 0.0) == 0.0
    assert _still_wrong(np.zeros(0), 0.4) == 0.4
    assert _still_wrong(np.array([80.0]), 0.4) == 0.4, "no chance that could be told from 0"
    shares = [_still_wrong(gaps, left) for left in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert shares == sorted(shares)
    assert _still_wrong(np.array([0.1]), 0.5) < _still_wrong(np.array([3.0]), 0.5), "hardly turned by a part"


@pytest.mark.parametrize("left", [0.45, 0.7, 0.95])
def test_the_chance_to_be_wrong_is_that_of_a_simulation(left: float) -> None:
    rng = _rng(1)
    gaps = np.array([0.2, 1.0])
    known, rest = rng.standard_normal((2, 200_000, 1)) * np.array([[[np.sqrt(1 - left**2)]], [[left]]])
    wrong = (gaps + known + rest < 0) != (gaps + known < 0)
    before = gaps + known + rest < 0
    assert _still_wrong(gaps, left) == pytest.approx(wrong.mean() / before.mean(), rel=0.08)
