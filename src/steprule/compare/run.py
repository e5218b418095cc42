"""One training run: a task, an optimizer and a seed, and what came of it."""

from __future__ import annotations

import contextlib
import math
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from steprule.compare.errors import defined, place_of
from steprule.compare.spec import Spec
from steprule.compare.tasks import Task

__all__ = ["Budget", "Run", "train"]


@dataclass(frozen=True)
class Budget:
    """How long each run trains: a number of steps, or seconds of training (evaluation does not count)."""

    steps: int | None = None
    seconds: float | None = None

    def spent(self, steps: int, seconds: float) -> float:
        """The share of the budget that so many steps and seconds use up, 1 or more when it is over."""
        return seconds / self.seconds if self.seconds is not None else steps / (self.steps or 1)


@dataclass
class Run:
    """What came of one run.

    Attributes:
        task: its name.
        optimizer: its specification, with all settings that were given.
        label: the same without lr.
        lr: the learning rate it began with, None if it has none.
        seed: of the first weights and the order of the data.
        status: whether it finished, diverged (a loss that is not finite) or failed (an exception).
        error: the exception of a failed run.
        where: the file and line of it, the last outside of Python, torch and steprule; None if there is none.
        traceback: all that Python says of it.
        step_count: the steps taken.
        steps, seconds, loss, accuracy: the evaluations, one entry each: after how many steps and seconds of
            training (the first after 0), the validation loss, and the accuracy if the task has one. A diverged
            run ends with its last finite loss.
        reached_step, reached_seconds: the first evaluation with the target loss, None if there was none.
        step_ms: the median time inside the optimizer's step, milliseconds.
        state_bytes: memory of the optimizer's state, bytes a trainable parameter.
    """

    task: str
    optimizer: str
    label: str
    lr: float | None
    seed: int
    status: Literal["finished", "diverged", "failed"] = "finished"
    error: str | None = None
    where: str | None = None
    traceback: str | None = None
    step_count: int = 0
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    reached_step: int | None = None
    reached_seconds: float | None = None
    step_ms: float | None = None
    state_bytes: float | None = None

    @property
    def failure(self) -> str:
        """The exception of a failed run, and where it came from."""
        return f"{self.error} ({self.where})" if self.where else str(self.error)

    @property
    def final_loss(self) -> float:
        """The validation loss at the end, infinity for a run that did not finish."""
        return self.loss[-1] if self.status == "finished" else math.inf


def train(task: Task, spec: Spec, seed: int, budget: Budget, target: float, progress: Callable[[float], None]) -> Run:
    """Trains once.

    The losses depend on the arguments and torch's number of threads alone, unless the budget is in seconds.

    Args:
        task: what to train.
        spec: with which optimizer.
        seed: for the first weights and the order of the data.
        budget: how long.
        target: the validation loss to look out for.
        progress: is told the share of the budget that is used up, from 0 to 1, after each step.

    Returns:
        The run, whatever happened to it: a loss that is not finite or an exception ends it early.
    """
    run = Run(task.name, str(spec), spec.label, None, seed)
    try:
        example = _take_a_step(task, spec, seed)
        _train(run, task, spec, example, budget, target, progress)
    except Exception as error:  # one optimizer's failure is a result, and not the end of the others
        run.status, run.error = "failed", f"{type(error).__name__}: {error}"
        run.where, run.traceback = place_of(error), "".join(traceback.format_exception(error))
    return run


def _train(
    run: Run, task: Task, spec: Spec, example: Callable[[nn.Module], Tensor], budget: Budget, target: float,
    progress: Callable[[float], None],
) -> None:  # fmt: skip
    model, batches = _start(task, run.seed)
    optimizer = spec.build(model, example)
    run.lr = _learning_rate(optimizer)
    synchronize = _synchronizer(model)
    step_times: list[float] = []
    spent = 0.0

    def evaluate() -> bool:
        """Adds a point to the curve; whether the loss is finite."""
        model.eval()
        with torch.no_grad(), _evaluated(optimizer):
            result = task.evaluate(model)
        if not isinstance(result, Mapping) or "loss" not in result:
            where = defined(task.evaluate)
            raise ValueError(f"the task's evaluate must return a dict with 'loss', not {result!r}{where}")
        loss = float(result["loss"])
        if not math.isfinite(loss):
            return False
        run.steps.append(run.step_count)
        run.seconds.append(spent)
        run.loss.append(loss)
        if "accuracy" in result:
            run.accuracy.append(float(result["accuracy"]))
        if loss <= target and run.reached_step is None:
            run.reached_step, run.reached_seconds = run.step_count, spent
        return True

    finite = evaluate()
    while finite and budget.spent(run.step_count, spent) < 1:
        loss, seconds, step_seconds = _step(task, model, batches, run.step_count, optimizer, synchronize)
        step_times.append(step_seconds)
        spent += seconds
        run.step_count += 1
        finite = math.isfinite(loss)
        if finite and (run.step_count % task.eval_every == 0 or budget.spent(run.step_count, spent) >= 1):
            finite = evaluate()
        progress(min(budget.spent(run.step_count, spent), 1.0))
    if not finite:
        run.status = "diverged"
    if step_times:
        run.step_ms = 1e3 * median(step_times)
        run.state_bytes = _state_bytes(optimizer) / sum(p.numel() for p in model.parameters() if p.requires_grad)


@contextlib.contextmanager
def _evaluated(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Schedule-free optimizers have other weights to evaluate than to train."""
    own: Any = optimizer
    exchanges = hasattr(own, "eval") and hasattr(own, "train")
    if exchanges:
        own.eval()
    try:
        yield
    finally:
        if exchanges:
            own.train()


def _start(task: Task, seed: int) -> tuple[nn.Module, Iterator[Any]]:
    """A new model and its batches, the random number generators as the seed has them."""
    for seed_it in (random.seed, np.random.seed, torch.manual_seed):
        seed_it(seed)
    model = task.make_model(seed)
    if not isinstance(model, nn.Module):
        where = defined(task.make_model)
        raise ValueError(f"the task's make_model must return a torch.nn.Module, not {model!r}{where}")
    return model, iter(task.batches(seed))


def _take_a_step(task: Task, spec: Spec, seed: int) -> Callable[[nn.Module], Tensor]:
    """Steps a model that is thrown away: imports and the compilation of kernels shall not count as time of a step.

    Returns:
        A function that calls a model with the first batch.
    """
    model, batches = _start(task, seed)
    first = _next(batches, 0)

    def example(model: nn.Module) -> Tensor:
        return task.loss(model, first)

    optimizer = spec.build(model, example)
    _step(task, model, iter([first]), 0, optimizer, _synchronizer(model))
    return example


def _next(batches: Iterator[Any], number: int) -> Any:
    """The batch after so many."""
    try:
        return next(batches)
    except StopIteration:
        raise RuntimeError(f"the task's batches ended after {number}") from None


def _step(
    task: Task, model: nn.Module, batches: Iterator[Any], number: int, optimizer: torch.optim.Optimizer,
    synchronize: Callable[[], None],
) -> tuple[float, float, float]:  # fmt: skip
    """One step, after so many: the training loss, and the seconds that it took and that the optimizer took of them."""
    model.train()
    start = perf_counter()
    batch = _next(batches, number)
    optimizer.zero_grad()
    loss = task.loss(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"the task's loss must return a tensor of one element, not {loss!r}{defined(task.loss)}")
    loss.backward()  # type: ignore[no-untyped-call]
    synchronize()
    before = perf_counter()
    optimizer.step()
    synchronize()
    end = perf_counter()
    return loss.item(), end - start, end - before


def _learning_rate(optimizer: torch.optim.Optimizer) -> float | None:
    lr = optimizer.param_groups[0].get("lr")
    return None if lr is None else float(lr)


def _synchronizer(model: nn.Module) -> Callable[[], None]:
    """Waits until an accelerator has done its work, so that the clock measures that and not the asking."""
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return torch.accelerator.synchronize
    return lambda: None


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The memory of all tensors in the state, shared memory counted once, numbers such as step left out."""
    storages = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(dict(optimizer.state))
    return sum(storages.values())
