"""The matcher that is always on: admission by bid price, capacities that change, switching and ageing."""

from __future__ import annotations

import numpy as np
import pytest

from compass_coordinator.matcher import REFUSED
from compass_coordinator.matcher.online import Matcher, Refusal
from compass_shared.errors import PlanningError

NONE = -np.inf


def test_admits_the_most_valuable_plan_that_fits() -> None:
    matcher = Matcher([1.0])
    admission = matcher.admit("a", [1.0, 3.0, 5.0, NONE], [[0.1], [0.9], [1.1], [0.0]])
    assert (admission.plan, admission.refusal) == (1, None)
    assert admission.reduced_value == 3.0
    assert matcher.choice("a") == 1
    assert matcher.used == pytest.approx([0.9])


def test_the_cheapest_of_equally_good_plans_is_taken() -> None:
    matcher = Matcher([1.0])
    assert matcher.admit("a", [1.0, 1.0, 1.0], np.zeros((3, 1)), [3.0, 1.0, 2.0]).plan == 1


def test_refusals_say_why() -> None:
    matcher = Matcher([1.0, 1.0])
    assert matcher.admit("no plan", [NONE, 0.0], np.zeros((2, 2))).refusal is Refusal.NO_PLAN
    assert matcher.admit("too large", [9.0], [[2.0, 0.0]]).refusal is Refusal.NO_PLAN
    assert matcher.admit("first", [1.0], [[0.8, 0.0]]).refusal is None
    assert matcher.admit("second", [1.0], [[0.8, 0.0]]).refusal is Refusal.ROOM
    assert matcher.admit("elsewhere", [1.0], [[0.0, 0.8]]).refusal is None
    assert len(matcher) == 5


def test_prices_keep_room_for_what_is_worth_more() -> None:
    matcher = Matcher([1.0])
    for number in range(20):
        matcher.admit(f"q{number}", [10.0 + number], [[0.1]])
    matcher.rematch()
    assert 19.0 <= matcher.prices[0] * 0.1 <= 20.0
    matcher.withdraw("q19")
    poor = matcher.admit("poor", [1.0], [[0.1]])
    assert poor.refusal is Refusal.PRICE
    assert poor.reduced_value == pytest.approx(1.0 - poor.bid_price)
    assert poor.bid_price == pytest.approx(0.9 * 0.1 * matcher.prices[0])
    assert matcher.admit("rich", [30.0], [[0.1]]).refusal is None


def test_prices_fall_as_resources_empty() -> None:
    matcher = Matcher([1.0])
    for number in range(20):
        matcher.admit(f"q{number}", [10.0 + number], [[0.1]])
    matcher.rematch()
    for number in range(20):
        matcher.withdraw(f"q{number}")
    assert matcher.used == pytest.approx([0.0], abs=1e-12)
    assert matcher.admit("poor", [1.0], [[0.1]]).plan == 0


def test_a_resource_nobody_had_used_is_priced_without_a_fault() -> None:
    matcher = Matcher([1.0, 0.0])
    matcher.rematch()
    assert matcher.admit("a", [1.0], [[0.5, 0.0]]).plan == 0
    assert matcher.rematch().value == 1.0
    assert matcher.admit("b", [1.0], [[0.5, 0.1]]).refusal is Refusal.NO_PLAN


def test_a_round_serves_whom_admission_refused() -> None:
    matcher = Matcher([1.0])
    matcher.admit("large", [1.0], [[1.0]])
    for number in range(4):
        assert matcher.admit(f"small{number}", [1.0], [[0.25]]).plan == REFUSED
    round_ = matcher.rematch()
    assert round_.moved == {"large": REFUSED, "small0": 0, "small1": 0, "small2": 0, "small3": 0}
    assert (round_.value, round_.served) == (4.0, 4)
    assert round_.bound >= 4.0
    assert round_.gap == pytest.approx((round_.bound - 4.0) / round_.bound)


def test_plans_stay_unless_the_gain_beats_the_switch() -> None:
    matcher = Matcher([1.0], switching_share=0.2)
    matcher.admit("holds", [1.0], [[1.0]])
    matcher.admit("little more", [1.1], [[1.0]])
    assert matcher.rematch().moved == {}
    matcher.admit("much more", [1.3], [[1.0]])
    round_ = matcher.rematch()
    assert round_.moved == {"holds": REFUSED, "much more": 0}
    assert round_.value == 1.3


def test_a_move_for_cost_must_save_more_than_the_switch() -> None:
    matcher = Matcher([1.0], switching_share=0.2)
    matcher.admit("holds", [1.0, 1.0, 1.0], [[1.0], [0.0], [0.0]], [5.0, 10.0, 9.0])
    matcher.set_capacities([0.5])
    assert matcher.choice("holds") == 2
    matcher.set_capacities([1.0])
    assert matcher.rematch().moved == {"holds": 0}
    matcher.withdraw("holds")
    matcher.admit("holds", [1.0, 1.0], [[1.0], [0.0]], [8.5, 10.0])
    matcher.set_capacities([0.0])
    matcher.set_capacities([1.0])
    assert matcher.rematch().moved == {}


def test_less_capacity_drops_the_least_value_for_its_demand() -> None:
    matcher = Matcher([3.0, 1.0])
    matcher.admit("dear", [5.0], [[1.0, 0.0]])
    matcher.admit("cheap", [1.0], [[1.0, 0.0]])
    matcher.admit("fair", [2.0], [[1.0, 0.0]])
    matcher.admit("elsewhere", [0.1], [[0.0, 1.0]])
    assert matcher.set_capacities([2.0, 1.0]) == {"cheap": REFUSED}
    assert matcher.set_capacities([0.0, 1.0]) == {"dear": REFUSED, "fair": REFUSED}
    assert matcher.choices == {"dear": REFUSED, "cheap": REFUSED, "fair": REFUSED, "elsewhere": 0}


def test_who_is_dropped_takes_what_is_left() -> None:
    matcher = Matcher([1.0, 1.0])
    matcher.admit("a", [2.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])
    assert matcher.set_capacities([0.5, 1.0]) == {"a": 1}


def test_weight_decides_between_equals() -> None:
    matcher = Matcher([1.0])
    matcher.admit("light", [1.0], [[1.0]])
    matcher.admit("heavy", [1.0], [[1.0]], weight=2.0)
    assert matcher.rematch().moved == {"light": REFUSED, "heavy": 0}
    assert matcher.rematch().value == 2.0


def test_equals_take_turns() -> None:
    matcher = Matcher([1.0], patience_rounds=4, switching_share=0.5)
    for name in "abc":
        matcher.admit(name, [1.0], [[1.0]])
    rounds = [matcher.rematch(time_limit_s=0.0) for _ in range(24)]
    assert all(round_.served == 1 for round_ in rounds)
    assert {name for round_ in rounds for name, plan in round_.moved.items() if plan == 0} == {"a", "b", "c"}


def test_the_overdue_are_served_ahead_of_any_value() -> None:
    matcher = Matcher([1.0], patience_rounds=2)
    matcher.admit("mighty", [1000.0], [[1.0]])
    matcher.admit("meek", [1.0], [[0.5]])
    matcher.admit("impossible", [1.0], [[2.0]])
    assert [matcher.rematch().overdue for _ in range(6)] == [(), (), ("meek",), (), (), ("meek",)]


def test_the_overdue_beyond_the_first_get_their_share_only() -> None:
    matcher = Matcher([1.0], patience_rounds=1, overdue_share=0.25)
    matcher.admit("mighty", [1000.0], [[0.5]])
    matcher.admit("mightier", [1000.0], [[0.5]])
    for number in range(8):
        matcher.admit(f"meek{number}", [1.0], [[0.1]])
    assert matcher.rematch().overdue == ()
    assert matcher.rematch().overdue == ("meek0", "meek1")
    assert len(matcher.rematch().overdue) == 2


def test_plans_in_any_number() -> None:
    matcher = Matcher([10.0])
    matcher.admit("none", [], np.zeros((0, 1)))
    matcher.admit("one", [1.0], [[1.0]])
    matcher.admit("many", np.ones(9), np.ones((9, 1)), np.arange(9.0)[::-1])
    assert matcher.choices == {"none": REFUSED, "one": 0, "many": 8}
    assert matcher.rematch().value == 2.0


def test_rows_are_kept_apart_as_queries_come_and_go() -> None:
    matcher = Matcher([1e9])
    for number in range(200):
        matcher.admit(f"q{number}", [1.0] * (1 + number % 3) + [2.0], np.full((2 + number % 3, 1), number))
    for number in range(0, 200, 2):
        matcher.withdraw(f"q{number}")
    assert matcher.used == pytest.approx([sum(range(1, 200, 2))])
    for number in range(1, 199, 2):
        assert matcher.choice(f"q{number}") == 1 + number % 3
        matcher.withdraw(f"q{number}")
    assert list(matcher.choices) == ["q199"]
    assert matcher.used == pytest.approx([199.0])


@pytest.mark.parametrize(
    ("values", "demands", "costs", "weight"),
    [
        ([np.nan], [[0.0]], None, 1.0),
        ([np.inf], [[0.0]], None, 1.0),
        ([1.0], [[-1.0]], None, 1.0),
        ([1.0], [[np.nan]], None, 1.0),
        ([1.0], [[0.0]], [np.inf], 1.0),
        ([1.0], [[0.0, 0.0]], None, 1.0),
        ([1.0], [[0.0]], [1.0, 2.0], 1.0),
        ([[1.0]], [[0.0]], None, 1.0),
        ([1.0], [[0.0]], None, 0.0),
        ([1.0], [[0.0]], None, np.nan),
    ],
)
def test_malformed_queries_are_refused_and_change_nothing(
    values: object, demands: object, costs: object, weight: float
) -> None:
    matcher = Matcher([1.0])
    with pytest.raises(PlanningError):
        matcher.admit("a", values, demands, costs, weight=weight)  # type: ignore[arg-type]
    assert len(matcher) == 0


def test_names_and_capacities_are_checked() -> None:
    matcher = Matcher([1.0])
    matcher.admit("a", [1.0], [[1.0]])
    with pytest.raises(PlanningError, match="withdraw it"):
        matcher.admit("a", [1.0], [[1.0]])
    with pytest.raises(PlanningError, match="'b'"):
        matcher.withdraw("b")
    for wrong in ([-1.0], [np.nan], [1.0, 1.0], 1.0):
        with pytest.raises(PlanningError):
            matcher.set_capacities(wrong)
    assert matcher.choices == {"a": 0}
    for arguments in ({"patience_rounds": 0}, {"switching_share": -0.1}, {"overdue_share": 1.1}):
        with pytest.raises(PlanningError):
            Matcher([1.0], **arguments)
