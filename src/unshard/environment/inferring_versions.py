"""Which versions wrote a checkpoint, and which can read it, from what the files hold.

A class moves, a field or a member of an archive is added: each bounds the version of the package that wrote
the file, and some of them bound the one that can read it. Bounds of all traces together are the range.

Source:
    The files that torch 1.13 to 2.14 and transformers 4.57 and 5.23 write, compared; tokenizers' release
    0.20.0 (merges as pairs).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from unshard.checkpoint import Checkpoint, Traces
from unshard.environment.description import Fact
from unshard.environment.versions import Release, VersionRange, parse_release
from unshard.errors import InputError
from unshard.readers.rendering import cut
from unshard.recipes.wrappers import WRAPPERS, without_segments
from unshard.storage.files import InputFile

_Kind = Literal["name", "part"]

# Names of a pickle (the beginning is enough) and parts of a container; which torch writes them, and the
# first one that can read them without our help, where that is not any.
_WRITES_TORCH: tuple[tuple[_Kind, str, VersionRange], ...] = (
    ("name", "torch.distributed._shard.checkpoint.", VersionRange(None, (2, 0))),
    ("name", "torch.distributed._tensor.", VersionRange(None, (2, 5))),
    ("name", "torch.distributed.tensor.", VersionRange((2, 5))),
    ("name", "torch.distributed._mesh_layout.", VersionRange((2, 10))),
    ("name", "torch.distributed.checkpoint.metadata.TensorProperties", VersionRange((2, 3))),
    ("name", "torch._utils._rebuild_tensor_v3", VersionRange((2, 1))),
    ("part", "byteorder", VersionRange((2, 1))),
    ("part", ".format_version", VersionRange((2, 7))),
    ("part", "metadata.storage_meta", VersionRange((2, 4))),
    ("part", "metadata.version", VersionRange((2, 9))),
)
# (what is there, what would be there beside it, what it means that this is not).
_LACKS_TORCH: tuple[tuple[tuple[_Kind, str], tuple[_Kind, str], VersionRange], ...] = (
    (("part", "byteorder"), ("part", ".format_version"), VersionRange(None, (2, 8))),
    (
        ("name", "torch.distributed.device_mesh.DeviceMesh"),
        ("name", "torch.distributed._mesh_layout."),
        VersionRange(None, (2, 10)),
    ),
    (("part", "metadata.storage_meta"), ("part", "metadata.version"), VersionRange(None, (2, 10))),
    (
        ("name", "torch.distributed.checkpoint.metadata.TensorProperties"),
        ("part", "metadata.storage_meta"),
        VersionRange(None, (2, 4)),
    ),
    (
        ("part", "metadata.state_dict_metadata"),
        ("name", "torch.distributed.checkpoint.metadata.TensorProperties"),
        VersionRange(None, (2, 3)),
    ),
)
_READS_TORCH: tuple[tuple[str, Release], ...] = (
    ("torch.distributed._mesh_layout.", (2, 10)),
    ("torch.distributed.tensor.", (2, 5)),
    ("torch.distributed.checkpoint.metadata.StorageMeta", (2, 4)),
    ("torch.distributed.checkpoint.metadata.TensorProperties", (2, 3)),
    ("torch._utils._rebuild_tensor_v3", (2, 1)),
)
# Keys of checkpoints, and the package whose version they have.
_VERSION_KEYS = {"pytorch-lightning_version": "pytorch-lightning", "ds_version": "deepspeed"}
# How transformers 5 holds the experts of families whose published files have each of them by itself.
_FUSED_EXPERTS = re.compile(r"(model\.)?layers\.\d+\.mlp\.experts\.gate_up_proj")
_PAIRED_MERGES = re.compile(rb'"merges"\s*:\s*\[\s*\[')
_LARGEST_TOKENIZER = 64 << 20


def torch_of_writer(traces: Traces) -> Fact | None:
    """Return the versions of torch that write files with such traces, or None where nothing tells."""
    told = [(what, range_) for kind, what, range_ in _WRITES_TORCH if _has(traces, kind, what)]
    told += [
        (f"{present[1].rstrip('.')} without {absent[1].rstrip('.')}", range_)
        for present, absent, range_ in _LACKS_TORCH
        if _has(traces, *present) and not _has(traces, *absent)
    ]
    found = VersionRange()
    for _, bound in told:
        found = found.and_(bound)
    if not told or not found.is_possible:  # another program than torch wrote it
        return None
    deciding = [what for what, bound in told if _decides(bound, found)]
    return Fact(str(found), " and ".join(f"`{what.rstrip('.')}` in the files" for what in deciding))


def torch_of_reader(traces: Traces) -> Fact | None:
    """Return the versions of torch that know every class in the files, or None where any does."""
    for name, release in _READS_TORCH:
        if _has(traces, "name", name):
            return Fact(str(VersionRange(release)), f"`{name.rstrip('.')}` in the files")
    return None


def versions_of_files(checkpoint: Checkpoint, config: Mapping[str, object]) -> Iterator[tuple[str, Fact]]:
    """Yield the versions of packages that a checkpoint and the files beside it tell, the surest first."""
    if (torch := torch_of_writer(checkpoint.traces)) is not None:
        yield "torch", torch
    if (fused := _fused_experts(checkpoint, config)) is not None:
        yield "transformers", fused
    version = config.get("transformers_version")
    # Of a folder of ours the configuration is the base's own, whoever wrote that.
    if isinstance(version, str) and parse_release(version) and checkpoint.layout.writer != "unshard":
        yield "transformers", Fact(cut(version), "`transformers_version` in config.json")
    for extra in checkpoint.extras:
        package = _VERSION_KEYS.get(extra.name)
        if package is not None and extra.value is not None and parse_release(extra.value.strip("'\"")):
            yield package, Fact(extra.value.strip("'\""), f"the key `{extra.name}` in the file")


def needs_of_files(checkpoint: Checkpoint) -> Iterator[tuple[str, Fact]]:
    """Yield the versions of packages without which files cannot be read by those packages."""
    if (torch := torch_of_reader(checkpoint.traces)) is not None:
        yield "torch", torch
    tokenizer = checkpoint.side_files.get("tokenizer.json")
    if tokenizer is not None and _has_paired_merges(tokenizer):
        yield "tokenizers", Fact(">=0.20", "merges in tokenizer.json that are pairs")


def _has(traces: Traces, kind: _Kind, what: str) -> bool:
    if kind == "part":
        return what in traces.parts
    return any(name.startswith(what) for name in traces.names)


def _decides(bound: VersionRange, found: VersionRange) -> bool:
    """Return whether a bound is one of those that make the range what it is."""
    least = bound.least is not None and bound.least == found.least
    return least or (bound.below is not None and bound.below == found.below)


def _fused_experts(checkpoint: Checkpoint, config: Mapping[str, object]) -> Fact | None:
    """Return that transformers 5 held the model, where experts lie as only it has them in memory."""
    if checkpoint.layout.is_model_folder or "gpt_oss" in str(config.get("model_type")):
        return None
    names = {without_segments(name, WRAPPERS) for name in checkpoint.tensors}
    fused = [name for name in names if _FUSED_EXPERTS.fullmatch(name) and f"{name}_bias" not in names]
    return Fact(">=5.0", f"`{cut(min(fused))}`, which older ones hold by expert") if fused else None


def _has_paired_merges(path: Path) -> bool:
    """Return whether a tokenizer's merges are pairs of tokens, as tokenizers writes them since 0.20."""
    try:
        file = InputFile.describe(path)
        content = file.read(0, file.size) if file.size <= _LARGEST_TOKENIZER else b""
    except InputError:
        return False
    return _PAIRED_MERGES.search(content) is not None
