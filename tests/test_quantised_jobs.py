"""Quantised checkpoints through a whole conversion: plain models that compute the same, or kept whole."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specimens import published, state_of, tiny_model
from unshard import convert, inspect
from unshard.errors import UnsupportedLayoutError

SETTINGS = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}


def quantised(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the state with every linear layer in blocks of float8, and what that stands for."""
    packed, plain = dict(state), dict(state)
    for name, weight in state.items():
        if "_proj" not in name:
            continue
        rows, width = weight.shape
        blocks = weight.float().reshape(rows // 16, 16, width // 16, 16)
        scales = blocks.abs().amax((1, 3)) / 448
        values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        packed |= {name: values.reshape(rows, width), f"{name}_scale_inv": scales}
        plain[name] = (values.float() * scales[:, None, :, None]).reshape(rows, width)
    return packed, plain


def with_settings(folder: Path, path: Path) -> Path:
    """Copy a folder's files besides its weights, its configuration made that of a quantised model."""
    path.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": SETTINGS}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_becomes_a_plain_one_with_the_same_logits(tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = published(model, tmp_path / "base")
    packed, plain = quantised(state_of(model))
    torch.save(packed, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out", base=base)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == plain.keys()
    assert all(torch.equal(written[name], plain[name]) for name in plain)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model.load_state_dict(plain)
    tokens = torch.arange(5, 25).reshape(2, 10)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32").eval()
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, model(tokens).logits)


def test_a_quantised_model_is_dequantised_to_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    packed, plain = quantised(state_of(tiny_model("llama")))
    base = with_settings(published(tiny_model("llama"), tmp_path / "plain"), tmp_path / "base")
    save_file(packed, base / "model.safetensors")
    convert(base, tmp_path / "out", base=base, dtype="bfloat16")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == plain.keys()
    assert all(torch.equal(written[name], plain[name].bfloat16()) for name in plain)


@pytest.mark.parametrize("dtype", ["base", "keep"])
def test_a_quantised_model_beside_its_like_is_kept_whole(dtype: str, tmp_path: Path) -> None:
    packed, _ = quantised(state_of(tiny_model("llama")))
    base = with_settings(published(tiny_model("llama"), tmp_path / "plain"), tmp_path / "base")
    save_file(packed, base / "model.safetensors")
    torch.save(packed, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out", base=base, dtype=dtype)  # type: ignore[arg-type]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == packed.keys()
    raw = torch.uint8
    assert all(torch.equal(written[n].view(raw), t.contiguous().view(raw)) for n, t in packed.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == SETTINGS


def test_nothing_is_kept_quantised_beside_a_plain_base(tmp_path: Path) -> None:
    base = published(tiny_model("llama"), tmp_path / "base")
    packed, _ = quantised(state_of(tiny_model("llama")))
    torch.save(packed, tmp_path / "model.pt")
    with pytest.raises(UnsupportedLayoutError, match=r"base's config\.json has no quantization_config"):
        convert(tmp_path / "model.pt", tmp_path / "out", base=base, dtype="keep")
    assert not (tmp_path / "out").exists()


def test_inspect_says_how_weights_are_quantised_and_what_they_take_without_it(tmp_path: Path) -> None:
    base = published(tiny_model("llama"), tmp_path / "base")
    packed, plain = quantised(state_of(tiny_model("llama")))
    torch.save(packed, tmp_path / "model.pt")
    told = inspect(tmp_path / "model.pt", base=base)
    assert told.quantised == ("FP8 with scales (as float8_e4m3fn), 14 of 16 matrices",)
    size = sum(tensor.nbytes for tensor in plain.values())
    assert size < told.output_bytes < size + 8192


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_merged_into_the_dequantised_base_that_it_was_trained_on(tmp_path: Path) -> None:
    model = tiny_model("llama")
    packed, plain = quantised(state_of(model))
    base = with_settings(published(model, tmp_path / "plain"), tmp_path / "base")
    save_file(packed, base / "model.safetensors")
    model.load_state_dict(plain)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["up_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    convert(tmp_path / "adapter", tmp_path / "out", base=base)
    truth = adapted.merge_and_unload().state_dict()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == truth.keys()
    # Four products, a scale and a sum are rounded, in whatever order: six halves of a unit of the largest.
    for name, merged in truth.items():
        assert (written[name] - merged).abs().max() <= 6 * 2**-24 * max(1.0, merged.abs().max().item()) * 4
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
