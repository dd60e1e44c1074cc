"""What differences between two environments mean for inference: rules as data, by the aspect they look at.

Of the rules of an aspect the first that holds is told. How bad a difference is follows from what comes of
it, not from its size: torch of another minor version rounds otherwise, and transformers of an older major
version reads the wrong names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unshard.environment.inferring import package_of_method
from unshard.environment.sides import Sides
from unshard.environment.this_machine import UNUSABLE

_FINGERPRINT = "The fingerprint of a record tells rounding from damage: unshard verify OUT"
_ROUNDING = "logits may differ in their last bits, as they do between any two kernels"
_UNSHARD_HF = 'To run models here: pip install "unshard[hf]"'


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that has a consequence.

    Attributes:
        code: The finding that tells it; its severity is the consequence's.
        holds: Whether it is there.
        means: What it means for inference.
        remedy: What to do.
    """

    code: str
    holds: Callable[[Sides], bool]
    means: str
    remedy: str | None = None


def _missing(package: str) -> Difference:
    return Difference(
        "U002",
        lambda sides: package not in sides.here,
        f"Without {package} no model runs here. Inspecting, converting and verifying do without it.",
        _UNSHARD_HF,
    )


def _unreadable(package: str, code: str, means: str, remedy: str) -> Difference:
    """Return the rule that a package here is too old for the files."""

    def holds(sides: Sides) -> bool:
        here, needed = sides.installed(package), sides.read_by(package)
        return here is not None and needed is not None and needed.is_above(here)

    return Difference(code, holds, means, remedy)


def _does_not_fit(sides: Sides) -> bool:
    needed, memory = sides.training.halved_bytes, sides.memory_bytes
    return needed is not None and memory is not None and needed > max(memory, sides.device_bytes)


def _does_not_fit_devices(sides: Sides) -> bool:
    needed = sides.training.halved_bytes
    return needed is not None and 0 < sides.device_bytes < needed


def _does_not_fit_as_it_is(sides: Sides) -> bool:
    needed, memory = sides.training.weights_bytes, sides.memory_bytes
    return needed is not None and memory is not None and needed > max(memory, sides.device_bytes)


def _is_unknown_type(sides: Sides) -> bool:
    return sides.here.get("model type", "").startswith("unknown") and "auto_map" not in sides.training.config


def _asks_for_flash_attention(sides: Sides) -> bool:
    """Return whether config.json itself names an implementation that is not here, which is then refused."""
    named = (sides.training.config.get(key) for key in ("attn_implementation", "_attn_implementation"))
    return any("flash" in name for name in named if isinstance(name, str)) and not sides.has_flash_attention


def _is_flash(sides: Sides) -> bool:
    return "flash" in (sides.there("attention") or "")


def _attends_otherwise(sides: Sides) -> bool:
    there = sides.there("attention")
    return there is not None and there != "sdpa"


def _slides(sides: Sides) -> bool:
    """Return whether the model attends to a window only."""
    config = sides.training.config
    return bool(config.get("sliding_window")) and config.get("use_sliding_window", True) is not False


def _runs_elsewhere(sides: Sides) -> bool:
    there, here = sides.there("accelerator"), sides.machine.accelerator
    return there is not None and here is not None and here not in there.split(" or ")


def _has_other_devices(sides: Sides) -> bool:
    there, here = (
        {(device.name, device.capability) for device in devices}
        for devices in (sides.training.devices, sides.machine.devices)
    )
    return bool(there and here) and there != here and not _runs_elsewhere(sides)


def _emulates_bfloat16(*accelerators: str) -> Callable[[Sides], bool]:
    def holds(sides: Sides) -> bool:
        machine = sides.machine
        emulates = machine.bfloat16 is False and machine.accelerator in accelerators
        return emulates and sides.uses_bfloat16 and sides.there("bfloat16") != "by software"

    return holds


def _computes_in_float32(aspect: str) -> Difference:
    """Return the rule for a switch that only matrix products of float32 see."""
    return Difference(
        "U019",
        lambda sides: sides.differs(aspect) and sides.there("dtype of computing") in (None, "float32"),
        "Products of float32 matrices keep 10 bits of every factor with TF32, and 23 without: logits may"
        " differ in the third digit.",
        "Set it as training had it before the model runs: torch.backends.cuda.matmul.allow_tf32",
    )


def _lacks_quantisation(sides: Sides) -> bool:
    package = package_of_method(sides.there("quantisation") or "")
    return package is not None and package not in sides.here


RULES: Mapping[str, tuple[Difference, ...]] = {
    "record": (
        Difference(
            "U001",
            lambda sides: sides.training.path is not None and sides.training.record is None,
            "What is known of the training was inferred from the files, and is marked so.",
            "Let training write one: unshard.training.save_full, save_sharded or record",
        ),
    ),
    "python": (
        Difference(
            "U010",
            lambda sides: sides.is_older_here("python", digits=2),
            "Files are read alike. Packages of the versions of training may have no build for this Python.",
            "To recreate the environment, take the Python of training, or a later one.",
        ),
    ),
    "torch": (
        _missing("torch"),
        _unreadable(
            "torch",
            "U004",
            "Classes in the files are unknown to this torch: torch.load and torch.distributed.checkpoint fail"
            " on them, here and in engines that use it. unshard reads them without torch.",
            "Convert, which needs no torch: unshard convert RUN OUT --base BASE",
        ),
        Difference(
            "U005",
            lambda sides: sides.is_older_here("torch", digits=2) or sides.is_newer_here("torch", digits=2),
            f"Kernels change between versions: {_ROUNDING}.",
            _FINGERPRINT,
        ),
    ),
    UNUSABLE: (
        Difference(
            "U002",
            lambda sides: UNUSABLE in sides.here,
            "torch is installed and does not load, so no model runs here.",
            "Install it anew: pip install --force-reinstall torch",
        ),
    ),
    "transformers": (
        _missing("transformers"),
        Difference(
            "U006",
            lambda sides: sides.is_older_here("transformers", digits=1),
            "Version 5 holds experts in fused tensors and writes settings of rope under other keys. Older"
            " ones make such experts up at random and take the default rope, with a warning at most.",
            "Convert, which writes published names and both spellings: unshard convert RUN OUT --base BASE;"
            " or: pip install --upgrade transformers",
        ),
        Difference(
            "U007",
            lambda sides: (
                sides.is_older_here("transformers", digits=2) or sides.is_newer_here("transformers", digits=2)
            ),
            f"Older files are read by newer versions. Implementations change in details: {_ROUNDING}.",
            _FINGERPRINT,
        ),
    ),
    "model type": (
        Difference(
            "U008",
            _is_unknown_type,
            "transformers has no class for the model, so it cannot be loaded with it.",
            "pip install --upgrade transformers",
        ),
    ),
    "tokenizers": (
        _unreadable(
            "tokenizers",
            "U009",
            "tokenizer.json cannot be parsed by this version: `data did not match any variant of untagged"
            " enum ModelWrapper`.",
            'pip install --upgrade "tokenizers>=0.20" transformers',
        ),
    ),
    "accelerate": (_missing("accelerate"),),
    "memory": (
        Difference(
            "U011",
            _does_not_fit,
            "Weights alone are larger, even in 16 bits. Converting and verifying take a few MB of memory.",
            "Run it on a machine with more memory, or quantise the converted model.",
        ),
        Difference(
            "U012",
            _does_not_fit_devices,
            "Part of the weights has to stay in the memory of the host, from where every token fetches them.",
            "Spread it over more devices, or quantise the converted model.",
        ),
        Difference(
            "U012",
            _does_not_fit_as_it_is,
            "The weights fit in 16 bits only, not as they lie in the files.",
            "unshard run RUN --dtype bfloat16",
        ),
    ),
    "accelerator": (
        Difference(
            "U020",
            _runs_elsewhere,
            f"Another device has other kernels: {_ROUNDING}. Without a GPU, large models are slow.",
            _FINGERPRINT,
        ),
    ),
    "devices": (
        Difference(
            "U021",
            lambda sides: bool(sides.machine.devices) and sides.machine.accelerator == "cpu",
            "The driver lists devices, and torch runs on the processor: it was built without CUDA, its CUDA"
            " is too new for the driver, or the devices are hidden from this process.",
            "Install a build for the CUDA of the driver: https://pytorch.org/get-started/locally/;"
            " look at CUDA_VISIBLE_DEVICES",
        ),
        Difference(
            "U022",
            _has_other_devices,
            f"Devices choose kernels by their kind: {_ROUNDING}.",
            _FINGERPRINT,
        ),
    ),
    "bfloat16": (
        Difference(
            "U013",
            _emulates_bfloat16("cuda", "rocm", "xpu"),
            "Devices without instructions for bfloat16 emulate it, slowly; some engines refuse, or take"
            " float16, in which values beyond 65504 overflow.",
            "Run in float32 where it fits: unshard run OUT --dtype float32",
        ),
        Difference(
            "U014",
            _emulates_bfloat16("cpu"),
            "The processor has no instructions for bfloat16: results are right, and take longer.",
            "float32 may be faster where it fits: unshard run OUT --dtype float32",
        ),
    ),
    "dtype of computing": (
        Difference(
            "U015",
            lambda sides: sides.there("dtype of computing") == "float16",
            "float16 keeps 10 bits and bfloat16 keeps 7: in bfloat16 logits differ by more than kernels"
            " explain.",
            "Run in the dtype of training: unshard run OUT --dtype float16",
        ),
    ),
    "default dtype": (
        Difference(
            "U016",
            lambda sides: sides.differs("default dtype"),
            "Buffers that a model makes when it is built, such as the frequencies of rope, had the precision"
            " of training's default dtype, and have another one here: logits may differ at far positions.",
            "Where the fingerprint differs, build the model under torch.set_default_dtype as training did.",
        ),
    ),
    "attention": (
        Difference(
            "U018",
            _asks_for_flash_attention,
            "transformers refuses to load a model whose configuration names an implementation that is not"
            " here.",
            'Load it with attn_implementation="sdpa", or take the key out of config.json.',
        ),
        Difference(
            "U017",
            lambda sides: _is_flash(sides) and sides.has_flash_attention,
            f"sdpa runs unless flash attention is asked for: the same formula in another order; {_ROUNDING}.",
            'Ask for it where that matters: attn_implementation="flash_attention_2"',
        ),
        Difference(
            "U017",
            lambda sides: _is_flash(sides) and _slides(sides),
            f"sdpa takes its place: the same formula, in another order; {_ROUNDING}. The model attends to a"
            " sliding window, which sdpa needs as a mask: old versions of transformers left it out.",
            _FINGERPRINT,
        ),
        Difference(
            "U017",
            _attends_otherwise,
            "sdpa takes its place unless another one is asked for: the same formula, in another order;"
            f" {_ROUNDING}.",
            _FINGERPRINT,
        ),
    ),
    "allow_tf32": (_computes_in_float32("allow_tf32"),),
    "float32_matmul_precision": (_computes_in_float32("float32_matmul_precision"),),
    "matmul_fp32_precision": (_computes_in_float32("matmul_fp32_precision"),),
    "quantisation": (
        Difference(
            "U023",
            _lacks_quantisation,
            "transformers refuses to load weights that are quantised in this way without the package.",
            "Install it, or dequantise: unshard convert RUN OUT --base BASE",
        ),
    ),
    "quantised base": (
        Difference(
            "U024",
            lambda sides: sides.there("quantised base") is not None,
            "The weights that training saw were rounded to few bits: beside those of the base itself an"
            " adapter gives somewhat other logits.",
            "To have training's own, merge into the base quantised and dequantised as training did.",
        ),
    ),
    "adapter": (
        Difference(
            "U003",
            lambda sides: sides.there("adapter") is not None and "peft" not in sides.here,
            "Only an adapter that is loaded by itself needs PEFT; a merged one does not.",
            "Merge it: unshard convert RUN OUT --base BASE; or: pip install peft",
        ),
    ),
}
