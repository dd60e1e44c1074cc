"""The small files of a model in training: its configuration, tokenizer, processor, generation settings.

Where the model that training started from is at hand, config.json is that model's own text, with exactly
the keys edited that the configuration in memory changed; it is only written anew where there is none.
Both are held against the configuration in memory, as transformers reads them, before they are taken.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from unshard.base import Base, ExpectedTensor
from unshard.base.configuration import all_levels, parse_config
from unshard.base.expectation import expected_from_weights
from unshard.base.locating import locate_base
from unshard.base.model_class import expected_from_class, registered_from_class
from unshard.base.side_files import code_files_of, is_side_file, side_files_of, with_own_tokenizer
from unshard.errors import BaseModelError, OptionError
from unshard.findings import Finding, finding
from unshard.recipes.adapters import parse_adapter_name, plain_name, without_prefix
from unshard.training.live.model import LiveModel
from unshard.training.live.module_tree import full_class_name, model_without_adapters
from unshard.training.publishing.configuration_files import (
    ConfigurationFile,
    configuration_file,
    generation_file,
    given_configuration,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CODE_KEYS = ("auto_map",)
_LARGEST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """The base that a model in training is matched to and written beside, as data that ranks can share.

    Attributes:
        reference: What training started from, in words fit for a message.
        origin: Who says so.
        config_bytes: config.json.
        expected: What the model's class needs under published names, or None where it cannot be asked or
            is not what the model is.
        expected_from: Where that comes from, in words.
        expected_in_order: Whether it is in the order in which the class registers tensors.
        ties: Names of the class that repeat another one.
        files: The content of every other small file, by name.
        findings: What a person should know.
    """

    reference: str
    origin: str
    config_bytes: bytes
    expected: Mapping[str, ExpectedTensor] | None
    expected_from: str | None
    expected_in_order: bool = False
    ties: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def base_in(self, folder: Path) -> Base:
        """Write the small files into a folder, and return the base whose they are.

        Args:
            folder: A folder of this process, which stays as long as the base is used.
        """
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / "config.json").write_bytes(self.config_bytes)
        return Base(
            path=folder,
            reference=self.reference,
            origin=self.origin,
            config_bytes=self.config_bytes,
            config=parse_config(self.config_bytes, folder / "config.json"),
            expected=self.expected,
            expected_from=self.expected_from,
            expected_in_order=self.expected_in_order,
            ties=self.ties,
            side_files={name: folder / name for name in sorted(self.files)},
        )


def prepare_base(
    model: Module,
    live: LiveModel,
    *,
    tokenizer: object = None,
    model_config: PreTrainedConfig | Mapping[str, object] | str | Path | None = None,
    base: str | Path | None = None,
) -> Prepared | None:
    """Return what a model in training is matched to, or None where it has no configuration.

    One rank calls it; the others get what it returns, and each makes a `Base` of it with `base_in`.

    Args:
        model: The model, wrapped or not.
        live: The same, described.
        tokenizer: A tokenizer, a processor, or the folder of one; without it, the base's files are taken.
        model_config: The configuration of the model where it is not its own: one of transformers', a
            mapping, or the path of a config.json.
        base: What training started from; by default what the configuration says it was loaded from, where
            that is at hand.

    Raises:
        BaseModelError: The base that was named leads nowhere, or is damaged.
        OptionError: The tokenizer or the configuration is none.
    """
    bare = model_without_adapters(model)
    config = getattr(bare, "config", None) if model_config is None else model_config
    folder = _folder_of(base, config)
    made = _configuration(bare, config, folder)
    if made is None:
        return None
    files, told = _files(bare, made, folder, tokenizer)
    prepared = Prepared(
        reference=str(base or getattr(config, "name_or_path", None) or full_class_name(bare)),
        origin="base" if base is not None else "the configuration of the model",
        config_bytes=made.content,
        expected=None,
        expected_from=None,
        files=files,
        findings=(*made.findings, *told),
    )
    return _with_expectation(prepared, bare, live, folder)


def _folder_of(base: str | Path | None, config: object) -> Path | None:
    """Return the folder of the model that training started from, or None where it is not at hand.

    Raises:
        BaseModelError: It was named, and is not there.
    """
    if base is not None:
        return locate_base(str(base), download=False)
    name = getattr(config, "name_or_path", None)
    try:
        return locate_base(name, download=False) if isinstance(name, str) and name else None
    except (BaseModelError, ValueError):
        return None


def _configuration(bare: Module, config: object, folder: Path | None) -> ConfigurationFile | None:
    """Return config.json, or None where there is nothing to make it of."""
    architecture = full_class_name(bare).rpartition(".")[2]
    if isinstance(config, Mapping | str | Path):
        return given_configuration(config, architecture)
    if hasattr(config, "to_json_string"):
        is_own = getattr(bare, "config", None) is config
        return configuration_file(config, folder, architecture=architecture if is_own else None)
    if config is not None:
        kind = type(config).__name__
        raise OptionError(
            "model_config", "is no configuration of a model", saw=kind, expected="one of transformers'"
        )
    return None


def _files(
    bare: Module, made: ConfigurationFile, folder: Path | None, tokenizer: object
) -> tuple[dict[str, bytes], tuple[Finding, ...]]:
    """Return every small file but config.json, and what is told of them."""
    found = {} if folder is None else side_files_of(folder)
    told: list[Finding] = []
    with tempfile.TemporaryDirectory() as own:
        saved = _saved_tokenizer(tokenizer, Path(own))
        files = with_own_tokenizer(found, saved) | saved
        parsed = json.loads(made.content)
        if any(key in level for _, level in all_levels(parsed) for key in _CODE_KEYS):
            code = {} if folder is None else code_files_of(folder)
            files |= code
            names = ", ".join(code) or "code that is not at hand"
            told.append(
                finding(
                    "U605", subject="config.json", saw=f"needs {names}", remedy="Read it before you run it."
                )
            )
        contents = {name: path.read_bytes() for name, path in files.items() if _is_small(path)}
    generation = generation_file(bare, folder)
    if generation is not None:
        contents["generation_config.json"] = generation
    return dict(sorted(contents.items())), tuple(told)


def _is_small(path: Path) -> bool:
    return path.stat().st_size <= _LARGEST_BYTES


def _saved_tokenizer(tokenizer: object, folder: Path) -> dict[str, Path]:
    """Return the files of a tokenizer or a processor, saved into a folder where it is an object.

    Raises:
        OptionError: It is none.
    """
    if tokenizer is None:
        return {}
    if isinstance(tokenizer, str | Path):
        place = Path(tokenizer)
        if not place.is_dir():
            raise OptionError("tokenizer", "is no folder", saw=str(tokenizer)[:200])
    elif hasattr(tokenizer, "save_pretrained"):
        place = folder
        tokenizer.save_pretrained(str(folder))
    else:
        raise OptionError(
            "tokenizer",
            "cannot be saved",
            saw=type(tokenizer).__name__,
            expected="a tokenizer or processor of transformers, or the folder of one",
        )
    return {name: path for name, path in side_files_of(place).items() if is_side_file(name)}


def _with_expectation(prepared: Prepared, bare: Module, live: LiveModel, folder: Path | None) -> Prepared:
    """Return what is prepared with what the model's class needs, where the model is what its class is."""
    config: dict[str, object] = json.loads(prepared.config_bytes)
    if not full_class_name(bare).startswith("transformers."):
        return prepared
    registered = registered_from_class(config)
    expected = None if registered is None else expected_from_class(config)
    if registered is None or expected is None:
        return prepared
    if unlike := _unlike(registered, expected.ties, live):
        told = finding(
            "U152",
            subject=full_class_name(bare).rpartition(".")[2],
            saw=f"`{unlike[0]}`" + (f" and {len(unlike) - 1} more" if len(unlike) > 1 else ""),
            expected=f"the {len(registered)} parameters of the class",
            remedy="They are saved as they are. Load the folder with the code that built the model.",
        )
        return replace(prepared, findings=(*prepared.findings, told))
    dtypes = {} if folder is None else _dtypes_in(folder)
    return replace(
        prepared,
        expected={
            name: replace(each, dtype=dtypes.get(name, each.dtype)) for name, each in expected.tensors.items()
        },
        expected_from=expected.origin,
        expected_in_order=expected.in_order,
        ties=expected.ties,
    )


def _dtypes_in(folder: Path) -> dict[str, Any]:
    """Return the dtypes of a base's own weights, where they can be read."""
    try:
        weights = expected_from_weights(folder, apart_from=())
    except BaseModelError:
        return {}
    tensors = {} if weights is None else weights.tensors
    return {name: each.dtype for name, each in tensors.items() if each.dtype is not None}


def _unlike(registered: Mapping[str, tuple[int, ...]], ties: Mapping[str, str], live: LiveModel) -> list[str]:
    """Return the parameters that are in the model and not in its class, or the other way round.

    What the class ties may be one parameter or two.
    """
    ours: dict[str, tuple[int, ...]] = {}
    for name, tensor in live.checkpoint.tensors.items():
        plain = without_prefix(name)
        parsed = parse_adapter_name(plain)
        if name not in live.buffers and (parsed is None or parsed.role in ("base", "original")):
            ours[plain if parsed is None else parsed.plain] = tensor.shape
    tied = {*ties, *(plain_name(name) for name in live.ties)}
    names = dict.fromkeys((*ours, *registered))
    return [name for name in names if name not in tied and ours.get(name) != registered.get(name)]
