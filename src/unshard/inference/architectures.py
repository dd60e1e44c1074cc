"""Which class of transformers a model is, and the configuration it is built from.

Only classes that transformers itself ships are used; code that lies in a model's folder or on the
hub is never run, whatever the configuration asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import transformers

from unshard.base.configuration import read_config
from unshard.errors import BaseModelError, InferenceError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# These keys may name a kernel on the hub, which transformers would download and run.
_CODE_KEYS = frozenset(("attn_implementation", "experts_implementation"))


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration in `folder`, as transformers understands it.

    Raises:
        InferenceError: There is none, it asks for code, or transformers does not know its model type.
    """
    path = folder / "config.json"
    try:
        _, parsed = read_config(path)
    except BaseModelError as error:
        raise InferenceError(path, error.problem, saw=error.saw, hint=error.hint) from error
    for key, value in _walk(parsed):
        if key in _CODE_KEYS and "/" in str(value):
            raise InferenceError(
                path,
                f"asks for code from the hub with `{key}`",
                saw=value,
                hint=f"Remove `{key}` from the configuration; the model's own implementation is used then.",
            )
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InferenceError(
            path,
            f"is not a configuration that transformers {transformers.__version__} can use",
            saw=_first_line(error),
            hint="A newer transformers may know the model; code from the model's folder is never run.",
        ) from error


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that `architectures` names; without it, the causal language model of the type.

    Raises:
        InferenceError: transformers has no such class.
    """
    # FSDP2 wraps a model by changing its class, and some trainers save that class's name.
    named = str((config.architectures or [""])[0]).removeprefix("FSDP")
    found = getattr(transformers, named, None) if named else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if is_model and isinstance(config, getattr(found, "config_class", None) or ()):
        return cast("type[PreTrainedModel]", found)
    # Some configurations are read as those of another model type than the one they name.
    if not named or named.endswith("ForCausalLM"):
        causal: Mapping[type, type[PreTrainedModel]] = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        if type(config) in causal:
            return causal[type(config)]
    raise InferenceError(
        named or config.model_type,
        f"is not a model of transformers {transformers.__version__}",
        saw=f"model type {config.model_type}",
        hint="Only classes that transformers ships can be run; update it, or serve the converted folder.",
    )


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """Yield every key with its value, at every depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _first_line(error: BaseException) -> str:
    """Return what an error says, without its advice."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
