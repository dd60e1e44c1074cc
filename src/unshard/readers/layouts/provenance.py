"""Who wrote a state dict, and how that is known: by names, and by what the file holds."""

from __future__ import annotations

import re

from unshard.checkpoint import Layout
from unshard.readers.folders import Folder
from unshard.readers.steps import is_named_after, split_names
from unshard.readers.torch_save.contents import entries_of
from unshard.readers.torch_save.torch_state import TorchState
from unshard.readers.unpickling import Entries

# FSDP1 marks tensors that it has copied out of a flat parameter, and torch.save keeps such marks.
# torch/distributed/fsdp/_state_dict_utils.py (`_common_unshard_post_state_dict_hook`)
_FSDP1_MARK = "_has_been_cloned"

_BY_FILE_NAME: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"pytorch_model_fsdp(_\d+)?\.bin"), "accelerate"),
    (re.compile(r"lit_model\.pth"), "LitGPT"),
    (re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"), "transformers"),
    (re.compile(r"epoch=\d+-step=\d+.*\.ckpt"), "PyTorch Lightning"),
)
_BY_KEY = {
    "pytorch-lightning_version": "PyTorch Lightning",
    "ds_version": "DeepSpeed",
    "megatron_version": "Megatron-LM",
}


def describe_layout(state: TorchState, folder: Folder) -> Layout:
    """Return the layout of a state dict that lies in `folder`."""
    evidence: list[str] = [*state.saved.facts]
    gathered = _fsdp1_evidence(state)
    writer, told_by = _writer(state, folder)
    kind = "full state dict gathered by FSDP1" if gathered else "full state dict"
    return Layout(
        name="full-state-dict",
        title=f"{kind}, in {state.saved.facts[0]}",
        writer=writer,
        evidence=(*evidence, *gathered, *told_by),
    )


def _fsdp1_evidence(state: TorchState) -> list[str]:
    found = []
    if state.has_attribute(_FSDP1_MARK):
        found.append(f"every tensor carries `{_FSDP1_MARK}`, which FSDP1 leaves when it gathers")
    attached = state.saved.value.state if isinstance(state.saved.value, Entries) else None
    metadata = attached.get("_metadata") if isinstance(attached, Entries) else None
    if isinstance(metadata, Entries) and any("_fsdp_wrapped_module" in key for key in metadata):
        found.append("`_metadata` names modules that FSDP wrapped")
    return found


def _writer(state: TorchState, folder: Folder) -> tuple[str | None, list[str]]:
    """Return who wrote a file, and what told so."""
    path = state.saved.file.path
    model, numbers = split_names([path.stem], folder.path)[path.stem]
    if numbers and is_named_after(folder.path, model):
        return "llama-recipes", [f"`{path.name}` is named <model>-<epoch>, in a folder <...>-<model>"]
    if "train_params.yaml" in folder.files:
        return "llama-recipes", ["`train_params.yaml` lies beside it"]
    for key in entries_of(state.saved.value) or ():
        if key in _BY_KEY:
            return _BY_KEY[key], [f"it has the key `{key}`"]
    for pattern, writer in _BY_FILE_NAME:
        if pattern.fullmatch(path.name):
            beside = ["`trainer_state.json` lies beside it"] if "trainer_state.json" in folder.files else []
            return "Hugging Face Trainer" if beside else writer, [f"it is named `{path.name}`", *beside]
    return None, []
