"""One file of a Hugging Face folder's weights, in either of its two formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unshard.checkpoint import Extra, Traces
from unshard.findings import Finding
from unshard.readers.rendering import cut
from unshard.readers.torch_save.torch_state import describe_torch_state, foreign_classes
from unshard.readers.weights.safetensors_file import describe_tensors, is_safetensors, read_safetensors_header
from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import DescribedTensor


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """What one file of weights holds; the fields are those of `Checkpoint`."""

    file: InputFile
    tensors: Mapping[str, DescribedTensor]
    storages: Mapping[str, object]
    checksums: tuple[Checksum, ...] = ()
    container: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    classes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    traces: Traces = field(default_factory=Traces)


def describe_weights_file(file: InputFile) -> WeightsFile:
    """Return what a file of safetensors or of torch.save holds; no tensor is read.

    Raises:
        InputError: It cannot be read.
    """
    if file.path.suffix == ".safetensors" or is_safetensors(file.read(0, min(9, file.size))):
        header = read_safetensors_header(file)
        return WeightsFile(
            file,
            describe_tensors(file, header),
            {name: (file.path.name, name) for name in header.tensors},
            extras=tuple(Extra(f"metadata {cut(k)}", "value", 0, cut(v)) for k, v in header.metadata.items()),
        )
    state = describe_torch_state(file, None)
    return WeightsFile(
        file,
        state.tensors,
        state.storages,
        state.checksums,
        state.container,
        state.extras,
        foreign_classes(state.saved.classes),
        state.findings,
        state.saved.traces,
    )
