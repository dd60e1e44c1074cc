"""Ranks over torch.distributed: a gloo group of our own, whatever the training itself talks through.

Calls run on a thread of their own, so that the rank can look meanwhile whether all others still live:
a collective of gloo waits for a rank that was killed until its time is over, unless it happens to be a
neighbour.

Source:
    torch/distributed/distributed_c10d.py (`new_group`, `all_gather_object`, `broadcast_object_list`,
    `all_to_all_single`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from unshard.errors import OptionError, RankError
from unshard.training.ranks.bulletin import Bulletin
from unshard.training.ranks.outcomes import Outcome, outcome_of, require_success
from unshard.training.ranks.protocol import Ranks

T = TypeVar("T")

TIMEOUT_SECONDS = 600.0
_LOOK_SECONDS = 0.25
_PLACE_IN_SOURCE = re.compile(r"^\[[^\]]*\] ")  # what gloo's errors begin with

# For every group of a training, by seconds: our own group of the same ranks.
_GROUPS: WeakKeyDictionary[dist.ProcessGroup, dict[float, dist.ProcessGroup]] = WeakKeyDictionary()
_sessions = 0


class LoneRank:
    """The only rank of a training that is not distributed."""

    rank = 0
    size = 1

    def gather(self, phase: str, value: T) -> list[T]:
        """Return the value, the only one."""
        return [value]

    def broadcast(self, phase: str, value: T | None) -> T:
        """Return the value."""
        return value  # type: ignore[return-value]  # rank 0 gives one

    def together(self, phase: str, work: Callable[[], T]) -> list[T]:
        """Return what `work` returns; what it raises is raised as it is."""
        return [work()]

    def exchange(self, phase: str, outgoing: dict[int, memoryview], incoming: dict[int, memoryview]) -> None:
        """Do nothing: there is nobody to send to."""


class JoinedRanks:
    """The ranks of a process group."""

    def __init__(self, group: dist.ProcessGroup, bulletin: Bulletin, timeout_seconds: float) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._group = group
        self._bulletin = bulletin
        self._timeout = timeout_seconds
        self._calls = 0
        self._shared: Exception | None = None

    def gather(self, phase: str, value: T) -> list[T]:
        """Return the value of every rank, in their order.

        Raises:
            RankError: A rank failed, died, or did not come in time.
        """
        found: list[Any] = [None] * self.size
        self._call(phase, lambda: dist.all_gather_object(found, value, group=self._group))
        return found

    def broadcast(self, phase: str, value: T | None) -> T:
        """Return the value of rank 0.

        Raises:
            RankError: A rank failed, died, or did not come in time.
        """
        held: list[Any] = [value]
        first = dist.get_global_rank(self._group, 0)
        self._call(phase, lambda: dist.broadcast_object_list(held, src=first, group=self._group))
        result: T = held[0]
        return result

    def together(self, phase: str, work: Callable[[], T]) -> list[T]:
        """Return what `work` returns on every rank; where it raises on any, raise the same error on all.

        Raises:
            UnshardError: What `work` raised, and on which rank.
            RankError: It raised something else; or a rank died, or did not come in time.
        """
        own, error = outcome_of(work)
        outcomes: list[Outcome] = self.gather(phase, own)
        try:
            require_success(phase, outcomes, error)
        except Exception as raised:
            self._shared = raised
            raise
        return [outcome.value for outcome in outcomes]

    def exchange(self, phase: str, outgoing: dict[int, memoryview], incoming: dict[int, memoryview]) -> None:
        """Send bytes to some ranks and fill buffers with what some ranks send.

        Memory:
            As much again as is sent and filled.

        Raises:
            RankError: A rank failed, died, or did not come in time.
        """
        sent, filled = self._lengths(outgoing), self._lengths(incoming)
        out = torch.empty(sum(sent), dtype=torch.uint8)
        back = torch.empty(sum(filled), dtype=torch.uint8)
        for part, rank in zip(out.split(sent), range(self.size), strict=True):
            if len(part):
                part.numpy()[:] = outgoing[rank]
        self._call(phase, lambda: dist.all_to_all_single(back, out, filled, sent, group=self._group))
        for part, rank in zip(back.split(filled), range(self.size), strict=True):
            if len(part):
                incoming[rank][:] = part.numpy().data

    def _lengths(self, parts: dict[int, memoryview]) -> list[int]:
        return [len(parts.get(rank, b"")) for rank in range(self.size)]

    def _call(self, phase: str, collective: Callable[[], object]) -> None:
        """Run a collective of gloo; look meanwhile whether it can still end.

        Raises:
            RankError: It cannot.
        """
        self._calls += 1
        self._bulletin.arrive(self._calls, phase)
        self._require_none(self._bulletin.verdict())
        failures: list[Exception] = []
        done = threading.Event()

        def run() -> None:
            try:
                collective()
            except Exception as error:  # noqa: BLE001 - raised again below
                failures.append(error)
            done.set()

        # A call that never ends must not keep the process from ending.
        threading.Thread(target=run, name="unshard-ranks", daemon=True).start()
        deadline = time.monotonic() + self._timeout
        while not done.wait(_LOOK_SECONDS):
            self._require_none(self._bulletin.verdict())
            if time.monotonic() > deadline:
                saw = f"nothing for {self._timeout:.0f} s"
                self._require_none(self._bulletin.judge(self._calls, phase, saw))
        if failures and not isinstance(failures[0], RuntimeError):
            raise failures[0]
        if failures:
            saw = _PLACE_IN_SOURCE.sub("", str(failures[0]).partition("\n")[0])[:200]
            self._require_none(self._bulletin.judge(self._calls, phase, saw))

    def _require_none(self, verdict: RankError | None) -> None:
        if verdict is not None:
            self._shared = verdict
            raise verdict

    @contextmanager
    def session(self) -> Iterator[None]:
        """Live while the block runs; where it ends with an error that the others do not know, tell them."""
        with self._bulletin.living():
            try:
                yield
            except BaseException as error:
                if error is not self._shared:
                    self._tell(error)
                raise

    def _tell(self, error: BaseException) -> None:
        with suppress(RankError):  # the store is gone: the others find that out themselves
            self._bulletin.pronounce(
                f"rank {self.rank}",
                "failed, and the others with it",
                saw=f"{type(error).__name__}: {error}"[:500],
                hint="Look at the log of that rank.",
            )


@contextmanager
def ranks_of(
    group: dist.ProcessGroup | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Iterator[Ranks]:
    """Yield the ranks of `group`, or of all processes; the only one where nothing is distributed.

    Every rank of the group calls it. What fails on one while the block runs ends the block on all.

    Raises:
        OptionError: `timeout_seconds` is no time.
    """
    global _sessions  # counted alike on every rank
    if not timeout_seconds > 0:
        raise OptionError("timeout_seconds", "must be more than 0", saw=timeout_seconds)
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        yield LoneRank()
        return
    whole = group if group is not None else dist.group.WORLD
    ours = _own_group(whole, timeout_seconds)
    _sessions += 1
    store = dist.PrefixStore(
        f"unshard/{ours.group_name}/{_sessions}", dist.distributed_c10d._get_default_store()
    )
    joined = JoinedRanks(
        ours, Bulletin(store, dist.get_rank(ours), dist.get_world_size(ours)), timeout_seconds
    )
    try:
        with joined.session():
            yield joined
    except BaseException:
        # A call may still be under way in it.
        _GROUPS[whole].pop(timeout_seconds, None)
        raise


def _own_group(whole: dist.ProcessGroup, timeout_seconds: float) -> dist.ProcessGroup:
    """Return the gloo group of the same ranks; it is made once."""
    known = _GROUPS.setdefault(whole, {})
    if timeout_seconds not in known:
        members = dist.get_process_group_ranks(whole)
        try:
            known[timeout_seconds] = dist.new_group(
                members,
                timeout=timedelta(seconds=timeout_seconds),
                backend="gloo",
                use_local_synchronization=True,
            )
        except RuntimeError as error:  # which ranks are missing, only they could say
            raise RankError(
                "the ranks",
                "did not all come to the call",
                saw=str(error).splitlines()[0][:200],
                expected=f"{len(members)} ranks within {timeout_seconds:g} s",
                hint="Every rank must call it: look for a condition on the rank around the call.",
            ) from error
    return known[timeout_seconds]
