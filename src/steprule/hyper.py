"""What hyperparameters are: their meaning in words, and which values make sense."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Hyperparameter:
    """The meaning and the range of a hyperparameter, written in a rule's class under the hyperparameter's name.

    It is optional: names such as lr, betas, eps and weight_decay have a common meaning and range, and any other name may be
    any finite number. A value out of range is refused with ValueError when an optimizer is made.

    Attributes:
        meaning: what it is, in words, without its range and default.
        range: the interval in which each of its numbers must lie: "[0, 1)" includes 0 and excludes 1. An empty string
            leaves the check to the rule's `check`. True/False hyperparameters need none. Default: any finite number.
        texts: what it may be that is no number: update is given the text. Where the default is a tuple, a tuple of such
            tuples may be given as well, and is not looked into.
        whole: whether numbers must be whole.

    Raises:
        ValueError: range is no interval.

    Examples:
        >>> from steprule import Hyperparameter, Rule
        >>> class Soft(Rule):
        ...     delta = Hyperparameter("gradient at which the update has half its size", "[0, inf)")
        ...
        ...     def update(param, grad, *, lr=0.1, delta=1.0):
        ...         return param - lr * grad / (abs(grad) + delta)
        >>> Soft.meanings["delta"].range
        '[0, inf)'
        >>> Soft.meanings["delta"].allows(-1.0)
        False
    """

    meaning: str
    range: str = "(-inf, inf)"
    texts: tuple[str, ...] = ()
    whole: bool = False

    def __post_init__(self) -> None:
        if self.range:
            try:
                low, high = self._ends
            except ValueError:
                low, high = 1.0, 0.0
            if not low < high or self.range[0] not in "[(" or self.range[-1] not in "])":
                raise ValueError(
                    f"Hyperparameter(range={self.range!r}): write an interval such as '[0, 1)' or '(0, inf)' ({line_of_init()})"
                )

    @cached_property
    def _ends(self) -> tuple[float, float]:
        low, high = map(float, self.range[1:-1].split(","))
        return low, high

    def allows(self, number: Any) -> bool:
        """Whether a number, or a 1-element tensor, is in the range."""
        if not self.range:
            return True
        low, high = self._ends
        is_above = low <= number if self.range[0] == "[" else low < number
        is_above = is_above and not (self.whole and float(number) % 1)
        return bool(is_above and (number <= high if self.range[-1] == "]" else number < high))

    def words(self, each: bool = False) -> str:
        """The meaning and the range in sentences, for one number or for each of some."""
        if self.texts:
            return f"{self.meaning}{', or' if each else ':'} {', '.join(map(repr, self.texts))}."
        if self.range in ("", "(-inf, inf)"):
            return f"{self.meaning}."
        within = f"{'a whole number ' * self.whole}in {self.range}"
        if self._ends[1] == float("inf"):
            within = f"{'at least' if self.range[0] == '[' else 'above'} {self._ends[0]:g}"
        within = f"Each {within}" if each else within[0].upper() + within[1:]
        return f"{self.meaning}. {within}."


def line_of_init() -> str:
    """Where the dataclass is made whose ``__post_init__`` asks for this."""
    frame = sys._getframe(3)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


MULTIPLIERS = {"lr_mult": "lr", "weight_decay_mult": "weight_decay", "eps_mult": "eps"}
"""Keys of parameter groups by which a hyperparameter is multiplied where it is read: what is written into the hyperparameter itself, as
by a scheduler, leaves them alone."""


def multiplied(hyper: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """These hyperparameters, as a formula is to see them.

    Args:
        hyper: a value for each, and multipliers.
        names: which.
    """
    values = {name: hyper[name] for name in names}
    return values | {
        one: values[one] * hyper[by] for by, one in MULTIPLIERS.items() if one in values and hyper.get(by, 1) != 1
    }


def filled(hyper: Mapping[str, Any], unit: float) -> Mapping[str, Any]:
    """Hyperparameters with a number in place of every None beside numbers: the parameter's `UNITS` in `steprule.formats`."""
    gaps = {name: x for name, x in hyper.items() if isinstance(x, (tuple, list)) and any(one is None for one in x)}
    return (
        {**hyper, **{name: tuple(unit if one is None else one for one in x) for name, x in gaps.items()}}
        if gaps
        else hyper
    )


def is_fixed(default: Any, value: Any) -> bool:
    """Whether a hyperparameter with this default is no number or tuple of some, and a formula is given its value as it is."""
    if isinstance(default, tuple):
        is_nested = isinstance(value, (tuple, list)) and any(isinstance(item, (tuple, list)) for item in value)
        return is_nested or isinstance(value, str)
    return default is None or isinstance(default, str)


UNSAID = Hyperparameter("see the formula")
"""What holds for a hyperparameter that nothing is said of, and for one of torch.optim's in a group, where that checks no range."""

_FROM_0 = "[0, inf)"
_DECAYS = {
    "coupled": "weight decay, added to the gradient (L2)",
    "decoupled": "weight decay, decoupled from the gradient",
    "independent": "weight decay, decoupled from the gradient and from lr",
    "corrected": "weight decay, decoupled from the gradient, times lr**2 / max_lr",
    "initial": "decay toward the first weights, decoupled from the gradient",
}

COMMON = {
    "lr": Hyperparameter("learning rate", _FROM_0),
    "betas": Hyperparameter("decay rates of the EMAs", "[0, 1)"),
    "eps": Hyperparameter("added to the denominator for numerical stability", _FROM_0),
    "weight_decay": Hyperparameter("weight decay", _FROM_0),
    "amsgrad": Hyperparameter("divide by the largest second moment so far (AMSGrad)"),
    "nesterov": Hyperparameter("use Nesterov's momentum"),
    "decoupled_weight_decay": Hyperparameter("decouple weight decay from the gradient, as AdamW does"),
    "lookahead": Hyperparameter("steps between two updates of the slow weights", _FROM_0),
    "lookahead_alpha": Hyperparameter("share of the way that the slow weights move", "[0, 1]"),
}
"""What a name means in every rule that does not say otherwise."""


def common(decay: str | None) -> dict[str, Hyperparameter]:
    """What names mean in a rule with this kind of weight decay."""
    known = COMMON["weight_decay"]
    return {**COMMON, "weight_decay": Hyperparameter(_DECAYS.get(decay or "", known.meaning), known.range)}


def whole_of(name: str) -> str:
    """The hyperparameter that a name such as "betas[0]" is an element of, or is."""
    return name.partition("[")[0]


def elements_of(hyperparameters: Mapping[str, Any]) -> list[str]:
    """The elements of those whose defaults are tuples, as "betas[0]"."""
    return [f"{name}[{i}]" for name, one in hyperparameters.items() if isinstance(one, tuple) for i in range(len(one))]


def about(**said: Hyperparameter) -> Callable[[_Function], _Function]:
    """Says of a transform what a rule says of its hyperparameters by class attributes; called like a class, it says how to set them."""

    def mark(transform: _Function) -> _Function:
        @functools.wraps(transform)
        def called(*args: Any, **given: Any) -> Any:
            try:
                return transform(*args, **given)
            except TypeError as error:
                if (
                    error.__traceback__ is not None and error.__traceback__.tb_next is not None
                ):  # of the transform itself
                    raise
                raise _told_of_call(transform, error) from None

        called.__dict__["meanings"] = said
        return called  # type: ignore[return-value]

    return mark


def _told_of_call(transform: Callable[..., Any], error: TypeError) -> TypeError:
    """An error for a transform that was called without what a chain gives it."""
    ones = inspect.signature(transform).parameters.values()
    own = "".join(f", {one.name}=..." for one in ones if one.kind is one.KEYWORD_ONLY and one.default is not one.empty)
    return TypeError(
        f"{error}. A chain calls it: to set its hyperparameters there write functools.partial({transform.__name__}{own})"
    )
