"""Models of PEFT in training under FSDP1, FSDP2 and tensor parallelism, and what each would be saved as."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from peft_models import SETTINGS, make_random
from tiny_models import tiny_model, write_folder
from unshard.match import answer_questions
from unshard.tensors import CastTensor, DescribedTensor, Piece, Tensor
from unshard.tensors.boxes import Box
from unshard.training.live.model import LiveModel, describe_live_model
from unshard.training.live.source import owned_pieces
from unshard.training.publishing.adapter_config import with_adapter_config
from unshard.training.publishing.adapters import share_parts
from unshard.training.publishing.contents import Contents, plan_contents
from unshard.training.publishing.model_files import prepare_base
from unshard.training.publishing.options import require_options
from unshard.training.ranks.process_group import ranks_of
from unshard.training.ranks.protocol import Ranks


@dataclass(frozen=True)
class Kind:
    """A kind of adapter, and how the model with it is distributed."""

    name: str
    family: str
    wrapping: str
    settings: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    adapters: tuple[str, ...] = field(default=("default",))


_TARGETS = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KINDS = (
    Kind("lora", "llama", "fsdp1", {**_TARGETS, "modules_to_save": ["norm"]}),
    Kind("rank-stabilised", "llama", "fsdp2", {**_TARGETS, "use_rslora": True}, torch.bfloat16),
    Kind("dora", "llama", "fsdp1", {"target_modules": "all-linear", "use_dora": True}),
    Kind("dora-columns", "llama", "tensor-parallel", {"target_modules": ["o_proj"], "use_dora": True}),
    Kind("dora-transposed", "gpt2", "fsdp2", {"target_modules": ["c_attn"], "use_dora": True}),
    Kind("tied-embedding", "llama-tied", "fsdp2", {"target_modules": ["q_proj", "embed_tokens"]}),
    Kind("experts", "mixtral", "fsdp2", {"target_parameters": ["mlp.experts.gate_up_proj"]}),
    Kind("biases", "qwen2", "fsdp2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    Kind("two", "llama", "ddp", _TARGETS, adapters=("default", "other")),
)


def save_adapters(folder: Path) -> None:
    """Leave, for every kind, the base, what PEFT publishes, and what the ranks together would write.

    <kind>/base/       transformers
    <kind>/adapter/    PEFT: the adapter alone
    <kind>/full/       the state dict of the whole PEFT model before it was distributed
    <kind>/merged.safetensors, <kind>/kept.safetensors, <kind>/adapter_config.json    ours
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with ranks_of() as ranks:
        for kind in KINDS:
            place = folder / kind.name
            model = _adapted(kind, place)
            save(_distributed(model, kind.wrapping), place, ranks)


def _adapted(kind: Kind, place: Path) -> Any:
    model = tiny_model(kind.family, kind.dtype)
    model.config._name_or_path = str(place / "base")
    model.name_or_path = str(place / "base")
    for number, name in enumerate(kind.adapters):
        config = peft.LoraConfig(**{**SETTINGS, **kind.settings})
        if number:
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config)
    make_random(model)
    if dist.get_rank() == 0:
        write_folder(tiny_model(kind.family, kind.dtype), place / "base")
        model.save_pretrained(place / "adapter", selected_adapters=["default"])
        (place / "full").mkdir()
        torch.save(model.state_dict(), place / "full" / "model.pt")
    dist.barrier()
    return model


def _distributed(model: Any, wrapping: str) -> Any:
    if wrapping == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    layers = list(_layers(model))
    if wrapping == "fsdp1":
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=CustomPolicy(lambda module: module in layers),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )
    if wrapping == "tensor-parallel":
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        for layer in layers:
            plan = {"self_attn.o_proj.base_layer": RowwiseParallel(), "mlp.up_proj": ColwiseParallel()}
            parallelize_module(layer, mesh, plan)
        return model
    for layer in layers:
        fully_shard(layer)
    return fully_shard(model)


def _layers(model: Any) -> Any:
    inner = model.base_model.model
    return inner.transformer.h if hasattr(inner, "transformer") else inner.model.layers


def save(model: Any, place: Path, ranks: Ranks) -> None:
    """Leave what a live model would be saved as."""
    live = describe_live_model(model, ranks)
    with tempfile.TemporaryDirectory() as own:
        contents = {adapter: _contents(model, live, adapter, Path(own)) for adapter in ("merge", "keep")}
        for adapter, name in (("merge", "merged"), ("keep", "kept")):
            tensors = contents[adapter].model.tensors
            with share_parts(tensors.values(), live.holdings, ranks, block_bytes=5001):
                found = {key: _gathered(tensor, ranks) for key, tensor in tensors.items()}
            if ranks.rank == 0:
                save_file(found, place / f"{name}.safetensors")
        if ranks.rank == 0:
            config = next(f for f in contents["keep"].side_files if f.name == "adapter_config.json")
            assert config.content is not None
            (place / config.name).write_bytes(config.content)
    live.holdings.close()


def _contents(model: Any, live: LiveModel, adapter: str, own: Path) -> Contents:
    options = require_options(
        own / "out", format="safetensors", dtype="keep", adapter=adapter, max_shard_size="5GB"
    )
    prepared = prepare_base(model, live)
    assert prepared is not None
    checkpoint = with_adapter_config(model, live, own).checkpoint
    return plan_contents(checkpoint, prepared.base_in(own), options, answer_questions)


def _gathered(tensor: Tensor, ranks: Ranks) -> torch.Tensor:
    """Return a tensor of which every rank reads only what it owns."""
    own = [_read(each.piece, tensor) for each in owned_pieces(tensor) if each.rank == ranks.rank]
    result = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
    for part in ranks.gather("gathering", own):
        for box, raw in part:
            values = torch.frombuffer(bytearray(raw), dtype=result.dtype)
            result[tuple(map(slice, box.start, box.stop))] = values.view(box.shape)
    return result


def _read(piece: Piece, tensor: Tensor) -> tuple[Box, bytes]:
    before = tensor.source.dtype if isinstance(tensor, CastTensor) else tensor.dtype
    shape = piece.box.shape
    part: Tensor = DescribedTensor(shape, before, (Piece(Box.whole(shape), piece.source),))
    if isinstance(tensor, CastTensor):
        part = CastTensor(part, tensor.dtype)
    raw = bytearray(piece.box.volume * tensor.dtype.itemsize)
    part.read(0, piece.box.volume, memoryview(raw))
    return piece.box, bytes(raw)
