"""The page in a real browser: seen, heard, typed at, printed, on a phone, and given hostile names."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from large_reports import deepseek_v3, llama_405b, report_of

from browser import Visit, Visiting
from unshard.findings import finding
from unshard.proof.levels import Level
from unshard.report import Report, write_report
from unshard.report.contents import Fact, ListedFile, Provenance, ReportedTensor, Verdict

ROWS = "#tensor-table tbody tr"
FIRST = f"{ROWS}:first-child"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of Llama 3.1 405B, in which everything is known."""
    path = tmp_path_factory.mktemp("report") / "llama.html"
    write_report(report_of(llama_405b()), path)
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the first layers alone: nothing on the page is missing, and there is less of it."""
    path = tmp_path_factory.mktemp("report") / "short.html"
    write_report(report_of(islice(llama_405b(), 20)), path)
    return path


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the 45,000 tensors of DeepSeek-V3."""
    path = tmp_path_factory.mktemp("report") / "deepseek.html"
    write_report(report_of(deepseek_v3(), subject="DeepSeek-V3"), path)
    return path


def width(seen: Visit) -> int:
    return int(seen.page.evaluate("document.documentElement.scrollWidth"))


def test_the_page_asks_for_nothing_and_complains_of_nothing(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    assert seen.complaints == []
    assert seen.requests == [llama.as_uri()]
    assert seen.text("h1") == "Verified, with warnings"


def test_a_report_of_1137_tensors_is_smaller_than_a_megabyte(llama: Path) -> None:
    assert llama.stat().st_size < 1_000_000


@pytest.mark.parametrize(("scheme", "columns"), [("light", 1280), ("dark", 390)])
def test_no_rule_of_accessibility_is_broken(short: Path, visit: Visiting, scheme: str, columns: int) -> None:
    seen = visit(short, color_scheme=scheme, viewport={"width": columns, "height": 900})
    seen.page.evaluate("document.querySelectorAll('.finding details').forEach((fold) => (fold.open = true))")
    assert seen.violations() == []


def test_a_screen_reader_hears_headings_tables_and_names(llama: Path, visit: Visiting) -> None:
    page = visit(llama).page
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == [
        "Findings",
        "Proof",
        "Change",
        "Sizes",
        "Distributions",
        "Tensors",
        "Environment",
        "Provenance",
    ]
    assert page.get_by_role("table", name=re.compile("Change of every module in every layer")).count() == 1
    assert page.get_by_role("searchbox", name="Filter").count() == 1
    assert page.get_by_role("columnheader", name="Size").get_by_role("button").count() == 1
    assert page.get_by_role("cell", name=re.compile(r"of the norm, cosine 0\.9")).count() > 800


def test_filtering_by_keyboard_leaves_what_has_all_the_words(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    seen.page.get_by_label("Filter").focus()
    seen.page.keyboard.type("Q_proj layers.12")
    seen.page.get_by_text("7 of 1,137 tensors").wait_for()
    assert all(".12" in text and "q_proj" in text for text in seen.texts(f"{ROWS} summary"))
    seen.page.keyboard.type(" no such thing")
    seen.page.get_by_text("0 of 1,137 tensors").wait_for()
    assert seen.texts(ROWS) == []


def test_sorting_by_mouse_and_by_keyboard(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    size = seen.page.locator("#tensor-table").get_by_role("columnheader", name="Size")
    size.get_by_role("button").click()
    assert size.get_attribute("aria-sort") == "descending"
    assert "4.20 GB" in seen.text(FIRST)
    seen.page.keyboard.press("Enter")  # the button still has the focus
    assert size.get_attribute("aria-sort") == "ascending"
    assert "65.5 kB" in seen.text(FIRST)
    seen.page.keyboard.press("Enter")
    assert size.get_attribute("aria-sort") == "none"
    assert "model.embed_tokens.weight" in seen.text(FIRST)


def test_names_are_sorted_by_the_numbers_in_them(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    seen.page.locator("#tensor-table").get_by_role("columnheader", name="Name").get_by_role("button").click()
    layers = [int(n) for n in re.findall(r"layers\.(\d+)\.", "\n".join(seen.texts(f"{ROWS} summary")))]
    assert layers == sorted(layers)
    assert len(layers) > 90


def test_rows_come_in_pages(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    assert seen.text("#tensor-range") == "1 to 100 of 1,137"
    assert seen.page.get_by_role("button", name="Earlier").is_disabled()
    seen.page.get_by_role("button", name="Later").click()
    assert seen.text("#tensor-range") == "101 to 200 of 1,137"
    assert seen.page.locator(ROWS).count() == 100


def test_a_row_opens_to_everything_that_is_known(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    seen.page.locator(f"{FIRST} summary").press("Enter")
    told = seen.text(f"{FIRST} dl")
    assert "model-00001-of-00191.safetensors" in told
    assert re.search(r"SHA-256\s+[0-9a-f]{64}", told)


def test_the_script_shows_what_the_page_says_without_it(llama: Path, visit: Visiting) -> None:
    still = visit(llama, java_script_enabled=False)
    moving = visit(llama)
    shown = still.page.locator(ROWS).all_inner_texts()
    assert len(shown) == 400
    assert moving.page.locator(ROWS).all_inner_texts() == shown[:100]
    assert not still.page.locator("#tensor-filter").is_visible()
    assert not still.page.locator(".readout").is_visible()
    assert "the others need JavaScript" in still.text("#tensors")


def test_the_heat_map_tells_its_numbers_to_pointer_and_keyboard(llama: Path, visit: Visiting) -> None:
    seen = visit(llama)
    cell = seen.page.locator(".heat-map tbody tr:nth-child(2) td:nth-child(5)")
    cell.hover()
    assert seen.text(".readout").startswith("layer 3, self_attn.q_proj: ")
    cell.click()
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("ArrowDown")
    assert re.fullmatch(
        r"layer 4, self_attn\.k_proj: [\d.]+ % of the norm, cosine 0\.9\d+, .* of the elements differ.*",
        seen.text(".readout"),
    )
    seen.page.keyboard.press("End")
    assert seen.text(".readout").startswith("layer 125, self_attn.k_proj: ")
    assert seen.page.evaluate("document.activeElement.tagName") == "TD"


def test_one_stop_of_the_tab_key_enters_a_heat_map(llama: Path, visit: Visiting) -> None:
    assert visit(llama).page.locator(".heat-map td[tabindex='0']").count() == 1


@pytest.mark.parametrize("columns", [320, 390, 768])
def test_a_narrow_page_scrolls_in_its_boxes_and_not_as_a_whole(
    llama: Path, visit: Visiting, columns: int
) -> None:
    assert width(visit(llama, viewport={"width": columns, "height": 800})) <= columns


def test_the_dark_page_is_dark(short: Path, visit: Visiting) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    channels = [
        sum(map(int, re.findall(r"\d+", visit(short, color_scheme=scheme).page.evaluate(ground))))
        for scheme in ("light", "dark")
    ]
    assert channels[0] > 700
    assert channels[1] < 100


def test_paper_has_all_explanations_and_nothing_to_press(short: Path, visit: Visiting) -> None:
    seen = visit(short, java_script_enabled=False, color_scheme="dark")
    hidden = seen.page.locator(".explained").first
    assert not hidden.is_visible()
    seen.page.emulate_media(media="print")
    assert hidden.is_visible()
    assert not seen.page.locator("nav").is_visible()
    assert seen.page.pdf(format="A4").startswith(b"%PDF")


def test_45000_tensors_can_be_filtered_and_sorted(deepseek: Path, visit: Visiting) -> None:
    assert deepseek.stat().st_size < 12_000_000
    seen = visit(deepseek)
    assert seen.text("#tensor-count") == "45,395 tensors"
    seen.page.get_by_label("Filter").fill("experts.200.down layers.60.")
    seen.page.get_by_text("1 of 45,395 tensors").wait_for()
    assert seen.texts(f"{ROWS} summary") == ["model.layers.60.mlp.experts.200.down_proj.weight"]
    seen.page.get_by_label("Filter").fill("")
    seen.page.locator("#tensor-table").get_by_role("columnheader", name="Change").get_by_role(
        "button"
    ).click()
    assert seen.complaints == []
    assert seen.page.locator("*").count() < 20_000


HOSTILE = (
    "<script>document.title='taken'</script>",
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "'\"><svg onload=document.title='taken'>",
    "{{ 7 * 7 }}{% raw %}",
    "bell\x07 escape\x1b[31m null\x00",
    "line\nbreak\u2028separator",
    "\u202egnp.exe",
    "lone \ud800 surrogate",
)


def hostile_report() -> Report:
    """Return a report in which every text that may come from a file is hostile."""
    text = " ".join(HOSTILE)
    tensors = tuple(
        ReportedTensor(name, (2,), "float32", 8, name, (name + "x",), name, name) for name in HOSTILE
    )
    return Report(
        command="verify",
        subject=text,
        verdict=Verdict("bad", "Differs", text),
        created="2026-11-24 13:40 UTC",
        facts=(Fact("Base", HOSTILE),),
        levels=(Level("bytes", "differs", HOSTILE),),
        findings=tuple(
            finding("U703", subject=name, saw=f"`{name}`", expected=name, remedy=name) for name in HOSTILE
        ),
        tensors=tensors,
        compared_with=text,
        unmatched=(Fact("Only in A", HOSTILE),),
        provenance=Provenance(
            facts=(Fact("Layout", HOSTILE),),
            sources=tuple(ListedFile(name, 1) for name in HOSTILE),
            files=tuple(ListedFile(name, None, name, name) for name in HOSTILE),
            dropped=tuple((name, name) for name in HOSTILE),
            edits=dict.fromkeys(HOSTILE, text),
        ),
    )


def test_hostile_names_are_only_text(tmp_path: Path, visit: Visiting) -> None:
    path = tmp_path / "hostile.html"
    write_report(hostile_report(), path)
    seen = visit(path)
    assert seen.complaints == []
    assert seen.requests == [path.as_uri()]
    assert seen.page.title().startswith("Differs: <script>")
    assert seen.page.locator("script").count() == 2
    assert seen.page.locator("img").count() == 0
    shown = seen.texts(f"{ROWS} summary")
    assert shown[0] == HOSTILE[0]
    assert shown[5:] == [
        r"bell\x07 escape\x1b[31m null\x00",
        r"line\nbreak\u2028separator",
        r"\u202egnp.exe",
        r"lone \ud800 surrogate",
    ]
    assert width(seen) <= 1280
    seen.page.set_viewport_size({"width": 360, "height": 800})
    assert width(seen) <= 360


def test_a_policy_forbids_every_script_but_its_own(tmp_path: Path, visit: Visiting) -> None:
    path = tmp_path / "report.html"
    plain = replace(hostile_report(), subject="INSERT-HERE")
    write_report(plain, path)
    path.write_text(path.read_text().replace("INSERT-HERE", "<script>document.title='taken'</script>"))
    seen = visit(path)
    assert "taken" not in seen.page.evaluate("document.title + ''").split(":")[0]
    assert any("Content Security Policy" in text for text in seen.complaints)
