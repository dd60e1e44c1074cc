"""Inputs of the benchmarks: made once, kept in a folder, shared by all scripts.

    python benchmarks/inputs.py [--work DIR]

    tinyllama-bfloat16/  a FULL checkpoint of 2.2 GB with TinyLlama-1.1B's shapes, as FSDP1 leaves it
    tinyllama-float32/   the same in 4.4 GB
    tinyllama-base/      its base: config.json, and the header of its weights above a hole
    llama-405b/          a FULL checkpoint of Llama-3.1-405B: all of its 812 GB of data is a hole
    one-tensor/          a FULL checkpoint of a single float32 tensor of 3 GB

Weights are random normals. Holes take no space, and torch writes no checksums of them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_WORK = Path(tempfile.gettempdir()) / "unshard-benchmarks"


@dataclass(frozen=True, slots=True)
class Llama:
    """The sizes of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield every tensor's name and shape, in the order of the model's state dict."""
        kv_rows = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in (
                ("self_attn.q_proj", (self.hidden, self.hidden)),
                ("self_attn.k_proj", (kv_rows, self.hidden)),
                ("self_attn.v_proj", (kv_rows, self.hidden)),
                ("self_attn.o_proj", (self.hidden, self.hidden)),
                ("mlp.gate_proj", (self.intermediate, self.hidden)),
                ("mlp.up_proj", (self.intermediate, self.hidden)),
                ("mlp.down_proj", (self.hidden, self.intermediate)),
                ("input_layernorm", (self.hidden,)),
                ("post_attention_layernorm", (self.hidden,)),
            ):
                yield f"model.layers.{layer}.{name}.weight", shape
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self) -> dict[str, object]:
        """Return what config.json says of the model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


TINYLLAMA = Llama(2048, 5632, 22, 32, 4, 32_000)
LLAMA_405B = Llama(16_384, 53_248, 126, 128, 8, 128_256)


def tinyllama(work: Path, dtype: str) -> Path:
    """Return the FULL checkpoint of TinyLlama's shapes in a dtype, made if it is not there."""
    path = work / f"tinyllama-{dtype}" / "TinyLlama--TinyLlama-1.1B-0.pt"
    return _made(path, lambda half: _save_normals(dict(TINYLLAMA.shapes()), dtype, half))


def one_tensor(work: Path) -> Path:
    """Return the checkpoint of a single float32 tensor of 3 GB, made if it is not there."""
    path = work / "one-tensor" / "model.pt"
    return _made(path, lambda half: _save_normals({"weight": (30_000, 25_000)}, "float32", half))


def llama_405b(work: Path) -> Path:
    """Return the checkpoint whose data is a hole, made if it is not there."""
    path = work / "llama-405b" / "meta-llama--Llama-3.1-405B-0.pt"
    return _made(path, lambda half: _save_hole(dict(LLAMA_405B.shapes()), "bfloat16", half))


def tinyllama_base(work: Path) -> Path:
    """Return the folder of the base, made if it is not there."""

    def make(path: Path) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in TINYLLAMA.shapes():
            stop = offset + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        (path.parent / "config.json").write_text(json.dumps(TINYLLAMA.config(), indent=2) + "\n")

    return _made(work / "tinyllama-base" / "model.safetensors", make).parent


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """Return `path` after `make` has made it; a script that is stopped leaves no half of it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.half")
        make(half)
        half.rename(path)
    return path


def _save_as_fsdp1(state: dict[str, Any], path: Path) -> None:
    """Write a state dict with the attribute that FSDP1 leaves on every tensor it has gathered."""
    import torch

    for tensor in state.values():
        tensor._has_been_cloned = True
    torch.save(OrderedDict(state), path)


def _save_normals(shapes: dict[str, tuple[int, ...]], dtype: str, path: Path) -> None:
    """Write a checkpoint of random weights, the same every time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(shape, dtype=getattr(torch, dtype)).normal_(0, 0.02, generator=generator)
        for name, shape in shapes.items()
    }
    _save_as_fsdp1(state, path)


def _save_hole(shapes: dict[str, tuple[int, ...]], dtype: str, path: Path) -> None:
    """Write a checkpoint with all of its metadata and none of its data."""
    import torch

    itemsize = getattr(torch, dtype).itemsize
    with tempfile.NamedTemporaryFile(dir=path.parent) as hole:
        hole.truncate(itemsize * max(map(math.prod, shapes.values())))
        state = {
            # Mapped from a file without data, so that no tensor takes memory.
            name: torch.from_file(
                hole.name, shared=True, size=math.prod(shape), dtype=getattr(torch, dtype)
            ).reshape(shape)
            for name, shape in shapes.items()
        }
        with torch.serialization.skip_data():
            _save_as_fsdp1(state, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where they are kept")
    work = parser.parse_args().work
    for path in (
        tinyllama(work, "bfloat16"),
        tinyllama(work, "float32"),
        tinyllama_base(work),
        llama_405b(work),
        one_tensor(work),
    ):
        print(path)


if __name__ == "__main__":
    main()
