"""What goes together and what is refused: found by asking the library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import torch

import steprule
from steprule.rules import OWN
from steprule.services import ClipNorm

OPTIONS: dict[str, dict[str, Any]] = {
    "decay": {"decay": "decoupled", "weight_decay": 0.1},
    "cautious": {"cautious": True},
    "cautious_decay": {"cautious_decay": True, "weight_decay": 0.1},
    "lookahead": {"lookahead": 5},
    "states": {"states": "8bit"},
    "weights": {"weights": "24bit"},
    "grads": {"grads": "32bit"},
    "clip": {"clip": 1.0},
    "nonfinite": {"nonfinite": "skip"},
    "average": {"average": 0.99},
    "telemetry": {"telemetry": 10},
    "release": {},
}
"""The columns, and what an optimizer is given for each."""


def refusal(attempt: Callable[..., Any], *args: Any) -> str:
    """Why an attempt is refused; empty if it works."""
    try:
        attempt(*args)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        return " ".join(str(error).split())
    return ""


def table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]], first: int) -> str:
    """A table of reasons; each reason has a number, and is explained below.

    Args:
        corner: what the first column is.
        columns: headings.
        rows: for each row by its heading the reason in each column, empty where there is none.
        first: the number of the first reason.
    """
    numbers: dict[str, int] = {}
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|---|{':---:|' * len(columns)}"]
    for heading, reasons in rows.items():
        cells = [
            f"[{numbers.setdefault(why, first + len(numbers))}](#why-{numbers[why]})" if why else "yes"
            for why in reasons
        ]
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    lines.append("")
    for why, number in numbers.items():
        lines.append(f'<p id="why-{number}"><strong>{number}</strong> {_html(why)}</p>')
    return "\n".join(lines)


def _html(why: str) -> str:
    return escape(why, quote=False).replace("RULE", "<em>the rule</em>").replace("OPTION", "<em>the option</em>")


def step(name: str, settings: dict[str, Any], release: bool = False) -> None:
    """Makes an optimizer of a small model and takes a step."""
    rule = OWN[name]
    settings = {one: value for one, value in settings.items() if one != "weight_decay" or one in rule.hyperparameters}
    dtype = torch.bfloat16 if {"weights", "grads"} & settings.keys() else torch.float32
    model: torch.nn.Module = torch.nn.Linear(64, 64, dtype=dtype)
    if rule.sparse_only:
        model = torch.nn.Embedding(64, 64, sparse=True, dtype=dtype)
    optimizer: Any = getattr(steprule, rule.__name__)(model.parameters(), **settings)
    if release:
        optimizer.release_gradients(model)
    given: Any = torch.tensor([1, 2]) if rule.sparse_only else torch.ones(2, 64, dtype=dtype)
    model(given).sum().backward()
    optimizer.step()


def rules_by_options() -> str:
    """A table of rules by options."""
    columns = [f"`{option}`" if option != "release" else "gradient release" for option in OPTIONS]
    rows = {
        rule.__name__: [
            _general(refusal(step, name, copy.deepcopy(settings), option == "release"), rule.__name__, option, settings)
            for option, settings in OPTIONS.items()
        ]
        for name, rule in OWN.items()
    }
    return table("", columns, rows, 1)


def _general(why: str, rule: str, option: str, settings: dict[str, Any]) -> str:
    """A reason without the names that differ between cells."""
    given = f"{option}={settings.get(option)!r}"
    return why.replace(rule, "RULE").replace(given, "OPTION").replace(f" {option}:", " OPTION:")


def parameters_by_options() -> str:
    """A table of kinds of parameters by options."""
    rows = {
        kind: [refusal(_step_of, make, settings) for settings in PARAMETER_OPTIONS.values()]
        for kind, make in PARAMETERS.items()
    }
    return table("parameters", [*PARAMETER_OPTIONS], rows, 101)


PARAMETER_OPTIONS: dict[str, dict[str, Any]] = {
    "no option": {},
    '`states="8bit"`': {"states": "8bit"},
    '`weights="stochastic"`': {"weights": "stochastic"},
    '`weights="24bit"`': {"weights": "24bit"},
    "`clip`": {"clip": ClipNorm(1.0)},
    '`nonfinite="skip"`': {"nonfinite": "skip"},
    "`average`": {"average": 0.99},
    "`telemetry`": {"telemetry": 1},
}


def _plain(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(64, 64).to(dtype)


DIFFERENTIABLE = "float32, `differentiable=True`"
PARAMETERS: dict[str, Callable[[], torch.Tensor]] = {
    "float32": _plain(torch.float32),
    "bfloat16": _plain(torch.bfloat16),
    "float16": _plain(torch.float16),
    "float64": _plain(torch.float64),
    "complex64": _plain(torch.complex64),
    "bfloat16, channels_last": lambda: torch.randn(4, 64, 8, 8).bfloat16().to(memory_format=torch.channels_last),
    "bfloat16, strided view": lambda: torch.randn(64, 128).bfloat16()[:, ::2],
    DIFFERENTIABLE: _plain(torch.float32),
}


def _step_of(make: Callable[[], torch.Tensor], settings: dict[str, Any]) -> None:
    param: Any = torch.nn.Parameter(make())
    if make is PARAMETERS[DIFFERENTIABLE]:  # such a parameter is no leaf
        param = param * 1.0
        param.retain_grad()
        settings = {**settings, "differentiable": True}
    optimizer = steprule.AdamW([param], **settings)
    param.grad = torch.ones_like(param).detach()
    optimizer.step()
