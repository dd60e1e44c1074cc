"""What several kinds of reports say alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from unshard.findings import Finding, Severity
from unshard.report.contents import Fact, ReportedTensor
from unshard.sizes import counted, format_count, format_size


def now() -> str:
    """Return the time, as people write it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def size_facts(tensors: Sequence[ReportedTensor]) -> tuple[Fact, ...]:
    """Return how many tensors there are, and how large they are."""
    if not tensors:
        return ()
    dtypes = [dtype for dtype, _ in Counter(t.dtype for t in tensors).most_common()]
    return (
        Fact("Tensors", (f"{len(tensors):,}",)),
        Fact("Parameters", (format_count(sum(math.prod(t.shape) for t in tensors)),)),
        Fact("Size", (format_size(sum(t.nbytes for t in tensors)),)),
        Fact("Dtype", (", ".join(dtypes[:3]) + (", …" if len(dtypes) > 3 else ""),)),
    )


def known_as(reference: str) -> str:
    """Return a base as others know it: its name on the hub, or the last part of its folder."""
    path = Path(reference)
    return path.absolute().name if path.exists() else reference


def problems(findings: Sequence[Finding]) -> str:
    """Return how many errors and warnings there are: `1 error and 2 warnings`; "" where there is none."""
    counts = Counter(item.severity for item in findings)
    kinds = ((Severity.ERROR, "error"), (Severity.WARNING, "warning"))
    return " and ".join(counted(counts[severity], word) for severity, word in kinds if counts[severity])


def sentence(text: str) -> str:
    """Return words with a capital and a full stop."""
    return text[:1].upper() + text[1:] + "."
