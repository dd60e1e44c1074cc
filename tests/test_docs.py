"""The documentation: generated pages are current, commands parse, links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from unshard.cli.main import commands

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_OF_EXAMPLES = {"--nproc-per-node", "--model", "--out", "--resume"}
_OF_VLLM = {"--enable-lora", "--lora-modules", "--load-format", "--config-format"}
# Options of other programs.
_OTHERS = {
    "--help",
    "--version",
    "--enable_fsdp",
    "--path--model",
    "--no-deps",
    "--upgrade",
    "--strict",
    "--work",
    *_OF_EXAMPLES,
    *_OF_VLLM,
}
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def documented_commands() -> list[tuple[str, str]]:
    """Return (page, command) for every `unshard` command in a block of a page."""
    found = []
    for page in PAGES:
        for language, block in _BLOCK.findall(page.read_text()):
            if language in ("console", "sh", ""):
                lines = re.sub(r"\\\n\s*", "", block).splitlines()
                words = (line.removeprefix("$ ").strip() for line in lines)
                found += [(name(page), line) for line in words if re.match(r"unshard( |$)", line)]
    return found


def test_the_reference_is_what_the_code_says() -> None:
    path = ROOT / "docs" / "reference" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    pages = dict(generator.pages())
    stale = [page.name for page, text in pages.items() if not page.exists() or page.read_text() != text]
    assert not stale, "run: python docs/reference/generate.py"
    assert set((path.parent / "findings").glob("*.md")) <= pages.keys()


@pytest.mark.parametrize(("page", "line"), documented_commands())
def test_every_documented_command_parses(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if not words or words[0].startswith("-"):
        return
    with contextlib.suppress(click.exceptions.Exit):  # --help
        commands.commands[words[0]].make_context(words[0], words[1:])


def test_commands_are_documented_at_all() -> None:
    shown = {line.split()[1] for _, line in documented_commands() if len(line.split()) > 1}
    assert set(commands.commands) <= shown


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_named_in_the_text_exists(page: Path) -> None:
    parameters = [p for command in commands.commands.values() for p in command.params]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])`?(--[a-z][a-z-]+)(?![\w.])", page.read_text()))
    assert named <= known | _OTHERS
