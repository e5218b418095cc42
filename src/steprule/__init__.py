"""steprule: every optimizer written once, as the formula in the paper, and run in one pass.

    optimizer = steprule.AdamW(model.parameters(), lr=1e-3)     # as torch.optim.AdamW; dir(steprule) has all names
    optimizer = steprule.create_optimizer(model, "adamw", lr=1e-3, weight_decay=0.1)
    help(steprule.AdamW)                                        # its formula's paper, and its arguments
    help(steprule.Optimizer)                                    # the arguments and methods that all have

`steprule.arrays` has them for NumPy arrays, `steprule.functional` as functions of lists, `steprule.services` what clips,
averages and gathers telemetry, `steprule.Rule`, `steprule.chain`, `steprule.transforms` and `steprule.wrap` what new ones are made
of, and `help(steprule.pieces)` prints the functions that a formula may use. In a shell, `steprule list` and `steprule show NAME` print what there is, `steprule compare` trains with it, and `steprule check`
holds any optimizer to what it claims.

Names are loaded when first asked for, so that `steprule.arrays` does without torch and importing steprule costs
nothing that is not used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from steprule.names import HOME as _HOME
from steprule.names import SUBMODULES as _SUBMODULES
from steprule.names import seen as _seen

__version__ = "0.1.0"

_MODULES = {name: module for module, names in _HOME.items() for name in names}


def _optimizers() -> list[str]:
    """The names of all classes, which come from the registry."""
    from steprule.registry import class_names

    import_module("steprule.rules")  # which fills it
    return [*class_names().values()]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"steprule.{name}")
    if name == "__all__" and not _is_asked_by("pydoc"):  # help() would print all methods of all classes
        return sorted([*_MODULES, *_optimizers()])
    if name not in _MODULES and (name.startswith("_") or name not in _optimizers()):
        from steprule.registry import RULES
        from steprule.settings import no_attribute

        raise no_attribute(__name__, name, __dir__(), RULES.left_out.get(name, ""))
    value = globals()[name] = getattr(import_module(f"steprule.{_MODULES.get(name, 'optimizer')}"), name)
    return value


def _is_asked_by(module: str) -> bool:
    """Whether an attribute of this module is wanted by that one."""
    return sys._getframe(2).f_globals.get("__name__") == module


def __dir__() -> list[str]:
    return _seen(globals(), [*_MODULES, *_SUBMODULES, *_optimizers()])
