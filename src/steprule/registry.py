"""Every rule by its name: steprule's own, and those that other packages offer by an entry point."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from pathlib import Path
from pkgutil import iter_modules

from steprule.names import HOME, SUBMODULES, did_you_mean, users_level
from steprule.rule import Rule, RuleError

TORCHS_OWN = {"lbfgs": "LBFGS"}
"""Optimizers that no rule is written for yet: steprule has torch.optim's classes of these names, as they are."""


class Registry(Mapping[str, type[Rule]]):
    """Rules by the names that the command line and the tests know them by.

    Those of other packages are loaded when somebody asks for rules, and not before: such a package imports steprule, and
    could not while that is being imported. A package that is itself being imported, and has not come to its rule yet, is
    looked at again when somebody asks next.

    Attributes:
        left_out: why an entry point of another package is no rule here, by its name.
    """

    def __init__(self) -> None:
        self._rules: dict[str, type[Rule]] = {}
        self._waiting: list[EntryPoint] | None = []
        self.left_out: dict[str, str] = {}

    def __getitem__(self, name: str) -> type[Rule]:
        return self._complete()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._complete()])

    def __len__(self) -> int:
        return len(self._complete())

    def enter(self, rule: type[Rule]) -> None:
        """Enters a rule.

        Raises:
            RuleError: its name is taken.
        """
        name = rule.__name__.lower()
        known = self._rules.get(name, rule)
        taken = f"torch.optim.{TORCHS_OWN[name]}" if name in TORCHS_OWN else _public().get(name)
        if known is not rule:
            taken = _place(known)
        if taken is not None:
            raise RuleError(f"{_place(rule)} cannot be called {name!r}, which {taken} is; choose another name")
        self._rules[name] = rule

    def look_for_others(self) -> None:
        """From now on whoever asks finds the rules of other packages, too."""
        self._waiting = None

    def _complete(self) -> dict[str, type[Rule]]:
        """All rules, with those of other packages that can be loaded by now."""
        waiting = list(entry_points(group="steprule.rules")) if self._waiting is None else self._waiting
        again = self._waiting = []  # and a package that asks while it is loaded gets what there is
        told = []
        for entry in waiting:
            try:
                found = entry.load()
                if not (isinstance(found, type) and issubclass(found, Rule)):
                    raise TypeError(f"it is {found!r}, not a subclass of steprule.Rule")
                self.enter(found)
            except (Exception, SystemExit) as error:  # whatever somebody's package does
                if _is_being_imported(entry.module):
                    again.append(entry)
                else:
                    package = f"the package {entry.dist.name}" if entry.dist else "another package"
                    told.append(f"{entry.name} = {entry.value} of {package}: {type(error).__name__}: {error}")
                    self.left_out[entry.name] = told[-1]
        for why in told:
            warnings.warn(f"a rule of another package is left out: {why}", stacklevel=users_level())
        return self._rules


RULES = Registry()
"""Every rule; `steprule.rules` enters steprule's own."""


def plain(name: str) -> str:
    """A name as the registry has it: case, "-" and "_" do not matter."""
    return re.sub("[-_]", "", name.lower())


def unknown(text: str, others: Iterable[str] = (), join: str = "'{}:{}'") -> str:
    """What to say of an optimizer that there is not.

    Args:
        text: as it was given, perhaps with settings after a colon.
        others: names that could have been given besides those of `class_names`.
        join: how a name and a setting are written together, with a place for each.
    """
    name, _, rest = text.partition(":")
    choices = [*class_names(), *others]
    bare = re.sub("(.+)schedulefree$", r"schedulefree\1", re.sub(_DECORATIONS, "", plain(name)))
    if bare in choices and "8bit" in plain(name):
        return f"unknown optimizer {text!r}; did you mean {join.format(bare, 'states=8bit')}?"
    if rest.isidentifier():
        return f"unknown optimizer {text!r}; did you mean {f'{name}.{rest}'!r}? A class of your own is module.Class"
    owners = [known for known, rule in RULES.items() if plain(name) in rule.hyperparameters]
    if owners:
        return f"unknown optimizer {name!r}; it is a setting of {', '.join(owners)}"
    if reasons := [why for known, why in RULES.left_out.items() if plain(known) == plain(name)]:
        return f"unknown optimizer {name!r}: it is left out: {reasons[0]}"
    near = bare if bare in choices else name if others and "." in name else plain(name.rpartition(".")[2])
    return f"unknown optimizer {name!r}{did_you_mean(near, choices, otherwise='steprule list prints all names')}"


_DECORATIONS = "8bit|32bit|bnb|paged|fused|torch|apex"
"""What other libraries add to the names of optimizers."""


def class_names() -> dict[str, str]:
    """The names of all classes that there are for torch, by those of the command line."""
    return {name: rule.__name__ for name, rule in RULES.items()} | TORCHS_OWN


@cache
def _public() -> Mapping[str, str]:
    """What is an attribute of steprule, or of a module that has a class for each rule: where, by its name in small letters."""
    here = Path(__file__).parent
    folders = {"steprule": here, "steprule.optimizer": here / "optimizer", "steprule.arrays": here / "arrays"}
    names = [f"{module}.{file.name}" for module, folder in folders.items() for file in iter_modules([str(folder)])]
    names += [f"steprule.{name}" for name in chain(SUBMODULES, *HOME.values())]
    return {name.rpartition(".")[2].lower(): name for name in names}


def _place(rule: type[Rule]) -> str:
    return f"{rule.__module__}.{rule.__qualname__}"


def _is_being_imported(module: str) -> bool:
    """Whether a module, or a package that it is in, is loaded only in part."""
    parts = module.split(".")
    specs = (getattr(sys.modules.get(".".join(parts[:end])), "__spec__", None) for end in range(1, len(parts) + 1))
    return any(getattr(spec, "_initializing", False) for spec in specs)
