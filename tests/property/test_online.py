"""Whatever happens to the matcher that is always on: feasible, no worse after a round, and nobody starves.

That must not depend on how good the matches are, so they are cut short here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from compass_coordinator.matcher import REFUSED
from compass_coordinator.matcher.online import Matcher

RESOURCES = 2
SHARE = 0.25
PATIENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a query was admitted with."""

    values: NDArray[np.float64]
    demands: NDArray[np.float64]
    costs: NDArray[np.float64]
    weight: float


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    """Small numbers, so that ties and exactly filled capacities are common."""
    plans = draw(st.integers(0, 4))

    def several(numbers: st.SearchStrategy[float], count: int) -> NDArray[np.float64]:
        return np.array(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=np.float64)

    return Offer(
        values=several(st.sampled_from([-np.inf, 0.0, 1.0, 2.0, 2.1, 5.0]), plans),
        demands=several(st.sampled_from([0.0, 0.1, 0.3, 1.0, 4.0]), plans * RESOURCES).reshape(
            plans, RESOURCES
        ),
        costs=several(st.sampled_from([0.0, 1.0, 1.1, 3.0]), plans),
        weight=draw(st.sampled_from([1.0, 0.5, 3.0])),
    )


def capacities() -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from([0.0, 0.3, 0.9, 1.0, 2.0, 5.0]), min_size=RESOURCES, max_size=RESOURCES)


class OnlineMachine(RuleBasedStateMachine):
    """Drives a matcher beside a plain model of who is there and how often it was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.capacities = [1.0] * RESOURCES
        self.matcher = Matcher(self.capacities, switching_share=SHARE, patience_rounds=PATIENCE)
        self.offers: dict[str, Offer] = {}
        self.waited: dict[str, int] = {}
        self.count = 0

    @rule(offer=offers())
    def admit(self, offer: Offer) -> None:
        name = f"q{self.count}"
        self.count += 1
        admission = self.matcher.admit(name, offer.values, offer.demands, offer.costs, weight=offer.weight)
        assert (admission.plan == REFUSED) == (admission.refusal is not None)
        assert admission.plan == self.matcher.choice(name)
        self.offers[name] = offer
        self.waited[name] = 0

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.offers)))
        self.matcher.withdraw(name)
        del self.offers[name], self.waited[name]
        assert name not in self.matcher

    @rule(changed=capacities())
    def set_capacities(self, changed: list[float]) -> None:
        before = self.matcher.choices
        moved = self.matcher.set_capacities(changed)
        self.capacities = changed
        assert self.matcher.choices == {**before, **moved}

    @rule()
    def rematch(self) -> None:
        before = self.matcher.choices
        waiting = dict(self.waited)
        round_ = self.matcher.rematch(time_limit_s=0.0)
        after = self.matcher.choices
        assert after == {**before, **round_.moved}
        assert all(before[name] != plan for name, plan in round_.moved.items())
        assert round_.served == sum(plan != REFUSED for plan in after.values())
        assert np.isclose(round_.value, sum(self.value(name, plan) for name, plan in after.items()))
        assert round_.value <= round_.bound + 1e-9
        assert all(waiting[name] >= PATIENCE for name in round_.overdue)
        if not round_.overdue:
            self.check_no_worse(before, after)
        for name, plan in after.items():
            self.waited[name] = 0 if plan != REFUSED else waiting[name] + 1

    def check_no_worse(self, before: dict[str, int], after: dict[str, int]) -> None:
        """The gain is at least what was switched for it, moves for cost aside."""
        gain = sum(self.aged(name, after[name]) - self.aged(name, before[name]) for name in before)
        moved = [name for name in before if before[name] not in (REFUSED, after[name])]
        due = sum(self.aged(name, before[name]) for name in moved if not self.cheaper(name, before, after))
        assert gain >= SHARE * due - 1e-9

    def cheaper(self, name: str, before: dict[str, int], after: dict[str, int]) -> bool:
        if after[name] == REFUSED or self.value(name, after[name]) < self.value(name, before[name]):
            return False
        costs = self.offers[name].costs
        return bool(costs[before[name]] - costs[after[name]] > SHARE * costs[before[name]])

    def value(self, name: str, plan: int) -> float:
        offer = self.offers[name]
        return 0.0 if plan == REFUSED else float(offer.values[plan] * offer.weight)

    def aged(self, name: str, plan: int) -> float:
        return self.value(name, plan) * (1 + min(self.waited[name], PATIENCE) / PATIENCE)

    @invariant()
    def is_feasible(self) -> None:
        choices = self.matcher.choices
        assert set(choices) == set(self.offers)
        assert len(self.matcher) == len(choices)
        used = np.zeros(RESOURCES)
        for name, plan in choices.items():
            if plan != REFUSED:
                assert self.offers[name].values[plan] > 0
                used += self.offers[name].demands[plan]
        assert np.allclose(self.matcher.used, used)
        assert (used <= np.array(self.capacities) * (1 + 2e-9)).all()


TestOnline = OnlineMachine.TestCase
TestOnline.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@settings(max_examples=10, deadline=None)
@given(present=st.lists(offers(), min_size=2, max_size=6), patience=st.integers(1, 4))
def test_nobody_that_fits_is_refused_for_long(present: list[Offer], patience: int) -> None:
    capacity = np.ones(RESOURCES)
    matcher = Matcher(capacity, patience_rounds=patience)
    for number, offer in enumerate(present):
        matcher.admit(str(number), offer.values, offer.demands, offer.costs, weight=offer.weight)
    fits = [bool(((offer.values > 0) & (offer.demands <= capacity).all(axis=1)).any()) for offer in present]
    in_a_row = np.zeros(len(present), dtype=int)
    for _ in range(4 * (patience + len(present))):
        matcher.rematch(time_limit_s=0.0)
        refused = np.array([matcher.choice(str(number)) == REFUSED for number in range(len(present))])
        in_a_row = np.where(refused & fits, in_a_row + 1, 0)
        assert in_a_row.max() <= patience + len(present) - 1
