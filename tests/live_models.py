"""Models in training, wrapped in every way; what ranks describe of them is left in files for the tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffload,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from unshard.training.live.model import LiveModel, describe_live_model
from unshard.training.live.source import owned_pieces
from unshard.training.ranks.process_group import ranks_of
from unshard.training.ranks.protocol import Ranks

_BF16 = torch.bfloat16
_HALF = MixedPrecision(param_dtype=_BF16, reduce_dtype=_BF16, buffer_dtype=_BF16)


class Block(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A residual block of sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 7)
        self.down = nn.Linear(7, 6, bias=False)

    def forward(self, hidden: torch.Tensor) -> Any:
        """Add to what comes in."""
        return hidden + self.down(self.up(self.norm(hidden)).relu())


class Experts(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Experts in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6, 5))

    def forward(self, hidden: torch.Tensor) -> Any:
        """Ask all of them."""
        return hidden + (hidden @ self.weight[0]).sum()


class Odd(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Uneven sizes, a tie, a part called `module`, memory in other orders, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.module = nn.Linear(6, 6)
        self.experts = Experts()
        self.conv = nn.Conv2d(3, 5, (2, 3)).to(memory_format=torch.channels_last)
        self.big = nn.Linear(300, 257)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(1.0009765625))
        self.register_buffer("counters", torch.tensor([1, -(2**40), 3]))
        self.register_buffer("mask", torch.tensor([[True, False, True]]))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("turned", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("passing", torch.ones(3), persistent=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Use every parameter."""
        hidden = self.embed(tokens) * self.scale
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.experts(self.module(hidden))
        images = torch.ones(1, 3, 4, 5, dtype=hidden.dtype)
        rest = self.conv(images).sum() + self.big(torch.ones(1, 300, dtype=hidden.dtype)).sum()
        return self.head(hidden).sum() + rest


def _compiled(module: nn.Module) -> Any:
    """Return the module compiled by a backend that takes no time to import."""
    return torch.compile(module, backend="eager")


def _rest(model: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Scene:
    """One way to wrap a model, and what is done with it before it is described.

    Attributes:
        wrap: Wraps the model.
        then: What is done with it.
        is_trained: Whether what torch itself gathers afterwards is the truth, and not the model before.
    """

    wrap: Callable[[Odd], Any]
    then: Callable[[Any], None] = _rest
    is_trained: bool = False


def _evaluate(model: Any) -> None:
    """Run a forward pass without gradients, after which FSDP may hold parameters gathered."""
    model.eval()
    with torch.no_grad():
        model(torch.arange(6).view(2, 3))


def _differentiate(model: Any) -> None:
    model(torch.arange(6).view(2, 3)).backward()


def _go_forward(model: Any) -> None:
    """Stop in the middle of a step: after the forward pass, before the backward one."""
    model.kept = model(torch.arange(6).view(2, 3))


def _step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        _differentiate(model)
        optimizer.step()
        optimizer.zero_grad()


def _fsdp1(strategy: str, **options: Any) -> Callable[[Odd], Any]:
    """Return what wraps in FSDP1; blocks are units of their own, one of them in another unit."""

    def wrap(model: Odd) -> Any:
        known = {"sharding_strategy": ShardingStrategy[strategy], "device_id": torch.device("cpu"), **options}
        if strategy.startswith("HYBRID") or known.pop("mesh", None):
            shape = (2, 2) if strategy.startswith("HYBRID") else (4,)
            known["device_mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=("out", "in")[: len(shape)])
        model.blocks[0] = FullyShardedDataParallel(model.blocks[0], **known)
        model.blocks[2].up = FullyShardedDataParallel(model.blocks[2].up, **known)
        model.blocks[2] = FullyShardedDataParallel(model.blocks[2], **known)
        return FullyShardedDataParallel(model, **known)

    return wrap


def _fsdp2(shape: tuple[int, ...] = (4,), **options: Any) -> Callable[[Odd], Any]:
    """Return what wraps in FSDP2."""

    def wrap(model: Odd) -> Any:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("out", "in")[: len(shape)])
        _in_order(model)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, **options)
        return fully_shard(model, mesh=mesh, **options)

    return wrap


def _replicated(model: Odd) -> Any:
    _in_order(model)
    return replicate(model, mesh=init_device_mesh("cpu", (4,)))


def _in_order(model: Odd) -> None:
    """Give the convolution memory in row-major order: FSDP2 takes no other."""
    model.conv.to(memory_format=torch.contiguous_format)


def _tensor_parallel(*, fsdp: int = 0) -> Callable[[Odd], Any]:
    def wrap(model: Odd) -> Any:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
        for block in model.blocks:
            parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if fsdp == 2:
            _in_order(model)
            for block in model.blocks:
                fully_shard(block, mesh=mesh["fsdp"])
            return fully_shard(model, mesh=mesh["fsdp"])
        if fsdp == 1:
            cpu = torch.device("cpu")
            return FullyShardedDataParallel(
                model, device_mesh=mesh["fsdp"], device_id=cpu, use_orig_params=True
            )
        return model

    return wrap


def _expert_parallel(model: Odd) -> Any:
    """Distribute whole experts over half of the ranks, and shard what each has over the others."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "experts"))
    weight = distribute_tensor(model.experts.weight, mesh["experts"], [Shard(0)])
    model.experts.weight = nn.Parameter(weight)
    _in_order(model)
    fully_shard(model.experts, mesh=mesh["fsdp"], shard_placement_fn=lambda _: Shard(1))
    return fully_shard(model, mesh=mesh["fsdp"])


def _frozen(model: Odd) -> Odd:
    for parameter in model.blocks.parameters():
        parameter.requires_grad_(False)
    return model


def _ignoring(model: Odd) -> Any:
    return _fsdp1("FULL_SHARD", ignored_states=[model.big.weight], use_orig_params=True)(model)


def _checkpointed(model: Odd) -> Odd:
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    model.blocks[2].up = _compiled(model.blocks[2].up)
    return model


def _ddp_inside(model: Odd) -> Any:
    """Wrap a part of the model in DDP, too."""
    model.module = DistributedDataParallel(model.module)
    return model


def _swap(model: Any) -> None:
    """Give parameters other memory, as those do who evaluate a moving average of them."""
    _differentiate(model)
    for parameter in model.parameters():
        parameter.data = parameter.data * 3


def _change(model: Any) -> None:
    if dist.get_rank() == 2:
        model.big.weight.data[5] += 1
        model.scale += 1


def _change_flat(model: Any) -> None:
    if dist.get_rank() == 2:
        model._handle.flat_param.data += 1


def _change_replica(model: Any) -> None:
    if dist.get_rank() == 3:
        model.big.weight._local_tensor.data[-1, -1] += 1


FOUR: dict[str, Scene] = {
    "alone": Scene(lambda model: model),
    "copies-differ": Scene(lambda model: model, _change),
    "fsdp1-copies-differ": Scene(_fsdp1("NO_SHARD"), _change_flat),
    "hsdp-copies-differ": Scene(_fsdp2((2, 2)), _change_replica),
    "ddp": Scene(lambda model: DistributedDataParallel(model), _differentiate),
    "ddp-compiled": Scene(lambda model: _compiled(DistributedDataParallel(model))),
    "compiled-ddp-checkpointed": Scene(
        lambda model: DistributedDataParallel(_compiled(_checkpointed(model)))
    ),
    "ddp-inside": Scene(_ddp_inside),
    **{
        f"fsdp1-{strategy}-{state}-{orig}".lower(): Scene(
            _fsdp1(strategy, use_orig_params=orig),
            {"eval": _evaluate, "forward": _go_forward}.get(state, _rest),
        )
        for strategy, states in (
            ("FULL_SHARD", ("fresh", "eval", "forward")),
            ("SHARD_GRAD_OP", ("eval", "forward")),
            ("NO_SHARD", ("eval",)),
            ("HYBRID_SHARD", ("forward",)),
        )
        for state in states
        for orig in (True, False)
    },
    "fsdp1-grads": Scene(_fsdp1("FULL_SHARD", use_orig_params=True), _differentiate),
    "fsdp1-stepped": Scene(_fsdp1("FULL_SHARD", use_orig_params=True), _step, is_trained=True),
    "fsdp1-stepped-flat": Scene(_fsdp1("SHARD_GRAD_OP"), _step, is_trained=True),
    "fsdp1-stepped-copies": Scene(_fsdp1("NO_SHARD", use_orig_params=True), _step, is_trained=True),
    "fsdp1-swapped": Scene(_fsdp1("FULL_SHARD", use_orig_params=True), _swap, is_trained=True),
    "fsdp1-mesh": Scene(_fsdp1("FULL_SHARD", mesh=True, use_orig_params=True), _evaluate),
    "fsdp1-half": Scene(_fsdp1("FULL_SHARD", mixed_precision=_HALF), _evaluate, is_trained=True),
    "fsdp1-half-orig": Scene(
        _fsdp1("NO_SHARD", mixed_precision=_HALF, use_orig_params=True), _go_forward, is_trained=True
    ),
    "fsdp1-frozen": Scene(
        lambda model: _fsdp1("FULL_SHARD", use_orig_params=True)(_frozen(model)), _differentiate
    ),
    "fsdp1-ignored": Scene(_ignoring, _differentiate),
    "fsdp1-checkpointed": Scene(
        lambda model: _fsdp1("FULL_SHARD", use_orig_params=True)(_checkpointed(model))
    ),
    "fsdp1-offloaded": Scene(_fsdp1("FULL_SHARD", cpu_offload=CPUOffload(offload_params=True))),
    "fsdp1-tp": Scene(_tensor_parallel(fsdp=1)),
    "fsdp2": Scene(_fsdp2()),
    "fsdp2-eval": Scene(_fsdp2(), _evaluate),
    "fsdp2-gathered": Scene(_fsdp2(reshard_after_forward=False), _go_forward),
    "fsdp2-some": Scene(_fsdp2(reshard_after_forward=2), _go_forward),
    "fsdp2-half": Scene(_fsdp2(mp_policy=MixedPrecisionPolicy(_BF16, torch.float32)), _go_forward),
    "fsdp2-stepped": Scene(_fsdp2(), _step, is_trained=True),
    "fsdp2-columns": Scene(
        _fsdp2(shard_placement_fn=lambda p: Shard(1) if p.ndim > 1 and p.size(1) % 4 == 0 else None),
        _evaluate,
    ),
    "fsdp2-checkpointed": Scene(lambda model: _compiled(_fsdp2()(_checkpointed(model)))),
    "replicated": Scene(_replicated, _evaluate),
    "hsdp": Scene(_fsdp2((2, 2)), _differentiate),
    "tp": Scene(_tensor_parallel()),
    "fsdp2-tp": Scene(_tensor_parallel(fsdp=2)),
    "fsdp2-experts": Scene(_expert_parallel),
}


def leave_scenes(folder: str, names: list[str]) -> None:
    """Leave, for every scene, the truth of rank 0 and what every rank says and gives."""
    warnings.simplefilter("ignore", (FutureWarning, UserWarning))  # FSDP1's own, about itself
    with ranks_of() as ranks:
        for name in names:
            try:
                _leave_scene(Path(folder), name, ranks)
            except Exception as error:
                error.add_note(f"in the scene {name}")
                raise


def _leave_scene(folder: Path, name: str, ranks: Ranks) -> None:
    scene = FOUR[name]
    torch.manual_seed(7)
    model = Odd()
    truth = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = scene.wrap(model)
    scene.then(wrapped)
    with closing(describe_live_model(wrapped, ranks)) as live:
        torch.save(_given(live, ranks.rank), folder / f"{name}.{ranks.rank}.pt")
    if scene.is_trained:
        truth = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True))
    if ranks.rank == 0:
        torch.save(truth, folder / f"{name}.truth.pt")


def _given(live: LiveModel, rank: int) -> dict[str, Any]:
    """Return what a rank knows of a model, and the bytes of the boxes that it gives."""
    given = []
    for name, tensor in live.checkpoint.tensors.items():
        for owned in owned_pieces(tensor):
            if owned.rank == rank:
                source = owned.piece.source
                into = bytearray(source.count * tensor.dtype.itemsize)
                middle = source.count // 3
                cut = middle * tensor.dtype.itemsize
                source.read(0, middle, memoryview(into)[:cut])
                source.read(middle, source.count, memoryview(into)[cut:])
                given.append((name, owned.piece.box.start, owned.piece.box.stop, bytes(into)))
    return {
        "tensors": {n: (t.shape, t.dtype.name) for n, t in live.checkpoint.tensors.items()},
        "pieces": {n: [p.box.start for p in t.pieces] for n, t in live.checkpoint.tensors.items()},
        "ties": dict(live.ties),
        "buffers": sorted(live.buffers),
        "given": given,
        "codes": [each.code for each in live.findings],
        "distribution": live.distribution,
    }


@contextmanager
def closing(live: LiveModel) -> Iterator[LiveModel]:
    """Forget what a rank holds at the end."""
    try:
        yield live
    finally:
        live.holdings.close()
