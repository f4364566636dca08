"""Latency on a new device from a few probes: devices are simulated, so that the truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator

from compass_coordinator.profiler.latency.transfer import Speed, choose_probes, completed, fit_speed
from compass_shared.errors import ProfileError
from compass_shared.pipeline import Operator, Pipeline, variant_key
from compass_shared.profile import OperatorProfile, SiteProfile

SIZES = tuple(range(9))
PIPELINE = Pipeline(
    name="pages",
    version="1",
    description="",
    digest="d",
    output="read",
    operators=(
        Operator(name="shrink", inputs=("request",), runtime="python", knobs={"size": SIZES[:5]}),
        Operator(
            name="find", inputs=("shrink",), runtime="onnx", knobs={"size": SIZES}, speed_class="onnx-fp32"
        ),
        Operator(
            name="read",
            inputs=("find",),
            runtime="onnx",
            knobs={"model": ("a", "b"), "size": SIZES[:3]},
            speed_class="onnx-fp32",
        ),
    ),
)
VARIANTS = {
    variant_key(op.name, knobs): op.speed_class for op in PIPELINE.operators for knobs in op.variants()
}
Operators = Mapping[str, OperatorProfile]


def entry(variant: str, times_s: np.ndarray) -> OperatorProfile:
    return OperatorProfile(
        variant=variant,
        mean_s=float(times_s.mean()),
        var_s2=float(times_s.var(ddof=1)),
        p95_s=float(np.quantile(times_s, 0.95)),
        count=len(times_s),
        output_mean_bytes=1.0,
        speed_class=VARIANTS[variant],
    )


def site(operators: Operators, **settings: str) -> SiteProfile:
    given = {"site": "phone", "pipeline": "pages", "digest": "d", **settings}
    return SiteProfile(operators=operators, request_mean_bytes=1.0, **given)  # type: ignore[arg-type]


def inputs(rng: Generator, count: int = 400) -> dict[str, np.ndarray]:
    """Times of every variant on the reference machine: some spread little, some much."""
    longest = dict(zip(VARIANTS, np.geomspace(0.0005, 0.2, len(VARIANTS)), strict=True))
    return {
        key: mean_s * rng.lognormal(0, 0.02 + 0.3 * rng.random(), count) for key, mean_s in longest.items()
    }


REFERENCE = site(
    {key: entry(key, times_s) for key, times_s in inputs(np.random.default_rng(1)).items()}, site="bench"
)


def device(
    rng: Generator, slowdowns: Mapping[str, float], *, own_sd: float = 0.0, overhead_s: float = 0.0
) -> tuple[dict[str, OperatorProfile], dict[str, float]]:
    """A machine: what 200 calls of every variant took, and the true means."""
    took, means = {}, {}
    for key, found in REFERENCE.operators.items():
        scale = slowdowns[found.speed_class] * rng.lognormal(0, own_sd)
        means[key] = scale * found.mean_s + overhead_s
        spread = math.sqrt(math.log1p(found.var_s2 / found.mean_s**2))
        took[key] = entry(
            key, scale * found.mean_s * rng.lognormal(-(spread**2) / 2, spread, 200) + overhead_s
        )
    return took, means


def probed(took: Operators, count: int = 5) -> dict[str, OperatorProfile]:
    return {key: took[key] for key in choose_probes(PIPELINE, REFERENCE, count)}


def errors(speed: Speed, took: Operators) -> dict[str, float]:
    """Relative error of the p95 of what was not probed."""
    return {key: abs(speed.forecast(key).p95_s / found.p95_s - 1) for key, found in took.items()}


def test_two_classes_are_told_apart() -> None:
    took, means = device(np.random.default_rng(2), {"python": 2.0, "onnx-fp32": 5.0}, own_sd=0.03)
    speed = fit_speed(REFERENCE, probed(took))
    assert speed.slowdowns["python"][0] == pytest.approx(2.0, rel=0.15)
    assert speed.slowdowns["onnx-fp32"][0] == pytest.approx(5.0, rel=0.15)
    assert all(speed.forecast(key).mean_s == pytest.approx(mean_s, rel=0.25) for key, mean_s in means.items())
    assert np.median(list(errors(speed, took).values())) < 0.1


def test_a_constant_time_a_call_is_found() -> None:
    took, means = device(np.random.default_rng(3), {"python": 1.0, "onnx-fp32": 1.0}, overhead_s=0.003)
    shortest, *_, longest = means
    probes = {key: took[key] for key in (shortest, list(means)[3], list(means)[9], longest)}
    speed = fit_speed(REFERENCE, probes)
    assert speed.overhead_s == pytest.approx(0.003, rel=0.2)
    assert speed.forecast(list(means)[1]).mean_s == pytest.approx(means[list(means)[1]], rel=0.1)


def test_variants_of_one_model_are_kin() -> None:
    """One model suits the device, the other does not: a probe of each tells for all their sizes."""
    slow = {key: 3.0 if "model=b" in key else 1.0 for key in VARIANTS}
    took = {key: found.scaled(slow[key], 0.0) for key, found in REFERENCE.operators.items()}
    probes = {
        key: took[key]
        for key in ("shrink[size=0]", "find[size=4]", *(f"read[model={m},size=0]" for m in "ab"))
    }
    speed = fit_speed(REFERENCE, probes)
    for key in ("read[model=a,size=2]", "read[model=b,size=1]"):
        assert speed.forecast(key).mean_s == pytest.approx(took[key].mean_s, rel=0.2)


def test_intervals_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    inside = []
    for _ in range(20):
        common = rng.normal(0.5, 0.5)
        slowdowns = {name: math.exp(common + rng.normal(0, 0.1)) for name in ("python", "onnx-fp32")}
        took, means = device(rng, slowdowns, own_sd=0.07)
        probes = probed(took)
        speed = fit_speed(REFERENCE, probes)
        for key in took.keys() - probes.keys():
            found = speed.forecast(key)
            off = abs(math.log(means[key] / found.mean_s)) / found.mean_rel_sd
            off_p95 = abs(math.log(took[key].p95_s / found.p95_s)) / found.p95_rel_sd
            inside.append((off < 1.645, off_p95 < 1.645))
    covered, covered_p95 = np.mean(inside, axis=0)
    assert 0.86 < covered < 0.99, "of 90% intervals"
    assert 0.86 < covered_p95 < 0.995


def test_a_quota_is_seen_in_the_tail() -> None:
    """Half of every 100 ms: short calls mostly run through, longer ones are stopped once or several times."""
    rng = np.random.default_rng(5)
    took = {}
    for key, found in REFERENCE.operators.items():
        work_s = found.mean_s * rng.lognormal(0, math.sqrt(found.var_s2) / found.mean_s, 1000)
        took[key] = entry(key, work_s + 0.05 * np.floor(work_s / 0.05 + rng.random(1000)))
    probes = probed(took)
    speed = fit_speed(REFERENCE, probes)
    unseen = {key: error for key, error in errors(speed, took).items() if key not in probes}
    slowdown = np.exp(
        np.mean([np.log(p.p95_s / REFERENCE.operators[key].p95_s) for key, p in probes.items()])
    )
    common = [abs(slowdown * REFERENCE.operators[key].p95_s / took[key].p95_s - 1) for key in unseen]
    assert np.median(list(unseen.values())) < 0.1
    assert np.median(common) > 0.3


def test_a_class_without_a_probe_keeps_the_prior_and_is_unsure() -> None:
    took, _ = device(np.random.default_rng(6), {"python": 3.0, "onnx-fp32": 3.0})
    probes = {key: found for key, found in probed(took).items() if VARIANTS[key] == "onnx-fp32"}
    prior = {"python": (3.0, 0.3), "default": (3.0, 0.3)}
    known, guessed = (fit_speed(REFERENCE, given, prior) for given in (probed(took), probes))
    python = next(key for key, name in VARIANTS.items() if name == "python" and key not in probed(took))
    assert guessed.forecast(python).mean_s == pytest.approx(3.0 * REFERENCE.operators[python].mean_s, rel=0.2)
    assert guessed.forecast(python).mean_rel_sd > 1.3 * known.forecast(python).mean_rel_sd
    assert guessed.slowdowns["python"][1] > guessed.slowdowns["onnx-fp32"][1]


def test_without_probes_there_is_the_prior() -> None:
    speed = fit_speed(REFERENCE, {}, {"python": (2.0, 0.1), "default": (4.0, 0.5)})
    assert {name: round(value, 6) for name, (value, _) in speed.slowdowns.items()} == {
        "python": 2.0,
        "onnx-fp32": 4.0,
    }
    assert speed.slowdowns["onnx-fp32"][1] == pytest.approx(0.5, rel=0.15)
    assert fit_speed(REFERENCE, {}).slowdowns["python"][1] > 0.9


def test_one_probe_moves_everything_and_is_followed_itself() -> None:
    took, _ = device(np.random.default_rng(7), {"python": 6.0, "onnx-fp32": 6.0})
    (key,) = choose_probes(PIPELINE, REFERENCE, 1)
    speed = fit_speed(REFERENCE, {key: took[key]})
    assert speed.forecast(key).mean_s == pytest.approx(took[key].mean_s, rel=0.05)
    assert all(4 < value < 8 for value, _ in speed.slowdowns.values())
    other = next(name for name in VARIANTS if name != key)
    assert speed.forecast(other).mean_rel_sd > speed.forecast(key).mean_rel_sd


def test_entries_cover_what_operators_of_a_class_get_wrong_together() -> None:
    took, _ = device(np.random.default_rng(8), {"python": 2.0, "onnx-fp32": 2.0})
    speed = fit_speed(REFERENCE, {key: took[key] for key in list(took)[:1]})
    path = ["find[size=8]", "read[model=b,size=2]"]
    together = sum(speed.forecast(key).mean_s for key in path) ** 2 * speed.forecast(path[0]).shared_rel_var
    alone = sum(speed.forecast(key).var_s2 for key in path)
    assert sum(speed.predict(key).var_s2 for key in path) >= alone + 0.99 * together
    assert all(speed.predict(key).count == 0 for key in path)


@pytest.mark.parametrize(
    "wrong", [{"mean_s": 0.0}, {"mean_s": math.nan}, {"p95_s": math.inf}, {"var_s2": -1.0}, {"p95_s": 0.0}]
)
def test_what_no_measurement_gives_is_refused(wrong: Mapping[str, float]) -> None:
    broken = {"find[size=0]": replace(REFERENCE.operators["find[size=0]"], **wrong)}  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match=r"find\[size=0\].*measure it again"):
        fit_speed(REFERENCE, broken)
    with pytest.raises(ProfileError, match=r"find\[size=0\]"):
        fit_speed(site({**REFERENCE.operators, **broken}), {})


def test_what_cannot_be_compared_is_refused() -> None:
    stranger = {"paint": replace(REFERENCE.operators["find[size=0]"], variant="paint")}
    with pytest.raises(ProfileError, match="paint"):
        fit_speed(REFERENCE, stranger)
    with pytest.raises(ProfileError, match="paint"):
        fit_speed(REFERENCE, {}).forecast("paint")
    with pytest.raises(ProfileError, match="prior"):
        fit_speed(REFERENCE, {}, {"default": (0.0, 0.1)})


def test_probes_are_of_all_classes_long_and_short_and_cheap() -> None:
    chosen = choose_probes(PIPELINE, REFERENCE)
    assert len(set(chosen)) == len(chosen) == 5
    assert {VARIANTS[key] for key in chosen} == set(VARIANTS.values())
    times_s = [REFERENCE.operators[key].mean_s for key in chosen]
    assert max(times_s) > 10 * min(times_s)
    everything = sorted(found.mean_s for found in REFERENCE.operators.values())
    assert sum(times_s) < sum(everything[-5:]) / 2
    assert set(choose_probes(PIPELINE, REFERENCE, 99)) == set(VARIANTS)


def test_a_profile_is_completed() -> None:
    took, _ = device(np.random.default_rng(9), {"python": 2.0, "onnx-fp32": 3.0})
    bare = {key: replace(found, speed_class="") for key, found in probed(took).items()}
    made = completed(PIPELINE, REFERENCE, site(bare))
    assert made.site == "phone"
    assert made.operators.keys() == VARIANTS.keys()
    assert {key for key, found in made.operators.items() if found.count} == set(bare)
    assert all(made.operators[key].mean_s == found.mean_s for key, found in bare.items())
    assert {key: found.speed_class for key, found in made.operators.items()} == VARIANTS
    assert completed(PIPELINE, REFERENCE, made) == made, "what was predicted is no evidence"


def test_profiles_of_something_else_are_refused() -> None:
    with pytest.raises(ProfileError, match="another pipeline"):
        completed(PIPELINE, REFERENCE, site({}, digest="other"))
    few = site({key: REFERENCE.operators[key] for key in list(VARIANTS)[1:]}, site="bench")
    with pytest.raises(ProfileError, match=r"'bench' has no measurement of 'shrink\[size=0\]'"):
        completed(PIPELINE, few, site({}))
