"""What a machine tells of itself, with torch and without: versions, devices, and nothing that is secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from unshard.environment import compare_environment, this_machine
from unshard.environment.recorded import aspects_of
from unshard.environment.this_machine import (
    PACKAGES,
    SETTINGS,
    devices_of_driver,
    installed_packages,
    memory_bytes,
    parse_devices,
    this_environment,
)
from unshard.jsonable import to_json
from unshard.record.description import Device

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
from unshard.environment.this_machine import this_environment
from unshard.jsonable import to_json
print(json.dumps(to_json(this_environment())))
"""


def test_versions_are_those_that_are_installed() -> None:
    machine = this_environment()
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.packages["torch"] == torch.__version__
    assert machine.packages["transformers"] == metadata.version("transformers")
    assert set(machine.packages) <= set(PACKAGES)


def test_switches_of_torch_are_told_as_they_are_set() -> None:
    assert this_environment().settings["deterministic_algorithms"] == "False"
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        machine = this_environment()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
    assert machine.settings["deterministic_algorithms"] == "True"
    assert machine.default_dtype == "bfloat16"
    assert set(machine.settings) <= set(SETTINGS)


def test_switches_that_torch_refuses_to_tell_are_left_out() -> None:
    code = (
        "import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "from unshard.environment.this_machine import this_environment\n"
        "settings = this_environment().settings\n"
        "assert settings['matmul_fp32_precision'] == 'tf32', settings\n"
        "assert 'allow_tf32' not in settings, settings\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_no_variable_of_the_environment_and_no_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_a_test")
    told = json.dumps(to_json(this_environment()))
    assert "hf_secret_of_a_test" not in told
    assert str(Path.home()) not in told


def test_a_machine_without_torch_is_described_by_metadata_alone() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    machine = json.loads(said.stdout)
    assert machine["packages"]["transformers"] == metadata.version("transformers")
    assert (machine["accelerator"], machine["default_dtype"], machine["settings"]) == (None, None, {})


def test_packages_are_found_without_importing_them() -> None:
    code = (
        "from unshard.environment.this_machine import installed_packages\n"
        "found = installed_packages()\n"
        "import sys; assert found['torch'] and not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert installed_packages()["numpy"] == metadata.version("numpy")


def test_a_distribution_without_metadata_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm-0.9.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "vllm" not in installed_packages()


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("", ()),
        ("Tesla T4, 7.5, 15360\n", (Device("Tesla T4", "7.5", 15360 << 20, 1),)),
        ("A, B, 9.0, 81559\nA, B, 9.0, 81559\n", (Device("A, B", "9.0", 81559 << 20, 2),)),
        ("Old, [N/A], [Not Supported]\n", (Device("Old", None, None, 1),)),
        ("No devices were found\n", ()),
    ],
)
def test_devices_are_read_from_what_the_driver_lists(listed: str, expected: tuple[Device, ...]) -> None:
    assert parse_devices(listed) == expected


def program(folder: Path, text: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_devices_that_torch_does_not_use_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch uses the devices here")
    program(tmp_path, "echo 'Tesla T4, 7.5, 15360'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert this_environment().devices == ()
    assert compare_environment().here.devices == (Device("Tesla T4", "7.5", 15360 << 20, 1),)
    assert "U021" in {found.code for found in compare_environment().findings}


@pytest.mark.parametrize("text", ["exit 9", "sleep 30", "printf '\\377\\376'"])
def test_a_driver_that_fails_or_hangs_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    program(tmp_path, f"exec {text}" if text.startswith("sleep") else text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(this_machine, "_NVIDIA_SMI_SECONDS", 0.5)
    assert devices_of_driver() == ()


def test_memory_is_what_a_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory_bytes()
    assert whole is not None
    assert whole > 1 << 30
    text = this_machine._text
    limits = {"/sys/fs/cgroup/memory.max": "1048576\n"}
    monkeypatch.setattr(this_machine, "_text", lambda path: limits.get(str(path)) or text(path))
    assert memory_bytes() == 1 << 20
    limits["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory_bytes() == whole


def test_values_that_come_from_a_record_are_one_short_line_each() -> None:
    machine = this_environment()
    hostile = replace(
        machine,
        python="3\x1b[2J\n",
        packages={"torch": "2\n\x07" * 500, "rm -rf": "1"},
        devices=(Device("G\nPU", "9\x00", None, 1),) * 50,
        settings={"allow_tf32": "\x1b]0;x\x07", "PS1": "x"},
        runtimes={"cuda": "1\r2", "LD_PRELOAD": "x"},
    )
    told = dict(aspects_of(hostile))
    assert not {"rm -rf", "PS1", "LD_PRELOAD"} & told.keys()
    assert all(value.isprintable() and len(value) < 400 for value in told.values())
