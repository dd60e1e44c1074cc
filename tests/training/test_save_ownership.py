"""Who writes which bytes of files that many ranks write at once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from unshard.training.writing.ownership import (
    ANYBODY,
    PAGE_BYTES,
    ROUND_BYTES,
    SHARED_BYTES,
    Extent,
    Stretch,
    divide,
    rounds_of,
)

RANKS = 4
LENGTHS = st.one_of(st.integers(0, 9), st.integers(0, 3 * PAGE_BYTES), st.integers(0, 5 * SHARED_BYTES))
OWNERS = st.sampled_from([None, ANYBODY, *range(RANKS)])
FILES = st.lists(st.lists(st.tuples(LENGTHS, OWNERS), max_size=9), max_size=3)
WRITERS = st.lists(st.integers(0, RANKS - 1), min_size=1, unique=True).map(sorted)


def laid_out(parts: list[tuple[int, int | None]]) -> list[Extent]:
    extents, start = [], 0
    for length, owner in parts:
        extents.append(Extent(start, start + length, owner))
        start += length
    return extents


def pages(stretch: Stretch) -> range:
    return range(stretch.start // PAGE_BYTES, -(-stretch.stop // PAGE_BYTES))


@settings(max_examples=50, deadline=None)
@given(files=FILES, writers=WRITERS)
def test_every_byte_is_written_once_and_no_page_by_two_ranks(
    files: list[list[tuple[int, int | None]]], writers: list[int]
) -> None:
    extents = [laid_out(parts) for parts in files]
    division = divide(extents, writers)
    stretches = sorted((*division.own, *division.shared), key=lambda s: (s.file, s.start))
    for number, parts in enumerate(extents):
        here = [s for s in stretches if s.file == number]
        size = parts[-1].stop if parts else 0
        assert sum(s.length for s in here) == size
        assert [s.start for s in here] == [0, *(s.stop for s in here)][: len(here)]
        page_writers: dict[int, set[int]] = {}
        for stretch in here:
            for page in pages(stretch):
                page_writers.setdefault(page, set()).add(stretch.writer)
        assert all(len(ranks) == 1 for ranks in page_writers.values())
    assert {s.writer for s in stretches} <= set(writers)
    assert all(s.length <= SHARED_BYTES for s in division.shared)


@settings(max_examples=50, deadline=None)
@given(files=FILES, writers=WRITERS)
def test_a_rank_writes_by_itself_only_what_it_holds_or_everybody_knows(
    files: list[list[tuple[int, int | None]]], writers: list[int]
) -> None:
    extents = [laid_out(parts) for parts in files]
    for stretch in divide(extents, writers).own:
        met = {
            e.owner
            for e in extents[stretch.file]
            if e.start < stretch.stop and e.stop > max(stretch.start, e.start)
        }
        assert met <= {stretch.writer, ANYBODY}


@given(
    sizes=st.lists(st.tuples(st.integers(0, SHARED_BYTES), st.integers(0, 3), st.integers(0, 3)), max_size=90)
)
def test_no_rank_sends_or_is_sent_more_in_a_round_than_it_may(sizes: list[tuple[int, int, int]]) -> None:
    shared = [Stretch(0, n, n + size, writer) for n, (size, _, writer) in enumerate(sizes)]
    owners = {stretch: {owner: stretch.length} for stretch, (_, owner, _) in zip(shared, sizes, strict=True)}
    rounds = list(rounds_of(shared, owners.__getitem__))
    assert [stretch for taken in rounds for stretch in taken] == shared
    for taken in rounds:
        sent, filled = Counter[int](), Counter[int]()
        for stretch in taken:
            for owner, size in owners[stretch].items():
                if owner != stretch.writer:
                    sent[owner] += size
                    filled[stretch.writer] += size
        assert max([*sent.values(), *filled.values()], default=0) <= ROUND_BYTES


def test_columns_of_all_ranks_are_written_by_all_of_them_alike() -> None:
    division = divide([[Extent(0, 64 * SHARED_BYTES, None)]], range(RANKS))
    written = Counter[int]()
    for stretch in division.shared:
        written[stretch.writer] += stretch.length
    assert set(written.values()) == {16 * SHARED_BYTES}


def test_of_rows_only_the_pages_in_which_two_ranks_meet_are_sent() -> None:
    size = 10 * PAGE_BYTES + 100
    extents = [Extent(rank * size, (rank + 1) * size, rank) for rank in range(RANKS)]
    division = divide([extents], range(RANKS))
    assert [s.length for s in division.shared] == [PAGE_BYTES] * (RANKS - 1)


def test_bytes_of_one_rank_are_never_sent() -> None:
    extents = [Extent(0, 72, ANYBODY), Extent(72, 5000, 2), Extent(5000, 90000, 2)]
    assert divide([extents], range(RANKS)).own == (Stretch(0, 0, 90000, 2),)
