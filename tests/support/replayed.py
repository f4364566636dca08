"""A made-up pipeline whose scores and times are all known: a profiler is driven by it, and judged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.profiler.selective import Decide, Decisions, Options, Profiler, Space, space_of
from compass_coordinator.profiler.selective.space import Floats
from compass_shared.measured import Done, InputInfo, Job, OperatorRun, Score
from compass_shared.pipeline import REQUEST, Pipeline
from support.agents import pipeline_of, python_operator

PAGES = pipeline_of(
    "pages",
    python_operator("shrink", REQUEST, knobs={"side": (1, 2, 4)}),
    python_operator("find", "shrink", knobs={"model": (1, 2)}),
    python_operator("read", "find", knobs={"model": (1, 2), "clean": (0, 1)}),
)
"""24 configs of three operators in a row."""
TIMES_S = {"shrink": 0.01, "find": 0.05, "read": 0.2}
FAILED = "the operator failed"


@dataclass(kw_only=True, eq=False)
class Replayed:
    """What measuring processes would say.

    Accuracies are what knobs add, with something for all of them together; inputs differ in how hard they
    are, which a feature tells roughly, and configs in how much that matters.

    Attributes:
        pipeline: Its configs.
        inputs: How many there are.
        kind: "ratio" counts words, of which inputs have different numbers.
        fails: Keys of configs that have no score on any input.
        spent_s: Operator-seconds so far, of results that were not there yet.
    """

    pipeline: Pipeline = PAGES
    inputs: int = 40
    seed: int = 1
    kind: str = "mean"
    fails: frozenset[str] = frozenset()
    spent_s: float = 0.0
    space: Space = field(init=False)
    infos: tuple[InputInfo, ...] = field(init=False)
    above: Floats = field(init=False)
    below: Floats = field(init=False)
    times_s: Floats = field(init=False)
    _there: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.space = space_of(self.pipeline)
        levels = self.space.levels
        ranks = levels / np.maximum(levels.max(axis=0, initial=0), 1)
        ability = 0.35 + ranks @ np.linspace(0.1, 0.35, levels.shape[1]) + 0.1 * ranks.prod(axis=1)
        hardness = rng.beta(1, 3, size=(self.inputs, 1))
        surprise = 0.08 * rng.standard_normal((self.inputs, len(self.space)))
        scores = np.clip(ability + 0.25 - hardness * (1.1 - 0.4 * ability) + surprise, 0.0, 1.0)
        words = rng.integers(3, 40, size=(self.inputs, 1))
        self.below = np.ones_like(scores) if self.kind == "mean" else words * np.ones_like(scores)
        self.above = scores if self.kind == "mean" else np.round(scores * words)
        self.above[:, [key in self.fails for key in self.space.keys]] = 0.0
        rough = hardness[:, 0] + 0.05 * rng.standard_normal(self.inputs)
        self.infos = tuple(
            InputInfo(name=f"page-{at}", group="", features=(value,), size_bytes=1000 + at)
            for at, value in enumerate(rough)
        )
        base = np.array([TIMES_S.get(variant.partition("[")[0], 0.1) for variant in self.space.variants])
        self.times_s = base * rng.uniform(0.5, 2.0, size=len(base))

    @property
    def truth(self) -> Floats:
        """(configs,) accuracies."""
        return np.asarray(self.above.sum(axis=0) / self.below.sum(axis=0))

    @property
    def exhaustive_s(self) -> float:
        """Operator-seconds of measuring everything, each result once."""
        return float(self.times_s[self.space.node_variant].sum()) * self.inputs

    def answer(self, job: Job) -> Done:
        """What a measuring process answers to a job."""
        runs: list[OperatorRun] = []
        scores: dict[str, Score | None] = {}
        for key in job.configs:
            at = self.space.keys.index(key)
            runs += [self._run(node) for node in self.space.nodes[at] if self._is_new(job.input, int(node))]
            score = Score(
                numerator=float(self.above[job.input, at]), denominator=float(self.below[job.input, at])
            )
            scores[key] = None if key in self.fails else score
        problems = {key: FAILED for key, score in scores.items() if score is None}
        return Done(id=job.id, input=job.input, scores=scores, problems=problems, runs=tuple(runs))

    def profiler(self, decide: Decide, options: Options | None = None) -> Profiler:
        """A fresh one; the same every time."""
        return Profiler(
            self.pipeline, self.infos, decide, np.random.default_rng(7), kind=self.kind, options=options
        )

    def queries(self, count: int = 200) -> Decisions:
        """Queries that pay for time and ask for accuracies that some config has."""
        rng = np.random.default_rng(self.seed + 1)
        work_s = self.times_s[self.space.node_variant[self.space.nodes]].sum(axis=1)
        slowest = rng.choice(work_s, size=(count, 1))
        return Decisions(
            costs=np.where(
                work_s <= slowest, work_s * rng.uniform(0.5, 1.5, size=(count, len(work_s))), np.inf
            ),
            needed=rng.uniform(0.3, self.truth.max(), size=count),
            weights=np.ones(count),
        )

    def _is_new(self, place: int, node: int) -> bool:
        new = (place, node) not in self._there
        self._there.add((place, node))
        return new

    def _run(self, node: int) -> OperatorRun:
        variant = int(self.space.node_variant[node])
        seconds = float(self.times_s[variant])
        self.spent_s += seconds
        return OperatorRun(
            variant=self.space.variants[variant], cpu_s=seconds, wall_s=seconds, output_bytes=100 + variant
        )


def drive(replayed: Replayed, profiler: Profiler, *, jobs: int = 100_000) -> list[Done]:
    """Ask and tell until it is finished, or so many jobs were done; returns the answers."""
    told: list[Done] = []
    while (asked := profiler.ask()) and len(told) < jobs:
        for job in asked[: jobs - len(told)]:
            told.append(replayed.answer(job))
            profiler.tell(told[-1])
    return told


def right(decisions: Decisions, truth: Floats, believed: Floats) -> float:
    """Share of queries whose choice costs what the best one costs, within 1%, and is accurate enough."""
    best, chosen = decisions.chosen(truth), decisions.chosen(believed)
    rows = np.arange(len(best))
    paid = np.where(chosen >= 0, decisions.costs[rows, chosen], np.inf)
    least = np.where(best >= 0, decisions.costs[rows, best], np.inf)
    serves = (chosen < 0) | (truth[chosen] >= decisions.needed)
    return float(np.mean(serves & ((chosen == best) | (paid <= least * 1.01))))
