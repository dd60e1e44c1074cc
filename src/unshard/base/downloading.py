"""The small files of a model, fetched from the hub by its own library (extra `hf`)."""

from __future__ import annotations

from pathlib import Path

from unshard.base.hub_cache import cache_folder
from unshard.errors import BaseModelError

# Configuration, tokenizer, templates, licences; never weights, pictures or code.
_WANTED = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "*.spm",
    "additional_chat_templates/*",
    "LICENSE*",
    "NOTICE*",
)
_UNWANTED = ("original/*", "onnx/*", "*/params.json", "consolidated*", "*.onnx.json")


def download_snapshot(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model on the hub, with everything but its weights.

    Args:
        name: The name of the model.
        revision: The commit that is meant; None for `main`.

    Raises:
        BaseModelError: The library is not installed, there is no network, or the hub refuses.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise BaseModelError(
            name,
            "is not on this machine, and downloading it needs the package `huggingface_hub`",
            saw=f"no folder of that name, and no copy in {cache_folder()}",
            hint='pip install "unshard[hf]", or give the folder of a copy with --base.',
        ) from error
    try:
        patterns = {"allow_patterns": list(_WANTED), "ignore_patterns": list(_UNWANTED)}
        return Path(snapshot_download(name, revision=revision, **patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise BaseModelError(
            name,
            "is not on this machine and cannot be downloaded",
            saw=f"no copy in {cache_folder()}; {type(error).__name__}: {first}",
            hint=(
                "Check the name and the network, log in if the model is gated (hf auth login), "
                "or give the folder of a copy with --base."
            ),
        ) from error
