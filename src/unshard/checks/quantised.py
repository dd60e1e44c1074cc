"""Whether the quantised weights of a model folder are whole, and its configuration says how they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.match.quantised import settings_in
from unshard.match.quantised_groups import Group, find_groups, halves
from unshard.recipes.quantised import BNB4, BNB8, METHODS
from unshard.sizes import counted

# Where else engines look for how weights are quantised.
_OTHER_SETTINGS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_EXCLUDED_BY = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "ignored_layers")
_KNOWN_METHODS = {method for methods in METHODS.values() for method in methods}


def find_incomplete(evidence: Evidence) -> Iterator[Finding]:
    """Yield that parts of quantised weights are missing, or that scales lie beside plain weights."""
    if evidence.folder is None:
        return
    found = list(halves(_groups(evidence), evidence.folder.tensors))
    if found:
        first = found[0]
        what = "is missing" if first.kind == "missing" else "is not quantised"
        yield finding(
            "U411",
            subject=named(each.name for each in found),
            saw=f"{quoted(first.name)} {what}: {first.saw}; {counted(len(found), 'such weight')} in all",
            expected=first.expected,
            remedy="Save the model again with its whole state dict; a scale that is lost cannot be computed.",
        )


def find_unsaid(evidence: Evidence) -> Iterator[Finding]:
    """Yield that weights are quantised and no configuration tells how."""
    groups = _groups(evidence)
    if evidence.folder is None or not groups or _settings(evidence):
        return
    if any(name in evidence.folder.json_files for name in _OTHER_SETTINGS):
        return
    kinds = sorted({group.kind for group in groups.values()})
    yield finding(
        "U412",
        subject="config.json",
        saw=f"nothing, and {counted(len(groups), 'weight')} quantised as {' and '.join(kinds)}",
        expected=f"quantization_config with quant_method {' or '.join(METHODS[kinds[0]])}",
        remedy="Write plain weights: unshard convert FOLDER OUT --dtype bfloat16; or take config.json from "
        "the model that was quantised.",
    )


def find_said_only(evidence: Evidence) -> Iterator[Finding]:
    """Yield that the configuration tells of quantisation, and no weight is quantised."""
    method = _settings(evidence).get("quant_method")
    if evidence.folder is None or method not in _KNOWN_METHODS or _groups(evidence):
        return
    tensors = evidence.folder.tensors
    if tensors and all(tensor.dtype.itemsize > 1 for tensor in tensors.values()):
        yield finding(
            "U413",
            subject="config.json",
            saw=f"quant_method {method!r}, and none of {counted(len(tensors), 'tensor')} is quantised",
            expected="no quantization_config",
            remedy="Remove it from config.json: unshard mend FOLDER, or convert the run again.",
        )


def find_other_kind(evidence: Evidence) -> Iterator[Finding]:
    """Yield that weights are quantised in another way than the configuration says, or in several ways."""
    settings = _settings(evidence)
    method = settings.get("quant_method")
    other = {
        name: group
        for name, group in _groups(evidence).items()
        if method in _KNOWN_METHODS and not _agrees(group, settings)
    }
    if other:
        kinds = sorted({group.kind for group in other.values()})
        yield finding(
            "U414",
            subject=named(other),
            saw=f"{counted(len(other), 'weight')} quantised as {' and '.join(kinds)}",
            expected=f"what config.json says: {_said(settings)}",
            remedy="Take config.json from the model that was quantised, or write plain weights: "
            "unshard convert FOLDER OUT --dtype bfloat16",
        )


def find_excluded(evidence: Evidence) -> Iterator[Finding]:
    """Yield that weights are quantised which the configuration tells engines to take as plain ones."""
    settings = _settings(evidence)
    said = [entry for key in _EXCLUDED_BY for entry in _names(settings.get(key))]
    found = [
        group.weight
        for group in _groups(evidence).values()
        if group.values is not None and any(_covers(entry, group.weight) for entry in said)
    ]
    if found:
        yield finding(
            "U415",
            subject=named(found),
            saw=f"{counted(len(found), 'weight')} quantised, of modules that config.json says are not",
            expected="plain weights there",
            remedy="Take config.json from the model that was quantised; it lists other modules.",
        )


def _groups(evidence: Evidence) -> Mapping[str, Group]:
    return {} if evidence.folder is None else find_groups(evidence.folder.tensors)


def _settings(evidence: Evidence) -> Mapping[str, object]:
    return {} if evidence.config is None else settings_in(evidence.config)


def _agrees(group: Group, settings: Mapping[str, object]) -> bool:
    """Return whether a weight is quantised as the configuration says."""
    if settings.get("quant_method") not in METHODS[group.kind]:
        return False
    said = {BNB4: "load_in_4bit", BNB8: "load_in_8bit"}.get(group.kind)
    other = {BNB4: "load_in_8bit", BNB8: "load_in_4bit"}.get(group.kind)
    return not (settings.get(str(other)) is True and settings.get(str(said)) is not True)


def _said(settings: Mapping[str, object]) -> str:
    bits = next((f" in {key[8:9]} bits" for key in ("load_in_4bit", "load_in_8bit") if settings.get(key)), "")
    return f"{settings.get('quant_method')}{bits}"


def _names(value: object) -> list[str]:
    """Return names of modules; patterns, which begin with `re:`, are left out."""
    listed_names = value if isinstance(value, list) else []
    return [name for name in listed_names if isinstance(name, str) and not name.startswith("re:")]


def _covers(entry: str, weight: str) -> bool:
    """Return whether a name of a module is that of a weight's module, or of one around it."""
    return f".{weight}".find(f".{entry.strip('.')}.") >= 0 if entry else False


CHECKS = (
    Check("quantised.whole", ("U411",), find_incomplete),
    Check("quantised.said", ("U412",), find_unsaid),
    Check("quantised.said_only", ("U413",), find_said_only),
    Check("quantised.kind", ("U414",), find_other_kind),
    Check("quantised.excluded", ("U415",), find_excluded),
)
