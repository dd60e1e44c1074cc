"""Tables of ties: they say what transformers says, and recognise pairs by their names."""

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from unshard.recipes.ties import (
    TIED_BY_DEFAULT,
    UNTIED_BY_DEFAULT,
    has_row_per_token,
    is_output_head,
    shared_pairs,
    tied_by_default,
)

CLASSES = """
    LlamaForCausalLM Qwen2ForCausalLM Gemma2ForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM MambaForCausalLM
    BloomForCausalLM FalconForCausalLM OPTForCausalLM T5ForConditionalGeneration BartForConditionalGeneration
    WhisperForConditionalGeneration BertForMaskedLM RobertaForMaskedLM ElectraForMaskedLM RwkvForCausalLM
    DistilBertForMaskedLM AlbertForPreTraining ModernBertForMaskedLM LlavaForConditionalGeneration
    Gemma3ForConditionalGeneration Qwen2VLForConditionalGeneration XLMRobertaForMaskedLM OpenAIGPTLMHeadModel
"""


def test_defaults_of_the_tie_flag_are_those_of_transformers() -> None:
    for family in sorted(TIED_BY_DEFAULT | UNTIED_BY_DEFAULT):
        assert (family, CONFIG_MAPPING[family].tie_word_embeddings) == (family, tied_by_default(family))


def test_no_family_is_in_both_tables() -> None:
    assert not TIED_BY_DEFAULT & UNTIED_BY_DEFAULT
    assert tied_by_default("a family of tomorrow") is None


@pytest.mark.parametrize("name", CLASSES.split())
def test_every_pair_that_a_class_shares_is_known(name: str) -> None:
    tied: dict[str, str] = getattr(transformers, name)._tied_weights_keys
    assert tied
    for repeated, kept in tied.items():
        assert (kept, repeated) in shared_pairs({kept, repeated})


def test_a_pair_is_found_below_a_prefix_and_without_the_models_own() -> None:
    assert shared_pairs({"actor.lm_head.weight", "actor.model.embed_tokens.weight"}) == [
        ("actor.model.embed_tokens.weight", "actor.lm_head.weight")
    ]
    assert shared_pairs({"lm_head.weight", "wte.weight"}) == [("wte.weight", "lm_head.weight")]


def test_weights_of_different_models_are_no_pair() -> None:
    assert shared_pairs({"actor.lm_head.weight", "critic.model.embed_tokens.weight"}) == []
    assert shared_pairs({"xlm_head.weight", "model.embed_tokens.weight"}) == []


def test_heads_and_embeddings_have_a_row_per_token() -> None:
    for name in ("lm_head.weight", "model.embed_tokens.weight", "bert.embeddings.word_embeddings.weight"):
        assert has_row_per_token(name)
    assert not has_row_per_token("model.layers.0.self_attn.q_proj.weight")
    assert is_output_head("lm_head.weight")
    assert not is_output_head("decoder.embed_tokens.weight")
