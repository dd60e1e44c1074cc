"""What torch says of itself and of the devices that it can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from unshard.record.description import Device, Environment

# The first capability with instructions for bfloat16: Ampere's.
_BFLOAT16_CAPABILITY = 8


def with_torch_facts(found: Environment, *, cpu_bfloat16: bool | None) -> Environment:
    """Return an environment with what torch knows of it.

    Args:
        found: What is known without torch.
        cpu_bfloat16: Whether the processor computes in bfloat16, which counts where there is nothing else.
    """
    kind = _accelerator()
    return replace(
        found,
        packages={**found.packages, "torch": str(torch.__version__)},
        accelerator=kind,
        runtimes={**found.runtimes, **dict(_runtimes())},
        devices=_devices(kind),
        bfloat16=_computes_bfloat16(kind, cpu_bfloat16=cpu_bfloat16),
        default_dtype=str(torch.get_default_dtype()).removeprefix("torch."),
        settings=dict(_settings()),
    )


def _accelerator() -> str:
    """Return the kind of device that torch would use."""
    if torch.cuda.is_available():
        return "rocm" if torch.version.hip else "cuda"
    if torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _runtimes() -> Iterator[tuple[str, str]]:
    """Yield the versions of the libraries that torch was built for, those of NCCL and cuDNN as they load."""
    for name in ("cuda", "hip"):
        if version := getattr(torch.version, name, None):
            yield ("rocm" if name == "hip" else name), str(version)
    if not torch.version.cuda and not torch.version.hip:
        return
    if cudnn := _told(torch.backends.cudnn.version):
        yield "cudnn", cudnn
    if nccl := _told(lambda: ".".join(map(str, torch.cuda.nccl.version()))):
        yield "nccl", nccl


def _devices(kind: str) -> tuple[Device, ...]:
    """Return the devices that torch can use, equal ones together; none where it has the processor alone."""
    if kind not in ("cuda", "rocm", "xpu"):
        return ()
    module = torch.xpu if kind == "xpu" else torch.cuda
    kinds: Counter[tuple[str, str | None, int | None]] = Counter()
    for index in range(module.device_count()):
        properties = module.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}" if kind != "xpu" else None
        kinds[properties.name, capability, properties.total_memory] += 1
    return tuple(Device(*found, count) for found, count in kinds.items())


def _computes_bfloat16(kind: str, *, cpu_bfloat16: bool | None) -> bool | None:
    """Return whether devices compute in bfloat16 themselves; torch's own answer counts emulation, too."""
    if kind == "cuda":
        capabilities = [torch.cuda.get_device_capability(i)[0] for i in range(torch.cuda.device_count())]
        return min(capabilities, default=0) >= _BFLOAT16_CAPABILITY
    if kind in ("rocm", "xpu"):
        return True  # every device that torch still supports does
    return cpu_bfloat16 if kind == "cpu" else None


def _settings() -> Iterator[tuple[str, str]]:
    """Yield the switches of torch that change what is computed.

    Older and newer spellings of one switch exclude each other: torch raises where a program has set the one
    and the other is asked for, and what it will not tell is left out.
    """
    cuda = torch.backends.cuda
    asked: tuple[tuple[str, Callable[[], object]], ...] = (
        ("float32_matmul_precision", torch.get_float32_matmul_precision),
        ("matmul_fp32_precision", lambda: cuda.matmul.fp32_precision),
        ("allow_tf32", lambda: cuda.matmul.allow_tf32),
        ("cudnn_allow_tf32", lambda: torch.backends.cudnn.allow_tf32),
        ("deterministic_algorithms", torch.are_deterministic_algorithms_enabled),
        ("bf16_reduced_precision_reduction", lambda: cuda.matmul.allow_bf16_reduced_precision_reduction),
        ("fp16_reduced_precision_reduction", lambda: cuda.matmul.allow_fp16_reduced_precision_reduction),
        ("sdpa_backends", _sdpa_backends),
    )
    for name, ask in asked:
        if answer := _told(ask):
            yield name, answer


def _sdpa_backends() -> str:
    """Return which implementations scaled dot product attention may choose from."""
    names = ("flash", "mem_efficient", "math", "cudnn")
    return " ".join(name for name in names if _is_enabled(f"{name}_sdp_enabled"))


def _is_enabled(name: str) -> bool:
    enabled = getattr(torch.backends.cuda, name, None)
    return enabled is not None and bool(enabled())


def _told(ask: Callable[[], object]) -> str | None:
    """Return torch's answer as text, or None where this build of it has none."""
    try:
        answer = ask()
    except (AttributeError, RuntimeError):
        return None
    return None if answer is None else str(answer)
