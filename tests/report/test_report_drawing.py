"""From numbers to what is drawn and stored: areas, steps, bars, and columns that a script can read back."""

from __future__ import annotations

import json
import math
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from large_reports import deepseek_v3, llama_405b, report_of

from unshard.measures import Delta
from unshard.report.contents import ReportedTensor
from unshard.report.drawing.heat_map import heat_maps, told
from unshard.report.drawing.histograms import change_bars
from unshard.report.drawing.scales import STEPS, scale_for
from unshard.report.drawing.sizes_map import sizes_map
from unshard.report.drawing.treemap import Tile, squarified
from unshard.report.kinds import joined, kind_of, kinds_of
from unshard.report.numbers import number, percent, shape_text, share_of, visible
from unshard.report.tensor_table import Column, columns_of


def tensor(name: str, *, relative: float | None = None, shape: tuple[int, ...] = (4,)) -> ReportedTensor:
    """Return a tensor of norm 1 that is this far from its base."""
    count = math.prod(shape)
    if relative is None:
        return ReportedTensor(name, shape, "float32", 4 * count)
    changed = count if relative else 0
    delta = Delta(count, changed, changed, 1.0, 1.0, 1.0, relative, relative)
    return ReportedTensor(name, shape, "float32", 4 * count, delta=delta)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0"),
        (0.0184, "1.84 %"),
        (0.999999, "100 %"),
        (0.00099999, "0.100 %"),
        (0.0000310, "0.00310 %"),
        (12.5, "1,250 %"),
        (4.2e-9, "4.2e-09"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_shares_have_three_digits(share: float, text: str) -> None:
    assert percent(share) == text


def test_not_quite_all_is_not_told_as_all() -> None:
    assert share_of(9_999_999, 10_000_000) == "> 99.9 %"
    assert share_of(10, 10) == "100 %"
    assert share_of(0, 0) == "0"


def test_numbers_and_shapes_are_set_with_their_own_signs() -> None:
    assert number(-0.00012345) == "\N{MINUS SIGN}0.0001234"
    assert number(-math.inf) == "\N{MINUS SIGN}∞"
    assert shape_text((3, 5)) == "3 \N{MULTIPLICATION SIGN} 5"
    assert shape_text(()) == "scalar"


def test_text_of_a_file_stays_on_one_line_and_shows_what_does_not_print() -> None:
    assert visible("a\nb\x1b\u202e\ud800é") == "a\\nb\\x1b\\u202e\\ud800é"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.17.mlp.experts.203.up_proj.weight", "model.layers.*.mlp.experts.*.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("transformer.h.3.ln_1.bias", "transformer.h.*.ln_1.bias"),
        ("0.weight", "0.weight"),
    ],
)
def test_numbers_of_layers_and_experts_make_no_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_names_that_are_all_different_do_not_make_endless_tables() -> None:
    kinds = kinds_of([tensor(f"t{n}") for n in range(5000)])
    assert len(kinds) == 201
    assert kinds[-1].name == "others"
    assert sum(len(kind.tensors) for kind in kinds) == 5000


def test_joined_deltas_are_those_of_one_long_tensor() -> None:
    parts = [Delta(4, 1, 1, 6.0, 3.0, 2.0, 3.0, 0.5), Delta(9, 9, 3, 8.0, 4.0, 1.0, 4.0, 2.0)]
    assert joined(parts) == Delta(13, 10, 4, 14.0, 5.0, math.sqrt(5.0), 5.0, 2.0)
    assert joined([]) is None


def test_a_heat_map_has_a_cell_for_every_module_of_every_layer() -> None:
    names = [(0, "a.weight", 0.01), (0, "b.weight", 0.0), (2, "a.weight", 0.1), (10, "a.bias", 1.0)]
    tensors = [tensor(f"model.layers.{layer}.{name}", relative=r) for layer, name, r in names]
    maps = heat_maps([*tensors, tensor("lm_head.weight", relative=0.5), tensor("layers.3.c")])
    (drawn,) = maps.maps
    assert drawn.stack == "model.layers"
    assert drawn.layers == (0, 2, 10)
    assert [row.module for row in drawn.rows] == ["a", "b", "a.bias"]
    steps = [[cell and cell.step for cell in row.cells] for row in drawn.rows]
    assert steps == [[1, 5, None], [0, None, None], [None, None, STEPS]]


def test_layers_and_modules_beyond_a_page_are_counted() -> None:
    tensors = [tensor(f"h.{layer}.m{layer}", relative=0.1) for layer in range(300)]
    (drawn,) = heat_maps(tensors).maps
    assert (len(drawn.layers), len(drawn.rows), drawn.hidden) == (256, 64, 44 + 236)


def test_experts_of_a_layer_are_one_cell() -> None:
    tensors = [tensor(f"layers.0.experts.{n}.up", relative=r) for n, r in enumerate((3.0, 4.0))]
    (drawn,) = heat_maps(tensors).maps
    (cell,) = drawn.rows[0].cells
    assert cell is not None
    assert cell.text == percent(5.0 / math.sqrt(2.0))


def test_a_cell_tells_what_a_cast_leaves_of_a_change() -> None:
    assert told(Delta(10, 0, 0, 1.0, 1.0, 1.0, 0.0, 0.0)) == "unchanged"
    assert told(Delta(10, 8, 2, 1.0, 1.0, 1.0, 0.5, 0.1)) == (
        "50.0 % of the norm, cosine 1.000000, 80.0 % of the elements differ, 25.0 % of these survive the cast"
    )


@given(st.lists(st.floats(1e-12, 1e6), min_size=1))
def test_larger_numbers_are_never_in_lower_steps(values: list[float]) -> None:
    scale = scale_for(values)
    assert scale is not None
    steps = [scale.step(value) for value in sorted(values)]
    assert all(a <= b for a, b in pairwise(steps))
    assert steps[-1] == STEPS
    assert min(steps) >= 1


def test_zero_nothing_and_infinity_have_steps_of_their_own() -> None:
    scale = scale_for([0.0, 0.1, 1.0, math.inf])
    assert scale is not None
    assert [scale.step(value) for value in (0.0, math.nan, math.inf)] == [0, 0, STEPS]
    assert scale_for([0.0, math.inf]) is None
    assert len(scale.bounds) == STEPS + 1


def _overlap(a: Tile, b: Tile) -> float:
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return max(0.0, across) * max(0.0, down)


@given(st.lists(st.floats(1.0, 1e4), min_size=1, max_size=12))
def test_tiles_have_the_areas_of_their_sizes_and_fill_the_map_once(sizes: list[float]) -> None:
    tiles = squarified(sizes, x=10, y=20, width=300, height=200)
    assert sorted(tile.index for tile in tiles) == list(range(len(sizes)))
    for tile in tiles:
        area = sizes[tile.index] / sum(sizes) * 300 * 200
        assert tile.width * tile.height == pytest.approx(area)
        assert tile.x >= 10 - 1e-6
        assert tile.y + tile.height <= 220 + 1e-6
    assert sum(_overlap(a, b) for a in tiles for b in tiles if a is not b) == pytest.approx(0, abs=1e-3)


def test_tiles_of_alike_sizes_are_near_to_squares() -> None:
    tiles = squarified([1.0] * 24, x=0, y=0, width=600, height=400)
    assert all(0.4 < tile.width / tile.height < 2.5 for tile in tiles)


def test_nothing_has_no_tiles() -> None:
    assert squarified([0, 0], x=0, y=0, width=10, height=10) == []


def test_the_map_of_sizes_puts_dtypes_apart_and_labels_what_has_room() -> None:
    drawn = sizes_map(kinds_of(report_of(islice(llama_405b(), 30)).tensors), width=960, height=360)
    assert [dtype for dtype, _ in drawn.dtypes] == ["bfloat16", "float32"]
    largest = max(drawn.tiles, key=lambda tile: tile.tile.width * tile.tile.height)
    assert largest.lines[0] in largest.title
    letters = max(len(line) for tile in drawn.tiles for line in tile.lines)
    assert letters < 960 / 6


def test_bars_count_tensors_by_half_decades() -> None:
    bars = change_bars([0.0, 0.0, 0.02, 0.05, 0.3, math.inf])
    assert [(bar.label, bar.text) for bar in bars] == [
        ("unchanged", "2"),
        ("1 % to 3.2 %", "1"),
        ("3.2 % to 10 %", "1"),
        ("10 % to 32 %", "1"),
        ("from nothing", "1"),
    ]
    assert bars[0].length == 1.0
    assert len(change_bars([1e-300, 1e300])) < 40


def _read(column: dict[str, Any]) -> list[str]:
    """Return the texts of a column as the script on the page reads them."""
    if "texts" in column:
        return list(column["texts"])
    if "pool" in column:
        return [column["pool"][i] for i in column["at"]]
    names = []
    for i, *numbers in column["at"]:
        parts = column["parts"][i]
        names.append(parts[0] + "".join(f"{n}{p}" for n, p in zip(numbers, parts[1:], strict=True)))
    return names


@given(st.lists(st.from_regex(r"[a-c.0-9\U0001f600]{0,12}", fullmatch=True), min_size=1))
def test_names_come_back_as_they_were(names: list[str]) -> None:
    column = Column("Name", tuple(names), encoding="names")
    assert _read(json.loads(json.dumps(column.data()))) == names


def test_every_column_can_be_read_back_and_names_are_stored_once() -> None:
    columns = columns_of(report_of(islice(deepseek_v3(), 3000)).tensors)
    stored = [json.loads(json.dumps(column.data(), allow_nan=False)) for column in columns]
    assert [_read(one) for one in stored] == [list(column.texts) for column in columns]
    name = next(one for one in stored if one["label"] == "Name")
    assert len(name["parts"]) < 30


def test_columns_about_which_nothing_is_known_are_left_out() -> None:
    assert [column.label for column in columns_of([tensor("a")])] == ["Name", "Dtype", "Shape", "Size"]


def test_a_change_from_nothing_is_sorted_above_all_others() -> None:
    delta = Delta(4, 4, 4, 0.0, 1.0, 0.0, 1.0, 1.0)
    change = next(
        c
        for c in columns_of([ReportedTensor("a", (4,), "float32", 16, delta=delta)])
        if c.keys and c.label == "Change"
    )
    assert change.texts == ("∞",)
    assert change.keys == (1e300,)
