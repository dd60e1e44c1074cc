"""Readers: one file per layout, and the way from a path to the checkpoint that is meant.

A layout is a module with two functions (`protocol.Reader`) and a row in `search.READERS`. What it
returns is a `Checkpoint` whose tensors are described and not read; what lies around it is added for all
layouts alike. `unpickling` is the only room that knows pickles, and it runs none.
"""

from unshard.readers.opening import open_checkpoint
from unshard.readers.places import Places, as_paths
from unshard.readers.search import READERS

__all__ = ["READERS", "Places", "as_paths", "open_checkpoint"]
