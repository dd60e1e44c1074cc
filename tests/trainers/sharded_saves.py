"""Ranks that save checkpoints of DCP, stop, and go on from them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

import tiny_models
from peft_models import SETTINGS, make_random
from trainers import tiny_llama
from trainers.loading_runs import (
    Scene,
    bits,
    computed,
    distributed,
    fresh_model,
    gathered,
    load_quietly,
    plain,
    quiet,
    tell,
    wrong_of,
)
from trainers.run import Wrapping
from trainers.sharded_runs import FSDP1, FSDP1_HYBRID, FSDP1_ORIGINAL, HYBRID, TENSOR_PARALLEL
from trainers.wrapping import wrapped

NOWHERE = Path("nowhere")
SAVED = {
    2: {
        "fsdp2": Scene("", NOWHERE, NOWHERE),
        "fsdp1": Scene("", NOWHERE, NOWHERE, wrapping=FSDP1),
        "fsdp1-original-tied": Scene("", NOWHERE, NOWHERE, wrapping=FSDP1_ORIGINAL, tied=True),
        "ddp-bf16": Scene("", NOWHERE, NOWHERE, wrapping=Wrapping(fsdp=0), ddp=True, dtype="bfloat16"),
        "mixtral": Scene("", NOWHERE, NOWHERE, model="mixtral", dtype="bfloat16"),
        "awkward": Scene("", NOWHERE, NOWHERE, model="awkward"),
        "awkward-fsdp1": Scene("", NOWHERE, NOWHERE, model="awkward", wrapping=FSDP1),
    },
    4: {
        "hsdp": Scene("", NOWHERE, NOWHERE, wrapping=HYBRID),
        "fsdp1-hsdp": Scene("", NOWHERE, NOWHERE, wrapping=FSDP1_HYBRID),
        "tensor-parallel": Scene("", NOWHERE, NOWHERE, wrapping=TENSOR_PARALLEL),
        "awkward-four": Scene("", NOWHERE, NOWHERE, model="awkward"),
    },
}


def save_scenes(folder: Path) -> None:
    """Save every scene of this number of ranks, and the truth about it."""
    for name, scene in SAVED[dist.get_world_size()].items():
        model = distributed(scene)
        truth = gathered(model)
        if dist.get_rank() == 0:
            save_file(
                {key: tensor.contiguous().clone() for key, tensor in truth.items()}, truth_of(folder, name)
            )
        saved = save_quietly(model, folder / name, tokenizer=folder / "tokenizer")
        same = all(torch.equal(bits(now), bits(truth[key])) for key, now in gathered(model).items())
        tell(folder / f"told-{name}", {"bytes": saved.output_bytes, "untouched": same})
    if dist.get_world_size() == 2:
        tell(folder / "told-refused", _refusals(folder))
        _save_adapted(folder)


def truth_of(folder: Path, name: str) -> Path:
    """Return where the truth about a save lies."""
    return folder / f"{name}.safetensors"


def save_quietly(model: Any, path: Path, **options: Any) -> Any:
    """Return what saving tells; it must not warn."""
    from unshard.training.sharded import save_sharded

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return save_sharded(model, path, **options)


def _refusals(folder: Path) -> dict[str, object]:
    """Save where something lies, and with ranks that were told different paths."""
    model = distributed(SAVED[2]["fsdp2"])
    places = {"exists": folder / "fsdp2", "two places": folder / f"new-{dist.get_rank()}"}
    said = dict[str, object]()
    for name, path in places.items():
        try:
            save_quietly(model, path)
        except Exception as error:  # noqa: BLE001 - looked at in the tests
            said[name] = f"{type(error).__name__}: {error}"
    return said


def _save_adapted(folder: Path) -> None:
    """Save a model with an adapter, and what PEFT merges it to."""
    with quiet():
        model = peft.get_peft_model(
            tiny_models.tiny_model("llama", torch.float32), peft.LoraConfig(**SETTINGS)
        )
        make_random(model)
        merged = copy.deepcopy(model).merge_and_unload().state_dict()
    if dist.get_rank() == 0:
        save_file(
            {key: tensor.contiguous().clone() for key, tensor in merged.items()}, truth_of(folder, "peft")
        )
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    save_quietly(fully_shard(model), folder / "peft", tokenizer=folder / "tokenizer")


def trained(model: Any, optimizer: Any, *steps: int) -> None:
    """Train for a few steps of real gradients; which tokens are seen, the number of the step says."""
    for step in steps:
        tokens = torch.arange(16).reshape(2, 8) * (step + 3) % tiny_llama.VOCABULARY
        with quiet():
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def new_model(wrapping: Wrapping) -> Any:
    """Return a model of other weights than any checkpoint has, distributed."""
    with quiet():
        return wrapped(fresh_model("llama", tied=False, dtype="float32"), wrapping)


RESUMED = {"fsdp2": Wrapping(), "fsdp1": FSDP1, "fsdp1-original": FSDP1_ORIGINAL}
OPTIONS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.8, 0.93)}


def stop_training(folder: Path) -> None:
    """Train, save whole and sharded, and go on; leave the model that would have come of it."""
    from unshard.training.saving import save_full

    for name, wrapping in RESUMED.items():
        model = new_model(wrapping)
        optimizer = torch.optim.AdamW(model.parameters(), **OPTIONS)
        unused = save_quietly(model, folder / f"{name}-unused", optimizer=optimizer)
        trained(model, optimizer, 1, 2)
        computed(model)  # which leaves units gathered
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save_full(model, folder / f"{name}-full", optimizer=optimizer)
        save_quietly(model, folder / f"{name}-sharded", optimizer=optimizer)
        trained(model, optimizer, 3)
        truth = gathered(model)
        if dist.get_rank() == 0:
            save_file({key: tensor.contiguous() for key, tensor in truth.items()}, truth_of(folder, name))
        tell(folder / f"told-{name}", {"unused": [found.code for found in unused.findings]})


def resume_training(folder: Path) -> None:
    """Go on in other processes from what was saved; tell how far that is from never having stopped."""
    from safetensors.torch import load_file

    for name, wrapping in RESUMED.items():
        for kind in ("full", "sharded"):
            model = new_model(wrapping)
            optimizer = torch.optim.AdamW(model.parameters(), lr=9.0)
            load_quietly(model, folder / f"{name}-{kind}", optimizer=optimizer)
            trained(model, optimizer, 3)
            wrong = wrong_of(gathered(model), load_file(truth_of(folder, name)))
            tell(folder / f"resumed-{name}-{kind}", {"wrong": wrong, "lr": optimizer.param_groups[0]["lr"]})
    tell(folder / "resumed-otherwise", _resumed_otherwise(folder))


def _resumed_otherwise(folder: Path) -> dict[str, object]:
    """Load a state into other wrappers than it was saved from, and into another optimizer."""
    model = new_model(FSDP1_ORIGINAL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=9.0)
    load_quietly(model, folder / "fsdp2-full", optimizer=optimizer)
    other = fully_shard(tiny_llama.tiny_llama(5, tied=False, dtype=torch.float32))
    plain_sgd = torch.optim.SGD(other.parameters(), lr=9.0, momentum=0.9)
    before = gathered(other)
    try:
        load_quietly(other, folder / "fsdp2-full", optimizer=plain_sgd)
        said = ""
    except Exception as error:  # noqa: BLE001 - looked at in the tests
        said = f"{type(error).__name__}: {error}"
    same = all(torch.equal(bits(now), bits(before[name])) for name, now in gathered(other).items())
    return {
        "moments": moments_of(model, optimizer),
        "said": said,
        "untouched": same,
        "state": len(plain_sgd.state),
    }


def moments_of(model: Any, optimizer: Any) -> dict[str, float]:
    """Return the sum of squares of every first moment, put together by torch."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    with quiet():
        state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    return {
        plain(name): each["exp_avg"].double().square().sum().item() for name, each in state["state"].items()
    }


def tell_moments(folder: Path) -> None:
    """Load a state on this number of ranks, and tell its moments; compute once, too."""
    model = new_model(HYBRID)
    optimizer = torch.optim.AdamW(model.parameters(), lr=9.0)
    load_quietly(model, folder / "fsdp1-sharded", optimizer=optimizer)
    tell(folder / f"moments-{dist.get_world_size()}", moments_of(model, optimizer))
    computed(model)
