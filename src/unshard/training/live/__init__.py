"""A model in training, described by all its ranks: which of them holds which box of which tensor."""
