"""Records as files: what is written is read again, hostile text is refused, the schema fits both."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from record_scenes import DIGEST, digests_of, record_of, tensors_of

from unshard.errors import DamagedFileError, InputError
from unshard.record.description import BoxDigest, Record, RecordTensor
from unshard.record.reading import parse_record, read_record
from unshard.record.schema import record_schema
from unshard.record.writing import record_to_bytes

PLACE = Path("run/unshard.record.json")


def a_record() -> Record:
    state = {
        "scale": torch.tensor(2.0),
        "none": torch.zeros(0, 4),
        "weight": torch.arange(15.0).view(5, 3),
        "naïve\n.bias": torch.zeros(3, dtype=torch.int64),
    }
    return record_of(tensors_of(state, (torch.bfloat16,)))


def plain() -> Any:
    return json.loads(record_to_bytes(a_record()))


def parsed(value: object) -> Record:
    return parse_record(json.dumps(value).encode(), PLACE)


def test_what_is_written_is_read_again_as_it_was() -> None:
    record = a_record()
    assert record.training is not None
    told = dataclasses.replace(record.training, values={**record.training.values, "clip": "Infinity"})
    again = parse_record(record_to_bytes(record), PLACE)
    # A loss is NaN, which is equal to nothing; its repr is.
    assert repr(again) == repr(dataclasses.replace(record, training=told))


def test_a_tensor_takes_one_line() -> None:
    lines = record_to_bytes(a_record()).decode().splitlines()
    assert sum('"sha256"' in line for line in lines) == 4
    assert lines[1] == '  "record": 1,'


def test_numbers_that_json_does_not_have_stand_as_words() -> None:
    written = plain()
    assert written["fingerprint"]["sequences"][0]["losses"] == ["NaN"]
    assert written["training"]["values"]["clip"] == "Infinity"


def test_records_fit_the_schema() -> None:
    schema = record_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(plain(), schema)
    bare = record_of({}, training=None, base=None, tokenizer=None, fingerprint=None, step=None)
    jsonschema.validate(json.loads(record_to_bytes(bare)), schema)


def test_the_schema_describes_every_field() -> None:
    def bare(schema: dict[str, Any]) -> list[str]:
        return [name for name, value in schema["properties"].items() if "description" not in value]

    schema = record_schema()
    assert bare(schema) == []
    undescribed = {name: bare(part) for name, part in schema["$defs"].items() if bare(part)}
    assert list(undescribed) == ["Precision"]  # its fields are what its one line says


def test_what_the_schema_refuses_the_reader_refuses() -> None:
    changes: list[Callable[[Any], object]] = [
        lambda value: value.update(record="1"),
        lambda value: value.update(step="400"),
        lambda value: value["environment"].update(packages=[]),
        lambda value: value["distribution"].update(kind="zero"),
        lambda value: value["code"].update(dirty=1),
        lambda value: value["tensors"]["weight"].update(shape=[5.5, 3]),
        lambda value: value.pop("model"),
    ]
    for change in changes:
        value = plain()
        change(value)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, record_schema())
        with pytest.raises(DamagedFileError):
            parsed(value)


def test_keys_of_later_writers_are_passed_over() -> None:
    value = plain()
    value["later"] = {"anything": [1]}
    value["environment"]["later"] = 3
    value["tensors"]["weight"]["later"] = None
    assert parsed(value).tensors == a_record().tensors


def test_a_later_version_is_refused_by_its_number() -> None:
    with pytest.raises(DamagedFileError, match=r"later version: saw 2, expected at most 1") as caught:
        parsed({**plain(), "record": 2, "tensors": "otherwise"})
    assert caught.value.hint is not None
    assert "pip install --upgrade unshard" in caught.value.hint


def box(start: list[int], stop: list[int], digest: str = DIGEST) -> dict[str, object]:
    return {"start": start, "stop": stop, "sha256": digest}


def boxes(*found: dict[str, object]) -> Callable[[Any], None]:
    return lambda value: value["tensors"]["weight"]["digests"].update(float32=list(found))


def first_print(value: Any) -> Any:
    return value["fingerprint"]["sequences"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (boxes(box([0, 0], [4, 3])), "leave holes"),
        (boxes(), "leave holes"),
        (boxes(box([0, 0], [3, 3]), box([2, 0], [5, 3])), "overlap"),
        (boxes(box([0, 0], [5, 3]), box([0, 0], [5, 3])), "overlap"),
        (boxes(box([0], [5])), "not inside its shape"),
        (boxes(box([0, 0], [6, 3])), "not inside its shape"),
        (boxes(box([0, 0], [5, 3]), box([4, 0], [3, 3])), "not inside its shape"),
        (boxes(box([0, -1], [5, 3])), "not inside its shape"),
        (boxes(box([0, 0], [5, 3], DIGEST[:-1])), "not a SHA-256"),
        (boxes(box([0, 0], [5, 3], DIGEST.upper())), "not a SHA-256"),
        (lambda value: value["tensors"]["weight"].update(dtype="float33"), "float33"),
        (lambda value: value["tensors"]["weight"].update(shape=[1 << 62, 5]), "shape that no tensor has"),
        (lambda value: value["tensors"]["weight"].update(shape=[-5, -3]), "shape that no tensor has"),
        (lambda value: value["tensors"]["weight"].update(shape=[1] * 65), "shape that no tensor has"),
        (
            lambda value: value["tensors"]["weight"].update(shape=[10**30, 3]),
            "`tensors.weight.shape.0` is an",
        ),
        (lambda value: value.update(step=True), "`step` is true, not an integer"),
        (lambda value: value["fingerprint"]["sequences"][0].update(losses=["1"]), "not a number"),
        (lambda value: value.update(tensors=[]), "`tensors` is a list of 0 values, not an object"),
        (lambda value: value["training"].update(files=["../../.bashrc"]), "no name that a training config"),
        (lambda value: value["training"].update(files=["unshard.training_config.sh"]), "no name that a"),
        (
            lambda value: first_print(value).update(tokens=[], losses=[], argmax=[], gaps=[]),
            "too few numbers",
        ),
        (lambda value: first_print(value).update(top_logits=[]), "too few numbers, or too many"),
        (lambda value: first_print(value).update(top_ids=[-30000]), "tokens that are none of 515"),
        (lambda value: first_print(value).update(tokens=[1, 515]), "tokens that are none of 515"),
        (lambda value: first_print(value).update(top_logits=[1e308]), "numbers that no model gives"),
        (lambda value: first_print(value).update(text="\ud800"), "a text that is too long, or none"),
        (lambda value: value["fingerprint"].update(sequences=[]), "0 sequences"),
        (lambda value: value["fingerprint"]["sequences"].append(first_print(value)), "two of one name"),
        (lambda value: value["fingerprint"].update(vocabulary=1), "that no model has"),
        (lambda value: value["fingerprint"].update(layers=-100000), "that no model has"),
        (lambda value: value["fingerprint"].update(greedy_tokens=10**9), "that no model has"),
        (lambda value: value["fingerprint"].update(computed="float7"), "'float7', which is unknown"),
        (lambda value: value.update(record=0), "which version"),
        (lambda value: value.update(record=None), "which version"),
    ],
)
def test_what_no_record_says_is_refused(change: Callable[[Any], object], message: str) -> None:
    value = plain()
    change(value)
    with pytest.raises(DamagedFileError, match="is not a record") as caught:
        parsed(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "which version"),
        (b"{", "Expecting"),
        (b"\xff", "utf-8"),
        (b'{"record": 1, "record": 1}', "'record' stands twice"),
        (b'{"record": NaN}', "it has NaN"),
        (b'{"record": 1e999}', "which version"),
        (b"[" * 100_000, "too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "64 levels"),
        (b'{"record": ' + b"1" * 5000 + b"}", "digits"),
    ],
)
def test_text_that_is_no_record_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DamagedFileError, match="is not a record") as caught:
        parse_record(content, PLACE)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_later_box_of_a_hostile_grid_takes_no_time_that_grows_faster_than_it() -> None:
    rows = [box([i, 0], [i + 1, 1 << 30]) for i in range(20_000)]
    value = plain()
    value["tensors"]["weight"] = {
        "shape": [20_001, 1 << 30],
        "dtype": "float32",
        "digests": {"float32": rows},
    }
    with pytest.raises(DamagedFileError, match="leave holes"):
        parsed(value)


def test_a_fifo_is_not_waited_for_and_nothing_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path / "absent") is None
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        read_record(tmp_path / "fifo")


def test_a_giant_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "giant").open("wb") as stream:
        stream.truncate((256 << 20) + 1)
    with pytest.raises(DamagedFileError, match="too large for a record"):
        read_record(tmp_path / "giant")


def test_the_size_is_what_the_documentation_says() -> None:
    state = {f"model.layers.{n}.mlp.up_proj.weight": torch.zeros(64, 48) for n in range(50)}
    tensors = {
        name: RecordTensor((64, 48), "bfloat16", {"bfloat16": digests_of(tensor, ranks=16)})
        for name, tensor in state.items()
    }
    size = len(record_to_bytes(record_of(tensors))) - len(record_to_bytes(record_of({})))
    assert 0.8 < size / (50 * (100 + 115 * 16)) < 1.2


def test_boxes_of_zero_dimensions_and_of_no_elements_cover_their_tensors() -> None:
    record = record_of(
        {
            "scalar": RecordTensor((), "float32", {"float32": (BoxDigest((), (), DIGEST),)}),
            "empty": RecordTensor((0, 3), "float32", {"float32": ()}),
        }
    )
    assert parse_record(record_to_bytes(record), PLACE).tensors == record.tensors
