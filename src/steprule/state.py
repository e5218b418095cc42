"""What a rule says of its states, and of the class of torch.optim that it stands in for; and a check of its class attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, get_args

from steprule.hyper import Hyperparameter


class RuleError(TypeError):
    """A rule that no engine can run; the message says what to write instead."""


Extent = Literal["elements", "scalar"]
"""What a state has one value for: each element, or the whole tensor."""


@dataclass(frozen=True)
class State:
    """How a rule keeps one of its states, written in its class under the state's name.

    It is optional: without it a state has the parameter's shape, begins at 0 and may be kept in any format.

    Attributes:
        extent: "elements" for a state of the parameter's shape, or "scalar" for one number for each parameter.
        begins: its value before the first step: a number, a hyperparameter's name, or "param" for the parameter itself.
        exact: whether it is kept in float32 at least, whatever the format, or the name of a hyperparameter that switches
            this on. Needed where the formula subtracts the state from another one, where it is a sum that never decays,
            whose rounding errors add up, or where it is an average of a high power of the gradient.
            Running maxima and minima, and states that they are compared with, are kept so without it.
        when: the hyperparameter that must be true or nonzero for the state to exist; otherwise update is given None.
            Default: the state always exists.
        dtype: how a scalar state is kept: in float64 (None), or in step's dtype ("step").

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
        """The hyperparameters that it names, by the attribute that names them."""
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


_KINDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(
        ("keeps_step", "sparse_grads", "touches_states", "sparse_only", "begins_early"), (bool, "True or False")
    ),
    **dict.fromkeys(("refuses", "when"), (str, "a text")),
    **dict.fromkeys(("evaluated", "trained"), ((Callable, NoneType), "a function, or None for none")),
    "decay": ((str, NoneType), "a text, or None where nothing is said"),
    "needs": ((tuple, list), "a tuple of names"),
    "constants": (Mapping, "a dict of hyperparameters and reasons"),
    "like_torch": ((TorchArguments, NoneType), "TorchArguments(...), or None for none"),
}
"""What class attributes of rules may be, and that in words."""


def check_kinds(rule: type) -> None:
    """Raises RuleError for class attributes of a rule that are of the wrong kind."""
    for name, (kind, words) in _KINDS.items():
        value = getattr(rule, name)
        if not isinstance(value, (kind, State, Hyperparameter)):  # these need another name
            raise RuleError(f"{rule.__name__}.{name} must be {words}, not {value!r}")
