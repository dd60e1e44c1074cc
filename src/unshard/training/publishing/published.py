"""A model in training as it would be published: its base, its tensors under published names, their files.

All ranks decide alike; rank 0 alone looks at what lies on disk, and tells the others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.nn import Module

from unshard.base import Base
from unshard.findings import Finding
from unshard.match import Answers, Question
from unshard.training.live.model import LiveModel, describe_live_model
from unshard.training.publishing.adapter_config import with_adapter_config
from unshard.training.publishing.adapters import share_parts
from unshard.training.publishing.answering import answer_on_ranks
from unshard.training.publishing.contents import Contents, plan_contents
from unshard.training.publishing.model_files import Prepared, prepare_base
from unshard.training.publishing.options import SaveOptions
from unshard.training.ranks.protocol import Ranks
from unshard.training.recording.building import Telling


@dataclass(frozen=True, slots=True)
class Published:
    """A model in training as it would be published.

    Attributes:
        live: The model, described.
        base: What it is matched to, or None where it has no configuration.
        contents: Its tensors and files.
        findings: What a person should know.
    """

    live: LiveModel
    base: Base | None
    contents: Contents
    findings: tuple[Finding, ...]


@contextmanager
def published(
    model: Module, telling: Telling, options: SaveOptions, ranks: Ranks, *, file_name: str | None = None
) -> Iterator[Published]:
    """Yield a model as it would be published; tensors can be read until the block is left.

    Every rank calls it, and reads what it owns.

    Args:
        model: The model, wrapped or not.
        telling: Its base, configuration and tokenizer.
        options: What is to be made of it.
        ranks: All ranks.
        file_name: The name of the one file that is written, or None for a folder.

    Raises:
        UnshardError: The model cannot be described, or is not what its class is.
    """
    live = describe_live_model(model, ranks)
    try:
        with tempfile.TemporaryDirectory(prefix="unshard-") as name:
            folder = Path(name)
            prepared = _prepared(model, live, telling, ranks)
            base = None if prepared is None else prepared.base_in(folder)
            adapted = with_adapter_config(model, live, folder)

            def answering(questions: tuple[Question, ...]) -> Answers:
                return answer_on_ranks(questions, live.holdings, ranks)

            contents = plan_contents(
                adapted.checkpoint,
                base,
                options,
                answering,
                file_name=file_name,
                ties=live.ties,
                buffers=live.buffers,
            )
            told = () if prepared is None else prepared.findings
            with share_parts(contents.tensors.values(), live.holdings, ranks):
                yield Published(
                    live, base, contents, (*live.findings, *told, *adapted.findings, *contents.findings)
                )
    finally:
        live.holdings.close()


def _prepared(model: Module, live: LiveModel, telling: Telling, ranks: Ranks) -> Prepared | None:
    """Return the base, which rank 0 looks for."""

    def look() -> Prepared | None:
        if ranks.rank != 0:
            return None
        return prepare_base(
            model,
            live,
            tokenizer=telling.tokenizer,
            model_config=telling.model_config,
            base=telling.base,
        )

    return ranks.together("describing the model's files", look)[0]
