"""`unshard env`: what is printed, what a program is told, what it exits with, and what it exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import Unshard
from records_by_hand import MODEL, ON_GPUS, record, with_packages, write_record
from unshard.environment.this_machine import this_environment
from unshard.record.description import Device


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A checkpoint of eight GPUs, with its record."""
    folder = write_record(tmp_path / "run", record())
    torch.save({"model.norm.weight": torch.ones(8, dtype=torch.bfloat16)}, folder / "model.pt")
    return folder


@pytest.fixture
def unrecorded(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    folder.mkdir()
    torch.save({"model.norm.weight": torch.ones(8)}, folder / "model.pt")
    return folder


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """A record of a training on this very machine."""
    return write_record(tmp_path / "native", record(this_environment()))


def row(out: str, aspect: str) -> str:
    """Return the line of an aspect with single spaces."""
    found = next(line for line in out.splitlines() if line.strip().startswith(f"{aspect} "))
    return re.sub(r"\s+", " ", found.strip())


def test_a_recorded_training_is_shown_beside_this_machine(unshard: Unshard, recorded: Path) -> None:
    said = unshard("env", recorded)
    assert said.code == 0
    assert row(said.out, "torch") == f"torch 2.6.0+cu124 {torch.__version__} U005 info"
    assert row(said.out, "accelerator").startswith("accelerator cuda ")
    assert "inferred" not in said.out
    assert "Kernels change between versions" in said.words
    assert f"unshard env {recorded} --export requirements.txt" in said.words


def test_inferred_facts_are_marked_with_what_they_are_inferred_from(
    unshard: Unshard, unrecorded: Path
) -> None:
    said = unshard("env", unrecorded)
    assert row(said.out, "torch") == f"torch >=2.7 * {torch.__version__} same"
    assert "* inferred from" in said.out
    assert "`.format_version` in the files" in said.words
    assert "U001 info" in said.words
    assert "nothing here stands in the way of inference" in said.words


def test_a_training_on_this_machine_has_nothing_to_tell(unshard: Unshard, native: Path) -> None:
    said = unshard("env", native, "--strict")
    assert said.code == 0
    assert not re.search(r"U\d{3}", said.out)


def test_this_machine_is_described_without_a_path(unshard: Unshard) -> None:
    said = unshard("env")
    assert said.code == 0
    assert row(said.out, "torch") == f"torch {torch.__version__}"
    assert "training" not in said.out.splitlines()[1]


def test_a_program_is_told_the_same(unshard: Unshard, recorded: Path) -> None:
    told = unshard("env", recorded, "--json").json
    lines = {line["aspect"]: line for line in told["lines"]}
    assert lines["torch"]["training"] == "2.6.0+cu124"
    assert lines["torch"]["evidence"] is None
    assert (lines["torch"]["verdict"], lines["torch"]["code"]) == ("info", "U005")
    assert told["record"] == str(recorded / "unshard.record.json")
    assert told["here"]["packages"]["torch"] == torch.__version__
    assert "U005" in {found["code"] for found in told["findings"]}


def test_strict_exits_with_3_where_something_is_worse_than_a_fact(
    unshard: Unshard, recorded: Path, tmp_path: Path
) -> None:
    assert unshard("env", recorded, "--strict").code == 0
    worse = write_record(tmp_path / "worse", record(replace(ON_GPUS, default_dtype="bfloat16")))
    said = unshard("env", worse, "--strict")
    assert said.code == 3
    assert "U016 warning" in said.words
    assert "nothing here stands in the way" not in said.words
    assert unshard("env", worse).code == 0


def test_the_worst_comes_first(unshard: Unshard, tmp_path: Path) -> None:
    config = {"model_type": "model-of-2031"}
    model = replace(MODEL, config=config)
    worst = write_record(tmp_path / "run", record(replace(ON_GPUS, default_dtype="bfloat16"), model=model))
    told = re.findall(r"^  (U\d{3}) (\w+)", unshard("env", worst).out, re.MULTILINE)
    order = [severity for _, severity in told]
    assert order == sorted(order, key=["error", "warning", "info"].index)
    assert told[0] == ("U008", "error")


def test_a_damaged_record_is_told_and_the_rest_is_inferred(unshard: Unshard, unrecorded: Path) -> None:
    (unrecorded / "unshard.record.json").write_text("{")
    said = unshard("env", unrecorded, "--strict")
    assert "U724" in said.words
    assert row(said.out, "torch").startswith("torch >=2.7 *")


@pytest.mark.parametrize("width", [40, 60, 88, 200])
def test_lines_fit_into_the_terminal(
    unshard: Unshard, recorded: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = unshard("env", recorded).out
    table = [line for line in out.splitlines()[1:] if "://" not in line and str(recorded) not in line]
    assert max(map(len, table)) <= min(width, 100)
    assert "NVIDIA" in out


def test_what_a_hostile_record_says_does_not_reach_the_terminal(unshard: Unshard, tmp_path: Path) -> None:
    environment = replace(
        with_packages(ON_GPUS, torch="2.6\x1b]0;owned\x07\n# more", transformers="5.0.0\nevil==1"),
        devices=(Device("G\x1b[31mPU\r\n", "9\x00.0", 1 << 30, 1),),
    )
    run = write_record(tmp_path / "run", record(environment))
    for said in (unshard("env", run), unshard("env", run, "--export", "-")):
        assert said.code == 0
        assert all(character.isprintable() or character == "\n" for character in said.out)
    requirements = unshard("env", run, "--export", "-").out.splitlines()
    assert not [line for line in requirements if line.startswith(("evil", "torch", "transformers"))]
    assert all(re.match(r"#|[a-z_-]+==[\d.]+$", line) for line in requirements)


def test_a_recorded_environment_is_exported_as_exact_pins(unshard: Unshard, recorded: Path) -> None:
    said = unshard("env", recorded, "--export", "-")
    assert said.code == 0
    assert said.out.splitlines()[0] == "# The environment of the training, as it was recorded."
    assert "# python: 3.11.9" in said.out
    assert "# built for cu124: --index-url https://download.pytorch.org/whl/cu124\ntorch==2.6.0\n" in said.out
    assert "\ntransformers==4.57.3\n" in said.out


def test_what_pip_cannot_fetch_is_a_comment(unshard: Unshard, tmp_path: Path) -> None:
    environment = with_packages(
        ON_GPUS, torch="2.8.0a0+git1234", apex="0.1", unshard="0.1.0", flash_attn="2.8.3", vllm="0.9.0.dev1"
    )
    run = write_record(tmp_path / "run", record(environment))
    lines = unshard("env", run, "--export", "-").out.splitlines()
    pins = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert pins == {"transformers", "tokenizers", "accelerate", "safetensors", "flash-attn"}
    assert "# apex 0.1: not from PyPI" in lines
    assert "# torch 2.8.0a0+git1234: not a release, so pip does not find it" in lines
    assert lines[lines.index("flash-attn==2.8.3") - 1].startswith("# install torch first")


def test_an_inferred_environment_is_exported_as_ranges(unshard: Unshard, unrecorded: Path) -> None:
    lines = unshard("env", unrecorded, "--export", "-").out.splitlines()
    assert lines == [
        "# The environment of the training, inferred from its files.",
        "torch>=2.7  # inferred: `.format_version` in the files",
    ]


def test_an_export_is_a_file_that_pip_reads(unshard: Unshard, recorded: Path, tmp_path: Path) -> None:
    said = unshard("env", recorded, "--export", tmp_path / "requirements.txt")
    assert said.code == 0
    assert "requirements.txt" in said.err
    check = (
        "import sys; from pip._internal.req.req_file import parse_requirements\n"
        "from pip._internal.network.session import PipSession\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "found = parse_requirements(sys.argv[1], session=PipSession())\n"
        "print(sorted(Requirement(one.requirement).name for one in found))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", check, tmp_path / "requirements.txt"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == "['accelerate', 'safetensors', 'tokenizers', 'torch', 'transformers']\n"


def test_an_export_replaces_nothing(unshard: Unshard, recorded: Path, tmp_path: Path) -> None:
    place = tmp_path / "requirements.txt"
    place.write_text("mine\n")
    said = unshard("env", recorded, "--export", place)
    assert said.code == 1
    assert "already exists" in said.err
    assert place.read_text() == "mine\n"


def test_json_goes_with_an_export_to_a_file(unshard: Unshard, recorded: Path, tmp_path: Path) -> None:
    said = unshard("env", recorded, "--json", "--export", tmp_path / "pins.txt")
    assert json.loads(said.out)["lines"]
    assert (tmp_path / "pins.txt").read_text().startswith("# The environment")


def test_what_is_no_checkpoint_is_an_error_with_a_remedy(unshard: Unshard, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "log.txt").write_text("")
    said = unshard("env", tmp_path / "logs")
    assert said.code == 1
    assert said.err.startswith("error:")
    assert unshard("env", tmp_path / "nowhere").code == 1


def test_a_step_is_chosen(unshard: Unshard, tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / "run" / f"step-{step}"
        write_record(folder, record(with_packages(ON_GPUS, torch=f"2.{step}.0")))
        torch.save({"model.norm.weight": torch.ones(8)}, folder / "model.pt")
    assert row(unshard("env", tmp_path / "run").out, "torch").startswith("torch 2.2.0 ")
    assert row(unshard("env", tmp_path / "run", "--step", "1").out, "torch").startswith("torch 2.1.0 ")
