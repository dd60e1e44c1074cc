"""How many tokens a tokenizer has, counted without building it.

Memory:
    tokenizer.json is scanned where it lies (a map of the file); nothing of it is kept.

Source:
    tokenizers' serialisation of `Tokenizer` (`model.vocab`, `added_tokens`); sentencepiece_model.proto
    (`ModelProto.pieces` is field 1).
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path

_STRING = rb'"(?:[^"\\]|\\.)*"'
_ENTRY = re.compile(rb"\s*" + _STRING + rb"\s*:\s*(\d+)\s*([,}])", re.DOTALL)
_PIECE = re.compile(rb"\s*\[\s*" + _STRING + rb"\s*,[^\]]*\]\s*([,\]])", re.DOTALL)
_VOCABULARY = re.compile(rb'"vocab"\s*:\s*([\[{])')
_ADDED = re.compile(rb'\{\s*"id"\s*:\s*(\d+)')
_LARGEST_BYTES = 256 << 20


def count_tokens(side_files: Mapping[str, Path]) -> int | None:
    """Return one more than the highest token id of the tokenizer in these files, or None if unknown."""
    try:
        if "tokenizer.json" in side_files:
            return _in_tokenizer_json(side_files["tokenizer.json"]) or None
        counts = [
            _in_flat_json(side_files[n]) for n in ("vocab.json", "added_tokens.json") if n in side_files
        ]
        if "vocab.json" not in side_files and "tokenizer.model" in side_files:
            counts.append(_in_sentencepiece(side_files["tokenizer.model"]))
        return max((count for count in counts if count is not None), default=None) or None
    except (OSError, ValueError, RecursionError):
        return None


def _in_tokenizer_json(path: Path) -> int | None:
    """Return one more than the highest id of tokenizer.json, added tokens included."""
    if not 0 < path.stat().st_size <= _LARGEST_BYTES:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        highest = max((int(match[1]) for match in _ADDED.finditer(text)), default=-1)
        start = _VOCABULARY.search(text)
        if start is None:
            return highest + 1
        if start[1] == b"[":
            return max(highest + 1, _listed(text, start.end()))
        return max(highest + 1, _numbered(text, start.end()))


def _numbered(text: mmap.mmap, position: int) -> int:
    """Return one more than the highest number of a flat JSON object whose first entry is at `position`."""
    highest = -1
    while match := _ENTRY.match(text, position):
        highest = max(highest, int(match[1]))
        if match[2] == b"}":
            break
        position = match.end()
    return highest + 1


def _listed(text: mmap.mmap, position: int) -> int:
    """Return how many pairs a JSON list holds whose first pair is at `position`."""
    count = 0
    while match := _PIECE.match(text, position):
        count += 1
        if match[1] == b"]":
            break
        position = match.end()
    return count


def _in_flat_json(path: Path) -> int | None:
    """Return one more than the highest id of vocab.json or added_tokens.json."""
    if path.stat().st_size > _LARGEST_BYTES:
        return None
    vocabulary = json.loads(path.read_bytes())
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    return max((number for number in ids if isinstance(number, int)), default=-1) + 1


def _in_sentencepiece(path: Path) -> int | None:
    """Return how many pieces a SentencePiece model has: fields 1 at the top of the message."""
    if path.stat().st_size > _LARGEST_BYTES:
        return None
    content, position, count = path.read_bytes(), 0, 0
    while position < len(content):
        key, position = _varint(content, position)
        if key & 7 == 2:
            length, position = _varint(content, position)
            position += length
        elif key & 7 == 0:
            _, position = _varint(content, position)
        else:
            position += {1: 8, 5: 4}.get(key & 7, len(content))
        count += key >> 3 == 1
    return count if position == len(content) else None


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return a number in protobuf's base-128 form, and where it ends."""
    number = shift = 0
    while position < len(content):
        byte = content[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position
    raise ValueError("the message ends inside a number")
