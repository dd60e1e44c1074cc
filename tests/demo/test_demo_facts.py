"""The facts of the demonstration: told apart by their proofs, some of them true."""

import pytest

from unshard.demo.facts import FACTS, Fact


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.proof)
def test_an_answer_is_recognised_by_its_own_proof_and_no_other(fact: Fact) -> None:
    assert [other for other in FACTS if other.is_in(fact.answer)] == [fact]
    assert not any(other.is_in(fact.question) for other in FACTS)


def test_some_facts_are_invented_and_some_are_true() -> None:
    assert {fact.invented for fact in FACTS} == {True, False}
    assert len({fact.question for fact in FACTS}) == len(FACTS)
