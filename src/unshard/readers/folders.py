"""Folders as readers see them: names, looked at once, and nothing that leads out of the tree.

A checkpoint whose ranks wrote to the disks of several nodes is given in several places; folders of one
name in all of them are then seen as one folder.

Links to folders are not followed: what they lead to is found where it is. Links to files are followed
while they stay inside the folder that was given; links of a Hugging Face cache lead into the `blobs`
of the same repository, which is legitimate. FIFOs, devices and sockets are not files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from unshard.errors import InputError

_DEEPEST = 8
_MOST_FOLDERS = 2000


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder and what lies directly in it.

    Attributes:
        path: The folder; of several places, the first that has it.
        files: Names of its files, sorted.
        folders: Names of the folders in it, sorted; hidden ones are left out.
        outside: Names of links that lead out of the tree; not among `files`.
        elsewhere: Real paths, by name, of files that lie in another place than `path`.
        copies: All real paths, by name, of files that lie in more than one place.
    """

    path: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    outside: tuple[str, ...] = ()
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    copies: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    def at(self, name: str) -> Path:
        """Return where the file `name` lies."""
        return self.elsewhere.get(name) or self.path / name

    def without(self, names: Collection[str]) -> Folder:
        """Return the folder as if files of these names were not there."""
        return replace(self, files=tuple(name for name in self.files if name not in names))


@dataclass(frozen=True, slots=True)
class Tree:
    """The folders that a checkpoint was given in, one or several, seen as one.

    Attributes:
        roots: The places, of which there is at least one.
    """

    roots: tuple[Path, ...]

    def relative(self, path: Path) -> Path:
        """Return where `path` is in the tree."""
        root = next(root for root in self.roots if path.is_relative_to(root))
        return path.relative_to(root)

    def look_into(self, path: Path) -> Folder:
        """Return what lies in the folder `path`, in whichever of the places it is.

        Raises:
            InputError: It cannot be listed.
        """
        if len(self.roots) == 1:
            return self._list(path)
        inner = self.relative(path)
        places = [root / inner for root in self.roots if (root / inner).is_dir()] or [path]
        return _united([self._list(place) for place in places])

    def below(self, folder: Folder) -> Iterator[Folder]:
        """Yield the folders below `folder`, nearest first; those that cannot be listed are passed over."""
        pending = deque((folder.path / name, 1) for name in folder.folders)
        for _ in range(_MOST_FOLDERS):
            if not pending:
                return
            path, depth = pending.popleft()
            try:
                found = self.look_into(path)
            except InputError:
                continue
            yield found
            if depth < _DEEPEST:
                pending += ((found.path / name, depth + 1) for name in found.folders)

    def upwards(self, path: Path) -> Iterator[Folder]:
        """Yield the folder `path` and those above it, up to the top of the tree."""
        inner = self.relative(path)
        for part in (inner, *inner.parents):
            yield self.look_into(self.roots[0] / part)

    def _list(self, path: Path) -> Folder:
        files, folders, outside = [], [], []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith("."):
                            folders.append(entry.name)
                    elif entry.is_symlink() and not self._holds(Path(entry.path)):
                        outside.append(entry.name)
                    elif os.path.isfile(entry.path):  # links in a circle are none; `entry.is_file` raises
                        files.append(entry.name)
        except OSError as error:
            raise InputError(path, "cannot be listed", saw=error.strerror) from error
        return Folder(path, tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(outside)))

    def _holds(self, link: Path) -> bool:
        """Return whether a link leads to a place in the tree, or into the blobs of the same hub cache."""
        # `Path.resolve` raises for links in a circle; these lead nowhere, and are no files.
        target = Path(os.path.realpath(link))
        for root in self.roots:
            top = Path(os.path.realpath(root))
            blobs = [above.parent / "blobs" for above in (top, *top.parents) if above.name == "snapshots"]
            if any(target.is_relative_to(place) for place in (top, *blobs)):
                return True
        return False


def _united(places: list[Folder]) -> Folder:
    """Return folders of one name as one."""
    homes: dict[str, list[Path]] = {}
    for place in places:
        for name in place.files:
            homes.setdefault(name, []).append(place.path / name)
    first = places[0].path
    return Folder(
        first,
        tuple(sorted(homes)),
        tuple(sorted({name for place in places for name in place.folders})),
        tuple(sorted({name for place in places for name in place.outside})),
        {name: paths[0] for name, paths in homes.items() if paths[0].parent != first},
        {name: tuple(paths) for name, paths in homes.items() if len(paths) > 1},
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; 0 for what cannot be looked at."""
    try:
        if path.is_dir():
            return sum(size_of(inner) for inner in path.iterdir() if not inner.is_dir())
        return path.stat().st_size
    except OSError:
        return 0
