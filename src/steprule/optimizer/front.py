"""The torch.optim front: the same arguments, states, checkpoints and hooks, over steprule's engines."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from steprule.engine.team import torch_alone
from steprule.optimizer.arguments import (
    ALL_OPTIONS,
    FLAGS,
    OPTION_DOCS,
    SERVICE_OPTIONS,
    check_clip,
    docstring,
    flags_of,
    is_elsewhere,
    is_torchs,
    make_accumulator,
    make_services,
    signature_of,
)
from steprule.optimizer.checkpoint import NOTES, Loading
from steprule.optimizer.core import Core, RuleOf
from steprule.optimizer.groups import Groups
from steprule.optimizer.parts import is_sharded
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.optimizer.schedules import Schedule, Schedules
from steprule.optimizer.uncompiled import leave_uncompiled
from steprule.rule import Rule, RuleError
from steprule.rules.options import OPTIONS
from steprule.services import Telemetry
from steprule.services.clip import Clip, as_clip
from steprule.services.release import Release, check_not_released
from steprule.services.step import RESERVED, StepServices
from steprule.settings import check_names, constructor
from steprule.step.job import Job
from steprule.step.plans import make_states
from steprule.tensors.average import move_resting_average
from steprule.tensors.memory import HALVES, is_abstract, name_of
from steprule.tensors.state import AVERAGE, FORMAT_OPTIONS, bring_up_to_date, kept, own_copy, read_state, state_of
from steprule.trace.tracing import couples, trace

logger = logging.getLogger("steprule")

_PASSING = "GradScaler is going to stop passing itself"
_profiling: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


class Optimizer(torch.optim.Optimizer):
    """Runs a rule over parameters, as a torch.optim optimizer.

    A rule becomes an optimizer by a subclass of one line::

        class Lion(steprule.Optimizer, rule=LionRule): ...

    or, without a class, by `Optimizer.of`. Its arguments are params, the rule's hyperparameters in the formula's
    order, the flags and the options. Any hyperparameter may be a function of the step, which counts from 1: its value
    for the step to come is in the group, and set anew after every step. What a scheduler writes over it is put back,
    with a warning. One that fails says so before the step that its value is for.

    Groups may be changed by hand. Settings that are put into them are checked at the next step before it changes
    anything, or with released gradients before it changes parameters of the group; what torch.optim takes there of the
    rules that it has, such as a negative lr, is taken.

    Class arguments:
        rule: the formula.
    """

    rule: ClassVar[type[Rule]]
    _flags: ClassVar[tuple[str, ...]] = ()
    _signature: ClassVar[inspect.Signature]
    _fixed: ClassVar[Mapping[str, Any]] = {}
    _constant: ClassVar[Mapping[str, str]] = {}
    _core: Core
    _groups: Groups

    def __init_subclass__(cls, rule: type[Rule] | None = None) -> None:
        super().__init_subclass__()
        if rule is None:
            return
        _check_rule(f"class {cls.__name__}(Optimizer, rule=...)", rule)
        if not issubclass(cls, base_of(rule)):
            raise TypeError(
                f"class {cls.__name__}(Optimizer, rule={rule.__name__}) would lack methods that this rule needs: write "
                f"class {cls.__name__}(Optimizer.of({rule.__name__}))"
            )
        for name in (*rule.hyperparameters, *rule.states):
            if name in (*ALL_OPTIONS, *FLAGS, *RESERVED, *NOTES, SCHEDULES, AVERAGE, "params", "param_names", "self"):
                raise RuleError(f"{rule.__name__}: {name!r} is a name that every optimizer has; choose another")
        for name in rule.states:
            other = state_of(name, {"param", *rule.states} - {name})
            if other is not None:
                raise RuleError(
                    f"{rule.__name__}: {name!r} is what an array of {other!r} may be called; choose another"
                )
        cls.rule, cls._flags, cls._constant = RuleOf(rule), flags_of(rule), rule.constants  # type: ignore[assignment]
        cls._fixed = rule.like_torch.fixed if rule.like_torch is not None else {}
        cls._signature = signature_of(rule)
        if "__init__" not in vars(cls):
            cls.__init__ = constructor(cls, cls._signature)  # type: ignore[method-assign]
        if cls.__doc__ is None:
            cls.__doc__ = docstring(rule)

    @staticmethod
    def of(rule: type[Rule]) -> type[Optimizer]:
        """The optimizer of a rule, such as one that `steprule.chain` has made.

        Raises:
            TypeError: it is none.
        """
        _check_rule("Optimizer.of", rule)
        if rule not in _made:
            attributes = {"__module__": __name__, "__reduce__": _by_rule}
            _made[rule] = type(rule.__name__, (base_of(rule),), attributes, rule=rule)
        return _made[rule]

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, "_signature"):
            raise TypeError(
                f"{type(self).__name__} has no formula: class X(Optimizer, rule=...) has one, and Optimizer.of(rule)"
            )
        self._groups = Groups(self)
        settings = self._bind(args, kwargs)
        functions = self._groups.take_functions(settings, calls=0)
        chosen = {name: settings.pop(name) for name in SERVICE_OPTIONS}
        options = {name: settings.pop(name) for name in OPTIONS}
        if settings.get("decoupled_weight_decay") and options != OPTIONS and options["decay"] is None:
            options["decay"] = "decoupled"  # which the options around the formula then see
        self._core = Core(type(self).rule, options)
        self._core.schedules = Schedules(functions) if functions else None
        settings |= {name: options[name] for name in self._core.rule.hyperparameters if name in OPTIONS}
        self._core.accumulator = make_accumulator(chosen.pop("grads"))
        self._core.services = make_services(**chosen)
        self._groups.check(settings)
        if all(settings[name] == default for name, default in FORMAT_OPTIONS.items()):
            for name in FORMAT_OPTIONS:  # as absent as in torch.optim
                del settings[name]
        super().__init__(params, {**settings, **self._fixed})
        self._core.is_made = True
        for group in self.param_groups:
            trace(self._core.rule, group)  # a formula that cannot run says so now
        self._groups.check_memory()
        wanted = [f"weights={g['weights']!r}" for g in self.param_groups if g.get("weights") is not None]
        wanted += [f"grads={self._core.accumulator.kind!r}"] if self._core.accumulator is not None else []
        if wanted and not any(p.dtype in HALVES for group in self.param_groups for p in group["params"]):
            dtypes = sorted({name_of(p.dtype) for group in self.param_groups for p in group["params"]})
            raise ValueError(f"{wanted[0]} is for bfloat16 and float16 parameters; these are all {' or '.join(dtypes)}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what would look like a setting and be none; what a class has for itself is its own."""
        is_argument = name in self._signature.parameters and not hasattr(type(self), name)
        if is_argument and (core := getattr(self, "_core", None)) is not None and core.is_made:
            is_constant = name in SERVICE_OPTIONS or name in OPTIONS
            remedy = (
                "is chosen when an optimizer is made: make another, and give it this one's state_dict()"
                if is_constant
                else f"is a setting of parameter groups: for group in optimizer.param_groups: group[{name!r}] = ..."
            )
            raise AttributeError(f"an attribute {name} would do nothing: {name} {remedy}")
        super().__setattr__(name, value)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        signature = self._signature
        check_names(type(self).__name__, kwargs, signature.parameters)
        bound = signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        del bound.arguments["params"]
        settings = dict(bound.arguments)
        its = type(self).rule.like_torch
        if its is not None and its.tensor_betas and isinstance(settings["betas"], (tuple, list)):
            settings["betas"] = tuple(b.squeeze() if isinstance(b, Tensor) else b for b in settings["betas"])
        return settings

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch.optim does; its own hyperparameters are checked like the constructor's.

        Args:
            param_group: a dict with "params" and any settings that differ from the defaults.
        """
        functions: dict[str, Schedule] = {}
        number = len(self.param_groups)
        if isinstance(param_group, dict):
            param_group = self._groups.keep_functions(param_group)
        try:
            if isinstance(param_group, dict):
                if not self._core.is_made:
                    param_group.pop(SCHEDULES, None)  # of another optimizer
                for name, function in (
                    self._core.schedules.defaults if self._core.schedules is not None else {}
                ).items():
                    param_group.setdefault(name, function)
                functions = self._groups.take_functions(param_group, self._core.calls)
                self._groups.check_keys(param_group)
                own = {k: v for k, v in param_group.items() if k in self.defaults or k in FORMAT_OPTIONS}
                self._groups.check({**self.defaults, **own})
            self._core.plans.current = None
            _add_param_group(self, param_group)
            self._groups.check_parameters(number)
        except Exception:
            del self.param_groups[number:]
            if functions:  # which another try is to find
                param_group.update(functions)
            raise
        self._groups.schedule(self.param_groups[-1], functions)
        self._groups.complete_formats()
        self._groups.note()
        self._core.given.add(self.param_groups[-1]["params"])
        self._core.completed.append(self.param_groups[-1])
        self._groups.watch()

    def _look_before_release(self) -> None:
        """Looks at groups and schedules, once in a step whose parameters are then stepped one by one."""
        self._core.modes.must_train("backward()")
        self._groups.insist_on_schedules()
        if not self._core.plans.knows(self.param_groups):
            self._groups.look()
            self._core.plans.list_single(self.param_groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state dict, torch.optim's or one's own, as copies.

        Formats stay those of this optimizer, and what was saved in others is converted; the seed is taken over.
        Without formats, states come in the parameter's dtype, or in that of the state that they replace. Functions of the step
        and averages go on where the saved ones were; where that was not saved, as by torch.optim, at the states' own step.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            KeyError: it is no optimizer's.
            ValueError: its groups have other sizes, or it is another rule's: a parameter that has states lacks some that its
                settings need, has another rule's, or has one of another shape or of a dtype that no step can use. Nothing
                has changed then.
        """
        if self is not self._groups.optimizer:  # but a wrapper of it, which would get states of its own
            self._groups.optimizer.load_state_dict(state_dict)
            return
        self._core.modes.must_have_weights("load_state_dict()")
        self._loading = Loading(self)
        hook = self.register_load_state_dict_pre_hook(self._loading.remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
            del self._loading

    def __getstate__(self) -> dict[str, Any]:
        self._core.modes.must_have_weights("copying")
        if self._core.release is not None:
            self._core.release.tell(
                "a copy of an optimizer releases no gradients until its own release_gradients() is called"
            )
        saved = self._core.saved()
        return {**super().__getstate__(), **({"_core": saved} if saved else {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_copy = "_core" not in self.__dict__
        if is_copy:
            self._groups = Groups(self)
            self._core = Core.restored(type(self).rule, state.get("_core", {}))
        core = self._core
        loading: Loading | None = self.__dict__.get("_loading")
        super().__setstate__({name: value for name, value in state.items() if name != "_core"})
        core.plans.current = None
        core.completed = list(self.param_groups)
        for group in self.param_groups if is_copy else ():
            core.given.add(group["params"])
        if is_copy and core.accumulator is not None:
            for group in self.param_groups:
                core.accumulator.watch_free(group["params"])
        if loading is not None:
            loading.restore(self)
        for group in self.param_groups:
            self._complete(group)
            for param in group["params"]:
                if param not in self.state:
                    continue
                if loading is None:  # whose states are its own already, or shared on purpose
                    bring_up_to_date(self.state[param], param, group, self._core.rule)
                    continue
                for name, value in self.state[param].items():
                    self.state[param][name] = own_copy(name, value, param, group, self._core.rule)
        if loading is not None:
            loading.convert(self)
            self._core.begun_with = {}
            self._groups.set_scheduled_if_possible()
            self._groups.note()

    def _complete(self, group: dict[str, Any]) -> dict[str, Any]:
        """Adds to a saved group what it had not yet when it was saved."""
        missing = {**FLAGS, **self._core.rule.hyperparameters, **self._core.options}
        for name in (*self._core.rule.hyperparameters, *self._flags):
            group.setdefault(name, missing[name])
        group.update(self._fixed)
        return group

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
        if not any(param is other for group in self.param_groups for other in group["params"]):
            raise KeyError(f"param of shape {tuple(param.shape)} is not one of this optimizer's parameters")
        state = self.state.get(param, {})
        every = {**state, "param": param.detach()}
        own = kept(every, name)
        if own is None:
            raise KeyError(f"there is no state {name!r}; there are {', '.join(state) or 'none'}")
        return own.clone() if name in self._core.rule.scalar_states else read_state(every, name, param.shape)

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
                plain = {}
                for array, value in state[number].items():
                    name = state_of(array, self._core.rule.states)
                    if name is not None and kept(state[number], name) is not None:
                        plain[name] = self.read(param, name)
                    elif array != "step" or self._core.rule.keeps_step:
                        plain[array] = value
                state[number] = {name: x for name, x in plain.items() if state_of(name, ("param", AVERAGE)) is None}
        groups = [
            {k: v for k, v in group.items() if k not in (*FORMAT_OPTIONS, *NOTES, SCHEDULES)}
            for group in result["param_groups"]
        ]
        return {**result, "state": state, "param_groups": groups}

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's, with states in 8 bits under names of their own ("exp_avg_8bit" and "exp_avg_base"), and with averages of
        weights as states named "param_average".

        All that the next step depends on is under torch.optim's two keys, where whatever saves an optimizer looks for it. What
        services must remember, such as how many steps were skipped, is in every group as "services"; how many steps functions
        have seen as "calls"; whether Schedule-Free's model has the weights that are trained as "train_mode".
        """
        self._core.modes.must_have_weights("state_dict()")
        self._groups.note()
        return super().state_dict()

    # Services

    @property
    def clip(self) -> Clip | None:
        """How gradients are clipped; may be set between steps to anything that the argument takes."""
        return self._core.services.clip if self._core.services is not None else None

    @clip.setter
    def clip(self, value: Any) -> None:
        wanted = as_clip(value)
        if wanted is None and self._core.services is None:
            return
        if self._core.services is None:
            raise AttributeError(f"clip={value!r} needs an optimizer that was made with a clip, nonfinite, ...")
        check_clip(wanted, self.param_groups)
        self._core.services.set_clip(wanted)
        self._forget_plans()

    def _each(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Every parameter with its group, once: it may be listed twice."""
        groups = {param: group for group in self.param_groups for param in group["params"]}
        return ((group, param) for param, group in groups.items())

    def _forget_plans(self) -> None:
        """Makes the next step look at everything anew; called where a change could go unnoticed."""
        self._core.plans.forget()
        self._core.completed = [
            group for group in self._core.completed if any(group is other for other in self.param_groups)
        ]

    @property
    def telemetry(self) -> Telemetry | None:
        """What was gathered, if the argument telemetry was given."""
        return self._core.services.telemetry if self._core.services is not None else None

    @property
    def grad_norm(self) -> Tensor:
        """The norm of the gradients of the last step that was taken, before clipping: a 0-dim float32 tensor.

        It lies on the CPU, or on the GPU if the step's decisions are taken there. Of the clip's norm_type; 0 after a step without
        gradients, which with released ones is none. NaN if no step has read them: clip by a norm and nonfinite="skip" or "raise" do.
        """
        services = self._core.services
        if services is not None and services.ahead is not None:
            return services.ahead.norm.float()
        norm = services.norm if services is not None else float("nan")
        return torch.tensor(norm, dtype=torch.float32, device="cpu")

    @property
    def clipped_steps(self) -> int:
        """How many steps had their gradients clipped by a norm."""
        return self._known("clipped")

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return self._known("skipped")

    @property
    def zeroed_elements(self) -> int:
        """How many elements of gradients were taken as 0 because they were not finite."""
        return self._known("zeroed")

    def _known(self, name: str) -> int:
        if self._core.services is None:
            return 0
        self._core.services.look()
        return int(getattr(self._core.services, name))

    def swap_average(self) -> None:
        """Exchanges the weights with their averages; a second call exchanges them back, bit for bit.

        In between `step` and `state_dict` refuse. Averages of another format than the weights' (float32 ones of
        bfloat16 weights) are rounded on the way, and the weights kept aside. Parameters have their weights again
        whatever happened to groups and states in between; one that has another dtype by then has them in that.

        Raises:
            RuntimeError: there is no average yet.
        """
        self._swap("swap_average()")

    def _swap(self, who: str) -> None:
        self._core.modes.swap(who, (param for _, param in self._each()), self.state)
        self._forget_plans()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model has the averages of its weights: ``with optimizer.averaged(): evaluate()``.

        Where it has them already, as in another such context, it keeps them, and has them afterwards.

        Raises:
            RuntimeError: there is no average yet.
        """
        had_them = self._core.modes.is_swapped
        if not had_them:
            self._swap("averaged()")
        try:
            yield
        finally:
            if self._core.modes.is_swapped != had_them:  # someone may have called swap_average() within
                self._swap("averaged()")

    def release_gradients(self, model: torch.nn.Module) -> None:
        """From now on steps every parameter inside backward, as soon as its gradient is complete, and drops that.

        A parameter that another optimizer releases is taken over, and that one's `step` says so from then on. A copy of
        the optimizer, by deepcopy or pickle, has other parameters and releases nothing until this is called for it.

        Gradients then never all exist at once. `step` is still called after backward: it closes the step, with its
        hooks, and learning rate schedules follow it as ever. What is set between backward and `step` (a learning
        rate, say) holds from the next step on, and every backward pass through these parameters must be one of their
        own: losses that should not train them need `requires_grad=False` or `torch.autograd.grad`. See
        `steprule.services.release` for what is exact.

        Args:
            model: whose backward passes to hook: the DistributedDataParallel module where there is one.

        Raises:
            ValueError: nonfinite="raise" or differentiable=True, which would have to undo steps, or a parameter
                that is not the model's.
            TypeError: model is no module.
            RuntimeError: it is on already.
        """
        if self._core.release is not None:
            raise RuntimeError("release_gradients() was called before: gradients are released already")
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"release_gradients() takes the model whose backward passes it hooks, not {model!r}")
        if self._core.services is not None and self._core.services.nonfinite == "raise":
            raise ValueError(
                'nonfinite="raise" does not go with release_gradients(): by the time a gradient is found not to be finite, '
                'others have been used; nonfinite="skip" leaves its parameter alone, and with measure() all of them'
            )
        own = set(model.parameters())
        for number, group in enumerate(self.param_groups):
            if couples(self._core.rule, group):
                raise ValueError(
                    f"{type(self).__name__} does not go with release_gradients(): it adds up over all parameters, which "
                    "then are stepped one at a time"
                )
            if group.get("differentiable"):
                raise ValueError("differentiable=True does not go with release_gradients(), which drops gradients")
            for index, param in enumerate(group["params"]):
                if is_sharded(param):
                    raise ValueError(
                        f"parameter {index} of group {number} is a DTensor, whose gradients release_gradients() does not "
                        "take: step() them after backward"
                    )
                if param not in own:
                    raise ValueError(
                        f"parameter {index} of group {number} is not one of the model that release_gradients() was given"
                    )
                if is_lazy(param):
                    raise ValueError(
                        f"parameter {index} of group {number} has no shape yet: run one forward pass before "
                        "release_gradients(), which gives the parameters of lazy modules theirs"
                    )
        self._core.services = self._core.services or StepServices(None, None, None, None)
        self._forget_plans()
        its = self._groups.optimizer
        release = Release(self._core.services, model, its._step_one, its._look_before_release)
        self._core.release = self._core.services.release = release
        self._groups.watch()

    def accumulate(self) -> contextlib.AbstractContextManager[None]:
        """A context for all but the last micro-batch of a step: backward passes in it release nothing.

        Does nothing without `release_gradients`; with DistributedDataParallel it is its `no_sync` as well.
        """
        return self._core.release.accumulate() if self._core.release is not None else contextlib.nullcontext()

    def measure(self) -> contextlib.AbstractContextManager[None]:
        """A context for a first backward pass that only measures, so that released steps clip and skip exactly::

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

    def _step_one(self, param: Tensor) -> None:
        """Steps one parameter."""
        plans = self._core.plans
        current = plans.single.get(param)
        if current is not None and current.run(self.param_groups, self.state):
            return
        with torch.no_grad(), torch_alone():
            listed = plans.listed[param]
            self._check_ready([one.group for one in listed])
            for one in listed:  # others are looked at when their turn comes, and all together where groups have changed
                self._groups.look_at(one.group)
            self._groups.check_constants(listed)
            plans.renew_single(self._job(), param)

    @torch_alone()
    def _move_resting_averages(self, stepped: set[Tensor], weight: Any) -> None:
        """Brings the averages of all other parameters towards those by this weight."""
        services = self._core.services
        assert services is not None
        for group, param in self._each():
            if param not in stepped and AVERAGE in self.state.get(param, {}):
                move_resting_average(param, group, self.state[param], weight, lambda: self._known("averaged"))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by GradScaler, whose unscaling and check are then part of the pass: where gradients are looked at anyway."""
        services = self._core.services
        if self is not self._groups.optimizer:  # but a wrapper of it, which what the scaler sets would be lost on
            return False
        if services is None or not (services.clip or services.nonfinite or services.release):
            return False
        # It is passed to step by a way that torch means to replace; both ways are served.
        if not any(pattern is not None and pattern.match(_PASSING) for _, pattern, *_ in warnings.filters):
            warnings.filterwarnings("ignore", _PASSING, FutureWarning)
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
        if self._core.services is not None and (grad_scaler is not None or hasattr(self, "found_inf")):
            self._core.services.step_scaled(self, grad_scaler, self._take_step)
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients of all parameters, and lets go of parameters and states that have been replaced.

        Args:
            set_to_none: drop them, so that parameters which get none are left alone by the next step, and not set
                to 0. Default: True.
        """
        _zero_grad(self, set_to_none)
        self._core.plans.let_go(self.param_groups, self.state, self._core.services)

    def _take_step(self) -> None:
        if self._core.release is not None:
            with torch.no_grad():
                self._core.release.step(self._move_resting_averages)
        else:
            self._groups.insist_on_schedules()
            current = self._core.plans.current
            if current is None or not current.run(self.param_groups, self.state):
                with torch.set_grad_enabled(self.defaults.get("differentiable", False)), torch_alone():
                    self._step_anew()
        if self._core.schedules is not None:
            self._core.schedules.count(self._core.schedules.calls + 1)
            self._groups.set_scheduled_if_possible()

    def _only_asks_for_states(self) -> bool:
        """Whether a step is the one by which torch.distributed.checkpoint has states made: the first, with lr and gradients of 0."""
        core = self._core
        is_plain = core.services is None and core.schedules is None and core.options == OPTIONS
        if is_plain and is_torchs(type(self).rule):  # where it is a step as torch.optim's, and moves nothing
            return False
        rates = [group.get("lr") for group in self.param_groups]
        if self.state or any(is_elsewhere(lr) or not isinstance(lr, float | Tensor) for lr in rates):
            return False
        if any(lr.any() if isinstance(lr, Tensor) else lr for lr in rates):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return bool(grads) and not any(is_abstract(grad) or grad.is_sparse or grad.any() for grad in grads)

    def _step_anew(self) -> None:
        """Looks at everything, has a plan made and steps."""
        self._check_ready(self.param_groups)
        self._groups.look()
        if not self.param_groups:  # all taken out
            self._core.plans.current = None
            return
        check_not_released(param for group in self.param_groups for param in group["params"])
        self._core.plans.renew(self._job())

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    if TYPE_CHECKING:

        def step(  # noqa: D102 - as below
            self, closure: Callable[[], Any] | None = None, *, grad_scaler: Any = None
        ) -> Any: ...

    else:  # what is given is handed on as it is

        def step(self, *args: Any, **kwargs: Any) -> Any:
            """Takes one step, with its hooks."""
            if "closure" in kwargs and kwargs["closure"] is None and self._only_asks_for_states():
                with torch.no_grad():
                    make_states(self._job())
                return None
            if (
                self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
                or _profiling()
            ) and type(self).step is Optimizer.step:
                return self._hooked_step(*args, **kwargs)
            core = self._core
            current = core.plans.current
            if not args and not kwargs and current is not None and core.schedules is None:
                is_scaled = core.services is not None and hasattr(self, "found_inf")
                if not is_scaled and current.run(self.param_groups, self.state):
                    return None
            return self._step(*args, **kwargs)

        step.__doc__ = _step.__doc__
        step.__signature__ = inspect.signature(_step)
        step.hooked = True  # it runs them itself

    def _patch_step_function(self) -> None:
        """torch.optim wraps the step of every class in hooks; one that calls its parent's would run them twice."""
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        if not getattr(type(self).step, "hooked", False):
            setattr(type(self), "step", _outermost(type(self).step))  # noqa: B010 - mypy refuses to assign to a method

    def _check_ready(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raises where a step of these groups cannot be taken now."""
        if any(group.get("capturable") for group in groups):
            self._accelerator_graph_capture_health_check()
        self._core.modes.must_train("step()")

    def _job(self) -> Job:
        """What a step needs to know."""
        core = self._core
        return Job(
            type(self).__name__, type(self).rule, core.rule, self._flags, self.param_groups, self.state, core.services,
            core.accumulator, self._groups.check_numbers, self._move_resting_averages,
        )  # fmt: skip


Optimizer.__doc__ = f"{inspect.cleandoc(Optimizer.__doc__ or '')}\n{OPTION_DOCS}"

_made: dict[type[Rule], type[Optimizer]] = {}

BASES: dict[str, type[Optimizer]] = {}
"""What classes of rules that say so inherit, by the attribute of the rule."""


def base_of(rule: type[Rule]) -> type[Optimizer]:
    """What a rule's class inherits."""
    return next((base for name, base in BASES.items() if getattr(rule, name)), Optimizer)


def _check_rule(who: str, given: Any) -> None:
    """Raises for what is no rule."""
    if isinstance(given, type) and issubclass(given, Rule) and given is not Rule:
        return
    hint = " (that is its .rule)" if isinstance(given, type) and hasattr(given, "rule") else ""
    shown = given.__name__ if isinstance(given, type) else f"a {type(given).__name__}"
    raise TypeError(f"{who} takes a rule, a subclass of steprule.Rule with a formula of its own, not {shown}{hint}")


def _by_rule(self: Optimizer) -> tuple[Any, ...]:
    """To pickle or copy one whose class has no name of its own."""
    if type(self) is not _made.get(type(self).rule):  # a subclass, which has one
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
    return _new, (_Formula(type(self).rule),), self.__getstate__()


def _new(formula: _Formula) -> Optimizer:
    made = Optimizer.of(formula.rule)
    return made.__new__(made)


class _Formula:
    """A rule on its way into a pickle: by its name, or as what it was made of. In a copy it is the same one."""

    def __init__(self, rule: type[Rule]) -> None:
        self.rule = rule

    def __deepcopy__(self, _: Any) -> _Formula:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        again = vars(self.rule).get("made_by")  # not that of a rule that it goes back to
        return (_Formula, (self.rule,)) if again is None else (_remade, (again,))


def _remade(again: Callable[[], type[Rule]]) -> _Formula:
    return _Formula(again())


# torch.optim's own, without the wrapper that imports the whole of torch.compile (seconds) to keep out of its way.
_add_param_group = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.Optimizer.add_param_group)
_zero_grad = getattr(torch.optim.Optimizer.zero_grad, "__wrapped__", torch.optim.Optimizer.zero_grad)


def _outermost(step: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass's step, with hooks unless it is called by the step of a subclass of that."""
    hooked = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def outer(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return (hooked if type(self).step is outer else step)(self, *args, **kwargs)

    outer.hooked = True  # type: ignore[attr-defined]
    return outer


for _name in ("step", "add_param_group", "zero_grad"):
    leave_uncompiled(Optimizer, _name)
