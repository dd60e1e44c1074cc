"""Answers: a prompt in, text out, piece by piece as it comes."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from unshard.errors import InferenceError, OptionError
from unshard.inference.forward_pass import input_device, require_known_tokens
from unshard.inference.quiet import collected_warnings
from unshard.inference.tokenizing import prompt_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Attributes:
        text: All of it, without special tokens.
        prompt_tokens: Tokens of the prompt, the chat template's included.
        tokens: Tokens of the answer.
        seconds: How long it took.
        ended_by: `model` where the model ended its answer, `limit` where the limit did.
    """

    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    ended_by: Literal["model", "limit"]


def generate_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool | None,
    on_text: Callable[[str], None],
) -> Answer:
    """Return the model's answer to `prompt`; `on_text` is called with every piece as soon as it stands.

    Args:
        model: A model that generates text.
        tokenizer: Its tokenizer.
        prompt: What a user says, or the beginning of a text.
        max_new_tokens: Where the answer is cut off; the model's longest context may cut it earlier.
        temperature: 0 takes the likeliest token every time; otherwise tokens are drawn, by the
            model's own further settings (top-k, top-p).
        seed: The same seed gives the same answer; torch's own random state is left as it was.
        chat: Whether the prompt is put into the chat template; None does so where there is one.
        on_text: Told every piece of text, in order; together they are the answer.

    Raises:
        InferenceError: The model does not generate text, or the template does not take the prompt.
        OptionError: There is no chat template, or the prompt is empty or longer than the context.
    """
    if not model.can_generate():
        raise InferenceError(
            type(model).__name__,
            "does not generate text",
            hint="Use `unshard.load` and call the model yourself.",
        )
    if temperature < 0:
        raise OptionError("temperature", "is negative", saw=temperature, expected="0 or more")
    tokens = prompt_tokens(tokenizer, prompt, chat=chat)
    require_known_tokens(model, tokens)
    settings = _settings(model, tokenizer)
    settings.update(max_new_tokens=min(max_new_tokens, _room(model, tokens.shape[1])))
    settings.update(do_sample=temperature > 0, **({"temperature": temperature} if temperature else {}))
    listener = _Listener(tokenizer, on_text)
    began = time.perf_counter()
    ids = tokens.to(input_device(model))
    cuda = [ids.device] if ids.device.type == "cuda" else []
    with collected_warnings(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=listener,
        )
    seconds = time.perf_counter() - began
    ended = bool(listener.ids) and listener.ids[-1] in settings.eos_token_id
    return Answer(listener.text, tokens.shape[1], len(listener.ids), seconds, "model" if ended else "limit")


def _room(model: PreTrainedModel, used: int) -> int:
    """Return how many tokens the model's context holds after `used`."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None or model.config.is_encoder_decoder:
        return sys.maxsize
    if used >= context:
        raise OptionError("prompt", "is too long", saw=f"{used} tokens", expected=f"fewer than {context}")
    return int(context) - used


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the model's own generation settings, fit for one answer that is heard while it is made."""
    settings = copy.deepcopy(model.generation_config)
    own = settings.eos_token_id
    ends = own if isinstance(own, list) else [own]
    known = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
    padding = next((p for p in (settings.pad_token_id, tokenizer.pad_token_id, *known) if p is not None), 0)
    settings.update(eos_token_id=known, pad_token_id=padding, num_beams=1, num_return_sequences=1)
    return settings


class _Listener:
    """Turns tokens into text as they come; bytes that are not yet a character wait for the rest."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._prompt_is_over = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is not repeated, and then every token."""
        if not self._prompt_is_over:
            self._prompt_is_over = True
            return
        self.ids += value.reshape(-1).tolist()
        text = self._decoded()
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> None:
        """Tell what waited for more bytes and will not get them."""
        self._tell(self._decoded())

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(
            self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _tell(self, text: str) -> None:
        piece, self.text = text[len(self.text) :], text
        if piece:
            self._on_text(piece)
