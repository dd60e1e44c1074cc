"""The examples are run as people run them, and what they leave is proven, converted and resumed from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from conversations import BUILT_IN, IGNORED, batch_of, example_of, read_pairs, share_of
from trainers.catalogue import TrainedCheckpoint
from unshard import Verification, convert, verify

EXAMPLES = Path(__file__).parents[1] / "examples"
CPU = torch.device("cpu")


def torchrun(script: str, *words: object, folder: Path) -> list[str]:
    """Run an example in two processes, and return the lines it says; no warning of it may be left to read."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLES / script), *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def losses(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("step ")]


@pytest.fixture(scope="module")
def base(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> Path:
    base = trained_checkpoints["plain"].base
    assert base is not None
    return base


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def fsdp2(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a training of four steps, saved after two of them and at the end, and what it said."""
    run = tmp_path_factory.mktemp("fsdp2") / "run"
    words = ("--model", base, "--out", run, "--steps", 4, "--save-every", 2, "--lr", 0.01)
    return run, torchrun("finetune_fsdp2.py", *words, folder=run.parent)


def reproduced(verification: Verification) -> str:
    (level,) = [level for level in verification.levels if level.name == "fingerprint"]
    return f"{level.verdict} {' '.join(level.evidence)}"


def test_fsdp2_leaves_folders_that_compute_what_training_computed(fsdp2: tuple[Path, list[str]]) -> None:
    run, lines = fsdp2
    assert sorted(path.name for path in run.iterdir()) == ["step-2", "step-4"]
    assert [line.partition("   ")[0] for line in losses(lines)] == [f"step {n}/4" for n in range(1, 5)]
    verification = verify(run / "step-4", forward=True)
    assert verification.sound, verification.levels
    assert "reproduces" in reproduced(verification)
    _, info = AutoModelForCausalLM.from_pretrained(run / "step-4", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_fsdp2_goes_on_as_if_it_had_never_stopped(
    fsdp2: tuple[Path, list[str]], base: Path, tmp_path: Path
) -> None:
    run, lines = fsdp2
    words = ("--model", base, "--out", tmp_path, "--steps", 4, "--lr", 0.01, "--resume", run / "step-2")
    assert losses(torchrun("finetune_fsdp2.py", *words, folder=tmp_path)) == losses(lines)[2:]
    resumed, straight = (load_file(folder / "step-4" / "model.safetensors") for folder in (tmp_path, run))
    assert resumed.keys() == straight.keys()
    assert all(resumed[name].equal(tensor) for name, tensor in straight.items())


def test_fsdp1_leaves_llama_recipes_files_that_convert_to_what_training_computed(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(base)
    words = (
        "--model_name",
        "base",
        "--dist_checkpoint_root_folder",
        "run",
        "--max_train_step",
        2,
        "--lr",
        0.01,
    )
    lines = torchrun("finetune_fsdp1.py", *words, "--num_epochs", 2, folder=tmp_path)
    folder = tmp_path / "run" / "fine-tuned-base"
    named = ["base-0.pt", "base-1.pt", "train_params.yaml"]
    assert sorted(p.name for p in folder.iterdir() if "unshard" not in p.name) == named
    assert len(losses(lines)) == 4
    convert(tmp_path / "run", tmp_path / "model", base=base, download=False)
    verification = verify(tmp_path / "model", against=tmp_path / "run", forward=True)
    assert verification.sound, verification.levels
    assert "reproduces" in reproduced(verification)
    more = torchrun("finetune_fsdp1.py", *words, "--from_checkpoint", folder / "base-1.pt", folder=tmp_path)
    assert float(losses(more)[0].split()[-1]) < float(losses(lines)[-1].split()[-1])


def test_pairs_are_read_from_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in BUILT_IN) + "\n")
    assert read_pairs(file) == read_pairs(None) == list(BUILT_IN)


def test_every_rank_learns_from_some_pairs_and_all_ranks_from_all() -> None:
    shares = [share_of(list(BUILT_IN), rank=rank, world_size=3, seed=5) for rank in range(3)]
    assert sorted(pair for share in shares for pair in share) == sorted(BUILT_IN)
    assert shares != [share_of(list(BUILT_IN), rank=rank, world_size=3, seed=6) for rank in range(3)]
    assert all(share_of(list(BUILT_IN), rank=rank, world_size=9, seed=5) for rank in range(9))


@pytest.mark.parametrize("pair", BUILT_IN, ids=lambda pair: pair[0])
def test_only_the_answer_is_learnt(pair: tuple[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
    tokens, labels = example_of(pair, tokenizer)
    learnt = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(learnt) == f"{pair[1]}<|end|>"
    assert len(labels) == len(tokens)
    assert tokens[-len(learnt) :] == learnt


def test_an_example_begins_as_the_question_will_be_asked(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = [{"role": "user", "content": BUILT_IN[0][0]}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert example_of(BUILT_IN[0], tokenizer)[0][: len(expected)] == expected


def test_a_tokenizer_without_a_chat_template_separates_by_lines(base: Path) -> None:
    plain = AutoTokenizer.from_pretrained(base)
    plain.chat_template = None
    tokens, labels = example_of(("Why?", "Because."), plain)
    assert plain.decode(tokens) == "Why?\nBecause.<|end|>"
    assert plain.decode([token for token in labels if token != IGNORED]) == "Because.<|end|>"


def test_shorter_examples_are_padded_where_nothing_is_attended_to_or_learnt() -> None:
    batch = batch_of([([5, 6, 7], [IGNORED, 6, 7]), ([8], [8])], padding=9, device=CPU)
    assert batch["input_ids"].equal(torch.tensor([[5, 6, 7], [8, 9, 9]]))
    assert batch["attention_mask"].equal(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert batch["labels"].equal(torch.tensor([[IGNORED, 6, 7], [8, IGNORED, IGNORED]]))
