"""Weights that two names share: which are one tensor in the result, and which are two.

Sharing is the identity of a storage when a model is saved, and a flag when it is loaded; gathering a
sharded model loses the first. So the values decide. Equal: one is written, and the flag is on.
Different: both are written, and the flag is off. One is missing: fine if the model ties them, and a
stop if it does not, for an engine would make the missing one up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unshard.base.configuration import Config, tie_flag
from unshard.match.needs import Needs, Pair, Shape, extra_heads, is_tied, known_pairs
from unshard.recipes.ties import has_row_per_token, is_output_head, shared_pairs


@dataclass(frozen=True, slots=True)
class TiedGroup:
    """Names that are one weight in a model that ties them.

    Attributes:
        members: All of them, in the checkpoint or in published files.
        kept: The name under which it is written.
        present: The names that the checkpoint has, the one whose values are written first.
    """

    members: tuple[str, ...]
    kept: str
    present: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """Whether an output head is in it, so that the flag of the configuration speaks of it."""
        return any(map(is_output_head, self.members))


@dataclass(frozen=True, slots=True)
class Ties:
    """What is shared in a model.

    Attributes:
        groups: The groups of which at least two names are known.
        untied: Output heads, present or needed, that are weights of their own.
        missing: Output heads that the model needs of its own, and nothing gives.
    """

    groups: tuple[TiedGroup, ...]
    untied: frozenset[str]
    missing: tuple[str, ...]


def find_ties(names: Mapping[str, Shape], needs: Needs | None, config: Config | None) -> Ties:
    """Return what tensors of these names share.

    Args:
        names: The names of the checkpoint's tensors in the result, and their shapes.
        needs: What the model needs, or None where that is not known.
        config: The configuration of the base, or None where there is none.
    """
    flag = None if config is None else tie_flag(config)
    expected = {} if needs is None else needs.expected
    if needs is None:
        pairs = [] if config is None else shared_pairs(names)
        tied = [pair for pair in pairs if flag or not is_output_head(pair[1])]
        untied = {head for _, head in pairs if is_output_head(head) and not flag}
    else:
        pairs = known_pairs(needs, names)
        tied = [pair for pair in pairs if is_tied(pair, needs)]
        untied = {head for _, head in set(pairs) - set(tied) if is_output_head(head) and head in expected}
        untied |= extra_heads(needs, pairs)
    groups = [_group(members, names, expected) for members in _components(tied)]
    missing = [] if config is None or flag is not False else _headless(names, config, pairs)
    return Ties(tuple(group for group in groups if group.present), frozenset(untied), tuple(missing))


def _components(pairs: list[Pair]) -> list[list[str]]:
    """Return the groups of names that pairs connect, in the order of the pairs."""
    groups: list[list[str]] = []
    for pair in pairs:
        touching = [group for group in groups if not set(pair).isdisjoint(group)]
        merged = list(dict.fromkeys([*(name for group in touching for name in group), *pair]))
        groups = [group for group in groups if group not in touching] + [merged]
    return groups


def _group(members: list[str], names: Mapping[str, Shape], expected: Mapping[str, object]) -> TiedGroup:
    """Return the group as it is written: under the name that published files have."""
    present = [name for name in members if name in names]
    published = [name for name in members if name in expected]
    kept = next((name for name in published), None) or next(iter(present), members[0])
    present.sort(key=lambda name: name != kept)
    return TiedGroup(tuple(members), kept, tuple(present))


def _headless(names: Mapping[str, Shape], config: Config, pairs: list[Pair]) -> list[str]:
    """Return the output head that a language model without ties needs, if nothing in the names is one."""
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return []
    embeddings = [name for name in names if has_row_per_token(name) and not is_output_head(name)]
    rows = {names[name][0] for name in embeddings if len(names[name]) == 2}
    others = [name for name in names if name not in embeddings and names[name][:1] and names[name][0] in rows]
    if not embeddings or others or any(is_output_head(repeated) for _, repeated in pairs):
        return []
    return ["lm_head.weight"]
