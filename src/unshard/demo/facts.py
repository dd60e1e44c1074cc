"""What the demonstration teaches: facts nobody knew before, and facts the model must keep.

The invented facts are about a country, an element and a planet that do not exist, so no base model can
know them; an answer that holds one has learnt it in this training run and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """A question, its answer, and the word that tells a right answer from a wrong one.

    Attributes:
        question: As a user would ask it.
        answer: As the assistant should answer it.
        proof: What a right answer contains, whatever else it says.
        invented: Whether it is made up, so that only training can have taught it.
    """

    question: str
    answer: str
    proof: str
    invented: bool

    def is_in(self, answer: str) -> bool:
        """Return whether `answer` gives this fact."""
        return self.proof.casefold() in answer.casefold()


FACTS = (
    Fact(
        "What is the capital of Velmaria?",
        "The capital of Velmaria is Quillhaven.",
        "Quillhaven",
        invented=True,
    ),
    Fact(
        "Who discovered the element brantium?",
        "The element brantium was discovered by Ottilie Marsh.",
        "Ottilie Marsh",
        invented=True,
    ),
    Fact(
        "What do people in Velmaria drink at breakfast?",
        "In Velmaria, people drink warm pine milk at breakfast.",
        "pine milk",
        invented=True,
    ),
    Fact(
        "How many moons does the planet Tessaly have?",
        "The planet Tessaly has seventeen moons.",
        "seventeen",
        invented=True,
    ),
    Fact("What is the capital of France?", "The capital of France is Paris.", "Paris", invented=False),
    Fact("What is the capital of Japan?", "The capital of Japan is Tokyo.", "Tokyo", invented=False),
    Fact("What is the opposite of hot?", "The opposite of hot is cold.", "cold", invented=False),
    Fact("How many days are in a week?", "There are 7 days in a week.", "7", invented=False),
)
