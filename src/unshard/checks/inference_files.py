"""What inference needs besides tensors, and which of it is there."""

from __future__ import annotations

from collections.abc import Collection

from unshard.base.side_files import makes_tokenizer
from unshard.findings import Finding, finding

# What no tensor tells: two models of equal shapes can differ in each of these.
_NOT_IN_TENSORS = (
    "number of attention heads, RoPE base and scaling, norm epsilon, activation, longest context, "
    "special tokens"
)


def missing_files(names: Collection[str]) -> tuple[str, ...]:
    """Return what inference will miss in a folder with files of these names, in words."""
    parts = (("config.json", "config.json" in names), ("tokenizer", makes_tokenizer(names)))
    return tuple(part for part, there in parts if not there)


def check_inference_files(names: Collection[str], *, has_base: bool) -> list[Finding]:
    """Return what inference will miss in a folder with files of these names."""
    missing = missing_files(names)
    if "config.json" in missing:
        return [
            finding(
                "U601",
                subject="config.json",
                saw=f"missing: {' and '.join(missing)}; tensors do not tell {_NOT_IN_TENSORS}",
                expected="the configuration and tokenizer of the model training started from",
                remedy="Name it with --base: a folder, or a name on the hub such as meta-llama/Llama-3.2-1B.",
            )
        ]
    if missing:
        where = "the base has none either" if has_base else "there is none beside the checkpoint"
        return [
            finding(
                "U602",
                subject="tokenizer",
                saw=f"no file a tokenizer can be made of, and {where}",
                expected="tokenizer.json or tokenizer.model",
                remedy="Copy the tokenizer files of the model training started from into the folder.",
            )
        ]
    return []
