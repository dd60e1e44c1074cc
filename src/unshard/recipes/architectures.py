"""Names of model classes that a training script cut: `FSDPDeepseekV3ForCausalLM` without its first letters.

`name.lstrip("FSDP")` removes every leading letter of F, S, D and P, and not the word: DeepseekV3 becomes
eepseekV3, Phi becomes hi, Falcon becomes alcon. The type of the model tells which letters they were.

Source:
    transformers 5.23 and accelerate's FSDP2 (`FSDP` before the name of the class); axolotl, where it saves
    the configuration of a model that FSDP wrapped (`lstrip`).
"""

from __future__ import annotations

from itertools import product

_WRAPPER = "FSDP"
_MOST_LETTERS = 3


def whole_architecture(name: str, model_type: object) -> str | None:
    """Return the name of a model class as it was before FSDP's letters were put to it, or cut from it.

    None where it is as it should be, or nothing tells what it was.

    Args:
        name: The class, as a configuration names it.
        model_type: The type of the model in the same configuration.
    """
    if name.startswith(_WRAPPER):
        return name.removeprefix(_WRAPPER)
    if not name[:1].islower() or not isinstance(model_type, str):
        return None
    stem = model_type.replace("_", "").replace("-", "").lower()
    for count in range(1, _MOST_LETTERS + 1):
        for letters in product(_WRAPPER, repeat=count):
            whole = "".join(letters) + name
            if stem and whole.lower().startswith(stem):
                return whole
    return None
