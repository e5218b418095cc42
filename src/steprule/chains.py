"""New rules out of transforms and rules, without a class."""

from __future__ import annotations

import functools
import inspect
import operator
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

from steprule.hyper import COMMON, Hyperparameter, whole_of
from steprule.names import name_of
from steprule.pieces import Value
from steprule.rule import Rule, RuleError, State
from steprule.rules.options import movement
from steprule.settings import check_names, check_together
from steprule.signature import where
from steprule.transforms import decay

Transform = Callable[..., Any]
"""A function ``(grad, [param], <states>, *, [step], <hyperparameters>)`` that returns the new direction, or that and the new states."""


def chain(*parts: Transform | type[Rule], name: str = "Chain", lr: float = 1e-3) -> type[Rule]:
    """A rule made of parts: the direction starts as the gradient and goes through each part, then ``param - lr * direction``.

    The rule is traced, compiled, printed, saved and loaded as any other. The same parts make the same class. Its optimizers
    are pickled by the names of the parts, so lambdas and functions defined in functions cannot be pickled.

    Args:
        parts: transforms and rules, in order. A transform is one of `steprule.transforms`, or a function of your own with
            the same kind of arguments. A rule makes the direction along which it would step with lr 1. `functools.partial`
            gives a part other defaults. A name that comes twice gets a number the second time: beta, beta_2.
        name: the name of the rule.
        lr: the default learning rate, at least 0.

    Returns:
        A rule, for `Optimizer.of`. Its hyperparameters are lr and those of the parts.

    Raises:
        RuleError: there is no part, or one cannot be a part of a chain.
        TypeError: a partial gives an argument that its function or rule does not take, or one of a rule by position.

    Examples:
        >>> from steprule import chain
        >>> from steprule.transforms import decay, ema, sign
        >>> SignedMean = chain(ema, sign, decay, name="SignedMean")
        >>> SignedMean.hyperparameters
        {'lr': 0.001, 'beta': 0.9, 'weight_decay': 0.01}
        >>> param, exp_avg = SignedMean.update(1.0, 8.0, 0.0, step=1, lr=0.5, beta=0.75, weight_decay=0.25)
        >>> param, exp_avg  # 1 - 0.5 * (sign(8) + 0.25 * 1)
        (0.375, 2.0)
    """
    if not parts:
        raise RuleError("chain() needs at least one part")
    return Recipe(chain, parts, name=name, lr=lr).made(_make)


def _make(recipe: Recipe) -> type[Rule]:
    """The rule of such a chain."""
    links: list[_Link] = []
    taken: set[str] = {"param", "grad", "step", "lr"}
    for part in recipe.parts:
        links.append(_Link(part, taken))
    kind = inspect.Parameter
    positional = ["param", "grad", *(own for link in links for own in link.states.values())]
    hyper = {"lr": recipe.settings["lr"]} | {
        link.hyper[one]: value for link in links for one, value in link.defaults.items()
    }

    def update(param: Value, grad: Value, *states: Value, step: Value, lr: Value, **given: Any) -> tuple[Value, ...]:
        direction, new = grad, []
        values = dict(zip(positional[2:], states, strict=True))
        for link in links:
            own = [values[state] for state in link.states.values()]
            direction, *changed = link(
                direction, param, own, step, {one: given[its] for one, its in link.hyper.items()}
            )
            new += changed
        return param - lr * direction, *new

    def check(**given: Any) -> None:
        for link in links:
            link.check(given)

    signature = [kind(one, kind.POSITIONAL_OR_KEYWORD) for one in positional] + [kind("step", kind.KEYWORD_ONLY)]
    signature += [kind(one, kind.KEYWORD_ONLY, default=default) for one, default in hyper.items()]
    update.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    apart = links[-1].is_decay() and links[-1].hyper["weight_decay"] == "weight_decay"  # and no other part has one
    attributes: dict[str, Any] = {"update": update, "decay": "decoupled" if apart else "own", "constants": {}}
    for link in links:
        attributes |= link.kept()
        attributes["constants"] |= link.constants()
    attributes["check"] = staticmethod(check)
    attributes["__doc__"] = f"{' -> '.join(link.name for link in links)}: a chain of your own."
    attributes["__module__"] = __name__
    attributes["made_by"] = recipe
    made: type[Rule] = type(recipe.name, (Rule,), attributes)
    return made


def key_of(value: Any) -> Any:
    """What is equal for values that make the same rule, and nothing else: 1, 1.0 and True are three."""
    if isinstance(value, functools.partial):
        return functools.partial, key_of((value.func, value.args, sorted(value.keywords.items())))
    if isinstance(value, (tuple, list)):
        return type(value), *map(key_of, value)
    return type(value), value


_made: dict[Any, type[Rule]] = {}


class Recipe:
    """What a rule is made of: called, it makes it, here or in another process.

    Args:
        maker: the public function that makes such rules.
        parts: its arguments.
        settings: those that it takes by name, among them the rule's name.
    """

    def __init__(self, maker: Callable[..., type[Rule]], parts: tuple[Any, ...], **settings: Any) -> None:
        self.maker, self.parts, self.settings = maker, parts, settings

    @property
    def name(self) -> str:
        """The rule's name."""
        return str(self.settings["name"])

    def made(self, make: Callable[[Recipe], type[Rule]]) -> type[Rule]:
        """The rule: that which the same recipe has made before, if its parts can tell."""
        key = self.maker, key_of(self.parts), key_of(tuple(self.settings.items()))
        try:
            found = _made.get(key)
        except TypeError:  # a part that has no hash
            return make(self)
        if found is None:
            found = _made[key] = make(self)
        return found

    def __call__(self) -> type[Rule]:
        """The rule, by the public function."""
        return self.maker(*map(unpacked, self.parts), **self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        parts = tuple(packed(self.name, part) for part in self.parts)
        return functools.partial(Recipe, self.maker, parts, **self.settings), ()


def packed(name: str, part: Any) -> Any:
    """A part of a rule of this name as it goes into a pickle: rules that are made of parts, among them, as their recipes.

    Raises:
        PicklingError: another process could not find it.
    """
    if isinstance(part, functools.partial):
        return functools.partial(packed(name, part.func), *part.args, **part.keywords)
    if isinstance(part, type) and "made_by" in vars(part):
        return vars(part)["made_by"]
    if isinstance(part, (type, FunctionType)) and not (_is_found(part) or _is_pickled_by_value()):
        raise pickle.PicklingError(
            f"the rule {name} cannot be pickled: another process could not find its part {part.__qualname__} by that "
            f"name; write it at the top of a module, by {'class' if isinstance(part, type) else 'def'}"
        )
    return part


def unpacked(part: Any) -> Any:
    """The part that `packed` was given."""
    if isinstance(part, functools.partial):
        return functools.partial(unpacked(part.func), *part.args, **part.keywords)
    return part() if hasattr(part, "parts") else part


def _is_found(thing: Any) -> bool:
    """Whether it is what its module has under its name."""
    try:
        return operator.attrgetter(thing.__qualname__)(sys.modules[thing.__module__]) is thing
    except (KeyError, AttributeError):
        return False


def _is_pickled_by_value() -> bool:
    """Whether a library is at work that pickles functions as they are, and needs no names."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] not in ("cloudpickle", "dill"):
        frame = frame.f_back
    return frame is not None


class _Link:
    """A part of a chain, and what its names are there.

    Args:
        part: a transform or a rule.
        taken: names that parts before it have; its own are added.
    """

    def __init__(self, part: Transform | type[Rule], taken: set[str]) -> None:
        plain: Any = part.func if isinstance(part, functools.partial) else part
        self._plain = plain
        given, places = (part.keywords, part.args) if isinstance(part, functools.partial) else ({}, ())
        self._rule: type[Rule] | None = plain if isinstance(plain, type) and issubclass(plain, Rule) else None
        self._meanings: dict[str, Hyperparameter] = dict(getattr(plain, "meanings", {}))
        own: list[str]
        if isinstance(plain, type) and self._rule is None and hasattr(plain, "rule"):
            raise RuleError(f"chain() got the optimizer {plain.__name__}; its rule is {plain.__name__}.rule")
        if self._rule is not None:
            self.name = self._rule.__name__
            if places:
                known = ", ".join(f"{one}=..." for one in self._rule.hyperparameters if one != "lr")
                raise TypeError(
                    f"a partial gives {self.name} {places[0]!r} by position: name what it is for, as partial({self.name}, {known})"
                )
            reason = self._rule.refuses
            if any(state.begins == "lr" for state in self._rule.states.values()):
                reason = reason or "its states begin at its learning rate"
            if self._rule.evaluated is not None:
                reason = reason or "its weights to evaluate are made of those that it trains"
            if reason:
                raise RuleError(f"{self.name} cannot be a part of a chain: {reason}")
            own, self._takes_param, self._takes_step = list(self._rule.states), True, True
            self.defaults = {one: value for one, value in self._rule.hyperparameters.items() if one != "lr"}
            check_names(self.name, given, self.defaults)
            self.defaults |= given
        else:
            if not callable(part):
                shown, hint = f"an instance of {type(part).__name__}", ""
                if isinstance(getattr(type(part), "rule", None), type):
                    hint = f"; its rule is {type(part).__name__}.rule"
                elif isinstance(part, (int, float, str, tuple)):
                    shown, hint = (
                        repr(part),
                        "; of transforms it takes the functions: chain(sign), or functools.partial(clip, clip_at=0.5)",
                    )
                raise RuleError(f"chain() got {shown}, which is neither a function nor a rule{hint}")
            self.name = name_of(plain)
            check_names(self.name, given, _signature(self.name, plain).parameters)
            own, self.defaults, self._takes_step = _read(self.name, part)
            self._takes_param = own[:1] == ["param"]
            own = own[1:] if self._takes_param else own
            self._transform: Transform = part
        self.states = {one: free_name(one, taken) for one in own}
        self.hyper = {one: free_name(one, taken) for one in self.defaults}

    def is_decay(self) -> bool:
        """Whether it is `steprule.transforms.decay`."""
        return self._plain is decay

    def check(self, given: dict[str, Any]) -> None:
        """Raises for hyperparameters of the chain that the rule finds to make no sense."""
        if self._rule is not None:
            check_together(self._rule, {"lr": 1.0, **{one: given[its] for one, its in self.hyper.items()}})

    def kept(self) -> dict[str, State | Hyperparameter]:
        """What is said of its states and hyperparameters, with the chain's names.

        One number a tensor is float64 in all chains.
        """
        said = {**COMMON, **self._meanings}
        kept: dict[str, State | Hyperparameter] = {its: said[one] for one, its in self.hyper.items() if one in said}
        for name, state in self._rule.states.items() if self._rule is not None else ():
            asked: dict[str, Any] = {what: self.hyper.get(one, one) for what, one in state.asks().items()}
            kept[self.states[name]] = replace(state, **asked, dtype=None)
        return kept

    def constants(self) -> dict[str, str]:
        """What must stay as it was, with the chain's names, and why. The chain's lr is none of its parts'."""
        said = self._rule.constants if self._rule is not None else {}
        wholes = {one: whole_of(one) for one in said}
        return {
            self.hyper[whole] + one.removeprefix(whole): said[one]
            for one, whole in wholes.items()
            if whole in self.hyper
        }

    def __call__(
        self, direction: Value, param: Value, states: list[Value], step: Value, hyper: dict[str, Any]
    ) -> tuple[Value, ...]:
        """The new direction and states."""
        if self._rule is not None:
            one = {"lr": 1.0} if "lr" in self._rule.hyperparameters else {}
            new, *changed = self._rule.evaluate(param, direction, tuple(states), step, {**hyper, **one})
            return -movement(new, param), *changed
        if self._takes_step:
            hyper = {**hyper, "step": step}
        result = self._transform(direction, *([param] if self._takes_param else []), *states, **hyper)
        values = result if isinstance(result, tuple) else (result,)
        if len(values) != 1 + len(states):
            raise RuleError(
                f"{self.name} returned {len(values)} value{'s' * (len(values) != 1)} to its chain and must return "
                f"{1 + len(states)}: the direction{''.join(f', {one}' for one in self.states)}{_place(self._plain)}"
            )
        return values


def _read(name: str, transform: Transform) -> tuple[list[str], dict[str, Any], bool]:
    """A transform's positional arguments after grad, its hyperparameters, and whether it takes step."""
    positional: list[str] = []
    defaults: dict[str, Any] = {}
    takes_step = False
    place = _place(transform)
    parameters = _signature(name, transform).parameters
    if next(iter(parameters), "") == "update":
        raise RuleError(f"{name} is a wrapper, and no part of a chain: wrap(chain(...), {name}) puts it around{place}")
    for one, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RuleError(f"{name} must name its arguments instead of taking {parameter}{place}")
        if one == "step" and parameter.kind is not parameter.KEYWORD_ONLY:
            raise RuleError(f"{name} must take step by keyword: (grad, ..., *, step){place}")
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            raise RuleError(f"{name}: {one} has a default: put * before it to make it a hyperparameter{place}")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(one)
        elif one == "step":
            takes_step = True
        elif parameter.default is parameter.empty:
            raise RuleError(f"{name} needs a default for {one}{place}")
        else:
            defaults[one] = parameter.default
    if positional[:1] != ["grad"]:
        raise RuleError(
            f"{name} must begin with (grad, ...), not ({', '.join(positional)}), to be a part of a chain{place}"
        )
    if "param" in positional[2:]:
        raise RuleError(f"{name} must take param right after grad: (grad, param, ...){place}")
    return positional[1:], defaults, takes_step


def _place(transform: Any) -> str:
    """The file and line of a function, as the end of a message."""
    plain = transform.func if isinstance(transform, functools.partial) else transform
    return f" ({where(plain)})" if hasattr(plain, "__code__") else ""


def _signature(name: str, transform: Transform) -> inspect.Signature:
    try:
        return inspect.signature(transform)
    except (TypeError, ValueError):
        raise RuleError(
            f"{name} does not say what arguments it takes; write a function of (grad) that calls it"
        ) from None


def free_name(name: str, taken: set[str]) -> str:
    """A name that is not taken, with a number if need be; it is then."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
