"""The torch.optim front: the same arguments, states, checkpoints and hooks, over steprule's engines."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import is_, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import (
    _device_dtype_check_for_fused,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from steprule import rules
from steprule.engine.cpu import Kernel, compiled
from steprule.engine.eager import step_tensors
from steprule.engine.plan import Plan
from steprule.engine.trace import NO_SERVICES, nonnegative_states, static_settings, trace
from steprule.formats import (
    FIRST_ELEMENT_KEY,
    FORMATS,
    STATE_FORMATS,
    WEIGHT_FORMATS,
    base_shape,
    dither,
    mix,
    state_format,
    weight_format,
)  # fmt: skip
from steprule.formats.tensors import decode, element_random, encode, zeros
from steprule.rule import Rule, check_hyperparameters, check_names
from steprule.services import Telemetry
from steprule.services.accumulate import GRAD_FORMATS, Accumulator
from steprule.services.average import STATE as AVERAGE
from steprule.services.average import as_average, average_format
from steprule.services.clip import Clip, ClipValue, as_clip
from steprule.services.release import Release
from steprule.services.step import NONFINITE, Loose, Member, StepServices, Work

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]

_FLAGS: dict[str, Any] = {
    "foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None,
}  # fmt: skip
_FORMAT_OPTIONS: dict[str, Any] = {"states": None, "weights": None, "seed": 0}
_SERVICE_OPTIONS: dict[str, Any] = {
    "clip": None, "nonfinite": None, "average": None, "telemetry": None, "grads": None,
}  # fmt: skip
_OPTIONS = {**_FORMAT_OPTIONS, **_SERVICE_OPTIONS}
_FLAG_DOCS = """
    maximize: follow the gradient upwards. Default: False.
    differentiable: let autograd pass through the step (slower). Default: False.
    foreach, fused, capturable: accepted for torch.optim's sake and kept in the groups; the engine is chosen by
        what the tensors are. fused=True, as there, refuses parameters that are not floating point.
    states: how states are kept: "float32", "bfloat16" or "8bit" (a code each and a base for every 128, in tensors
        whose rows have 32 or more; others keep float32). Default: the parameter's dtype.
    weights: how bfloat16 and float16 parameters are kept: "stochastic" (rounded up or down at random, so that small
        updates count on average), "24bit" or "32bit" (with an error-correction of 8 or 16 bits in the state, in
        place of a float32 master copy). Default: rounded to nearest, which loses small updates.
    seed: for random roundings, an int from 0 to 2**53; the same on every replica. Default: 0.
    clip: how gradients are clipped inside the step: a number, the largest norm of all together, or ClipNorm,
        ClipValue, ClipAdaptive or ClipQuantile from steprule.services. A group with "clip": False is left out.
        Gradients themselves stay as they are; `grad_norm` has their norm. Default: not at all.
    nonfinite: what happens if a gradient is not finite: "skip" the step, "zero" those elements, or "raise".
        Default: they spread, as in torch.optim.
    average: an exponential average of the weights: its decay, or an Average from steprule.services. Default: none.
    telemetry: gather norms and more every so many steps: an int, or a Telemetry from steprule.services.
        Default: never.
    grads: how gradients of bfloat16 and float16 parameters are summed over micro-batches: "float32", or "24bit" or
        "32bit" (with an error-correction beside param.grad). Default: in the parameter's dtype."""


class Optimizer(torch.optim.Optimizer):
    """Runs a rule over parameters, as a torch.optim optimizer.

    A rule becomes an optimizer by a subclass of one line::

        class Lion(steprule.Optimizer, rule=LionRule): ...

    Its arguments are params, the rule's hyperparameters in the formula's order, and the flags.

    Class arguments:
        rule: the formula.
        flags: which of torch.optim's flags it takes, in torch.optim's order.
        positional_flags: whether flags may be given by position, as RMSprop's may.
        keyword_only: hyperparameters that may not.
        fixed: entries of every parameter group that are not arguments.
    """

    rule: ClassVar[type[Rule]]
    _flags: ClassVar[tuple[str, ...]] = ()
    _signature: ClassVar[inspect.Signature]
    _fixed: ClassVar[Mapping[str, Any]] = {}
    _services: StepServices | None = None
    _release: Release | None = None
    _accumulator: Accumulator | None = None
    _released: dict[Tensor, _Pass]
    _swapped: dict[Tensor, Any] | None = None

    def __init_subclass__(
        cls,
        rule: type[Rule] | None = None,
        flags: Sequence[str] = tuple(_FLAGS),
        positional_flags: bool = False,
        keyword_only: Sequence[str] = (),
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init_subclass__()
        if rule is None:
            if "__init__" in vars(cls):  # arguments of its own
                own = list(inspect.signature(cls.__init__).parameters.values())[1:]
                cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
            return
        cls.rule, cls._flags, cls._fixed = rule, tuple(flags), dict(fixed or {})
        kind = inspect.Parameter
        parameters = [kind("params", kind.POSITIONAL_OR_KEYWORD)]
        parameters += [
            kind(name, kind.POSITIONAL_OR_KEYWORD, default=default)
            for name, default in rule.hyperparameters.items()
            if name not in keyword_only
        ]
        flag_kind = kind.POSITIONAL_OR_KEYWORD if positional_flags else kind.KEYWORD_ONLY
        parameters += [kind(name, flag_kind, default=_FLAGS[name]) for name in flags]
        parameters += [kind(name, kind.KEYWORD_ONLY, default=rule.hyperparameters[name]) for name in keyword_only]
        parameters += [kind(name, kind.KEYWORD_ONLY, default=default) for name, default in _OPTIONS.items()]
        cls._signature = cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        if cls.__doc__ is None:
            cls.__doc__ = _docstring(cls)

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        settings = self._bind(args, kwargs)
        chosen = {name: settings.pop(name) for name in _SERVICE_OPTIONS}
        self._accumulator = _make_accumulator(chosen.pop("grads"))
        self._services = _make_services(**chosen)
        self._check(settings)
        if all(settings[name] == default for name, default in _FORMAT_OPTIONS.items()):
            for name in _FORMAT_OPTIONS:  # as absent as in torch.optim
                del settings[name]
        for name, default in self.rule.hyperparameters.items():
            if isinstance(default, tuple):
                settings[name] = tuple(item.squeeze() if isinstance(item, Tensor) else item for item in settings[name])
        self._pass: _Pass | None = None
        self._loading: _Loading | None = None
        super().__init__(params, {**settings, **self._fixed})
        for group in self.param_groups:
            trace(self.rule, group)  # a formula that cannot run says so now
        wanted = [f"weights={g['weights']!r}" for g in self.param_groups if g.get("weights") is not None]
        wanted += [f"grads={self._accumulator.kind!r}"] if self._accumulator is not None else []
        if wanted and not any(p.dtype in _HALVES for group in self.param_groups for p in group["params"]):
            raise ValueError(
                f"{wanted[0]} is for bfloat16 and float16 parameters; these are all float32, which lose nothing"
            )

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        signature = self._signature
        check_names(type(self).__name__, kwargs, signature.parameters)
        bound = signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        del bound.arguments["params"]
        return dict(bound.arguments)

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Raises for hyperparameters and flags that make no sense; settings may be a part of them."""
        check_hyperparameters(self.rule, settings)
        _check_formats(settings)
        for name in self._flags:
            if settings.get(name) not in (None, True, False):
                raise TypeError(f"{name} must be True or False, not {settings[name]!r}")
        if settings.get("fused"):
            if settings.get("differentiable"):
                raise RuntimeError("`fused` does not support `differentiable`")
            if settings.get("foreach"):
                raise RuntimeError("`fused` and `foreach` cannot be `True` together.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch.optim does; its own hyperparameters are checked like the constructor's.

        Args:
            param_group: a dict with "params" and any settings that differ from the defaults.
        """
        if isinstance(param_group, dict):
            for name in _SERVICE_OPTIONS:
                if name in param_group and not (name == "clip" and param_group[name] is False):
                    raise ValueError(
                        f"{name}={param_group[name]!r} in a parameter group: it is for the whole optimizer, an argument of "
                        f"its constructor; a group may only have 'clip': False, to be left out of clipping"
                    )
            self._check(
                {
                    **self.defaults,
                    **{k: v for k, v in param_group.items() if k in self.defaults or k in _FORMAT_OPTIONS},
                }
            )
        self._pass = None
        _add_param_group(self, param_group)
        try:
            _check_parameters(self.param_groups[-1], self._services)
        except ValueError:
            del self.param_groups[-1]
            raise
        if any(name in group for group in self.param_groups for name in _FORMAT_OPTIONS):
            for group in self.param_groups:
                for name, default in _FORMAT_OPTIONS.items():
                    group.setdefault(name, default)
        watchers = [one.watch for one in (self._accumulator, self._release) if one is not None]
        for watch in watchers:
            for param in self.param_groups[-1]["params"]:
                watch(param)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state dict, torch.optim's or one's own, as copies.

        Formats stay those of this optimizer, and what was saved in others is converted; the seed is taken over.
        Without formats, states come in the parameter's dtype, or in that of the state that they replace.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: its groups have other sizes.
        """
        self._loading = _Loading(self)
        hook = self.register_load_state_dict_pre_hook(self._loading.remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
            self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        own = {"_services": self._services} if self._services is not None else {}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pass = None
        loading = self.__dict__.setdefault("_loading", None)
        if loading is not None:
            loading.restore(self)
        for group in self.param_groups:
            for name in (*self.rule.hyperparameters, *self._flags):
                group.setdefault(name, _FLAGS.get(name, self.rule.hyperparameters.get(name)))
            group.update(self._fixed)
            for param in group["params"]:
                for name, value in self.state.get(param, {}).items():
                    self.state[param][name] = _own_copy(name, value, param, group)
        if loading is not None:
            loading.convert(self)

    def read(self, param: Tensor, name: str = "param") -> Tensor:
        """The number behind each element of a parameter or a state, whatever it is kept as.

        Args:
            param: one of the optimizer's parameters.
            name: a state, or "param" for the weight itself with its error-correction.

        Returns:
            A new tensor of the parameter's shape, float32 (float64 for float64).

        Raises:
            KeyError: the parameter is not the optimizer's or has no such state yet.
        """
        for group in self.param_groups:
            if any(param is other for other in group["params"]):
                break
        else:
            raise KeyError(f"param of shape {tuple(param.shape)} is not one of this optimizer's parameters")
        state = self.state.get(param, {})
        if name == "param":
            kind = weight_format(group.get("weights"), _name_of(param.dtype))
            if "param_correction" not in state:
                kind = _name_of(param.dtype)
            if kind not in FORMATS:  # complex
                return param.detach().clone()
            arrays = {"": param.detach(), **_arrays(state, "param")}
        elif isinstance(state.get(name), Tensor):
            kind, arrays = _kept_format(state, name), _arrays(state, name)
            if kind not in FORMATS:  # complex
                return state[name].clone()  # type: ignore[no-any-return]
        else:
            raise KeyError(f"there is no state {name!r}; there are {', '.join(state) or 'none'}")
        value = decode(kind, arrays, param.shape)
        return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)

    def plain_state_dict(self) -> dict[str, Any]:
        """The state dict with every state as a float32 tensor and without formats: torch.optim can load it.

        Error-corrections of weights are left out, since torch.optim has none; `read` gives a weight with its own.
        """
        result = self.state_dict()
        params = [param for group in self.param_groups for param in group["params"]]
        numbers = [number for group in result["param_groups"] for number in group["params"]]
        state = dict(result["state"])
        for number, param in zip(numbers, params, strict=True):
            if number in state:
                names = [
                    name for name in state[number] if name != AVERAGE and not name.endswith(("_base", "_correction"))
                ]
                state[number] = {
                    name: self.read(param, name)
                    if isinstance(state[number][name], Tensor) and name != "step"
                    else state[number][name]
                    for name in names
                    if name != "step" or self.rule.keeps_step
                }
        groups = [{k: v for k, v in group.items() if k not in _FORMAT_OPTIONS} for group in result["param_groups"]]
        result.pop("services", None)
        return {**result, "state": state, "param_groups": groups}

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's; averages of weights are states named "param_average", and what services must remember,
        such as how many steps were skipped, is under "services"."""
        if self._swapped is not None:
            raise RuntimeError("the weights are swapped with their averages: call swap_average() before state_dict()")
        result: dict[str, Any] = super().state_dict()
        if self._services is not None:
            result["services"] = self._services.state_dict()
        return result

    # Services

    @property
    def clip(self) -> Clip | None:
        """How gradients are clipped; may be set between steps to anything that the argument takes."""
        return self._services.clip if self._services is not None else None

    @clip.setter
    def clip(self, value: Any) -> None:
        wanted = as_clip(value)
        if self._services is None:
            raise AttributeError(f"clip={value!r} needs an optimizer that was made with a clip, nonfinite, ...")
        self._services.set_clip(wanted)
        self._pass = None

    @property
    def telemetry(self) -> Telemetry | None:
        """What was gathered, if the argument telemetry was given."""
        return self._services.telemetry if self._services is not None else None

    @property
    def grad_norm(self) -> Tensor:
        """The norm of the last step's gradients before clipping, of the clip's norm_type, a 0-dim float32 tensor.

        NaN if no step has read them: clip by a norm and nonfinite="skip" or "raise" do.
        """
        return torch.tensor(self._services.norm if self._services is not None else float("nan"))

    @property
    def clipped_steps(self) -> int:
        """How many steps had their gradients clipped by a norm."""
        return self._services.clipped if self._services is not None else 0

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return self._services.skipped if self._services is not None else 0

    @property
    def zeroed_elements(self) -> int:
        """How many elements of gradients were taken as 0 because they were not finite."""
        return self._services.zeroed if self._services is not None else 0

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchanges the weights with their averages; a second call exchanges them back, bit for bit.

        In between `step` and `state_dict` refuse. Averages of another format than the weights' (float32 ones of
        bfloat16 weights) are rounded on the way, and the weights kept aside.

        Raises:
            RuntimeError: there is no average yet.
        """
        pairs = [
            (param, self.state[param])
            for group in self.param_groups
            for param in group["params"]
            if AVERAGE in self.state.get(param, {})
        ]
        if not pairs:
            raise RuntimeError("swap_average() needs averages: an optimizer with average=... that has taken a step")
        aside, self._swapped = self._swapped, None if self._swapped is not None else {}
        for param, state in pairs:
            own, other = {"": param.detach(), **_arrays(state, "param")}, _arrays(state, AVERAGE)
            if {name: x.dtype for name, x in own.items()} == {name: x.dtype for name, x in other.items()}:
                for name, x in own.items():
                    kept = x.clone()
                    x.copy_(other[name])
                    other[name].copy_(kept)
            elif aside is not None:
                param.copy_(aside[param])
            else:
                assert self._swapped is not None
                self._swapped[param] = param.detach().clone()
                param.copy_(other[""])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model has the averages of its weights: ``with optimizer.averaged(): evaluate()``."""
        self.swap_average()
        try:
            yield
        finally:
            self.swap_average()

    def release_gradients(self, model: torch.nn.Module) -> None:
        """From now on steps every parameter inside backward, as soon as its gradient is complete, and drops that.

        Gradients then never all exist at once. `step` is still called after backward: it closes the step, with its
        hooks, and learning rate schedules follow it as ever. See `steprule.services.release` for what is exact.

        Args:
            model: whose backward passes to hook: the DistributedDataParallel module where there is one.

        Raises:
            ValueError: nonfinite="raise" or differentiable=True, which would have to undo steps, or a parameter
                that is not the model's.
            RuntimeError: it is on already.
        """
        if self._release is not None:
            raise RuntimeError("release_gradients() was called before: gradients are released already")
        if self._services is not None and self._services.nonfinite == "raise":
            raise ValueError(
                'nonfinite="raise" does not go with release_gradients(): by the time a gradient is found not to be finite, '
                'others have been used; nonfinite="skip" leaves its parameter alone, and with measure() all of them'
            )
        own = set(model.parameters())
        for number, group in enumerate(self.param_groups):
            if group["differentiable"]:
                raise ValueError("differentiable=True does not go with release_gradients(), which drops gradients")
            for index, param in enumerate(group["params"]):
                if param not in own:
                    raise ValueError(
                        f"parameter {index} of group {number} is not one of the model that release_gradients() was given"
                    )
        self._services = self._services or StepServices(None, None, None, None)
        self._pass, self._released = None, {}
        self._release = self._services.release = Release(self._services, model, self._step_one)
        for group in self.param_groups:
            for param in group["params"]:
                self._release.watch(param)

    def accumulate(self) -> contextlib.AbstractContextManager[None]:
        """A context for all but the last micro-batch of a step: backward passes in it release nothing.

        Does nothing without `release_gradients`; with DistributedDataParallel it is its `no_sync` as well.
        """
        return self._release.accumulate() if self._release is not None else contextlib.nullcontext()

    def measure(self) -> contextlib.AbstractContextManager[None]:
        """A context for a first backward pass that only measures, so that released steps clip and skip exactly::

            with optimizer.measure():
                loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()

        Raises:
            RuntimeError: gradients are not released, or have been accumulated already.
        """
        if self._release is None:
            raise RuntimeError("measure() is for released gradients: call release_gradients(model) first")
        return self._release.measure()

    def _step_one(self, param: Tensor) -> None:
        """Steps one parameter."""
        current = self._released.get(param)
        if current is None or not current.run(self):
            with torch.no_grad():
                fresh = self._step_anew(param)
            if fresh is not None:
                self._released[param] = fresh

    def _move_resting_averages(self, stepped: set[Tensor]) -> None:
        assert self._services is not None
        for group in self.param_groups:
            for param in group["params"]:
                if param not in stepped and AVERAGE in self.state.get(param, {}):
                    _move_resting_average(param, group, self.state[param], self._services)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by GradScaler, whose unscaling and check are then part of the pass."""
        if self._services is None:
            return False
        # It is passed to step by a way that torch means to replace; both ways are served.
        warnings.filterwarnings("ignore", "GradScaler is going to stop passing itself", FutureWarning)
        return True

    def _step(self, closure: Callable[[], Any] | None = None, *, grad_scaler: Any = None) -> Any:
        """Takes one step.

        Args:
            closure: evaluates the model again, calls backward and returns the loss.
            grad_scaler: given by a GradScaler whose `step` is called, never by hand.

        Returns:
            What closure returned, or None.

        Raises:
            RuntimeError: a gradient does not fit its parameter, or is sparse where the rule takes none.
        """
        if self._services is not None and (grad_scaler is not None or hasattr(self, "found_inf")):
            self._services.step_scaled(self, grad_scaler, self._take_step)
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step()
        return loss

    def _take_step(self) -> None:
        if self._release is not None:
            with torch.no_grad():
                self._release.step(self._move_resting_averages)
            return
        current = self._pass
        if current is None or not current.run(self):
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                self._pass = self._step_anew()

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step, with its hooks."""
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiling()
        ) and type(self).step is Optimizer.step:
            return self._hooked_step(*args, **kwargs)
        current = self._pass
        if not args and not kwargs and current is not None and current.run(self):
            return None
        return self._step(*args, **kwargs)

    step.__doc__ = _step.__doc__
    step.__signature__ = inspect.signature(_step)  # type: ignore[attr-defined]
    step.hooked = True  # type: ignore[attr-defined]  # it runs them itself

    def _patch_step_function(self) -> None:
        """torch.optim wraps the step of every class in hooks; one that calls its parent's would run them twice."""
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        if not getattr(type(self).step, "hooked", False):
            setattr(type(self), "step", _outermost(type(self).step))  # noqa: B010 - mypy refuses to assign to a method

    def _step_anew(self, only: Tensor | None = None) -> _Pass | None:
        """Looks at every parameter (or one), makes the plan for those that the CPU engine takes, and steps.

        Returns what can do the next step, if something can.
        """
        if any(group.get("capturable") for group in self.param_groups):
            self._accelerator_graph_capture_health_check()
        if self._swapped is not None:
            raise RuntimeError("the weights are swapped with their averages: call swap_average() before step()")
        self._pass = None
        services = self._services
        if self._accumulator is not None:
            self._accumulator.settle()
        counter = itertools.count()  # of all parameters, so that one's number does not depend on the others' gradients
        entries = [
            _Entry(self, number, group, index, param, place)
            for number, group in enumerate(self.param_groups)
            for index, param in enumerate(group["params"])
            if (place := next(counter)) >= 0 and param.grad is not None and (only is None or param is only)
        ]
        buckets: dict[Any, list[_Entry]] = {}
        seen: set[int] = set()
        for entry in entries:
            if id(entry.param) in seen:  # listed twice, stepped twice: after the pass, not during it
                entry.is_fast = entry.is_new = False
            seen.add(id(entry.param))
            if entry.is_fast:
                key = (
                    static_settings(self.rule, entry.group),
                    entry.group["maximize"],
                    tuple(entry.formats.values()),
                    services.static(entry.group) if services is not None else NO_SERVICES,
                )
                buckets.setdefault(key, []).append(entry)
        kernels = [
            [
                compiled(self.rule, bucket[0].group, key[1], key[2], replace(key[3], gather=gather))
                for gather in ((False, True) if services is not None and services.telemetry else (False,))
            ]
            for key, bucket in buckets.items()
        ]  # before anything changes
        for entry in entries:
            entry.make_state()
        fresh = _Pass(self, entries, list(zip(kernels, buckets.values(), strict=True)), whole=only is None)
        taken = False
        try:
            taken = fresh.launch()
        finally:
            if not taken:
                for entry in entries:
                    entry.restore_state()
        return fresh if taken and fresh.complete else None


# torch.optim's own, without the wrapper that imports the whole of torch.compile (0.7 s) to keep out of its way.
_add_param_group = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.Optimizer.add_param_group)


def _outermost(step: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass's step, with hooks unless it is called by the step of a subclass of that."""
    hooked = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def outer(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return (hooked if type(self).step is outer else step)(self, *args, **kwargs)

    outer.hooked = True  # type: ignore[attr-defined]
    return outer


def _leave_uncompiled(function: Any) -> None:
    """Makes torch.compile run a function, and what it calls, as it is: what torch.compiler.disable does, but that
    would import the compiler now and cost a microsecond at every call."""
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "steprule's engines are compiled already"
    function._torchdynamo_disable_recursive = True
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(function.__code__, skip)


_leave_uncompiled(Optimizer.step)
_leave_uncompiled(Optimizer.add_param_group)


class _Entry:
    """A parameter with a gradient, at this step."""

    def __init__(
        self, optimizer: Optimizer, number: int, group: dict[str, Any], index: int, param: Tensor, place: int
    ) -> None:
        self.optimizer = optimizer
        self.place = place
        self.rule = optimizer.rule
        self.number = number
        self.group = group
        self.param = param
        self.grad: Tensor = param.grad  # type: ignore[assignment]
        self.names = self.rule.states_for(group)
        self.present = tuple(filter(None, self.names))
        self.state: dict[str, Any] = optimizer.state.get(param, {})
        self.state_before = dict(self.state)
        self.services = optimizer._services
        accumulator = optimizer._accumulator
        self.corrected = accumulator is not None and param in accumulator.corrections and self.grad.dtype == param.dtype
        self.is_new = not any(isinstance(self.state.get(name), Tensor) for name in self.present)
        self._check(f"parameter {index} of group {number}" + self._name(index))
        self.formats = self._formats()
        self.arrays = (
            [(name, suffix) for name, kind in self.formats.items() for suffix, _ in FORMATS[kind].arrays]
            if self.formats
            else []
        )
        self.keeps_step = self.rule.keeps_step or any(FORMATS[kind].random for kind in self.formats.values())
        self.is_fast = self._fits_the_cpu_engine()
        self.lacks_average = AVERAGE in self.formats and AVERAGE not in self.state
        self.index = index

    def member(self, kind: type[Member]) -> Member:
        """The parameter as services see it."""
        names = self.group.get("param_names")
        name = names[self.index] if names else f"{self.number}.{self.index}"
        return kind(name, self.place, self.param, self.wide_grad(), self.group.get("clip") is False)

    def wide_grad(self) -> Tensor:
        """The gradient, with its correction if it has one and no kernel adds that."""
        if self.corrected and not self.is_fast:
            return self.optimizer._accumulator.wide(self.param, self.grad)  # type: ignore[union-attr]
        return self.grad

    def _name(self, index: int) -> str:
        names = self.group.get("param_names")
        return f" ({names[index]})" if names else ""

    def _check(self, who: str) -> None:
        param, grad, group = self.param, self.grad, self.group
        for what in ("shape", "dtype", "device"):
            mine, its = getattr(param, what), getattr(grad, what)
            if mine != its and not (what == "dtype" and {mine, its} <= _MIXABLE):
                raise RuntimeError(f"the gradient of {who} has the {what} {its}, its parameter {mine}")
        if grad.is_sparse and not self.rule.sparse_grads:
            raise RuntimeError(f"{type(self.optimizer).__name__} does not support sparse gradients ({who})")
        if group.get("fused"):
            _device_dtype_check_for_fused(param)
        if group["differentiable"] and getattr(self.state.get("step"), "requires_grad", False):
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if group["differentiable"] and any(group.get(name) for name in ("states", "weights")):
            raise RuntimeError("differentiable=True needs states and weights as they are: states=None, weights=None")
        for name in ("param_correction", AVERAGE, *self.present):
            state, base = self.state.get(name), self.state.get(f"{name}_base")
            if isinstance(state, Tensor) and state.shape != param.shape:
                raise RuntimeError(
                    f"the state {name} of {who} has the shape {state.shape}, its parameter {param.shape}"
                )
            if isinstance(base, Tensor) and (base.shape != base_shape(param.shape) or base.dtype != torch.int16):
                raise RuntimeError(
                    f"the state {name}_base of {who} is {base.dtype} of shape {tuple(base.shape)} "
                    f"and must be int16 of shape {base_shape(param.shape)}"
                )

    def _formats(self) -> dict[str, str]:
        """How each operand is kept: the parameter, the gradient and the states that exist; empty for complex ones."""
        if self.param.dtype not in _DTYPES:
            return {}
        dtype, chosen = _name_of(self.param.dtype), self.group.get("states")
        formats = {"param": weight_format(self.group.get("weights"), dtype), "grad": _name_of(self.grad.dtype)}
        if self.corrected:
            formats["grad"] = self.optimizer._accumulator.format(dtype)  # type: ignore[union-attr]
        for name in self.present:
            if chosen is not None:
                formats[name] = _state_format(self.rule, name, self.group, self.param)
            elif isinstance(self.state.get(name), Tensor) and f"{name}_base" not in self.state:
                formats[name] = _DTYPES.get(self.state[name].dtype, dtype)
            else:
                formats[name] = dtype
        if self.services is not None and self.services.average is not None:
            formats[AVERAGE] = average_format(self.group.get("weights"), dtype)
        return formats

    def _fits_the_cpu_engine(self) -> bool:
        """Whether all operands lie in memory as the parameter does, gap-free, in a format that kernels read."""
        param = self.param
        if self.group["differentiable"] or not self.formats or not _is_dense(param):
            return False
        step = self.state.get("step", _ZERO)
        if self.keeps_step and not (
            isinstance(step, Tensor) and step.dtype in (torch.float32, torch.float64) and step.device.type == "cpu"
        ):
            return False
        kinds = [FORMATS[kind] for kind in self.formats.values()]
        if any(kind.grouped or kind.random == "element" for kind in kinds) and not param.is_contiguous():
            return False  # groups and elements are counted by row
        layout = _layout(param)
        kept = [self.state.get(name + suffix) for name, suffix in self.arrays if suffix != "_base"]
        others = [self.grad, *(x for x in kept if isinstance(x, Tensor))]
        return all(_is_readable(x) and _layout(x) == layout for x in (param, *others))

    def make_state(self) -> None:
        """Creates the states that are missing and converts those that are kept otherwise."""
        if not self.state_names() and not self.present:
            return
        self.state = self.optimizer.state[self.param]
        if self.keeps_step and "step" not in self.state:
            behind = 0 if self.rule.keeps_step or self.is_new else 1
            self.state["step"] = torch.full((), behind, **_step_options(self.group, self.param))
        if not self.formats:
            for name in self.present:
                if self.state.get(name) is None:
                    self.state[name] = torch.zeros_like(self.param, memory_format=torch.preserve_format)
            return
        averages = [AVERAGE] if AVERAGE in self.formats else []
        for name in [*self.present, *averages]:
            if not isinstance(self.state.get(name), Tensor):
                _set_arrays(self.state, name, zeros(self.formats[name], self.param))
            else:
                _convert(self.state, name, self.formats[name], self.param)
        wanted, kept = _correction_dtype(self.formats["param"]), self.state.get("param_correction")
        if wanted is None:
            self.state.pop("param_correction", None)
        elif kept is None or _name_of(kept.dtype) != wanted:
            self.state["param_correction"] = zeros(self.formats["param"], self.param)["_correction"]

    def restore_state(self) -> None:
        """Takes back what make_state has done."""
        if not self.state_before:
            self.optimizer.state.pop(self.param, None)
            return
        state = self.optimizer.state[self.param]
        state.clear()
        state.update(self.state_before)

    def state_names(self) -> set[str]:
        """What the state consists of."""
        arrays = {name + suffix for name, suffix in self.arrays if name != "grad"} - {"param"}
        return arrays | {"step"} if self.keeps_step else arrays

    def tensor(self, name: str, suffix: str) -> Tensor:
        """One of the arrays of a kernel."""
        if name == "grad" and suffix:
            return self.optimizer._accumulator.corrections[self.param]  # type: ignore[union-attr]
        if suffix or name not in ("param", "grad"):
            return self.state[name + suffix]  # type: ignore[no-any-return]
        return self.param if name == "param" else self.grad

    def step_eagerly(self, loose: Loose | None, gather: bool) -> None:
        """One step by the eager engine, with services if there is a member for them."""
        if loose is None:
            self._step_eagerly(self.wide_grad())
            return
        assert self.services is not None
        before = self.optimizer.read(self.param) if gather else None
        self._step_eagerly(loose.served_grad(self.services))
        if before is not None:
            is_random = bool(self.formats) and bool(FORMATS[self.formats["param"]].random)
            loose.gather(before, self.optimizer.read(self.param), is_random)

    def _step_eagerly(self, grad: Tensor) -> None:
        if self.keeps_step:
            self.state["step"] += 1
            step = self.state["step"]
            step = step.double() if self.group.get("capturable") else float(step)
        else:
            step = 1 if self.is_new else 2
        hyper = {name: self._plain(self.group[name]) for name in self.rule.hyperparameters}
        if all(kind in _PLAIN for kind in self.formats.values()):
            states = [name and self.state[name] for name in self.names]
            step_tensors(self.rule, self.param, grad, states, step, hyper, self.group["maximize"])
            self._move_average(step)
            return
        wide = {name: self.optimizer.read(self.param, name) for name in ("param", *self.present)}
        grad = grad.to_dense() if grad.is_sparse else grad
        states = [name and wide[name] for name in self.names]
        step_tensors(self.rule, wide["param"], grad, states, step, hyper, self.group["maximize"])
        for name, value in wide.items():
            self._store(name, value, int(step))
        self._move_average(step, wide["param"])

    def _store(self, name: str, value: Tensor, step: int) -> None:
        kind, seed = FORMATS[self.formats[name]], self.group.get("seed", 0)
        random: Any = dither(seed, step, [*self.formats].index(name))
        if kind.random == "element":
            random = element_random(mix(seed, step, self.place + FIRST_ELEMENT_KEY), value)
        for suffix, array in encode(self.formats[name], value, random).items():
            self.tensor(name, suffix).copy_(array)

    def _move_average(self, step: Any, new: Tensor | None = None) -> None:
        """Brings the average towards the new weights, given where they are rounded at random."""
        if self.services is None or self.services.average is None:
            return
        if not self.formats:  # complex
            if AVERAGE not in self.state:
                self.optimizer.state[self.param][AVERAGE] = self.param.detach().clone()
            self.optimizer.state[self.param][AVERAGE].lerp_(self.param.detach(), self.services.average_weight)
            return
        weight = FORMATS[self.formats["param"]]
        if new is None or not (weight.random or len(weight.arrays) > 1):
            new = self.optimizer.read(self.param)
        average = self.optimizer.read(self.param, AVERAGE)
        self._store(AVERAGE, average + self.services.average_weight * (new - average), int(step))

    def start_average(self) -> None:
        """The first average is a copy of the weights."""
        arrays = {"": self.param.detach(), **_arrays(self.state, "param")}
        wanted = _arrays(self.state, AVERAGE)
        for suffix, array in wanted.items():
            array.copy_(arrays[suffix])

    def _plain(self, value: Any) -> Any:
        """Hyperparameters as floats, or as tensors where autograd or a graph must see them."""
        if isinstance(value, (tuple, list)):
            return tuple(self._plain(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        if self.group["differentiable"] or self.group.get("capturable"):
            return value.reshape(())
        return value.item()


class _Pass:
    """The plans for a set of tensors, and what must still hold for them to be used again.

    Looked at in every step, since anyone may replace a tensor or move its memory. Not noticed is a parameter or a
    state that is laid out anew over the same memory, as by ``p.data = p.data.t()``, before a backward pass: the
    gradient that this brings is laid out anew too, and that is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        entries: list[_Entry],
        buckets: list[tuple[list[Kernel], list[_Entry]]],
        whole: bool = True,
    ) -> None:
        self._rule = optimizer.rule
        groups = optimizer.param_groups
        keys = [
            name
            for name in (*optimizer.rule.hyperparameters, "maximize", "differentiable", *_FORMAT_OPTIONS)
            if name in groups[0]
        ]
        self._settings_of = itemgetter(*keys, keys[0])
        self._settings = [self._plain(group) for group in groups]
        self._static = [self._static_of(group) for group in groups]

        fast = [entry for _, bucket in buckets for entry in bucket]
        self._params = [entry.param for entry in fast]
        active = set(map(id, self._params))
        self._idle = [p for group in groups for p in group["params"] if whole and id(p) not in active]
        self._same_layout = _layout_check([entry.grad for entry in fast])
        self._grad_at = [entry.grad.data_ptr() for entry in fast]
        self._state_of = optimizer.state
        self._objects = list(chain(*map(_PARAMS, groups), optimizer.state.values(), _END))
        self.complete = len(fast) == len(entries) and all(set(entry.state) == entry.state_names() for entry in fast)
        self._fixed = (self._params, *(entry.state.values() for entry in fast))
        self._held = [list(entry.state.values()) for entry in fast]  # so that no other state can take their places
        self._fixed_at = list(map(_ADDRESS, chain.from_iterable(self._fixed))) if self.complete else []

        self._plans: list[tuple[Kernel, Plan, slice]] = []
        start = 0
        self._services = services = optimizer._services
        self._works: list[Work] = []
        for kernels, bucket in buckets:
            kernel = kernels[0]
            plan = _plan(kernels, bucket, groups, services)
            self._plans.append((kernel, plan, slice(start, start + len(bucket))))
            start += len(bucket)
            if services is not None:
                members = [entry.member(Member) for entry in bucket]
                self._works.append(Work((kernel, kernels[-1]), plan, members, bucket[0].formats))
        self._launchers: list[Callable[[], Any]]
        if services is None:
            self._launchers = [kernel.launcher(plan, torch.get_num_threads) for kernel, plan, _ in self._plans]
            self._written = self._params
        else:
            self._launchers, self._written = [self._serve], []
            self._resting = [
                (p, group, optimizer.state[p])
                for group in groups
                for p in group["params"]
                if whole and p.grad is None and AVERAGE in optimizer.state.get(p, {})
            ]
        if optimizer._accumulator is not None:
            self._launchers.insert(0, optimizer._accumulator.settle)
        self._entries = entries

    def run(self, optimizer: Optimizer) -> bool:
        """Steps and returns True, or changes nothing and returns False if something is not as it was."""
        groups, states = optimizer.param_groups, optimizer.state
        try:
            grads = [param.grad for param in self._params]
            grad_at = list(map(_ADDRESS, grads))  # type: ignore[arg-type]
            if not (
                states is self._state_of
                and all(map(is_, chain(*map(_PARAMS, groups), states.values(), _END), self._objects))
                and self._same_layout(*grads)
                and list(map(_ADDRESS, chain.from_iterable(self._fixed))) == self._fixed_at
            ):
                return False
        except (AttributeError, RuntimeError, TypeError):  # no gradient, a sparse one, a state that is no tensor
            return False
        if list(map(self._settings_of, groups)) != self._settings and not self._refresh(groups):
            return False
        if self._idle and any(param.grad is not None for param in self._idle):
            return False
        if grad_at != self._grad_at:
            for _, plan, part in self._plans:
                plan.set_grads(grad_at[part])
            self._grad_at = grad_at
        for launch in self._launchers:
            launch()
        _count_write(self._written)
        return True

    def launch(self) -> bool:
        """The first step, with those entries that are not fast; False if services refuse it."""
        loose = [entry for entry in self._entries if not entry.is_fast]
        started = [entry for entry in self._entries if entry.lacks_average]
        self._entries = []
        if self._services is not None:
            return self._serve(loose, started)
        for launch in self._launchers:
            launch()
        _count_write(self._written)
        for entry in loose:
            entry.step_eagerly(None, False)
        return True

    def _serve(self, loose: Sequence[_Entry] = (), started: Sequence[_Entry] = ()) -> bool:
        """Steps with services; False if they refuse."""
        services = self._services
        assert services is not None
        around = services.release or services
        others = [entry.member(Loose) for entry in loose]
        parts: list[Any] = [*self._works, *others]
        if not parts or not around.begin(parts):
            return not parts
        gather = services.gathers
        for work in self._works:
            work.launch(gather)
        _count_write(self._params)
        for entry, other in zip(loose, others, strict=True):
            entry.step_eagerly(other, gather)  # type: ignore[arg-type]
        for entry in started:
            entry.start_average()
        if services.average is not None:
            for param, group, state in self._resting:
                _move_resting_average(param, group, state, services)
        around.finish(parts, gather)
        return True

    def _plain(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """A group's settings with tensors read, since those may be filled in place."""
        return tuple(_read(value) for value in self._settings_of(group))

    def _refresh(self, groups: list[dict[str, Any]]) -> bool:
        """Takes over new numbers; False if the change calls for other kernels."""
        if [self._static_of(group) for group in groups] != self._static:
            return False
        self._settings = [self._plain(group) for group in groups]
        for kernel, plan, _ in self._plans:
            plan.hyper[:] = _hyper(kernel, groups, self._services)
        return True

    def _static_of(self, group: dict[str, Any]) -> tuple[Any, ...]:
        formats = group.get("states"), group.get("weights"), group.get("clip")
        return static_settings(self._rule, group), group["maximize"], group["differentiable"], formats


def _hyper(kernel: Kernel, groups: list[dict[str, Any]], services: StepServices | None) -> list[list[float]]:
    extra = services.numbers() if services is not None else {}
    return [kernel.numbers({**group, **extra}) for group in groups]


def _plan(
    kernels: list[Kernel], bucket: list[_Entry], groups: list[dict[str, Any]], services: StepServices | None
) -> Plan:
    kernel = kernels[0]
    by_row = kernel.formula.by_row
    keeps_step = bucket[0].keeps_step
    steps = [entry.state["step"] for entry in bucket] if keeps_step else []
    return Plan(
        addresses=[[entry.tensor(*array).data_ptr() for entry in bucket] for array in kernel.source.arrays],
        sizes=[entry.param.numel() for entry in bucket],
        groups=[entry.number for entry in bucket],
        hyper=_hyper(kernel, groups, services),
        step_at=list(map(_ADDRESS, steps)) if keeps_step else None,
        step_is_double=[step.dtype == torch.float64 for step in steps],
        first_steps=[0.0 if entry.is_new else 1.0 for entry in bucket],
        rows=[entry.member(Member).row for entry in bucket] if kernel.source.grouped or by_row else None,
        numbers=[entry.place for entry in bucket],
        by_row=by_row,
        tallies=max(len(one.source.tallies) for one in kernels),
    )


def _move_resting_average(
    param: Tensor, group: Mapping[str, Any], state: dict[str, Any], services: StepServices
) -> None:
    """Brings the average of a parameter without a gradient towards it."""
    weight = services.average_weight
    if param.is_complex():
        state[AVERAGE].lerp_(param.detach(), weight)
        return
    kind = average_format(group.get("weights"), _name_of(param.dtype))
    value = decode(
        weight_format(group.get("weights"), _name_of(param.dtype)),
        {"": param.detach(), **_arrays(state, "param")},
        param.shape,
    )
    old = decode(kind, _arrays(state, AVERAGE), param.shape)
    random: Any = dither(group.get("seed", 0), services.averaged, 0)
    if FORMATS[kind].random == "element":
        random = element_random(mix(group.get("seed", 0), services.averaged, 0), old)
    for suffix, array in encode(kind, old + weight * (value - old), random).items():
        state[AVERAGE + suffix].copy_(array)


class _Loading:
    """What load_state_dict must know beyond what torch.optim's does with a state dict."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._formats = [{k: g[k] for k in _FORMAT_OPTIONS if k in g} for g in optimizer.param_groups]
        self._dtypes = {
            (param, name): _kept_format(state, name)
            for param, state in optimizer.state.items()
            if isinstance(param, Tensor)
            for name, value in state.items()
            if isinstance(value, Tensor) and name in optimizer.rule.states
        }
        self._source: dict[str, Any] = {}

    def remember(self, _: Any, state_dict: dict[str, Any]) -> None:
        """The last of the pre-hooks: this is what will be loaded."""
        self._source = state_dict

    def restore(self, optimizer: Optimizer) -> None:
        """Puts back formats, and states as they were before torch.optim cast them to the parameter's dtype."""
        if optimizer._services is not None:
            optimizer._services.load_state_dict(self._source.get("services", {}))
        for group, saved, own in zip(optimizer.param_groups, self._source["param_groups"], self._formats, strict=True):
            seed = group.get("seed", 0)
            for name in _FORMAT_OPTIONS:
                group.pop(name, None)
            group.update({**own, "seed": seed} if own else {})
            for number, param in zip(saved["params"], group["params"], strict=True):
                for name, value in self._source["state"].get(number, {}).items():
                    known = name.removesuffix("_base").removesuffix("_correction")
                    if isinstance(value, Tensor) and known in ("param", AVERAGE, *optimizer.rule.states):
                        optimizer.state[param][name] = value.to(param.device)

    def convert(self, optimizer: Optimizer) -> None:
        """Brings loaded states into this optimizer's formats."""
        for group in optimizer.param_groups:
            for param in group["params"]:
                state = optimizer.state.get(param, {})
                if optimizer._services is None or optimizer._services.average is None:
                    for suffix in ("", "_correction"):
                        state.pop(AVERAGE + suffix, None)
                elif AVERAGE in state and param.dtype in _DTYPES:
                    _convert(state, AVERAGE, average_format(group.get("weights"), _name_of(param.dtype)), param)
                if param.dtype not in _DTYPES:
                    for name in optimizer.rule.states:
                        if isinstance(state.get(name), Tensor):
                            state[name] = state[name].to(param.dtype)
                    continue
                dtype = _name_of(param.dtype)
                for name in optimizer.rule.states:
                    if isinstance(state.get(name), Tensor):
                        kind = self._dtypes.get((param, name), dtype)
                        if group.get("states") is not None:
                            kind = _state_format(optimizer.rule, name, group, param)
                        _convert(state, name, kind, param)
                wanted = _correction_dtype(weight_format(group.get("weights"), dtype))
                correction = state.get("param_correction")
                if correction is not None and _name_of(correction.dtype) != wanted:
                    del state["param_correction"]


def _make_services(clip: Any, nonfinite: Any, average: Any, telemetry: Any) -> StepServices | None:
    """The services that a constructor's arguments ask for, or None."""
    if nonfinite not in (None, *NONFINITE):
        raise ValueError(f"Invalid nonfinite value: {nonfinite!r}; {_hint(nonfinite, NONFINITE)}")
    if telemetry is not None and not isinstance(telemetry, Telemetry):
        telemetry = Telemetry(every=telemetry)
    chosen = as_clip(clip), nonfinite, as_average(average), telemetry
    return StepServices(*chosen) if any(one is not None for one in chosen) else None


def _make_accumulator(grads: Any) -> Accumulator | None:
    if grads not in (None, *GRAD_FORMATS):
        raise ValueError(f"Invalid grads value: {grads!r}; {_hint(grads, GRAD_FORMATS)}")
    if grads == "float32" and not hasattr(Tensor, "grad_dtype"):
        raise ValueError(
            'grads="float32" needs a torch whose tensors have grad_dtype; grads="32bit" does the same in any'
        )
    return Accumulator(grads) if grads is not None else None


def _hint(value: Any, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, 1, 0.4)
    return f"did you mean {near[0]!r}?" if near else "it can be " + ", ".join(map(repr, (None, *choices)))


def _check_formats(settings: Mapping[str, Any]) -> None:
    for name, choices in (("states", STATE_FORMATS), ("weights", WEIGHT_FORMATS)):
        value = settings.get(name)
        if value is not None and value not in choices:
            raise ValueError(f"Invalid {name} value: {value!r}; {_hint(value, choices)}")
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 2**53:
        raise ValueError(f"Invalid seed value: {seed!r}; it must be an int from 0 to 2**53")


def _check_parameters(group: Mapping[str, Any], services: StepServices | None) -> None:
    """Raises for parameters that the group's formats or the services cannot serve."""
    chosen = {name: group[name] for name in ("states", "weights") if group.get(name) is not None}
    for index, param in enumerate(group["params"]):
        is_subclass = type(param).__torch_dispatch__ is not Tensor.__torch_dispatch__
        for name, value in chosen.items():
            if param.dtype not in _MIXABLE or is_subclass:
                kind = param.dtype if param.dtype not in _MIXABLE else type(param).__name__
                raise ValueError(f"{name}={value!r} does not take {kind} (parameter {index} of its group)")
        if services is not None and (is_subclass or group["differentiable"]):
            what = f"{type(param).__name__} (parameter {index} of its group)" if is_subclass else "differentiable=True"
            raise ValueError(f"{' and '.join(services.names)} do{'es' * (len(services.names) == 1)} not go with {what}")
        if services is not None and isinstance(services.clip, ClipValue) and param.is_complex():
            raise ValueError(f"clip={services.clip} does not take {param.dtype} (parameter {index} of its group)")


def _state_format(rule: type[Rule], name: str, group: Mapping[str, Any], param: Tensor) -> str:
    """The format that a group's choice of states means for one state of one parameter."""
    exact = bool(group.get(rule.exact_when.get(name, "")))
    return state_format(
        group["states"], _name_of(param.dtype), param.shape, name in nonnegative_states(rule, group), exact
    )


def _correction_dtype(kind: str) -> str | None:
    """The dtype of a weight format's error-correction, None if it has none."""
    return dict(FORMATS[kind].arrays).get("_correction")


def _kept_format(state: Mapping[str, Any], name: str) -> str:
    """The format that a state is in."""
    dtype = state[name].dtype
    if f"{name}_base" in state:
        return "signed8" if dtype == torch.int8 else "positive8"
    if f"{name}_correction" in state:
        return f"{_name_of(dtype)} {'24bit' if state[f'{name}_correction'].dtype == torch.int8 else '32bit'}"
    return _name_of(dtype)


def _arrays(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    return {suffix: state[name + suffix] for suffix in ("", "_base", "_correction") if name + suffix in state}


def _set_arrays(state: dict[str, Any], name: str, arrays: Mapping[str, Tensor]) -> None:
    for suffix in ("_base", "_correction"):
        state.pop(name + suffix, None)
    state.update({name + suffix: array for suffix, array in arrays.items()})


def _convert(state: dict[str, Any], name: str, kind: str, param: Tensor) -> None:
    """Brings a state into a format, if it is not."""
    kept = _kept_format(state, name)
    if kept == kind.removesuffix(" dithered").removesuffix(" stochastic"):
        return
    arrays = encode(kind, decode(kept, _arrays(state, name), param.shape).float()) if FORMATS[kind].random else None
    if arrays is None:
        wide = decode(kept, _arrays(state, name), param.shape)
        arrays = {"": torch.empty_like(param, dtype=getattr(torch, kind), requires_grad=False).copy_(wide)}
    elif not FORMATS[kind].grouped:
        arrays = {"": torch.empty_like(param, dtype=arrays[""].dtype, requires_grad=False).copy_(arrays[""])}
    _set_arrays(state, name, arrays)


_ADDRESS = Tensor.data_ptr
_PARAMS = itemgetter("params")
_count_write = torch._C._increment_version  # kernels write through addresses: this tells autograd
_END = (object(),)  # where one list ends before the other, it is compared with something else
_profiling: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
_ZERO = torch.zeros(())
_PLAIN = ("float64", "float32", "bfloat16", "float16")
_DTYPES = {getattr(torch, name): name for name in _PLAIN}
_HALVES = (torch.bfloat16, torch.float16)
_MIXABLE = {torch.float32, torch.bfloat16, torch.float16}  # a parameter's and its gradient's dtype
_READABLE = {*_DTYPES, torch.int8, torch.uint8, torch.int16}


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layout_check(tensors: list[Tensor]) -> Callable[..., bool]:
    """A function of as many tensors that says whether each has the kind, dtype, shape and strides of these.

    torch.compile's guards do that in one call.
    """
    sizes: list[Any] = [list(x.shape) for x in tensors]
    strides: list[Any] = [list(x.stride()) for x in tensors]
    guards = torch._C._dynamo.guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=sizes,
        dynamic_dims_strides=strides,
    )
    return guards.check


def _read(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_read, value))
    return value.item() if isinstance(value, Tensor) else value


def _is_readable(x: Tensor) -> bool:
    """Whether a kernel may read and write x through its address."""
    return (
        type(x).__torch_dispatch__ is Tensor.__torch_dispatch__  # a subclass with its own may hold no memory of its own
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and x.dtype in _READABLE
        and not x.is_neg()
        and not x.is_inference()
    )


def _layout(x: Tensor) -> list[int]:
    """x's strides, but for dimensions of size 1, whose strides say nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


def _is_dense(x: Tensor) -> bool:
    """Whether x fills one stretch of memory, each place once, in whatever order of dimensions."""
    if x.layout is not torch.strided:
        return False
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _step_options(group: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """dtype and device of a kept step, as torch.optim has them."""
    double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    on_device = group.get("capturable") or group.get("fused")
    return {"dtype": torch.float64 if double else torch.float32, "device": param.device if on_device else "cpu"}


def _own_copy(name: str, value: Any, param: Tensor, group: Mapping[str, Any]) -> Any:
    """A loaded state, not shared with the dict it came from and laid out as the engines want it."""
    if name == "step" and not (isinstance(value, Tensor) and value.is_floating_point()):
        return torch.tensor(float(value), **_step_options(group, param))
    if not isinstance(value, Tensor):
        return value
    if value.is_sparse:  # torch.optim's momentum of sparse gradients
        value = value.to_dense()
    if value.shape == param.shape and value.layout is torch.strided and param.layout is torch.strided:
        return torch.empty_like(param, dtype=value.dtype, device=value.device, requires_grad=False).copy_(
            value.detach()
        )
    return value.clone()


def _docstring(cls: type[Optimizer]) -> str:
    lines = [inspect.cleandoc(cls.rule.__doc__ or cls.rule.__name__), "", "Args:"]
    lines.append("    params: parameters, (name, parameter) pairs, or dicts of those with settings of their own.")
    for name, default in cls.rule.hyperparameters.items():
        lines.append(f"    {name}: {_HYPER_DOCS.get(name, 'see the formula')}. Default: {default}.")
    return "\n".join(lines) + _FLAG_DOCS + "\n\nRaises:\n    ValueError: a hyperparameter is out of range.\n"


_HYPER_DOCS = {
    "lr": "learning rate, a float or a 1-element tensor, at least 0",
    "momentum": "share of the buffer that a step keeps, at least 0",
    "dampening": "share of the gradient that is kept out of the buffer",
    "weight_decay": "weight decay, at least 0",
    "nesterov": "Nesterov's momentum; needs momentum and no dampening",
    "alpha": "beta of the mean square, at least 0",
    "eps": "added to the denominator, at least 0",
    "centered": "divide by the standard deviation instead of the root mean square",
    "betas": "betas of the mean and the mean square, each in [0, 1)",
    "amsgrad": "divide by the largest mean square so far",
    "decoupled_weight_decay": "decay as AdamW does",
}


class SGD(Optimizer, rule=rules.SGD, flags=("maximize", "foreach", "differentiable", "fused")):
    pass


class RMSprop(
    Optimizer, rule=rules.RMSprop, flags=("capturable", "foreach", "maximize", "differentiable"), positional_flags=True
):
    pass


class _AdamFront(Optimizer):
    """torch.optim's rules for lr and betas as tensors."""

    def _check(self, settings: Mapping[str, Any]) -> None:
        unsupported = settings.get("foreach") and not settings.get("capturable")
        if isinstance(settings.get("lr"), Tensor) and unsupported:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        super()._check(settings)
        if "betas" in settings:
            betas = settings["betas"]
            if not (all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
                raise ValueError("betas must be either both floats or both Tensors")
            if isinstance(betas[0], Tensor) and unsupported:
                raise ValueError("betas[0] as a Tensor is not supported for capturable=False and foreach=True")


class Adam(_AdamFront, rule=rules.Adam, keyword_only=("decoupled_weight_decay",)):
    pass


class AdamW(
    _AdamFront,
    rule=rules.AdamW,
    flags=("maximize", "foreach", "capturable", "differentiable", "fused"),
    fixed={"decoupled_weight_decay": True},
):
    pass
