"""Everything that repairs look at: the folder, what it should be, and how one becomes the other.

A broken folder is taken as a checkpoint, and its own configuration, held against a base or against the
class of the model, as what it should be. So names, experts, ties and vocabulary are found by the same
proofs as in a conversion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from unshard.base import Base, find_base
from unshard.base.configuration import TIE_FLAG, Config, lookup_int, parse_config, tie_flag
from unshard.checkpoint import Checkpoint, Layout
from unshard.errors import BaseModelError, UnshardError
from unshard.findings import Finding, finding
from unshard.match import Choices, answer_questions, outline_of, questions_for
from unshard.match.draft import Draft, new_draft
from unshard.match.fit import check_fit, fit_error, require_plain
from unshard.match.names import naming_without_base
from unshard.mending.weight_files import Weights, check_lost, file_of, lost_tensors, possible_weights
from unshard.model_folder import ModelFolder
from unshard.recipes.architectures import whole_architecture
from unshard.recipes.families import layer_count, layer_number
from unshard.recipes.ties import is_output_head
from unshard.tensors import DescribedTensor

CONFIG = "config.json"
# Where the embedding of a causal model is in published files; elsewhere a prefix may stand before it.
_EMBEDDINGS = frozenset(
    (
        "backbone.embeddings.weight",
        "gpt_neox.embed_in.weight",
        "language_model.model.embed_tokens.weight",
        "model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
        "shared.weight",
        "transformer.wte.weight",
    )
)
_SELECT = re.compile(r"--select (\S+)")
_NORM = re.compile(r"norm|(^|\.)ln_")


@dataclass(frozen=True, slots=True)
class Scene:
    """A folder and what it should be.

    Attributes:
        folder: The folder as it is.
        weights: Its files of weights.
        base: The base that a person named, or None. Its small files are those that the result needs; where
            the folder has a tokenizer of its own, that is among them.
        config_bytes: The configuration that is mended, byte for byte: the folder's own, or the base's where
            it has none; None where there is none at all.
        config: The same, parsed.
        judged: The same as the weights are held against it: classes by their whole names, ties as the base
            has them where the weights prove it.
        draft: The model as it comes out, or None where that cannot be told.
        refusals: What keeps it from being told.
        findings: What a person should know besides.
    """

    folder: ModelFolder
    weights: Weights
    base: Base | None
    config_bytes: bytes | None
    config: Config | None
    judged: Config | None
    draft: Draft | None
    refusals: tuple[Finding, ...]
    findings: tuple[Finding, ...]

    @property
    def names(self) -> set[str]:
        """The files of the folder that can be read."""
        return set(self.folder.names) - {file.name for file in self.folder.unreadable}


def describe_scene(folder: ModelFolder, *, reference: str | None, download: bool) -> Scene:
    """Return what there is to mend in a folder, and what is known of how it should be.

    Raises:
        BaseModelError: The base that was named is missing or unreadable.
    """
    scenes: list[Scene] = []
    for weights in possible_weights(folder):
        scenes.append(_described(folder, weights, reference, download=download))
        if not scenes[-1].refusals:
            return scenes[-1]
    return scenes[0]


def _described(folder: ModelFolder, weights: Weights, reference: str | None, *, download: bool) -> Scene:
    """Return the scene in which these are the weights of the folder."""
    checkpoint = _as_checkpoint(folder, weights)
    base = None
    if reference is not None:
        base, _ = find_base(checkpoint, reference=reference, download=download, model_class=False)
    own = folder.json_files.get(CONFIG)
    content = own.content if own else base.config_bytes if base else None
    config = own.value if own else base.config if base else None
    bare = Scene(folder, weights, base, content, config, None, None, weights.refusals, ())
    if config is None:
        return replace(bare, refusals=(*bare.refusals, _no_config(folder)))
    try:
        parse_config(content or b"", folder.path / CONFIG)
    except BaseModelError as error:
        meaningless = finding("U904", subject=CONFIG, saw=error.message, remedy=error.hint)
        return replace(bare, refusals=(*bare.refusals, meaningless))
    return bare if bare.refusals else _matched(bare, checkpoint)


def _as_checkpoint(folder: ModelFolder, weights: Weights) -> Checkpoint:
    """Return the weights of the folder as what a reader would give, if the folder were sound."""
    tensors = {name: tensor for file in weights.files for name, tensor in file.tensors.items()}
    unread = {file.name for file in folder.unreadable}
    return Checkpoint(
        folder.path,
        folder.path,
        Layout("hugging-face", "Hugging Face folder", None, ()),
        tensors,
        files=tuple(file_of(folder, file) for file in weights.files),
        side_files={name: folder.path / name for name in folder.names if name not in unread},
    )


def _matched(scene: Scene, checkpoint: Checkpoint) -> Scene:
    """Return the scene with the model that its weights are, or the reasons why they are none."""
    assert scene.config is not None
    judged = _judged(scene.config, scene.base, checkpoint.tensors)
    known, findings = _expectation(scene, judged, checkpoint)
    draft, refusals = None, list[Finding]()
    try:
        outline = outline_of(checkpoint, known, Choices(dtype="keep"))
        require_plain(outline)
        draft = new_draft(outline, answer_questions(questions_for(outline)))
        check_fit(draft, policy="keep", tokens=scene.folder.tokens)
        if draft.mismatches:
            raise fit_error(draft)
        if outline.needs is None:  # nothing else proves that all of it is there
            refusals += check_lost(scene.folder, {*outline.naming.names, *draft.kept})
    except UnshardError as error:
        hint = _remedy(error.hint, scene)
        refusals.append(finding("U901", subject=error.subject, saw=error.problem, remedy=hint))
    draft = None if refusals else draft
    return replace(scene, judged=judged, draft=draft, refusals=tuple(refusals), findings=tuple(findings))


def _remedy(hint: str | None, scene: Scene) -> str | None:
    """Return what to do; a model is chosen from several by a conversion, since mending leaves none out."""
    chosen = None if hint is None else _SELECT.search(hint)
    if chosen is None:
        return hint
    base = "" if scene.base is None else " --base BASE"
    return f"Take the one that is meant, such as: unshard convert FOLDER OUT{base} --select {chosen[1]}"


def _judged(config: Config, base: Base | None, tensors: Mapping[str, DescribedTensor]) -> Config:
    """Return a configuration as far as it is known already what is wrong with it."""
    judged = dict(config)
    names = config.get("architectures")
    if isinstance(names, list):
        kind, is_own = config.get("model_type"), "auto_map" in config
        told = [(str(name), whole_architecture(str(name), kind, tensors)) for name in names]
        judged["architectures"] = [
            name if whole is None or (is_own and not name.endswith(whole)) else whole for name, whole in told
        ]
    elif base is not None and base.config.get("architectures"):
        judged["architectures"] = base.config["architectures"]
    if base is not None and tie_flag(base.config) is True and not any(map(is_output_head, tensors)):
        judged[TIE_FLAG] = True
    return judged


def _expectation(scene: Scene, judged: Config, checkpoint: Checkpoint) -> tuple[Base, list[Finding]]:
    """Return what the weights are held against, and what a person should know about that."""
    base = scene.base or Base(
        scene.folder.path, CONFIG, CONFIG, scene.config_bytes or b"{}", judged, None, None
    )
    known = replace(base, config=judged)
    lost = lost_tensors(scene.folder, checkpoint.tensors.keys())
    if known.expected is not None or not (lost or _is_doubtful(checkpoint.tensors, judged)):
        return known, []
    from unshard.base.model_class import expected_from_class

    told = expected_from_class(judged)
    if told is None:
        return known, [_unchecked(scene.folder)]
    return replace(
        known,
        expected=told.tensors,
        expected_from=told.origin,
        expected_in_order=told.in_order,
        ties=told.ties,
    ), []


def _is_doubtful(tensors: Mapping[str, DescribedTensor], config: Config) -> bool:
    """Return whether names do not tell by themselves that they are whole and those of published files.

    Asking the class takes seconds; where layers are alike, as many as the configuration says, between an
    embedding of a common name and a norm, it would say nothing new.
    """
    naming = naming_without_base({name: tensor.shape for name, tensor in tensors.items()})
    names = set(naming.names.values())
    if _EMBEDDINGS.isdisjoint(names) or layer_count(names) != lookup_int(config, "num_hidden_layers"):
        return True
    numbers = {name: layer_number(name) for name in names}
    sizes = Counter(number for number in numbers.values() if number is not None)
    has_norm = any(number is None and _NORM.search(name) for name, number in numbers.items())
    return len(set(sizes.values())) > 1 or not has_norm


def _no_config(folder: ModelFolder) -> Finding:
    broken = next((file.problem for file in folder.unreadable if file.name == CONFIG), "missing")
    return finding(
        "U904",
        subject=CONFIG,
        saw=broken,
        expected="the configuration of the model",
        remedy="Name the model that training started from with --base: its configuration is taken.",
    )


def _unchecked(folder: ModelFolder) -> Finding:
    return finding(
        "U204",
        subject=folder.path.name,
        saw="no base was named, and the class of the model cannot be asked",
        expected="the names and shapes that a complete model has",
        remedy='Name the base with --base, or install transformers: pip install "unshard[hf]"',
    )
