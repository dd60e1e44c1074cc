"""Folders as readers see them: names, looked at once, and nothing that leads out of the tree.

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
        path: The folder.
        files: Names of its files, sorted.
        folders: Names of the folders in it, sorted; hidden ones are left out.
        outside: Names of links that lead out of the tree; not among `files`.
        elsewhere: Files that lie in another place than `path`, because the checkpoint was given in
            several places: their real paths by name.
    """

    path: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    outside: tuple[str, ...] = ()
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def at(self, name: str) -> Path:
        """Return where the file `name` lies."""
        return self.elsewhere.get(name) or self.path / name

    def without(self, names: Collection[str]) -> Folder:
        """Return the folder as if files of these names were not there."""
        return replace(self, files=tuple(name for name in self.files if name not in names))


def look_into(path: Path, root: Path) -> Folder:
    """Return what lies in the folder `path`, which is in the tree below `root`.

    Raises:
        InputError: It cannot be listed.
    """
    files, folders, outside = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        folders.append(entry.name)
                elif entry.is_symlink() and not _stays_inside(Path(entry.path), root):
                    outside.append(entry.name)
                elif os.path.isfile(entry.path):  # links in a circle are none; `entry.is_file` raises
                    files.append(entry.name)
    except OSError as error:
        raise InputError(path, "cannot be listed", saw=error.strerror) from error
    return Folder(path, tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(outside)))


def folders_below(folder: Folder, root: Path) -> Iterator[Folder]:
    """Yield the folders below `folder`, nearest first; those that cannot be listed are passed over."""
    pending = deque((folder.path / name, 1) for name in folder.folders)
    for _ in range(_MOST_FOLDERS):
        if not pending:
            return
        path, depth = pending.popleft()
        try:
            found = look_into(path, root)
        except InputError:
            continue
        yield found
        if depth < _DEEPEST:
            pending += ((found.path / name, depth + 1) for name in found.folders)


def _stays_inside(link: Path, root: Path) -> bool:
    """Return whether a link leads to a place below `root`, or into the blobs of the same hub cache."""
    # `Path.resolve` raises for links in a circle; these lead nowhere, and are no files.
    target, top = Path(os.path.realpath(link)), Path(os.path.realpath(root))
    blobs = [above.parent / "blobs" for above in (top, *top.parents) if above.name == "snapshots"]
    return any(target.is_relative_to(place) for place in (top, *blobs))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; 0 for what cannot be looked at."""
    try:
        if path.is_dir():
            return sum(size_of(inner) for inner in path.iterdir() if not inner.is_dir())
        return path.stat().st_size
    except OSError:
        return 0
