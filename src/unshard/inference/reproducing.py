"""Whether a model reproduces a fingerprint: deviations of its numbers, beside what rounding explains.

Compared are, in nats or units of a logit: the loss of every token, the gap between the two largest logits at
every position, and the largest logits at the last one. All of them move by at most twice what logits move by.

Tolerance:
    t = u * sqrt(L * R**2 + S**2)

    u   the unit roundoff of the coarsest dtype that either side computed in, or that weights were rounded to:
        2**-8 for bfloat16, 2**-11 for float16 and TF32, 2**-20 for float32. Products in half precision are
        summed in float32 and rounded once. Those in float32 are rounded with every term; 2**-24 times 16 is
        how that grows, as a random walk, over some hundred terms.
    R   the root mean square of the recorded losses: how far logits lie apart. A rounding inside a layer moves
        what the layer gives by u of itself, and so logits by u of their spread.
    L   the number of layers. Their roundings are independent, so they add up as a random walk.
    S   the largest recorded logit, which the head rounds by u of itself.

    At least half of all deviations must be at most t, and all of them at most 8 t. The likeliest token must
    be the recorded one wherever its gap exceeds 16 t. With experts, 1 of 100 deviations and tokens may break
    that: a router that wavers between two experts takes the other one after a rounding.

    Sound models were measured at 0.02 to 0.3 of both; docs/concepts/fingerprint.md has the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from unshard.findings import Finding, finding
from unshard.record.description import Fingerprint, SequencePrint

ROUNDOFF = {
    "float64": 2.0**-20,
    "float32": 2.0**-20,
    "float16": 2.0**-11,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-8,
}
LARGEST = 8.0
_OF_EXPERTS = 0.01
_LAYERS = 32  # of a model whose configuration does not tell


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far one number of a sequence is from the recorded one.

    Attributes:
        size: How far; infinite where only one of the two is a number.
        sequence: The name of the sequence.
        position: The position whose next token it is about.
    """

    size: float
    sequence: str
    position: int


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What comparing a model with a fingerprint shows.

    Attributes:
        sequences: How many sequences were compared.
        typical: The median deviation.
        worst: The largest deviation.
        tolerance: What a typical deviation may be.
        outliers: The share of deviations beyond 8 times that.
        allowed: What that share may be.
        equal_argmax: At how many positions the likeliest token is the recorded one.
        positions: How many positions there are.
        upset: At how many of them it is another one although the recorded gap is too large for rounding.
        dtype: The dtype whose rounding the tolerance is for.
        layers: The number of layers it is for.
        other_greedy: The sequences whose greedy continuation is another one.
    """

    sequences: int
    typical: float
    worst: Deviation
    tolerance: float
    outliers: float
    allowed: float
    equal_argmax: int
    positions: int
    upset: int
    dtype: str
    layers: int
    other_greedy: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether rounding explains all that differs."""
        few = self.upset <= self.allowed * self.positions and self.outliers <= self.allowed
        return self.typical <= self.tolerance and few

    @property
    def evidence(self) -> str:
        """What was compared, in numbers."""
        verb = "reproduces" if self.is_sound else "does not reproduce"
        return (
            f"this model {verb} training's logits: |d| {self.typical:.1e} in the median, at most "
            f"{self.worst.size:.1e}, over {self.sequences} sequences; argmax equal "
            f"{self.equal_argmax:,} of {self.positions:,} (tolerance {self.tolerance:.1e} and "
            f"{LARGEST * self.tolerance:.1e}: {self.dtype}, {self.layers} layers)"
        )


def tolerance_of(recorded: Fingerprint, *dtypes: str) -> tuple[float, str]:
    """Return what a typical deviation may be, and the dtype that it is due to.

    Args:
        recorded: The fingerprint.
        dtypes: Others that numbers were rounded to, on either side.
    """
    dtype = max((recorded.computed, *dtypes), key=lambda name: ROUNDOFF.get(name, ROUNDOFF["bfloat16"]))
    losses = [loss for one in recorded.sequences for loss in one.losses if math.isfinite(loss)]
    logits = [abs(logit) for one in recorded.sequences for logit in one.top_logits if math.isfinite(logit)]
    spread = sum(loss * loss for loss in losses) / max(len(losses), 1)
    variance = (recorded.layers or _LAYERS) * spread + max(logits, default=0.0) ** 2
    return ROUNDOFF.get(dtype, ROUNDOFF["bfloat16"]) * math.sqrt(variance), dtype


def compare_prints(
    recorded: Fingerprint,
    own: Sequence[SequencePrint],
    *,
    vocabulary: int,
    tolerance: float,
    dtype: str,
    experts: bool = False,
) -> Reproduction:
    """Return how far a model is from a fingerprint.

    Args:
        recorded: The fingerprint.
        own: What the model made of the same sequences, or of the beginnings of some; matched by name. The
            last logits count where a sequence is whole, and are those of the recorded ids.
        vocabulary: How many logits the model gives. With fewer than recorded, losses do not compare.
        tolerance: What a typical deviation may be.
        dtype: The dtype that it is due to.
        experts: Whether the model routes tokens to experts.
    """
    by_name = {one.name: one for one in recorded.sequences}
    narrower = vocabulary < recorded.vocabulary
    deviations, positions, equal, upset = list[Deviation](), 0, 0, 0
    for mine in own:
        told = by_name[mine.name]
        deviations += _deviations(told, mine, narrower=narrower)
        for theirs, ours, gap in zip(told.argmax, mine.argmax, told.gaps, strict=False):
            positions += 1
            equal += theirs == ours
            upset += theirs != ours and gap > 2 * LARGEST * tolerance
    sizes = [each.size for each in deviations]
    return Reproduction(
        sequences=len(own),
        typical=median(sizes) if sizes else 0.0,
        worst=max(deviations, key=lambda each: each.size, default=Deviation(0.0, "", 0)),
        tolerance=tolerance,
        outliers=sum(size > LARGEST * tolerance for size in sizes) / max(len(sizes), 1),
        allowed=_OF_EXPERTS if experts else 0.0,
        equal_argmax=equal,
        positions=positions,
        upset=upset,
        dtype=dtype,
        layers=recorded.layers or _LAYERS,
        other_greedy=tuple(
            mine.name
            for mine in own
            if mine.greedy_sha256 and by_name[mine.name].greedy_sha256 not in (None, mine.greedy_sha256)
        ),
    )


def _deviations(told: SequencePrint, mine: SequencePrint, *, narrower: bool) -> list[Deviation]:
    pairs = list[tuple[int, float, float]]()
    if not narrower:
        pairs += [(n, a, b) for n, (a, b) in enumerate(zip(told.losses, mine.losses, strict=False))]
        pairs += [(n, a, b) for n, (a, b) in enumerate(zip(told.gaps, mine.gaps, strict=False))]
    if len(told.tokens) == len(mine.tokens):
        last = len(told.tokens) - 1
        logits = zip(told.top_logits, mine.top_logits, strict=True)
        pairs += [(last, a, b) for a, b in logits if not (narrower and math.isnan(b))]
    return [Deviation(_apart(a, b), told.name, n) for n, a, b in pairs]


def _apart(a: float, b: float) -> float:
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b)
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else math.inf


def is_comparable(recorded: Fingerprint) -> bool:
    """Return whether training itself gave numbers: NaN reproduces nothing."""
    return bool(recorded.sequences) and all(all(map(math.isfinite, one.losses)) for one in recorded.sequences)


def check_reproduction(found: Reproduction, subject: str) -> list[Finding]:
    """Return what differs beyond rounding, and that greedy continuations do."""
    findings = []
    if not found.is_sound:
        worst = found.worst
        findings.append(
            finding(
                "U711",
                subject=subject,
                saw=f"|d| {found.typical:.2g} in the median, {worst.size:.2g} at most (`{worst.sequence}`, "
                f"position {worst.position}); argmax equal {found.equal_argmax:,} of {found.positions:,}",
                expected=f"at most {found.tolerance:.2g} and {LARGEST * found.tolerance:.2g}: "
                f"{found.dtype}, {found.layers} layers",
                remedy=_suggestion(found),
            )
        )
    elif found.other_greedy:
        findings.append(
            finding(
                "U713",
                subject=subject,
                saw=f"another continuation of {', '.join(f'`{name}`' for name in found.other_greedy)}",
                expected="that of training, but for near ties",
                remedy=None,
            )
        )
    return findings


def _suggestion(found: Reproduction) -> str:
    agreeing = found.equal_argmax / max(found.positions, 1)
    if found.typical <= found.tolerance:
        likely = (
            "Most tokens are as they were: rows of the embedding or of the head, or single experts, differ."
        )
    elif agreeing > 0.8:
        likely = (
            "Small but everywhere: a setting of config.json (rope, norm, scaling) or a computation differs."
        )
    elif agreeing > 0.1:
        likely = "A matrix or a norm of some layer, or the rope setting, is another one."
    else:
        likely = "Nothing agrees: the order of the vocabulary, of heads, or the weights are another model's."
    return f"{likely} Compare config.json with the record's, and convert the checkpoint again."
