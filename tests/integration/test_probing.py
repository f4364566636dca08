"""What an agent did not measure is asked for over the wire, and what serving takes is learned from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compass_agent import core as agent_core
from compass_agent import probing as agent_probing
from compass_agent.probing import Measure
from compass_coordinator import core as coordinator_core
from compass_coordinator import shell as coordinator_shell
from compass_coordinator.profiler.latency.completion import variants_of
from compass_shared.topics import Kind, parse
from support.fleets import BrokerInMemory, FleetRig, Traffic, declare, planned_at, query_of, until


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FleetRig]:
    monkeypatch.setattr(coordinator_core, "SETTLE_S", 0.1)
    monkeypatch.setattr(coordinator_shell, "RETAINED_QUIET_S", 0.3)
    monkeypatch.setattr(coordinator_shell, "TICK_S", 0.02)
    monkeypatch.setattr(agent_probing, "first_probes", lambda _pipeline: ("label",))
    monkeypatch.setattr(agent_core, "SERVED_EVERY", 1)
    rig = FleetRig(tmp_path, BrokerInMemory(), "probing")
    try:
        yield rig
    finally:
        await rig.close()


async def test_what_decides_is_measured_and_what_serves_is_learned_from(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    device = await fleet.device(measure=Measure.PROBES)
    declare(device, query_of(device))
    await until(planned_at(device, "phone"), "a plan, for which everything had to be measured", 8)
    assert coordinator.core is not None
    assert fleet.notes == []
    profile = coordinator.fleet.agents["phone"].profiles["tiny"]
    assert set(profile.operators) == set(variants_of(coordinator.fleet.pipelines["tiny"]))
    assert not [topic for topic in await fleet.retained() if parse(topic).kind is Kind.PROBE]
    async with Traffic(device, "q1").flowing():
        await until(
            lambda: coordinator.fleet.feedback.applied(profile) is not profile, "what serving took to be said"
        )
    assert coordinator.core.refused_messages == 0


async def test_a_device_that_measures_nothing_is_planned_by_the_profile_it_names(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    known = await fleet.device()
    declare(known, query_of(known))
    await until(planned_at(known, "phone"), "a plan of the one that measured")
    measured = coordinator.fleet.agents["phone"].profiles["tiny"]
    await fleet.stop(known)
    await fleet.stop(coordinator)

    await fleet.coordinator(references={"tiny": measured})
    device = await fleet.device(name="newcomer", measure=Measure.NOTHING, device_profile="raspberry-pi-4")
    declare(device, query_of(device, "q2"))
    await until(planned_at(device, "newcomer", "q2"), "a plan from a device profile alone")
