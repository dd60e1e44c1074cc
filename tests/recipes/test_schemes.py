"""Naming schemes: recognised by all names together, and the same read in both directions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from schemes_truth import TABLES
from tiny_models import FAMILIES
from unshard.recipes.schemes import SCHEMES, detect_scheme, readings_of
from unshard.recipes.schemes.rows import Family, filled, split_name

EVERY_FAMILY = [(scheme, family) for scheme in SCHEMES for family in scheme.families]
IDS = [f"{scheme.name}: {family.title}, {family.marks[1]}" for scheme, family in EVERY_FAMILY]


@pytest.mark.parametrize("case", TABLES.values(), ids=list(TABLES))
def test_names_that_a_project_writes_are_recognised_as_its_own(case: dict[str, Any]) -> None:
    found = detect_scheme(case["theirs"])
    assert found is not None
    assert found.name == case["scheme"]


@pytest.mark.parametrize(
    "before", ["_orig_mod.", "module.", "model.", "model._orig_mod.", "state.model.module."]
)
@pytest.mark.parametrize("case", ["Meta Llama", "torchtune Qwen3", "LitGPT Phi-3", "OLMo-core FlexOlmo"])
def test_wrappers_and_containers_before_names_do_not_hide_a_scheme(case: str, before: str) -> None:
    found = detect_scheme(before + name for name in TABLES[case]["theirs"])
    assert found is not None
    assert found.name == TABLES[case]["scheme"]


def test_wrappers_inside_names_do_not_hide_a_scheme() -> None:
    names = [
        name.replace("layers.0.", "layers.0._checkpoint_wrapped_module.")
        for name in TABLES["Meta Llama"]["theirs"]
    ]
    assert detect_scheme(names) is not None


@pytest.mark.parametrize("case", TABLES.values(), ids=list(TABLES))
def test_names_of_published_files_are_of_no_scheme(case: dict[str, Any]) -> None:
    assert detect_scheme(case["ours"]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_names_that_transformers_gives_are_of_no_scheme(family: str) -> None:
    assert detect_scheme(FAMILIES[family]().state_dict()) is None


@pytest.mark.parametrize("case", TABLES.values(), ids=list(TABLES))
def test_a_single_name_is_of_no_scheme(case: dict[str, Any]) -> None:
    assert not any(detect_scheme([name]) for name in case["theirs"])


def test_a_model_that_holds_a_scheme_among_many_other_names_is_not_taken_for_it() -> None:
    names = list(TABLES["Meta Llama"]["theirs"])
    others = [f"vision.blocks.{i}.weight" for i in range(len(names) + 1)]
    assert detect_scheme([*names, *others]) is None
    assert detect_scheme([*names, "vision.weight"]) is not None


def test_state_of_training_and_frequencies_beside_a_scheme_are_no_strangers() -> None:
    names = [*TABLES["Meta Llama"]["theirs"], "rope.freqs", "layers.0.attention._extra_state"]
    assert {reading.unknown for reading in readings_of(names)} == {()}


def test_no_names_are_of_no_scheme() -> None:
    assert detect_scheme([]) is None


@pytest.mark.parametrize(("scheme", "family"), EVERY_FAMILY, ids=IDS)
def test_no_two_rows_of_a_family_speak_of_one_name(scheme: object, family: Family) -> None:
    theirs = Counter(name for row in family.rows for names in (row.theirs, *row.older) for name in names)
    ours = Counter(name for row in family.rows for name in row.ours)
    assert max(theirs.values()) == max(ours.values()) == 1


@pytest.mark.parametrize(("scheme", "family"), EVERY_FAMILY, ids=IDS)
def test_a_family_reversed_twice_says_the_same(scheme: object, family: Family) -> None:
    kept = [row for row in family.rows if row.ours]
    assert [(r.theirs, r.ours, r.steps) for r in family.reversed.reversed.rows] == [
        (r.theirs, r.ours, r.steps) for r in kept
    ]


def test_numbers_in_names_are_those_between_dots_as_they_are_written() -> None:
    assert split_name("layers.12.moe.experts.3.w1") == ("layers.*.moe.experts.*.w1", (12, 3))
    assert split_name("layers.01.w1") == ("layers.01.w1", ())
    assert split_name("0.w1.1") == ("*.w1.*", (0, 1))
    assert split_name(f"layers.{10**12}.w") == (f"layers.{10**12}.w", ())
    assert filled("layers.*.moe.experts.*.w1", (12, 3)) == "layers.12.moe.experts.3.w1"
