"""The tensors of a module as one rank holds them, whoever has distributed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unshard.dtypes import DTYPES, DType
from unshard.errors import UnshardError, UnsupportedLayoutError, listed
from unshard.tensors import Box
from unshard.training.live.dtensor_parts import dtensor_parts, is_replicated
from unshard.training.live.flat_shards import FlatMember, flat_members, original_buffer_dtypes
from unshard.training.live.local_parts import LocalPart, LocalTensor
from unshard.training.live.module_tree import Place, Registered, registered_tensors, require_readable_wrappers

if TYPE_CHECKING:
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

_PLAIN = (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", torch.Tensor))
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LocalModel:
    """What one rank knows of a model.

    Attributes:
        tensors: By name without wrappers, in the order of the state dict, each object once.
        ties: The other names of the same objects, and the name that is kept.
        buffers: Which names are buffers.
    """

    tensors: Mapping[str, LocalTensor]
    ties: Mapping[str, str]
    buffers: frozenset[str]


def describe_locally(model: nn.Module, select: Callable[[str], bool]) -> LocalModel:
    """Return the tensors of a model as this rank holds them.

    Args:
        model: The model, with its wrappers.
        select: Whether a tensor of this name is wanted.

    Raises:
        UnsupportedLayoutError: Tensors cannot be read, or two have one name; all of them are named.
    """
    require_readable_wrappers(model)
    reading = _Reading(model)
    tensors: dict[str, LocalTensor] = {}
    ties: dict[str, str] = {}
    buffers: set[str] = set()
    first: dict[object, str] = {}
    refused: list[_Refusal] = []
    for found in registered_tensors(model, reading.flattened):
        if not select(found.name):
            continue
        kept = first.setdefault(reading.identity(found), found.name)
        if kept != found.name:
            ties[found.name] = kept
            continue
        if found.is_buffer:
            buffers.add(found.name)
        if found.name in tensors or found.name in ties:
            refused.append(_Refusal(found.name, "is the name of two tensors, wrappers aside", _RENAME))
        try:
            tensors[found.name] = reading.local(found)
        except _RefusedError as error:
            refused.append(error.refusal)
    if refused:
        raise _all_refused(refused)
    return LocalModel(tensors, ties, frozenset(buffers))


class _Reading:
    """What FSDP knows of the tensors that are registered in a model."""

    def __init__(self, model: nn.Module) -> None:
        self._flat = flat_members(model)
        self._sharded = _sharded_parameters(model)
        self._dtypes = original_buffer_dtypes(model)
        self.flattened: dict[int, list[str]] = {}
        for module, key in self._flat:
            self.flattened.setdefault(module, []).append(key)

    def identity(self, found: Registered) -> object:
        """Return what is equal for two names of one tensor."""
        if not found.is_buffer and found.place in self._flat:
            return self._flat[found.place].identity
        return id(self._sharded.get(found.place, found.tensor))

    def local(self, found: Registered) -> LocalTensor:
        """Return what this rank holds of a tensor.

        Raises:
            _RefusedError: It cannot be read.
        """
        if not found.is_buffer and (member := self._flat.get(found.place)) is not None:
            return _of_flat(found.name, member)
        tensor = self._sharded.get(found.place, found.tensor)
        local = tensor._local_tensor if _is_dtensor(tensor) else tensor
        _require_readable(found.name, local)
        dtype = _dtype_of(found.name, self._dtypes.get(found.place, tensor.dtype))
        if _is_dtensor(tensor):
            by_fsdp = found.place in self._sharded
            parts = _refusing(found.name, lambda: dtensor_parts(found.name, tensor, by_fsdp=by_fsdp))
            return LocalTensor(tuple(tensor.shape), dtype, parts, is_replicated(tensor.placements))
        whole = LocalPart(Box.whole(tuple(local.shape)), local.detach())
        return LocalTensor(tuple(local.shape), dtype, [whole], is_copied=True)


def _of_flat(name: str, member: FlatMember) -> LocalTensor:
    parts = _refusing(name, lambda: member.parts(name))
    return LocalTensor(member.shape, _dtype_of(name, member.dtype), parts, member.is_copied)


def _sharded_parameters(model: nn.Module) -> dict[Place, Any]:
    """Return the shards of FSDP2's parameters, by every place; a unit may be gathered just now.

    Source:
        torch/distributed/fsdp/_fully_shard/_fsdp_param.py (`FSDPParam.to_unsharded`, `ParamModuleInfo`)
    """
    found: dict[Place, Any] = {}
    for module in model.modules():
        for group in fsdp2_groups(module):
            for parameter in group.fsdp_params:
                where = parameter._module_info
                places = [(where.module, where.param_name)]
                places += zip(where.shared_modules, where.shared_param_names, strict=True)
                is_sharded = parameter.sharded_state.name == "SHARDED"
                shard = where.module._parameters.get(where.param_name) if is_sharded else None
                shard = parameter.sharded_param if shard is None else shard
                found.update(((id(owner), key), shard) for owner, key in places)
    return found


def fsdp2_state(module: nn.Module) -> FSDPState | None:
    """Return what `fully_shard` keeps for a module; None for others. Wrappers pass on what they are asked."""
    return module._get_fsdp_state() if hasattr(type(module), "_get_fsdp_state") else None


def fsdp2_groups(module: nn.Module) -> list[Any]:
    """Return the groups of parameters of a module that `fully_shard` has made a unit; none for others."""
    state = fsdp2_state(module)
    groups = getattr(state, "_fsdp_param_groups", None)  # there may be several in later versions of torch
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]
    return [group for group in groups if group is not None]


def _is_dtensor(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "placements")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A tensor that cannot be read: its name, why, and what to do."""

    name: str
    problem: str
    hint: str


class _RefusedError(Exception):
    def __init__(self, refusal: _Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.problem)


_RENAME = "Rename one of the modules: without the segments of wrappers every tensor needs a name of its own."
_META = (
    "Give them memory and values before saving: model.to_empty(device=...), then load or initialise them "
    "(a model under FSDP may do so by param_init_fn=)."
)
_LAZY = "Run the model once before saving: lazy modules have no parameters until they have seen an input."
_CLASS = (
    "Dequantise them first, or save only what is plain: for a quantised base with an adapter, "
    'save_full(..., adapter="keep") writes the adapter alone.'
)
_DENSE = "Turn it into a dense tensor of an ordinary dtype, or register it as a buffer with persistent=False."
_ZERO3 = "Save with DeepSpeed's own engine.save_checkpoint(), and convert that: unshard convert RUN OUT."


def _require_readable(name: str, tensor: torch.Tensor) -> None:
    """Return if a tensor, or what this rank holds of one, is memory that can be read as it is."""
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if hasattr(tensor, "ds_id"):
        raise _RefusedError(_Refusal(name, "is partitioned by DeepSpeed's ZeRO-3", _ZERO3))
    if nn.parameter.is_lazy(tensor):
        raise _RefusedError(_Refusal(name, "is not initialised yet", _LAZY))
    if type(tensor) not in _PLAIN:
        raise _RefusedError(_Refusal(name, f"is a tensor of the class {kind}, which is not read", _CLASS))
    if tensor.is_meta:
        raise _RefusedError(_Refusal(name, "is on the meta device and has no values", _META))
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise _RefusedError(_Refusal(name, f"is stored as {tensor.layout}, {tensor.dtype}", _DENSE))


def _dtype_of(name: str, dtype: torch.dtype) -> DType:
    known = DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise _RefusedError(
            _Refusal(name, f"has the dtype {dtype}, which no format of weights holds", _DENSE)
        )
    return known


def _refusing(name: str, work: Callable[[], list[LocalPart]]) -> list[LocalPart]:
    """Return what `work` returns; an error about one tensor waits for those about others."""
    try:
        return work()
    except UnshardError as error:
        saw = f" (saw {error.saw}, expected {error.expected})" if error.expected else ""
        raise _RefusedError(_Refusal(name, error.problem + saw, error.hint or "")) from None


def _all_refused(refused: list[_Refusal]) -> UnsupportedLayoutError:
    """Return one error about all tensors that cannot be read, those of one kind together."""
    return UnsupportedLayoutError(
        refused[0].name if len(refused) == 1 else f"{len(refused):,} tensors of the model",
        refused[0].problem if len(refused) == 1 else "cannot be read",
        saw=None if len(refused) == 1 else listed(list(_by_problem(refused)), at_most=_SHOWN),
        hint=" ".join(dict.fromkeys(refusal.hint for refusal in refused)),
    )


def _by_problem(refused: list[_Refusal]) -> Iterator[str]:
    """Yield what is wrong, each with the names of the first tensors that it is wrong with."""
    names: dict[str, list[str]] = {}
    for refusal in refused:
        names.setdefault(refusal.problem, []).append(refusal.name)
    for problem, among in names.items():
        yield f"{listed([f'`{name}`' for name in among])}: each {problem}"
