"""What a model needs, told by its class in transformers, built without weights (extra `hf`).

Source:
    transformers 5.23: `PreTrainedModel.all_tied_weights_keys`,
    `core_model_loading.revert_weight_conversion` (from the names of memory to those of published files),
    `_keep_in_fp32_modules`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from unshard.base.configuration import lookup
from unshard.base.conversion_tables import read_recipe
from unshard.base.description import ExpectedTensor
from unshard.base.expectation import Expectation
from unshard.dtypes import DTYPES, DType
from unshard.recipes.experts import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_Answer = TypeVar("_Answer")

# Keys that make transformers fetch other code, or build quantised layers; the dtype is given apart.
_UNWANTED_KEYS = frozenset(
    (
        "auto_map",
        "trust_remote_code",
        "_attn_implementation",
        "_attn_implementation_internal",
        "quantization_config",
        "dtype",
        "torch_dtype",
    )
)


def expected_from_class(config: Mapping[str, object]) -> Expectation | None:
    """Return what the class named by a configuration needs, or None where it cannot be asked.

    It cannot where transformers is not installed, does not know the class, or cannot build it from
    this configuration. Code that comes with a model is never run.

    Memory:
        No tensor is allocated; importing torch and transformers takes some 350 MB.
    """
    return _asked(config, _describe)


def registered_from_class(config: Mapping[str, object]) -> dict[str, tuple[int, ...]] | None:
    """Return the parameters of a class by their names in memory, each once, as it registers them.

    None where the class cannot be asked.
    """
    return _asked(config, _registered)


def recipe_from_class(config: Mapping[str, object]) -> Recipe | None:
    """Return how the class named by a configuration translates names, or None where it cannot be asked.

    What no recipe can say (tensors that are padded, interleaved or permuted) is left out of it; the
    names that are then left over keep the recipe from being used.
    """
    return _asked(config, _recipe) or _recipe_of_type(config)


def _asked(config: Mapping[str, object], question: Callable[[PreTrainedModel], _Answer]) -> _Answer | None:
    """Return what a model without weights answers, or None where there is no such model."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        return None
    try:
        import torch
        import transformers
    except ImportError:
        return None
    with _quietly():
        try:
            model_class: Any = getattr(transformers, names[0].removeprefix("FSDP"))
            settings = transformers.AutoConfig.for_model(**_plain(config))
            with torch.device("meta"):
                model = model_class._from_config(settings, dtype=_dtype(config))
            return question(model)
        except Exception:  # noqa: BLE001 a class of another version fails in any way it likes
            return None


def _plain(config: Mapping[str, object]) -> dict[str, Any]:
    """Return a configuration without what would make transformers do more than build a class."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _UNWANTED_KEYS
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what transformers has to say about a configuration from the person who did not ask."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)


def _dtype(config: Mapping[str, object]) -> torch.dtype:
    """Return the dtype that a configuration names; float32 where it names none."""
    import torch

    dtype = getattr(torch, str(lookup(config, "dtype")).removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def _describe(model: PreTrainedModel) -> Expectation:
    """Return what a model on the meta device needs, under the names of published files."""
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    state = dict(model.state_dict())
    for pattern in model._keys_to_ignore_on_save or ():
        state.pop(pattern, None)
    tied = {alias: kept for alias, kept in model.all_tied_weights_keys.items() if alias in state}
    buffers = {name for name, _ in model.named_buffers()}
    published = revert_weight_conversion(model, {k: v for k, v in state.items() if k not in tied})
    tensors = {
        name: ExpectedTensor(tuple(tensor.shape), _published_dtype(model, name, tensor), name in buffers)
        for name, tensor in published.items()
    }
    ties = {
        _published_name(model, alias, state[alias]): _published_name(model, kept, state[alias])
        for alias, kept in tied.items()
    }
    origin = f"the class {type(model).__name__} of transformers {transformers.__version__}"
    return Expectation(tensors, origin, ties, in_order=list(published) == [n for n in state if n not in tied])


def _registered(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    tied = model.all_tied_weights_keys
    return {name: tuple(p.shape) for name, p in model.named_parameters() if name not in tied}


def _published_name(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> str:
    """Return the name that a single tensor has in published files."""
    from transformers.core_model_loading import revert_weight_conversion

    return str(next(iter(revert_weight_conversion(model, {name: tensor}))))


def _published_dtype(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> DType:
    """Return a tensor's dtype, float32 for the modules that a class keeps so."""
    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype.name == "float16":
        kept |= set(model._keep_in_fp32_modules or ())
    if dtype.kind == "float" and any(re.search(rf"(^|\.){re.escape(part)}(\.|$)", name) for part in kept):
        return DTYPES["float32"]
    return dtype


def _recipe_of_type(config: Mapping[str, object]) -> Recipe | None:
    """Return what transformers translates for a model type, where it cannot build the class."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return None
    found = get_checkpoint_conversion_mapping(config.get("model_type"))
    return None if found is None else read_recipe(found)


def _recipe(model: PreTrainedModel) -> Recipe:
    """Return how a model translates names, as data."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return read_recipe(get_model_conversion_mapping(model, add_legacy=False))
