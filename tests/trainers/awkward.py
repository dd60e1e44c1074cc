"""A module of the shapes and number formats that readers trip over."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Awkward(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A module of the shapes and number formats that readers trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(3, 5)
        self.narrow = nn.Linear(5, 1, bias=False)
        self.tied = nn.Linear(3, 5, bias=False)
        self.tied.weight = self.wide.weight
        self.register_buffer("scalar", torch.tensor(2.5))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("steps", torch.tensor([1, -(2**40), 3]))
        self.register_buffer("mask", torch.tensor([[True, False, True]]))
        self.register_buffer("odd_floats", torch.tensor([1.5, float("inf"), -0.0], dtype=torch.float16))

    def forward(self, values: torch.Tensor) -> Any:
        """Use every parameter."""
        return self.narrow(self.wide(values) + self.tied(values)).sum()
