"""A checkpoint led to a model with adapters: the base's weights, the adapter's, or both, as it holds them.

In a PEFT model a weight of the base is `q_proj.base_layer.weight`, and an adapter's has the adapter's name
in its own. Both sides are taken apart into what is the base's and what is an adapter's; the base's are led
as those of any model, an adapter's by their names alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unshard.base import Base, ExpectedTensor
from unshard.checkpoint import Checkpoint
from unshard.errors import AmbiguousModelError, Mismatch
from unshard.findings import Finding, finding
from unshard.recipes.adapters import holds_adapter, parse_adapter_name, published_name, without_prefix
from unshard.tensors import CastTensor, DescribedTensor, Tensor
from unshard.training.filling.leading import Answering, Led, lead, told_of_left, unfitting


@dataclass(frozen=True, slots=True)
class _Sides:
    """Names taken apart.

    Attributes:
        base: Those of the base, by the name that each has in a plain model.
        adapter: Those of adapters, by the adapter's name and the name that each has in a published folder.
    """

    base: Mapping[str, str]
    adapter: Mapping[tuple[str | None, str], str]


def lead_to_any(
    checkpoint: Checkpoint, base: Base, answering: Answering, *, strict: bool, lora_alpha: float | None
) -> Led:
    """Return the tensors of a checkpoint by the names of a module with adapters or without; as `lead`."""
    assert base.expected is not None
    if not holds_adapter(base.expected):
        return lead(checkpoint, base, answering, strict=strict, lora_alpha=lora_alpha)
    ours, theirs = _taken_apart(base.expected), _taken_apart(checkpoint.tensors)
    tensors = dict[str, Tensor]()
    led = Led({}, checkpoint.findings)
    if theirs.base:
        led = _lead_base(checkpoint, base, ours, theirs, answering, strict=strict)
        tensors |= {ours.base[name]: tensor for name, tensor in led.tensors.items()}
    if theirs.adapter:
        tensors |= _lead_adapter(checkpoint, base.expected, ours, theirs)
    left = [name for name in base.expected if name not in tensors]
    told = []
    if left:
        told = [told_of_left(left, "the checkpoint does not hold its base")]
    if left and theirs.base:
        told = [_told_of_adapter(left)]
    return replace(led, tensors=tensors, findings=(*led.findings, *told))


def _told_of_adapter(names: Sequence[str]) -> Finding:
    return finding(
        "U166",
        subject=names[0],
        saw=f"{len(names)} tensors of an adapter, and a checkpoint without one",
        expected="an adapter in the checkpoint, or one that adds nothing yet",
        remedy="A merged model holds the adapter already: begin a new one on it. To go on with the old one, "
        'save with adapter="keep", or with save_sharded.',
    )


def _taken_apart(names: Mapping[str, object]) -> _Sides:
    base, adapter = dict[str, str](), dict[tuple[str | None, str], str]()
    for name in names:
        parsed = parse_adapter_name(without_prefix(name))
        if parsed is None:
            base[without_prefix(name)] = name
        elif parsed.role in ("base", "original"):
            base[parsed.plain] = name
        else:
            adapter[parsed.adapter, published_name(name, parsed.adapter)] = name
    return _Sides(base, adapter)


def _lead_base(
    checkpoint: Checkpoint, base: Base, ours: _Sides, theirs: _Sides, answering: Answering, *, strict: bool
) -> Led:
    """Return what the base's part of the module gets, by the names of a plain model."""
    assert base.expected is not None
    plain = replace(checkpoint, tensors={n: checkpoint.tensors[name] for n, name in theirs.base.items()})
    ties = {without_prefix(again): without_prefix(kept) for again, kept in base.ties.items()}
    target = replace(base, expected={n: base.expected[name] for n, name in ours.base.items()}, ties=ties)
    return lead(plain, target, answering, strict=strict, lora_alpha=None)


def _lead_adapter(
    checkpoint: Checkpoint, expected: Mapping[str, ExpectedTensor], ours: _Sides, theirs: _Sides
) -> dict[str, Tensor]:
    """Return what adapters of the module get, by its own names.

    Raises:
        AmbiguousModelError: The module has several adapters, and the checkpoint does not name one.
        MatchError: They are not those of the module.
    """
    unnamed = {adapter for adapter, _ in theirs.adapter} == {None}
    if unnamed and len(names := {str(adapter) for adapter, _ in ours.adapter}) > 1:
        raise AmbiguousModelError(
            checkpoint.path,
            "holds one adapter, and the model in training has several",
            saw=", ".join(sorted(names)),
            hint="Load it before the others are added, or save the model with all of them and load that.",
        )
    mine = {(None if unnamed else adapter, name): full for (adapter, name), full in ours.adapter.items()}
    given = {mine[key]: checkpoint.tensors[full] for key, full in theirs.adapter.items() if key in mine}
    loaded = {adapter for adapter, _ in theirs.adapter}
    wrong = list(_unlike(given, {n: e for n, e in expected.items() if n in given}))
    wrong += [
        Mismatch("missing", full, expected=str(expected[full].shape))
        for key, full in mine.items()
        if key[0] in loaded and key not in theirs.adapter
    ]
    wrong += [Mismatch("unexpected", full) for key, full in theirs.adapter.items() if key not in mine]
    if wrong:
        hint = "Give the model the adapter that was saved: the same target modules, rank and kind."
        raise unfitting(checkpoint, wrong, hint)
    return {name: _typed(tensor, expected[name]) for name, tensor in given.items()}


def _unlike(
    given: Mapping[str, DescribedTensor], expected: Mapping[str, ExpectedTensor]
) -> Iterator[Mismatch]:
    for name, wanted in expected.items():
        if given[name].shape != wanted.shape:
            yield Mismatch("shape", name, str(given[name].shape), str(wanted.shape))
        elif given[name].dtype != wanted.dtype and given[name].dtype.kind != "float":
            yield Mismatch("dtype", name, str(given[name].dtype), str(wanted.dtype))


def _typed(tensor: DescribedTensor, wanted: ExpectedTensor) -> Tensor:
    assert wanted.dtype is not None
    return tensor if tensor.dtype == wanted.dtype else CastTensor(tensor, wanted.dtype)
