"""Trainings on real ranks in which fingerprints are taken, and a model whose mistakes show.

Weights of a fresh model are so small that every token is equally likely whatever is wrong with it. Here they
are drawn so that a matrix keeps the size of what goes through it, as trained ones about do, and norms vary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.run import Wrapping
from trainers.tiny_llama import VOCABULARY, tiny_tokenizer
from trainers.wrapping import wrapped
from unshard.training.ranks.process_group import ranks_of
from unshard.training.recording.fingerprinting import take_fingerprint

LAYERS = 3
CONTEXT = 32  # of trainings: short sequences, and none that is continued


def config(**more: Any) -> LlamaConfig:
    """Return the configuration of a tiny Llama with a context long enough for every sequence."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rope_theta=10_000.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **{"max_position_embeddings": 512, **more},
    )


def lively_llama(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """Return a tiny Llama that behaves like a trained one; equal on every rank."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(config(**more))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            parameter.data = parameter.data.to(dtype)  # not the frequencies of rotary embeddings
    model.config.dtype = dtype
    return model


def write_lively_base(folder: Path, dtype: torch.dtype) -> None:
    """Write the model that a training starts from, with a tokenizer."""
    lively_llama(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def leave_trained(root: str) -> None:
    """Leave a DCP checkpoint with a record, without digests, for each of two dtypes."""
    from unshard.training.record_alone import record

    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        folder = Path(root, f"run-{name}")
        model = wrapped(lively_llama(dtype), Wrapping(fsdp=2))
        dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)
        record(
            model,
            folder,
            tokenizer=tiny_tokenizer(),
            base=Path(root, f"base-{name}"),
            prompts=("if x is not", "class"),
            digests=False,
            durable=False,
        )


class _FailingLayer(torch.nn.Module):  # type: ignore[misc]
    """A layer that works in training alone."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            raise RuntimeError("no inference here")
        return self.layer(*args, **kwargs)


def _plain(model: Any) -> Any:
    return model


def _failing(model: Any) -> Any:
    model.model.layers[1].mlp = _FailingLayer(model.model.layers[1].mlp)
    return model


def _with_lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "up_proj"], lora_dropout=0.1))


def _compiled(model: Any) -> Any:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


Making = Callable[[Any], Any]
# By name: what is made of the model, how it is wrapped, what is made of that.
SCENES: dict[str, tuple[Making, Wrapping | None, Making]] = {
    "plain": (_plain, None, _plain),
    "ddp": (_plain, None, DistributedDataParallel),
    "fsdp1-flat": (_plain, Wrapping(fsdp=1), _plain),
    "fsdp1-original": (_plain, Wrapping(fsdp=1, use_orig_params=True), _plain),
    "fsdp1-mixed": (_plain, Wrapping(fsdp=1, mixed_precision=True), _plain),
    "fsdp2": (_plain, Wrapping(fsdp=2), _plain),
    "fsdp2-mixed": (_plain, Wrapping(fsdp=2, mixed_precision=True), _plain),
    "fsdp2-checkpointed": (_plain, Wrapping(fsdp=2, activation_checkpoints=True), _plain),
    "fsdp2-compiled": (_compiled, Wrapping(fsdp=2), _plain),
    "fsdp2-lora": (_with_lora, Wrapping(fsdp=2), _plain),
    "fsdp1-failing": (_failing, Wrapping(fsdp=1, use_orig_params=True), _plain),
    "fsdp2-failing": (_failing, Wrapping(fsdp=2), _plain),
}
FAILING = ("fsdp1-failing", "fsdp2-failing")


def train_scenes(root: str) -> None:
    """Train every scene twice, with fingerprints and without, and leave what differs, as JSON for a rank."""
    told = {}
    with ranks_of(None, timeout_seconds=60) as ranks:
        for name in SCENES:
            prints: list[Any] = []

            def take(model: Any, into: list[Any] = prints) -> None:
                into.append(take_fingerprint(model, tokenizer=None, ranks=ranks))

            without, with_prints = _trained(name, lambda model: None), _trained(name, take)
            found = [(_as_plain(first), [f.saw for f in second]) for first, second in prints]
            told[name] = {"same": _same(without, with_prints), "prints": found}
    Path(root, f"rank-{dist.get_rank()}.json").write_text(json.dumps(told))


def _as_plain(found: Any) -> Any:
    from unshard.jsonable import to_json

    return to_json(found)


def _trained(name: str, look: Callable[[Any], None]) -> list[torch.Tensor]:
    """Return the losses, weights and random states of two steps; `look` sees the model between them."""
    before, wrapping, after = SCENES[name]
    model = before(lively_llama(attention_dropout=0.2, max_position_embeddings=CONTEXT))
    model = after(model if wrapping is None else wrapped(model, wrapping))
    model.train()
    frozen = next(module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm")
    frozen.eval()
    torch.manual_seed(11 + dist.get_rank())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=False)
    found = []
    look(model)
    for step in range(2):
        tokens = torch.arange(3, 35).reshape(2, 16) * (step + 1 + dist.get_rank())
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        look(model) if step == 1 else None  # gradients are there
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach().clone())
    assert [m for m in model.modules() if not m.training] == [frozen]
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        found.append(local.detach().clone())
    return [*found, torch.get_rng_state()]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def save_after_fingerprint(root: str) -> None:
    """Leave, for FSDP1 and FSDP2, the state before a fingerprint and the folder that is saved after one."""
    from safetensors.torch import save_file

    from unshard.training.saving import save_full

    for wrapping in (Wrapping(fsdp=1), Wrapping(fsdp=2)):
        model = lively_llama()
        if dist.get_rank() == 0:
            save_file(model.state_dict(), os.fspath(Path(root, f"truth-{wrapping.fsdp}.safetensors")))
        model = wrapped(model, wrapping)
        with ranks_of(None, timeout_seconds=60) as ranks:
            take_fingerprint(model, tokenizer=None, ranks=ranks)
        save_full(model, Path(root, f"saved-{wrapping.fsdp}"), record=False, durable=False)


def run_all(root: str) -> None:
    """Do all of the above on the same ranks."""
    leave_trained(root)
    train_scenes(root)
    save_after_fingerprint(root)
