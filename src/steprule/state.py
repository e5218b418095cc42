"""What a rule says of its states, and of the class of torch.optim that it stands in for; and a check of its class attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args

from steprule.hyper import Hyperparameter, line_of_init
from steprule.names import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RuleError(TypeError):
    """A rule that no engine can run; the message says what to write instead."""


Extent = Literal["elements", "scalar", "rows", "cols", "left", "right"]
"""What a state has values for: each element, or the whole tensor as one; of a matrix of m rows and n columns each row or each
column, or a matrix of m x m at its left or of n x n at its right."""


SQUARES = ("left", "right")
"""The extents of squares."""


def matrix_shape(shape: Sequence[int], stacks: bool) -> tuple[int, ...]:
    """The shape of the matrix that a tensor is: a vector is one row, and what has more dimensions than two has a row for each index of the first.

    Args:
        shape: the tensor's.
        stacks: whether the last two dimensions are the matrix, and those before them count matrices.
    """
    if len(shape) < 2:
        return (1, *shape) if shape else (1, 1)
    return tuple(shape) if stacks else (shape[0], math.prod(shape[1:]))


def matrices_of(shape: Sequence[int], stacks: bool, view: str | None = None) -> list[tuple[int, ...]]:
    """The shapes of the matrices that a tensor is, or of stacks of equal ones: of one but where a view parts it unequally.

    Args:
        shape, stacks: as for `matrix_shape`.
        view: the words of a `steprule.layers.View`. Default: None, as `matrix_shape` has it.

    Raises:
        ValueError: the shape does not fit the view.
    """
    if view is None:
        return [matrix_shape(shape, stacks)]
    from steprule.layers.view import View

    return [(count, m, n) if count != 1 else (m, n) for count, m, n in View(view).sizes(shape)]


def side_shape(rule: Any, name: str, matrix: Sequence[int], hyper: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """The shape of a rule's state that has rows, columns or squares, beside a matrix or a stack of them, with these hyperparameters."""
    *stack, rows, cols = matrix
    extent, most = rule.states[name].extent, rule.states[name].most
    own = {"rows": (rows, 1), "cols": (1, cols), "left": (rows, rows), "right": (cols, cols)}[extent]
    if most == "other":
        limit = cols - 1 if extent == "left" else rows
    else:
        limit = (rule.hyperparameters if hyper is None else hyper)[most] if most is not None else max(own)
    return (*stack, *(own if max(own) <= limit else (1, 1)))


def state_shape(
    rule: Any, name: str, shape: Sequence[int], hyper: Mapping[str, Any] | None = None, view: str | None = None
) -> tuple[int, ...]:
    """The shape of a rule's state beside a parameter of that shape; where matrices are unequal, their numbers follow each other.

    Args:
        rule, name, shape: the rule, the state's name and the parameter's shape.
        hyper: a value for each hyperparameter. Default: the rule's defaults.
        view: as for `matrices_of`.
    """
    extent = rule.states[name].extent
    if extent in ("elements", "scalar"):
        return tuple(shape) if extent == "elements" else ()
    shapes = [side_shape(rule, name, matrix, hyper) for matrix in matrices_of(shape, rule.stacks, view)]
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def first_array(rule: Any, name: str, param: Any, hyper: Mapping[str, Any]) -> NDArray[Any]:
    """What a rule's state is before the first step, in float64; param is an array, or has a shape if no state begins at it."""
    import numpy as np

    first, shape = rule.begins_at(name, param, hyper), state_shape(rule, name, param.shape, hyper)
    if rule.states[name].extent in SQUARES:
        first = first * np.eye(shape[-1])
    return np.broadcast_to(np.asarray(first, np.float64), shape).copy()


def no_matrix(rule: Any, who: str, shape: Sequence[int]) -> str:
    """What to say of a tensor that is no matrix, and a rule that takes matrices only."""
    return (
        f"{rule.__name__} looks at whole matrices, and {who} has the shape {tuple(shape)}: a step takes parameters of 2 "
        "dimensions or more. Give this one to another optimizer, such as AdamW"
    )


@dataclass(frozen=True)
class State:
    """How a rule keeps one of its states, written in its class under the state's name.

    It is optional: without it a state has the parameter's shape, begins at 0 and may be kept in any format.

    Attributes:
        extent: "elements" for a state of the parameter's shape, or "scalar" for one number for each parameter. Beside a
            matrix of m rows and n columns "rows" is (m, 1), "cols" (1, n), "left" (m, m) and "right" (n, n).
        begins: its value before the first step: a number, a hyperparameter's name, or "param" for the parameter itself. For
            "left" and "right" it is that number times the identity.
        exact: whether it is kept in float32 at least, whatever the format, or the name of a hyperparameter that switches
            this on. Needed where the formula subtracts the state from another one, where it is a sum that never decays,
            whose rounding errors add up, or where it is an average of a high power of the gradient.
            Running maxima and minima, and states that they are compared with, are kept so without it.
        when: the hyperparameter that must be true or nonzero for the state to exist; otherwise update is given None.
            Default: the state always exists.
        dtype: how a scalar state is kept: in float64 (None), or in step's dtype ("step").
        most: the hyperparameter that says how long the side of a "left" or "right" state may be; "other" for no longer than the other
            side, or for "left" shorter than that. Of a longer one there is a single number, of shape (1, 1), in place of the matrix:
            it stands for that number times the identity.

    Raises:
        RuleError: a value makes no sense, or not beside the others.

    Examples:
        >>> from steprule import Rule, State
        >>> class Anchored(Rule):
        ...     first = State(begins="param", exact=True)
        ...
        ...     def update(param, grad, first, *, lr=0.1, pull=0.5):
        ...         return param - lr * (grad + pull * (param - first)), first
        >>> Anchored.states["first"].begins
        'param'
    """

    extent: Extent = "elements"
    begins: float | str = 0.0
    exact: bool | str = False
    when: str | None = None
    dtype: Literal["step"] | None = None
    most: str | None = None

    def __post_init__(self) -> None:
        is_scalar, is_whole = self.extent == "scalar", self.extent == "elements"
        for what, is_right, hint in (
            ("extent", self.extent in get_args(Extent), f"{', '.join(map(repr, get_args(Extent)))}"),
            ("begins", isinstance(self.begins, (int, float, str)), "a number, a hyperparameter's name or 'param'"),
            ("begins", is_whole or self.begins != "param", "only a state of its shape can begin at the parameter"),
            ("exact", isinstance(self.exact, (bool, str)), "True, False or a hyperparameter's name"),
            (
                "exact",
                is_whole or not self.exact,
                "only a state of the parameter's shape is kept in other formats; leave this out",
            ),
            ("when", isinstance(self.when, (str, type(None))), "a hyperparameter's name or None"),
            ("dtype", self.dtype in (None, "step"), "None for float64, or 'step' for step's dtype"),
            ("dtype", is_scalar or self.dtype is None, "only a scalar state has a dtype of its own"),
            ("most", isinstance(self.most, (str, type(None))), "a hyperparameter's name or None"),
            ("most", self.extent in SQUARES or self.most is None, "only a square has a longest side"),
        ):
            if not is_right:
                value = getattr(self, what)
                near = did_you_mean(value, get_args(Extent)) if what == "extent" and isinstance(value, str) else ""
                raise RuleError(f"State({what}={value!r}): {hint}{near} ({line_of_init()})")

    def asks(self) -> dict[str, str]:
        """The hyperparameters that it names, by the attribute that names them."""
        named = {"begins": self.begins, "exact": self.exact, "when": self.when, "most": self.most}
        own = (("begins", "param"), ("most", "other"))
        return {what: one for what, one in named.items() if isinstance(one, str) and (what, one) not in own}


@dataclass(frozen=True)
class TorchArguments:
    """How torch.optim's class of a rule's name takes its arguments.

    Attributes:
        flags: those of torch.optim's flags that it takes, in its order, with spaces between.
        positional: those of them that may be given by position.
        keyword_only: hyperparameters that may not.
        fixed: entries of every parameter group that are no arguments.
        tensor_betas: whether betas may be tensors, and which flags go with tensors is checked.
        checks: whether its step raises for what the rule's `check` does, so that groups changed by hand are held to it, too.
        words: what it says of a value out of range, by the name of the hyperparameter, or of an element as "eps[0]"; "{}" is
            the value. Default: "Invalid momentum value: {}" and the like.
        taken: makes of a parameter's state that it saved one of the rule's.
        given: what is saved of a parameter's state besides, for it to load: the state and the parameter's shape.
        unmissed: states that it begins anew without a word where a state dict lacks them.
    """

    flags: str
    positional: str = ""
    keyword_only: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tensor_betas: bool = False
    checks: bool = False
    words: Mapping[str, str] = field(default_factory=dict)
    taken: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    given: Callable[[Mapping[str, Any], Sequence[int]], Mapping[str, Any]] | None = None
    unmissed: Sequence[str] = ()


_KINDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(
        ("keeps_step", "sparse_grads", "touches_states", "sparse_only", "begins_early", "stacks", "matrices_only"),
        (bool, "True or False"),
    ),
    **dict.fromkeys(("refuses", "nonzero", "when"), (str, "a text")),
    **dict.fromkeys(("evaluated", "trained"), ((Callable, NoneType), "a function, or None for none")),
    "decay": ((str, NoneType), "a text, or None where nothing is said"),
    "needs": ((tuple, list), "a tuple of names"),
    "constants": (Mapping, "a dict of hyperparameters and reasons"),
    "like_torch": ((TorchArguments, NoneType), "TorchArguments(...), or None for none"),
}
"""What class attributes of rules may be, and that in words."""


_NOT_ATTRIBUTES = {
    "hyperparameters": 'def update(..., *, lr=1e-3) and lr = Hyperparameter("learning rate")',
    "meanings": 'lr = Hyperparameter("learning rate")',
    "counts_steps": "def update(..., *, step)",
    "states": "exp_avg = State()",
    "tensor_states": "exp_avg = State()",
    "scalar_states": 'd = State("scalar")',
    "side_states": 'row_var = State("rows")',
}
"""Class attributes that are read off update and off each `State`, and what to write instead."""


def check_attributes(rule: type, base: type) -> None:
    """Raises RuleError for class attributes of a rule, of which base is the first parent, that would do nothing or are of the wrong kind."""
    bodies = [vars(one) for one in rule.__mro__ if one is rule or not issubclass(one, base)]
    for name, instead in _NOT_ATTRIBUTES.items():
        if any(not isinstance(body.get(name, State()), State) for body in bodies):
            raise RuleError(f"{rule.__name__}.{name} would do nothing: say it where it belongs, as in {instead}")
    for name, (kind, words) in _KINDS.items():
        value = getattr(rule, name)
        if not isinstance(value, (kind, State, Hyperparameter)):  # these need another name
            raise RuleError(f"{rule.__name__}.{name} must be {words}, not {value!r}")
