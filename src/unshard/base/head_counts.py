"""How many heads attention has: the one thing that the tensors of a model do not tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unshard.base.configuration import lookup, lookup_int
from unshard.base.description import Base
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, InputError
from unshard.storage.files import InputFile

# What projects leave beside a checkpoint, and what they call heads, heads of keys, and a head's size.
ORIGINALS: dict[str, tuple[str, str, str]] = {
    "params.json": ("n_heads", "n_kv_heads", "head_dim"),
    "model_config.yaml": ("n_head", "n_query_groups", "head_size"),
}
_LARGEST_BYTES = 1 << 20
_MOST_HEADS = 1 << 16


@dataclass(frozen=True, slots=True)
class HeadCounts:
    """What a configuration says of attention.

    Attributes:
        queries: Heads of queries.
        keys: Heads of keys and values, which several heads of queries may share.
        size: Elements of a head, or None where it does not say.
        experts: Experts of a layer, or None where it does not say.
        said_by: Who says so, in words fit for a message.
    """

    queries: int
    keys: int
    size: int | None
    experts: int | None
    said_by: str


def head_counts_of(checkpoint: Checkpoint, base: Base | None) -> HeadCounts | None:
    """Return the head counts that the base's configuration gives, or a file beside the checkpoint; or None.

    Raises:
        BaseModelError: The two contradict one another, or a number means nothing.
    """
    said = None if base is None else _of_config(base)
    beside = _beside(checkpoint)
    if said is None or beside is None:
        return said or beside
    if (said.queries, said.keys) != (beside.queries, beside.keys):
        raise BaseModelError(
            said.said_by,
            f"counts other heads than {beside.said_by}, which lies beside the checkpoint",
            saw=f"{said.queries} heads, {said.keys} of keys",
            expected=f"{beside.queries} heads, {beside.keys} of keys",
            hint="Name the model that training started from with --base.",
        )
    return said


def _of_config(base: Base) -> HeadCounts | None:
    config = base.config
    queries = lookup_int(config, "num_attention_heads")
    if queries is None:
        return None
    keys = lookup_int(config, "num_key_value_heads")
    if keys is None:
        # Falcon's first models share one head of keys, and say so in words.
        shared = (
            lookup(config, "multi_query") is True and lookup(config, "new_decoder_architecture") is not True
        )
        keys = 1 if shared else queries
    size, experts = lookup_int(config, "head_dim"), lookup_int(config, "num_experts")
    return _checked(queries, keys, size, experts, f"config.json of {base.reference}")


def _beside(checkpoint: Checkpoint) -> HeadCounts | None:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    for name, keys in ORIGINALS.items():
        path = folder / name
        values = _read(path) if path.is_file() else {}
        queries, shared, size = (_number(values.get(key)) for key in keys)
        if queries is not None:
            return _checked(queries, shared or queries, size, None, str(path.name))
    return None


def _checked(queries: int, keys: int, size: int | None, experts: int | None, said_by: str) -> HeadCounts:
    counts = [queries, keys, *([size] if size is not None else [])]
    if not all(0 < count <= _MOST_HEADS for count in counts) or queries % keys:
        raise BaseModelError(
            said_by,
            "counts heads in a way that means nothing",
            saw=f"{queries} heads, {keys} of keys" + (f", of {size} elements" if size is not None else ""),
            expected="positive numbers, and as many heads of queries for each one of keys",
            hint="Copy the file again from the model that training started from.",
        )
    return HeadCounts(queries, keys, size, experts, said_by)


def _read(path: Path) -> Mapping[str, object]:
    """Return the top of a small JSON or YAML file; nothing where it is neither."""
    import yaml

    try:
        file = InputFile.describe(path)
        content = file.read(0, min(file.size, _LARGEST_BYTES))
        # The base loader makes text of every scalar, and expands neither tags nor merge keys.
        parsed = json.loads(content) if path.suffix == ".json" else yaml.load(content, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError, InputError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
