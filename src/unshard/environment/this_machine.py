"""What this machine has, from an allow-list: no environment variable, no path, no name of a host."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from unshard.record.description import Device, Environment

# Packages that decide what a model computes, or which files and names it has.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "numpy",
    "ml_dtypes",
    "sentencepiece",
    "tiktoken",
    "mistral-common",
    "huggingface-hub",
    "datasets",
    "flash-attn",
    "flash-attn-3",
    "flash-linear-attention",
    "causal-conv1d",
    "mamba-ssm",
    "kernels",
    "liger-kernel",
    "xformers",
    "triton",
    "transformer-engine",
    "apex",
    "bitsandbytes",
    "torchao",
    "gptqmodel",
    "auto-gptq",
    "autoawq",
    "compressed-tensors",
    "optimum",
    "fbgemm-gpu",
    "deepspeed",
    "fairscale",
    "megatron-core",
    "lightning",
    "pytorch-lightning",
    "torchtune",
    "torchtitan",
    "llama-cookbook",
    "llama-recipes",
    "mosaicml",
    "axolotl",
    "llamafactory",
    "unsloth",
    "trl",
    "verl",
    "vllm",
    "sglang",
    "unshard",
)
# What lies between torch and the devices.
RUNTIMES = ("cuda", "rocm", "cudnn", "nccl", "driver")
# Switches of torch that change what is computed, and why it cannot be asked for them.
UNUSABLE = "torch cannot be imported"
SETTINGS = (
    "float32_matmul_precision",
    "matmul_fp32_precision",
    "allow_tf32",
    "cudnn_allow_tf32",
    "deterministic_algorithms",
    "bf16_reduced_precision_reduction",
    "fp16_reduced_precision_reduction",
    "sdpa_backends",
    UNUSABLE,
)
_NVIDIA_SMI_SECONDS = 10
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_AMD_DRIVER = Path("/sys/module/amdgpu/version")
_CPU = Path("/proc/cpuinfo")
_LARGEST = 64 << 10
# What the kernel calls instructions for bfloat16: x86's AVX-512 and AMX, Arm's.
_BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


def this_environment() -> Environment:
    """Return what this process runs on; where torch is installed it is imported, which takes seconds."""
    found = Environment(
        python=platform.python_version(),
        system=_system(),
        packages=installed_packages(),
        runtimes=_drivers(),
    )
    if find_spec("torch") is None:
        return replace(found, devices=devices_of_driver())
    try:
        from unshard.environment.torch_facts import with_torch_facts

        return with_torch_facts(found, cpu_bfloat16=cpu_computes_bfloat16())
    except (ImportError, OSError) as error:  # a library of CUDA that is missing, for one
        reason = " ".join(str(error).split())[:200]
        return replace(found, devices=devices_of_driver(), settings={UNUSABLE: reason})


def with_idle_devices(machine: Environment) -> Environment:
    """Return a machine with the devices that its driver lists where torch uses the processor alone.

    A build of torch without CUDA, or an old driver, leaves devices idle; a training did not run on them.
    """
    return machine if machine.accelerator != "cpu" else replace(machine, devices=devices_of_driver())


def installed_packages() -> dict[str, str]:
    """Return the versions of those packages of the allow-list that are installed; none is imported."""
    found = {}
    for name in PACKAGES:
        # A distribution that was removed by half has no version, or no metadata at all.
        with contextlib.suppress(metadata.PackageNotFoundError, KeyError, OSError, ValueError):
            version = metadata.version(name)
            if isinstance(version, str):
                found[name] = version
    return found


def devices_of_driver() -> tuple[Device, ...]:
    """Return the devices that NVIDIA's driver lists, which torch may not be able to use; none without it."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, timeout=_NVIDIA_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_devices(listed.decode(errors="replace"))


def parse_devices(listed: str) -> tuple[Device, ...]:
    """Return the devices of which `nvidia-smi` printed name, capability and memory (MiB), one a line."""
    kinds: Counter[tuple[str, str | None, int | None]] = Counter()
    for line in listed.splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) == 3:
            name, capability, mebibytes = fields
            memory = int(mebibytes) << 20 if mebibytes.isdecimal() else None
            known = re.fullmatch(r"\d{1,3}\.\d{1,3}", capability)
            kinds[name, capability if known else None, memory] += 1
    return tuple(Device(*kind, count) for kind, count in kinds.items())


def memory_bytes() -> int | None:
    """Return the memory that this process may have: the machine's, or what a control group leaves of it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    # The files of version 2 and of version 1, as a container sees them.
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _text(Path(path)).strip()
        if limit.isdecimal() and int(limit):
            total = min(total, int(limit))
    return total


def cpu_computes_bfloat16() -> bool | None:
    """Return whether the processor has instructions for bfloat16, or None where the system does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(_CPU), re.MULTILINE)
    return None if found is None else bool(_BFLOAT16_FLAGS.intersection(found[1].split()))


def _system() -> str:
    """Return the operating system, its kernel's version without the build, the machine and the C library."""
    release = ".".join(platform.release().split("-")[0].split(".")[:2])
    libc = " ".join(part for part in platform.libc_ver() if part)
    return f"{platform.system()} {release} {platform.machine()}" + (f", {libc}" if libc else "")


def _drivers() -> dict[str, str]:
    """Return the version of the driver of the devices, where the kernel tells."""
    nvidia = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(_NVIDIA_DRIVER))
    version = nvidia[1] if nvidia else _text(_AMD_DRIVER).strip()
    return {"driver": version} if version else {}


def _text(path: Path) -> str:
    """Return the beginning of a file of the kernel's, or nothing where there is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(_LARGEST).decode(errors="replace")
    except OSError:
        return ""
