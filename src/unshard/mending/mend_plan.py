"""What mending a folder will do, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unshard.findings import Finding, Severity
from unshard.mending.repairs import Repair
from unshard.mending.texts import PlannedText
from unshard.mending.weight_plans import PlannedWeights, Tensors


@dataclass(frozen=True, slots=True)
class MendPlan:
    """Everything that mending a folder will do.

    Attributes:
        path: The folder.
        repairs: What is mended, and why.
        refusals: What cannot be mended, and why; nothing at all is, where one of them is an error.
        findings: What a person should know besides.
        weights: Every file of weights of the result, and those that go.
        texts: Every small file that changes.
        renamed: How many tensors get another name.
        tensors: The tensors of the result by name.
        leftovers: Files that are no part of the model, and stay where they are.
    """

    path: Path
    repairs: tuple[Repair, ...]
    refusals: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    weights: tuple[PlannedWeights, ...] = ()
    texts: tuple[PlannedText, ...] = ()
    renamed: int = 0
    tensors: Tensors | None = None
    leftovers: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether something that cannot be known keeps the folder from being mended."""
        return any(item.severity is Severity.ERROR for item in self.refusals)

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.texts) or any(file.changes for file in self.weights)

    @property
    def written_bytes(self) -> int:
        """Bytes that mending in place writes."""
        whole = sum(f.output.size for f in self.weights if f.output and f.fate in ("copied", "written"))
        headers = sum(len(f.header or b"") for f in self.weights if f.fate == "header")
        return whole + headers + sum(text.after.size for text in self.texts if text.after)

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        return {
            "path": str(self.path),
            "repairs": [{"name": r.name, "what": r.what, "why": r.why} for r in self.repairs],
            "refusals": [item.to_json() for item in self.refusals],
            "findings": [item.to_json() for item in self.findings],
            "weights": [
                {"name": f.name, "fate": f.fate, "source": f.source, "tensors": len(f.tensors)}
                for f in self.weights
            ],
            "texts": [{"name": t.name, "diff": list(t.diff)} for t in self.texts],
            "renamed": self.renamed,
            "written_bytes": self.written_bytes,
            "leftovers": list(self.leftovers),
        }
