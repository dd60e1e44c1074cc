"""A model that is at hand, as the base that another checkpoint is led to."""

from __future__ import annotations

from unshard.base.configuration import read_config
from unshard.base.description import Base, ExpectedTensor
from unshard.checkpoint import Checkpoint


def base_of_model(model: Checkpoint, role: str) -> Base:
    """Return a model as the base whose names, shapes and dtypes say what is expected of another.

    Args:
        model: The model; its folder may hold a configuration.
        role: What it is, in words fit for a message: "the model that is verified".

    Raises:
        BaseModelError: Its configuration cannot be read.
    """
    path = model.path / "config.json"
    content, config = read_config(path) if path.is_file() else (b"{}", {})
    return Base(
        path=model.path,
        reference=str(model.path),
        origin=role,
        config_bytes=content,
        config=config,
        expected={name: ExpectedTensor(t.shape, t.dtype) for name, t in model.tensors.items()},
        expected_from=f"the headers of {role}",
    )
