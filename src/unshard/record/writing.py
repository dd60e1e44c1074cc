"""A record as the text of its file.

    {"record": 1, ...}    the version of this layout, then the fields of `Record`; `tensors` last, a line each

Size:
    A box takes 90 bytes and 12 more for every dimension of its tensor, and a tensor 100; so a model whose
    T tensors lie on R ranks takes about T * (100 + 115 * R) bytes for every dtype: 1.4 MB for the 723 tensors
    of a Llama of 70 billion on 16 ranks, in one dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from unshard.jsonable import to_json
from unshard.record.description import VERSION, Record, RecordTensor
from unshard.record.json_text import format_json


def record_to_bytes(record: Record) -> bytes:
    """Return a record as JSON."""
    plain = to_json(replace(record, tensors={}))
    assert isinstance(plain, dict)
    del plain["tensors"]
    head = format_json({"record": VERSION, **plain}).removesuffix("\n}")
    return "".join((head, ',\n  "tensors": {', *_tensor_lines(record), "\n  }\n}\n")).encode()


def _tensor_lines(record: Record) -> Iterator[str]:
    comma = "\n"
    for name, tensor in record.tensors.items():
        yield f"{comma}    {json.dumps(name, ensure_ascii=False)}: {_tensor_text(tensor)}"
        comma = ",\n"


def _tensor_text(tensor: RecordTensor) -> str:
    digests = {
        dtype: [{"start": box.start, "stop": box.stop, "sha256": box.sha256} for box in boxes]
        for dtype, boxes in tensor.digests.items()
    }
    plain = {"shape": tensor.shape, "dtype": tensor.dtype, "digests": digests}
    return json.dumps(plain, separators=(",", ":"))
