"""Ranks that load checkpoints into models which they train, and tell what came of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trainers import tiny_llama, tiny_moe
from trainers.awkward import Awkward
from trainers.run import Wrapping
from trainers.wrapping import wrapped

OTHER_SEED = 77


@dataclass(frozen=True, slots=True)
class Scene:
    """A checkpoint, and the model that it is loaded into.

    Attributes:
        name: Its word in the tests.
        path: The checkpoint.
        truth: The state dict of the module after loading, in the dtype of the checkpoint.
        model: What is trained: "llama", "mixtral", "qwen3-moe" or "awkward".
        tied: Whether the output layer is the embedding.
        dtype: Number format of the module.
        wrapping: How it is distributed.
        ddp: Whether DDP wraps it.
        compiled: Whether it is compiled.
    """

    name: str
    path: Path
    truth: Path
    model: str = "llama"
    tied: bool = False
    dtype: str = "float32"
    wrapping: Wrapping = field(default_factory=Wrapping)
    ddp: bool = False
    compiled: bool = False


def fresh_model(kind: str, *, tied: bool, dtype: str, seed: int = OTHER_SEED) -> Any:
    """Return a model of other weights than any checkpoint has."""
    if kind == "awkward":
        torch.manual_seed(seed)
        model: Any = Awkward()
        for buffer in model.buffers():
            buffer.zero_()
        return model
    if kind == "llama":
        return tiny_llama.tiny_llama(seed, tied=tied, dtype=getattr(torch, dtype))
    return tiny_moe.tiny_moe(kind, seed, dtype=getattr(torch, dtype))


@contextmanager
def quiet() -> Iterator[None]:
    """Let torch warn of its own deprecated parts, which the tests use on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def distributed(scene: Scene) -> Any:
    """Return the model of a scene, distributed; every unit has computed once, and some are still gathered."""
    with quiet():
        model = wrapped(fresh_model(scene.model, tied=scene.tied, dtype=scene.dtype), scene.wrapping)
        if scene.ddp:
            model = DistributedDataParallel(model)
        if scene.compiled:
            model = torch.compile(model)
        elif can_compute(scene):
            computed(model)
    return model


def can_compute(scene: Scene) -> bool:
    """Return whether the model of a scene takes tokens; its three heads cannot be cut in two."""
    return scene.model != "awkward" and not scene.compiled and "tp" not in scene.wrapping.mesh


def computed(model: Any) -> torch.Tensor:
    """Return the logits of a few tokens."""
    with torch.no_grad(), quiet():
        logits: torch.Tensor = model(input_ids=torch.arange(3, 19).reshape(2, 8)).logits
    return logits


def gathered(model: Any) -> dict[str, torch.Tensor]:
    """Return the whole state dict, put together by torch, under names without wrappers."""
    with quiet():
        if isinstance(model, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(model, writeback=False):
                return {plain(name): tensor.clone() for name, tensor in model.state_dict().items()}
        for module in model.modules():
            if hasattr(module, "_get_fsdp_state"):
                module.reshard()
        return {
            plain(name): tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
            for name, tensor in model.state_dict().items()
        }


def plain(name: str) -> str:
    """Return a name without wrappers."""
    for segment in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(segment, "")
    return name.removeprefix("module.")


def load_scenes(scenes: Sequence[Scene], folder: Path) -> None:
    """Load every scene; leave in `folder` what every rank saw of it."""
    from unshard.training.loading import load_full

    for scene in scenes:
        model = distributed(scene)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load_full(model, scene.path)
        saw = gathered(model)
        truth = load_file(scene.truth)
        tell(
            folder / scene.name,
            {
                "wrong": wrong_of(saw, truth),
                "names": sorted(set(saw) ^ set(truth)),
                "tensors": loaded.tensors,
                "codes": sorted({found.code for found in loaded.findings}),
                "logits": _same_logits(scene, model, truth) if can_compute(scene) else None,
            },
        )
        del model


def wrong_of(saw: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that are not bit for bit what they should be, cast by torch."""
    return [
        name
        for name, tensor in saw.items()
        if name in truth and not torch.equal(bits(tensor), bits(truth[name].to(tensor.dtype)))
    ]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _same_logits(scene: Scene, model: Any, truth: dict[str, torch.Tensor]) -> bool | None:
    """Return whether the model computes what a plain one with the true weights does, in the same dtype."""
    if scene.wrapping.mixed_precision:
        return None
    reference = fresh_model(scene.model, tied=scene.tied, dtype=scene.dtype)
    reference.load_state_dict(truth)
    return bool(torch.equal(computed(model), computed(reference)))


def tell(folder: Path, facts: dict[str, object]) -> None:
    """Write what this rank saw."""
    folder.mkdir(exist_ok=True)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(facts))
