"""Which engines stumble over a model folder, and over what: a table of conditions, one row each.

Source:
    mlx-lm 0.32.2, models/llama.py (`ModelArgs`); mistral.rs 0.9.5, which names the field it lacks;
    transformers 4.57, models/llama/configuration_llama.py; vllm 0.32, transformers_utils/config.py and
    model_executor/model_loader. The tests load folders in mlx-lm and mistral.rs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from unshard.base.configuration import Config, text_levels
from unshard.checks.evidence import Check, Evidence
from unshard.findings import Finding, finding
from unshard.model_folder import ModelFolder

_ADD = "Add torch_dtype with the same value to config.json."
_BOTH = "Write both spellings, as conversion does: unshard mend FOLDER --in-place"
# What engines take where `rope_theta` is not at the place at which they look.
_ASSUMED_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing over which some engines stumble.

    Attributes:
        code: U640 where they refuse the folder, U641 where they load it and compute otherwise.
        engines: Which, in words.
        says: What is in the folder, or None where the obstacle is not there.
        expected: What these engines need.
        remedy: What to do.
    """

    code: str
    engines: str
    says: Callable[[ModelFolder, Config], str | None]
    expected: str
    remedy: str


def _new_rope(config: Config) -> Mapping[str, object] | None:
    """Return rotary parameters that stand only in the spelling of transformers 5."""
    for _, level in text_levels(config):
        rope = level.get("rope_parameters")
        if isinstance(rope, Mapping) and "rope_theta" not in level:
            return rope
    return None


def _thetas(rope: Mapping[str, object]) -> set[object]:
    inner = [value for value in rope.values() if isinstance(value, Mapping)]
    return {
        level["rope_theta"] for level in (rope, *inner) if isinstance(level.get("rope_theta"), int | float)
    }


def _refused_rope(folder: ModelFolder, config: Config) -> str | None:
    return (
        None
        if not _new_rope(config)
        else "rope_parameters, and no rope_theta beside it: missing field `rope_theta`"
    )


def _other_rope(folder: ModelFolder, config: Config) -> str | None:
    rope = _new_rope(config)
    if not rope:
        return None
    thetas = _thetas(rope)
    scaled = rope.get("rope_type") not in (None, "default")
    if not scaled and thetas <= {_ASSUMED_THETA}:
        return None
    said = ", ".join(sorted(map(str, thetas))) or "none"
    return f"rope_parameters with rope_theta {said}, no rope_theta beside it: these take {_ASSUMED_THETA:.0f}"


def _experts(folder: ModelFolder, config: Config) -> str | None:
    moe = str(config.get("model_type")) in ("qwen2_moe", "qwen3_moe", "olmoe", "qwen3_next")
    return "num_local_experts, and no num_experts" if moe and "num_experts" not in config else None


def _new_dtype(folder: ModelFolder, config: Config) -> str | None:
    said = config.get("dtype")
    is_told = said in (None, "float32") or "torch_dtype" in config  # float32 is what these assume
    return None if is_told else f"dtype {str(said)[:20]}, and no torch_dtype"


def _no_safetensors(folder: ModelFolder, config: Config) -> str | None:
    names = [file.name for file in folder.weights]
    return None if not names or names[0].endswith(".safetensors") else f"weights in {names[0][-20:]}"


def _no_fast_tokenizer(folder: ModelFolder, config: Config) -> str | None:
    return None if "tokenizer.json" in folder.names else "no tokenizer.json"


def _experts_together(folder: ModelFolder, config: Config) -> str | None:
    kind = str(config.get("model_type"))
    fused = any(name.endswith("mlp.experts.gate_up_proj") for file in folder.weights for name in file.tensors)
    return (
        "the experts of a layer in one tensor" if fused and kind not in ("gpt_oss", "qwen3_vl_moe") else None
    )


OBSTACLES: tuple[Obstacle, ...] = (
    Obstacle("U640", "mistral.rs", _refused_rope, "rope_theta", _BOTH),
    Obstacle("U641", "mlx-lm, transformers 4", _other_rope, "rope_theta beside rope_parameters", _BOTH),
    Obstacle("U640", "mlx-lm", _experts, "num_experts", _BOTH),
    Obstacle("U641", "transformers before 4.56", _new_dtype, "torch_dtype, else float32 is loaded", _ADD),
    Obstacle(
        "U640", "mlx-lm, mistral.rs", _no_safetensors, "safetensors", "Convert it: unshard mend FOLDER OUT"
    ),
    Obstacle(
        "U640",
        "mistral.rs",
        _no_fast_tokenizer,
        "tokenizer.json",
        "Write it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    ),
    Obstacle(
        "U640",
        "vLLM, SGLang, mlx-lm, mistral.rs, llama.cpp, transformers 4",
        _experts_together,
        "every expert by itself, as published",
        "Write the published names: unshard mend FOLDER OUT --layout hub",
    ),
)


def _check_engines(evidence: Evidence) -> Iterator[Finding]:
    """Yield what engines stumble over, one finding for every obstacle that is there."""
    folder = evidence.folder
    config = folder.json("config.json") if folder else None
    if folder is None or config is None:
        return
    for obstacle in OBSTACLES:
        if saw := obstacle.says(folder, config):
            yield finding(
                obstacle.code,
                subject=obstacle.engines,
                saw=saw,
                expected=obstacle.expected,
                remedy=obstacle.remedy,
            )


CHECKS: tuple[Check, ...] = (Check("serving.engines", ("U640", "U641"), _check_engines),)
