"""Whether tensors have the shapes that config.json implies; what was done to those that have not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unshard.base.configuration import Config, text_levels
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.recipes.families import sizes_of
from unshard.recipes.implied_shapes import Implied, implied_shape, sizes_said
from unshard.recipes.known_models import nearest_model
from unshard.recipes.ties import has_row_per_token
from unshard.sizes import counted
from unshard.tensors import Tensor

Shape = tuple[int, ...]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
_TOWER = re.compile(r"(^|\.)(vis\w*|vision\w*|audio\w*|image\w*|video\w*|speech\w*|mtp\w*|encoder)\.")
# Weights that have two dimensions in every family that uses these names.
_MATRIX = re.compile(
    r"(^|\.)(\w+_proj|embed_tokens|wte|lm_head|word_embeddings|c_attn|c_fc|query_key_value)\.weight$"
)
_RANKS = (2, 4, 8, 16, 32, 64)
_ONLY_A_PART = (
    "Nothing in this folder holds the rest: convert the training checkpoint, unshard convert RUN OUT."
)
_SYMBOLS = {
    "H": "hidden_size",
    "3H": "3 x hidden_size",
    "Q": "num_attention_heads x head_dim",
    "K": "num_key_value_heads x head_dim",
    "D": "head_dim",
    "I": "intermediate_size",
    "V": "vocab_size",
    "E": "the number of experts",
    "M": "moe_intermediate_size",
    "QKV": "(num_attention_heads + 2 x num_key_value_heads) x head_dim",
    "GU": "2 x intermediate_size",
}


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A tensor whose shape is not the one that the configuration implies.

    Attributes:
        name: The tensor.
        saw: Its shape.
        implied: What it should be.
    """

    name: str
    saw: Shape
    implied: Implied

    @property
    def kind(self) -> tuple[str, int]:
        """What was done to it, and to how many ranks where it is a part."""
        whole = self.implied.shape
        if 0 in self.saw or (len(self.saw) == 1 and len(whole) > 1):
            return "ungathered", 0
        if self.saw == whole[::-1]:
            return "transposed", 0
        return ("part", ranks) if (ranks := _ranks(self.saw, whole)) else ("other", 0)


def _ranks(saw: Shape, whole: Shape) -> int:
    """Return into how many equal parts one dimension was cut, or 0 where that is not what happened."""
    if len(saw) != len(whole) or len(saw) == 1:
        return 0
    unlike = [(ours, theirs) for ours, theirs in zip(saw, whole, strict=True) if ours != theirs]
    (ours, theirs) = unlike[0]
    return next((n for n in _RANKS if ours * n == theirs), 0) if len(unlike) == 1 else 0


def contradictions(tensors: Mapping[str, Tensor], config: Config) -> list[Contradiction]:
    """Return every tensor that has not the shape that the configuration implies for its name."""
    _, level = text_levels(config)[-1]
    family = str(level.get("model_type", config.get("model_type")))
    sizes = sizes_said(family, level)
    found = []
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "float" or _TOWER.search(name):
            continue
        implied = implied_shape(family, sizes, _EXPERT.sub("N", name))
        if (
            implied is not None
            and implied.shape != tensor.shape
            and not _is_vocabulary(name, tensor.shape, implied)
        ):
            found.append(Contradiction(name, tensor.shape, implied))
    return found


def _is_vocabulary(name: str, saw: Shape, implied: Implied) -> bool:
    """Return whether only the number of rows differs, and not as that of a part does."""
    return (
        has_row_per_token(name)
        and saw[1:] == implied.shape[1:]
        and not _ranks(saw, implied.shape)
        and bool(saw)
    )


def _check_implied(evidence: Evidence) -> Iterator[Finding]:
    """Yield what contradicts config.json: pieces of tensors, transposed ones, another size of model."""
    if evidence.config is None:
        return
    found = contradictions(evidence.tensors, evidence.config)
    groups: dict[tuple[str, int], list[Contradiction]] = {}
    for each in found:
        groups.setdefault(each.kind, []).append(each)
    parts = {ranks: members for (kind, ranks), members in groups.items() if kind == "part"}
    # One dimension that is half as large is a part only where matrices of several kinds are cut alike.
    ranks = max(parts, key=lambda n: len(_forms(parts[n])), default=0)
    cut = parts.get(ranks, [])
    is_cut = len({form.rpartition(".")[0].rpartition(".")[2] for form in _forms(cut)}) > 2 and not groups.get(
        ("other", 0)
    )
    yield from _ungathered(groups.get(("ungathered", 0), []))
    yield from _transposed(groups.get(("transposed", 0), []))
    if is_cut:
        yield _part(cut, ranks)
    rest = [
        each
        for each in found
        if each.kind[0] == "other" or (each.kind[0] == "part" and not (is_cut and each in cut))
    ]
    yield from _others(rest, evidence)


def _forms(found: list[Contradiction]) -> dict[str, list[Contradiction]]:
    """Return tensors by their names without numbers."""
    forms: dict[str, list[Contradiction]] = {}
    for each in found:
        forms.setdefault(_NUMBER.sub("N", each.name), []).append(each)
    return forms


def _ungathered(found: list[Contradiction]) -> Iterator[Finding]:
    if found:
        first = max(found, key=lambda each: math.prod(each.saw))
        whole = math.prod(first.implied.shape)
        there = math.prod(first.saw)
        yield _ungathered_finding(
            [each.name for each in found], f"{there:,} of {whole:,} elements", first.saw
        )


def _ungathered_finding(names: list[str], count: str, shape: Shape) -> Finding:
    what = "empty" if 0 in shape else "flat"
    return finding(
        "U531",
        subject=named(names),
        saw=f"{counted(len(names), 'tensor')} {what}, as {shape}: a rank's own part of a tensor, {count}",
        expected="whole tensors",
        remedy=_ONLY_A_PART,
    )


def _transposed(found: list[Contradiction]) -> Iterator[Finding]:
    if found:
        first = found[0]
        yield finding(
            "U533",
            subject=named(each.name for each in found),
            saw=f"{counted(len(found), 'tensor')} lie transposed: {first.saw}",
            expected=f"{first.implied.shape}; a Conv1D of GPT-2 is the transpose of a linear layer",
            remedy="Exchange the two dimensions of these tensors, as the base has them.",
        )


def _part(found: list[Contradiction], ranks: int) -> Finding:
    first = found[0]
    return finding(
        "U532",
        subject=named(each.name for each in found),
        saw=f"{counted(len(found), 'tensor')} have 1/{ranks} of their rows or columns, as tensor"
        f" parallelism over {ranks} ranks leaves them: {quoted(first.name)} {first.saw}",
        expected=f"{first.implied.shape}",
        remedy=_ONLY_A_PART,
    )


def _others(found: list[Contradiction], evidence: Evidence) -> Iterator[Finding]:
    """Yield one finding for every kind of tensor, and name the model that these are where it is known."""
    shapes = {name: tensor.shape for name, tensor in evidence.tensors.items() if not _TOWER.search(name)}
    known = nearest_model(sizes_of(shapes)) if found else None
    for form, members in _forms(found).items():
        first = members[0]
        sizes = " x ".join(_SYMBOLS[symbol] for symbol in first.implied.symbols)
        yield finding(
            "U530",
            subject=quoted(form if len(members) > 1 else first.name),
            saw=f"{first.saw}, in {counted(len(members), 'tensor')}",
            expected=f"{first.implied.shape}, which is {sizes} in config.json",
            remedy=f"These are the sizes of {known}: take its config.json."
            if known
            else "Take the config.json of the model that these tensors belong to.",
        )


def _check_ungathered(evidence: Evidence) -> Iterator[Finding]:
    """Yield empty and flat tensors in whatever family: no model has such weights under these names."""
    known = set()
    if evidence.config is not None:
        known = {each.name for each in contradictions(evidence.tensors, evidence.config)}
    odd = {
        name: tensor.shape
        for name, tensor in evidence.tensors.items()
        if name not in known
        and tensor.dtype.kind == "float"
        and (tensor.shape == (0,) or (len(tensor.shape) == 1 and _MATRIX.search(name)))
    }
    if odd:
        name = max(odd, key=lambda each: math.prod(odd[each]))
        yield _ungathered_finding(list(odd), f"{math.prod(odd[name]):,} elements of it", odd[name])


CHECKS: tuple[Check, ...] = (
    Check("shapes.implied", ("U530", "U531", "U532", "U533"), _check_implied),
    Check("shapes.ungathered", ("U531",), _check_ungathered),
)
