"""What is checked, and what its author says of it."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from steprule.names import did_you_mean, name_of
from steprule.rule import Rule


@dataclass(frozen=True)
class Claims:
    """What the author of an optimizer says of it. What is not claimed is not checked, and the report names it.

        Claims(maximize=True, decay="decoupled", drop_in_for="torch.optim.AdamW", state_bytes=8)

    Attributes:
        params: what is stepped: "any" shape, or "2d" for matrices only.
        separate: each parameter's step depends on no other parameter.
        elementwise: each element's step depends on no other element.
        maximize, sparse, complex, foreach, fused, tensor_lr: it takes ``maximize=True``, sparse gradients, complex parameters,
            ``foreach=True``, ``fused=True`` and a tensor as lr.
        accuracy: how exact an update is, as a share of it; by default 32 roundings of float32.
        float32_only: it refuses float64 parameters.
        bfloat16: it steps bfloat16 parameters, and its arithmetic is at least as exact as theirs.
        scale_invariant: multiplying all gradients by one number changes nothing, where eps is 0.
        decay: what weight_decay is: "coupled", added to the gradient; "decoupled", times lr; or "independent" of lr.
        formula: what it computes: the name of one of steprule's rules, a rule of your own, or a function ``(param, grads, **settings)``
            of float64 arrays that returns the parameter after the last of the gradients. ``grads`` is the list of all gradients so
            far, and param where the first step begins. The settings are the hyperparameters that the optimizer has by the same names.
        drop_in_for: the class of torch.optim, such as "torch.optim.AdamW", whose arguments, checkpoints and numbers it has.
        transpose: stepping the transposed matrix is transposing the step.
        batch: the last two dimensions are the matrix; a stack is stepped as its matrices.
        rotation: stepping a matrix in other orthogonal bases is rotating the step.
        orthogonal: the least share that the smallest singular value of a first step is of the largest.
        copies_loaded: load_state_dict copies what it is given, and steps write into the copy; torch.optim.Optimizer's does not.
        state_bytes: the most bytes of states that an element of a float32 parameter takes.
        ddp, fsdp2: it steps DistributedDataParallel's and fully_shard's parameters as those of one process.
        mode: a method that is called before the first step, such as "train" of Schedule-Free.
        expected_failures: by the names of checks, why each is expected to fail. One that passes then fails.
    """

    params: str = "any"
    separate: bool = False
    elementwise: bool = False
    maximize: bool = False
    sparse: bool = False
    complex: bool = False
    foreach: bool = False
    fused: bool = False
    tensor_lr: bool = False
    accuracy: float = 2**-18
    float32_only: bool = False
    bfloat16: bool = False
    scale_invariant: bool = False
    decay: str | None = None
    formula: str | type[Rule] | Callable[..., Any] | None = None
    drop_in_for: str | None = None
    transpose: bool = False
    batch: bool = False
    rotation: bool = False
    orthogonal: float | None = None
    copies_loaded: bool = False
    state_bytes: float | None = None
    ddp: bool = False
    fsdp2: bool = False
    mode: str | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("params", self.params, ("any", "2d"))
        if self.decay is not None:
            _one_of("decay", self.decay, ("coupled", "decoupled", "independent"))
        for name, reason in self.expected_failures.items():
            if not isinstance(reason, str) or not reason.strip():
                raise ValueError(f"expected_failures[{name!r}]={reason!r} must be the reason, a text")

    @property
    def reference(self) -> Any:
        """What its numbers are compared with."""
        return self.formula or self.drop_in_for

    @property
    def vectors(self) -> bool:
        """Whether parameters may have any number of dimensions."""
        return self.params == "any"

    @property
    def float64(self) -> bool:
        """Whether it steps float64 parameters."""
        return not self.float32_only

    @property
    def undeclared_sparse(self) -> bool:
        """Whether sparse gradients are not claimed."""
        return not self.sparse


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}{did_you_mean(str(value), choices)}")


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_formula(formula: Any, known: Mapping[str, Any]) -> None:
    """Refuses what cannot be called as a formula by the settings that an optimizer has."""
    if not callable(formula) or (isinstance(formula, type) and issubclass(formula, Rule)):
        return
    what = f"formula={name_of(formula)} must be a rule, or a function (param, grads, **settings), where grads is the list of all gradients so far"
    if isinstance(formula, type):
        raise ValueError(f"{what}, not a class")
    takes = inspect.signature(formula)
    needed = [one for one in takes.parameters.values() if one.default is one.empty and one.kind not in _REST][2:]
    if lacking := [one.name for one in needed if one.name not in known]:
        raise ValueError(f"{what}: the optimizer has no setting {' or '.join(lacking)}; states begin in the function")
    try:
        takes.bind(None, None, **{one.name: None for one in needed})
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def _parameters(optimizer: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """What it takes after the parameters; where the rest is handed to its parents, also what these take."""
    found = list(inspect.signature(optimizer).parameters.values())[1:]
    yield from found
    if any(one.kind is one.VAR_KEYWORD for one in found) and isinstance(optimizer, type):
        for parent in optimizer.__mro__[1:]:
            if parent is torch.optim.Optimizer:
                return
            yield from list(inspect.signature(parent.__init__).parameters.values())[2:]  # type: ignore[misc]


def _place_of(optimizer: Callable[..., Any]) -> str:
    """Where a program imports it from, as "module:name"."""
    module, name = getattr(optimizer, "__module__", ""), getattr(optimizer, "__qualname__", "<no name>")
    if "<" in name:
        raise ValueError(
            f"optimizer={optimizer!r} cannot be imported by the programs that show failures: define it at the top of a module, or "
            'name such a one by place="module:name"'
        )
    if module == "__main__":
        file = getattr(sys.modules[module], "__file__", None)
        module = Path(file).stem if file else module
    return f"{module}:{name}"


def shown(value: Any) -> str:
    """A setting as Python reads it where torch is imported."""
    if isinstance(value, torch.Tensor):
        return f"torch.{value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(shown, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    return repr(value)


MISSING = {
    "reference": "formula or drop_in_for", "vectors": "params='any'", "undeclared_sparse": "that sparse gradients are not taken",
    "float64": "that it steps float64 parameters",
}  # fmt: skip
"""What to call a claim that is none of the fields."""

CLAIMS = tuple(one.name for one in fields(Claims) if one.name not in ("mode", "expected_failures"))
"""The names of what can be claimed."""


class Subject:
    """An optimizer with the settings that it is checked with, and what is claimed of it.

    Args:
        optimizer: the class, or a function that is called as one.
        claims: what is claimed.
        place: where others import it from, as "module:name"; by default where it is defined.
        settings: arguments for every optimizer that is made.

    Raises:
        TypeError: optimizer is not called as a class.
        ValueError: there is no place where others could import it from, it needs an argument that is not in settings, or the
            claimed formula is no function that can be called.
    """

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        claims: Claims | None = None,
        place: str | None = None,
        **settings: Any,
    ) -> None:
        if not callable(optimizer):
            raise TypeError(f"optimizer={optimizer!r} must be a class of optimizers, or a function that makes one")
        made: Any = optimizer
        while isinstance(made, functools.partial) and not made.args:
            made, settings = made.func, {**made.keywords, **settings}
        self.optimizer, self.claims, self.settings = made, claims or Claims(), settings
        self.place = place or _place_of(made)
        own = list(inspect.signature(made).parameters.values())[1:]
        needed = [one.name for one in own if one.kind not in _REST and one.default is inspect.Parameter.empty]
        if lacking := [name for name in needed if name not in settings]:
            raise ValueError(f"{self.name} needs {', '.join(lacking)}, which have no default: give settings for them")
        _check_formula(self.claims.formula, self.arguments)

    @property
    def name(self) -> str:
        """What the class is called."""
        return self.place.rpartition(":")[2].rpartition(".")[2]

    @functools.cached_property
    def arguments(self) -> Mapping[str, Any]:
        """What it takes by name apart from the parameters, with defaults."""
        found: dict[str, Any] = {}
        for one in _parameters(self.optimizer):
            if one.kind not in _REST:
                found.setdefault(one.name, self.settings.get(one.name, one.default))
        return found

    @functools.cached_property
    def defaults(self) -> Mapping[str, Any]:
        """What a group has if it says nothing; empty if none can be made, which the checks then say."""
        try:
            return self.make([torch.nn.Parameter(torch.ones(3, 4))]).defaults
        except Exception:  # whatever somebody's optimizer raises
            return {}

    def make(self, params: Any, *more: Any, **changes: Any) -> torch.optim.Optimizer:
        """A new one over these parameters."""
        optimizer: torch.optim.Optimizer = self.optimizer(params, *more, **{**self.settings, **changes})
        if self.claims.mode:
            getattr(optimizer, self.claims.mode)()
        return optimizer

    @property
    def source(self) -> tuple[str, str]:
        """The module to import, and a line that defines `make`."""
        module, _, name = self.place.partition(":")
        made = f"{module}.{name}"
        if self.claims.mode:
            given = f"**{{**{shown(self.settings)}, **changes}}" if self.settings else "**changes"
            return module, (
                f"def make(params, **changes): o = {made}(params, {given}); o.{self.claims.mode}(); return o"
            )
        given = "".join(f", {key}={shown(value)}" for key, value in self.settings.items())
        return module, f"make = functools.partial({made}{given})" if given else f"make = {made}"
