"""The tensors of a module under the names that it has without wrappers, in the order of its state dict.

A segment of a name is a wrapper's only where the module that has it is such a wrapper: a model may well
have a part called `module`.

Source:
    torch/nn/modules/module.py (`Module.state_dict`, `_save_to_state_dict`): a module's parameters, its
    persistent buffers, its extra state, then its children.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from unshard.errors import UnsupportedLayoutError, listed

# By the name under which a wrapper keeps the model: the classes that wrap so.
_WRAPPING: dict[str, frozenset[str]] = {
    "_fsdp_wrapped_module": frozenset({"FullyShardedDataParallel"}),
    "_checkpoint_wrapped_module": frozenset({"ActivationWrapper"}),
    "_orig_mod": frozenset({"OptimizedModule"}),
    "_forward_module": frozenset({"_FabricModule", "_LightningModuleWrapperBase"}),
    "module": frozenset({"DistributedDataParallel", "DataParallel", "DeepSpeedEngine"}),
}
# Wrappers that flatten parameters in ways of their own, by the package and the class.
_UNREADABLE = {
    ("fairscale", "FullyShardedDataParallel"): "fairscale's FSDP",
    ("torch_xla", "XlaFullyShardedDataParallel"): "torch_xla's FSDP",
}

# Where a tensor is registered: the identity of its module, and its name there.
Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Registered:
    """A tensor that the state dict of a module has.

    Attributes:
        name: Its name without wrappers.
        place: Where it is registered.
        tensor: What is registered there, or None where FSDP1 has taken it away.
        is_buffer: Whether it is a buffer.
    """

    name: str
    place: Place
    tensor: Any
    is_buffer: bool


def class_names(module: nn.Module) -> frozenset[str]:
    """Return the names of a module's class and of all that it inherits from."""
    return frozenset(kind.__name__ for kind in type(module).__mro__)


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return a module's class; FSDP2 makes a subclass of its own of it, which is not meant."""
    kinds = type(module).__mro__
    names = [kind.__name__ for kind in kinds]
    return kinds[names.index("FSDPModule") + 1 if "FSDPModule" in names[1:] else 0]


def full_class_name(module: nn.Module) -> str:
    """Return the full name of a module's class, as `class_of` has it."""
    kind = class_of(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def wrapped_in(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return what a wrapper wraps, with the name under which it keeps it; None for a part of the model."""
    kinds = class_names(module)
    for name, wrappers in _WRAPPING.items():
        if kinds & wrappers and (inner := module._modules.get(name)) is not None:
            return name, inner
    return None


def bare_module(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers around it; PEFT's classes are no wrappers."""
    while (found := wrapped_in(model)) is not None:
        model = found[1]
    return model


def model_without_adapters(model: nn.Module) -> nn.Module:
    """Return the model without wrappers of training, and without PEFT's around it."""
    bare = bare_module(model)
    is_adapted = hasattr(bare, "peft_config") and hasattr(bare, "get_base_model")
    inner: nn.Module = bare.get_base_model() if is_adapted else bare
    return inner


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its name without wrappers, in the order of the state dict.

    A wrapper comes before what it wraps, under the same name. A module that is registered in two places
    comes twice.
    """
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        yield name, module
        waiting.extend(reversed(list(_children(name, module))))


def _children(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a module with their names; what a wrapper wraps has its wrapper's."""
    wrapped, inner = wrapped_in(module) or ("", None)
    for key, child in module._modules.items():
        if child is inner and key == wrapped:
            yield name, child
        elif child is not None and (inner is None or bare_module(child) is not bare_module(inner)):
            yield joined(name, key), child  # Lightning's wrapper keeps the same model twice


def registered_tensors(model: nn.Module, flattened: dict[int, list[str]]) -> Iterator[Registered]:
    """Yield every tensor of the state dict, those among them that are one object under each of their names.

    Args:
        model: The model.
        flattened: The names of the parameters that FSDP1 has taken out of a module, by its identity.
    """
    for prefix, module in modules_of(model):
        parameters = {k: p for k, p in module._parameters.items() if p is not None and not _is_flat(p)}
        for key in dict.fromkeys((*parameters, *flattened.get(id(module), ()))):
            yield Registered(joined(prefix, key), (id(module), key), parameters.get(key), is_buffer=False)
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield Registered(joined(prefix, key), (id(module), key), buffer, is_buffer=True)


def extra_states(model: nn.Module) -> list[str]:
    """Return the names of what modules put into the state dict beside parameters and buffers."""
    plain = nn.Module.get_extra_state
    return [
        joined(name, "_extra_state")
        for name, module in modules_of(model)
        if getattr(type(module), "get_extra_state", plain) is not plain
    ]


def require_readable_wrappers(model: nn.Module) -> None:
    """Return if every wrapper is one whose parameters can be read.

    Raises:
        UnsupportedLayoutError: Some are of another project, which flattens parameters in its own way.
    """
    found = {
        title
        for _, module in modules_of(model)
        for (package, kind), title in _UNREADABLE.items()
        if kind in class_names(module) and type(module).__module__.split(".")[0] == package
    }
    if found:
        raise UnsupportedLayoutError(
            "the model",
            f"is wrapped by {listed(sorted(found))}, which is not read from a training that runs",
            hint="Save its checkpoint with its own functions, and convert that: unshard convert RUN OUT.",
        )


def joined(prefix: str, key: str) -> str:
    """Return the name of a part of a module."""
    return f"{prefix}.{key}" if prefix else key


def _is_flat(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "_is_flat_param", False))
