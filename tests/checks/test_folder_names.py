"""Names, layers and experts of a model folder: what no engine would find is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken_folders import State, codes, copied, found, only, rewritten

from tiny_experts import tiny_experts

Folder = Callable[[str], Path]


@pytest.fixture
def folder(tiny_folder: Folder, tmp_path: Path) -> Path:
    return copied(tiny_folder("four-layers"), tmp_path / "model")


@pytest.fixture
def experts(tiny_folder: Folder, tmp_path: Path) -> Path:
    return copied(tiny_folder("four-layers-of-experts"), tmp_path / "model")


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def without(*parts: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if not any(part in n for part in parts)}


def test_segments_of_a_compiled_model_are_told(folder: Path) -> None:
    told = only(found(rewritten(folder, prefixed("_orig_mod."))))
    assert (told.code, told.subject) == ("U220", "`_orig_mod`")
    assert told.saw.startswith("39 of 39 names have the segment of torch.compile: `_orig_mod.")
    rewritten(folder, lambda state: {n.removeprefix("_orig_mod."): t for n, t in state.items()})
    assert found(folder) == []


def test_segments_inside_names_are_told(folder: Path) -> None:
    def wrap(state: State) -> State:
        return {n.replace(".mlp.", "._fsdp_wrapped_module.mlp."): t for n, t in state.items()}

    told = only(found(rewritten(folder, wrap)))
    assert (told.code, told.saw.partition(":")[0]) == ("U220", "12 of 39 names have the segment of FSDP")


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [("module.", "module."), ("base_model.model.", "base_model.model."), ("model.", "model.")],
)
def test_a_container_before_every_name_is_told(prefix: str, shown: str, folder: Path) -> None:
    told = only(found(rewritten(folder, prefixed(prefix))))
    assert (told.code, told.subject) == ("U221", f"`{shown}`")
    assert told.saw.startswith("all 39 names begin with it")
    assert prefix + (told.expected or "").strip("`") == told.saw.rpartition("`")[0].rpartition("`")[2]


def test_names_of_another_program_are_told(folder: Path) -> None:
    def meta(state: State) -> State:
        rows = {
            "self_attn.q_proj": "attention.wq",
            "self_attn.k_proj": "attention.wk",
            "self_attn.v_proj": "attention.wv",
            "self_attn.o_proj": "attention.wo",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.down_proj": "feed_forward.w2",
            "mlp.up_proj": "feed_forward.w3",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
            "embed_tokens": "tok_embeddings",
            "lm_head": "output",
        }
        named = {}
        for name, tensor in state.items():
            short = name.removeprefix("model.")
            for ours, theirs in rows.items():
                short = short.replace(ours, theirs)
            named[short] = tensor
        return named

    told = next(item for item in found(rewritten(folder, meta)) if item.code == "U223")
    assert "beside a config.json of Hugging Face's" in told.saw


def test_experts_as_they_lie_in_memory_are_told(experts: Path) -> None:
    model = tiny_experts("qwen3_moe")
    fused = {n: t for n, t in model.state_dict().items() if "experts." in n}

    def fuse(state: State) -> State:
        rest = {n: t for n, t in state.items() if "experts." not in n}
        layers = {
            n.replace("layers.0", f"layers.{i}"): t.clone()
            for i in range(4)
            for n, t in fused.items()
            if "layers.0" in n
        }
        return rest | layers

    told = next(item for item in found(rewritten(experts, fuse)) if item.code == "U222")
    assert told.saw.startswith("8 tensors hold all experts of a layer")
    assert told.expected == "`model.layers.0.mlp.experts.0.down_proj.weight`"


def test_another_model_among_the_weights_is_told(folder: Path) -> None:
    rewritten(folder, lambda state: state | prefixed("ema.")({n: t.clone() for n, t in state.items()}))
    told = next(item for item in found(folder) if item.code == "U224")
    assert (told.subject, told.saw.partition(":")[0]) == ("`ema.`", "39 of 78 tensors")
    assert told.remedy == "Take the one that is meant: unshard convert FOLDER OUT --select ema"


def test_the_head_of_a_critic_is_told(folder: Path) -> None:
    rewritten(folder, lambda state: state | {"v_head.summary.weight": torch.ones(1, 48)})
    told = only(found(folder))
    assert (told.code, told.subject) == ("U225", "`v_head.summary.weight`")


def test_frequencies_that_the_model_computes_are_told(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    told = only(found(rewritten(folder, lambda state: state | {name: torch.ones(8)})))
    assert (told.code, told.subject) == ("U226", f"`{name}`")


def test_a_layer_that_is_missing_is_told(folder: Path) -> None:
    told = only(found(rewritten(folder, without("layers.2."))))
    assert (told.code, told.saw, told.expected) == ("U236", "no layer 2 of 4", "layers 0 to 3")


def test_layers_that_are_missing_at_the_end_are_told(folder: Path) -> None:
    told = only(found(rewritten(folder, without("layers.2.", "layers.3."))))
    assert (told.code, told.saw, told.expected) == ("U236", "2 layers", "4, as num_hidden_layers says")


def test_a_tensor_that_only_one_layer_lacks_is_told(folder: Path) -> None:
    told = only(found(rewritten(folder, without("layers.1.mlp.up_proj"))))
    assert (told.code, told.subject) == ("U237", "`model.layers.1`")
    assert told.saw == "no `mlp.up_proj.weight`, which its siblings have"
    assert told.expected == "9 tensors as in other layers"


def test_experts_that_one_layer_lacks_are_told(experts: Path) -> None:
    told = only(found(rewritten(experts, without("layers.2.mlp.experts.1.", "layers.2.mlp.experts.3."))))
    assert (told.code, told.saw) == ("U238", "no expert 1, 3: 2 of 4")
    assert "`model.layers.2.mlp.experts.N.down_proj.weight`" in told.subject


def test_experts_that_every_layer_lacks_are_told_by_the_configuration(experts: Path) -> None:
    told = only(found(rewritten(experts, without("mlp.experts.3."))))
    assert (told.code, told.saw) == ("U238", "no expert 3: 3 of 4")
    assert told.expected == "4 experts, as config.json says"


def test_nothing_is_missing_where_a_file_could_not_be_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")
    assert codes(found(folder)) == ["U610"]


def test_names_are_told_missing_by_the_class(folder: Path) -> None:
    norm = "model.norm.weight"
    assert found(folder, deep=True) == []
    missing, beyond = found(
        rewritten(folder, lambda state: without(norm)(state) | {"model.x.weight": torch.ones(2)}), deep=True
    )
    assert (missing.code, missing.subject, beyond.code, beyond.subject) == (
        "U230",
        f"`{norm}`",
        "U231",
        "`model.x.weight`",
    )


def test_names_are_told_missing_by_the_base(folder: Path, tiny_folder: Folder) -> None:
    base, norm = tiny_folder("four-layers"), "model.norm.weight"
    assert found(folder, base=base) == []
    rewritten(folder, lambda state: without(norm)(state) | {"model.x.weight": torch.ones(2)})
    missing, beyond = found(folder, base=base)
    assert (missing.code, missing.subject) == ("U232", f"`{norm}`")
    assert missing.saw.startswith("1 of 39 tensors missing")
    assert (beyond.code, beyond.subject) == ("U233", "`model.x.weight`")
