"""The repairs of small files: each looks at one thing, and says what it would change and why.

A repair knows nothing of the others. Those of the weights are decided where their files are planned.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unshard.base import Base
from unshard.base.configuration import TIE_FLAG, Config, places_of, text_levels, tie_flag
from unshard.base.side_files import code_files_of, is_side_file, is_tokenizer_file, makes_tokenizer
from unshard.errors import listed
from unshard.findings import Finding, finding
from unshard.match.config_edits import (
    cache_edits,
    dtype_edits,
    quantisation_edits,
    spelling_edits,
    tie_edits,
)
from unshard.match.dtype_policy import main_dtype
from unshard.match.vocabulary import vocabulary_edits
from unshard.mending.scene import CONFIG, Scene
from unshard.recipes.quantised import quantisation_kind
from unshard.sizes import counted
from unshard.tensors import Tensor

GENERATION = "generation_config.json"
# What inference needs beside a tokenizer; a licence, say, is nothing that a broken folder lacks.
_NEEDED = re.compile(r"generation_config\.json|([a-z_]+_)?(pre)?processor(_config)?\.json")
_TEMPLATE = re.compile(r"chat_template\.(jinja|json)|additional_chat_templates/.+")


@dataclass(frozen=True, slots=True)
class Repair:
    """Something that is mended.

    Attributes:
        name: Which repair it is; `--only` and `--skip` take it.
        what: What changes.
        why: What proves that it must.
        edits: New values by dotted key, by JSON file; None removes a key.
        added: Files that the folder lacks, and where they are copied from.
    """

    name: str
    what: str
    why: str
    edits: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    added: Mapping[str, Path] = field(default_factory=dict)


Tensors = Mapping[str, Tensor]
Repairing = Callable[[Scene, Config, Tensors], Iterator[Repair | Finding]]


def _repair(name: str, why: str, edits: Mapping[str, object]) -> Iterator[Repair]:
    """Yield a repair of config.json, if it changes something."""
    if edits:
        what = ", ".join(f"{key}: {'removed' if value is None else value}" for key, value in edits.items())
        yield Repair(name, f"{CONFIG}: {what}", why, {CONFIG: edits})


def _mend_architectures(scene: Scene, config: Config, _tensors: Tensors) -> Iterator[Repair | Finding]:
    """The class of the model by its whole name."""
    assert scene.judged is not None
    wanted = scene.judged.get("architectures")
    if wanted != config.get("architectures"):
        source = "the type of the model" if config.get("architectures") else "the base"
        yield from _repair(
            "architectures", f"{source} tells the class of the model", {"architectures": wanted}
        )


def _mend_ties(scene: Scene, config: Config, _tensors: Tensors) -> Iterator[Repair | Finding]:
    """The flag of tied weights, as their values are, at every level where an engine may look."""
    draft, judged = scene.draft, scene.judged
    assert draft is not None
    assert judged is not None
    tied = draft.tied
    if tie_flag(judged) is not tie_flag(config):
        tied = tie_flag(judged)  # there is no head, and the base ties it
    said = [level[TIE_FLAG] for _, level in text_levels(config) if TIE_FLAG in level]
    is_said = tie_flag(config) is tied and all(flag is tied for flag in said)
    if tied is None or (is_said and not draft.diverged):
        return
    why = {
        True: "the embedding is the output head: it is equal bit for bit, or alone as in the base",
        False: "the output head is a weight of its own: its values are not those of the embedding",
    }[tied]
    yield from _repair("ties", why, tie_edits(config, tied=tied, diverged=draft.diverged))


def _mend_dtype(_scene: Scene, config: Config, tensors: Tensors) -> Iterator[Repair | Finding]:
    """The dtype that most of the tensors have."""
    main = main_dtype(tensors)
    floats = {tensor.dtype for tensor in tensors.values() if tensor.dtype.kind == "float"}
    named = [value for _, value in places_of(config, "dtype")]
    if main is None or not _is_plain(tensors) or (not named and len(floats) > 1):
        return
    edits = dtype_edits(config, main, uniform=len(floats) == 1)
    open_ended = {key for key, value in places_of(config, "dtype") if value in (None, "auto")}
    edits = {key: value for key, value in edits.items() if key not in open_ended}
    yield from _repair("dtype", f"most of the {counted(len(tensors), 'tensor')} are {main}", edits)


def _mend_vocabulary(scene: Scene, config: Config, tensors: Tensors) -> Iterator[Repair | Finding]:
    """As many rows as embedding and head have."""
    assert scene.draft is not None
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    edits = vocabulary_edits(shapes, config, scene.draft.resize)
    rows = next(iter(edits.values()), None)
    yield from _repair("vocabulary", f"embedding and output head have {rows} rows", edits)


def _mend_spelling(_scene: Scene, config: Config, _tensors: Tensors) -> Iterator[Repair | Finding]:
    """Keys that only transformers 5 reads as it spells them, in the older spelling beside."""
    why = "only transformers 5 reads `rope_parameters`; other engines refuse it, or compute wrong logits"
    yield from _repair("spelling", why, spelling_edits(config))


def _mend_cache(scene: Scene, config: Config, _tensors: Tensors) -> Iterator[Repair | Finding]:
    """The cache that training switched off."""
    why = "training switches the cache off; without it every token is computed from all before it"
    yield from _repair("cache", why, cache_edits(config))
    generation = scene.folder.json(GENERATION)
    if generation is not None and generation.get("use_cache") is False:
        yield Repair("cache", f"{GENERATION}: use_cache: True", why, {GENERATION: {"use_cache": True}})


def _mend_quantisation(_scene: Scene, config: Config, tensors: Tensors) -> Iterator[Repair | Finding]:
    """No settings of a quantisation that the weights do not have."""
    edits = quantisation_edits(config, plain=_is_plain(tensors))
    yield from _repair("quantization", "no tensor is quantised", edits)


def _mend_files(scene: Scene, _config: Config, _tensors: Tensors) -> Iterator[Repair | Finding]:
    """Tokenizer, processor, settings of generation and chat template, from the base."""
    there, base = scene.names, scene.base
    needed = {} if base is None else _needed(scene, base)
    missing = {name: needed[name] for name in sorted(needed.keys() - there)}
    if missing and base is not None:
        why = f"missing or not readable in the folder, and the base `{base.reference}` has them"
        what = f"{counted(len(missing), 'file')} added: {listed(list(missing))}"
        yield Repair("files", what, why, added=missing)
    if not makes_tokenizer({*there, *missing}):
        yield finding(
            "U905",
            subject="tokenizer",
            saw="no file that a tokenizer can be made of, and no base"
            + ("" if base is None else " that has one"),
            expected="tokenizer.json or tokenizer.model",
            remedy="Name the model that training started from with --base.",
        )
    for file in scene.folder.unreadable:
        if file.name.endswith(".json") and not file.name.endswith(".index.json") and file.name not in missing:
            yield finding("U909", subject=file.name, saw=file.problem, remedy=file.hint)


def _needed(scene: Scene, base: Base) -> dict[str, Path]:
    """Return the files of the base that the folder needs, whether it has them or not."""
    there, files = scene.names, base.side_files
    needed = {name: path for name, path in files.items() if _NEEDED.fullmatch(name)}
    if not makes_tokenizer(there):
        needed |= {name: path for name, path in files.items() if is_tokenizer_file(name)}
    if scene.folder.chat_template is None:
        needed |= {name: path for name, path in files.items() if _TEMPLATE.fullmatch(name)}
    if "auto_map" in (scene.config or {}):
        needed |= code_files_of(base.path)
    if CONFIG not in there:
        needed[CONFIG] = base.path / CONFIG
    for file in scene.folder.unreadable:
        path = base.path / file.name
        is_same = not is_tokenizer_file(file.name) or _is_tokenizer_of(scene, base)
        if is_side_file(file.name) and path.is_file() and is_same:
            needed[file.name] = path
    return needed


def _is_tokenizer_of(scene: Scene, base: Base) -> bool:
    """Return whether the vocabulary of the folder is the base's, so that files of both may be mixed."""
    own = [name for name in scene.names if makes_tokenizer([name])]
    pairs = [(scene.folder.path / name, base.path / name) for name in own]
    return all(b.is_file() and filecmp.cmp(a, b, shallow=False) for a, b in pairs)


def _is_plain(tensors: Tensors) -> bool:
    """Return whether nothing shows a quantisation: no scales, and no packed or 8-bit numbers."""
    wide = all(tensor.dtype.itemsize > 1 or tensor.dtype.kind == "bool" for tensor in tensors.values())
    return wide and not any(map(quantisation_kind, tensors))


# By the name that people know them by; in the order in which they are told.
REPAIRS: Mapping[str, Repairing] = {
    "architectures": _mend_architectures,
    "ties": _mend_ties,
    "dtype": _mend_dtype,
    "vocabulary": _mend_vocabulary,
    "spelling": _mend_spelling,
    "cache": _mend_cache,
    "quantization": _mend_quantisation,
    "files": _mend_files,
}
