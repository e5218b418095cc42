"""Hugging Face's Trainer, and those that are made of it (TRL's): a callback."""

from __future__ import annotations

import math
from typing import Any

from accelerate.state import GradientState
from transformers import DefaultFlowCallback, TrainerCallback

from steprule.integrations.watch import Log, each, release, set_mode, takes_clip, unwrapped
from steprule.services.clip import ClipNorm

__all__ = ["OptimizerCallback"]


class OptimizerCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Has Hugging Face's `Trainer` use what an optimizer can do::

        trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
        OptimizerCallback().add_to(trainer)

    Or ``Trainer(..., callbacks=[OptimizerCallback()])``: then reporters such as TensorBoard, which come before it, do not see the
    optimizer's numbers, and gradients cannot be released under DDP.

    - `Trainer` evaluates with the averaged weights of an optimizer with average=..., or of a Schedule-Free one, by itself. With save,
      it also saves them: in each checkpoint, in which the optimizer's state says so, in the best one, and in `save_model()` after
      training. Training that resumes goes on from the weights.
    - max_grad_norm becomes the clip of an optimizer that has none, in the same pass; of one that has a clip, that is used. Counts of
      clipped steps go on after a resume, but with an optimizer that `Trainer` makes: give that one its clip.
    - With release, gradients are released (stepped in backward), also with gradient_accumulation_steps. Clipping by
      norm then uses the norm of the step before.
    - "optimizer/grad_norm", counts of clipped and skipped steps, and new records of telemetry go to the log.

    Args:
        save: whether averages are saved where `Trainer` has not evaluated before. Default: True.
        release: whether gradients are released. Default: False.
        log: whether the log is added to. Default: True.

    Raises:
        ValueError: when training begins: gradients cannot be released, or nonfinite="zero" meets the norm that `Trainer` computes.
    """

    def __init__(self, *, save: bool = True, release: bool = False, log: bool = True) -> None:
        self._saves, self._releases, self._logs = save, release, log
        self._log = Log()
        self._trainer: Any = None
        self._optimizer: Any = None
        self._max_grad_norm: Any = None

    def add_to(self, trainer: Any) -> OptimizerCallback:
        """Adds the callback to a trainer, before those that report.

        Args:
            trainer: a `transformers.Trainer`.
        """
        self._trainer = trainer
        trainer.add_callback(self)
        every = trainer.callback_handler.callbacks
        every.remove(self)
        first = [isinstance(one, DefaultFlowCallback) for one in every]  # which decides when to save
        every.insert(first.index(True) + 1 if any(first) else 0, self)
        _clip(trainer.optimizer, trainer.args)
        return self

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Has an optimizer that is there already clip, before states are loaded that have counts of clipped steps."""
        _clip(kwargs.get("optimizer"), args)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Releases gradients, and takes clipping over."""
        self._optimizer = optimizer = unwrapped(kwargs.get("optimizer"))
        for one in each(optimizer):
            services = one._core.services
            if services is not None and services.nonfinite == "zero" and not self._releases:
                raise ValueError(
                    'nonfinite="zero" does not go with transformers\' Trainer, which multiplies all gradients by what their norm '
                    'makes of it, so that one inf is everywhere: use nonfinite="skip"'
                )
        if self._releases:
            if getattr(args, "fp16", False):
                raise ValueError(
                    "release=True and fp16=True do not go together: parameters are stepped before the scale is known. Use bf16=True"
                )
            model = kwargs["model"] if self._trainer is None else self._trainer.model_wrapped
            gradients = GradientState()
            release(optimizer, model, lambda: not gradients.sync_gradients)
            optimizer._core.release.marks = False  # Trainer computes their norm whatever max_grad_norm is
        if _clip(optimizer, args):
            self._max_grad_norm, args.max_grad_norm = args.max_grad_norm, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the model averages where it is going to be saved, or is at the end."""
        if self._saves and (control.should_save or control.should_training_stop):
            set_mode(self._optimizer, training=False)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the arguments their setting back."""
        if self._max_grad_norm is not None:
            args.max_grad_norm, self._max_grad_norm = self._max_grad_norm, None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Adds to what is logged of training."""
        if not logs or "loss" not in logs:
            return
        numbers = self._log.numbers([self._optimizer]) if self._logs else {}
        if self._releases and "grad_norm" in logs:  # of gradients that are gone
            norm = float(self._optimizer.grad_norm)
            numbers["grad_norm"] = norm if not math.isnan(norm) else None  # type: ignore[assignment]
        for kept in (logs, state.log_history[-1]):
            kept.update(numbers)
            if kept.get("grad_norm", 0.0) is None:
                del kept["grad_norm"]


def _clip(optimizer: Any, args: Any) -> bool:
    """Has an optimizer clip in place of its trainer, if that would and it can."""
    norm = args.max_grad_norm
    return bool(norm) and takes_clip(unwrapped(optimizer), ClipNorm(float(norm)), f"max_grad_norm={norm}")
