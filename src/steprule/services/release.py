"""Gradient release (stepping in backward): each parameter is stepped during the backward pass, and its gradient is freed at once.

Whatever needs one parameter alone is exact: the formula, clipping by value, by parameter and by row, zeroing, the average,
telemetry. The global norm and the decision to skip need all gradients, and are not known yet when the first parameter is
stepped. There are two ways:

- With one backward pass, the previous step's norm is used, or the parameter's own where that is larger; a parameter whose
  gradient is not finite keeps its old weights while the others are stepped.
- With two backward passes, the first of them under `measure`, both are exact.

Inside a reentrant checkpoint (torch.utils.checkpoint with use_reentrant=True), a gradient that seems complete may get more
from another use of its parameter. It is kept until `step`, which steps the parameter: the result is right, but the gradient is
not released. With use_reentrant=False it is. A parameter that is used both inside and outside of such a checkpoint is refused
when its gradient comes a second time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from steprule.engine.run import Complete, Sums
from steprule.formats.parts import is_sharded
from steprule.services.gone import SECOND_PASS, Gone
from steprule.services.hooks import Owner, is_nested, processes, weakly
from steprule.services.member import Member, Part, Roll
from steprule.services.step import StepServices, on_host
from steprule.tensors.uncompiled import uncompiled_context
from steprule.trace.norms import Norm

logger = logging.getLogger("steprule")


def check_not_released(params: Iterable[Tensor]) -> None:
    """Raises if the gradients that these parameters do not have were released by an optimizer that is still alive."""
    if Release.has_any() and any(_is_gone(param.grad) and Release.of(param) is not None for param in params):
        raise RuntimeError(
            "another optimizer that is still alive releases the gradients of these parameters inside backward, and "
            "steps them: call release_gradients() of this one to take them over, or delete that one"
        )


def _is_gone(grad: Tensor | None) -> bool:
    return grad is None or isinstance(grad, Gone)


class Release(Owner):
    """The hooks of one optimizer and model, and what is known so far of the step under way.

    Args:
        services: the optimizer's.
        model: whose backward passes are hooked.
        step_one: steps a parameter that has a gradient.
        look: looks at the optimizer's groups, and says by `watch_only` whose parameters those are.

    Attributes:
        marks: whether what uses gradients between backward and `step` is an error.
        waits: says whether a backward pass only accumulates, where a framework knows.
    """

    marks = True
    waits: Callable[[], bool] | None = None

    _taken_over = (
        "were taken over by another one's release_gradients(), made later: they are stepped by that one only; "
        "use it alone"
    )

    def __init__(
        self,
        services: StepServices,
        model: nn.Module,
        step_one: Callable[[Tensor], None],
        look: Callable[[], None],
    ) -> None:
        super().__init__()
        self._services = ref(services)  # which has this: an optimizer in no circle is gone, and its hooks, at once
        self._step_one, self._look = weakly(step_one), weakly(look)
        self._lock = threading.Lock()  # gloo's threads come several at a time
        self._accumulating = self._measuring = False
        self._model = model
        self._ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self._told: set[str] = set()
        self._begin_anew()
        self._verdict: tuple[float, list[str]] | None = None
        if self._ddp is not None:
            if self._ddp.find_unused_parameters:
                raise ValueError(
                    "release_gradients() does not take find_unused_parameters=True: it steps what it is given. transformers' "
                    "Trainer sets it, unless TrainingArguments has ddp_find_unused_parameters=False"
                )
            sparse = next((name for name, one in model.named_modules() if getattr(one, "sparse", False) is True), None)
            if sparse is not None:
                raise ValueError(
                    f"release_gradients() does not take sparse gradients under DistributedDataParallel, and {sparse} has them: "
                    "write sparse=False there, or step() after backward"
                )
            try:
                self._ddp.register_comm_hook(None, lambda _, bucket: self._reduce_then_step(bucket))
            except RuntimeError as error:
                raise ValueError(
                    "release_gradients() needs the communication hook of the DistributedDataParallel, which has one already, as another "
                    "optimizer's release_gradients() or PostLocalSGDOptimizer's averaging puts there: step() after backward"
                ) from error

    @property
    def services(self) -> StepServices:
        """The optimizer's."""
        services = self._services()
        assert services is not None
        return services

    def _begin_anew(self) -> None:
        self._read: list[Member] = []
        self._norms: list[np.ndarray] = []
        self._counted: list[Member] = []
        self._counts: list[Sums] = []
        self._wrong: list[str] = []
        self._clipped = False
        self.stepped: set[Tensor] = set()
        self._taken = False
        self._has_looked = False

    def watch(self, param: Tensor) -> bool:
        """Hooks a parameter, and takes it over if another optimizer releases it."""
        is_taken_over = super().watch(param)
        if is_taken_over:
            self.tell("parameters are released by this optimizer from now on, and no longer by one made before")
        return is_taken_over

    def _hook(self, param: Tensor) -> tuple[Any, ...]:
        self._has_looked = False
        if self._ddp is not None or not param.requires_grad:
            return ()
        register: Any = param.register_post_accumulate_grad_hook
        return (register(weakly(self._complete)),)

    def tell(self, what: str) -> None:
        """Warns of something, once."""
        if what not in self._told:
            self._told.add(what)
            logger.warning("steprule: %s", what)

    def must_be_closed(self, what: str) -> None:
        """Raises if some parameters have taken a step that nobody has closed."""
        if self.stepped:
            raise RuntimeError(
                f"backward has stepped {len(self.stepped)} parameters, and step() has not closed that step: call step() before "
                f"{what}"
            )

    def tell_of_copies(self) -> None:
        """Warns that they are not hooked."""
        self.tell("a copy of an optimizer releases no gradients until its own release_gradients() is called")

    # Inside backward

    def _complete(self, param: Tensor) -> None:
        if self._only_accumulates():
            return
        if param not in self.stepped and not is_sharded(param) and is_nested():
            self.tell(
                "gradients inside a reentrant checkpoint may not be complete and are kept until step(); "
                "torch.utils.checkpoint with use_reentrant=False releases them"
            )
            return
        if processes() > 1 and not is_sharded(param):
            raise RuntimeError(
                "release_gradients() was given a plain module in a run of several processes, where gradients are not "
                "complete before they are averaged: give it the DistributedDataParallel module"
            )
        self._must_be_first(param)
        grad = param.grad
        self._finish_with(param)
        if not is_sharded(param):
            self._mark(param, grad)

    def _mark(self, param: Tensor, grad: Tensor | None) -> None:
        """Puts in the place of a gradient that was used what raises if it is used again."""
        if self.marks and param in self.stepped and grad is not None and grad.layout is torch.strided:
            param.grad = Gone(grad)

    def _only_accumulates(self) -> bool:
        return self._accumulating or (self.waits is not None and self.waits())

    def _must_be_first(self, param: Tensor) -> None:
        if param in self.stepped:
            raise RuntimeError(SECOND_PASS)

    def _finish_with(self, param: Tensor) -> None:
        with self._lock:
            if not self._has_looked:  # once in a backward pass
                self._look()
                self._has_looked = True
            if param not in self._hooks:  # taken out of its group
                return
            self._step_one(param)
            param.grad = None
            if not self._measuring:
                self.stepped.add(param)

    def _reduce_then_step(self, bucket: Any) -> Any:
        """DistributedDataParallel's communication: the mean over processes, then the steps.

        It is called in accumulate(), too, where the forward pass was outside: then the mean waits to be accumulated to.
        """
        ddp = self._ddp
        assert ddp is not None
        has_joined = torch._C._current_graph_task_id() < 0  # join() reduces for others, outside of backward
        waits = has_joined or self._only_accumulates() or not ddp.require_backward_grad_sync
        for param in () if waits else bucket.parameters():
            self._must_be_first(param)
        if ddp._join_config.enable and not ddp._divide_by_initial_world_size:
            raise RuntimeError(
                "release_gradients() divides gradients by the number of all processes, as join() does by default: leave out "
                "divide_by_initial_world_size=False"
            )
        group = ddp.process_group
        mean = bucket.buffer().div_(group.size())
        reduced = torch.distributed.all_reduce(mean, group=group, async_op=True).get_future()

        def step(future: Any) -> Tensor:
            for param, grad in () if waits else zip(bucket.parameters(), bucket.gradients(), strict=True):
                kept, param.grad = param.grad, grad
                self._finish_with(param)
                param.grad = kept  # which the reducer expects to find
            return future.value()[0]  # type: ignore[no-any-return]

        params = bucket.parameters()

        def mark() -> None:
            for param in params:
                self._mark(param, param.grad)

        if not waits:
            later: Any = torch.autograd.Variable._execution_engine.queue_callback
            later(lambda: later(mark))  # after the reducer's own, which puts gradients back
        return reduced.then(step)

    @property
    def wants(self) -> Norm | None:
        """As the services'."""
        return self.services.wants

    @property
    def gathers(self) -> bool:
        """As the services'."""
        return self.services.gathers

    @property
    def counts(self) -> bool:
        """As the services'."""
        return self.services.counts

    def ask(self, works: Sequence[Part], sums: Sequence[Sums], complete: Complete) -> bool:
        """As `OnHost.ask`, for one parameter."""
        services = self.services
        norms = services.norms(sums)
        members = [member for work in works for member in work.members] if norms else []
        if self._measuring:
            self._keep(members, norms)
            self._wrong += services.not_finite(works, norms, complete)
            return False
        if self._verdict is not None:
            norm, wrong = self._verdict
            if wrong:
                return False
        else:
            self._keep(members, norms)
            wrong = services.not_finite(works, norms, complete)
            self._wrong += wrong
            if wrong:
                return False
            before = services.ledger.norm if math.isfinite(services.ledger.norm) else 0.0
            each = zip(members, np.concatenate(norms).tolist() if norms else (), strict=True)
            norm = max([before, *(own for member, own in each if not member.free)])
        self._clipped |= services.multiply(works, norms, norm)
        return True

    def _keep(self, members: Sequence[Member], norms: Sequence[np.ndarray]) -> None:
        self._read += members
        self._norms += [own.copy() for own in norms]

    def _total(self) -> float:
        """The norm of all that was read in this step."""
        return self.services.total(self._norms, Roll(self._read)) if self._norms else 0.0

    def note(self, works: Sequence[Part], gathered: bool, complete: Complete) -> None:
        """As `OnHost.note`, for one parameter."""
        self._taken = True
        if gathered or self.services.nonfinite == "zero":
            found = self.services.counted(works, gathered, complete)
            self._counted += [member for work in works for member in work.members]
            self._counts += [{name: on_host(counts).copy() for name, counts in own.items()} for own in found]

    # Around backward

    @uncompiled_context
    def accumulate(self) -> Iterator[None]:
        """Backward passes inside only accumulate."""
        before, self._accumulating = self._accumulating, True
        try:
            with self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext():
                yield
        finally:
            self._accumulating = before

    @uncompiled_context
    def measure(self) -> Iterator[None]:
        """The backward pass inside only measures; the next one steps by what it has found."""
        if self.stepped:
            raise RuntimeError(
                "measure() comes before the step's other backward pass, and after step() of the one before"
            )
        if any(param.grad is not None for param in self._hooks):
            raise RuntimeError(
                "measure() begins without gradients: accumulation and two backward passes do not go together"
            )
        self._drop_measurement()
        others = [(param, param.grad) for param in self._model.parameters()]  # some may be another optimizer's
        self._measuring = True
        try:
            for param, _ in others:
                param.grad = None
            yield
            for own in list(self._hooks):
                if self._ddp is None and own.grad is not None:  # of checkpoints
                    self._finish_with(own)
        except BaseException:
            self._drop_measurement()
            raise
        finally:
            self._measuring = self._has_looked = False
            for param, grad in others:
                param.grad = grad
        services = self.services
        norm, ledger = self._total(), services.ledger
        self._norms_before = ledger.norm, ledger.recent.copy()
        if not self._wrong and services.wants is not None:
            ledger.remember(norm)
        self._verdict = norm, self._wrong

    def _drop_measurement(self) -> None:
        """Forgets what a measuring pass has found if no step came of it."""
        if self._verdict is not None:
            ledger = self.services.ledger
            ledger.norm, recent = self._norms_before
            ledger.recent.clear()  # whose length another clip may have changed
            ledger.recent.extend(recent)
        self._verdict = None
        self._begin_anew()

    def step(self, move_resting: Callable[[set[Tensor], Any], None]) -> None:
        """Steps what backward has left, and closes the step.

        Args:
            move_resting: brings averages of parameters that are not among those given towards them, by a share.

        Raises:
            RuntimeError: gradients are not averaged over processes, or another optimizer has taken parameters over.
        """
        self._look()
        self.check_own()
        self._has_looked = True
        for param in list(self._hooks):
            if param in self.stepped:
                param.grad = None  # the reducer has put it back
            elif param.grad is not None:
                if self._ddp is not None:
                    raise RuntimeError(
                        "gradients were not averaged over processes: with DistributedDataParallel every backward pass needs a "
                        "forward pass of its own, and the last one must not be in accumulate()"
                    )
                self._finish_with(param)
                self._hook_again(param)
        stepped, services, verdict = self.stepped, self.services, self._verdict
        if not stepped:
            self._drop_measurement()
            return
        wrong, services.found = self._wrong, bool(self._wrong)
        if wrong:
            services.refuse(wrong, whole=verdict is not None)
        elif verdict is None and services.wants is not None:
            services.ledger.remember(self._total())
        if self._taken:
            services.ledger.clipped += self._clipped
            if services.average is not None:
                move_resting(stepped, services.average_weight)
            services.close(self._counts, Roll(self._counted), services.gathers)
        self._verdict = None
        self._begin_anew()
