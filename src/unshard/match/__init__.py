"""From what lies on disk to what the model needs: names, ties, dtypes, vocabulary.

`match_model` is pure. It never guesses: what needs tensor bytes to decide it asks as questions, which
one bounded reader answers (`answer_questions`).
"""

from unshard.match.matching import match_model
from unshard.match.model import Decision, Model
from unshard.match.outline import Outline, outline_of, questions_for
from unshard.match.questions import Answer, Answers, Question, answer_questions
from unshard.match.restoring import Choices, Restored
from unshard.match.shaping import with_shapes, with_shapes_to_show

__all__ = [
    "Answer",
    "Answers",
    "Choices",
    "Decision",
    "Model",
    "Outline",
    "Question",
    "Restored",
    "answer_questions",
    "match_model",
    "outline_of",
    "questions_for",
    "with_shapes",
    "with_shapes_to_show",
]
