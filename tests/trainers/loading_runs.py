"""Ranks that load checkpoints into models which they train, and tell what came of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_models
from peft_models import SETTINGS
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


def tell(folder: Path, facts: Mapping[str, object]) -> None:
    """Write what this rank saw."""
    folder.mkdir(exist_ok=True)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(facts))


def load_models(folder: Path) -> None:
    """Load into models of all kinds, whole, in part or not at all; leave what every rank saw in `folder`."""
    for case in (
        _published_experts,
        _still_gathered,
        _meta_device,
        _what_does_not_fit,
        _in_part,
        _other_checkpoints,
        _damaged,
        _adapters,
    ):
        tell(folder / case.__name__, case(folder))
        dist.barrier()


def load_quietly(model: Any, path: Path, **options: Any) -> Any:
    """Return what loading tells; it must not warn."""
    from unshard.training.loading import load_full

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_full(model, path, **options)


def refused(model: Any, path: Path, **options: Any) -> dict[str, object]:
    """Return the error that loading raises, and whether the model is as it was."""
    before = {name: tensor.clone() for name, tensor in gathered(model).items()}
    try:
        load_quietly(model, path, **options)
    except Exception as error:  # noqa: BLE001 - looked at in the tests
        after = gathered(model)
        same = all(torch.equal(bits(after[name]), bits(tensor)) for name, tensor in before.items())
        mismatches = [(each.kind, each.name) for each in getattr(error, "mismatches", ())]
        return {"kind": type(error).__name__, "says": str(error), "untouched": same, "mismatches": mismatches}
    return {"kind": None}


def sharded(model: Any, **options: Any) -> Any:
    """Return a model after fully_shard of its layers and of itself."""
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def llama(*, tied: bool = False) -> Any:
    """Return a tiny model in float32, of other weights than the base."""
    return tiny_llama.tiny_llama(OTHER_SEED, tied=tied, dtype=torch.float32)


def base_state() -> dict[str, torch.Tensor]:
    """Return the state dict of the base, as it is published."""
    base = tiny_llama.tiny_llama(tiny_llama.BASE_SEED, tied=False, dtype=tiny_llama.BASE_DTYPE)
    return dict(base.float().state_dict())


def _published_experts(folder: Path) -> dict[str, object]:
    model = distributed(Scene("", folder, folder, model="mixtral", dtype="bfloat16"))
    loaded = load_quietly(model, folder / "mixtral")
    truth = tiny_moe.tiny_moe("mixtral", tiny_llama.BASE_SEED, dtype=torch.bfloat16).state_dict()
    return {"wrong": wrong_of(gathered(model), truth), "tensors": loaded.tensors, "of": len(truth)}


def _still_gathered(folder: Path) -> dict[str, object]:
    same = dict[str, bool]()
    reference = llama()
    reference.load_state_dict(base_state())
    for strategy in ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"):
        for original in (False, True):
            with quiet():
                model = FullyShardedDataParallel(
                    llama(),
                    sharding_strategy=ShardingStrategy[strategy],
                    use_orig_params=original,
                    device_id=torch.device("cpu"),
                )
                model(input_ids=torch.arange(8)[None])  # with gradients, and no backward pass
            load_quietly(model, folder / "base")
            same[f"{strategy} {original}"] = torch.equal(computed(model), computed(reference))
    model = sharded(llama(), reshard_after_forward=False)
    model(input_ids=torch.arange(8)[None])
    load_quietly(model, folder / "base")
    same["FSDP2"] = torch.equal(computed(model), computed(reference))
    return {"same": same}


def _meta_device(folder: Path) -> dict[str, object]:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**tiny_llama.config_json(tied=False)))
    sharded(model)
    bare = ""
    try:
        load_quietly(model, folder / "base")
    except Exception as error:  # noqa: BLE001 - looked at in the tests
        bare = f"{type(error).__name__}: {error}"
    model.to_empty(device="cpu")
    for module in model.modules():
        for buffer in module._buffers.values():
            buffer.zero_()
    loaded = load_quietly(model, folder / "base")
    wrong = wrong_of(gathered(model), base_state())
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    again = load_quietly(model, folder / "base")
    told = [[found.subject for found in each.findings if found.code == "U162"] for each in (loaded, again)]
    return {"bare": bare, "wrong": wrong, "told": told}


def _what_does_not_fit(folder: Path) -> dict[str, object]:
    wider, narrower, deeper, shallower = llama(), llama(), llama(), llama()
    with quiet():
        wider.resize_token_embeddings(tiny_llama.VOCABULARY + 5, mean_resizing=False)
        narrower.resize_token_embeddings(tiny_llama.VOCABULARY - 5)
    deeper.model.layers.append(type(deeper.model.layers[0])(deeper.config, 2))
    del shallower.model.layers[1]
    tied = sharded(llama(tied=True))
    return {
        "wider": refused(sharded(wider), folder / "base"),
        "narrower": refused(sharded(narrower), folder / "base"),
        "deeper": refused(sharded(deeper), folder / "base"),
        "shallower": refused(sharded(shallower), folder / "base"),
        "diverged": refused(tied, folder / "diverged.pt"),
        "no optimizer": refused(
            model := sharded(llama()), folder / "base", optimizer=torch.optim.AdamW(model.parameters())
        ),
    }


def _in_part(folder: Path) -> dict[str, object]:
    deeper = llama()
    deeper.model.layers.append(type(deeper.model.layers[0])(deeper.config, 2))
    before = {name: tensor.clone() for name, tensor in deeper.state_dict().items()}
    loaded = load_quietly(sharded(deeper), folder / "base", strict=False)
    after, truth = gathered(deeper), base_state()
    kept = [name for name in before if name not in truth]
    shallower = llama()
    del shallower.model.layers[1]
    cut = load_quietly(sharded(shallower), folder / "base", strict=False)
    return {
        "wrong": wrong_of({n: t for n, t in after.items() if n in truth}, truth),
        "changed": [name for name in kept if not torch.equal(after[name], before[name])],
        "kept": len(kept),
        "codes": [[found.code for found in each.findings] for each in (loaded, cut)],
        "tensors": [loaded.tensors, cut.tensors],
    }


def _other_checkpoints(folder: Path) -> dict[str, object]:
    path = folder / ("base" if dist.get_rank() == 0 else "tied-base")
    nowhere = folder / ("base" if dist.get_rank() == 0 else "nowhere")
    return {
        "other": refused(sharded(llama()), path),
        "nowhere": refused(sharded(llama()), nowhere),
        "fits nothing": refused(sharded(llama()), folder / "other.pt", strict=False),
    }


def _damaged(folder: Path) -> dict[str, object]:
    """Load a checkpoint of which only rank 1 reads the blob that is damaged."""
    return refused(sharded(llama()), folder / "damaged")


def _adapters(folder: Path) -> dict[str, object]:
    import peft

    def adapted() -> Any:
        with quiet():
            model = peft.get_peft_model(
                tiny_models.tiny_model("llama", torch.float32), peft.LoraConfig(**SETTINGS)
            )
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        return fully_shard(model)

    full = torch.load(folder / "peft" / "full" / "model.pt")
    wrong, told = dict[str, list[str]](), dict[str, list[str]]()
    parts: dict[str, Callable[[str], bool]] = {
        "full": lambda name: True,
        "adapter": lambda name: "lora_" in name,
        "base": lambda name: "lora_" not in name,
    }
    for part, is_loaded in parts.items():
        model = adapted()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        loaded = load_quietly(model, folder / "peft" / part)
        after = gathered(model)
        truth = {name: t if is_loaded(name) else torch.full_like(t, 7) for name, t in full.items()}
        wrong[part] = wrong_of(after, truth)
        told[part] = [found.code for found in loaded.findings]
    plain = fully_shard(tiny_models.tiny_model("llama", torch.float32))
    alone = refused(plain, folder / "peft" / "adapter")
    load_quietly(plain, folder / "peft" / "adapter", base=folder / "peft" / "base")
    merged = load_file(folder / "peft" / "merged" / "model.safetensors")
    after = gathered(plain)
    furthest = max((after[name] - tensor).abs().max().item() for name, tensor in merged.items())
    return {"wrong": wrong, "told": told, "alone": alone, "furthest": furthest}
