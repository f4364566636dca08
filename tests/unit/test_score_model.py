"""The model of all scores against conditioning that is spelled out, and against data of its own making."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compass_coordinator.profiler.selective import score_model
from compass_coordinator.profiler.selective.kernel import LEVEL_VAR, Kernel, first_kernel
from compass_coordinator.profiler.selective.score_model import Belief, ScoreModel, Scores, believe, fit
from compass_coordinator.profiler.selective.space import Floats, Indices

LEVELS = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]])
GRID = np.stack(np.unravel_index(np.arange(24), (4, 3, 2)), axis=1).astype(np.intp)
ALIKE = np.zeros(120, dtype=np.intp)
"""One stratum."""
KERNEL = Kernel(
    alike=np.array([0.9, 0.6, 0.8]),
    own=0.1,
    variance=0.04,
    mean_alike=np.array([0.8, 0.5, 0.9]),
    mean_variance=0.01,
)


def _small(seed: int, seen: tuple[int, ...], *, features: int) -> tuple[Scores, ScoreModel]:
    """Six inputs, five configs, and any covariance."""
    rng = np.random.default_rng(seed)
    marks = rng.standard_normal((6, features))
    marks = (marks - marks.mean(axis=0)) / marks.std(axis=0)
    values = rng.uniform(0.3, 0.7, size=(6, 5))
    values[np.arange(6)[:, np.newaxis] >= np.array(seen)] = np.nan
    root = 0.1 * rng.standard_normal((features + 5, features + 5))
    sigma = root @ root.T + 0.02 * np.eye(features + 5)
    kernel = replace(first_kernel(2), mean_alike=np.array([0.6, 0.8]))
    scores = Scores(values=values, seen=np.array(seen), features=marks, labels=ALIKE[:6], levels=LEVELS)
    return scores, ScoreModel(kernel=kernel, sigma=sigma, errors=np.zeros(0), freedom=1.0)


def _conditioned(scores: Scores, model: ScoreModel) -> tuple[Floats, Floats]:
    """Mean and covariance of the means over the set: a normal vector of everything, conditioned once."""
    inputs, configs = scores.values.shape
    own = scores.features.shape[1]
    width = own + configs
    size = configs + inputs * width
    prior = LEVEL_VAR + model.kernel.mu(scores.levels)
    # (mu, then each input's features and scores) = weights x (mu, then each input's deviations).
    weights = np.eye(size)
    covariance = np.zeros((size, size))
    covariance[:configs, :configs] = prior
    targets = np.zeros((configs, size))
    for at in range(inputs):
        rows = slice(configs + at * width, configs + (at + 1) * width)
        covariance[rows, rows] = model.sigma
        weights[rows.start + own : rows.stop, :configs] = np.eye(configs)
        targets[:, rows.start + own : rows.stop] = np.eye(configs) / inputs
    joint = weights @ covariance @ weights.T
    found = np.concatenate([scores.features, scores.values], axis=1).ravel()
    level = _level_of(scores, model)
    center = np.concatenate([np.full(configs, level), np.tile([0.0] * own + [level] * configs, inputs)])
    known = configs + np.flatnonzero(~np.isnan(found))
    gain = np.linalg.solve(joint[np.ix_(known, known)], joint[known]).T
    mean = center + gain @ (found[known - configs] - center[known])
    left = joint - gain @ joint[known]
    return targets @ mean, targets @ left @ targets.T


def _level_of(scores: Scores, model: ScoreModel) -> float:
    """Where the prior of all accuracies lies: the mean of the patterns' means, less what features explain."""
    own = scores.features.shape[1]
    slope = np.linalg.solve(model.sigma[:own, :own], model.sigma[:own, own:])
    adjusted = scores.values - scores.features @ slope
    ends = sorted({0, *scores.seen.tolist()})
    return float(np.mean([np.nanmean(adjusted[a:b, scores.seen >= b]) for a, b in itertools.pairwise(ends)]))


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("seen", [(3,) * 5, (6, 4, 1, 0, 2), (6, 6, 0, 5, 0), (0, 0, 1, 0, 0), (6,) * 5])
def test_believe_is_conditioning(
    seen: tuple[int, ...], features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_model, "JITTER", 0.0)
    scores, model = _small(3, seen, features=features)
    mean, covariance = _conditioned(scores, model)
    found = believe(scores, model)
    whole = np.array(seen) == 6
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.covariance == pytest.approx(covariance, abs=1e-10)
    assert found.mean[whole] == pytest.approx(scores.values[:, whole].mean(axis=0), abs=1e-15)
    assert not found.covariance[whole].any()
    assert not found.spread[whole].any()
    assert (found.spread[~whole] > 0.0).all()
    assert found.inflated(2.0).spread == pytest.approx(2 * found.spread)


def test_patterns_are_the_runs_of_inputs_with_the_same_configs() -> None:
    scores, _ = _small(0, (4, 2, 0, 2, 6), features=0)
    assert [(rows.start, rows.stop, seen.tolist()) for rows, seen in scores.patterns()] == [
        (0, 2, [0, 1, 3, 4]),
        (2, 4, [0, 4]),
        (4, 6, [4]),
    ]
    assert scores.looked_at == 6


def _drawn(rng: np.random.Generator, inputs: int, seen: Indices) -> tuple[Scores, Floats]:
    """Scores that the model itself would draw, and the true means over the set."""
    mu = 0.5 + rng.multivariate_normal(np.zeros(len(GRID)), KERNEL.mu(GRID))
    full = rng.multivariate_normal(mu, KERNEL.sigma(GRID), size=inputs)
    values = np.where(np.arange(inputs)[:, np.newaxis] < seen, full, np.nan)
    blind = np.zeros((inputs, 0))
    scores = Scores(values=values, seen=seen, features=blind, labels=ALIKE[:inputs], levels=GRID)
    return scores, full.mean(axis=0)


def test_intervals_of_what_was_not_measured_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(8)
    seen = np.array([30, 12, 0, 0] * 6)
    model = ScoreModel(kernel=KERNEL, sigma=KERNEL.sigma(GRID), errors=np.zeros(0), freedom=1.0)
    errors = []
    for _ in range(60):
        scores, truth = _drawn(rng, 30, seen)
        found = believe(scores, model)
        errors.append((found.mean - truth)[seen < 30] / found.spread[seen < 30])
    inside = np.abs(np.array(errors)) < 1.96
    unmeasured = inside[:, seen[seen < 30] == 0]
    # 60 draws that are correlated within each: 3 standard errors of 60 x about 6 independent ones.
    assert 0.91 < inside.mean() < 0.985
    assert 0.91 < unmeasured.mean() < 0.985


def test_scores_of_others_narrow_what_is_believed_of_a_config() -> None:
    """Pairing and surrogate: that is what the model is for."""
    model = ScoreModel(kernel=KERNEL, sigma=KERNEL.sigma(GRID), errors=np.zeros(0), freedom=1.0)
    few, _ = _drawn(np.random.default_rng(1), 30, np.array([10] + [0] * 23))
    many, _ = _drawn(np.random.default_rng(1), 30, np.array([10] + [30] * 20 + [0] * 3))
    alone, together = believe(few, model).spread, believe(many, model).spread
    assert (together[[0, 21, 22, 23]] < 0.8 * alone[[0, 21, 22, 23]]).all()


def test_the_next_score_is_as_uncertain_as_what_others_scored_on_that_input_leaves_it() -> None:
    scores, model = _small(5, (6, 4, 1, 0, 2), features=0)
    found = believe(scores, model).next_var
    for config, at in ((1, 4), (2, 1), (3, 0), (4, 2)):
        others = np.flatnonzero(scores.seen > at)
        known = model.sigma[np.ix_(others, others)]
        explained = model.sigma[config, others] @ np.linalg.solve(known, model.sigma[others, config])
        assert found[config] == pytest.approx(model.sigma[config, config] - explained, rel=1e-3)


def test_a_fit_finds_what_scores_were_drawn_from() -> None:
    rng = np.random.default_rng(4)
    scores, truth = _drawn(rng, 80, np.array([80, 40] * 12))
    spread_out = np.arange(0, 24, 2)
    model = fit(scores, first_kernel(3), spread_out)
    assert model.kernel.variance == pytest.approx(KERNEL.variance, rel=0.3)
    assert model.kernel.own == pytest.approx(KERNEL.own, abs=0.05)
    assert model.kernel.alike == pytest.approx(KERNEL.alike, abs=0.12)
    true, found = KERNEL.sigma(GRID), model.sigma
    assert np.abs(found - true).mean() < 0.15 * KERNEL.variance
    assert np.linalg.eigvalsh(found).min() > 0
    assert len(model.errors) == 12
    assert model.freedom == 79
    wrong = (believe(scores, model).mean - truth)[1::2]
    sampling = np.nanmean(scores.values, axis=0)[1::2] - truth[1::2]
    assert np.sqrt((wrong**2).mean()) < 0.6 * np.sqrt((sampling**2).mean())


def test_features_that_tell_scores_apart_help_with_inputs_nobody_looked_at() -> None:
    rng = np.random.default_rng(2)
    mark = np.repeat([-1.0, 1.0], 60)[rng.permutation(120)]
    values = 0.5 + 0.2 * mark[:, np.newaxis] + 0.02 * rng.standard_normal((120, 24))
    seen = np.full(24, 60)
    part = np.where(np.arange(120)[:, np.newaxis] < 60, values, np.nan)
    known = Scores(values=part, seen=seen, features=mark[:, np.newaxis], labels=ALIKE[:120], levels=GRID)
    blind = replace(known, features=np.zeros((120, 0)))
    with_, without = (believe(one, fit(one, first_kernel(3), np.arange(24))) for one in (known, blind))
    truth = values.mean(axis=0)
    assert (np.abs(with_.mean - truth) < np.abs(without.mean - truth)).all()
    assert with_.spread.max() < 0.95 * without.spread.min()


def test_reach_follows_errors_within_limits() -> None:
    model = ScoreModel(kernel=KERNEL, sigma=np.eye(1), errors=np.zeros(0), freedom=1e9)
    assert model.reach(0.95) == pytest.approx(1.96, abs=0.001)
    few = replace(model, freedom=4.0)
    assert few.reach(0.95) == pytest.approx(2.776, abs=0.001), "Student's quantile"
    errors = np.linspace(0.1, 3.0, 30)
    assert replace(model, errors=errors).reach(0.9) == pytest.approx(errors[27])
    assert replace(model, errors=errors).reach(0.5) == pytest.approx(errors[15])
    assert replace(model, errors=errors / 10).reach(0.9) == pytest.approx(1.645, abs=0.001)
    assert replace(model, errors=10 * errors).reach(0.95) == score_model.MOST_REACH


@pytest.mark.parametrize("score", [0.0, 0.7, 1.0])
def test_scores_that_never_differ(score: float) -> None:
    """Nothing to fit a variance to, and still an answer."""
    values = np.full((5, 24), np.nan)
    values[:3, :8] = score
    seen = np.array([3] * 8 + [0] * 16)
    scores = Scores(values=values, seen=seen, features=np.zeros((5, 0)), labels=ALIKE[:5], levels=GRID)
    found = believe(scores, fit(scores, first_kernel(3), np.arange(8)))
    assert found.mean[:8] == pytest.approx(score, abs=0.02)
    assert (found.spread[8:] > 0).all()
    assert np.isfinite(found.covariance).all()


def test_one_config_without_knobs() -> None:
    scores = Scores(
        values=np.array([[0.2], [0.6], [np.nan]]),
        seen=np.array([2]),
        features=np.zeros((3, 0)),
        labels=ALIKE[:3],
        levels=np.zeros((1, 0), dtype=np.intp),
    )
    found: Belief = believe(scores, fit(scores, first_kernel(0), np.array([0])))
    assert 0.2 < found.mean[0] < 0.6
    assert 0 < found.spread[0] < 0.3
