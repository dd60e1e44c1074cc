"""Archives that are alike: what was found in one of them is found in the next by comparing bytes.

A checkpoint has thousands of archives of equal chunks. They differ in the numbers of the tensor, in
their checksum, which stands once behind them and once in the directory, and in the id that newer
versions of torch give every file. Where all other bytes before and after the numbers are those of an
archive that was read, the archive is the same, and its tensor lies in the same place.

Memory:
    Some four KiB for every form of archive, of which a thousand are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from unshard.dtypes import DType
from unshard.readers.dcp.blobs import Blob, Found
from unshard.readers.torch_save.zip_directory import Member, describe_archive
from unshard.storage.checksums import Checksum
from unshard.tensors import FileSource

_ID = ".data/serialization_id"
_MOST_FORMS = 1000
_LONGEST_AROUND = 64 << 10  # bytes before or after the numbers, beyond which comparing is no gain

_Key = tuple[int, tuple[int, ...], DType]


@dataclass(frozen=True, slots=True)
class _Form:
    """An archive without its numbers and what depends on them; places count from its beginning.

    Attributes:
        head: Every byte before the numbers.
        tail: Every byte after them, zero where archives of this form may differ.
        checksums: Where in the tail the checksum of the numbers stands, twice; and that of the id.
        ids: Where in the tail the id stands: (start, stop).
        numbers: (start, stop) of the numbers.
        source: The elements, in the archive this form was taken from.
    """

    head: bytes
    tail: bytes
    checksums: tuple[tuple[int, int], ...]
    ids: tuple[tuple[int, int], ...]
    numbers: tuple[int, int]
    source: FileSource

    def masked(self, tail: bytes) -> bytes:
        """Return a tail with zeros where archives of this form may differ."""
        out = bytearray(tail)
        for start, stop in (*((at, at + 4) for pair in self.checksums for at in pair), *self.ids):
            out[start:stop] = bytes(stop - start)
        return bytes(out)


@dataclass(slots=True)
class Likeness:
    """The forms of the archives that were read."""

    _forms: dict[_Key, tuple[Blob, _Form]] = field(default_factory=dict)

    def find(self, blob: Blob) -> Found | None:
        """Return what lies in a blob, if it is like one that was read; None where that cannot be told."""
        remembered = self._forms.get(_key(blob))
        if remembered is None:
            return None
        other, form = remembered
        start, stop = (blob.start + place for place in form.numbers)
        if blob.file.read(blob.start, start) != form.head:
            return None
        tail = blob.file.read(stop, blob.stop)
        agree = all(tail[a : a + 4] == tail[b : b + 4] for a, b in form.checksums)
        if not agree or form.masked(tail) != form.tail:
            return None
        moved = form.source.offset - other.start + blob.start
        at = form.checksums[0][0]
        crc32 = int.from_bytes(tail[at : at + 4], "little")
        checksum = Checksum(blob.file, start, stop, crc32, blob.name)
        return Found(replace(form.source, file=blob.file, offset=moved), checksum)

    def remember(self, blob: Blob, found: Found) -> None:
        """Keep in mind what was found in a blob, if it is an archive of the usual form."""
        if found.checksum is None or not isinstance(found.source, FileSource):
            return
        form = _form_of(blob, found.checksum, found.source)
        if form is not None and len(self._forms) < _MOST_FORMS:
            self._forms[_key(blob)] = blob, form


def _key(blob: Blob) -> _Key:
    return blob.stop - blob.start, blob.shape, blob.dtype


def _form_of(blob: Blob, checksum: Checksum, source: FileSource) -> _Form | None:
    if max(checksum.start - blob.start, blob.stop - checksum.stop) > _LONGEST_AROUND:
        return None
    tail = blob.file.read(checksum.stop, blob.stop)
    members = describe_archive(blob.file, blob.start, blob.stop).members
    numbers = next(m for m in members.values() if m.start == checksum.start and m.stop == checksum.stop)
    ids = [m for name, m in members.items() if name.endswith(_ID)]
    places = [_places(tail, member) for member in (numbers, *ids)]
    if any(place is None for place in places) or any(m.start < checksum.stop for m in ids):
        return None
    form = _Form(
        head=blob.file.read(blob.start, checksum.start),
        tail=b"",
        checksums=tuple(place for place in places if place is not None),
        ids=tuple((m.start - checksum.stop, m.stop - checksum.stop) for m in ids),
        numbers=(checksum.start - blob.start, checksum.stop - blob.start),
        source=source,
    )
    return replace(form, tail=form.masked(tail))


def _places(tail: bytes, member: Member) -> tuple[int, int] | None:
    """Return where the checksum of a member stands: behind it, and in the directory; None if elsewhere."""
    wanted = member.crc32.to_bytes(4, "little")
    first = tail.find(wanted)
    second = tail.find(wanted, first + 1)
    if first < 0 or second < 0 or tail.find(wanted, second + 1) >= 0:
        return None
    return first, second
