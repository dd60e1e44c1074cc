"""A tiny Llama with awkward sizes, its base folder, and the truth about its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY = 515  # odd, as are other first dimensions: shards of them are uneven
BASE_SEED = 1000
BASE_DTYPE = torch.bfloat16

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|pad|>", "<|start|>", "<|end|>", "<|user|>", "<|assistant|>")


def config_json(*, tied: bool) -> dict[str, Any]:
    """Return config.json in the spelling that model hubs hold, which every engine reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.2,
        "intermediate_size": 75,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 50000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def tiny_llama(seed: int, *, tied: bool, dtype: torch.dtype) -> Any:
    """Return a model with random weights, its norms included; equal on every rank."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config_json(tied=tied)), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype)


def clean_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the state dict in which no two tensors share memory."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def write_truth(model: torch.nn.Module, file: Path) -> None:
    """Write the unsharded state dict, on rank 0; called before anything wraps the model."""
    if dist.get_rank() == 0:
        file.parent.mkdir(exist_ok=True)
        save_file(clean_state(model), file)


def train_one_step(model: Any) -> torch.optim.Optimizer:
    """Do one real step whose learning rate is 0: the optimizer has a state, the weights stay."""
    optimizer = frozen_optimizer(model)
    tokens = torch.arange(3, 19).reshape(2, 8) + dist.get_rank()
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def frozen_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer whose steps leave the weights as they are."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, foreach=False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of exactly `VOCABULARY` tokens, learnt from Python's own help."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [topics["if"], topics["while"], topics["for"], topics["class"]],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    fast.chat_template = CHAT_TEMPLATE
    assert len(fast) == VOCABULARY
    return fast


def write_model_files(folder: Path, *, tied: bool) -> None:
    """Write everything a model folder holds besides its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config_json(tied=tied))
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    tiny_tokenizer().save_pretrained(folder)


def write_base(folder: Path, *, tied: bool) -> None:
    """Write the model folder that training starts from."""
    write_model_files(folder, tied=tied)
    state = clean_state(tiny_llama(BASE_SEED, tied=tied, dtype=BASE_DTYPE))
    if tied:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
