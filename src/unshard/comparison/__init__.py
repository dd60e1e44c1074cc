"""What became of a model: two things that we read, tensor by tensor."""

from unshard.comparison.comparing import diff
from unshard.comparison.description import Comparison, GroupChange, Reshaped, Side, TensorChange

__all__ = ["Comparison", "GroupChange", "Reshaped", "Side", "TensorChange", "diff"]
