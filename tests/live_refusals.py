"""Models in training that are odd, or cannot be described; what two ranks say of them is left in files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel

from unshard.errors import UnshardError
from unshard.training.live.model import describe_live_model
from unshard.training.live.number_check import check_numbers
from unshard.training.ranks.process_group import LoneRank, ranks_of
from unshard.training.ranks.protocol import Ranks


class Params4bit(nn.Parameter):  # type: ignore[misc]  # torch's types are not read
    """A parameter that is not what its numbers say."""


class _Doubled(DistributedDataParallel):  # type: ignore[misc]  # torch's types are not read
    """A wrapper with a part that has the name of one of the model's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.register_parameter("weight", nn.Parameter(torch.zeros(2)))


class _Stateful(nn.Linear):  # type: ignore[misc]  # torch's types are not read
    def get_extra_state(self) -> object:
        """Return what is no tensor."""
        return {"scale": 1}

    def set_extra_state(self, state: object) -> None:
        """Take it."""


def _is_second() -> bool:
    return bool(dist.get_rank() == 1)


def _named(**parts: nn.Module) -> nn.Module:
    return nn.ModuleDict(parts)


def _other_names() -> nn.Module:
    return _named(a=nn.Linear(2, 2), **{"c" if _is_second() else "b": nn.Linear(2, 3)})


def _other_shapes() -> nn.Module:
    return _named(a=nn.Linear(2, 2), b=nn.Linear(2, 4 if _is_second() else 3))


def _other_dtypes() -> nn.Module:
    return nn.Linear(2, 2, dtype=torch.float64 if _is_second() else torch.float32)


def _other_ties() -> nn.Module:
    model = _named(a=nn.Linear(2, 2, bias=False), b=nn.Linear(2, 2, bias=False))
    if _is_second():
        model["b"].weight = model["a"].weight
    return model


def _other_order() -> nn.Module:
    parts = {"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)}
    return _named(**dict(reversed(parts.items())) if _is_second() else parts)


def _on_meta() -> nn.Module:
    return _named(a=nn.Linear(2, 2), b=nn.Linear(2, 2, device="meta" if _is_second() else "cpu"))


def _partial() -> nn.Module:
    model = nn.Linear(2, 2)
    mesh = init_device_mesh("cpu", (2,))
    model.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 2), mesh, [Partial()]))
    return model


def _of_a_class() -> nn.Module:
    model = _named(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    for each in model.values():
        each.weight = Params4bit(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    return model


def _quantised() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("q", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    return model


def _partitioned() -> nn.Module:
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0
    return model


def _with_gaps() -> nn.Module:
    model = _named(a=nn.Linear(4, 3, bias=False), b=nn.Linear(8, 8))
    model["a"].weight.data = torch.zeros(3, 8)[:, ::2]
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def _of_fairscale() -> nn.Module:
    kind = type("FullyShardedDataParallel", (nn.Linear,), {"__module__": "fairscale.nn.data_parallel"})
    wrapper: nn.Module = kind(2, 2)
    return wrapper


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "names": _other_names,
    "shapes": _other_shapes,
    "dtypes": _other_dtypes,
    "ties": _other_ties,
    "order": _other_order,
    "meta": _on_meta,
    "partial": _partial,
    "class": _of_a_class,
    "quantised": _quantised,
    "lazy": lambda: nn.LazyLinear(3),
    "partitioned": _partitioned,
    "gaps": _with_gaps,
    "doubled": lambda: _Doubled(nn.Linear(2, 2)),
    "fairscale": _of_fairscale,
}


def odd_model() -> nn.Module:
    """Return a model of every dtype, of memory in odd orders, with a part of the name of a wrapper."""
    torch.manual_seed(1)
    model = _named(module=nn.Linear(2, 3), _orig_mod=nn.Linear(2, 2))
    model.scalar = nn.Parameter(torch.tensor(0.5))
    model.none = nn.Parameter(torch.zeros(3, 0))
    model.register_buffer("repeated", torch.tensor([1.0, 2.0]).expand(3, 2))
    model.register_buffer("conjugate", torch.tensor([[1 + 2j, 3j]]).conj())
    model.register_buffer("negative", torch.tensor([1 + 2j]).conj().imag)
    model.register_buffer("thin", torch.arange(24.0).view(1, 4, 6).transpose(1, 2))
    model.register_buffer("again", model.repeated)
    for name in ("int8", "uint8", "int16", "float16", "bfloat16", "float8_e4m3fn", "uint32", "complex64"):
        model.register_buffer(f"of_{name}", torch.tensor([0, 1, 2]).to(getattr(torch, name)))
    return model


def _poisoned() -> nn.Module:
    model = _named(a=nn.Linear(3, 5), b=nn.Linear(3, 5), c=nn.Linear(3, 5))
    model["a"].weight.data[4, 2] = float("nan")
    model["c"].bias.data[:2] = torch.tensor([float("inf"), float("-inf")])
    model.register_buffer("mask", torch.tensor([[0.0, float("-inf")]]))
    return model


def leave_refusals(folder: str) -> None:
    """Leave the errors of every model that is refused, and what is said of the odd ones."""
    warnings.simplefilter("ignore", (FutureWarning, UserWarning))
    said: dict[str, Any] = {}
    with ranks_of() as ranks:
        for name, build in REFUSED.items():
            said[name] = _error(build(), ranks)
        mesh = init_device_mesh("cpu", (2,))
        said["alone"] = _error(fully_shard(nn.Linear(3, 5), mesh=mesh), LoneRank())
        for name, wrap in (("copies", DistributedDataParallel), ("flat", _flat)):
            live = describe_live_model(wrap(_poisoned()), ranks)
            said[f"numbers-{name}"] = [each.to_json() for each in check_numbers(live, ranks)]
            live.holdings.close()
        torch.manual_seed(0)
        live = describe_live_model(DistributedDataParallel(_Stateful(2, 2)), ranks)
        said["extra"] = [[each.code, each.subject] for each in live.findings]
        live.holdings.close()
        live = describe_live_model(odd_model(), ranks, select=lambda name: name.startswith("module"))
        said["selected"] = list(live.checkpoint)
        live.holdings.close()
    Path(folder, f"said.{dist.get_rank()}.json").write_text(json.dumps(said))


def _flat(model: nn.Module) -> Any:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def _error(model: nn.Module, ranks: Ranks) -> str:
    try:
        describe_live_model(model, ranks).holdings.close()
    except UnshardError as error:
        return str(error)
    return "no error"
