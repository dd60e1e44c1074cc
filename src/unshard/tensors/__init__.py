"""Tensors that are described but not read: shapes, dtypes, and where the bytes are.

`boxes` is pure geometry, `sources` says how bytes lie in one place, `late` finds that place when it is
read, `described` puts places together to a tensor, `casting` computes another dtype. Nothing in this
room knows a layout.
"""

from unshard.tensors.boxes import Box
from unshard.tensors.casting import CastTally, CastTensor, cast_block
from unshard.tensors.coverage import Coverage, Overlap, check_coverage, check_ranges, described_box
from unshard.tensors.described import DescribedTensor, Tensor, byte_count, element_count, whole_tensor
from unshard.tensors.late import LateSource, Locator
from unshard.tensors.pieces import Piece
from unshard.tensors.sources import FileSource, Place, RangeSource, Run, Source

__all__ = [
    "Box",
    "CastTally",
    "CastTensor",
    "Coverage",
    "DescribedTensor",
    "FileSource",
    "LateSource",
    "Locator",
    "Overlap",
    "Piece",
    "Place",
    "RangeSource",
    "Run",
    "Source",
    "Tensor",
    "byte_count",
    "cast_block",
    "check_coverage",
    "check_ranges",
    "described_box",
    "element_count",
    "whole_tensor",
]
