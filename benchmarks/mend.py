"""How long a model folder of 2.2 GB takes to mend, beside `cp` of it.

    python benchmarks/mend.py [--work DIR] [--rounds 7] [--json]

The folder has TinyLlama-1.1B's shapes in two files whose names FSDP and torch.compile have wrapped, no
index, and a configuration with the wrong class, vocabulary and cache. Before every round it is broken again.
Ways:

    mend --in-place      headers, index and configuration are written over; no tensor moves
    mend to OUT          a new folder: headers change, so the kernel copies the data, which is then read back
    mend to OUT, links   only the configuration is broken: the weights are linked
    cp -r                a copy of the folder, on the disk as well, and nothing mended

Bars: in place < 1 s; to OUT <= 2 x cp.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from inputs import DEFAULT_WORK, TINYLLAMA, tinyllama
from measuring import UNSHARD, Bar, Run, interleave, remove, report, run, table, wall, warm

IN_PLACE, INTO, LINKED, COPY = "mend --in-place", "mend to OUT", "mend to OUT, links", "cp -r"
_FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_INDEX = "model.safetensors.index.json"


def make_folder(work: Path) -> Path:
    """Return a folder with wrapped names, made if it is not there."""
    folder = work / "tinyllama-wrapped"
    if not (folder / _FILES[1]).exists():
        import torch
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = torch.load(tinyllama(work, "bfloat16"), mmap=True, weights_only=True)
        names = list(state)
        for file, part in zip(_FILES, (names[:100], names[100:]), strict=True):
            tensors = {_wrapped(name): state[name].clone() for name in part}
            save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / "tokenizer.json").write_text("{}")
    return folder


def _wrapped(name: str) -> str:
    return f"_orig_mod._fsdp_wrapped_module.{name}"


def breaking(folder: Path) -> Callable[[], None]:
    """Return a function that breaks a folder again that was mended, without moving its data."""
    headers = {name: _header(folder / name) for name in _FILES}
    wrong = {"architectures": ["FSDPLlamaForCausalLM"], "vocab_size": 32_001, "use_cache": False}

    def damage() -> None:
        for name, header in headers.items():
            with (folder / name).open("r+b") as file:
                file.write(header)
        (folder / _INDEX).unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps({**TINYLLAMA.config(), **wrong}, indent=2))

    return damage


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where inputs are kept")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    folder, out = make_folder(options.work), options.work / "mend-out"
    damage = breaking(folder)

    def in_place() -> Run:
        damage()
        return run([*UNSHARD, "mend", folder, "--in-place", "--quiet"])

    def into(*more: str) -> Callable[[], Run]:
        def way() -> Run:
            damage()
            remove(out)
            return run([*UNSHARD, "mend", folder, out, "--quiet", *more])

        return way

    def copy() -> Run:
        remove(out)
        return run(["sh", "-c", 'cp -r "$1" "$2" && sync "$2"/*', "cp", folder, out])

    warm(folder / name for name in _FILES)
    ways = {IN_PLACE: in_place, INTO: into(), LINKED: into("--skip", "names"), COPY: copy}
    runs = interleave(ways, rounds=options.rounds)
    remove(out)
    shutil.rmtree(out, ignore_errors=True)
    bars = [
        Bar(f"{IN_PLACE}, the whole process", wall(runs[IN_PLACE]), 1.0, "s"),
        Bar(f"{INTO} / cp", wall(runs[INTO]) / wall(runs[COPY]), 2.0, "x"),
    ]
    report(table(runs, dict.fromkeys((IN_PLACE, INTO, LINKED), COPY)), bars, as_json=options.as_json)


if __name__ == "__main__":
    main()
