"""Which of the models in a file is meant: the only one, or the one that `--select` names.

A prefix selects what it is a prefix of, segment by segment, in the names that containers and tensors
have together: `model`, `state.model`, `actor.backbone`. It is removed from the names. A single dot
selects the top level, where containers lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from unshard.errors import AmbiguousModelError, OptionError
from unshard.readers.rendering import cut, listed

Tensor = TypeVar("Tensor")
TOP = "."


@dataclass(frozen=True, slots=True)
class Selected(Generic[Tensor]):
    """The model that is meant.

    Attributes:
        container: The container it lies in.
        prefix: What was removed from its names below the container, without the last dot.
        tensors: Its tensors by name.
    """

    container: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]


def select_model(
    groups: Mapping[tuple[str, ...], dict[str, Tensor]], select: str | None, subject: object
) -> Selected[Tensor]:
    """Return the model among groups of tensors, of which there is at least one.

    Raises:
        AmbiguousModelError: There are several, and `select` names none or more than one.
        OptionError: `select` names nothing.
    """
    if select is None:
        if len(groups) > 1:
            raise _ambiguous(groups, subject)
        ((container, tensors),) = groups.items()
        return Selected(container, "", tensors)
    if select == TOP:
        if () not in groups:
            raise _nothing(groups, select, subject)
        return Selected((), "", groups[()])
    wanted = tuple(select.strip(".").split("."))
    found = _below(groups, wanted, subject) or _below_names(groups, wanted, subject)
    if found is None:
        raise _nothing(groups, select, subject)
    return found


def _below(
    groups: Mapping[tuple[str, ...], dict[str, Tensor]], wanted: tuple[str, ...], subject: object
) -> Selected[Tensor] | None:
    """Return the tensors whose container and name begin with a prefix."""
    found: dict[str, Tensor] = {}
    depth = 0
    for container, tensors in groups.items():
        segments = tuple(".".join(container).split(".")) if container else ()
        for name, tensor in tensors.items():
            whole = (*segments, *name.split("."))
            if whole[: len(wanted)] != wanted or len(whole) == len(wanted):
                continue
            rest = ".".join(whole[len(wanted) :])
            if found.setdefault(rest, tensor) is not tensor:
                raise AmbiguousModelError(subject, f"holds two tensors `{cut('.'.join(whole))}`")
            depth = max(depth, min(len(segments), len(wanted)))
    return Selected(wanted[:depth], ".".join(wanted[depth:]), found) if found else None


def _below_names(
    groups: Mapping[tuple[str, ...], dict[str, Tensor]], wanted: tuple[str, ...], subject: object
) -> Selected[Tensor] | None:
    """Return the tensors of the one container whose names begin with a prefix."""
    each = ((container, _below({(): tensors}, wanted, subject)) for container, tensors in groups.items())
    found = {container: inner for container, inner in each if inner is not None}
    if len(found) > 1:
        raise _ambiguous({container: inner.tensors for container, inner in found.items()}, subject, wanted)
    for container, inner in found.items():
        return Selected(container, inner.prefix, inner.tensors)
    return None


def _ambiguous(
    groups: Mapping[tuple[str, ...], Mapping[str, object]], subject: object, wanted: tuple[str, ...] = ()
) -> AmbiguousModelError:
    counts = [f"`{_shown(path)}` ({len(tensors)} tensors)" for path, tensors in groups.items()]
    hints = [cut(".".join((*path, *wanted))) or TOP for path in groups]
    return AmbiguousModelError(
        subject,
        f"holds {len(groups)} models, and nothing says which one is meant",
        saw=listed(counts, at_most=5),
        hint=f"Choose one: {' or '.join(f'--select {hint}' for hint in hints[:3])}",
    )


def _nothing(
    groups: Mapping[tuple[str, ...], Mapping[str, object]], select: str, subject: object
) -> OptionError:
    prefixes: dict[str, int] = {}
    for container, tensors in groups.items():
        for name in tensors:
            prefix = ".".join(container) or name.partition(".")[0]
            prefixes[prefix] = prefixes.get(prefix, 0) + 1
    return OptionError(
        f"--select {cut(select)}",
        f"names nothing in `{subject}`",
        saw="tensors below " + listed([f"`{cut(p)}` ({n})" for p, n in prefixes.items()], at_most=5),
    )


def _shown(path: tuple[str, ...]) -> str:
    return cut(".".join(path)) or "the top level"
