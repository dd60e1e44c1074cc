"""Writes the reference pages from the code, so that they cannot say anything else.

Run `python docs/reference/generate.py`; a test fails while a page differs from what this writes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import click

import unshard
from unshard import errors
from unshard.cli.main import commands
from unshard.dtypes import DTYPES
from unshard.findings import RULES
from unshard.pages import page_of
from unshard.record.description import Record
from unshard.record.schema import dataclasses_in, descriptions_of, record_schema

HERE = Path(__file__).parent
_RECORD_INTRO = """\
`unshard.record.json` is what training tells about itself, written where it saves: how it was configured, on
what it ran, a digest of every tensor, and how the model behaved. It lies in the folder of the checkpoint or
the model; `unshard convert` carries it on unchanged, `unshard verify` holds the model against it.

It is JSON in UTF-8, described by a [JSON Schema](record.schema.json). `record` is the version of the layout,
1; readers pass over keys that they do not know, and refuse later versions. A number that is not finite is one
of the words `NaN`, `Infinity` and `-Infinity`. Secrets are left out by their names and their looks. Beside it
lies the training configuration, `unshard.training_config.yaml` or `.json`: the file that was given, byte for
byte, or the values as JSON.

`tensors` has every tensor under the name that it has in the published model, one a line. Its digests are
SHA-256 of boxes that cover it exactly once, each taken by the rank that held the box, of its elements in
row-major order, little-endian, in the dtype that is named.

**Size.** A box takes 90 bytes and 12 more for every dimension, a tensor 100. FSDP2 makes one box of every
tensor on every rank: T tensors on R ranks take about `T * (100 + 115 * R)` bytes for each dtype, which is
1.4 MB for the 723 tensors of a Llama of 70 billion on 16 ranks. FSDP1 cuts only at the ends of what a rank
holds of a unit of U parameters: about `U * 215 + R * 345` bytes for each unit and dtype. Readers take files
of at most 256 MiB.
"""
_HEADER = "<!-- Written by docs/reference/generate.py; change the code instead. -->\n\n"


def command_page() -> str:
    """Return the page of the command line: the help of every command."""
    parts = ["# Commands\n"]
    settings = {"max_content_width": 88, "terminal_width": 88, **commands.context_settings}
    context = click.Context(commands, info_name="unshard", **settings)
    for name, command in [("", commands), *commands.commands.items()]:
        title = f"unshard {name}".strip()
        child = click.Context(command, info_name=name, parent=context) if name else context
        parts.append(f"## `{title}`\n\n```text\n{command.get_help(child)}\n```\n")
    exits = inspect.getdoc(inspect.getmodule(commands.callback)) or ""
    table = "\n".join(line for line in exits.splitlines() if line.startswith("    "))
    parts.append(f"## Exit codes\n\n```text\n{inspect.cleandoc(table)}\n```\n")
    return "\n".join(parts)


def finding_page() -> str:
    """Return the page of findings: every code, its severity and title, and the way to its own page."""
    rows = [
        f"| [`{code}`](findings/{code}.md) | {rule.severity} | {rule.title} |"
        for code, rule in sorted(RULES.items())
    ]
    intro = (
        "Every finding has a stable code; scripts can rely on it, in `--json` and in the manifest. "
        "`unshard explain CODE` shows its page in the terminal."
    )
    return "\n".join(
        ["# Findings\n", intro, "", "| code | severity | what it says |", "|---|---|---|", *rows, ""]
    )


def api_page() -> str:
    """Return the page of the Python API: signatures and docstrings of all public names."""
    parts = ["# Python API\n"]
    for name in unshard.__all__:
        thing = getattr(unshard, name)
        if not callable(thing):
            continue
        kind = "class " if inspect.isclass(thing) else ""
        signature = "" if inspect.isclass(thing) else str(inspect.signature(thing))
        parts.append(f"## `{kind}unshard.{name}`\n")
        if signature:
            parts.append(f"```python\n{name}{_folded(signature)}\n```\n")
        parts.append(f"```text\n{inspect.getdoc(thing)}\n```\n")
    return "\n".join(parts)


def error_page() -> str:
    """Return the page of errors: the tree, as it stands in the code."""
    return f"# Errors\n\n```text\n{inspect.getdoc(errors)}\n```\n"


def dtype_page() -> str:
    """Return the page of dtypes: the one table of the program."""
    rows = [
        f"| {d.name} | {d.tag or 'none'} | {d.storage or 'none'} | {d.itemsize} |"
        for name, d in DTYPES.items()
        if name == d.name
    ]
    head = ["| torch | safetensors | torch's storage class | bytes |", "|---|---|---|---|"]
    return "\n".join(["# Dtypes\n", *head, *rows, ""])


def record_page() -> str:
    """Return the page of the record: what it is, how large it is, and every field of it."""
    parts = ["# The record of training\n", _RECORD_INTRO]
    for kind in (Record, *dataclasses_in(Record)):
        title, told = descriptions_of(kind)
        hints = inspect.get_annotations(kind)
        rows = [f"| `{name}` | {_cell(hints[name])} | {_cell(told.get(name, ''))} |" for name in hints]
        head = f"## `{kind.__name__}`\n\n{title}\n"
        parts.append("\n".join([head, "| key | type | what it says |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def record_schema_text() -> str:
    """Return the JSON Schema of the record."""
    return json.dumps(record_schema(), indent=2, ensure_ascii=False) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "or").replace("Mapping[str, ", "object of [") if text else ""


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page of the reference with its text."""
    for name, write in (
        ("commands.md", command_page),
        ("findings.md", finding_page),
        ("api.md", api_page),
        ("errors.md", error_page),
        ("dtypes.md", dtype_page),
        ("record.md", record_page),
    ):
        yield HERE / name, _HEADER + write()
    yield HERE / "record.schema.json", record_schema_text()
    for code in RULES:
        yield HERE / "findings" / f"{code}.md", _HEADER + page_of(code)


def _folded(signature: str) -> str:
    """Return a signature with one argument a line, where it is long."""
    if len(signature) < 80:
        return signature
    inside, _, result = signature.removeprefix("(").rpartition(")")
    return "(\n" + "".join(f"    {part},\n" for part in inside.split(", ")) + f"){result}"


if __name__ == "__main__":
    for page, text in pages():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text)
