"""A model folder, read leniently: what is broken is described, not refused.

The folder may be anybody's. Files are opened only where they are plain files in the tree, or links into
the blobs of the same hub cache; sizes are looked at before content; nothing is executed or rendered.

Memory:
    The small files, and the headers of the weights: a few hundred bytes per tensor.
"""

from __future__ import annotations

from pathlib import Path

from unshard.errors import InputError
from unshard.match.tokens import count_tokens
from unshard.model_folder.description import JsonFile, ModelFolder, Unreadable, WeightsOfFile
from unshard.model_folder.json_files import read_json_file
from unshard.model_folder.listing import Listing, list_model_folder, require_folder
from unshard.model_folder.tokenizer_files import read_added_tokens, read_chat_template
from unshard.model_folder.weight_files import choose_weights, describe_weights
from unshard.record.description import RECORD_NAME
from unshard.storage.files import InputFile

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Vocabularies, objects of hundreds of thousands of entries, which are counted where they lie; and the record
# of training, which has its own reader.
_LARGE = frozenset(("tokenizer.json", "vocab.json", "tekken.json", RECORD_NAME))

_OBJECTS = frozenset(("config.json", "generation_config.json", "tokenizer_config.json"))


def read_model_folder(path: Path) -> ModelFolder:
    """Return a model folder as it is, broken or not; no tensor is read.

    Raises:
        InputError: There is no folder at `path`, or it cannot be listed.
    """
    require_folder(path)
    listing = list_model_folder(path)
    unreadable = [_not_followed(name) for name in listing.outside]
    chosen, others = choose_weights(listing.names)
    described = [describe_weights(path / name, name) for name in chosen]
    weights = tuple(found for found in described if isinstance(found, WeightsOfFile))
    unreadable += [found for found in described if isinstance(found, Unreadable)]
    json_files, unread = _json_files(listing)
    index = _index_name(json_files, chosen)
    return ModelFolder(
        path=path,
        names=listing.names,
        weights=weights,
        other_weights=tuple(others),
        index=json_files.pop(index) if index else None,
        json_files=json_files,
        chat_template=read_chat_template(json_files, _file(listing, "chat_template.jinja")),
        tokens=count_tokens({name: path / name for name in listing.folder.files}),
        added_tokens=read_added_tokens(json_files, _file(listing, "tokenizer.json")),
        unreadable=(*unreadable, *unread),
        is_growing=listing.is_growing,
    )


def _not_followed(name: str) -> Unreadable:
    return Unreadable(
        name,
        "is a link that leads out of the folder, and was not followed",
        "Put the file itself in its place: cp --remove-destination $(readlink -f LINK) LINK",
        is_outside=True,
    )


def _json_files(listing: Listing) -> tuple[dict[str, JsonFile], list[Unreadable]]:
    """Return the JSON objects at the top, and the files that should be some and are not."""
    found: dict[str, JsonFile] = {}
    unread: list[Unreadable] = []
    for name in listing.folder.files:
        if not name.endswith(".json") or name.startswith(".") or name in _LARGE:
            continue
        match read_json_file(listing.folder.at(name), name):
            case JsonFile() as file:
                found[name] = file
            case Unreadable() as problem:
                unread.append(problem)
            case None if name in _OBJECTS or name.endswith(".index.json"):
                unread.append(Unreadable(name, "is not a JSON object", "Copy the file again."))
    return found, unread


def _index_name(json_files: dict[str, JsonFile], chosen: list[str]) -> str | None:
    """Return the name of the index of the weights that are taken, or of the only one there is."""
    ending = ".safetensors" if not chosen else chosen[0][chosen[0].rfind(".") :]
    names = [name for name in _INDEXES if name in json_files]
    fitting = [name for name in names if f"{ending}.index" in name]
    return next(iter(fitting if chosen else names), None)


def _file(listing: Listing, name: str) -> InputFile | None:
    try:
        return InputFile.describe(listing.folder.at(name)) if name in listing.folder.files else None
    except InputError:
        return None
