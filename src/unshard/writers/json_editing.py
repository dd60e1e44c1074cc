"""A JSON text with a few values changed, and every other byte as it was.

A configuration is written by others for others: the order of its keys, the spelling of its numbers
and its indentation are not ours to change. So the text is never serialised again. The place of a value
is found by scanning, and only that place is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}]+")
_INDENT = re.compile(r'\n([ \t]+)"')
_OPENING_OR_CLOSING = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of an object: the key, and where the key and the value stand in the text."""

    key: str
    start: int
    value_start: int
    stop: int


def edit_json(content: bytes, edits: Mapping[str, object]) -> bytes:
    """Return a JSON object with the values at some dotted keys replaced, inserted or (None) removed.

    A key that is inserted goes to its alphabetical place where its neighbours are sorted, else to the
    end, and is laid out like its neighbours. Objects on the way to a key must exist.

    Args:
        content: The text, UTF-8.
        edits: New values by dotted key; None removes the key, or does nothing where it is absent.

    Raises:
        ValueError: The text is no JSON object, or a dotted key leads through something that is not.
    """
    text = content.decode("utf-8")
    before = json.loads(text)
    if not isinstance(before, dict):
        raise ValueError("the text is no JSON object")
    for key, value in edits.items():
        text = _edit(text, tuple(key.split(".")), value)
    # Compared as text, for NaN is not equal to itself.
    wanted = json.dumps(_edited(before, edits), sort_keys=True)
    assert json.dumps(json.loads(text), sort_keys=True) == wanted, "an edit changed more than its own key"
    return text.encode("utf-8")


def _edit(text: str, path: tuple[str, ...], value: object) -> str:
    """Return the text with the value at one path changed."""
    start = _after_space(text, 0)
    for part in path[:-1]:
        start = _member(text, start, part).value_start
    members = list(_members(text, start))
    found = next((member for member in members if member.key == path[-1]), None)
    if found is not None and value is not None:
        return text[: found.value_start] + _serialised(text, found.start, value) + text[found.stop :]
    if found is not None:
        return _without(text, members, members.index(found))
    return text if value is None else _with(text, start, members, path[-1], value)


def _member(text: str, start: int, key: str) -> _Member:
    found = next((member for member in _members(text, start) if member.key == key), None)
    if found is None or text[found.value_start] != "{":
        raise ValueError(f"`{key}` is no object to edit in")
    return found


def _members(text: str, start: int) -> Iterator[_Member]:
    """Yield the members of the object that begins at `start`."""
    position = _after_space(text, start + 1)
    while text[position] != "}":
        name = _STRING.match(text, position)
        assert name is not None  # the text was parsed before
        colon = _after_space(text, name.end())
        value_start = _after_space(text, colon + 1)
        stop = _value_stop(text, value_start)
        yield _Member(json.loads(name[0]), position, value_start, stop)
        position = _after_space(text, stop)
        if text[position] == ",":
            position = _after_space(text, position + 1)


def _value_stop(text: str, start: int) -> int:
    """Return where the value that begins at `start` ends."""
    if text[start] not in "[{":
        match = (_STRING if text[start] == '"' else _SCALAR).match(text, start)
        assert match is not None
        return match.end()
    depth = 0
    for match in _OPENING_OR_CLOSING.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    raise AssertionError("a value of parsed JSON has an end")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _without(text: str, members: list[_Member], index: int) -> str:
    """Return the text without one member, and without the comma that it needed."""
    member = members[index]
    if index + 1 < len(members):
        return text[: member.start] + text[members[index + 1].start :]
    if index > 0:
        return text[: members[index - 1].stop] + text[member.stop :]
    return text[: member.start].rstrip(" \t\r\n") + text[_after_space(text, member.stop) :]


def _with(text: str, start: int, members: list[_Member], key: str, value: object) -> str:
    """Return the text with a member inserted, laid out like its neighbours."""
    name = json.dumps(key)
    if not members:
        rest = text[_after_space(text, start + 1) :]
        return f"{text[: start + 1]}{name}: {_serialised(text, start, value)}{rest}"
    before = text[start + 1 : members[0].start]
    colon = text[_key_stop(text, members[0]) : members[0].value_start]
    between = text[members[0].stop : members[1].start] if len(members) > 1 else f",{before}"
    new = f"{name}{colon}{_serialised(text, members[0].start, value)}"
    index = _place(members, key)
    if index == len(members):
        return text[: members[-1].stop] + between + new + text[members[-1].stop :]
    return text[: members[index].start] + new + between + text[members[index].start :]


def _key_stop(text: str, member: _Member) -> int:
    match = _STRING.match(text, member.start)
    assert match is not None
    return match.end()


def _place(members: list[_Member], key: str) -> int:
    """Return the index a new key goes to."""
    keys = [member.key for member in members]
    if keys != sorted(keys):
        return len(keys)
    return sum(existing < key for existing in keys)


def _serialised(text: str, position: int, value: object) -> str:
    """Return a value as JSON, indented as the text is where it spans several lines."""
    step = _INDENT.search(text)
    if step is None or not isinstance(value, list | dict):
        return json.dumps(value)
    line = text[text.rfind("\n", 0, position) + 1 : position]
    indent = line[: len(line) - len(line.lstrip(" \t"))]
    return json.dumps(value, indent=step[1]).replace("\n", f"\n{indent}")


def _edited(before: object, edits: Mapping[str, object]) -> object:
    """Return what the text must parse to."""
    for key, value in edits.items():
        before = _with_value(before, key.split("."), value)
    return before


def _with_value(mapping: object, path: list[str], value: object) -> object:
    assert isinstance(mapping, dict)
    if len(path) > 1:
        return mapping | {path[0]: _with_value(mapping[path[0]], path[1:], value)}
    if value is None:
        return {key: old for key, old in mapping.items() if key != path[0]}
    return mapping | {path[0]: value}
