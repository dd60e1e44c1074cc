"""The files of weights in a model folder: whole, and listed where they are.

Source:
    transformers 5.23, modeling_utils.py (`_get_resolved_checkpoint_files`); transformers 4.30 to 4.44,
    modeling_utils.py (`load_state_dict`, which asks for `format`); vllm, model_executor/model_loader/
    weight_utils.py (`filter_duplicate_safetensors_files`); safetensors/README.md ("Format").
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterator

from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.model_folder import ModelFolder
from unshard.readers.training_files import training_kind
from unshard.sizes import counted, format_size
from unshard.tensors import DescribedTensor, FileSource, element_count

_INDEX_ENDING = ".index.json"
_GIANT_BYTES = 50 * 10**9
_WEIGHTS = re.compile(r".+\.(safetensors|bin|pt|pth)")
_REINDEX = "Write the index anew: unshard mend FOLDER --in-place"


def _check_readable(evidence: Evidence) -> Iterator[Finding]:
    """Yield files of weights that cannot be read, or that there are none."""
    folder = evidence.folder
    if folder is None:
        return
    broken = [found for found in folder.unreadable if _WEIGHTS.fullmatch(found.name) and not found.is_outside]
    for found in broken:
        yield finding(
            "U610",
            subject=quoted(found.name),
            saw=found.problem,
            expected="a whole file of weights",
            remedy=found.hint or "Copy or download the file again.",
        )
    if not folder.weights and not broken and not any(found.is_outside for found in folder.unreadable):
        there = f"only {named(folder.other_weights)}" if folder.other_weights else "none"
        yield finding(
            "U622",
            subject=folder.path.name,
            saw=there,
            expected="model.safetensors, or the files that an index names",
            remedy="Convert the training checkpoint: unshard convert RUN FOLDER --base BASE",
        )


def _check_index(evidence: Evidence) -> Iterator[Finding]:
    """Yield where the index and the files disagree, in both directions."""
    folder = evidence.folder
    if folder is None:
        return
    unread_indexes = [found for found in folder.unreadable if found.name.endswith(_INDEX_ENDING)]
    for found in unread_indexes:
        yield finding(
            "U611", subject=found.name, saw=found.problem, expected="a file for each tensor", remedy=_REINDEX
        )
    if folder.index is None:
        yield from () if unread_indexes else _without_index(folder)
        return
    name, listed = folder.index.name, _weight_map(folder)
    if not listed:
        yield finding(
            "U611", subject=name, saw="no weight_map", expected="a file for each tensor", remedy=_REINDEX
        )
        return
    if _is_overridden(folder):
        return
    homes: dict[str, set[str]] = {}
    for file in folder.weights:
        for tensor in file.tensors:
            homes.setdefault(tensor, set()).add(file.name)
    unread = {found.name for found in folder.unreadable}
    absent = sorted({file for file in listed.values() if file not in folder.names and file not in unread})
    if absent:
        lost = [tensor for tensor, file in listed.items() if file in absent]
        saw = f"{named(absent)} missing, with {counted(len(lost), 'tensor')}: {named(lost)}"
        remedy = "Copy or download the missing files into the folder."
        yield finding("U611", subject=name, saw=saw, expected="every file that it names", remedy=remedy)
    gone = [t for t, file in listed.items() if file not in {*absent, *unread} and t not in homes]
    if gone:
        saw = f"{counted(len(gone), 'tensor')} in no file: {named(gone)}"
        yield finding("U611", subject=name, saw=saw, expected="every tensor that it names", remedy=_REINDEX)
    moved = [t for t, file in listed.items() if t in homes and file not in homes[t]]
    unlisted = [t for t in homes if t not in listed]
    for tensors, what in ((moved, "in another file than it says"), (unlisted, "not listed")):
        if tensors:
            saw = f"{counted(len(tensors), 'tensor')} {what}: {named(tensors)}"
            yield finding(
                "U612", subject=name, saw=saw, expected="every tensor where it lies", remedy=_REINDEX
            )


def _is_overridden(folder: ModelFolder) -> bool:
    """Return whether one file of the whole model lies beside the parts that an index names."""
    whole = [file.name for file in folder.weights if file.name in ("model.safetensors", "pytorch_model.bin")]
    named_files = _weight_map(folder).values()
    return bool(whole) and (len(folder.weights) > 1 or any(file not in whole for file in named_files))


def _weight_map(folder: ModelFolder) -> dict[str, str]:
    """Return the file of every tensor as the index has it; nothing where none can be read."""
    listed = folder.index.value.get("weight_map") if folder.index else None
    found = listed if isinstance(listed, dict) else {}
    return found if all(isinstance(file, str) for file in found.values()) else {}


def _without_index(folder: ModelFolder) -> Iterator[Finding]:
    if len(folder.weights) > 1 and not _is_overridden(folder):
        yield finding(
            "U614",
            subject=folder.path.name,
            saw=f"{len(folder.weights)} files of weights: {named(file.name for file in folder.weights)}",
            expected="an index that names them",
            remedy=_REINDEX,
        )


def _check_override(evidence: Evidence) -> Iterator[Finding]:
    """Yield where one file hides the others: engines that look for it first read nothing else."""
    folder = evidence.folder
    if folder is None or not _is_overridden(folder):
        return
    first, *others = folder.weights
    hidden = {name for file in others for name in file.tensors} - first.tensors.keys()
    beside = (
        named(file.name for file in others) if others else quoted(folder.index.name if folder.index else "")
    )
    yield finding(
        "U616",
        subject=quoted(first.name),
        saw=f"it lies beside {beside}; transformers reads it alone"
        + (
            f", and {counted(len(hidden), 'tensor')} of the others never: {named(sorted(hidden))}"
            if hidden
            else ""
        ),
        expected="one set of weights",
        remedy="Remove the set that is not meant, its index included.",
    )


def _check_twice(evidence: Evidence) -> Iterator[Finding]:
    """Yield tensors that lie in several files."""
    folder = evidence.folder
    if folder is None or _is_overridden(folder):
        return
    counts = Counter(name for file in folder.weights for name in file.tensors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        files = [file.name for file in folder.weights if twice[0] in file.tensors]
        yield finding(
            "U613",
            subject=named(twice),
            saw=f"in {' and in '.join(map(quoted, files[:3]))}",
            expected="one file",
            remedy="Remove the file that is not meant, then: unshard mend FOLDER --in-place",
        )


def _check_total_size(evidence: Evidence) -> Iterator[Finding]:
    """Yield where the index gives another size than the tensors have together."""
    folder = evidence.folder
    if folder is None or folder.index is None or folder.unreadable:
        return
    metadata = folder.index.value.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(element_count(t) * t.dtype.itemsize for t in folder.tensors.values())
    if type(said) in (int, float) and said != total:
        yield finding(
            "U615", subject=folder.index.name, saw=f"total_size {said}", expected=f"{total}", remedy=_REINDEX
        )


def _check_form(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is allowed in files of weights and still makes some programs stumble."""
    for file in evidence.folder.weights if evidence.folder else ():
        if file.size > _GIANT_BYTES:
            yield finding(
                "U617",
                subject=quoted(file.name),
                saw=format_size(file.size),
                expected="files of a few GB, which load in parallel and can be sent again alone",
                remedy="Split it: unshard mend FOLDER OUT --max-shard-size 5GB",
            )
        if not file.name.endswith(".safetensors"):
            yield finding(
                "U618",
                subject=quoted(file.name),
                saw="a file of torch.save, which is a pickle; mlx-lm and mistral.rs read safetensors only",
                expected="safetensors",
                remedy="Convert it: unshard mend FOLDER OUT",
            )
            continue
        if file.tensors and "format" not in file.metadata:
            yield finding(
                "U623",
                subject=quoted(file.name),
                saw="no `format` in its header; older versions of transformers 4 refuse such a file",
                expected='{"format": "pt"}',
                remedy='Save it with the metadata that save_pretrained writes: {"format": "pt"}.',
            )
        odd = [name for name, tensor in file.tensors.items() if not _is_aligned(tensor)]
        if odd:
            yield finding(
                "U624",
                subject=quoted(file.name),
                saw=f"{counted(len(odd), 'tensor')} at offsets their dtype does not divide: {named(odd)}",
                expected="aligned tensors, which can be mapped into memory",
                remedy="Write the file anew, with the tensors in the order of safetensors: save_file does.",
            )


def _is_aligned(tensor: DescribedTensor) -> bool:
    sources = [piece.source for piece in tensor.pieces]
    return all(s.offset % s.dtype.itemsize == 0 for s in sources if isinstance(s, FileSource))


def _check_neighbours(evidence: Evidence) -> Iterator[Finding]:
    """Yield files beside the weights that change what an engine reads, or should not be published."""
    folder = evidence.folder
    if folder is None:
        return
    native = [n for n in folder.other_weights if re.fullmatch(r"consolidated.*\.safetensors", n)]
    if native and folder.weights and "params.json" not in folder.names:
        yield finding(
            "U619",
            subject=named(native),
            saw="vLLM and SGLang take this name for Mistral's own format, which needs a params.json",
            expected="no file of this name beside a Hugging Face model",
            remedy="Rename or remove it; or start with --load-format safetensors --config-format hf.",
        )
    state = [name for name in folder.names if "/" not in name and training_kind(name) not in (None, "step")]
    if state:
        yield finding(
            "U620",
            subject=named(state),
            saw=f"{counted(len(state), 'file')} that only training needs",
            expected="files that inference needs",
            remedy="Leave them out of what is published; engines that take every *.pt read them as weights.",
        )
    private = [file.name for file in folder.weights if _is_private(folder, file.name)]
    if private:
        yield finding(
            "U625",
            subject=named(private),
            saw="only its owner may read it",
            expected="a file that the user of the engine may read",
            remedy="chmod a+r FILE",
        )


def _is_private(folder: ModelFolder, name: str) -> bool:
    try:
        return not (folder.path / name).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except OSError:
        return False


def _check_state(evidence: Evidence) -> Iterator[Finding]:
    """Yield that the folder is growing, links that were not followed, and small files that are broken."""
    folder = evidence.folder
    if folder is None:
        return
    if folder.is_growing:
        yield finding(
            "U626",
            subject=folder.path.name,
            saw="temporary files of a download or a save lie in it",
            expected="a folder that is finished",
            remedy="Wait until it is, or start the download again; then run the command again.",
        )
    outside = [found.name for found in folder.unreadable if found.is_outside]
    if outside:
        yield finding(
            "U628",
            subject=named(outside),
            saw="links that lead out of the folder; they were not read",
            expected="files in the folder, or in the blobs of the same hub cache",
            remedy="Put the files themselves there: cp -L LINK COPY && mv COPY LINK",
        )
    for found in folder.unreadable:
        is_told_elsewhere = found.name == "config.json" or found.name.endswith(_INDEX_ENDING)
        if found.name.endswith(".json") and not is_told_elsewhere and not found.is_outside:
            yield finding(
                "U627",
                subject=quoted(found.name),
                saw=found.problem,
                expected="a JSON object that every engine reads alike",
                remedy=found.hint or "Copy the file again from the model it belongs to.",
            )


CHECKS: tuple[Check, ...] = (
    Check("weight_files.readable", ("U610", "U622"), _check_readable),
    Check("weight_files.index", ("U611", "U612", "U614"), _check_index),
    Check("weight_files.twice", ("U613",), _check_twice),
    Check("weight_files.total_size", ("U615",), _check_total_size),
    Check("weight_files.override", ("U616",), _check_override),
    Check("weight_files.form", ("U617", "U618", "U623", "U624"), _check_form),
    Check("weight_files.neighbours", ("U619", "U620", "U625"), _check_neighbours),
    Check("weight_files.state", ("U626", "U627", "U628"), _check_state),
)
