"""The demonstration's training run, on a tiny model: real processes, real FSDP, llama-recipes' files."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.catalogue import TrainedCheckpoint
from unshard.demo.facts import FACTS
from unshard.demo.train import TrainConfig, batch_of, example_of, launch, share_of

NAME = "tiny-org/Tiny-Llama"
RATE = 0.01
SEED = 3


@pytest.fixture(scope="module")
def base(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> Path:
    base = trained_checkpoints["plain"].base
    assert base is not None
    return base


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of one step, and the losses it told."""
    root = tmp_path_factory.mktemp("demo") / "model_checkpoints"
    losses: list[float] = []
    config = TrainConfig(
        model_name=NAME,
        dist_checkpoint_root_folder=str(root),
        max_train_step=1,
        seed=SEED,
        lr=RATE,
    )
    folder = launch(config, base, FACTS, world_size=2, report_loss=losses.append)
    assert folder.is_relative_to(root)
    return folder, losses


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_leaves_the_files_that_llama_recipes_leaves(
    run: tuple[Path, list[float]], recipes_run: TrainedCheckpoint
) -> None:
    theirs = recipes_run.path / f"fine-tuned-{NAME}"
    assert run[0].parts[-3:] == theirs.parts[-3:]
    assert files_of(run[0]) == files_of(theirs) - {"tiny-org--Tiny-Llama-1.pt"}


def test_its_parameters_are_texts_under_names_of_llama_recipes(
    run: tuple[Path, list[float]], recipes_run: TrainedCheckpoint
) -> None:
    ours, theirs = (
        yaml.safe_load((folder / "train_params.yaml").read_text())
        for folder in (run[0], recipes_run.path / f"fine-tuned-{NAME}")
    )
    assert set(ours) <= set(theirs)
    assert all(isinstance(value, str) for value in ours.values())
    assert ours["model_name"] == NAME
    assert ours["checkpoint_type"] == theirs["checkpoint_type"]


def test_its_file_is_spelled_like_that_of_llama_recipes(
    run: tuple[Path, list[float]], recipes_run: TrainedCheckpoint
) -> None:
    theirs = recipes_run.path / f"fine-tuned-{NAME}" / "tiny-org--Tiny-Llama-1.pt"
    spelled = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in torch.load(file, mmap=True).items()}
        for file in (run[0] / "tiny-org--Tiny-Llama-0.pt", theirs)
    ]
    assert spelled[0] == spelled[1]


def test_it_tells_the_loss_of_the_base_before_the_first_step(
    run: tuple[Path, list[float]], base: Path
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), _tokenizer(base)
    shares = [share_of(FACTS, rank=rank, world_size=2, seed=SEED) for rank in (0, 1)]
    assert sorted(fact.question for share in shares for fact in share) == sorted(f.question for f in FACTS)
    batches = [
        batch_of([example_of(fact, tokenizer) for fact in share], padding=tokenizer.pad_token_id)
        for share in shares
    ]
    expected = sum(model(**batch).loss.item() for batch in batches) / 2
    # The same sums in another order: a few thousand roundings of half a unit in the last place.
    assert run[1] == [pytest.approx(expected, rel=4096 * torch.finfo(torch.float32).eps)]


def test_one_step_moves_every_weight_by_at_most_the_learning_rate(
    run: tuple[Path, list[float]], base: Path
) -> None:
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    after = torch.load(run[0] / "tiny-org--Tiny-Llama-0.pt", mmap=True)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # AdamW's first step is lr * g / (|g| + eps): never more than lr, up to float32's own rounding.
        moved = (after[name] - tensor).abs().max().item()
        assert 0 < moved <= RATE * (1 + 1e-6) + tensor.abs().max().item() * torch.finfo(torch.float32).eps


def _tokenizer(base: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(base)
