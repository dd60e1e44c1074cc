"""From what does not fit to one error that names all of it, with the likely cause.

Every cause is a small rule: it looks at the evidence and gives a sentence, or nothing. Rules know
nothing of one another; the first one that speaks is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unshard.base import Base
from unshard.errors import MatchError, Mismatch
from unshard.match.needs import Needs, Shape
from unshard.recipes.experts import RECIPES
from unshard.recipes.families import Sizes, family_of, sizes_of
from unshard.recipes.known_models import nearest_model
from unshard.recipes.leftovers import flat_parameters
from unshard.recipes.ties import is_output_head

_SHOWN = 3
_UNEXPLAINED = (
    "Name the model that training started from with --base. If this is the one, the checkpoint is not whole: "
    "take another step, or save it again."
)
_KINDS = {
    "missing": "missing",
    "unexpected": "unknown to it",
    "shape": "of another shape",
    "dtype": "of another kind of dtype",
    "value": "not what the configuration gives",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a rule looks at.

    Attributes:
        shapes: The checkpoint's tensors by their names in the model.
        needs: What the model needs, where that is known.
        base: The base.
        mismatches: Everything that does not fit.
        prefixes: Prefixes below which a whole model lies, with something else beside it.
    """

    shapes: Mapping[str, Shape]
    needs: Needs | None
    base: Base
    mismatches: Sequence[Mismatch]
    prefixes: Sequence[str] = ()

    def names(self, kind: str) -> list[str]:
        """Return the names of all mismatches of a kind."""
        return [mismatch.name for mismatch in self.mismatches if mismatch.kind == kind]

    @property
    def expected_shapes(self) -> dict[str, Shape]:
        """The shapes that the model needs, where they are known."""
        expected = {} if self.needs is None else self.needs.expected
        return {name: tensor.shape for name, tensor in expected.items() if tensor.shape is not None}


def match_error(subject: object, evidence: Evidence) -> MatchError:
    """Return the error that tells of every mismatch, and why they are probably there."""
    parts = [
        part
        for kind, words in _KINDS.items()
        if (part := _summary([m for m in evidence.mismatches if m.kind == kind], words))
    ]
    causes = [cause for rule in _RULES if (cause := rule(evidence)) is not None]
    hint = causes[0] if causes else _UNEXPLAINED
    return MatchError(
        subject,
        f"is not the model of the base `{evidence.base.reference}`: {'; '.join(parts)}",
        mismatches=evidence.mismatches,
        hint=hint,
    )


def _summary(mismatches: Sequence[Mismatch], words: str) -> str:
    """Return "2 tensors are missing (`a`, `b`)", or "" where there are none."""
    if not mismatches:
        return ""
    shown = ", ".join(_rendered(mismatch) for mismatch in mismatches[:_SHOWN])
    rest = f" and {len(mismatches) - _SHOWN} more" if len(mismatches) > _SHOWN else ""
    return f"{_tensors(len(mismatches))} {words} ({shown}{rest})"


def _rendered(mismatch: Mismatch) -> str:
    facts = [
        f"{word} {fact}" for word, fact in (("saw", mismatch.saw), ("expected", mismatch.expected)) if fact
    ]
    return f"`{mismatch.name}`" + (f": {', '.join(facts)}" if facts else "")


def _flat_parameters(evidence: Evidence) -> str | None:
    """FSDP units flattened into one vector, without names and shapes."""
    flat = flat_parameters(evidence.shapes)
    if not flat:
        return None
    return (
        f"`{flat[0]}` is a whole FSDP unit in one vector, without the names and shapes of its parameters: "
        "this is LOCAL_STATE_DICT of one rank. Look for a full or sharded checkpoint of the same step, or "
        "save with StateDictType.FULL_STATE_DICT."
    )


def _not_gathered(evidence: Evidence) -> str | None:
    """Parameters as one rank of FSDP or ZeRO-3 holds them: flat, in part, or empty."""
    wanted = evidence.expected_shapes
    parts = {
        name: math.prod(evidence.shapes[name])
        for name in evidence.names("shape")
        if name in wanted and len(evidence.shapes[name]) == 1 and evidence.shapes[name] != wanted[name]
    }
    flat = [name for name in parts if len(wanted[name]) > 1 or parts[name] == 0]
    if not flat:
        return None
    have, need = sum(parts.values()), sum(math.prod(wanted[name]) for name in parts)
    what = (
        "empty placeholders (torch.Size([0]))"
        if have == 0
        else "rank-local flat parameters, not full tensors"
    )
    return (
        f"{_tensors(len(parts))} {what}: {have:,} of {need:,} elements. The model was saved without "
        "gathering its parameters, and the rest is not in this file. Look for a full or sharded checkpoint "
        "of the same step (pytorch_model_fsdp_0, *.distcp, the files of the other ranks), or save with "
        "StateDictType.FULL_STATE_DICT."
    )


def _fused_experts(evidence: Evidence) -> str | None:
    """Experts under the names that transformers 5 has in memory."""
    fused = [
        name for name in evidence.names("unexpected") if name.endswith((".gate_up_proj", "experts.down_proj"))
    ]
    if not fused or not any(".experts." in name for name in evidence.names("missing")):
        return None
    kind = evidence.base.config.get("model_type")
    if kind in RECIPES:
        return (
            f"`{fused[0]}` is {evidence.shapes[fused[0]]}, which cannot be taken apart as models of type "
            f"`{kind}` are. Name the model that training started from with --base."
        )
    return (
        f"`{fused[0]}` holds all experts of a layer in one tensor, as transformers 5 has them in memory; the "
        f"base has one tensor per expert, and nothing tells how models of type `{kind}` are taken apart. "
        'Try pip install -U "unshard[hf]": transformers may know it; or save with save_pretrained.'
    )


def _other_experts(evidence: Evidence) -> str | None:
    """A base with another number of experts."""
    expected = () if evidence.needs is None else evidence.needs.expected
    saw, wanted = (
        max((int(found[1]) + 1 for name in names if (found := _EXPERT.search(name))), default=0)
        for names in (evidence.shapes, expected)
    )
    if not saw or not wanted or saw == wanted:
        return None
    return (
        f"The base has {wanted} experts in a layer, and the checkpoint has {saw}. Name the model that "
        "training started from with --base."
    )


_EXPERT = re.compile(r"\.experts\.(\d{1,9})\.")


def _one_model_of_several(evidence: Evidence) -> str | None:
    """A whole model below a prefix, with something else beside it."""
    if not evidence.prefixes:
        return None
    prefix = evidence.prefixes[0].rstrip(".")
    return f"A whole model lies below `{prefix}`; take it alone with --select {prefix}"


def _other_model(evidence: Evidence) -> str | None:
    """A base of another size, or of another family."""
    wanted = evidence.expected_shapes or dict.fromkeys(evidence.needs.expected if evidence.needs else (), ())
    ours, theirs = family_of(evidence.shapes), family_of(wanted)
    if ours is not None and theirs is not None and ours is not theirs:
        return (
            f"The base is of another family: the checkpoint is {ours.title}, the base is {theirs.title}. "
            "Name the model that training started from with --base."
        )
    saw, expected = sizes_of(evidence.shapes), sizes_of(wanted)
    if not any(
        None not in pair and pair[0] != pair[1]
        for pair in (
            (saw.layers, expected.layers),
            (saw.hidden, expected.hidden),
            (saw.intermediate, expected.intermediate),
        )
    ):
        return None
    return (
        f"The base is of another size: the checkpoint has {_in_words(saw)}; the base has "
        f"{_in_words(expected)}. Name the model that training started from with --base."
    )


def _in_words(sizes: Sizes) -> str:
    """Return "16 layers of width 2048 (8192 inside), 128256 tokens, as Llama-3.2-1B"."""
    nearest = nearest_model(sizes)
    width = f"width {sizes.hidden}" + (f" ({sizes.intermediate} inside)" if sizes.intermediate else "")
    facts = [
        f"{sizes.layers} layers of {width}" if sizes.layers else width,
        *([f"{sizes.vocabulary} tokens"] if sizes.vocabulary else []),
        *([f"as {nearest}"] if nearest else []),
    ]
    return ", ".join(facts)


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"


def _missing_head(evidence: Evidence) -> str | None:
    """No output head in a model that does not tie it."""
    heads = [name for name in evidence.names("missing") if is_output_head(name)]
    if not heads:
        return None
    return (
        f"The configuration does not tie `{heads[0]}` to the embedding, and an engine would fill it with "
        "random numbers. If training tied them, set tie_word_embeddings to true in a copy of the base's "
        "config.json and name that copy with --base; else look for a checkpoint that holds it."
    )


def _other_head(evidence: Evidence) -> str | None:
    """A head for another task than the base's."""
    heads = [name for name in evidence.names("unexpected") if name.startswith(_TASK_HEADS)]
    if not heads:
        return None
    return (
        f"`{heads[0]}` is a head for another task than the base's. Name a base whose config.json describes "
        "what was trained (its architectures, and labels where it has some)."
    )


_TASK_HEADS = ("score.", "classifier.", "qa_outputs.", "v_head.", "value_head.", "pre_classifier.", "cls.")


def _not_castable(evidence: Evidence) -> str | None:
    """Numbers of eight bits, which are nothing without their scales."""
    small = [m for m in evidence.mismatches if m.kind == "dtype" and str(m.saw).startswith("float8")]
    if not small:
        return None
    return (
        f"`{small[0].name}` is {small[0].saw}, and numbers of float8 mean nothing without their scales. Keep "
        "them with --dtype keep, or look for the checkpoint in the precision of training."
    )


def _other_rotation(evidence: Evidence) -> str | None:
    """Rotary frequencies that do not follow from the configuration."""
    if not evidence.names("value"):
        return None
    return (
        "The checkpoint was trained with other rotary frequencies than the base's configuration gives, and "
        "would answer nonsense with these. Name the base that training started from, or correct rope_theta "
        "and rope_scaling in a copy of its config.json and name that copy with --base."
    )


_RULES: tuple[Callable[[Evidence], str | None], ...] = (
    _flat_parameters,
    _not_gathered,
    _one_model_of_several,
    _fused_experts,
    _other_experts,
    _other_model,
    _missing_head,
    _other_head,
    _not_castable,
    _other_rotation,
)
