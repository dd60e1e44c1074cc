"""Families whose tensors have other names in memory than in published files.

transformers renamed parts of some models and translates when it loads and saves; a state dict taken
straight from a training loop has the names of memory. A renaming is a table of prefixes: the first
that fits a name is replaced, every other name stays. Each can be read in both directions, and is used
only where it leads to exactly the names that the base has.

Source:
    transformers 5.23, conversion_mapping.py; the safetensors headers of the models on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Renaming:
    """Prefixes of names in memory, and the same in published files.

    Attributes:
        title: What the two sides are called, in words.
        prefixes: (in memory, published), the longer before the shorter.
    """

    title: str
    prefixes: tuple[tuple[str, str], ...]

    def apply(self, name: str) -> str:
        """Return the name with the first prefix that fits replaced."""
        for old, new in self.prefixes:
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    def reversed(self) -> Renaming:
        """Return the renaming in the other direction."""
        pairs = sorted(((new, old) for old, new in self.prefixes), key=lambda pair: -len(pair[0]))
        return Renaming(self.title, tuple(pairs))


_TOWERS = (
    "vision_tower.",
    "audio_tower.",
    "image_tower.",
    "video_tower.",
    "vision_model.",
    "vision_embed_tokens.",
)
_LLAVA = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
)

_RENAMINGS = (
    Renaming(
        "a language model beside towers, as LLaVA has it",
        (*_LLAVA, *((f"model.{tower}", tower) for tower in _TOWERS)),
    ),
    Renaming(
        "a language model beside a CLIP tower, as LLaVA has it",
        (*_LLAVA, ("model.vision_tower.", "vision_tower.vision_model.")),
    ),
    Renaming(
        "a language model with a visual part, as Qwen2-VL has it",
        (("model.language_model.", "model."), ("model.visual.", "visual.")),
    ),
    Renaming("the output projection of GPT-NeoX", (("lm_head.", "embed_out."),)),
)


def renamings() -> Iterator[Renaming]:
    """Yield every renaming, in both directions."""
    for renaming in _RENAMINGS:
        yield renaming
        yield renaming.reversed()
