"""Numbers from the wire that make no sense are refused with the field that is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from compass_coordinator.sanity import hello_problem, profile_problem
from compass_shared.messages import HardwareInfo, HelloMessage, LinkReport, ProfileMessage
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.site import Prices, Tier

HELLO = HelloMessage(
    session=1,
    tier=Tier.EDGE,
    agent_version="0.1.0",
    runtimes={},
    bundles={},
    hardware=HardwareInfo(machine="x", cores=4, memory_bytes=1),
    cores=4.0,
    utilisation_cap=0.7,
    prices=Prices(),
)
MEASURED = OperatorProfile(variant="a", mean_s=0.1, var_s2=0.0, p95_s=0.1, count=3, output_mean_bytes=10.0)
LINK = LinkReport(target="edge", rtt_s=0.01, rtt_var_s2=0.0, up_bps=1e6, down_bps=1e6)
PROFILE = ProfileMessage(
    session=1,
    profile=SiteProfile(
        site="s", pipeline="p", digest="d", operators={"a": MEASURED}, request_mean_bytes=100.0
    ),
    links=(LINK,),
)


def _only(field: str, value: float) -> dict[str, Any]:
    return {field: value}


def test_sound_messages_have_no_problem() -> None:
    assert hello_problem(HELLO) is None
    assert profile_problem(PROFILE) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("cores", 0.0), ("cores", math.nan), ("cores", math.inf), ("utilisation_cap", 1.0), ("power_w", -1.0)],
)
def test_a_hello_with_a_senseless_number_names_it(field: str, value: Any) -> None:
    assert field in str(hello_problem(replace(HELLO, **_only(field, value))))


def test_a_negative_price_is_refused() -> None:
    assert "core_s_usd" in str(hello_problem(replace(HELLO, prices=Prices(core_s_usd=-1e-6))))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("field", ["mean_s", "var_s2", "p95_s", "output_mean_bytes", "output_var_bytes2"])
def test_a_senseless_measurement_names_variant_and_field(field: str, value: Any) -> None:
    profile = replace(PROFILE.profile, operators={"a": replace(MEASURED, **_only(field, value))})
    assert f"a.{field}" in str(profile_problem(replace(PROFILE, profile=profile)))


@pytest.mark.parametrize(
    ("field", "value"), [("rtt_s", math.nan), ("up_bps", 0.0), ("down_bps", -5.0), ("rel_sd", math.inf)]
)
def test_a_senseless_link_names_target_and_field(field: str, value: Any) -> None:
    links = (replace(LINK, **_only(field, value)),)
    problem = str(profile_problem(replace(PROFILE, links=links)))
    assert "edge" in problem
    assert field in problem
