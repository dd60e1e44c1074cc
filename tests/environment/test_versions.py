"""Versions and ranges of them: what is older, newer, the same, and no version at all."""

from __future__ import annotations

import pytest

from unshard.environment.versions import VersionRange, is_pinnable, parse_range, parse_release


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("2.13.0", (2, 13)),
        ("2.6.0+cu124", (2, 6)),
        ("4.57.3", (4, 57, 3)),
        ("5", (5, 0)),
        ("v1.2", (1, 2)),
        ("5.0.0rc1", (5, 0)),
        ("2.8.0a0+git1234", (2, 8)),
        ("", None),
        ("nightly", None),
        ("9" * 10, None),
        ("1.2.3.4.5.6.7", None),
        (None, None),
    ],
)
def test_a_version_is_its_numbers(text: str | None, release: tuple[int, ...] | None) -> None:
    assert parse_release(text) == release


@pytest.mark.parametrize("text", [">=2.5", "<2.10", ">=2.5,<2.10", ">=5.0"])
def test_a_range_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_range(text)) == text


@pytest.mark.parametrize("text", ["", ">=", "~=2.5", ">=2.5,<2.10\nx", "<2.10,>=2.5", ">=2.5;evil"])
def test_what_is_no_range_is_none(text: str) -> None:
    assert parse_range(text) is None


@pytest.mark.parametrize(
    ("range_", "release", "above", "within", "below"),
    [
        (">=2.5,<2.10", (2, 4), True, False, False),
        (">=2.5,<2.10", (2, 5), False, True, False),
        (">=2.5,<2.10", (2, 9, 1), False, True, False),
        (">=2.5,<2.10", (2, 10), False, False, True),
        ("2.6.1", (2, 6), False, False, False),
        ("2.6.1", (2, 6, 1), False, True, False),
        ("2.6.1", (2, 5, 9), True, False, False),
        ("2.6.1", (2, 7), False, False, True),
        ("<2.10", (2, 10), False, False, True),
        (">=2.10", (2, 9), True, False, False),
    ],
)
def test_a_release_is_before_in_or_after_a_range(
    range_: str, release: tuple[int, ...], above: bool, within: bool, below: bool
) -> None:
    found = parse_range(range_)
    assert found is not None
    assert (found.is_above(release), found.contains(release), found.is_below(release)) == (
        above,
        within,
        below,
    )


def test_only_the_first_numbers_count_where_that_is_asked() -> None:
    exact = parse_range("5.2.0")
    assert exact is not None
    assert not exact.is_above((5, 0), digits=1)
    assert exact.is_above((4, 57), digits=1)
    assert exact.is_below((6, 0), digits=1)


def test_bounds_of_several_are_the_narrowest() -> None:
    both = VersionRange((2, 1)).and_(VersionRange((2, 5), (2, 10))).and_(VersionRange(None, (2, 8)))
    assert str(both) == ">=2.5,<2.8"
    assert both.is_possible
    assert not both.and_(VersionRange((2, 8))).is_possible


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.6.0", True),
        ("2.6.0+cu124", True),
        ("5.0.0rc1", True),
        ("1.0.post1", True),
        ("1.0.dev3", True),
        ("1.0 # x", False),
        ("1.0\nevil", False),
        ("1.0; python_version>'3'", False),
        ("*", False),
        ("", False),
    ],
)
def test_only_what_pip_takes_is_pinned(version: str, expected: bool) -> None:
    assert is_pinnable(version) is expected
