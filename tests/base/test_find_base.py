"""The base: found where the user, the folders or the training parameters say, and nowhere else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specimens import checkpoint_of, codes, one, published, tiny_model
from unshard.base import Base, find_base
from unshard.checkpoint import BaseHint, Checkpoint
from unshard.errors import BaseModelError
from unshard.findings import Finding

STATE = {"model.norm.weight": torch.ones(4)}
HINT = "model_name in train_params.yaml"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no other."""
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Checkpoint]:
    return lambda **more: checkpoint_of(STATE, tmp_path / "run", **more)


def folder_with(path: Path, **files: str) -> Path:
    """Write a folder with a configuration and other files; `__` in a name is a dot."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {"config__json": '{"model_type": "llama"}', **files}.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def snapshot(cache: Path, name: str, revision: str = "a" * 40, *, main: bool = True, **files: str) -> Path:
    """Write a model into a cache as the hub's library does: files are links into blobs."""
    repository = cache / ("models--" + name.replace("/", "--"))
    folder = repository / "snapshots" / revision
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for number, (file, text) in enumerate({"config__json": '{"model_type": "llama"}', **files}.items()):
        blob = repository / "blobs" / f"{revision[:4]}{number}"
        blob.write_text(text)
        (folder / file.replace("__", ".")).symlink_to(Path("../../blobs") / blob.name)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return folder


def found(checkpoint: Checkpoint, reference: Path | str | None = None) -> tuple[Base, tuple[Finding, ...]]:
    base, findings = find_base(
        checkpoint,
        reference=None if reference is None else str(reference),
        download=False,
        model_class=False,
    )
    assert base is not None
    return base, findings


def refused(checkpoint: Checkpoint, reference: Path | str) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        find_base(checkpoint, reference=str(reference), download=False)
    return caught.value


def test_a_named_folder_is_the_base(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "base", config__json='{"a": 1.0e+3}\n', tokenizer__json="{}")
    base, findings = found(run(), folder)
    assert (base.path, base.origin, base.found_implicitly) == (folder, "--base", False)
    assert (base.config_bytes, base.config) == (b'{"a": 1.0e+3}\n', {"a": 1000.0})
    assert list(base.side_files) == ["tokenizer.json"]
    assert findings == ()


def test_a_name_is_found_in_the_cache_of_the_hub(run: Callable[..., Checkpoint], cache: Path) -> None:
    folder = snapshot(cache, "org/model", tokenizer__json="{}")
    base, _ = found(run(), "org/model")
    assert (base.path, base.reference) == (folder, "org/model")
    assert list(base.side_files) == ["tokenizer.json"]


@pytest.mark.parametrize(
    "variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"]
)
def test_the_cache_is_where_the_hubs_own_tools_have_it(
    variable: str, run: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "x"))
    inside = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub", "HOME": ".cache/huggingface/hub"}
    folder = snapshot(tmp_path / "x" / inside.get(variable, ""), "gpt2")
    assert found(run(), "gpt2")[0].path == folder


def test_main_decides_between_revisions(run: Callable[..., Checkpoint], cache: Path) -> None:
    snapshot(cache, "org/model", "b" * 40, main=False)
    folder = snapshot(cache, "org/model", "a" * 40)
    snapshot(cache, "org/model", "c" * 40, main=False)
    assert found(run(), "org/model")[0].path == folder


def test_a_single_revision_needs_no_main(run: Callable[..., Checkpoint], cache: Path) -> None:
    folder = snapshot(cache, "org/model", main=False)
    assert found(run(), "org/model")[0].path == folder
    assert found(run(), cache / "models--org--model")[0].path == folder


def test_several_revisions_without_main_are_refused(run: Callable[..., Checkpoint], cache: Path) -> None:
    snapshot(cache, "org/model", "a" * 40, main=False)
    last = snapshot(cache, "org/model", "b" * 40, main=False)
    error = refused(run(), "org/model")
    assert error.problem == "holds 2 revisions, and none is marked as main"
    assert error.hint == f"Name one of them, for example --base {last}"


def test_a_name_that_is_nowhere_says_where_was_looked(run: Callable[..., Checkpoint], cache: Path) -> None:
    error = refused(run(), "org/absent")
    assert error.message == (
        f"`org/absent` is not on this machine: saw no such folder in {Path.cwd()}, and no copy in {cache}"
    )
    assert error.hint == "Download it (hf download org/absent), or give the folder of a copy with --base."


def test_without_a_network_a_download_says_what_was_tried(
    run: Callable[..., Checkpoint], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError) as caught:
        find_base(run(), reference="org/absent", download=True)
    assert caught.value.problem == "is not on this machine and cannot be downloaded"
    assert f"no copy in {cache}" in str(caught.value.saw)
    assert "give the folder of a copy with --base" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("adapter_config.json", '{"base_model_name_or_path": "org/big"}', "holds an adapter, not a model"),
        ("model.gguf", "GGUF", "holds a model in GGUF only"),
        ("params.json", "{}", "is a model in Meta's own format"),
        ("model_index.json", "{}", "is a pipeline of several models"),
        ("notes.txt", "", "has no config.json"),
    ],
)
def test_a_folder_that_is_no_base_says_what_it_is(
    file: str, text: str, problem: str, run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / file).write_text(text)
    assert refused(run(), tmp_path / "other").problem == problem


def test_an_adapter_names_the_model_it_was_trained_on(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/big"}')
    assert refused(run(), tmp_path / "adapter").hint == (
        "Give the model the adapter was trained on: --base org/big."
    )


def test_a_folder_above_the_base_says_which_one_was_meant(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder_with(tmp_path / "models" / "llama")
    assert refused(run(), tmp_path / "models").hint == f"Did you mean --base {tmp_path / 'models' / 'llama'}"


def test_a_file_is_no_base(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "base")
    error = refused(run(), folder / "config.json")
    assert (error.problem, error.hint) == ("is a file", f"Try --base {folder}")


def test_a_reference_that_can_be_no_name_is_refused(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    for reference in (str(tmp_path / "absent"), "../absent", "a/b/c"):
        assert refused(run(), reference).problem == "is no folder, and no name a model on the hub can have"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "is not a configuration"),
        ('{"a": 1, "a": 2}', "is not valid JSON"),
        ('{"a": ' + "[" * 100_000, "cannot be read"),
        ("\ufeff{}", "is not valid JSON"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    text: str, problem: str, run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base", config__json=text)
    assert refused(run(), folder).problem == problem


def test_a_configuration_in_another_encoding_is_refused(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base")
    (folder / "config.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    assert refused(run(), folder).problem == "cannot be read"


def test_what_training_left_beside_the_tensors_is_found_first(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = run(hints=(BaseHint("org/other", HINT),))
    folder_with(tmp_path / "run")
    base, findings = found(checkpoint)
    assert (base.path, base.origin, base.found_implicitly) == (
        tmp_path / "run",
        "config.json beside the tensors",
        True,
    )
    assert codes(findings) == ["U603"]


def test_folders_up_to_the_run_are_searched_and_none_above(tmp_path: Path) -> None:
    inner = checkpoint_of(STATE, tmp_path / "runs" / "mine" / "checkpoint-5")
    folder_with(tmp_path / "runs")
    assert find_base(inner, reference=None, download=False)[0] is None
    whole = type(inner)(inner.path, tmp_path / "runs" / "mine", inner.layout, inner.tensors)
    assert find_base(whole, reference=None, download=False)[0] is None
    folder_with(tmp_path / "runs" / "mine")
    assert found(whole)[0].origin == "config.json above the checkpoint"


def test_a_hint_is_followed_and_told(run: Callable[..., Checkpoint], cache: Path) -> None:
    folder = snapshot(cache, "org/model")
    base, findings = found(run(hints=(BaseHint("org/model", HINT),)))
    assert (base.path, base.origin) == (folder, HINT)
    assert one(findings, "U603").saw == f"found by {HINT}"


def test_a_hint_that_leads_nowhere_is_told_and_the_next_one_tried(
    run: Callable[..., Checkpoint], cache: Path, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base")
    hints = (BaseHint("org/absent", HINT), BaseHint(str(folder), "another file"))
    base, findings = found(run(hints=hints))
    assert base.path == folder
    assert codes(findings) == ["U606", "U603"]
    assert findings[0].saw.startswith(f"named by {HINT}: `org/absent` is not on this machine")


def test_without_any_base_every_hint_is_told(run: Callable[..., Checkpoint], cache: Path) -> None:
    base, findings = find_base(run(hints=(BaseHint("/gone/8B", HINT),)), reference=None, download=False)
    assert base is None
    assert codes(findings) == ["U606"]


@pytest.mark.parametrize("reference", ["~nobody-of-that-name/8B", "x" * 5000, "a\0b", "", "..", "/"])
def test_an_odd_hint_leads_nowhere_and_breaks_nothing(
    reference: str, run: Callable[..., Checkpoint], cache: Path, tmp_path: Path
) -> None:
    checkpoint = run(
        hints=(BaseHint(reference, HINT),), training={"tokenizer_name": reference, "model_name": reference}
    )
    base, findings = find_base(checkpoint, reference=None, download=False)
    assert base is None
    assert codes(findings) == ["U606"]
    folder = folder_with(tmp_path / "base")
    told = found(checkpoint, folder)[1]
    assert set(codes(told)) <= {"U604", "U606"}
    assert max(len(one_told.saw) for one_told in told) < 600


def test_a_configuration_of_absurd_size_is_refused(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "base")
    with (folder / "config.json").open("r+b") as file:
        file.truncate(65 << 20)
    assert refused(run(), folder).problem == "is too large for a configuration"


def test_what_the_user_names_wins_over_the_training_parameters(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base")
    folder_with(tmp_path / "run")
    _, findings = found(run(hints=(BaseHint("org/other", HINT),)), folder)
    told = one(findings, "U604")
    assert (told.subject, told.saw, told.expected) == (
        "org/other",
        f"named by {HINT}",
        f"{folder}, which --base names",
    )


def test_a_base_of_another_family_than_the_one_that_training_names_is_a_warning(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    trained = folder_with(tmp_path / "trained", config__json='{"model_type": "llama"}')
    other = folder_with(tmp_path / "other", config__json='{"model_type": "mistral"}')
    checkpoint = run(hints=(BaseHint(str(trained), HINT),))
    told = one(found(checkpoint, other)[1], "U629")
    assert (told.severity, told.subject) == ("warning", str(trained))
    assert told.saw == f"named by {HINT}, model_type llama"
    assert told.expected == f"model_type mistral, that of {other}, which --base names"
    assert told.remedy == f"Name the model that training started from: --base {trained}"
    again = folder_with(tmp_path / "again", config__json='{"model_type": "llama"}')
    part = {"config__json": '{"model_type": "llava", "text_config": {"model_type": "llama"}}'}
    for place in (again, folder_with(tmp_path / "part", **part)):
        assert "U629" not in codes(found(checkpoint, place)[1])


def test_a_hint_that_names_the_same_folder_is_nothing_to_tell(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base")
    assert found(run(hints=(BaseHint(str(folder), HINT),)), folder)[1] == ()


def test_names_shapes_and_dtypes_come_from_the_headers_of_the_base(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base")
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    base, _ = found(run(), folder)
    assert base.expected is not None
    assert {n: (t.shape, str(t.dtype)) for n, t in base.expected.items()} == {
        "a": ((2, 3), "float32"),
        "b": ((4,), "bfloat16"),
    }
    assert base.expected_from == "safetensors headers"


def indexed(folder: Path, present: tuple[str, ...]) -> Path:
    """Write a base of two files and their index, of which only some are there."""
    parts = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for file, name in parts.items():
        if file in present:
            save_file({name: torch.ones(2)}, folder / file)
    index = {"weight_map": {name: file for file, name in parts.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_files_of_an_index_are_read_together(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    base, _ = found(run(), indexed(folder_with(tmp_path / "base"), files))
    assert base.expected is not None
    assert [tensor.shape for tensor in base.expected.values()] == [(2,), (2,)]


def test_a_partial_download_leaves_names_without_shapes(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = indexed(folder_with(tmp_path / "base"), ("model-00002-of-00002.safetensors",))
    base, _ = found(run(), folder)
    assert base.expected is not None
    assert {name: tensor.shape for name, tensor in base.expected.items()} == {"a": None, "b": (2,)}
    assert base.expected_from == "index, 1 of 2 files missing"


def test_an_index_that_leads_out_of_its_folder_is_refused(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(run(), folder).problem == "names files outside its folder"


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(text: str, run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "base")
    (folder / "model.safetensors.index.json").write_text(text)
    assert refused(run(), folder).problem == "is not an index of weights"


def test_damaged_weights_of_a_base_are_refused(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "base")
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    error = refused(run(), folder)
    assert error.problem == "is a file of the base's weights, and is damaged"


def test_weights_of_torch_are_read_as_data(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "base")
    torch.save({"a": torch.ones(2, 3)}, folder / "pytorch_model.bin")
    base, _ = found(run(), folder)
    assert base.expected is not None
    assert base.expected["a"].shape == (2, 3)
    assert base.expected_from == "pytorch_model.bin headers"


def test_a_model_folder_proves_nothing_about_itself(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model")
    save_file({"_orig_mod.a": torch.ones(2)}, folder / "model.safetensors")
    from unshard.readers import open_checkpoint

    base, _ = found(open_checkpoint(folder, step=None, select=None))
    assert (base.path, base.expected) == (folder, None)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mixtral", "llava", "encoder", "t5"])
def test_the_model_class_tells_what_published_weights_tell(
    family: str, run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    whole = published(tiny_model(family), tmp_path / "whole")
    bare = folder_with(tmp_path / "bare", config__json=(whole / "config.json").read_text())
    headers, _ = found(run(), whole)
    asked, _ = find_base(run(), reference=str(bare), download=False)
    assert asked is not None
    assert asked.expected is not None
    assert headers.expected is not None
    assert {n: (t.shape, t.dtype) for n, t in asked.expected.items()} == {
        n: (t.shape, t.dtype) for n, t in headers.expected.items()
    }
    assert str(asked.expected_from).startswith("the class ")


def test_the_model_class_tells_of_ties(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    whole = published(tiny_model("llama-tied"), tmp_path / "whole")
    (whole / "model.safetensors").unlink()
    base, _ = find_base(run(), reference=str(whole), download=False)
    assert base is not None
    assert base.ties == {"lm_head.weight": "model.embed_tokens.weight"}


def test_the_class_is_asked_where_files_of_the_index_are_missing(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    whole = published(tiny_model("llama"), tmp_path / "whole")
    (whole / "model.safetensors").unlink()
    indexed(whole, ())
    base, _ = find_base(run(), reference=str(whole), download=False)
    assert base is not None
    assert str(base.expected_from).startswith("the class LlamaForCausalLM of transformers ")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": ["AutoModel"], "model_type": "llama"},
        {"architectures": ["LlamaForCausalLM"], "model_type": "unheard of"},
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 63},
        {"architectures": ["NoSuchClass"], "model_type": "llama"},
        {"architectures": ["pipeline"], "model_type": "llama"},
    ],
)
def test_a_class_that_cannot_be_asked_tells_nothing(
    config: dict[str, object], run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base", config__json=json.dumps(config))
    base, _ = find_base(run(), reference=str(folder), download=False)
    assert base is not None
    assert base.expected is None


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"hidden_size": -3}, "`hidden_size` is -3, not a positive number"),
        ({"vocab_size": "lots"}, "`vocab_size` is 'lots', not a positive number"),
        ({"num_attention_heads": True}, "`num_attention_heads` is True, not a positive number"),
        ({"architectures": [3]}, "`architectures` is [3], not a list of names"),
        ({"architectures": "Llama"}, "`architectures` is 'Llama', not a list of names"),
        ({"model_type": ["x"]}, "`model_type` is ['x'], not a name"),
        ({"text_config": {"vocab_size": 0}}, "`text_config.vocab_size` is 0, not a positive number"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(
    config: dict[str, object], wrong: str, run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "base", config__json=json.dumps(config))
    with pytest.raises(BaseModelError) as refused:
        find_base(run(), reference=str(folder), download=False)
    assert wrong in str(refused.value)


def test_code_that_comes_with_a_model_is_not_run(run: Callable[..., Checkpoint], tmp_path: Path) -> None:
    config = {
        "architectures": ["OwnForCausalLM"],
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    marker = tmp_path / "it ran"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    folder = folder_with(tmp_path / "base", config__json=json.dumps(config), own__py=code)
    base, findings = find_base(run(), reference=str(folder), download=False)
    assert base is not None
    assert not marker.exists()
    assert one(findings, "U605").saw == "needs own.py"
    assert list(base.side_files) == ["own.py"]


def test_code_in_a_folder_that_nobody_named_is_not_copied(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    config = json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    checkpoint = run()
    folder_with(tmp_path / "run", config__json=config, own__py="")
    base, findings = found(checkpoint)
    assert dict(base.side_files) == {}
    assert codes(findings) == ["U603", "U607"]


def test_code_that_the_configuration_does_not_need_is_left(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    base, findings = found(run(), folder_with(tmp_path / "base", zero_to_fp32__py=""))
    assert (dict(base.side_files), findings) == ({}, ())


def test_a_config_of_the_training_itself_is_passed_over_and_told(
    run: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = run()
    folder_with(tmp_path / "run", config__json='{"train_module": {}, "dataset": {}}')
    base, findings = find_base(checkpoint, reference=None, download=False)
    assert base is None
    assert codes(findings) == ["U606"]


def test_a_configuration_inside_the_checkpoint_is_the_base_where_none_lies_beside_it(
    run: Callable[..., Checkpoint],
) -> None:
    inside = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}
    checkpoint = replace(run(), embedded=inside)
    base, findings = found(checkpoint)
    assert base.config_bytes == inside["config.json"]
    assert dict(base.embedded) == {"tokenizer.json": b"{}"}
    assert "inside the checkpoint" in findings[0].saw
