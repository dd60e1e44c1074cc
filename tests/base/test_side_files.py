"""Side files: what belongs to a model is taken, what is of training or of an engine is left."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from specimens import checkpoint_of, codes, one
from unshard.base import Base, find_base
from unshard.base.side_files import is_side_file, is_tokenizer_file, side_files_of, with_own_tokenizer
from unshard.checkpoint import BaseHint
from unshard.findings import Finding

TAKEN = """
    generation_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json
    added_tokens.json vocab.json merges.txt vocab.txt spiece.model sentencepiece.bpe.model tekken.json
    preprocessor_config.json processor_config.json video_preprocessor_config.json chat_template.jinja
    chat_template.json additional_chat_templates/rag.jinja LICENSE LICENSE.txt NOTICE USE_POLICY.md
    source.spm qwen.tiktoken normalizer.json tokenizer.model.v3
"""
LEFT = """
    config.json model.safetensors model.safetensors.index.json pytorch_model.bin pytorch_model.bin.index.json
    model.gguf tf_model.h5 flax_model.msgpack model.onnx consolidated.safetensors consolidated.00.pth
    consolidated.safetensors.index.json params.json README.md .gitattributes .tokenizer.json
    adapter_model.safetensors trainer_state.json training_args.bin all_results.json optimizer.pt scheduler.pt
    rng_state_0.pth modeling_own.py zero_to_fp32.py unshard.manifest.json events.out.tfevents train.log
    picture.png metrics_data_0-2024.json train_params.yaml adapter_config.json
"""


@pytest.mark.parametrize("name", TAKEN.split())
def test_files_of_a_model_are_taken(name: str) -> None:
    assert is_side_file(name)


@pytest.mark.parametrize("name", LEFT.split())
def test_files_of_anything_else_are_left(name: str) -> None:
    assert not is_side_file(name)


def test_a_folder_gives_its_files_sorted_with_additional_templates(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name in (
        "tokenizer.json",
        "additional_chat_templates/rag.jinja",
        "model.safetensors",
        "chat_template.jinja",
    ):
        (tmp_path / name).touch()
    (tmp_path / "vocab.json").mkdir()
    assert list(side_files_of(tmp_path)) == [
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "tokenizer.json",
    ]


def test_templates_are_no_part_of_a_tokenizer() -> None:
    assert not is_tokenizer_file("chat_template.jinja")
    assert is_tokenizer_file("tokenizer.json")
    assert not is_tokenizer_file("generation_config.json")


def paths(folder: Path, *names: str, **texts: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(texts.get(name.partition(".")[0], ""))
    return {name: folder / name for name in names}


def test_the_checkpoints_own_tokenizer_is_taken_whole(tmp_path: Path) -> None:
    base = paths(
        tmp_path / "b", "tokenizer.json", "vocab.json", "generation_config.json", "chat_template.jinja"
    )
    own = paths(tmp_path / "o", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    merged = with_own_tokenizer(base, own)
    assert {name: path.parent.name for name, path in merged.items()} == {
        "chat_template.jinja": "b",
        "generation_config.json": "b",
        "tokenizer.json": "o",
        "tokenizer_config.json": "o",
    }


def test_a_template_comes_with_the_tokenizer_that_has_one(tmp_path: Path) -> None:
    base = paths(tmp_path / "b", "tokenizer.json", "chat_template.jinja")
    inside = paths(
        tmp_path / "o", "tokenizer.json", "tokenizer_config.json", tokenizer_config='{"chat_template": ""}'
    )
    assert "chat_template.jinja" not in with_own_tokenizer(base, inside)
    beside = paths(tmp_path / "p", "tokenizer.json", "chat_template.jinja")
    assert with_own_tokenizer(base, beside)["chat_template.jinja"].parent.name == "p"


def test_settings_alone_make_no_tokenizer(tmp_path: Path) -> None:
    base = paths(tmp_path / "b", "tokenizer.json", "tokenizer_config.json")
    assert with_own_tokenizer(base, paths(tmp_path / "o", "tokenizer_config.json")) == base


def found(
    tmp_path: Path, training: Mapping[str, str] | None = None, **more: object
) -> tuple[Base, tuple[Finding, ...]]:
    checkpoint = checkpoint_of({"a": torch.ones(1)}, tmp_path / "run", training=training, **more)  # type: ignore[arg-type]
    reference = str(tmp_path / "base") if (tmp_path / "base").exists() else None
    base, findings = find_base(checkpoint, reference=reference, download=False, model_class=False)
    assert base is not None
    return base, findings


def test_a_tokenizer_beside_the_tensors_goes_before_the_named_bases(tmp_path: Path) -> None:
    paths(tmp_path / "base", "tokenizer.json")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    base, findings = found(tmp_path, side_files=paths(tmp_path / "run", "tokenizer.json"))
    assert base.side_files["tokenizer.json"].parent.name == "run"
    assert codes(findings) == ["U609"]


def test_the_tokenizer_that_training_names_is_taken_where_the_base_has_none(tmp_path: Path) -> None:
    paths(tmp_path / "base", "generation_config.json")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    paths(tmp_path / "words", "tokenizer.json", "generation_config.json")
    base, findings = found(tmp_path, {"tokenizer_name": str(tmp_path / "words")})
    assert {name: path.parent.name for name, path in base.side_files.items()} == {
        "generation_config.json": "base",
        "tokenizer.json": "words",
    }
    assert one(findings, "U603").saw.endswith("only its tokenizer is used")


def test_a_named_base_with_a_tokenizer_wins_over_the_training_parameters(tmp_path: Path) -> None:
    paths(tmp_path / "base", "tokenizer.json")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    paths(tmp_path / "words", "tokenizer.json")
    base, findings = found(tmp_path, {"tokenizer_name": str(tmp_path / "words")})
    assert base.side_files["tokenizer.json"].parent.name == "base"
    assert findings == ()


def test_training_took_the_tokenizer_it_names_whatever_lies_beside_the_model(tmp_path: Path) -> None:
    paths(tmp_path / "model", "tokenizer_config.json", "tokenizer.json")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    paths(tmp_path / "words", "tokenizer.json")
    hints = (BaseHint(str(tmp_path / "model"), "model_name"),)
    base, _ = found(tmp_path, {"tokenizer_name": str(tmp_path / "words")}, hints=hints)
    assert base.side_files["tokenizer.json"].parent.name == "words"


def test_a_tokenizer_that_training_saved_goes_before_the_one_it_names(tmp_path: Path) -> None:
    own = paths(tmp_path / "run", "tokenizer.json")
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    paths(tmp_path / "words", "tokenizer.json")
    base, findings = found(tmp_path, {"tokenizer_name": str(tmp_path / "words")}, side_files=own)
    assert base.side_files["tokenizer.json"].parent.name == "run"
    assert codes(findings) == ["U603"]
    assert one(findings, "U603").subject == str(tmp_path / "run")


def test_a_tokenizer_name_that_leads_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    paths(tmp_path / "base", "generation_config.json")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    _, findings = found(tmp_path, {"tokenizer_name": "org/absent", "model_name": "None"})
    assert codes(findings) == ["U606"]


def test_links_out_of_a_folder_that_nobody_named_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    paths(tmp_path / "run", "vocab.json")
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "run" / "tokenizer.json").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "merges.txt").symlink_to("vocab.json")
    base, findings = found(tmp_path)
    assert sorted(base.side_files) == ["merges.txt", "vocab.json"]
    assert one(findings, "U608").subject == "tokenizer.json"


def test_links_in_a_folder_that_the_user_named_are_the_users(tmp_path: Path) -> None:
    paths(tmp_path / "elsewhere", "tokenizer.json")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "base" / "tokenizer.json").symlink_to(tmp_path / "elsewhere" / "tokenizer.json")
    assert list(found(tmp_path)[0].side_files) == ["tokenizer.json"]
