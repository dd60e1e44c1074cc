"""config.json of a model folder: whether engines can read it, and whether it is that of the tensors.

Source:
    transformers 5.23, configuration_utils.py and modeling_rope_utils.py (`rope_parameters`);
    auto/configuration_auto.py (`model_type`); vllm, model_executor/models/registry.py (`architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from unshard.base.configuration import Config, lookup, parse_config, places_of, text_levels
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.errors import BaseModelError, printable
from unshard.findings import Finding, finding
from unshard.match.dtype_policy import main_dtype
from unshard.match.vocabulary import vocabulary_size
from unshard.recipes.architectures import family_letters, whole_architecture
from unshard.recipes.ties import TIED_BY_DEFAULT, UNTIED_BY_DEFAULT, has_row_per_token

_COPY = "Replace config.json by that of the base: remove it, then unshard mend FOLDER --in-place --base BASE"
_TWO_NAMES = "Make model_type and architectures those of one model in config.json, as its base has them"
_NO_CLASS = "no class of transformers has this name"
_CLASS = re.compile(
    r"(.+?)(For[A-Z]\w*|LMHeadModel|LMHead\w*|DoubleHeadsModel|TextModel|Model|PreTrainedModel)"
)
_NO_STRICT_JSON = re.compile(rb"(?<=[\s:,\[])(-?Infinity|NaN)(?=[\s,\]}])")


def _check_readable(evidence: Evidence) -> Iterator[Finding]:
    """Yield that config.json cannot be read, or has values that mean nothing."""
    folder = evidence.folder
    if folder is None:
        return
    for found in folder.unreadable:
        if found.name == "config.json" and not found.is_outside:
            yield finding(
                "U504", subject="config.json", saw=found.problem, expected="a JSON object", remedy=_COPY
            )
    if (file := folder.json_files.get("config.json")) is None:
        if not any(found.name == "config.json" for found in folder.unreadable):
            remedy = "Copy it from the base: unshard mend FOLDER --in-place --base BASE"
            yield finding(
                "U504", subject="config.json", saw="missing", expected="a JSON object", remedy=remedy
            )
        return
    try:
        parse_config(file.content, folder.path / "config.json")
    except BaseModelError as error:
        saw = ", ".join(filter(None, (error.problem, error.saw)))
        yield finding("U505", subject="config.json", saw=saw, expected="numbers and names", remedy=_COPY)
    if odd := _NO_STRICT_JSON.search(file.content):
        yield finding(
            "U509",
            subject="config.json",
            saw=f"{odd[1].decode()}, which is Python's, not JSON: engines in other languages may refuse it",
            expected="numbers that JSON knows",
        )


def _own(evidence: Evidence) -> Config | None:
    return None if evidence.folder is None else evidence.folder.json("config.json")


def _check_class(evidence: Evidence) -> Iterator[Finding]:
    """Yield a model type or class that is missing, misspelt, or of another family."""
    config = _own(evidence)
    if config is None:
        return
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or not kind:
        yield finding(
            "U508",
            subject="config.json",
            saw="no model_type; transformers cannot tell what model this is",
            expected="such as llama or qwen3",
            remedy=_COPY,
        )
    if not isinstance(names, list) or not names:
        yield finding(
            "U506",
            subject="config.json",
            saw="no architectures; vLLM and SGLang refuse such a model",
            expected="the name of the model's class, such as LlamaForCausalLM",
            remedy=_COPY,
        )
        return
    if isinstance(names[0], str) and isinstance(kind, str) and "auto_map" not in config:
        yield from _misspelt(names[0], kind, evidence.tensors)


def _misspelt(name: str, kind: str, tensors: Collection[str]) -> Iterator[Finding]:
    """Yield that a class has a name that differs a little from that of its model type."""
    match = _CLASS.fullmatch(name)
    stem, family = family_letters(match[1] if match else name), family_letters(kind)
    if (whole := whole_architecture(name, kind, tensors)) is not None:
        headless = name.endswith("Model") and name.removesuffix("Model") == whole[: len(name) - 5]
        what = "a class without an output head, and there is one" if headless else _NO_CLASS
        yield _wrong_class(name, kind, what, whole)
        return
    if stem == family or stem in _KNOWN:
        alike = family.startswith(stem) or stem.startswith(family)
        if family in _KNOWN and not alike:
            yield _wrong_class(name, kind, "the class of another family")
        return
    near = next((known for known in (family, *sorted(_KNOWN)) if _are_near(stem, known)), None)
    if near is not None:
        yield _wrong_class(name, kind, _NO_CLASS)


def _wrong_class(name: str, kind: str, what: str, whole: str | None = None) -> Finding:
    """Return the finding; its remedy promises a repair only where the name is known that it must have."""
    mended = f"Write {whole} into config.json: unshard mend FOLDER --in-place"
    return finding(
        "U507",
        subject="architectures",
        saw=f"{quoted(name)} beside the model_type {quoted(kind)}: {what}",
        expected=f"a class of {quoted(kind)}" if whole is None else quoted(whole),
        remedy=_TWO_NAMES if whole is None else mended,
    )


_KNOWN = frozenset(map(family_letters, TIED_BY_DEFAULT | UNTIED_BY_DEFAULT))


def _are_near(name: str, known: str) -> bool:
    """Return whether a name is one that lost its beginning or end, or has one letter too many or few."""
    if len(known) < 5 or name == known:
        return False
    if 0 < len(known) - len(name) <= 2 and name in (known[-len(name) :], known[: len(name)]):
        return True
    return len(name) == len(known) + 1 and any(name[:i] + name[i + 1 :] == known for i in range(len(name)))


def _check_code(evidence: Evidence) -> Iterator[Finding]:
    """Yield code that the configuration names and that is not in the folder."""
    config, folder = _own(evidence), evidence.folder
    entries = config.get("auto_map") if config else None
    if folder is None or not isinstance(entries, Mapping):
        return
    values = [v for value in entries.values() for v in (value if isinstance(value, list) else [value])]
    files = {
        f"{value.partition('.')[0]}.py" for value in values if isinstance(value, str) and "--" not in value
    }
    if absent := sorted(files - set(folder.names)):
        yield finding(
            "U510",
            subject="auto_map",
            saw=f"it names {named(absent)}, missing here",
            expected="the code beside config.json",
            remedy="Copy them from the base: unshard mend FOLDER --in-place --base BASE",
        )


def _check_dtype(evidence: Evidence) -> Iterator[Finding]:
    """Yield where the configuration names another dtype than most of the tensors have."""
    config = _own(evidence)
    if config is None:
        return
    said, actual = str(lookup(config, "dtype")).removeprefix("torch."), main_dtype(evidence.tensors)
    if said not in ("None", "auto") and actual is not None and said != actual.name:
        yield finding(
            "U430",
            subject="config.json",
            saw=f"{printable(said)}, and most of the tensors are {actual}",
            expected=actual.name,
            remedy=f"Set dtype to {actual.name}: unshard mend FOLDER --in-place. Engines cast to it.",
        )


def _check_vocabulary(evidence: Evidence) -> Iterator[Finding]:
    """Yield where no embedding or output head has as many rows as the configuration says."""
    config = _own(evidence)
    declared = None if config is None else vocabulary_size(config)
    rows = {n: t.shape[0] for n, t in evidence.tensors.items() if has_row_per_token(n) and len(t.shape) == 2}
    if rows and declared is not None and declared not in rows.values():
        name, count = next(iter(rows.items()))
        yield finding(
            "U511",
            subject="vocab_size",
            saw=f"{declared}, and {quoted(name)} has {count} rows",
            expected="the number of rows",
            remedy=f"Set vocab_size to {count} in config.json: unshard mend FOLDER --in-place",
        )


def _check_settings(evidence: Evidence) -> Iterator[Finding]:
    """Yield settings of training, and settings that stand twice with different values."""
    config = _own(evidence)
    if config is None:
        return
    if off := [key for key, value in places_of(config, "use_cache") if value is False]:
        yield finding(
            "U515",
            subject=", ".join(map(quoted, off)),
            saw="false, as training sets it: every token computes all before it again",
            expected="true",
            remedy="Set it to true in config.json: unshard mend FOLDER --in-place",
        )
    for path, level in text_levels(config):
        rope, plain = level.get("rope_parameters"), level.get("rope_theta")
        inner = rope.get("rope_theta") if isinstance(rope, Mapping) else None
        if None not in (inner, plain) and inner != plain:
            yield finding(
                "U519",
                subject=quoted(".".join((*path, "rope_theta"))),
                saw=f"{plain}, and {inner} in rope_parameters: transformers 5 takes this, other engines that",
                expected="one value",
                remedy=_COPY,
            )


CHECKS: tuple[Check, ...] = (
    Check("configuration.readable", ("U504", "U505", "U509"), _check_readable),
    Check("configuration.class", ("U506", "U507", "U508"), _check_class),
    Check("configuration.code", ("U510",), _check_code),
    Check("configuration.dtype", ("U430",), _check_dtype),
    Check("configuration.vocabulary", ("U511",), _check_vocabulary),
    Check("configuration.settings", ("U515", "U519"), _check_settings),
)
