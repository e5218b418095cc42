"""Optimizers over NumPy arrays, with gradients given by hand. Needs no torch.

>>> from steprule.arrays import Adam
>>> opt = Adam([w, b], lr=1e-3)
>>> opt.step([grad_w, grad_b])      # w and b change in place
"""

from __future__ import annotations

from typing import Any

from steprule.arrays.front import Optimizer as Optimizer
from steprule.rules import RULES
from steprule.settings import no_attribute

__all__ = sorted(["Optimizer", *(rule.__name__ for rule in RULES.values())])


def __getattr__(name: str) -> Any:
    """A class, made when it is first asked for: there may be new rules."""
    rule = RULES.get(name.lower())
    if rule is None or rule.__name__ != name:
        raise no_attribute(__name__, name, __all__)
    made = globals()[name] = type(name, (Optimizer,), {"__module__": __name__}, rule=rule)
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
