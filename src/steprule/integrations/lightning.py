"""Lightning: a callback."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback

from steprule.integrations.watch import Log, each, release, set_mode, takes_clip, unwrapped
from steprule.services.clip import ClipNorm, ClipValue

__all__ = ["OptimizerCallback"]


class OptimizerCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Has Lightning's `Trainer` use what an optimizer can do::

        trainer = lightning.Trainer(callbacks=[OptimizerCallback()], gradient_clip_val=1.0)

    - Validation uses the averaged weights of an optimizer with average=..., or of a Schedule-Free one, and the module has them after
      fit. With save, checkpoints have them under "state_dict", and the optimizer's state says so: training that resumes goes on from
      the weights. A checkpoint with save_weights_only=True has the averages only where the module has them.
    - gradient_clip_val becomes the clip of optimizers that have none, in the same pass; of those that have one, theirs is used.
    - With release, gradients are released (stepped in backward), also with accumulate_grad_batches and under DDP. Clipping by
      norm then uses the norm of the step before.
    - Every log_every_n_steps, "optimizer/grad_norm", counts of clipped and skipped steps, and new records of telemetry go to the
      loggers.

    Args:
        save: whether checkpoints have averages. Default: True.
        release: whether gradients are released. It needs automatic optimization. Default: False.
        log: whether loggers are told. Default: True.

    Raises:
        ValueError: when training begins: gradients cannot be released.
    """

    def __init__(self, *, save: bool = True, release: bool = False, log: bool = True) -> None:
        self._saves, self._releases, self._logs = save, release, log
        self._log = Log()
        self._clip_val: Any = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Takes clipping over, before states are loaded that have counts of clipped steps."""
        self._take_clip(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Releases gradients, takes clipping over, and has the module's weights be those that are trained."""
        optimizers = [unwrapped(one) for one in trainer.optimizers]
        for one in optimizers:
            set_mode(one, training=True)
        if self._releases:
            self._release(trainer, pl_module, optimizers)
        self._take_clip(trainer, pl_module)

    def _take_clip(self, trainer: Any, pl_module: Any) -> None:
        optimizers = [unwrapped(one) for one in trainer.optimizers]
        value = trainer.gradient_clip_val
        if value and pl_module.automatic_optimization:
            by_value = "value" in str(trainer.gradient_clip_algorithm).lower()
            clip = ClipValue(float(value)) if by_value else ClipNorm(float(value))
            alike = [one for one in optimizers if any(each(one))]
            if len(alike) == len(optimizers) and all(
                [takes_clip(one, clip, f"gradient_clip_val={value}") for one in optimizers]
            ):
                self._clip_val, trainer.gradient_clip_val = value, None

    def _release(self, trainer: Any, pl_module: Any, optimizers: list[Any]) -> None:
        if not pl_module.automatic_optimization:
            raise ValueError(
                "release=True needs automatic optimization: call optimizer.release_gradients(self) yourself"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                'release=True and precision="16-mixed" do not go together: parameters are stepped before the scale is known. '
                'Use precision="bf16-mixed"'
            )
        is_wrapped = isinstance(trainer.model, torch.nn.parallel.DistributedDataParallel)
        for one in optimizers:
            release(
                one, trainer.model if is_wrapped else pl_module, lambda: bool(trainer.fit_loop._should_accumulate())
            )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Gives the module averages."""
        if trainer.state.fn == "fit":
            for one in trainer.optimizers:
                set_mode(one, training=False)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Gives it its weights back."""
        if trainer.state.fn == "fit":
            for one in trainer.optimizers:
                set_mode(one, training=True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tells the loggers."""
        if self._logs and trainer.loggers and (batch_idx + 1) % trainer.log_every_n_steps == 0:
            numbers = self._log.numbers([unwrapped(one) for one in trainer.optimizers])
            for logger in trainer.loggers if numbers else ():
                logger.log_metrics(numbers, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leaves the module with averages."""
        for one in trainer.optimizers:
            set_mode(one, training=False)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Puts averages into a checkpoint, and into the states of the optimizers that they are there."""
        optimizers = [unwrapped(one) for one in trainer.optimizers]
        have = [one for one in optimizers if any(_has_averages_aside(part) for part in each(one))]
        if not self._saves or not have or "optimizer_states" not in checkpoint:
            return
        for one in have:
            one.eval()
        try:
            strategy = trainer.strategy
            checkpoint["state_dict"] = _kept(strategy.lightning_module_state_dict())
            checkpoint["optimizer_states"] = _kept([strategy.optimizer_state(one) for one in trainer.optimizers])
        finally:
            for one in have:
                one.train()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Gives the trainer its setting back."""
        if self._clip_val is not None:
            trainer.gradient_clip_val, self._clip_val = self._clip_val, None


def _has_averages_aside(optimizer: Any) -> bool:
    """Whether a model has its weights, and an optimizer their averages."""
    core = optimizer._core
    averages = core.has_modes or (core.services is not None and core.services.average is not None)
    return bool(averages and core.modes.has_trained_weights and optimizer.state)


def _kept(value: Any) -> Any:
    """A copy of what tensors hold now."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value)((key, _kept(one)) for key, one in value.items())
    return [_kept(one) for one in value] if type(value) is list else value
