"""Threads that work through a list of jobs, and stop together.

A job yields the bytes it has done at every point where it may be stopped, a few MiB apart. So one
loop counts progress, notices that another worker has failed, and obeys Ctrl-C, and no job has to.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from unshard.errors import OptionError
from unshard.progress import Progress

_MOST_WORKERS = 4  # more do not make one disk faster
_REPORT_BYTES = 4 << 20  # progress is told of this much at a time; to tell it of every block is dear
_WAIT_SECONDS = 0.2  # how long Ctrl-C may go unnoticed
_STACK_BYTES = 1 << 20  # the kernel's limits on memory count whole stacks, used or not

State = TypeVar("State")
Job = Callable[[State], Iterator[int]]


def default_workers() -> int:
    """Return one worker for every core this process may use, and at most four."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, _MOST_WORKERS)


def affordable_workers(workers: int, *, budget_bytes: int, worker_bytes: int) -> int:
    """Return how many of `workers` the budget pays for, each of which holds `worker_bytes`.

    Raises:
        OptionError: There is nobody to work: none was asked for, or the budget pays for none.
    """
    if workers < 1:
        raise OptionError("workers", "must be at least 1", saw=workers)
    if budget_bytes < worker_bytes:
        raise OptionError(
            "memory budget",
            "is too small for one worker",
            saw=f"{budget_bytes:,} bytes",
            expected=f"at least {worker_bytes:,}",
        )
    return min(workers, budget_bytes // worker_bytes)


def run_jobs(
    jobs: Iterable[Job[State]], new_state: Callable[[], State], *, workers: int, progress: Progress
) -> None:
    """Run all jobs, begun in their order, on `workers` threads.

    Args:
        jobs: Taken one by one, so they may be made as they are needed.
        new_state: Makes what a worker keeps from job to job, such as its buffers.
        workers: How many threads.
        progress: Told what every job yields.

    Raises:
        BaseException: The first that any job raises, after all workers have stopped at the next
            point where they may; so does an exception that reaches the caller's thread meanwhile.
    """
    iterator = iter(jobs)
    taking = threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []

    def take() -> Job[State] | None:
        with taking:
            return next(iterator, None)

    def work(finished: threading.Event) -> None:
        try:
            state, done = new_state(), 0
            while not stop.is_set() and (job := take()) is not None:
                for count in job(state):
                    done += count
                    if stop.is_set():
                        return
                    if done >= _REPORT_BYTES:
                        progress.advance(done)
                        done = 0
            progress.advance(done)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            failures.append(error)
            stop.set()
        finally:
            finished.set()

    running: dict[threading.Event, threading.Thread] = {}
    try:
        with _small_stacks():
            for number in range(workers):
                finished = threading.Event()
                thread = threading.Thread(target=work, args=(finished,), name=f"unshard-{number}")
                running[finished] = thread  # before it starts: Ctrl-C may come in between
                thread.start()
        # Not `join`: Python 3.11 takes a thread for finished when Ctrl-C interrupts its `join`. And not
        # without end: a signal that comes just before such a wait begins would not end it.
        for finished in running:
            while not finished.wait(_WAIT_SECONDS):
                pass
    finally:
        stop.set()
        for finished, thread in running.items():
            if thread.ident is not None:  # one that has not begun will find that it should stop
                finished.wait()
                thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _small_stacks() -> Iterator[None]:
    """Give threads that are started in the block small stacks."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)
