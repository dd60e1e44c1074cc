"""From text to tokens: the tokenizer of a model, and what it makes of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from unshard.base.side_files import makes_tokenizer
from unshard.errors import InferenceError, OptionError
from unshard.findings import Finding, finding
from unshard.inference.quiet import collected_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase | None, tuple[Finding, ...]]:
    """Return the tokenizer in `folder`, or None and the reason why there is none to be had."""
    reason = "no file of one lies beside the configuration"
    # From settings alone transformers makes a tokenizer without words, and says nothing.
    if makes_tokenizer(path.name for path in folder.iterdir()):
        try:
            with collected_warnings():
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            return tokenizer, ()
        except Exception as error:  # noqa: BLE001 - whatever it is, the model is worth having without
            reason = f"transformers cannot use its files: {type(error).__name__}: {error}"
    missing = finding(
        "U602",
        subject="tokenizer",
        saw=reason,
        expected="tokenizer.json or tokenizer.model",
        remedy="Name the model training started from with --base; its folder should hold the tokenizer.",
    )
    return None, (missing,)


def text_tokens(tokenizer: PreTrainedTokenizerBase | None, text: str) -> torch.Tensor:
    """Return the tokens of `text`; without a tokenizer, two that every vocabulary has.

    Shapes:
        result: (1, tokens)
    """
    ids = [] if tokenizer is None else tokenizer(text)["input_ids"]
    return torch.tensor([ids or [0, 1]])


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool | None) -> torch.Tensor:
    """Return a prompt as tokens: what a user says in a chat, or the beginning of a text.

    Shapes:
        result: (1, tokens)

    Raises:
        InferenceError: The chat template does not take the prompt.
        OptionError: A chat was asked for and there is no template, or there is not one token.
    """
    if chat and tokenizer.chat_template is None:
        raise OptionError(
            "chat",
            "was asked for, and the tokenizer has no chat template",
            hint="Use --no-chat for a raw prompt.",
        )
    raw = chat is False or tokenizer.chat_template is None
    ids = tokenizer(prompt)["input_ids"] if raw else _chat_ids(tokenizer, prompt)
    if not ids:
        raise OptionError("prompt", "has no tokens", hint="This model needs one to begin with.")
    return torch.tensor([ids])


def _chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return a conversation that `prompt` begins, up to where the model speaks.

    The template comes with the model. It is rendered in the sandbox that transformers has for that.
    """
    said = [{"role": "user", "content": prompt}]
    try:
        with collected_warnings():
            encoded = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
    except Exception as error:
        raise InferenceError(
            "chat template",
            "does not take the prompt",
            saw=f"{type(error).__name__}: {error}",
            hint="Use --no-chat for a raw prompt.",
        ) from error
    ids: list[int] = encoded["input_ids"]
    return ids
