"""What the numbers of tensors are, and how far they are from others: one pass, in bounded memory."""

from unshard.measures.measurement import Delta, Measurement, Statistics
from unshard.measures.passes import measure

__all__ = ["Delta", "Measurement", "Statistics", "measure"]
