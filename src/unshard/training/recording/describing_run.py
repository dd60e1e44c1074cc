"""What of a training a record tells beside its tensors: the program, the model, the tokenizer, the base."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import Module

from unshard.base.configuration import read_config
from unshard.base.locating import locate_base
from unshard.base.side_files import is_tokenizer_file, side_files_of
from unshard.errors import BaseModelError
from unshard.match.tokens import count_tokens
from unshard.record.description import BaseOfTraining, Code, ModelOfTraining, TokenizerOfTraining
from unshard.record.secrets import without_secrets, without_secrets_in_text, without_secrets_in_words
from unshard.tensors import element_count
from unshard.training.live.model import LiveModel
from unshard.training.live.module_tree import (
    bare_module,
    full_class_name,
    joined,
    model_without_adapters,
    modules_of,
)
from unshard.training.recording.training_config import plain_values

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_GIT_SECONDS = 10
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
# Source: c10/core/GeneratorImpl.h (`default_rng_seed_val`).


def describe_code() -> Code:
    """Return the program that runs; files that git does not know count where one is the main file.

    Git is asked for at most a few seconds, reads only, and runs no program that the repository names.
    """
    words = without_secrets_in_words(sys.argv)
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    commit = None if main is None else _git(Path(main), "rev-parse", "HEAD")
    if main is None or commit is None or not _COMMIT.fullmatch(commit):
        return Code(words, None, None)
    changes = _git(Path(main), "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    is_known = _git(Path(main), "ls-files", "--error-unmatch", "--", Path(main).name) is not None
    return Code(words, commit, None if changes is None else bool(changes) or not is_known)


def _git(main: Path, *words: str) -> str | None:
    """Return what git says in the folder of the main file, or None where it says nothing."""
    folder = main.resolve().parent
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *words]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=_GIT_SECONDS, env=environment, text=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def model_config_of(model: Module) -> PreTrainedConfig | None:
    """Return the configuration of the model, of transformers' kind, or None where it has none."""
    config = getattr(model_without_adapters(model), "config", None)
    return config if hasattr(config, "to_json_string") else None


def describe_model(
    model: Module, live: LiveModel, config: PreTrainedConfig | Mapping[str, object] | str | Path | None = None
) -> ModelOfTraining:
    """Return the model's class and configuration.

    Args:
        model: The model, wrapped or not.
        live: The same, described.
        config: Its configuration where it is not the model's own: one of transformers', a mapping, or the
            path of a config.json.
    """
    own = model_config_of(model)
    tensors = live.checkpoint.tensors
    sizes = {name: element_count(t) for name, t in tensors.items() if name not in live.buffers}
    frozen = set(_frozen_names(model))
    return ModelOfTraining(
        class_name=full_class_name(model_without_adapters(model)),
        config=config_as_data(own if config is None else config),
        attention=getattr(own, "_attn_implementation", None),
        parameters=sum(sizes.values()),
        trainable=sum(size for name, size in sizes.items() if name not in frozen),
        ties=dict(live.ties),
        adapter=_adapters_of(model),
    )


def config_as_data(
    config: PreTrainedConfig | Mapping[str, object] | str | Path | None,
) -> Mapping[str, object] | None:
    """Return a configuration as config.json has it, or None for None."""
    if config is None:
        return None
    if isinstance(config, str | Path):
        values: object = read_config(Path(config))[1]
    else:
        values = config if isinstance(config, Mapping) else json.loads(config.to_json_string())
    data = without_secrets(plain_values(values))
    assert isinstance(data, dict)
    return data


def _frozen_names(model: Module) -> Iterator[str]:
    """Yield the names, without wrappers, of parameters that are not trained."""
    for name, module in modules_of(model):
        for key, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                # A flat parameter of FSDP1 knows the names of what is in it, relative to its module.
                yield from (joined(name, each) for each in getattr(parameter, "_fqns", None) or (key,))


def _adapters_of(model: Module) -> dict[str, object]:
    """Return the configuration of every adapter of low rank, as PEFT has it, by name."""
    configs = getattr(bare_module(model), "peft_config", None)
    if not isinstance(configs, Mapping):
        return {}
    return {str(name): without_secrets(plain_values(config)) for name, config in configs.items()}


def describe_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
) -> TokenizerOfTraining | None:
    """Return the tokenizer's class, size and the digests of its files; None for None.

    Args:
        tokenizer: A tokenizer, a processor, or the folder of one.
    """
    if tokenizer is None:
        return None
    if isinstance(tokenizer, str | Path):
        files = {
            name: path for name, path in side_files_of(Path(tokenizer)).items() if is_tokenizer_file(name)
        }
        return TokenizerOfTraining(_tokenizer_class(files), count_tokens(files) or 0, _digests_of(files))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        digests = _digests_of({path.relative_to(folder).as_posix(): path for path in paths})
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
    return TokenizerOfTraining(type(tokenizer).__name__, len(inner), digests)


def _digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def _tokenizer_class(files: Mapping[str, Path]) -> str:
    """Return the class that the files of a tokenizer name, or that they name none."""
    settings = files.get("tokenizer_config.json")
    named = None if settings is None else read_config(settings)[1].get("tokenizer_class")
    return named if isinstance(named, str) else "of no class"


def describe_base(reference: str | Path | None, config: PreTrainedConfig | None) -> BaseOfTraining | None:
    """Return what training started from, with its commit on the hub, or None where nothing tells.

    Args:
        reference: What the script names: a folder, or a name on the hub.
        config: The model's configuration, which knows where it was loaded from.
    """
    loaded = str(getattr(config, "name_or_path", None) or "")
    named = loaded if reference is None else str(reference)
    if not named:
        return None
    name, revision = _in_hub_cache(_folder_of(named))
    commit = getattr(config, "_commit_hash", None)
    if named == loaded and isinstance(commit, str) and _COMMIT.fullmatch(commit):
        revision = commit
    # From another working directory a relative path leads to another folder, or nowhere.
    place = str(Path(named).absolute()) if Path(named).is_dir() else named
    return BaseOfTraining(without_secrets_in_text(name or place), revision)


def _folder_of(reference: str) -> Path:
    """Return the folder of a base, or a path where nothing lies if it is not on this machine."""
    try:
        return locate_base(reference, download=False)
    except (BaseModelError, ValueError):  # a name with a null byte is no path at all
        return Path(reference)


def _in_hub_cache(folder: Path) -> tuple[str | None, str | None]:
    """Return the name and the commit of a model whose folder is a snapshot in the cache of the hub.

    Source:
        huggingface_hub, file_download.py (`repo_folder_name`): models--<org>--<name>/snapshots/<commit>
    """
    commit, place, repository = folder.name, folder.parent.name, folder.parent.parent.name
    if place != "snapshots" or not repository.startswith("models--") or not _COMMIT.fullmatch(commit):
        return None, None
    return repository.removeprefix("models--").replace("--", "/"), commit
