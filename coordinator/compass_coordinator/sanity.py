"""Numbers from the wire that no planner should meet: refused on arrival, with the field that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compass_shared.messages import HelloMessage, LinkReport, ProfileMessage, ServedMessage
from compass_shared.profile import OperatorProfile, SiteProfile

MAX_CORES = 100_000.0
MAX_AMOUNT = 1e30
"""Of anything: squares of what is larger are no numbers any more."""


def hello_problem(hello: HelloMessage) -> str | None:
    """What is wrong with a hello's numbers, or None."""
    if not 0 < hello.cores <= MAX_CORES:
        return f"cores is {hello.cores}"
    if not 0 < hello.utilisation_cap < 1:
        return f"utilisation_cap is {hello.utilisation_cap}, not between 0 and 1"
    prices = hello.prices
    named = {
        "power_w": hello.power_w,
        "prices.core_s_usd": prices.core_s_usd,
        "prices.egress_byte_usd": prices.egress_byte_usd,
        "prices.energy_j_usd": prices.energy_j_usd,
    }
    return next((f"{name} is {value}" for name, value in named.items() if not _is_amount(value)), None)


def profile_problem(message: ProfileMessage) -> str | None:
    """What is wrong with a profile's numbers, or None."""
    for name, value in _amounts(message.profile):
        if not _is_amount(value):
            return f"{name} is {value}"
    return next((problem for link in message.links if (problem := _link_problem(link)) is not None), None)


def served_problem(message: ServedMessage) -> str | None:
    """What is wrong with the numbers of a report of serving, or None."""
    if not _is_amount(message.over_s):
        return f"over_s is {message.over_s}"
    for variant, found in message.operators.items():
        if found.count < 1:
            return f"{variant}.count is {found.count}"
        if not found.mean_s > 0:
            return f"{variant}.mean_s is {found.mean_s}"
    named = _operator_amounts(message.operators)
    return next((f"{name} is {value}" for name, value in named if not _is_amount(value)), None)


def _amounts(profile: SiteProfile) -> Iterator[tuple[str, float]]:
    yield "request_mean_bytes", profile.request_mean_bytes
    yield "request_var_bytes2", profile.request_var_bytes2
    yield "overhead_s", profile.overhead_s
    yield from ((f"slowdowns.{name}", value) for name, value in profile.slowdowns.items())
    yield from _operator_amounts(profile.operators)


def _operator_amounts(operators: Mapping[str, OperatorProfile]) -> Iterator[tuple[str, float]]:
    for variant, found in operators.items():
        yield f"{variant}.count", found.count
        yield f"{variant}.mean_s", found.mean_s
        yield f"{variant}.var_s2", found.var_s2
        yield f"{variant}.p95_s", found.p95_s
        yield f"{variant}.output_mean_bytes", found.output_mean_bytes
        yield f"{variant}.output_var_bytes2", found.output_var_bytes2
        yield from ((f"{variant}.mean_interval_s", end) for end in found.mean_interval_s or ())
        yield from ((f"{variant}.p95_interval_s", end) for end in found.p95_interval_s or ())


def _link_problem(link: LinkReport) -> str | None:
    for name in ("rtt_s", "rtt_var_s2", "rel_sd"):
        if not _is_amount(getattr(link, name)):
            return f"link to {link.target}: {name} is {getattr(link, name)}"
    for name in ("up_bps", "down_bps"):
        value = getattr(link, name)
        if not _is_amount(value) or value == 0:
            return f"link to {link.target}: {name} is {value}"
    return None


def _is_amount(value: float) -> bool:
    return 0 <= value <= MAX_AMOUNT  # NaN is neither
