"""The local cache of the Hugging Face hub, read without its library.

    <cache>/models--<org>--<name>/refs/main          the commit that `main` was at
                                 /snapshots/<commit>/  files, mostly links into blobs/
                                 /blobs/               the bytes

Source:
    huggingface_hub 2.4: constants.py, file_download.py (`repo_folder_name`, `try_to_load_from_cache`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from unshard.errors import BaseModelError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_COMMIT = re.compile(r"[0-9a-f]{6,64}")


def is_repository_name(reference: str) -> bool:
    """Return whether `reference` could be the name of a model on the hub."""
    return _REPOSITORY.fullmatch(reference) is not None and ".." not in reference


def cache_folder() -> Path:
    """Return the folder that the hub's own tools use as their cache."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(value).expanduser()
    if value := os.environ.get("HF_HOME"):
        return Path(value).expanduser() / "hub"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface" / "hub"


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a cached revision of a model, or None where there is none.

    Args:
        name: The name of the model.
        revision: The commit that is meant; where it is not in the cache, or None, the one that is `main`.

    Raises:
        BaseModelError: There are several, and nothing says which one is `main`.
    """
    repository = cache_folder() / ("models--" + name.replace("/", "--"))
    if revision is not None and _COMMIT.fullmatch(revision):
        exact = repository / "snapshots" / revision
        if (exact / "config.json").exists():
            return exact
    return snapshot_of(repository)


def snapshot_of(repository: Path) -> Path | None:
    """Return the folder of the revision that `refs/main` names, or of the only one there is.

    Raises:
        BaseModelError: There are several, and nothing says which one is `main`.
    """
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    if _COMMIT.fullmatch(revision) and (repository / "snapshots" / revision).is_dir():
        return repository / "snapshots" / revision
    try:
        snapshots = sorted(p for p in (repository / "snapshots").iterdir() if (p / "config.json").exists())
    except OSError:
        return None
    if len(snapshots) > 1:
        raise BaseModelError(
            repository,
            f"holds {len(snapshots)} revisions, and none is marked as main",
            saw=", ".join(path.name for path in snapshots[:3]),
            hint=f"Name one of them, for example --base {snapshots[-1]}",
        )
    return snapshots[0] if snapshots else None
