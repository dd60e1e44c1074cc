"""The page of every finding: what it means, how it comes about, what to do.

`unshard explain CODE` shows them, and the documentation is generated from them. A page is Markdown
without a title; code, severity and title are those of `findings.RULES`:

    What it means, in a paragraph.

    ## How it comes about
    ## What to do
    ## Messages that belong to it      exact texts that people search for; left out where there are none
"""

from __future__ import annotations

import re
from importlib.resources import files

from unshard.findings import RULES

# A shorter one stands in messages that have nothing to do with it.
_SHORTEST_MESSAGE = 12


def page_of(code: str) -> str:
    """Return the page of a finding, as Markdown.

    Raises:
        KeyError: No finding has this code.
    """
    rule = RULES[code]
    text = files(__name__).joinpath(f"{code}.md").read_text(encoding="utf-8")
    return f"# {code}: {rule.title}\n\nSeverity: {rule.severity}\n\n{text}"


def codes_with(words: str) -> list[str]:
    """Return the codes whose title or page holds `words`, or a message that is part of them.

    Numbers count as equal to one another, so that an error of another program is found whatever its sizes.
    """
    wanted = _folded(words)
    return [code for code in RULES if _is_meant(wanted, page_of(code))]


def _is_meant(wanted: str, page: str) -> bool:
    messages = (_folded(line[2:]) for line in page.splitlines() if line.startswith("- `"))
    return wanted in _folded(page) or any(m in wanted for m in messages if len(m) >= _SHORTEST_MESSAGE)


def _folded(text: str) -> str:
    return re.sub(r"\d+", "0", " ".join(text.replace("`", "").split()).casefold())
