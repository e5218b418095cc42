"""What the numbers of an optimizer are compared with: a formula, or a class of torch.optim, in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import steprule.optimizer
from steprule.arrays.whole import step_whole
from steprule.check.checks import grad, telling
from steprule.check.claims import Subject
from steprule.compare.errors import UsageError, told
from steprule.names import name_of
from steprule.registry import class_names, plain, unknown
from steprule.rule import Rule

Array = npt.NDArray[np.float64]
Settings = Mapping[str, Any]

STEPS = 12
HOW = {"foreach", "fused", "capturable", "differentiable"}
"""Arguments that say how, and not what, is computed."""


def start() -> torch.Tensor:
    """Where `follows_its_formula` begins."""
    return torch.linspace(-1, 1, 12).view(3, 4)


def run(make: Callable[..., Any], settings: Settings, dtype: torch.dtype, steps: int = STEPS) -> Array:
    """The parameter at the start and after each step."""
    p = torch.nn.Parameter(start().to(dtype))
    optimizer, path = make([p], **settings), [p.detach().double().numpy().copy()]
    for k in range(steps):
        p.grad = grad(start(), k).to(dtype)
        optimizer.step()
        path.append(p.detach().double().numpy().copy())
    return np.array(path)


def _by_hand(rule: type[Rule], maximize: bool = False, **settings: Any) -> Array:
    """The same of a rule, by NumPy and not by what optimizers compile."""
    hyper = {**rule.hyperparameters, **settings}
    rule.check(**hyper)
    param, state = start().double().numpy().copy(), {"step": 0}
    path = [param.copy()]
    for k in range(STEPS):
        new = grad(start(), k).double().numpy()
        step_whole(rule, [param], [-new if maximize else new], [state], hyper)
        path.append(param.copy())
    return np.array(path)


def drop_in_class(subject: Subject) -> type[torch.optim.Optimizer]:
    """The class that is claimed to be replaced."""
    name = subject.claims.drop_in_for or ""
    found = getattr(torch.optim, name.rpartition(".")[2], None)
    if not name.startswith("torch.optim.") or not isinstance(found, type):
        raise ValueError(f"drop_in_for={name!r} must be a class of torch.optim, such as 'torch.optim.AdamW'")
    return found


def argument_cases(subject: Subject) -> Iterator[Settings]:
    """What the class that is replaced takes, with its defaults; arguments that say how are left out."""
    theirs = inspect.signature(drop_in_class(subject)).parameters.values()
    found = {one.name: one.default for one in theirs if one.name != "params" and one.name not in HOW}
    yield {"arguments": {name: value for name, value in found.items() if name not in subject.settings}}


class Reference:
    """What is claimed to be computed, as a function of settings.

    Attributes:
        arguments: the names that it takes, with defaults.
    """

    def __init__(self, subject: Subject) -> None:
        claimed = subject.claims.formula
        self.function: Callable[..., Any] | None = None
        self.rule: type[Rule] | None = None
        if claimed is None:
            self._make: Any = drop_in_class(subject)
        elif isinstance(claimed, str):
            names = class_names()
            if plain(claimed) not in names:
                raise ValueError(f"formula={claimed!r}: {unknown(claimed)}")
            self._make = getattr(steprule.optimizer, names[plain(claimed)])
        elif isinstance(claimed, type) and issubclass(claimed, Rule):
            self.rule, self.arguments = claimed, {**claimed.hyperparameters, "maximize": False}
            return
        else:
            self.function = claimed
        takes = list(inspect.signature(self.function or self._make).parameters.values())
        takes = takes[2 if self.function else 1 :]
        self.arguments = {one.name: one.default for one in takes if one.kind is not inspect.Parameter.VAR_KEYWORD}

    def path(self, settings: Settings) -> Array:
        """The parameter at the start and after each step, in float64.

        Raises:
            UsageError: the function that is claimed fails, or returns no such array.
            ValueError: the settings do not go together.
        """
        if self.rule is not None:
            return _by_hand(self.rule, **settings)
        if self.function is None:
            return run(self._make, settings, torch.float64)
        begin = start().double().numpy()
        grads = [grad(start(), k).double().numpy() for k in range(STEPS)]
        return np.array([begin, *(self._end(begin.copy(), grads[:count], settings) for count in range(1, STEPS + 1))])

    def _end(self, begin: Array, grads: list[Array], settings: Settings) -> Array:
        """What the function returns."""
        assert self.function is not None
        what, shape = f"formula={name_of(self.function)}", begin.shape
        try:
            end = self.function(begin, grads, **settings)
        except ValueError:
            raise
        except Exception as error:  # whatever somebody's function raises
            raise UsageError(f"{what} fails with {dict(settings)}: {told(error)}") from error
        if not isinstance(end, np.ndarray) or end.shape != shape:
            given = f"an array of shape {end.shape}" if isinstance(end, np.ndarray) else f"a {type(end).__name__}"
            raise UsageError(f"{what} must return the parameter alone, an array of shape {shape}, not {given}")
        return end


def common_settings(subject: Subject, reference: Reference) -> dict[str, Any]:
    """Telling values of what both take, and the subject's own of the rest that both take.

    Settings that the reference does not take are the subject's alone: with them it is claimed to have this formula.
    """
    own = {name: value for name, value in subject.arguments.items() if value is not inspect.Parameter.empty}
    both = {name: own[name] for name in own if name in reference.arguments and name not in HOW}
    both |= {name: value for name, value in telling(subject).items() if name in reference.arguments}
    return both


def formula_cases(subject: Subject) -> Iterator[Settings]:
    """The common settings, and those with each flag that both take the other way round."""
    reference = Reference(subject)
    base = common_settings(subject, reference)
    flags = [name for name, value in base.items() if isinstance(value, bool) and name not in subject.settings]
    for flag in ("", *flags):
        if flag == "maximize" and not subject.claims.maximize:
            continue
        settings = {**base, flag: not base[flag]} if flag else base
        try:
            path = reference.path(settings)
        except UsageError:
            raise
        except ValueError as error:  # a flag that does not go with the other values
            if reference.function and not flag:
                raise UsageError(
                    f"formula={name_of(reference.function)} fails with {settings}: {told(error)}"
                ) from error
            continue
        moved = np.abs(np.diff(path, axis=0)).max(axis=(1, 2)).sum()
        rounding = STEPS * 2.0**-23 * np.abs(path).max() + subject.claims.accuracy * moved
        expected = [float(f"{value:.9g}") for value in path[-1].ravel()]
        what = f"with {flag}={settings[flag]}" if flag else "as it is made by default"
        yield {"with_what": what, "settings": settings, "expected": expected, "within": float(f"{rounding:.2g}")}
