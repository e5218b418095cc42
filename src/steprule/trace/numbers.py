"""Whether the numbers that a formula gives to pieces mean something there, and whether those that it computes are numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from steprule import pieces
from steprule.rule import Rule, RuleError
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import (
    GIVEN_NUMBERS,
    MAY_BE_NONE,
    Expression,
    inputs_of,
    nodes_of,
    operations,
    scalar_name,
)
from steprule.trace.tracing import formulas, static_settings

_ONE = np.eye(1)
_TRIED: Mapping[str, Callable[..., Any]] = {
    "every": lambda k: pieces.every(k, 1, 0.0, 0.0),
    "polar": lambda steps, eps, *given: pieces.polar(_ONE, given[0] if len(given) == 1 else given, steps, eps),
    "decorrelate": lambda passes: pieces.decorrelate(_ONE, passes),
    "inverse_root": lambda root, eps: pieces.inverse_root(_ONE, root, eps),
    "top_share": lambda share: pieces.top_share(_ONE, share),
}
"""The pieces, of a matrix of one number: what they raise for is what they are given besides."""


@dataclass(frozen=True)
class _Given:
    """What a piece is given that follows from hyperparameters.

    Attributes:
        piece: its name.
        args: numbers, as expressions, and what is none.
        scalars: the hyperparameters, as `steprule.trace.program.Stage` has them.
        place: the line.
    """

    piece: str
    args: tuple[Any, ...]
    scalars: tuple[tuple[str, int | None], ...]
    place: str

    def check(self, rule: type[Rule], hyper: Mapping[str, Any]) -> None:
        """Raises for numbers that mean nothing; arguments and errors as for `check_numbers`."""
        value = Evaluation({scalar_name(*one): _read(hyper[one[0]], one[1]) for one in self.scalars})
        if any(x is None for x in value.inputs.values()):
            return
        try:
            _TRIED[self.piece](*(value(x) if isinstance(x, Expression) else x for x in self.args))
        except (TypeError, ValueError) as error:
            names = dict.fromkeys(name for name, _ in self.scalars)
            given = "".join(
                f"{' and' if number else ' with'} {name}={hyper[name]!r}" for number, name in enumerate(names)
            )
            message = f"{rule.__name__}.update{given} calls {self.piece}: {error} ({self.place})"
            raise (ValueError if names else RuleError)(message) from None


def check_numbers(rule: type[Rule], hyper: Mapping[str, Any], names: Collection[str] | None = None) -> None:
    """Raises for numbers that mean nothing to a piece of the formula, if they follow from hyperparameters.

    Args:
        rule: the rule.
        hyper: a value for each hyperparameter.
        names: those that may have changed since this was last asked. Default: all.

    Raises:
        RuleError: such a number is written in the formula.
        ValueError: hyperparameters have given it.
    """
    for one in _given_by(rule, hyper):
        if names is None or any(name in names for name, _ in one.scalars):
            one.check(rule, hyper)


def _read(value: Any, index: int | None) -> Any:
    """A number of a hyperparameter; None for one that a GPU would be waited for, or that another takes the place of."""
    number = value if index is None else value[index]
    return number if getattr(getattr(number, "device", None), "type", "cpu") == "cpu" else None


_given: dict[Any, tuple[_Given, ...]] = {}


def _given_by(rule: type[Rule], hyper: Mapping[str, Any]) -> tuple[_Given, ...]:
    """What a formula gives to pieces, in the order of its lines."""
    key = rule, static_settings(rule, hyper)
    if key not in _given:
        outputs, scalars = formulas(rule, hyper)
        known = {scalar_name(*one): one for one in scalars}
        found: dict[Any, _Given] = {}
        for node in nodes_of(outputs.values()):
            args = node.args[:1] if node.op == "every" else node.args[1:]
            inputs = {name for x in args if isinstance(x, Expression) for name in inputs_of(x)}
            if node.op in GIVEN_NUMBERS and inputs <= known.keys():
                of = tuple(one for name, one in known.items() if name in inputs)
                found[node.place, str(args)] = _Given(node.op, args, of, node.place)
        _given[key] = tuple(found[place] for place in sorted(found))
    return _given[key]


_numbers: dict[Any, tuple[tuple[Expression, tuple[tuple[str, int | None], ...]], ...]] = {}
_CHOICES = "where maximum minimum every pow lt le gt ge eq ne and or not"
_STOPS = frozenset((*_CHOICES.split(), *GIVEN_NUMBERS))
"""Operations on a NaN that need not be NaN."""


def _numbers_of(
    rule: type[Rule], hyper: Mapping[str, Any]
) -> tuple[tuple[Expression, tuple[tuple[str, int | None], ...]], ...]:
    """What the formula computes of hyperparameters and the step alone, whose NaN is one of the parameter or a state, with these."""
    key = rule, static_settings(rule, hyper)
    if key not in _numbers:
        outputs, scalars = formulas(rule, hyper)
        known = {scalar_name(*one): one for one in scalars}
        found: dict[int, Any] = {}
        waiting, seen = list(outputs.values()), set()
        while waiting:
            one = waiting.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            inputs = inputs_of(one) if one.scalar else {""}
            if inputs <= {*known, "step"}:
                if not MAY_BE_NONE.isdisjoint(operations([one])):
                    found[id(one)] = one, tuple(known[name] for name in sorted(inputs & known.keys()))
            elif one.op not in _STOPS:
                waiting += [x for x in one.args if isinstance(x, Expression)]
        _numbers[key] = tuple(found.values())
    return _numbers[key]


def check_nan(rule: type[Rule], hyper: Mapping[str, Any]) -> None:
    """Raises ValueError for hyperparameters of which the formula makes a NaN in the first step."""
    for number, scalars in _numbers_of(rule, hyper):
        read = {scalar_name(*one): _read(hyper[one[0]], one[1]) for one in scalars}
        if not all(isinstance(x, Real) for x in read.values()):  # tensors may be of a graph, or have no numbers
            continue
        value = Evaluation({name: np.array([x], float) for name, x in {**read, "step": 1.0}.items()})
        with np.errstate(all="ignore"):
            if not np.isnan(value(number)).any():
                continue
            first = next(one for one in _inside_out(number) if not np.isfinite(value(one)).all())
        blamed = dict.fromkeys(one[0] for one in scalars if scalar_name(*one) in inputs_of(first))
        given = " and ".join(f"{name}={hyper[name]!r}" for name in blamed)
        place = f" ({first.place})" if first.place else ""
        raise ValueError(
            f"{rule.__name__}.update with {given} computes NaN in the first step: {first} is {value(first)[0]}{place}. "
            "Give another value, or choose by where(condition, a, b) what the formula is there"
        )


def _inside_out(x: Expression) -> Iterator[Expression]:
    """An expression after what it is made of."""
    for one in x.args:
        if isinstance(one, Expression):
            yield from _inside_out(one)
    yield x
