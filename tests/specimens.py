"""Checkpoints made from state dicts, and tiny bases: what the tests of matching break."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from unshard.base import Base, find_base
from unshard.checkpoint import BaseHint, Checkpoint, Layout, TrainingParameters
from unshard.dtypes import DTYPES
from unshard.findings import Finding
from unshard.match import Choices, Model, answer_questions, match_model, outline_of, questions_for
from unshard.match.config_edits import spelling_edits
from unshard.storage.files import InputFile
from unshard.tensors import CastTensor, DescribedTensor, FileSource, Tensor, element_count, whole_tensor
from unshard.writers.json_editing import edit_json

State = dict[str, torch.Tensor]

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def _llava() -> Any:
    text = transformers.LlamaConfig(**SIZES)
    config = transformers.LlavaConfig(text_config=text, vision_config=transformers.CLIPVisionConfig(**VISION))
    return transformers.LlavaForConditionalGeneration(config)


def _gemma3() -> Any:
    config = transformers.Gemma3Config(text_config={**SIZES, "head_dim": 16}, vision_config=VISION)
    return transformers.Gemma3ForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**SIZES, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    )


def _causal(family: str, **settings: object) -> Any:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **settings})
    suffix = {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM"}.get(family, "ForCausalLM")
    return getattr(transformers, f"{family}{suffix}")(config)


MAKERS: dict[str, Any] = {
    "llama": lambda: _causal("Llama", tie_word_embeddings=False),
    "llama-tied": lambda: _causal("Llama", tie_word_embeddings=True),
    "qwen2": lambda: _causal("Qwen2"),
    "qwen3": lambda: _causal("Qwen3", head_dim=8),
    "mistral": lambda: _causal("Mistral"),
    "gemma2": lambda: _causal("Gemma2", head_dim=8),
    "phi3": lambda: _causal("Phi3"),
    "gpt2": lambda: _causal("GPT2", n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "gpt-neox": lambda: _causal("GPTNeoX"),
    "mixtral": lambda: _causal("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "mamba": lambda: _causal("Mamba", state_size=4),
    "encoder": lambda: _causal("Bert"),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ),
    "llava": _llava,
    "gemma3": _gemma3,
    "qwen2-vl": _qwen2_vl,
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model whose weights are random and never equal by accident."""
    torch.manual_seed(3)
    model = MAKERS[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype).eval()


def state_of(model: Any) -> State:
    """Return a state dict as a gathering engine leaves it: every name with a storage of its own."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def published(model: Any, folder: Path) -> Path:
    """Write the folder that a hub would hold."""
    model.save_pretrained(folder)
    return spelt_for_all(folder)


def spelt_for_all(folder: Path) -> Path:
    """Give a folder's config.json the spelling of every engine beside the one that transformers 5 writes."""
    path = folder / "config.json"
    path.write_bytes(edit_json(path.read_bytes(), spelling_edits(json.loads(path.read_bytes()))))
    return folder


def checkpoint_of(
    state: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    training: Mapping[str, str] | None = None,
    hints: tuple[BaseHint, ...] = (),
    side_files: Mapping[str, Path] | None = None,
) -> Checkpoint:
    """Return a checkpoint with these tensors, all in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model-0.pt"
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in state.values()]
    path.write_bytes(b"".join(raw))
    file = InputFile.describe(path)
    tensors: dict[str, DescribedTensor] = {}
    offset = 0
    for (name, tensor), data in zip(state.items(), raw, strict=True):
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        tensors[name] = whole_tensor(FileSource.contiguous(file, offset, tuple(tensor.shape), dtype))
        offset += len(data)
    return Checkpoint(
        path,
        folder,
        Layout("full-state-dict", "a test's own", None, ()),
        tensors,
        files=(file,),
        training=None if training is None else TrainingParameters(folder / "train_params.yaml", training),
        base_hints=hints,
        side_files=side_files or {},
    )


def base_of(folder: Path, checkpoint: Checkpoint, *, model_class: bool = False) -> Base:
    """Return the base in a folder, as if a user had named it."""
    base, _ = find_base(checkpoint, reference=str(folder), download=False, model_class=model_class)
    assert base is not None
    return base


def matched(checkpoint: Checkpoint, base: Base | None, dtype: str = "base") -> Model:
    """Return the model, after every question was asked and answered."""
    outline = outline_of(checkpoint, base, Choices(dtype=dtype))
    return match_model(outline, dtype=dtype, answers=answer_questions(questions_for(outline)))


def match_state(state: State, base: Path, scratch: Path, dtype: str = "base") -> Model:
    """Return what becomes of a state dict beside a base."""
    checkpoint = checkpoint_of(state, scratch / "run")
    return matched(checkpoint, base_of(base, checkpoint), dtype)


def bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor, a cast included."""
    buffer = bytearray(element_count(tensor) * tensor.dtype.itemsize)
    tensor.read(0, element_count(tensor), memoryview(buffer))
    return bytes(buffer)


def codes(findings: tuple[Finding, ...]) -> list[str]:
    """Return the codes of findings, configuration edits aside."""
    return [found.code for found in findings if found.code != "U501"]


def one(findings: tuple[Finding, ...], code: str) -> Finding:
    """Return the only finding with a code."""
    (found,) = [found for found in findings if found.code == code]
    return found


def casts(model: Model) -> list[str]:
    """Return the names of the tensors that are cast."""
    return [name for name, tensor in model.tensors.items() if isinstance(tensor, CastTensor)]
