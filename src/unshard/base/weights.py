"""The base's own weights, described: for what is computed from them or held against them."""

from __future__ import annotations

from collections.abc import Mapping

from unshard.base.description import Base
from unshard.errors import BaseModelError, InputError, UnknownLayoutError
from unshard.readers import open_checkpoint
from unshard.tensors import DescribedTensor


def describe_base_weights(base: Base) -> Mapping[str, DescribedTensor]:
    """Return every tensor of the base by its name there; none where its folder holds no weights.

    Memory:
        Headers only.

    Raises:
        BaseModelError: Its weights are incomplete or damaged.
    """
    try:
        return open_checkpoint(base.path).tensors
    except UnknownLayoutError:
        return {}
    except InputError as error:
        raise BaseModelError(
            base.reference, "has weights that cannot be read", saw=error.message, hint=error.hint
        ) from error
