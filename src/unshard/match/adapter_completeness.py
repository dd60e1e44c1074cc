"""What adapter_config.json says was trained, held against the factors that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unshard.errors import Mismatch
from unshard.match.adapter_ground import Ground
from unshard.match.adapter_parts import AdapterParts, misfit
from unshard.match.adapter_settings import AdapterSettings
from unshard.recipes.adapters import CONFIG
from unshard.recipes.schemes.rows import split_name
from unshard.tensors import DescribedTensor

# Keys that keep an adapter from modules which `target_modules` names.
_NARROWER = ("layers_to_transform", "layers_pattern", "exclude_modules")


def require_magnitudes(parts: AdapterParts, settings: AdapterSettings, subject: object) -> None:
    """Raise where the configuration tells DoRA, and modules have no magnitudes.

    Raises:
        MatchError: All of them are named.
    """
    if settings.config.get("use_dora") is not True:
        return
    expected = f"magnitudes beside it, as `use_dora` in {CONFIG} says"
    lacking = [
        Mismatch("missing", each.module, saw=f"`{each.a}`", expected=expected)
        for each in parts.factors
        if each.magnitude is None
    ]
    if lacking:
        raise misfit(subject, lacking, "lacks the magnitudes of an adapter")


def require_targets(
    parts: AdapterParts,
    settings: AdapterSettings,
    ground: Ground,
    subject: object,
) -> None:
    """Raise where the configuration lists modules that the model has, and not one of them has factors.

    PEFT puts an adapter on every module that is listed, and passes over a name that no module has: lists
    for several families are usual. Patterns and `all-linear` are not judged, and neither are experts,
    which are one module in memory and many in files.

    Args:
        parts: The adapter.
        settings: What files tell of it.
        ground: The weights it belongs to.
        subject: What the error is about.

    Raises:
        MatchError: All such names are given.

    Source:
        peft src/peft/tuners/tuners_utils.py (`check_target_module_exists`).
    """
    listed = settings.config.get("target_modules")
    if not isinstance(listed, list) or any(settings.config.get(key) is not None for key in _NARROWER):
        return
    trained = {_named(f"{each.module}.weight", ground) for each in parts.factors}
    whole = {_named(plain, ground) for plain in (*parts.saved, *parts.tokens)}
    expected = f"an adapter, as `target_modules` in {CONFIG} says"
    absent = [
        Mismatch("missing", module, saw="no factors", expected=expected)
        for name in listed
        if isinstance(name, str) and not any(_is_called(module, name) for module in {*trained, *whole})
        for module in _first_called(name, trained, ground.tensors)
    ]
    if trained and absent:
        raise misfit(subject, absent, "lacks parts of an adapter")


def _named(plain: str, ground: Ground) -> str:
    """Return the module of a parameter, as the weights call it."""
    return ground.names.get(plain, plain).rpartition(".")[0]


def _is_called(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _first_called(name: str, trained: set[str], weights: Mapping[str, DescribedTensor]) -> Iterator[str]:
    """Yield the first module of that name which lies among those that were trained, if there is one."""
    stems = {_stem(module) for module in trained}
    for weight, tensor in weights.items():
        module, _, parameter = weight.rpartition(".")
        if parameter == "weight" and len(tensor.shape) == 2 and _is_called(module, name):
            numbers = split_name(module)[1]
            if not numbers or (len(numbers) == 1 and _stem(module) in stems):
                yield module
                return


def _stem(module: str) -> str:
    """Return what stands before the first number of a name: the list that its layer is in."""
    return split_name(module)[0].partition("*")[0]
