"""The hidden folder in which ranks write together: made and renamed by one of them, found by the others.

Whether ranks share a file system is not asked but seen: rank 0 leaves a token in the folder, and the ranks
that find it there write. The others send what they hold.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.storage.folders import new_files, new_folder
from unshard.training.ranks.protocol import Ranks

# A client of NFS may not look again for a name that was not there a moment ago.
_TRIES = 5
_WAIT_SECONDS = 0.4


def staged_output(
    target: Path, beside: list[str], *, is_file: bool, overwrite: bool, durable: bool
) -> AbstractContextManager[Path]:
    """Return the hidden folder of an output, which appears when the block is left, or vanishes.

    Args:
        target: The folder or file that appears.
        beside: Names of files that appear with one file.
        is_file: Whether it is one file.
        overwrite: Whether what is there may be replaced.
        durable: Whether to wait until the disk has it.
    """
    if is_file:
        return new_files(target.parent, [*beside, target.name], overwrite=overwrite, durable=durable)
    return new_folder(target, overwrite=overwrite, durable=durable)


def find_writers(folder: Path | None, target: Path, ranks: Ranks) -> tuple[Path, list[int]]:
    """Return the folder as this rank sees it, and the ranks that do; every rank calls it.

    Args:
        folder: The hidden folder on rank 0, None on the others.
        target: The output, as this rank names it.
        ranks: All ranks.
    """
    token = os.urandom(16).hex()

    def leave() -> tuple[Path, str] | None:
        if folder is None:
            return None
        (folder / token).write_text(token)
        return folder.relative_to(Path(os.path.abspath(target)).parent), token

    inside, token = ranks.broadcast("finding the folder", ranks.together("finding the folder", leave)[0])
    place = Path(os.path.abspath(target)).parent / inside
    seen = ranks.gather("finding the folder", _sees(place / token, token))
    if folder is not None:
        (folder / token).unlink()
    return place, [rank for rank, sees in enumerate(seen) if sees]


def _sees(path: Path, token: str) -> bool:
    """Return whether the file with the token is there, looking again for a while."""
    for last in range(_TRIES):
        with suppress(OSError):
            os.listdir(path.parent)
            if path.read_text() == token:
                return True
        if last < _TRIES - 1:
            time.sleep(_WAIT_SECONDS)
    return False


def check_writers(writers: list[int], target: Path, ranks: Ranks) -> list[Finding]:
    """Return a finding if there are ranks that do not see the output."""
    blind = [str(rank) for rank in range(ranks.size) if rank not in writers]
    if not blind:
        return []
    return [
        finding(
            "U140",
            subject=str(target),
            saw=f"ranks {listed(blind, at_most=8)} of {ranks.size} do not see the folder that rank 0 made",
            expected="a file system that all ranks share",
            remedy="The others wrote for them, over the network. Saving to a shared disk is faster.",
        )
    ]
