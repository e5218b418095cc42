"""What steprule's attributes are called, apart from optimizers, and where they are from; and which name may be meant."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any

HOME = {
    "optimizer": ("Optimizer",),
    "pieces": (
        "at_first",
        "atan2",
        "cbrt",
        "clip",
        "col_largest",
        "col_mean",
        "col_total",
        "cols",
        "debias",
        "debiased_beta",
        "decorrelate",
        "eigenbasis",
        "ema",
        "ema_sq",
        "every",
        "exp",
        "floor",
        "gram",
        "inverse_root",
        "l2",
        "largest_eigenvalue",
        "log",
        "matmul",
        "maximum",
        "mean",
        "minimum",
        "norm",
        "polar",
        "row_largest",
        "row_mean",
        "row_total",
        "rows",
        "running_ema",
        "sign",
        "size",
        "sqrt",
        "top_share",
        "total",
        "total_of_all",
        "transpose",
        "where",
    ),
    "chains": ("chain",),
    "wrapping": ("wrap",),
    "create": ("create_optimizer", "parameter_groups"),
    "layers": ("roles",),
    "scaling": ("transfer",),
    "coordinates": ("coordinate_check",),
    "together": ("Together",),
    "rule": ("Hyperparameter", "Rule", "RuleError", "State"),
}
"""Names by the module that has them."""

SUBMODULES = (
    "arrays",
    "catalog",
    "check",
    "compare",
    "functional",
    "layers",
    "memory",
    "optimizer",
    "pieces",
    "rules",
    "services",
    "transforms",
    "wrappers",
)


ALSO_CALLED = {
    **{"learning_rate": "lr", "wd": "weight_decay", "beta1": "betas", "beta2": "betas", "epsilon": "eps"},
    **{
        "fp32": "float32",
        "bf16": "bfloat16",
        "fp16": "float16",
        "half": "float16",
        "float32": "32bit",
        "error": "raise",
    },
    **dict.fromkeys(("int8", "uint8", "fp8", "float8"), "8bit"),
}
"""What other libraries, and people, call hyperparameters, formats and choices."""


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.61, otherwise: str = "") -> str:
    """The end of a message: a question for the choice of the same meaning, or the nearest, or what else to say.

    Case does not matter. What has another number, as 8bit for 4bit, is not near.
    """
    by_lower = {one.lower(): one for one in choices}
    also, number = ALSO_CALLED.get(word.lower()), _number_in(word)
    alike = [one for one in by_lower if not number or _number_in(one) in ("", number)]
    near = [also] if also in by_lower else difflib.get_close_matches(word.lower(), alike, 1, cutoff)
    last = f"did you mean {by_lower[near[0]]!r}?" if near else otherwise
    return f"; {last}" if last else ""


def _number_in(word: str) -> str:
    return "".join(filter(str.isdigit, word))


def name_of(function: Any) -> str:
    """What a function is called; of a callable without a name, its class's."""
    return str(getattr(function, "__name__", type(function).__name__))


def seen(namespace: Iterable[str], names: Iterable[str]) -> list[str]:
    """What `dir` shows of a module: these names, and those that Python gives it; no helpers that it imports."""
    return sorted({*names, *(name for name in namespace if name.startswith("__"))})


_BETWEEN = ("steprule", "torch", "collections", "contextlib", "typer")


def users_level() -> int:
    """Whose frame a warning of the caller is about, as `warnings.warn` counts: the first outside of steprule, and of what calls it for users."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    return level
