"""What a terminal gets: text of strangers made harmless, and lines that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from command_line import Unshard
from unshard.cli.printing import echo_findings, plain
from unshard.findings import finding
from unshard.sizes import format_count, format_size


def test_control_characters_are_made_visible() -> None:
    assert plain("a\x1b[31mb\x07\r") == "a\\x1b[31mb\\x07\\x0d"


def test_text_from_a_file_cannot_paint_the_terminal(unshard: Unshard, tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2, 2)}, "note": "\x1b[2Jgone"}, tmp_path / "model.pt")
    said = unshard("inspect", tmp_path / "model.pt")
    assert said.code == 0
    assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_findings_fit_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    words = "several words that have to be wrapped somewhere because they are many"
    found = [finding(code, subject="x", saw=words, expected=words, remedy=words) for code in ("U302", "U401")]
    echo_findings(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert words in " ".join(line.strip() for line in lines).replace("  ", " ") or columns < 100


def test_quiet_leaves_out_mere_facts(capsys: pytest.CaptureFixture[str]) -> None:
    echo_findings([finding("U302", subject="x", saw="y"), finding("U401", subject="x", saw="y")], quiet=True)
    said = capsys.readouterr().out
    assert "U302" in said
    assert "U401" not in said


def test_many_findings_of_one_kind_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    echo_findings([finding("U703", subject=f"tensor {i}", saw="y") for i in range(12)])
    said = capsys.readouterr().out
    assert said.count("U703 error") == 1
    assert said.count("tensor ") == 5
    assert "7 more like these" in said


def test_findings_of_one_kind_with_remedies_of_their_own_are_told_in_full(
    capsys: pytest.CaptureFixture[str],
) -> None:
    echo_findings([finding("U703", subject=f"tensor {i}", saw="y", remedy=f"do {i}") for i in range(3)])
    said = capsys.readouterr().out
    assert said.count("U703 error") == 3
    assert "do 2" in said


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.00 kB"), (2_200_000_000, "2.20 GB")],
)
def test_sizes_read_as_people_say_them(count: int, text: str) -> None:
    assert format_size(count) == text


def test_counts_read_as_people_say_them() -> None:
    assert [format_count(n) for n in (272, 134_515_008, 1_100_048_384)] == ["272", "135 M", "1.10 B"]
