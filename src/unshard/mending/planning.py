"""The plan of a mending: every repair with its reason, every file with its fate, before anything changes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from unshard.errors import OptionError, OutputError, listed
from unshard.findings import Finding, finding
from unshard.match.draft import Draft
from unshard.match.experts import possible_experts, recipes_to_try, regroup
from unshard.match.names import naming_without_base
from unshard.mending.manifest_editing import edited_manifest
from unshard.mending.mend_plan import MendPlan
from unshard.mending.repairs import REPAIRS, Repair
from unshard.mending.scene import CONFIG, Scene
from unshard.mending.texts import PlannedText
from unshard.mending.weight_files import ONE_FILE
from unshard.mending.weight_plans import (
    PlannedWeights,
    Tensors,
    has_right_index,
    plan_weights,
    weight_map_of,
)
from unshard.plan import SideFile
from unshard.recipes.experts import Side
from unshard.sizes import counted, format_size
from unshard.tensors import DescribedTensor, byte_count, element_count
from unshard.writers.json_editing import edit_json
from unshard.writers.safetensors_folder import INDEX_NAME

Layout = Literal["hub", "v5"]

_SIDES: Mapping[str, Side] = {"hub": "published", "v5": "memory"}
# Repairs of the weights and of what points to them, in the order in which they are told.
WEIGHT_REPAIRS = ("names", "experts", "format", "size", "index")
EVERY_REPAIR = (*WEIGHT_REPAIRS, *REPAIRS)
# A file of this name makes vLLM and SGLang read the whole folder in another format.
_MISLEADING = "consolidated"


def plan_mending(
    scene: Scene,
    *,
    layout: Layout | None,
    max_file_bytes: int | None,
    chosen: Collection[str],
) -> MendPlan:
    """Return what mending a folder will do.

    Args:
        scene: The folder, and what it should be.
        layout: How experts lie: one by one as published (`hub`), or together as transformers 5 has them in
            memory (`v5`); None as the base has them, else as published.
        max_file_bytes: The most bytes of tensors in a file; None leaves files as they are.
        chosen: The repairs that may be made.

    Raises:
        OptionError: `layout` means nothing for this model.
        OutputError: Names or dtypes that a safetensors file cannot hold.
    """
    told = (*scene.findings, *_leftovers_told(scene))
    if scene.draft is None or scene.config is None:
        return MendPlan(scene.folder.path, (), scene.refusals, told, leftovers=scene.weights.leftovers)
    told = (*scene.draft.outline.restored.findings, *told)
    repairs: list[Repair] = []
    refusals = list(scene.refusals)
    tensors, spare = _tensors(scene, scene.draft, layout, chosen, repairs)
    weights = _weights(scene, tensors, spare, max_file_bytes, chosen)
    held = weight_map_of(weights)
    result = {name: tensor for name, tensor in {**spare, **tensors}.items() if name in held}
    repairs += [*_file_repairs(scene, weights), *_left_out(scene.draft, spare, held)]
    for name in REPAIRS:
        for each in REPAIRS[name](scene, scene.config, tensors) if name in chosen else ():
            repairs.append(each) if isinstance(each, Repair) else refusals.append(each)
    texts = list(_edited(scene, repairs))
    if "index" in chosen or any(file.fate != "unchanged" for file in weights):
        texts += _index(scene, weights, result, repairs)
    texts += edited_manifest(scene, weights, result, repairs, texts) if repairs else []
    before = {name for file in scene.weights.files for name in file.tensors}
    return MendPlan(
        scene.folder.path,
        tuple(repairs),
        tuple(refusals),
        told,
        weights,
        tuple(texts),
        len(held.keys() - before),
        result,
        scene.weights.leftovers,
    )


def _tensors(
    scene: Scene, draft: Draft, layout: Layout | None, chosen: Collection[str], repairs: list[Repair]
) -> tuple[Tensors, Tensors]:
    """Return the tensors of the result by name, and those that it can do without; tell what was done."""
    outline = draft.outline
    everything: dict[str, DescribedTensor] = dict(outline.checkpoint.tensors)
    if "names" not in chosen or (outline.regrouped is not None and "experts" not in chosen):
        return everything, {}
    tensors: Mapping[str, DescribedTensor] = {
        target: outline.tensors[source] for target, source in draft.kept.items()
    }
    spare = {
        outline.naming.names[source]: outline.tensors[source]
        for source in draft.dropped
        if source not in outline.training_only and outline.naming.names[source] not in tensors
    }
    repairs += [*_restorations(draft), *_name_repairs(draft)]
    if layout is not None and "experts" in chosen:
        tensors = _with_layout(scene, draft, tensors, layout)
    repairs += _expert_repairs(draft, tensors, layout)
    return tensors, spare


def _expert_repairs(
    draft: Draft, tensors: Mapping[str, DescribedTensor], layout: Layout | None
) -> Iterator[Repair]:
    """Yield that experts were taken apart or put together, if they lie otherwise than before."""
    before = draft.outline.restored.tensors.values()
    old, new = set(map(id, before)), set(map(id, tensors.values()))
    made, used = len(new - old), len(old - new - _dropped(draft))
    if made:
        why = f"--layout {layout}" if layout else "experts as the files of the model have them"
        yield Repair("experts", f"{counted(used, 'tensor')} become {made:,}", why)


def _dropped(draft: Draft) -> set[int]:
    return {id(draft.outline.tensors[source]) for source in draft.dropped}


def _restorations(draft: Draft) -> Iterator[Repair]:
    """Yield what was undone before names were matched: another naming scheme, an adapter, a quantisation."""
    restored, checkpoint = draft.outline.restored, draft.outline.checkpoint
    if restored.tensors is not checkpoint.tensors:
        told = "; ".join(f"{item.title}: {item.saw}" for item in restored.findings)
        what = f"{counted(len(checkpoint.tensors), 'tensor')} become {len(restored.tensors):,} plain ones"
        edits = {CONFIG: restored.edits} if restored.edits else {}
        yield Repair("names", what, told or "a known way of saving them", edits)


def _name_repairs(draft: Draft) -> Iterator[Repair]:
    """Yield what is done to names."""
    naming = draft.outline.naming
    changed = sum(old != new for old, new in naming.names.items())
    reasons = [f"`{segment}` removed from {count:,}" for segment, count in naming.removed.items()]
    reasons += [f"`{naming.prefix}` removed from the front"] if naming.prefix else []
    reasons += [f"`{naming.added}` put to the front"] if naming.added else []
    reasons += [naming.renaming] if naming.renaming else []
    if changed:
        needs = draft.outline.needs
        proof = "segments of wrappers, which no model has" if needs is None else "an exact match to the model"
        yield Repair("names", f"{changed:,} of {counted(len(naming.names), 'name')}", _why(reasons, proof))
    gone = [source for source in draft.dropped if source in draft.outline.training_only]
    if gone:
        what = f"{counted(len(gone), 'tensor')} left out: {listed(gone)}"
        yield Repair("names", what, "state of training, which a model has no place for")


def _left_out(draft: Draft, spare: Tensors, held: Mapping[str, str]) -> Iterator[Repair]:
    """Yield what does not come along where files are written anew."""
    names = draft.outline.naming.names
    gone = {
        source: why for source, why in draft.dropped.items() if names[source] in spare.keys() - held.keys()
    }
    for why in dict.fromkeys(gone.values()):
        alike = [source for source in gone if gone[source] == why]
        yield Repair("names", f"{counted(len(alike), 'tensor')} left out: {listed(alike)}", why)


def _why(reasons: list[str], proof: str) -> str:
    return f"{'; '.join(reasons)} ({proof})" if reasons else proof


def _with_layout(
    scene: Scene, draft: Draft, tensors: Mapping[str, DescribedTensor], layout: Layout
) -> Mapping[str, DescribedTensor]:
    """Return the tensors with experts as a layout has them; those that lie so already, as they lie.

    Raises:
        OptionError: No recipe is known for the model.
    """
    assert scene.judged is not None
    recipes = list(recipes_to_try(scene.judged, ask_class=True)) if scene.judged.get("model_type") else []
    if not recipes:
        raise OptionError(
            "--layout",
            "means nothing for a model without experts that are known",
            saw=f"{layout}, and model_type {scene.judged.get('model_type')}",
            hint="Leave it out.",
        )
    experts = possible_experts(scene.judged, None)
    sides = (regroup(tensors, recipe, _SIDES[layout], experts) for recipe in recipes)
    found = next((side.tensors for side in sides if side is not None), tensors)
    outline = draft.outline
    if outline.regrouped is None or outline.regrouped.side == _SIDES[layout]:
        return found
    stem = naming_without_base({name: t.shape for name, t in outline.restored.tensors.items()})
    before = {stem.names[name]: tensor for name, tensor in outline.restored.tensors.items()}
    return {n: before[n] if n in before and before[n].shape == t.shape else t for n, t in found.items()}


def _weights(
    scene: Scene, tensors: Tensors, spare: Tensors, max_file_bytes: int | None, chosen: Collection[str]
) -> tuple[PlannedWeights, ...]:
    """Return what becomes of every file of weights, as far as that may be changed."""
    if _other_format(scene) and "format" not in chosen:
        return tuple(
            PlannedWeights(file.name, "unchanged", file.name, None, None, tuple(file.tensors))
            for file in scene.weights.files
        )
    limit = max_file_bytes if "size" in chosen else None
    return plan_weights(scene, tensors, spare, max_file_bytes=limit)


def _other_format(scene: Scene) -> list[str]:
    return [f.name for f in scene.weights.files if not f.name.endswith(".safetensors")]


def _file_repairs(scene: Scene, weights: tuple[PlannedWeights, ...]) -> Iterator[Repair]:
    """Yield what becomes of files of weights besides their headers."""
    others = _other_format(scene)
    made = [file for file in weights if file.fate != "removed"]
    if others:
        yield Repair(
            "format",
            f"{counted(len(others), 'file')} of torch's become {counted(len(made), 'file')} of safetensors",
            "engines read safetensors first, and no pickle has to be run for it; the old files stay",
        )
    elif any(file.fate == "written" for file in made) and len(made) > len(scene.weights.files):
        largest = max(f.size for f in scene.weights.files)
        yield Repair("size", f"{counted(len(made), 'file')} of weights", f"one has {format_size(largest)}")
    moved = [f for f in made if f.source is not None and f.name != f.source]
    if moved:
        names = listed([f"{file.source} -> {file.name}" for file in moved])
        yield Repair(
            "index", f"{counted(len(moved), 'file')} renamed: {names}", "no engine looks for that name"
        )


def _edited(scene: Scene, repairs: list[Repair]) -> Iterator[PlannedText]:
    """Yield the JSON files that repairs edit, and the files that they add.

    Raises:
        OutputError: An edit does not fit the file.
    """
    edits: dict[str, dict[str, object]] = {}
    for repair in repairs:
        for name, values in repair.edits.items():
            edits.setdefault(name, {}).update(values)
    added = {name: path for repair in repairs for name, path in repair.added.items()}
    for name, path in added.items():
        if name not in edits:
            yield PlannedText(name, None, SideFile(name, None, path, "base"))
    for name, values in edits.items():
        there = scene.folder.json_files.get(name)
        content = there.content if there else scene.config_bytes
        assert content is not None
        try:
            after = edit_json(content, values)
        except ValueError as error:
            raise OutputError(scene.folder.path / name, "cannot be edited", saw=str(error)) from error
        if after != content or there is None:
            origin = f"{counted(len(values), 'key')} edited"
            yield PlannedText(name, there.content if there else None, SideFile(name, after, None, origin))


def _index(
    scene: Scene, weights: tuple[PlannedWeights, ...], tensors: Tensors, repairs: list[Repair]
) -> Iterator[PlannedText]:
    """Yield the index, where it has to be another one, and tell of it."""
    there, homes = scene.folder.index, weight_map_of(weights)
    before = there.content if there is not None and there.name == INDEX_NAME else None
    files = set(homes.values())
    is_needed = files != {ONE_FILE}
    if has_right_index(scene, weights) or not (is_needed or before):
        return
    what = f"{counted(len(homes), 'tensor')} in {counted(len(files), 'file')}" if is_needed else "removed"
    why = "that is what the headers of the files say" if before else "there is none"
    why = why if is_needed else "there is one file of weights, and the index is not of it"
    repairs.append(Repair("index", f"{INDEX_NAME}: {what}", why))
    after = SideFile(INDEX_NAME, _index_of(homes, tensors), None, "the headers of the files")
    yield PlannedText(INDEX_NAME, before, after if is_needed else None)


def _index_of(homes: Mapping[str, str], tensors: Tensors) -> bytes:
    index = {
        "metadata": {
            "total_parameters": sum(map(element_count, tensors.values())),
            "total_size": sum(map(byte_count, tensors.values())),
        },
        "weight_map": homes,
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _leftovers_told(scene: Scene) -> Iterator[Finding]:
    """Yield which files beside the model are no part of it."""
    names = scene.weights.leftovers
    if names:
        misleading = [name for name in names if name.rpartition("/")[2].startswith(_MISLEADING)]
        yield finding(
            "U906" if misleading else "U907",
            subject=listed(misleading or list(names)),
            saw=f"{counted(len(names), 'file')} beside the model that are no part of it",
            expected="nothing but a model",
            remedy="They stay there. Move them out of the folder, or mend into a new one, without them.",
        )
