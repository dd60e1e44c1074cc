"""Fingerprints of models in training: what the ranks compute, and that training goes on as if nothing was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import same_bits
from trainers.fingerprint_runs import CONTEXT, FAILING, LAYERS, SCENES, lively_llama
from trainers.tiny_llama import VOCABULARY
from unshard.inference.fingerprint import Machinery, fingerprint_model
from unshard.inference.fingerprint_sequences import fingerprint_sequences
from unshard.inference.reproducing import compare_prints, tolerance_of
from unshard.record.decoding import decoder_of
from unshard.record.description import Fingerprint


def told(root: Path, rank: int = 0) -> Any:
    return json.loads((root / f"rank-{rank}.json").read_text())


def prints_of(root: Path, scene: str, rank: int = 0) -> list[Fingerprint]:
    return [decoder_of(Fingerprint)(first) for first, _ in told(root, rank)[scene]["prints"]]


@pytest.fixture(scope="module")
def reference() -> Fingerprint:
    """The same model in one process, before training."""
    model = lively_llama().eval()
    sequences = fingerprint_sequences(None, VOCABULARY, CONTEXT)
    machinery = Machinery("float32", "sdpa", "cpu", LAYERS)
    return fingerprint_model(lambda tokens: model(input_ids=tokens).logits, sequences, machinery)


@pytest.mark.parametrize("scene", SCENES)
def test_training_goes_on_bit_for_bit_as_without_fingerprints(fingerprinted_runs: Path, scene: str) -> None:
    assert told(fingerprinted_runs, 0)[scene]["same"]
    assert told(fingerprinted_runs, 1)[scene]["same"]


@pytest.mark.parametrize("scene", [name for name in SCENES if name not in FAILING])
def test_every_rank_has_the_same_fingerprint_and_it_is_that_of_the_whole_model(
    fingerprinted_runs: Path, reference: Fingerprint, scene: str
) -> None:
    first, *later = prints_of(fingerprinted_runs, scene)
    assert [first, *later] == prints_of(fingerprinted_runs, scene, rank=1)
    assert first.computed == ("bfloat16" if scene.endswith("mixed") else "float32")
    assert (first.weights, first.layers, first.vocabulary) == ("float32", LAYERS, VOCABULARY)
    tolerance, dtype = tolerance_of(first)
    same = compare_prints(reference, first.sequences, vocabulary=VOCABULARY, tolerance=tolerance, dtype=dtype)
    assert same.is_sound, same.evidence
    assert later[0] != first  # a step of training shows


@pytest.mark.parametrize("scene", FAILING)
def test_a_model_that_fails_is_told_of_and_trains_on(fingerprinted_runs: Path, scene: str) -> None:
    for found, saw in told(fingerprinted_runs)[scene]["prints"]:
        assert found is None
        assert saw == ["RuntimeError: no inference here"]


@pytest.mark.parametrize("fsdp", [1, 2])
def test_what_is_saved_after_a_fingerprint_is_what_training_holds(
    fingerprinted_runs: Path, fsdp: int
) -> None:
    truth = load_file(fingerprinted_runs / f"truth-{fsdp}.safetensors")
    saved: dict[str, torch.Tensor] = {}
    for file in (fingerprinted_runs / f"saved-{fsdp}").glob("*.safetensors"):
        saved |= load_file(file)
    assert saved.keys() == truth.keys()
    assert all(same_bits(saved[name], truth[name]) for name in truth)
