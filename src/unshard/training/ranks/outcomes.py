"""What came of work that all ranks do together, as data, and the one error that all raise of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unshard.errors import RankError, UnshardError, listed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the work of one rank.

    Attributes:
        value: What it returned.
        kind: The class of the error that it raised, or None.
        attributes: Those of the error.
    """

    value: Any
    kind: type[UnshardError] | None = None
    attributes: Mapping[str, object] | None = None


def outcome_of(work: Callable[[], object]) -> tuple[Outcome, Exception | None]:
    """Return what comes of `work`, and the error that it raised itself."""
    try:
        return Outcome(work()), None
    except UnshardError as error:
        return Outcome(None, type(error), vars(error)), error
    except OSError as error:
        return _failed(RankError("the system", "refuses", saw=error)), error
    except Exception as error:  # noqa: BLE001 - raised again, on every rank
        text = "".join(traceback.format_exception(error))
        return _failed(RankError("a rank", "failed", saw=repr(error), hint=text)), error


def _failed(error: RankError) -> Outcome:
    return Outcome(None, type(error), vars(error))


def require_success(phase: str, outcomes: Sequence[Outcome], own: Exception | None) -> None:
    """Raise the same error on every rank where work failed on any.

    Args:
        phase: What was done.
        outcomes: Of every rank.
        own: What was raised here.

    Raises:
        UnshardError: What the first of the failed ranks raised; it names all of them, unless all failed
            alike.
    """
    failed = [rank for rank, outcome in enumerate(outcomes) if outcome.kind is not None]
    if not failed:
        return
    first = outcomes[failed[0]]
    assert first.kind is not None
    assert first.attributes is not None
    error = first.kind.__new__(first.kind)
    vars(error).update(first.attributes)
    alike = all(o.kind is first.kind and o.attributes == first.attributes for o in outcomes)
    if len(outcomes) > 1 and not alike:
        ranks = listed([str(rank) for rank in failed], at_most=8)
        error.problem += f" (rank {ranks} of {len(outcomes)}, while {phase})"
    Exception.__init__(error, error.message)
    raise error from own
