"""Headers of safetensors are read as strictly as the format says, and a little more."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.errors import DamagedFileError, InputError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.weights.safetensors_file import describe_safetensors_file, read_safetensors_header
from unshard.storage.files import InputFile


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "U8", **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
        **more,
    }


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> InputFile:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return InputFile.describe(path)


def test_tensors_and_metadata_are_read_in_the_order_of_the_header(tmp_path: Path) -> None:
    header = {
        "b": entry(4, 8, [1], "F32"),
        "__metadata__": {"format": "pt"},
        "a": entry(0, 4, [2, 1], "BF16"),
    }
    file = write(tmp_path / "m", header, np.array([1, 2], np.uint16).tobytes() + np.float32(3).tobytes())
    assert read_safetensors_header(file).metadata == {"format": "pt"}
    tensors = describe_safetensors_file(file)
    assert [(n, t.shape, t.dtype.name) for n, t in tensors.items()] == [
        ("b", (1,), "float32"), ("a", (2, 1), "bfloat16"),
    ]  # fmt: skip
    assert tensors["b"].numpy() == [3.0]


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"__metadata__": {}},
        {"empty": entry(0, 0, [0, 5])},
        {"number": entry(0, 4, [], "F32")},
        {"name with spaces / and ümlauts": entry(0, 4)},
        json.dumps({"a": entry(0, 4)}).encode() + b"   ",
    ],
)
def test_odd_and_legitimate_headers_are_read(header: Any, tmp_path: Path) -> None:
    plain = header if isinstance(header, dict) else json.loads(header)
    size = max((e["data_offsets"][1] for n, e in plain.items() if n != "__metadata__"), default=0)
    found = describe_safetensors_file(write(tmp_path / "m", header, bytes(size)))
    assert list(found) == [name for name in plain if name != "__metadata__"]


PLAIN = b'{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'

HOSTILE: dict[str, Any] = {
    "a name given twice": b'{"a":%b,"a":%b}' % (PLAIN, PLAIN.replace(b"U8", b"I8")),
    "a field given twice": b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}',
    "metadata given twice": b'{"__metadata__":{},"__metadata__":{},"a":%b}' % PLAIN,
    "a key of metadata given twice": b'{"__metadata__":{"x":"1","x":"2"},"a":%b}' % PLAIN,
    "a field too many": {"a": entry(0, 4, extra=1)},
    "a field too few": {"a": {"dtype": "U8", "shape": [4]}},
    "an entry that is none": {"a": 3},
    "metadata that is no text": {"__metadata__": {"x": 1}, "a": entry(0, 4)},
    "metadata that is none": {"__metadata__": [], "a": entry(0, 4)},
    "space in front": b" " + json.dumps({"a": entry(0, 4)}).encode(),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps({"a": entry(0, 4)}).encode(),
    "a list": b"[1]",
    "text behind": json.dumps({"a": entry(0, 4)}).encode() + b"x",
    "NUL behind": json.dumps({"a": entry(0, 4)}).encode() + b"\0",
    "no JSON": b"{x",
    "no UTF-8": b'{"\xff":1}',
    "half a surrogate": b'{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "deep nesting": b'{"a":' + b"[" * 100_000,
    "NaN": b'{"a":NaN}',
    "a long integer": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
    "an empty name": {"": entry(0, 4)},
    "a name with a NUL": {"a\0b": entry(0, 4)},
    "a name that steers a terminal": {"a\x1b[2J": entry(0, 4)},
    "a negative size": {"a": entry(0, 4, [-4])},
    "a size that is no integer": {"a": entry(0, 4, [4.0])},
    "a size that is true": {"a": entry(0, 4, [True, 4])},
    "sizes that overflow": {"a": entry(0, 8, [1 << 61, 0, 8])},
    "sizes that are immense": {"a": entry(0, 4, [1 << 63, 0])},
    "many dimensions": {"a": entry(0, 4, [1] * 40)},
    "offsets that are no pair": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 2, 4]}},
    "offsets in reverse": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}},
    "negative offsets": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}},
    "offsets that do not fit the shape": {"a": entry(0, 4, [3])},
    "an unknown dtype": {"a": entry(0, 4, [4], "U9")},
    "a dtype that is no text": {"a": entry(0, 4, [4], 8)},
    "a gap": {"a": entry(0, 1), "b": entry(2, 4)},
    "a gap in front": {"a": entry(1, 4)},
    "an overlap": {"a": entry(0, 3), "b": entry(2, 4)},
    "one place for two": {"a": entry(0, 4), "b": entry(0, 4)},
}  # fmt: skip


@pytest.mark.parametrize("header", HOSTILE.values(), ids=list(HOSTILE))
def test_a_header_that_contradicts_the_format_is_refused(header: Any, tmp_path: Path) -> None:
    with pytest.raises((UnsafeFileError, DamagedFileError)) as caught:
        describe_safetensors_file(write(tmp_path / "model.safetensors", header, bytes(4)))
    assert caught.value.hint


def test_a_truncated_file_says_through_which_byte_it_should_go(tmp_path: Path) -> None:
    file = write(tmp_path / "m", {"a": entry(0, 4000)}, bytes(1000))
    with pytest.raises(
        DamagedFileError, match=rf"through byte {file.size + 3000:,}: saw {file.size:,} bytes"
    ):
        describe_safetensors_file(file)


def test_a_file_that_goes_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="goes on after its tensors"):
        describe_safetensors_file(write(tmp_path / "m", {"a": entry(0, 4)}, bytes(5)))


@pytest.mark.parametrize("length", [3, 1 << 40, 100_000_001])
def test_a_header_longer_than_the_file_or_the_limit_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises((UnsafeFileError, DamagedFileError)):
        describe_safetensors_file(write(tmp_path / "m", b"{}", length=length))


def test_dtypes_that_are_in_the_format_and_not_read_are_named(tmp_path: Path) -> None:
    header = {"a": entry(0, 2, [4], "F4"), "b": entry(2, 4)}
    with pytest.raises(UnsupportedLayoutError, match=r"`a` \(F4\)"):
        describe_safetensors_file(write(tmp_path / "m", header, bytes(4)))


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=80), flip=st.integers(0, 79), by=st.integers(1, 255), keep=st.booleans())
def test_any_header_is_read_or_refused(
    raw: bytes, flip: int, by: int, keep: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = bytearray(json.dumps({"a": entry(0, 4), "b": entry(4, 8, [2], "BF16")}).encode())
    if flip < len(good):
        good[flip] ^= by
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    with contextlib.suppress(InputError):
        describe_safetensors_file(write(path, bytes(good) if keep else raw, bytes(8)))
