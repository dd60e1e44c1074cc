"""Workers begin jobs in order, stop together, and raise what was raised first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from unshard.engines.workers import Job, affordable_workers, default_workers, run_jobs
from unshard.errors import OptionError
from unshard.progress import Silence


class Counted:
    """Progress that adds up what it is told."""

    def __init__(self) -> None:
        self.done = 0
        self._lock = threading.Lock()

    def start(self, stage: str, total_bytes: int) -> None:
        pass

    def advance(self, count: int) -> None:
        with self._lock:
            self.done += count


def endless(begun: threading.Barrier, _state: list[int]) -> Iterator[int]:
    begun.wait()
    while True:
        yield 1


def failing(begun: threading.Barrier, error: BaseException, _state: list[int]) -> Iterator[int]:
    begun.wait()
    yield 1
    raise error


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_runs_once_and_its_progress_is_counted(workers: int) -> None:
    ran: list[int] = []

    def job(number: int, _state: list[int]) -> Iterator[int]:
        ran.append(number)
        yield from (number, 7)

    progress = Counted()
    run_jobs((partial(job, n) for n in range(100)), list, workers=workers, progress=progress)
    assert sorted(ran) == list(range(100))
    assert progress.done == sum(range(100)) + 700
    assert workers > 1 or ran == sorted(ran)


def test_every_worker_keeps_a_state_of_its_own() -> None:
    begun = threading.Barrier(3)
    states: list[list[int]] = []

    def job(state: list[int]) -> Iterator[int]:
        begun.wait()
        state.append(0)
        states.append(state)
        yield 0

    run_jobs([job] * 3, list, workers=3, progress=Silence())
    assert states == [[0], [0], [0]]


@pytest.mark.parametrize("error", [ValueError("first"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_one_failure_stops_all_and_is_raised(error: BaseException) -> None:
    begun = threading.Barrier(3)
    jobs = [partial(endless, begun), partial(failing, begun, error), partial(endless, begun)]
    with pytest.raises(type(error)) as caught:
        run_jobs(jobs, list, workers=3, progress=Silence())
    assert caught.value is error
    assert not [t for t in threading.enumerate() if t.name.startswith("unshard")]


def test_a_failure_while_jobs_are_made_is_raised() -> None:
    def job(_state: list[int]) -> Iterator[int]:
        yield 1

    def jobs() -> Iterator[Job[list[int]]]:
        yield job
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        run_jobs(jobs(), list, workers=1, progress=Silence())


def test_ctrl_c_stops_the_workers() -> None:
    begun = threading.Barrier(2)

    def interrupting(_state: list[int]) -> Iterator[int]:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            yield 1

    jobs: list[Job[list[int]]] = [partial(endless, begun), interrupting]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, list, workers=2, progress=Silence())
    assert not [t for t in threading.enumerate() if t.name.startswith("unshard")]


def test_a_stopped_job_cleans_up_after_itself() -> None:
    closed = threading.Event()
    begun = threading.Barrier(2)

    def job(_state: list[int]) -> Iterator[int]:
        try:
            yield from endless(begun, [])
        finally:
            closed.set()

    jobs: list[Job[list[int]]] = [job, partial(failing, begun, ValueError())]
    with pytest.raises(ValueError):
        run_jobs(jobs, list, workers=2, progress=Silence())
    assert closed.wait(10)


def test_threads_started_elsewhere_keep_their_stacks() -> None:
    before = threading.stack_size()
    run_jobs([], list, workers=2, progress=Silence())
    assert threading.stack_size() == before


def test_a_budget_pays_for_as_many_workers_as_it_can() -> None:
    assert affordable_workers(2, budget_bytes=32 << 20, worker_bytes=4 << 20) == 2
    assert affordable_workers(16, budget_bytes=32 << 20, worker_bytes=4 << 20) == 8
    assert 1 <= default_workers() <= 4


def test_a_budget_that_pays_for_nobody_is_refused_with_the_number_needed() -> None:
    with pytest.raises(
        OptionError, match=r"too small for one worker: saw 1,000 bytes, expected at least 4,194"
    ):
        affordable_workers(2, budget_bytes=1000, worker_bytes=4 << 20)
    with pytest.raises(OptionError, match="must be at least 1: saw 0"):
        affordable_workers(0, budget_bytes=32 << 20, worker_bytes=4 << 20)
