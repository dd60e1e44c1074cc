"""The boxes that a rank holds of a DTensor.

FSDP2 cuts what tensor parallelism has left. Its placements say so with `_StridedShard`, which torch itself
reads otherwise where parts are uneven; who made the tensor decides what is true.

Source:
    torch/distributed/fsdp/_fully_shard/_fsdp_param.py (`FSDPParam._init_sharded_param`: `torch.chunk` of
    the local tensor); torch/distributed/tensor/placement_types.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unshard.errors import UnsupportedLayoutError
from unshard.readers.distributed.placements import (
    Cut,
    PlacedBox,
    local_spans,
    nested,
    placed_boxes,
    span_shape,
)
from unshard.tensors import Box
from unshard.training.live.local_parts import LocalPart

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def dtensor_parts(name: str, tensor: DTensor, *, by_fsdp: bool) -> list[LocalPart]:
    """Return what this rank holds of a DTensor.

    Args:
        name: Its name, for errors.
        tensor: The tensor.
        by_fsdp: Whether FSDP2 has cut it.

    Raises:
        UnsupportedLayoutError: Its placement does not say which elements this rank holds.
    """
    local = tensor._local_tensor.detach()
    placed, shape = placed_on(name, tensor.shape, tensor.device_mesh, tensor.placements, by_fsdp=by_fsdp)
    if placed is None:
        return []
    if shape != tuple(local.shape):
        raise UnsupportedLayoutError(
            name,
            "is not cut as its placements say",
            saw=f"{list(local.shape)} on this rank",
            expected=f"{list(shape)} by {tensor.placements} of {list(tensor.shape)}",
            hint="Distribute it with torch's own functions (fully_shard, distribute_tensor).",
        )
    return [LocalPart(each.whole, local[tuple(map(slice, *_bounds(each.local)))]) for each in placed]


def placed_on(
    name: str, shape: Sequence[int], mesh: DeviceMesh, placements: Sequence[Any], *, by_fsdp: bool
) -> tuple[list[PlacedBox] | None, tuple[int, ...]]:
    """Return the boxes that this rank holds of a tensor, and the shape of what it holds.

    None where the rank is not in the mesh.

    Raises:
        UnsupportedLayoutError: As `dtensor_parts`.
    """
    at = mesh.get_coordinate()
    if at is None:
        return None, ()
    cuts = []
    for number, placement in enumerate(placements):
        kind = type(placement).__name__
        if kind in ("Shard", "_StridedShard"):
            dimension, factor = placement.dim % len(shape), getattr(placement, "split_factor", 1)
            cuts.append(Cut(dimension, mesh.size(number), at[number], factor))
        elif kind != "Replicate":
            raise UnsupportedLayoutError(
                name,
                f"is placed as `{placement}`: no rank holds its values, only what must be summed to them",
                hint="Sum it before saving: parameter = parameter.redistribute(placements=[Replicate()]).",
            )
    spans = local_spans(shape, (nested(cuts) if by_fsdp else None) or cuts)
    return placed_boxes(spans), span_shape(spans)


def is_replicated(placements: Sequence[Any]) -> bool:
    """Return whether several ranks hold the same."""
    return any(type(placement).__name__ == "Replicate" for placement in placements)


def _bounds(box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return box.start, box.stop
