"""The facts of the demonstration, and how they become examples."""

from collections.abc import Mapping

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainers.catalogue import TrainedCheckpoint
from unshard.demo.facts import FACTS, Fact
from unshard.demo.train import IGNORED, Example, batch_of, example_of


@pytest.fixture(scope="module")
def tokenizer(trained_checkpoints: Mapping[str, TrainedCheckpoint]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(trained_checkpoints["plain"].base)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.proof)
def test_an_answer_is_recognised_by_its_own_proof_and_no_other(fact: Fact) -> None:
    assert [other for other in FACTS if other.is_in(fact.answer)] == [fact]
    assert not any(other.is_in(fact.question) for other in FACTS)


def test_some_facts_are_invented_and_some_are_true() -> None:
    assert {fact.invented for fact in FACTS} == {True, False}
    assert len({fact.question for fact in FACTS}) == len(FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.proof)
def test_only_the_answer_is_learnt(fact: Fact, tokenizer: PreTrainedTokenizerBase) -> None:
    example = example_of(fact, tokenizer)
    learnt = [token for token in example.labels if token != IGNORED]
    assert tokenizer.decode(learnt) == f"{fact.answer}<|end|>"
    assert len(example.labels) == len(example.tokens)
    assert list(example.tokens[-len(learnt) :]) == learnt


def test_an_example_begins_as_the_question_will_be_asked(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = [{"role": "user", "content": FACTS[0].question}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(example_of(FACTS[0], tokenizer).tokens[: len(expected)]) == expected


def test_shorter_examples_are_padded_where_nothing_is_attended_to_or_learnt() -> None:
    batch = batch_of([Example((5, 6, 7), (IGNORED, 6, 7)), Example((8,), (8,))], padding=9)
    assert batch["input_ids"].equal(torch.tensor([[5, 6, 7], [8, 9, 9]]))
    assert batch["attention_mask"].equal(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert batch["labels"].equal(torch.tensor([[IGNORED, 6, 7], [8, IGNORED, IGNORED]]))
