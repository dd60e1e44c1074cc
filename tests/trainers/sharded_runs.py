"""Runs whose ranks each leave their own part of the model."""

from __future__ import annotations

from trainers.run import Run, Wrapping

FSDP1 = Wrapping(fsdp=1, mesh=())
FSDP1_ORIGINAL = Wrapping(fsdp=1, mesh=(), use_orig_params=True)

SHARDED_RUNS = (
    Run(
        "dcp-fsdp2",
        "torch_dcp.leave",
        "checkpoint",
        "get_model_state_dict and get_optimizer_state_dict of fully_shard, dcp.save",
        layout="dcp",
    ),
    Run(
        "dcp-fsdp1",
        "torch_dcp.leave",
        "checkpoint",
        "FSDP1's SHARDED_STATE_DICT: values are ShardedTensors",
        layout="dcp",
        wrapping=FSDP1,
    ),
    Run(
        "verl-fsdp2",
        "per_rank.leave_verl",
        "global_step_7/actor",
        "DTensors, the optimizer and the state of generators beside them",
        layout="per-rank",
    ),
    Run(
        "flat",
        "flat_parameters.leave",
        "checkpoint_0",
        "use_orig_params=False: one `_flat_param` per layer, one for the rest",
        layout="flat",
        wrapping=FSDP1,
    ),
    Run(
        "flat-original",
        "flat_parameters.leave",
        "checkpoint_0",
        "use_orig_params=True: each rank's range of each parameter",
        layout="flat",
        wrapping=FSDP1_ORIGINAL,
    ),
    Run(
        "hugging-face-sharded",
        "torch_dcp.leave_hugging_face",
        "checkpoint",
        "HuggingFaceStorageWriter without consolidation: no index, no shapes",
        layout="hugging-face-sharded",
    ),
)
