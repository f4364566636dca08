"""What an agent measures, in which order: its own choice, what it is asked for, one thing at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_agent import events as ev
from compass_agent.core import SERVED_EVERY
from compass_agent.probing import FIRST_PROBES, Measure, ProbeBook, first_probes, variants_of
from compass_shared.messages import MAX_PROBES, CoordinatorMessage, ProbeMessage, ServedMessage
from compass_shared.model_ref import ModelRef
from compass_shared.pipeline import REQUEST, Operator
from compass_shared.profile import OperatorProfile
from compass_shared.topics import Kind
from support.agents import CHAIN, DIAMOND, PIPELINES, CheckedAgent, pipeline_of, python_operator, sends

TELEMETRY_DUE = ev.TelemetryDue(cpu_share=0.5, memory_used_bytes=1, memory_total_bytes=2)
READ = OperatorProfile(variant="read", mean_s=0.1, var_s2=0.0, p95_s=0.1, count=9, output_mean_bytes=5.0)
SMALL, LARGE = "shrink[side=320]", "shrink[side=640]"


def asked(
    *variants: str, epoch: int = 1, digest: str = CHAIN.digest, pipeline: str = "chain"
) -> ev.ProbesAsked:
    probes = ProbeMessage(pipeline=pipeline, digest=digest, variants=variants, epoch=epoch)
    return ev.ProbesAsked(probes=probes)


def measure(pipeline: str, *variants: str) -> ev.MeasureOperators:
    return ev.MeasureOperators(pipeline=pipeline, variants=variants or None)


def agent_that(measures: Measure) -> CheckedAgent:
    return CheckedAgent(measure=measures)


# --- the agent's own choice -----------------------------------------------------------------------


def test_everything_is_measured_one_pipeline_after_the_other() -> None:
    agent = agent_that(Measure.FULL)
    assert agent(ev.MeasuringDue()) == [measure("chain")]
    assert agent(ev.MeasuringEnded()) == [measure("diamond")]
    assert agent(ev.MeasuringEnded()) == []
    assert agent(ev.MeasuringDue()) == [], "once is enough"


def test_an_agent_of_probes_measures_a_handful() -> None:
    agent = agent_that(Measure.PROBES)
    (action,) = agent(ev.MeasuringDue())
    assert isinstance(action, ev.MeasureOperators)
    assert action.variants == first_probes(CHAIN)


def test_an_agent_that_measures_nothing_is_not_talked_into_it() -> None:
    agent = agent_that(Measure.NOTHING)
    assert agent(ev.MeasuringDue()) == []
    assert agent(asked(SMALL)) == []
    assert agent.core.refused_messages == 1


def test_the_first_probes_are_far_apart_in_work_and_of_every_class() -> None:
    def model(size_bytes: int) -> ModelRef:
        return ModelRef(uri="file:model.onnx", sha256="0" * 64, size_bytes=size_bytes)

    detect = Operator(
        name="detect",
        inputs=(REQUEST,),
        runtime="onnx",
        knobs={"model": ("tiny", "huge", "middle")},
        model_knob="model",
        speed_class="onnx-fp32",
    )
    models = {"tiny": model(10), "middle": model(500), "huge": model(1000)}
    pipeline = replace(
        pipeline_of("p", detect, python_operator("crop", "detect", knobs={"side": (1, 2, 3, 4)})),
        models=models,
    )
    assert first_probes(pipeline) == (
        "detect[model=huge]",
        "crop[side=4]",
        "detect[model=tiny]",
        "crop[side=1]",
        "detect[model=middle]",
    )
    assert first_probes(pipeline, 1) == ("detect[model=huge]",)
    assert len(first_probes(CHAIN)) <= FIRST_PROBES
    assert set(first_probes(DIAMOND)) <= variants_of(DIAMOND).keys()


# --- what it is asked for -------------------------------------------------------------------------


def test_what_is_asked_for_is_measured_when_nothing_else_is() -> None:
    agent = agent_that(Measure.FULL)
    agent(ev.MeasuringDue())
    assert agent(asked(SMALL)) == [], "one thing at a time"
    assert agent(ev.MeasuringEnded()) == [measure("diamond")]
    assert agent(ev.MeasuringEnded()) == [measure("chain", SMALL)]
    assert agent(ev.MeasuringEnded()) == []
    assert agent(asked(LARGE, "find")) == [measure("chain", LARGE, "find")]


def test_whoever_asks_first_chooses_the_first_probes() -> None:
    agent = agent_that(Measure.PROBES)
    assert agent(asked(LARGE)) == [], "models are fetched from the fleet: not before it was heard"
    assert agent(ev.MeasuringDue()) == [measure("chain", LARGE)]


def test_what_waits_already_is_not_measured_twice() -> None:
    agent = agent_that(Measure.PROBES)
    agent(ev.MeasuringDue())
    agent(asked(SMALL))
    agent(asked(LARGE, SMALL))
    agent(ev.MeasuringEnded())
    assert agent(ev.MeasuringEnded()) == [measure("chain", SMALL, LARGE)]


def test_all_of_a_pipeline_has_room_for_every_wish() -> None:
    book = ProbeBook(PIPELINES, Measure.FULL)
    book.begin()
    assert book.ask(asked(SMALL).probes) is None
    assert book.next() == measure("chain")
    book.ended()
    assert book.next() == measure("diamond")
    book.ended()
    assert book.next() is None


@pytest.mark.parametrize(
    "event",
    [
        asked(SMALL, epoch=2),
        asked(SMALL, digest="other"),
        asked(SMALL, pipeline="unknown"),
        asked("shrink[side=1]"),
        asked(),
        asked(*([SMALL] * (MAX_PROBES + 1))),
    ],
    ids=["old coordinator", "other digest", "not installed", "no such variant", "nothing", "too many"],
)
def test_what_cannot_be_measured_is_refused_and_counted(event: ev.ProbesAsked) -> None:
    agent = agent_that(Measure.PROBES)
    agent(ev.CoordinatorArrived(status=CoordinatorMessage(online=True, epoch=3)))
    event = event if event.probes.epoch == 2 else ev.ProbesAsked(probes=replace(event.probes, epoch=3))
    before = agent.core.refused_messages
    assert agent(event) == []
    assert agent.core.refused_messages == before + 1
    agent(ev.MeasuringDue())


def test_unknown_variants_do_not_keep_the_known_from_being_measured() -> None:
    agent = agent_that(Measure.FULL)
    agent(ev.MeasuringDue())
    agent(ev.MeasuringEnded())
    agent(ev.MeasuringEnded())
    assert agent(asked("shrink[side=1]", LARGE)) == [measure("chain", LARGE)]


# --- what serving took ----------------------------------------------------------------------------


def test_what_serving_took_is_reported_every_so_often() -> None:
    agent = agent_that(Measure.NOTHING)
    agent(ev.BrokerConnected(session=101))
    counted = [ev.CountServed() in agent(TELEMETRY_DUE) for _ in range(2 * SERVED_EVERY)]
    assert [place for place, due in enumerate(counted, 1) if due] == [SERVED_EVERY, 2 * SERVED_EVERY]
    (send,) = sends(agent(ev.ServedCounted(over_s=60.0, operators={"chain": {"read": READ}})))
    message = ServedMessage(
        session=101, pipeline="chain", digest=CHAIN.digest, operators={"read": READ}, over_s=60.0
    )
    assert send == ev.Send(kind=Kind.SERVED, message=message, qos=0)
    assert agent(ev.ServedCounted(over_s=60.0, operators={})) == []


def test_while_the_broker_is_gone_nothing_is_counted_or_sent() -> None:
    agent = agent_that(Measure.NOTHING)
    assert all(agent(TELEMETRY_DUE) == [] for _ in range(SERVED_EVERY))
    assert agent(ev.ServedCounted(over_s=60.0, operators={"chain": {"read": READ}})) == []
