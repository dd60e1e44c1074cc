"""Tiny models of transformers with random weights, their folders, and those folders as matched models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from specimens import spelt_for_all
from trainers.tiny_llama import tiny_tokenizer
from unshard.base import Base
from unshard.dtypes import DTYPES
from unshard.match.model import Model
from unshard.plan import SideFile
from unshard.readers.weights.safetensors_file import describe_safetensors_file
from unshard.storage.files import InputFile
from unshard.tensors import CastTensor, DescribedTensor, Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 515,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _model(cls: str, config: str, **sizes: object) -> Callable[[], Any]:
    return lambda: getattr(transformers, cls)(getattr(transformers, config)(**{**SIZES, **sizes}))


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _model("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=False, rope_theta=50000.0),
    "llama-tied": _model("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True),
    "qwen2": _model("Qwen2ForCausalLM", "Qwen2Config", tie_word_embeddings=False),
    "gemma2": _model("Gemma2ForCausalLM", "Gemma2Config", query_pre_attn_scalar=16),
    "gpt2": _model("GPT2LMHeadModel", "GPT2Config", n_positions=256, n_embd=48, n_layer=2, n_head=3),
    "mixtral": _model("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "classifier": _model("LlamaForSequenceClassification", "LlamaConfig", num_labels=5),
    "encoder": _model("BertModel", "BertConfig"),
    "encoder-decoder": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=515, d_model=48, d_kv=16, d_ff=80, num_layers=2, num_heads=3, decoder_start_token_id=0
        )
    ),
}


def _vision_language() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = transformers.LlamaConfig(**SIZES)
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=500)
    )


FAMILIES["vision-language"] = _vision_language


def tiny_model(family: str, dtype: torch.dtype = torch.float32, *, seed: int = 7) -> Any:
    """Return a model whose every weight is random, in eval mode."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    for parameter in model.parameters():
        # Not `model.to`, which would round the frequencies of rotary embeddings as well.
        parameter.data = torch.empty_like(parameter.data).normal_(std=0.2).to(dtype)
    model.config.dtype = dtype
    return model.eval()


def write_folder(model: Any, folder: Path, *, tokenizer: bool = True) -> Path:
    """Write a model as the folder that hubs hold: weights in safetensors, by the names hubs use."""
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return spelt_for_all(folder)


def describe_folder(folder: Path) -> dict[str, DescribedTensor]:
    """Return the tensors of the folder's one safetensors file."""
    return describe_safetensors_file(InputFile.describe(folder / "model.safetensors"))


def base_of(folder: Path) -> Base:
    """Return a folder as a base."""
    content = (folder / "config.json").read_bytes()
    side = {p.name: p for p in folder.iterdir() if p.name != "config.json" and p.suffix != ".safetensors"}
    return Base(folder, str(folder), "--base", content, json.loads(content), None, None, side_files=side)


def as_matched(tensors: Mapping[str, Tensor], *, dtype: str | None = None) -> Model:
    """Return tensors as a matched model, cast to `dtype` where one is given."""
    if dtype is not None:
        tensors = {name: CastTensor(tensor, DTYPES[dtype]) for name, tensor in tensors.items()}
    return Model(tensors, {name: (name,) for name in tensors}, (), {}, ())


def side_files_of(folder: Path) -> list[SideFile]:
    """Return what a conversion would put beside the tensors."""
    return [SideFile(p.name, None, p, "base") for p in folder.iterdir() if p.suffix != ".safetensors"]


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return what a model gives for a batch of tokens: its logits, or its last hidden state."""
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[:, :3]
    with torch.inference_mode():
        output = model(**inputs)
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors are equal bit for bit."""
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return bool(a.shape == b.shape and a.dtype == b.dtype and torch.equal(*raw))
