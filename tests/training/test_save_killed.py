"""A rank that is killed while all save: nothing half-done appears, and the others say who it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from trainers.run import Wrapping
from trainers.tiny_llama import tiny_llama, write_base
from trainers.wrapping import fsdp2
from unshard.engines.written_file import WrittenFile
from unshard.errors import UnshardError
from unshard.training.ranks.process_group import JoinedRanks, ranks_of
from unshard.training.saving import save_full

RANKS = 3
# Imported once, in the process that ranks are forked from.
PRELOADED = ["trainers.wrapping", "transformers.models.llama.modeling_llama", "unshard.training.saving"]
# Who is killed, and when: in a call of all ranks by its name, in the n-th write, or at the first rename.
KILLS: Mapping[str, tuple[int, str]] = {
    "describing": (2, "describing the model"),
    "exchanging": (1, "exchanging bytes"),
    "first-writes": (0, "write 3"),
    "writes": (2, "write 4"),
    "finishing": (1, "finishing the files"),
    "rename": (0, "rename"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Kill this process at a moment of what it does next."""
    if moment == "rename":
        Path.rename = lambda *_: die()  # type: ignore[method-assign, assignment]
        return
    if moment.startswith("write"):
        write, left = WrittenFile.write, [int(moment.split()[1])]

        def counted(self: WrittenFile, offset: int, data: memoryview) -> None:
            left[0] -= 1
            if not left[0]:
                die()
            write(self, offset, data)

        WrittenFile.write = counted  # type: ignore[method-assign]
        return
    call = JoinedRanks._call

    def watched(self: JoinedRanks, phase: str, collective: Any) -> None:
        if phase == moment:
            die()
        call(self, phase, collective)

    JoinedRanks._call = watched  # type: ignore[method-assign]


def rank_of_scene(folder: str, rank: int, victim: int, moment: str) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    place = Path(folder)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place / 'store'}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=100),
    )
    model = fsdp2(tiny_llama(2, tied=False, dtype=torch.float32), Wrapping(2))
    with ranks_of(timeout_seconds=100) as ranks:  # nobody is killed before all are connected
        ranks.gather("meeting", None)
    if rank == victim:
        arm(moment)
    try:
        save_full(
            model, place / "step", base=place / "base", record=False, overwrite=True, timeout_seconds=100
        )
        (place / f"{rank}.txt").write_text("saved")
    except UnshardError as error:
        (place / f"{rank}.txt").write_text(str(error))
    os._exit(0)


def play(place: Path, victim: int, moment: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ranks = [
        context.Process(target=rank_of_scene, args=(str(place), rank, victim, moment))
        for rank in range(RANKS)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(110)
        assert rank.exitcode is not None
    assert ranks[victim].exitcode == -signal.SIGKILL


def save_alone(folder: Path, seed: int, **options: Any) -> None:
    model = tiny_llama(seed, tied=False, dtype=torch.float32)
    save_full(model, folder / "step", base=folder / "base", record=False, durable=False, **options)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in KILLS}
    for place in found.values():
        write_base(place / "base", tied=False)
        save_alone(place, seed=1)
    with ThreadPoolExecutor(len(KILLS) // 2) as scenes:
        done = [scenes.submit(play, place, *KILLS[name]) for name, place in found.items()]
        for scene in done:
            scene.result()
    return found


@pytest.mark.parametrize("name", list(KILLS))
def test_the_step_before_is_intact_and_the_others_name_the_rank(
    places: Mapping[str, Path], name: str, tmp_path: Path
) -> None:
    place, (victim, _) = places[name], KILLS[name]
    assert same_weights(place / "step", seed=1)
    told = [(place / f"{rank}.txt").read_text() for rank in range(RANKS) if rank != victim]
    assert all(f"`rank {victim}` died, or stopped" in text for text in told)
    assert len(set(told)) == 1


@pytest.mark.parametrize("name", list(KILLS))
def test_the_next_save_clears_what_was_left(places: Mapping[str, Path], name: str) -> None:
    save_alone(places[name], seed=3, overwrite=True)
    assert same_weights(places[name] / "step", seed=3)
    assert not [path.name for path in places[name].iterdir() if path.name.startswith(".")]


def same_weights(folder: Path, seed: int) -> bool:
    truth = tiny_llama(seed, tied=False, dtype=torch.float32).state_dict()
    saved = load_file(folder / "model.safetensors")
    return saved.keys() == truth.keys() and all(torch.equal(saved[name], truth[name]) for name in truth)
