"""A model folder against its base: what of the configuration computes otherwise, and what is missing.

A setting that has another value than in the base, without training that made it so, gives a model that
loads, talks, and is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.base.configuration import Config, text_levels
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.errors import printable
from unshard.findings import Finding, finding
from unshard.match.needs import account, needs_of
from unshard.recipes.ties import has_row_per_token
from unshard.sizes import counted

# Settings of the forward pass that no shape gives away.
_COMPUTING_KEYS = """
    rope_theta rope_local_base_freq rotary_emb_base rotary_pct partial_rotary_factor rope_interleave
    mrope_section num_attention_heads num_key_value_heads head_dim n_head
    qk_nope_head_dim qk_rope_head_dim v_head_dim
    rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon norm_epsilon norm_eps
    hidden_act hidden_activation activation_function
    sliding_window use_sliding_window max_window_layers layer_types sliding_window_pattern
    attention_chunk_size attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar
    attention_multiplier
    embedding_multiplier residual_multiplier logits_scaling logit_scale scale_attn_weights
    scale_attn_by_inverse_layer_idx use_parallel_residual attn_temperature_tuning
    num_experts_per_tok norm_topk_prob routed_scaling_factor scoring_func topk_method topk_group n_group
    first_k_dense_replace decoder_sparse_step mlp_only_layers no_rope_layers use_qk_norm attention_bias
    mlp_bias
"""
# What describes the tensors or the run; other checks hold it against what is there.
_OTHER_KEYS = """
    architectures dtype torch_dtype transformers_version _name_or_path use_cache vocab_size
    tie_word_embeddings eos_token_id bos_token_id pad_token_id quantization_config rope_parameters
    rope_scaling model_type
    text_config vision_config audio_config auto_map _attn_implementation id2label label2id
"""
_COMPUTING, _OTHER = frozenset(_COMPUTING_KEYS.split()), frozenset(_OTHER_KEYS.split())


def _check_settings(evidence: Evidence) -> Iterator[Finding]:
    """Yield settings of the folder's configuration that are not those of the base."""
    if evidence.folder is None or evidence.base is None:
        return
    config = evidence.folder.json("config.json")
    if config is None:
        return
    ours, theirs = _settings(config), _settings(evidence.base.config)
    unlike = {key for key in ours.keys() & theirs.keys() if not _is_same(ours[key], theirs[key])}
    lost = {key for key in theirs.keys() - ours.keys() if key.startswith("rope scaling")}
    for key in sorted({key for key in unlike if _computes(key)} | lost):
        yield finding(
            "U517",
            subject=quoted(key),
            saw=_shown(ours.get(key)),
            expected=f"{_shown(theirs[key])}, as in {evidence.base.reference}",
            remedy="Unless training changed it on purpose, write the value of the base into config.json.",
        )
    other = sorted(key for key in unlike if not _computes(key))
    if other:
        yield finding(
            "U518",
            subject=named(other),
            saw=", ".join(_shown(ours[key]) for key in other[:3]),
            expected=", ".join(_shown(theirs[key]) for key in other[:3]),
        )


def _computes(key: str) -> bool:
    return key in _COMPUTING or key.startswith("rope scaling")


def _settings(config: Config) -> dict[str, object]:
    """Return the settings of the language model; what transformers 5 spells otherwise, as before."""
    found: dict[str, object] = {}
    for _, level in text_levels(config):
        found |= {k: v for k, v in level.items() if k not in _OTHER and not isinstance(v, Mapping)}
    for _, level in text_levels(config):
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(inner := level.get(key), Mapping):
                found |= _rope(inner)
    return found


def _rope(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of rotary embeddings under names that both spellings share."""
    found: dict[str, object] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):  # one set for every kind of layer
            place = "rope_theta" if key == "full_attention" else f"rope scaling {key}"
            found[place] = value.get("rope_theta")
        elif key in ("rope_type", "type"):
            if value != "default":
                found["rope scaling type"] = value
        elif key in ("rope_theta", "partial_rotary_factor", "mrope_section"):
            found[key] = value
        else:
            found[f"rope scaling {key}"] = value
    return found


def _is_same(ours: object, theirs: object) -> bool:
    numbers = (int, float)
    return ours == theirs and (isinstance(ours, numbers) or type(ours) is type(theirs))


def _shown(value: object) -> str:
    text = (
        "not set"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else printable(str(value))
    )
    return text if len(text) <= 60 else text[:57] + "..."


def _check_names(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that the base has and the folder lacks, and the other way round."""
    folder, base = evidence.folder, evidence.base
    needs = needs_of(base, evidence.tensors) if base is not None else None
    if folder is None or base is None or needs is None or folder.unreadable:
        return
    found = account(needs, evidence.shapes)
    if found.missing:
        yield finding(
            "U232",
            subject=named(found.missing),
            saw=f"{len(found.missing):,} of {counted(len(needs.required), 'tensor')} missing;"
            " engines make them up at random, and may only warn",
            expected=f"the tensors of {base.reference}",
            remedy="Convert the training checkpoint again; nothing in the folder knows these numbers.",
        )
    if found.unexpected:
        yield finding(
            "U233",
            subject=named(found.unexpected),
            saw=f"{counted(len(found.unexpected), 'tensor')} that {base.reference} does not have",
            expected="none; mlx-lm and vLLM refuse names that they have no place for",
            remedy="If their values are wanted, the folder belongs to another base; else leave them out.",
        )


def _check_shapes(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that have other shapes than in the base, rows of a resized vocabulary aside."""
    base = evidence.base
    if evidence.folder is None or base is None or base.expected is None:
        return
    unlike = {
        name: (tensor.shape, wanted.shape)
        for name, tensor in evidence.tensors.items()
        if (wanted := base.expected.get(name)) is not None
        and wanted.shape is not None
        and tensor.dtype.kind == "float"
        and tensor.shape != wanted.shape
        and not (has_row_per_token(name) and tensor.shape[1:] == wanted.shape[1:] and tensor.shape)
    }
    if unlike:
        name = next(iter(unlike))
        yield finding(
            "U536",
            subject=named(unlike),
            saw=f"{counted(len(unlike), 'tensor')}, {quoted(name)} as {unlike[name][0]}",
            expected=f"{unlike[name][1]}, as in {base.reference}",
            remedy="Name the model that training started from with --base.",
        )


CHECKS: tuple[Check, ...] = (
    Check("against_base.settings", ("U517", "U518"), _check_settings),
    Check("against_base.names", ("U232", "U233"), _check_names),
    Check("against_base.shapes", ("U536",), _check_shapes),
)
