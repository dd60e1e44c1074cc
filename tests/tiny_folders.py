"""Folders of tiny models, made once for the session; tests copy what they break."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from tiny_models import SIZES, tiny_model, write_folder


def _deep_llama(cls: str = "Llama", **sizes: object) -> object:
    """Return a model of four layers: fewer tell nothing of siblings."""
    torch.manual_seed(9)
    config = getattr(transformers, f"{cls}Config")(**{**SIZES, "num_hidden_layers": 4, **sizes})
    return getattr(transformers, f"{cls}ForCausalLM")(config)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a healthy model, with its tokenizer."""
    root = tmp_path_factory.mktemp("tiny")
    makers: dict[str, Callable[[], object]] = {
        "four-layers": lambda: _deep_llama(tie_word_embeddings=False),
        "four-layers-of-experts": lambda: _deep_llama("Qwen3Moe", num_experts=4, moe_intermediate_size=24),
    }
    return cache(
        lambda family: write_folder(
            makers[family]() if family in makers else tiny_model(family), root / family
        )
    )
