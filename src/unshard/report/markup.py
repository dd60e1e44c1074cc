"""How text becomes markup: everything is escaped, and what does not print is spelled out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from unshard.report.numbers import percent, visible
from unshard.sizes import format_size

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

# What stands between backticks in a message: a name, a command, a key.
_CODE = re.compile(r"`([^`\n]+)`")


def environment() -> jinja2.Environment:
    """Return what renders the page's templates."""
    import jinja2
    from markupsafe import Markup

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("unshard.report", "page"),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "breakable": _breakable,
        "coded": _coded,
        "percent": percent,
        "size": format_size,
        "trusted": Markup,
    }
    return made


def _finalize(value: object) -> object:
    """Return what is put into the page; text that is not markup yet is made visible, then escaped."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _breakable(text: str) -> Markup:
    """Return a name that may be broken after its dots, slashes and underscores."""
    from markupsafe import Markup

    return Markup(re.sub(r"([./_])", r"\1<wbr>", _escaped(text)))  # noqa: S704 - escaped before


def _coded(text: str) -> Markup:
    """Return a message with what stands between backticks set as code."""
    from markupsafe import Markup

    return Markup(_CODE.sub(r"<code>\1</code>", _escaped(text)))  # noqa: S704 - escaped before


def _escaped(text: str) -> str:
    """Return text as it may stand in a page; a plain string, for markup would escape what is put into it."""
    from markupsafe import escape

    return str(escape(visible(text)))
