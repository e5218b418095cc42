"""Optimizers by their formula: what a class may be made of, and how one without a name of its own is pickled."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from functools import cache
from typing import Any

from steprule.hyper import MULTIPLIERS
from steprule.optimizer.arguments import ALL_OPTIONS, FLAGS
from steprule.optimizer.core import NOTES
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.rule import Rule, RuleError
from steprule.services.step import RESERVED
from steprule.settings import check_names_of
from steprule.tensors.state import AVERAGE, TRAINED, state_of

TAKEN = (
    *ALL_OPTIONS,
    *FLAGS,
    *RESERVED,
    *NOTES,
    SCHEDULES,
    AVERAGE,
    TRAINED,
    *MULTIPLIERS,
    "params",
    "param_names",
    "self",
)
"""Names that no state and no hyperparameter of a rule may have, because every optimizer has them."""

BASES: dict[str, type[Any]] = {}
"""What optimizers of rules inherit, by the rule's attribute that says so; all others inherit that of ""."""


def base_of(rule: type[Rule]) -> type[Any]:
    """What a rule's optimizer inherits."""
    return _joined(tuple(base for name, base in BASES.items() if name and getattr(rule, name)) or (BASES[""],))


@cache
def _joined(bases: tuple[type, ...]) -> type:
    """One class of all, the same for the same ones."""
    return bases[0] if len(bases) == 1 else type("Optimizer", bases, {"__module__": __name__})


@cache
def optimizer_of(rule: type[Rule]) -> type[Any]:
    """The class of a rule, which is pickled by that."""
    made: Any = BASES[""]
    attributes = {"__module__": made.__module__, "__reduce__": lambda self: reduce(self, made.of)}
    return type(rule.__name__, (base_of(rule),), attributes, rule=rule)


def check_base(cls: type, rule: type[Rule], base: type) -> None:
    """Raises for a class that lacks what its rule's optimizer has."""
    if not issubclass(cls, base):
        raise TypeError(
            f"class {cls.__name__}(Optimizer, rule={rule.__name__}) would lack methods that this rule needs: write "
            f"class {cls.__name__}(Optimizer.of({rule.__name__}))"
        )


def check_has_formula(cls: type) -> None:
    """Raises for a class of no rule."""
    if not hasattr(cls, "_signature"):
        raise TypeError(f"{cls.__name__} has no formula: class X(Optimizer, rule=...) has one, and Optimizer.of(rule)")


def check_free(rule: type[Rule]) -> None:
    """Raises for names of a rule that an optimizer has for something else."""
    check_names_of(rule, TAKEN)
    for name in rule.states:
        other = state_of(name, {"param", *rule.states} - {name})
        if other is not None:
            raise RuleError(f"{rule.__name__}: {name!r} is what an array of {other!r} may be called; choose another")


class Formula:
    """A rule on its way into a pickle: by its name, or as what it was made of. In a copy it is the same one."""

    def __init__(self, rule: type[Rule]) -> None:
        self.rule = rule

    def __deepcopy__(self, _: Any) -> Formula:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        again = vars(self.rule).get("made_by")  # not that of a rule that it goes back to
        return (Formula, (self.rule,)) if again is None else (_remade, (again,))


def _remade(again: Callable[[], type[Rule]]) -> Formula:
    return Formula(again())


def reduce(optimizer: Any, of: Callable[[type[Rule]], type]) -> tuple[Any, ...]:
    """Pickles or copies an optimizer that may be of a class which `of` made, and which has no name to be found by."""
    cls, state = type(optimizer), optimizer.__getstate__()
    if cls is of(cls.rule):
        return _new, (of, Formula(cls.rule)), state
    return copyreg.__newobj__, (cls,), state  # type: ignore[attr-defined]


def _new(of: Callable[[type[Rule]], type], formula: Formula) -> Any:
    made: Any = of(formula.rule)
    return made.__new__(made)
