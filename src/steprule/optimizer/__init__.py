"""Optimizers of torch parameters: torch.optim's interface over steprule's engines, a class for each rule."""

from __future__ import annotations

from typing import Any

from steprule.optimizer.front import Optimizer as Optimizer
from steprule.optimizer.made import make, of_torch
from steprule.rule import TORCHS_OWN, class_names
from steprule.rules import RULES
from steprule.settings import no_attribute

__all__ = sorted(["Optimizer", *class_names().values()])


def __getattr__(name: str) -> Any:
    """A class, made when it is first asked for: there may be new rules."""
    rule = RULES.get(name.lower())
    if name in TORCHS_OWN.values():
        made = of_torch(name)
    elif rule is not None and rule.__name__ == name:
        made = make(rule, __name__)
    else:
        raise no_attribute(__name__, name, __all__)
    globals()[name] = made
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
