"""What checkpoints without a record tell: real runs, and the traces of versions that are not installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers

import unshard
from records_by_hand import record, write_record
from trainers.catalogue import TrainedCheckpoint
from unshard.checkpoint import Traces
from unshard.environment.description import Training
from unshard.environment.inferring_versions import torch_of_reader, torch_of_writer
from unshard.environment.recorded import find_training
from unshard.environment.versions import VersionRange, parse_range, parse_release

Runs = Mapping[str, TrainedCheckpoint]
DTENSOR = ("torch.distributed.tensor.DTensor", "torch.distributed.device_mesh.DeviceMesh")
DCP = "torch.distributed.checkpoint.metadata."
LAYOUT_OF_MESHES = "torch.distributed._mesh_layout._MeshLayout"


def range_of(training: Training, package: str) -> VersionRange:
    found = parse_range(training.facts[package].value)
    assert found is not None
    return found


def this_release(module: object) -> tuple[int, ...]:
    release = parse_release(str(getattr(module, "__version__")))  # noqa: B009
    assert release is not None
    return release


def traces(*names: str, parts: tuple[str, ...] = ()) -> Traces:
    return Traces(frozenset(names), frozenset(("cpu",)), frozenset(parts))


@pytest.mark.parametrize(
    "name",
    [
        "recipes-two-epochs",
        "recipes-one-device",
        "verl-fsdp2",
        "dcp-fsdp2",
        "dcp-fsdp1",
        "dcp-without-collectives",
    ],
)
def test_the_range_of_a_real_run_holds_the_torch_that_wrote_it(trained_checkpoints: Runs, name: str) -> None:
    training = find_training(trained_checkpoints[name].path)
    assert training.record is None
    assert range_of(training, "torch").contains(this_release(torch))
    assert range_of(training, "torch").least is not None
    assert "in the files" in str(training.facts["torch"].evidence)


def test_parts_of_dtensors_need_a_torch_that_has_their_classes(trained_checkpoints: Runs) -> None:
    training = find_training(trained_checkpoints["verl-fsdp2"].path)
    assert training.needs["torch"].value == ">=2.10"
    assert "torch" not in find_training(trained_checkpoints["recipes-two-epochs"].path).needs
    assert find_training(trained_checkpoints["dcp-fsdp2"].path).needs["torch"].value == ">=2.4"


def test_parameters_of_a_real_run_tell_what_it_computed_in(trained_checkpoints: Runs) -> None:
    facts = find_training(trained_checkpoints["recipes-tied-bf16"].path).facts
    assert facts["trainer"].value == "llama-recipes"
    assert facts["dtype of weights"].value == facts["dtype of computing"].value == "bfloat16"
    assert "train_params.yaml" in str(facts["dtype of computing"].evidence)
    plain = find_training(trained_checkpoints["recipes-two-epochs"].path).facts
    assert plain["dtype of weights"].value == "float32"
    assert "dtype of computing" not in plain


def test_experts_that_lie_fused_tell_of_transformers_5(trained_checkpoints: Runs) -> None:
    training = find_training(trained_checkpoints["dcp-mixtral"].path)
    assert range_of(training, "transformers").contains(this_release(transformers))
    assert range_of(training, "transformers").is_above((4, 57), digits=1)
    assert "experts" in str(training.facts["transformers"].evidence)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["gate_up_proj"], ">=5.0"),
        (["gate_up_proj", "gate_up_proj_bias"], "4.50.0"),  # gpt-oss, whose published files are fused
        (["7.gate_proj.weight"], "4.50.0"),
    ],
)
def test_fused_experts_tell_more_than_the_configuration_of_the_base(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    before = "model.layers.0._fsdp_wrapped_module.mlp.experts"
    torch.save({f"{before}.{name}": torch.ones(2, 2, 2) for name in names}, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "4.50.0"}))
    assert find_training(tmp_path / "model.pt").facts["transformers"].value == expected


def test_fused_experts_in_a_published_folder_tell_nothing(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    torch.save({name: torch.ones(2, 2, 2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    training = find_training(tmp_path)
    assert "transformers" not in training.facts
    assert training.weights_bytes == 32


def test_a_saved_model_tells_its_transformers_and_its_type(trained_checkpoints: Runs) -> None:
    base = trained_checkpoints["recipes-two-epochs"].base
    assert base is not None
    facts = find_training(base).facts
    version = json.loads((base / "config.json").read_text())["transformers_version"]
    assert facts["transformers"].value == version
    assert facts["model type"].value == "llama"


def test_the_configuration_of_a_converted_folder_is_the_bases_and_tells_nothing(
    trained_checkpoints: Runs, tmp_path: Path
) -> None:
    run = trained_checkpoints["recipes-two-epochs"]
    unshard.convert(run.path, tmp_path / "out", base=run.base, download=False)
    assert "transformers" not in find_training(tmp_path / "out").facts


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (traces("torch.distributed._shard.checkpoint.metadata.Metadata"), "<2.0"),
        (traces("torch.distributed._tensor.api.DTensor"), "<2.5"),
        (traces(*DTENSOR, parts=("byteorder",)), ">=2.5,<2.8"),
        (traces(*DTENSOR, parts=("byteorder", ".format_version")), ">=2.7,<2.10"),
        (traces(*DTENSOR, LAYOUT_OF_MESHES, parts=("byteorder", ".format_version")), ">=2.10"),
        (traces("torch._utils._rebuild_tensor_v2", parts=("byteorder",)), ">=2.1,<2.8"),
        (traces("torch._utils._rebuild_tensor_v2", parts=("byteorder", ".format_version")), ">=2.7"),
        (traces("torch._utils._rebuild_tensor_v3"), ">=2.1"),
        (traces("x", parts=("metadata.state_dict_metadata",)), "<2.3"),
        (traces(f"{DCP}TensorProperties", parts=("metadata.state_dict_metadata",)), ">=2.3,<2.4"),
        (traces(f"{DCP}TensorProperties", parts=("metadata.storage_meta",)), ">=2.4,<2.10"),
        (
            traces(f"{DCP}TensorProperties", parts=("metadata.storage_meta", "metadata.version")),
            ">=2.9",
        ),
        (traces("torch._utils._rebuild_tensor_v2"), None),
        (traces("torch.distributed._tensor.api.DTensor", LAYOUT_OF_MESHES), None),
    ],
)
def test_traces_bound_the_torch_that_wrote_them(found: Traces, expected: str | None) -> None:
    fact = torch_of_writer(found)
    assert (fact and fact.value) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (traces("torch.distributed._tensor.api.DTensor"), None),
        (traces(*DTENSOR), ">=2.5"),
        (traces(*DTENSOR, LAYOUT_OF_MESHES), ">=2.10"),
        (traces(f"{DCP}TensorProperties"), ">=2.3"),
        (traces(f"{DCP}TensorProperties", f"{DCP}StorageMeta"), ">=2.4"),
        (traces("torch._utils._rebuild_tensor_v3"), ">=2.1"),
        (traces("torch._utils._rebuild_tensor_v2", parts=(".format_version",)), None),
    ],
)
def test_classes_bound_the_torch_that_can_read_them(found: Traces, expected: str | None) -> None:
    fact = torch_of_reader(found)
    assert (fact and fact.value) == expected


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"model.norm.weight": torch.ones(4)}, tmp_path / "model.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model_name: m\npure_bf16: 'True'\nuse_fp16: 'False'\n", "bfloat16"),
        ("model_name: m\npure_bf16: 'True'\nuse_fp16: 'True'\n", "float16"),
        ("model_name: m\nmixed_precision: 'True'\n", "bfloat16"),
        ("model_name: m\nmixed_precision: 'False'\n", None),
        ("model_name: m\nprecision: bf16-mixed\n", "bfloat16"),
        ("model_name: m\ntorch_dtype: torch.float16\n", "float16"),
        ("model_name: m\nprecision: best\n", None),
    ],
)
def test_parameters_tell_the_precision_of_training(saved: Path, text: str, expected: str | None) -> None:
    (saved / "train_params.yaml").write_text(text)
    fact = find_training(saved).facts.get("dtype of computing")
    assert (fact and fact.value) == expected


def test_sections_of_a_configuration_tell_precision_and_attention(saved: Path) -> None:
    (saved / "config.yaml").write_text(
        "policy:\n  model_name: m\n  precision: bfloat16\n  attn_implementation: flash_attention_2\n"
    )
    facts = find_training(saved).facts
    assert facts["dtype of computing"].value == "bfloat16"
    assert facts["attention"].value == "flash_attention_2"
    assert facts["attention"].evidence == "`policy.attn_implementation` in config.yaml"


@pytest.mark.parametrize(("value", "told"), [("4bit", True), ("None", False), ("False", False)])
def test_a_quantised_base_is_told_by_the_parameters(saved: Path, value: str, told: bool) -> None:
    (saved / "train_params.yaml").write_text(f"model_name: m\nquantization: '{value}'\n")
    assert ("quantised base" in find_training(saved).facts) == told


def test_files_beside_the_tensors_tell_of_adapters_and_quantised_weights(saved: Path) -> None:
    assert not {"adapter", "quantisation"} & find_training(saved).facts.keys()
    (saved / "adapter_config.json").write_text("{}")
    (saved / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    facts = find_training(saved).facts
    assert facts["adapter"].value == "PEFT"
    assert facts["quantisation"].value == "bitsandbytes"


def test_flags_of_flash_attention_are_read(saved: Path) -> None:
    (saved / "config.yaml").write_text("base_model: m\nflash_attention: true\n")
    assert find_training(saved).facts["attention"].value == "flash_attention_2"


@pytest.mark.parametrize(
    ("merges", "needed"), [('["a b", "c d"]', None), ('[ ["a", "b"], ["c", "d"] ]', ">=0.20")]
)
def test_merges_tell_which_tokenizers_can_read_them(saved: Path, merges: str, needed: str | None) -> None:
    (saved / "tokenizer.json").write_text('{"model": {"vocab": {}, "merges": ' + merges + "}}")
    fact = find_training(saved).needs.get("tokenizers")
    assert (fact and fact.value) == needed


def test_versions_that_frameworks_keep_in_checkpoints_are_read(tmp_path: Path) -> None:
    state = {"state_dict": {"w": torch.ones(2)}, "pytorch-lightning_version": "2.5.1", "epoch": 1}
    torch.save(state, tmp_path / "last.ckpt")
    facts = find_training(tmp_path / "last.ckpt").facts
    assert facts["pytorch-lightning"].value == "2.5.1"
    assert facts["trainer"].value == "PyTorch Lightning"


def test_where_tensors_lay_tells_the_kind_of_device(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert "accelerator" not in find_training(tmp_path / "model.pt").facts
    content = (tmp_path / "model.pt").read_bytes()
    assert content.count(b"X\x03\x00\x00\x00cpu") == 1
    on_gpu = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3")
    (tmp_path / "model.pt").write_bytes(on_gpu)
    fact = find_training(tmp_path / "model.pt").facts["accelerator"]
    assert (fact.value, fact.evidence) == ("cuda or rocm", "tensors that were saved from `cuda:3`")


def test_what_is_recorded_wins_over_what_is_inferred_and_leaves_the_rest(saved: Path) -> None:
    (saved / "config.json").write_text(json.dumps({"model_type": "llama", "transformers_version": "5.0.0"}))
    inferred = find_training(saved)
    write_record(saved, record())
    both = find_training(saved)
    assert (inferred.facts["transformers"].value, both.facts["transformers"].value) == ("5.0.0", "4.57.3")
    assert both.facts["transformers"].evidence is None
    assert both.record == saved / "unshard.record.json"
    assert both.weights_bytes == 16


def test_a_record_tells_of_training_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    training = find_training(write_record(tmp_path / "alone", record()))
    assert training.facts["torch"].value == "2.6.0+cu124"
    assert training.weights_bytes == 16


def test_hostile_names_become_one_short_line(saved: Path) -> None:
    config = {"model_type": "x" * 500 + "\x1b[31m\n", "attn_implementation": "a\nb\x07"}
    (saved / "config.json").write_text(json.dumps(config))
    values = [fact.value for fact in find_training(saved).facts.values()]
    assert all(value.isprintable() and len(value) < 200 for value in values)


@pytest.mark.parametrize("content", ["[]", "{", '{"model_type": 3, "quantization_config": 7}', ""])
def test_a_configuration_that_says_nothing_is_passed_over(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content)
    assert "model type" not in find_training(saved).facts
