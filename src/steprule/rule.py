"""What a rule is: one optimizer's formula, and what can be read off its signature."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

NEEDS = {
    "baseline": "what others are compared with",
    "memory": "at most one state an element",
    "tuning-free": "finds its learning rate, or takes one for many tasks",
    "no-schedule": "needs no learning rate schedule",
    "large-batch": "made for large batches",
    "sparse": "takes sparse gradients",
    "noise": "made for noisy or heavy-tailed gradients",
}
"""What rules may be good for, and what that means."""


class RuleError(TypeError):
    """A rule that no engine can run; the message says what to write instead."""


class Rule:
    """One optimizer's formula.

    A subclass writes one function::

        def update(param, grad, <states>, *, step, <hyperparameters with defaults>):
            return new_param, <new states in the same order>

    It is elementwise and pure: every value is one element's (or a whole array's, it cannot tell), old
    values come in and new ones go out. ``step`` counts from 1 and may be left out. Whatever depends on
    hyperparameters and ``step`` alone, such as ``1 - beta**step``, every engine computes in float64 once a
    step. An ``if`` may ask for a True/False hyperparameter or whether a state is None, never for numbers:
    that is what `steprule.where` is for.

    Attributes:
        states: the names of update's states, read off its signature. Each has the parameter's shape and
            begins at 0, unless the following say otherwise.
        initial: what states begin at: a number, a hyperparameter's name, or "param", the parameter itself.
        scalar_states: those that are one number for each tensor, like step.
        scalar_dtype: how these are kept: "float64", or "step" for step's dtype.
        tensor_states: those that are not in scalar_states.
        hyperparameters: update's hyperparameters and their defaults, in order.
        state_when: for a state that only some settings need, the hyperparameter that must be true or
            nonzero for it to exist; otherwise update is given None.
        exact_when: for a state that a coarse format would make noise of, since it is subtracted from another or its
            errors add up, the hyperparameter that must be true for that, or "always"; it is then kept in float32 at
            least. Running maxima and minima, and states that they are compared with, need not be named.
        decay: what the formula makes of its hyperparameter weight_decay: a key of `steprule.rules.options.DECAYS`, or
            "own" for what is none of those.
        refuses: why no option of `steprule.rules.options` goes around the formula; empty where they do.
        needs: what it is good for, of `NEEDS`.
        when: when to use it.
        counts_steps: whether update asks for ``step``, read off its signature.
        keeps_step: whether ``step`` is kept with each parameter's state. Where it is not, step is 1 at a
            parameter's first step (its states are new) and 2 or more afterwards.
        sparse_grads: whether sparse gradients are accepted. Where weight_decay is 0, only elements that are present
            are then touched, and their states, if `touches_states` holds or there are none.
        touches_states: whether a sparse gradient leaves the states of absent elements as they are.
        sparse_only: whether gradients must be sparse.

    Raises:
        RuleError: when the class is made, if update's signature, state_when or exact_when does not fit.
    """

    states: ClassVar[tuple[str, ...]] = ()
    tensor_states: ClassVar[tuple[str, ...]] = ()
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    state_when: ClassVar[Mapping[str, str]] = {}
    exact_when: ClassVar[Mapping[str, str]] = {}
    initial: ClassVar[Mapping[str, float | str]] = {}
    scalar_states: ClassVar[tuple[str, ...]] = ()
    scalar_dtype: ClassVar[str] = "float64"
    keeps_step: ClassVar[bool] = True
    sparse_grads: ClassVar[bool] = False
    touches_states: ClassVar[bool] = False
    sparse_only: ClassVar[bool] = False
    decay: ClassVar[str] = "coupled"
    refuses: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    counts_steps: ClassVar[bool] = False
    when: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Rule:
        """Refused: there is nothing to make of a formula but an optimizer."""
        raise TypeError(
            f"{cls.__name__} is a formula and has no instances: steprule.Optimizer.of({cls.__name__}) is its optimizer, and "
            "takes parameters"
        )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "update" not in vars(cls):
            if not hasattr(cls, "update"):
                raise RuleError(f"{cls.__name__} has no update(param, grad, ...): that is where its formula goes")
            return
        function = vars(cls)["update"]
        function = getattr(function, "__func__", function)
        cls.update = staticmethod(function)  # type: ignore[attr-defined]
        cls.states, cls.hyperparameters = _read_signature(cls, function)
        cls.counts_steps = "step" in inspect.signature(function).parameters
        cls.tensor_states = tuple(name for name in cls.states if name not in cls.scalar_states)
        allowed = {"state_when": (), "exact_when": ("always",), "initial": ("param",), "scalar_states": (None,)}
        for attribute, others in allowed.items():
            named = getattr(cls, attribute)
            for state in named:
                condition = named[state] if isinstance(named, Mapping) else None
                if state not in cls.states:
                    raise RuleError(
                        f"{cls.__name__}.{attribute} names the unknown state {state!r}; update's states are "
                        f"{', '.join(cls.states) or 'none'}"
                    )
                if condition not in (*cls.hyperparameters, *others) and not isinstance(condition, float):
                    raise RuleError(
                        f"{cls.__name__}.{attribute}[{state!r}] names the unknown hyperparameter {condition!r}; "
                        f"update has {', '.join(cls.hyperparameters) or 'none'}"
                    )

    @classmethod
    def function(cls) -> Callable[..., Any]:
        """The formula as a plain function."""
        return cls.update  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def check(cls, **hyper: Any) -> None:
        """Raises ValueError for hyperparameters that do not go together; a rule may override it."""

    @classmethod
    def states_for(cls, hyper: Mapping[str, Any]) -> tuple[str | None, ...]:
        """The states that these hyperparameters need, in update's order, None for each it does without."""
        return tuple(name if name not in cls.state_when or hyper[cls.state_when[name]] else None for name in cls.states)

    @classmethod
    def begins_at(cls, state: str, param: Any, hyper: Mapping[str, Any]) -> Any:
        """What a state begins at: a number, or param."""
        value = cls.initial.get(state, 0.0)
        return value if isinstance(value, float) else param if value == "param" else hyper[value]

    @classmethod
    def is_exact(cls, state: str, hyper: Mapping[str, Any]) -> bool:
        """Whether a state is to be kept in float32 at least."""
        condition = cls.exact_when.get(state)
        return condition == "always" or bool(condition and hyper[condition])

    @classmethod
    def evaluate(
        cls, param: Any, grad: Any, states: tuple[Any, ...], step: Any, hyper: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Calls the formula and returns the new parameter and the new states, as many as it was given.

        Args:
            param, grad: arrays, tensors or expressions of one shape.
            states: in the order of `states`, None for those that do not exist.
            step: the step's number, from 1.
            hyper: a value for each hyperparameter; others are ignored.

        Raises:
            RuleError: update returned the wrong number of values, or none for a state that exists.
        """
        settings = {name: hyper[name] for name in cls.hyperparameters}
        if cls.counts_steps:
            settings["step"] = step
        result = cls.function()(param, grad, *states, **settings)
        new: tuple[Any, ...] = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        expected = ("param", *cls.states)
        if len(new) != len(expected):
            raise RuleError(
                f"{cls.__name__}.update returned {len(new)} value{'s' * (len(new) != 1)} and must return "
                f"{len(expected)}: {', '.join(expected)} ({_where(cls.function())})"
            )
        for name, old, value in zip(expected, (param, *states), new, strict=True):
            if old is not None and value is None:
                raise RuleError(
                    f"{cls.__name__}.update returned None for {name}; return {name} itself to leave it as it is "
                    f"({_where(cls.function())})"
                )
        return new


_ALSO_CALLED = {"learning_rate": "lr", "wd": "weight_decay", "beta1": "betas", "beta2": "betas", "epsilon": "eps"}
"""What other libraries call hyperparameters."""


def check_names(who: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for the first argument of who that is not known, with the nearest name that is."""
    known = list(known)
    for name in given:
        if name not in known:
            is_others = name in _hyperparameters_of_all() or name in _ALSO_CALLED  # and seldom misspelt
            near = difflib.get_close_matches(name, known, 1, 0.85 if is_others else 0.6)
            near = [_ALSO_CALLED[name]] if _ALSO_CALLED.get(name) in known else near
            none = f"it has no {_ALSO_CALLED.get(name, name)}; " if is_others else ""
            hint = f"did you mean {near[0]!r}?" if near else f"{none}it takes {', '.join(known)}"
            raise TypeError(f"{who} got an unexpected argument {name!r}; {hint}")


def _hyperparameters_of_all() -> set[str]:
    from steprule.rules import RULES  # which are made of what is here

    return {name for rule in RULES.values() for name in rule.hyperparameters}


def check_hyperparameters(
    rule: type[Rule], hyper: Mapping[str, Any], as_torch: bool = False, only: Iterable[str] | None = None
) -> None:
    """Raises for a value that makes no sense, naming the argument and the value, with torch.optim's words.

    Args:
        rule: whose hyperparameters they are.
        hyper: values for some or all of the rule's hyperparameters, floats or 1-element tensors.
        as_torch: take what torch.optim takes in its groups, where it checks nothing, if it means something: a negative
            lr goes up the gradient. Default: False.
        only: those to look at, where others have been. Default: all.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is of the wrong kind.
    """
    for name in hyper if only is None else only:
        if name not in rule.hyperparameters:
            continue
        value = hyper[name]
        default = rule.hyperparameters[name]
        if isinstance(default, bool):
            if isinstance(value, str) or (value not in (True, False)):
                raise TypeError(f"{name} must be True or False, not {value!r}")
        elif isinstance(default, tuple):
            if not isinstance(value, (tuple, list)) or len(value) != len(default):
                raise TypeError(f"{name} must be a tuple of {len(default)} numbers, not {value!r}")
            for index, item in enumerate(value):
                _check_number(f"{name}[{index}]", item)
                if not _is_in_range(name, item, as_torch):
                    raise ValueError(f"Invalid {_WORDS.get(name, name)} at index {index}: {item}")
        elif default is None or isinstance(default, str):
            continue
        else:
            _check_number(name, value)
            if not _is_in_range(name, value, as_torch):
                raise ValueError(f"Invalid {_WORDS.get(name, name + ' value')}: {value}")
    if not as_torch:
        rule.check(**hyper)


# torch.optim's words where they are not "Invalid <name> value".
_WORDS = {"lr": "learning rate", "eps": "epsilon value", "betas": "beta parameter"}
_FROM_0 = (0.0, math.inf)
_BELOW_1 = (0.0, 1.0)
_RANGES = {
    **dict.fromkeys(
        ("lr", "eps", "weight_decay", "momentum", "alpha", "lr_decay", "initial_accumulator_value"), _FROM_0
    ),
    **dict.fromkeys(("momentum_decay", "lambd", "t0", "step_sizes", "warmup", "warmup_steps", "max_lr"), _FROM_0),
    **dict.fromkeys(
        ("trust_coefficient", "a", "b", "gamma", "d_coef", "reps_rel", "weight_lr_power", "lookahead"), _FROM_0
    ),
    "betas": _BELOW_1,
    "beta": _BELOW_1,
    "rho": (0.0, math.nextafter(1.0, 2.0)),
    "lookahead_alpha": (0.0, math.nextafter(1.0, 2.0)),
    "d0": (math.ulp(0.0), math.inf),
    "growth_rate": (1.0, None),
}
"""From where to below where; None where infinity is a value like others."""
_NEVER_BEYOND = ("betas", "rho", "alpha", "eps", "lookahead", "lookahead_alpha")
"""What means nothing outside its range, in whatever formula of torch.optim."""
_FINITE = (-sys.float_info.max, math.inf)


def _is_in_range(name: str, value: Any, as_torch: bool = False) -> bool:
    if name == "etas" and not as_torch:  # which Rprop checks together
        return True
    name = name if name in _RANGES else re.sub(r"_\d+$", "", name)  # a chain's second beta is beta_2
    low, high = _RANGES.get(name, _FINITE) if not as_torch or name in _NEVER_BEYOND else _FINITE
    return bool(low <= value and (high is None or value < high))


def _check_number(name: str, value: Any) -> None:
    if hasattr(value, "numel"):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
    elif callable(value) and "[" in name:
        whole = name.partition("[")[0]
        raise TypeError(f"{name} must be a number; a schedule gives all of {whole}: {whole}=lambda step: (..., ...)")
    elif isinstance(value, (str, bytes, type(None))) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, not {value!r}")


def _read_signature(rule: type[Rule], update: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    states: list[str] = []
    hyperparameters: dict[str, Any] = {}
    where = f"({_where(update)})"
    positional = []
    for name, parameter in inspect.signature(update).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RuleError(f"{rule.__name__}.update must name its arguments instead of taking {parameter} {where}")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if parameter.default is not parameter.empty and parameter.default is not None:
                raise RuleError(
                    f"{rule.__name__}.update: {name} has a default: put * before it to make it a hyperparameter {where}"
                )
            positional.append(name)
        elif name != "step":
            if parameter.default is parameter.empty:
                raise RuleError(f"{rule.__name__}.update needs a default for the hyperparameter {name} {where}")
            hyperparameters[name] = parameter.default
    if positional[:2] != ["param", "grad"]:
        hint = "; a formula has no self" if positional[:1] == ["self"] else ""
        raise RuleError(
            f"{rule.__name__}.update must begin with (param, grad, ...), not ({', '.join(positional)}) {where}{hint}"
        )
    states = positional[2:]
    for name in states:
        if name == "step":
            raise RuleError(f"{rule.__name__}.update must take step after the *: it is a number, not a state {where}")
        if not name.isidentifier() or name.startswith("_"):
            raise RuleError(f"{rule.__name__}.update: a state cannot be called {name!r} {where}")
    return tuple(states), hyperparameters


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
