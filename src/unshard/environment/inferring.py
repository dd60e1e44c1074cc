"""What a checkpoint without a record tells of its training: each fact with what it is inferred from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.checkpoint import Checkpoint, TrainingParameters
from unshard.dtypes import DTYPES
from unshard.environment.description import Fact
from unshard.environment.inferring_versions import versions_of_files
from unshard.match.dtype_policy import main_dtype
from unshard.readers.rendering import cut
from unshard.recipes.adapters import CONFIG as ADAPTER_CONFIG

_YES = frozenset(("true", "yes", "1", "on"))
# Keys of training parameters that name the number format which training computes in. llama-recipes says it
# by flags, of which `use_fp16` wins and `mixed_precision` means bfloat16 without it.
_FLAGS = (
    ("use_fp16", "float16"),
    ("fp16", "float16"),
    ("pure_bf16", "bfloat16"),
    ("bf16", "bfloat16"),
    ("mixed_precision", "bfloat16"),
)
_FORMATS = ("precision", "mixed_precision", "torch_dtype", "dtype", "compute_dtype")
_SPELLINGS = {
    "bf16": "bfloat16",
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
    "fp16": "float16",
    "16-mixed": "float16",
    "16-true": "float16",
    "half": "float16",
    "fp32": "float32",
    "32": "float32",
    "32-true": "float32",
}
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "attention_implementation")
_FLASH_FLAGS = ("flash_attention", "use_flash_attention_2", "use_flash_attn", "flash_attn")
_QUANTISATION_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "gptq": "gptqmodel",
    "awq": "autoawq",
    "compressed-tensors": "compressed-tensors",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "fbgemm_fp8": "fbgemm-gpu",
}


def facts_of_checkpoint(checkpoint: Checkpoint, config: Mapping[str, object]) -> dict[str, Fact]:
    """Return everything that a checkpoint and what lies around it tell, by aspect."""
    facts: dict[str, Fact] = {}
    for aspect, fact in _told(checkpoint, config):
        facts.setdefault(aspect, fact)  # the surest comes first
    return facts


def package_of_method(method: str) -> str | None:
    """Return the package that computes with weights quantised by a method of config.json."""
    return _QUANTISATION_PACKAGES.get(method)


def quantisation_method(config: Mapping[str, object]) -> str | None:
    """Return the method by which config.json says that weights are quantised, or None."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return cut(method) if isinstance(method, str) else None


def _told(checkpoint: Checkpoint, config: Mapping[str, object]) -> Iterator[tuple[str, Fact]]:
    yield from versions_of_files(checkpoint, config)
    if checkpoint.layout.writer is not None:
        evidence = checkpoint.layout.evidence[-1] if checkpoint.layout.evidence else "its layout"
        yield "trainer", Fact(checkpoint.layout.writer, evidence)
    tags = sorted(tag for tag in checkpoint.traces.devices if tag.startswith(("cuda", "xpu", "mps")))
    if tags:
        kind = tags[0].partition(":")[0]
        # torch calls the devices of ROCm `cuda`, too.
        value = "cuda or rocm" if kind == "cuda" else kind
        yield "accelerator", Fact(value, f"tensors that were saved from `{tags[0]}`")
    if (main := main_dtype(checkpoint.tensors)) is not None:
        yield "dtype of weights", Fact(main.name, "the tensors")
    if checkpoint.training is not None:
        yield from _told_by_parameters(checkpoint.training)
    for key in _ATTENTION_KEYS:
        asked = config.get(key)
        if isinstance(asked, str) and asked:
            yield "attention", Fact(cut(asked), f"`{key}` in config.json")
    if (method := quantisation_method(config)) is not None:
        yield "quantisation", Fact(method, "`quantization_config` in config.json")
    if ADAPTER_CONFIG in checkpoint.side_files:
        yield "adapter", Fact("PEFT", f"`{ADAPTER_CONFIG}` beside the tensors")
    if isinstance(model_type := config.get("model_type"), str):
        yield "model type", Fact(cut(model_type), "config.json")


def _told_by_parameters(training: TrainingParameters) -> Iterator[tuple[str, Fact]]:
    """Yield what parameters of training say of precision and attention; keys may lie in sections."""
    by_key: dict[str, tuple[str, str]] = {}
    for full, value in training.values.items():
        by_key.setdefault(full.rpartition(".")[2], (full, value.strip()))
    if (told := _computed(by_key)) is not None:
        value, key = told
        yield "dtype of computing", Fact(value, f"`{cut(key)}` in {training.path.name}")
    for keys, read in ((_ATTENTION_KEYS, _as_it_is), (_FLASH_FLAGS, _flash)):
        for key in keys:
            if key in by_key and (attention := read(by_key[key][1])) is not None:
                yield "attention", Fact(attention, f"`{cut(by_key[key][0])}` in {training.path.name}")
    for key in ("quantization", "load_in_4bit", "load_in_8bit"):
        if key in by_key and by_key[key][1].lower() not in ("", "none", "false", "0", "no"):
            value = f"{key}: {by_key[key][1]}"
            yield "quantised base", Fact(cut(value), f"`{cut(by_key[key][0])}` in {training.path.name}")


def _computed(by_key: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """Return the dtype that training computed in, and the key that says so."""
    for key, dtype in _FLAGS:
        if key in by_key and by_key[key][1].lower() in _YES:
            return dtype, by_key[key][0]
    for key in _FORMATS:
        full, value = by_key.get(key, (key, ""))
        value = value.lower().removeprefix("torch.")
        value = _SPELLINGS.get(value, value)
        if value in DTYPES and DTYPES[value].kind == "float":
            return value, full
    return None


def _as_it_is(value: str) -> str | None:
    return cut(value) if value and value.lower() not in ("none", "null", "auto") else None


def _flash(value: str) -> str | None:
    return "flash_attention_2" if value.lower() in _YES else None
