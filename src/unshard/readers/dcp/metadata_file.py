"""A `.metadata` file read to tables, by one of two machines that agree.

Small pickles are read in this process. Large ones, of millions of instructions, go to a process of their
own, whose C code is thirty times as fast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from unshard.errors import DamagedFileError, InputError, UnsafeFileError, UnsupportedLayoutError
from unshard.readers.dcp.merging import merge_tables
from unshard.readers.dcp.table_builder import build_tables
from unshard.readers.dcp.table_process import read_tables_apart
from unshard.readers.dcp.tables import MetadataError, Tables
from unshard.readers.unpickling import read_pickle
from unshard.storage.files import InputFile

# Below this, starting a process takes longer than the reading.
_LARGEST_HERE = 512 << 10
_HINT_DAMAGED = "Copy the file again; if the original is the same, take another step."


def read_metadata(file: InputFile) -> Tables:
    """Return what a `.metadata` file says.

    Raises:
        DamagedFileError: It is cut short, or no pickle.
        UnsafeFileError: It contradicts itself, or asks for code to be run.
        UnsupportedLayoutError: It is of another kind of checkpoint.
    """
    try:
        if file.size > _LARGEST_HERE:
            with contextlib.suppress(OSError):  # no process can be started: our machine has limits of its own
                return read_tables_apart(file)
        return read_tables_here(file)
    except MetadataError as error:
        raise explained(error, file) from None


def read_metadata_of_ranks(files: Sequence[InputFile]) -> Tables:
    """Return what the metadata of all ranks say together.

    Raises:
        InputError: One cannot be read, or ranks disagree.
    """
    tables = [read_metadata(file) for file in files]
    try:
        return merge_tables(tables)
    except MetadataError as error:
        raise explained(error, files[0]) from None


def read_tables_here(file: InputFile) -> Tables:
    """Return what a `.metadata` says, read by our own machine."""
    pickle = read_pickle(file.read(0, file.size), file.path)
    return build_tables(pickle.value, pickle.classes, file.size)


def explained(error: MetadataError, file: InputFile) -> InputError:
    """Return the error that says what is wrong with a file."""
    if error.kind == "unsupported":
        return UnsupportedLayoutError(file.path, error.problem, saw=error.saw)
    if error.kind == "damaged":
        return DamagedFileError(file.path, error.problem, saw=error.saw, hint=_HINT_DAMAGED)
    hint = "torch does not write such metadata. Copy the file again, or ask whoever made it."
    return UnsafeFileError(file.path, error.problem, saw=error.saw, hint=hint)
