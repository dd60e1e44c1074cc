"""Holding models against fingerprints: what is compared, what rounding explains, what cannot be compared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from records_by_hand import ON_CPU, ON_GPUS, record
from tiny_models import tiny_model
from trainers.fingerprint_runs import LAYERS, lively_llama
from trainers.tiny_llama import VOCABULARY, tiny_tokenizer
from unshard.inference.fingerprint import Machinery, fingerprint_model
from unshard.inference.fingerprint_check import check_fingerprint
from unshard.inference.fingerprint_sequences import fingerprint_sequences
from unshard.inference.reproducing import compare_prints, tolerance_of
from unshard.record.description import Fingerprint, Record

PROMPT = "while True: pass"


@pytest.fixture(scope="module")
def model() -> Any:
    return lively_llama().eval()


def fingerprint_for(model: Any, context: int = 32) -> Fingerprint:
    sequences = fingerprint_sequences(tiny_tokenizer(), VOCABULARY, context, (PROMPT,))
    machinery = Machinery(str(model.dtype).removeprefix("torch."), "sdpa", "cpu", LAYERS)
    return fingerprint_model(lambda tokens: model(input_ids=tokens).logits, sequences, machinery)


@pytest.fixture(scope="module")
def trained(model: Any) -> Record:
    return record(ON_CPU, fingerprint=fingerprint_for(model))


def codes(check: Any) -> list[str]:
    return [found.code for found in check.findings]


def with_rows(model: Any, rows: int) -> Any:
    other = lively_llama()
    other.load_state_dict(model.state_dict())
    other.resize_token_embeddings(rows, mean_resizing=False)
    return other.eval()


def test_sequences_touch_every_region_of_the_vocabulary() -> None:
    for vocabulary in (515, 32_000, 151_936):
        for sequence in fingerprint_sequences(None, vocabulary, None):
            regions = {token * 16 // vocabulary for token in sequence.tokens}
            assert regions == set(range(16))


def test_sequences_stay_inside_the_context_and_the_vocabulary() -> None:
    found = fingerprint_sequences(tiny_tokenizer(), VOCABULARY, 20, (PROMPT * 30,))
    assert [one.name for one in found][:5] == ["english", "code", "numbers", "scripts", "prompt 1"]
    assert max(len(one.tokens) for one in found) == 20
    assert not any(one.is_continued for one in found)
    few = fingerprint_sequences(tiny_tokenizer(), 100, 64)
    assert {one.name for one in few} == {"vocabulary", "vocabulary again", "long"}
    assert not fingerprint_sequences(None, 0, None)


def test_the_same_model_has_the_same_fingerprint(model: Any, trained: Record) -> None:
    check = check_fingerprint(model, tiny_tokenizer(), trained)
    assert check is not None
    assert check.reproduction is not None
    assert check.reproduction.worst.size == 0
    assert check.findings == ()
    assert "argmax equal" in check.reproduction.evidence


def test_losses_are_the_cross_entropies_of_the_next_tokens(model: Any, trained: Record) -> None:
    assert trained.fingerprint is not None
    for one in trained.fingerprint.sequences:
        tokens = torch.tensor([one.tokens])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
        assert torch.allclose(torch.tensor(one.losses), expected, atol=1e-6)
        assert list(one.argmax) == logits.argmax(1).tolist()
        assert list(one.top_ids) == logits[-1].topk(8).indices.tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_kernels_and_dtypes_stay_well_within_the_tolerance(
    trained: Record, dtype: torch.dtype, attention: str
) -> None:
    other = lively_llama(dtype, attn_implementation=attention).eval()
    check = check_fingerprint(other, tiny_tokenizer(), trained)
    assert check is not None
    assert check.is_sound
    assert check.reproduction is not None
    found = check.reproduction
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.typical < found.tolerance / 2
    assert found.worst.size < 8 * found.tolerance / 2


def test_autocast_is_seen_whatever_dtype_comes_out(model: Any) -> None:
    def forward(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: torch.Tensor = model(input_ids=tokens).logits.float()
        return logits

    sequences = fingerprint_sequences(None, VOCABULARY, 16)
    found = fingerprint_model(forward, sequences, Machinery("float32", None, "cpu", LAYERS))
    assert found.computed == "bfloat16"
    assert tolerance_of(found)[1] == "bfloat16"


def test_the_tolerance_grows_with_roundoff_layers_and_logits(trained: Record) -> None:
    recorded = trained.fingerprint
    assert recorded is not None
    tolerance, dtype = tolerance_of(recorded)
    losses = [loss for one in recorded.sequences for loss in one.losses]
    spread = math.fsum(loss * loss for loss in losses) / len(losses)
    largest = max(abs(logit) for one in recorded.sequences for logit in one.top_logits)
    assert dtype == "float32"
    assert tolerance == pytest.approx(2.0**-20 * math.sqrt(LAYERS * spread + largest**2))
    coarse, dtype = tolerance_of(recorded, "bfloat16")
    assert dtype == "bfloat16"
    assert coarse == pytest.approx(tolerance * 2**12)
    assert tolerance_of(replace(recorded, layers=4 * LAYERS))[0] > 1.9 * tolerance


def test_tensor_cores_of_training_widen_the_tolerance(model: Any, trained: Record) -> None:
    on_gpus = replace(ON_GPUS, settings={"allow_tf32": "True"})
    check = check_fingerprint(model, None, record(on_gpus, fingerprint=trained.fingerprint))
    assert check is not None
    assert check.reproduction is not None
    assert check.reproduction.dtype == "tf32"


def test_rows_of_padding_do_not_count(model: Any, trained: Record) -> None:
    check = check_fingerprint(with_rows(model, VOCABULARY + 61), None, trained)
    assert check is not None
    assert check.is_sound
    assert check.reproduction is not None
    assert check.reproduction.typical < 1e-5


def test_without_the_padding_of_training_the_common_part_is_compared(model: Any) -> None:
    padded = with_rows(model, VOCABULARY + 61)
    check = check_fingerprint(model, None, record(ON_CPU, fingerprint=fingerprint_for(padded)))
    assert check is not None
    assert check.reproduction is not None
    assert check.reproduction.typical < 1e-5


def test_a_single_wrong_row_of_the_head_is_told(trained: Record) -> None:
    other = lively_llama().eval()
    assert trained.fingerprint is not None
    (token,) = trained.fingerprint.sequences[0].argmax[-1:]
    with torch.no_grad():
        other.lm_head.weight[token] *= -1
    check = check_fingerprint(other, None, trained)
    assert check is not None
    assert codes(check) == ["U711"]
    assert "rows of the embedding or of the head" in str(check.findings[0].remedy)


def test_a_model_without_numbers_is_told(trained: Record) -> None:
    other = lively_llama().eval()
    with torch.no_grad():
        other.lm_head.weight[7] = math.nan
    check = check_fingerprint(other, None, trained)
    assert check is not None
    assert codes(check) == ["U711"]
    assert check.reproduction is not None
    assert check.reproduction.worst.size == math.inf


def test_training_without_numbers_is_not_compared(model: Any, trained: Record) -> None:
    assert trained.fingerprint is not None
    first, *others = trained.fingerprint.sequences
    broken = replace(first, losses=(math.nan, *first.losses[1:]))
    check = check_fingerprint(
        model, None, record(ON_CPU, fingerprint=replace(trained.fingerprint, sequences=(broken, *others)))
    )
    assert check is not None
    assert codes(check) == ["U714"]


def test_a_vocabulary_without_the_tokens_is_not_compared(model: Any, trained: Record) -> None:
    check = check_fingerprint(with_rows(model, 100), None, trained)
    assert check is not None
    assert codes(check) == ["U714"]


def test_another_continuation_only_informs(model: Any, trained: Record) -> None:
    assert trained.fingerprint is not None
    sequences = [
        replace(one, greedy_sha256=one.greedy_sha256 and "0" * 64) for one in trained.fingerprint.sequences
    ]
    other = replace(trained.fingerprint, sequences=tuple(sequences))
    check = check_fingerprint(model, None, record(ON_CPU, fingerprint=other))
    assert check is not None
    assert codes(check) == ["U713"]
    assert check.is_sound
    assert "`prompt 1`" in check.findings[0].saw


def test_experts_may_waver_at_one_of_a_hundred_tokens(trained: Record) -> None:
    recorded = trained.fingerprint
    assert recorded is not None
    first, *others = recorded.sequences
    jumped = replace(first, losses=(first.losses[0] + 5.0, *first.losses[1:]))
    for experts in (False, True):
        found = compare_prints(
            recorded,
            (jumped, *others),
            vocabulary=VOCABULARY,
            tolerance=1e-3,
            dtype="float32",
            experts=experts,
        )
        assert found.is_sound == experts


def test_a_quick_look_runs_the_beginning_of_one_sequence(model: Any) -> None:
    trained = record(ON_CPU, fingerprint=fingerprint_for(model, context=64))
    check = check_fingerprint(model, tiny_tokenizer(), trained, quick=True)
    assert check is not None
    assert check.reproduction is not None
    assert (check.reproduction.sequences, check.reproduction.positions) == (1, 32)
    assert check.reproduction.worst.size < check.reproduction.tolerance


def test_models_of_other_kinds_are_not_compared(trained: Record) -> None:
    check = check_fingerprint(tiny_model("encoder-decoder"), None, trained)
    assert check is not None
    assert codes(check) == ["U714"]
