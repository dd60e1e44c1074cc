"""The JSON editor: the values asked for change, and not a byte besides."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.writers.json_editing import edit_json

LLAMA = """{
  "architectures": [
    "LlamaForCausalLM"
  ],
  "attention_bias": false,
  "initializer_range": 0.02,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 32.0,
    "rope_type": "llama3"
  },
  "rope_theta": 500000.0,
  "torch_dtype": "bfloat16",
  "use_cache": false,
  "vocab_size": 128256
}
"""


def edited(text: str, **edits: object) -> str:
    return edit_json(text.encode(), edits).decode()


def test_a_value_is_replaced_and_numbers_keep_their_spelling() -> None:
    assert edited(LLAMA, use_cache=True) == LLAMA.replace('"use_cache": false', '"use_cache": true')
    assert edited(LLAMA, vocab_size=128257) == LLAMA.replace("128256", "128257")


def test_nothing_to_edit_gives_the_same_bytes() -> None:
    odd = b'{ "a" :1.0e+00,\r\n\t"b":[ ] , "c" : "\\u00e9" }  \n'
    assert edit_json(odd, {}) == odd


def test_a_new_key_goes_to_its_place_among_sorted_keys() -> None:
    wanted = LLAMA.replace('  "torch_dtype"', '  "tie_word_embeddings": false,\n  "torch_dtype"')
    assert edited(LLAMA, tie_word_embeddings=False) == wanted


def test_a_new_key_goes_to_the_end_of_unsorted_ones() -> None:
    assert edited('{\n    "b": 1,\n    "a": 2\n}', c="x") == '{\n    "b": 1,\n    "a": 2,\n    "c": "x"\n}'
    assert edited('{"b":1,"a":2}', c=3) == '{"b":1,"a":2,"c":3}'
    assert edited('{"b": 1, "a": 2}', c=3) == '{"b": 1, "a": 2, "c": 3}'


def test_a_new_key_before_all_others_and_after_all_others() -> None:
    assert edited('{\n  "b": 1\n}', a=0) == '{\n  "a": 0,\n  "b": 1\n}'
    assert edited('{\n  "b": 1\n}', c=2) == '{\n  "b": 1,\n  "c": 2\n}'


def test_a_new_key_in_an_empty_object() -> None:
    assert edited("{}", a=1) == '{"a": 1}'
    assert edited("{ \n}\n", a=1) == '{"a": 1}\n'


@pytest.mark.parametrize("key", ["architectures", "rope_scaling", "vocab_size"])
def test_a_key_is_removed_with_its_comma(key: str) -> None:
    removed = json.loads(edited(LLAMA, **{key: None}))
    assert removed == {name: value for name, value in json.loads(LLAMA).items() if name != key}


def test_removing_leaves_the_layout_of_the_others() -> None:
    assert edited('{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}', b=None) == '{\n  "a": 1,\n  "c": 3\n}'
    assert edited('{\n  "a": 1,\n  "b": 2\n}', b=None) == '{\n  "a": 1\n}'
    assert edited('{\n  "a": 1,\n  "b": 2\n}', a=None) == '{\n  "b": 2\n}'
    assert edited('{\n  "a": 1\n}', a=None) == "{}"
    assert edited(LLAMA, absent=None) == LLAMA


def test_a_nested_key_is_reached_by_dots() -> None:
    assert edit_json(LLAMA.encode(), {"rope_scaling.factor": 8.0}) == LLAMA.replace("32.0", "8.0").encode()
    added = edit_json(LLAMA.encode(), {"rope_scaling.high": 4})
    assert added == LLAMA.replace("32.0,\n", '32.0,\n    "high": 4,\n').encode()


def test_a_list_is_laid_out_like_the_text() -> None:
    assert edited(LLAMA, architectures=["Other"]) == LLAMA.replace("LlamaForCausalLM", "Other")
    assert edited('{"a": ["x"]}', a=["y", "z"]) == '{"a": ["y", "z"]}'


def test_keys_that_look_like_others_are_told_apart() -> None:
    text = '{"x": {"use_cache": 1}, "s": "\\"use_cache\\": 2", "use_cache": 3, "list": [{"use_cache": 4}]}'
    assert edited(text, use_cache=5) == text.replace("3", "5")


def test_an_escaped_spelling_of_a_key_is_the_key() -> None:
    assert edited('{"use\\u005fcache": false}', use_cache=True) == '{"use\\u005fcache": true}'


def test_numbers_that_json_does_not_know_survive() -> None:
    text = '{"a": NaN, "b": -Infinity, "c": 1}'
    assert edited(text, c=2) == text.replace("1", "2")


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "", "{", '{"a": 1,}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        edited(text, a=1)


def test_a_path_through_something_else_is_refused() -> None:
    for path in ("vocab_size.x", "architectures.x", "absent.x"):
        with pytest.raises(ValueError, match="is no object to edit in"):
            edit_json(LLAMA.encode(), {path: 1})


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="."), max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)
LAYOUTS = st.sampled_from(
    [
        {},
        {"indent": 2},
        {"indent": "\t"},
        {"indent": 0},
        {"separators": (",", ":")},
        {"separators": (" , ", " : ")},
        {"indent": 4, "ensure_ascii": False},
        {"sort_keys": True, "indent": 2},
    ]
)
NEW = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=2)
)


def places(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all objects inside an object, itself first."""
    assert isinstance(value, dict)
    return [
        path,
        *(
            deep
            for key, inner in value.items()
            if isinstance(inner, dict)
            for deep in places(inner, (*path, key))
        ),
    ]


def with_value(value: dict[str, Any], path: tuple[str, ...], new: object) -> dict[str, Any]:
    if len(path) > 1:
        return value | {path[0]: with_value(value[path[0]], path[1:], new)}
    return {k: v for k, v in value.items() if k != path[0]} if new is None else value | {path[0]: new}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=OBJECTS, layout=LAYOUTS, new=NEW)
def test_any_edit_of_any_object_changes_its_key_and_nothing_else(
    data: st.DataObject, value: dict[str, Any], layout: dict[str, Any], new: object
) -> None:
    text = json.dumps(value, **layout)
    where = data.draw(st.sampled_from(places(value)))
    here: Any = value
    for part in where:
        here = here[part]
    key = data.draw(st.sampled_from([*here, "new", "zz"]) if here else KEYS)
    after = edit_json(text.encode(), {".".join((*where, key)): new}).decode()
    assert json.loads(after) == with_value(value, (*where, key), new)
    old_part, new_part = differing(text, after)
    ascii_only = layout.get("ensure_ascii", True)
    assert len(dense(old_part)) <= len(dense(member(key, here.get(key), ascii_only)))
    assert len(dense(new_part)) <= len(dense(member(key, new, True)))


def member(key: str, value: object, ascii_only: bool) -> str:
    """Return all that an edit of one key may touch: the member and one comma."""
    return f"{json.dumps(key, ensure_ascii=ascii_only)}:{json.dumps(value, ensure_ascii=ascii_only)},"


def dense(text: str) -> str:
    return re.sub(r"\s", "", text)


def differing(before: str, after: str) -> tuple[str, str]:
    """Return what is left of two texts without what both begin and end with."""
    start = common(before, after)
    before, after = before[start:], after[start:]
    stop = common(before[::-1], after[::-1])
    return before[: len(before) - stop], after[: len(after) - stop]


def common(first: str, second: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


@settings(max_examples=100, deadline=None)
@given(value=OBJECTS, layout=LAYOUTS, new=st.integers())
def test_an_edit_that_is_undone_gives_the_same_bytes(
    value: dict[str, Any], layout: dict[str, Any], new: int
) -> None:
    text = json.dumps(value | {"old": "kept"}, **layout).encode()
    assert edit_json(edit_json(text, {"old": new}), {"old": "kept"}) == text
    if "fresh" not in value:
        assert edit_json(edit_json(text, {"fresh": new}), {"fresh": None}) == text
