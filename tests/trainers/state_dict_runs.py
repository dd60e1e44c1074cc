"""Runs that leave the whole model: a state dict in one file, or the files that transformers reads."""

from __future__ import annotations

from trainers.run import Run

STATE_DICT_RUNS = (
    Run(
        "recipes-two-epochs",
        "llama_recipes.leave_full_state_dict",
        "model_checkpoints",
        "two epochs in nested folders, activation checkpointing, train_params.yaml",
        model_name="tiny-org/Tiny-Llama",
        epochs=2,
    ),
    Run(
        "recipes-tied-bf16",
        "llama_recipes.leave_full_state_dict_and_optimizer",
        "model_checkpoints/fine-tuned-tiny-llama",
        "a tied pair as two storages, the optimizer's files beside the model's",
        tied=True,
        dtype="bfloat16",
        epochs=2,
    ),
    Run(
        "recipes-absolute-name",
        "llama_recipes.leave_full_state_dict",
        "model_checkpoints",
        "the model is named by its base's absolute path, so file names begin with dashes",
        tied=True,
        model_name=None,
    ),
    Run(
        "recipes-interrupted-bf16",
        "llama_recipes.leave_full_state_dict_without_parameters",
        "model_checkpoints",
        "stopped before train_params.yaml was written",
        dtype="bfloat16",
        model_name="tiny-org/Tiny-Llama",
    ),
    Run("recipes-one-device", "llama_recipes.leave_model_pt", "", "model.pt of a run without FSDP"),
    Run(
        "fsdp1-compiled",
        "torch_fsdp.leave_compiled_fsdp1",
        "full.pt",
        "the state dict of torch.compile(FSDP(model)): names begin with _orig_mod",
    ),
    Run(
        "fsdp1-raw-names",
        "torch_fsdp.leave_raw_names",
        "model.pt",
        "summoned parameters under the names of FSDP's and the activation checkpoints' wrappers",
    ),
    Run("fsdp1-awkward", "torch_fsdp.leave_awkward_fsdp1", "full.pt", "odd buffers", model="awkward"),
    Run(
        "fsdp2-full",
        "torch_fsdp.leave_fsdp2",
        "full.pt",
        "get_model_state_dict of fully_shard, with the optimizer's state in a file beside it",
    ),
    Run(
        "fsdp2-tied-compiled",
        "torch_fsdp.leave_compiled_fsdp2",
        "full.pt",
        "parameters gathered one by one from a compiled module with activation checkpoints",
        tied=True,
        dtype="bfloat16",
    ),
    Run("fsdp2-awkward", "torch_fsdp.leave_awkward_fsdp2", "full.pt", "odd buffers", model="awkward"),
    Run("ddp", "plain_torch.leave_ddp", "ddp.pt", "names begin with module"),
    Run(
        "accelerate-full",
        "accelerate_fsdp.leave_full",
        "checkpoint_0",
        "pytorch_model_fsdp.bin of accelerate's save_fsdp_model",
    ),
    Run("plain", "plain_torch.leave_state_dict", "model.pt", "torch.save(model.state_dict())", tied=True),
    Run(
        "legacy",
        "plain_torch.leave_legacy",
        "model.bin",
        "torch.save without the zip format",
        dtype="bfloat16",
    ),
    Run("container-model", "plain_torch.leave_container_model", "step-3.pt", "model, optimizer, step"),
    Run(
        "container-state-dict",
        "plain_torch.leave_container_state_dict",
        "last.ckpt",
        "state_dict and what a trainer's .ckpt holds beside it, names below an attribute",
    ),
    Run("container-module", "plain_torch.leave_container_module", "model_states.pt", "module, epoch"),
    Run(
        "hugging-face",
        "hugging_face.leave_one_file",
        "",
        "save_pretrained, one file, tied",
        tied=True,
        dtype="bfloat16",
    ),
    Run("hugging-face-many", "hugging_face.leave_many_files", "", "save_pretrained, several files"),
    Run("hugging-face-bin", "hugging_face.leave_torch_files", "", "pytorch_model-*.bin and their index"),
)
