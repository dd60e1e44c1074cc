"""An adapter among the tensors of a checkpoint, taken apart by names: nothing of it is guessed, or left."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from unshard.errors import (
    AmbiguousModelError,
    MatchError,
    Mismatch,
    UnsafeFileError,
    UnsupportedLayoutError,
    listed,
)
from unshard.recipes.adapters import (
    DEFAULT,
    AdapterName,
    holds_adapter,
    other_adapter,
    parse_adapter_name,
    without_prefix,
)
from unshard.tensors import DescribedTensor

LAYOUT = "peft-adapter"
NOT_MERGED = (
    "Merge it where it was trained (PEFT's merge_and_unload) and save the model; or use it with PEFT."
)


@dataclass(frozen=True, slots=True)
class Factors:
    """What is trained beside one parameter, by names in the checkpoint.

    Attributes:
        module: The module in the model without adapters.
        depth: Below how many layers the factors lie, where they belong to a parameter of the module that
            is not its weight.
        a: The first factor.
        b: The second factor.
        magnitude: DoRA's magnitudes, or None.
    """

    module: str
    depth: int
    a: str
    b: str
    magnitude: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """An adapter and what lies around it; values are names in the checkpoint.

    Attributes:
        adapter: The adapter's own name, or None where names lack it.
        factors: What is trained beside parameters.
        saved: Parameters that were trained whole, by their names in the model.
        tokens: Rows of an embedding that were trained, by the name of its weight in the model.
        originals: What the saved ones were before, by their names in the model.
        plain: Every other parameter, by its name in the model.
        left: Tensors of adapters that are not the one that is meant.
    """

    adapter: str | None
    factors: tuple[Factors, ...]
    saved: Mapping[str, str]
    tokens: Mapping[str, str]
    originals: Mapping[str, str]
    plain: Mapping[str, str]
    left: tuple[str, ...]


def take_apart(names: Iterable[str], subject: object, *, is_adapter: bool) -> AdapterParts | None:
    """Return the adapter that is meant among tensors of these names, or None where there is none.

    Args:
        names: The names in the checkpoint.
        subject: What errors are about.
        is_adapter: Whether it is an adapter by its layout, so that plain names are those of modules that
            were trained whole.

    Raises:
        UnsupportedLayoutError: It is of a kind that is not merged.
        AmbiguousModelError: There are several, and none is the default one.
        MatchError: One factor is there without the other.
        UnsafeFileError: Two tensors have one name.
    """
    bare = {name: without_prefix(name) for name in names}
    if not (is_adapter or holds_adapter(bare.values())):
        return None
    parsed = {name: parse_adapter_name(plain) for name, plain in bare.items()}
    _require_known(bare, parsed, subject)
    chosen = _choose(parsed, subject)
    left = [n for n, p in parsed.items() if p and p.adapter not in (None, chosen)]
    mine = {n: p for n, p in parsed.items() if n not in left}
    plain = _once(((bare[n] if p is None else p.plain, n) for n, p in mine.items() if _is_plain(p)), subject)
    saved = _once(((p.plain, n) for n, p in mine.items() if p and p.role == "saved"), subject)
    if is_adapter and not any(p and p.role == "original" for p in mine.values()):
        plain, saved = {}, {**saved, **plain}
    return AdapterParts(
        adapter=chosen,
        factors=_pairs(mine, subject),
        saved=saved,
        tokens=_once(((p.plain, n) for n, p in mine.items() if p and p.role == "tokens"), subject),
        originals=_once(((p.plain, n) for n, p in mine.items() if p and p.role == "original"), subject),
        plain=plain,
        left=tuple(left),
    )


def ranks_of(parts: AdapterParts, tensors: Mapping[str, DescribedTensor]) -> set[int]:
    """Return the ranks that the first factors have."""
    return {tensors[each.a].shape[0] for each in parts.factors if tensors[each.a].shape}


def _is_plain(parsed: AdapterName | None) -> bool:
    return parsed is None or parsed.role == "base"


def _require_known(
    bare: Mapping[str, str], parsed: Mapping[str, AdapterName | None], subject: object
) -> None:
    """Raise where tensors belong to an adapter that is recognised and not merged.

    Raises:
        UnsupportedLayoutError: With the kind of it.
    """
    kinds: dict[str, list[str]] = {}
    for name, plain in bare.items():
        kind = other_adapter(plain)
        if parsed[name] is not None:
            kind = "a bias of the second factor (lora_bias)" if parsed[name].role == "bias of B" else None  # type: ignore[union-attr]
        if kind is not None:
            kinds.setdefault(kind, []).append(name)
    for kind, found in kinds.items():
        saw = f"{kind}: {len(found)} tensors, `{found[0]}` first"
        raise not_merged(subject, "holds an adapter of a kind that is recognised, and not merged", saw)


def not_merged(
    subject: object, problem: str, saw: str, expected: str | None = None, hint: str = NOT_MERGED
) -> UnsupportedLayoutError:
    """Return the error for an adapter that is recognised, and cannot be merged."""
    error = UnsupportedLayoutError(subject, problem, saw=saw, expected=expected, hint=hint)
    error.code = "U261"
    return error


def _choose(parsed: Mapping[str, AdapterName | None], subject: object) -> str | None:
    """Return the name of the adapter that is meant: the only one, or the default one of several.

    Raises:
        AmbiguousModelError: There are several, and none is the default one.
    """
    adapters = list(dict.fromkeys(p.adapter for p in parsed.values() if p and p.adapter is not None))
    if len(adapters) < 2:
        return adapters[0] if adapters else None
    if DEFAULT in adapters:
        return DEFAULT
    raise AmbiguousModelError(
        subject,
        f"holds {len(adapters)} adapters, and nothing says which one is meant",
        saw=listed([f"`{adapter}`" for adapter in adapters], at_most=5),
        expected=f"one, or one that is called `{DEFAULT}`",
        hint="Save the one that is meant by itself: "
        f"model.save_pretrained(OUT, selected_adapters=['{adapters[0]}'])",
    )


def _once(pairs: Iterable[tuple[str, str]], subject: object) -> dict[str, str]:
    """Return (name in the model, name in the checkpoint) as a mapping.

    Raises:
        UnsafeFileError: Two tensors would have one name.
    """
    found: dict[str, str] = {}
    for plain, name in pairs:
        other = found.setdefault(plain, name)
        if other != name:
            raise UnsafeFileError(subject, f"holds two tensors for `{plain}`", saw=f"`{other}` and `{name}`")
    return found


def _pairs(parsed: Mapping[str, AdapterName | None], subject: object) -> tuple[Factors, ...]:
    """Return the factors, module by module, in the order of the first.

    Raises:
        MatchError: One is there without the other; all of them are named.
    """
    places: dict[tuple[str, int], dict[str, str]] = {}
    for name, each in parsed.items():
        if each is not None and each.role in ("A", "B", "magnitude"):
            found = places.setdefault((each.module, each.depth), {})
            if found.setdefault(each.role, name) != name:
                raise UnsafeFileError(subject, f"holds two tensors for `{each.module}`", saw=f"`{name}`")
    alone = [
        Mismatch("missing", module, saw=f"`{next(iter(found.values()))}`", expected=f"its factor {role}")
        for (module, _), found in places.items()
        for role in ("A", "B")
        if role not in found
    ]
    if alone:
        raise misfit(subject, alone, "lacks parts of an adapter")
    return tuple(
        Factors(module, depth, found["A"], found["B"], found.get("magnitude"))
        for (module, depth), found in places.items()
    )


def misfit(
    subject: object, mismatches: Collection[Mismatch], problem: str, hint: str | None = None
) -> MatchError:
    """Return the error for an adapter that cannot be merged, which shows the first of what is wrong."""
    first = next(iter(mismatches))
    more = f", and {len(mismatches) - 1} more" if len(mismatches) > 1 else ""
    error = MatchError(
        subject,
        f"{problem}: `{first.name}` has {first.saw}, not {first.expected}{more}",
        mismatches=tuple(mismatches),
        hint=hint
        or "Save the adapter again from all ranks; under ZeRO-3 and FSDP its tensors must be gathered first.",
    )
    error.code = "U253"
    return error
