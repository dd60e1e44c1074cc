"""The order in which a model registers its modules, as its state dict tells it, and what follows from it.

`_metadata` of a state dict has an entry for every module, in the order of `named_modules`: a module
before those inside it. Wrappers are modules, too.

Source:
    torch/nn/modules/module.py (`state_dict`); torch/distributed/fsdp/_common_utils.py
    (`clean_tensor_name`, which removes the same segments from the names of parameters).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

_WRAPPERS = frozenset(("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_orig_mod"))

_MOST_PREFIXES = 64

Shape = tuple[int, ...]


def without_wrappers(name: str) -> str:
    """Return a name without the segments that wrappers put into it."""
    parts = name.split(".")
    kept = [part for part in parts if part not in _WRAPPERS]
    return ".".join(kept) if len(kept) < len(parts) else name


def module_of(parameter: str) -> str:
    """Return the module that a parameter belongs to."""
    return parameter.rpartition(".")[0]


def prefixes(modules: Sequence[str], parameters: Iterable[str]) -> list[str]:
    """Return what may stand before the names of the base in those of the modules, with its dot.

    Only prefixes below which every parameter has its module.
    """
    owners = list(dict.fromkeys(map(module_of, parameters)))
    there = set(modules)
    if not owners:
        return []
    first = f".{owners[0]}"
    ending = (m[: 1 - len(first)] for m in modules if owners[0] and m.endswith(first))
    candidates = ["", *islice(ending, _MOST_PREFIXES)]
    return [prefix for prefix in candidates if all(prefix + owner in there for owner in owners)]


def in_order_of(modules: Sequence[str], parameters: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """Return parameters, all of which belong to modules, in the order of these, or None if unknown.

    A module may have one parameter, or a weight before its bias, as every module of torch has them; the
    order of others is not known.
    """
    by_module: dict[str, list[str]] = {module: [] for module in modules}
    for name in parameters:
        by_module[module_of(name)].append(name)
    ordered: dict[str, Shape] = {}
    for names in by_module.values():
        if len(names) > 1 and sorted(name.rpartition(".")[2] for name in names) != ["bias", "weight"]:
            return None
        ordered |= {name: parameters[name] for name in sorted(names, reverse=True)}
    return ordered


def agrees(modules: Sequence[str], parameters: Iterable[str]) -> bool:
    """Return whether parameters follow one another as the modules do that they belong to."""
    places = {module: number for number, module in enumerate(modules)}
    numbers = [places[module_of(name)] for name in parameters]
    return numbers == sorted(numbers)
