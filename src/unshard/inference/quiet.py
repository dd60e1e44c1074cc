"""Transformers without its voice: what it would log is collected instead of printed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as hf_logging


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that fills with what transformers warns of; no progress bar is drawn meanwhile."""
    logger = logging.getLogger("transformers")
    messages: list[str] = []
    collector = logging.Handler(logging.WARNING)
    collector.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before, bars = logger.handlers, hf_logging.is_progress_bar_enabled()
    logger.handlers = [collector]
    if bars:
        hf_logging.disable_progress_bar()
    try:
        yield messages
    finally:
        logger.handlers = before
        if bars:
            hf_logging.enable_progress_bar()
