"""What inference needs besides tensors, and which of it is there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from unshard.findings import Finding, finding

_TOKENIZER_FILES = frozenset(
    (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
    )
)

# What no tensor tells: two models of equal shapes can differ in each of these.
_NOT_IN_TENSORS = (
    "number of attention heads, RoPE base and scaling, norm epsilon, activation, longest context, "
    "special tokens"
)


@dataclass(frozen=True, slots=True)
class Completeness:
    """What a model folder has of what inference needs.

    Attributes:
        has_config: config.json.
        has_tokenizer: Any file a tokenizer can be made of.
        missing: What is missing, in words.
    """

    has_config: bool
    has_tokenizer: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """The missing parts, by name."""
        parts = (("config.json", self.has_config), ("tokenizer", self.has_tokenizer))
        return tuple(name for name, there in parts if not there)


def describe_completeness(names: Collection[str]) -> Completeness:
    """Return what a folder with files of these names has."""
    return Completeness("config.json" in names, not _TOKENIZER_FILES.isdisjoint(names))


def check_completeness(names: Collection[str], *, has_base: bool) -> list[Finding]:
    """Return what inference will miss in a folder with files of these names."""
    state = describe_completeness(names)
    if not state.has_config:
        return [
            finding(
                "U601",
                subject="config.json",
                saw=f"missing: {' and '.join(state.missing)}; tensors do not tell {_NOT_IN_TENSORS}",
                expected="the configuration and tokenizer of the model training started from",
                remedy="Name it with --base: a folder, or a name on the hub such as meta-llama/Llama-3.2-1B.",
            )
        ]
    if not state.has_tokenizer:
        where = "the base has none either" if has_base else "there is none beside the checkpoint"
        return [
            finding(
                "U602",
                subject="tokenizer",
                saw=f"no tokenizer file, and {where}",
                expected="tokenizer.json or tokenizer.model",
                remedy="Copy the tokenizer files of the model training started from into the folder.",
            )
        ]
    return []
