"""What `save_full` does where ranks disagree, cannot write, do not share a disk, or hold bad numbers."""

from __future__ import annotations

import json
import os
import resource
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from trainers.ranks import run_ranks
from trainers.run import Wrapping
from trainers.tiny_llama import tiny_llama, write_base
from trainers.wrapping import fsdp1, fsdp2
from unshard.errors import UnshardError
from unshard.training.saving import save_full

RANKS = 4
Scenes = dict[str, list[dict[str, Any]]]


def act(folder: str) -> None:
    """Save in every scene; leave what came of it on every rank in one file."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    place, rank = Path(folder), dist.get_rank()
    model = fsdp2(tiny_llama(7, tied=False, dtype=torch.float32), Wrapping(2))
    told: Scenes = {}

    def scene(name: str, path: str | Path | None = None, model: Any = model, **options: Any) -> None:
        shown: dict[str, Any] = {}
        asked = {"base": place / "base", "record": False, "durable": False, "timeout_seconds": 60, **options}
        try:
            saved = save_full(model, place / name if path is None else path, **asked)
            shown["codes"] = [f.code for f in saved.findings]
            shown["findings"] = [f"{f.subject}: {f.saw}" for f in saved.findings]
        except UnshardError as error:
            shown["error"], shown["text"] = type(error).__name__, str(error)
        everyone: list[Any] = [None] * RANKS
        dist.all_gather_object(everyone, shown)
        told[name] = everyone

    scene("path", place / f"path-{rank // 2}")
    scene("step", step=rank)
    scene("shapes", model=tiny_llama(7, tied=False, dtype=torch.float32 if rank != 3 else torch.bfloat16))
    scene("there", record=True, fingerprint=False)
    scene("exists", place / "there")
    scene("overwritten", place / "there", overwrite=True, dtype="bfloat16")
    scene("record", record=True, fingerprint=True, prompts=["Once upon a time"])
    scene("file", place / "one.pt", format="pt", record=True, fingerprint=False)

    os.chdir(place / f"disk-{min(rank, 2) // 2}")  # ranks 2 and 3 have a disk of their own
    scene("unshared", "unshared")
    scene("unshared columns", "columns", model=columns(place))
    os.chdir("/")

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    scene("full", overwrite=True)
    scene("full over", place / "there", overwrite=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    sick = tiny_llama(7, tied=False, dtype=torch.float32)
    with torch.no_grad():
        sick.model.layers[1].mlp.down_proj.weight[5, 3] = float("nan")
        sick.model.norm.weight[0] = float("inf")
    scene("sick", model=fsdp1(sick, Wrapping(1)))
    scene("small", model=fsdp2(huge(), Wrapping(2)), dtype="float16")
    if rank == 0:
        (place / "told.json").write_text(json.dumps(told))


def columns(place: Path) -> Any:
    return fsdp2(tiny_llama(7, tied=False, dtype=torch.float32), Wrapping(2, mesh=("fsdp", "tp")))


def huge() -> Any:
    model = tiny_llama(7, tied=False, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[1, 1] = 1e30
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    write_base(folder / "base", tied=False)
    for number in range(2):
        (folder / f"disk-{number}").mkdir()
    run_ranks(RANKS, act, str(folder), timeout_seconds=170)
    return folder


@pytest.fixture
def told(place: Path) -> Scenes:
    scenes: Scenes = json.loads((place / "told.json").read_text())
    return scenes


@pytest.fixture
def truth() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = tiny_llama(7, tied=False, dtype=torch.float32).state_dict()
    return state


def holds(folder: Path, truth: dict[str, torch.Tensor]) -> bool:
    saved = load_file(folder / "model.safetensors")
    return saved.keys() == truth.keys() and all(torch.equal(saved[name], truth[name]) for name in truth)


@pytest.mark.parametrize(
    ("scene", "kind", "words"),
    [
        ("path", "OptionError", ("`path`", "path-1 on rank 2", "path-0, as on rank 0")),
        ("step", "OptionError", ("`step`", "1 on rank 1", "0, as on rank 0")),
        ("shapes", "MatchError", ("rank 3 of 4", "bfloat16")),
        ("exists", "OutputExistsError", ("already exists", "rank 0 of 4", "overwrite=True")),
        ("full", "OutputError", ("rank 2 of 4", "writing", "File too large")),
        ("full over", "OutputError", ("rank 2 of 4", "writing", "File too large")),
    ],
)
def test_all_ranks_raise_the_same_error_which_names_the_rank(
    told: Scenes, scene: str, kind: str, words: tuple[str, ...]
) -> None:
    errors = told[scene]
    assert {shown["error"] for shown in errors} == {kind}
    assert len({shown["text"] for shown in errors}) == 1
    assert [word for word in words if word not in errors[0]["text"]] == []


@pytest.mark.parametrize("name", ["path-0", "path-1", "step", "shapes", "full"])
def test_what_fails_leaves_nothing(place: Path, name: str) -> None:
    assert not (place / name).exists()
    assert not [path.name for path in place.iterdir() if path.name.startswith(".")]


def test_what_was_there_stays_until_all_of_the_new_is_written(place: Path) -> None:
    saved = load_file(place / "there" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_ranks_that_do_not_see_the_folder_send_what_they_hold(
    place: Path, told: Scenes, truth: dict[str, torch.Tensor]
) -> None:
    for scene, name in (("unshared", "unshared"), ("unshared columns", "columns")):
        assert holds(place / "disk-0" / name, truth)
        assert all("U140" in shown["codes"] for shown in told[scene])
        assert "ranks 2, 3 of 4" in " ".join(told[scene][0]["findings"])
    assert list((place / "disk-1").iterdir()) == []


def test_numbers_that_are_not_finite_are_saved_and_told(place: Path, told: Scenes) -> None:
    assert all("U130" in shown["codes"] for shown in told["sick"])
    assert any("1 NaN and 1 infinite in 2 tensors" in text for text in told["sick"][0]["findings"])
    saved = load_file(place / "sick" / "model.safetensors")
    assert bool(saved["model.layers.1.mlp.down_proj.weight"][5, 3].isnan())


def test_values_that_a_cast_loses_are_told(told: Scenes) -> None:
    assert all("U402" in shown["codes"] for shown in told["small"])
    assert "U130" not in told["small"][0]["codes"]


def test_the_record_lies_in_the_folder_and_beside_one_file(place: Path) -> None:
    record = json.loads((place / "record" / "unshard.record.json").read_text())
    assert record["fingerprint"] is not None
    assert (place / "one.pt.unshard.record.json").is_file()
    assert torch.load(place / "one.pt", weights_only=True).keys()
