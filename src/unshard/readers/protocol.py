"""What a layout's reader is: it finds candidates in a folder, and opens one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unshard.checkpoint import Checkpoint
from unshard.readers.folders import Folder


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that was found by its names, and not opened.

    Attributes:
        path: The file or folder that is the checkpoint.
        folder: The folder its files are in; `folder.at(name)` is where each of them lies.
        files: Names of the files in its folder that belong to it, or to it and its like.
        title: What it seems to be, in words.
        series: What it and other steps of the same model in the same folder have in common; "" where
            the folder holds one step.
        numbers: Its epoch, its step, or both, from its name; empty where the name has none.
        left_out: Names of files like its own that are of another save, and nothing by themselves.
    """

    path: Path
    folder: Folder
    files: tuple[str, ...]
    title: str
    series: str = ""
    numbers: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


class Reader(Protocol):
    """One layout. A module of this room is one, if it has these two functions."""

    def find_candidates(self, folder: Folder) -> Iterable[Candidate]:
        """Return the checkpoints of this layout that lie directly in a folder, told by names alone."""

    def open_candidate(self, candidate: Candidate, *, select: str | None) -> Checkpoint:
        """Return the checkpoint, its tensors described and not read; what lies around it is added later.

        Raises:
            InputError: It cannot be read.
        """
