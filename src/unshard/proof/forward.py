"""Does the model on disk work? It is loaded as a user would load it, run, and compared with its base.

Transformers loads the folder from disk; nothing of this package has a hand in it. Every weight must
come from the files, a real prompt must come out as numbers, and the loss on a fixed text must be that
of a model that has learnt to write: far below that of blind guessing, and near that of the base.

Torch and transformers are imported only when a model is really run.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unshard.base import Base
from unshard.errors import InferenceError
from unshard.findings import Finding, finding
from unshard.inference.packages import require_packages

if TYPE_CHECKING:
    import torch

Verdict = Literal["looks trained", "runs", "untrained", "far from base", "broken", "untried"]

# The opening of Michael Faraday's "The Chemical History of a Candle" (1861), in the public domain.
TEXT = (
    "I purpose, in return for the honour you do us by coming to see what are our proceedings here, to "
    "bring before you, in the course of these lectures, the Chemical History of a Candle. I have taken "
    "this subject on a former occasion, and were it left to my own will, I should prefer to repeat it "
    "almost every year, so abundant is the interest that attaches itself to the subject, so wonderful "
    "are the varieties of outlet which it offers into the various departments of philosophy. There is "
    "not a law under which any part of this universe is governed which does not come into play, and is "
    "touched upon in these phenomena. There is no better, there is no more open door by which you can "
    "enter into the study of natural philosophy, than by considering the physical phenomena of a candle."
)
# A model that has learnt to write is better than blind guessing by this much at least, in nats.
_LEARNT = 0.5
# Fine-tuning on other texts moves the loss less than this, in nats. SmolLM2-135M moved by 0.04 when it
# learnt eight facts by heart, and by 0.55 when two of its layers exchanged one matrix.
_FAR = 0.5
# Positions whose logits are held in float32 at a time.
_BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ForwardProof:
    """What a forward pass showed.

    Attributes:
        path: The folder that was loaded.
        architecture: The class of transformers, or None where the model could not be built.
        dtype: The dtype it ran in.
        tokens: Tokens of the text whose loss was taken; 0 where none was.
        loss: Mean cross entropy of every token of the text after the first, in nats.
        base_loss: The same of the base; None where it has no weights to load.
        uniform_loss: The same of guessing blindly: the logarithm of the vocabulary.
        verdict: What that says. `runs` where there is no loss to judge by, `untried` where the folder
            holds nothing that can be loaded without running a pickle.
        findings: What differs, and what could not be tried.
        seconds: How long it took.
    """

    path: Path
    architecture: str | None
    dtype: str | None
    tokens: int
    loss: float | None
    base_loss: float | None
    uniform_loss: float | None
    verdict: Verdict
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def evidence(self) -> tuple[str, ...]:
        """What was seen, one sentence each."""
        if self.architecture is None:
            return ()
        built = f"{self.architecture} in {self.dtype}: every weight loaded, every logit finite"
        if self.loss is None:
            return (built,)
        others = "" if self.base_loss is None else f"the base {self.base_loss:.2f}, "
        judged = f"loss {self.loss:.2f} nats over {self.tokens} tokens"
        return built, f"{judged} ({others}blind guessing {self.uniform_loss:.2f})"


def verify_forward(folder: Path, *, base: Base | None) -> ForwardProof:
    """Return what a forward pass of the model in `folder` shows.

    Args:
        folder: A model folder with safetensors files.
        base: The model training started from; its loss is taken too where it has safetensors files.

    Memory:
        One model at a time, mapped from its files, and activations of about 200 tokens.

    Raises:
        MissingExtraError: torch, transformers or accelerate is not installed.
    """
    require_packages("the forward pass")
    began = time.perf_counter()
    if not _has_safetensors(folder):
        untried = finding(
            "U702",
            subject=folder.name,
            saw="it has no safetensors files; transformers would have to run a pickle",
            remedy="Convert it, then verify the result.",
        )
        return _without_loss(folder, "untried", untried, began)
    try:
        own = _measure(folder)
    except InferenceError as error:
        return _without_loss(folder, "broken", _broken(error), began)
    base_loss, findings = _measure_base(folder, base) if own.loss is not None else (None, ())
    verdict, judged = _judge(own, base_loss)
    return ForwardProof(
        folder,
        own.architecture,
        own.dtype,
        own.tokens,
        own.loss,
        base_loss,
        own.uniform_loss,
        verdict,
        (*own.findings, *findings, *judged),
        time.perf_counter() - began,
    )


@dataclass(frozen=True, slots=True)
class _Measurement:
    """What one model gave."""

    architecture: str
    dtype: str
    tokens: int
    loss: float | None
    uniform_loss: float | None
    findings: tuple[Finding, ...]


def _measure(folder: Path) -> _Measurement:
    """Load the model in `folder`, run it, and let it go.

    Raises:
        InferenceError: It cannot be built whole, or does not give numbers.
    """
    from unshard.inference.building import build_from_folder
    from unshard.inference.forward_pass import PROMPT, require_finite_logits, takes_text
    from unshard.inference.tokenizing import load_tokenizer, text_tokens

    gc.collect()  # models hold themselves in circles; the one before must be gone
    model = build_from_folder(folder)
    tokenizer, findings = load_tokenizer(folder)
    name, dtype = type(model).__name__, str(model.dtype).removeprefix("torch.")
    if not takes_text(model):
        untried = finding(
            "U702", subject=name, saw=f"it takes {model.main_input_name}, and only text is tried"
        )
        return _Measurement(name, dtype, 0, None, None, (*findings, untried))
    writes = tokenizer is not None and model.can_generate() and not model.config.is_encoder_decoder
    tokens = text_tokens(tokenizer, TEXT if writes else PROMPT)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or tokens.shape[1]
    tokens = tokens[:, :context]
    logits = require_finite_logits(model, tokens)
    if not writes:
        return _Measurement(name, dtype, 0, None, None, findings)
    loss, uniform = text_loss(logits[0], tokens[0]), math.log(logits.shape[-1])
    return _Measurement(name, dtype, tokens.shape[1], loss, uniform, findings)


def text_loss(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Return the mean cross entropy of every token after the first, in nats.

    Shapes:
        logits: (tokens, vocabulary)
        tokens: (tokens,)

    Memory:
        Float32 logits of 32 tokens.
    """
    import torch

    total = 0.0
    for start in range(0, len(tokens) - 1, _BLOCK_TOKENS):
        stop = min(start + _BLOCK_TOKENS, len(tokens) - 1)
        total += float(
            torch.nn.functional.cross_entropy(
                logits[start:stop].float(), tokens[start + 1 : stop + 1], reduction="sum"
            )
        )
    return total / (len(tokens) - 1)


def _measure_base(folder: Path, base: Base | None) -> tuple[float | None, tuple[Finding, ...]]:
    """Return the base's loss, or None and the reason."""
    if base is None or base.path.resolve() == folder.resolve():
        return None, ()
    if not _has_safetensors(base.path):
        reason = "it has no safetensors files"
    else:
        try:
            return _measure(base.path).loss, ()
        except InferenceError as error:
            reason = error.message
    unknown = finding(
        "U702", subject=f"base {base.reference}", saw=f"its loss is unknown: {reason}", remedy=None
    )
    return None, (unknown,)


def _has_safetensors(folder: Path) -> bool:
    """Return whether transformers finds safetensors files in `folder`."""
    return any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))


def _judge(own: _Measurement, base_loss: float | None) -> tuple[Verdict, tuple[Finding, ...]]:
    """Return what the losses say."""
    if own.loss is None or own.uniform_loss is None:
        return "runs", ()
    blind = own.uniform_loss - _LEARNT
    saw = f"a loss of {own.loss:.2f} nats on a text in English"
    if base_loss is not None and base_loss >= blind:
        return "runs", ()  # the base does not write English either
    if own.loss < blind:
        if base_loss is None or own.loss - base_loss <= _FAR:
            return "looks trained", ()
        far = finding(
            "U706",
            subject=own.architecture,
            saw=saw,
            expected=f"about {base_loss:.2f}, the base's",
            remedy="Compare its answers with the base's. Training on texts of another kind does this too.",
        )
        return "far from base", (far,)
    # Without a base to compare with, a model of another language is as likely as a broken one.
    untrained = finding(
        "U708" if base_loss is None else "U705",
        subject=own.architecture,
        saw=saw,
        expected=f"far below {own.uniform_loss:.2f}, the loss of guessing blindly",
        remedy="The weights are not those of a trained language model: check how they were saved.",
    )
    return "untrained", (untrained,)


def _without_loss(folder: Path, verdict: Verdict, found: Finding, began: float) -> ForwardProof:
    """Return the proof of a model that was not run to the end."""
    seconds = time.perf_counter() - began
    return ForwardProof(folder, None, None, 0, None, None, None, verdict, (found,), seconds)


def _broken(error: InferenceError) -> Finding:
    """Return an error as the finding it is here."""
    saw = error.problem if error.saw is None else f"{error.problem}: {error.saw}"
    return finding("U705", subject=error.subject, saw=saw, expected=error.expected, remedy=error.hint)
