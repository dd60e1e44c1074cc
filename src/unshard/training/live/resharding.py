"""FSDP's gathered copies of parameters let go, so that what lies in the ranks' own parts is all there is.

After a forward pass without a backward one, and with SHARD_GRAD_OP or `reshard_after_forward=False` after
any, units keep the parameters that they gathered: the module then shows copies, and computes with them
whatever its own parts hold.

Source:
    torch/distributed/fsdp/_runtime_utils.py (`_post_forward_reshard`: the root is kept, `_reshard`);
    torch/distributed/fsdp/_flat_param.py (`FlatParamHandle.needs_unshard`);
    torch/distributed/fsdp/_fully_shard/_fully_shard.py (`FSDPModule.reshard`).
"""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._runtime_utils import _reshard


def let_go_of_copies(model: torch.nn.Module) -> None:
    """Make every unit of FSDP1 and FSDP2 in a model hold its own part alone; no rank talks to another."""
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            _let_go(module)
        elif callable(reshard := getattr(module, "reshard", None)) and hasattr(module, "_get_fsdp_state"):
            reshard()


def _let_go(unit: FullyShardedDataParallel) -> None:
    handle = unit._handle
    # Before the first forward pass nothing was gathered, and the places for it do not exist yet.
    if handle is not None and hasattr(handle.flat_param, "_local_shard"):
        _reshard(unit, handle, handle.uses_sharded_strategy)
