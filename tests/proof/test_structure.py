"""Structure: a sound folder has no findings, and every broken one is told with its numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specimens import MAKERS, State
from unshard.base import ExpectedTensor
from unshard.errors import InputError
from unshard.findings import Finding
from unshard.proof.structure import verify_structure
from unshard.readers.weights.safetensors_file import describe_safetensors_file
from unshard.storage.files import InputFile

Folder = Callable[[str], Path]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def expected_of(folder: Path) -> dict[str, ExpectedTensor]:
    tensors = describe_safetensors_file(InputFile.describe(folder / "model.safetensors"))
    return {name: ExpectedTensor(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def rewritten(folder: Path, change: Callable[[State], State]) -> Path:
    """Change the weights of a folder."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


def reconfigured(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def split(folder: Path, *, total: int = 2) -> Path:
    """Spread the weights of a folder over files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = list(weights), [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
    for i, file in enumerate(files):
        save_file({name: weights[name] for name in names[i::total]}, folder / file)
    index = {"weight_map": {name: files[k % total] for k, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def told(findings: tuple[Finding, ...]) -> list[tuple[str, str, str]]:
    return [(found.code, found.subject, found.saw) for found in findings]


@pytest.mark.parametrize("family", MAKERS)
def test_a_sound_folder_has_no_findings(family: str, base_folder: Folder) -> None:
    assert verify_structure(base_folder(family), expected=expected_of(base_folder(family))) == ()
    assert verify_structure(base_folder(family)) == ()


def test_a_sound_folder_of_several_files_has_no_findings(base_folder: Folder, tmp_path: Path) -> None:
    folder = split(copied(base_folder("llama"), tmp_path / "m"))
    assert verify_structure(folder, expected=expected_of(base_folder("llama"))) == ()


def test_missing_and_unexpected_tensors_are_told(base_folder: Folder, tmp_path: Path) -> None:
    expected = expected_of(base_folder("llama"))
    folder = copied(base_folder("llama"), tmp_path / "m")
    rewritten(folder, lambda w: {("x." + n if "norm" in n else n): t for n, t in w.items()})
    missing, unexpected = verify_structure(folder, expected=expected)
    first = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "layers.1.input_layernorm")
    shown = [f"model.{name}.weight" for name in first]
    assert missing.saw == "5 of 21 tensors missing"
    assert missing.subject == ", ".join(f"`{name}`" for name in shown) + " and 2 more"
    assert unexpected.saw == "5 tensors that the model does not have"
    assert unexpected.subject == ", ".join(f"`x.{name}`" for name in shown) + " and 2 more"


def test_other_shapes_and_dtypes_are_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = copied(base_folder("llama"), tmp_path / "m")
    norm = "model.norm.weight"
    rewritten(folder, lambda w: w | {norm: torch.ones(33, dtype=torch.float16)})
    findings = verify_structure(folder, expected=expected_of(base_folder("llama")))
    assert told(findings) == [("U704", norm, "shape (33,)"), ("U704", norm, "dtype float16")]


def test_shapes_that_nobody_knows_are_not_compared(base_folder: Folder) -> None:
    unknown = dict.fromkeys(expected_of(base_folder("llama")), ExpectedTensor(None, None))
    assert verify_structure(base_folder("llama"), expected=unknown) == ()


def test_a_missing_file_of_the_index_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = split(copied(base_folder("llama"), tmp_path / "m"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    code, subject, saw = told(verify_structure(folder))[0]
    assert (code, subject) == ("U611", "model.safetensors.index.json")
    assert saw.startswith("`model-00002-of-00002.safetensors` missing, with 10 tensors: ")


def test_a_tensor_in_another_file_than_the_index_says_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = split(copied(base_folder("llama"), tmp_path / "m"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    files.remove(index["weight_map"][EMBED])
    index["weight_map"][EMBED] = files[0]
    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [saw for _, _, saw in told(verify_structure(folder))] == [
        f"1 tensor in another file than it says: `{EMBED}`",
        "1 tensor not listed: `model.norm.weight`",
    ]


def test_several_files_without_an_index_are_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = split(copied(base_folder("llama"), tmp_path / "m"))
    (folder / "model.safetensors.index.json").unlink()
    assert [(f.code, f.saw[:18]) for f in verify_structure(folder)] == [("U614", "2 files of weights")]


def test_a_tensor_in_two_files_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = split(copied(base_folder("llama"), tmp_path / "m"))
    save_file({EMBED: torch.ones(96, 32)}, folder / "stray.safetensors")
    assert any("and in `stray.safetensors`" in saw for _, _, saw in told(verify_structure(folder)))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_told(text: str, base_folder: Folder, tmp_path: Path) -> None:
    folder = copied(base_folder("llama"), tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(text)
    assert [(f.code, f.expected) for f in verify_structure(folder)] == [("U611", "a file for each tensor")]


def test_a_damaged_file_is_told_and_its_tensors_are_missing(base_folder: Folder, tmp_path: Path) -> None:
    folder = split(copied(base_folder("llama"), tmp_path / "m"))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"short")
    findings = verify_structure(folder, expected=expected_of(base_folder("llama")))
    assert findings[0].subject == "`model-00002-of-00002.safetensors`"
    assert any("of 21 tensors missing" in found.saw for found in findings)


def test_a_vocabulary_of_other_rows_than_declared_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = reconfigured(copied(base_folder("llama"), tmp_path / "m"), vocab_size=100)
    (found,) = verify_structure(folder)
    assert (found.subject, found.saw) == ("vocab_size", f"100, and `{HEAD}` has 96 rows")
    assert found.remedy == "Set vocab_size to 96 in config.json: unshard mend FOLDER --in-place"


def test_another_dtype_than_declared_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = reconfigured(copied(base_folder("llama"), tmp_path / "m"), dtype="bfloat16")
    assert told(verify_structure(folder)) == [
        ("U430", "config.json", "bfloat16, and most of the tensors are float32")
    ]


def test_a_tie_flag_over_a_head_that_differs_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = reconfigured(copied(base_folder("llama"), tmp_path / "m"), tie_word_embeddings=True)
    (found,) = verify_structure(folder)
    assert (found.code, found.subject) == ("U303", f"`{HEAD}`")
    assert found.saw.startswith(
        f"tie_word_embeddings is true, and it is not `{EMBED}`: they differ from element 0"
    )
    assert found.remedy == "Set tie_word_embeddings to false in config.json: unshard mend FOLDER --in-place"


def test_a_tie_flag_over_an_equal_head_is_base_folder(base_folder: Folder, tmp_path: Path) -> None:
    folder = reconfigured(copied(base_folder("llama"), tmp_path / "m"), tie_word_embeddings=True)
    rewritten(folder, lambda weights: weights | {HEAD: weights[EMBED].clone()})
    assert verify_structure(folder, expected=expected_of(base_folder("llama"))) == ()


def test_an_untied_model_without_a_head_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = reconfigured(copied(base_folder("llama-tied"), tmp_path / "m"), tie_word_embeddings=False)
    (found,) = verify_structure(folder)
    assert (found.code, found.subject) == ("U304", f"`{HEAD}`")


def test_a_tied_head_may_be_left_out_of_what_the_base_has(base_folder: Folder, tmp_path: Path) -> None:
    expected = expected_of(base_folder("llama-tied"))
    with_head = expected | {HEAD: expected[EMBED]}
    assert verify_structure(base_folder("llama-tied"), expected=with_head) == ()
    untied = reconfigured(copied(base_folder("llama-tied"), tmp_path / "m"), tie_word_embeddings=False)
    assert len(verify_structure(untied, expected=with_head)) == 2


def test_a_configuration_that_is_none_is_told(base_folder: Folder, tmp_path: Path) -> None:
    folder = copied(base_folder("llama"), tmp_path / "m")
    (folder / "config.json").write_text("{")
    (found,) = verify_structure(folder)
    assert (found.subject, found.expected) == ("config.json", "a JSON object")


def test_weights_of_torch_are_verified_as_well(base_folder: Folder, tmp_path: Path) -> None:
    folder = copied(base_folder("llama"), tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert verify_structure(folder, expected=expected_of(base_folder("llama"))) == ()


def test_a_folder_without_weights_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        verify_structure(tmp_path)
