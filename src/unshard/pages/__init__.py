"""The page of every finding: what it means, how it comes about, what to do.

`unshard explain CODE` shows them, and the documentation is generated from them. A page is Markdown
without a title; code, severity and title are those of `findings.RULES`:

    What it means, in a paragraph.

    ## How it comes about
    ## What to do
    ## Messages that belong to it      exact texts that people search for; left out where there are none
"""

from __future__ import annotations

from importlib.resources import files

from unshard.findings import RULES


def page_of(code: str) -> str:
    """Return the page of a finding, as Markdown.

    Raises:
        KeyError: No finding has this code.
    """
    rule = RULES[code]
    text = files(__name__).joinpath(f"{code}.md").read_text(encoding="utf-8")
    return f"# {code}: {rule.title}\n\nSeverity: {rule.severity}\n\n{text}"
