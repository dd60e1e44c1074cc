"""The page: a template, a style and a script, put together to one file that asks nothing of anybody."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from unshard import __version__
from unshard.report.contents import Report
from unshard.report.drawing.figures import figures_of
from unshard.report.explained import group_findings
from unshard.report.markup import environment
from unshard.report.tensor_table import columns_of

# Rows that stand in the page itself, for readers without scripts and for printing.
_STATIC_ROWS = 400
# What may end a script element, or a line of a script, is spelled out in JSON.
_SPELLED_OUT = "<>&\u2028\u2029"


def render_report(report: Report) -> str:
    """Return a report as one HTML document."""
    columns = columns_of(report.tensors)
    style, script = _asset("page.css"), _asset("page.js")
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            version=__version__,
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            findings=group_findings(report.findings),
            figures=figures_of(report),
            columns=columns,
            static_rows=range(min(len(report.tensors), _STATIC_ROWS)),
            data=_json({"columns": [column.data() for column in columns]}),
        )
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the digest by which a policy allows an element with exactly this content.

    Source:
        Content Security Policy Level 3, section 2.3.1, `hash-source`.
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: object) -> str:
    """Return `value` as JSON that can stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in _SPELLED_OUT:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
