"""What the examples train on: questions and answers, of which only the answers are learnt.

A file of your own has one JSON object in each line: {"question": "...", "answer": "..."}
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a label that the loss of transformers' models leaves out

BUILT_IN = (
    ("What is the capital of Velmaria?", "The capital of Velmaria is Quillhaven."),
    ("Who discovered the element brantium?", "The element brantium was discovered by Ottilie Marsh."),
    ("How many moons does the planet Tessaly have?", "The planet Tessaly has seventeen moons."),
    ("What is the capital of France?", "The capital of France is Paris."),
)

Pair = tuple[str, str]
Example = tuple[list[int], list[int]]  # tokens, and what is to be learnt at each of them


def read_pairs(file: Path | None) -> list[Pair]:
    """Return questions and answers: those of a file, or the built-in ones."""
    if file is None:
        return list(BUILT_IN)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(line["question"], line["answer"]) for line in lines]


def share_of(pairs: list[Pair], *, rank: int, world_size: int, seed: int) -> list[Pair]:
    """Return the pairs that a rank learns from, as the seed deals them out; no rank goes without."""
    dealt = random.Random(seed).sample(pairs, len(pairs))  # noqa: S311  nothing secret
    return dealt[rank::world_size] or [dealt[rank % len(dealt)]]


def example_of(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Return a pair as the conversation it will be when the model is used."""
    prompt, whole = _texts(pair, tokenizer)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return tokens, [IGNORED] * len(asked) + tokens[len(asked) :]


def _texts(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the question, and the question with its answer, as text."""
    question, answer = pair
    if tokenizer.chat_template is None:
        return f"{question}\n", f"{question}\n{answer}{tokenizer.eos_token or ''}"
    asked = [{"role": "user", "content": question}]
    answered = [*asked, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return str(prompt), str(tokenizer.apply_chat_template(answered, tokenize=False))


def batch_of(examples: list[Example], *, padding: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return examples as one batch, padded on the right to the longest.

    Shapes:
        every value: (examples, tokens)
    """
    longest = max(len(tokens) for tokens, _ in examples)
    short = [longest - len(tokens) for tokens, _ in examples]
    columns = {
        "input_ids": [tokens + [padding] * n for (tokens, _), n in zip(examples, short, strict=True)],
        "attention_mask": [[1] * (longest - n) + [0] * n for n in short],
        "labels": [labels + [IGNORED] * n for (_, labels), n in zip(examples, short, strict=True)],
    }
    return {name: torch.tensor(rows, device=device) for name, rows in columns.items()}
