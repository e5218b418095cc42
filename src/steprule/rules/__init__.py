"""The formulas, one short file a family, and those of other packages. A class in a file here is entered by being there."""

from __future__ import annotations

import pkgutil
import warnings
from importlib import import_module
from importlib.metadata import entry_points

from steprule.rule import RULES as RULES
from steprule.rule import Rule, enter

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

_own = sorted(RULES.values(), key=lambda rule: rule.like_torch is None)  # torch.optim's, then the others, by family
RULES.clear()
RULES.update({rule.__name__.lower(): rule for rule in _own})
globals().update({rule.__name__: rule for rule in _own})

__all__ = sorted(["RULES", *(rule.__name__ for rule in _own)])

for _entry in entry_points(group="steprule.rules"):
    try:
        _found = _entry.load()
        if not (isinstance(_found, type) and issubclass(_found, Rule)):
            raise TypeError(f"it is {_found!r}, not a subclass of steprule.Rule")
        enter(_found)
    except Exception as _error:  # whatever somebody's package does
        warnings.warn(
            f"the rule {_entry.name} = {_entry.value} of another package is left out: {type(_error).__name__}: {_error}",
            stacklevel=1,
        )
