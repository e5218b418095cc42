"""The formulas, one short file a family, and those of other packages. A class in a file here is entered by being there."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from importlib import import_module
from importlib.metadata import entry_points

from steprule.rule import AWAITED, Rule, enter_others
from steprule.rule import RULES as RULES

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
        enter_others(_found)
    except Exception as _error:  # whatever somebody's package does
        if getattr(getattr(sys.modules.get(_entry.module), "__spec__", None), "_initializing", False):
            AWAITED.add(_entry.value)  # that package is being imported, and has imported this one
        else:
            _told = f"{_entry.name} = {_entry.value}: {type(_error).__name__}: {_error}"
            warnings.warn(f"a rule of another package is left out: {_told}", stacklevel=1)
