"""Multipliers of lr, weight_decay and eps in parameter groups: the same step as with the products, and nobody else's business."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from settings import shapes_for
from test_every_rule import settings_of, strided, train

import steprule
from steprule import Optimizer, Rule, RuleError, State
from steprule.rules import OWN

MULTIPLIERS = {"lr_mult": 0.25, "weight_decay_mult": 4.0, "eps_mult": 0.5}
"""Powers of 2, so that products are exact."""


def weights(rule, engine="compiled"):
    generator = torch.Generator().manual_seed(5)
    params = [torch.randn(shape, generator=generator) for shape in shapes_for(rule, ((6, 20), (20,)))]
    return [(strided(p) if engine == "eager" else p).requires_grad_() for p in params]


def multipliers_for(rule):
    return {name: x for name, x in MULTIPLIERS.items() if not isinstance(rule.hyperparameters.get(name[:-5]), tuple)}


def products(rule, settings):
    found = dict(settings)
    for by, value in multipliers_for(rule).items():
        name = by.removesuffix("_mult")
        if name in rule.hyperparameters:
            found[name] = settings.get(name, rule.hyperparameters[name]) * value
    return found


CASES = [(rule, "eager") for rule in OWN.values()] + [(OWN[name], "compiled") for name in ("adamw", "rprop", "muon")]


@pytest.mark.parametrize(("rule", "engine"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_step_is_that_of_the_products(rule, engine):
    made, settings = getattr(steprule, rule.__name__), settings_of(rule)
    settings |= {"weight_decay": 0.1} if "weight_decay" in rule.hyperparameters else {}
    own, its = weights(rule, engine), weights(rule, engine)
    optimizer = made([{"params": own, **multipliers_for(rule)}], **settings)
    plain = made(its, **products(rule, settings))
    for one in (optimizer, plain):
        train(rule, one, range(7 if "RAdam" in rule.__name__ else 3))
    for mine, theirs, first in zip(own, its, weights(rule, engine), strict=True):
        assert torch.equal(mine, theirs) and not torch.equal(mine, first)
        for name, state in optimizer.state[mine].items():
            assert torch.equal(state, plain.state[theirs][name]), name
    if rule is not OWN["sparseadam"]:
        assert (optimizer._core.plans.current is not None) == (engine == "compiled")
    assert optimizer.param_groups[0]["lr"] == settings["lr"]


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_followed_by_each_group_at_its_own_distance(name):
    """Signs of gradients are 1: a weight moves by lr times its multiplier."""
    params = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = steprule.Signum([{"params": params[:1]}, {"params": params[1:], "lr_mult": 0.25}], lr=0.1, momentum=0.0)
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(4):
        lr = optimizer.param_groups[0]["lr"]
        assert optimizer.param_groups[1]["lr"] == lr
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        for param, old, by in zip(params, before, (1.0, 0.25), strict=True):
            torch.testing.assert_close(param.detach(), old - lr * by, rtol=1e-12, atol=1e-15)
        scheduler.step()
    assert lr != 0.1 or name == "OneCycleLR"


@pytest.mark.parametrize(
    ("lr", "expected"),
    [(lambda step: 1.0 / step, [0.5, 0.25, 0.25 / 3, 0.0]), (1.0, [0.5, 0.5, 0.25, 0.0])],
    ids=["function", "number"],
)
def test_functions_of_the_step_and_changes_by_hand(lr, expected):
    param = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = steprule.SGD([{"params": [param], "lr_mult": 0.5}], lr=lr)
    moved = []
    for by in (0.5, 0.5, 0.25, 0.0):
        optimizer.param_groups[0]["lr_mult"] = by
        param.grad = torch.ones_like(param)
        before = param.detach().clone()
        optimizer.step()
        moved.append(float((before - param.detach())[0]))
    assert moved == pytest.approx(expected)


def test_all_groups_have_multipliers_if_one_has_some():
    params = weights(OWN["sgd"])
    optimizer = steprule.SGD([params[0]], lr=0.5)
    assert "lr_mult" not in optimizer.param_groups[0]
    optimizer.add_param_group({"params": params[1:], "lr_mult": 0.5})
    assert [group["lr_mult"] for group in optimizer.param_groups] == [1.0, 0.5]
    for param in params:
        param.grad = torch.ones_like(param)
    before = [param.detach().clone() for param in params]
    optimizer.step()
    assert [float((old - new.detach()).max()) for old, new in zip(before, params, strict=True)] == pytest.approx(
        [0.5, 0.25], rel=1e-6
    )


def test_a_checkpoint_has_them_and_one_without_leaves_them():
    params = weights(OWN["adamw"])
    optimizer = steprule.AdamW([{"params": params, "lr_mult": 0.5, "eps_mult": 0.5}], lr=0.1)
    train(OWN["adamw"], optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = steprule.AdamW([p.detach().clone().requires_grad_() for p in params])
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.param_groups[0]["lr_mult"] == 0.5
    twin = copy.deepcopy(optimizer)
    for one in (optimizer, fresh, twin):
        train(OWN["adamw"], one, [2])
    for one in (fresh, twin):
        assert all(map(torch.equal, one.param_groups[0]["params"], params))
    theirs = torch.optim.AdamW(weights(OWN["adamw"]))
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["lr_mult"] == 0.5
    plain = fresh.plain_state_dict()["param_groups"][0]
    assert (plain["lr"], plain["eps"]) == (0.05, 0.5e-8) and not {*MULTIPLIERS} & {*plain}


@pytest.mark.parametrize("value", ["x", None, -1.0, float("inf"), float("nan"), True, torch.ones(()), len], ids=str)
def test_what_is_no_number_is_refused_before_anything_has_changed(value):
    params = weights(OWN["sgd"])
    with pytest.raises(ValueError, match=r"Invalid lr_mult value: .*; it must be a finite number of at least 0"):
        steprule.SGD([{"params": params, "lr_mult": value}])
    optimizer = steprule.SGD([{"params": params, "lr_mult": 1.0}])
    optimizer.param_groups[0]["lr_mult"] = value
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="Invalid lr_mult value"):
        train(OWN["sgd"], optimizer, [0])
    assert all(map(torch.equal, params, before))


def test_a_hyperparameter_of_several_numbers_has_none():
    with pytest.raises(ValueError, match=r"eps_mult=0\.5: eps of Adafactor is .* and no number"):
        steprule.Adafactor([{"params": weights(OWN["adafactor"]), "eps_mult": 0.5}])


def test_names():
    with pytest.warns(UserWarning, match="'lr_mul' .* is not a setting and does nothing; did you mean 'lr_mult'"):
        steprule.SGD([{"params": weights(OWN["sgd"]), "lr_mul": 0.5}])
    with pytest.raises(RuleError, match="'lr_mult' is a name that every optimizer has"):
        Optimizer.of(
            type("Own", (Rule,), {"update": lambda param, grad, *, lr=0.1, lr_mult=1.0: param - lr * lr_mult * grad})
        )
    split = steprule.parameter_groups(torch.nn.Linear(3, 2), groups=[("weight", {"lr_mult": 0.5})])
    assert "lr_mult" in str(split)
    made = steprule.create_optimizer(torch.nn.Linear(3, 2), "adamw", groups=[("weight", {"lr_mult": 0.5})])
    assert {group["lr_mult"] for group in made.param_groups} == {0.5, 1.0}


def test_what_begins_at_lr_begins_at_the_product():
    class Own(Rule):
        rate = State("scalar", begins="lr")

        def update(param, grad, rate, *, lr=1.0):
            return param - rate * grad, rate

    param = torch.zeros(2, requires_grad=True)
    optimizer = Optimizer.of(Own)([{"params": [param], "lr_mult": 0.5}])
    param.grad = torch.ones(2)
    optimizer.step()
    assert param.tolist() == [-0.5, -0.5]
