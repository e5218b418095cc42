"""What is said of hyperparameters: in words for every rule, and ranges that hold for the rule that asks for them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import steprule
from steprule import Hyperparameter, Rule, RuleError, arrays
from steprule.rules import OWN
from steprule.transforms import about, momentum


class Own(Rule):
    """What other rules call alpha, momentum and beta is something else here."""

    beta = Hyperparameter("share of the sign", "(0, 2]")

    def update(param, grad, *, lr=0.1, alpha=-1.0, momentum=-0.5, beta=1.5, gamma=-2.0, lookback=0.0):
        return param + lr * (alpha + momentum + beta + gamma + lookback) * grad


def fronts(rule):
    array_front = type(rule.__name__, (arrays.Optimizer,), {}, rule=rule)
    return {
        "torch": lambda **settings: steprule.Optimizer.of(rule)([torch.ones(2, requires_grad=True)], **settings),
        "numpy": lambda **settings: array_front([np.ones(2)], **settings),
    }


@pytest.mark.parametrize("name", OWN)
def test_every_hyperparameter_of_every_rule_is_described(name):
    rule = OWN[name]
    assert list(rule.meanings) == list(rule.hyperparameters)
    for hyper, default in rule.hyperparameters.items():
        said = rule.meanings[hyper]
        assert len(said.meaning) > 5 and not said.meaning.endswith(".") and "  " not in said.meaning
        for one in default if isinstance(default, tuple) else (default,):
            assert one is None or (one in said.texts if isinstance(one, str) else said.allows(one))


@pytest.mark.parametrize("name", OWN)
def test_averages_that_would_not_forget_are_refused_where_torch_does_not_take_them(name):
    """What forgets, by what it is called or by what is said of it: with 1 an average stays, and with more it runs away."""
    rule = OWN[name]
    taken = {
        ("SGD", "momentum"),
        ("RMSprop", "momentum"),
        ("RMSprop", "alpha"),
        ("Muon", "momentum"),
        ("Adadelta", "rho"),
    }
    for hyper, said in rule.meanings.items():
        if hyper in ("momentum", "betas", "beta2") or said.meaning.startswith("decay rate"):
            may = (rule.__name__, hyper) in taken
            assert [said.allows(x) for x in (-0.1, 0.9, 1.0)] == [False, True, may], hyper


@pytest.mark.parametrize("front", ["torch", "numpy"])
def test_a_rule_of_ones_own_is_held_to_the_ranges_that_it_asks_for(front):
    make = fronts(Own)[front]
    make(alpha=-3.0, momentum=7.0, gamma=-1.0)
    for wrong in ({"beta": 0.0}, {"beta": 2.5}, {"alpha": math.inf}, {"alpha": math.nan}, {"lr": -1.0}):
        with pytest.raises(ValueError, match="Invalid "):
            make(**wrong)
    make(beta=2.0)


MESSAGES = {
    "a range": ({"beta": 2.5}, "Invalid beta value: 2.5; beta of Own must be in (0, 2]"),
    "no range": ({"alpha": math.inf}, "Invalid alpha value: inf; alpha of Own must be finite"),
    "a common range": ({"lr": -1.0}, "Invalid learning rate: -1.0; lr of Own must be in [0, inf)"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_names_the_range(case):
    settings, message = MESSAGES[case]
    for make in fronts(Own).values():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make(**settings)


def test_the_messages_of_torchs_own_are_torchs():
    for options in ({}, {"cautious": True}):
        with pytest.raises(ValueError, match=r"^Invalid beta parameter at index 1: 2\.0$"):
            steprule.AdamW([torch.ones(1)], betas=(0.5, 2.0), **options)
    with pytest.raises(ValueError, match=r"^Invalid betas? .*at index 1: 2\.0; betas of Lion must be in \[0, 1\)$"):
        steprule.Lion([torch.ones(1)], betas=(0.5, 2.0))


def test_it_is_inherited_and_may_be_said_anew():
    class Child(Own):
        momentum = Hyperparameter("share of the buffer", "[0, 1)")

        def update(param, grad, *, lr=0.1, momentum=0.5, beta=1.5):
            return param - lr * momentum * beta * grad

    class Signed(Child):
        lr = beta = Hyperparameter("any number")

    assert Child.meanings["beta"] is Own.beta and "alpha" not in Child.meanings
    make = fronts(Child)["torch"]
    with pytest.raises(ValueError, match=r"Invalid momentum value: 1\.0"):
        make(momentum=1.0)
    fronts(Signed)["torch"](lr=-1.0, beta=-1.0)


def test_ranges_go_along_into_options_and_chains():
    class Decayed(Rule):
        decay = "decoupled"
        beta = Hyperparameter("share of the sign", "(0, 2]")

        def update(param, grad, *, lr=0.1, weight_decay=0.0, beta=1.5):
            return param - lr * (beta * grad + weight_decay * param)

    param = torch.ones(2, requires_grad=True)
    for options in ({"cautious": True}, {"lookahead": 5}, {"decay": "coupled"}):
        with pytest.raises(ValueError, match=r"Invalid beta value: 3\.0"):
            steprule.Optimizer.of(Decayed)([param], beta=3.0, **options)

    changed = steprule.Optimizer.of(Decayed)([param], decay="initial")._core.rule
    assert "decoupled" in Decayed.meanings["weight_decay"].meaning
    assert "first weights" in changed.meanings["weight_decay"].meaning

    @about(beta=Hyperparameter("half of it", "[0, 0.5]"))
    def halves(grad, *, beta=0.25):
        return beta * grad

    def doubles(grad, *, momentum=-2.0, eps=1e-8):
        return (momentum + eps) * grad

    Chained = steprule.Optimizer.of(steprule.chain(Decayed, halves, momentum, doubles))
    Chained([param], beta=2.0, beta_2=0.5, momentum=3.0, momentum_2=-1.0)
    for name, value in {"beta": 3.0, "beta_2": 0.6, "momentum": -1.0, "eps": -1.0}.items():
        with pytest.raises(ValueError, match=f"Invalid {name}.* value: {value}"):
            Chained([param], **{name: value})


RANGES = {
    "[0, 1)": "0 0.5",
    "(0, 1]": "0.5 1",
    "(0, inf)": "0.5 1 2",
    "[0.5, inf]": "0.5 1 2 inf",
    "": "-1 0 0.5 1 2 inf nan",
}


@pytest.mark.parametrize("text", RANGES)
def test_a_range_is_an_interval(text):
    said = Hyperparameter("x", text)
    allowed = " ".join(one for one in ["-1", "0", "0.5", "1", "2", "inf", "nan"] if said.allows(float(one)))
    assert allowed == RANGES[text] and said.allows(torch.tensor(0.5))


@pytest.mark.parametrize("text", ["[0, 1", "0, 1", "[1, 0]", "[0; 1]", "at least 0", "[0]", "[nan, 1]"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"write an interval such as .*test_hyper.py:\d+\)$"):
        Hyperparameter("x", text)


def test_what_does_not_fit_the_formula_is_refused():
    def define(**said):
        return type("Mine", (Rule,), {"update": lambda param, grad, *, alpha=0.1: param, **said})

    with pytest.raises(RuleError, match=r"Mine.alhpa is a Hyperparameter, .*; did you mean 'alpha'"):
        define(alhpa=Hyperparameter("x"))
    with pytest.raises(RuleError, match="a hyperparameter cannot be called 'needs'"):
        define(needs=Hyperparameter("x"))
    assert define(alpha=Hyperparameter("x")).meanings["alpha"].meaning == "x"


def test_a_range_is_said_in_words():
    words = {"[0, inf)": "x. At least 0.", "(0, inf]": "x. Above 0.", "[0, 1)": "x. In [0, 1).", "": "x."}
    assert {text: Hyperparameter("x", text).words() for text in words} == words
    assert (
        Hyperparameter("x", "[0, 1)").words(each=True) == "x. Each in [0, 1)." and Hyperparameter("x").words() == "x."
    )
