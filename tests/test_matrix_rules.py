"""Rules that see matrices: steps worked by hand, how they turn with their matrices, several at once, and degenerate input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from dropin import random
from hand_matrix import HAND
from papers_words import PAPER_OF
from settings import WORDS, sees_matrix
from test_papers import telling

import steprule
from steprule.engine.eager import oracle
from steprule.hyper import filled
from steprule.rules import OWN
from steprule.rules.scales import SCALES, convert_lr
from steprule.state import first_array
from steprule.step.kind import Kind

RULES = [name for name, rule in OWN.items() if sees_matrix(rule)]
EXACT = {"ns_coefficients": "polar_express", "ns_steps": 16}
"""So many steps that singular values end at 1."""


def in_ours(rule: str, words: dict[str, Any]) -> dict[str, Any] | None:
    """Hyperparameters of ours for those of the pseudo-code, None if the rule does not have them."""
    ours = {"coefficients": None, **words} if rule == "polargrad" else dict(words)
    ours = {name: x for name, x in ours.items() if (rule, name) not in (("mud", "eps"), ("asgo", "eps"))}
    if "coefficients" in ours:
        triples = ours.pop("coefficients")
        ours |= EXACT if triples is None else {"ns_coefficients": tuple(triples), "ns_steps": len(triples)}
    elif "ns_steps" in OWN[rule].hyperparameters and not (
        rule == "scion" and ours.get("kind", "spectral") != "spectral"
    ):
        return None  # with Keller Jordan's, which no hand works out
    renamed = {"scale": "adjust_lr_fn", "kind": "norm", "normalize": "equilibrate", "blocks": "block"}
    renamed |= {"d": "clip_threshold"} if rule == "came" else {}
    ours = {renamed.get(name, name): x for name, x in ours.items()}
    meant = {
        "rows": "row",
        "whole": "tensor",
        "r": "row",
        "c": "col",
        "rc": "rowcol",
        "bias": "bias_rms",
        "rms": "match_rms_adamw",
    }
    ours = {name: meant.get(x, x) if isinstance(x, str) else x for name, x in ours.items()}
    if rule == "normuon" and "betas" in ours:
        ours["momentum"], ours["beta2"] = ours.pop("betas")
    if rule == "adamuon" and "momentum" in ours:
        ours["beta2"] = ours["momentum"]
    if rule == "scion":
        ours["momentum"] = 1 - ours.get("momentum", 0.1)
        ours["constrained"] = not ours.pop("unconstrained", False)
        ours.setdefault("radius", 1.0)
    ours = {"weight_decay": 0.0, **ours} if "weight_decay" in OWN[rule].hyperparameters else ours
    if not ours.pop("carried", rule != "soap") or not ours.pop("in_turn", rule != "splus"):
        return None  # the paper's first step is another
    if rule == "klshampoo" and ours.pop("init_factor") is not None:
        return None
    ours |= {"betas": (ours.pop("b1"), 0.999)} if rule == "splus" else {}
    ours |= {"shampoo_beta": ours["betas"][1]} if rule == "soap" else {}
    ours = {name: x for name, x in ours.items() if name not in ("start", "ns_eps")}
    return ours if set(ours) <= set(OWN[rule].hyperparameters) else None


def trajectory(rule, hyper, start, grads):
    """The parameter after each step, in float64."""
    hyper = filled({**rule.hyperparameters, **hyper}, np.finfo(float).eps)
    param = np.array(start, np.float64)
    states = {name: first_array(rule, name, param, hyper) for name in filter(None, rule.states_for(hyper))}
    history = []
    for step, grad in enumerate(grads, 1):
        param, states = oracle(rule, param, np.array(grad, np.float64), states, step, hyper)
        history.append(param)
    return history


BY_HAND = [
    pytest.param(name, number, hyper, id=f"{name}-{number}")
    for name in RULES
    for number, one in enumerate(HAND.get(PAPER_OF.get(name, name), []))
    if (hyper := in_ours(name, one.settings)) is not None
]


def test_every_rule_has_been_worked_by_hand():
    assert {one.values[0] for one in BY_HAND} == set(RULES)


@pytest.mark.parametrize(("name", "number", "hyper"), BY_HAND)
def test_a_step_worked_by_hand(name, number, hyper):
    _, start, grads, expected = HAND[PAPER_OF.get(name, name)][number]
    found = trajectory(OWN[name], hyper, start, grads)
    np.testing.assert_allclose(np.array(found), np.array(expected, np.float64), rtol=1e-9, atol=1e-9)


# How they turn


def problem(shape=(4, 6), steps=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=shape), generator.normal(size=(steps, *shape))


def told(name):
    """Telling hyperparameters, with every form of the formula that has a name."""
    rule = OWN[name]
    base = {**telling(name)[0], **({"eps": 1e-12} if isinstance(rule.hyperparameters.get("eps"), float) else {})}
    words = [word for word in WORDS if word in base]
    return [{**base, word: text} for word in words for text in rule.meanings[word].texts] or [base]


CASES = [pytest.param(name, hyper, id=f"{name}-{number}") for name in RULES for number, hyper in enumerate(told(name))]


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_rows_and_columns_may_be_exchanged(name, hyper):
    """What is done to permuted matrices is what is done to the others, permuted. MUD goes through the shorter side in order."""
    start, grads = problem()
    rows = np.arange(4) if name == "mud" else np.array([2, 0, 3, 1])
    cols = np.array([5, 1, 0, 4, 2, 3])
    plain = trajectory(OWN[name], hyper, start, grads)
    turned = trajectory(OWN[name], hyper, start[rows][:, cols], [grad[rows][:, cols] for grad in grads])
    np.testing.assert_allclose(turned[-1], plain[-1][rows][:, cols], rtol=1e-10, atol=1e-12)


SYMMETRIC = ["muon", "adamuon", "mud", "dion2", "polargrad", "adafactor", "came", "sm3"]


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 7)], ids=str)
def test_rules_without_a_side_do_to_the_transpose_the_transpose(name, shape):
    start, grads = problem(shape)
    hyper = {**told(name)[0], **({"adjust_lr_fn": "match_rms_adamw"} if name in ("muon", "dion2") else {})}
    plain = trajectory(OWN[name], hyper, start, grads)
    turned = trajectory(OWN[name], hyper, start.T, [grad.T for grad in grads])
    np.testing.assert_allclose(turned[-1], plain[-1].T, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("norm", "of_the_transpose"), [("col", "embedding"), ("embedding", "col"), ("bias_rms", "bias_rms")]
)
def test_scions_norms_of_rows_are_those_of_columns_of_the_transpose(norm, of_the_transpose):
    start, grads = problem()
    plain = trajectory(OWN["scion"], {"norm": norm}, start, grads)
    turned = trajectory(OWN["scion"], {"norm": of_the_transpose}, start.T, [grad.T for grad in grads])
    np.testing.assert_allclose(turned[-1], plain[-1].T, rtol=1e-12)


@pytest.mark.parametrize("name", ["normuon", "muoneq", "adammini"])
def test_rules_of_rows_do_not_do_to_the_transpose_the_transpose(name):
    start, grads = problem((5, 5))
    plain = trajectory(OWN[name], told(name)[0], start, grads)
    turned = trajectory(OWN[name], told(name)[0], start.T, [grad.T for grad in grads])
    assert np.abs(turned[-1] - plain[-1].T).max() > 1e-3


@pytest.mark.parametrize("name", ["muon", "polargrad", "scion"])
def test_spectral_rules_turn_with_any_rotation(name):
    start, grads = problem()
    left, right = (np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0] for n in (4, 6))
    hyper = {**told(name)[0], "weight_decay": 0.1} if name != "scion" else {"lr": 0.1}
    plain = trajectory(OWN[name], hyper, start, grads)
    turned = trajectory(OWN[name], hyper, left @ start @ right, [left @ grad @ right for grad in grads])
    np.testing.assert_allclose(turned[-1], left @ plain[-1] @ right, rtol=1e-9, atol=1e-11)


# Several at once


@pytest.mark.parametrize(("name", "hyper"), CASES)
@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 5)], ids=str)
def test_several_of_a_shape_are_stepped_as_each_by_itself(name, hyper, shape):
    hyper = (
        {**hyper, "precondition_frequency": 1} if "precondition_frequency" in hyper else hyper
    )  # or each has its own steps

    def make(count):
        params = [random(shape, i).requires_grad_() for i in range(count)]
        return params, getattr(steprule, OWN[name].__name__)(params, **hyper)

    def train(params, optimizer, numbers, step):
        for number, param in zip(numbers, params, strict=True):
            param.grad = random(shape, 10 * step + number)
        optimizer.step()

    together, optimizer = make(3)
    first = random(shape, 2).requires_grad_()
    alone = getattr(steprule, OWN[name].__name__)([first], **hyper)
    for step in range(1, 4):
        train(together, optimizer, range(3), step)
        train([first], alone, [2], step)
    torch.testing.assert_close(together[2], first, rtol=1e-11, atol=1e-12)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", ["adafactor", "came"])
def test_a_stack_is_stepped_as_matrices_but_for_what_is_of_the_whole_tensor(name):
    """Rows and columns are those of each matrix; the RMS of the update is the tensor's."""
    param, grad = random((3, 4, 5), 0), random((3, 4, 5), 1)
    hyper = {"d": 1e9} if name == "adafactor" else {"clip_threshold": 1e9}
    stack = [param.clone().requires_grad_()]
    apart = [one.clone().requires_grad_() for one in param]
    optimizers = [getattr(steprule, OWN[name].__name__)(params, lr=1e-4, **hyper) for params in (stack, apart)]
    for params, grads in ((stack, [grad]), (apart, list(grad))):
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
    for optimizer in optimizers:
        optimizer.step()
    moved = (stack[0] - param).detach()
    for number, one in enumerate(apart):
        its = (one - param[number]).detach()
        torch.testing.assert_close(moved[number] / moved[number].norm(), its / its.norm(), rtol=1e-9, atol=1e-12)


# Degenerate input


def degenerate(kind, shape):
    m, n = shape
    if kind == "zero":
        return torch.zeros(m, n)
    if kind == "rank 1":
        return random((m, 1), 1, torch.float32) @ random((1, n), 2, torch.float32)
    grad = random((m, n), 3, torch.float32)
    if kind == "a row of 0":
        grad[0] = 0
    if kind == "equal rows":
        grad[:] = grad[0].clone()
    if kind == "tiny":
        grad *= 1e-20
    return grad * 1e15 if kind == "huge" else grad


KINDS = ["zero", "rank 1", "a row of 0", "equal rows", "tiny", "huge", "any"]


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_degenerate_gradients_give_finite_steps(name, hyper, engine):
    """In whichever engine, of any shape, and no further than other gradients move weights: every step is of about one length."""
    rule = OWN[name]
    hyper = {**rule.hyperparameters, **{word: hyper[word] for word in WORDS if word in hyper}, "lr": 1e-3}
    shapes = [(4, 6), (6, 4), (1, 5), (5, 1), (1, 1)]
    params = [random(shape, number, torch.float32) for number, shape in enumerate(shapes * len(KINDS))]
    before = [param.clone() for param in params]
    if engine == "eager":
        params = [torch.stack([param, param], -1)[..., 0] for param in params]
    kinds = [kind for kind in KINDS for _ in shapes]
    optimizer = getattr(steprule, rule.__name__)(
        params, **{**hyper, **({"weight_decay": 0.0} if "weight_decay" in hyper else {})}
    )
    for _ in range(2):
        for kind, param in zip(kinds, params, strict=True):
            param.grad = degenerate(kind, tuple(param.shape))
        optimizer.step()
    pull = 2 * hyper["lr"] if hyper.get("constrained") else 0.0
    for kind, param, start in zip(kinds, params, before, strict=True):
        moved = float((param - start * (1 - pull)).norm())
        assert bool(param.isfinite().all()), (kind, param.shape)
        if kind == "zero":
            assert moved <= 1e-5 * float(start.norm()), param.shape
        elif name not in (
            "polargrad",
            "adafactor",
            "came",
        ):  # which go as far as the gradient, the weights or first steps say
            radius = hyper.get("radius", 1.0)
            assert moved <= 3 * hyper["lr"] * radius * param.numel() ** 0.5, (kind, param.shape, moved)


@pytest.mark.parametrize("name", RULES)
def test_gradients_whose_squares_overflow(monkeypatch, name):
    """They are no other than smaller ones if they are clipped, and to rules that take no squares of elements.

    Powers of 2 change no rounding. Without clipping, Adafactor is as torch.optim's, which gives NaN.
    """
    monkeypatch.setattr(Kind, "_fits_an_engine", lambda *_: False)
    for clip in (1.0, None) if name in ("muon", "normuon", "adamuon", "mud", "dion2", "scion") else (1.0,):
        runs = []
        for scale in (2.0**40, 2.0**83):
            param = random((5, 5), 0, torch.float32).requires_grad_()
            optimizer = getattr(steprule, OWN[name].__name__)([param], lr=0.01, clip=clip)
            for step in range(2):
                param.grad = scale * random((5, 5), 1 + step, torch.float32)
                optimizer.step()
            runs.append(param.detach())
        assert bool(runs[0].isfinite().all()) and torch.equal(*runs)


def test_a_gradient_of_rank_1_moves_muon_along_itself():
    """Newton-Schulz in float32 makes no second singular value of rounding."""
    grad = degenerate("rank 1", (6, 9))
    param = torch.zeros(6, 9, requires_grad=True)
    param.grad = grad
    steprule.Muon([param], lr=1.0, weight_decay=0.0).step()
    values = torch.linalg.svdvals(param.detach().double())
    assert float(values[1]) < 1e-3 * float(values[0])


def test_a_converted_learning_rate_makes_the_same_step():
    """And the same decay, if weight_decay is divided by as much; lr of AdamW is that of its RMS."""
    for shape in ((8, 2), (2, 8), (3, 3)):
        start, grad = random(shape, 0).numpy(), random(shape, 1).numpy()
        for have, want in itertools.product(SCALES, SCALES):
            new = convert_lr(0.01, shape, have, want)
            one = trajectory(OWN["muon"], {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": have}, start, [grad])
            hyper = {"lr": new, "weight_decay": 0.1 * 0.01 / new, "adjust_lr_fn": want}
            np.testing.assert_allclose(trajectory(OWN["muon"], hyper, start, [grad]), one, rtol=1e-12)
    with pytest.raises(ValueError, match="there is no scale 'rms'; there are original"):
        convert_lr(0.01, (2, 2), "rms", "original")


def test_mano_leaves_slices_of_one_element_alone():
    """They have no direction but along the weight."""
    param = torch.ones(1, 4, requires_grad=True)
    optimizer = steprule.Mano([param], lr=0.1, weight_decay=0.0)
    param.grad = torch.tensor([[1.0, -1.0, 2.0, 3.0]])
    optimizer.step()  # columns
    assert bool((param == 1).all())
    optimizer.step()  # the row
    assert not bool((param == 1).any())
