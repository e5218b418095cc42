"""steprule: every optimizer written once, as the formula in the paper, and run in one pass.

Names are loaded when first asked for, so that ``steprule.arrays`` does without torch and importing steprule
costs nothing that is not used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steprule.optimizer import SGD as SGD
    from steprule.optimizer import Adam as Adam
    from steprule.optimizer import AdamW as AdamW
    from steprule.optimizer import Optimizer as Optimizer
    from steprule.optimizer import RMSprop as RMSprop
    from steprule.pieces import debias as debias
    from steprule.pieces import ema as ema
    from steprule.pieces import ema_sq as ema_sq
    from steprule.pieces import exp as exp
    from steprule.pieces import l2 as l2
    from steprule.pieces import log as log
    from steprule.pieces import maximum as maximum
    from steprule.pieces import minimum as minimum
    from steprule.pieces import running_ema as running_ema
    from steprule.pieces import sign as sign
    from steprule.pieces import sqrt as sqrt
    from steprule.pieces import where as where
    from steprule.rule import Rule as Rule
    from steprule.rule import RuleError as RuleError

__version__ = "0.1.0"

_HOME = {
    "optimizer": ("SGD", "Adam", "AdamW", "Optimizer", "RMSprop"),
    "pieces": (
        "debias",
        "ema",
        "ema_sq",
        "exp",
        "l2",
        "log",
        "maximum",
        "minimum",
        "running_ema",
        "sign",
        "sqrt",
        "where",
    ),
    "rule": ("Rule", "RuleError"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'steprule' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"steprule.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
