"""Names of adapters: which parameter of which module a tensor belongs to, and to which adapter.

In the state dict of a PEFT model, below `base_model.model.`, and in the published adapter, whose names
lack the adapter's own (`default`) and which holds nothing of the base:

    q_proj.base_layer.weight                             the base's own parameter
    q_proj.lora_A.default.weight  q_proj.lora_B.default.weight
    q_proj.lora_magnitude_vector.default.weight          DoRA; published without `.weight`
    embed_tokens.lora_embedding_A.default  ..._B.default  parameters, and no modules
    lm_head.modules_to_save.default.weight               beside lm_head.original_module.weight
    embed_tokens.token_adapter.trainable_tokens_delta.default   rows; which ones the configuration says
    experts.base_layer.lora_A.default.weight             a parameter of `experts` itself: one layer each
    experts.lora_A.default.weight

torchtune has `q_proj.weight`, `q_proj.lora_a.weight` and `q_proj.lora_b.weight`, and no adapter's name.

Source:
    peft src/peft/tuners/lora/layer.py, src/peft/tuners/trainable_tokens/layer.py, src/peft/utils/other.py
    (`ModulesToSaveWrapper`, `TrainableTokensWrapper`), src/peft/utils/save_and_load.py;
    torchtune/modules/peft/lora.py; litgpt/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unshard.recipes.wrappers import WRAPPERS, without_segments

Role = Literal["A", "B", "bias of B", "magnitude", "saved", "original", "tokens", "base"]

PREFIX = "base_model.model."
DEFAULT = "default"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# The layer of PEFT that an adapter's tensors are below, as a segment of names.
_LAYER = "base_layer"

_ADAPTER = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
_PATTERNS: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("A", re.compile(rf"(?P<module>.+)\.lora_A{_ADAPTER}\.weight")),
    ("B", re.compile(rf"(?P<module>.+)\.lora_B{_ADAPTER}\.weight")),
    ("bias of B", re.compile(rf"(?P<module>.+)\.lora_B{_ADAPTER}\.bias")),
    ("A", re.compile(rf"(?P<module>.+)\.lora_embedding_A{_ADAPTER}")),
    ("B", re.compile(rf"(?P<module>.+)\.lora_embedding_B{_ADAPTER}")),
    ("A", re.compile(r"(?P<module>.+)\.lora_a\.weight")),
    ("B", re.compile(r"(?P<module>.+)\.lora_b\.weight")),
    ("magnitude", re.compile(rf"(?P<module>.+)\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?")),
    ("saved", re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<parameter>.+)")),
    ("original", re.compile(r"(?P<module>.+)\.original_module\.(?P<parameter>.+)")),
    ("tokens", re.compile(rf"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta{_ADAPTER}")),
    ("base", re.compile(rf"(?P<module>.+?)(?:\.token_adapter)?(?:\.{_LAYER})+\.(?P<parameter>.+)")),
)
# Most names have none of these, and are told by that.
_MARKS = re.compile(r"\.(lora_|modules_to_save\.|original_module\.|trainable_tokens_delta|base_layer\.)")

# What is recognised and not merged: (a pattern, what it is called).
_OTHERS = (
    (re.compile(r"\.lora_(E|ranknum)(\.|$)"), "AdaLoRA"),
    (re.compile(r"\.lora_[AB]$"), "LitGPT's LoRA"),
    (re.compile(r"\.lora_(arrow|variant|velora|monteclora|kasa)\w*(\.|$)"), "a variant of LoRA"),
    (re.compile(r"\.lora_\w+_log_sigma|\.lora_monteclora"), "MonteCLoRA"),
    (re.compile(r"\.hada_(w|t)\d"), "LoHa"),
    (re.compile(r"\.lokr_(w|t)\d"), "LoKr"),
    (re.compile(r"\.b?oft_[a-zA-Z]+"), "OFT or BOFT"),
    (re.compile(r"\.vera_(lambda|A|B)"), "VeRA"),
    (re.compile(r"\.vblora_"), "VB-LoRA"),
    (re.compile(r"\.randlora_"), "RandLoRA"),
    (re.compile(r"\.fourierft_"), "FourierFT"),
    (re.compile(r"\.ia3_l"), "IA3"),
    (re.compile(r"\.hra_u"), "HRA"),
    (re.compile(r"\.(bone|miss)_"), "MiSS or Bone"),
    (re.compile(r"\.shira_"), "SHiRA"),
    (re.compile(r"\.c3a_kernel"), "C3A"),
    (re.compile(r"\.road_(theta|alpha)"), "RoAd"),
    (re.compile(r"\.delora_"), "DeLoRA"),
    (re.compile(r"\.gralora_"), "GraLoRA"),
    (re.compile(r"\.ln_tuning_layers\."), "LN tuning"),
    (re.compile(r"(^|\.)(prompt_encoder\.|prompt_embeddings$)|\.adaption_(prompt|gate)"), "prompt tuning"),
)


@dataclass(frozen=True, slots=True)
class AdapterName:
    """What the name of a tensor says.

    Attributes:
        role: What the tensor is: a factor, DoRA's magnitudes, a module trained whole, the module it was
            trained beside, rows of an embedding, or a parameter of the base below PEFT's layer.
        module: The module in the model without adapters.
        adapter: The adapter's own name, or None where names lack it.
        parameter: Which parameter of the module it is, or a path inside it; "weight" for factors.
        depth: For factors of a parameter that is no module's weight: below how many layers they lie.
    """

    role: Role
    module: str
    adapter: str | None = None
    parameter: str = "weight"
    depth: int = 0

    @property
    def plain(self) -> str:
        """The name of the parameter in the model without adapters."""
        return f"{self.module}.{self.parameter}"


def without_prefix(name: str) -> str:
    """Return a name without segments of wrappers and without PEFT's own prefix, wherever that stands."""
    bare = without_segments(name, WRAPPERS)
    before, found, after = bare.partition(PREFIX)
    return before + after if found and (not before or before.endswith(".")) else bare


def parse_adapter_name(name: str) -> AdapterName | None:
    """Return what a name says that `without_prefix` gave; None where it is one of a plain model."""
    if not _MARKS.search(name):
        return None
    for role, pattern in _PATTERNS:
        found = pattern.fullmatch(name)
        if found is not None:
            groups = found.groupdict()
            module, depth = _without_layers(groups["module"])
            return AdapterName(
                role, module, groups.get("adapter"), groups.get("parameter") or "weight", depth
            )
    return None


def plain_name(name: str) -> str:
    """Return the name that a parameter of the base has in the model without adapters and wrappers."""
    bare = without_prefix(name)
    parsed = parse_adapter_name(bare)
    return bare if parsed is None else parsed.plain


def _without_layers(module: str) -> tuple[str, int]:
    """Return a module without PEFT's layers at its end, and how many these were."""
    depth = 0
    while module.endswith(f".{_LAYER}"):
        module, depth = module.removesuffix(f".{_LAYER}"), depth + 1
    return module, depth


def published_name(name: str, adapter: str | None) -> str:
    """Return the name that a tensor of an adapter has in a folder that PEFT publishes.

    Args:
        name: Its name in the checkpoint.
        adapter: The adapter's own name, which is left out.
    """
    bare = without_prefix(name)
    if adapter is not None:
        bare = re.sub(rf"\.modules_to_save\.{re.escape(adapter)}\.", ".", bare)
        bare = re.sub(
            rf"(\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|trainable_tokens_delta))\."
            rf"{re.escape(adapter)}(?=\.|$)",
            r"\1",
            bare,
        )
    return PREFIX + re.sub(r"(\.lora_magnitude_vector)\.weight$", r"\1", bare)


def other_adapter(name: str) -> str | None:
    """Return what adapter a tensor of this name belongs to, where it is one that cannot be merged."""
    known = next((title for pattern, title in _OTHERS if pattern.search(name)), None)
    if known is None and _MARKS.search(name) and parse_adapter_name(name) is None:
        return "one whose names are not known"
    return known


def holds_adapter(names: Iterable[str]) -> bool:
    """Return whether any of these names is one of an adapter."""
    return any(_MARKS.search(name) or other_adapter(name) for name in names)


# Model types that are published with adapters for their kinds of input, which their classes load.
PUBLISHED_WITH_ADAPTERS = frozenset(("phi4mm", "phi4_multimodal"))

# Values of `init_lora_weights` with which PEFT changes the base's own weights before training: the
# adapter then belongs to what is left of them, and not to the base.
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Keys of adapter_config.json that make another computation of it, if they say anything.
OTHER_COMPUTATIONS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "layer_replication": "layers that are used several times",
    "lora_bias": "a bias of the second factor",
}

# transformers' `Conv1D` holds its weight the other way round, in these families and under these names.
CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)$")
CONV1D_FAMILIES = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"))
