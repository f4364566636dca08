"""The matcher's benchmark: cases are what they are called, rivals answer, processes end."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"matching.{name}")


@pytest.fixture(scope="module", autouse=True)
def _bench_on_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


def _made(kind: str, queries: int = 40, level: float = 0.5, seed: int = 0) -> Any:
    return _module("cases").make(kind, queries, 4, 12 if kind == "edge" else 3, level=level, seed=seed)


@pytest.mark.parametrize("kind", ["random", "correlated", "subset-sum", "fleet", "edge"])
def test_capacities_are_a_share_of_what_the_favourites_need(kind: str) -> None:
    case = _made(kind, queries=200, level=0.2)
    favourite = np.array(
        [
            min(range(4), key=lambda plan: (-case.values[query, plan], case.costs[query, plan]))
            for query in range(200)
        ]
    )
    used = case.used(favourite)
    needed = used > 0
    np.testing.assert_allclose(case.capacities[needed], 0.2 * used[needed])
    assert (case.capacities > 0).all()
    with pytest.raises(ValueError, match="overdraws"):
        case.value_of(favourite)


@pytest.mark.parametrize("kind", ["random", "edge"])
def test_a_case_is_made_again_by_its_recipe(kind: str) -> None:
    case = _made(kind, seed=3)
    again = _module("cases").make(**case.recipe)
    for name in ("values", "amounts", "capacities", "costs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(case, name))
    assert (_made(kind, seed=4).values != case.values).any() or kind == "edge"


def test_rows_are_the_demands_as_shares_of_the_capacities() -> None:
    for case in (_made("random"), _made("edge")):
        choice = np.random.default_rng(0).integers(4, size=40)
        columns = np.arange(40) * 4 + choice
        shares = np.asarray(case.rows().tocsc()[:, columns].sum(axis=1)).ravel()
        np.testing.assert_allclose(shares * case.capacities, case.used(choice))


def test_small_hard_cases_differ_in_kind_level_and_shape() -> None:
    cases = list(_module("cases").small_hard(12))
    assert len({case.name for case in cases}) == 12
    for case in cases:
        queries, plans, resources = case.shape
        assert min(queries / 20, plans / 4, resources / 10) >= 1
        assert queries <= 60
        assert plans <= 10
        assert resources <= 40


def test_rivals_bracket_the_matcher() -> None:
    rivals, ours = _module("rivals"), _module("ours")
    for case in (_made("correlated", queries=8), _made("edge", queries=10)):
        exact, linear = rivals.exact(case, 20.0), rivals.lp(case, 20.0)
        result = ours.matched(case)
        ours.check(case, result)
        assert rivals.greedy(case, 20.0).value <= exact.value * (1 + 1e-6)
        assert rivals.pop(case, 20.0).value <= exact.value * (1 + 1e-6)
        assert result.value <= exact.value * (1 + 1e-6)
        assert exact.bound <= linear.bound * (1 + 1e-6)
        assert result.value <= linear.bound * (1 + 1e-9) <= result.bound * (1 + 1e-6)


def test_the_check_of_our_results_can_fail() -> None:
    ours, case = _module("ours"), _made("fleet", queries=10)
    result = ours.matched(case)
    with pytest.raises(ValueError, match="the matcher says"):
        ours.check(case, replace(result, bound=result.bound * 1.01))


def test_a_rival_answers_from_a_process_of_its_own() -> None:
    found = _module("processes").run_rival("greedy", _made("fleet"), 30.0)
    assert found.status == "done"
    assert found.value == _module("rivals").greedy(_made("fleet"), 30.0).value


def test_a_rival_that_is_not_installed_says_so() -> None:
    if importlib.util.find_spec("dede") is not None:
        pytest.skip("DeDe is installed here")
    found = _module("processes").run_rival("dede", _made("fleet"), 30.0)
    assert found.status == "ModuleNotFoundError: No module named 'dede'"
    assert found.value is None


def test_what_outlasts_its_limit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = _module("processes")
    monkeypatch.setattr(processes, "_START_S", 0.0)
    answer, error = processes.run_module("http.server", ["--bind", "127.0.0.1", "0"], 0.5)
    assert answer is None
    assert error.startswith("killed after")
