"""Measuring on all cores: jobs go to child processes, scores come back as they are found.

Operators are code of the bundle and may take their process down. A job whose process ended is tried again in
a fresh one; if that ends too, its configs are tried in halves, until those that end it are alone and are
reported without a score. So a config that crashes costs no other config anything. What a process ran before
it ended is not among the runs that are reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol

import msgspec

from compass_coordinator.measuring.child import MeasuringChild
from compass_coordinator.measuring.job_queue import JobQueue
from compass_shared.errors import BackendError, CompassError, ProfileError
from compass_shared.measured import Done, Job, Ready


class Child(Protocol):
    """A measuring process; ``MeasuringChild`` is one."""

    def ready(self) -> Ready:
        """Wait until it can be asked."""

    def measure(self, job: Job) -> Done:
        """Have one job done; raises BackendError if the process ended over it, all else ends the run."""

    def terminate(self) -> None:
        """Have it end soon; any thread may call this."""

    def end(self) -> int:
        """End it and wait until it did."""


class MeasuringPool:
    """Processes that score configs of one bundle on the inputs of one split.

    One thread uses it, as a context manager. A process keeps operator results of its inputs in memory, so
    the jobs of one input go to one process. With a cache folder, which all share, another process that has
    nothing to do takes over an input that is not being worked on.

    Args:
        bundle_folder: Folder with pipeline.toml.
        cache_root: Folder of the model cache.
        split: Which inputs.
        workers: How many processes.
        cache_bytes: Limit of the cache folder.
        cache_folder: Where operator results are kept from one run to the next, if at all.
        memory_bytes: Limit of the operator results in memory, of each process.
        start_child: Starts a process with these arguments.
    """

    def __init__(
        self,
        bundle_folder: Path,
        cache_root: Path,
        split: str,
        *,
        workers: int,
        cache_bytes: int = 2 << 30,
        cache_folder: Path | None = None,
        memory_bytes: int = 256 << 20,
        start_child: Callable[[Sequence[str]], Child] = MeasuringChild,
    ) -> None:
        arguments = [str(bundle_folder), "--split", split, "--cache", str(cache_root)]
        arguments += ["--memory-bytes", str(memory_bytes)]
        if cache_folder is not None:
            arguments += ["--results", str(cache_folder), "--results-bytes", str(cache_bytes)]
        self._arguments = arguments
        self._start_child = start_child
        self._queue = JobQueue(shared=cache_folder is not None)
        self._changed = threading.Condition()
        """Guards the queue, the children and what follows."""
        self._answers: SimpleQueue[Ready | Done | Exception] = SimpleQueue()
        self._children: dict[int, Child] = {}
        """Worker -> its process; none after a crash, until it is needed."""
        self._ready: Ready | None = None
        self._outstanding = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"measuring {worker}", daemon=True)
            for worker in range(workers)
        ]

    def __enter__(self) -> MeasuringPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def outstanding(self) -> int:
        """Jobs that were submitted and not yet returned."""
        return self._outstanding

    def start(self) -> Ready:
        """Start the processes; returns when the first is ready.

        Raises:
            ConfigError: The bundle is refused.
            BackendError: A process ended.
        """
        for thread in self._threads:
            thread.start()
        answer = self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Ready), "there were no jobs yet"
        return answer

    def submit(self, job: Job) -> None:
        """Have one more job done."""
        self._outstanding += 1
        with self._changed:
            self._queue.put(job)
            self._changed.notify_all()

    def next_done(self, timeout_s: float | None = None) -> Done | None:
        """The next job that is done; None if there is none outstanding, or none in time.

        Raises:
            CompassError: A fresh process could not be started, the bundle changed meanwhile, or an answer is
                none.
        """
        if not self._outstanding:
            return None
        try:
            answer = self._answers.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Done), "processes are ready once"
        self._outstanding -= 1
        return answer

    def results(self) -> Iterator[Done]:
        """Every job that is outstanding, as they are done; more may be submitted meanwhile."""
        while (done := self.next_done()) is not None:
            yield done

    def close(self) -> None:
        """End the processes, also those in the middle of a job."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            for child in self._children.values():
                child.terminate()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    # --- in the threads, one a process ----------------------------------------------------------------

    def _work(self, worker: int) -> None:
        try:
            self._child(worker)
            while (job := self._take(worker)) is not None:
                self._answers.put(self._measured(worker, job))
                with self._changed:
                    self._queue.finish(job)
                    self._changed.notify_all()
        except _ClosingError:
            pass
        except _StartError as failed:
            self._answers.put(failed.error)
        except Exception as error:  # raised in the thread that uses the pool
            self._answers.put(error)
        finally:
            self._end_child(worker)

    def _take(self, worker: int) -> Job | None:
        with self._changed:
            while not self._closing:
                if (job := self._queue.take(worker)) is not None:
                    return job
                self._changed.wait()
        return None

    def _measured(self, worker: int, job: Job) -> Done:
        try:
            return self._tried(worker, job)
        except BackendError:
            return self._tried_again(worker, job)

    def _tried_again(self, worker: int, job: Job) -> Done:
        try:
            return self._tried(worker, job)
        except BackendError as error:
            if len(job.configs) > 1:
                middle = len(job.configs) // 2
                halves = (job.configs[:middle], job.configs[middle:])
                parts = [self._tried_again(worker, msgspec.structs.replace(job, configs=h)) for h in halves]
                return _joined(*parts)
            return _failed(job, str(error))

    def _tried(self, worker: int, job: Job) -> Done:
        """Have a job done by the worker's process; after a failure there will be a fresh one."""
        try:
            return self._child(worker).measure(job)
        except BackendError:
            self._end_child(worker)
            raise

    def _child(self, worker: int) -> Child:
        with self._changed:
            if self._closing:
                raise _ClosingError
            if worker in self._children:
                return self._children[worker]
            child = self._children[worker] = self._start_child(self._arguments)
        try:
            self._check(child.ready())
        except CompassError as error:
            if self._closing:
                raise _ClosingError from None
            raise _StartError(error) from error
        return child

    def _check(self, ready: Ready) -> None:
        with self._changed:
            first, self._ready = self._ready, self._ready or ready
        if first is None:
            self._answers.put(ready)
        elif first != ready:
            raise ProfileError(f"the bundle of {ready.pipeline!r} changed while it was measured; start again")

    def _end_child(self, worker: int) -> None:
        with self._changed:
            child = self._children.pop(worker, None)
        if child is not None:
            child.end()


class _ClosingError(Exception):
    """The pool is being closed."""


class _StartError(Exception):
    """A process could not be started: the job at hand has nothing to do with it."""

    def __init__(self, error: CompassError) -> None:
        self.error = error


def _joined(first: Done, second: Done) -> Done:
    """Two parts of one job."""
    return Done(
        id=first.id,
        input=first.input,
        scores=first.scores | second.scores,
        others={
            name: first.others.get(name, {}) | second.others.get(name, {})
            for name in (*first.others, *second.others)
        },
        problems=first.problems | second.problems,
        runs=first.runs + second.runs,
        recalled=first.recalled + second.recalled,
        reused=first.reused + second.reused,
        warm_up_cpu_s=first.warm_up_cpu_s + second.warm_up_cpu_s,
        notices=first.notices + second.notices,
    )


def _failed(job: Job, problem: str) -> Done:
    return Done(
        id=job.id,
        input=job.input,
        scores=dict.fromkeys(job.configs),
        problems=dict.fromkeys(job.configs, problem),
    )
