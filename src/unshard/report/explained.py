"""Findings as the page shows them: those of one code together, with the page that explains it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unshard.findings import Finding, Severity
from unshard.pages import page_of

if TYPE_CHECKING:
    from markdown_it.token import Token

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.INFO)
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """All findings of one code.

    Attributes:
        code: Their code.
        severity: How much they matter.
        title: What they have in common.
        shown: The first few.
        more: How many there are beside these.
        page: What the code means, as HTML of our own.
    """

    code: str
    severity: Severity
    title: str
    shown: tuple[Finding, ...]
    more: int
    page: str


def group_findings(findings: Iterable[Finding]) -> list[FindingGroup]:
    """Return findings by code, worst first."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    order = sorted(groups.values(), key=lambda group: (_ORDER.index(group[0].severity), group[0].code))
    return [
        FindingGroup(
            code=group[0].code,
            severity=group[0].severity,
            title=group[0].title,
            shown=tuple(group[:_MOST_SHOWN]),
            more=max(0, len(group) - _MOST_SHOWN),
            page=_page_html(group[0].code),
        )
        for group in order
    ]


def _page_html(code: str) -> str:
    """Return the page of a code as HTML, without its title, which stands above it already."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = _below_title(reader.parse(page_of(code)))
    rendered: str = reader.renderer.render(tokens, reader.options, {})
    return rendered


def _below_title(tokens: list[Token]) -> list[Token]:
    """Return what stands after the title and the severity, with headings that fit below a finding."""
    body = tokens[6:]
    for token in body:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h4"
    return body
