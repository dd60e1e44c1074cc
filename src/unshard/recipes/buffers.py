"""Tensors that are not parameters: statistics, tables and counters, which keep the dtype they have.

Source:
    `register_buffer` in transformers 5.23 and torch.nn, where buffers are persistent.
"""

from __future__ import annotations

import re

_BUFFER = re.compile(
    r"(^|[._])inv_freq$|(^|\.)rope\.freqs$|\.(running_mean|running_var|num_batches_tracked)$"
    r"|\.(e_score_correction_bias|expert_bias|masked_bias)$"
)


def is_buffer(name: str) -> bool:
    """Return whether a tensor of this name is a buffer."""
    return _BUFFER.search(name) is not None
