"""What the files of a tokenizer say, found without building it; a template is never rendered.

Source:
    transformers 5.23, tokenization_utils_base.py (`from_pretrained`: `added_tokens_decoder`,
    `added_tokens.json`, `chat_template.jinja`); tokenizers' serialisation (`added_tokens`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from unshard.errors import InputError
from unshard.model_folder.description import JsonFile
from unshard.storage.files import InputFile

# The added tokens stand before the vocabulary; thousands of them fit.
_HEAD_BYTES = 8 << 20
_ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')
_LARGEST_TEMPLATE = 4 << 20


def read_added_tokens(json_files: Mapping[str, JsonFile], tokenizer: InputFile | None) -> dict[str, int]:
    """Return the content and id of every added token; tokenizer.json counts before older files.

    Args:
        json_files: The small JSON files of the folder.
        tokenizer: Its tokenizer.json, or None.
    """
    found: dict[str, int] = {}
    listed = [] if tokenizer is None else list(_in_tokenizer_json(tokenizer))
    for content, number in (*listed, *_in_settings(json_files), *_in_flat_file(json_files)):
        if isinstance(content, str) and type(number) is int and number >= 0:
            found.setdefault(content, number)
    return found


def _in_tokenizer_json(file: InputFile) -> Iterator[tuple[object, object]]:
    try:
        head = file.read(0, min(file.size, _HEAD_BYTES)).decode("utf-8", errors="replace")
        start = _ADDED.search(head)
        entries, _ = json.JSONDecoder().raw_decode(head, start.end()) if start else ([], 0)
    except (InputError, ValueError, RecursionError):
        return
    for entry in entries:
        if isinstance(entry, dict):
            yield entry.get("content"), entry.get("id")


def _in_settings(json_files: Mapping[str, JsonFile]) -> Iterator[tuple[object, object]]:
    settings = json_files.get("tokenizer_config.json")
    entries = settings.value.get("added_tokens_decoder") if settings else None
    for number, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and number.isascii() and number.isdigit() and len(number) < 10:
            yield entry.get("content"), int(number)


def _in_flat_file(json_files: Mapping[str, JsonFile]) -> Iterator[tuple[object, object]]:
    file = json_files.get("added_tokens.json")
    yield from file.value.items() if file else ()


def read_chat_template(json_files: Mapping[str, JsonFile], jinja: InputFile | None) -> str | None:
    """Return the chat template of a folder, or None where there is none; its own file counts first."""
    if jinja is not None and jinja.size <= _LARGEST_TEMPLATE:
        try:
            return jinja.read(0, jinja.size).decode("utf-8", errors="replace")
        except InputError:
            return None
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        file = json_files.get(name)
        if file and (template := _template(file.value.get("chat_template"))):
            return template
    return None


def _template(value: object) -> str | None:
    """Return a template: one, or the default of several with names."""
    if isinstance(value, str):
        return value
    named = {}
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            named[entry["name"]] = entry.get("template")
    template = named.get("default")
    return template if isinstance(template, str) else None
