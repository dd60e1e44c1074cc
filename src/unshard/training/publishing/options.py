"""What may be asked of a saved model, checked before anything is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unshard.dtypes import DTYPES, DType
from unshard.errors import OptionError
from unshard.match.restored import AdapterChoice
from unshard.sizes import parse_size
from unshard.writers.torch_file import is_torch_file_name

Format = Literal["safetensors", "pt"]

# What tensors are cast to: a policy, a dtype, or dtypes by patterns of names, the first that fits.
DTypeChoice = Any

_POLICIES = ("keep", "base", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """What a saved model is to be, checked.

    Attributes:
        format: `safetensors`, or `pt` for a plain state dict in torch's own format.
        dtype: The dtype policy of matching: `keep`, `base`, or a dtype's name.
        dtypes: Dtypes by patterns of names in the result; the first that is found in a name counts, and
            floating parameters that none is found in have the dtype of the policy.
        adapter: What becomes of an adapter.
        max_file_bytes: The largest file of tensors.
    """

    format: Format = "safetensors"
    dtype: str = "keep"
    dtypes: tuple[tuple[re.Pattern[str], DType], ...] = ()
    adapter: AdapterChoice = "merge"
    max_file_bytes: int = 5_000_000_000


def require_options(
    path: Path,
    *,
    format: str,  # noqa: A002 the word that users know
    dtype: DTypeChoice,
    adapter: str,
    max_shard_size: str | int,
) -> SaveOptions:
    """Return what was asked for, checked.

    Args:
        path: The folder to write, or with `format="pt"` also a file that ends in .pt, .pth or .bin.
        format: `safetensors` or `pt`.
        dtype: `keep`, `base`, a dtype of torch or its name, or a mapping from patterns of names (regular
            expressions that are searched for) to dtypes; what no pattern fits stays as it is.
        adapter: `merge`, `keep` or `both`.
        max_shard_size: The largest file of tensors, as "5GB", "512MiB" or a number of bytes.

    Raises:
        OptionError: One of them means nothing, or they contradict one another.
    """
    if format not in get_args(Format):
        raise _meaningless("format", format, get_args(Format))
    if adapter not in get_args(AdapterChoice):
        raise _meaningless("adapter", adapter, get_args(AdapterChoice))
    _require_fitting(path, format, adapter)
    policy, dtypes = _dtypes_of(dtype)
    size = max_shard_size if isinstance(max_shard_size, int) else parse_size(max_shard_size)
    if size <= 0 or isinstance(max_shard_size, bool):
        raise OptionError("max_shard_size", "must be larger than nothing", saw=max_shard_size)
    return SaveOptions(
        format="pt" if format == "pt" else "safetensors",
        dtype=policy,
        dtypes=dtypes,
        adapter="merge" if adapter == "merge" else "keep" if adapter == "keep" else "both",
        max_file_bytes=size,
    )


def _require_fitting(path: Path, format: str, adapter: str) -> None:  # noqa: A002
    """Raise unless the format, the name of the output and what becomes of an adapter go together."""
    if format == "safetensors" and is_torch_file_name(path):
        raise OptionError(
            path,
            "is the name of a torch file, and the result would be a folder",
            hint='Give format="pt" for a plain state dict, or name a folder.',
        )
    if format == "pt" and adapter != "merge":
        raise OptionError(
            "adapter",
            "is kept in a folder of safetensors",
            saw=f'adapter="{adapter}", format="pt"',
            hint='Leave the format out, or merge the adapter with adapter="merge".',
        )


def _meaningless(option: str, saw: object, known: tuple[str, ...]) -> OptionError:
    return OptionError(
        option, "has a value that means nothing", saw=repr(saw)[:60], expected=", ".join(known)
    )


def _dtypes_of(dtype: DTypeChoice) -> tuple[str, tuple[tuple[re.Pattern[str], DType], ...]]:
    """Return the policy, and dtypes by patterns.

    Raises:
        OptionError: Something of it means nothing.
    """
    if isinstance(dtype, Mapping):
        return "keep", tuple((_pattern(key), _floating(f"dtype[{key!r}]", v)) for key, v in dtype.items())
    if isinstance(dtype, str) and dtype in ("keep", "base"):
        return dtype, ()
    found = _floating("dtype", dtype)
    return found.name, () if found.name in _POLICIES else ((re.compile(""), found),)


def _pattern(pattern: object) -> re.Pattern[str]:
    """Return a pattern of names.

    Raises:
        OptionError: It is none.
    """
    saw = repr(pattern)[:60]
    if not isinstance(pattern, str):
        raise OptionError("dtype", "has a pattern that is no text", saw=saw)
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptionError("dtype", f"has a pattern that is no regular expression: {error}", saw=saw) from None


def _floating(option: str, dtype: object) -> DType:
    """Return a floating dtype of at least 16 bits.

    Raises:
        OptionError: It is none.
    """
    name = str(dtype).removeprefix("torch.")
    found = DTYPES.get(name)
    if found is None or found.kind != "float" or found.itemsize < 2 or not _is_dtype(dtype):
        expected = (*_POLICIES, "a mapping from patterns of names to dtypes")
        raise _meaningless(option, dtype, expected)
    return found


def _is_dtype(dtype: object) -> bool:
    return isinstance(dtype, str) or type(dtype).__name__ == "dtype"
