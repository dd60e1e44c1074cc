"""Tokenizer, generation and chat template of a model folder against its rows and against one another.

Source:
    transformers 5.23, generation/configuration_utils.py (`eos_token_id` of generation_config.json counts
    before that of config.json); the chat templates and end-of-turn tokens of the models on the hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from unshard.base.configuration import Config, text_levels
from unshard.base.side_files import makes_tokenizer
from unshard.checks.evidence import Check, Evidence
from unshard.checks.words import named, quoted
from unshard.findings import Finding, finding
from unshard.model_folder import ModelFolder
from unshard.recipes.ties import has_row_per_token, is_output_head

_GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_SPECIAL = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
# What ends a turn in the chat templates of families; a template may have several of them.
_ENDS_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|assistant_end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 DeepSeek's own characters
    "[EOS]",
    "</s>",
)
# Parts of a configuration beside the language model, each with files of its own.
_PROCESSED = ("vision_config", "audio_config", "image_config", "visual")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def generates(config: Config | None) -> bool:
    """Return whether the class that a configuration names writes text."""
    names = None if config is None else config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_GENERATING) for name in names)


def rows_of(evidence: Evidence) -> int | None:
    """Return the rows of the embedding, or None where there is none."""
    rows = [
        tensor.shape[0]
        for name, tensor in evidence.tensors.items()
        if has_row_per_token(name) and not is_output_head(name) and len(tensor.shape) == 2
    ]
    return max(rows, default=None)


def stop_ids(folder: ModelFolder) -> frozenset[int]:
    """Return the tokens that end a text, as generation reads them; none where nothing says."""
    generation, config = folder.json("generation_config.json") or {}, folder.json("config.json") or {}
    levels = (generation, *(level for _, level in text_levels(config)))
    return next((ids for level in levels if (ids := _ids(level.get("eos_token_id")))), frozenset())


def _ids(value: object) -> frozenset[int]:
    """Return the ids that a value is: one, several or none."""
    values = value if isinstance(value, list) else [value]
    return frozenset(number for number in values if type(number) is int)


def _numbers(ids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ids))) or "none"


def _check_rows(evidence: Evidence) -> Iterator[Finding]:
    """Yield ids and tokens that have no row, and rows that no token has."""
    folder, rows = evidence.folder, rows_of(evidence)
    if folder is None or rows is None:
        return
    for name in ("config.json", "generation_config.json"):
        levels = text_levels(folder.json(name) or {})
        said = {key: _ids(level.get(key)) for _, level in levels for key in _SPECIAL if key in level}
        for key, ids in said.items():
            if beyond := sorted(number for number in ids if number >= rows):
                yield finding(
                    "U513",
                    subject=f"{key} in {name}",
                    saw=f"{_numbers(beyond)}, and the embedding has {rows} rows",
                    expected=f"less than {rows}",
                    remedy="Set the id of the tokenizer that training used; the id is that of another model.",
                )
    if folder.tokens is not None and folder.tokens > rows:
        yield finding(
            "U503",
            subject="tokenizer",
            saw=f"{folder.tokens} tokens, and {rows} rows",
            expected=f"at most {rows} tokens",
            remedy="Text with the tokens beyond the last row cannot be read; give the tokenizer of training.",
        )
    elif folder.tokens is not None and folder.tokens < rows:
        yield finding(
            "U514",
            subject="tokenizer",
            saw=f"{folder.tokens} tokens, and {rows} rows",
            expected="as many; the rows beyond are padding, or of tokens that training added",
            remedy="Where training added tokens, its own tokenizer belongs into the folder.",
        )


def _check_stop(evidence: Evidence) -> Iterator[Finding]:
    """Yield where a text or a turn would not end."""
    folder = evidence.folder
    config = folder.json("config.json") if folder else None
    # What translates or summarises one text has no turns, and ends as its configuration says.
    if folder is None or config is None or not generates(config) or config.get("is_encoder_decoder"):
        return
    stops = stop_ids(folder)
    end = _token(folder, "eos_token")
    number = None if end is None else folder.added_tokens.get(end)
    if end is not None and number is not None and number not in stops:
        yield finding(
            "U520",
            subject="eos_token_id",
            saw=f"{_numbers(stops)}, and the tokenizer ends a text with {number}, {quoted(end)}",
            expected=f"{number} among them",
            remedy=f"Add {number} to eos_token_id in generation_config.json.",
        )
    yield from _turns(folder, stops)


def _turns(folder: ModelFolder, stops: frozenset[int]) -> Iterator[Finding]:
    """Yield that none of the tokens which end a turn in the chat template ends generation."""
    template = folder.chat_template or ""
    ends = {
        token: folder.added_tokens[token]
        for token in _ENDS_OF_TURN
        if token in template and token in folder.added_tokens
    }
    if not ends or "eos_token" in template or stops & set(ends.values()):
        return
    token, number = next(iter(ends.items()))
    yield finding(
        "U522",
        subject="chat template",
        saw=f"it ends a turn with {quoted(token)}, {number}; eos_token_id is"
        f" {_numbers(stops)}: answers will not stop",
        expected=f"{number} among eos_token_id",
        remedy=f"Add {number} to eos_token_id in generation_config.json.",
    )


def _token(folder: ModelFolder, key: str) -> str | None:
    """Return the text of a special token, as the settings of the tokenizer have it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = (folder.json(name) or {}).get(key)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            return text
    return None


def _check_start(evidence: Evidence) -> Iterator[Finding]:
    """Yield where a file names another first or padding token than the tokenizer has."""
    folder = evidence.folder
    if folder is None or not generates(folder.json("config.json")):
        return
    for key, text in (
        ("bos_token_id", _token(folder, "bos_token")),
        ("pad_token_id", _token(folder, "pad_token")),
    ):
        number = None if text is None else folder.added_tokens.get(text)
        for name in ("generation_config.json", "config.json"):
            said = _ids((folder.json(name) or {}).get(key))
            if number is not None and said and number not in said:
                yield finding(
                    "U521",
                    subject=f"{key} in {name}",
                    saw=f"{_numbers(said)}, and the tokenizer has {number}, {quoted(text or '')}",
                    expected=str(number),
                    remedy="Which of the two training used, its own tokenizer tells.",
                )


def _check_files(evidence: Evidence) -> Iterator[Finding]:
    """Yield small files that the model needs, or that its base has and the folder lacks."""
    folder = evidence.folder
    config = folder.json("config.json") if folder else None
    if folder is None or config is None:
        return
    parts = [key for key in _PROCESSED if isinstance(config.get(key), Mapping)]
    if parts and generates(config) and not any(name in folder.names for name in _PROCESSORS):
        yield finding(
            "U525",
            subject=folder.path.name,
            saw=f"{named(parts)} in config.json, and none of {named(_PROCESSORS)}",
            expected="the files that turn pictures or sound into numbers",
            remedy="Copy them from the base: unshard mend FOLDER --in-place --base BASE",
        )
    if generates(config) and not makes_tokenizer(folder.names):
        yield finding(
            "U602",
            subject="tokenizer",
            saw="no file a tokenizer can be made of",
            expected="tokenizer.json or tokenizer.model",
            remedy="Copy it from the base: unshard mend FOLDER --in-place --base BASE",
        )
    if generates(config) and "generation_config.json" not in folder.names:
        yield finding(
            "U524",
            subject="generation_config.json",
            saw="missing; engines take eos_token_id from config.json, and sample with their own defaults",
            expected="the settings of the model that training started from",
            remedy="Copy it from there: unshard mend FOLDER --in-place --base BASE",
        )
    if folder.chat_template is None and evidence.base and "chat_template.jinja" in evidence.base.side_files:
        yield finding(
            "U523",
            subject="chat template",
            saw=f"missing, and {evidence.base.reference} has one; chat will be refused or made up",
            expected="chat_template.jinja",
            remedy="Copy it from there: unshard mend FOLDER --in-place --base BASE",
        )


CHECKS: tuple[Check, ...] = (
    Check("tokens.rows", ("U503", "U513", "U514"), _check_rows),
    Check("tokens.stop", ("U520", "U522"), _check_stop),
    Check("tokens.start", ("U521",), _check_start),
    Check("tokens.files", ("U523", "U524", "U525", "U602"), _check_files),
)
