"""`unshard explain`: the page of a finding."""

from __future__ import annotations

import sys

import click

from unshard.cli.options import json_option
from unshard.cli.printing import echo, echo_json, echo_rows, width
from unshard.findings import RULES


@click.command(short_help="What a finding means, and what to do about it.")
@click.argument("code", required=False)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """Show the page of the finding CODE, such as U302; without a code, list all of them.

    CODE may also be words: every finding whose page has them is listed, so an error message of another
    program can be looked up.
    """
    from unshard.pages import codes_with, page_of

    if code is not None and code.upper() in RULES:
        _show(code.upper(), page_of(code.upper()), as_json=as_json)
        return
    found = RULES if code is None else {each: RULES[each] for each in codes_with(code)}
    if as_json:
        echo_json(
            [{"code": each, "severity": RULES[each].severity, "title": RULES[each].title} for each in found]
        )
    elif found:
        echo_rows(((each, f"{rule.severity}: {rule.title}") for each, rule in found.items()), indent=0)
    else:
        raise click.UsageError(f"No finding has the code or the words {code!r}. List all: unshard explain")


def _show(code: str, page: str, *, as_json: bool) -> None:
    rule = RULES[code]
    if as_json:
        echo_json({"code": code, "severity": rule.severity, "title": rule.title, "page": page})
        return
    from rich.console import Console
    from rich.markdown import Markdown

    if sys.stdout.isatty():
        Console(width=width()).print(Markdown(page))
    else:
        echo(page.rstrip())
