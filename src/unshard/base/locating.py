"""From what a person or a yaml file calls the base to the folder it lies in."""

from __future__ import annotations

from pathlib import Path

from unshard.base.configuration import read_config
from unshard.base.downloading import download_snapshot
from unshard.base.hub_cache import cache_folder, cached_snapshot, is_repository_name, snapshot_of
from unshard.errors import BaseModelError


def locate_base(reference: str, *, download: bool, revision: str | None = None) -> Path:
    """Return the folder of a base: itself, one of the hub's cache, or that of a name on the hub.

    Args:
        reference: A folder, or a name on the hub.
        download: Whether a model that is not on this machine may be fetched.
        revision: The commit on the hub that is meant; where it is not on this machine, another one is taken
            that is.

    Raises:
        BaseModelError: It is nowhere, or what is there is no model folder; with the next action.
    """
    try:
        return _locate(reference, download=download, revision=revision)
    except OSError as error:
        raise BaseModelError(shortened(reference), "cannot be looked at", saw=error.strerror) from error


def locate_tokenizer(reference: str, *, download: bool) -> Path:
    """Return the folder of a tokenizer, which needs no config.json; else as `locate_base`.

    Raises:
        BaseModelError: It is nowhere.
    """
    try:
        if folder_named(reference).is_dir():
            return folder_named(reference)
    except OSError as error:
        raise BaseModelError(shortened(reference), "cannot be looked at", saw=error.strerror) from error
    return locate_base(reference, download=download)


def shortened(reference: str) -> str:
    """Return a reference as it is shown: files of strangers may name anything."""
    return reference if len(reference) <= 200 else f"{reference[:200]}..."


def folder_named(reference: str) -> Path:
    """Return the path that a reference is; what `~` cannot stand for is left as it is."""
    try:
        return Path(reference).expanduser()
    except RuntimeError:
        return Path(reference)


def _locate(reference: str, *, download: bool, revision: str | None) -> Path:
    path = folder_named(reference)
    if path.is_dir():
        folder = path if (path / "config.json").exists() else snapshot_of(path) or path
        require_model_folder(folder)
        return folder
    if path.exists():
        raise BaseModelError(
            path, "is a file", expected="the folder of a model", hint=f"Try --base {path.absolute().parent}"
        )
    if not is_repository_name(reference):
        raise BaseModelError(
            reference,
            "is no folder, and no name a model on the hub can have",
            hint="Give the folder with the base's config.json, or a name such as meta-llama/Llama-3.2-1B.",
        )
    snapshot = cached_snapshot(reference, revision)
    if snapshot is not None and (snapshot / "config.json").exists():
        return snapshot
    if download:
        snapshot = download_snapshot(reference, revision)
        require_model_folder(snapshot)
        return snapshot
    raise BaseModelError(
        reference,
        "is not on this machine",
        saw=f"no such folder in {Path.cwd()}, and no copy in {cache_folder()}",
        hint=f"Download it (hf download {reference}), or give the folder of a copy with --base.",
    )


def require_model_folder(folder: Path) -> None:
    """Raise unless `folder` holds a config.json.

    Raises:
        BaseModelError: It does not; the message says what it is instead, where that can be told.
    """
    if (folder / "config.json").is_file():
        return
    problem, hint = _what_it_is_instead(folder)
    raise BaseModelError(folder, problem, expected="a folder with config.json", hint=hint)


def _what_it_is_instead(folder: Path) -> tuple[str, str]:
    """Return why a folder is no base, and what to do."""
    names = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names:
        return (
            "holds an adapter, not a model",
            f"Give the model the adapter was trained on{_adapted(folder)}.",
        )
    if any(name.endswith(".gguf") for name in names):
        return (
            "holds a model in GGUF only",
            "Give the folder with the original weights and config.json; GGUF does not keep them.",
        )
    if "params.json" in names:
        return (
            "is a model in Meta's own format",
            "Give the same model in Hugging Face's format, for example --base meta-llama/Llama-3.2-1B",
        )
    if "model_index.json" in names:
        return "is a pipeline of several models", "Give the sub-folder of the model that was trained."
    inner = sorted(path.parent for path in folder.glob("*/config.json"))
    if inner:
        return "has no config.json", f"Did you mean --base {inner[0]}"
    return "has no config.json", "Give the folder of the model that training started from."


def _adapted(folder: Path) -> str:
    """Return ": <name>" for the model that an adapter names, or "" where it names none."""
    try:
        _, settings = read_config(folder / "adapter_config.json")
    except BaseModelError:
        return ""
    name = settings.get("base_model_name_or_path")
    return f": --base {name}" if isinstance(name, str) and name else ""
