"""The formulas, one short file for each family. A class in one of these files is entered in the registry."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from steprule.names import seen
from steprule.registry import RULES as RULES
from steprule.rule import Rule

_files = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
_own = [
    rule
    for file in _files
    for rule in vars(file).values()
    if isinstance(rule, type) and issubclass(rule, Rule) and rule.__module__ == file.__name__
]
_own.sort(key=lambda rule: rule.like_torch is None)  # torch.optim's, then the others, by family
for _rule in _own:
    RULES.enter(_rule)
RULES.look_for_others()
globals().update({rule.__name__: rule for rule in _own})

OWN: Mapping[str, type[Rule]] = {rule.__name__.lower(): rule for rule in _own}
"""steprule's own rules by name; `RULES` has those of other packages as well."""

__all__ = sorted(["OWN", "RULES", *(rule.__name__ for rule in _own)])


def __dir__() -> list[str]:
    return seen(globals(), __all__)
