"""A check: a short function that is also the program that shows what fails."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from steprule.check.claims import Subject, shown

TIERS = ("manners", "state", "numbers", "matrix", "cost", "distributed")

Case = Mapping[str, Any]
Cases = Callable[[Subject], Iterable[Case]]
Make = Callable[..., Any]
F = TypeVar("F", bound=Callable[..., Any])


def grad(p: torch.Tensor, k: int = 0) -> torch.Tensor:
    """A made-up gradient, another for each k; matrices have full rank, far from lower ones."""
    return torch.sin(torch.arange(1, p.numel() + 1) ** 2 * 0.9 + k).view(p.shape).to(p)


@dataclass(frozen=True)
class Check:
    """One thing that an optimizer must do.

    Attributes:
        name: the function's.
        says: what must hold, in a sentence.
        tier: one of `TIERS`.
        needs: what must be claimed for it.
        function: called with `make`, which makes an optimizer as its class does, and the values of a case. It raises
            AssertionError if what it says does not hold, and may return a few words on what it found.
        cases: what it is called with, one after the other; none if there is nothing to check.
        explain: what a failure means, where that can be found out.
        processes: how many it takes. If there are several, the reproducer is what runs.
    """

    name: str
    says: str
    tier: str
    needs: tuple[str, ...]
    function: Callable[..., str | None]
    cases: Cases
    explain: Callable[[Subject], str] | None = None
    processes: int = 1

    def reproducer(self, subject: Subject, case: Case) -> str:
        """A program that fails as the check does with this case. It imports torch and the optimizer's package."""
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        body = [_Fill(case).visit(one) for one in tree.body[1:] if not isinstance(one, ast.Return)]
        used = {node.id for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)}
        module, making = subject.source
        modules = {name for name in used if isinstance(self.function.__globals__.get(name), ModuleType)}
        modules |= {
            "torch",
            *([module] if module != "torch.optim" else []),
            *(["functools"] if "functools." in making else []),
        }
        lines = [f"import {', '.join(sorted(modules))}; torch.manual_seed(0)"]
        if self.processes > 1:
            lines[0] += '; torch.distributed.init_process_group("gloo")'
        lines += [making] * ("make" in used)
        lines += _lines(_without_docstring(grad)) * ("grad" in used)
        ending = "; torch.distributed.destroy_process_group()" if self.processes > 1 else ""
        return "\n".join(lines + [line for statement in body for line in _lines(statement)]) + ending


CHECKS: dict[str, Check] = {}
"""All checks by name, in order."""


def check(
    tier: str,
    *needs: str,
    cases: Cases = lambda subject: ({},),
    explain: Callable[[Subject], str] | None = None,
    processes: int = 1,
) -> Callable[[F], F]:
    """Enters a function as a check; the first paragraph of its docstring is what must hold."""
    assert tier in TIERS

    def enter(function: F) -> F:
        says = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
        name = function.__name__
        CHECKS[name] = Check(name, says, tier, needs, function, cases, explain, processes)
        return function

    return enter


def each(**values: Iterable[Any]) -> Cases:
    """A case for each value of one argument."""
    ((name, found),) = values.items()
    return lambda subject: [{name: value} for value in found]


TELLING: dict[str, Any] = {
    "lr": 0.05, "betas": (0.8, 0.95), "eps": 0.02, "weight_decay": 0.1, "momentum": 0.8, "alpha": 0.9, "rho": 0.8,
}  # fmt: skip
"""Values at which a wrong sign, a misplaced eps or a missing bias correction shows in the first digits."""


def telling(subject: Subject, *names: str) -> dict[str, Any]:
    """Those of these settings that the optimizer takes as numbers, with telling values; those that are set stay."""
    found = {}
    for name in names or TELLING:
        default = subject.arguments.get(name)
        if name in subject.settings or name not in subject.arguments:
            continue
        if isinstance(default, tuple) and name == "betas" and len(default) in (2, 3):
            found[name] = (0.8, 0.95, 0.97)[: len(default)]
        elif not isinstance(default, (tuple, bool, str, type(None))):
            found[name] = TELLING[name]
    return found


class _Fill(ast.NodeTransformer):
    """Puts a case's values in place of their names."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.case and isinstance(node.ctx, ast.Load):
            return ast.parse(shown(self.case[node.id]), mode="eval").body
        return node


def _without_docstring(function: Callable[..., Any]) -> ast.stmt:
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.body, tree.returns = tree.body[1:], None
    for argument in tree.args.args:
        argument.annotation = None
    return tree


_SIMPLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.Assert, ast.Return, ast.Import, ast.ImportFrom, ast.Raise, ast.Pass)


def _lines(statement: ast.stmt) -> list[str]:
    """A statement as lines of Python; a block of simple statements stands behind its colon."""
    lines = ast.unparse(statement).split("\n")
    bodies = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    bodies += [handler.body for handler in getattr(statement, "handlers", [])]
    if not all(isinstance(inner, _SIMPLE) for body in bodies for inner in body):
        nested = [body for body in bodies if body]
        if len(nested) == 1 and not isinstance(statement, ast.Try):  # only what is inside can be shorter
            head = lines[0]
            return [head, *(f"    {line}" for inner in nested[0] for line in _lines(inner))]
        return lines
    found: list[str] = []
    for line in lines:
        if line.startswith("    ") and found:
            found[-1] += " " + line.strip() if found[-1].endswith(":") else "; " + line.strip()
        else:
            found.append(line)
    return found
