"""How answers look in a terminal: aligned, short, readable at any width and without colour."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from unshard.errors import IncompleteCheckpointError, UnshardError
from unshard.findings import Finding, Severity
from unshard.jsonable import to_json

if TYPE_CHECKING:
    from unshard.proof.levels import Level

_SHOWN_ALIKE = 5
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}
_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


def plain(text: object) -> str:
    """Return text that came from a file, with control characters made visible."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text))


def plain_lines(lines: Iterable[str]) -> list[str]:
    """Return lines of text that came from a file, with control characters made visible."""
    return [plain(line) for line in lines if line]


def command(*words: object) -> str:
    """Return a command line that a person can paste."""
    return " ".join(shlex.quote(str(word)) for word in words)


def echo(text: str = "") -> None:
    """Print one line of an answer."""
    click.echo(text)


def echo_json(value: object) -> None:
    """Print an answer for a program: the fields of a result, as JSON."""
    click.echo(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def echo_json_line(value: object) -> None:
    """Print one answer of several as a line of JSON."""
    click.echo(json.dumps(to_json(value), ensure_ascii=False))


def note_findings(findings: Sequence[Finding]) -> None:
    """Print warnings on stderr, a line each, where the answer itself is something else."""
    for item in findings:
        if item.severity is not Severity.INFO:
            note(f"{item.code} {item.severity}: {item.title}: {item.subject}: {item.saw}")


def note(text: str) -> None:
    """Print something that is not part of the answer, on stderr."""
    click.echo(plain(text), err=True)


def width() -> int:
    """Return the columns to fill: the terminal's, but no more than can be read with ease."""
    return max(40, min(100, shutil.get_terminal_size((88, 24)).columns))


def echo_rows(rows: Iterable[tuple[str, object]], *, indent: int = 2) -> None:
    """Print labels and values in two columns; a value is a text or several, long ones are wrapped."""
    shown = [(label, _lines(value)) for label, value in rows]
    shown = [(label, lines) for label, lines in shown if lines]
    column = max((len(label) for label, _ in shown), default=0) + 2
    for label, lines in shown:
        for line in lines:
            head = " " * indent + click.style(label.ljust(column), dim=True)
            for part in _wrap(line, width() - indent - column):
                echo(head + part)
                head = " " * (indent + column)
            label = ""


def echo_findings(findings: Sequence[Finding], *, quiet: bool = False) -> None:
    """Print findings, worst first: warnings with evidence and remedy, mere facts on a line.

    `quiet` leaves out the mere facts.
    """
    ordered = sorted(findings, key=lambda f: (_ORDER[f.severity], f.code))
    problems = [f for f in ordered if f.severity is not Severity.INFO]
    for _, group in itertools.groupby(problems, key=lambda f: f.code):
        alike = list(group)
        for number, item in enumerate(alike[:_SHOWN_ALIKE]):
            if number and item.remedy == alike[0].remedy:
                expected = f", expected {item.expected}" if item.expected else ""
                echo_rows([("", plain(f"{item.subject}: {item.saw}{expected}"))], indent=4)
            else:
                _echo_problem(item)
        if len(alike) > _SHOWN_ALIKE:
            echo_rows([("", f"and {len(alike) - _SHOWN_ALIKE:,} more like these; --json has all")], indent=4)
    facts = [f for f in ordered if f.severity is Severity.INFO]
    if facts and not quiet:
        echo()
        echo_rows((f.code, plain(f"{f.title}: {f.subject} ({_evidence(f)})")) for f in facts)


def _evidence(item: Finding) -> str:
    """Return what was seen and, where there is one, what stands in its place."""
    return item.saw if item.expected is None else f"{item.saw} -> {item.expected}"


def _echo_problem(item: Finding) -> None:
    """Print a warning or an error, with its evidence and its remedy."""
    head = click.style(f"{item.code} {item.severity}", fg=_COLOURS[item.severity], bold=True)
    title = f"{plain(item.title)}: {plain(item.subject)}"
    echo()
    for line in _wrap(title, width() - len(item.code) - 12):
        echo(f"  {head}  {line}" if head else f"      {line}")
        head = ""
    evidence = (("saw", item.saw), ("expected", item.expected), ("do", item.remedy))
    echo_rows([(label, plain(text)) for label, text in evidence if text], indent=6)


def level_rows(levels: Iterable[Level]) -> list[tuple[str, object]]:
    """Return the rows of what was proven: a verdict and its evidence."""
    return [
        (
            level.name,
            [f"{level.verdict}: {line}" if i == 0 else line for i, line in enumerate(level.evidence)],
        )
        for level in levels
    ]


def echo_commands(title: str, lines: Sequence[str]) -> None:
    """Print what to type next."""
    echo()
    echo(click.style(title, bold=True))
    for line in lines:
        echo(f"  {plain(line)}")


def echo_error(error: UnshardError, *, as_json: bool) -> None:
    """Print an error on stderr, and for a program also on stdout."""
    if as_json:
        echo_json({"error": {"type": type(error).__name__, **vars(error)}})
    click.echo(f"{click.style('error:', fg='red', bold=True, reset=True)} {plain(error.message)}", err=True)
    for gap in _gaps(error):
        click.echo(f"  {gap}", err=True)
    if error.hint:
        click.echo(f"\n{click.style('hint:', fg='cyan', bold=True)} {plain(error.hint)}", err=True)
    sys.stderr.flush()


def _gaps(error: UnshardError) -> list[str]:
    """Return a line for each of the first few things that are missing, where there are several."""
    gaps = error.gaps if isinstance(error, IncompleteCheckpointError) else ()
    if len(gaps) < 2:
        return []
    lines = [plain(f"{gap.code} {gap.subject}: {gap.saw}") for gap in gaps[:_SHOWN_ALIKE]]
    more = len(gaps) - _SHOWN_ALIKE
    return [*lines, f"and {more:,} more; unshard check has all"] if more > 0 else lines


def _lines(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value else []
    assert isinstance(value, Iterable)
    return [str(line) for line in value]


def _wrap(text: str, columns: int) -> list[str]:
    """Return `text` in lines; a word longer than a line (a path) stays whole, to be copied."""
    lines = textwrap.wrap(text, max(columns, 20), break_long_words=False, break_on_hyphens=False)
    return lines or [""]
