"""Fixtures: what real ranks left that took fingerprints, made once for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers.fingerprint_runs import run_all, write_lively_base
from trainers.ranks import run_ranks


@pytest.fixture(scope="session")
def fingerprinted_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks left: runs with records, and what they saw of each other."""
    root = tmp_path_factory.mktemp("fingerprinted")
    write_lively_base(root / "base-float32", torch.float32)
    write_lively_base(root / "base-bfloat16", torch.bfloat16)
    run_ranks(2, run_all, str(root), timeout_seconds=240)
    return root
