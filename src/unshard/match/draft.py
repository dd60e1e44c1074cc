"""A model in the making: what is kept under which name, what is dropped, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from unshard.errors import Mismatch
from unshard.findings import Finding, finding
from unshard.match.frequencies import rotary_variants
from unshard.match.outline import Outline
from unshard.match.questions import Answer, Answers
from unshard.match.ties import TiedGroup
from unshard.match.vocabulary import Resize
from unshard.recipes.recomputable import Kind


@dataclass(slots=True)
class Draft:
    """A model in the making.

    Attributes:
        outline: What names, shapes and configuration tell.
        kept: The source of every tensor of the result, by its name there.
        dropped: Why a source tensor is not in the result.
        mismatches: What does not fit.
        tied: Whether embedding and head are one tensor; None where there is no pair.
        diverged: Whether the base ties a pair that the checkpoint does not.
        resize: How the vocabulary was resized.
        findings: What a person should know.
    """

    outline: Outline
    kept: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    mismatches: list[Mismatch] = field(default_factory=list)
    tied: bool | None = None
    diverged: bool = False
    resize: Resize | None = None
    findings: list[Finding] = field(default_factory=list)

    def drop(self, source: str, reason: str) -> None:
        """Leave a tensor out of the result."""
        self.dropped[source] = reason
        self.kept.pop(self.outline.naming.names[source], None)

    def tell(self, code: str, names: list[str], saw: str, **more: str | None) -> None:
        """Add one finding about one or many tensors."""
        rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self.findings.append(finding(code, subject=names[0] + rest, saw=saw, **more))


def new_draft(outline: Outline, answers: Answers) -> Draft:
    """Return the draft after everything that only names and answers decide."""
    draft = Draft(outline, kept=outline.sources)
    _leave_out_training_state(draft)
    _leave_out_recomputable(draft, answers)
    for group in outline.ties.groups:
        _decide_tie(draft, group, answers)
    if draft.tied is None and any(name in draft.kept for name in outline.ties.untied):
        draft.tied = False
    return draft


def _leave_out_training_state(draft: Draft) -> None:
    names = [source for source in draft.outline.naming.names if source in draft.outline.training_only]
    for source in names:
        draft.drop(source, "state of training, which a model has no place for")
    if names:
        draft.tell("U102", names, "state that the training engine keeps beside the parameters")


def _leave_out_recomputable(draft: Draft, answers: Answers) -> None:
    """Drop what the model computes itself, if its values are those the model computes."""
    told: dict[tuple[str, str], list[str]] = {}
    for source, kind in draft.outline.recomputable.items():
        answer = answers[(source,)]
        if answer.holds:
            draft.drop(source, f"the model computes it: {answer.evidence}")
            told.setdefault(("U202", answer.evidence), []).append(source)
        elif answer.holds is None and draft.outline.needs is not None:
            draft.drop(source, f"the model computes it; not checked: {answer.evidence}")
            told.setdefault(("U203", answer.evidence), []).append(source)
        elif answer.holds is False:
            _contradict(draft, source, kind, answer)
    for (code, evidence), sources in told.items():
        draft.tell(code, sources, evidence)


def _contradict(draft: Draft, source: str, kind: Kind, answer: Answer) -> None:
    """Note a tensor whose values are not those the model computes; without it, it would be wrong."""
    base, target = draft.outline.base, draft.outline.naming.names[source]
    if kind == "frequencies":
        assert base is not None
        variants = rotary_variants(base.config, target)
        allowed = " or ".join(dict.fromkeys(_in_words(v.title, v.dimensions) for v in variants))
        draft.mismatches.append(Mismatch("value", target, answer.evidence, allowed))
        draft.kept.pop(target)
    elif draft.outline.needs is not None:
        draft.mismatches.append(Mismatch("unexpected", target, f"{kind} that is none: {answer.evidence}"))
        draft.kept.pop(target)


def _in_words(title: str, dimensions: int | None) -> str:
    return title if dimensions is None else f"{dimensions // 2} of {title}"


def _decide_tie(draft: Draft, group: TiedGroup, answers: Answers) -> None:
    """Write equal tensors once, under the name of published files; diverged ones both."""
    sources = {name: draft.kept[name] for name in group.present}
    first, *others = group.present
    if first != group.kept:
        draft.kept[group.kept] = draft.kept.pop(first)
    diverged = False
    for name in others:
        answer = answers[sources[first], sources[name]]
        if answer.holds:
            draft.drop(sources[name], f"equal to `{sources[first]}`, with which the model ties it")
            draft.tell("U301", [sources[name]], f"equal to `{sources[first]}`: {answer.evidence}")
            continue
        diverged = True
        draft.tell(
            "U302",
            [sources[name]],
            f"not `{sources[first]}`: {answer.evidence}",
            expected="equal tensors, since the base ties them",
            remedy=(
                "Nothing is lost: both are in the result, and tie_word_embeddings is false at every level. "
                "Engines that ignore the flag answer wrongly; if training was to tie them, look there."
            ),
        )
    if group.has_head:
        draft.tied, draft.diverged = not diverged, draft.diverged or diverged
