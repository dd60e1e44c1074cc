"""Families of files that differ in the number of a rank only.

    model_world_size_<W>_rank_<R>.pt                verl, SkyRL; W files
    pytorch_model_fsdp[_<i>]_rank<R>.bin            accelerate; i counts models
    <anything>rank<R><anything>.pt, .pth, .bin      anybody

A family without a world size in its name is one if rank 0 is there, or ranks that follow one another:
`lora_rank8.pt` and `lora_rank16.pt` are none.

Source:
    verl/utils/checkpoint/fsdp_checkpoint_manager.py; accelerate src/accelerate/utils/fsdp_utils.py
    (`save_fsdp_model`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unshard.readers.rendering import cut, listed

_WITH_WORLD = re.compile(r"(model_world_size_)(\d{1,7})(_rank_)(\d{1,7})(\.pt)")
_ACCELERATE = re.compile(r"(pytorch_model(?:_fsdp)?(?:_\d+)?_rank_?)(\d{1,7})(\.(?:bin|pt))")
_ANY = re.compile(r"(.*rank[-_.]?)(\d{1,7})((?![-_.]?of).*\.(?:pt|pth|bin|ckpt))", re.IGNORECASE)
# Names count to anything; a missing file is named as long as there are not absurdly many.
_MOST_RANKS = 1 << 20
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Ranks:
    """A family of files, one for each rank.

    Attributes:
        folder: The folder it is seen in.
        before: What the names have before the number.
        after: What they have after it; "" for a file whose name has no rank, which is alone.
        files: Names by rank, in order.
        world_size: How many ranks the names say there were, or None.
    """

    folder: Path
    before: str
    after: str
    files: Mapping[int, str]
    world_size: int | None = None

    @property
    def is_nameless(self) -> bool:
        """Whether the name of the only file has no rank in it."""
        return not self.after

    @property
    def is_complete(self) -> bool:
        """Whether the files of all ranks that the names tell are there."""
        return len(self.files) >= self._told(None)

    def missing(self, world_size: int | None) -> list[int]:
        """Return the ranks without a file, of all that the names or `world_size` tell."""
        told = min(self._told(world_size), _MOST_RANKS)
        return [rank for rank in range(told) if rank not in self.files]

    def _told(self, world_size: int | None) -> int:
        return max(self.world_size or 0, world_size or 0, max(self.files) + 1)

    def described(self, ranks: Sequence[int]) -> str:
        """Return the names of the files of some ranks, as a shell would understand them."""
        width = self._width
        parts = [
            f"{a:0{width}}" if a == b else f"{a:0{width}}..{b:0{width}}"
            for a, b in _intervals(ranks)[:_MOST_SHOWN]
        ]
        if len(parts) > 1:
            parts = [f"{{{part}}}" if ".." in part else part for part in parts]
        inner = ",".join(parts) + (",..." if len(_intervals(ranks)) > _MOST_SHOWN else "")
        return cut(f"{self.before}{inner if len(ranks) == 1 else f'{{{inner}}}'}{self.after}")

    @property
    def _width(self) -> int:
        """Digits of every number, where names are filled up with zeros; else 0."""
        digits = [name[len(self.before) : len(name) - len(self.after)] for name in self.files.values()]
        return max((len(d) for d in digits if d.startswith("0") and len(d) > 1), default=0)


def find_families(folder: Path, names: Iterable[str]) -> list[Ranks]:
    """Return the families among names of files."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    certain: dict[tuple[str, str], int | None] = {}
    for name in names:
        split = _split(name)
        if split is None:
            continue
        before, rank, after, world_size, is_certain = split
        # `rank_01` and `rank_1` would be one rank twice: the second stays what it is, a file of its own.
        found.setdefault((before, after), {}).setdefault(rank, name)
        if is_certain:
            certain[before, after] = world_size
    return [
        Ranks(folder, *key, dict(sorted(files.items())), certain.get(key))
        for key, files in found.items()
        if key in certain or _is_family(files)
    ]


def rank_in(name: str) -> int | None:
    """Return the rank that the name of a file tells, or None."""
    split = _split(name)
    return None if split is None else split[1]


def family_of(folder: Path, name: str) -> Ranks:
    """Return the family that a file is in, of which only the file is known."""
    split = _split(name)
    if split is None:
        return Ranks(folder, name, "", {0: name})
    before, rank, after, world_size, _ = split
    return Ranks(folder, before, after, {rank: name}, world_size)


def ranges_of(numbers: Sequence[int]) -> str:
    """Return sorted numbers, those that follow one another as ranges: `0, 2, 8-31`."""
    return listed([f"{a}" if a == b else f"{a}-{b}" for a, b in _intervals(numbers)], at_most=_MOST_SHOWN)


def _intervals(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last of numbers that follow one another, of sorted ones."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return parts


def _split(name: str) -> tuple[str, int, str, int | None, bool] | None:
    """Return what is before the rank, the rank, what is after it, the world size, and whether it is sure."""
    if found := _WITH_WORLD.fullmatch(name):
        return found[1] + found[2] + found[3], int(found[4]), found[5], int(found[2]), True
    if found := _ACCELERATE.fullmatch(name):
        return found[1], int(found[2]), found[3], None, True
    if found := _ANY.fullmatch(name):
        return found[1], int(found[2]), found[3], None, False
    return None


def _is_family(files: Mapping[int, str]) -> bool:
    lowest, highest = min(files), max(files)
    return len(files) > 1 and (lowest == 0 or highest - lowest == len(files) - 1)
