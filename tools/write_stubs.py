"""Writes the stubs (.pyi) of what is made from the registry, for type checkers and editors.

python tools/write_stubs.py
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torch.optim.optimizer import ParamsT

import steprule
from steprule import arrays, optimizer
from steprule.registry import TORCHS_OWN
from steprule.rules import OWN

SRC = Path(steprule.__file__).parent
HEAD = "# Written by tools/write_stubs.py: make stubs"


def text(annotation: Any) -> str:
    """An annotation as it stands in a stub, with full names."""
    if annotation == ParamsT:
        return "ParamsT"
    if annotation in (None, type(None)):
        return "None"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " | ".join(map(text, args))
    if origin is Literal:
        return f"typing.Literal[{', '.join(map(repr, args))}]"
    if origin is Callable:
        return f"collections.abc.Callable[[{', '.join(map(text, args[0]))}], {text(args[1])}]"
    if origin is not None:
        return f"{text(origin)}[{', '.join(map(text, args))}]"
    if annotation is Any:
        return "typing.Any"
    module = "" if annotation.__module__ == "builtins" else f"{annotation.__module__}."
    return f"{module}{annotation.__qualname__}"


def constructor(owner: type) -> str:
    """Its `__init__`."""
    shown = []
    before = None
    for one in inspect.signature(owner.__init__).parameters.values():  # type: ignore[misc]
        if one.kind is one.KEYWORD_ONLY and before is not one.KEYWORD_ONLY:
            shown.append("*")
        before = one.kind
        default = "..." if isinstance(one.default, float) and math.isinf(one.default) else repr(one.default)
        told = "" if one.annotation is one.empty else f": {text(one.annotation)}"
        shown.append(one.name + told + ("" if one.default is one.empty else f" = {default}"))
    return "    def __init__(\n" + "".join(f"        {one},\n" for one in shown) + "    ) -> None: ..."


def classes(made: Iterable[type]) -> str:
    """What a stub says of classes."""
    parts = []
    for one in made:
        base = one.__mro__[1]
        told = textwrap.indent(f'"""{one.__doc__}"""', "    ")
        parts.append("\n".join([f"class {one.__name__}({base.__qualname__}):", told, constructor(one)]))
    return "\n\n".join(parts)


def imports(body: str) -> str:
    """The modules whose full names the body has."""
    code = re.sub(r'""".*?"""', "", body, flags=re.DOTALL)
    found = set(re.findall(r"\b((?:[a-z_]+\.)*[a-z_]+)\.(?:ndarray|[A-Z]\w*)", code))
    params = "from torch.optim.optimizer import ParamsT\n" * (
        "ParamsT" in body
    )  # torch.optim has no attribute optimizer
    return "".join(f"import {module}\n" for module in sorted(found)) + params


def all_of(names: Iterable[str]) -> str:
    """A module's `__all__`."""
    return "__all__ = [\n" + "".join(f'    "{name}",\n' for name in sorted(names)) + "]\n"


def reexports(module: str, names: Iterable[str]) -> str:
    """Imports that make names a module's own."""
    return "".join(f"from {module} import {name} as {name}\n" for name in names)


def front(module: types.ModuleType, lines: str, names: Iterable[str]) -> str:
    """The stub of a front, which has a class for each rule."""
    body = classes(getattr(module, rule.__name__) for rule in OWN.values())
    return f"{HEAD}\n{imports(body)}\n{lines}\n{all_of(names)}\n{body}\n"


def stubs() -> dict[Path, str]:
    """The text of every stub."""
    made = [rule.__name__ for rule in OWN.values()]
    optimizers = ["Optimizer", *TORCHS_OWN.values(), *made]
    bases = sorted({getattr(optimizer, name).__mro__[1].__name__ for name in made} - {"Optimizer"})
    rules = "".join(reexports(rule.__module__, [rule.__name__]) for rule in OWN.values())
    homes = {module: names for module, names in vars(steprule)["_HOME"].items() if module != "optimizer"}
    package = reexports("steprule", vars(steprule)["_SUBMODULES"]) + reexports("steprule.optimizer", optimizers)
    package += "".join(reexports(f"steprule.{module}", names) for module, names in homes.items())
    public = [*optimizers, *(name for names in homes.values() for name in names)]
    lines = reexports("steprule.optimizer.front", ["Optimizer"])
    lines += "".join(f"from steprule.optimizer.made import {name}\n" for name in bases)
    lines += reexports("torch.optim", TORCHS_OWN.values())
    return {
        SRC / "__init__.pyi": f"{HEAD}\n{package}\n{all_of(public)}\n__version__: str\n",
        SRC / "arrays" / "__init__.pyi": front(
            arrays, reexports("steprule.arrays.front", ["Optimizer"]), ["Optimizer", *made]
        ),
        SRC / "optimizer" / "__init__.pyi": front(optimizer, lines, optimizers),
        SRC / "rules" / "__init__.pyi": (
            f"{HEAD}\nfrom collections.abc import Mapping\n\n{reexports('steprule.registry', ['RULES'])}"
            f"from steprule.rule import Rule\n{rules}\n{all_of(['OWN', 'RULES', *made])}\nOWN: Mapping[str, type[Rule]]\n"
        ),
    }


if __name__ == "__main__":
    for path, stub in stubs().items():
        path.write_text(stub, encoding="utf-8")
