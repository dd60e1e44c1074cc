"""Names: changed only to an exact match with those the model needs, and every tensor accounted for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specimens import (
    MAKERS,
    State,
    base_of,
    bytes_of,
    casts,
    checkpoint_of,
    codes,
    match_state,
    matched,
    one,
)
from unshard.errors import AmbiguousModelError, MatchError

Folder = Callable[[str], Path]
States = Callable[[str], State]

CONVERTIBLE = [family for family in MAKERS if family != "mixtral"]


def wrapped(name: str) -> str:
    """Return a name as FSDP, activation checkpointing and torch.compile together leave it."""
    parts = name.split(".")
    return ".".join(
        ["_orig_mod", "_fsdp_wrapped_module", *parts[:-2], "_checkpoint_wrapped_module", *parts[-2:]]
    )


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_a_gathered_state_dict_becomes_what_was_published(
    family: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    model = match_state(state(family), base_folder(family), tmp_path)
    truth = load_file(base_folder(family) / "model.safetensors")
    assert set(model.tensors) == set(truth)
    for name, tensor in model.tensors.items():
        assert bytes_of(tensor) == truth[name].reshape(-1).view(torch.uint8).numpy().tobytes()
    assert model.config_edits == {}
    assert casts(model) == []


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_wrapper_segments_vanish_wherever_they_stand(
    family: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    plain = state(family)
    model = match_state(
        {wrapped(name): tensor for name, tensor in plain.items()}, base_folder(family), tmp_path
    )
    assert set(model.tensors) == set(load_file(base_folder(family) / "model.safetensors"))
    assert "U201" in codes(model.findings)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "base_model.model.", "module.module.", "network.backbone.", "module._orig_mod."],
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_a_prefix_that_all_names_share_is_removed(
    prefix: str, family: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    if family == "llava":  # names in memory differ from published ones: one change at a time
        plain: State = dict(load_file(base_folder(family) / "model.safetensors"))
    else:
        plain = state(family)
    model = match_state(
        {prefix + name: tensor for name, tensor in plain.items()}, base_folder(family), tmp_path
    )
    assert set(model.tensors) == set(load_file(base_folder(family) / "model.safetensors"))


def test_a_removed_prefix_is_told_with_its_proof(base_folder: Folder, state: States, tmp_path: Path) -> None:
    renamed = {f"net.{name}": tensor for name, tensor in state("llama").items()}
    told = one(match_state(renamed, base_folder("llama"), tmp_path).findings, "U201")
    assert told.subject == "net."
    assert told.saw == "`net.` was removed from the front: 21 of 21 names"
    assert told.expected == "exactly the names that the base has (safetensors headers)"


def test_wrappers_are_told_with_counts(base_folder: Folder, state: States, tmp_path: Path) -> None:
    renamed = {n.replace("layers.0.", "layers.0._orig_mod."): t for n, t in state("llama").items()}
    told = one(match_state(renamed, base_folder("llama"), tmp_path).findings, "U201")
    assert told.subject == "_orig_mod"
    assert told.saw == "`_orig_mod` in 9 of 21 names"


def test_names_without_the_models_own_prefix_get_it(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    inner = {n.removeprefix("model."): t for n, t in state("llama-tied").items() if n != "lm_head.weight"}
    model = match_state(inner, base_folder("llama-tied"), tmp_path)
    assert set(model.tensors) == set(load_file(base_folder("llama-tied") / "model.safetensors"))
    assert one(model.findings, "U201").saw == "`model.` was added: 20 of 20 names"


def test_a_base_published_without_the_classs_prefix_is_followed(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    old = {n.removeprefix("transformer."): t for n, t in state("gpt2").items() if n != "lm_head.weight"}
    mask = torch.tril(torch.ones(64, 64, dtype=torch.uint8)).view(1, 1, 64, 64)
    save_file(
        old | {"h.0.attn.bias": mask.clone(), "h.1.attn.bias": mask.clone()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_bytes((base_folder("gpt2") / "config.json").read_bytes())
    model = match_state(state("gpt2"), tmp_path, tmp_path)
    assert set(model.tensors) == set(old)
    assert codes(model.findings) == ["U201", "U301"]


def test_every_source_tensor_has_exactly_one_decision(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    wrapped_state = {f"module.{name}": tensor for name, tensor in state("gemma2").items()}
    model = match_state(wrapped_state, base_folder("gemma2"), tmp_path)
    assert [decision.source for decision in model.decisions] == list(wrapped_state)
    assert {d.target for d in model.decisions} == {*model.tensors, None}
    assert model.sources["model.norm.weight"] == ("module.model.norm.weight",)
    assert next(d for d in model.decisions if d.target == "model.norm.weight").reason == "renamed"


def test_the_result_keeps_the_checkpoints_order(base_folder: Folder, state: States, tmp_path: Path) -> None:
    reversed_state = dict(reversed(state("llama").items()))
    assert list(match_state(reversed_state, base_folder("llama"), tmp_path).tensors) == list(reversed_state)


def test_two_names_never_become_one(base_folder: Folder, state: States, tmp_path: Path) -> None:
    doubled = state("llama") | {"_orig_mod.model.norm.weight": torch.ones(32)}
    with pytest.raises(MatchError) as caught:
        match_state(doubled, base_folder("llama"), tmp_path)
    assert [m.name for m in caught.value.mismatches] == ["_orig_mod.model.norm.weight"]


def test_a_prefix_is_not_removed_onto_a_name_that_is_already_there(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    doubled = {f"net.{name}": tensor for name, tensor in state("llama").items()}
    with pytest.raises(MatchError):
        match_state(doubled | {"model.norm.weight": torch.ones(32)}, base_folder("llama"), tmp_path)


def test_a_model_that_has_module_in_its_names_keeps_it(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    own = {n.replace("mlp.", "module.mlp."): t for n, t in state("llama").items()}
    save_file(own, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((base_folder("llama") / "config.json").read_bytes())
    model = match_state({f"module.{name}": tensor for name, tensor in own.items()}, tmp_path, tmp_path)
    assert set(model.tensors) == set(own)


@pytest.mark.parametrize("prefix", ["", "net."])
def test_training_state_is_dropped_by_name(
    prefix: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    noisy = state("llama") | {"model.layers.0.mlp._extra_state": torch.zeros(8, dtype=torch.uint8)}
    noisy = {prefix + name: tensor for name, tensor in noisy.items()}
    model = match_state(noisy, base_folder("llama"), tmp_path)
    assert len(model.tensors) == 21
    assert one(model.findings, "U102").subject == f"{prefix}model.layers.0.mlp._extra_state"


def test_one_missing_tensor_among_wrapped_names_is_named_plainly(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    broken = {f"_orig_mod.{name}": tensor for name, tensor in state("llama").items()}
    del broken["_orig_mod.model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(MatchError) as caught:
        match_state(broken, base_folder("llama"), tmp_path)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.kind, mismatch.name) == ("missing", "model.layers.1.mlp.up_proj.weight")
    assert mismatch.expected == "(64, 32)"


@pytest.mark.parametrize("other", ["model.extra.weight", "norm.weight", "model.model.norm.weight"])
def test_a_single_tensor_of_another_name_is_never_taken_for_the_missing_one(
    other: str, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    broken = state("llama")
    broken[other] = broken.pop("model.norm.weight")
    with pytest.raises(MatchError) as caught:
        match_state(broken, base_folder("llama"), tmp_path)
    assert [(m.kind, m.name) for m in caught.value.mismatches] == [
        ("missing", "model.norm.weight"),
        ("unexpected", other),
    ]


def test_two_models_that_both_fit_are_ambiguous(base_folder: Folder, state: States, tmp_path: Path) -> None:
    both = {f"{p}.{name}": tensor for p in ("student", "teacher") for name, tensor in state("llama").items()}
    with pytest.raises(AmbiguousModelError) as caught:
        match_state(both, base_folder("llama"), tmp_path)
    assert caught.value.saw == "one below `student.`, one below `teacher.`"
    assert caught.value.hint == "Take one of them with --select, for example --select student"


def test_a_copy_beside_the_model_at_the_top_is_ambiguous(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    both = state("llama") | {f"ema.{name}": tensor for name, tensor in state("llama").items()}
    with pytest.raises(AmbiguousModelError, match=r"one at the top, one below `ema\.`"):
        match_state(both, base_folder("llama"), tmp_path)


def test_a_model_with_something_else_beside_it_must_be_selected(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    mixed = {f"model.{name}": tensor for name, tensor in state("llama").items()} | {
        "loss.weight": torch.ones(3)
    }
    with pytest.raises(MatchError) as caught:
        match_state(mixed, base_folder("llama"), tmp_path)
    assert caught.value.hint == "A whole model lies below `model`; take it alone with --select model"


def test_heads_for_further_tokens_need_not_be_there(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    extra = {f"model.layers.{n}.mlp.up_proj.weight": torch.ones(4, 4) for n in (2, 3)} | {
        "mtp.fc.weight": torch.ones(2)
    }
    save_file(state("llama") | extra, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((base_folder("llama") / "config.json").read_bytes())
    model = match_state(state("llama"), tmp_path, tmp_path)
    assert len(model.tensors) == 21
    assert one(model.findings, "U206").subject == "model.layers.2.mlp.up_proj.weight and 2 more"


def test_without_a_base_only_unambiguous_wrappers_are_removed(state: States, tmp_path: Path) -> None:
    checkpoint = checkpoint_of({f"_orig_mod.module.{n}": t for n, t in state("llama").items()}, tmp_path)
    model = matched(checkpoint, None)
    assert set(model.tensors) == set(state("llama"))
    assert codes(model.findings) == ["U201", "U201", "U204"]


def test_without_a_base_module_stays_where_not_every_name_has_it(state: States, tmp_path: Path) -> None:
    checkpoint = checkpoint_of({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path)
    assert set(matched(checkpoint, None).tensors) == {"module.a", "b"}


def test_without_a_base_nothing_is_stripped_into_a_collision(tmp_path: Path) -> None:
    checkpoint = checkpoint_of({"_orig_mod.a": torch.ones(2), "a": torch.ones(2)}, tmp_path)
    assert set(matched(checkpoint, None).tensors) == {"_orig_mod.a", "a"}


def test_without_a_base_ties_and_frequencies_are_kept(state: States, tmp_path: Path) -> None:
    full = state("llama-tied") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    model = matched(checkpoint_of(full, tmp_path), None)
    assert set(model.tensors) == set(full)
    assert model.config_edits == {}
    told = one(model.findings, "U204")
    assert told.saw == "there is no base"


def test_a_base_without_weights_or_class_leaves_names_unchecked(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((base_folder("llama-tied") / "config.json").read_bytes())
    checkpoint = checkpoint_of(state("llama-tied"), tmp_path / "run")
    model = matched(checkpoint, base_of(tmp_path / "base", checkpoint))
    assert codes(model.findings) == ["U204", "U301"]
    assert "lm_head.weight" not in model.tensors


def test_names_of_memory_match_a_base_whose_class_tells_what_it_needs(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((base_folder("llava") / "config.json").read_bytes())
    checkpoint = checkpoint_of(state("llava"), tmp_path / "run")
    model = matched(checkpoint, base_of(tmp_path / "base", checkpoint, model_class=True))
    assert set(model.tensors) == set(load_file(base_folder("llava") / "model.safetensors"))
