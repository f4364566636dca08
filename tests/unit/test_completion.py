"""Sites that measured only some variants: predicted where possible, left out with a reason where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compass_coordinator.commands.coordinator import references
from compass_coordinator.fleet import Fleet
from compass_coordinator.measurements import save_measurements
from compass_coordinator.profiler.latency.completion import PROBES, Completion, Completions, prior_of
from compass_shared.device_profile import find_device_profile, known_device_profiles
from compass_shared.errors import ProfileError
from compass_shared.messages import ProfileMessage, ServedMessage, StatusMessage
from compass_shared.profile import SiteProfile
from support.coordinators import ACCURACY, PIPELINE, VARIANTS, hello_of, profile_of, query_of

SMALL, LARGE, READ = VARIANTS
PHONE_S, EDGE_S = 0.2, 0.05


def fleet_of(**known: object) -> Fleet:
    fleet = Fleet(
        pipelines={"chain": PIPELINE},
        accuracy={"chain": ACCURACY},
        devices=known_device_profiles(),
        **known,  # type: ignore[arg-type]
    )
    fleet.queries["q"] = query_of("q")
    return fleet


def join(
    fleet: Fleet, agent: str, *variants: str, device: str | None = None, message: ProfileMessage | None = None
) -> None:
    fleet.take_hello(agent, replace(hello_of(agent), device_profile=device))
    fleet.take_status(agent, StatusMessage(online=True, session=101))
    assert fleet.take_profile(agent, message or profile_of(agent, variants=variants), 0.0) is None


def varied(agent: str) -> ProfileMessage:
    """Variants that differ in work: a real reference."""
    message = profile_of(agent)
    factors = dict(zip(VARIANTS, (0.3, 1.0, 3.0), strict=True))
    operators = {
        key: replace(found, mean_s=factors[key] * found.mean_s, p95_s=factors[key] * found.p95_s)
        for key, found in message.profile.operators.items()
    }
    return replace(message, profile=replace(message.profile, operators=operators))


def completion(fleet: Fleet, known: Completions | None = None) -> Completion:
    """What the phone is planned with."""
    problem, left_out = fleet.problem()
    assert left_out == {}
    filled, predicted = (known or Completions()).fill(problem, fleet.gaps)
    key = "phone", "chain"
    return Completion(profile=filled.profiles[key], predicted=predicted.get(key, {}))


def planned(fleet: Fleet) -> SiteProfile:
    return completion(fleet).profile


def test_what_was_not_measured_is_predicted_from_a_site_that_measured_all() -> None:
    fleet = fleet_of()
    join(fleet, "edge", message=varied("edge"))
    join(fleet, "phone", LARGE)
    found = completion(fleet)
    profile, predicted = found.profile, found.predicted
    assert set(profile.operators) == set(VARIANTS)
    assert profile.operators[LARGE].mean_s == pytest.approx(PHONE_S)
    assert set(predicted) == {SMALL, READ}
    for variant, factor in ((SMALL, 0.3), (READ, 3.0)):
        there = profile.operators[variant]
        assert there.count == 0
        assert there.mean_s == pytest.approx(factor * PHONE_S, rel=0.3)
        unsure = (predicted[variant].rel_sd * there.mean_s) ** 2
        assert there.var_s2 >= predicted[variant].var_s2 + 0.99 * unsure


def test_who_measured_all_needs_nobody_and_may_be_away() -> None:
    fleet = fleet_of()
    join(fleet, "edge", message=varied("edge"))
    join(fleet, "phone", LARGE)
    fleet.take_status("edge", StatusMessage(online=False, session=101))
    assert set(planned(fleet).operators) == set(VARIANTS)
    join(fleet, "phone", *VARIANTS)
    assert planned(fleet) == profile_of("phone").profile
    assert fleet.gaps == {}


def test_a_given_reference_comes_before_what_agents_measured() -> None:
    given = replace(varied("edge").profile, site="laboratory")
    fleet = fleet_of(references={"chain": given})
    join(fleet, "edge", *VARIANTS)
    join(fleet, "phone", LARGE)
    assert planned(fleet).operators[READ].mean_s == pytest.approx(3 * PHONE_S, rel=0.3)


def test_a_reference_may_be_what_a_coordinator_saved_of_a_fleet(tmp_path: Path) -> None:
    fleet, file = fleet_of(), tmp_path / "profiles.json"
    join(fleet, "edge", message=varied("edge"))
    join(fleet, "phone", LARGE)
    problem, _ = Completions().fill(fleet.problem()[0], fleet.gaps)
    save_measurements(file, problem)
    assert references([file], {"chain": PIPELINE})["chain"].operators[READ].mean_s == 3 * EDGE_S
    bare = fleet_of()
    join(bare, "phone", LARGE)
    save_measurements(file, bare.problem()[0])
    with pytest.raises(ProfileError, match="no site with every variant of chain"):
        references([file], {"chain": PIPELINE})


def test_a_device_profile_tells_what_nothing_measured_does() -> None:
    fleet = fleet_of()
    join(fleet, "edge", *VARIANTS)
    join(fleet, "phone", device="phone-midrange")
    slowdown = find_device_profile("phone-midrange").slowdowns()
    expected_s = slowdown.get("python", slowdown["default"]) * EDGE_S
    assert planned(fleet).operators[READ].mean_s == pytest.approx(expected_s, rel=0.2)
    assert completion(fleet).predicted[READ].rel_sd > 0.2


def foreseen(device: str | None, **known: object) -> Fleet:
    """A fleet whose phone said hello and measured nothing."""
    fleet = fleet_of(**known)
    fleet.take_hello("phone", replace(hello_of("phone"), device_profile=device))
    fleet.take_status("phone", StatusMessage(online=True, session=101))
    return fleet


def test_a_device_that_measured_nothing_is_planned_by_its_device_profile() -> None:
    reference = varied("edge").profile
    found = completion(foreseen("phone-low", references={"chain": reference}))
    slowdown = find_device_profile("phone-low").slowdowns()["python"]
    assert set(found.predicted) == set(VARIANTS)
    for variant in VARIANTS:
        there = found.profile.operators[variant]
        assert there.count == 0
        assert there.mean_s == pytest.approx(slowdown * reference.operators[variant].mean_s, rel=0.15)


def test_what_it_measures_takes_over_from_its_device_profile() -> None:
    fleet = foreseen("phone-low", references={"chain": varied("edge").profile})
    completion(fleet)
    join(fleet, "phone", *VARIANTS, device="phone-low")
    assert all(found.count > 0 for found in planned(fleet).operators.values())


@pytest.mark.parametrize(
    ("device", "given"), [(None, True), ("no-such-device", True), ("phone-low", False)], ids=str
)
def test_without_device_profile_or_reference_nothing_is_foreseen(device: str | None, given: bool) -> None:
    fleet = foreseen(device, **({"references": {"chain": varied("edge").profile}} if given else {}))
    _, left_out = fleet.problem()
    assert left_out == {"q": "its origin 'phone' has not measured 'chain' yet"}


def test_another_bundle_is_not_foreseen() -> None:
    fleet = foreseen("phone-low", references={"chain": varied("edge").profile})
    fleet.take_hello(
        "phone", replace(hello_of("phone", session=200, digest="0" * 64), device_profile="phone-low")
    )
    assert fleet.problem()[1] == {"q": "its origin 'phone' has not measured 'chain' yet"}


def test_slowdowns_of_two_device_profiles_are_divided_and_their_uncertainty_adds_up() -> None:
    phone, nuc = find_device_profile("phone-midrange"), find_device_profile("edge-nuc")
    assert prior_of(None, nuc) is None
    alone, beside = prior_of(phone, None), prior_of(phone, nuc)
    assert alone is not None
    assert beside is not None
    assert alone["default"][0] == phone.slowdowns()["default"]
    assert beside["default"][0] == phone.slowdowns()["default"] / nuc.slowdowns()["default"]
    assert all(rel_sd > 0 for _, rel_sd in beside.values())


def test_a_site_of_which_nothing_is_known_is_left_out_and_says_what_to_measure() -> None:
    fleet = fleet_of()
    join(fleet, "edge", *VARIANTS)
    join(fleet, "phone")
    problem, left_out = fleet.problem()
    assert ("phone", "chain") not in problem.profiles
    assert left_out["q"].startswith(f"its origin 'phone' measured 0 of 3 variants of 'chain', not {SMALL}")
    wanted = fleet.lacks["phone", "chain"].wanted
    assert 0 < len(wanted) <= PROBES
    assert set(wanted) <= set(VARIANTS)


def test_without_any_reference_some_variant_of_each_operator_will_do() -> None:
    fleet = fleet_of()
    join(fleet, "phone", SMALL, READ)
    assert set(planned(fleet).operators) == {SMALL, READ}
    join(fleet, "phone", READ)
    _, left_out = fleet.problem()
    assert "measured 1 of 3 variants" in left_out["q"]
    assert "no site measured all of them" in left_out["q"]


def test_what_a_site_cannot_run_is_not_predicted_until_it_starts_again() -> None:
    fleet = fleet_of()
    join(fleet, "edge", *VARIANTS)
    join(fleet, "phone", SMALL, READ)
    fleet.agents["phone"].hopeless["chain"] = frozenset({LARGE})
    assert set(planned(fleet).operators) == {SMALL, READ}
    fleet.take_hello("phone", hello_of("phone", session=200))
    assert set(planned(fleet).operators) == set(VARIANTS)


def test_predictions_are_kept_until_what_they_rest_on_has_moved() -> None:
    fleet, known = fleet_of(), Completions()
    join(fleet, "edge", message=varied("edge"))
    join(fleet, "phone", LARGE)
    before = completion(fleet, known).profile.operators

    def measured(factor: float) -> None:
        message = profile_of("phone", variants=(LARGE,))
        found = replace(message.profile.operators[LARGE], mean_s=factor * PHONE_S)
        join(
            fleet,
            "phone",
            message=replace(message, profile=replace(message.profile, operators={LARGE: found})),
        )

    measured(1.01)
    after = completion(fleet, known).profile.operators
    assert after[READ] is before[READ]
    assert after[LARGE].mean_s == pytest.approx(1.01 * PHONE_S)
    measured(2.0)
    assert completion(fleet, known).profile.operators[READ].mean_s > 1.5 * before[READ].mean_s
    assert completion(fleet, known) == completion(fleet), "as if nothing had been kept"


def test_figures_that_no_measurement_gives_lead_to_no_predictions() -> None:
    fleet = fleet_of()
    join(fleet, "edge", *VARIANTS)
    message = profile_of("phone", variants=(LARGE,))
    nothing = replace(message.profile.operators[LARGE], mean_s=0.0)
    wrong = replace(message, profile=replace(message.profile, operators={LARGE: nothing}))
    join(fleet, "phone", message=wrong)
    assert planned(fleet) == wrong.profile


def test_serving_changes_what_is_planned_with_and_what_is_predicted_from_it() -> None:
    fleet = fleet_of()
    join(fleet, "edge", message=varied("edge"))
    join(fleet, "phone", LARGE)
    before = planned(fleet)
    window = replace(before.operators[LARGE], mean_s=2 * PHONE_S, count=60)
    message = ServedMessage(
        session=100, pipeline="chain", digest=PIPELINE.digest, operators={LARGE: window}, over_s=60.0
    )
    moved = [fleet.take_served("phone", message, 60.0 * minute) for minute in range(1, 20)]
    assert moved[0] is True
    after = planned(fleet)
    assert after.operators[LARGE].mean_s == pytest.approx(2 * PHONE_S, rel=0.05)
    assert after.operators[READ].mean_s == pytest.approx(2 * before.operators[READ].mean_s, rel=0.3)
    assert fleet.take_served("phone", replace(message, over_s=1e-9), 60.0 * 20) is False


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"digest": "0" * 64}, "install the same bundle"),
        ({"pipeline": "other"}, "'other', which is not planned here"),
        ({"over_s": float("nan")}, "over_s is nan"),
        ({"operators": {"read": {"mean_s": 0.0}}}, "read.mean_s is 0.0"),
        ({"operators": {"read": {"mean_s": float("nan")}}}, "read.mean_s is nan"),
        ({"operators": {"read": {"var_s2": float("inf")}}}, "read.var_s2 is inf"),
        ({"operators": {"read": {"p95_s": -1.0}}}, "read.p95_s is -1.0"),
        ({"operators": {"read": {"output_mean_bytes": 1e300}}}, "read.output_mean_bytes is 1e+300"),
        ({"operators": {"read": {"count": 0}}}, "read.count is 0"),
        ({"operators": {"write": {}}}, "served 'write', which 'chain' does not have"),
    ],
)
def test_reports_of_serving_that_make_no_sense_are_refused(changes: dict[str, object], problem: str) -> None:
    fleet = fleet_of()
    join(fleet, "phone", *VARIANTS)
    sound = profile_of("phone").profile.operators[READ]
    message = ServedMessage(
        session=100, pipeline="chain", digest=PIPELINE.digest, operators={READ: sound}, over_s=60.0
    )
    operators = changes.pop("operators", {READ: {}})
    assert isinstance(operators, dict)
    wrong = replace(
        message,
        operators={key: replace(sound, variant=key, **fields) for key, fields in operators.items()},
        **changes,  # type: ignore[arg-type]
    )
    assert problem in str(fleet.take_served("phone", wrong, 60.0))
    assert planned(fleet) == profile_of("phone").profile
