"""Configs as arrays, and the ones to begin with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compass_coordinator.profiler.selective.pilot import pilot_configs
from compass_coordinator.profiler.selective.space import MAX_CONFIGS, space_of
from compass_shared.errors import ConfigError
from compass_shared.pipeline import REQUEST
from support.agents import pipeline_of, python_operator
from support.replayed import PAGES

FORK = pipeline_of(
    "fork",
    python_operator("split", REQUEST, knobs={"side": (1, 2), "fixed": (7,)}),
    python_operator("left", "split", knobs={"model": (1, 2, 3)}),
    python_operator("right", "split", "request", knobs={"model": (1, 2)}),
    python_operator("join", "left", "right"),
)


def test_nodes_are_shared_by_configs_that_agree_upstream() -> None:
    space = space_of(FORK)
    configs = list(FORK.configs())
    assert len(space) == 12
    assert space.keys == tuple(FORK.config_key(config) for config in configs)
    upstream = {
        "split": ["split"],
        "left": ["split", "left"],
        "right": ["split", "right"],
        "join": list(configs[0]),
    }
    for (a, one), (b, other) in itertools.product(enumerate(configs), repeat=2):
        for column, name in enumerate(upstream):
            same = all(one[before] == other[before] for before in upstream[name])
            assert (space.nodes[a, column] == space.nodes[b, column]) == same
    assert [int(np.unique(column).size) for column in space.nodes.T] == [2, 6, 4, 12]
    assert len(np.unique(space.nodes)) == len(space.node_variant) == 24
    names = [[space.variants[at] for at in space.node_variant[row]] for row in space.nodes]
    assert [";".join(row) for row in names] == list(space.keys)


def test_levels_tell_which_knobs_differ() -> None:
    space = space_of(FORK)
    assert space.levels.shape == (12, 3), "a knob with one value is none"
    for row, config in zip(space.levels, FORK.configs(), strict=True):
        places = ((1, 2).index(int(config["split"]["side"])), int(config["left"]["model"]) - 1)
        assert row.tolist() == [*places, int(config["right"]["model"]) - 1]


def test_pipelines_without_choice_and_with_too_much() -> None:
    alone = space_of(pipeline_of("alone", python_operator("only", REQUEST)))
    assert (alone.keys, alone.levels.shape, alone.nodes.tolist()) == (("only",), (1, 0), [[0]])
    most = pipeline_of("most", python_operator("only", REQUEST, knobs={"k": tuple(range(MAX_CONFIGS))}))
    assert len(space_of(most)) == MAX_CONFIGS
    more = pipeline_of("more", python_operator("only", REQUEST, knobs={"k": tuple(range(MAX_CONFIGS + 1))}))
    with pytest.raises(ConfigError, match="3001 configs are more than the 3000"):
        space_of(more)


@pytest.mark.parametrize("count", [1, 4, 10, 24, 99])
def test_a_pilot_has_every_variant(count: int) -> None:
    space = space_of(PAGES)
    for seed in range(5):
        found = pilot_configs(space, count, np.random.default_rng(seed))
        assert len(found) == len(set(found.tolist())) >= min(count, 24)
        assert (np.diff(found) > 0).all()
        variants = space.node_variant[space.nodes[found]]
        used = np.bincount(variants.ravel(), minlength=len(space.variants))
        assert used.min() >= 1
        if count == 10:
            assert len(found) == 10
            assert used[:3].max() - used[:3].min() <= 2, "about equally often"
    assert np.array_equal(found, pilot_configs(space, count, np.random.default_rng(4)))


def test_a_pilot_grows_until_no_variant_is_left_out() -> None:
    many = pipeline_of(
        "many",
        python_operator("first", REQUEST, knobs={"k": tuple(range(40))}),
        python_operator("then", "first", knobs={"k": (1, 2, 3)}),
    )
    space = space_of(many)
    found = pilot_configs(space, 5, np.random.default_rng(0))
    assert set(space.node_variant[space.nodes[found]].ravel()) == set(range(43))
    assert len(found) == 40
