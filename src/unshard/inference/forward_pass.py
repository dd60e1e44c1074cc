"""The first question to a model: does a real prompt come out as numbers?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from unshard.errors import InferenceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two words: enough for attention and positions to matter, and little to ask of a large model on a CPU.
PROMPT = "Hello world"
_NAMED_AT_MOST = 3
_SCAN_ELEMENTS = 1 << 24


def takes_text(model: PreTrainedModel) -> bool:
    """Return whether a model can be tried with nothing but tokens."""
    return bool(model.main_input_name == "input_ids")


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its tokens; accelerate moves them on from there."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def require_known_tokens(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Raise unless the embedding has a row for every token.

    Raises:
        InferenceError: A token lies beyond it.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if (highest := int(tokens.max())) >= rows:
        raise InferenceError(
            type(model).__name__,
            "does not know a token that its tokenizer gives",
            saw=f"token {highest}",
            expected=f"tokens below {rows}, the rows of the embedding",
            hint="The tokenizer belongs to another model; name the right one with --base.",
        )


def forward_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits a model gives for `tokens`; its last hidden state where it has no head.

    Shapes:
        tokens: (1, tokens)
        result: (1, tokens, vocabulary) of a causal language model

    Raises:
        InferenceError: The tokens are not the model's, or the forward pass fails.
    """
    require_known_tokens(model, tokens)
    tokens = tokens.to(input_device(model))
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        start = getattr(model.config, "decoder_start_token_id", None) or 0
        inputs["decoder_input_ids"] = torch.full_like(tokens[:, :1], start)
    try:
        with torch.inference_mode():
            output = model(**inputs)
    except Exception as error:
        raise InferenceError(
            type(model).__name__, "fails in its forward pass", saw=f"{type(error).__name__}: {error}"
        ) from error
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def require_finite_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return what the model gives for `tokens`, all of it numbers.

    Memory:
        Activations of a few tokens; when something is wrong, also blocks of 16 Mi elements.

    Raises:
        InferenceError: The forward pass fails, or gives NaN or infinity; names where that begins.
    """
    logits = forward_logits(model, tokens)
    broken = int((~torch.isfinite(logits)).sum())
    if not broken:
        return logits
    names = list(_tensors_without_numbers(model))
    if names:
        more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
        where = f"NaN or infinity lies in {', '.join(names[:_NAMED_AT_MOST])}{more}"
        hint = "Take an earlier checkpoint (--step); this one holds what training left when it diverged."
    else:
        where = (
            f"every weight is a number, and {_first_broken_module(model, tokens)} is the first to overflow"
        )
        hint = f"The values are beyond {logits.dtype}'s range; try --dtype float32 or bfloat16."
    raise InferenceError(
        type(model).__name__,
        "does not give numbers",
        saw=f"{broken} of {logits.numel()} logits are NaN or infinite; {where}",
        hint=hint,
    )


def _tensors_without_numbers(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the weights that hold NaN or infinity."""
    seen = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_meta or not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        blocks = tensor.reshape(-1).split(_SCAN_ELEMENTS)
        if not all(bool(torch.isfinite(block).all()) for block in blocks):
            yield f"`{name}`"


def _first_broken_module(model: PreTrainedModel, tokens: torch.Tensor) -> str:
    """Return the name of the first module that gives NaN or infinity."""
    found: list[str] = []

    def look(name: str) -> Callable[[object, object, object], None]:
        def hook(module: object, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, torch.Tensor) and not bool(torch.isfinite(first).all()):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        forward_logits(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return f"`{found[0]}`" if found else "the head"
