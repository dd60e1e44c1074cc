"""Every check, in the order in which they are run. A check is independent of all others."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.checks.evidence import Check, Evidence
from unshard.findings import Finding

CHECKS: tuple[Check, ...] = ()


def run_checks(evidence: Evidence) -> Iterator[Finding]:
    """Yield what every check finds."""
    for check in CHECKS:
        yield from check.find(evidence)
