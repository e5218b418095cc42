"""The stubs (.pyi), which editors and type checkers read, say what the constructors are now."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest

import steprule
from steprule import arrays
from steprule.rules import OWN, RULES

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    import write_stubs

    return write_stubs.stubs()


def test_they_are_up_to_date(stubs):
    for path, text in stubs.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} of {path.parent.name} is old: make stubs"


@pytest.mark.parametrize("front", [steprule.optimizer, arrays], ids=["torch", "numpy"])
def test_every_class_is_there_with_all_its_arguments(front):
    tree = ast.parse(Path(front.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert found.keys() == {rule.__name__ for rule in OWN.values()}
    for name, node in found.items():
        init = next(one for one in node.body if isinstance(one, ast.FunctionDef))
        shown = [*init.args.args, *init.args.kwonlyargs]
        assert [one.arg for one in shown] == list(inspect.signature(getattr(front, name).__init__).parameters)
        assert all(one.annotation is not None for one in shown[1:])
        assert ast.get_docstring(node) == inspect.getdoc(getattr(front, name)), "what editors show"


def test_the_package_names_all_that_it_has():
    tree = ast.parse(Path(steprule.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    names = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    others = {rule.__name__ for name, rule in RULES.items() if name not in OWN}  # of packages that are installed here
    assert names == (set(steprule.__all__) - others) | set(steprule._SUBMODULES)
