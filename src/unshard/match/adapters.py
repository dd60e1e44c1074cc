"""Adapters, merged into the weights they were trained beside.

The weights are in the checkpoint (the state dict of a PEFT model, gathered or sharded), or in the base
(an adapter alone). What was merged is a computed tensor; everything else is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from unshard.base import Base
from unshard.base.configuration import tie_flag
from unshard.checkpoint import Checkpoint
from unshard.errors import BaseModelError, InputError, listed
from unshard.findings import Finding, finding
from unshard.match.adapter_completeness import require_magnitudes, require_targets
from unshard.match.adapter_fitting import Merge, merge_of, merged_tensor, with_rows
from unshard.match.adapter_ground import Ground, ground_in_base, ground_in_checkpoint, with_saved
from unshard.match.adapter_parts import LAYOUT, AdapterParts, not_merged, ranks_of, take_apart
from unshard.match.adapter_settings import (
    AdapterSettings,
    changes_the_base,
    settings_of,
    token_indices,
)
from unshard.match.adapter_words import in_words
from unshard.match.dtype_policy import configured_dtype
from unshard.match.restored import Choices, Restored
from unshard.recipes.adapters import holds_adapter, parse_adapter_name, without_prefix
from unshard.recipes.ties import is_output_head, shared_pairs
from unshard.sizes import counted
from unshard.tensors import DescribedTensor
from unshard.tensors.computed import Computing


def undo_adapters(
    restored: Restored, checkpoint: Checkpoint, base: Base | None, choices: Choices
) -> Restored:
    """Return the tensors with the adapter merged, where there is one.

    Raises:
        UnsupportedLayoutError: The adapter is of a kind that is not merged.
        AmbiguousModelError: There are several, and nothing says which one is meant.
        InputError: Nothing tells its scale.
        BaseModelError: It needs weights of the base, and there are none.
        MatchError: Parts of it are missing, or fit nothing.
    """
    if base is not None and base.expected is not None and holds_adapter(base.expected):
        return restored  # models are published that have adapters for their kinds of input
    parts = take_apart(restored.tensors, checkpoint.path, is_adapter=checkpoint.layout.name == LAYOUT)
    if parts is None:
        return restored
    settings = settings_of(checkpoint, choices.lora_alpha)
    settings.require_scale(ranks_of(parts, restored.tensors), len(parts.factors), checkpoint.path)
    require_magnitudes(parts, settings, checkpoint.path)
    before = None
    if _is_alone(parts):
        _require_own_base(settings, checkpoint)
        ground = ground_in_base(parts, checkpoint, base)
        before = ground.tensors
    else:
        ground = ground_in_checkpoint(parts, restored)
    require_targets(parts, settings, ground, checkpoint.path)
    ground = with_saved(ground, parts, restored)
    merging = _Merging(parts, settings, restored, checkpoint, ground, before, choices.computing)
    merging.add_parameters(base, as_float32=_is_cast(choices, base))
    return merging.result()


def _is_cast(choices: Choices, base: Base | None) -> bool:
    """Return whether the dtype policy gives every tensor a dtype, whatever it has in the checkpoint."""
    if choices.dtype != "base":
        return choices.dtype != "keep"
    return base is not None and (base.expected is not None or configured_dtype(base) is not None)


def _is_alone(parts: AdapterParts) -> bool:
    """Return whether the weights that the adapter belongs to lie elsewhere."""
    targets = [*(f"{each.module}." for each in parts.factors), *parts.tokens]
    there = {*parts.plain, *(f"{name.rpartition('.')[0]}." for name in parts.plain)}
    return not any(target in there for target in targets) and not parts.originals


def _require_own_base(settings: AdapterSettings, checkpoint: Checkpoint) -> None:
    """Raise where an adapter alone belongs to weights that training changed before it began.

    Raises:
        UnsupportedLayoutError: It was begun so.
    """
    how = changes_the_base(settings.config)
    if how is not None:
        raise not_merged(
            checkpoint.path,
            "holds an adapter that does not belong to its base's own weights",
            f"init_lora_weights {how[:40]}, which changes them before training begins",
            "an adapter that was saved as the difference from the base",
            "Save it with path_initial_model_for_weight_conversion (PEFT), or merge it with PEFT.",
        )


@dataclass(slots=True)
class _Merging:
    """The result in the making; `before` are the base's weights, where the adapter lay alone."""

    parts: AdapterParts
    settings: AdapterSettings
    restored: Restored
    checkpoint: Checkpoint
    ground: Ground
    before: Mapping[str, DescribedTensor] | None
    computing: Computing
    tensors: dict[str, DescribedTensor] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)

    def add_parameters(self, base: Base | None, *, as_float32: bool) -> None:
        """Add every parameter of the model: as it lies there, merged, or replaced."""
        self.tensors |= self.ground.tensors
        self.origins |= self.ground.origins
        self._merge_factors(as_float32=as_float32)
        for plain, source in self.parts.tokens.items():
            self._replace_rows(plain, source)
        for plain, source in self.parts.originals.items():
            if plain not in self.parts.saved:
                self._put(plain, self.restored.tensors[source], (source,))
            else:
                self.dropped[source] = "its module was trained whole, and modules_to_save has the new values"
        for source in self.parts.left:
            self.dropped[source] = f"of another adapter than `{self.parts.adapter}`"
        if base is not None and self.before is not None:
            self._keep_heads(base, self.before)

    def _put(self, name: str, tensor: DescribedTensor, origins: tuple[str, ...]) -> None:
        self.tensors[name] = tensor
        self.origins[name] = origins

    def _merge_factors(self, *, as_float32: bool) -> None:
        """Put the merged tensors in their places; what does not fit is raised together."""
        self.merges = merge_of(
            self.parts.factors, self.settings, self.restored.tensors, self.ground, self.checkpoint.path
        )
        for merge in self.merges:
            own = self.origins.get(merge.target, ())
            weight = self.tensors[merge.target]
            merged = merged_tensor(
                merge, weight, self.restored.tensors, as_float32=as_float32, computing=self.computing
            )
            self._put(merge.target, merged, (*own, *merge.factors.names))
            self.reasons[merge.target] = f"merged: scale {merge.scale.value:.6g} ({merge.scale.told})"

    def _replace_rows(self, plain: str, source: str) -> None:
        """Put trained rows into an embedding.

        Raises:
            InputError: Nothing tells which rows they are, or they do not fit.
        """
        name = self.ground.names.get(plain, plain)
        indices = self._indices_of(plain)
        rows = self.restored.tensors[source]
        if indices is None:
            raise InputError(
                self.checkpoint.path,
                f"holds trained rows of `{plain}`, and nothing tells which ones they are",
                saw=f"{rows.shape[0] if rows.shape else 0} rows in `{source}`",
                expected="trainable_token_indices in adapter_config.json",
                hint="Put the run's adapter_config.json beside the checkpoint.",
            )
        merged = with_rows(
            self.tensors[name], rows, indices, self.checkpoint.path, source, computing=self.computing
        )
        self._put(name, merged, (*self.origins.get(name, ()), source))
        self.reasons[name] = f"{len(indices)} rows of it replaced"
        if self.before is not None:
            return
        for kept, repeated in shared_pairs(self.tensors):  # PEFT trains one set of rows for tied weights
            other = f"{repeated}" if kept == name else None
            if other is not None and other not in self.parts.tokens and _is_same(self, other, name):
                self._put(other, merged, (*self.origins.get(other, ()), source))

    def _indices_of(self, plain: str) -> list[int] | None:
        """Return which rows were trained; of a head that is tied, those of its embedding."""
        pairs = shared_pairs(self.parts.tokens)
        same = [plain, *(kept for kept, repeated in pairs if repeated == plain)]
        found = (token_indices(self.settings, name.rpartition(".")[0]) for name in same)
        return next((indices for indices in found if indices is not None), None)

    def _keep_heads(self, base: Base, before: Mapping[str, DescribedTensor]) -> None:
        """Give an output head its own weights where the adapter changed the embedding it was tied to.

        In training only the embedding was changed: PEFT leaves the head with the weights that the layer
        had before, but for trained rows, which it ties.
        """
        if not tie_flag(base.config) or self.settings.config.get("ensure_weight_tying") is True:
            return
        head = dict(before)
        head |= {merge.target: self.ground.tensors[merge.target] for merge in self.merges}
        changed = {merge.target for merge in self.merges} | set(self._trained_whole())
        for kept, repeated in shared_pairs({*self.tensors, "lm_head.weight"}):
            if kept in changed and repeated not in self.tensors and is_output_head(repeated):
                self._put(repeated, head[kept], ())
                saw = f"`{kept}` was changed by the adapter, and `{repeated}` was not"
                self.findings.append(finding("U263", subject=repeated, saw=saw))

    def _trained_whole(self) -> Iterator[str]:
        """Yield the names of parameters that were trained whole, and not saved for another reason.

        PEFT saves an embedding that was resized, or that has an adapter, too.
        """
        listed = self.settings.config.get("modules_to_save")
        for plain in self.parts.saved:
            module = plain.rpartition(".")[0]
            if not isinstance(listed, list) or any(f".{module}".endswith(f".{name}") for name in listed):
                yield self.ground.names.get(plain, plain)

    def result(self) -> Restored:
        """Return the tensors, and what a person should know of them."""
        self.findings += self.settings.findings
        if self.parts.left:
            self.findings.append(_told_of_others(self.parts))
        self.findings.append(_told(self.parts, self.settings, self.merges, self.restored.tensors))
        return Restored(
            self.tensors,
            {name: self._in_checkpoint(origins) for name, origins in self.origins.items()},
            {**self.restored.dropped, **self.dropped},
            self.restored.edits,
            (*self.restored.findings, *self.findings),
            {**self.restored.reasons, **self.reasons},
        )

    def _in_checkpoint(self, origins: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names in the checkpoint of what a tensor is made of."""
        return tuple(dict.fromkeys(name for origin in origins for name in self.restored.origins[origin]))


def _is_same(merging: _Merging, name: str, other: str) -> bool:
    """Return whether two tensors of the checkpoint are read from the same bytes."""
    first, second = merging.ground.tensors.get(name), merging.ground.tensors.get(other)
    return first is not None and second is not None and first.pieces == second.pieces


def _adapter_of(source: str) -> str | None:
    parsed = parse_adapter_name(without_prefix(source))
    return None if parsed is None else parsed.adapter


def _told_of_others(parts: AdapterParts) -> Finding:
    others = list(dict.fromkeys(name for source in parts.left if (name := _adapter_of(source))))
    return finding(
        "U262",
        subject=f"`{parts.adapter}`",
        saw=f"was taken; {counted(len(parts.left), 'tensor')} beside it are of "
        + listed([f"`{name}`" for name in others], at_most=5),
        remedy="To have another one, save it by itself: "
        f"model.save_pretrained(OUT, selected_adapters={others[:1]})",
    )


def _told(
    parts: AdapterParts,
    settings: AdapterSettings,
    merges: list[Merge],
    tensors: Mapping[str, DescribedTensor],
) -> Finding:
    return finding("U251", subject="adapter", saw=", ".join(in_words(parts, settings, tensors)))


def check_adapter(checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Return what a person should know of the adapter in a checkpoint, from names and small files alone."""
    try:
        parts = take_apart(checkpoint.tensors, checkpoint.path, is_adapter=checkpoint.layout.name == LAYOUT)
        if parts is None:
            return ()
        words = ", ".join(in_words(parts, settings_of(checkpoint, None), checkpoint.tensors))
    except (InputError, BaseModelError):
        return ()  # a conversion says what is wrong with it, and so does a check
    return (finding("U250", subject=checkpoint.path.name, saw=words),) if words else ()
