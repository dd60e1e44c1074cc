"""What is known while one rank's file is read, so that nothing in it is looked at twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from unshard.readers.distributed.device_mesh import Position, find_position
from unshard.readers.distributed.placements import Cut, Way, find_ways
from unshard.readers.torch_save.torch_storages import TorchFile, impossible
from unshard.tensors import Box

# Steps that describing one file may take. A thousand tensors on a thousand ranks take a million; a small
# file may refer to one long list a million times.
_MOST_STEPS = 1 << 24


@dataclass(slots=True)
class Reading:
    """One rank's file, while its records are read; these must outlive this object.

    Attributes:
        saved: The file.
        rank: The rank by the name of the file, or None where only the file itself tells.
    """

    saved: TorchFile
    rank: int | None
    _positions: dict[int, Position] = field(default_factory=dict)
    _ways: dict[tuple[tuple[int, ...], tuple[Cut, ...]], tuple[Way, ...]] = field(default_factory=dict)
    _boxes: dict[tuple[int, int], frozenset[Box]] = field(default_factory=dict)
    _steps: int = 0

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.saved.file.path.name

    def position(self, mesh: object) -> Position:
        """Return where the rank is in a mesh; most tensors are on the same one."""
        found = self._positions.get(id(mesh))
        if found is None:
            found = self._positions[id(mesh)] = find_position(mesh, self.saved, self.rank)
            self.spend(found.listed)
        return found

    def ways(self, shape: tuple[int, ...], cuts: tuple[Cut, ...]) -> tuple[Way, ...]:
        """Return what the rank holds of a tensor; most tensors have the shape of another one."""
        found = self._ways.get((shape, cuts))
        if found is None:
            self.spend(sum(cut.factor for cut in cuts))
            found = self._ways[shape, cuts] = find_ways(shape, cuts)
        return found

    def boxes(self, metadata: list[object], dimensions: int, read: Callable[[object], Box]) -> frozenset[Box]:
        """Return the boxes in a list of metadata, each read once."""
        found = self._boxes.get((id(metadata), dimensions))
        if found is None:
            self.spend(len(metadata))
            found = self._boxes[id(metadata), dimensions] = frozenset(map(read, metadata))
        return found

    def spend(self, steps: int) -> None:
        """Take note of steps.

        Raises:
            UnsafeFileError: There are more than any file needs.
        """
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise impossible(self.name, "takes more steps to describe than anything that torch saves")
