"""The small files of a model folder: config.json edited in place, everything else copied."""

from pathlib import Path

import pytest

from specimens import State, base_of, checkpoint_of, matched, published, state_of, tiny_model
from unshard.base import Base
from unshard.errors import BaseModelError
from unshard.match.model import Model
from unshard.writers.model_files import plan_model_files


def test_config_json_is_the_bases_own_but_for_what_the_tensors_prove_wrong(tmp_path: Path) -> None:
    base = published(tiny_model("llama"), tmp_path / "base")
    before = (base / "config.json").read_text()
    (base / "config.json").write_text(before.replace('"use_cache": true', '"use_cache": false'))
    checkpoint = checkpoint_of(state_of(tiny_model("llama")), tmp_path / "run")
    found = base_of(base, checkpoint)
    model = matched(checkpoint, found, "bfloat16")
    config = plan_model_files(checkpoint, found, model)[0]
    assert config.content == before.replace('"dtype": "float32"', '"dtype": "bfloat16"').encode()
    assert config.origin == "base, 2 keys edited"


def test_config_json_of_a_sound_checkpoint_is_the_same_bytes(tmp_path: Path) -> None:
    base = published(tiny_model("qwen2"), tmp_path / "base")
    odd = (base / "config.json").read_bytes().replace(b"1e-06", b"1.0E-6") + b"\n\n"
    (base / "config.json").write_bytes(odd)
    checkpoint = checkpoint_of(state_of(tiny_model("qwen2")), tmp_path / "run")
    found = base_of(base, checkpoint)
    config = plan_model_files(checkpoint, found, matched(checkpoint, found))[0]
    assert (config.content, config.origin) == (odd, "base, unchanged")


def test_everything_but_weights_is_copied(tmp_path: Path) -> None:
    base = published(tiny_model("llama"), tmp_path / "base")
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "LICENSE"):
        (base / name).write_text("text")
    checkpoint = checkpoint_of(state_of(tiny_model("llama")), tmp_path / "run")
    found = base_of(base, checkpoint)
    files = plan_model_files(checkpoint, found, matched(checkpoint, found))
    assert [(file.name, file.origin) for file in files] == [
        ("config.json", "base, unchanged"),
        ("LICENSE", "base"),
        ("chat_template.jinja", "base"),
        ("generation_config.json", "base"),
        ("tokenizer.json", "base"),
    ]
    assert files[1].copy_of == base / "LICENSE"


def test_without_a_base_what_lies_beside_the_tensors_is_all_there_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("tokenizer.json", "optimizer.pt", "config.json"):
        (run / name).write_text("{}")
    (run / "vocab.json").symlink_to(tmp_path / "elsewhere")
    beside = {path.name: path for path in sorted(run.iterdir())}
    checkpoint = checkpoint_of(state_of(tiny_model("llama")), run, side_files=beside)
    files = plan_model_files(checkpoint, None, matched(checkpoint, None))
    assert [(file.name, file.origin) for file in files] == [("tokenizer.json", "beside the checkpoint")]


def test_a_tokenizer_from_elsewhere_says_from_where(tmp_path: Path) -> None:
    base = published(tiny_model("llama"), tmp_path / "base")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    own = {"tokenizer.json": tmp_path / "run" / "tokenizer.json"}
    checkpoint = checkpoint_of(state_of(tiny_model("llama")), tmp_path / "run", side_files=own)
    found = base_of(base, checkpoint)
    files = {file.name: file for file in plan_model_files(checkpoint, found, matched(checkpoint, found))}
    assert files["tokenizer.json"].origin == "beside the checkpoint or named by it: run"


def test_an_edit_that_does_not_fit_the_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of({}, tmp_path / "run")
    base = Base(tmp_path, "base", "--base", b'{"a": 1}', {"a": 1}, None, None)
    model = Model({}, {}, (), {"text_config.vocab_size": 3}, ())
    with pytest.raises(BaseModelError, match="`text_config` is no object to edit in"):
        plan_model_files(checkpoint, base, model)


def test_a_configuration_with_edits_loads_in_transformers(tmp_path: Path) -> None:
    import transformers

    state: State = state_of(tiny_model("gemma3"))
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    base = published(tiny_model("gemma3"), tmp_path / "base")
    checkpoint = checkpoint_of(state, tmp_path / "run")
    found = base_of(base, checkpoint)
    config = plan_model_files(checkpoint, found, matched(checkpoint, found))[0]
    assert config.content is not None
    (tmp_path / "config.json").write_bytes(config.content)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (loaded.tie_word_embeddings, loaded.text_config.tie_word_embeddings) == (False, False)
