"""steprule: every optimizer written once, as the formula in the paper, and run in one pass.

Names are loaded when first asked for, so that ``steprule.arrays`` does without torch and importing steprule
costs nothing that is not used.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "optimizer": ("Optimizer",),
    "pieces": (
        "at_first",
        "atan2",
        "cbrt",
        "clip",
        "debias",
        "debiased_beta",
        "ema",
        "ema_sq",
        "exp",
        "floor",
        "l2",
        "log",
        "maximum",
        "mean",
        "minimum",
        "norm",
        "running_ema",
        "sign",
        "size",
        "sqrt",
        "total",
        "total_of_all",
        "where",
    ),
    "chains": ("chain",),
    "create": ("create_optimizer", "parameter_groups"),
    "together": ("Together",),
    "rule": ("Rule", "RuleError", "State"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = ("arrays", "catalog", "compare", "memory", "optimizer", "pieces", "rules", "services", "transforms")


def _optimizers() -> list[str]:
    """The names of all classes, which come from the registry."""
    from steprule.rule import TORCHS_OWN
    from steprule.rules import RULES

    return [*TORCHS_OWN.values(), *(rule.__name__ for rule in RULES.values())]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"steprule.{name}")
    if (
        name == "__all__" and sys._getframe(1).f_globals.get("__name__") != "pydoc"
    ):  # help() would print all that classes have
        return sorted({*_MODULES, *_optimizers()})
    known = [*_MODULES, *(_optimizers() if not name.startswith("_") and name not in _MODULES else ())]
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *_SUBMODULES], 1) if not name.startswith("_") else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'steprule' has no attribute {name!r}{hint}")
    value = globals()[name] = getattr(import_module(f"steprule.{_MODULES.get(name, 'optimizer')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBMODULES, *_optimizers()})
