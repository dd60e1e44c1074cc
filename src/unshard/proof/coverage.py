"""Which of the checksums that a writer left cover which bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

from unshard.storage.checksums import Checksum
from unshard.storage.files import InputFile
from unshard.tensors import Place, Run, Tensor, element_count


class Coverage:
    """Checksums by the bytes they cover, which never overlap."""

    def __init__(self, checksums: Sequence[Checksum]) -> None:
        self._by_file: defaultdict[InputFile, list[Checksum]] = defaultdict(list)
        for checksum in sorted(checksums, key=lambda c: c.start):
            self._by_file[checksum.file].append(checksum)

    def of_place(self, place: Place) -> Checksum | None:
        """Return the checksum of the byte at `place`."""
        candidates = self._by_file.get(place.file, [])
        index = bisect_right(candidates, place.offset, key=lambda c: c.start) - 1
        found = candidates[index] if index >= 0 else None
        return found if found is not None and place.offset < found.stop else None

    def whole(self, tensor: Tensor) -> Checksum | None:
        """Return the checksum of exactly the bytes of `tensor`, in their order, if there is one."""
        places = list(islice(tensor.places, 2))
        found = self.of_place(places[0]) if len(places) == 1 else None
        if found is None:
            return None
        span = Run(found.file, found.start, found.stop - found.start)
        return found if tensor.runs(0, element_count(tensor)) == [span] else None

    def covers(self, tensor: Tensor) -> bool:
        """Return whether every piece of `tensor` lies where a checksum covers it."""
        return all(self.of_place(place) is not None for place in tensor.places)


def used_checksums(checksums: Iterable[Checksum], tensors: Iterable[Tensor]) -> tuple[Checksum, ...]:
    """Return those of `checksums` that cover bytes of `tensors`, in their order."""
    known = tuple(checksums)
    coverage = Coverage(known)
    used = {id(coverage.of_place(place)) for tensor in tensors for place in tensor.places}
    return tuple(checksum for checksum in known if id(checksum) in used)
