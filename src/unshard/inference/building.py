"""Models of transformers, built by `from_pretrained`, and refused where it would only warn.

A tensor that is missing, unexpected or mis-shaped makes transformers log a report and go on with
random numbers. Here it is an error that names the tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import transformers

from unshard.errors import InferenceError, UnshardError
from unshard.inference.architectures import load_config, model_class
from unshard.inference.quiet import collected_warnings
from unshard.inference.torch_tensors import UnreadTensor

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


# What accelerate takes: "auto" and its like, a device, or a device for every module.
DeviceMap: TypeAlias = "str | int | torch.device | Mapping[str, int | str | torch.device]"

_NAMED_AT_MOST = 5


def build_from_tensors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor | UnreadTensor],
    *,
    dtype: torch.dtype | None,
    device_map: DeviceMap | None,
) -> PreTrainedModel:
    """Return the model whose configuration lies in `folder` and whose weights are `tensors`.

    Args:
        folder: Holds config.json, and generation_config.json where the model has one.
        tensors: By the names a model folder has for them.
        dtype: None for the configuration's own, or the first tensor's where it has none.
        device_map: None for the CPU.

    Raises:
        InferenceError: transformers cannot build it, or a tensor is missing, unexpected or mis-shaped.
    """
    config = load_config(folder)
    return _from_pretrained(
        model_class(config),
        None,
        config=config,
        state_dict=tensors,
        generation_config=_generation_config(folder),
        dtype=dtype or _dtype_of(config, tensors),
        device_map=device_map,
    )


def build_from_folder(folder: Path) -> PreTrainedModel:
    """Return the model in `folder` as anybody gets it from transformers, on the CPU.

    Only safetensors files are read; pickles are not.

    Raises:
        InferenceError: transformers cannot build it, or a tensor is missing, unexpected or mis-shaped.
    """
    config = load_config(folder)
    return _from_pretrained(model_class(config), folder, config=config, dtype="auto", use_safetensors=True)


def _from_pretrained(cls: type[PreTrainedModel], folder: Path | None, **options: object) -> PreTrainedModel:
    """Return a whole model in eval mode, without gradients."""
    with collected_warnings() as warnings:
        try:
            model, report = cls.from_pretrained(
                folder,
                ignore_mismatched_sizes=True,  # so that they are reported with all others, and refused below
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
        except UnshardError:
            raise
        except Exception as error:
            detail = "".join(f"\n{warning}" for warning in warnings[-1:])
            raise InferenceError(
                cls.__name__,
                f"cannot be built by transformers {transformers.__version__}",
                saw=f"{type(error).__name__}: {error}{detail}",
            ) from error
    _require_complete(model, report)
    built: PreTrainedModel = model.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return built.eval()


def _dtype_of(
    config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor | UnreadTensor]
) -> torch.dtype | str:
    """Return what transformers makes of a folder that holds the same."""
    floats = (tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point)
    return "auto" if config.dtype is not None else next(floats, torch.float32)


def _require_complete(model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Raise unless every weight was loaded, nothing was left over, and no buffer is without memory."""
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    mismatched = {
        f"{name} (saw {tuple(saw)}, expected {tuple(expected)})"
        for name, saw, expected in report["mismatched_keys"]
    }
    if (
        len(set(getattr(model, "hf_device_map", {}).values())) <= 1
    ):  # accelerate keeps what it offloads on meta
        named = chain(model.named_parameters(), model.named_buffers())
        missing |= {name for name, tensor in named if tensor.is_meta}
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
    if any(names for _, names in faults):
        raise InferenceError(
            type(model).__name__,
            "and the tensors do not fit each other",
            saw="; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in faults if names),
            hint="The configuration and the tensors are of two models; name the right base with --base.",
        )


def _listed(names: Collection[str]) -> str:
    """Return the first names, and how many there are besides."""
    first = ", ".join(sorted(names)[:_NAMED_AT_MOST])
    return first if len(names) <= _NAMED_AT_MOST else f"{first} and {len(names) - _NAMED_AT_MOST} more"


def _generation_config(folder: Path) -> GenerationConfig:
    """Return how the model ends and samples: from its own file, else from what config.json says of it."""
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )
