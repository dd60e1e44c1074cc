"""The fingerprint of a model in training, taken by its ranks together, and the training left as it was.

The sharded model itself is run, in eval mode and without gradients, with whatever precision it trains in.
Flags of modules are set and set back one by one: `train()` and `eval()` of some adapters move weights about.
Compiled parts run eagerly meanwhile, since other shapes and modes would make them compile again. Copies of
parameters that FSDP gathers, and keeps after a forward pass without a backward one, are let go.

Source:
    torch/distributed/fsdp/_runtime_utils.py (`_post_forward_reshard`: the root is kept);
    torch/nn/parallel/distributed.py (`_pre_forward`: buffers are broadcast before a forward pass);
    torch/compiler/__init__.py (`set_stance`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._common_utils import HandleTrainingState, TrainingState
from torch.nn import Embedding, Module

try:
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState as FullyShardedState
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp._fsdp_common import TrainingState as FullyShardedState

from unshard.errors import InferenceError, UnshardError
from unshard.findings import Finding, finding
from unshard.inference.fingerprint import (
    Machinery,
    coarsest,
    fingerprint_of,
    print_sequence,
    products_seen,
)
from unshard.inference.fingerprint_sequences import FingerprintSequence, fingerprint_sequences
from unshard.record.description import Fingerprint, SequencePrint
from unshard.training.live.module_tree import bare_module, class_names, model_without_adapters, wrapped_in
from unshard.training.live.resharding import let_go_of_copies
from unshard.training.ranks.protocol import Ranks
from unshard.training.recording.describing_run import model_config_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

T = TypeVar("T")

_LONGEST_REASON = 300
_SHORT_CONTEXT = 64  # of a model that does not say how long its sequences may be
_PHASE = "taking the fingerprint"
# What is around a model without taking part in how it computes. DDP would send the buffers of rank 0 around.
_PASSIVE = frozenset({"OptimizedModule", "DistributedDataParallel", "DataParallel"})


def take_fingerprint(
    model: Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] = (),
    ranks: Ranks,
) -> tuple[Fingerprint | None, tuple[Finding, ...]]:
    """Return how a model in training behaves, or None and the reason. Every rank calls it.

    Both are those of rank 0 on every rank. The model, its training state and all random states are left as
    they were. A model that fails is a finding; the same ranks fail together.

    Args:
        model: The model, wrapped as it is trained.
        tokenizer: Makes tokens of texts; without one, sequences are numbers alone.
        prompts: Texts beside the built-in ones.
        ranks: All ranks.

    Memory:
        Parameters that FSDP gathers for a forward pass; activations and logits of one sequence of at most
        256 tokens; float32 logits of 64 tokens.

    Raises:
        RankError: A rank died, or did not come.
    """
    config = model_config_of(model)

    def prepared() -> tuple[FingerprintSequence, ...]:
        _require_fit(model, config)
        return _sequences(model, config, tokenizer, prompts)

    sequences, reason = _first(ranks, _attempted(prepared) if ranks.rank == 0 else ((), None))
    if reason is not None:
        return None, (_untaken(model, reason),)
    prints, computed, vocabulary = list[SequencePrint](), set[str](), 0
    forward = _forward_of(model, config)
    with as_in_inference(model):
        for sequence in sequences or ():
            with products_seen() as seen:
                printed, failure = _attempted(partial(print_sequence, forward, sequence))
            failures = [each for each in ranks.gather(_PHASE, failure) if each is not None]
            if printed is None or failures:
                _make_idle(model)
                return None, (_untaken(model, failures[0]),)
            prints.append(printed[0])
            vocabulary = printed[1]
            computed |= seen
    machinery = _machinery(model, config)
    ran_in = coarsest(*computed, default=machinery.weights)
    return ranks.broadcast(
        _PHASE, fingerprint_of(prints, machinery, computed=ran_in, vocabulary=vocabulary)
    ), ()


@contextmanager
def as_in_inference(model: Module) -> Iterator[None]:
    """Put a model in training into eval mode without gradients, and everything back as it was.

    Random states, the flags of every module, and what FSDP gathers meanwhile; compiled parts run eagerly.
    """
    flags = [(module, module.training) for module in model.modules()]
    accelerator = _compute_device(model)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        # Without devices only the CPU's state is kept; this one is the device that forward passes draw on.
        devices = [] if accelerator.type in ("cpu", "meta") else [accelerator]
        kind = accelerator.type if devices else "cuda"
        stack.enter_context(torch.random.fork_rng(devices=devices, device_type=kind))
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, was_training in flags:
                module.training = was_training
            let_go_of_copies(model)


def _attempted(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what `work` returns, or in one line how it fails: the model is the user's, and already saved."""
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not fail a save that is done
        told = str(error) if isinstance(error, UnshardError) else f"{type(error).__name__}: {error}"
        return None, told.strip().partition("\n")[0][:_LONGEST_REASON]


def _first(ranks: Ranks, own: T) -> T:
    return ranks.broadcast(_PHASE, own if ranks.rank == 0 else None)


def _require_fit(model: Module, config: PreTrainedConfig | None) -> None:
    """Raise unless the model may be one whose next token can be asked for with nothing but tokens.

    Raises:
        InferenceError: It is not; nothing was run.
    """
    kind = type(bare_module(model)).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise InferenceError(kind, "is an encoder with a decoder, and needs two sequences")
    taken = signature(model_without_adapters(model).forward).parameters  # PEFT's own takes anything
    needed = [
        p
        for p in taken.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if config is not None and "input_ids" not in taken:
        raise InferenceError(kind, "does not take `input_ids`", saw=", ".join(taken)[:200])
    if len(needed) > 1:
        raise InferenceError(kind, "takes more than tokens", saw=", ".join(p.name for p in needed)[:200])


def _sequences(
    model: Module,
    config: PreTrainedConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str],
) -> tuple[FingerprintSequence, ...]:
    """Return the sequences.

    Raises:
        InferenceError: There are none that fit.
    """
    text: Any = None if config is None else config.get_text_config()
    rows = [module.num_embeddings for module in model.modules() if isinstance(module, Embedding)]
    vocabulary = getattr(text, "vocab_size", None) or (rows[0] if rows else 0)
    context = _SHORT_CONTEXT if text is None else getattr(text, "max_position_embeddings", None)
    found = fingerprint_sequences(tokenizer, vocabulary, context, prompts)
    if not found:
        raise InferenceError(
            type(bare_module(model)).__name__, "has no vocabulary that a sequence fits", saw=vocabulary
        )
    return found


def _forward_of(model: Module, config: PreTrainedConfig | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return how to call a model: from tokens to logits."""
    called, device = _called(model), _compute_device(model)
    options: dict[str, Any] = {}
    if config is not None and hasattr(config.get_text_config(), "use_cache"):
        options["use_cache"] = False

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.to(device)
        output: Any = called(tokens) if config is None else called(input_ids=tokens, **options)
        if isinstance(output, Mapping):
            output = output.get("logits")
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        logits: torch.Tensor = output  # whether it is one is looked at where it is used
        return logits

    return forward


def _called(model: Module) -> Module:
    """Return the module to call: without wrappers that only compile, or only average gradients."""
    while class_names(model) & _PASSIVE and (inner := wrapped_in(model)) is not None:
        model = inner[1]
    return model


def _compute_device(model: Module) -> torch.device:
    """Return where a model computes; its parameters may wait elsewhere."""
    for module in model.modules():
        if isinstance(device := getattr(module, "compute_device", None), torch.device):
            return device  # FSDP1
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.device_type != "cpu":
            return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())
        return parameter.device
    return torch.device("cpu")


def _make_idle(model: Module) -> None:
    """Tell FSDP that no forward pass is under way any more, after one that raised."""
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            module.training_state = TrainingState.IDLE
            if module._handle is not None:
                module._handle._training_state = HandleTrainingState.IDLE
        elif callable(state_of := getattr(module, "_get_fsdp_state", None)):
            state = state_of()
            state._training_state = FullyShardedState.IDLE
            state._modules_to_run_forward.clear()
            for group in getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]:
                if group is not None:
                    group._training_state = FullyShardedState.IDLE
    let_go_of_copies(model)


def _machinery(model: Module, config: PreTrainedConfig | None) -> Machinery:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
    device = _compute_device(model)
    named = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    text = None if config is None else config.get_text_config()
    return Machinery(
        weights=max(counts, key=lambda name: counts[name], default="float32"),
        attention=getattr(config, "_attn_implementation", None),
        device=f"{device.type}{named}",
        layers=getattr(text, "num_hidden_layers", None),
    )


def _untaken(model: Module, reason: str) -> Finding:
    return finding(
        "U710",
        subject=type(bare_module(model)).__name__,
        saw=reason,
        expected="logits for tokens alone",
        remedy="Nothing: what was saved is whole. Try the model itself: unshard run.",
    )
