"""For the Trainer of transformers: what inference needs, beside every checkpoint.

    trainer = Trainer(model, arguments, ..., callbacks=[UnshardCallback()])

    OUTPUT_DIR/checkpoint-N/            what the Trainer saves for resuming
    OUTPUT_DIR/checkpoint-N/unshard/    a model folder that can be served, with the record

It lies inside, so what `save_total_limit` removes goes whole. The Trainer has finished its own checkpoint
before, and resuming does not look inside.

Source:
    transformers, trainer.py (`_maybe_log_save_evaluate`: `_save_checkpoint`, then `on_save` on all ranks;
    `_load_from_checkpoint`), trainer_callback.py (`CallbackHandler.call_event`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.nn import Module

from unshard.errors import MissingExtraError, OptionError
from unshard.training.integrations.saving import require_known, save_beside

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise MissingExtraError("UnshardCallback", extra="hf", package="transformers") from error

FOLDER = "unshard"


class UnshardCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not read
    """Saves a model that can be served, with the record, whenever the Trainer saves a checkpoint.

    Works for one process, DDP, FSDP1 and FSDP2. It does nothing in a search for hyper-parameters, whose
    checkpoints lie elsewhere.
    """

    def __init__(self, *, every: int = 1, at_end: bool = False, strict: bool = False, **options: Any) -> None:
        """Check the options.

        Args:
            every: Save with every so many-th checkpoint of the Trainer.
            at_end: Whether to save the model in OUTPUT_DIR/unshard when training ends, too: the best one with
                `load_best_model_at_end`.
            strict: Whether training ends where saving fails. If not, it is warned of.
            **options: What `save_full` is to be told. Tokenizer, configuration, step and seed are the
                Trainer's where they are not given.

        Raises:
            OptionError: The options mean nothing.
        """
        if every < 1:
            raise OptionError("every", "must be at least 1", saw=every)
        require_known(options, Path(FOLDER))
        self.every = every
        self.at_end = at_end
        self.strict = strict
        self.options = options
        self._saves = 0

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save beside the checkpoint that there is now."""
        self._saves += 1
        if self._saves % self.every == 0 and not state.is_hyper_param_search:
            step = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self._save(Path(args.output_dir, step), args, state, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the model that training ends with, where that was asked for."""
        if self.at_end and not state.is_hyper_param_search:
            self._save(Path(args.output_dir), args, state, **kwargs)

    def _save(
        self,
        folder: Path,
        args: TrainingArguments,
        state: TrainerState,
        *,
        model: Module,
        processing_class: Any = None,  # a tokenizer, or a processor that has one
        **_: Any,
    ) -> None:
        told = {"config": args, "step": state.global_step, "seed": args.seed, "tokenizer": processing_class}
        save_beside(
            model, folder / self._place(), {"overwrite": True, **told, **self.options}, strict=self.strict
        )

    def _place(self) -> Path:
        # In a folder right inside a checkpoint, the Trainer takes an adapter for one to resume with.
        return Path(FOLDER, "adapter") if self.options.get("adapter") == "keep" else Path(FOLDER)
