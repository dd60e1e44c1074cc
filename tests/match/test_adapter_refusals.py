"""An adapter that cannot be merged for certain is refused, with what was seen and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_models import Scene, matched_in, write_scene
from unshard.errors import (
    AmbiguousModelError,
    BaseModelError,
    InputError,
    MatchError,
    OptionError,
    UnshardError,
    UnsupportedLayoutError,
)

AT = "base_model.model.model.layers.0.self_attn.q_proj."
State = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("refused"), "llama", target_modules=["q_proj"])


@pytest.fixture
def refused(made: Scene, tmp_path: Path) -> Callable[..., UnshardError]:
    """Change the state dict and the configuration of a run, and return why it is refused."""

    def refuse(
        kind: type[UnshardError],
        change: Callable[[State], object] = lambda state: None,
        *,
        alpha: float | None = None,
        with_config: bool = True,
        **settings: Any,
    ) -> UnshardError:
        state = torch.load(made.full / "model.pt", weights_only=True)
        change(state)
        torch.save(state, tmp_path / "model.pt")
        if with_config:
            config = json.loads((made.full / "adapter_config.json").read_bytes())
            (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        with pytest.raises(kind) as caught:
            matched_in(tmp_path, made.base, alpha=alpha)
        return caught.value

    return refuse


Refused = Callable[..., UnshardError]


def test_without_alpha_the_rank_and_the_option_are_told(refused: Refused) -> None:
    error = refused(InputError, with_config=False)
    assert error.saw == (
        "rank 4 on 2 modules, and no lora_alpha in adapter_config.json or training parameters"
    )
    assert error.hint == (
        "Put the run's adapter_config.json beside the checkpoint, or name the number: --lora-alpha 16"
    )
    assert error.code == "U252"


def test_an_alpha_of_zero_is_no_alpha(refused: Refused) -> None:
    error = refused(InputError, lora_alpha=0)
    assert error.saw == "lora_alpha 0"
    assert error.code == "U252"


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_the_option_must_be_a_positive_number(refused: Refused, alpha: float) -> None:
    assert refused(OptionError, alpha=alpha).subject == "--lora-alpha"


def test_a_factor_without_its_partner_is_named(refused: Refused) -> None:
    error = refused(MatchError, lambda state: state.pop(f"{AT}lora_B.default.weight"))
    assert f"`{AT}lora_A.default.weight`, not its factor B" in error.problem
    assert error.code == "U253"


def test_placeholders_of_zero3_are_named(refused: Refused) -> None:
    error = refused(MatchError, lambda s: s.update({f"{AT}lora_B.default.weight": torch.empty(0)}))
    assert f"`{AT}lora_B.default.weight` has shape [0], not a whole matrix" in error.problem


def test_ranks_that_do_not_meet_are_named(refused: Refused) -> None:
    error = refused(MatchError, lambda s: s.update({f"{AT}lora_B.default.weight": torch.ones(48, 3)}))
    assert "shape [48, 3], not 4 columns" in error.problem


def test_a_rank_other_than_the_configurations_is_refused(refused: Refused) -> None:
    assert (
        "has rank 4, not rank 8, as adapter_config.json says, and 1 more" in refused(MatchError, r=8).problem
    )


def test_a_shape_that_does_not_fit_the_weight_is_refused(refused: Refused) -> None:
    error = refused(MatchError, lambda s: s.update({f"{AT}lora_A.default.weight": torch.ones(4, 47)}))
    assert "shape [48, 48], not [48, 47], which is what its adapter adds" in error.problem


@pytest.mark.parametrize(
    ("settings", "saw"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 1]]}, "layers that are used several times"),
    ],
)
def test_other_computations_are_refused_by_name(refused: Refused, settings: dict[str, Any], saw: str) -> None:
    error = refused(UnsupportedLayoutError, **settings)
    assert (error.saw, error.code) == (saw, "U261")


def test_other_kinds_of_tensors_are_refused_by_name(refused: Refused) -> None:
    error = refused(UnsupportedLayoutError, lambda s: s.update({f"{AT}vera_lambda_b.default": torch.ones(4)}))
    assert error.saw == f"VeRA: 1 tensors, `{AT}vera_lambda_b.default` first"
    error = refused(UnsupportedLayoutError, lambda s: s.update({f"{AT}lora_B.default.bias": torch.ones(48)}))
    assert error.saw is not None
    assert error.saw.startswith("a bias of the second factor")


def test_several_adapters_without_a_default_are_refused(refused: Refused) -> None:
    def rename(state: State) -> None:
        for name in [name for name in state if ".default." in name]:
            tensor = state.pop(name)
            state |= {name.replace("default", other): tensor for other in ("one", "two")}

    error = refused(AmbiguousModelError, rename)
    assert error.saw == "`one`, `two`"
    assert error.hint is not None
    assert "selected_adapters=['one']" in error.hint


def test_rows_that_nothing_explains_are_refused(refused: Refused) -> None:
    def add_rows(state: State) -> None:
        embedding = state.pop("base_model.model.model.embed_tokens.weight")
        at = "base_model.model.model.embed_tokens.token_adapter."
        state |= {f"{at}base_layer.weight": embedding, f"{at}trainable_tokens_delta.default": embedding[:2]}

    error = refused(InputError, add_rows)
    assert error.expected == "trainable_token_indices in adapter_config.json"
    for indices in ([1, 515], [1, 1], [1, 2, 3]):
        error = refused(InputError, add_rows, trainable_token_indices=indices)
        assert "holds trained rows that do not fit" in error.problem


@pytest.mark.parametrize("pattern", ["(a+)+$", "(?P<x>a)", "a{99}", ".*.*.*q_proj", "[a", "(.*q_proj)*"])
def test_patterns_that_could_take_long_are_not_read(refused: Refused, pattern: str) -> None:
    assert refused(InputError, alpha_pattern={pattern: 16}).saw == pattern


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "[" * 100_000])
def test_a_damaged_configuration_is_no_bug(made: Scene, tmp_path: Path, text: str) -> None:
    (tmp_path / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match="JSON"):
        matched_in(tmp_path, made.base)


def alone(made: Scene, folder: Path, **settings: Any) -> Path:
    """Return a copy of the adapter with other settings."""
    folder.mkdir()
    config = json.loads((made.adapter / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    (folder / "adapter_model.safetensors").write_bytes(
        (made.adapter / "adapter_model.safetensors").read_bytes()
    )
    return folder


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_adapter_of_changed_weights_is_not_merged_into_the_base(
    made: Scene, tmp_path: Path, how: str
) -> None:
    with pytest.raises(UnsupportedLayoutError) as caught:
        matched_in(alone(made, tmp_path / "adapter", init_lora_weights=how), made.base)
    assert caught.value.saw == f"init_lora_weights {how}, which changes them before training begins"


def test_an_adapter_alone_needs_a_base_with_weights(made: Scene, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as caught:
        matched_in(made.adapter, None)
    assert caught.value.problem == "holds an adapter alone, and the model it was trained on was not found"
    (tmp_path / "config.json").write_bytes((made.base / "config.json").read_bytes())
    with pytest.raises(BaseModelError) as caught:
        matched_in(made.adapter, tmp_path)
    assert caught.value.problem == "has no weights here, and an adapter alone is nothing without them"


def test_a_base_without_the_adapters_modules_is_refused(made: Scene, tmp_path: Path) -> None:
    weights = load_file(made.base / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((made.base / "config.json").read_bytes())
    with pytest.raises(MatchError) as caught:
        matched_in(made.adapter, tmp_path)
    assert caught.value.problem.startswith("lacks 1 of the 2 modules that the adapter was trained on")
    assert caught.value.code == "U253"
