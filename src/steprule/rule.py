"""What a rule is: one optimizer's formula, and what can be read off its signature."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

from steprule.hyper import Hyperparameter as Hyperparameter
from steprule.hyper import common

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


Extent = Literal["elements", "scalar"]
"""What a state has one value for: each element, or the whole tensor."""


@dataclass(frozen=True)
class State:
    """What a rule says of one of its states, as a class attribute of the state's name::

        class Prodigy(Rule):
            d = State("scalar", begins="d0")
            s = State(exact=True)

    A state that has the parameter's shape, begins at 0 and may be kept in any format needs none.

    Attributes:
        extent: "elements" for a state of the parameter's shape, or "scalar" for one number a tensor, like step.
        begins: what it begins at: a number, a hyperparameter's name, or "param", the parameter itself.
        exact: whether it is kept in float32 at least, or the name of a hyperparameter that must be true for that: for
            a state that a coarse format would make noise of, since it is subtracted from another or its errors add
            up. Running maxima and minima, and states that they are compared with, need not say so.
        when: for a state that only some settings need, the hyperparameter that must be true or nonzero for it to
            exist; otherwise update is given None.
        dtype: how a scalar state is kept: in float64 (None), or in step's dtype ("step").

    Raises:
        RuleError: a value makes no sense, or not beside the others.
    """

    extent: Extent = "elements"
    begins: float | str = 0.0
    exact: bool | str = False
    when: str | None = None
    dtype: Literal["step"] | None = None

    def __post_init__(self) -> None:
        is_scalar = self.extent == "scalar"
        for what, is_right, hint in (
            ("extent", self.extent in get_args(Extent), "'elements' or 'scalar'"),
            ("begins", isinstance(self.begins, (int, float, str)), "a number, a hyperparameter's name or 'param'"),
            ("begins", not is_scalar or self.begins != "param", "one number cannot begin at all of the parameter"),
            ("exact", isinstance(self.exact, (bool, str)), "True, False or a hyperparameter's name"),
            ("exact", not is_scalar or not self.exact, "one number is always exact; leave this out"),
            ("when", isinstance(self.when, (str, type(None))), "a hyperparameter's name or None"),
            ("dtype", self.dtype in (None, "step"), "None for float64, or 'step' for step's dtype"),
            ("dtype", is_scalar or self.dtype is None, "only a scalar state has a dtype of its own"),
        ):
            if not is_right:
                raise RuleError(f"State({what}={getattr(self, what)!r}): {hint}")

    def asks(self) -> dict[str, str]:
        """The hyperparameters that it names, by what for."""
        named = {"begins": self.begins, "exact": self.exact, "when": self.when}
        return {what: one for what, one in named.items() if isinstance(one, str) and (what, one) != ("begins", "param")}


@dataclass(frozen=True)
class TorchArguments:
    """How torch.optim's class of a rule's name takes its arguments.

    Attributes:
        flags: those of torch.optim's flags that it takes, in its order, with spaces between.
        positional: those of them that may be given by position.
        keyword_only: hyperparameters that may not.
        fixed: entries of every parameter group that are no arguments.
        tensor_betas: whether betas may be tensors, and which flags go with tensors is checked.
    """

    flags: str
    positional: str = ""
    keyword_only: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tensor_betas: bool = False


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
        states: update's states, read off its signature and in its order, each with its `State`: the class attribute
            of its name, here or in a parent, or else State().
        scalar_states: the names of those that are one number a tensor.
        tensor_states: the names of the others.
        hyperparameters: update's hyperparameters and their defaults, in order.
        meanings: what they are: for each the `Hyperparameter` that is the class attribute of its name, here or in a parent, or
            what `steprule.hyper.COMMON` has of the name.
        decay: what the formula makes of its hyperparameter weight_decay: a key of `steprule.rules.options.DECAYS`, or
            "own" for what is none of those.
        refuses: why no option of `steprule.rules.options` goes around the formula; empty where they do.
        needs: what it is good for, of `NEEDS`.
        when: when to use it.
        made_by: what makes it again in another process, where it has no name to be found by.
        counts_steps: whether update asks for ``step``, read off its signature.
        keeps_step: whether ``step`` is kept with each parameter's state. Where it is not, step is 1 at a
            parameter's first step (its states are new) and 2 or more afterwards.
        sparse_grads: whether sparse gradients are accepted. Where weight_decay is 0, only elements that are present
            are then touched, and their states, if `touches_states` holds or there are none.
        touches_states: whether a sparse gradient leaves the states of absent elements as they are.
        sparse_only: whether gradients must be sparse.
        like_torch: how torch.optim takes arguments, for a rule that stands in for its class of that name. A subclass
            is another formula and does not inherit it.
        constants: hyperparameters that must stay what they were at a parameter's first step, and why.
        begins_early: whether states are there before the first step.
        exchanges: whether the weights that gradients are taken at are exchanged for an average to be evaluated.

    Raises:
        RuleError: when the class is made, if update's signature, a State or a Hyperparameter does not fit.
    """

    states: ClassVar[Mapping[str, State]] = MappingProxyType({})
    scalar_states: ClassVar[tuple[str, ...]] = ()
    tensor_states: ClassVar[tuple[str, ...]] = ()
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    meanings: ClassVar[Mapping[str, Hyperparameter]] = MappingProxyType({})
    keeps_step: ClassVar[bool] = True
    sparse_grads: ClassVar[bool] = False
    touches_states: ClassVar[bool] = False
    sparse_only: ClassVar[bool] = False
    decay: ClassVar[str] = "coupled"
    refuses: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    counts_steps: ClassVar[bool] = False
    when: ClassVar[str] = ""
    made_by: ClassVar[Callable[[], Any] | None] = None
    like_torch: ClassVar[TorchArguments | None] = None
    constants: ClassVar[Mapping[str, str]] = {}
    begins_early: ClassVar[bool] = False
    exchanges: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Rule:
        """Refused: there is nothing to make of a formula but an optimizer."""
        raise TypeError(
            f"{cls.__name__} is a formula and has no instances: steprule.Optimizer.of({cls.__name__}) is its optimizer, and "
            "takes parameters"
        )

    def __init_subclass__(cls, listed: bool | None = None) -> None:
        """Reads the formula.

        Args:
            listed: whether it is entered in `RULES`. Default: what is written in steprule.rules is.
        """
        super().__init_subclass__()
        if "update" in vars(cls):
            function = vars(cls)["update"]
            cls.update = staticmethod(getattr(function, "__func__", function))  # type: ignore[attr-defined]
        elif not hasattr(cls, "update"):
            raise RuleError(f"{cls.__name__} has no update(param, grad, ...): that is where its formula goes")
        names, cls.hyperparameters = _read_signature(cls, cls.function())
        cls.states = MappingProxyType(_read_states(cls, names))
        cls.meanings = MappingProxyType(_read_meanings(cls))
        cls.scalar_states = tuple(name for name, state in cls.states.items() if state.extent == "scalar")
        cls.tensor_states = tuple(name for name in cls.states if name not in cls.scalar_states)
        cls.counts_steps = "step" in inspect.signature(cls.function()).parameters
        cls.like_torch = vars(cls).get("like_torch")
        for what, given, known in (("constants", cls.constants, cls.hyperparameters), ("needs", cls.needs, NEEDS)):
            for name in given:
                if name not in known:
                    raise RuleError(f"{cls.__name__}.{what} names the unknown {name!r}; there are {', '.join(known)}")
        if cls.__module__.startswith("steprule.rules.") if listed is None else listed:
            enter(cls)
        elif f"{cls.__module__}:{cls.__qualname__}" in AWAITED:
            enter_others(cls)

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
        return tuple(name if not one.when or hyper[one.when] else None for name, one in cls.states.items())

    @classmethod
    def begins_at(cls, state: str, param: Any, hyper: Mapping[str, Any]) -> Any:
        """What a state begins at: a number, or param."""
        value = cls.states[state].begins
        return float(value) if not isinstance(value, str) else param if value == "param" else hyper[value]

    @classmethod
    def is_exact(cls, state: str, hyper: Mapping[str, Any]) -> bool:
        """Whether a state is to be kept in float32 at least."""
        exact = cls.states[state].exact
        return exact if isinstance(exact, bool) else bool(hyper[exact])

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


RULES: dict[str, type[Rule]] = {}
"""Every rule by the name that the command line and the tests know it by; `steprule.rules` fills it."""

TORCHS_OWN = {"adafactor": "Adafactor", "lbfgs": "LBFGS", "muon": "Muon"}
"""Optimizers that no rule is written for yet: steprule has torch.optim's classes of these names, as they are."""


def class_names() -> dict[str, str]:
    """The names of all classes that there are for torch, by those of the command line."""
    return {name: rule.__name__ for name, rule in RULES.items()} | TORCHS_OWN


def enter(rule: type[Rule]) -> None:
    """Enters a rule in `RULES`.

    Raises:
        RuleError: another has its name.
    """
    name = rule.__name__.lower()
    known = RULES.get(name, rule)
    taken = f"torch.optim.{TORCHS_OWN[name]}" if name in TORCHS_OWN else _place(known)
    if taken != _place(rule):
        raise RuleError(f"{_place(rule)} cannot be called {name!r}, which {taken} is; choose another name")
    RULES[name] = rule


AWAITED: set[str] = set()
"""Rules of other packages, as "module:class", whose files were being read when they were looked for."""


def enter_others(rule: type[Rule]) -> None:
    """Enters a rule of another package in `RULES`, or warns that its name is taken."""
    try:
        enter(rule)
    except RuleError as error:
        warnings.warn(f"a rule of another package is left out: {error}", stacklevel=3)


def _place(rule: type[Rule]) -> str:
    return f"{rule.__module__}.{rule.__qualname__}"


def _read_signature(rule: type[Rule], update: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
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


_ONCE_TABLES = {
    "states": "exp_avg = State()",
    "tensor_states": "exp_avg = State()",
    "scalar_states": 'd = State("scalar")',
    "scalar_dtype": 'mu_product = State("scalar", dtype="step")',
    "initial": 'z = State(begins="param")',
    "exact_when": 'z = State(exact=True), or exact="centered" to name a hyperparameter',
    "state_when": 'max_exp_avg_sq = State(when="amsgrad")',
}
"""What is not how to speak of states, and what is."""


def _read_states(rule: type[Rule], names: Sequence[str]) -> dict[str, State]:
    """What the rule's class attributes say of update's states."""
    who = rule.__name__
    bodies = [vars(one) for one in rule.__mro__ if one is rule or not issubclass(one, Rule)]
    for table, instead in _ONCE_TABLES.items():
        if any(not isinstance(body.get(table, State()), State) for body in bodies):
            raise RuleError(f"{who}.{table}: say it of each state, in a class attribute of its name: {instead}")
    _check_said(rule, State, "state", names, names)
    states = {name: getattr(rule, name, State()) for name in names}
    for name, state in states.items():
        if not isinstance(state, State):
            raise RuleError(f"{who}.{name} must be a State, since update has a state of that name; it is {state!r}")
        for what, hyperparameter in state.asks().items():
            if hyperparameter not in rule.hyperparameters:
                anew = "" if name in vars(rule) else f"; it is a parent's: write {name} = State(...) anew"
                known = ", ".join(rule.hyperparameters) or "none"
                asked = f"{who}.{name} = State({what}={hyperparameter!r})"
                raise RuleError(f"{asked} names an unknown hyperparameter; update has {known}{anew}")
    return states


def _read_meanings(rule: type[Rule]) -> dict[str, Hyperparameter]:
    """What the rule's class attributes say of update's hyperparameters, and what is common for the others."""
    _check_said(rule, Hyperparameter, "hyperparameter", [*rule.hyperparameters])
    known: Mapping[str, Any] = common(rule.decay)
    said = {name: getattr(rule, name, None) for name in rule.hyperparameters}
    said = {name: one if isinstance(one, Hyperparameter) else known.get(name) for name, one in said.items()}
    return {name: one for name, one in said.items() if one is not None}


def _check_said(rule: type[Rule], kind: type, what: str, names: Sequence[str], always: Sequence[str] = ()) -> None:
    """Raises for class attributes of a kind, and names that need one, that update or every rule has no place for."""
    who = rule.__name__
    for name in (*always, *(name for name, value in vars(rule).items() if isinstance(value, kind))):
        if hasattr(Rule, name):
            raise RuleError(f"{who}: a {what} cannot be called {name!r}, which every rule has; choose another name")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its {what}s are {', '.join(names) or 'none'}"
            raise RuleError(f"{who}.{name} is a {kind.__name__}, and update has no {what} of that name; {hint}")


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
