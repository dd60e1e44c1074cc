"""A model in training, described: which rank holds which box of which tensor."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from unshard.checkpoint import Checkpoint, Layout
from unshard.dtypes import DTYPES
from unshard.errors import IncompleteCheckpointError, MatchError, Mismatch, listed
from unshard.findings import Finding, finding
from unshard.record.description import Distribution
from unshard.tensors import Box, DescribedTensor, Piece, check_coverage
from unshard.tensors.coverage import described_box
from unshard.training.live.dealing import Dealer, Share
from unshard.training.live.distribution import describe_distribution
from unshard.training.live.local_parts import LocalTensor, checksum_of
from unshard.training.live.local_tensors import LocalModel, describe_locally
from unshard.training.live.module_tree import extra_states
from unshard.training.live.source import Holdings, LiveSource
from unshard.training.ranks.protocol import Ranks

_SUBJECT = Path("the model in training")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A model in training as all ranks know it together.

    Attributes:
        checkpoint: Its tensors under their names in the module, wrappers removed, each covered exactly once
            by boxes that ranks hold (what several ranks hold is dealt out among them), in the order of the
            module's state dict; equal on every rank. Names that repeat a parameter are left out.
        ties: Those names, and the name that is kept.
        buffers: Which names are buffers.
        holdings: What this rank holds itself.
        distribution: How it is spread over ranks.
        findings: What a person should know.
    """

    checkpoint: Checkpoint
    ties: Mapping[str, str]
    buffers: frozenset[str]
    holdings: Holdings
    distribution: Distribution
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    """What a rank tells the others of one tensor.

    Attributes:
        shape: The shape of the whole.
        dtype: The name of its dtype.
        boxes: What the rank holds.
        sums: A checksum of every box that other ranks may hold, too.
    """

    shape: tuple[int, ...]
    dtype: str
    boxes: tuple[Box, ...]
    sums: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Description:
    """What a rank tells the others of its model."""

    token: str
    tensors: Mapping[str, _Told]
    ties: Mapping[str, str]


def describe_live_model(
    model: nn.Module, ranks: Ranks, *, select: Callable[[str], bool] = lambda _: True
) -> LiveModel:
    """Return a model in training as all ranks together know it. Every rank calls it.

    Nothing is gathered but descriptions, and the model is not touched. Only what several ranks hold alike is
    read, to see that they do. What the module holds under the
    hands of its own state dict's hooks is not looked at: names are those of its parameters and buffers.

    Args:
        model: The model, in whatever wrappers.
        ranks: All ranks.
        select: Whether a tensor of this name (without wrappers) is wanted; the same on every rank.

    Memory:
        A few hundred bytes for every tensor and rank.

    Raises:
        UnsupportedLayoutError: Tensors cannot be read, on any rank; all of them are named.
        MatchError: The ranks hold models of different names, shapes or dtypes.
        IncompleteCheckpointError: The ranks together do not hold all of a tensor, or hold parts of it
            that overlap.
    """
    local: list[LocalModel] = []

    def describe() -> _Description:
        local.append(describe_locally(model, select))
        return _described(local[0])

    told = ranks.together("describing the model", describe)
    _require_same(told)
    shares, unlike = _deal(told)
    _require_covered(told[0].tensors, shares)
    token = told[0].token
    distribution = describe_distribution(model, ranks)
    return LiveModel(
        checkpoint=Checkpoint(
            path=_SUBJECT,
            root=_SUBJECT,
            layout=_layout(distribution),
            tensors=dict(_tensors(token, told[0].tensors, shares)),
        ),
        ties=local[0].ties,
        buffers=local[0].buffers,
        holdings=_holdings(token, ranks.rank, local[0].tensors, shares),
        distribution=distribution,
        findings=(
            *_of_distribution(distribution),
            *_of_copies(unlike, local[0].buffers),
            *_of_extra_states(model),
        ),
    )


def _described(local: LocalModel) -> _Description:
    """Return what a rank tells the others of its model."""
    tensors = {
        name: _Told(
            tensor.shape,
            tensor.dtype.name,
            tuple(part.box for part in tensor.parts),
            tuple(checksum_of(part.elements) for part in tensor.parts) if tensor.is_copied else (),
        )
        for name, tensor in local.tensors.items()
    }
    return _Description(uuid.uuid4().hex, tensors, local.ties)


def _require_same(told: Sequence[_Description]) -> None:
    """Return if all ranks tell of the same tensors.

    Raises:
        MatchError: They do not; the first differences of every rank from the first one are named.
    """
    differences = {rank: list(_differences(told[0], each)) for rank, each in enumerate(told)}
    wrong = {rank: found for rank, found in differences.items() if found}
    if not wrong:
        return
    rank, found = next(iter(wrong.items()))
    shown = [f"`{m.name}` is {m.saw} (on rank 0: {m.expected})" for m in found]
    raise MatchError(
        _SUBJECT,
        f"is not the same on all ranks: rank{'s' if len(wrong) > 1 else ''} "
        f"{listed([str(each) for each in wrong])} of {len(told)} differ{'' if len(wrong) > 1 else 's'} "
        f"from rank 0; on rank {rank} {listed(shown, at_most=_SHOWN)}",
        mismatches=found,
        hint="Build and wrap the model alike on every rank. Stages of a pipeline are saved with "
        "torch.distributed.checkpoint, and then converted.",
    )


def _differences(first: _Description, other: _Description) -> Iterator[Mismatch]:
    """Yield how the tensors of a rank are not those of the first one."""
    for name in dict.fromkeys((*first.tensors, *first.ties, *other.tensors, *other.ties)):
        ours, theirs = _words(first, name), _words(other, name)
        if ours != theirs:
            yield Mismatch(_kind(ours, theirs), name, saw=theirs, expected=ours)
    if list(first.tensors) != list(other.tensors) and first.tensors.keys() == other.tensors.keys():
        a, b = next((a, b) for a, b in zip(first.tensors, other.tensors, strict=True) if a != b)
        yield Mismatch("unexpected", b, saw=f"where `{a}` should be", expected="later")


_ABSENT = "absent"


def _kind(ours: str, theirs: str) -> Literal["missing", "unexpected", "dtype", "shape"]:
    """Return the kind of a difference between what two ranks say in words."""
    if _ABSENT in (ours, theirs):
        return "missing" if theirs == _ABSENT else "unexpected"
    return "dtype" if ours.partition(" ")[2] == theirs.partition(" ")[2] else "shape"


def _words(description: _Description, name: str) -> str:
    """Return in words what a tensor is to a rank."""
    if name in description.ties:
        return f"another name of `{description.ties[name]}`"
    tensor = description.tensors.get(name)
    return _ABSENT if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _deal(told: Sequence[_Description]) -> tuple[dict[str, list[Share]], dict[str, list[int]]]:
    """Return who gives what of every tensor, and the tensors whose copies differ, with the ranks of those."""
    dealer = Dealer(len(told))
    shares: dict[str, list[Share]] = {}
    unlike: dict[str, list[int]] = {}
    for name, tensor in told[0].tensors.items():
        others = _unlike([each.tensors[name] for each in told])
        if others:
            unlike[name] = others
        held = [each.tensors[name].boxes for each in told]
        shares[name] = dealer.deal(tensor.shape, held, DTYPES[tensor.dtype].itemsize, alike=not others)
    return shares, unlike


def _unlike(held: Sequence[_Told]) -> list[int]:
    """Return the ranks whose copies of some box differ from those of the first rank that has it."""
    first: dict[Box, bytes] = {}
    return [
        rank
        for rank, tensor in enumerate(held)
        if any(
            first.setdefault(box, checksum) != checksum
            for box, checksum in zip(tensor.boxes, tensor.sums, strict=False)
        )
    ]


def _require_covered(tensors: Mapping[str, _Told], shares: Mapping[str, Sequence[Share]]) -> None:
    """Return if every element of every tensor is given by one rank.

    Raises:
        IncompleteCheckpointError: Some are given by none, or by several.
    """
    wrong: list[Finding] = []
    for name, tensor in tensors.items():
        coverage = check_coverage(tensor.shape, [share.box for share in shares[name]])
        if not coverage.exact:
            parts = [*coverage.holes, *(overlap.box for overlap in coverage.overlaps)]
            where = described_box(tensor.shape, parts[0]) if parts else "parts of it"
            saw = (
                f"{where} on no rank"
                if coverage.holes
                else f"{where} on several ranks that are cut otherwise"
            )
            wrong.append(finding("U135", subject=name, saw=saw))
    if wrong:
        raise IncompleteCheckpointError(
            wrong[0].subject,
            f"is not held exactly once by the ranks together ({len(wrong):,} tensors are not)",
            saw=wrong[0].saw,
            hint="Call it on every rank that holds a part of the model, with the group that spans them all.",
            gaps=wrong,
        )


def _tensors(
    token: str, tensors: Mapping[str, _Told], shares: Mapping[str, Sequence[Share]]
) -> Iterator[tuple[str, DescribedTensor]]:
    """Yield every tensor, its pieces those that ranks give; every rank counts its own."""
    slots: dict[int, int] = {}
    for name, tensor in tensors.items():
        dtype, pieces = DTYPES[tensor.dtype], []
        for share in shares[name]:
            slot = slots[share.rank] = slots.get(share.rank, -1) + 1
            source = LiveSource(token, share.rank, slot, share.box.shape, dtype, name)
            pieces.append(Piece(share.box, source))
        yield name, DescribedTensor(tensor.shape, dtype, tuple(pieces))


def _holdings(
    token: str, rank: int, tensors: Mapping[str, LocalTensor], shares: Mapping[str, Sequence[Share]]
) -> Holdings:
    """Return what this rank gives, by the same numbers as `_tensors` counts."""
    held: list[torch.Tensor] = []
    published: dict[int, torch.dtype] = {}
    for name, tensor in tensors.items():
        dtype = getattr(torch, tensor.dtype.name)
        for share in shares[name]:
            if share.rank == rank:
                elements = tensor.parts[share.part].within(share.box)
                if elements.dtype != dtype:
                    published[len(held)] = dtype
                held.append(elements)
    return Holdings(token, rank, dict(enumerate(held)), published)


def _layout(distribution: Distribution) -> Layout:
    """Return the layout that a model in training is."""
    ranks = f"{distribution.world_size} rank{'s' if distribution.world_size > 1 else ''}"
    title = f"a model in training on {ranks} ({_KINDS[distribution.kind]})"
    return Layout("live", title, f"torch {torch.__version__}", ("the module itself",))


_KINDS = {"fsdp1": "FSDP1", "fsdp2": "FSDP2", "ddp": "DDP", "none": "not distributed"}


def _of_distribution(distribution: Distribution) -> Iterator[Finding]:
    if distribution.kind == "none" and distribution.world_size > 1:
        yield finding(
            "U131",
            subject=_SUBJECT,
            saw=f"{distribution.world_size} ranks, and neither FSDP, DDP nor tensor parallelism",
            remedy="If it was to be trained by all ranks together, wrap it: fully_shard(model) or DDP(model)",
        )


def _of_copies(unlike: Mapping[str, Sequence[int]], buffers: frozenset[str]) -> Iterator[Finding]:
    """Yield what is wrong with tensors of which ranks hold copies that differ."""
    for code, names in (
        ("U132", [name for name in unlike if name in buffers]),
        ("U133", [name for name in unlike if name not in buffers]),
    ):
        if names:
            ranks = sorted({rank for name in names for rank in unlike[name]})
            yield finding(
                code,
                subject=listed(names),
                saw=f"{len(names):,} tensors, other on rank {listed([str(rank) for rank in ranks])}",
                expected="the same numbers on every rank that holds them; those of the first are taken",
                remedy="Broadcast them from one rank, or leave them to FSDP or DDP, which keep them alike",
            )


def _of_extra_states(model: nn.Module) -> Iterator[Finding]:
    if names := extra_states(model):
        yield finding("U134", subject=listed(names), saw=f"{len(names):,} modules that have such a state")
