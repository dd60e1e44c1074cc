"""An adapter by itself, as PEFT publishes it: its own tensors under published names, and what they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.dtypes import DTYPES
from unshard.errors import InputError, OptionError
from unshard.findings import finding
from unshard.match.adapter_completeness import require_magnitudes
from unshard.match.adapter_fitting import require_whole
from unshard.match.adapter_parts import LAYOUT, AdapterParts, ranks_of, take_apart
from unshard.match.adapter_settings import OPTION, AdapterSettings, settings_of
from unshard.match.adapter_words import in_words
from unshard.match.model import Decision, Model
from unshard.match.restored import Choices
from unshard.recipes.adapters import CONFIG, parse_adapter_name, published_name, without_prefix
from unshard.tensors import CastTensor, DescribedTensor, Tensor

_EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """An adapter as it will be written.

    Attributes:
        model: Its tensors by their published names, and a decision about every tensor of the checkpoint.
        config: The content of adapter_config.json.
        edits: Keys of it that a person contradicts, and their new values.
        origin: Where the content comes from, in words.
    """

    model: Model
    config: bytes
    edits: Mapping[str, object]
    origin: str


def keep_adapter(checkpoint: Checkpoint, base: Base | None, choices: Choices) -> KeptAdapter:
    """Return the adapter in a checkpoint, by itself.

    Raises:
        OptionError: There is none.
        UnsupportedLayoutError: It is of a kind that is not known well enough.
        AmbiguousModelError: There are several, and nothing says which one is meant.
        InputError: Nothing tells its scale, or which rows of an embedding it holds.
        MatchError: Parts of it are missing.
    """
    parts = take_apart(checkpoint.tensors, checkpoint.path, is_adapter=checkpoint.layout.name == LAYOUT)
    if parts is None:
        raise OptionError(
            "--adapter",
            "has nothing to keep: the checkpoint holds no adapter",
            saw=f"{len(checkpoint.tensors)} tensors, none of an adapter",
            hint="Leave the option out.",
        )
    settings = settings_of(checkpoint, choices.lora_alpha)
    ranks = ranks_of(parts, checkpoint.tensors)
    settings.require_scale(ranks, len(parts.factors), checkpoint.path)
    require_whole(parts.factors, checkpoint.tensors, checkpoint.path)
    require_magnitudes(parts, settings, checkpoint.path)
    own = _own(parts, settings, checkpoint.tensors, base)
    names = {name: published_name(name, parts.adapter) for name in own}
    tensors = {target: _typed(checkpoint.tensors[name], choices.dtype) for name, target in names.items()}
    words = ", ".join(in_words(parts, settings, checkpoint.tensors))
    told = finding("U258", subject="adapter", saw=words)
    model = Model(
        tensors,
        {target: (name,) for name, target in names.items()},
        tuple(_decisions(checkpoint, names, tensors)),
        {},
        (*settings.findings, told),
    )
    if settings.config_path is None:
        return KeptAdapter(model, _new_config(parts, settings, checkpoint, base), {}, "made of the tensors")
    content = settings.config_path.read_bytes()
    edits = {"lora_alpha": settings.alpha} if settings.origin == OPTION else {}
    return KeptAdapter(model, content, edits, "the run's own" + (", lora_alpha edited" if edits else ""))


def _own(
    parts: AdapterParts,
    settings: AdapterSettings,
    tensors: Mapping[str, DescribedTensor],
    base: Base | None,
) -> Iterator[str]:
    """Yield the names in the checkpoint of what is the adapter's, in the checkpoint's order.

    An embedding that was resized belongs to it, too: the base has other rows. So does the weight of an
    embedding that has factors, if it has one of the names that PEFT looks for.

    Source:
        peft src/peft/utils/save_and_load.py (`get_peft_model_state_dict`), src/peft/utils/constants.py
        (`EMBEDDING_LAYER_NAMES`).
    """
    own = {name for each in parts.factors for name in each.names}
    own |= {*parts.saved.values(), *parts.tokens.values()}
    if settings.config.get("bias") in ("all", "lora_only"):
        modules = {each.module for each in parts.factors}
        own |= {
            name
            for plain, name in parts.plain.items()
            if plain.endswith(".bias")
            and (settings.config["bias"] == "all" or plain.removesuffix(".bias") in modules)
        }
    if not parts.tokens:
        layers = (f"{e.module}.weight" for e in parts.factors if e.module.rpartition(".")[2] in _EMBEDDINGS)
        own |= {parts.plain[plain] for plain in layers if plain in parts.plain}
    expected = {} if base is None or base.expected is None else base.expected
    own |= {
        name
        for plain, name in parts.plain.items()
        if plain in expected and expected[plain].shape not in (None, tensors[name].shape)
    }
    tied = _tied_rows(parts, tensors)
    yield from (name for name in tensors if name in own and name not in tied)


def _tied_rows(parts: AdapterParts, tensors: Mapping[str, DescribedTensor]) -> set[str]:
    """Return trained rows that are those of another embedding again, which PEFT saves once."""
    first, *others = list(parts.tokens.values()) or [""]
    return {name for name in others if tensors[name].pieces == tensors[first].pieces}


def _typed(tensor: DescribedTensor, policy: str) -> Tensor:
    """Return a tensor in the dtype that was asked for; without one, it stays as it is."""
    dtype = DTYPES.get(policy)
    if dtype is None or tensor.dtype.kind != "float" or tensor.dtype == dtype:
        return tensor
    return CastTensor(tensor, dtype)


def _decisions(
    checkpoint: Checkpoint, names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Iterator[Decision]:
    for name in checkpoint.tensors:
        target = names.get(name)
        if target is None:
            yield Decision(name, None, "of the model, which an adapter is kept without")
            continue
        tensor = tensors[target]
        cast = f"cast from {tensor.source.dtype} to {tensor.dtype}" if isinstance(tensor, CastTensor) else ""
        yield Decision(name, target, ", ".join(filter(None, ["" if target == name else "renamed", cast])))


def _new_config(
    parts: AdapterParts, settings: AdapterSettings, checkpoint: Checkpoint, base: Base | None
) -> bytes:
    """Return an adapter_config.json for a run that left none: complete, and nothing in it guessed.

    Raises:
        InputError: It would have to be guessed which rows of an embedding were trained, or which
            parameters factors of experts belong to.
    """
    guessed = [
        *parts.tokens.values(),
        *(f.a for f in parts.factors if parts.plain and f"{f.module}.weight" not in parts.plain),
    ]
    if guessed:
        raise InputError(
            checkpoint.path,
            f"holds an adapter that only its {CONFIG} explains",
            saw=f"`{guessed[0]}`",
            expected="which rows, or which parameters, it belongs to",
            hint=f"Put the run's {CONFIG} beside the checkpoint.",
        )
    shapes = {each.module: checkpoint.tensors[each.a].shape for each in parts.factors}
    ranks = {module: shape[0] for module, shape in shapes.items()}
    rank = max(ranks.values(), key=list(ranks.values()).count, default=settings.rank or 1)
    architectures = None if base is None else base.config.get("architectures")
    causal = isinstance(architectures, list) and str(architectures[:1]).endswith("ForCausalLM']")
    hint = next((hint.reference for hint in checkpoint.base_hints), None)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": base.reference if base is not None else hint,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {},
        "use_rslora": settings.rank_stabilised,
        "use_dora": any(each.magnitude for each in parts.factors),
        "fan_in_fan_out": settings.transposed is True,
        "bias": "none",
        "target_modules": _short(ranks, checkpoint.tensors),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in parts.saved}) or None,
        "init_lora_weights": True,
    }
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _short(targets: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the last words of modules, as configurations list them, where these mean no others, too."""
    chosen = set(targets)
    modules = {_module(name) for name in names}
    words = {module.rpartition(".")[2] for module in chosen}
    alike = {module for module in modules if module.rpartition(".")[2] in words}
    has_all = len(modules) > len(chosen)
    return sorted(words) if has_all and alike <= chosen else sorted(chosen)


def _module(name: str) -> str:
    bare = without_prefix(name)
    parsed = parse_adapter_name(bare)
    return bare.rpartition(".")[0] if parsed is None else parsed.module
