"""Logits of a model folder, as mlx-lm computes them: its own model code, and no torch in the process.

python mlx_logits.py FOLDER LOGITS.npy TOKEN TOKEN ...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails from here on


def main() -> None:
    """Load the folder strictly and save the logits of every position, in float32."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.utils import load_model

    folder, target, *tokens = sys.argv[1:]
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(folder), strict=True)
    logits = model(mx.array([[int(token) for token in tokens]]))
    assert logits.dtype == mx.float32
    np.save(target, np.array(logits[0]))


if __name__ == "__main__":
    main()
