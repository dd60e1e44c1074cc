"""Where a model came from, as its manifest tells: a file that anybody may have written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unshard.manifest import Manifest
from unshard.report.contents import Fact, ListedFile, Provenance

_TITLES = {
    "title": "Layout",
    "writer": "Written by",
    "place": "Place",
    "step": "Step",
    "container": "Container",
    "select": "Selected",
}
# An option that was left as it is tells nothing.
_UNTOLD = (None, False, "")


def provenance_of(manifest: Manifest) -> Provenance:
    """Return where everything came from; what is not as it should be in the manifest is left out."""
    source, base = _mapping(manifest.source), _mapping(manifest.base)
    facts = [Fact(title, _lines(source.get(key))) for key, title in _TITLES.items()]
    facts.append(Fact("Base", (*_lines(base.get("name")), *_lines(base.get("found")))))
    facts.append(Fact("Options", _options(_mapping(manifest.options))))
    facts.append(Fact("Made", (*_lines(manifest.created), f"unshard {manifest.unshard}")))
    edits = _mapping(manifest.config_edits)
    return Provenance(
        facts=tuple(fact for fact in facts if fact.lines),
        sources=tuple(
            ListedFile(str(f.get("name")), _size(f.get("size"))) for f in _rows(source.get("files"))
        ),
        files=tuple(
            ListedFile(str(f.get("name")), None, _text(f.get("origin")), _text(f.get("sha256")))
            for f in _rows(manifest.side_files)
        ),
        dropped=tuple((str(d.get("source")), str(d.get("reason"))) for d in _rows(manifest.dropped)),
        edits={str(key): str(value) for key, value in edits.items()},
    )


def _options(options: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(f"{key} {value}" for key, value in options.items() if value not in _UNTOLD)


def _lines(value: object) -> tuple[str, ...]:
    return () if value in _UNTOLD else (str(value),)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: object) -> Iterable[Mapping[str, object]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []
