"""The memory that one worker reads into and computes in."""

from __future__ import annotations

READ_BYTES = 1 << 20  # of each side; long enough that columns are read in long stretches of each piece
BLOCK = 1 << 16  # numbers at a time: few enough for a core's cache, enough to be worth the calls
WORDS = 1 << 14


class Buffers:
    """What one worker reads into, and what it computes in.

    Attributes:
        ours: Bytes of the tensor.
        theirs: Bytes of the other one.
        ours64: A block of the first as float64.
        theirs64: A block of the second.
        scratch: A block to compute in.
        indices: The memory of all three, and as much again, to count in.
        words: Words to take a digest of.
    """

    def __init__(self) -> None:
        import numpy as np

        self.ours = bytearray(READ_BYTES)
        self.theirs = bytearray(READ_BYTES)
        memory = np.empty((4, BLOCK))
        self.ours64, self.theirs64, self.scratch, _ = memory
        self.indices = memory.reshape(-1).view(np.intp)
        self.words = np.empty(WORDS, np.uint64)
