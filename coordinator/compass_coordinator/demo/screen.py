"""What the demo shows: a live table while it serves, and the summary at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compass_coordinator.demo.scores import PhaseTotal, Served, Verdict, by_pipeline, served
from compass_coordinator.demo.state import StageState
from compass_shared.pipeline import Pipeline
from compass_shared.query import Query

Json = Mapping[str, Any]

WIDE = 140
"""Columns from which each query fits on a line or two."""

PHASES = {
    "compass": "Compass",
    "device": "all on device",
    "cloud": "all in the cloud",
    "fixed": "a fixed split",
}


def live(state: StageState, phase: str, queries: Sequence[Query], *, width: int) -> RenderableType:
    """The screen while a phase runs."""
    parts: list[RenderableType] = [Text(state.stage, style="bold")]
    if state.measuring:
        text = ", ".join(f"{name} {rounds}" for name, rounds in sorted(state.measuring.items()))
        parts.append(Text(f"measuring: {text}"))
    if state.planned is not None and set(state.planned["queries"]) == {query.name for query in queries}:
        parts.append(query_table(phase, queries, state.planned, rows_of(queries, state), width=width))
    parts.extend(Text(note, style="yellow") for note in state.notes[-3:])
    return Group(*parts)


def rows_of(queries: Sequence[Query], state: StageState) -> dict[str, Served]:
    """What every query's requests came to so far."""
    assert state.planned is not None
    return {
        query.name: served(
            query,
            [request for request in state.requests if request["query"] == query.name],
            state.planned["sites"],
            clips=query.pipeline in state.clips,
        )
        for query in queries
    }


def query_table(
    phase: str, queries: Sequence[Query], planned: Json, rows: Mapping[str, Served], *, width: int
) -> RenderableType:
    """Every query with its SLO, its plan, what was predicted and measured, and the verdict.

    Args:
        phase: What is shown.
        queries: All queries.
        planned: The coordinator's decisions.
        rows: Query -> what became of it.
        width: Columns of the screen; a narrow one gets its figures below each other.
    """
    emulated = sorted(site["emulated"] for site in planned["sites"].values() if site["emulated"])
    title = f"{PHASES.get(phase, phase)} - times are emulated: {', '.join(emulated)}" if emulated else phase
    table = _wide_table(title) if width >= WIDE else _narrow_table(title)
    groups = by_pipeline(queries)
    for pipeline, own in groups.items():
        if len(groups) > 1:
            table.add_section()
            table.add_row(f"[bold]{pipeline}[/bold]")
        for query in own:
            cells = _cells(query, planned["queries"][query.name], rows[query.name], wide=width >= WIDE)
            table.add_row(*cells)
    return table


def _cells(query: Query, decision: Json, row: Served, *, wide: bool) -> tuple[str, ...]:
    plan = escape(
        "\n".join([decision["line"] or f"refused: {decision['refusal']}", *_floors(query, decision)])
    )
    rate, verdict = f"{query.rate_hz:g}", _verdict(row.verdict)
    figures = _figures(query, decision, row)
    if wide:
        return (query.name, rate, plan, *(" | ".join(three) for three in figures), str(row.sent), verdict)
    name = f"{query.name}\n{rate}/s, n = {row.sent}\n{verdict}"
    return (name, plan, "SLO\npredicted\nmeasured", *("\n".join(three) for three in figures))


def _floors(query: Query, decision: Json) -> list[str]:
    """What a plan is expected to reach of the extra metrics that the SLO sets a floor for, a line each."""
    planned = ((decision["plan"] or {}).get("estimate") or {}).get("metrics") or {}
    return [
        f"{name} {planned[name]:.2f}, SLO {least:g}"
        for name, least in query.slo.metrics.items()
        if name in planned
    ]


def _wide_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("query", no_wrap=True)
    table.add_column("/s", justify="right")
    table.add_column("plan", ratio=1)
    table.add_column("p95 ms\nSLO | pred | meas", justify="right", no_wrap=True)
    table.add_column("accuracy\nSLO | sure of | meas", justify="right", no_wrap=True)
    table.add_column("mUSD per 1,000\nSLO | pred | meas", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("SLO", no_wrap=True)
    return table


def _narrow_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True, expand=True, padding=(0, 0))
    table.add_column("query", no_wrap=True)
    table.add_column("plan", ratio=1)
    table.add_column("", no_wrap=True)
    table.add_column("p95\nms", justify="right", no_wrap=True)
    table.add_column("accu-\nracy", justify="right", no_wrap=True)
    table.add_column("mUSD/\n1,000", justify="right", no_wrap=True)
    return table


def _figures(query: Query, decision: Json, row: Served) -> tuple[tuple[str, str, str], ...]:
    """Latency in ms, accuracy, cost in thousandths of a dollar: each as SLO, predicted, measured."""
    estimate = (decision["plan"] or {}).get("estimate") or {}
    slo = query.slo
    return (
        _three(slo.latency_p95_s, estimate.get("latency_p95_s"), row.latency_p95_s, 1e3, 0),
        _three(slo.accuracy, estimate.get("accuracy"), row.accuracy, 1, 2),
        _three(slo.cost_usd_per_1000, estimate.get("cost_usd_per_1000"), row.cost_usd_per_1000, 1e3, 2),
    )


def total_table(
    totals: Sequence[PhaseTotal],
    queries: Sequence[Query],
    pipelines: Mapping[str, Sequence[PhaseTotal]],
) -> RenderableType:
    """One line a phase: planned and measured goodput side by side.

    Args:
        totals: Of every phase.
        queries: All queries.
        pipelines: Pipeline -> the same for its queries alone, where there are several.
    """
    weight = sum(query.weight for query in queries)
    table = Table(
        title="Same queries, same inputs, all run for real (emulated devices)", title_justify="left"
    )
    table.add_column("")
    table.add_column(f"goodput planned\n(weight of {weight:g})", justify="right")
    table.add_column(f"goodput measured\n(weight of {weight:g})", justify="right")
    table.add_column(f"queries planned | met\n(of {len(queries)})", justify="right")
    table.add_column("good requests\nper second", justify="right")
    table.add_column("sent | answered |\nrefused | failed", justify="right")
    table.add_column("mUSD\nan hour", justify="right")
    for name, own in by_pipeline(queries).items() if pipelines else ():
        of = f"[bold]of {sum(query.weight for query in own):g}[/bold]"
        table.add_row(f"[bold]{name}[/bold]", of, of, f"[bold]of {len(own)}[/bold]")
        _add_totals(table, pipelines[name])
    if pipelines:
        table.add_row("[bold]all[/bold]")
    _add_totals(table, totals)
    return table


def _add_totals(table: Table, totals: Sequence[PhaseTotal]) -> None:
    for total in totals:
        table.add_row(
            PHASES.get(total.phase, total.phase),
            f"{total.planned_goodput:g}",
            f"{total.met_goodput:g}",
            f"{total.planned_queries} | {total.met_queries}",
            f"{total.good_per_s:.2f}",
            f"{total.sent} | {total.answered} | {total.refused} | {total.failed}",
            f"{1e3 * total.cost_usd_per_hour:.2f}",
        )
    table.add_section()


def accuracy_table(checks: Sequence[Json]) -> RenderableType:
    """Configs measured again beside what the profile says of the same inputs."""
    table = Table(title="Accuracy profile, checked live on the same inputs", title_justify="left")
    table.add_column("pipeline", no_wrap=True)
    table.add_column("config", ratio=1)
    table.add_column("inputs", justify="right")
    table.add_column("profile", justify="right")
    table.add_column("now", justify="right")
    for check in checks:
        figures = (f"{check['profile']:.4f}", f"{check['now']:.4f}")
        table.add_row(check["pipeline"], escape(check["config"]), str(check["inputs"]), *figures)
    return table


def hint(phases: Sequence[Mapping[str, Served]]) -> str | None:
    """How much the verdicts rest on, in words; None where nothing was answered.

    Args:
        phases: Of every phase, query -> what became of it.
    """
    answered = [row for rows in phases for row in rows.values() if row.answered]
    if not answered:
        return None
    sent = [row.sent for row in answered]
    clips = [row.clips for row in answered if row.clips is not None]
    scored = f", accuracies of streams on {_range(clips)} clips" if clips else ""
    return (
        f"Verdicts rest on {_range(sent)} requests a query{scored}: "
        "a p95 of so few is nearly the slowest one, and an accuracy can miss its SLO by chance. "
        "--seconds takes more."
    )


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def fixed_split_lines(pipelines: Iterable[Pipeline]) -> list[str]:
    """The split that a practitioner would choose for each pipeline that names one."""
    return [
        f"fixed split of {pipeline.name}: {split_line(pipeline.fixed_split)}"
        for pipeline in pipelines
        if pipeline.fixed_split
    ]


def split_line(split: Mapping[str, str]) -> str:
    """``device: prepare detect | edge: recognise``."""
    tiers: dict[str, list[str]] = {}
    for operator, tier in split.items():
        tiers.setdefault(tier, []).append(operator)
    return " | ".join(f"{tier}: {' '.join(operators)}" for tier, operators in tiers.items())


def _three(
    slo: float, predicted: float | None, measured: float | None, factor: float, digits: int
) -> tuple[str, str, str]:
    def text(value: float | None) -> str:
        return "-" if value is None else f"{factor * value:.{digits}f}"

    return text(slo), text(predicted), text(measured)


def _verdict(verdict: Verdict) -> str:
    match verdict:
        case Verdict.MET:
            return "[green]met[/green]"
        case Verdict.IDLE:
            return "[dim]-[/dim]"
        case Verdict.REFUSED:
            return "[yellow]refused[/yellow]"
        case _:
            return (
                f"[red]broke {verdict.value}[/red]" if verdict is not Verdict.FAILED else "[red]failed[/red]"
            )
