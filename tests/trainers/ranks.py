"""Real ranks: processes that share one gloo group, and cannot outlive the test that started them."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

# Imported once, in the process that ranks are forked from.
_PRELOADED = [
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "pytorch_lightning",
]


class RankError(Exception):
    """A rank raised, died, or did not finish in time."""


def run_ranks(world_size: int, body: Callable[..., None], *arguments: object, timeout_seconds: float) -> None:
    """Run `body(*arguments)` in `world_size` processes that share one gloo group.

    `body` must be a function of a module, so that the processes can import it.

    Raises:
        RankError: With the traceback of the first rank that failed; the others are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        ranks: dict[Connection, ForkServerProcess] = {}
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_run_rank,
                args=(theirs, rank, world_size, store, timeout_seconds, body, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            ranks[ours] = process
        try:
            _await_all(dict(ranks), time.monotonic() + timeout_seconds)
        finally:
            for process in ranks.values():
                process.kill()
                process.join()


def _await_all(waiting: dict[Connection, ForkServerProcess], deadline: float) -> None:
    """Return when every rank has sent None; raise at the first that sends anything else, or nothing."""
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"{len(waiting)} ranks did not finish in time")
        for connection in ready:
            assert isinstance(connection, Connection)
            process = waiting.pop(connection)
            try:
                failure = connection.recv()
            except EOFError:
                process.join()
                failure = f"rank {process.name} died with exit code {process.exitcode}"
            if failure is not None:
                raise RankError(failure)


def _run_rank(
    report: Connection,
    rank: int,
    world_size: int,
    store: str,
    timeout_seconds: float,
    body: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        body(*arguments)
        dist.barrier()
        dist.destroy_process_group()
        report.send(None)
    except BaseException:  # noqa: BLE001  torch's CheckpointException is no Exception
        report.send(f"rank {rank} of {world_size}:\n{traceback.format_exc()}")
