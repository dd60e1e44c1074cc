"""From what lies on disk to what the model needs: names, ties, dtypes, vocabulary.

`match_model` is pure. It never guesses: what needs tensor bytes to decide it asks as `Question`s,
which one bounded reader answers (`answer_questions`).
"""
