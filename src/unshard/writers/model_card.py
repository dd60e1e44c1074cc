"""README.md of a model folder: a model card, made of what the record of the training tells.

    ---
    base_model: "org/name"        front matter, which the hub reads; only what the record knows
    library_name: "transformers"
    ---
    # ...                         the same and more, for people

Nothing is added that the record does not say: no licence, no language, no name of a data set that is not
there. Its values come from other people's files: every one is quoted, in YAML and in Markdown.

Source:
    huggingface_hub 2.4: repocard_data.py (`ModelCardData`), templates/modelcard_template.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from unshard.plan import SideFile
from unshard.record.description import RECORD_NAME, Environment, Record
from unshard.sizes import counted, format_count

NAME = "README.md"
_ORIGIN = "made of the record of training"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Names that a folder beside a script has, and files, are no data sets of the hub.
_FOLDERS = frozenset(("data", "dataset", "datasets", "runs", "output", "outputs", "tmp"))
_FILE = re.compile(r".*\.(jsonl?|csv|tsv|txt|parquet|arrow|bin|gz|zst|npy|tar|zip)", re.IGNORECASE)

# Hyper-parameters by the names that scripts give them, in the order in which they are shown.
_SETTINGS = (
    ("Learning rate", ("learning_rate", "lr")),
    ("Schedule", ("lr_scheduler_type", "lr_scheduler", "scheduler", "gamma")),
    ("Warm-up", ("warmup_steps", "warmup_ratio", "num_warmup_steps")),
    ("Optimizer", ("optim", "optimizer")),
    ("Weight decay", ("weight_decay",)),
    ("Betas", ("adam_beta1", "adam_beta2", "betas")),
    ("Batch size", ("per_device_train_batch_size", "batch_size_training", "train_batch_size", "batch_size")),
    ("Micro-batch size", ("micro_batch_size", "train_micro_batch_size_per_gpu")),
    ("Gradient accumulation", ("gradient_accumulation_steps",)),
    ("Gradient clipping", ("max_grad_norm", "gradient_clipping_threshold", "gradient_clip_val")),
    ("Epochs", ("num_train_epochs", "num_epochs", "epochs", "max_epochs")),
    ("Most steps", ("max_steps", "max_train_steps", "max_train_step")),
    ("Sequence length", ("max_seq_length", "max_length", "context_length", "seq_len", "block_size")),
    ("Mixed precision", ("bf16", "fp16", "mixed_precision", "pure_bf16", "use_fp16", "precision")),
)
_LONGEST = 200
_CODE_MARKS = re.compile("`+")


def plan_model_card(record: Record | None, names: Collection[str]) -> tuple[SideFile, ...]:
    """Return README.md as a file of a model folder, or nothing where there is one, or no record.

    Args:
        record: The record.
        names: The names of all other files of the folder.
    """
    if record is None or NAME in names:
        return ()
    return (SideFile(NAME, model_card(record, names), None, _ORIGIN),)


def model_card(record: Record, names: Collection[str] = ()) -> bytes:
    """Return the model card that a record tells.

    Args:
        record: The record.
        names: The names of the files beside it; an adapter alone is PEFT's.
    """
    is_adapter = "adapter_config.json" in names
    front = "".join(f"{line}\n" for line in ("---", *_front_matter(record, is_adapter=is_adapter), "---"))
    body = "\n".join(_body(record, is_adapter=is_adapter))
    return f"{front}\n{body}\n".encode()


def _front_matter(record: Record, *, is_adapter: bool) -> Iterator[str]:
    base = record.base
    if base is not None and base.revision is not None and _REPOSITORY.fullmatch(base.reference):
        yield f"base_model: {yaml_text(base.reference)}"
        yield f"base_model_relation: {'adapter' if is_adapter else 'finetune'}"
    if datasets := _datasets(record.data):
        yield "datasets:"
        yield from (f"- {yaml_text(name)}" for name in datasets)
    if is_adapter:
        yield "library_name: peft"
    elif record.model.class_name.startswith("transformers."):
        yield "library_name: transformers"
    if _class_of(record).endswith("ForCausalLM"):
        yield "pipeline_tag: text-generation"
    yield "tags:"
    yield "- unshard"
    if record.model.adapter:
        yield "- lora"


def _datasets(data: str | None) -> list[str]:
    """Return names of data sets of the hub where that is all that `data` is, else none."""
    names = re.split(r"[\s,;]+", data.strip()) if data is not None else []
    if names and all(_is_dataset(name) for name in names):
        return list(dict.fromkeys(names))
    return []


def _is_dataset(name: str) -> bool:
    return bool(
        _REPOSITORY.fullmatch(name)
        and name.partition("/")[0].lower() not in _FOLDERS
        and not _FILE.fullmatch(name)
        and ".." not in name
    )


def _body(record: Record, *, is_adapter: bool) -> Iterator[str]:
    kind = "An adapter of" if is_adapter else "A"
    yield f"# {kind} {code(_class_of(record))}{_from(record)}"
    yield ""
    yield from _facts(record)
    yield from _table("Training", _training_rows(record))
    yield from _table("Adapters", _adapter_rows(record))
    yield from _table("Distribution", _distribution_rows(record))
    yield from _table("Software and hardware", _environment_rows(record.environment))
    yield from _proof(record)


def _class_of(record: Record) -> str:
    return record.model.class_name.rpartition(".")[2]


def _from(record: Record) -> str:
    return "" if record.base is None else f", trained from {code(record.base.reference)}"


def _facts(record: Record) -> Iterator[str]:
    model = record.model
    if record.base is None:
        yield "What it was trained from was not recorded."
    elif record.base.revision is not None:
        yield f"It was trained from revision {code(record.base.revision)} of {code(record.base.reference)}."
    else:
        yield f"It was trained from {code(record.base.reference)}; which revision of it was not recorded."
    trained = "all of them" if model.trainable == model.parameters else f"{format_count(model.trainable)}"
    yield f"It has {format_count(model.parameters)} parameters, of which {trained} were trained."
    if record.data is not None:
        yield f"Data, in the words of whoever trained it: {code(record.data)}"
    yield ""


def _training_rows(record: Record) -> Iterator[tuple[str, str]]:
    if record.step is not None:
        yield "Step", code(record.step)
    if record.seed is not None:
        yield "Seed", code(record.seed)
    values = _flat(record.training.values) if record.training is not None else {}
    for title, keys in _SETTINGS:
        said = [f"{code(f'{key}: {_plain(values[key])}')}" for key in keys if key in values]
        if said:
            yield title, ", ".join(said)


def _flat(values: Mapping[str, object]) -> dict[str, object]:
    """Return plain values by the last words of their keys, the first of several, two levels deep at most."""
    found: dict[str, object] = {}
    inner = [value for value in values.values() if isinstance(value, Mapping)]
    deeper = [value for level in inner for value in level.values() if isinstance(value, Mapping)]
    for level in (values, *inner, *deeper):
        for key, value in level.items():
            if _is_plain(value):
                found.setdefault(str(key), value)
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= 4 and all(isinstance(each, str | int | float) for each in value)
    return isinstance(value, str | int | float)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _adapter_rows(record: Record) -> Iterator[tuple[str, str]]:
    for name, config in record.model.adapter.items():
        said = config if isinstance(config, Mapping) else {}
        shown = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
        told = [code(f"{key}: {_plain(said[key])}") for key in shown if _is_plain(said.get(key))]
        yield code(name), ", ".join(told) or "not recorded"


_KINDS = {
    "fsdp1": "FSDP (`FullyShardedDataParallel`)",
    "fsdp2": "FSDP2 (`fully_shard`)",
    "ddp": "DDP",
    "none": "not distributed",
}


def _distribution_rows(record: Record) -> Iterator[tuple[str, str]]:
    spread, precision = record.distribution, record.distribution.precision
    yield "Kind", _KINDS.get(spread.kind, code(spread.kind))
    yield "Ranks", code(spread.world_size)
    if spread.strategy is not None:
        yield "Sharding", code(spread.strategy)
    if spread.mesh:
        yield "Mesh", code(" x ".join(f"{name} {size}" for name, size in spread.mesh.items()))
    told = {
        "parameters": precision.parameters,
        "reduction": precision.reduction,
        "buffers": precision.buffers,
        "autocast": precision.autocast,
    }
    if said := [code(f"{key}: {dtype}") for key, dtype in told.items() if dtype is not None]:
        yield "Mixed precision", ", ".join(said)


def _environment_rows(environment: Environment) -> Iterator[tuple[str, str]]:
    yield "Python", code(environment.python)
    for name, version in (*environment.packages.items(), *environment.runtimes.items()):
        yield code(name), code(version)
    for device in environment.devices:
        yield "Devices", f"{device.count} x {code(device.name)}"


def _proof(record: Record) -> Iterator[str]:
    yield "## How it was saved"
    yield ""
    yield (
        f"unshard {code(record.unshard)} saved it on {code(record.created)}. What training held is in "
        f"`{RECORD_NAME}`, beside the software that it ran on."
    )
    digests = sum(bool(tensor.digests) for tensor in record.tensors.values())
    if digests:
        yield (
            f"It has digests of {counted(digests, 'tensor')} as the ranks held them: `unshard verify .` "
            "compares them with these files."
        )
    if record.fingerprint is not None:
        count = counted(len(record.fingerprint.sequences), "text")
        yield (
            f"It also has what the model in training made of {count}, computed in "
            f"{code(record.fingerprint.computed)}: the same command runs them again."
        )
    yield "`unshard env .` compares a machine with the one that trained."


def _table(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a section with a table of two columns, or nothing where there is no row.

    Source:
        GitHub Flavored Markdown, section 4.10: a pipe ends a cell inside a code span, too.
    """
    escaped = ((name.replace("|", "\\|"), value.replace("|", "\\|")) for name, value in rows)
    lines = [f"| {name} | {value} |" for name, value in escaped]
    if lines:
        yield from (f"## {title}", "", "| | |", "|---|---|", *lines, "")


def code(value: object) -> str:
    """Return a value as a code span of Markdown, in which nothing of it means anything.

    Source:
        CommonMark 0.31, section 6.1.
    """
    text = "".join(c if c.isprintable() else " " for c in str(value)).strip()
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    longest = max((len(mark) for mark in _CODE_MARKS.findall(text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if not text or "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def yaml_text(text: str) -> str:
    """Return a text as a double-quoted scalar of YAML.

    Source:
        YAML 1.2.2, section 5.7.
    """
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    number = ord(character)
    if character in '"\\':
        return f"\\{character}"
    if 0xD800 <= number < 0xE000:  # half of a pair, which no text has
        return "\\uFFFD"
    if character.isprintable():
        return character
    return (
        f"\\x{number:02X}"
        if number < 0x100
        else f"\\u{number:04X}"
        if number < 0x10000
        else f"\\U{number:08X}"
    )
