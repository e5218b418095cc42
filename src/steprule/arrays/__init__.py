"""Optimizers over NumPy arrays, with gradients given by hand. Needs no torch.

>>> from steprule.arrays import Adam
>>> opt = Adam([w, b], lr=1e-3)
>>> opt.step([grad_w, grad_b])      # w and b change in place
>>> Adam([w, b], lr=lambda step: 1e-3 / step, cautious=True)    # a function of the step, and an option
"""

from typing import Any as _Any

from steprule.arrays.front import Optimizer as Optimizer
from steprule.names import seen as _seen
from steprule.rules import RULES as _RULES
from steprule.settings import no_attribute as _no_attribute


def __getattr__(name: str) -> _Any:
    """A class, made when it is first asked for: there may be new rules."""
    if name == "__all__":
        return sorted(["Optimizer", *(rule.__name__ for rule in _RULES.values())])
    rule = None if name.startswith("_") else _RULES.get(name.lower())
    if rule is None or rule.__name__ != name:
        raise _no_attribute(__name__, name, [] if name.startswith("_") else __getattr__("__all__"))
    made = globals()[name] = type(name, (Optimizer,), {"__module__": __name__}, rule=rule)
    return made


def __dir__() -> list[str]:
    return _seen(globals(), __getattr__("__all__"))
