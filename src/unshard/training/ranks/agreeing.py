"""That all ranks were asked for the same, and have planned the same, before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from unshard.errors import OptionError, RankError
from unshard.training.publishing.contents import Contents
from unshard.training.ranks.protocol import Ranks


def require_same(ranks: Ranks, arguments: Mapping[str, str]) -> None:
    """Return if all ranks were given the same arguments.

    Raises:
        OptionError: They were not; the first argument that differs is named, with the ranks.
    """
    said = ranks.gather("comparing what is asked for", dict(arguments))
    for name in arguments:
        unlike = [rank for rank, each in enumerate(said) if each[name] != said[0][name]]
        if unlike:
            raise OptionError(
                name,
                "is not the same on all ranks",
                saw=f"{said[unlike[0]][name][:200]} on rank {unlike[0]}"
                + (f" ({len(unlike)} ranks differ)" if len(unlike) > 1 else ""),
                expected=f"{said[0][name][:200]}, as on rank 0",
                hint="Compute it on one rank and broadcast it, or derive it from what all ranks know.",
            )


def agree(ranks: Ranks, contents: Contents) -> None:
    """Return if all ranks have planned the same files.

    Raises:
        RankError: They have not.
    """
    digest = hashlib.sha256()
    for file in contents.files:
        placed = [(p.name, p.tensor.shape, p.tensor.dtype.name, p.start, p.stop) for p in file.placements]
        digest.update(repr((file.name, file.size, placed)).encode())
        for offset, content in file.literals:
            digest.update(repr(offset).encode() + content)
    said = ranks.gather("comparing the plans", digest.hexdigest())
    unlike = [str(rank) for rank, each in enumerate(said) if each != said[0]]
    if unlike:
        raise RankError(
            f"rank {', '.join(unlike[:8])}",
            "plans other files than rank 0",
            hint="All ranks must run the same versions of torch, transformers and unshard.",
        )
