"""What a saved model holds, decided from a live one to the last byte: tensors, files, and what is told.

    live model ──▶ base, adapter's settings ──▶ match ──▶ dtypes ──▶ files

Every rank decides the same from the same data. Answers to questions come from whoever can read tensors of
all ranks; two names of one parameter need no reading.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from unshard.base import Base
from unshard.checkpoint import Checkpoint
from unshard.checks.inference_files import check_inference_files
from unshard.dtypes import DType
from unshard.errors import OptionError
from unshard.findings import Finding
from unshard.match import Answer, Answers, Choices, Model, Question, match_model, outline_of, questions_for
from unshard.match.config_edits import dtype_edits
from unshard.match.dtype_policy import main_dtype
from unshard.match.kept_adapter import keep_adapter
from unshard.match.questions import EqualQuestion
from unshard.plan import OutputFile, SideFile
from unshard.recipes.adapters import plain_name
from unshard.recipes.buffers import is_buffer
from unshard.tensors import CastTensor, DescribedTensor, Tensor
from unshard.training.publishing.adapters import ComputedByRank, computed_by_ranks
from unshard.training.publishing.options import SaveOptions
from unshard.training.publishing.torch_format import plan_pt_file
from unshard.writers.adapter_folder import INSIDE, plan_adapter_folder, plan_tokenizer_files
from unshard.writers.model_files import plan_model_files
from unshard.writers.safetensors_folder import plan_safetensors

Answering = Callable[[tuple[Question, ...]], Answers]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is written.

    Attributes:
        model: The tensors of the result: of a model, or of an adapter that is kept by itself.
        adapter: The tensors of an adapter that lies in a folder of its own beside the model, or None.
        files: The files that hold tensors.
        side_files: All others, the record aside.
        findings: What a person should know.
    """

    model: Model
    adapter: Model | None
    files: tuple[OutputFile, ...]
    side_files: tuple[SideFile, ...]
    findings: tuple[Finding, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is written, by its name and, for an adapter beside a model, its own name."""
        beside = {} if self.adapter is None else self.adapter.tensors
        return {**self.model.tensors, **beside}


def plan_contents(
    checkpoint: Checkpoint,
    base: Base | None,
    options: SaveOptions,
    answering: Answering,
    *,
    file_name: str | None = None,
    ties: Mapping[str, str] | None = None,
    buffers: Collection[str] = (),
) -> Contents:
    """Return what is written of a live model. Nothing is read but what questions need.

    Args:
        checkpoint: The live tensors, as `with_adapter_config` gives them.
        base: What they are matched to, as `Prepared.base_in` gives it; None for a module without a
            configuration, of which tensors alone are written.
        options: What was asked for.
        answering: Answers questions, on every rank alike.
        file_name: The name of the one file that is written, or None for a folder.
        ties: Names of the module that repeat another tensor of it, and that tensor. A state dict of
            torch's holds both, as FSDP gathers them; files of safetensors never hold one twice.

        buffers: Names of the module that are those of buffers, whose dtype no policy but `base` changes.

    Raises:
        OptionError: An adapter is to be kept, and there is none.
        MatchError: The tensors are not the model that its class describes.
        UnsupportedLayoutError: It has an adapter that cannot be merged.
    """
    choices = Choices(dtype=options.dtype, adapter=options.adapter, computing=computed_by_ranks)
    kept = None if options.adapter == "merge" else keep_adapter(checkpoint, base, choices)
    if kept is not None and options.adapter == "keep":
        file, config = plan_adapter_folder(kept, inside="")
        beside = (config, *plan_tokenizer_files(base))
        return Contents(kept.model, None, (file,), beside, kept.model.findings)
    outline = outline_of(checkpoint, base, choices)
    answers = _answered(questions_for(outline), answering)
    model = _typed(match_model(outline, dtype=options.dtype, answers=answers), base, options, buffers)
    files, index = _tensor_files(model.tensors, options, file_name, ties or {})
    if file_name is not None:
        return Contents(model, None, files, (), model.findings)
    side_files = (*index, *(() if base is None else plan_model_files(checkpoint, base, model)))
    lacking = check_inference_files({file.name for file in side_files}, has_base=base is not None)
    findings = (*model.findings, *lacking)
    if kept is None:
        return Contents(model, None, files, side_files, findings)
    file, config = plan_adapter_folder(kept, inside=INSIDE)
    told = tuple(item for item in kept.model.findings if item not in findings)
    return Contents(model, kept.model, (*files, file), (*side_files, config), (*findings, *told))


def _tensor_files(
    tensors: Mapping[str, Tensor], options: SaveOptions, file_name: str | None, ties: Mapping[str, str]
) -> tuple[tuple[OutputFile, ...], tuple[SideFile, ...]]:
    if options.format == "safetensors":
        return plan_safetensors(tensors, max_file_bytes=options.max_file_bytes)
    plain = {plain_name(again): plain_name(kept) for again, kept in ties.items()}
    return (plan_pt_file(tensors, file_name, plain),), ()


def _answered(questions: tuple[Question, ...], answering: Answering) -> Answers:
    """Return all answers; those about one parameter with two names are given here.

    Where an adapter changes one of two tied parameters, training computes with two.
    """
    known: dict[tuple[str, ...], Answer] = {}
    for question in questions:
        if isinstance(question, EqualQuestion):
            first, other = question.tensors
            if _pieces(first) == _pieces(other):
                known[question.names] = Answer(holds=True, evidence="one parameter with two names")
            elif _is_computed(first) != _is_computed(other):
                known[question.names] = Answer(holds=False, evidence="an adapter changes one of them")
    open_ones = tuple(question for question in questions if question.names not in known)
    return {**known, **(answering(open_ones) if open_ones else {})}


def _pieces(tensor: Tensor) -> object:
    return tuple(tensor.pieces) if isinstance(tensor, DescribedTensor) else tensor


def _is_computed(tensor: Tensor) -> bool:
    return isinstance(tensor, DescribedTensor) and any(
        isinstance(piece.source, ComputedByRank) for piece in tensor.pieces
    )


def _typed(model: Model, base: Base | None, options: SaveOptions, buffers: Collection[str]) -> Model:
    """Return a model whose buffers are as they were, with the dtypes that patterns of names ask for."""
    _require_matching(options, model)
    own = {name for name, sources in model.sources.items() if all(source in buffers for source in sources)}
    tensors = {
        name: _uncast(tensor) if name in own and options.dtype != "base" else _cast(name, tensor, options)
        for name, tensor in model.tensors.items()
    }
    if base is None or all(tensors[name] is tensor for name, tensor in model.tensors.items()):
        return replace(model, tensors=tensors)
    floats = {tensor.dtype for tensor in tensors.values() if tensor.dtype.kind == "float"}
    edits = dtype_edits(base.config, main_dtype(tensors), uniform=len(floats) == 1)
    old = {key for key in model.config_edits if key.rpartition(".")[2] in ("dtype", "torch_dtype")}
    kept = {key: value for key, value in model.config_edits.items() if key not in old}
    return replace(model, tensors=tensors, config_edits={**kept, **edits})


def _require_matching(options: SaveOptions, model: Model) -> None:
    """Raise where a pattern of names is found in none of them.

    Raises:
        OptionError: One is, so a dtype that was asked for would be given to nothing.
    """
    idle = [p.pattern for p, _ in options.dtypes if not any(p.search(name) for name in model.tensors)]
    if idle:
        raise OptionError(
            "dtype",
            "has a pattern that is found in no name of a tensor",
            saw=repr(idle[0])[:60],
            expected=f"a regular expression that is found in a name such as {next(iter(model.tensors), '')}",
        )


def _uncast(tensor: Tensor) -> Tensor:
    return tensor.source if isinstance(tensor, CastTensor) else tensor


def _cast(name: str, tensor: Tensor, options: SaveOptions) -> Tensor:
    if is_buffer(name) or tensor.dtype.kind != "float" or tensor.dtype.itemsize < 2:
        return tensor
    dtype: DType | None = next((d for pattern, d in options.dtypes if pattern.search(name)), None)
    if dtype is None or dtype == tensor.dtype:
        return tensor
    return CastTensor(tensor, dtype)
