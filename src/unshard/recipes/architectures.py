"""Names of model classes that a script cut or a person misspelt, and what they were meant to be.

`name.lstrip("FSDP")` removes every leading letter of F, S, D and P, and not the word: DeepseekV3 becomes
eepseekV3, Phi becomes hi, Falcon becomes alcon. PEFT's classes wrap a model, and are none of its own. A name
that differs by a letter or two from a class of the model's type was meant to be that class.

Source:
    transformers 5.23 (auto/modeling_auto.py) and accelerate's FSDP2 (`FSDP` before the name of the class);
    axolotl, where it saves the configuration of a model that FSDP wrapped (`lstrip`); peft 0.19,
    peft_model.py.
    A test compares the table with transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import product

_WRAPPER = "FSDP"
_MOST_LETTERS = 3
_MOST_EDITS = 2

_STEMS = """
    Afmoe Albert Apertus Arcee Aria AyaVision Bamba Bart Bert BigBird BigBirdPegasus BioGpt BitNet Blenderbot
    BlenderbotSmall Blip Bloom Blt CTRL Camembert Chameleon CodeGen Cohere Cohere2 Cohere2Moe Cohere2Vision
    ConvBert Cwm Dbrx Deberta DebertaV2 DeepseekV2 DeepseekV3 DeepseekV32 DeepseekV4 DeepseekVL
    DeepseekVLHybrid DiffLlama DistilBert Doge Dots1 Electra Emu3 Ernie Ernie4_5 Ernie4_5_Moe Ernie4_5_VLMoe
    Esm EuroBert Exaone4 ExaoneMoe FNet Falcon FalconH1 FalconMamba FlexOlmo Florence2 Funnel Fuyu GPT2
    GPTBigCode GPTJ GPTNeo GPTNeoX GPTNeoXJapanese Gemma Gemma2 Gemma3 Gemma3n Gemma4 Git Glm Glm4 Glm46V
    Glm4Moe Glm4MoeLite Glm4v Glm4vMoe GlmAsr GlmMoeDsa GlmOcr GotOcr2 GptOss Granite GraniteMoe
    GraniteMoeHybrid GraniteMoeShared GraniteSWA GraniteSpeech Gte Helium HunYuanVL IBert Idefics2 Idefics3
    InternVL Jais2 Jamba Janus JetMoe Kosmos2 LED LayoutLM Lfm2 Lfm2Moe Lfm2Vl LightOnOcr Llama Llama4 Llava
    LlavaNext LlavaNextVideo LlavaOnevision LongT5 LongcatFlash Longformer Luke M2M100 MBart MPNet MT5 Mamba
    Mamba2 MegatronBert MiMoV2Flash MiniCPM3 MiniMax MiniMaxM2 Ministral Ministral3 Mistral Mistral3
    Mistral4 Mixtral MobileBert ModernBert ModernBertDecoder Mpt Mra Mvp NanoChat Nemotron NllbMoe NomicBert
    Nystromformer OPT Olmo Olmo2 Olmo3 OlmoHybrid Olmoe OpenAIGPT Ovis2 PLBart PaddleOCRVL PaliGemma Pegasus
    PegasusX Persimmon Phi Phi3 Phi4Multimodal Phimoe ProphetNet Qwen2 Qwen2Moe Qwen2VL Qwen2_5_VL Qwen3
    Qwen3Moe Qwen3Next Qwen3VL Qwen3VLMoe Qwen3_5 Qwen3_5Moe RecurrentGemma RoCBert RoFormer Roberta
    RobertaPreLayerNorm Rwkv SeedOss SmolLM3 SmolVLM SolarOpen SqueezeBert StableLm Starcoder2
    SwitchTransformers T5 T5Gemma T5Gemma2 Tapas TrOCR Udop VaultGemma VideoLlava VipLlava VoxtralRealtime
    Whisper XGLM XLMRoberta XLMRobertaXL XLNet Xmod Yoso Youtu Zamba Zamba2
"""
_HEADS = """
    ForCausalLM ForConditionalGeneration ForSequenceClassification ForTokenClassification
    ForQuestionAnswering ForMaskedLM ForMultipleChoice ForPreTraining Model
"""
# Types whose language model has another head than ForCausalLM.
_LM_HEADS = {
    "bert": "LMHeadModel",
    "ctrl": "LMHeadModel",
    "gpt2": "LMHeadModel",
    "openaigpt": "LMHeadModel",
    "xlnet": "LMHeadModel",
}
# What a decoder with its head has; encoders, and models of several parts, name theirs otherwise.
_HEADED = frozenset(("model.embed_tokens.weight", "lm_head.weight"))
_PEFT = re.compile(r"Peft(?:Mixed)?Model(?:For(\w+))?")
_PEFT_HEADS = {"Seq2SeqLM": "ForConditionalGeneration", "FeatureExtraction": "Model"}


def whole_architecture(name: str, model_type: object, tensors: Collection[str] = ()) -> str | None:
    """Return the name of a model class as it was before it was wrapped, cut or misspelt.

    None where it is as it should be, or nothing tells what it was.

    Args:
        name: The class, as a configuration names it.
        model_type: The type of the model in the same configuration.
        tensors: The names of the weights: a class without a head beside the head's weights is not the
            class of these.
    """
    if name.startswith(_WRAPPER):
        return name.removeprefix(_WRAPPER)
    if not isinstance(model_type, str):
        return None
    stem = _CLASSES.get(family_letters(model_type).removesuffix("text"))
    if stem is not None and (match := _PEFT.fullmatch(name)):
        return stem + _head(stem, match[1] or "CausalLM")
    is_headed = stem is not None and stem.lower() not in _LM_HEADS and _HEADED.issubset(tensors)
    if is_headed and name == f"{stem}Model":
        return f"{stem}ForCausalLM"
    return _uncut(name, model_type) or (None if stem is None else _nearest(name, stem))


def family_letters(text: str) -> str:
    """Return the letters and digits of a model type or class, by which both can be compared."""
    return re.sub(r"[-_.]", "", text).lower()


def _head(stem: str, task: str) -> str:
    if task == "CausalLM":
        return _LM_HEADS.get(family_letters(stem), "ForCausalLM")
    return _PEFT_HEADS.get(task, f"For{task}")


def _uncut(name: str, model_type: str) -> str | None:
    """Return the name with the letters that `lstrip` took."""
    stem = family_letters(model_type)
    if not name[:1].islower() or not stem:
        return None
    for count in range(1, _MOST_LETTERS + 1):
        for letters in product(_WRAPPER, repeat=count):
            whole = "".join(letters) + name
            if whole.lower().startswith(stem):
                return whole
    return None


def _nearest(name: str, stem: str) -> str | None:
    """Return the class of a family that a name differs from by letters, never by a digit."""
    classes = [stem + head for head in (_head(stem, "CausalLM"), *_HEADS.split())]
    if name in classes:
        return None
    near = [(_edits(name.lower(), one.lower()), one) for one in classes if _digits(name) == _digits(one)]
    edits, nearest = min(near, default=(_MOST_EDITS + 1, ""))
    return nearest if edits <= _MOST_EDITS and not _is_of_another(name) else None


def _is_of_another(name: str) -> bool:
    """Return whether a name is that of a class of the table, whatever the model's type."""
    heads = (*_HEADS.split(), "LMHeadModel")
    return any(name.removesuffix(head) in _CLASSES.values() for head in heads)


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _edits(one: str, other: str) -> int:
    """Return how many letters must be put in, taken out or replaced; too many where lengths tell as much."""
    if abs(len(one) - len(other)) > _MOST_EDITS:
        return _MOST_EDITS + 1
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != wanted))
    return row[-1]


_CLASSES = {family_letters(stem): stem for stem in _STEMS.split()}
