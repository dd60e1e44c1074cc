"""Tied weights of a model folder: what its flag says at every level, and what lies there.

Sharing is a flag when a model is loaded. Engines read it at different levels, and do different things
with an output head that is there although the flag says that it is not. This is the one check that
reads tensor bytes without being asked: a few thousand numbers of the two. Where tensors may be read, it
reads all of them, up to the first difference.
"""

from __future__ import annotations

from collections.abc import Iterator

from unshard.base.configuration import TIE_FLAG, Config, places_of, tie_flag
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import quoted
from unshard.errors import InputError
from unshard.findings import Finding, finding
from unshard.match.questions import Answer, EqualQuestion, answer_questions
from unshard.match.ties import find_ties
from unshard.recipes.ties import is_output_head, shared_pairs
from unshard.tensors import Tensor, element_count
from unshard.tensors.sampling import read_sample_bytes

# What is looked at of a tensor without being asked for its bytes: as many runs of numbers, as long.
_RUNS, _LENGTH = 64, 1024


def _check_pairs(evidence: Evidence) -> Iterator[Finding]:
    """Yield output heads that are there although they are tied, or are copies although they are not."""
    config = _own_config(evidence)
    if config is None:
        return
    flag = tie_flag(config)
    for embedding, head in shared_pairs(evidence.tensors):
        if not is_output_head(head):
            continue
        answer = _compare(evidence, embedding, head)
        if answer is None:
            continue
        if answer.holds:
            yield finding(
                "U306",
                subject=quoted(head),
                saw=f"equal to {quoted(embedding)}: {answer.evidence}; {TIE_FLAG} is {_said(config)}",
                expected="one of the two, and the flag true",
                remedy=f"To save the space, leave it out and set {TIE_FLAG} to true: unshard mend FOLDER OUT",
            )
        elif flag is True:
            yield finding(
                "U303",
                subject=quoted(head),
                saw=f"{TIE_FLAG} is {_said(config)}, and it is not {quoted(embedding)}: {answer.evidence}",
                expected="equal tensors, or the flag false at every level",
                remedy=f"Set {TIE_FLAG} to false in config.json: unshard mend FOLDER --in-place",
            )
            return


def _own_config(evidence: Evidence) -> Config | None:
    """Return the configuration of the folder that is judged; that of a base is mended in a conversion."""
    return None if evidence.folder is None else evidence.folder.json("config.json")


def _compare(evidence: Evidence, first: str, second: str) -> Answer | None:
    """Return whether two tensors are equal, or None where they cannot be read."""
    ours, theirs = evidence.tensors[first], evidence.tensors[second]
    is_large = element_count(ours) > _RUNS * _LENGTH
    try:
        if not evidence.is_deep and is_large and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype):
            return _compare_sample(ours, theirs)
        return answer_questions([EqualQuestion((first, second), (ours, theirs))])[first, second]
    except InputError:
        return None


def _compare_sample(ours: Tensor, theirs: Tensor) -> Answer:
    """Return whether two tensors are equal where they are looked at."""
    sides = [read_sample_bytes(tensor, _RUNS, _LENGTH) for tensor in (ours, theirs)]
    looked = f"{_RUNS * _LENGTH:,} of {element_count(ours):,} numbers that were looked at"
    if sides[0] == sides[1]:
        return Answer(holds=True, evidence=f"equal in all of {looked}; --deep compares the rest")
    return Answer(holds=False, evidence=f"they differ among {looked}")


def _said(config: Config) -> str:
    """Return what the flag is, in words: as it stands, or what its absence means."""
    said = {str(value).lower() for _, value in places_of(config, TIE_FLAG) if isinstance(value, bool)}
    if said:
        return " and ".join(sorted(said))
    return f"not there, which means {str(tie_flag(config)).lower()} for this class"


def _check_missing_head(evidence: Evidence) -> Iterator[Finding]:
    """Yield an output head that the model needs of its own, and that nothing gives."""
    config = _own_config(evidence)
    if config is None or evidence.folder is None or evidence.folder.unreadable:
        return
    shapes = evidence.shapes
    for name in find_ties(shapes, None, config).missing:
        yield finding(
            "U304",
            subject=quoted(name),
            saw=f"missing, and {TIE_FLAG} is {_said(config)}; engines make it up at random",
            expected="an output head of its own",
            remedy=f"If they are tied, set {TIE_FLAG} to true in config.json."
            " Otherwise convert the training checkpoint again.",
        )


def _check_levels(evidence: Evidence) -> Iterator[Finding]:
    """Yield levels of the configuration that disagree, where it matters which of them is read."""
    config = _own_config(evidence)
    if config is None:
        return
    said = {key: value for key, value in places_of(config, TIE_FLAG) if isinstance(value, bool)}
    if len(set(said.values())) < 2:
        return
    heads = [head for _, head in shared_pairs(evidence.tensors) if is_output_head(head)]
    right = not heads
    wrong = [key for key, value in said.items() if value is not right]
    yield finding(
        "U305",
        subject=", ".join(map(quoted, said)),
        saw=" and ".join(f"{str(value).lower()} at {quoted(key)}" for key, value in said.items())
        + (f"; {quoted(heads[0])} is there" if heads else "; there is no output head"),
        expected=f"{str(right).lower()} at every level, since engines read different ones",
        remedy=f"Set {', '.join(map(quoted, wrong))} to {str(right).lower()}: unshard mend FOLDER --in-place",
    )


CHECKS: tuple[Check, ...] = (
    Check("ties.pairs", ("U303", "U306"), _check_pairs),
    Check("ties.missing_head", ("U304",), _check_missing_head),
    Check("ties.levels", ("U305",), _check_levels),
)
