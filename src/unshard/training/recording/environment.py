"""The environment of a training: what its ranks run on, put together, and where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from unshard.environment.this_machine import this_environment
from unshard.findings import Finding, finding
from unshard.record.description import Device, Environment
from unshard.training.ranks.protocol import Ranks

_SHOWN = 3


def gather_environment(ranks: Ranks) -> tuple[Environment, tuple[Finding, ...]]:
    """Return what all ranks run on, and where they differ; every rank calls it.

    Software is that of rank 0; devices are those that the ranks use, one for each rank.
    """
    found = ranks.gather("describing the environment", with_own_device(this_environment()))
    return united(found), tuple(check_alike(found))


def with_own_device(environment: Environment) -> Environment:
    """Return an environment with the one device that this process computes on, of those that it sees."""
    devices = environment.devices
    if len(devices) > 1 and environment.accelerator in ("cuda", "rocm"):
        name = torch.cuda.get_device_name(torch.cuda.current_device())
        devices = tuple(device for device in devices if device.name == name)
    return replace(environment, devices=tuple(replace(device, count=1) for device in devices[:1]))


def united(environments: Sequence[Environment]) -> Environment:
    """Return the environment of rank 0 with the devices of all, equal ones together."""
    counts: Counter[Device] = Counter()
    for environment in environments:
        counts.update({replace(device, count=0): device.count for device in environment.devices})
    devices = tuple(replace(device, count=count) for device, count in counts.items())
    known = [e.bfloat16 for e in environments if e.bfloat16 is not None]
    return replace(environments[0], devices=devices, bfloat16=all(known) if known else None)


def check_alike(environments: Sequence[Environment]) -> Iterator[Finding]:
    """Yield where ranks run other software than rank 0, or compute with other settings."""
    first = _facts(environments[0])
    differences: dict[str, list[int]] = {}
    for rank, environment in enumerate(environments):
        facts = _facts(environment)
        for name in sorted(first.keys() | facts.keys()):
            if facts.get(name) != first.get(name):
                differences.setdefault(f"{name} {facts.get(name, 'absent')}", []).append(rank)
    for what, ranks in differences.items():
        name = what.split(" ", 1)[0]
        more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
        yield finding(
            "U725",
            subject=name,
            saw=f"{what} on rank {', '.join(map(str, ranks[:_SHOWN]))}{more}",
            expected=f"{name} {first.get(name, 'absent')}, as on rank 0",
            remedy="Install the same software on all machines; numbers of ranks may differ otherwise.",
        )


def _facts(environment: Environment) -> Mapping[str, str]:
    return {
        "python": environment.python,
        "accelerator": str(environment.accelerator),
        "default_dtype": str(environment.default_dtype),
        **environment.packages,
        **environment.runtimes,
        **{name.replace(" ", "_"): value for name, value in environment.settings.items()},
    }
