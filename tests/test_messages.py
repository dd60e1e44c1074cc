"""Every kind of error, as a person reads it, in one file that somebody has read.

`UNSHARD_WRITE_MESSAGES=1 pytest tests/test_messages.py` writes the file anew; read what changed.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import unshard
from sharded_scenes import SHARDED_SCENES
from unshard import errors
from unshard.errors import UnshardError

GOLDEN = Path(__file__).parent / "messages.txt"

State = dict[str, torch.Tensor]


def leaves() -> set[type[UnshardError]]:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UnshardError)
    }
    return {kind for kind in kinds if not kind.__subclasses__()}


class Scene:
    """A small place to make mistakes in: a sound state dict, and the folder of its base."""

    def __init__(self, folder: Path, state: State, base: Path) -> None:
        self.folder, self.state, self.base = folder, state, base

    def saved(self, name: str, value: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, path)
        return path

    def written(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def convert(self, path: Path, out: str = "out", **options: object) -> None:
        unshard.convert(path, self.folder / out, **{"base": self.base, "download": False, **options})  # type: ignore[arg-type]


def flipped(scene: Scene) -> Path:
    """Return a copy of a sound file with one bit of a tensor changed."""
    path = scene.saved("flipped-0.pt", scene.state)
    checksum = max(unshard.open(path).checksums, key=lambda c: c.stop - c.start)
    content = bytearray(path.read_bytes())
    content[(checksum.start + checksum.stop) // 2] ^= 1
    path.write_bytes(content)
    return path


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def flat(state: State) -> State:
    return {
        name: tensor.reshape(-1)[: tensor.numel() // 2] if tensor.ndim > 1 else tensor
        for name, tensor in state.items()
    }


SCENES: dict[str, Callable[[Scene], None]] = {
    "nothing there": lambda s: s.convert(s.folder / "nowhere"),
    "an empty file": lambda s: s.convert(s.written("empty.pt", b"")),
    "a text file": lambda s: s.convert(s.written("notes.pt", b"to do: train\n")),
    "a Git LFS pointer": lambda s: s.convert(
        s.written("model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    ),
    "a folder of logs": lambda s: s.convert(s.written("logs/log.txt", b"").parent),
    "a truncated file": lambda s: s.convert(
        s.written("cut.pt", s.saved("whole.pt", s.state).read_bytes()[:-5000])
    ),
    "a flipped bit": lambda s: s.convert(flipped(s)),
    "a tar of torch 0.1": lambda s: s.convert(
        s.written("old.pt", b"sys_info".ljust(257, b"\0") + b"ustar\0" + bytes(2048))
    ),
    "a safetensors file that overlaps itself": lambda s: s.convert(
        s.written("model.safetensors", _overlapping())
    ),
    "a folder whose index names a file that is not there": lambda s: s.convert(_half_copied(s)),
    "an optimizer file": lambda s: s.convert(
        s.saved("run/optimizer-tiny-0.pt", {"state": {"w": {"exp_avg": torch.ones(2)}}, "param_groups": [{}]})
    ),
    "two models in one file": lambda s: s.convert(
        s.saved("two.pt", {"student": s.state, "teacher": {n: t + 1 for n, t in s.state.items()}})
    ),
    "a missing tensor": lambda s: s.convert(s.saved("part.pt", without(s.state, "model.norm.weight"))),
    "an unknown tensor": lambda s: s.convert(
        s.saved("more.pt", {**s.state, "value_head.weight": torch.ones(1, 64)})
    ),
    "tensors as one rank holds them": lambda s: s.convert(s.saved("rank.pt", flat(s.state))),
    "a base that is not there": lambda s: s.convert(s.saved("model.pt", s.state), base=s.folder / "base"),
    "a base that is not on this machine": lambda s: s.convert(
        s.saved("model.pt", s.state), base="nobody/nothing"
    ),
    "a base without a configuration": lambda s: s.convert(
        s.saved("model.pt", s.state), base=s.written("empty/notes.txt", b"").parent
    ),
    "an output that exists": lambda s: s.convert(s.saved("model.pt", s.state), s.written("taken", b"").name),
    "an output inside the source": lambda s: s.convert(s.saved("run/model.pt", s.state).parent, "run/out"),
    "a size without a unit": lambda s: s.convert(s.saved("model.pt", s.state), max_shard_size="five"),
    "a dtype that is none": lambda s: s.convert(s.saved("model.pt", s.state), dtype="float8"),
    "a step that is not there": lambda s: s.convert(s.saved("run/tiny-0.pt", s.state).parent, step=7),
    "a torch file as a folder's name": lambda s: s.convert(s.saved("model.pt", s.state), "out.pt"),
    "a torch file, verified alone": lambda s: _verify(s.saved("model.pt", s.state)),
}


def _half_copied(scene: Scene) -> Path:
    folder = scene.saved("half/pytorch_model-00001-of-00002.bin", {"a": torch.ones(1)}).parent
    files = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = json.dumps({"metadata": {"total_size": 8}, "weight_map": files})
    scene.written("half/pytorch_model.bin.index.json", index.encode())
    return folder


def _verify(path: Path) -> None:
    unshard.verify(path)


def _overlapping() -> bytes:
    tensors = {"a": [0, 8], "b": [4, 12]}
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in tensors.items()}
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(12)


# What no small scene can bring about on every machine, with the facts that it would have.
SAMPLES: tuple[UnshardError, ...] = (
    errors.NoSpaceError(
        "out",
        "does not fit on the disk",
        saw="1,000 bytes free at /",
        expected="at least 2,000",
        hint="Free some space, or write to another disk.",
    ),
    errors.OutputPermissionError(
        "out",
        "cannot be written",
        saw="Permission denied",
        hint="Choose a folder that this user may write to.",
    ),
    errors.MissingExtraError("run", extra="hf", package="torch"),
    errors.VerificationError(
        "out",
        "is not what it should be, so it was not kept: model.norm.weight",
        saw="1.0 (0x3f80) at [0]",
        expected="2.0 (0x4000); 1 elements differ",
        hint="Convert again. If that does not help, look for a faulty disk or memory.",
    ),
    errors.InferenceError(
        "LlamaForCausalLM",
        "gives numbers that are not finite",
        saw="NaN in model.norm.weight",
        hint="Take an earlier checkpoint.",
    ),
    errors.RankError(
        "rank 2",
        "died while the ranks were writing tensors",
        saw="no sign of life for 12 s",
        hint="Look at the log of that rank, and at the kernel's: it may have run out of memory.",
    ),
    errors.InterruptedRunError("convert", "was interrupted"),
)


@pytest.fixture
def scene(tmp_path: Path, state: Callable[[str], State], base_folder: Callable[[str], Path]) -> Scene:
    return Scene(tmp_path, state("llama"), base_folder("llama"))


def rendered(title: str, error: UnshardError, scene: Scene) -> str:
    text = str(error).replace(str(scene.folder), "FOLDER").replace(str(scene.base), "BASE")
    text = re.sub(r"/\S*/huggingface/hub", "CACHE", text)
    text = re.sub(re.escape(os.getcwd()), "HERE", text)
    return f"# {title}: {type(error).__name__}\n{text}\n"


def messages(scene: Scene) -> Iterator[tuple[str, UnshardError]]:
    for title, act in SCENES.items():
        with pytest.raises(UnshardError) as raised:
            act(scene)
        yield title, raised.value
    for number, (title, make) in enumerate(SHARDED_SCENES.items()):
        folder = scene.folder / f"run-{number}"
        folder.mkdir()
        with pytest.raises(UnshardError) as raised:
            make(folder, scene.state)
        yield title, raised.value
    for sample in SAMPLES:
        yield "a sample", sample


def test_every_error_reads_as_it_did_when_somebody_read_it(scene: Scene) -> None:
    found = list(messages(scene))
    text = "\n".join(rendered(title, error, scene) for title, error in found)
    if os.environ.get("UNSHARD_WRITE_MESSAGES"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert leaves() <= {type(error) for _, error in found}


def test_every_error_says_what_to_do_or_what_would_be_right(scene: Scene) -> None:
    silent = [title for title, error in messages(scene) if not (error.hint or error.expected)]
    assert silent == ["a step that is not there", "a sample"]  # both say it all
