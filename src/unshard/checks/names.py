"""The names of a model folder's tensors: what loaders, which look names up exactly, will not find.

A loader that does not find a name does not fail: transformers gives the weights random values and warns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from unshard.base.configuration import Config, lookup
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.model_folder import ModelFolder
from unshard.recipes.experts import RECIPES
from unshard.recipes.recomputable import recomputable_kind
from unshard.recipes.schemes import detect_scheme
from unshard.recipes.wrappers import WRAPPERS, without_segments, wrappers_in
from unshard.sizes import counted

_MEND = "Write the names that the model class has: unshard mend FOLDER OUT --base BASE"

# A container's name before every name of the model, and who puts it there. `model.` counts only where
# the model's own names, which begin with it as well, stand behind it.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("module.", "DDP or DeepSpeed"),
    ("base_model.model.", "PEFT"),
    ("model.model.", "Lightning, or a model in a model"),
    ("model.transformer.", "Lightning, or a model in a model"),
    ("state_dict.", "a container"),
    ("network.", "a trainer"),
    ("policy.", "a trainer of reinforcement learning"),
    ("actor.", "a trainer of reinforcement learning"),
    ("llm.", "a trainer"),
)
_INNER = "model."
# Parts of names of models that stand beside the one that is meant, where training had several.
_OTHER_MODELS = re.compile(
    r"^(?:model\.|module\.)?((?:model_)?ema(?:_model)?|teacher(?:_model)?|student(?:_model)?|ref(?:erence)?_model"
    r"|target_model|momentum_\w+|shadow(?:_params)?|old_policy|critic(?:_module)?|reward_model)\."
)
# Heads that reinforcement learning puts onto a language model: TRL, OpenRLHF, verl, trlx.
_VALUE_HEADS = re.compile(r"(^|\.)(v_head|value_head|critic_head|reward_head|score_head)\.")


def _check_wrappers(evidence: Evidence) -> Iterator[Finding]:
    """Yield segments of training wrappers: no engine finds a name that has one."""
    folder = evidence.folder
    names = folder.tensors if folder else {}
    for segment, count in wrappers_in(names).items():
        example = next(name for name in names if segment in name.split("."))
        yield finding(
            "U220",
            subject=quoted(segment),
            saw=f"{count:,} of {counted(len(names), 'name')} have the segment of {WRAPPERS[segment]}:"
            f" {quoted(example)}",
            expected=quoted(without_segments(example, WRAPPERS)),
            remedy=_MEND,
        )


def _check_prefix(evidence: Evidence) -> Iterator[Finding]:
    """Yield what stands before every name and belongs to a container of the model."""
    folder = evidence.folder
    names = list(folder.tensors) if folder else []
    plain = {name: without_segments(name, WRAPPERS) for name in names}
    found = next(((p, who) for p, who in _PREFIXES if _is_before_all(p, list(plain.values()))), None)
    if found is None:
        return
    prefix, who = found
    prefix = _INNER if prefix.startswith("model.") else prefix
    first = plain[names[0]]
    yield finding(
        "U221",
        subject=quoted(prefix),
        saw=f"all {counted(len(names), 'name')} begin with it, as {who} writes them: {quoted(first)}",
        expected=quoted(first.removeprefix(prefix)),
        remedy=_MEND,
    )


def _is_before_all(prefix: str, names: list[str]) -> bool:
    """Return whether a prefix stands before every name; beside `model.model.` a head has only `model.`."""
    heads = ("model.lm_head.", "model.score.", "model.classifier.") if prefix.startswith("model.") else ()
    return any(n.startswith(prefix) for n in names) and all(n.startswith((prefix, *heads)) for n in names)


def _check_several(evidence: Evidence) -> Iterator[Finding]:
    """Yield models and heads that only training needs, among the weights of the one that is meant."""
    folder = evidence.folder
    names = folder.tensors if folder else {}
    groups: dict[str, list[str]] = {}
    for name in names:
        if match := _OTHER_MODELS.match(name):
            groups.setdefault(match[0], []).append(name)
    for prefix, members in groups.items():
        yield finding(
            "U224",
            subject=quoted(prefix),
            saw=f"{len(members):,} of {counted(len(names), 'tensor')}: {named(members)}",
            expected="the tensors of one model",
            remedy=f"Take the one that is meant: unshard convert FOLDER OUT --select {prefix.rstrip('.')}",
        )
    heads = [name for name in names if _VALUE_HEADS.search(name)]
    if heads and _generates(evidence.config):
        yield finding(
            "U225",
            subject=named(heads),
            saw=f"{counted(len(heads), 'tensor')} of a head that only training of a policy or a reward uses",
            expected="the tensors of the class that config.json names",
            remedy="Leave them out, or name in config.json the class that has them.",
        )


def _generates(config: Config | None) -> bool:
    architectures = None if config is None else config.get("architectures")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return first.endswith(("ForCausalLM", "LMHeadModel"))


def _check_memory_names(evidence: Evidence) -> Iterator[Finding]:
    """Yield experts that lie as transformers 5 holds them in memory, and not as published files have them."""
    folder, config = evidence.folder, evidence.config
    recipe = RECIPES.get(str(lookup(config, "model_type"))) if config is not None else None
    if folder is None or recipe is None:
        return
    stacked = [fusion for fusion in recipe.fusions if fusion.is_stacked]
    fused = [n for n in folder.tensors if any(fusion.head_of(n) is not None for fusion in stacked)]
    if fused:
        fusion = next(each for each in stacked if each.head_of(fused[0]) is not None)
        head = fusion.head_of(fused[0]) or ""
        yield finding(
            "U222",
            subject=named(fused),
            saw=f"{counted(len(fused), 'tensor')} hold all experts of a layer, as transformers 5 does in"
            " memory; vLLM, SGLang, mlx-lm and llama.cpp look for each expert by itself",
            expected=quoted(recipe.rename(head + fusion.published[0].replace("*", "0"), "published")),
            remedy="Write the published names: unshard mend FOLDER OUT --layout hub",
        )


def _check_leftovers(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that the model computes itself, and that were published by old versions only."""
    tensors = evidence.folder.tensors if evidence.folder else {}
    found = [name for name, tensor in tensors.items() if recomputable_kind(name, tensor.shape)]
    if found:
        yield finding(
            "U226",
            subject=named(found),
            saw=f"{counted(len(found), 'tensor')} that the model computes; mlx-lm may refuse such names",
            expected="parameters only",
            remedy="Leave them out: unshard mend FOLDER OUT",
        )


def _check_scheme(evidence: Evidence) -> Iterator[Finding]:
    """Yield that the names are those of another program beside a configuration of Hugging Face's."""
    folder = evidence.folder
    if folder is None or "config.json" not in folder.json_files:
        return
    title = _scheme_of(folder)
    if title is not None:
        yield finding(
            "U223",
            subject=named(folder.tensors),
            saw=f"names of {title}, beside a config.json of Hugging Face's",
            expected="`model.layers.0.self_attn.q_proj.weight`, ...",
            remedy="Convert it, which reorders q and k as well: unshard convert FOLDER OUT --base BASE",
        )


def _scheme_of(folder: ModelFolder) -> str | None:
    """Return the title of the other program whose names these are, or None."""
    scheme = detect_scheme(folder.tensors)
    return None if scheme is None else scheme.title


CHECKS: tuple[Check, ...] = (
    Check("names.wrappers", ("U220",), _check_wrappers),
    Check("names.prefix", ("U221",), _check_prefix),
    Check("names.several_models", ("U224", "U225"), _check_several),
    Check("names.experts_in_memory", ("U222",), _check_memory_names),
    Check("names.leftovers", ("U226",), _check_leftovers),
    Check("names.scheme", ("U223",), _check_scheme),
)
