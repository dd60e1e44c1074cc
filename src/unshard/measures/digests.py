"""A digest of bytes that is quick, and may be taken of parts in any order.

It tells tensors apart that differ by accident; somebody who wants two to be alike can make them so.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from unshard.measures.buffers import WORDS

if TYPE_CHECKING:
    import numpy as np

# Of a congruential generator modulo 2**64 with a long period and no short relations between its powers.
# Source: Steele and Vigna, "Computationally easy, spectrally good multipliers for congruential
# pseudorandom number generators", 2021.
_BASE = 0xD1342543DE82EF95
_MODULUS = 1 << 64
_WORD = 8  # bytes


class PartialDigest:
    """The digest of a part of some bytes; those of all parts, added modulo 2**64, are that of the whole.

    Words of 64 bits, whose halves are mixed first so that no bit has its effect in the highest ones alone,
    are the coefficients of a polynomial, and the digest is its value modulo 2**64.
    """

    def __init__(self, start: int) -> None:
        """Begin at byte `start`, a multiple of 8."""
        assert start % _WORD == 0, "a part begins with a word"
        self._factor = pow(_BASE, start // _WORD, _MODULUS)
        self._rest = b""
        self._sum = 0

    def add(self, raw: memoryview, scratch: np.ndarray) -> None:
        """Take in the bytes that come next.

        Args:
            raw: The bytes.
            scratch: `WORDS` numbers of uint64 to work in.
        """
        if self._rest:
            lacking = _WORD - len(self._rest)
            head, raw = self._rest + raw[:lacking], raw[lacking:]
            if len(head) < _WORD:
                self._rest = head
                return
            self._add_words(memoryview(head), scratch)
        whole = len(raw) // _WORD * _WORD
        self._rest = bytes(raw[whole:])
        for start in range(0, whole, WORDS * _WORD):
            self._add_words(raw[start : min(whole, start + WORDS * _WORD)], scratch)

    def _add_words(self, raw: memoryview, scratch: np.ndarray) -> None:
        """Take in at most `WORDS` words."""
        import numpy as np

        words = np.frombuffer(raw, "<u8")
        mixed = np.right_shift(words, np.uint64(32), out=scratch[: words.size])
        np.bitwise_xor(mixed, words, out=mixed)
        powers = _powers()[: words.size]
        self._sum = (self._sum + int(np.dot(mixed, powers)) * self._factor) % _MODULUS
        self._factor = self._factor * int(powers[-1]) * _BASE % _MODULUS

    def value(self, scratch: np.ndarray) -> int:
        """Return the digest; a word that is not whole ends in zeros."""
        if self._rest:
            self._add_words(memoryview(self._rest.ljust(_WORD, b"\0")), scratch)
            self._rest = b""
        return self._sum


def whole_digest(parts: int, nbytes: int) -> int:
    """Return the digest of `nbytes` bytes from the sum of those of their parts."""
    return (parts * _BASE + nbytes) % _MODULUS


@cache
def _powers() -> np.ndarray:
    """Return what words are multiplied by, from the first on."""
    import numpy as np

    powers = np.full(WORDS, _BASE, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)
