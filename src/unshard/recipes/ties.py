"""Weights that two names share: which pairs there are, and which models tie them unless told otherwise.

Source:
    transformers 5.23: `_tied_weights_keys` of every model class, and the default of
    `tie_word_embeddings` in every configuration class. A test compares both tables with it.
"""

from __future__ import annotations

from collections.abc import Collection

# The name that is kept in published files, and the names that may repeat it. A pair also holds below
# a common prefix (`text_model.`), and where the embedding lacks its first segment (GPT-2's `wte`).
_SHARED: dict[str, tuple[str, ...]] = {
    "model.embed_tokens.weight": ("lm_head.weight", "head.decoder.weight"),
    "model.language_model.embed_tokens.weight": ("lm_head.weight",),
    "language_model.model.embed_tokens.weight": ("language_model.lm_head.weight", "lm_head.weight"),
    "model.text_model.embed_tokens.weight": ("lm_head.weight",),
    "model.decoder.embed_tokens.weight": (
        "lm_head.weight",
        "lm_head.out_proj.weight",
        "proj_out.weight",
        "output_projection.weight",
    ),
    "model.shared.weight": (
        "lm_head.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
    ),
    "shared.weight": (
        "lm_head.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "text_encoder.embed_tokens.weight",
        "text_decoder.embed_tokens.weight",
    ),
    "model.language_model.shared.weight": ("lm_head.weight",),
    "model.encoder.text_model.embed_tokens.weight": ("lm_head.out_proj.weight",),
    "model.embeddings.tok_embeddings.weight": ("decoder.weight",),
    "model.text_model.embeddings.tok_embeddings.weight": ("lm_head.weight",),
    "model.embed_tokens.embed_tokens.weight": ("lm_head.weight",),
    "model.embed_tokens.word_embeddings.weight": ("lm_head.weight",),
    "model.embed_tokens.embedding_projection.weight": ("unembedding_projection.weight",),
    "embed_tokens.weight": ("lm_head.weight",),
    "transformer.wte.weight": ("lm_head.weight",),
    "transformer.w.weight": ("lm_head.weight",),
    "transformer.tokens_embed.weight": ("lm_head.weight",),
    "transformer.word_embeddings.weight": ("lm_head.weight",),
    "transformer.word_embedding.weight": ("lm_loss.weight",),
    "transformer.embeddings.weight": ("pred_layer.proj.weight",),
    "backbone.embeddings.weight": ("lm_head.weight",),
    "gpt_neox.embed_in.weight": ("lm_head.weight", "embed_out.weight"),
    "gpt_neox_japanese.embed_in.weight": ("embed_out.weight",),
    "rwkv.embeddings.weight": ("head.weight",),
    "biogpt.embed_tokens.weight": ("output_projection.weight",),
    "led.shared.weight": ("lm_head.weight",),
    "git.embeddings.word_embeddings.weight": ("output.weight",),
    "funnel.embeddings.word_embeddings.weight": ("lm_head.weight",),
    "distilbert.embeddings.word_embeddings.weight": ("vocab_projector.weight",),
    "electra.embeddings.word_embeddings.weight": ("generator_lm_head.weight",),
    "convbert.embeddings.word_embeddings.weight": ("generator_lm_head.weight",),
    "albert.embeddings.word_embeddings.weight": ("predictions.decoder.weight",),
    "predictions.bias": ("predictions.decoder.bias",),
    "cls.predictions.bias": ("cls.predictions.decoder.bias",),
    "lm_head.bias": ("lm_head.decoder.bias",),
}

# BERT's children: any name before `.embeddings.word_embeddings.weight`, and one of two heads.
_BERT_HEADS = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")

_TIED = """
    albert aya_vision bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small
    blip bloom camembert cohere cohere2 cohere2_moe cohere2_vision convbert ctrl data2vec-text deberta
    deberta-v2 deepseek_vl deepseek_vl_hybrid distilbert electra ernie ernie4_5 ernie4_5_moe ernie4_5_vl_moe
    esm falcon falcon_mamba flaubert flava florence2 fnet funnel gemma gemma2 gemma3 gemma3_text gemma3n
    gemma3n_text gemma4 gemma4_text glmasr got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese
    granite_speech granite_swa gte hunyuan_vl ibert internvl janus jetmoe kosmos-2 layoutlm led lfm2 lfm2_moe
    lfm2_vl lighton_ocr longformer longt5 luke lxmert m2m_100 mamba marian mbart megatron-bert minicpm3
    mistral3 mobilebert modernbert modernbert-decoder mpnet mpt mra mt5 mvp nllb-moe nomic_bert nystromformer
    openai-gpt opt ovis2 paddleocr_vl paligemma pegasus pegasus_x plbart prophetnet recurrent_gemma roberta
    roberta-prelayernorm roc_bert roformer seamless_m4t seamless_m4t_v2 smollm3 squeezebert starcoder2
    switch_transformers t5gemma t5gemma2 tapas trocr udop vaultgemma visual_bert voxtral_realtime whisper xglm
    xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso youtu zamba zamba2
"""

_UNTIED = """
    afmoe apertus arcee aria aria_text bamba bitnet blt chameleon codegen cwm dbrx deepseek_v2 deepseek_v3
    deepseek_v32 deepseek_v4 diffllama doge dots1 emu3 eurobert exaone4 exaone_moe falcon_h1 flex_olmo fuyu
    git glm glm4 glm46v glm4_moe glm4_moe_lite glm4v glm4v_moe glm_moe_dsa glm_ocr gpt_neox gpt_oss gptj
    granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe idefics
    idefics2 idefics3 jais2 jamba llama llama4 llama4_text llava llava_next llava_next_video llava_onevision
    longcat_flash mamba2 mimo_v2_flash minimax minimax_m2 ministral ministral3 mistral mistral4 mixtral
    nanochat nemotron olmo olmo2 olmo3 olmo_hybrid olmoe persimmon phi phi3 phi4_multimodal phimoe qwen2
    qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    qwen3_vl qwen3_vl_moe rwkv seed_oss smolvlm solar_open stablelm video_llava vipllava
"""

TIED_BY_DEFAULT = frozenset(_TIED.split())
UNTIED_BY_DEFAULT = frozenset(_UNTIED.split())


def tied_by_default(model_type: object) -> bool | None:
    """Return what `tie_word_embeddings` means where the configuration does not say; None if unknown."""
    if model_type in TIED_BY_DEFAULT:
        return True
    return False if model_type in UNTIED_BY_DEFAULT else None


def shared_pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """Return (kept, repeated) for every pair of `names` that some model shares."""
    there = names if isinstance(names, set | frozenset | dict) else set(names)
    heads = [name for name in there if name.endswith(_REPEATED_ENDINGS)]
    stems = [name for name in there if _is_bert_embedding(name)] if heads else []
    pairs = [
        (prefix + kept, head)
        for head in sorted(heads)
        for kept, repeated in _PAIRS
        if (prefix := _prefix(head, repeated)) is not None and prefix + kept in there
    ]
    pairs += [
        (stem, head)
        for head in sorted(heads)
        for repeated in _BERT_HEADS
        if (prefix := _prefix(head, repeated)) is not None
        for stem in stems
        if stem.startswith(prefix)
    ]
    return list(dict.fromkeys(pairs))


def has_row_per_token(name: str) -> bool:
    """Return whether the first dimension of a tensor of this name is the vocabulary."""
    if not name.endswith(_ROW_ENDINGS):  # most names end here
        return False
    return _is_bert_embedding(name) or any(_prefix(name, ending) is not None for ending in _ROW_ENDINGS)


def is_output_head(name: str) -> bool:
    """Return whether a tensor of this name turns the last layer into scores of tokens."""
    return name.endswith(_HEAD_ENDINGS) and any(_prefix(name, ending) is not None for ending in _HEAD_ENDINGS)


def _pairs() -> tuple[tuple[str, str], ...]:
    """Return (kept, repeated) of the table, also with the first segment of the kept name left out."""
    return tuple(
        (form, repeated)
        for kept, aliases in _SHARED.items()
        for form in (kept, kept.partition(".")[2])
        if "." in form
        for repeated in aliases
    )


def _prefix(name: str, ending: str) -> str | None:
    """Return what stands before `ending`, if `name` is `ending` or ends with it after a dot."""
    before = name.removesuffix(ending)
    return before if len(before) < len(name) and before[-1:] in ("", ".") else None


def _is_bert_embedding(name: str) -> bool:
    return name.endswith(".embeddings.word_embeddings.weight")


_PAIRS = _pairs()
_REPEATED_ENDINGS = tuple({repeated for _, repeated in _PAIRS} | set(_BERT_HEADS))
_ROW_ENDINGS = (*{name for pair in _PAIRS for name in pair}, ".embeddings.word_embeddings.weight")
# Besides heads, embeddings of an encoder and a decoder repeat, and biases do.
_HEAD_ENDINGS = tuple(e for e in _REPEATED_ENDINGS if not e.endswith(("embed_tokens.weight", ".bias")))
