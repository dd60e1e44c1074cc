"""Repairs of a model folder that is broken, without the run that it came from.

    read ──▶ scene ──▶ repairs ──▶ plan ──▶ in place, with a journal │ into a new folder

A folder is held against its own configuration, a base, or the class of the model, by the proofs of a
conversion; what differs is mended, and most of it by headers alone. What cannot be known is refused.
"""

from unshard.mending.job import Mending, mend

__all__ = ["Mending", "mend"]
