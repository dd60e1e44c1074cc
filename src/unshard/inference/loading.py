"""A model in memory, ready for inference, from tensors that lie wherever training left them.

The model's configuration, generation settings and tokenizer are laid out in a temporary folder just
as a conversion would write them, and transformers builds the model from that folder and our tensors.
That is its ordinary way of loading: names and experts are converted, ties tied, buffers that no file
holds computed.

Memory:
    One copy of the model at most: none of the tensors that are mapped (see `torch_tensors`), unless
    they go to another device or transformers stacks them (experts, which files hold one by one).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from unshard.dtypes import DTYPES
from unshard.errors import OptionError
from unshard.findings import Finding, finding
from unshard.inference.building import build_from_tensors
from unshard.inference.forward_pass import PROMPT, require_finite_logits, takes_text
from unshard.inference.tokenizing import load_tokenizer, text_tokens
from unshard.inference.torch_tensors import torch_dtype, torch_tensors
from unshard.match.model import Model
from unshard.plan import SideFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unshard.inference.building import DeviceMap


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that was loaded whole, and tried.

    Attributes:
        model: In eval mode, without gradients.
        tokenizer: Its tokenizer, or None where there is none to be had; a finding says why.
        findings: What a person should know about the loading.
        load_seconds: How long it took until the model stood in memory.
        check_seconds: How long the forward pass after it took.
        reproduction: How it compares with the fingerprint that training left, or None where it was not
            compared.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    findings: tuple[Finding, ...]
    load_seconds: float
    check_seconds: float
    reproduction: str | None = None


def load_model(
    model: Model,
    side_files: Sequence[SideFile],
    *,
    name: str,
    dtype: str,
    device: str,
    device_map: DeviceMap | None,
) -> LoadedModel:
    """Return a matched model in memory, after a forward pass that gave numbers.

    Args:
        model: Its tensors, matched with the dtype policy `dtype`.
        side_files: All a model folder holds besides: configuration, tokenizer, ...
        name: What the model's configuration will say it was loaded from.
        dtype: `base` and `keep` take the dtype of the configuration, which matching has set right.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; where the checkpoint was saved is no matter.
        device_map: How accelerate spreads the model over devices, instead of `device`.

    Raises:
        InferenceError: transformers cannot build the model, a tensor is missing, unexpected or
            mis-shaped, or the forward pass does not give numbers.
        OptionError: The device is not there, or both a device and a map were given.
        DamagedFileError: A file is shorter than it should be, or changed meanwhile.
    """
    began = time.perf_counter()
    placement = _placement(device, device_map)
    tensors = torch_tensors(model.tensors)
    with _laid_out(side_files) as folder:
        asked = None if dtype in ("base", "keep") else torch_dtype(DTYPES[dtype])
        built = build_from_tensors(folder, tensors, dtype=asked, device_map=placement)
        tokenizer, findings = load_tokenizer(folder)
    built.config.name_or_path = name
    loaded = time.perf_counter()
    if takes_text(built):
        require_finite_logits(built, text_tokens(tokenizer, PROMPT))
    else:
        findings = (*findings, _untried(built))
    for file in {place.file for tensor in model.tensors.values() for place in tensor.places}:
        file.require_unchanged()
    return LoadedModel(built, tokenizer, findings, loaded - began, time.perf_counter() - loaded)


@contextmanager
def _laid_out(files: Sequence[SideFile]) -> Iterator[Path]:
    """Yield a temporary folder with these files; copies are links."""
    with tempfile.TemporaryDirectory(prefix="unshard-") as folder:
        for file in files:
            path = Path(folder, file.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.content is not None:
                path.write_bytes(file.content)
            else:
                assert file.copy_of is not None
                path.symlink_to(file.copy_of.absolute())
        yield Path(folder)


def _placement(device: str, device_map: DeviceMap | None) -> DeviceMap | None:
    """Return the map for accelerate, or None for the CPU."""
    if device_map is not None:
        if device != "auto":
            raise OptionError(
                "device", "and a device map exclude each other", saw=f"{device} and {device_map}"
            )
        return device_map
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for a device
        raise OptionError(
            device,
            "is not a device of this machine",
            saw=str(error).splitlines()[0],
            hint="Use --device cpu.",
        ) from error
    return None if device == "cpu" else {"": device}


def _untried(model: PreTrainedModel) -> Finding:
    """Return that a model takes something else than text."""
    return finding(
        "U702",
        subject=type(model).__name__,
        saw=f"it takes {model.main_input_name}, and only text can be tried",
    )
