"""A record, read from a file that anybody may have made: everything in it is checked before it is believed.

Memory:
    A few times the size of the file, which is at most 256 MiB: two million boxes.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from unshard.dtypes import DTYPES
from unshard.errors import DamagedFileError, PathNotFoundError, printable
from unshard.record.decoding import decoder_of
from unshard.record.description import VERSION, BoxDigest, Fingerprint, Record, RecordTensor, SequencePrint
from unshard.record.json_text import parse_json
from unshard.storage.files import InputFile
from unshard.tensors import Box, check_coverage

_LARGEST_BYTES = 256 << 20
_MOST_DIMENSIONS = 64
_MOST_ELEMENTS = 1 << 62
_MOST_SEQUENCES, _MOST_TOKENS = 1000, 1 << 18
_MOST_LAYERS, _MOST_GREEDY, _LARGEST_NUMBER = 100_000, 1024, 1e9
_LONGEST_TEXT = 1 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONFIG_FILE = re.compile(r"unshard\.training_config(\.\d{1,4})?\.(json|yaml)")
_HINT = "Fetch it again from where it came; without it, the model can still be converted and verified."


def read_record(path: Path) -> Record | None:
    """Return the record at `path`, or None where there is none.

    Raises:
        DamagedFileError: It is no record, or one of a later version.
        InputError: It is no regular file, or cannot be read.
    """
    try:
        file = InputFile.describe(path)  # a FIFO of this name must not be waited for
    except PathNotFoundError:
        return None
    if file.size > _LARGEST_BYTES:
        raise DamagedFileError(
            path,
            "is too large for a record",
            saw=f"{file.size:,} bytes",
            expected=f"at most {_LARGEST_BYTES:,}",
            hint=_HINT,
        )
    return parse_record(file.read(0, file.size), path)


def parse_record(content: bytes, path: Path) -> Record:
    """Return the record that a text says.

    Args:
        content: The text.
        path: The file, for errors.

    Raises:
        DamagedFileError: It is no record, or one of a later version.
    """
    try:
        plain = parse_json(content)
        _require_version(plain, path)
        record = decoder_of(Record)(plain)
        assert isinstance(record, Record)
        _require_config_files(record)
        for name, tensor in record.tensors.items():
            _require_sound(name, tensor)
        if record.fingerprint is not None:
            _require_computable(record.fingerprint)
    except ValueError as error:
        raise DamagedFileError(path, "is not a record", saw=printable(str(error)), hint=_HINT) from error
    return record


def _require_version(plain: object, path: Path) -> None:
    version = plain.get("record") if isinstance(plain, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError("it does not say which version of a record it is")
    if version > VERSION:
        raise DamagedFileError(
            path,
            "is a record of a later version",
            saw=version,
            expected=f"at most {VERSION}",
            hint="Read it with a newer version of unshard: pip install --upgrade unshard",
        )


def _require_config_files(record: Record) -> None:
    """Raise unless the files that are named beside the record are such files: they will be copied."""
    for name in record.training.files if record.training else ():
        if not _CONFIG_FILE.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is no name that a training configuration has")


def _require_sound(name: str, tensor: RecordTensor) -> None:
    shape = tensor.shape
    if len(shape) > _MOST_DIMENSIONS or any(n < 0 for n in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError(f"`{name[:200]}` has a shape that no tensor has")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"`{name[:200]}` has the dtype {tensor.dtype[:40]!r}, which is unknown")
    for dtype, boxes in tensor.digests.items():
        if any(not _SHA256.fullmatch(box.sha256) for box in boxes):
            raise ValueError(f"`{name[:200]}` has a digest that is not a SHA-256")
        _require_cover(f"{name[:200]} in {dtype[:40]}", shape, boxes)


def _require_computable(told: Fingerprint) -> None:
    """Raise unless a fingerprint is one that a model can be asked to give again, in bounded time."""
    names = [sequence.name for sequence in told.sequences]
    if not 0 < len(names) <= _MOST_SEQUENCES or len(set(names)) < len(names):
        raise ValueError(f"its fingerprint has {len(names):,} sequences, or two of one name")
    if sum(len(sequence.tokens) for sequence in told.sequences) > _MOST_TOKENS:
        raise ValueError(f"its fingerprint has more than {_MOST_TOKENS:,} tokens")
    layers = 1 if told.layers is None else told.layers
    if not (1 <= layers <= _MOST_LAYERS and told.vocabulary > 1 and 0 <= told.greedy_tokens <= _MOST_GREEDY):
        raise ValueError("its fingerprint has numbers of layers, tokens or logits that no model has")
    if unknown := {told.weights, told.computed} - DTYPES.keys():
        raise ValueError(f"its fingerprint has the dtype {min(unknown)[:40]!r}, which is unknown")
    for sequence in told.sequences:
        _require_sequence(sequence, told.vocabulary)


def _require_sequence(told: SequencePrint, vocabulary: int) -> None:
    count = len(told.tokens)
    lengths = (len(told.losses) + 1, len(told.argmax), len(told.gaps))
    tops = len(told.top_ids)
    if count < 2 or set(lengths) != {count} or not 0 < tops == len(told.top_logits) <= vocabulary:
        raise ValueError("its fingerprint has a sequence with too few numbers, or too many")
    if any(not 0 <= each < vocabulary for each in (*told.tokens, *told.argmax, *told.top_ids)):
        raise ValueError(f"its fingerprint has tokens that are none of {vocabulary:,}")
    numbers = (*told.losses, *told.gaps, *told.top_logits)
    # Those of a model whose weights are no numbers are no numbers either.
    if any(math.isfinite(each) and abs(each) > _LARGEST_NUMBER for each in numbers):
        raise ValueError("its fingerprint has numbers that no model gives")
    if told.text is not None and (len(told.text) > _LONGEST_TEXT or _SURROGATE.search(told.text)):
        raise ValueError("its fingerprint has a text that is too long, or none")


def _require_cover(subject: str, shape: tuple[int, ...], boxes: tuple[BoxDigest, ...]) -> None:
    """Raise unless boxes cover a shape exactly once."""
    if not all(_is_inside(shape, box) for box in boxes):
        raise ValueError(f"`{subject}` has boxes that are not inside its shape {list(shape)}")
    coverage = check_coverage(shape, [Box(box.start, box.stop) for box in boxes])
    if not coverage.exact or coverage.replicas:
        fault = "overlap" if coverage.overlaps or coverage.replicas else "leave holes"
        raise ValueError(f"`{subject}` has boxes that do not cover it exactly once: they {fault}")


def _is_inside(shape: tuple[int, ...], box: BoxDigest) -> bool:
    if not len(box.start) == len(box.stop) == len(shape):
        return False
    return all(0 <= a <= b <= n for a, b, n in zip(box.start, box.stop, shape, strict=True))
