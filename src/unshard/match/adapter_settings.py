"""What an adapter's tensors do not tell: its scale above all, which has no default.

In this order: adapter_config.json; verl's lora_train_meta.json; training parameters. What a person names
with `--lora-alpha` goes before them all, and is told where it contradicts them.

    scale = alpha / rank            or alpha / sqrt(rank), where it is rank-stabilised

Source:
    peft src/peft/tuners/lora/config.py, layer.py (`update_layer`), model.py (`alpha_pattern`), utils/other.py
    (`get_pattern_key`); verl/utils/checkpoint/fsdp_checkpoint_manager.py (`lora_train_meta.json`);
    Kalajdzievski, "A Rank Stabilization Scaling Factor" (arXiv:2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from unshard.checkpoint import Checkpoint, TrainingParameters
from unshard.errors import InputError, OptionError
from unshard.findings import Finding, finding
from unshard.match.adapter_parts import not_merged
from unshard.recipes.adapters import CHANGES_THE_BASE, CONFIG, OTHER_COMPUTATIONS
from unshard.sizes import counted
from unshard.storage.files import InputFile

OPTION = "--lora-alpha"
_VERL = "lora_train_meta.json"
_LARGEST = 4 << 20  # patterns name modules one by one, and rows token by token

# A pattern of a configuration is a regular expression that somebody else wrote. These few forms cannot
# take long: at most two repetitions, of one character each.
_SAFE_PATTERN = re.compile(r"\^?(?:\w|-|\\?\.(?![*+])|(?:\\d|\.)[*+]|\\d|[|]|\((?:\?:)?[\w|.-]+\))+\$?")
_REPETITION = re.compile(r"[*+]")
_LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class Scale:
    """What the product of the factors of one module is multiplied by.

    Attributes:
        value: The number.
        told: How it comes about, in words: "alpha 16 / rank 8".
    """

    value: float
    told: str


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What files tell of an adapter.

    Attributes:
        alpha: The numerator of its scale, or None where nothing tells it.
        origin: Who tells alpha, in words fit for a message.
        rank: The rank that files tell, or None.
        ranks: Other ranks, by patterns of modules.
        alphas: Other numerators, by patterns of modules.
        rank_stabilised: Whether alpha is divided by the root of the rank.
        transposed: Whether weights are said to be inputs x outputs; None where nothing says.
        config: adapter_config.json, or empty.
        config_path: Where it lies, or None.
        findings: What a person should know.
    """

    alpha: float | None
    origin: str
    rank: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    transposed: bool | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    config_path: Path | None = None
    findings: tuple[Finding, ...] = ()

    def scale_of(self, module: str, rank: int) -> Scale | None:
        """Return the scale of a module, or None where nothing tells alpha."""
        if self.alpha is None:
            return None
        alpha = self.alphas.get(pattern_of(self.alphas, module) or "", self.alpha)
        root = "sqrt(rank {})" if self.rank_stabilised else "rank {}"
        divisor = math.sqrt(rank) if self.rank_stabilised else rank
        return Scale(alpha / divisor, f"alpha {alpha:g} / {root.format(rank)}")

    def require_scale(self, ranks: Collection[int], modules: int, subject: object) -> None:
        """Raise where the scale of factors is not known; there is no default.

        Args:
            ranks: The ranks that tensors have.
            modules: How many modules have factors.
            subject: What the error is about.

        Raises:
            InputError: With the ranks that were found, and the option.
        """
        if not modules or self.alpha is not None:
            return
        error = InputError(
            subject,
            "holds an adapter, and nothing tells the scale that it was trained with",
            saw=f"rank {' and '.join(map(str, sorted(ranks)))} on {counted(modules, 'module')}, "
            "and no lora_alpha in adapter_config.json or training parameters",
            expected="lora_alpha: the weight becomes W + lora_alpha / rank * B @ A",
            hint=f"Put the run's {CONFIG} beside the checkpoint, or name the number: {OPTION} 16",
        )
        error.code = "U252"
        raise error

    def rank_of(self, module: str) -> int | None:
        """Return the rank that files tell of a module."""
        return self.ranks.get(pattern_of(self.ranks, module) or "", self.rank or 0) or None


def pattern_of(patterns: Mapping[str, object], module: str) -> str | None:
    """Return the first pattern that a module's name ends with, as PEFT matches them."""
    if len(module) > _LONGEST_NAME:
        return None
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)


def settings_of(checkpoint: Checkpoint, lora_alpha: float | None) -> AdapterSettings:
    """Return what the files around a checkpoint tell of its adapter.

    Args:
        checkpoint: The checkpoint.
        lora_alpha: What a person named, which goes before what files say.

    Raises:
        UnsupportedLayoutError: The configuration makes another computation of it.
        InputError: A file that should tell is damaged.
        OptionError: The number that was named means nothing.
    """
    if lora_alpha is not None and not (math.isfinite(lora_alpha) and lora_alpha > 0):
        raise OptionError(OPTION, "must be a positive number", saw=lora_alpha)
    found = _from_files(checkpoint)
    if lora_alpha is None:
        _require_positive(found)
        return found
    told: tuple[Finding, ...] = ()
    if found.alpha is not None and found.alpha != lora_alpha:
        told = (
            finding(
                "U259",
                subject=OPTION,
                saw=f"{lora_alpha:g}",
                expected=f"{found.alpha:g}, as {found.origin} says",
                remedy="Leave the option out to take what the file says.",
            ),
        )
    return replace(found, alpha=float(lora_alpha), origin=OPTION, findings=told)


def _require_positive(settings: AdapterSettings) -> None:
    """Raise where files tell a scale that would leave the adapter without effect.

    Raises:
        InputError: They do.
    """
    wrong = [
        alpha for alpha in (settings.alpha, *settings.alphas.values()) if alpha is not None and alpha <= 0
    ]
    if wrong:
        error = InputError(
            settings.origin,
            "tells a scale with which the adapter would have no effect",
            saw=f"lora_alpha {wrong[0]:g}",
            expected="the number that training used; some tools write 0 where they do not know it",
            hint=f"Name it with {OPTION}, for example {OPTION} 16.",
        )
        error.code = "U252"
        raise error


def _from_files(checkpoint: Checkpoint) -> AdapterSettings:
    if CONFIG in checkpoint.side_files:
        return settings_from_config(checkpoint.side_files[CONFIG])
    if _VERL in checkpoint.side_files:
        path = checkpoint.side_files[_VERL]
        meta = _read_object(path)
        return AdapterSettings(_number(meta.get("lora_alpha"), path), path.name, _whole(meta.get("r")))
    return _from_training(checkpoint.training)


def _from_training(training: TrainingParameters | None) -> AdapterSettings:
    """Return what training parameters say under keys that end in PEFT's words, if they agree.

    Raises:
        InputError: Two of them disagree.
    """
    found: dict[str, dict[str, str]] = {}
    for key, value in training.values.items() if training else ():
        found.setdefault(key.rpartition(".")[2], {})[key] = value
    alphas = found.get("lora_alpha", {})
    if training is None or not alphas:
        return AdapterSettings(None, "no file")
    if len(set(alphas.values())) > 1:
        raise InputError(
            training.path,
            "tells several scales of adapters",
            saw=", ".join(f"{key}: {value}" for key, value in alphas.items()),
            hint=f"Name the one that is meant with {OPTION}.",
        )
    key, text = next(iter(alphas.items()))
    ranks = [found[word] for word in ("lora_r", "lora_rank") if word in found]
    stabilised = {value.lower() for value in found.get("use_rslora", {}).values()}
    rank = _whole(_as_number(next(iter(ranks[0].values())))) if ranks else None
    return AdapterSettings(
        _number(_as_number(text), training.path),
        f"{key} in {training.path.name}",
        rank,
        rank_stabilised=stabilised == {"true"},
    )


def settings_from_config(path: Path) -> AdapterSettings:
    """Return what adapter_config.json says.

    Raises:
        UnsupportedLayoutError: It is not of LoRA, or of a variant that computes something else.
        InputError: It is damaged, or has values that mean nothing.
    """
    config = _read_object(path)
    _require_lora(path, config)
    alpha, alphas = config.get("lora_alpha"), _pattern_numbers(path, config, "alpha_pattern")
    transposed = config.get("fan_in_fan_out")
    return AdapterSettings(
        alpha=None if alpha is None else _number(alpha, path),
        origin=path.name,
        rank=_whole(config.get("r")),
        ranks={key: int(value) for key, value in _pattern_numbers(path, config, "rank_pattern").items()},
        alphas=alphas,
        rank_stabilised=config.get("use_rslora") is True,
        transposed=transposed if isinstance(transposed, bool) else None,
        config=config,
        config_path=path,
    )


def _require_lora(path: Path, config: Mapping[str, object]) -> None:
    kind = config.get("peft_type", "LORA")
    others = [title for key, title in OTHER_COMPUTATIONS.items() if config.get(key)]
    if kind not in ("LORA", "TRAINABLE_TOKENS") or others:
        raise not_merged(
            path,
            "describes an adapter of a kind that is recognised, and not merged",
            others[0] if others else f"peft_type {str(kind)[:40]}",
            "peft_type LORA, with or without DoRA, rank stabilisation and trainable tokens",
        )


def changes_the_base(config: Mapping[str, object]) -> str | None:
    """Return how the adapter was begun, where that changed the base's own weights, else None."""
    how = config.get("init_lora_weights")
    return how if isinstance(how, str) and how.lower().startswith(CHANGES_THE_BASE) else None


def _pattern_numbers(path: Path, config: Mapping[str, object], key: str) -> dict[str, float]:
    """Return numbers by patterns of modules.

    Raises:
        InputError: A pattern is not of the few forms that are read, or a value is no number.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise InputError(path, f"has a `{key}` that is no object", saw=type(patterns).__name__)
    for pattern in patterns:
        if not _SAFE_PATTERN.fullmatch(pattern) or len(_REPETITION.findall(pattern)) > 2:
            raise InputError(
                path,
                f"has a pattern in `{key}` that is not read",
                saw=pattern[:80],
                expected="names of modules, maybe with `.*` or `\\d+` in them",
                hint="Write the names of the modules out in its place.",
            )
    return {pattern: _number(value, path) for pattern, value in patterns.items()}


def _read_object(path: Path) -> dict[str, object]:
    """Return a small JSON object.

    Raises:
        InputError: It is none.
    """
    file = InputFile.describe(path)
    try:
        parsed = json.loads(file.read(0, file.size)) if file.size <= _LARGEST else None
    except (ValueError, RecursionError) as error:
        raise InputError(path, "is not valid JSON", saw=str(error)[:80]) from error
    if not isinstance(parsed, dict):
        raise InputError(
            path, "is not an adapter's configuration", saw=f"{file.size:,} bytes, no JSON object"
        )
    return parsed


def _number(value: object, path: Path) -> float:
    """Return a finite number.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(path, "has a number for an adapter that is none", saw=repr(value)[:40])
    return float(value)


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def token_indices(settings: AdapterSettings, module: str) -> list[int] | None:
    """Return which rows of an embedding were trained, in the order of the rows; None where nothing tells."""
    told = settings.config.get("trainable_token_indices") or settings.config.get("token_indices")
    if isinstance(told, Mapping):
        fitting: Iterator[object] = (v for k, v in told.items() if module == k or module.endswith(f".{k}"))
        told = next(fitting, None)
    if not isinstance(told, list) or not all(type(index) is int and index >= 0 for index in told):
        return None
    return told
