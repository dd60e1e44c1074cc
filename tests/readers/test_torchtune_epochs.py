"""Folders as torchtune left them until the end of 2024: all epochs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unshard.checkpoint import Checkpoint
from unshard.errors import AmbiguousModelError, IncompleteCheckpointError, UnsafeFileError
from unshard.readers import open_checkpoint


def number(value: int) -> torch.Tensor:
    return torch.full((2, 3), float(value))


def epochs(folder: Path, *, safetensors: bool = False) -> Path:
    """Write two epochs of a model in two files, with what a LoRA recipe leaves beside them."""
    folder.mkdir()
    for epoch in range(2):
        for part in (1, 2):
            state = {f"model.layers.{part}.mlp.up_proj.weight": number(10 * epoch + part)}
            if safetensors:
                save_file(state, folder / f"model-0000{part}-of-00002_{epoch}.safetensors")
            else:
                torch.save(state, folder / f"hf_model_000{part}_{epoch}.pt")
        torch.save({"layers.1.mlp.w3.lora_a.weight": number(1)}, folder / f"adapter_{epoch}.pt")
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "epochs_run": 1}, folder / "recipe_state.pt")
    return folder


def values(checkpoint: Checkpoint) -> dict[str, float]:
    return {name.split(".")[2]: tensor.numpy().max() for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize("safetensors", [False, True])
def test_the_files_of_the_last_epoch_are_one_model(safetensors: bool, tmp_path: Path) -> None:
    run = epochs(tmp_path / "run", safetensors=safetensors)
    assert values(open_checkpoint([run])) == {"1": 11, "2": 12}
    assert values(open_checkpoint([run], step=0)) == {"1": 1, "2": 2}
    assert open_checkpoint([run]).layout.writer == "torchtune"


@pytest.mark.parametrize(
    ("safetensors", "gone"),
    [
        (False, "hf_model_0001_0.pt"),
        (True, "model-00001-of-00002_0.safetensors"),
        (True, "model-00002-of-00002_0.safetensors"),
    ],
)
def test_a_file_that_the_names_say_was_there_is_named(safetensors: bool, gone: str, tmp_path: Path) -> None:
    run = epochs(tmp_path / "run", safetensors=safetensors)
    (run / gone).unlink()
    with pytest.raises(IncompleteCheckpointError, match=gone) as caught:
        open_checkpoint([run], step=0)
    assert [(gap.code, gap.subject) for gap in caught.value.gaps] == [("U110", gone)]


def test_a_tensor_in_two_files_of_one_epoch_is_refused(tmp_path: Path) -> None:
    run = epochs(tmp_path / "run")
    torch.save({"model.layers.2.mlp.up_proj.weight": number(5)}, run / "hf_model_0001_1.pt")
    with pytest.raises(UnsafeFileError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        open_checkpoint([run])


@pytest.mark.parametrize("kind", ["torchtune_model", "meta_model"])
def test_an_epoch_in_one_file_is_the_model_and_not_the_adapter_merged_into_it(
    kind: str, tmp_path: Path
) -> None:
    for epoch in range(2):
        torch.save({"layers.1.w.weight": number(epoch)}, tmp_path / f"{kind}_{epoch}.pt")
        torch.save({"layers.1.w.lora_a.weight": number(9)}, tmp_path / f"adapter_{epoch}.pt")
    assert open_checkpoint([tmp_path]).tensors["layers.1.w.weight"].numpy().max() == 1


def test_one_epoch_in_two_naming_schemes_is_not_chosen_between(tmp_path: Path) -> None:
    torch.save({"layers.1.w.weight": number(1)}, tmp_path / "torchtune_model_0.pt")
    torch.save({"layers.1.w.weight": number(1)}, tmp_path / "meta_model_0.pt")
    with pytest.raises(AmbiguousModelError):
        open_checkpoint([tmp_path])
