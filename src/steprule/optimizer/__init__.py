"""Optimizers of torch parameters: torch.optim's interface over steprule's engines, a class for each rule."""

from typing import Any as _Any

from torch import optim as _optim

from steprule.names import seen as _seen
from steprule.optimizer import made as made
from steprule.optimizer.front import Optimizer as Optimizer
from steprule.registry import TORCHS_OWN as _TORCHS_OWN
from steprule.registry import class_names as _class_names
from steprule.rules import RULES as _RULES
from steprule.settings import no_attribute as _no_attribute


def __getattr__(name: str) -> _Any:
    """A class, made when it is first asked for: there may be new rules."""
    if name == "__all__":
        return sorted(["Optimizer", *_class_names().values()])
    rule = None if name.startswith("_") else _RULES.get(name.lower())
    if name in _TORCHS_OWN.values():
        found = getattr(_optim, name)
    elif rule is not None and rule.__name__ == name:
        found = made.make(rule, __name__)
    else:
        raise _no_attribute(__name__, name, [] if name.startswith("_") else __getattr__("__all__"))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return _seen(globals(), __getattr__("__all__"))
