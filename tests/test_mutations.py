"""What must not go unnoticed in a formula: each rule, with one such mistake made, is no longer its paper's.

The mistakes are made in the source, in the rule's own file and in what it takes from others; `test_papers` compares
the same numbers with the paper's, and so would be red.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types

import numpy as np
import papers
import pytest
from papers_words import PAPER_OF, in_papers_words
from test_papers import TOLERANCE, problem, telling

from steprule.engine.eager import oracle
from steprule.rules import OWN
from steprule.state import first_array


class MisplacedEps(ast.NodeTransformer):
    """sqrt(x) + eps becomes sqrt(x + eps)."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        is_root = isinstance(node.left, ast.Call) and getattr(node.left.func, "id", "") in ("sqrt", "cbrt")
        if isinstance(node.op, ast.Add) and is_root and "eps" in ast.unparse(node.right):
            node.left.args[0] = ast.BinOp(node.left.args[0], ast.Add(), node.right)
            return node.left
        return node


class MissingBiasCorrection(ast.NodeTransformer):
    """debias(x, beta, step) becomes x, debiased_beta(beta, step) becomes beta."""

    def visit_Call(self, node):
        self.generic_visit(node)
        return node.args[0] if getattr(node.func, "id", "") in ("debias", "debiased_beta") else node


class OtherSign(ast.NodeTransformer):
    """param - x becomes param + x in what update returns."""

    def visit_Return(self, node):
        for part in ast.walk(node):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and getattr(part.left, "id", "") == "param":
                part.op = ast.Add()
        return node


def mutant(rule, mistake):
    """The rule from sources in which the mistake is made."""
    shared = "steprule.rules.adam"
    names = [name for name in (shared, "steprule.rules.layerwise") if name != rule.__module__] + [rule.__module__]
    made = {}
    for name in names:
        tree = ast.fix_missing_locations(mistake.visit(ast.parse(inspect.getsource(sys.modules[name]))))
        module = types.ModuleType(name)
        exec(compile(tree, f"<{name} with a mistake>", "exec"), module.__dict__)
        for helper, value in list(module.__dict__.items()):
            if getattr(value, "__module__", None) == name:
                made[helper] = value
            elif helper in made:  # taken from a file in which the mistake has been made
                module.__dict__[helper] = made[helper]
        found = module.__dict__
    return found[rule.__name__]


def trajectory(rule, hyper, params, grads):
    """The parameter after each step, by the rule in float64."""
    hyper = {**rule.hyperparameters, **hyper}
    param = params[0]
    states = {name: first_array(rule, name, param, hyper) for name in rule.states_for(hyper) if name}
    history = []
    for step, own in enumerate(grads, 1):
        param, states = oracle(rule, param, own[0], states, step, hyper)
        history.append(param)
    return np.array(history)


def is_the_papers(name, rule, hyper, told=None):
    """Whether the rule, given told instead of hyper, is what the paper does with hyper."""
    params, grads = problem(name, hyper)
    params, grads = params[:1], [own[:1] for own in grads]
    expected = np.array(
        [one[0] for one in papers.PAPERS[PAPER_OF.get(name, name)](params, grads, **in_papers_words(name, hyper))]
    )
    rtol = TOLERANCE.get(name, 1e-9)
    return np.allclose(trajectory(rule, told or hyper, params, grads), expected, rtol, rtol)


def source(rule):
    text = inspect.getsource(rule)
    if "adam_direction(" in text:
        text += inspect.getsource(sys.modules["steprule.rules.adam"].adam_direction)
    return text


def can_make(mistake):
    """The rules whose source the mistake changes."""
    return [
        name
        for name, rule in OWN.items()
        if ast.unparse(mistake.visit(ast.parse(source(rule)))) != ast.unparse(ast.parse(source(rule)))
    ]


@pytest.mark.parametrize("name", OWN)
def test_nothing_is_wrong_without_a_mistake(name):
    assert is_the_papers(name, OWN[name], telling(name)[0])


@pytest.mark.parametrize("name", can_make(MisplacedEps()))
def test_a_misplaced_eps(name):
    plain, wrong = OWN[name], mutant(OWN[name], MisplacedEps())
    assert is_the_papers(name, plain, telling(name)[0]) and not is_the_papers(name, wrong, telling(name)[0])


@pytest.mark.parametrize("name", can_make(MissingBiasCorrection()))
def test_a_missing_bias_correction(name):
    assert not is_the_papers(name, mutant(OWN[name], MissingBiasCorrection()), telling(name)[0])


@pytest.mark.parametrize("name", OWN)
def test_a_wrong_sign(name):
    hyper = telling(name)[0]
    params, grads = problem(name, hyper)
    right = trajectory(OWN[name], hyper, params, grads)
    turned = trajectory(OWN[name], hyper, params, [[-grad for grad in own] for own in grads])
    assert not np.allclose(right, turned, 1e-6)
    if any("param -" in line for line in source(OWN[name]).splitlines() if line.strip().startswith("return")):
        assert not is_the_papers(name, mutant(OWN[name], OtherSign()), hyper)


@pytest.mark.parametrize("name", [name for name, rule in OWN.items() if "betas" in rule.hyperparameters])
def test_swapped_betas(name):
    hyper = telling(name)[0]
    swapped = (hyper["betas"][1], hyper["betas"][0], *hyper["betas"][2:])
    assert not is_the_papers(name, OWN[name], hyper, {**hyper, "betas": swapped})


@pytest.mark.parametrize("name", [name for name, rule in OWN.items() if "weight_decay" in rule.hyperparameters])
def test_an_ignored_decay(name):
    hyper = telling(name)[0]
    assert hyper["weight_decay"] > 0
    assert not is_the_papers(name, OWN[name], hyper, {**hyper, "weight_decay": 0.0})


INERT = {
    ("asgd", "t0"): "it is the average in ax that t0 is for",
    ("mano", "eps"): "it is for weights of 0",
    **{
        (name, "max_precond_dim"): "no side here is that long"
        for name, rule in OWN.items()
        if "max_precond_dim" in rule.hyperparameters
    },
}


@pytest.mark.parametrize(("name", "hyper"), [(name, key) for name in OWN for key in telling(name)[0]], ids=lambda x: x)
def test_no_hyperparameter_is_inert(name, hyper):
    """Each changes the numbers, in some combination of the others."""
    for settings in telling(name):
        value = settings[hyper]
        if isinstance(value, bool):
            continue
        if (name, hyper) in INERT:
            pytest.skip(INERT[name, hyper])
        if isinstance(value, (str, type(None))):
            other = next(text for text in OWN[name].meanings[hyper].texts if text != value)
        elif isinstance(value, int) and value > 1:
            other = value - 1
        else:
            other = tuple(x * 0.7 for x in value) if isinstance(value, tuple) else value * 0.7 or 0.1
        if not is_the_papers(name, OWN[name], settings, {**settings, hyper: other}):
            return
    raise AssertionError(f"{name}: {hyper} changes nothing")
