"""Which files of a folder belong to a model besides its weights and config.json.

Taken: configuration of generation, tokenizer and processors, vocabularies, chat templates, licences.
Left: weights in every format and their indexes, what training reports about itself (a record beside a base
is of the training that made it), READMEs (they describe another model), hidden files, code, and
`consolidated*` and `params.json`, whose names alone make some engines read the folder in another format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from unshard.errors import BaseModelError

_TAKEN = re.compile(
    r".+\.(json|jinja|model|spm|tiktoken|bpe|codes|vocab)|(vocab|merges|emoji|dict|vocabulary)[\w.-]*\.txt"
    r"|tokenizer[\w.-]*|(LICEN[CS]E|NOTICE|USE_POLICY)([.-].*)?"
)
_LEFT = re.compile(
    r"config\.json|.*\.index\.json|adapter_.*|lora_train_meta\.json|consolidated.*|params\.json|(trainer|training)_.*|.*_results\.json"
    r"|(scheduler|optimizer|random_states|rng_state|scaler).*|.*\.manifest\.json|quantize_config\.json"
    r"|(.*\.)?unshard\..*"
    r"|metrics_data.*|.*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|onnx|ot|pkl|npz|npy|py|model_data)"
    r"|global_step.*|model_index\.json"
)
_TOKENIZER = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges.*|tekken\.json|normalizer\.json"
    r"|.+\.(model|spm|tiktoken|bpe|codes|vocab)"
)
_TEMPLATE = re.compile(r"chat_template\.(jinja|json)|additional_chat_templates/.+")


def side_files_of(folder: Path) -> dict[str, Path]:
    """Return the files of `folder` that belong to a model, by name relative to it, sorted.

    Raises:
        BaseModelError: The folder cannot be listed.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise BaseModelError(folder, "cannot be listed", saw=error.strerror) from error
    extra = folder / "additional_chat_templates"
    if extra.is_dir():
        names += [f"{extra.name}/{path.name}" for path in extra.glob("*.jinja")]
    return {name: folder / name for name in sorted(names) if is_side_file(name) and (folder / name).is_file()}


def is_side_file(name: str) -> bool:
    """Return whether a file of this name belongs to a model besides its weights and config.json."""
    last = name.rpartition("/")[2]
    if last.startswith(".") or _LEFT.fullmatch(last):
        return False
    return _TAKEN.fullmatch(last) is not None


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file of this name is part of a tokenizer; chat templates are not."""
    return _TOKENIZER.fullmatch(name) is not None


def code_files_of(folder: Path) -> dict[str, Path]:
    """Return the Python files at the top of `folder`, by name, sorted."""
    return {path.name: path for path in sorted(folder.glob("*.py")) if not path.name.startswith(".")}


def with_own_tokenizer(files: Mapping[str, Path], own: Mapping[str, Path]) -> dict[str, Path]:
    """Return the base's files with the tokenizer that training saved beside the tensors in its place.

    Training may have added tokens, so its own tokenizer is the one whose ids the embedding has rows
    for. It is taken whole: the files of two tokenizers are never mixed. Its chat template comes with
    it; where it has none, the base's stays.
    """
    tokenizer = {name: path for name, path in own.items() if is_side_file(name) and is_tokenizer_file(name)}
    if not makes_tokenizer(tokenizer):
        return dict(files)
    merged = {name: path for name, path in files.items() if not is_tokenizer_file(name)} | tokenizer
    templates = {name: path for name, path in own.items() if _TEMPLATE.fullmatch(name)}
    if templates or _has_template(tokenizer.get("tokenizer_config.json")):
        merged = {name: path for name, path in merged.items() if not _TEMPLATE.fullmatch(name)} | templates
    return dict(sorted(merged.items()))


def makes_tokenizer(names: Iterable[str]) -> bool:
    """Return whether a tokenizer can be made of files of these names; settings alone are not enough."""
    settings = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"}
    return any(is_tokenizer_file(name) and name not in settings for name in names)


def _has_template(settings: Path | None) -> bool:
    """Return whether a tokenizer_config.json carries a chat template."""
    return settings is not None and b'"chat_template"' in settings.read_bytes()


def outside_links(files: Mapping[str, Path]) -> list[str]:
    """Return the names of links that lead out of their folder, except into the blobs of a hub cache."""
    return [name for name, path in files.items() if not _stays_inside(path)]


def _stays_inside(path: Path) -> bool:
    folder = path.parent.resolve()
    blobs = [above.parent / "blobs" for above in folder.parents if above.name == "snapshots"]
    return any(path.resolve().is_relative_to(allowed) for allowed in (folder, *blobs))
