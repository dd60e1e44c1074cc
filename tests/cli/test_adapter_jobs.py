"""An adapter is merged, kept by itself or both from the command line, and every element is proven."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import unshard as library
from command_line import Unshard
from peft_models import Scene, matched_in, write_scene
from tiny_models import logits_of
from unshard.errors import OptionError
from unshard.progress import Silence
from unshard.proof.merges import verify_merges
from unshard.readers import open_checkpoint

TOKENS = torch.tensor([[1, 5, 9, 77, 300, 12]])
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("jobs")
    return write_scene(
        folder,
        "llama",
        target_modules=["q_proj", "down_proj"],
        use_dora=True,
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )


def with_peft(base: Path, adapter: Path) -> Any:
    """Return a model with an adapter, as users of PEFT load it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        return peft.PeftModel.from_pretrained(model, adapter).eval()


def test_a_kept_adapter_is_the_one_that_peft_publishes(made: Scene, tmp_path: Path) -> None:
    done = library.convert(made.full, tmp_path / "out", base=made.base, adapter="keep")
    ours, theirs = (
        load_file(tmp_path / "out/adapter_model.safetensors"),
        load_file(made.adapter / "adapter_model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    published = (made.adapter / "adapter_config.json").read_bytes()
    assert (tmp_path / "out/adapter_config.json").read_bytes() == published
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "tokenizer.json" in names
    assert "config.json" not in names
    assert [(level.name, level.verdict) for level in done.proof] == [("bytes", "sound")]
    told = next(f for f in done.findings if f.code == "U258").saw
    assert told == (
        "DoRA of rank 4 on 4 modules, alpha 8 (adapter_config.json), scale 2, 1 parameter trained whole"
    )


@pytest.mark.parametrize("place", ["full", "adapter"])
def test_both_give_the_same_answers_as_the_adapter_in_peft(made: Scene, tmp_path: Path, place: str) -> None:
    library.convert(getattr(made, place), tmp_path / "out", base=made.base, adapter="both")
    wanted = logits_of(with_peft(made.base, made.adapter), TOKENS)
    assert torch.equal(logits_of(with_peft(made.base, tmp_path / "out/adapter"), TOKENS), wanted)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not hasattr(merged, "peft_config")  # transformers must not apply the adapter once more
    # Logits of these models are near 1, and some hundred sums of float32 lie before them.
    torch.testing.assert_close(logits_of(merged, TOKENS), wanted, rtol=0, atol=1e-4)


def test_a_configuration_is_made_where_the_run_left_none(tmp_path: Path) -> None:
    made = write_scene(tmp_path, "llama", target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.pt").write_bytes((made.full / "model.pt").read_bytes())
    library.convert(run, tmp_path / "out", base=made.base, adapter="keep", lora_alpha=8)
    config = json.loads((tmp_path / "out/adapter_config.json").read_bytes())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str(made.base)
    assert (config["task_type"], config["lora_alpha"], config["r"]) == ("CAUSAL_LM", 8, 4)
    assert config["rank_pattern"].keys() == {f"model.layers.{n}.self_attn.v_proj" for n in (0, 1)}
    ours, theirs = (logits_of(with_peft(made.base, p), TOKENS) for p in (tmp_path / "out", made.adapter))
    assert torch.equal(ours, theirs)


def test_a_named_alpha_stands_in_the_kept_configuration(made: Scene, tmp_path: Path) -> None:
    library.convert(made.adapter, tmp_path / "out", adapter="keep", lora_alpha=32)
    before = json.loads((made.adapter / "adapter_config.json").read_bytes())
    assert json.loads((tmp_path / "out/adapter_config.json").read_bytes()) == {**before, "lora_alpha": 32}


def test_what_was_written_is_verified_against_where_it_came_from(
    unshard: Unshard, made: Scene, tmp_path: Path
) -> None:
    for place, choice in (("full", "merge"), ("adapter", "both"), ("full", "keep")):
        source, out = getattr(made, place), tmp_path / f"{place}-{choice}"
        options = ("--base", made.base, "--adapter", choice, "--no-fsync")
        assert unshard("convert", source, out, *options).code == 0
        shown = unshard("verify", out, "--against", source, "--base", made.base, "--no-forward")
        assert shown.code == 0
        proof = "merged - base == scale * B @ A on 4 of 4 tensors"
        assert (proof in shown.words) == (choice != "keep")


def test_the_plan_tells_what_is_merged_and_with_which_scale(
    unshard: Unshard, made: Scene, tmp_path: Path
) -> None:
    shown = unshard("convert", made.full, tmp_path / "out", "--base", made.base, "--dry-run")
    assert "merged: scale 2 (alpha 8 / rank 4)" in shown.words
    kept = unshard("convert", made.full, tmp_path / "out", "--adapter", "keep", "--dry-run")
    assert "adapter_model.safetensors" in kept.words
    assert not (tmp_path / "out").exists()


def test_inspect_tells_what_the_adapter_is(unshard: Unshard, made: Scene) -> None:
    for place in (made.full, made.adapter):
        shown = unshard("inspect", place)
        assert "DoRA of rank 4 on 4 modules, alpha 8 (adapter_config.json), scale 2" in shown.words


def test_a_damaged_adapter_beside_the_model_is_found(made: Scene, tmp_path: Path) -> None:
    library.convert(made.full, tmp_path / "out", base=made.base, adapter="both")
    path = tmp_path / "out/adapter/adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    result = library.verify(tmp_path / "out", forward=False)
    assert not result.sound
    assert [found.code for found in result.findings] == ["U703"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_proof_tells_one_unit_in_the_last_place(made: Scene, tmp_path: Path, dtype: str) -> None:
    expected = matched_in(made.full, made.base, dtype=dtype).tensors
    library.convert(made.full, tmp_path / "out", base=made.base, dtype=dtype)  # type: ignore[arg-type]
    file = tmp_path / "out/model.safetensors"
    sound = verify_merges(expected, open_checkpoint(file).tensors, workers=2, progress=Silence())
    assert (sound.tensors, sound.findings) == (4, ())
    tensors = load_file(file)
    bits = tensors[Q].view(torch.int32 if dtype == "float32" else torch.int16)
    bits[3, 4] += 2
    save_file(tensors, file)
    (wrong,) = verify_merges(expected, open_checkpoint(file).tensors, workers=1, progress=Silence()).findings
    assert (wrong.code, wrong.subject) == ("U260", Q)
    assert "at [3, 4]; 1 elements differ" in wrong.saw


@pytest.mark.parametrize("kind", ["scale", "factor", "magnitude"])
def test_the_proof_does_not_believe_what_computed_the_merge(
    made: Scene, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unshard.tensors.merging import MergedSource

    wrong: dict[str, Callable[[Any], Any]] = {
        "scale": lambda source: replace(source, scale=source.scale * 1.001),
        "factor": lambda source: (
            replace(source, a=source.b, b=source.a, transposed=not source.transposed)
            if source.rows == source.columns
            else replace(source, scale=0.0)
        ),
        "magnitude": lambda source: replace(source, magnitude=None),
    }
    expected = matched_in(made.full, made.base).tensors
    tensors = load_file(made.base / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    source = wrong[kind](expected[name].pieces[0].source)  # type: ignore[attr-defined]
    assert isinstance(source, MergedSource)
    raw = bytearray(source.count * 4)
    source.read(0, source.count, memoryview(raw))
    tensors = {name: torch.frombuffer(raw, dtype=torch.float32).reshape(tensors[name].shape)}
    save_file(tensors, tmp_path / "model.safetensors")
    written = open_checkpoint(tmp_path / "model.safetensors").tensors
    (found,) = verify_merges(expected, written, workers=1, progress=Silence()).findings
    assert (found.code, found.subject) == ("U260", name)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"adapter": "merge it"}, "has a value that means nothing"),
        ({"adapter": "keep", "to": "pt"}, "writes a folder of safetensors"),
        ({"adapter": "keep", "prove": True}, "needs a model to load, and an adapter is none"),
    ],
)
def test_options_without_meaning_are_refused(
    made: Scene, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError) as caught:
        library.convert(made.full, tmp_path / "out", base=made.base, **options)
    assert caught.value.problem == problem
    assert not (tmp_path / "out").exists()


def test_there_must_be_an_adapter_to_keep(made: Scene, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        library.convert(made.base, tmp_path / "out", adapter="keep")
    assert caught.value.problem == "has nothing to keep: the checkpoint holds no adapter"


def test_an_adapter_can_be_asked_without_writing_anything(made: Scene) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = library.load(made.adapter, base=made.base, device="cpu")
    wanted = logits_of(with_peft(made.base, made.adapter), TOKENS)
    torch.testing.assert_close(logits_of(model, TOKENS), wanted, rtol=0, atol=1e-4)
