"""The places a checkpoint is given in: one path, or the folders of several nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Places = str | Path | Sequence[str | Path]


def as_paths(places: Places) -> list[Path]:
    """Return every path of one or several places."""
    return [Path(places)] if isinstance(places, str | Path) else [Path(place) for place in places]
