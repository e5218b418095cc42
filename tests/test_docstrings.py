"""The docstrings of what rules and chains are made of: every argument is described, and every example runs."""

import doctest
import inspect
import re

import numpy as np
import pytest

from steprule import Hyperparameter, Rule, State, chain, pieces, transforms, wrap, wrappers
from steprule.names import HOME


def functions(module):
    """A module's public functions, also those that it takes from others for its users."""
    homes = {module.__name__, *(["steprule.elementwise", "steprule.matrixwise"] if module is pieces else [])}
    return {
        f"{module.__name__.removeprefix('steprule.')}.{name}": one
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ in homes and name[0] != "_" and name != "is_tensor"
    }


FUNCTIONS = {**functions(pieces), **functions(transforms), **functions(wrappers), "chain": chain, "wrap": wrap}
CLASSES = {"Rule": Rule, "State": State, "Hyperparameter": Hyperparameter}


def arguments(docstring):
    """The names that the section Args describes."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring, re.MULTILINE)
    return re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_described(name):
    assert arguments(inspect.getdoc(FUNCTIONS[name])) == list(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_the_example_runs_and_shows_its_output(name):
    one = {**FUNCTIONS, **CLASSES}[name]
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(one), {"np": np}, name, None, 0)
    assert any(line.want for line in example.examples)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_no_piece_and_no_transform_is_missed():
    assert len([name for name in FUNCTIONS if name.startswith("pieces.")]) == 42
    assert len([name for name in FUNCTIONS if name.startswith("transforms.")]) == 11
    assert len([name for name in FUNCTIONS if name.startswith("wrappers.")]) == 8
    assert {f"pieces.{name}" for name in (*HOME["pieces"], "abs")} == {name for name in FUNCTIONS if name[0] == "p"}
