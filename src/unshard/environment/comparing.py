"""This machine beside the environment that a model was trained in, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unshard.environment.description import EnvironmentComparison, Line, Training, Verdict
from unshard.environment.model_types import knows_model_type
from unshard.environment.recorded import aspects_of, find_training
from unshard.environment.rules import RULES
from unshard.environment.sides import Sides
from unshard.environment.this_machine import (
    PACKAGES,
    RUNTIMES,
    SETTINGS,
    memory_bytes,
    this_environment,
    with_idle_devices,
)
from unshard.findings import RULES as FINDINGS
from unshard.findings import Finding, finding
from unshard.record.description import Environment
from unshard.sizes import format_size

# The order of lines.
_ASPECTS = (
    "record",
    "trainer",
    "model type",
    "python",
    "system",
    *PACKAGES,
    "accelerator",
    "devices",
    "memory",
    *RUNTIMES,
    "distribution",
    "torch.compile",
    "dtype of weights",
    "dtype of computing",
    "bfloat16",
    "default dtype",
    "attention",
    *SETTINGS,
    "quantisation",
    "quantised base",
    "adapter",
)


def compare_environment(path: str | Path | None = None, *, step: int | None = None) -> EnvironmentComparison:
    """Return this machine beside the environment that the model at `path` was trained in.

    Args:
        path: A run, a checkpoint, a file, or a model folder; None describes this machine alone.
        step: Which of several steps; the newest without it.

    Raises:
        InputError: Neither a record nor a checkpoint can be read there.
        OptionError: `step` names nothing.
    """
    training = Training() if path is None else find_training(Path(path), step=step)
    return compare(training, with_idle_devices(this_environment()), memory=memory_bytes())


def compare(training: Training, machine: Environment, *, memory: int | None) -> EnvironmentComparison:
    """Return a machine beside what is known of a training.

    Args:
        training: What is known of the training.
        machine: The machine.
        memory: Memory that a process may have on it, in bytes, or None where that is not known.
    """
    here = dict(_here(training, machine, memory))
    sides = Sides(training, machine, here, memory)
    lines = tuple(line for aspect in _ASPECTS if (line := _line(aspect, sides)) is not None)
    findings = tuple(told for line in lines if (told := _finding(line)) is not None)
    return EnvironmentComparison(
        training.path, training.record, lines, machine, (*training.findings, *findings)
    )


def _here(training: Training, machine: Environment, memory: int | None) -> Iterator[tuple[str, str]]:
    """Yield what is known of a machine, by aspect."""
    yield from aspects_of(machine)
    if memory is not None:
        yield "memory", format_size(memory)
    if "torch" in machine.packages:
        yield "attention", "sdpa"
    model_type = training.facts.get("model type")
    known = None if model_type is None else knows_model_type(model_type.value)
    if known is not None:
        version = machine.packages.get("transformers", "")
        yield "model type", f"{'known' if known else 'unknown'} to transformers {version}"


def _line(aspect: str, sides: Sides) -> Line | None:
    """Return the line of an aspect, or None where nothing is known of it and nothing follows from that."""
    there, here = _there(aspect, sides), sides.here.get(aspect)
    fact = sides.training.facts.get(aspect)
    evidence = None if fact is None else fact.evidence
    for rule in RULES.get(aspect, ()):
        if rule.holds(sides):
            severity: Verdict = FINDINGS[rule.code].severity.value
            return Line(aspect, there, evidence, here, severity, rule.code, rule.means, rule.remedy)
    if there is None and here is None:
        return None
    return Line(aspect, there, evidence, here, _verdict(aspect, there, here, sides))


def _there(aspect: str, sides: Sides) -> str | None:
    training = sides.training
    if aspect == "record" and training.path is not None:
        return "none" if training.record is None else training.record.name
    if aspect == "memory" and training.weights_bytes is not None:
        return f"{format_size(training.weights_bytes)} of weights"
    return sides.there(aspect)


# Aspects of which the two sides say different things: what is needed, and what is there.
_NEEDS = frozenset(("memory", "model type"))


def _verdict(aspect: str, there: str | None, here: str | None, sides: Sides) -> Verdict:
    """Return how two sides compare where no rule holds."""
    if there is None:
        return "only here"
    if here is None:
        return "only there"
    if aspect in _NEEDS:
        return "enough"
    if there == here:
        return "same"
    if aspect in (*PACKAGES, "python"):
        range_, installed = sides.written_by(aspect), sides.installed(aspect)
        if range_ is not None and installed is not None and range_.contains(installed):
            return "same"
    return "different"


def _finding(line: Line) -> Finding | None:
    """Return a line that has a consequence as a finding."""
    if line.code is None or line.means is None:
        return None
    here = "not here" if line.here is None else f"here: {line.here}"
    there = None if line.training is None else f"{line.training}, in training"
    return finding(
        line.code, subject=line.aspect, saw=f"{here}. {line.means}", expected=there, remedy=line.remedy
    )
