"""Tied weights: the values decide, the flag follows, and no engine makes a head up."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specimens import State, base_of, checkpoint_of, codes, match_state, matched, one
from unshard.errors import MatchError
from unshard.match import answer_questions, outline_of, questions_for
from unshard.match.model import Model

Folder = Callable[[str], Path]
States = Callable[[str], State]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def base_with(folder: Path, config: Mapping[str, Any], weights: State) -> Path:
    """Write a base with its own configuration and weights."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def config_of(folder: Path, **changes: object) -> dict[str, Any]:
    """Return a base's configuration with some keys set, or removed where None."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text()) | changes
    return {key: value for key, value in config.items() if value is not None}


def diverged(state: State, head: str = HEAD) -> State:
    """Return the state with one number of the head changed."""
    changed = state[head].clone()
    changed[-1, -1] += 1
    return state | {head: changed}


def test_an_equal_duplicate_is_dropped_and_told(base_folder: Folder, state: States, tmp_path: Path) -> None:
    model = match_state(state("llama-tied"), base_folder("llama-tied"), tmp_path)
    assert HEAD not in model.tensors
    told = one(model.findings, "U301")
    assert told.subject == HEAD
    assert told.saw == f"equal to `{EMBED}`: 3,072 elements, bit for bit"
    decision = next(d for d in model.decisions if d.source == HEAD)
    assert decision.target is None
    assert decision.reason == f"equal to `{EMBED}`, with which the model ties it"


def test_a_diverged_head_is_written_and_the_flag_is_off(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    model = match_state(diverged(state("llama-tied")), base_folder("llama-tied"), tmp_path)
    assert {EMBED, HEAD} <= model.tensors.keys()
    assert model.config_edits == {"tie_word_embeddings": False}
    told = one(model.findings, "U302")
    assert (told.subject, told.saw) == (HEAD, f"not `{EMBED}`: they differ from element 3,071 of 3,072 on")


def test_negative_zero_is_not_zero(base_folder: Folder, state: States, tmp_path: Path) -> None:
    zeroed = state("llama-tied")
    zeroed[EMBED] = torch.zeros(96, 32)
    zeroed[HEAD] = -torch.zeros(96, 32)
    assert "U302" in codes(match_state(zeroed, base_folder("llama-tied"), tmp_path).findings)


def test_a_tied_model_without_its_head_is_whole(base_folder: Folder, state: States, tmp_path: Path) -> None:
    headless = state("llama-tied")
    del headless[HEAD]
    model = match_state(headless, base_folder("llama-tied"), tmp_path)
    assert (HEAD in model.tensors, model.config_edits, codes(model.findings)) == (False, {}, [])


def test_a_tied_model_with_only_its_head_gets_its_embedding(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    headed = state("llama-tied")
    del headed[EMBED]
    model = match_state(headed, base_folder("llama-tied"), tmp_path)
    assert model.sources[EMBED] == (HEAD,)
    assert HEAD not in model.tensors


def test_a_base_that_holds_only_the_head_of_a_tied_pair_is_followed(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    hub = {name: tensor for name, tensor in state("llama-tied").items() if name != EMBED}
    base = base_with(tmp_path / "base", config_of(base_folder("llama-tied")), hub)
    model = match_state(state("llama-tied"), base, tmp_path)
    assert set(model.tensors) == set(hub)
    assert model.sources[HEAD] == (HEAD,)


@pytest.mark.parametrize("gone", [EMBED, HEAD])
def test_an_untied_model_without_head_or_embedding_is_refused(
    gone: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    broken = state("llama")
    del broken[gone]
    with pytest.raises(MatchError) as caught:
        match_state(broken, base_folder("llama"), tmp_path)
    assert [(m.kind, m.name) for m in caught.value.mismatches] == [("missing", gone)]


def test_a_missing_head_is_explained(base_folder: Folder, state: States, tmp_path: Path) -> None:
    broken = state("llama")
    del broken[HEAD]
    with pytest.raises(MatchError) as caught:
        match_state(broken, base_folder("llama"), tmp_path)
    assert str(caught.value) == (
        f"`model-0.pt` is not the model of the base `{base_folder('llama')}`: "
        "1 tensor is missing (`lm_head.weight`: expected (96, 32))\n\n"
        "hint: The configuration does not tie `lm_head.weight` to the embedding, and an engine would fill it "
        "with random numbers. If training tied them, set tie_word_embeddings to true in a copy of the base's "
        "config.json and name that copy with --base; else look for a checkpoint that holds it."
    )


def test_an_untied_model_without_a_head_is_refused_even_where_only_config_json_is_known(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((base_folder("llama") / "config.json").read_bytes())
    broken = state("llama")
    del broken[HEAD]
    with pytest.raises(MatchError) as caught:
        match_state(broken, tmp_path / "base", tmp_path)
    assert [m.name for m in caught.value.mismatches] == [HEAD]


def test_equal_weights_of_an_untied_model_stay_two(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    equal = state("llama")
    equal[HEAD] = equal[EMBED].clone()
    model = match_state(equal, base_folder("llama"), tmp_path)
    assert HEAD in model.tensors
    assert model.config_edits == {}


@pytest.mark.parametrize(("family", "flag"), [("llama", False), ("llama-tied", True)])
def test_the_flag_is_written_where_the_base_is_silent(
    family: str, flag: bool, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    config = config_of(base_folder(family), tie_word_embeddings=None, model_type="family_of_tomorrow")
    published = {n: t for n, t in state(family).items() if n != HEAD or not flag}
    model = match_state(state(family), base_with(tmp_path / "base", config, published), tmp_path)
    assert model.config_edits == {"tie_word_embeddings": flag}


def test_a_silent_flag_means_the_default_of_its_family(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    config = config_of(base_folder("llama-tied"), tie_word_embeddings=None, model_type="gemma2")
    model = match_state(
        state("llama-tied"), base_with(tmp_path / "base", config, state("llama-tied")), tmp_path
    )
    assert HEAD not in model.tensors
    assert model.config_edits == {"tie_word_embeddings": True}


def test_a_base_that_holds_both_of_a_tied_pair_is_written_once(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    config = config_of(base_folder("llama-tied"))
    base = base_with(tmp_path / "base", config, state("llama-tied"))
    assert HEAD not in match_state(state("llama-tied"), base, tmp_path).tensors
    assert {EMBED, HEAD} <= match_state(diverged(state("llama-tied")), base, tmp_path).tensors.keys()


def test_a_diverged_head_switches_the_flag_off_at_every_level(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    config = config_of(base_folder("gemma3"))
    config["text_config"].pop("tie_word_embeddings", None)
    hub = {n: t for n, t in state("gemma3").items() if n != HEAD}
    model = match_state(diverged(state("gemma3")), base_with(tmp_path / "base", config, hub), tmp_path)
    assert model.config_edits == {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False}


def test_a_flag_that_contradicts_the_top_is_corrected_below_it(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    config = config_of(base_folder("gemma3"), tie_word_embeddings=True)
    config["text_config"]["tie_word_embeddings"] = False
    hub = {n: t for n, t in state("gemma3").items() if n != HEAD}
    model = match_state(state("gemma3"), base_with(tmp_path / "base", config, hub), tmp_path)
    assert model.config_edits == {"text_config.tie_word_embeddings": True}


def test_an_encoder_decoder_keeps_one_of_four(base_folder: Folder, state: States, tmp_path: Path) -> None:
    model = match_state(state("t5"), base_folder("t5"), tmp_path)
    dropped = [d.source for d in model.decisions if d.target is None]
    assert dropped == ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]


def test_an_encoder_decoder_with_a_head_of_its_own_stays_untied(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    config = config_of(base_folder("t5"), tie_word_embeddings=False)
    hub = {n: t for n, t in diverged(state("t5")).items() if "embed_tokens" not in n}
    model = match_state(diverged(state("t5")), base_with(tmp_path / "base", config, hub), tmp_path)
    assert model.tensors.keys() == hub.keys()
    assert model.config_edits == {}


def test_a_head_trained_on_a_headless_base_is_written(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    hub = {name: tensor for name, tensor in state("llama").items() if name != HEAD}
    base = base_with(tmp_path / "base", config_of(base_folder("llama")), hub)
    assert HEAD in match_state(state("llama"), base, tmp_path).tensors


def test_dtypes_of_a_pair_may_differ_where_the_values_do_not(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    mixed = {name: tensor.bfloat16() for name, tensor in state("llama-tied").items()}
    mixed[HEAD] = mixed[EMBED].float()
    assert HEAD not in match_state(mixed, base_folder("llama-tied"), tmp_path).tensors


def test_tensors_in_one_storage_are_equal_without_reading(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(state("llama-tied"), tmp_path / "run")
    shared = dict(checkpoint.tensors) | {HEAD: checkpoint.tensors[EMBED]}
    same = type(checkpoint)(checkpoint.path, checkpoint.root, checkpoint.layout, shared)
    checkpoint.path.unlink()
    (answer,) = answer_questions(
        questions_for(outline_of(same, base_of(base_folder("llama-tied"), same)))
    ).values()
    assert (answer.holds, answer.evidence) == (True, "one storage")


def test_only_what_decides_is_asked(base_folder: Folder, state: States, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(state("llama"), tmp_path / "run")
    assert questions_for(outline_of(checkpoint, base_of(base_folder("llama"), checkpoint))) == ()


def test_a_biased_head_drops_both_duplicates(base_folder: Folder, state: States, tmp_path: Path) -> None:
    model: Model = match_state(state("encoder"), base_folder("encoder"), tmp_path)
    dropped = {decision.source for decision in model.decisions if decision.target is None}
    assert dropped == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def test_an_unmatched_dtype_of_the_result_does_not_change_the_answer(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(diverged(state("llama-tied")), tmp_path / "run")
    model = matched(checkpoint, base_of(base_folder("llama-tied"), checkpoint), "bfloat16")
    assert HEAD in model.tensors


@pytest.mark.parametrize("family", ["llama-tied", "llama"])
def test_a_head_of_other_rows_than_its_embedding_is_refused(
    family: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    hub = {name: tensor for name, tensor in state(family).items() if name != HEAD}
    base = base_with(tmp_path / "base", config_of(base_folder(family)), hub)
    taller = state(family) | {HEAD: torch.ones(97, 32)}
    with pytest.raises(MatchError) as caught:
        match_state(taller, base, tmp_path)
    assert [(m.name, m.saw, m.expected) for m in caught.value.mismatches] == [(HEAD, "(97, 32)", "(96, 32)")]
