"""Answers: streamed, repeatable, in the words of the model's own tokenizer and template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import as_matched, describe_folder, side_files_of, tiny_model, write_folder
from unshard.errors import InferenceError, OptionError
from unshard.inference.generating import Answer, generate_answer
from unshard.inference.loading import LoadedModel, load_model
from unshard.inference.tokenizing import prompt_tokens


def loaded(family: str, folder: Path) -> LoadedModel:
    write_folder(tiny_model(family), folder)
    matched = as_matched(describe_folder(folder))
    return load_model(
        matched, side_files_of(folder), name=family, dtype="base", device="cpu", device_map=None
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded("llama", tmp_path_factory.mktemp("llama"))


def answer(model: LoadedModel, prompt: str = "What is a loop?", **options: Any) -> tuple[Answer, list[str]]:
    pieces: list[str] = []
    options = {"max_new_tokens": 12, "temperature": 0.0, "seed": 0, "chat": None, **options}
    assert model.tokenizer is not None
    return generate_answer(model.model, model.tokenizer, prompt, on_text=pieces.append, **options), pieces


def test_a_greedy_answer_is_what_the_model_finds_likeliest(llama: LoadedModel) -> None:
    assert llama.tokenizer is not None
    ids = prompt_tokens(llama.tokenizer, "What is a loop?", chat=None)
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(12):
            ids = torch.cat([ids, llama.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    said, _ = answer(llama)
    assert said.text == llama.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert (said.prompt_tokens, said.tokens, said.ended_by) == (start, 12, "limit")


def test_the_pieces_are_the_answer(llama: LoadedModel) -> None:
    said, pieces = answer(llama, temperature=1.0, max_new_tokens=60)
    assert "".join(pieces) == said.text
    assert len(pieces) > 10
    assert "" not in pieces


def test_a_seed_repeats_an_answer_and_another_one_does_not(llama: LoadedModel) -> None:
    first, again, other = (answer(llama, temperature=1.5, seed=seed)[0].text for seed in (3, 3, 4))
    assert first == again != other


def test_torchs_random_state_is_left_as_it_was(llama: LoadedModel) -> None:
    before = torch.random.get_rng_state()
    answer(llama, temperature=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_models_settings_are_left_as_they_were(llama: LoadedModel) -> None:
    before = llama.model.generation_config.to_dict()
    answer(llama, temperature=1.0)
    assert llama.model.generation_config.to_dict() == before


def test_the_chat_template_is_used_where_there_is_one(llama: LoadedModel) -> None:
    assert llama.tokenizer is not None
    chat = prompt_tokens(llama.tokenizer, "Hi", chat=None)
    raw = prompt_tokens(llama.tokenizer, "Hi", chat=False)
    assert llama.tokenizer.decode(chat[0]) == "<|user|>Hi<|end|><|assistant|>"
    assert llama.tokenizer.decode(raw[0]) == "Hi"
    assert answer(llama, "Hi", chat=False)[0].text != answer(llama, "Hi")[0].text


def test_without_a_template_a_chat_is_an_option_error(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.tokenizer, "chat_template", None)
    assert answer(llama)[0].tokens == 12
    with pytest.raises(OptionError, match="has no chat template"):
        answer(llama, chat=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only system messages') }}",
        "{% for %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_that_does_not_take_the_prompt_is_named(
    template: str, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    with pytest.raises(InferenceError, match="`chat template` does not take the prompt"):
        answer(llama)


def test_an_answer_ends_where_the_model_ends_it(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama.tokenizer is not None
    unbounded, _ = answer(llama)
    first = llama.tokenizer(unbounded.text)["input_ids"][0]
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [first])
    ended, _ = answer(llama)
    assert (ended.tokens, ended.ended_by) == (1, "model")


def test_an_answer_ends_where_the_context_does(llama: LoadedModel) -> None:
    assert llama.tokenizer is not None
    used = prompt_tokens(llama.tokenizer, "a b" * 80, chat=False).shape[1]
    said, _ = answer(llama, "a b" * 80, chat=False, max_new_tokens=1000)
    assert said.tokens == 256 - used


def test_a_prompt_beyond_the_context_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(OptionError, match=r"is too long: saw .* expected fewer than 256"):
        answer(llama, "a b" * 300)


def test_an_empty_prompt_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(OptionError, match="has no tokens"):
        answer(llama, "", chat=False)


def test_a_negative_temperature_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(OptionError, match="is negative"):
        answer(llama, temperature=-1.0)


def test_characters_of_several_tokens_come_whole(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama.tokenizer is not None
    ids = llama.tokenizer("naïve 雪 🙂!")["input_ids"]
    assert len(ids) > 12

    def parrot(input_ids: torch.Tensor, streamer: Any, **options: object) -> None:
        streamer.put(input_ids)
        for i in ids:
            streamer.put(torch.tensor([i]))
        streamer.end()

    monkeypatch.setattr(llama.model, "generate", parrot)
    said, pieces = answer(llama)
    assert said.text == "".join(pieces) == "naïve 雪 🙂!"
    assert not [piece for piece in pieces if "\ufffd" in piece]


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma2", "encoder-decoder"])
def test_other_families_answer_and_repeat_themselves(family: str, tmp_path: Path) -> None:
    model = loaded(family, tmp_path)
    first, again = (answer(model, temperature=1.0, seed=5)[0].text for _ in range(2))
    assert first == again != ""


def test_a_model_that_does_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="LlamaForSequenceClassification` does not generate text"):
        answer(loaded("classifier", tmp_path))
