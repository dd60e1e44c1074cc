"""The tensors of a model folder against those of its base: what is missing, beyond, or of another shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from unshard.base.configuration import Config, lookup_int
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.match.needs import account, needs_of
from unshard.recipes.families import layer_number
from unshard.recipes.ties import has_row_per_token
from unshard.sizes import counted

_TASK = re.compile(r"For([A-Z]\w*)$|LMHeadModel$")
# Tasks that a model is given a new head for, and that head and the ones that it takes the place of.
_NEW_HEADS = frozenset(
    ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
)
_HEAD = re.compile(
    r"^((language_model\.)?lm_head|embed_out|cls|predictions|generator_\w+|discriminator_predictions|vocab_\w+"
    r"|score|classifier|pre_classifier|qa_outputs|classification_head|dropout|sequence_summary|head)\."
    r"|(^|\.)pooler\."
)


def _check_names(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that the base has and the folder lacks, and the other way round."""
    folder, base = evidence.folder, evidence.base
    needs = needs_of(base, evidence.tensors) if base is not None else None
    if folder is None or base is None or needs is None or folder.unreadable:
        return
    found = account(needs, evidence.shapes)
    config = folder.json("config.json") or {}
    is_meant = _is_meant_by(config, base.config)
    missing = [name for name in found.missing if not is_meant(name)]
    unexpected = [name for name in found.unexpected if not is_meant(name)]
    if missing:
        yield finding(
            "U232",
            subject=named(missing),
            saw=f"{len(missing):,} of {counted(len(needs.required), 'tensor')} missing;"
            " engines make them up at random, and may only warn",
            expected=f"the tensors of {base.reference}",
            remedy="Convert the training checkpoint again; nothing in the folder knows these numbers.",
        )
    if unexpected:
        yield finding(
            "U233",
            subject=named(unexpected),
            saw=f"{counted(len(unexpected), 'tensor')} that {base.reference} does not have",
            expected="none; mlx-lm and vLLM refuse names that they have no place for",
            remedy="If their values are wanted, the folder belongs to another base; else leave them out.",
        )


def _is_meant_by(config: Config, base: Config) -> Callable[[str], bool]:
    """Return which names may differ from the base's, as the folder's configuration says.

    A class with another head has another head; with fewer layers, the base's last ones are left out.
    """
    tasks = {_task_of(config), _task_of(base)}
    has_other_head = len(tasks) == 2 and bool(tasks & _NEW_HEADS)
    ours, theirs = (lookup_int(each, "num_hidden_layers") for each in (config, base))
    count = ours if ours is not None and theirs is not None and ours < theirs else None

    def is_meant(name: str) -> bool:
        number = layer_number(name)
        if number is not None:
            return count is not None and number >= count
        return has_other_head and _HEAD.search(name) is not None

    return is_meant


def _task_of(config: Config) -> str | None:
    """Return what the class of a configuration is for, `CausalLM`; None where it does not tell."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    match = _TASK.search(first) if isinstance(first, str) else None
    return "CausalLM" if match and match[0] == "LMHeadModel" else match[1] if match else None


def _check_shapes(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that have other shapes than in the base, rows of a resized vocabulary aside."""
    base = evidence.base
    if evidence.folder is None or base is None or base.expected is None:
        return
    unlike = {
        name: (tensor.shape, wanted.shape)
        for name, tensor in evidence.tensors.items()
        if (wanted := base.expected.get(name)) is not None
        and wanted.shape is not None
        and tensor.dtype.kind == "float"
        and tensor.shape != wanted.shape
        and not (has_row_per_token(name) and tensor.shape[1:] == wanted.shape[1:] and tensor.shape)
    }
    if unlike:
        name = next(iter(unlike))
        yield finding(
            "U536",
            subject=named(unlike),
            saw=f"{counted(len(unlike), 'tensor')}, {quoted(name)} as {unlike[name][0]}",
            expected=f"{unlike[name][1]}, as in {base.reference}",
            remedy="Name the model that training started from with --base.",
        )


CHECKS: tuple[Check, ...] = (
    Check("against_base.names", ("U232", "U233"), _check_names),
    Check("against_base.shapes", ("U536",), _check_shapes),
)
