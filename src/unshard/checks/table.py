"""Every check, in the order in which they are run. A check is independent of all others."""

from __future__ import annotations

from collections.abc import Iterator

from unshard.checks import (
    adapters,
    against_base,
    base_settings,
    configuration,
    layers,
    model_class,
    names,
    quantised,
    record,
    serving,
    shapes,
    tied_weights,
    tokens,
    values_arrangement,
    values_cast,
    values_change,
    values_numbers,
    values_siblings,
    values_tails,
    weight_files,
)
from unshard.checks.evidence import Check, Evidence
from unshard.findings import Finding

CHECKS: tuple[Check, ...] = (
    *weight_files.CHECKS,
    *configuration.CHECKS,
    *names.CHECKS,
    *adapters.CHECKS,
    *layers.CHECKS,
    *shapes.CHECKS,
    *tied_weights.CHECKS,
    *tokens.CHECKS,
    *base_settings.CHECKS,
    *against_base.CHECKS,
    *model_class.CHECKS,
    *quantised.CHECKS,
    *serving.CHECKS,
    *record.CHECKS,
    *values_numbers.CHECKS,
    *values_tails.CHECKS,
    *values_siblings.CHECKS,
    *values_cast.CHECKS,
    *values_change.CHECKS,
    *values_arrangement.CHECKS,
)


# A finding is not told where a more exact one says the same: it, and those that say it better.
_SAID_BY: dict[str, frozenset[str]] = {
    "U230": frozenset(("U232", "U236", "U237", "U238", "U304")),
    "U535": frozenset(("U511", "U530", "U531", "U532", "U533")),
    "U536": frozenset(("U511", "U530", "U531", "U532", "U533", "U535")),
}


def run_checks(evidence: Evidence) -> Iterator[Finding]:
    """Yield what every check finds, each cause once."""
    found = [item for check in CHECKS for item in check.find(evidence)]
    codes = {item.code for item in found}
    yield from (item for item in found if codes.isdisjoint(_SAID_BY.get(item.code, ())))
