"""Optimizers as the command line names them: ``adamw:lr=3e-3,betas=(0.9,0.95)``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import steprule.optimizer
from steprule.compare.errors import UsageError
from steprule.compare.imports import import_dotted, suggestion
from steprule.create import create_optimizer, matrix_rule, names_beside
from steprule.formats import HALVES, STATE_FORMATS, WEIGHT_FORMATS
from steprule.layers.roles import roles
from steprule.registry import class_names, plain, unknown
from steprule.rule import DECAYS, Rule
from steprule.services.accumulate import GRAD_FORMATS
from steprule.services.step import NONFINITE

__all__ = ["Spec", "check", "parse"]


@dataclass(frozen=True)
class Spec:
    """An optimizer with its settings.

    Attributes:
        name: what the command line calls it, such as ``adamw``, ``torch.AdamW`` or ``mine.Lion``.
        optimizer: the class.
        settings: (hyperparameter, value) pairs, in the order given; among them perhaps dtype, the parameters'.
        divides: whether the class is over hidden matrices, and AdamW over the rest.
    """

    name: str
    optimizer: type[torch.optim.Optimizer]
    settings: tuple[tuple[str, Any], ...] = ()
    divides: bool = False

    def __str__(self) -> str:
        return self.name + ":" * bool(self.settings) + ",".join(f"{name}={_text(name, v)}" for name, v in self.settings)

    @property
    def label(self) -> str:
        """The name and all settings but lr."""
        return " ".join([self.name, *(f"{name}={_text(name, v)}" for name, v in self.settings if name != "lr")])

    @property
    def default_lr(self) -> float | None:
        """The learning rate that nobody has chosen; None if the settings have one, or it is not for a task to choose."""
        parameter = inspect.signature(self.optimizer).parameters.get("lr")
        lr = parameter.default if parameter is not None and "lr" not in dict(self.settings) else None
        finds_it = "tuning-free" in getattr(getattr(self.optimizer, "rule", None), "needs", ())
        return float(lr) if isinstance(lr, (int, float)) and not finds_it else None

    def with_lr(self, lr: float) -> Spec:
        """The same with another learning rate."""
        others = tuple((name, value) for name, value in self.settings if name != "lr")
        return replace(self, settings=(("lr", lr), *others))

    def build(self, model: nn.Module, example: Callable[[nn.Module], Any] | None = None) -> torch.optim.Optimizer:
        """A new optimizer over the model's parameters, which are brought to the dtype that the settings ask for.

        The model then casts what it is given, and its output is float32.

        Args:
            model: the model.
            example: a function of the model that calls it, for `roles` to find its first and last matrices.
        """
        settings = dict(self.settings)
        dtype = settings.pop("dtype", "bfloat16" if settings.get("weights") else None)
        if dtype is not None:
            _cast(model, getattr(torch, dtype))
        if self.divides and matrix_rule(self.optimizer, settings) is not None:  # a setting may take vectors too
            own: Any = self.optimizer
            divided: torch.optim.Optimizer = create_optimizer(
                model, own, roles=roles(model, example=example), **settings
            )
            return divided
        return self.optimizer(model.parameters(), **settings)


def parse(text: str, divide: bool = False) -> Spec:
    """Reads an optimizer from the command line.

    Args:
        text: a name, and after a colon the hyperparameters as name=value with commas between. The name is one of
            steprule's rules, ``torch.Class`` for a class of torch.optim, or the dotted path of any other class.
            A value is a number, True, False, None, a quoted string or a tuple of those. ``states`` and ``weights``
            are formats, without quotes; ``dtype`` is what the model's parameters are trained in, float32, bfloat16 or
            float16, and bfloat16 where weights is given.
        divide: whether a rule of whole matrices is to have AdamW beside it, as in `create_optimizer`, with adamw_lr and the like
            among its settings. Default: False. Then it gets all parameters.

    Raises:
        UsageError: the name, a hyperparameter or a value cannot be right.
    """
    name, colon, rest = text.partition(":")
    if not all(part.isidentifier() for part in name.replace("-", "_").split(".")) or (colon and not rest):
        raise UsageError(f"optimizer {text!r} must look like name or name:lr=0.001,weight_decay=0.1{_meant(text)}")
    name, optimizer = _find(name, text)
    divides = divide and matrix_rule(optimizer, {}) is not None
    known = _names_beside(optimizer) if divides else _hyperparameters(optimizer)
    settings: dict[str, Any] = {}
    for item in _split(rest):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals or not value:
            tuples = "; a tuple is in parentheses: betas=(0.9,0.95)" if _is_number(item) else ""
            raise UsageError(f"optimizer {text!r}: {item!r} must look like lr=0.001{tuples}")
        if known is not None and key not in known and key != "dtype":
            raise UsageError(f"optimizer {text!r}: {name} takes no {key!r}{suggestion(key, known)}")
        if key in settings:
            raise UsageError(f"optimizer {text!r}: {key} is given twice")
        settings[key] = _value(text, key, value)
    return Spec(name, optimizer, tuple(settings.items()), divides)


def _meant(text: str) -> str:
    """What may have been meant by what is no optimizer, as the end of a message."""
    if _is_number(text):
        return "; several learning rates have commas between: --lr-grid 1e-3,1e-2"
    if "=" in text:
        return "; settings stand right after the optimizer's name and a colon"
    return "; several optimizers have spaces between" if "," in text else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check(spec: Spec, model: nn.Module, example: Callable[[nn.Module], Any] | None = None) -> torch.optim.Optimizer:
    """Builds the optimizer; raises UsageError if it refuses its settings or this model, or cannot be stepped from outside."""
    try:
        built = spec.build(model, example)
    except Exception as error:  # whatever a class raises for what it cannot take
        raise UsageError(f"optimizer {str(spec)!r}: {error}") from error
    closure = inspect.signature(spec.optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(f"optimizer {str(spec)!r}: its step needs a closure, which compare does not give")
    is_sparse = any(getattr(module, "sparse", False) for module in model.modules())
    if isinstance(built, (steprule.optimizer.SparseAdam, torch.optim.SparseAdam)) and not is_sparse:
        raise UsageError(
            f"optimizer {str(spec)!r} takes sparse gradients only, and the model has no layer with sparse=True "
            "(such as torch.nn.Embedding); compare adam instead"
        )
    return built


def _find(name: str, text: str) -> tuple[str, type[torch.optim.Optimizer]]:
    """The class of a name, and how the name is usually written; case does not matter in steprule's and torch.optim's.

    Args:
        name: the name.
        text: what the name was a part of, for the message.
    """
    module, dot, last = name.rpartition(".")
    if not dot and plain(name) in class_names():
        known = plain(name)
        return known, getattr(steprule.optimizer, class_names()[known])
    if module in ("torch", "torch.optim"):
        name = {one.lower(): one for one in _torch_names()}.get(f"torch.{last}".lower(), name)
        last = name.rpartition(".")[2]
    if not dot or (module == "torch" and name not in _torch_names()):
        raise UsageError(unknown(text, _torch_names()))
    found = import_dotted("torch.optim" if module == "torch" else module, last, f"optimizer {name!r}", _optimizer_names)
    if _is_optimizer(found) and issubclass(found, Rule):
        return name, steprule.optimizer.Optimizer.of(found)
    if not _is_optimizer(found):
        raise UsageError(f"optimizer {name!r} is {found!r}, neither a torch.optim.Optimizer nor a steprule.Rule")
    return name, found


def _is_optimizer(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, (torch.optim.Optimizer, Rule)) and thing is not Rule


def _optimizer_names(module: Any) -> list[str]:
    return [name for name in dir(module) if _is_optimizer(getattr(module, name, None)) and not name.startswith("_")]


def _torch_names() -> list[str]:
    return [f"torch.{name}" for name in _optimizer_names(torch.optim) if name != "Optimizer"]


def _hyperparameters(optimizer: type[torch.optim.Optimizer]) -> list[str] | None:
    """The names that the class takes, None if it takes any."""
    kinds = inspect.Parameter
    # A signature set on the class speaks for a general __init__; a subclass's own __init__ speaks for itself.
    for signature in (inspect.signature(optimizer.__init__), inspect.signature(optimizer)):
        parameters = list(signature.parameters.values())
        if all(parameter.kind is not kinds.VAR_KEYWORD for parameter in parameters):
            return [parameter.name for parameter in parameters if parameter.name not in ("self", "params")]
    return None


def _names_beside(optimizer: Any) -> list[str]:
    """What a class of whole matrices takes beside AdamW."""
    return [*(_hyperparameters(optimizer) or ()), *names_beside(optimizer.rule)]


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside of parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts if text else []


_WORDS = {
    "states": ("None", *STATE_FORMATS),
    "weights": ("None", *WEIGHT_FORMATS),
    "grads": ("None", *GRAD_FORMATS),
    "nonfinite": ("None", *NONFINITE),
    "decay": ("None", *DECAYS),
    "dtype": ("float32", *HALVES),
}


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    def convert(value: Any, to: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(to)
        if isinstance(value, (tuple, list)):
            return type(value)(convert(item, to) for item in value)
        return value

    model.to(dtype)
    model.register_forward_pre_hook(lambda _, inputs: convert(inputs, dtype))
    model.register_forward_hook(lambda _, inputs, output: convert(output, torch.float32))


def _value(text: str, key: str, value: str) -> Any:
    if key in _WORDS:
        word = value.strip("'\"")
        if word not in _WORDS[key]:
            raise UsageError(f"optimizer {text!r}: there is no {key}={word}{suggestion(word, _WORDS[key])}")
        return None if word == "None" else word
    try:
        result = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        result = ...
    if not isinstance(result, (int, float, str, tuple, list, type(None))):
        meant = value.capitalize()
        raise UsageError(
            f"optimizer {text!r}: {key}={value} is not a number, True, False, None, a quoted string or a tuple"
            + (f"; did you mean {meant}?" if meant in ("True", "False", "None") else "")
        )
    return result


def _text(name: str, value: Any) -> str:
    return str(value) if name in _WORDS else repr(value).replace(", ", ",")
