"""Where a tensor is in its model, told from its name: which stack, which layer, and what it does there.

Source:
    The names in transformers' models (`model.layers.N`, `transformer.h.N`, `encoder.layer.N`,
    `decoder.block.N`, `visual.blocks.N`), torchtitan's and Meta's (`layers.N`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LAYER = re.compile(r"^((?:.*?\.)?(?:layers|layer|h|blocks|block))\.(\d{1,6})\.(.+)$", re.DOTALL)
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class ModulePlace:
    """Where a tensor is in its model.

    Attributes:
        stack: The name of the stack of layers, `model.layers`; empty outside of layers.
        layer: The number of its layer, or None outside of layers.
        kind: Its name in the layer, or its whole name; the number of an expert is a `*`.
    """

    stack: str
    layer: int | None
    kind: str


def layer_of(name: str) -> tuple[str, int, str] | None:
    """Return the stack, the number of the layer, and the name in it; None outside of layers."""
    match = _LAYER.match(name)
    return None if match is None else (match[1], int(match[2]), match[3])


def module_place(name: str) -> ModulePlace:
    """Return where the tensor of this name is."""
    found = layer_of(name)
    if found is None:
        return ModulePlace("", None, _EXPERT.sub("*", name))
    stack, layer, rest = found
    return ModulePlace(stack, layer, _EXPERT.sub("*", rest))
