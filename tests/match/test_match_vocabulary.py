"""The vocabulary: resized consistently it is accepted and told, else it is another model's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specimens import State, base_of, checkpoint_of, codes, match_state, matched, one
from unshard.errors import MatchError
from unshard.match.tokens import count_tokens

Folder = Callable[[str], Path]
States = Callable[[str], State]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def resized(state: State, rows: int) -> State:
    """Return the state with its embedding and its head resized."""
    names = [name for name in state if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    return state | {
        n: torch.cat([state[n], torch.ones(128, state[n].shape[1])])[:rows].clone() for n in names
    }


def base_with_tokenizer(folder: Path, base: Path, tokens: int) -> Path:
    """Write a copy of a base with a tokenizer of so many tokens."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    vocabulary = {f"t{i}": i for i in range(tokens)}
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
    )
    return folder


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2"])
@pytest.mark.parametrize("rows", [97, 128])
def test_more_rows_are_written_and_config_json_says_so(
    family: str, rows: int, base_folder: Folder, state: States, tmp_path: Path
) -> None:
    model = match_state(resized(state(family), rows), base_folder(family), tmp_path)
    assert model.tensors[EMBED].shape == (rows, 32)
    assert model.config_edits == {"vocab_size": rows}
    told = one(model.findings, "U502")
    assert (told.saw, told.expected) == (f"{rows} rows", "96, as the base has")


def test_the_level_of_the_language_model_is_edited(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    model = match_state(resized(state("gemma3"), 100), base_folder("gemma3"), tmp_path)
    assert model.config_edits == {"text_config.vocab_size": 100}


def test_a_head_of_other_rows_than_the_embedding_is_refused(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    lopsided = state("llama")
    lopsided[EMBED] = resized(lopsided, 97)[EMBED]
    with pytest.raises(MatchError) as caught:
        match_state(lopsided, base_folder("llama"), tmp_path)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.kind, mismatch.name, mismatch.saw) == ("shape", EMBED, "(97, 32)")


def test_fewer_rows_are_refused_where_no_tokenizer_tells_that_they_suffice(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    with pytest.raises(MatchError):
        match_state(resized(state("llama"), 48), base_folder("llama"), tmp_path)


def test_fewer_rows_are_accepted_where_the_tokenizer_needs_no_more(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = base_with_tokenizer(tmp_path / "base", base_folder("llama"), 90)
    model = match_state(resized(state("llama"), 90), base, tmp_path)
    assert model.config_edits == {"vocab_size": 90}


def test_a_tokenizer_with_more_tokens_than_rows_is_told(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = base_with_tokenizer(tmp_path / "base", base_folder("llama"), 99)
    told = one(match_state(state("llama"), base, tmp_path).findings, "U503")
    assert (told.saw, told.expected) == ("99 tokens, and 96 rows", "at most 96 tokens")


def test_a_tokenizer_with_fewer_tokens_is_nothing_to_tell(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    base = base_with_tokenizer(tmp_path / "base", base_folder("llama"), 90)
    assert codes(match_state(state("llama"), base, tmp_path).findings) == []


def test_config_json_follows_the_rows_where_only_it_is_known(
    base_folder: Folder, state: States, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((base_folder("llama") / "config.json").read_bytes())
    checkpoint = checkpoint_of(resized(state("llama"), 97), tmp_path / "run")
    assert matched(checkpoint, base_of(tmp_path / "base", checkpoint)).config_edits == {"vocab_size": 97}


def written(path: Path, content: object) -> dict[str, Path]:
    path.write_text(json.dumps(content))
    return {path.name: path}


def test_added_tokens_count_where_they_exceed_the_vocabulary(tmp_path: Path) -> None:
    content = {
        "added_tokens": [{"id": 7, "content": "<pad>"}],
        "post_processor": {"special_tokens": {"<s>": {"id": "<s>", "ids": [1]}}},
        "model": {"type": "BPE", "vocab": {"a": 0, 'quo"te': 3, "id": 2, "}": 1}, "merges": [["a", "b"]]},
    }
    assert count_tokens(written(tmp_path / "tokenizer.json", content)) == 8


def test_the_vocabulary_counts_where_it_exceeds_the_added_tokens(tmp_path: Path) -> None:
    content = {"added_tokens": [{"id": 0}], "model": {"vocab": {f"t{i}": i for i in range(50)}}, "max": 9999}
    assert count_tokens(written(tmp_path / "tokenizer.json", content)) == 50


def test_a_unigram_vocabulary_is_a_list(tmp_path: Path) -> None:
    content = {
        "added_tokens": [],
        "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["[x", -1.5], ["]", -2]]},
    }
    assert count_tokens(written(tmp_path / "tokenizer.json", content)) == 3


def test_a_real_tokenizer_is_counted_as_its_library_counts(tmp_path: Path) -> None:
    from trainers.tiny_llama import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path)
    assert count_tokens({"tokenizer.json": tmp_path / "tokenizer.json"}) == len(tokenizer)


def test_vocab_json_is_counted_with_its_added_tokens(tmp_path: Path) -> None:
    files = written(tmp_path / "vocab.json", {"a": 0, "b": 1}) | written(
        tmp_path / "added_tokens.json", {"c": 2}
    )
    assert count_tokens(files) == 3


def test_pieces_of_sentencepiece_are_counted(tmp_path: Path) -> None:
    piece = b"\x0a\x03\x0a\x01a"  # field 1, three bytes: field 1 of the piece, one byte
    trainer = b"\x12\x02\x08\x01"
    (tmp_path / "tokenizer.model").write_bytes(piece * 5 + trainer + piece)
    assert count_tokens({"tokenizer.model": tmp_path / "tokenizer.model"}) == 6


@pytest.mark.parametrize("content", [b"", b"\x0a", b"\x0a\xff\xff\x03", b"\xff" * 20, b"{"])
def test_a_damaged_tokenizer_is_not_counted(content: bytes, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        (tmp_path / name).write_bytes(content)
        assert count_tokens({name: tmp_path / name}) is None
    assert count_tokens({}) is None
