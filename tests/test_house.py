"""How the source is put together: who may import whom, and how long a file and a function may be.

What breaks a rule today stands in a list beside it. The lists may only shrink: an entry that is no longer needed fails.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import steprule

SRC = Path(steprule.__file__).parent

LEVELS = (
    "names compiler elementwise matrix matrixwise pieces",
    "formats hyper state signature rule registry docstrings settings trace.instead patterns layers.view",
    "rules chains transforms wrappers wrapping engine.overlap tensors.memory",
    "trace terms formula beside",
    "kernels engine.header engine.machine engine.plan",
    "engine",
    "tensors",
    "services",
    "step",
    "optimizer arrays",
    "create divide functional together catalog memory charts scaling coordinates compare check lessons layers integrations",
    "steprule check_options cli __main__",
)
"""From the ground up: files, and folders with what has no entry of its own in them; "steprule" is the package's `__init__`.
A file imports from its own level and from those below, never in a circle."""

EXCEPTIONS: set[tuple[str, str]] = set()
"""Imports that go upwards or close a circle."""

LONGEST_FILE, LONGEST_FUNCTION, LONGEST_FORMULA = 400, 60, 15
LONG = {
    "formats.kernel": 426,  # conversions in LLVM, one after another: half of them would not be found by their name
}
"""Lines of what is longer."""


def sources() -> dict[str, str]:
    """The text of every file by the name of its module, without "steprule."."""
    texts = {}
    for path in SRC.rglob("*.py"):
        parts = [part for part in path.relative_to(SRC).with_suffix("").parts if part != "__init__"]
        texts[".".join(parts) or "steprule"] = path.read_text(encoding="utf-8")
    return texts


def imports(texts: Mapping[str, str]) -> set[tuple[str, str]]:
    """Who imports whom.

    Imports for types alone and those in functions count as any other. They load nothing, or load later, but the file
    still cannot be understood, moved or tested without what it imports.
    """
    found = set()
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}, line {node.lineno}: a relative import; write from steprule..."
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = (one for one in wanted if one.partition(".")[0] == "steprule")
            found |= {(name, part_of(texts, one.removeprefix("steprule.")) or "steprule") for one in ours}
    return found


def part_of(names: Mapping[str, object], name: str) -> str | None:
    """The longest of the names that this one is or begins with, dot by dot."""
    while name not in names:
        name = name.rpartition(".")[0]
        if not name:
            return None
    return name


def level_of(name: str) -> int:
    levels = {entry: level for level, line in enumerate(LEVELS) for entry in line.split()}
    entry = part_of(levels, name)
    assert entry is not None, f"{name} has no level: give it one in LEVELS"
    return levels[entry]


def upward(edges: set[tuple[str, str]]) -> list[str]:
    return sorted(f"{name} -> {other}" for name, other in edges if level_of(other) > level_of(name))


def circle(edges: set[tuple[str, str]]) -> str:
    """One of the circles, or nothing."""
    graph: dict[str, set[str]] = {}
    for name, other in sorted(edges):
        graph.setdefault(name, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return ""


def lengths(texts: Mapping[str, str]) -> Iterator[tuple[str, int, int]]:
    """Every file and function, its lines (a function's with signature and docstring) and how many it may have."""
    for name, text in texts.items():
        yield name, len(text.splitlines()), LONGEST_FILE
        waiting: list[tuple[str, ast.AST]] = [(f"{name}:", ast.parse(text))]
        while waiting:
            prefix, node = waiting.pop()
            for child in ast.iter_child_nodes(node):
                inside = prefix
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    inside = f"{prefix}{child.name}."
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert child.end_lineno is not None
                    yield f"{prefix}{child.name}", child.end_lineno - child.lineno + 1, LONGEST_FUNCTION
                waiting.append((inside, child))


def too_long(texts: Mapping[str, str], listed: Mapping[str, int]) -> list[str]:
    return [
        f"{name} has {lines} lines; at most {max(allowed, listed.get(name, 0))}"
        for name, lines, allowed in lengths(texts)
        if lines > max(allowed, listed.get(name, 0))
    ]


def formulas(texts: Mapping[str, str]) -> dict[str, int]:
    """The lines of each rule's formula, without those that name its operands and hyperparameters."""
    return {
        cls.name: (update.body[-1].end_lineno or 0) - update.body[0].lineno + 1
        for name, text in texts.items()
        if name.startswith("rules.")
        for cls in ast.walk(ast.parse(text))
        if isinstance(cls, ast.ClassDef)
        for update in cls.body
        if isinstance(update, ast.FunctionDef) and update.name == "update"
    }


def test_formulas_are_short():
    found = formulas(sources())
    assert len(found) > 50
    assert not {name: lines for name, lines in found.items() if lines > LONGEST_FORMULA}


def test_every_file_has_a_level_and_every_entry_a_file():
    texts = sources()
    assert len(texts) > 50
    for name in texts:
        level_of(name)
    entries = " ".join(LEVELS).split()
    unused = [entry for entry in entries if not any(f"{name}.".startswith(f"{entry}.") for name in texts)]
    assert not unused, f"LEVELS names {unused}, which is not there"


def test_imports_go_downwards():
    wrong = upward(imports(sources()) - EXCEPTIONS)
    assert not wrong


def test_no_imports_go_in_a_circle():
    found = circle(imports(sources()) - EXCEPTIONS)
    assert not found


@pytest.mark.parametrize("exception", sorted(EXCEPTIONS), ids=" to ".join)
def test_every_exception_is_needed(exception):
    edges = imports(sources())
    assert exception in edges, "it imports it no longer: take it out of EXCEPTIONS"
    needed = upward({exception}) or circle(edges - EXCEPTIONS | {exception})
    assert needed, "that import is in order: take it out of EXCEPTIONS"


def test_files_and_functions_are_short():
    """Beyond these, split them. What is listed may shrink, not grow."""
    found = too_long(sources(), LONG)
    assert not found


def test_every_long_one_is_still_long():
    long = {name: lines for name, lines, allowed in lengths(sources()) if lines > allowed}
    assert not LONG.keys() - long.keys(), "these are short now, or gone: take them out of LONG"


# The checks themselves


UPWARD_WAYS = {
    "a file": "from steprule.services.step import StepServices",
    "a folder": "import steprule.services.step as step",
    "a module of a folder": "from steprule.services import step",
    "the package": "from steprule import services",
    "types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from steprule.services import step",
    "in a function": "def f():\n    from steprule.services import step",
}


@pytest.mark.parametrize("way", UPWARD_WAYS)
def test_upward_imports_are_seen(way):
    texts = {"pieces": "import math", "services": "", "services.step": "from steprule import pieces", "steprule": ""}
    assert not upward(imports({**texts, "services.step": "from steprule.pieces import ema"}))
    target = "services" if way == "the package" else "services.step"
    assert upward(imports({**texts, "pieces": UPWARD_WAYS[way]})) == [f"pieces -> {target}"]


def test_a_name_out_of_the_package_is_an_import_of_all_of_it():
    assert upward(imports({"pieces": "from steprule import AdamW", "steprule": ""})) == ["pieces -> steprule"]


def test_circles_are_seen():
    texts = {"rules": "from steprule.rules.adam import Adam", "rules.adam": "", "rules.sgd": ""}
    assert circle(imports(texts)) == ""
    texts["rules.adam"] = "def f():\n    from steprule.rules.sgd import SGD"
    texts["rules.sgd"] = "from steprule.rules import RULES"
    assert sorted(circle(imports(texts)).split(" -> ")[1:]) == ["rules", "rules.adam", "rules.sgd"]


def test_a_file_without_a_level_is_seen():
    with pytest.raises(AssertionError, match=r"attic\.box has no level"):
        level_of("attic.box")


@pytest.mark.parametrize("lines", [60, 61, 62])
def test_long_functions_are_seen(lines):
    body = "        x = 1\n" * (lines - 2)
    text = f"class C:\n    @staticmethod\n    def f():\n        def g(): ...\n{body}"
    told = [f"rule:C.f has {lines} lines; at most {limit}" for limit in (60, 61)]
    assert too_long({"rule": text}, {}) == told[:1] * (lines > 60)
    assert too_long({"rule": text}, {"rule:C.f": 61}) == told[1:] * (lines > 61)


def test_lines_of_formulas_are_counted():
    text = "class C(Rule):\n    @staticmethod\n    def update(\n        param, grad,\n    ):\n        x = (\n        1)\n        return x\n"
    assert formulas({"rules.c": text, "steps": text}) == {"C": 3}


@pytest.mark.parametrize("lines", [400, 401])
def test_long_files_are_seen(lines):
    assert len(too_long({"rule": "\n" * lines}, {})) == lines - 400
