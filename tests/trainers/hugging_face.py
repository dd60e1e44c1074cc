"""Models saved as the folders that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

from trainers.models import model_of
from trainers.run import Run
from trainers.tiny_llama import clean_state, tiny_tokenizer, write_model_files


def leave_one_file(run: Run, folder: Path, base: Path) -> None:
    """Leave a folder with one safetensors file."""
    model = model_of(run, folder)
    if dist.get_rank() == 0:
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)


def leave_many_files(run: Run, folder: Path, base: Path) -> None:
    """Leave a folder with several safetensors files and their index."""
    model = model_of(run, folder)
    if dist.get_rank() == 0:
        model.save_pretrained(folder, max_shard_size="100KB")
        tiny_tokenizer().save_pretrained(folder)


def leave_torch_files(run: Run, folder: Path, base: Path) -> None:
    """Leave a folder as transformers wrote it before safetensors."""
    model = model_of(run, folder)
    if dist.get_rank() == 0:
        state = clean_state(model)
        names = list(state)
        halves = {"00001": names[: len(names) // 2], "00002": names[len(names) // 2 :]}
        places: dict[str, str] = {}
        for number, half in halves.items():
            file = f"pytorch_model-{number}-of-00002.bin"
            torch.save({name: state[name] for name in half}, folder / file)
            places |= dict.fromkeys(half, file)
        total = sum(tensor.nbytes for tensor in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))
        write_model_files(folder, tied=run.tied)
