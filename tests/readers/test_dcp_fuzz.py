"""Metadata of DCP with any byte changed: refused with a reason, or read without a wrong value."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from awkward import read_values, true_values
from reader_suite import opened

from dcp_folders import HandWriter, tiles
from unshard.errors import InputError

CHANGES = 1500
TENSORS = {"w": torch.arange(35.0).view(7, 5), "half": torch.ones(6).half(), "n": torch.tensor(7)}


def test_changed_metadata_never_gives_a_value_that_was_not_saved(tmp_path: Path) -> None:
    writer = HandWriter(tmp_path / "run")
    for name, tensor in TENSORS.items():
        writer.add(name, tensor, tiles(tensor))
    writer.add_item("epoch", 3)
    folder = writer.finish()
    content = (folder / ".metadata").read_bytes()
    truth = set(true_values(TENSORS).values())
    chance = random.Random(9)
    refused = 0
    for _ in range(CHANGES):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 2)):
            at = chance.randrange(len(changed))
            changed[at] = chance.choice([changed[at] ^ (1 << chance.randrange(8)), content[at - 1], 0, 255])
        (folder / ".metadata").write_bytes(changed)
        try:
            values = read_values(opened(folder).tensors)
        except InputError:
            refused += 1
        else:
            assert set(values.values()) <= truth
    assert CHANGES // 2 < refused < CHANGES
