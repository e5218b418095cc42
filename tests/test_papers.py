"""Every rule against its paper's pseudo-code, written apart from it, over twenty steps with every option."""

from __future__ import annotations

import numpy as np
import papers
import pytest
import torch
from papers_words import PAPER_OF, in_papers_words
from settings import WORDS, sees_matrix

import steprule
from steprule import arrays
from steprule.engine.eager import oracle
from steprule.rule import DECAYS
from steprule.rules import OWN
from steprule.state import first_array
from steprule.trace.tracing import program_of

TELLING = {
    "betas": (0.8, 0.95, 0.97), "eps": 0.02, "weight_decay": 0.1, "momentum": 0.8, "dampening": 0.4, "alpha": 0.9,
    "rho": 0.8, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "momentum_decay": 0.02, "lambd": 0.05, "t0": 5.0,
    "etas": (0.4, 1.3), "step_sizes": (0.01, 0.2), "trust_coefficient": 0.1, "a": 1.1, "b": 0.8, "gamma": 0.5,
    "max_lr": 0.2, "d0": 0.01, "d_coef": 0.7, "growth_rate": 1.5, "reps_rel": 0.01, "warmup": 12.0, "warmup_steps": 7.0,
    "r": 0.5, "weight_lr_power": 1.5, "beta2": 0.7, "beta2_decay": -0.7, "d": 1.2, "clip_threshold": 0.8, "radius": 2.0,
    "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "passes": 2, "fraction": 0.4, "ef_decay": 0.6, "shampoo_beta": 0.75, "precondition_frequency": 3, "precond_lr": 0.3, "damping": 0.1,
}  # fmt: skip
"""Values at which a wrong sign, a misplaced eps, a missing bias correction, swapped betas or a decay that is ignored
show in the first digits."""

ONE_OR_OTHER = {"asgd": 0.75, "ademamix": 2.0}  # what alpha is there
OF_TWO = {"adafactor": (0.5, 0.9), "came": (0.1, 0.02)}  # what eps is where it is two numbers
SHAPES = ((3, 4), (5,), ())
MATRICES = ((3, 4), (4, 3), (5, 5), (1, 6), (6, 1))
SQUARES = ((5, 5), (3, 3), (4, 4))
SINGULAR = ("soap", "shampoo", "klshampoo", "klsoap", "splus")
"""Rules that choose a basis where there is no gradient, as is where a matrix is not square: `test_kronecker` has those."""
APART = {
    "mano": ((1, 6), (6, 1)),  # a slice of one element has no tangent: 0 here, and in the paper what rounding leaves
    "came": ((1, 6),),  # a row is as a vector here
    "adammini": ((5,),),  # as in the code, not a block for each element
}
STEPS = 20


def telling(name):
    """Hyperparameters for every combination of what is True or False, with decay and without."""
    rule = OWN[name]
    base, flags = {}, []
    for key, default in rule.hyperparameters.items():
        if isinstance(default, bool):
            flags.append(key)
        elif isinstance(default, tuple):
            base[key] = OF_TWO[name] if key == "eps" else TELLING[key][: len(default)]
        elif default is None or isinstance(default, str):
            base[key] = default
        elif key == "eps" and name == "muon":
            base[key] = 5.0  # below it norms count as it
        elif key == "beta2" and name == "adamuon":
            base[key] = TELLING["momentum"]
        elif key == "lr":
            base[key] = 0.05 if default < 0.5 else default
        else:
            base[key] = ONE_OR_OTHER.get(name, TELLING[key]) if key == "alpha" else TELLING.get(key, default)
    found = [base, *({**base, flag: not rule.hyperparameters[flag]} for flag in flags)]
    texts = {
        key: rule.meanings[key].texts for key in base if key in WORDS or (key == "adjust_lr_fn" and name == "muon")
    }
    found += [{**base, key: text} for key in texts for text in texts[key] if text != base[key]]
    for key in ("weight_decay", "momentum"):
        if rule.hyperparameters.get(key) == 0.0 or (key == "weight_decay" and key in base):
            found.append({**base, key: 0.0})
    if {"nesterov", "dampening"} <= set(rule.hyperparameters):
        found = [{**one, "dampening": 0.0} if one.get("nesterov") else one for one in found]
    return [one for one in found if not (one.get("nesterov") and one.get("momentum") == 0.0)]


def problem(name, hyper, seed=0):
    """Parameters, and gradients over several orders of magnitude."""
    random = np.random.default_rng(seed)
    rule = OWN[name]
    shapes = SHAPES[: 2 if name == "sparseadam" else 3]
    if sees_matrix(rule, hyper):
        shapes = [*MATRICES, *(SHAPES[1:] if program_of(rule, {**rule.hyperparameters, **hyper}).takes_vectors else ())]
        shapes = [shape for shape in shapes if shape not in APART.get(name, ())]
    if name in SINGULAR:
        shapes = SQUARES
    if name == "scion":  # the pseudo-code has a norm for vectors, and others for matrices
        shapes = SHAPES[1:2] if hyper.get("norm") == "bias_rms" else MATRICES
    params = [random.normal(size=shape) for shape in shapes]
    grads = [[random.normal(size=shape) * 10 ** random.uniform(-2, 1, shape) for shape in shapes] for _ in range(STEPS)]
    return params, grads


def train(name, hyper, params, grads, dtype=torch.float64, **options):
    """The parameters after each step."""
    mine = [torch.tensor(param, dtype=dtype) for param in params]
    if sees_matrix(OWN[name], hyper):
        mine = [torch.stack([param, param], -1)[..., 0] for param in mine]  # two elements apart, for the same reason
    elif name != "sparseadam":
        options = {**options, "differentiable": True}  # the eager fallback, which has nothing to compile
    optimizer = getattr(steprule, OWN[name].__name__)(mine, **hyper, **options)
    history = []
    for own in grads:
        for param, grad in zip(mine, own, strict=True):
            param.grad = torch.tensor(grad, dtype=dtype)
            param.grad = param.grad.to_sparse() if name == "sparseadam" and param.dim() else param.grad
        optimizer.step()
        history.append([param.detach().numpy().copy() for param in mine])
    return history


def assert_close(history, expected, rtol=1e-9):
    for step, (ours, its) in enumerate(zip(history, expected, strict=True), 1):
        for number, (x, y) in enumerate(zip(ours, its, strict=True)):
            np.testing.assert_allclose(x, y, rtol, rtol, err_msg=f"tensor {number} after step {step}")


CASES = [(name, hyper) for name in OWN for hyper in telling(name)]
TOLERANCE = {"nadam": 1e-6, "asgd": 1e-6}  # torch.optim keeps numbers of theirs in float32, and so do we


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_every_rule_is_its_papers(name, hyper):
    params, grads = problem(name, hyper)
    expected = papers.PAPERS[PAPER_OF.get(name, name)](params, grads, **in_papers_words(name, hyper))
    assert all(np.isfinite(one).all() for one in expected[-1])
    assert_close(train(name, hyper, params, grads), expected, TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", OWN)
def test_a_changing_learning_rate_counts_at_once(name):
    """A stale lr shows: every step has another."""
    params, grads = problem(name, {}, 1)
    rule = OWN[name]
    hyper = {**rule.hyperparameters, **telling(name)[0]}
    mine = [np.array(params[0])]
    optimizer = getattr(arrays, rule.__name__)(mine, **hyper)
    param, states = params[0], {}
    for step, own in enumerate(grads, 1):
        lr = optimizer.settings["lr"] = hyper["lr"] * (0.3 + step % 4)
        states = states or {
            one: first_array(rule, one, param, {**hyper, "lr": lr}) for one in rule.states_for(hyper) if one
        }
        param, states = oracle(rule, param, own[0], states, step, {**hyper, "lr": lr})
        optimizer.step([np.array(own[0])])
        assert_close([mine], [[param]])


AROUND = [
    *({"decay": decay} for decay in DECAYS),
    {"cautious": True},
    {"cautious_decay": True},
    {"decay": "initial", "cautious_decay": True},
    {"lookahead": 3, "lookahead_alpha": 0.3},
    {"decay": "corrected", "cautious": True, "cautious_decay": True, "lookahead": 4},
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            name, options, id=f"{name}-{options}", marks=[] if (number + place) % 3 == 0 else [pytest.mark.long]
        )
        for number, name in enumerate(OWN)
        for place, options in enumerate(AROUND)
    ],
)
def test_options_go_around_every_rule_that_they_fit(name, options):
    hyper = telling(name)[0]
    params, grads = problem(name, hyper, 2)
    try:
        getattr(steprule, OWN[name].__name__)([torch.zeros(1, 1)], **hyper, **options)
    except ValueError as error:
        assert any(word in str(error) for word in ("does not go with", "no weight_decay", "apart from the step"))
        return
    around = dict(options)
    if options.get("cautious") and "decay" not in options and OWN[name].decay in ("decoupled", "corrected"):
        around["decay"] = OWN[name].decay
    if around.get("decay", "") == OWN[name].decay and not (options.get("cautious") or options.get("cautious_decay")):
        del around["decay"]
    expected = papers.around(PAPER_OF.get(name, name), params, grads, **{**in_papers_words(name, hyper), **around})
    assert_close(train(name, hyper, params, grads, **options), expected, TOLERANCE.get(name, 1e-9))
