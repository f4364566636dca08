"""The measuring pool with processes that are played: who does what, and what becomes of those that crash."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from compass_coordinator.measuring.job_queue import JobQueue
from compass_coordinator.measuring.pool import MeasuringPool
from compass_shared.errors import BackendError, ConfigError, MessageError, ProfileError
from compass_shared.measured import Done, InputInfo, Job, OperatorRun, Ready, Score

READY = Ready(
    pipeline="words",
    digest="d",
    code_sha256="c",
    split="profiling",
    metric="words",
    kind="mean",
    inputs=tuple(InputInfo(name=f"input-{i}", group="", features=(), size_bytes=1) for i in range(3)),
)
ONE = Score(numerator=1.0)


class Played:
    """A process that scores 1, and ends over configs that are called so."""

    def __init__(self, measured: list[Job], ready: Ready | Exception) -> None:
        self._measured = measured
        self._ready = ready
        self.ended = threading.Event()

    def ready(self) -> Ready:
        if isinstance(self._ready, Exception):
            raise self._ready
        return self._ready

    def measure(self, job: Job) -> Done:
        self._measured.append(job)
        if "hangs" in job.configs:
            self.ended.wait()
            raise BackendError("it was terminated")
        if "crashes" in job.configs or ("fails first" in job.configs and len(self._measured) == 1):
            raise BackendError("exit code 9")
        if "babbles" in job.configs:
            raise MessageError("not a Done")
        run = OperatorRun(variant=job.configs[0], cpu_s=1.0, wall_s=1.0, output_bytes=1)
        scores: dict[str, Score | None] = dict.fromkeys(job.configs, ONE)
        return Done(id=job.id, input=job.input, scores=scores, runs=(run,), reused=1)

    def terminate(self) -> None:
        self.ended.set()

    def end(self) -> int:
        self.ended.set()
        return -15


class Stage:
    """Starts played processes and remembers them."""

    def __init__(self, *ready: Ready | Exception) -> None:
        self._ready = ready or (READY,)
        self.children: list[Played] = []
        self.measured: list[Job] = []

    def __call__(self, arguments: Sequence[str]) -> Played:
        ready = self._ready[min(len(self.children), len(self._ready) - 1)]
        self.children.append(Played(self.measured, ready))
        return self.children[-1]


Open = Callable[..., MeasuringPool]


@pytest.fixture
def open_pool(tmp_path: Path) -> Iterator[Open]:
    pools: list[MeasuringPool] = []

    def open_pool(stage: Stage, *, workers: int = 1) -> MeasuringPool:
        pools.append(MeasuringPool(tmp_path, tmp_path, "profiling", workers=workers, start_child=stage))
        return pools[-1]

    yield open_pool
    for pool in pools:
        pool.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("measuring ")]


def job(number: int, *configs: str, index: int = 0) -> Job:
    return Job(id=number, input=index, configs=configs or ("a",))


def test_every_job_is_done_once(open_pool: Open) -> None:
    pool = open_pool(Stage(), workers=2)
    assert pool.start() == READY
    for number in range(9):
        pool.submit(job(number, index=number % 3))
    assert pool.outstanding == 9
    assert sorted(done.id for done in pool.results()) == list(range(9))
    assert (pool.outstanding, pool.next_done(), list(pool.results())) == (0, None, [])


def test_jobs_may_follow_from_results(open_pool: Open) -> None:
    pool = open_pool(Stage())
    pool.start()
    pool.submit(job(0))
    seen = []
    for done in pool.results():
        seen.append(done.id)
        if done.id < 3:
            pool.submit(job(done.id + 1))
    assert seen == [0, 1, 2, 3]


def test_a_crash_is_tried_again_in_a_fresh_process(open_pool: Open) -> None:
    stage = Stage()
    pool = open_pool(stage)
    pool.start()
    pool.submit(job(0, "a", "fails first"))
    (done,) = pool.results()
    assert done.scores == {"a": ONE, "fails first": ONE}
    assert [child.ended.is_set() for child in stage.children] == [True, False]


def test_configs_that_crash_cost_no_other(open_pool: Open) -> None:
    stage = Stage()
    pool = open_pool(stage)
    pool.start()
    pool.submit(job(5, "a", "b", "crashes", "c", "d", index=2))
    (done,) = pool.results()
    assert (done.id, done.input) == (5, 2)
    assert done.scores == {"a": ONE, "b": ONE, "crashes": None, "c": ONE, "d": ONE}
    assert done.problems == {"crashes": "exit code 9"}
    assert (len(done.runs), done.reused) == (2, 2), "what the parts ran is added up"
    assert [" ".join(one.configs) for one in stage.measured] == [
        "a b crashes c d",
        "a b crashes c d",
        "a b",
        "crashes c d",
        "crashes",
        "c d",
    ]
    pool.submit(job(6, "a"))
    assert next(pool.results()).scores == {"a": ONE}, "and the next job finds a fresh process"
    assert [child.ended.is_set() for child in stage.children] == [True] * 4 + [False]


def test_closing_ends_what_is_in_the_middle_of_a_job(open_pool: Open) -> None:
    stage = Stage()
    pool = open_pool(stage, workers=2)
    pool.start()
    pool.submit(job(0, "hangs", index=0))
    pool.submit(job(1, "a", index=1))
    assert next(pool.results()).id == 1
    assert pool.next_done(timeout_s=0) is None
    pool.close()
    assert all(child.ended.is_set() for child in stage.children)
    assert len(stage.children) == 2, "nothing is started to try it again"


def test_a_bundle_that_is_refused_is_refused_here(open_pool: Open) -> None:
    with pytest.raises(ConfigError, match="no metric"):
        open_pool(Stage(ConfigError("no metric"))).start()


def test_a_fresh_process_that_cannot_be_started_ends_it(open_pool: Open) -> None:
    pool = open_pool(Stage(READY, BackendError("no memory")))
    pool.start()
    pool.submit(job(0, "crashes"))
    with pytest.raises(BackendError, match="no memory"):
        pool.next_done()


def test_an_answer_that_is_none_ends_it(open_pool: Open) -> None:
    """It is no fault of the configs, so that none of them may go without a score for it."""
    pool = open_pool(Stage())
    pool.start()
    pool.submit(job(0, "a", "babbles"))
    with pytest.raises(MessageError, match="not a Done"):
        pool.next_done()


def test_a_bundle_that_changed_meanwhile_is_noticed(open_pool: Open) -> None:
    pool = open_pool(Stage(READY, msgspec.structs.replace(READY, code_sha256="other")))
    pool.start()
    pool.submit(job(0, "crashes"))
    with pytest.raises(ProfileError, match="changed while it was measured"):
        pool.next_done()


def test_an_input_stays_with_its_process() -> None:
    queue = JobQueue(shared=False)
    for number in range(6):
        queue.put(job(number, index=number // 3))
    first, second = queue.take(0), queue.take(1)
    assert first is not None
    assert second is not None
    assert (first.input, second.input) == (0, 1)
    queue.finish(first)
    again = queue.take(0)
    assert again is not None
    assert again.id == 1, "in the order that they came"
    assert queue.take(2) is None, "the results of both are in other processes"


def test_with_shared_results_an_idle_process_takes_over() -> None:
    queue = JobQueue(shared=True)
    for number in range(3):
        queue.put(job(number, index=0))
    first = queue.take(0)
    assert first is not None
    assert queue.take(1) is None, "two at once would run the same prefix twice"
    queue.finish(first)
    assert queue.take(1) == job(1, index=0)
    assert queue.take(0) is None
