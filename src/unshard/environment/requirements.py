"""The environment of training as a requirements.txt: exact where it was recorded, else ranges."""

from __future__ import annotations

import re
from collections.abc import Iterator

from unshard.environment.description import EnvironmentComparison, Line
from unshard.environment.this_machine import PACKAGES
from unshard.environment.versions import is_pinnable, parse_range
from unshard.errors import printable

# What PyPI has under another name or not at all, and what only told of the training.
_NOT_FROM_PYPI = frozenset(("apex", "flash-attn-3", "unshard"))
_NEED_TORCH_TO_BUILD = frozenset(("flash-attn", "causal-conv1d", "mamba-ssm", "transformer-engine"))
# What the builds of torch are called by the devices that they are for.
_BUILD = re.compile(r"(cu|rocm|xpu|cpu)[0-9.]{0,8}")


def requirements(comparison: EnvironmentComparison) -> str:
    """Return the lines of a requirements.txt that recreate the environment of training.

    Without a checkpoint they are those of this machine. Nothing of them comes from a file unchecked: names
    are of the allow-list, versions are of the form that pip takes, everything else is a comment of one line.
    """
    return "".join(f"{line}\n" for line in _lines(comparison))


def _lines(comparison: EnvironmentComparison) -> Iterator[str]:
    known = {line.aspect: line for line in comparison.lines}
    whose = "this machine" if comparison.path is None else "the training"
    how = "inferred from its files" if comparison.path and not comparison.record else "as it was recorded"
    yield _comment(f"The environment of {whose}" + ("" if comparison.path is None else f", {how}") + ".")
    for aspect in ("python", "system", "devices", "cuda", "rocm", "driver"):
        if aspect in known and (value := _value(known[aspect], comparison)):
            yield _comment(f"{aspect}: {value}")
    for name in PACKAGES:
        if name in known and (value := _value(known[name], comparison)):
            yield from _requirement(name, value, known[name].evidence)


def _value(line: Line, comparison: EnvironmentComparison) -> str | None:
    return line.here if comparison.path is None else line.training


def _requirement(name: str, version: str, evidence: str | None) -> Iterator[str]:
    """Yield the line of a package, and before it what a person has to know of it."""
    if name in _NOT_FROM_PYPI:
        yield _comment(f"{name} {version}: not from PyPI")
    elif evidence is not None:
        found = parse_range(version)
        if found is not None:
            bounds = f"=={version}" if found.is_exact and is_pinnable(version) else str(found)
            yield f"{name}{bounds}  {_comment(f'inferred: {evidence}')}"
    elif not is_pinnable(version) or not _is_released(version):
        yield _comment(f"{name} {version}: not a release, so pip does not find it")
    else:
        build = version.partition("+")[2]
        if build and name == "torch":
            yield _comment(f"built for {build}: --index-url https://download.pytorch.org/whl/{build}")
        if name in _NEED_TORCH_TO_BUILD:
            yield _comment("install torch first, and then this: pip install --no-build-isolation")
        yield f"{name}=={version.partition('+')[0]}"


def _is_released(version: str) -> bool:
    """Return whether a version is no nightly one and not built by hand."""
    public, _, build = version.partition("+")
    return ".dev" not in public and (not build or _BUILD.fullmatch(build) is not None)


def _comment(text: str) -> str:
    """Return a text that may come from anybody as a comment of one line."""
    return "# " + printable(text).replace("\n", "\\n")
