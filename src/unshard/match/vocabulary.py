"""Rows of embeddings and output heads: resized by training, or of another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.base.configuration import Config, places_of, text_levels
from unshard.match.needs import Shape
from unshard.recipes.ties import has_row_per_token


@dataclass(frozen=True, slots=True)
class Resize:
    """A vocabulary that has other rows than the base's.

    Attributes:
        rows: Rows now.
        base_rows: Rows in the base.
        names: The tensors that were resized.
    """

    rows: int
    base_rows: int
    names: tuple[str, ...]


def find_resize(
    shapes: Mapping[str, Shape], expected: Mapping[str, Shape], config: Config, *, tokens: int | None
) -> Resize | None:
    """Return how training resized the vocabulary, or None where it did not, or not consistently.

    It did if nothing but rows of embeddings and output heads differs, all of them by the same number,
    and — where there are fewer rows than before — the tokenizer can do with them.

    Args:
        shapes: Shapes of the tensors, by their names in the model.
        expected: Shapes that the model needs.
        config: The base's configuration.
        tokens: Tokens of the tokenizer that goes with the tensors, where that is known.
    """
    ours = {name: shapes[name] for name in expected if name in shapes and has_row_per_token(name)}
    resized = [name for name, shape in ours.items() if shape != expected[name]]
    same_width = all(ours[name][1:] == expected[name][1:] and ours[name] for name in resized)
    if not resized or not same_width:
        return None
    growth = {ours[name][0] - expected[name][0] for name in resized}
    if len(growth) != 1 or len(resized) < len(ours):
        return None
    declared = vocabulary_size(config)
    main = next((name for name in resized if expected[name][0] == declared), resized[0])
    rows = ours[main][0]
    if rows < expected[main][0] and (tokens is None or tokens > rows):
        return None
    return Resize(rows, expected[main][0], tuple(resized))


def vocabulary_size(config: Config) -> int | None:
    """Return the size of the vocabulary that a configuration declares for its language model."""
    sizes = [value for _, value in places_of(config, "vocab_size") if isinstance(value, int)]
    return sizes[-1] if sizes else None


def vocabulary_edits(shapes: Mapping[str, Shape], config: Config, resize: Resize | None) -> dict[str, object]:
    """Return the edits that make the configuration declare as many rows as there are.

    Every level of the language model that declares the size is edited, the deepest where none does.
    Where the base's tensors are not known, the configuration is edited only if no embedding or head
    has as many rows as it says.
    """
    declared = vocabulary_size(config)
    rows = resize.rows if resize else _rows_unlike(shapes, declared)
    if rows is None or rows == declared:
        return {}
    places: dict[str, object] = {
        key: rows for key, value in places_of(config, "vocab_size") if value == declared
    }
    return places or {".".join((*text_levels(config)[-1][0], "vocab_size")): rows}


def _rows_unlike(shapes: Mapping[str, Shape], declared: int | None) -> int | None:
    """Return the rows that all embeddings and heads have, if none has the declared number."""
    rows = {shape[0] for name, shape in shapes.items() if has_row_per_token(name) and shape}
    return rows.pop() if len(rows) == 1 and declared not in rows and declared is not None else None
