"""The sequences of tokens that a fingerprint is taken over: fixed texts, and numbers over the vocabulary.

Texts are ours, but for the opening of Faraday's lectures. Together the sequences touch what silently goes
wrong: letters, code, digits, other scripts and bytes of emoji; token ids of every region of the vocabulary,
so that rows in another order show; and one long sequence, in which tokens look back far enough that other
frequencies of rotary embeddings show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The opening of Michael Faraday's "The Chemical History of a Candle" (1861), in the public domain.
_ENGLISH = (
    "I purpose, in return for the honour you do us by coming to see what are our proceedings here, to "
    "bring before you, in the course of these lectures, the Chemical History of a Candle. I have taken "
    "this subject on a former occasion, and were it left to my own will, I should prefer to repeat it "
    "almost every year, so abundant is the interest that attaches itself to the subject, so wonderful "
    "are the varieties of outlet which it offers into the various departments of philosophy."
)
_CODE = (
    "def merge(left: list[int], right: list[int]) -> list[int]:\n"
    "    merged = []\n"
    "    while left and right:\n"
    "        merged.append(left.pop(0) if left[0] <= right[0] else right.pop(0))\n"
    "    return merged + left + right\n\n\n"
    "assert merge([1, 4, 9], [2, 3, 10]) == [1, 2, 3, 4, 9, 10]\n"
)
_NUMBERS = (
    "2 + 3 = 5; 17 * 19 = 323; 1/8 = 0.125; 2^10 = 1024.\n"
    "Monday 06:30 - 07:45, 12 items, $1,499.00 each, 35% off: $974.35.\n"
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144"
)
_SCRIPTS = (
    "Grüße aus Köln, à bientôt, ¿qué tal? Žluťoučký kůň. Доброе утро, как дела? Καλημέρα κόσμε. "
    "今天天气很好。お元気ですか。안녕하세요. नमस्ते दुनिया। صباح الخير. 🙂🚀 → ≤ ∑"
)
_TEXTS = (("english", _ENGLISH), ("code", _CODE), ("numbers", _NUMBERS), ("scripts", _SCRIPTS))
GREEDY_TOKENS = 8
_MOST_TOKENS = 64  # of a built-in sequence; a prompt may have as many as the long one
_LONG_TOKENS = 256
# Multiples of the golden ratio and of the square root of 2, modulo 1, are spread evenly however many are
# taken. Fractions of 2**32, so that every machine gets the same integers.
_GOLDEN, _ROOT = 2_654_435_769, 1_779_033_703
_ONE = 1 << 32


@dataclass(frozen=True, slots=True)
class FingerprintSequence:
    """A sequence of tokens.

    Attributes:
        name: What it is called.
        text: The text that the tokenizer made the tokens of, or None where they were chosen as numbers.
        tokens: The tokens.
        is_continued: Whether a greedy continuation is taken of it.
    """

    name: str
    text: str | None
    tokens: tuple[int, ...]
    is_continued: bool = False


def fingerprint_sequences(
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: int,
    context: int | None,
    prompts: Sequence[str] = (),
) -> tuple[FingerprintSequence, ...]:
    """Return what a fingerprint is taken over: the built-in sequences, then the prompts.

    Sequences that have a token beyond the vocabulary, or fewer than two tokens, are left out.

    Args:
        tokenizer: Makes tokens of texts; without one there are only numbers. No chat template is applied.
        vocabulary: How many rows the embedding has.
        context: The longest sequence that the model takes, or None where it does not say.
        prompts: Texts of the user's.
    """
    room = min(context or _LONG_TOKENS, _LONG_TOKENS)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
    known = vocabulary if tokenizer is None else min(vocabulary, len(tokenizer) or vocabulary)
    made = [*_of_texts(tokenizer, room, prompts), *_of_numbers(known, room)]
    fit = [
        one for one in made if len(one.tokens) > 1 and -1 < min(one.tokens) <= max(one.tokens) < vocabulary
    ]
    full = (context or _LONG_TOKENS + GREEDY_TOKENS) - GREEDY_TOKENS
    return tuple(replace(one, is_continued=one.is_continued and len(one.tokens) <= full) for one in fit)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return a text as tokens, with those that the tokenizer itself puts around it."""
    return tuple(int(token) for token in tokenizer(text)["input_ids"])


def _of_texts(
    tokenizer: PreTrainedTokenizerBase | None, room: int, prompts: Sequence[str]
) -> Iterator[FingerprintSequence]:
    if tokenizer is None:
        return
    for name, text in _TEXTS:
        tokens = text_ids(tokenizer, text)[: min(room, _MOST_TOKENS)]
        yield FingerprintSequence(name, text, tokens, is_continued=name == "english")
    for number, prompt in enumerate(prompts, 1):
        yield FingerprintSequence(
            f"prompt {number}", prompt, text_ids(tokenizer, prompt)[:room], is_continued=True
        )


def _of_numbers(vocabulary: int, room: int) -> Iterator[FingerprintSequence]:
    """Yield sequences over the whole vocabulary; the long one says everything twice."""
    short = min(room, _MOST_TOKENS)
    yield FingerprintSequence("vocabulary", None, _spread(vocabulary, short, _GOLDEN))
    yield FingerprintSequence("vocabulary again", None, _spread(vocabulary, short, _ROOT))
    once = _spread(vocabulary, room - room // 2, _GOLDEN ^ _ROOT)
    yield FingerprintSequence("long", None, (once + once)[:room])


def _spread(vocabulary: int, count: int, step: int) -> tuple[int, ...]:
    return tuple((k * step % _ONE) * vocabulary >> 32 for k in range(1, count + 1))
