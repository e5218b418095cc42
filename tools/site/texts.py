"""Pages that are texts of the repository."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from steprule import elementwise, matrixwise
from steprule import pieces as pieces_
from steprule import transforms as transforms_
from steprule import wrappers as wrappers_
from steprule.optimizer.formulas import TAKEN
from steprule.rule import Rule
from steprule.rules import OWN
from steprule.trace.instead import INSTEAD
from steprule.trace.program import Program
from steprule.trace.tracing import program_of

ROOT = Path(__file__).parents[2]
BLOB = "https://github.com/steprule/steprule/blob/main/"


def index() -> str:
    """The README, with links into the site."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.replace(f"{BLOB}docs/", "").replace(f"{BLOB}CONTRIBUTING.md", "project/contributing.md")


def contributing() -> str:
    """CONTRIBUTING.md, with links into the site."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace(f"{BLOB}docs/", "../")


def changelog() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace(f"{BLOB}docs/", "../")


def modules() -> str:
    """Each folder of the source, and the first sentence of each file in it."""
    source = ROOT / "src" / "steprule"
    parts = []
    for folder in (source, *sorted(path for path in source.iterdir() if (path / "__init__.py").is_file())):
        rows = [
            f"| `{path.relative_to(source)}` | {_first_sentence(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        name = "steprule" if folder == source else folder.name
        parts += [
            f"### {name}",
            _first_sentence(folder / "__init__.py"),
            "\n".join(["| file | what it is |", "|---|---|", *rows]),
        ]
    return "\n\n".join(parts)


def _first_sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def instead() -> str:
    """What a formula has in place of methods and functions of torch and NumPy."""
    by_answer: dict[str, list[str]] = {}
    for name, answer in INSTEAD.items():
        by_answer.setdefault(answer, []).append(name)
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {answer.replace('|', chr(92) + '|')} |"
        for answer, names in by_answer.items()
    ]
    return "\n".join(["| you would write | in a formula |", "|---|---|", *rows])


def pieces() -> str:
    """Every function that rules are made of, and what it computes."""
    rows = [row for module in (pieces_, elementwise, matrixwise) for row in _rows(module, pieces_.__all__)]
    return "\n".join(["| piece | what it computes |", "|---|---|", *rows])


def transforms() -> str:
    """Every transform, and what it computes."""
    return "\n".join(["| transform | the new direction |", "|---|---|", *_rows(transforms_)])


def reserved() -> str:
    """The names that states and hyperparameters of a rule may not have."""
    return ", ".join(f"`{name}`" for name in sorted(TAKEN))


def exchanges() -> str:
    """What rules with squares send in a step where processes have parts of a matrix, and Muon."""
    rows = []
    for rule in (*(one for one in OWN.values() if _program(one).has_squares), OWN["muon"]):
        levels, matrices = _program(rule).levels, _program(rule).matrices
        sent = [names for level in levels for names in (level.fetched, level.returned) if names]
        count = sum(name in matrices for names in sent for name in names)
        squares = [name for names in sent for name in names if name not in matrices]
        left = sum(rule.states[name].extent == "left" for name in squares)
        assert 2 * left == len(squares), f"{rule.__name__} sends more of one side than of the other"
        short = ", of the shorter side only" if any(rule.states[name].most == "other" for name in squares) else ""
        rows.append(
            f"| {rule.__name__} | {len(sent)} | {count} m n | {f'{left} (m² + n²){short}' if left else 'none'} |"
        )
    return "\n".join(["| rule | calls | numbers of matrices | numbers of squares |", "|---|---|---|---|", *rows])


def _program(rule: type[Rule]) -> Program:
    return program_of(rule, rule.hyperparameters)


def wrappers() -> str:
    """Every wrapper, and what it does to an update."""
    return "\n".join(["| wrapper | what becomes of updates |", "|---|---|", *_rows(wrappers_)])


def _rows(module: ModuleType, names: Collection[str] = ()) -> list[str]:
    """The functions that a module defines, or those of them with these names, as they are called, and their first sentences."""
    return [
        f"| `{name}{_called(one)}` | {_first_line(one.__doc__)} |"
        for name, one in vars(module).items()
        if inspect.isfunction(one) and (one.__module__, one.__name__) == (module.__name__, name)
        if name[0] != "_" and (not names or name in names)
    ]


def _called(function: Callable[..., Any]) -> str:
    """The arguments of a function, without their types."""
    signature = inspect.signature(function)
    bare = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _first_line(doc: str | None) -> str:
    return re.sub("::$", ".", (doc or "").strip().split("\n")[0]).replace("|", "\\|")


def api(section: str) -> str:
    """What a section of the page on Python describes, and what each is."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    rows = []
    for place, options in re.findall(r"^::: ([\w.]+)\n +options: (.*)$", text, re.MULTILINE):
        members = re.search(r"show_root_heading: false", options) and re.search(r"members: \[(.*?)\]", options)
        for name in [f"{place}.{one}" for one in members[1].split(", ")] if members else [place]:
            rows.append(f"| `{_public(name)}` | {_first_line(_documented(name))} |")
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _public(name: str) -> str:
    """Where a user imports it from: the shortest of its module's parents that has it."""
    *modules, last = name.split(".")
    if modules[1] == "integrations":  # which need their frameworks
        return name
    one = getattr(import_module(".".join(modules)), last)
    ends = (".".join(modules[:end]) for end in range(1, len(modules) + 1))
    return next(f"{module}.{last}" for module in ends if getattr(import_module(module), last, None) is one)


def _documented(name: str) -> str | None:
    """The docstring of a class or function, read without importing what it may need."""
    *modules, last = name.split(".")
    path = (ROOT / "src").joinpath(*modules)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = [one for one in tree.body if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == last]
    if own:
        return ast.get_docstring(own[-1])  # after overloads
    return str(getattr(import_module(".".join(modules)), last).__doc__)  # imported there
