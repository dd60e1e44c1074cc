"""A real browser without a window, for pages that are looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ON_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
# Nothing of what a browser asks of its maker's servers when it starts.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """A page that was opened, and everything that happened on it.

    Attributes:
        page: Playwright's page.
        complaints: Messages of its console, and errors of its scripts.
        requests: Every address that was asked for.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Return what axe-core finds hard to use for people who cannot see, point or tell colours apart."""
        script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(script + "; 0")
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"][:3]]

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]


Visiting = Callable[..., Visit]


def _executable() -> str | None:
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    return found or (str(_ON_MACOS) if _ON_MACOS.exists() else None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser of this machine, started once."""
    executable = _executable()
    if executable is None:
        pytest.skip("no Chromium on this machine; .ci/browser installs one where that is allowed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visiting]:
    """Opens a file in a browser of its own; options are those of playwright's contexts."""
    contexts = []

    def open_page(path: Path, **options: object) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        seen = Visit(context.new_page())
        seen.page.on("console", lambda message: seen.complaints.append(message.text))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(path.as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()
