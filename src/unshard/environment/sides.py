"""The two environments as the rules look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.environment.description import Training
from unshard.environment.versions import Release, VersionRange, parse_range, parse_release
from unshard.record.description import Environment


@dataclass(frozen=True, slots=True)
class Sides:
    """Training, and this machine.

    Attributes:
        training: What is known of the training.
        machine: This machine.
        here: What is known of it, by aspect.
        memory_bytes: Memory that a process may have here, or None where that is not known.
    """

    training: Training
    machine: Environment
    here: Mapping[str, str]
    memory_bytes: int | None

    def there(self, aspect: str) -> str | None:
        """Return what an aspect was in training, or None where nothing tells."""
        fact = self.training.facts.get(aspect)
        return None if fact is None else fact.value

    def written_by(self, package: str) -> VersionRange | None:
        """Return which versions of a package training may have had."""
        return parse_range(self.there(package))

    def read_by(self, package: str) -> VersionRange | None:
        """Return which versions of a package can read the files, or None where any can."""
        fact = self.training.needs.get(package)
        return None if fact is None else parse_range(fact.value)

    def installed(self, package: str) -> Release | None:
        """Return the version of a package here as numbers."""
        return parse_release(self.here.get(package))

    def is_older_here(self, package: str, *, digits: int) -> bool:
        """Return whether a package is surely older here than in training, to so many numbers."""
        here, there = self.installed(package), self.written_by(package)
        return here is not None and there is not None and there.is_above(here, digits)

    def is_newer_here(self, package: str, *, digits: int) -> bool:
        """Return whether a package is surely newer here than in training, to so many numbers."""
        here, there = self.installed(package), self.written_by(package)
        return here is not None and there is not None and there.is_below(here, digits)

    def differs(self, aspect: str) -> bool:
        """Return whether an aspect is known on both sides, and is not the same."""
        there, here = self.there(aspect), self.here.get(aspect)
        return there is not None and here is not None and there != here

    @property
    def device_bytes(self) -> int:
        """Memory of all devices that torch can use here."""
        if self.machine.accelerator in (None, "cpu"):
            return 0
        return sum((device.memory_bytes or 0) * device.count for device in self.machine.devices)

    @property
    def uses_bfloat16(self) -> bool:
        """Whether training computed in bfloat16, or left weights in it."""
        computed = self.there("dtype of computing") or self.there("dtype of weights")
        return computed == "bfloat16"

    @property
    def has_flash_attention(self) -> bool:
        """Whether flash attention can be asked for here."""
        package = any(name in self.here for name in ("flash-attn", "flash-attn-3", "kernels"))
        return package and self.machine.accelerator in ("cuda", "rocm")
