"""Wrappers around rules: each against a transcription of its paper or its first code, around every rule that it fits."""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import random_operands, run_cpu, run_eager
from settings import shape_for
from test_engines import assert_within_bound
from test_every_rule import strided

import steprule
from steprule import Optimizer, RuleError, State, arrays, chain, transforms, wrap, wrappers
from steprule.engine.eager import oracle
from steprule.hyper import filled
from steprule.rules import OWN
from steprule.rules.options import with_options
from steprule.state import state_shape

SETTINGS = {
    "hyperball": {},
    "update_floor": {"ratio": 3.0},
    "row_floor": {"ratio": 2.0},
    "radial_brake": {"outward": 0.25},
    "radius_pin": {},
    "match_rms": {"rms": 0.4},
    "cautious_decay": {"weight_decay": 0.3},
    "ema_nesterov": {"nesterov_scale": 0.7, "nesterov_beta": 0.6},
}
"""Numbers at which each wrapper shows."""
TELLING = {"weight_decay": 0.2, "d0": 0.5, "reps_rel": 0.1}
STEPS, LR = 6, 0.05


# What the papers and codes do, one tensor after another. `step(w, grad, decay)` is where the rule goes from w.


def by_hyperball(first, grads, step, lr):
    """Norm(W - lr Norm(u) R) R."""
    w, radius = first, np.linalg.norm(first)
    for grad in grads:
        u = -(step(w, grad, 0.0) - w)
        moved = w - lr * radius * (u / np.linalg.norm(u) if u.any() else u)
        w = radius * moved / np.linalg.norm(moved)
        yield w


def by_update_floor(first, grads, step, lr, *, ratio):
    w = first
    for grad in grads:
        u = (w - step(w, grad, 0.0)) / lr
        p_fro, u_fro = np.linalg.norm(w), np.linalg.norm(u)
        u = u * (ratio * p_fro / u_fro) if 0 < u_fro < ratio * p_fro else u
        w = w - lr * u - step.decay(w)
        yield w


def by_row_floor(first, grads, step, lr, *, ratio):
    w = first
    for grad in grads:
        u = (w - step(w, grad, 0.0)) / lr
        rows, weights = (
            u.reshape(len(u), -1) if u.ndim > 1 else u[None],
            w.reshape(len(w), -1) if w.ndim > 1 else w[None],
        )
        lifted = []
        for row, weight in zip(rows, weights, strict=True):
            s, r = math.sqrt(sum(row**2)), math.sqrt(sum(weight**2))
            lifted.append(row * max(1.0, ratio * r / s) if s else row)
        w = w - lr * np.array(lifted).reshape(w.shape) - step.decay(w)
        yield w


def by_radial_brake(first, grads, step, lr, *, outward):
    w = first
    for grad in grads:
        u = (w - step(w, grad, 0.0)) / lr
        coefficient = (u * w).sum() / (w * w).sum()
        radial = coefficient * w
        tangential = u - radial
        u = tangential + (outward if coefficient < 0 else 1.0) * radial
        w = w - lr * u - step.decay(w)
        yield w


def by_radius_pin(first, grads, step, lr):
    w = first
    for grad in grads:
        u = (w - step(w, grad, 0.0)) / lr
        before = np.linalg.norm(w)
        wanted = max(before - lr * (u * w).sum() / before, 1e-8)
        moved = w - lr * u
        w = moved * (wanted / np.linalg.norm(moved)) - step.decay(w)
        yield w


def by_match_rms(first, grads, step, lr, *, rms):
    w = first
    for grad in grads:
        u = w - step(w, grad, 0.0)
        now = math.sqrt((u**2).mean())
        w = w - (lr * rms * u / now if now else u) - step.decay(w)
        yield w


def by_cautious_decay(first, grads, step, lr, *, weight_decay):
    w = first
    for grad in grads:
        u = w - step(w, grad, 0.0)
        w = w - u - lr * weight_decay * w * (u * w >= 0)
        yield w


def by_ema_nesterov(first, grads, step, lr, *, nesterov_scale, nesterov_beta):
    """theta_{t+1} = A(theta_t + beta m_t); m_{t+1} = gamma m_t + (1 - gamma) (theta_{t+1} - theta_t). The model has theta + beta m."""
    theta, m = first, np.zeros_like(first)
    for grad in grads:
        y = theta + nesterov_scale * m
        new = step(y, grad, None) - step.decay(y)
        m = nesterov_beta * m + (1 - nesterov_beta) * (new - theta)
        theta = new
        yield theta + nesterov_scale * m


class Inner:
    """The rule alone, in float64: where it goes, without what decays beside it."""

    def __init__(self, rule, hyper, shape, first):
        self.rule, self.hyper, self.count = rule, hyper, 0
        self.apart = rule.decay in ("decoupled", "independent", "corrected", "initial") and "weight_decay" in hyper
        self.first, self.lr_max = first, 0.0
        self.states = {
            name: np.full(state_shape(rule, name, shape), 0.0) + rule.begins_at(name, first, hyper)
            for name in rule.states_for(hyper)
            if name
        }

    def __call__(self, w, grad, decay):
        """decay: 0 for none, None for what the rule's formula has that is not apart."""
        self.count += 1
        without = (
            {"weight_decay": 0.0}
            if "weight_decay" in self.hyper and ((decay == 0 and not self.keeps) or self.apart)
            else {}
        )
        new, self.states = oracle(self.rule, w, grad, self.states, self.count, {**self.hyper, **without})
        return new

    keeps = False
    """Whether a decay that is a part of the gradient or the step stays."""

    def decay(self, w):
        if not self.apart:
            return 0.0
        lr, weight_decay = self.hyper["lr"], self.hyper["weight_decay"]
        if self.rule.decay == "corrected":
            self.lr_max = max(self.lr_max, lr, self.hyper.get("max_lr", 0.0))
            return lr**2 / self.lr_max * weight_decay * w
        return lr * weight_decay * w


def fits(rule, name):
    """As the documentation says it."""
    if rule.refuses or rule.sparse_only:
        return False
    uses_lr = name not in ("radial_brake", "radius_pin", "ema_nesterov")
    return not (uses_lr and ("tuning-free" in rule.needs or rule.__name__ == "Rprop"))


def hyper_of(rule):
    hyper = {**filled(rule.hyperparameters, 1e-7), "lr": LR}
    return {**hyper, **{name: value for name, value in TELLING.items() if name in hyper}}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rule", OWN.values(), ids=OWN)
def test_every_rule_that_it_fits_goes_where_its_paper_says(rule, name):
    wrapper, own = getattr(wrappers, name), SETTINGS[name]
    if not fits(rule, name):
        with pytest.raises(ValueError, match=rf"{rule.__name__} does not go with {name}: \w+"):
            wrap(rule, wrapper)
        return
    wrapped, hyper = wrap(rule, wrapper), hyper_of(rule)
    shape = shape_for(rule, (6, 5))
    random = np.random.default_rng(3)
    first, grads = random.standard_normal(shape), random.standard_normal((STEPS, *shape))
    inner = Inner(rule, hyper, shape, first)
    inner.keeps = name not in ("hyperball", "cautious_decay")
    told = globals()[f"by_{name}"](first, grads, inner, LR, **own)
    now = {**wrapped.hyperparameters, **{k: v for k, v in hyper.items() if k in wrapped.hyperparameters}, **own}
    w = first
    states = {
        one: np.full(state_shape(wrapped, one, shape), 0.0) + wrapped.begins_at(one, first, now)
        for one in wrapped.states_for(now)
        if one
    }
    for count, (grad, expected) in enumerate(zip(grads, told, strict=True), 1):
        w, states = oracle(wrapped, w, grad, states, count, now)
        np.testing.assert_allclose(w, expected, rtol=1e-9, atol=1e-12)
    assert not np.allclose(w, first, rtol=1e-3), "it has hardly moved, which tests nothing"


@pytest.mark.parametrize("name", SETTINGS)
def test_it_changes_what_the_rule_does(name):
    """The numbers of `SETTINGS` tell."""
    rule, shape = OWN["adamw"], (6, 5)
    random = np.random.default_rng(3)
    first = random.standard_normal(shape)
    grad = random.standard_normal(shape) - first  # outward
    wrapped = wrap(rule, getattr(wrappers, name))
    results = []
    for one in (rule, wrapped):
        hyper = {**hyper_of(rule), **wrapped.hyperparameters, "lr": LR, **SETTINGS[name]}
        hyper["weight_decay"] = hyper["weight_decay"] if name == "cautious_decay" else 0.2
        states = {x: np.zeros(state_shape(one, x, shape)) for x in one.states_for(hyper) if x}
        results.append(oracle(one, first, grad, states, 1, hyper)[0])
    assert not np.allclose(*results, rtol=1e-6, atol=0)


PAIRS = [("adamw", "hyperball"), ("sgd", "update_floor"), ("lion", "radial_brake"), ("adan", "radius_pin"), ("adam", "match_rms"),
         ("adamc", "cautious_decay"), ("rmsprop", "ema_nesterov")]  # fmt: skip


CASES = [(*pair, run_eager) for pair in PAIRS] + [(*pair, run_cpu) for pair in PAIRS[:2]]


@pytest.mark.parametrize(("rule", "name", "run"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_engines_stay_within_rounding_of_the_oracle(rule, name, run):
    wrapped = wrap(OWN[rule], getattr(wrappers, name))
    hyper = {**wrapped.hyperparameters, "lr": 0.01, **SETTINGS[name]}
    for step in (1, 3):
        operands = random_operands(wrapped, hyper, 999, torch.float32, seed=step, is_first=step == 1)
        assert_within_bound(wrapped, hyper, operands, step, False, run(wrapped, hyper, operands, step))


# Optimizers of wrapped rules

EXAMPLE = Path(__file__).parent.parent / "examples" / "record.py"
_SPEC = importlib.util.spec_from_file_location("record", EXAMPLE)
assert _SPEC is not None and _SPEC.loader is not None
record = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(record)
STACK = record.HIDDEN


def train(optimizer, steps):
    for step in steps:
        for number, param in enumerate(optimizer.param_groups[0]["params"]):
            generator = torch.Generator().manual_seed(100 * step + number)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def weights(dtype=torch.float32, shapes=((8, 40), (5, 3, 4))):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def test_a_compiled_stack_of_wrappers_is_the_oracle_in_float64():
    own = Optimizer.of(STACK)(weights(torch.float64), lr=0.02)
    arrays_ = [param.detach().numpy().copy() for param in weights(torch.float64)]
    group = own.param_groups[0]
    states = [
        {name: np.zeros(state_shape(STACK, name, x.shape)) for name in STACK.states_for(group) if name} for x in arrays_
    ]
    for step in range(1, 4):
        train(own, [step])
        for number, param in enumerate(group["params"]):
            grad = param.grad.numpy()
            arrays_[number], states[number] = oracle(STACK, arrays_[number], grad, states[number], step, group)
            np.testing.assert_allclose(param.detach().numpy(), arrays_[number], rtol=1e-9, atol=1e-12)
    assert own._core.plans.current is not None


@pytest.mark.parametrize("formats", [{}, {"states": "8bit"}], ids=["plain", "8bit"])
def test_a_checkpoint_of_a_stack_goes_on_with_the_same_bits(formats):
    """The eager fallback takes those in 8 bits."""
    dtype, lay_out = (torch.float32, strided) if formats else (torch.float64, torch.clone)
    own = Optimizer.of(STACK)([lay_out(p.detach()).requires_grad_() for p in weights(dtype)], lr=0.02, **formats)
    train(own, range(3))
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    params = [lay_out(p.detach()).requires_grad_() for p in own.param_groups[0]["params"]]
    again = Optimizer.of(STACK)(params, **formats)
    again.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(own)
    train(own, range(3, 5))
    for one in (again, twin):
        train(one, range(3, 5))
        for param, its in zip(one.param_groups[0]["params"], own.param_groups[0]["params"], strict=True):
            assert torch.equal(param, its)


def test_a_wrapped_rule_goes_through_a_pickle():
    own = Optimizer.of(wrap(OWN["sgd"], functools.partial(wrappers.row_floor, ratio=0.5), wrappers.ema_nesterov))(
        weights()
    )
    twin = pickle.loads(pickle.dumps(own))
    assert type(twin) is type(own) and twin.rule.hyperparameters["ratio"] == 0.5


def test_the_same_parts_make_the_same_class_and_names_say_which():
    floor = functools.partial(wrappers.row_floor, ratio=0.5)
    one = wrap(OWN["muon"], floor, wrappers.hyperball)
    assert one is wrap(OWN["muon"], functools.partial(wrappers.row_floor, ratio=0.5), wrappers.hyperball)
    assert one is not wrap(OWN["muon"], wrappers.row_floor, wrappers.hyperball)
    assert (one.__name__, one.hyperparameters["ratio"]) == ("HyperballRowFloorMuon", 0.5)
    assert "weight_decay" not in one.hyperparameters and one.states["radius"] == State("scalar")
    twice = wrap(OWN["sgd"], wrappers.update_floor, wrappers.row_floor, name="Both")
    assert {"ratio", "ratio_2"} <= {*twice.hyperparameters} and twice.__name__ == "Both"
    assert wrap(wrap(OWN["muon"], floor), wrappers.hyperball).update.__signature__ == one.update.__signature__


def test_norms_stay_as_they_begin_whatever_the_gradients():
    params = weights(shapes=((8, 40), (5, 6)))
    norms = [float(p.detach().double().norm()) for p in params]
    optimizer = Optimizer.of(wrap(OWN["adamw"], wrappers.hyperball))(params, lr=0.1)
    train(optimizer, range(20))
    params[1].data.mul_(2.0)  # and what changed them by hand is taken back
    train(optimizer, [20])
    for param, norm in zip(params, norms, strict=True):  # a step rounds elements, and the next puts the norm back
        assert float(param.detach().double().norm()) == pytest.approx(norm, rel=2**-23)


@pytest.mark.parametrize("name", SETTINGS)
def test_nan_in_an_update_is_nan_in_the_weights(name):
    param = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    param.grad = torch.tensor([[1.0, torch.nan, 2.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
    Optimizer.of(wrap(OWN["sgd"], getattr(wrappers, name)))([param], lr=LR, **SETTINGS[name]).step()
    spread = {"hyperball": 6, "radial_brake": 6, "radius_pin": 6, "update_floor": 6, "match_rms": 6, "row_floor": 3}
    assert int(param.isnan().sum()) == spread.get(name, 1)  # of norms all that they scale


def test_nan_has_no_sign_that_agrees():
    assert math.isnan(transforms.agreeing(math.nan, 1.0)[0])


def test_a_norm_of_0_is_refused_before_anything_has_changed():
    params = [torch.ones(2, 3), torch.zeros(2, 3)]
    made = Optimizer.of(wrap(OWN["sgd"], wrappers.hyperball))
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 is 0 in all elements: hyperball keeps the norm"):
        made([p.requires_grad_() for p in params])
    optimizer = made(params[:1])
    with pytest.raises(ValueError, match="is 0 in all elements"):
        optimizer.add_param_group({"params": params[1:]})
    assert len(optimizer.param_groups) == 1


def test_gradients_ahead_and_weights_to_evaluate():
    """By hand: SGD with lr 1, scale .5 and beta .75."""
    param = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = Optimizer.of(wrap(OWN["sgd"], wrappers.ema_nesterov))(
        [param], lr=1.0, nesterov_scale=lambda step: 0.5 if step < 3 else 0.0, nesterov_beta=0.75
    )
    # theta is 1, -1, -2.25 and m is 0, -.5, -.6875; y is theta + .5 m, and with 0 in the third step theta.
    for grad, theta, ahead, y in (
        (2.0, -1.0, -0.5, -1.25),
        (1.0, -2.25, -0.6875, -2.59375),
        (0.0, -2.59375, -0.6015625, -2.59375),
    ):
        param.grad = torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
        assert (param.item(), float(optimizer.state[param]["ahead"])) == (y, ahead)
        optimizer.eval()
        assert param.item() == theta
        with pytest.raises(RuntimeError, match=r"call train\(\) of the optimizer before step"):
            optimizer.step()
        optimizer.train()
        assert param.item() == y


def mine(update, grad, last, *, share=0.5):
    return update - share * last, grad


def test_a_wrapper_of_your_own_around_a_chain():
    rule = wrap(chain(transforms.sign, transforms.decay), mine)
    param, last = rule.update(1.0, 8.0, 2.0, step=1, **{**rule.hyperparameters, "lr": 0.5, "weight_decay": 0.25})
    assert (param, last) == (1 - 0.5 * (1 + 0.25) - 1, 8.0)
    array = np.ones(3)

    class Mine(arrays.Optimizer, rule=rule): ...

    optimizer = Mine([array], lr=0.5, weight_decay=0.0)
    optimizer.step([np.full(3, 2.0)])
    optimizer.step([np.full(3, 2.0)])
    assert array.tolist() == [1 - 0.5 - 0.5 - 1.0] * 3


BAD = {
    "no wrapper": (lambda: wrap(OWN["sgd"]), RuleError, r"wrap\(SGD\) needs at least one wrapper"),
    "no rule": (lambda: wrap(wrappers.hyperball, wrappers.hyperball), TypeError, "wrap takes a rule"),
    "an optimizer": (lambda: wrap(steprule.SGD, wrappers.hyperball), TypeError, r"pass SGD\.rule"),
    "no function": (lambda: wrap(OWN["sgd"], 3), RuleError, "got 3 as a wrapper"),
    "a transform": (lambda: wrap(OWN["sgd"], transforms.sign), RuleError, r"sign is a transform, and no wrapper: chain\(sign, ...\)"),
    "a function of something else": (lambda: wrap(OWN["sgd"], lambda move: move), RuleError, r"must begin with \(update, ...\), not \(move\)"),
    "a wrapper in a chain": (
        lambda: steprule.chain(wrappers.hyperball), RuleError, r"hyperball is a wrapper, and no part .* wrap\(chain\(...\), hyperball\)"
    ),
    "an unknown argument": (
        lambda: wrap(OWN["sgd"], functools.partial(wrappers.row_floor, ration=1)), TypeError, "did you mean 'ratio'"
    ),
    "out of range": (
        lambda: Optimizer.of(wrap(OWN["sgd"], wrappers.row_floor))(weights(), ratio=-1.0), ValueError, r"Invalid ratio value: -1\.0"
    ),
    "nothing but EMA-Nesterov around hyperball": (
        lambda: wrap(OWN["sgd"], wrappers.hyperball, wrappers.match_rms), ValueError, "hyperball fixes the norm"
    ),
    "nothing around EMA-Nesterov": (
        lambda: wrap(OWN["sgd"], wrappers.ema_nesterov, wrappers.ema_nesterov), ValueError, "its weights to evaluate are made of"
    ),
    "options around hyperball": (
        lambda: Optimizer.of(wrap(OWN["sgd"], wrappers.hyperball))(weights(), cautious=True), ValueError, "hyperball fixes the norm"
    ),
    "a decay with hyperball": (
        lambda: Optimizer.of(wrap(OWN["adamw"], wrappers.hyperball))(weights(), weight_decay=0.1), TypeError, "it has no weight_decay"
    ),
    "too few results": (lambda: Optimizer.of(wrap(OWN["sgd"], lambda update, last: update))(weights()), RuleError, "returned 1 value"),
    "no lr": (
        lambda: wrap(type("Plain", (steprule.Rule,), {"update": lambda param, grad, *, rate=0.1: param - rate * grad}), wrappers.match_rms),
        ValueError, "Plain does not go with match_rms: it has no lr",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_makes_no_sense_is_refused(what):
    make, error, message = BAD[what]
    with pytest.raises(error, match=message):
        make()


def test_options_go_around_wrappers_that_allow_them():
    rule = wrap(OWN["adamw"], wrappers.radial_brake)
    optimizer = Optimizer.of(rule)(weights(), cautious_decay=True, lookahead=2, weight_decay=0.1)
    assert optimizer.rule is with_options(
        rule, decay=None, cautious=False, cautious_decay=True, lookahead=2, lookahead_alpha=0.5
    )


# The example


def test_the_record_stack_trains_and_evaluates():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(7, 8), torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8), torch.nn.RMSNorm(8),
        torch.nn.Linear(8, 7),
    )  # fmt: skip
    optimizer = record.record(model.double(), steps=10)
    matrices, others = optimizer.optimizers
    assert [tuple(p.shape) for p in matrices.param_groups[0]["params"]] == [(16, 8), (8, 16)]
    assert {group["lr"] for group in others.param_groups} == {1.0} and len(others.param_groups) == 6
    tokens, losses = torch.arange(7), []
    for _ in range(9):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens), tokens.roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    assert matrices._core.plans.current is not None
    for one in optimizer.optimizers:
        one.eval()
        one.train()
