"""Every rule in every format and with every service: that it trains as it does in float64, and goes on from a checkpoint.

Formats know nothing of formulas and services little, and what kernels make of them is tested bit for bit with a few. So
each rule is compiled once, in formats that compile fast, and the eager fallback takes it through the others.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from dropin import random
from settings import IDS, STRUCTURES, VARIANTS, sees_matrix, shapes_for, telling

import steprule
from steprule.rules import OWN
from steprule.services import ClipAdaptive, ClipValue
from steprule.tensors.state import kept

SHAPES = ((6, 160), (40,))
MOVING = {
    "Adadelta": {"eps": 0.01}, "DAdaptAdam": {"d0": 0.5}, "DoG": {"reps_rel": 0.02}, "LARS": {"lr": 0.5},
    "Prodigy": {"d0": 0.5}, "RAdam": {"betas": (0.9, 0.9)}, "SGD": {"lr": 0.2}, "ScheduleFreeSGD": {"lr": 0.5},
    "ScheduleFreeRAdam": {"betas": (0.9, 0.9), "lr": 0.5, "r": 0.0},
    "SPlus": {"lr": 0.5}, "Scion": {"radius": 1.0}, "Adafactor": {"lr": 0.5, "eps": (1e-9, 1e-3)}, "SM3": {"lr": 0.5}, "PolarGrad": {"lr": 0.2}, "Dion2": {"lr": 0.5},
}  # fmt: skip
"""Hyperparameters at which weights move by some part of themselves."""
ALL = {"clip": 2.0, "nonfinite": "skip", "average": 0.9, "telemetry": 1}
STEPS, WRONG = 9, 4


def settings_of(rule):
    hyper = telling(rule, dict(rule.hyperparameters))
    hyper = {name: value for name, value in hyper.items() if value != rule.hyperparameters[name]}
    hyper["lr"] = 0.05 if rule.hyperparameters["lr"] < 0.5 else 1.0
    momentum = {"momentum": 0.9} if rule.hyperparameters.get("momentum") == 0 else {}
    return {**hyper, **momentum, **MOVING.get(rule.__name__, {})}


def strided(x):
    """The same numbers, two elements apart, which the eager fallback steps."""
    wide = torch.zeros(*x.shape, 2, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def start(rule, dtype, engine):
    shapes = shapes_for(rule, SHAPES)
    params = [random(shape, i).mul(0.5).to(torch.bfloat16).to(dtype) for i, shape in enumerate(shapes)]
    return [(strided(p) if engine == "eager" else p).requires_grad_() for p in params]


def train(rule, optimizer, steps, nonfinite=None):
    """With gradients whose mean is not 0, in bfloat16's numbers, and something wrong in one of the steps."""
    for step in steps:
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            grad = (random(p.shape, 50 + i) + random(p.shape, 1000 + 10 * step + i)).to(torch.bfloat16)
            if step == WRONG and i == 0 and nonfinite:
                grad[1, 3] = float("nan")
            grad = grad.to_sparse(1) if rule.sparse_grads and rule is OWN["sparseadam"] else grad
            p.grad = None
            p.grad = grad.to(p.dtype) if grad.is_sparse else torch.empty_like(p).copy_(grad)
        optimizer.step()


def make(rule, dtype, engine, **options):
    return getattr(steprule, rule.__name__)(start(rule, dtype, engine), **{**settings_of(rule), **options})


HIDES_NAN = {"Rprop", "SparseAdam"}
"""torch.optim's, too: the sign of NaN is 0 there; and gradients without the rows that are NaN."""
BOUNDED = {*HIDES_NAN, "ADOPT", "AdamAtan2", "AdaMuon", "Signum", "Lion", "SPlus"}
"""Whose steps are signs, angles or clipped, so that inf is only large."""


COMPILED = [rule for rule in OWN.values() if sees_matrix(rule)]
"""Whose comparisons `test_engines` does not hold in every engine."""


@pytest.mark.parametrize(
    ("rule", "engine"), [*((rule, "eager") for rule in OWN.values()), *((rule, "compiled") for rule in COMPILED)]
)
def test_a_gradient_that_is_not_finite_shows_in_the_step_that_took_it(rule, engine):
    for wrong, hides in ((torch.nan, HIDES_NAN), (torch.inf, BOUNDED)):
        if rule.__name__ in hides:
            continue
        param = random((6, 6), 0)
        param = strided(param) if engine == "eager" else param
        optimizer = getattr(steprule, rule.__name__)([param.requires_grad_()])
        for step in range(4):
            param.grad = random((6, 6), step)
            param.grad[1, 2] = wrong if step == 3 else param.grad[1, 2]
            assert bool(param.isfinite().all())
            optimizer.step()
        assert not bool(param[1, 2].isfinite())


# What is kept how, which services, the engine, and how far from float64 a run may be, relative to how far it has come.
WAYS = {
    "compiled": ({"states": "bfloat16", "weights": "24bit", **ALL}, torch.bfloat16, "compiled", 0.05),
    "8bit": ({"states": "8bit", "weights": "24bit", **ALL}, torch.bfloat16, "eager", 0.15),
    "stochastic": (
        {"states": "bfloat16", "weights": "stochastic", "clip": ClipAdaptive(0.5), "nonfinite": "zero", "average": 0.9},
        torch.float16, "eager", 0.05,
    ),
    "32bit": (
        {"states": "float32", "weights": "32bit", "clip": ClipValue(0.7), "nonfinite": "zero", "telemetry": 2},
        torch.bfloat16, "eager", 0.002,
    ),
    "8bit states alone": ({"states": "8bit", "clip": 2.0, "average": 0.9}, torch.float32, "eager", 0.15),
}  # fmt: skip
CHOPPY = {"Lion", "Signum", "Rprop", "Grams", "SPlus"}
"""Whose steps are signs: where a mean is near 0, one that is rounded goes the other way."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", OWN.values(), ids=OWN)
def test_it_trains_as_in_float64(rule, way):
    options, dtype, engine, bound = WAYS[way]
    if way == "compiled" and rule not in [one for one, _ in STRUCTURES]:
        options = {**options, "telemetry": None}  # a kernel more
    nonfinite = options.get("nonfinite")
    exact = make(rule, torch.float64, "eager", **{k: v for k, v in options.items() if k not in ("states", "weights")})
    optimizer = make(rule, dtype, engine, **options)
    for one in (exact, optimizer):
        train(rule, one, range(STEPS), nonfinite)
    if rule is not OWN["sparseadam"]:
        assert (optimizer._core.plans.current is not None) == (engine == "compiled")
    bound *= 4 if rule.__name__ in CHOPPY else 1
    names = ["param", *(["param_average"] if options.get("average") else [])]
    for p, q, first in zip(
        optimizer.param_groups[0]["params"],
        exact.param_groups[0]["params"],
        start(rule, torch.float64, "eager"),
        strict=True,
    ):
        for name in names:
            truth = exact.read(q, name)
            gone = float((truth - first).detach().norm())
            assert gone > 0.02 * float(first.detach().norm()), "it has hardly moved, which tests nothing"
            assert float((optimizer.read(p, name) - truth).norm()) < bound * gone, name
        for name in filter(None, rule.states_for(optimizer.param_groups[0])):
            own, truth = kept(optimizer.state[p], name), exact.state[q][name]
            if name in rule.scalar_states:
                assert own.dtype == (torch.float32 if rule.states[name].dtype == "step" else torch.float64)
                torch.testing.assert_close(own.double(), truth.double(), rtol=bound, atol=0)
            elif rule.is_exact(name, optimizer.param_groups[0]):
                assert own.dtype == torch.float32
    if nonfinite == "skip":
        assert optimizer.skipped_steps == exact.skipped_steps == 1
        torch.testing.assert_close(optimizer.grad_norm, exact.grad_norm, rtol=1e-3, atol=0)
    elif nonfinite == "zero":
        assert optimizer.zeroed_elements == 1
    if options.get("clip") == 2.0:
        assert optimizer.clipped_steps == exact.clipped_steps > 2
    if options.get("telemetry"):
        ours, its = (one.telemetry.latest["total"] for one in (optimizer, exact))
        assert ours["update_norm"] == pytest.approx(its["update_norm"], rel=max(bound, 0.05))
        assert ours["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-3)


def same_bits(one, other):
    for p, q in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
        assert [*one.state[p]] == [*other.state[q]]
        for name, x in one.state[p].items():
            y = other.state[q][name]
            assert x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y), name


FORMATS = {"float32": (torch.float32, {}), "8bit": (torch.bfloat16, {"states": "8bit", "weights": "24bit", "seed": 3})}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_a_checkpoint_goes_on_with_the_same_bits(rule, hyper, form):
    """Through a file that is loaded with weights_only; by the compiled engine in float32, by the eager one in 8 bits."""
    dtype, options = FORMATS[form]
    engine = "compiled" if form == "float32" else "eager"
    optimizer = getattr(steprule, rule.__name__)(start(rule, dtype, engine), **telling(rule, hyper), **options)
    train(rule, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    params = [(strided(p) if engine == "eager" else p).requires_grad_() for p in params]
    resumed = getattr(steprule, rule.__name__)(params, **{**options, "seed": 9} if options else {})
    resumed.load_state_dict(torch.load(file, weights_only=True))
    same_bits(optimizer, resumed)
    copied = copy.deepcopy(optimizer)
    for one in (optimizer, resumed, copied):
        train(rule, one, range(3, 6))
    same_bits(optimizer, resumed)
    same_bits(optimizer, copied)
    if engine == "compiled" and rule is not OWN["sparseadam"]:
        assert all(one._core.plans.current is not None for one in (optimizer, resumed, copied))
