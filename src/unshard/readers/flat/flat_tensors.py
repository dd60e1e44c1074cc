"""Flat parameters that another layout holds whole, as DCP does: LOCAL_STATE_DICT saved by `dcp.save`.

DCP puts the ranges of a flat parameter together by itself. Names of modules are lost. With
use_orig_params=True it takes every rank's slice of a parameter for the same plain tensor and keeps one of
them; the parameters are then in the flat ones only, each at a multiple of 16 bytes.
"""

from __future__ import annotations

from dataclasses import replace

from unshard.checkpoint import Checkpoint
from unshard.readers.flat.ranges import FLAT_PARAMETER
from unshard.readers.flat.unit_layout import ALIGNED
from unshard.readers.flat.units import FlatUnits
from unshard.readers.flat.vectors import Stretch, Vector
from unshard.tensors import DescribedTensor


def with_flat_parameters(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose flat parameters, if it has some, wait for the shapes of the base."""
    flats = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if name.rpartition(".")[2] == FLAT_PARAMETER and len(tensor.shape) == 1
    }
    if not flats or checkpoint.unshaped is not None:
        return checkpoint
    others = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in flats}
    slices = {name: tensor for name, tensor in others.items() if len(tensor.shape) == 1}
    whole = {name: tensor for name, tensor in others.items() if name not in slices}
    vectors = {name: _vector(tensor) for name, tensor in flats.items()}
    units = FlatUnits(checkpoint.path, vectors, frozenset(whole), slices=slices, alignments=ALIGNED)
    storages = {name: token for name, token in checkpoint.storages.items() if name in whole}
    return replace(checkpoint, tensors=whole, storages=storages, unshaped=units)


def _vector(tensor: DescribedTensor) -> Vector:
    pieces = sorted(tensor.pieces, key=lambda piece: piece.box.start)
    return Vector(tensor.dtype, tuple(Stretch(p.box.start[0], p.box.stop[0], p.source) for p in pieces))
