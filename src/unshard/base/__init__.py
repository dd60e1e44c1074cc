"""The base: the model training started from, which knows what a checkpoint does not.

It gives the configuration, the tokenizer, and — from the headers of its own weights — the names,
shapes and dtypes the result must have. Its weights are never copied.
"""

from unshard.base.description import Base, ExpectedTensor
from unshard.base.search import find_base

__all__ = ["Base", "ExpectedTensor", "find_base"]
