"""Rotary frequencies: computed from a configuration, and compared with those a checkpoint holds.

Source:
    Su et al., "RoFormer", section 3.3 (arXiv:2104.09864); Peng et al., "YaRN", section 3.2
    (arXiv:2309.00071); Ding et al., "LongRoPE" (arXiv:2402.13753); the scaling of Llama 3.1;
    transformers 5.23, modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unshard.base.configuration import Config, lookup, text_levels

if TYPE_CHECKING:
    import numpy as np

_DEFAULT_THETA = 10000.0  # of every family whose configuration may leave it out

# Rounding of the stored numbers, and 2**-19 for the float32 arithmetic they were computed with: one
# rounding of the exponent, magnified by ln(theta) < 20, a power, a division, and the scaling.
_ARITHMETIC = 2.0**-19


@dataclass(frozen=True, slots=True)
class Rotary:
    """One way in which a configuration lets rotary frequencies be computed.

    Attributes:
        kind: `default`, `linear`, `dynamic`, `llama3`, `yarn`, `longrope` or `proportional`.
        theta: The base of the powers.
        dimensions: Rotated dimensions; half as many frequencies. None where any number will do.
        settings: The numbers that the kind needs besides.
    """

    kind: str
    theta: float
    dimensions: int | None
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """What a person calls it."""
        kind = "" if self.kind == "default" else f", {self.kind} scaling"
        return f"theta {self.theta:g}{kind}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing stored frequencies with a configuration; `fits` is None if it cannot be."""

    fits: bool | None
    evidence: str


def rotary_variants(config: Config, name: str) -> tuple[Rotary, ...]:
    """Return every way in which a model of this configuration computes the frequencies called `name`.

    Models that alternate kinds of attention have several; parts that see pictures have their own.
    """
    if any(part in name for part in ("visual", "vision", "image")):
        return (Rotary("default", _DEFAULT_THETA, None),)
    dimensions = _rotated_dimensions(config)
    variants = []
    for theta, scaling in _parameter_sets(config):
        kind = str(scaling.get("rope_type", scaling.get("type", "default")))
        settings = {**_surroundings(config), **scaling}
        own = _share(scaling.get("partial_rotary_factor"))
        kind = {"su": "longrope", "mrope": "default", "ntk": "dynamic"}.get(kind, kind)
        for size in dimensions:
            scaled = (
                int(size * float(own)) if isinstance(own, int | float) and kind != "proportional" else size
            )
            variants.append(Rotary(kind, theta, scaled, settings))
    return tuple(variants)


def compare_frequencies(stored: np.ndarray, variants: tuple[Rotary, ...]) -> Comparison:
    """Return whether `stored` are frequencies that one of the variants gives, within their rounding.

    Args:
        stored: Frequencies as float64, exactly as stored.
        variants: What the configuration allows.
    """
    import numpy as np

    rounding = _rounding_of(stored)
    known = [variant for variant in variants if _known(variant)]
    for variant in known:
        if variant.dimensions not in (None, 2 * stored.size):
            continue
        for wanted in _safe_frequencies(variant, stored.size):
            close = np.abs(stored - wanted) <= (rounding + _ARITHMETIC) * np.abs(wanted) + 2.0**-25
            if bool(close.all()):
                return Comparison(fits=True, evidence=variant.title)
        if variant.kind == "dynamic" and _is_grown(stored, variant):
            return Comparison(fits=True, evidence=variant.title)
    if len(known) < len(variants) or not variants:
        kinds = sorted({variant.kind for variant in variants} - {variant.kind for variant in known})
        return Comparison(fits=None, evidence=f"scaling of kind {', '.join(kinds) or 'unknown'}")
    return Comparison(fits=False, evidence=_implied(stored))


def _parameter_sets(config: Config) -> Iterator[tuple[float, Mapping[str, object]]]:
    """Yield (theta, scaling) of every set of rotary parameters in a configuration, old and new spelling."""
    theta = lookup(config, "rope_theta")
    outer = float(theta) if isinstance(theta, int | float) else None
    found = False
    for _, level in reversed(text_levels(config)):
        for key in ("rope_parameters", "rope_scaling"):
            scaling = level.get(key)
            if not isinstance(scaling, Mapping):
                continue
            nested = [inner for inner in scaling.values() if isinstance(inner, Mapping)]
            for parameters in nested or [scaling]:
                own = parameters.get("rope_theta")
                found = True
                yield float(own) if isinstance(own, int | float) else outer or _DEFAULT_THETA, parameters
        for key in ("rope_local_base_freq", "local_rope_theta", "global_rope_theta"):
            local = level.get(key)
            if isinstance(local, int | float):
                yield float(local), {}
    if not found or (outer is not None and _has_plain_layers(config)):
        yield outer or _DEFAULT_THETA, {}


def _has_plain_layers(config: Config) -> bool:
    """Return whether some layers may rotate without the scaling of the others."""
    return lookup(config, "sliding_window") is not None


def _rotated_dimensions(config: Config) -> list[int]:
    """Return how many dimensions of a head may be rotated: heads of one model can differ."""
    hidden, heads = lookup(config, "hidden_size"), lookup(config, "num_attention_heads")
    sizes = [lookup(config, key) for key in ("qk_rope_head_dim", "rotary_dim", "head_dim", "global_head_dim")]
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        sizes.append(hidden // heads)
    factor = _share(lookup(config, "partial_rotary_factor"))
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    parts = [int(size * factor) for size in whole] if factor is not None else []
    return list(dict.fromkeys([*parts, *whole]))


def _share(value: object) -> float | None:
    """Return which share of a head's dimensions is rotated, or None where that is not said."""
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def _surroundings(config: Config) -> dict[str, object]:
    """Return what kinds of scaling may need from outside their own parameters."""
    keys = ("max_position_embeddings", "original_max_position_embeddings", "head_dim")
    return {key: value for key in keys if (value := lookup(config, key)) is not None}


def _number(variant: Rotary, key: str) -> float | None:
    value = variant.settings.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": (),
    "proportional": (),
}


def _known(variant: Rotary) -> bool:
    """Return whether everything that the kind needs is there."""
    if variant.kind == "longrope":
        return all(isinstance(variant.settings.get(key), list) for key in ("short_factor", "long_factor"))
    return (
        variant.theta > 1
        and variant.kind in _NEEDS
        and all(_number(variant, key) for key in _NEEDS[variant.kind])
    )


def _safe_frequencies(variant: Rotary, count: int) -> list[np.ndarray]:
    """Return what `_frequencies` does, and nothing where the numbers of a configuration are absurd."""
    try:
        return _frequencies(variant, count)
    except (ValueError, OverflowError, ZeroDivisionError):
        return []


def _frequencies(variant: Rotary, count: int) -> list[np.ndarray]:
    """Return every set of `count` frequencies that a variant gives; long contexts may have their own."""
    import numpy as np

    plain: np.ndarray = variant.theta ** (-np.arange(count, dtype=np.float64) / count)
    match variant.kind:
        case "linear":
            return [plain / (_number(variant, "factor") or 1.0)]
        case "llama3":
            return [_llama3(plain, variant)]
        case "yarn":
            return [_yarn(plain, variant)]
        case "longrope":
            return _longrope(plain, variant)
        case "proportional":
            turning = int((_number(variant, "partial_rotary_factor") or 1.0) * count)
            return [np.where(np.arange(count) < turning, plain, 0.0) / (_number(variant, "factor") or 1.0)]
    return [plain]


def _llama3(plain: np.ndarray, variant: Rotary) -> np.ndarray:
    import numpy as np

    factor, low, high, context = (_number(variant, key) or 1.0 for key in _NEEDS["llama3"])
    turns = context * plain / (2 * math.pi)  # whole turns within the original context
    share = np.clip((turns - low) / ((high - low) or 1.0), 0, 1)
    return np.asarray((1 - share) * plain / factor + share * plain)


def _yarn(plain: np.ndarray, variant: Rotary) -> np.ndarray:
    import numpy as np

    count, theta = plain.size, variant.theta
    context = _number(variant, "original_max_position_embeddings") or _number(
        variant, "max_position_embeddings"
    )
    factor = _number(variant, "factor") or 1.0

    def dimension(turns: float) -> float:
        return count * math.log((context or 1.0) / (turns * 2 * math.pi)) / math.log(theta)

    low = dimension(_number(variant, "beta_fast") or 32)
    high = dimension(_number(variant, "beta_slow") or 1)
    if variant.settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    ramp = np.clip((np.arange(count) - low) / ((high - low) or 0.001), 0, 1)
    return np.asarray(plain / factor * ramp + plain * (1 - ramp))


def _longrope(plain: np.ndarray, variant: Rotary) -> list[np.ndarray]:
    import numpy as np

    factors = (variant.settings[key] for key in ("short_factor", "long_factor"))
    lists = [np.asarray(numbers, dtype=np.float64) for numbers in factors]
    return [plain / numbers for numbers in lists if numbers.shape == plain.shape]


def _is_grown(stored: np.ndarray, variant: Rotary) -> bool:
    """Return whether these are frequencies that grew with a longer text, as dynamic scaling does."""
    theta = _fitted_theta(stored)
    return theta is not None and theta >= variant.theta


def _rounding_of(stored: np.ndarray) -> float:
    """Return the relative rounding of the stored numbers, which may be narrower than their dtype.

    A model that trained in bfloat16 and was saved in float32 holds bfloat16 values.
    """
    import numpy as np

    single = stored.astype(np.float32)
    if not (single.view(np.uint32) & 0xFFFF).any():
        return 2.0**-8
    if np.array_equal(single.astype(np.float16).astype(np.float32), single):
        return 2.0**-11
    return 2.0**-24


def _fitted_theta(stored: np.ndarray) -> float | None:
    """Return the theta whose plain powers these are, or None where there is none."""
    import numpy as np

    if stored.size < 2 or not (stored > 0).all() or not np.isfinite(stored).all():
        return None
    exponents = np.arange(stored.size) / stored.size
    theta = float(np.exp(-np.log(stored[-1] / stored[0]) / exponents[-1]))
    wanted = stored[0] * theta**-exponents
    return theta if bool((np.abs(stored - wanted) <= 2.0**-6 * wanted).all()) else None


def _implied(stored: np.ndarray) -> str:
    """Return what the stored frequencies are, in words."""
    theta = _fitted_theta(stored)
    if theta is None:
        return (
            f"{stored.size} frequencies that follow no single theta, from {stored[0]:.4g} to {stored[-1]:.4g}"
        )
    digits = 5 if _rounding_of(stored) < 2.0**-20 else 2
    scale = "" if abs(stored[0] - 1) < 2.0**-7 else f", scaled by 1/{1 / stored[0]:.4g}"
    return f"{stored.size} frequencies of theta {float(f'{theta:.{digits}g}'):g}{scale}"
