"""Does the model on disk behave as training did? Its logits beside those that the sharded model gave.

What the tolerance is and how it comes about stands in `unshard.inference.reproducing` and in
docs/concepts/fingerprint.md. Torch and transformers are imported only when a model is really run.

Memory:
    One model, mapped from its files; activations and logits of one recorded sequence.
"""

from __future__ import annotations

import gc
from pathlib import Path

from unshard.errors import InferenceError
from unshard.findings import finding
from unshard.inference.packages import require_packages
from unshard.proof.levels import Level, verdict_of
from unshard.record.description import Record


def verify_fingerprint(folder: Path, record: Record) -> Level:
    """Return what running the model in `folder` on the recorded sequences shows.

    Args:
        folder: A model folder with safetensors files, which transformers loads.
        record: The record of the training, with a fingerprint.

    Raises:
        MissingExtraError: torch, transformers or accelerate is not installed.
    """
    require_packages("the fingerprint")
    from unshard.inference.building import build_from_folder
    from unshard.inference.fingerprint_check import check_fingerprint
    from unshard.inference.tokenizing import load_tokenizer

    gc.collect()  # models hold themselves in circles; the one of the forward pass must be gone
    try:
        model = build_from_folder(folder)
        check = check_fingerprint(model, load_tokenizer(folder)[0], record)
    except InferenceError as error:
        untried = finding("U714", subject=folder.name, saw=error.message, remedy=error.hint)
        return Level("fingerprint", "not checked", (error.problem,), (untried,))
    assert check is not None
    verdict = verdict_of(check.findings)
    if check.reproduction is None:
        reason = check.findings[-1].saw
        return Level(
            "fingerprint", "not checked" if verdict == "sound" else verdict, (reason,), check.findings
        )
    return Level("fingerprint", verdict, (check.reproduction.evidence,), check.findings)
