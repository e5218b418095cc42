"""What training a model takes in memory, for each optimizer and format."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steprule.catalog import find
from steprule.formats import HALVES, STATE_FORMATS, WEIGHT_FORMATS, bytes_of, state_format, weight_format
from steprule.names import did_you_mean
from steprule.rule import Rule
from steprule.rules import RULES

Shapes = list[tuple[int, ...]]

PARAMETER_DTYPES = ("float32", "bfloat16", "float16")
USUAL = ("sgd", "rmsprop", "adam", "adamw")
"""What is shown if no name is given."""
_TYPICAL: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
"""Settings without which an optimizer has no states."""


@dataclass(frozen=True)
class Need:
    """The bytes of one way to train.

    Attributes:
        optimizer: its name, with the settings that matter.
        states, weights: the formats, as the optimizer's arguments have them; None for the dtype itself.
        weight_bytes: of the weights, error-corrections included.
        grad_bytes, state_bytes: of gradients and states.
    """

    optimizer: str
    states: str | None
    weights: str | None
    weight_bytes: int
    grad_bytes: int
    state_bytes: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weight_bytes + self.grad_bytes + self.state_bytes


def need(
    rule: type[Rule], shapes: Shapes, dtype: str, grad_dtype: str, states: str | None, weights: str | None,
    settings: dict[str, Any], name: str,
) -> Need:  # fmt: skip
    """Adds up what an optimizer keeps for parameters of these shapes; a step's own few numbers are left out."""
    from steprule.trace.tracing import exact_states, nonnegative_states

    hyper = {**rule.hyperparameters, **settings}
    present = [state for state in rule.states_for(hyper) if state in rule.tensor_states]
    positive, exact = nonnegative_states(rule, hyper), exact_states(rule, hyper)
    weight_bytes = grad_bytes = state_bytes = 0
    for shape in shapes:
        weight_bytes += bytes_of(weight_format(weights, dtype), shape)
        grad_bytes += bytes_of(grad_dtype, shape)
        for state in present:
            state_bytes += bytes_of(state_format(states, dtype, shape, state in positive, state in exact), shape)
    return Need(name, states, weights, weight_bytes, grad_bytes, state_bytes)


def table(shapes: Shapes, dtype: str, grad_dtype: str, optimizers: Sequence[str]) -> list[tuple[str, list[Need]]]:
    """For each optimizer torch.optim's need in float32 and in the dtype, then steprule's with each format that fits it.

    Args:
        shapes: the parameters'.
        dtype: theirs, one of PARAMETER_DTYPES.
        grad_dtype: the gradients'.
        optimizers: names of rules.
    """
    found = []
    for name in optimizers:
        rule, settings = RULES[name], _TYPICAL.get(name, {})
        rows = [
            need(rule, shapes, kept, grads, None, None, settings, f"{_plain_name(rule)}, {kept}")
            for kept, grads in dict.fromkeys([("float32", "float32"), (dtype, grad_dtype)])
        ]
        rows += [
            need(rule, shapes, dtype, grad_dtype, states, weights, settings, rule.__name__)
            for weights in ((None, *WEIGHT_FORMATS) if dtype in HALVES else (None,))
            for states in STATE_FORMATS
        ]
        found.append((name, rows))
    return found


def _plain_name(rule: type[Rule]) -> str:
    """What keeps every state in the parameter's dtype."""
    import torch

    return f"torch.optim.{rule.__name__}" if hasattr(torch.optim, rule.__name__) else f"{rule.__name__} without formats"


def parameter_count(text: str) -> int | None:
    """The number that a text such as 124M, 7B or 1_000_000 stands for, None if it stands for none."""
    match = re.fullmatch(r"([\d_]*\.?\d+|\d[\d_]*)([kKmMbBtT]?)", text)
    if not match:
        return None
    factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}[match[2].lower()]
    return round(float(match[1].replace("_", "")) * factor)


def shapes_of(model: str) -> tuple[Shapes, str, str | None]:
    """The parameters of a model.

    Args:
        model: a parameter count, or module:function for a function without arguments that returns a torch.nn.Module
            (it is called on torch's meta device, so that nothing is allocated).

    Returns:
        Their shapes, a description, and the dtype that they have, None for a count.

    Raises:
        ValueError: it is neither, or the function does not return a module.
    """
    count = parameter_count(model)
    if count is not None:
        if count < 1:
            raise ValueError(f"{model!r} is no number of parameters")
        width = max(math.isqrt(count), 1)
        rest = count - width * (count // width)
        return [(count // width, width), *([(rest,)] if rest else [])], f"{count:,} parameters in one matrix", None
    module_name, colon, function_name = model.partition(":")
    if not colon or not function_name:
        raise ValueError(f"{model!r} must be a number of parameters, such as 124M, or module:function")
    import importlib
    import os
    import sys

    import torch

    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{model!r}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    function = getattr(module, function_name, None)
    if function is None:
        hint = did_you_mean(function_name, dir(module))
        raise ValueError(f"{model!r}: {module_name} has no {function_name!r}{hint}")
    with torch.device("meta"):
        made = function()
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"{model!r} returned {type(made).__name__}, not a torch.nn.Module")
    parameters = [p for p in made.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{model!r} has no parameters to train")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    total = sum(p.numel() for p in parameters)
    return (
        [tuple(p.shape) for p in parameters],
        f"{type(made).__name__}, {total:,} parameters in {len(parameters)} tensors",
        dtypes.pop() if len(dtypes) == 1 else None,
    )


def show(model: str, dtype: str | None, grad_dtype: str | None, optimizers: Sequence[str]) -> None:
    """Prints the table.

    Raises:
        ValueError: the model, a dtype or an optimizer's name is none, and the message names it; or an optimizer is
            torch.optim's own, and the message says what that keeps.
    """
    from rich.console import Console
    from rich.table import Table

    for what, value in (("--dtype", dtype), ("--grads", grad_dtype)):
        if value is not None and value not in PARAMETER_DTYPES:
            raise ValueError(f"{what} {value!r} must be one of {', '.join(PARAMETER_DTYPES)}")
    names = [find(name).__name__.lower() for name in optimizers]
    shapes, description, own = shapes_of(model)
    dtype = dtype or (own if own in PARAMETER_DTYPES else None) or "bfloat16"
    grad_dtype = grad_dtype or dtype
    count = sum(math.prod(shape) for shape in shapes)
    console = Console()
    output = Table(title=f"{description}; weights {dtype}, gradients {grad_dtype}", title_justify="left")
    for heading in ("optimizer", "states=", "weights="):
        output.add_column(heading)
    for heading in ("weights", "gradients", "states", "total", "bytes a parameter", "of float32's"):
        output.add_column(heading, justify="right")
    for _, rows in table(shapes, dtype, grad_dtype, names or USUAL):
        for row in rows:
            output.add_row(
                row.optimizer, row.states or "", row.weights or "", *map(_size, (row.weight_bytes, row.grad_bytes, row.state_bytes, row.total)),
                f"{row.total / count:.2f}", f"{row.total / rows[0].total:.0%}",
            )  # fmt: skip
        output.add_section()
    console.print(output)


def _size(count: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"
