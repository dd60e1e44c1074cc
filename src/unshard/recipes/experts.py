"""Families whose experts lie otherwise in memory than in published files.

transformers 5 holds the experts of a layer in one tensor, so that one kernel computes all of them;
published files, and every other engine, hold each expert's matrices by themselves:

    in memory    model.layers.3.mlp.experts.gate_up_proj              (experts, gate and up, hidden)
    published    model.layers.3.mlp.experts.7.gate_proj.weight        (gate, hidden)
                 model.layers.3.mlp.experts.7.up_proj.weight          (up, hidden)

A recipe is data that can be read in both directions. On the way to published names fusions come
first and renames follow; on the way to memory it is the other way round.

Source:
    transformers 5.23, conversion_mapping.py and core_model_loading.py. A test compares every row of
    the table with it, and what it leads to with what `save_pretrained` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Side = Literal["memory", "published"]


@dataclass(frozen=True, slots=True)
class Fusion:
    """One tensor in memory, and the tensors that it is in published files.

    Attributes:
        memory: How its name ends in memory.
        published: How the names of its parts end, in their order in memory; `*` is an expert's number.
        joined: The dimension, in memory, along which the parts follow one another.
        swapped: Two dimensions that are exchanged between memory and files.
    """

    memory: str
    published: tuple[str, ...]
    joined: int | None = None
    swapped: tuple[int, int] | None = None

    @property
    def is_stacked(self) -> bool:
        """Whether the first dimension, in memory, counts experts."""
        return "*" in self.published[0]

    @property
    def last_dimension(self) -> int:
        """The last dimension, in memory, of which the fusion speaks."""
        return max(self.joined or 0, *(self.swapped or (0,)))

    def head_of(self, name: str) -> str | None:
        """Return what stands before the ending in memory, or None where a name ends otherwise."""
        return name.removesuffix(self.memory) if name.endswith(self.memory) else None

    def place_of(self, name: str) -> tuple[str, int, int] | None:
        """Return (what stands before the ending, which part, which expert) of a published name."""
        for part, ending in enumerate(self.published):
            before, star, after = ending.partition("*")
            if not star and name.endswith(ending):
                return name.removesuffix(ending), part, 0
            if star and name.endswith(after):
                head, found, number = name.removesuffix(after).rpartition(before)
                if found and number.isascii() and number.isdigit() and str(int(number)) == number:
                    return head, part, int(number)
        return None

    def names_of(self, head: str, part: int, experts: int) -> list[str]:
        """Return the published names of one part for every expert."""
        return [head + self.published[part].replace("*", str(expert)) for expert in range(experts)]


@dataclass(frozen=True, slots=True)
class Rename:
    """Part of a name that is another one in memory.

    Attributes:
        to_published: What is found in a name in memory, as a regular expression, and what takes its place.
        to_memory: The same for a published name.
        within: Beginnings of which a name must have one; what follows it is looked at.
    """

    to_published: tuple[str, str]
    to_memory: tuple[str, str]
    within: tuple[str, ...] = ("",)

    def apply(self, name: str, side: Side) -> str:
        """Return a name as it is on that side; only the first place that fits is replaced."""
        pattern, replacement = self.to_published if side == "published" else self.to_memory
        for beginning in self.within:
            if name.startswith(beginning):
                return beginning + re.sub(pattern, replacement, name[len(beginning) :], count=1)
        return name


@dataclass(frozen=True, slots=True)
class Recipe:
    """How names and experts of one family in memory correspond to those in published files.

    Attributes:
        fusions: Tensors that are several in files.
        renames: Parts of names, in the order in which they are replaced on the way to memory.
    """

    fusions: tuple[Fusion, ...] = ()
    renames: tuple[Rename, ...] = ()

    def rename(self, name: str, side: Side) -> str:
        """Return a name as it is on that side, apart from fusions."""
        for each in self.renames if side == "memory" else reversed(self.renames):
            name = each.apply(name, side)
        return name


def literally(text: str) -> str:
    """Return the regular expression that finds `text`, up to the end of a word where it ends in one."""
    return re.escape(text) + (r"(?!\w)" if text[-1:].isalnum() else "")


def renamed(memory: str, published: str) -> Rename:
    """Return the rename of one literal part of names."""
    return Rename((literally(memory), published), (literally(published), memory))


def _gated(place: str, gate: str, up: str, down: str) -> tuple[Fusion, ...]:
    """Return the fusions of experts with three matrices, of which two lie in one tensor in memory."""
    first, second, last = (f"{place}experts.*.{name}.weight" for name in (gate, up, down))
    return (
        Fusion(f"{place}experts.gate_up_proj", (first, second), joined=1),
        Fusion(f"{place}experts.down_proj", (last,)),
    )


_PROJECTIONS = Recipe(_gated("mlp.", "gate_proj", "up_proj", "down_proj"))
_MIXTRAL = Recipe(_gated(".", "w1", "w3", "w2"), (renamed(".mlp.", ".block_sparse_moe."),))
_GRANITE = Recipe(
    renames=(
        renamed("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear.weight"),
        renamed("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear.weight"),
        renamed("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"),
    )
)

_LIKE_QWEN = """
    afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 flex_olmo glm4_moe glm4_moe_lite
    glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash mellum olmoe qwen2_moe qwen3_moe qwen3_next
    qwen3_omni_moe solar_open
"""

# By model type. gpt-oss is published as it is in memory; it stands here so that nobody looks further.
RECIPES: dict[str, Recipe] = {
    **dict.fromkeys(_LIKE_QWEN.split(), _PROJECTIONS),
    "ernie4_5_moe": Recipe(
        _PROJECTIONS.fusions,
        (renamed("mlp.gate.moe_statics.e_score_correction_bias", "mlp.moe_statics.e_score_correction_bias"),),
    ),
    "exaone_moe": Recipe(
        _PROJECTIONS.fusions, (renamed("mlp.gate.e_score_correction_bias", "mlp.e_score_correction_bias"),)
    ),
    "gpt_oss": Recipe(),
    "granitemoe": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "jamba": Recipe(_gated("feed_forward.", "gate_proj", "up_proj", "down_proj")),
    "lfm2_moe": Recipe(_gated("feed_forward.", "w1", "w3", "w2")),
    "minimax": _MIXTRAL,
    "mixtral": _MIXTRAL,
    "phimoe": Recipe(_MIXTRAL.fusions, (*_MIXTRAL.renames, renamed(".router.weight", ".gate.weight"))),
    "qwen3_vl_moe": Recipe(
        (
            Fusion("mlp.experts.gate_up_proj", ("mlp.experts.gate_up_proj",), swapped=(1, 2)),
            Fusion("mlp.experts.down_proj", ("mlp.experts.down_proj",), swapped=(1, 2)),
        )
    ),
}


def every_recipe() -> Iterator[Recipe]:
    """Yield every recipe that changes something, each once."""
    yield from (recipe for recipe in dict.fromkeys(RECIPES.values()) if recipe != Recipe())
