"""A process that makes tables of a large `.metadata`, under limits of the kernel; and how it is started.

    standard input      the file
    standard output     tables, or nothing
    standard error      what is wrong, as JSON; or what Python says where the process breaks down

The process holds the whole pickle as objects, some ten bytes for each of the file's; when it ends, all of
that is gone, and the tables are left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import unshard
from unshard.errors import InputError, UnsafeFileError
from unshard.readers.dcp.table_builder import build_tables
from unshard.readers.dcp.tables import MetadataError, Tables, parse_tables, write_tables
from unshard.readers.unpickling.machine import Limits
from unshard.readers.unpickling.records import HostilePickleError
from unshard.storage.files import InputFile

_FREE_MEMORY, _MEMORY_PER_BYTE = 512 << 20, 20
_FREE_SECONDS, _BYTES_PER_SECOND = 20, 2 << 20
_START = """
import sys
sys.path.insert(0, {!r})
from unshard.readers.dcp.table_process import main
main({}, {}, {})
"""


def read_tables_apart(file: InputFile) -> Tables:
    """Return what a large `.metadata` says, read by a process of its own.

    Memory:
        Up to 20 bytes for each of the file in that process, and the tables here.

    Raises:
        DamagedFileError: It is cut short, or no pickle.
        UnsafeFileError: It asks for code to be run, or for more memory or time than it may take.
        MetadataError: It contradicts itself.
        OSError: No process can be started.
    """
    root = str(Path(unshard.__file__).resolve().parents[1])
    descriptor = file.open()
    memory = _FREE_MEMORY + file.size * _MEMORY_PER_BYTE
    seconds = _FREE_SECONDS + file.size // _BYTES_PER_SECOND
    start = _START.format(root, file.size, memory, seconds)
    command = [sys.executable, "-I", "-S", "-c", start]
    done = subprocess.run(command, stdin=descriptor.number, capture_output=True, check=False)
    if done.returncode == 0:
        return parse_tables(memoryview(done.stdout))
    raise _told(done.stderr, done.returncode, file)


def _told(said: bytes, code: int, file: InputFile) -> InputError | MetadataError:
    """Return the error that a process told of before it ended."""
    try:
        kind, problem, saw = json.loads(said)
    except ValueError:
        hint = "Copy the file again; if the original is the same, ask whoever made it."
        saw = f"signal {-code}" if code < 0 else said.decode(errors="replace").strip().rpartition("\n")[2]
        problem = "cannot be read within the memory and time that its size allows"
        return UnsafeFileError(file.path, problem, saw=saw, hint=hint)
    return MetadataError(kind, problem, saw)


def main(size: int, memory: int, seconds: int) -> None:
    """Write tables of the pickle on standard input to standard output, and end the process.

    Args:
        size: Bytes of the pickle.
        memory: Bytes that the process may take.
        seconds: Time that it may compute.
    """
    gc.disable()  # there are no cycles to find, and looking for them takes longer than all else
    _limit(memory, seconds)
    code = 0
    try:
        with open(0, "rb", closefd=False) as stream, open(1, "wb", closefd=False) as out:
            os.lseek(0, 0, os.SEEK_SET)
            write_tables(_tables(stream, size), out)
    except MetadataError as error:
        sys.stderr.write(json.dumps((error.kind, error.problem, error.saw)))
        code = 1
    # Freeing millions of objects one by one would take seconds.
    sys.stderr.flush()
    os._exit(code)


def _tables(stream: BinaryIO, size: int) -> Tables:
    from unshard.readers.unpickling.inert_unpickler import InertUnpickler

    unpickler = InertUnpickler(stream, Limits())
    try:
        root = unpickler.load()
    except MemoryError:
        raise MetadataError("unsafe", "needs more memory than its size allows", f"{size:,} bytes") from None
    except HostilePickleError as error:
        raise MetadataError("unsafe", f"holds a pickle that {error}") from None
    except EOFError:
        raise MetadataError("damaged", "ends in the middle of its pickle", f"{size:,} bytes") from None
    except Exception as error:  # noqa: BLE001  a broken pickle raises anything
        saw = f"at byte {stream.tell():,}, {type(error).__name__}"
        raise MetadataError("damaged", "holds a broken pickle", saw) from None
    if (rest := size - stream.tell()) > 0:
        raise MetadataError("unsafe", f"carries {rest} bytes after its pickle")
    return build_tables(root, unpickler.names, size)


def _limit(memory: int, seconds: int) -> None:
    """Take from this process what it does not need."""
    import resource

    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is in force
            resource.setrlimit(what, (limit, limit))
