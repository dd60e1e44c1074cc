"""Notes that ranks leave one another in the store of their group, beside what they do together.

    alive/<rank>    a number that grows while the rank lives
    at/<rank>       what it is at: which call, by number and name
    verdict         what ended the work of all, once; the first one that is written counts

A rank that was killed cannot tell. Whoever notices that a call does not go on asks who is still alive,
and writes down what comes of it; the others look for that while they wait.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from unshard.errors import RankError, listed

_BEAT_SECONDS = 0.5
# A rank that lives has grown older by then, even on a busy machine.
_GRACE_SECONDS = 6.0
_VERDICT = "verdict"
_NO_STORE = RankError(
    "the rank that keeps the store of the group",
    "is gone",
    hint="Look at the log of rank 0, or of the launcher: it was killed, or ran out of memory.",
)


class Bulletin:
    """The notes of the ranks of one group, as one of them reads and writes them."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size

    @contextmanager
    def living(self) -> Iterator[None]:
        """Tell the others that this rank lives, while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), name="unshard-alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: threading.Event) -> None:
        beats = 0
        with suppress(RuntimeError):  # a store that is gone is noticed by those who ask it
            while not over.wait(_BEAT_SECONDS if beats else 0):
                beats += 1
                self._store.set(f"alive/{self._rank}", str(beats))

    def arrive(self, number: int, phase: str) -> None:
        """Tell the others which call this rank is at."""
        with _asking():
            self._store.set(f"at/{self._rank}", json.dumps((number, phase)))

    def verdict(self) -> RankError | None:
        """Return what ended the work of all, or None where it goes on."""
        with _asking():
            if not self._store.check([_VERDICT]):
                return None
            return RankError(**json.loads(self._store.get(_VERDICT)))

    def pronounce(self, subject: str, problem: str, *, saw: str | None, hint: str | None) -> RankError:
        """Write down what ended the work of all, and return it, or what another rank wrote before."""
        text = json.dumps({"subject": subject, "problem": problem, "saw": saw, "hint": hint})
        with _asking():
            return RankError(**json.loads(self._store.compare_set(_VERDICT, "", text)))

    def judge(self, number: int, phase: str, saw: str) -> RankError:
        """Find out why a call does not go on, and return what all ranks are told.

        Args:
            number: The call.
            phase: Its name.
            saw: What this rank noticed.
        """
        gone = self._gone()
        if (told := self.verdict()) is not None:
            return told
        if gone:
            return self.pronounce(
                _ranks(gone),
                f"died, or stopped, while the ranks were {phase}",
                saw=f"no sign of life for {_GRACE_SECONDS:.0f} s; {saw}",
                hint="Look at the log of that rank, and at the kernel's: it may have run out of memory.",
            )
        late = {rank: at[1] for rank in range(self._size) if (at := self._at(rank))[0] < number}
        if late:
            phases = listed(sorted(set(late.values())))
            return self.pronounce(
                _ranks(list(late)),
                f"did not come while the others were {phase}",
                saw=f"still {phases}; {saw}",
                hint="Give more time with timeout_seconds=, or find out what that rank waits for.",
            )
        return self.pronounce(
            "the ranks",
            f"lost one another while they were {phase}",
            saw=saw,
            hint="All of them live: look at the network between them.",
        )

    def _gone(self) -> list[int]:
        """Return the ranks that give no sign of life, looking as long as there is one."""
        deadline = time.monotonic() + _GRACE_SECONDS
        waiting = {rank: self._age(rank) for rank in range(self._size) if rank != self._rank}
        while waiting and time.monotonic() < deadline and self.verdict() is None:
            time.sleep(_BEAT_SECONDS / 2)
            waiting = {rank: age for rank, age in waiting.items() if self._age(rank) == age}
        return list(waiting)

    def _age(self, rank: int) -> bytes:
        return self._read(f"alive/{rank}")

    def _at(self, rank: int) -> tuple[int, str]:
        number, phase = json.loads(self._read(f"at/{rank}") or '[0, "elsewhere"]')
        return number, phase

    def _read(self, key: str) -> bytes:
        with _asking():
            return self._store.get(key) if self._store.check([key]) else b""


@contextmanager
def _asking() -> Iterator[None]:
    """Say what it means that the store does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise _NO_STORE from error


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {listed([str(rank) for rank in ranks], at_most=8)}"
