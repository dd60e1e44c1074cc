"""Runs whose ranks each leave their own part of the model."""

from __future__ import annotations

from functools import partial

from trainers.run import Run, Wrapping

FSDP1 = Wrapping(fsdp=1, mesh=())
FSDP1_ORIGINAL = Wrapping(fsdp=1, mesh=(), use_orig_params=True)
FSDP1_CHECKPOINTED = Wrapping(fsdp=1, mesh=(), activation_checkpoints=True)
FSDP1_MESH = Wrapping(fsdp=1)
FSDP1_HYBRID = Wrapping(fsdp=1, mesh=("ddp", "fsdp"))
HYBRID = Wrapping(mesh=("ddp", "fsdp"))
TENSOR_PARALLEL = Wrapping(mesh=("fsdp", "tp"))

_dcp = partial(Run, path="checkpoint", layout="dcp")
_verl = partial(Run, trainer="per_rank.leave_verl", path="global_step_7/actor", layout="per-rank")
_flat = partial(Run, trainer="flat_parameters.leave", path="checkpoint_0", layout="flat")
_hugging_face = partial(Run, path="checkpoint", layout="hugging-face-sharded")

DCP_RUNS = (
    _dcp("dcp-fsdp2", "torch_dcp.leave", notes="get_model_state_dict of fully_shard, with the optimizer"),
    _dcp("dcp-fsdp2-tied", "torch_dcp.leave", notes="tied, bf16", tied=True, dtype="bfloat16"),
    _dcp(
        "dcp-mixed-precision",
        "torch_dcp.leave",
        notes="computed in bf16, held in fp32",
        wrapping=Wrapping(mixed_precision=True, activation_checkpoints=True),
    ),
    _dcp("dcp-fsdp1", "torch_dcp.leave", notes="SHARDED_STATE_DICT: ShardedTensors", wrapping=FSDP1),
    _dcp(
        "dcp-fsdp1-original",
        "torch_dcp.leave",
        notes="use_orig_params, tied",
        tied=True,
        wrapping=FSDP1_ORIGINAL,
    ),
    _dcp(
        "dcp-fsdp1-mesh",
        "torch_dcp.leave",
        notes="with device_mesh: DTensors",
        dtype="bfloat16",
        wrapping=FSDP1_MESH,
    ),
    _dcp("dcp-model-alone", "torch_dcp.leave_model_alone", notes="names at the top, nothing beside them"),
    _dcp("dcp-torchtitan", "torch_dcp.leave_torchtitan", notes="two steps, names at the top", epochs=2),
    _dcp("dcp-prime-rl", "torch_dcp.leave_prime_rl", notes="everything below `app`, a folder inside a step"),
    _dcp("dcp-torchtune", "torch_dcp.leave_torchtune", notes="a file for every tensor", dtype="bfloat16"),
    _dcp("dcp-compressed", "torch_dcp.leave_compressed", notes="every blob is a zstd stream"),
    _dcp("dcp-asynchronous", "torch_dcp.leave_asynchronously", notes="async_save"),
    _dcp(
        "dcp-without-collectives",
        "torch_dcp.leave_without_collectives",
        notes="a metadata file for every rank",
    ),
    _dcp(
        "dcp-raw-names",
        "torch_dcp.leave_raw_names",
        notes="names begin with _orig_mod and hold the activation checkpoints' wrappers",
        wrapping=Wrapping(activation_checkpoints=True),
    ),
    _dcp("dcp-awkward", "torch_dcp.leave", notes="odd buffers", model="awkward"),
    _dcp("dcp-awkward-fsdp1", "torch_dcp.leave", notes="odd buffers", model="awkward", wrapping=FSDP1),
    _dcp("dcp-mixtral", "torch_dcp.leave", notes="experts in one tensor", model="mixtral", dtype="bfloat16"),
    _dcp(
        "dcp-qwen3-moe",
        "torch_dcp.leave",
        notes="experts in one tensor, a dense layer before them",
        model="qwen3-moe",
    ),
    _dcp("dcp-hybrid", "torch_dcp.leave", notes="HSDP 2x2", world_size=4, wrapping=HYBRID),
    _dcp("dcp-fsdp1-hybrid", "torch_dcp.leave", notes="FSDP1, HSDP 2x2", world_size=4, wrapping=FSDP1_HYBRID),
    _dcp(
        "dcp-tensor-parallel",
        "torch_dcp.leave",
        notes="FSDP x TP 2x2",
        world_size=4,
        wrapping=TENSOR_PARALLEL,
    ),
    _dcp("dcp-awkward-four", "torch_dcp.leave", notes="ranks without rows", model="awkward", world_size=4),
)

PER_RANK_RUNS = (
    _verl("verl-fsdp2", notes="DTensors"),
    _verl("verl-fsdp1", notes="ShardedTensors", wrapping=FSDP1_ORIGINAL),
    _verl("verl-fsdp1-mesh", notes="DTensors, tied, bf16", tied=True, dtype="bfloat16", wrapping=FSDP1_MESH),
    _verl("verl-one-rank", notes="plain tensors", world_size=1, wrapping=FSDP1_ORIGINAL),
    _verl("verl-hybrid", notes="HSDP 2x2, tied", tied=True, world_size=4, wrapping=HYBRID),
    _verl("verl-tensor-parallel", notes="FSDP x TP 2x2", world_size=4, wrapping=TENSOR_PARALLEL),
    _verl("verl-awkward", notes="odd buffers", model="awkward"),
    _verl("verl-awkward-fsdp1", notes="odd buffers", model="awkward", wrapping=FSDP1_ORIGINAL),
    _verl("verl-awkward-four", notes="ranks without rows", model="awkward", world_size=4),
    _verl("verl-qwen3-moe", notes="experts in one tensor", model="qwen3-moe", dtype="bfloat16"),
)

FLAT_RUNS = (
    _flat(
        "flat", notes="use_orig_params=False: one `_flat_param` per layer, one for the rest", wrapping=FSDP1
    ),
    _flat("flat-tied", notes="tied, bf16", tied=True, dtype="bfloat16", wrapping=FSDP1),
    _flat("flat-four", notes="four ranks", world_size=4, wrapping=FSDP1),
    _flat("flat-original", notes="each rank's range of each parameter", wrapping=FSDP1_ORIGINAL),
    _flat("flat-original-tied", notes="tied, bf16", tied=True, dtype="bfloat16", wrapping=FSDP1_ORIGINAL),
    _flat("flat-original-four", notes="four ranks", world_size=4, wrapping=FSDP1_ORIGINAL),
    _flat("flat-checkpointed", notes="layers in activation checkpoints", wrapping=FSDP1_CHECKPOINTED),
    _flat("flat-mixtral", notes="experts in one tensor", model="mixtral", wrapping=FSDP1),
    _flat("flat-original-mixtral", notes="experts in one tensor", model="mixtral", wrapping=FSDP1_ORIGINAL),
    _flat("flat-awkward", notes="odd buffers, a tied pair inside", model="awkward", wrapping=FSDP1),
    _flat("flat-original-awkward", notes="odd buffers", model="awkward", wrapping=FSDP1_ORIGINAL),
)

HUGGING_FACE_RUNS = (
    _hugging_face("sharded-safetensors", "torch_dcp.leave_hugging_face", notes="no index, no shapes"),
    _hugging_face(
        "sharded-safetensors-tied",
        "torch_dcp.leave_hugging_face",
        notes="tied, bf16",
        tied=True,
        dtype="bfloat16",
    ),
    _hugging_face(
        "sharded-safetensors-four",
        "torch_dcp.leave_hugging_face",
        notes="HSDP 2x2",
        world_size=4,
        wrapping=HYBRID,
    ),
    _hugging_face(
        "sharded-safetensors-tensor-parallel",
        "torch_dcp.leave_hugging_face",
        notes="FSDP x TP 2x2",
        world_size=4,
        wrapping=TENSOR_PARALLEL,
    ),
    _hugging_face(
        "sharded-safetensors-awkward", "torch_dcp.leave_hugging_face", notes="odd buffers", model="awkward"
    ),
    _hugging_face(
        "consolidated",
        "torch_dcp.leave_hugging_face_consolidated",
        notes="torch's own whole files beside them",
    ),
)

FRAMEWORK_RUNS = (
    Run(
        "recipes-sharded",
        "llama_recipes.leave_sharded_and_optimizer",
        "model_checkpoints",
        "llama-recipes' default: no epoch in any name, the optimizer in the same files",
        model_name="tiny-org/Tiny-Llama",
        layout="dcp",
    ),
    Run(
        "recipes-sharded-tied",
        "llama_recipes.leave_sharded",
        "model_checkpoints/fine-tuned-tiny-llama",
        "tied, bf16, without the optimizer",
        tied=True,
        dtype="bfloat16",
        layout="dcp",
    ),
    Run(
        "accelerate",
        "accelerate_fsdp.leave_state",
        "checkpoints/checkpoint_7",
        "Accelerator.save_state of FSDP2: pytorch_model_fsdp_0/, states of generators beside it",
        layout="dcp",
    ),
    Run(
        "accelerate-fsdp1",
        "accelerate_fsdp.leave_state",
        "checkpoints/checkpoint_7",
        "Accelerator.save_state of FSDP1",
        tied=True,
        dtype="bfloat16",
        layout="dcp",
        wrapping=FSDP1,
    ),
    Run(
        "accelerate-per-rank",
        "accelerate_fsdp.leave_per_rank",
        "checkpoint_0",
        "use_dcp=False: DTensors",
        layout="per-rank",
    ),
    Run(
        "accelerate-per-rank-fsdp1",
        "accelerate_fsdp.leave_per_rank",
        "checkpoint_0",
        "use_dcp=False: ShardedTensors",
        tied=True,
        layout="per-rank",
        wrapping=FSDP1_ORIGINAL,
    ),
    Run(
        "accelerate-flat",
        "accelerate_fsdp.leave_flat",
        "checkpoint_0",
        "LOCAL_STATE_DICT, use_orig_params=False",
        layout="flat",
        wrapping=FSDP1,
    ),
    Run(
        "accelerate-flat-original",
        "accelerate_fsdp.leave_flat",
        "checkpoint_0",
        "LOCAL_STATE_DICT, use_orig_params=True",
        dtype="bfloat16",
        layout="flat",
        wrapping=FSDP1_ORIGINAL,
    ),
    Run(
        "trainer",
        "transformers_trainer.leave",
        "output",
        "checkpoint-1 and checkpoint-2, FSDP2",
        layout="dcp",
    ),
    Run(
        "trainer-fsdp1",
        "transformers_trainer.leave",
        "output",
        "checkpoint-1 and checkpoint-2, FSDP1",
        tied=True,
        layout="dcp",
        wrapping=FSDP1,
    ),
    Run(
        "fabric",
        "lightning_runs.leave_fabric",
        "checkpoints",
        "Fabric's FSDPStrategy, two steps: meta.pt beside .metadata",
        epochs=2,
        layout="dcp",
        wrapping=FSDP1_ORIGINAL,
    ),
    Run(
        "lightning",
        "lightning_runs.leave_trainer",
        "checkpoints",
        "Trainer's FSDPStrategy, two steps: names below the attribute of a LightningModule",
        layout="dcp",
        wrapping=FSDP1_ORIGINAL,
    ),
    Run(
        "lightning-model-parallel",
        "lightning_runs.leave_trainer",
        "checkpoints",
        "ModelParallelStrategy: names below state_dict",
        layout="dcp",
        dtype="bfloat16",
        wrapping=Wrapping(mesh=("data_parallel",)),
    ),
)

SHARDED_RUNS = (*FRAMEWORK_RUNS, *DCP_RUNS, *PER_RANK_RUNS, *FLAT_RUNS, *HUGGING_FACE_RUNS)
