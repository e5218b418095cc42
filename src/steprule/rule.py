"""What a rule is: one optimizer's formula, and what its signature says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from traceback import walk_tb
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

from steprule.hyper import Hyperparameter as Hyperparameter
from steprule.hyper import common, elements_of, multiplied
from steprule.names import did_you_mean
from steprule.signature import check_defaults, read_signature, where
from steprule.state import RuleError as RuleError
from steprule.state import State as State
from steprule.state import TorchArguments as TorchArguments
from steprule.state import check_attributes

NEEDS = {
    "baseline": "what others are compared with",
    "memory": "at most one state for each element",
    "tuning-free": "finds its learning rate, or takes one for many tasks",
    "no-schedule": "needs no learning rate schedule",
    "large-batch": "made for large batches",
    "sparse": "takes sparse gradients",
    "noise": "made for noisy or heavy-tailed gradients",
}
"""What rules may be good for, and what that means."""


DECAYS = {
    "coupled": "grad + weight_decay * param: L2 regularization",
    "decoupled": "lr * weight_decay * param. Loshchilov & Hutter 2019, arXiv:1711.05101",
    "independent": "weight_decay * param, whatever lr is. Loshchilov & Hutter 2019, section 2",
    "corrected": "lr**2 / max_lr * weight_decay * param, max_lr the largest so far. Defazio 2025, arXiv:2506.02285",
    "initial": "lr * weight_decay * (param - initial_param), toward the first weights. Li et al. 2018, arXiv:1802.01483",
}
"""What weight_decay may mean: what is added to the gradient or subtracted from the new parameter."""


class Rule:
    """One optimizer's formula, ``θ_t = θ_{t-1} - η u_t`` or any other, as a class with one function.

    The function is ``update(param, grad, <states>, *, step, <hyperparameters with defaults>)``. It returns the new parameter
    and the new states, in the same order. It is pure: old values come in and new ones go out. A value is one element's, or a
    whole array's, it cannot tell; only functions such as `steprule.norm`, `steprule.row_mean` and `steprule.polar` look at
    all elements. ``step`` counts from 1 and may be left out. What depends on hyperparameters and ``step`` alone, such as
    ``1 - beta**step``, is computed in float64 once a step. An ``if`` may ask for a True/False hyperparameter or whether a
    state is None, never for a number: write `steprule.where` for that.

    Examples:
        >>> from steprule import Rule, ema
        >>> class Momentum(Rule):
        ...     def update(param, grad, exp_avg, *, lr=0.1, beta=0.9):
        ...         exp_avg = ema(exp_avg, grad, beta)
        ...         return param - lr * exp_avg, exp_avg
        >>> Momentum.hyperparameters, list(Momentum.states)
        ({'lr': 0.1, 'beta': 0.9}, ['exp_avg'])
        >>> Momentum.update(1.0, 8.0, 0.0, lr=0.25, beta=0.75)
        (0.5, 2.0)

    Attributes:
        states: update's states, read off its signature and in its order, each with its `State`: the class attribute
            of its name, here or in a parent, or else State().
        scalar_states: the names of those that are one number for each parameter.
        tensor_states: the names of those of the parameter's shape.
        side_states: the names of the others, which have rows, columns or squares beside a matrix.
        hyperparameters: update's hyperparameters and their defaults, in order. A default is a number, a tuple of numbers, True, False,
            None, a text, or a function of the step, which counts from 1.
        meanings: the `Hyperparameter` of each: the class attribute of its name, here or in a parent, or what lr, betas, eps,
            weight_decay and a few others mean in all rules.
        decay: the kind of weight decay in the formula: "coupled", "decoupled", "independent", "corrected" or "initial", as the
            option decay names them, or "own" for any other. With None, options that depend on the kind are refused.
        refuses: the reason why the options decay, cautious, cautious_decay and lookahead cannot be used with the formula, nor
            what changes weights between steps, as `steprule.services.QKClip` does; empty where they can.
        needs: what it is good for: "baseline", "memory", "tuning-free", "no-schedule", "large-batch", "sparse" or "noise".
        when: when to use it, in a sentence.
        made_by: a function that makes the rule again in another process; for rules that no module has under their name, such
            as chains.
        counts_steps: whether update asks for ``step``, read off its signature.
        keeps_step: whether ``step`` is kept with each parameter's state. Where it is not, step is 1 at a
            parameter's first step (its states are new) and 2 or more afterwards.
        sparse_grads: whether sparse gradients are accepted. Where weight_decay is 0, only elements that are present
            are then touched, and their states, if `touches_states` holds or there are none.
        touches_states: whether a sparse gradient leaves the states of absent elements as they are.
        sparse_only: whether gradients must be sparse.
        like_torch: how torch.optim takes arguments, for a rule that stands in for its class of that name. A subclass
            is another formula and does not inherit it.
        constants: hyperparameters that must stay what they were at a parameter's first step, and why; or an element of one
            that is a tuple, as "betas[0]".
        check: raises ValueError for hyperparameters that do not go together. It is given a value for each, by name, and nothing
            else; those that it does not name it takes as ``**others``.
        begins_early: whether states are there before the first step.
        stacks: for formulas of matrices: whether the last two dimensions of a tensor are the matrix, and those before count
            matrices. By default the first dimension counts rows, and the others lie side by side.
        matrices_only: for formulas of matrices: whether parameters of fewer than two dimensions are refused. Where a formula
            multiplies matrices or has a polar factor they always are.
        nonzero: the reason why parameters whose elements are all 0 are refused when they begin; empty where they are not.
        evaluated: for rules that train other weights than those to evaluate, such as schedule-free ones: a second formula,
            ``evaluated(param, <states>, *, <hyperparameters>)``, which names the states and hyperparameters that it needs
            and returns the weights to evaluate. The optimizer's eval() applies it.
        trained: the formula of the way back, with the same kinds of arguments, which train() applies.

    Raises:
        RuleError: when the class is made, if update's signature, a State or a Hyperparameter does not fit.
    """

    states: ClassVar[Mapping[str, State]] = MappingProxyType({})
    scalar_states: ClassVar[tuple[str, ...]] = ()
    tensor_states: ClassVar[tuple[str, ...]] = ()
    side_states: ClassVar[tuple[str, ...]] = ()
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    meanings: ClassVar[Mapping[str, Hyperparameter]] = MappingProxyType({})
    keeps_step: ClassVar[bool] = True
    sparse_grads: ClassVar[bool] = False
    touches_states: ClassVar[bool] = False
    sparse_only: ClassVar[bool] = False
    decay: ClassVar[str | None] = None
    refuses: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    counts_steps: ClassVar[bool] = False
    when: ClassVar[str] = ""
    made_by: ClassVar[Callable[[], Any] | None] = None
    like_torch: ClassVar[TorchArguments | None] = None
    constants: ClassVar[Mapping[str, str]] = {}
    begins_early: ClassVar[bool] = False
    stacks: ClassVar[bool] = False
    matrices_only: ClassVar[bool] = False
    nonzero: ClassVar[str] = ""
    evaluated: ClassVar[Callable[..., Any] | None] = None
    trained: ClassVar[Callable[..., Any] | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Rule:
        """Refused: there is nothing to make of a formula but an optimizer."""
        raise TypeError(
            f"{cls.__name__} is a formula and has no instances: steprule.Optimizer.of({cls.__name__}) is its optimizer, and "
            "takes parameters"
        )

    def __init_subclass__(cls) -> None:
        """Reads the formula."""
        super().__init_subclass__()
        if "update" in vars(cls):
            function = vars(cls)["update"]
            cls.update = staticmethod(getattr(function, "__func__", function))  # type: ignore[attr-defined]
        elif not hasattr(cls, "update"):
            raise RuleError(f"{cls.__name__} has no update(param, grad, ...): that is where its formula goes")
        check_attributes(cls, Rule)
        names, cls.hyperparameters = read_signature(cls, cls.function())
        cls.states = MappingProxyType(_read_states(cls, names))
        cls.meanings = MappingProxyType(_read_meanings(cls))
        cls.scalar_states = tuple(name for name, state in cls.states.items() if state.extent == "scalar")
        cls.tensor_states = tuple(name for name, state in cls.states.items() if state.extent == "elements")
        cls.side_states = tuple(name for name in cls.states if name not in (*cls.scalar_states, *cls.tensor_states))
        cls.counts_steps = "step" in inspect.signature(cls.function()).parameters
        cls.like_torch = vars(cls).get("like_torch")
        _check_check(cls)
        if cls.begins_early and cls.counts_steps and not cls.keeps_step:
            raise RuleError(
                f"{cls.__name__}.begins_early = True needs keeps_step: its states alone do not show which step is the first"
            )
        _check_exchange(cls)
        _check_spelling(cls)
        check_defaults(cls)
        holdable = [*cls.hyperparameters, *elements_of(cls.hyperparameters)]
        for what, given, known in (("constants", cls.constants, holdable), ("needs", cls.needs, [*NEEDS])):
            for name in given:
                if name not in known:
                    raise RuleError(f"{cls.__name__}.{what} names the unknown {name!r}; there are {', '.join(known)}")
        if cls.decay not in (None, "own", *DECAYS):
            every = f"it can be {', '.join(map(repr, DECAYS))} or 'own'"
            hint = did_you_mean(str(cls.decay), [*DECAYS, "own"], otherwise=every)
            raise RuleError(f"{cls.__name__}.decay = {cls.decay!r} means nothing{hint}")

    @classmethod
    def function(cls) -> Callable[..., Any]:
        """The formula as a plain function."""
        return cls.update  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def check(cls, **hyper: Any) -> None:
        """Raises ValueError for hyperparameters that do not go together; a rule may override it.

        It is asked for a value of each hyperparameter, by name, and for nothing else, after each was found to be of its kind
        and in its range. Functions of the step have been asked before: it sees their values. It may be a plain function of
        hyperparameters, with or without a first argument cls, and takes those that it does not name as ``**others``.
        """

    @classmethod
    def chosen(cls, hyper: Mapping[str, Any]) -> type[Rule]:
        """The rule whose formula these hyperparameters call for: this one, but where several are one, as in `beside`."""
        return cls

    @classmethod
    def with_each(cls, change: Callable[[type[Rule]], type[Rule]]) -> type[Rule]:
        """What a change makes of this rule, or of each that it is made of, as in `beside`."""
        return change(cls)

    @classmethod
    def states_for(cls, hyper: Mapping[str, Any]) -> tuple[str | None, ...]:
        """The states that these hyperparameters need, in update's order, None for each it does without."""
        return tuple(name if not one.when or hyper[one.when] else None for name, one in cls.states.items())

    @classmethod
    def begins_at(cls, state: str, param: Any, hyper: Mapping[str, Any]) -> Any:
        """What a state begins at: a number, or param."""
        value = cls.states[state].begins
        if not isinstance(value, str):
            return float(value)
        return param if value == "param" else multiplied(hyper, [value])[value]

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
            RuleError: update returned the wrong number of values, or none for a state that exists; or it computed with a
                state that does not exist.
        """
        settings = {name: hyper[name] for name in cls.hyperparameters}
        if cls.counts_steps:
            settings["step"] = step
        try:
            result = cls.function()(param, grad, *states, **settings)
        except (TypeError, AttributeError) as error:
            absent = [name for name, value in zip(cls.states, states, strict=True) if value is None]
            if not absent or "None" not in str(error):
                raise
            raise RuleError(_told_of_absent(cls, absent, error)) from error
        if result is None:
            end = f"return {', '.join(['param', *cls.states])}"
            raise RuleError(f"{cls.__name__}.update returned nothing: it must end in {end} ({where(cls.function())})")
        if isinstance(result, dict):
            end = ", ".join(["param", *cls.states])
            raise RuleError(f"{cls.__name__}.update returned a dict: return a tuple, {end} ({where(cls.function())})")
        new: tuple[Any, ...] = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        expected = ("param", *cls.states)
        if len(new) != len(expected):
            raise RuleError(
                f"{cls.__name__}.update returned {len(new)} value{'s' * (len(new) != 1)} and must return "
                f"{len(expected)}: {', '.join(expected)} ({where(cls.function())})"
            )
        for name, old, value in zip(expected, (param, *states), new, strict=True):
            if old is not None and value is None:
                raise RuleError(
                    f"{cls.__name__}.update returned None for {name}; return {name} itself to leave it as it is "
                    f"({where(cls.function())})"
                )
        return new


SAID = tuple(
    name
    for name in vars(Rule)["__annotations__"]
    if name
    not in (
        "states",
        "scalar_states",
        "tensor_states",
        "side_states",
        "hyperparameters",
        "meanings",
        "counts_steps",
        "made_by",
        "like_torch",
    )
)
"""What rules say by class attributes, and what holds of another rule around them as well."""


def _check_spelling(rule: type[Rule]) -> None:
    """Raises for a class attribute that looks like one that rules have, and is none."""
    for name in vars(rule):
        is_known = hasattr(Rule, name) or name in ("update", *rule.states, *rule.hyperparameters) or name[0] == "_"
        hint = "" if is_known else did_you_mean(name, (one for one in dir(Rule) if one[0] != "_"), 0.8)
        if hint:
            raise RuleError(f"{rule.__name__}.{name} means nothing to a rule{hint}")


def _check_check(rule: type[Rule]) -> None:
    """Makes a plain function `check` a method of the class; raises for one that does not take the rule's hyperparameters."""
    plain = vars(rule).get("check")
    if isinstance(plain, FunctionType):
        first = next(iter(inspect.signature(plain).parameters.values()), None)
        has_cls = first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        has_cls = has_cls and first is not None and first.name not in rule.hyperparameters
        setattr(rule, "check", (classmethod if has_cls else staticmethod)(plain))  # noqa: B010 - mypy refuses to assign to a method
    try:
        inspect.signature(rule.check).bind(**rule.hyperparameters)
    except TypeError as error:
        raise RuleError(
            f"{rule.__name__}.check is given all hyperparameters ({', '.join(rule.hyperparameters)}): {error}; end its arguments in **others"
        ) from None


def _check_exchange(rule: type[Rule]) -> None:
    """Raises for formulas of the weights to evaluate that do not fit the rule."""
    both = {"evaluated": rule.evaluated, "trained": rule.trained}
    for name, function in both.items():
        if function is None:
            if any(both.values()):
                raise RuleError(f"{rule.__name__} has no {name}(param, ...): evaluated and trained come in pairs")
            continue
        known = {"param", *rule.states, *rule.hyperparameters}
        unknown = [one for one in inspect.signature(function).parameters if one not in known]
        if unknown:
            raise RuleError(
                f"{rule.__name__}.{name} takes {unknown[0]}, which is no state and no hyperparameter ({where(function)})"
            )


def _read_states(rule: type[Rule], names: Sequence[str]) -> dict[str, State]:
    """What the rule's class attributes say of update's states."""
    who, place = rule.__name__, f"({where(rule.function())})"
    _check_said(rule, State, names, names)
    states = {name: getattr(rule, name, State()) for name in names}
    arguments = inspect.signature(rule.function()).parameters
    is_optional = False
    for name, state in states.items():
        if not isinstance(state, State):
            raise RuleError(
                f"{who}.{name} must be a State, since update has a state of that name; it is {state!r} {place}"
            )
        is_optional |= state.when is not None
        if arguments[name].default is None and not is_optional:
            raise RuleError(
                f"{who}.update: {name}=None, but a state always exists unless the class says when: leave out =None, or write "
                f'{name} = State(when="amsgrad") with the name of a hyperparameter {place}'
            )
        for what, hyperparameter in state.asks().items():
            if hyperparameter not in rule.hyperparameters:
                anew = "" if name in vars(rule) else f"; it is a parent's: write {name} = State(...) anew"
                known = ", ".join(rule.hyperparameters) or "none"
                asked = f"{who}.{name} = State({what}={hyperparameter!r})"
                others = ""
                if what == "begins":
                    others = ', and "param" is the parameter; to begin at the gradient write at_first(step, grad, ...)'
                raise RuleError(f"{asked} names an unknown hyperparameter; update has {known}{others}{anew} {place}")
            default = rule.hyperparameters[hyperparameter]
            if isinstance(default, tuple) or (what == "begins" and not hasattr(default, "__float__")):
                raise RuleError(
                    f"{who}.{name} = State({what}={hyperparameter!r}): {hyperparameter}={default!r} is not a number {place}"
                )
    return states


def _read_meanings(rule: type[Rule]) -> dict[str, Hyperparameter]:
    """What the rule's class attributes say of update's hyperparameters, and what is common for the others."""
    _check_said(rule, Hyperparameter, [*rule.hyperparameters])
    known: Mapping[str, Any] = common(rule.decay)
    said = {name: getattr(rule, name, None) for name in rule.hyperparameters}
    said = {name: one if isinstance(one, Hyperparameter) else known.get(name) for name, one in said.items()}
    return {name: one for name, one in said.items() if one is not None}


def _check_said(rule: type[Rule], kind: type, names: Sequence[str], always: Sequence[str] = ()) -> None:
    """Raises for class attributes of a kind, and names that need one, that update or every rule has no place for."""
    who, what, place = rule.__name__, kind.__name__.lower(), f"({where(rule.function())})"
    for name in (*always, *(name for name, value in vars(rule).items() if isinstance(value, kind))):
        if hasattr(Rule, name) or name == "update":
            raise RuleError(
                f"{who}: a {what} cannot be called {name!r}, which every rule has; choose another name {place}"
            )
        if name not in names and name in rule.hyperparameters:
            raise RuleError(
                f"{who}.{name} is a State, and update has {name} after the *, a hyperparameter: move it, or write Hyperparameter(...) {place}"
            )
        if name not in names:
            hint = did_you_mean(name, names, otherwise=f"its {what}s are {', '.join(names) or 'none'}")
            raise RuleError(f"{who}.{name} is a {kind.__name__}, and update has no {what} of that name{hint} {place}")


def _told_of_absent(rule: type[Rule], absent: Sequence[str], error: Exception) -> str:
    """What to say of a formula that computes with states that are not there."""
    said = [
        f"{name} is only there with {rule.states[name].when}: State(when={rule.states[name].when!r})" for name in absent
    ]
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code is rule.function().__code__]
    return (
        f"{rule.__name__}.update computes with None. {'; '.join(said)}. Ask for it first: if {absent[0]} is not None: ... "
        f"({where(rule.function(), *lines[-1:])})"
    )
