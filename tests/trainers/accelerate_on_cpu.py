"""accelerate's FSDP on a machine without GPUs, where it would quietly become DDP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


@contextmanager
def fsdp_on_cpu() -> Iterator[None]:
    """Have accelerate use FSDP for plugins that it is given, in a process group that there is already.

    It turns FSDP on for GPUs only, and calls a rank's device `cpu:0`, which FSDP1 tells from `cpu`.
    """
    describe = AcceleratorState.__init__

    def describe_with_fsdp(
        state: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any
    ) -> None:
        describe(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            seen = {"device": torch.device("cpu"), "distributed_type": DistributedType.FSDP}
            PartialState._shared_state.update(seen)
            AcceleratorState._shared_state.update(seen, fsdp_plugin=fsdp_plugin)

    rank = str(dist.get_rank())
    # accelerate asks for an address even where the processes are already connected, as these are.
    address = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(dist.get_world_size())}
    address |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch.dict(os.environ, address), patch.object(AcceleratorState, "__init__", describe_with_fsdp):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
