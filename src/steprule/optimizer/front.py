"""The torch.optim front: the same arguments, states, checkpoints and hooks, over steprule's engines."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from steprule.docstrings import options_at_length
from steprule.engine.surroundings import in_peace, undisturbed
from steprule.optimizer import torchs
from steprule.optimizer.arguments import docstring, signature_of
from steprule.optimizer.checkpoint import Loading
from steprule.optimizer.core import Core, RuleOf
from steprule.optimizer.formulas import BASES, base_of, check_base, check_free, check_has_formula, optimizer_of
from steprule.optimizer.groups import Groups
from steprule.optimizer.making import begin, bind, check_params, finish, set_clip, set_cuda_graph, set_process_group
from steprule.optimizer.releasing import release_gradients
from steprule.optimizer.saved import as_saved, plain_state_dict, read
from steprule.optimizer.shown import shown
from steprule.optimizer.steps import Steps
from steprule.rule import Rule
from steprule.services import Telemetry
from steprule.services.clip import Clip
from steprule.settings import check_rule, constructor
from steprule.tensors.uncompiled import leave_uncompiled

_profiling: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


class Optimizer(torch.optim.Optimizer):
    """Runs a rule over parameters, as a torch.optim optimizer.

    A rule becomes an optimizer by a subclass of one line, ``class Lion(steprule.Optimizer, rule=LionRule): ...``,
    or, without a class statement, by `Optimizer.of`. Its arguments are params, the rule's hyperparameters in the formula's
    order, the flags and the options. Any hyperparameter may be a function of the step, which counts from 1. The
    parameter group holds its value for the next step. If a scheduler writes another value, the function's is put back,
    with a warning. If the function raises an error, the step that needs its value raises it.

    Parameter groups may be changed by hand. The next step checks their settings before it changes anything; with gradient
    release, before it changes parameters of that group. What torch.optim accepts there for its own rules is accepted.

    Class arguments:
        rule: the formula, a subclass of `steprule.Rule`.

    Attributes:
        rule: the same, of each class: ``steprule.AdamW.rule`` can be a part of a `steprule.chain`.
        param_groups (list[dict[str, Any]]): a dict for each group, with its "params" and settings such as "lr", as in torch.optim.
        state (dict[Tensor, dict[str, Any]]): for each parameter that was stepped a dict of its states by name.
    """

    rule: ClassVar[type[Rule]]
    _signature: ClassVar[inspect.Signature]
    _core: Core
    _groups: Groups
    _steps: Steps
    _loading: Loading

    def __init_subclass__(cls, rule: type[Rule] | None = None) -> None:
        super().__init_subclass__()
        if rule is None:
            return
        check_rule(f"class {cls.__name__}(Optimizer, rule=...)", rule)
        check_base(cls, rule, base_of(rule))
        check_free(rule)
        cls.rule = RuleOf(rule)  # type: ignore[assignment]
        cls._signature = signature_of(rule)
        if "__init__" not in vars(cls):
            cls.__init__ = constructor(cls, cls._signature)  # type: ignore[method-assign]
        if cls.__doc__ is None:
            cls.__doc__ = docstring(rule)

    @staticmethod
    def of(rule: type[Rule]) -> type[Optimizer]:
        """The optimizer class of a rule, such as one made by `steprule.chain`.

        Raises:
            TypeError: rule is no subclass of `steprule.Rule`.
        """
        check_rule("Optimizer.of", rule)
        return optimizer_of(rule)  # type: ignore[arg-type]

    @in_peace
    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        check_has_formula(type(self))
        check_params(params)
        self._groups = groups = Groups(self)
        self._steps = Steps(groups)
        self._core, defaults = begin(groups, bind(groups.name, groups.base, self._signature, args, kwargs))
        super().__init__(params, defaults)
        finish(groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch.optim does; its own hyperparameters are checked like the constructor's.

        Args:
            param_group: a dict with "params" and any settings that differ from the defaults.
        """
        self._groups.add(param_group, functools.partial(torchs.add_param_group, self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copies a state dict, this optimizer's or torch.optim's.

        Formats stay those of this optimizer: states saved in another format are converted. The seed is taken from the state
        dict. Without formats, states get the parameter's dtype, or that of the state that they replace. Functions of the step
        and averages go on where the saved ones were; torch.optim does not save that, and then they go on at the states' step.
        The model is to have the weights that it had when it was saved: those that are trained, or their averages.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            KeyError: it is not the state dict of an optimizer.
            RuntimeError: backward has stepped released parameters, and `step` was not called since.
            ValueError: its parameter groups have other sizes, or it is another rule's: a parameter with states lacks some,
                has another rule's, or has one of another shape or of a dtype that no step can use. Nothing has changed.
        """
        if self is not self._groups.optimizer:  # but a wrapper of it, which would get states of its own
            return self._groups.optimizer.load_state_dict(state_dict)  # type: ignore[no-any-return]
        self._core.modes.must_be_free("load_state_dict()")
        self._steps.must_be_closed("load_state_dict()")
        with undisturbed(), Loading(self._groups) as self._loading:
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **({"_core": saved} if (saved := self._core.saved()) else {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_copy = "_core" not in self.__dict__
        if is_copy:
            self._groups = Groups(self)
            self._steps = Steps(self._groups)
            self._core = Core.restored(type(self).rule, state.get("_core", {}))
        super().__setstate__({name: value for name, value in state.items() if name != "_core"})
        if "_loading" in self.__dict__:
            self._loading.finish()
        else:
            self._groups.take_over(is_copy)

    def __repr__(self) -> str:
        """torch.optim's lines, with functions of the step as functions, and the options of the whole optimizer."""
        return shown(type(self).__name__, self._core, self.param_groups)

    def read(self, param: Tensor, name: str = "param") -> Tensor:
        """The value of each element of a parameter or a state, in whatever format it is kept.

        Args:
            param: one of the optimizer's parameters.
            name: a state, or "param" for the weights with their low bits.

        Returns:
            A new tensor of the parameter's shape, float32 (float64 for float64).

        Raises:
            KeyError: the parameter is not the optimizer's or has no such state yet.
            RuntimeError: the state does not fit the parameter, or its memory was freed.
        """
        return read(self._groups, param, name)

    def plain_state_dict(self) -> dict[str, Any]:
        """The state dict as torch.optim can load it: every state in float32, and no low bits of weights, which `read` gives."""
        self._core.modes.must_train("plain_state_dict()")
        return plain_state_dict(self._groups, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's. States in 8 bits have names of their own ("exp_avg_8bit" for codes, "exp_avg_base" for block exponents),
        low bits of weights are the state "param_correction", and averages of weights the state "param_average".

        All that the next step depends on is under torch.optim's two keys, where tools that save optimizers look for it. Each
        parameter group holds what services must remember, such as how many steps were skipped, as "services"; how many steps
        functions of the step have seen as "calls"; and whether the model has the weights that are trained as "train_mode". While
        it has their averages, "param_average" holds the weights, or "param_trained" does if they are kept in another format.
        """
        self._core.modes.must_be_savable()
        self._groups.note()
        return as_saved(self._groups, super().state_dict())

    @property
    def clip(self) -> Clip | None:
        """How gradients are clipped. Between steps it may be set to anything that the argument clip takes."""
        return self._core.services.clip if self._core.services is not None else None

    @clip.setter
    def clip(self, value: Any) -> None:
        set_clip(self._groups, value)

    @property
    def process_group(self) -> Any:
        """The processes over which the parameters are spread, None if over none. Between steps it may be set to another."""
        return self._core.across.group if self._core.across is not None else None

    @process_group.setter
    def process_group(self, value: Any) -> None:
        set_process_group(self._groups, value)

    @property
    def cuda_graph(self) -> bool:
        """Whether steps on one GPU are recorded as a CUDA graph and replayed, at one launch. May be set between steps."""
        return self._core.in_graph

    @cuda_graph.setter
    def cuda_graph(self, value: bool) -> None:
        set_cuda_graph(self._groups, value)

    @property
    def telemetry(self) -> Telemetry | None:
        """The records, if the argument telemetry was given; else None."""
        return self._core.services.telemetry if self._core.services is not None else None

    @property
    def grad_norm(self) -> Tensor:
        """The norm of the gradients of the last step that was taken, before clipping: a 0-dim float32 tensor.

        It is on the GPU if clipping is decided there, and on the CPU otherwise. Its p is the clip's norm_type. It is 0 after a
        step without gradients (gradient release takes no such step). It is NaN if no step has read the gradients: only clipping
        by a norm, nonfinite="skip" and nonfinite="raise" do so.
        """
        return self._core.grad_norm()

    @property
    def clipped_steps(self) -> int:
        """How many steps had their gradients clipped because a norm was too long, by more than rounding."""
        return self._core.known("clipped")

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return self._core.known("skipped")

    @property
    def zeroed_elements(self) -> int:
        """How many elements of gradients were taken as 0 because they were not finite."""
        return self._core.known("zeroed")

    def swap_average(self) -> None:
        """Exchanges the weights with their averages; a second call exchanges them back, bit for bit.

        Between the two calls, `step` raises an error. If averages have another format than the weights (float32 for bfloat16
        weights), the model gets them rounded, and the weights are kept aside. The second call gives the weights back whatever
        happened to parameter groups and states meanwhile, in the dtype that the parameter then has.

        Raises:
            RuntimeError: there is no average yet, or one cannot be exchanged; no weight has changed.
        """
        self._core.modes.swap("swap_average()", self)

    def train(self) -> None:
        """Gives the model the weights that gradients are taken at. The optimizer begins so; twice changes nothing."""
        self._exchange(training=True)

    def eval(self) -> None:
        """Gives the model the averaged weights of average=... or of a Schedule-Free rule, if there are some. Twice changes nothing."""
        self._exchange(training=False)

    def _exchange(self, training: bool) -> None:
        self._core.modes.exchange(self, training)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the model has the averages of its weights: ``with optimizer.averaged(): evaluate()``.

        Contexts may be nested: an inner one changes nothing.

        Raises:
            RuntimeError: there is no average yet.
        """
        return self._core.modes.averaged(self)

    def release_gradients(self, model: torch.nn.Module) -> None:
        """Turns on gradient release (stepping in backward): a parameter is stepped once its gradient is complete, which is then freed.

        So gradients never all exist at the same time. Still call `step` after backward: it closes the step and runs its hooks, and
        schedules follow it as usual. What you set between backward and `step`, such as a learning rate, holds from the next step
        on. Every backward pass through these parameters trains them: for a loss that should not, use `requires_grad=False` or
        `torch.autograd.grad`. The global norm and the decision to skip need all gradients. They are exact with `measure`; without
        it they are made of the previous step's norm and each parameter's own gradient.

        If another optimizer releases gradients of the same parameters, this one takes them over, and the other's `step` raises
        an error. A copy of the optimizer, by deepcopy or pickle, has other parameters and releases nothing until you call this.

        Args:
            model: the model whose backward passes are hooked; with DistributedDataParallel, that module.

        Raises:
            ValueError: with nonfinite="raise" or differentiable=True, which would have to undo steps; with cuda_graph, process_group or a
                rule that needs a sum over all parameters; a parameter that is not one of the model's; or, on several processes, what
                cannot be followed in backward, such as find_unused_parameters=True. The message says what to do.
            TypeError: model is not a module.
            RuntimeError: gradient release is on already.
        """
        release_gradients(self._groups, self._groups.optimizer._steps, model)

    def accumulate(self) -> contextlib.AbstractContextManager[None]:
        """A context for every micro-batch of a step except the last: backward passes in it release no gradients.

        Without `release_gradients` it does nothing. With DistributedDataParallel it is also that module's `no_sync`.
        """
        return self._core.release.accumulate() if self._core.release is not None else contextlib.nullcontext()

    def measure(self) -> contextlib.AbstractContextManager[None]:
        """A context for a first backward pass that only measures, so that gradient release clips and skips exactly::

            with optimizer.measure():
                loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()

        Raises:
            RuntimeError: gradients are not released, or have been accumulated already.
        """
        if self._core.release is None:
            raise RuntimeError("measure() is for released gradients: call release_gradients(model) first")
        return self._core.release.measure()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by GradScaler, whose unscaling and check are then part of the pass: where gradients are looked at anyway."""
        is_wrapper = self is not self._groups.optimizer  # which what the scaler sets would be lost on
        return not is_wrapper and torchs.takes_scaler(self._core.services)

    def _step(self, closure: Callable[[], Any] | None = None, *, grad_scaler: Any = None) -> Any:
        """Takes one step.

        Args:
            closure: a function that evaluates the model again, calls backward and returns the loss.
            grad_scaler: given by a GradScaler whose `step` is called, never by hand.

        Returns:
            What closure returned, or None.

        Raises:
            RuntimeError: a gradient does not fit its parameter, or is sparse where the rule takes none.
        """
        self._steps.agreement.begin()
        torchs.check_closure(closure)
        if self._core.services is not None and (grad_scaler is not None or hasattr(self, "found_inf")):
            torchs.step_scaled(self, grad_scaler, self._steps.take)
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps.take()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients of all parameters, and frees parameters and states that have been replaced.

        Args:
            set_to_none: set gradients to None rather than to 0, so that the next step leaves parameters alone that get none.
                Default: True.
        """
        torchs.zero_grad(self, set_to_none)
        self._steps.let_go_of_replaced()

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)
    if TYPE_CHECKING:

        def step(self, closure: Callable[[], Any] | None = None, *, grad_scaler: Any = None) -> Any: ...  # noqa: D102

    else:  # what is given is handed on as it is

        def step(self, *args: Any, **kwargs: Any) -> Any:
            """Takes one step, with its hooks."""
            if "closure" in kwargs and kwargs["closure"] is None and self._steps.only_asks_for_states():
                return self._steps.make_states()
            hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            watched = hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or _profiling()
            if watched and type(self).step is Optimizer.step:
                return self._steps.agreement.guard(self._hooked_step, *args, **kwargs)
            core, current = self._core, self._core.plans.current
            is_plain = not args and not kwargs and core.schedules is core.shards is core.across is None
            if is_plain and current is not None and (core.services is None or not hasattr(self, "found_inf")):
                with undisturbed():
                    if current.run(self.param_groups, self.state):
                        return None
            return self._step(*args, **kwargs)

        step.__doc__ = _step.__doc__
        step.__signature__ = inspect.signature(_step)
        step.hooked = True  # it runs them itself

    def _patch_step_function(self) -> None:
        """torch.optim wraps the step of every class in hooks; one that calls its parent's would run them twice."""
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        if not getattr(type(self).step, "hooked", False):
            setattr(type(self), "step", torchs.outermost(type(self).step))  # noqa: B010 - mypy refuses to assign to a method


Optimizer.__doc__ = f"{inspect.cleandoc(Optimizer.__doc__ or '')}\n\n{options_at_length()}"

BASES[""] = Optimizer
setattr(Optimizer, "__setattr__", torchs.set_attribute)  # noqa: B010 - in the class, type checkers let any be set
leave_uncompiled(Optimizer, "step zero_grad add_param_group swap_average train eval averaged")
leave_uncompiled(Optimizer, "release_gradients accumulate measure read plain_state_dict")
